// Package metering counts what a node did for a bridge, and lets both ends agree on it by receipts.
//
// The flow, on the node's side:
//  1. Clock maps the node's monotonic time onto the bridge's UTC, as grants and lease sets carry it.
//  2. Meter keeps one timeline per slot: idle, preparing, working, or unpaid. It cuts it at the UTC grid of
//     5 s cells; Finish gives the records of an ended attempt, Interim those of one that runs on, Idle the rest.
//  3. Chain puts records into signed receipts, each naming the hash of the one before, and keeps each receipt
//     until the bridge has counter-signed it. Its State is to be durable before a receipt is sent.
//
// On the bridge's side:
//  4. Book.Check holds a receipt against the chain's position, against earlier records of the same slot and
//     cell, and against what the bridge itself witnessed of the lease. Each record gets a verdict; what is
//     settled is the lower of the two values.
//  5. Checked.CounterSign is the bridge's answer; Checked sums what is settled by lease, and slot time by day.
//
// Both roles import it; it imports protocol only. It reads no clock, does no I/O and starts no goroutine.
//
// It guarantees that the three paid states of a slot are disjoint and sum to its uptime exactly, that a record
// counts once, that a slot is never paid for more than 5 s in a cell, and that two receipts under one number
// are noticed. It does not know whether the work was any good, and it prices nothing.
package metering
