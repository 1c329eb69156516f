// Package beamapi is the face that Beam's own clients talk to, unmodified: their gRPC, their JSON and their REST.
//
// The flow of a call:
//  1. A connection speaks HTTP/1.1, h2c or TLS; gRPC, gRPC-Web and JSON are told apart by content type, and one
//     http.Handler answers all of them. The limits are those of ConfigureServer.
//  2. The gate turns away an address with too many bad tokens; the bearer token becomes a Principal (Tokens).
//  3. The codec reads the message: beamwire holds our own minimal protobufs, whose numbers and names are facts of
//     Beam's wire. JSON takes both casings and answers in camelCase with zeros.
//  4. One table has every method: gRPC and JSON run the same function. What a client asks for is translated into the
//     terms of protocol.Job by pure functions (translate.go, environ.go, pool.go); never weaker than it was asked.
//  5. One of the interfaces of bridge.go does it; beambridge satisfies them.
//  6. A function's call is a stream: its id at once, output in order, one last frame. What goes wrong with one input is
//     told in that frame and never as a status, which would end its siblings. A result is shown to the Gate first.
//  7. A refusal is ok = false with a text that says what to do; a status is for what cannot be served at all.
//
// beambridge imports it; it imports protocol alone, and its inner rooms beamwire and picklescan. It knows nothing of jobs
// in flight, nodes and leases. It guarantees that no handler runs without a good token, that messages and archives are
// bounded, that every stream of a call has exactly one last frame, and that what the bridge's inside says in an
// unexpected error is logged and not sent. Queues, endpoints, pods, secrets, cron and image builds are answered as not
// offered yet.
package beamapi
