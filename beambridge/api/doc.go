// Package api answers the bridge's own HTTP API under /gridbeam/v1: what `gridbeam job`, `volume import`,
// `reputation` and `settlement` talk to, by beambridge/client.
//
// The flow of a request:
//  1. An address with too many failed tokens is turned away before anything is looked up.
//  2. The bearer token becomes a Principal (Authorizer); the route says which Scope it needs.
//  3. The principal's rate is charged; waits and streams are not requests of this kind.
//  4. The body is read within its limit and deadline. A job is judged as a whole, a module by its first bytes,
//     a tar stream is unpacked into a directory that nothing leaves.
//  5. One of the small interfaces of this package does it; beambridge satisfies them.
//  6. The answer is a message of protocol/api.go, a stream of them (ndjson or server-sent events) or of tar;
//     every failure is a protocol.APIError with code, text, field and fix, under the right status.
//  7. What changes something is logged as an audit line: who, what, on which object, with which outcome.
//
// beambridge imports it, and it imports protocol alone. It knows nothing of how jobs are run. It guarantees
// that no handler runs without a good token, that bodies are bounded in bytes and time, and that what the
// bridge's inside says in an unexpected error is logged and not sent. It does not decide whose job is whose:
// the interfaces get the Principal and answer CodeNotFound. Pages, mTLS and quotas are not here yet.
package api
