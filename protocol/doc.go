// Package protocol holds the nouns of the gridbeam wire: what peers say to each other, how it is signed,
// how large it may be and what the streams and topics are called.
//
// The flow of every signed noun is the same:
//  1. A role fills the Go struct. Seal calls its Validate, refuses every key but the Ed25519 key of the peer
//     that it speaks for, and signs its protobuf bytes in a libp2p envelope under the noun's own domain
//     ("gridbeam/<noun>/v1"), so that no signature can pass for another noun's. What Seal returns opens.
//  2. The bytes are kept and forwarded as received; nobody re-encodes a signed payload. There is one envelope
//     for each signed payload, so nobody but its signer can make other bytes of it.
//  3. Open checks, cheap first, size, form, payload type, key type, signature and how many entries of what
//     there are; then it decodes, checks the author and validates again. What it allocates is bounded by what
//     came in.
//
// Nouns without a signature (Lease, Result, JobTerms) have Encode and Decode for journals and stores. A chain of
// grants is judged by VerifyChain, which yields the meet of all its links, and a network file by its roots'
// signatures.
//
// Anybody may import it; it imports nothing else of ours. It guarantees that what Open returns is
// well-formed, within bounds and signed by the peer that it names. It says nothing about whether the content is
// true or still of now, and nothing about replay: not_after, nonces, fences and sequence numbers are the
// receiver's to check. The records of a receipt are each to be validated by who settles them.
package protocol
