// Package wasm runs tasks as WebAssembly modules (WASI preview 1) in this process, by wazero.
//
//  1. Prepare loads the module, rewrites it so that it yields and can be stopped (instrument.go), refuses
//     functions that the compiler could not end with (bounds.go), compiles it once per CID, keeps the machine
//     code in memory (an LRU of modules) and on disk (an LRU of bytes), and refuses what is no module,
//     imports what is not offered or exports no _start.
//  2. Start runs the inputs one after another in a goroutine of its own: a fresh instance with its own
//     memory, clocks, randomness and /out for each.
//  3. The end of the context - the limit of time, Stop, a limit of the output, a fault of a mount - sets the
//     instance's flag, and each call into the host fails from then on.
//
// Only node's wiring imports it. It imports executor and protocol.
//
// It guarantees: a module sees its mounts and its /out and nothing else of the host, no socket, no real
// clock; the same module, inputs, mounts and seed give the same bytes, whatever the chunk's boundaries; the
// memory of an instance is bounded and given back at its end; a module that loops or recurses is stopped; a
// compilation that does not end keeps neither the others nor Close waiting.
// It does not guarantee: protection from a fault in wazero's compiler (a runner process will), and no limit
// of processor time but the wall's. A mount whose Read blocks is not interrupted: who closes the volume
// ends it.
package wasm
