// Package p2p is the one room that touches libp2p: it joins a machine to the network and carries framed
// requests, long streams and gossip for everybody else.
//
// The flow:
//  1. LoadIdentity or CreateIdentity gives the Ed25519 key; the key is the peer ID.
//  2. New checks the Config, Open listens (QUIC and TCP) and starts gossip, Run keeps bootstrap peers
//     connected, finds neighbours by mDNS if asked to, and shuts down in order when its context ends.
//  3. Serve answers requests and Call sends them, over a small pool of warm streams per peer and
//     protocol; HandleDuplex and OpenDuplex carry long streams as Frames.
//  4. Join opens a typed gossip topic: what arrives is decoded and judged before anybody forwards it.
//
// One frame is: u32 length of the body, big-endian · u8 kind · body. Kinds: 0 message, 1 error (u16 code,
// UTF-8 text), 2 goodbye (the answering side will take no further request on this stream; one that
// crossed it was not looked at and may be sent again).
//
// It may be imported by node, beambridge, cmd and internal/testnet; it imports protocol alone, for names
// and limits. DHT, volumes and roles receive its host as a value.
//
// It guarantees: only Ed25519 peers complete a handshake; a frame's length is checked and its memory
// reserved before its body is read; nothing waits for a silent peer longer than the Config says; a message
// on a topic is handed out only after size, decoding, author and the topic's own check; when Run has
// returned, no goroutine of this package is left. It does not guarantee that anybody is who they claim
// beyond their key, nor that gossip arrives: being reachable, or found by mDNS, grants nothing.
package p2p
