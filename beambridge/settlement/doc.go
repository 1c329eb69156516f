// Package settlement turns counted usage into money: rates, bills, fees and burns, the ledger's transactions,
// statements, and how a reward pool is shared.
//
// The flow of a job's money:
//  1. Prices.Rate makes the user's rate of a node's ask; Bill makes a bill of a rate and milliseconds.
//  2. Reserve sets credit aside when a job is submitted; Prices.Charge posts the growth of a bill line
//     (job, node) as burn and fee; Release gives back what the job did not use. Who pays for an attempt at all
//     is PaidBy's table.
//  3. NewStatement says, node by node and in integer units, what was used, what it cost and how rnp004 shares
//     a pool by it.
//
// The flow of an epoch: ComputePool, AvailabilityWeight and Split share a pool without losing a unit; Root
// commits to its PayoutLeaves, Proof lets anybody check a line of it; ParseWallet says where it may go.
//
// Only beambridge and cmd import it; it imports only protocol. It reads no clock, does no I/O, and has no
// floating-point number in it (a test reads the source), so that every machine gets the same bits.
//
// Money is int64: micro-USD (10^-6 USD) or RENDER base units (10^-8 RENDER); time is int64 milliseconds;
// parts are millionths (ppm). Products go through math/big. It guarantees that rounding never makes a unit, and
// that every transaction that it builds balances. It does not move anything: the bridge posts, the store keeps.
package settlement
