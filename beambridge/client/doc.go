// Package client speaks the bridge's HTTP API: what `gridbeam job`, `volume import`, `reputation` and
// `settlement` are made of, and what a Go program submits jobs with.
//
// The flow of a job:
//  1. LoadJob reads a job file with the lines that it refers to, and finds everything that is wrong in it
//     before a bridge is asked.
//  2. Prepare sends the module; PutVolume sends directories. Nothing outside of the named directory is read.
//  3. Submit stores the job: one round trip, the same job however often it has to be repeated.
//     SubmitAndWait also waits, so that a short job takes that one round trip.
//  4. Wait follows it to its end, through restarts of the bridge, and tells of every change.
//  5. Results writes the outputs into a directory and never outside of it.
//
// cmd/gridbeam and other programs import it; it imports protocol alone and knows nothing of what is behind the
// API. A failure that the bridge told is an *Error with code, field and fix; a bridge that cannot be reached is
// ErrNotConnected. What may be repeated is repeated when the bridge that answered before does not: reads, waits,
// submissions (each has a request ID) and uploads. A client is safe for concurrent use, keeps its connections
// alive and never follows a redirect, since that would show its token to somebody else.
package client
