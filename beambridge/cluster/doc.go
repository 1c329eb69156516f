// Package cluster decides which machines get work and what happens to it: selection, splitting and the
// life of jobs, chunks and leases, all as functions of values.
//
// The flow of a job, each step driven by the bridge:
//  1. Select filters candidates by named predicates, orders them by the expected seconds to a good result
//     and chooses the set; the Explanation counts what each predicate removed.
//  2. The bridge confirms the Plan's members by reservations and adds them to a Tracker with Join.
//  3. Tracker.Announce cuts chunks off the input sequence (Cutter) and names those that are ready.
//  4. Tracker.Grant turns a claim into leases, each with a fencing token that grows by one per chunk.
//  5. Tracker.Report renews what a node holds, Tracker.Expire lets silent leases lapse and ends overlong ones.
//  6. Tracker.Result gives a verdict on each end of an attempt: accounted, duplicate, fenced, retry, failed.
//  7. Every call returns Effects, rows to persist and messages to send. The bridge commits the rows in one
//     transaction and only then sends.
//  8. After a restart Restore rebuilds the Tracker from the rows; nodes report their leases and are adopted.
//
// Only beambridge imports it; it imports only protocol. It reads no clock and no randomness of its own,
// does no I/O and starts no goroutine: now, seeds and new IDs are arguments, so that equal calls give equal
// answers and 100,000 seeds can be run through it.
//
// It guarantees that no plan holds a node that violates a requirement, that chunks cover the inputs exactly
// once, that each chunk is accounted at most once, and that an old fence is never accounted. It does not
// guarantee that a prediction is right, and it is not safe for concurrent use: one owner calls a Tracker.
package cluster
