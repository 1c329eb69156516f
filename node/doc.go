// Package node is the supply side: it offers this machine to bridges that its owner's policy admits, and runs
// what they lease to it.
//
// The flow:
//  1. New checks the Config; Run locks the data directory, replays the journal, proves the backends, reads the
//     hardware (node/gpu), joins the network (p2p, dht) and says READY, or why not.
//  2. A dht.Announcer publishes the signed capability record and heartbeats. A bridge that likes them presents
//     its grant chain (auth.go) and asks to reserve (reserve.go); policy.go decides, purely, and an Offer is the
//     answer.
//  3. A lease set names the node a member of the job (sets.go): it listens to the job's topic and claims. What
//     it is granted is journalled with one fsync before anything starts (grants.go).
//  4. internal/machine says what may happen to a lease; book.go owns all leases and memberships under one lock,
//     keeper.go their clocks.
//  5. One worker per slot stages, runs by an executor.Backend and collects outputs (worker.go, outputs.go). One
//     link per bridge publishes results with their receipt and claims more in the same message (link.go).
//  6. The owner speaks over a socket: status, pause, resume, drain, stop (control.go).
//
// It may be imported by cmd and tests. It imports protocol, the mechanisms and its own rooms; the executor's
// backends come in as values.
//
// It guarantees: no code runs for a bridge whose chain it has not verified itself; a lease is journalled before
// it runs, never runs twice at a time and is never published under a fence known to be old; each lease ends; a
// receipt is durable before it is sent. It does not guarantee that a lease runs only once: code that lives in
// this process runs again after a crash, under the same lease and fence.
package node
