// Package bare holds what gridbeam's rows are compared with: libp2p and wazero by themselves, doing the same work
// on the same machine.
//
// The flow:
//  1. make bench builds the package's test binary, once.
//  2. With -serve, TestHost is a host process: it says where it listens, answers an echo, and ends with its input.
//     -join dials a peer first; -full adds what a node has too: a Kademlia DHT, gossipsub and bitswap.
//  3. BenchmarkGuest runs a module by wazero alone, as many at a time as there are cores, and checks each output.
//
// It is all tests, since each of these libraries has one home in production code (docs/ARCHITECTURE.md). Nobody
// imports it.
package bare
