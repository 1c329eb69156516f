// Package store keeps the bridge's tables: jobs, chunks, leases, results, members, receipts, sums of use,
// scores, paces, log tails, volumes, the money ledger and tokens, in one SQLite file.
//
// The flow:
//  1. Open takes the lock beside the file, applies the numbered migrations and sets WAL with
//     synchronous=FULL.
//  2. Update hands a Tx to a function and commits what it wrote as one durable transaction: when Update
//     returns nil, a power cut does not undo it. Callers are served one at a time, on one connection.
//  3. View hands out a Tx that reads one consistent state while the writer goes on.
//  4. A Tx has Put methods that insert or replace rows by key, Get methods for one row and lists; what may
//     be long is an iterator that reads as it is walked.
//  5. Close waits for who is inside and folds the log into the file.
//
// "Counted once" is the schema's work: one accounted result for each (job, first input), one lease for each
// (job, first input, fence), one transaction for each ledger ID, one receipt for each (node, seq). Whatever
// would break one of these is ErrConflict and the whole Update is undone.
//
// Numbers that must not be negative are unsigned in Go and bounded by 2^63-1 in the file; times are UTC
// milliseconds, the zero time is 0; an undefined CID and an empty byte string are NULL. States are texts that
// belong to beambridge/cluster: this package knows of them only that a lease without an end is live and that
// a chunk is open until it is done or failed.
//
// Only beambridge imports it; it imports only protocol. It guarantees that an Update is there wholly or not
// at all, after SIGKILL and after a power cut, and that a full disk undoes only the Update that met it. It
// does not guarantee that two Stores share a file: the second Open is refused with ErrLocked.
package store
