// Package reputation judges nodes by what one rater saw of them: good and bad evidence per criterion, which
// fades, and a state that says what a node may still be used for.
//
// The flow:
//  1. The bridge makes an Observation of each outcome, check, hour of uptime and answer: FromOutcome, FromCheck,
//     FromUptime, FromPerformance, FromAnswer.
//  2. Book.Observe adds it to the node's evidence, decayed by the criterion's half-life, moves the node's state
//     by the one table, and keeps bad ones as incidents. Book.Amend takes one back within 24 h.
//  3. Book.Score gives the criteria's lower bounds L, the overall O, the success probability P, the state and
//     what is next. Explain says it for people.
//  4. Snapshot and Restore carry a node's state to and from the store, one row each.
//  5. Book.Attest speaks about a node to other raters; Merge takes theirs, discounted and clamped.
//
// formulas.go and quantile.go hold the mathematics of trust.md 8 to 10 and import math and time alone.
//
// beambridge imports it, and cmd to show; it imports protocol only. It reads no clock, does no I/O and starts
// no goroutine; a Book is safe for concurrent use.
//
// It guarantees that others' words move a score by a bound, that amending leaves no trace, and that equal
// histories give equal scores. It does not know who is behind a key: sybils start over as newcomers.
package reputation
