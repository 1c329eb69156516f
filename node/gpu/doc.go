// Package gpu reads the GPUs of this machine, says what each is, and follows its health.
//
//  1. A Monitor loads NVML, if there is a driver, and asks each device what it is, one goroutine and one deadline a
//     device: one that hangs or is broken is a fault of its own, the others are offered (nvml.go, nvml_device.go).
//  2. Identical devices become a group under protocol's names; what a device does not tell stays absent. MIG slices
//     are devices of their own, in place of the GPU that they are cut from.
//  3. A GPU that the PCI bus shows and NVML does not is a Problem with the fix, not "no GPU" (pci.go).
//  4. Run looks at each device every few seconds and hears Xids; health.go says, as one table, what follows for the
//     device. Faults are kept over restarts (history.go). A driver that comes, goes or changes is read anew (watch.go).
//  5. Before a device is first offered, and after anything was wrong with it, a process of its own has it compute: memory
//     is filled through CUDA's driver library and read back (proof.go, proof_child.go, proof_run.go, prove.go).
//
// It is imported by node and imports protocol. It is the only room that links NVML, which needs cgo: without it
// (nvml_none.go) a Monitor looks at the PCI bus alone and Read returns ErrNoNVML.
//
// It guarantees that a device that could not be read wholly, or whose errors cannot be heard, is not offered; that one
// device's trouble is not another's; that at most two goroutines a device wait in the driver, for ever if it never
// answers; that a driver which crashes or hangs in a test harms no other process. A test fills 64 MiB and runs no program on
// the device, so it finds broken memory, buses and drivers, not every broken core. It does not hand devices to sandboxes:
// node does.
package gpu
