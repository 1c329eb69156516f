// Package testnet runs a whole network in one process: hosts on a simulated network under virtual time,
// with faults, and processes that crash and come back with what they had on disk.
//
// The flow, inside a testing/synctest bubble:
//  1. New makes the network; everything it starts ends with the test, before the bubble does.
//  2. Hosts gives bare hosts; Process wraps a role: a function that gets a host and a directory.
//  3. Cut, Partition, Drop, Duplicate and Slow break the network, Heal mends it.
//  4. Crash cuts a process off, keeps its directory as it was at that instant and lets the old run end
//     unheard; Restart starts it again on that directory, with its key and address.
//
// Only tests may import it; it may import everything.
//
// It guarantees that what a crashed process does after the crash reaches neither the network nor the
// directory of its successor. Facts of this ground: virtual time begins in the year 2000; a cut connection
// looks alive for 30 s, so deadlines have to decide; a crash falls between two steps of the bubble, never
// inside a write; a seed fixes faults and keys but not the order of goroutines.
package testnet
