// Package executortest is the conformance suite that each backend of executor passes, and the job that it
// runs. It is imported by tests only.
//
//  1. A backend's test builds the guest program for its platform and fills in a Harness.
//  2. Run starts tasks whose arguments tell the guest how to behave or to misbehave.
//  3. Each subtest names a promise of executor.Backend and fails when it is broken, with a witness on the
//     host's side where a job must not reach something.
//
// The suite knows nothing of how a backend works; what is special to one is tested beside it.
package executortest
