// Package store keeps verified blocks on disk by their SHA-256 digest.
//
// Layout below the directory:
//
//	format.json   {"format":1,"features":[]}; an unknown feature is refused by name
//	lock          flock; a second process gets ErrLocked with the pid of the first
//	index/        pebble: digest → inline bytes | (pack, offset, length, CRC32C); child → parents;
//	              roots; pins; pack → synced length
//	pack/<n>.dat  records {magic, length, digest, CRC32C of the payload, CRC32C of the header}, payload
//
// The flow of a write:
//  1. Put checks free space, drops what is had, appends large leaves to the newest pack and writes small
//     blocks and dag-pb nodes into the index without waiting for the disk.
//  2. Index entries of pack records wait in memory, readable by this process.
//  3. Sync makes the packs durable first, then their entries in one batch: an entry means synced data.
//  4. After a crash Open reads what stands behind the last synced length of each pack, adopts the records
//     whose digest matches and drops the torn tail.
//
// Only volumes imports it. It guarantees that no block is lost that a finished Sync covered, and that a
// read never returns bytes whose checksum is wrong; it trusts its caller that a digest is the block's own.
// Whole files as extents join the same index later, as one more kind of place (volumes.md 5).
package store
