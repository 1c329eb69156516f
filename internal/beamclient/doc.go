// Package beamclient makes the calls of Beam's SDK in the SDK's order, with messages written by field numbers alone
// (beam-interface.md 3 and 4), so that nothing of the bridge's own code is between a test and the wire.
//
//  1. Dial connects to the bridge's gateway with a token.
//  2. Prepare does what the SDK does before the first call of a function: image, code, volumes, stub.
//  3. Invoke calls it and reads its stream to the one last frame.
//
// Tests and the benchmark import it; it imports nothing of ours. It is no client for people: it knows what they test.
package beamclient
