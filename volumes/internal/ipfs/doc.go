// Package ipfs speaks bitswap over a host that it is handed. It is the only package that imports boxo, whose
// maintenance ends (volumes.md, decision 4): replacing it touches this room alone.
//
// The flow:
//  1. New takes host, blocks, filter and router; Run starts client and server and ends them with its ctx.
//  2. Serving: each want passes the Filter first; what is denied looks like absent.
//  3. Fetching: a Session asks for flat lists; every list of a tree goes through one Session.
//  4. A guard stands before the client: bytes that hash to nothing that was asked never reach it; whoever
//     sent them is named by the evidence callback and not asked again for Config.Ban.
//
// Only volumes imports it. It guarantees that a block it hands out hashes to its CID, that its goroutines
// end with Run, and that nothing in it is shared between two exchanges of one process. The protocol IDs are
// those of IPFS, so other IPFS software can fetch and serve.
package ipfs
