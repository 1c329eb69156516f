// Package beambridge is the demand side: it takes jobs, chooses nodes for them, hands out chunks, checks and
// accounts what comes back, and keeps all of it over a crash.
//
// The flow of a job:
//  1. Submit checks the job file, resolves module and volumes to roots, cuts nothing yet, and stores the job
//     with the user's reservation (submit.go).
//  2. A placement takes candidates from the directory, scores and prices, lets cluster.Select choose, and asks
//     the chosen to reserve; who offers becomes a member (place.go, candidates.go).
//  3. Each member has one long lease stream: what it should hold, stops, memberships (link.go). Chunks are
//     announced on the job's topic and claimed over a stream (serve.go).
//  4. Results come with their outputs and a signed receipt: one event gives every attempt its verdict, counts
//     use, charges the user and observes the node (results.go, account.go, judge.go).
//  5. When the last chunk has ended its outputs are merged into one tree whose CID does not depend on who ran
//     what (merge.go).
//
// The engine (engine.go) is one goroutine that owns every cluster.Tracker. It drains all events that wait,
// gathers their rows, commits them in one transaction, and only then lets replies and lease sets leave. After a
// failed commit, or a crash, trackers are rebuilt from the rows (restore.go).
//
// It may be imported by cmd and by tests; it imports protocol, the mechanisms and its own rooms.
//
// It guarantees that a chunk is accounted once however often it ran, that nothing leaves before its rows are
// durable, and that money moves only in balanced transactions. It does not guarantee that a node tells the
// truth beyond what copies and receipts show.
package beambridge
