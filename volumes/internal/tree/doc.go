// Package tree turns files and directories into UnixFS blocks and back, in the profile unixfs-v1-2025
// (IPIP-499): CIDv1, sha2-256, raw leaves of 1 MiB, balanced nodes of 1,024 links, directories as one
// block up to 256 KiB and as a HAMT of fanout 256 above, links first.
//
// Writing:
//  1. File cuts a reader into leaves, hashes them on several cores and hands each block to a Put.
//  2. Directory takes the finished entries of one directory and writes its block or its shards.
//  3. Symlink writes a link's target.
//
// Reading:
//  1. Decode turns one block into a Node, or says ErrMalformed.
//  2. Entries and Lookup list and search a directory, plain or sharded, through a Get.
//  3. ReadFileAt reads any range of a file, fetching only the blocks that it touches.
//
// Only volumes imports it. It guarantees that equal content gives equal CIDs, the same that
// "ipfs add --profile unixfs-v1-2025" gives, and that no block makes it allocate more than a small
// multiple of the block's own size. It keeps nothing, opens no file and does not check that a block
// matches its CID: that is done before a block is stored.
package tree
