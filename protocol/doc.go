// Package protocol holds the nouns of the gridbeam wire: what peers say to each other, how it is signed,
// how large it may be and what the streams and topics are called.
//
// The flow of every noun is the same:
//  1. A role fills the Go struct and calls its Validate method.
//  2. Seal signs its protobuf bytes in a libp2p envelope under the noun's own domain
//     ("gridbeam/<noun>/v1"), so that no signature can pass for another noun's.
//  3. The bytes are kept and forwarded as received; nobody re-encodes a signed payload.
//  4. Open checks size, payload type, signature and author, decodes and validates again.
//
// Anybody may import it; it imports nothing else of ours. It guarantees that what Open returns is
// well-formed, within bounds and signed by the peer that it names. It says nothing about whether the
// content is true.
package protocol
