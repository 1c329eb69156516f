// Package volumes keeps trees of files as content-addressed blocks and moves them between peers.
//
// The flow:
//  1. Import, AddFiles and Merge make a tree: UnixFS blocks whose root CID equals what
//     "ipfs add --profile unixfs-v1-2025" gives, the same on every machine.
//  2. Serve answers bitswap on a host that is handed in, to whom the Authorizer admits.
//  3. Net.Fetch brings a tree from several holders at once; each block is verified before it is stored, and
//     a peer that sends wrong bytes is named to the evidence callback and left alone.
//  4. FS shows a tree as a read-only fs.FS; with a Net, what is missing is fetched when it is read.
//  5. Export writes a tree into a directory; Blocks and PutBlocks carry a small one inside a message.
//
// The roles import it; it imports protocol alone, takes hosts, routers and authorizers as values and starts
// no goroutine outside Net.Run. Its inner rooms never import one another: store (blocks on disk), tree
// (UnixFS), fetch (what to ask for), ipfs (bitswap); it wires them.
//
// It guarantees that what was synced survives a crash, that no reader sees a block that was not verified,
// and that a tree counts as complete only when every block is here. It does not encrypt, and local rot is
// found by checksum when a whole block is read, not on each partial read. Commits, branches, leases, mounts,
// replication and our own transfer (volumes.md) are not here yet.
package volumes
