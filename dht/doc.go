// Package dht is the directory of the network: it advertises what this peer has, and knows what the others
// have, without a server that anybody must trust.
//
// The flow:
//  1. New takes a host, a Gossip, a clock and randomness as values; Run joins the Kademlia network
//     /gridbeam/kad/1.0.0, answers /gridbeam/query/1.0.0 and listens to the configured availability topics.
//  2. Advertise stores this peer's signed capability record under /gb-cap/<peerID> at its nearest servers and
//     counts who took it; Provide announces index keys for those who start cold; Beat gossips the short signed
//     heartbeat. Announcer does all three on schedule and owns the sequence numbers.
//  3. Heartbeats that arrive are verified before they are forwarded and fill a bounded replica in memory; one
//     that speaks of an unknown record makes a worker fetch that record, and the node is not selected before.
//  4. Find evaluates a gb-filter/1 over the replica's rows (node, group of GPUs) in Kleene's logic, without a
//     message, and explains what each clause removed. A peer without a replica asks three independent index
//     peers, verifies and unites what they give, and searches cold where there are fewer: it samples provider
//     keys and asks each node for itself, else the DHT.
//  5. Watch finds out whether we are in one network with our anchors and seen there; Standing tells.
//  6. Bandwidth has an index peer measure our line, by /gridbeam/measure/1.0.0, and sign for what it has found.
//
// It may be imported by node, beambridge, cmd and internal/testnet; it imports protocol alone.
//
// It guarantees: what it stores, forwards or lists is signed by the peer that it names, current, within
// bounds, and never older than what it has seen of that peer; memory, streams, queries and stores for others
// are bounded; when Run has returned, no goroutine of this package is left. It does not guarantee that
// what a node says of itself is true, nor that a record which somebody withholds is found; nothing may be
// decided on a "free" that a heartbeat claims, only on the node's own answer.
package dht
