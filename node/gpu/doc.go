// Package gpu reads the GPUs of this machine.
//
//  1. Read loads NVML, if there is a driver, and asks each device what it is, one goroutine and one deadline a
//     device: one that hangs or is broken is a fault of its own, the others are offered.
//  2. Identical devices become a group under protocol's names; what a device does not tell stays absent.
//  3. A GPU that the PCI bus shows and NVML does not is a Problem with the fix, not "no GPU".
//
// It is imported by node and imports protocol. It is the only room that links NVML, which needs cgo: without it
// (nvml_none.go) Read looks at the PCI bus alone and returns ErrNoNVML.
//
// It guarantees that a device that could not be read wholly is never offered. Watching health, handing devices
// to sandboxes and proving them are not here yet.
package gpu
