// Package executor is how a node runs foreign code: the interface that each backend fulfils, and the plain
// values that go in and come out.
//
// The flow of a chunk:
//  1. The node makes a Task of a lease: module, inputs, command, mounts, limits. It hands over bytes, host
//     paths and file systems; this room knows no network and no volume.
//  2. Backend.Prepare fetches, checks and compiles. It runs no code of the job, and doing it twice is doing
//     it once.
//  3. Backend.Start runs the inputs in their order, each in an instance of its own with an output directory
//     of its own, so that no result depends on which inputs shared a chunk.
//  4. Handle.Wait returns the Outcome: exit code, one Reason, the first cause as text, what was used.
//     Handle.Stop ends it early; the reason of the first end is kept.
//  5. A failure before the start is an error that carries a Failure with its Reason.
//
// Who may import it: node, its backends, the binary. It imports protocol.
//
// It guarantees that a Task which breaks a rule is refused unstarted, naming the field, and that each end
// has a Reason. It does not place, retry or bill: node and bridge do. executortest is the suite that each
// backend passes.
package executor
