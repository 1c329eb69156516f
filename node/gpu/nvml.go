//go:build linux && cgo

package gpu

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// perDevice bounds the reading of one device (discovery.md 1).
const perDevice = 10 * time.Second

// library is what of NVML is used.
type library interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	SystemGetDriverVersion() (string, nvml.Return)
	SystemGetCudaDriverVersion() (int, nvml.Return)
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(index int) (nvml.Device, nvml.Return)
}

var _ library = nvml.Interface(nil)

// Read reads the GPUs. A machine without a driver or GPUs gives an empty Inventory; what stands between a GPU
// and its offer is in Problems. The error is ctx's.
func Read(ctx context.Context) (Inventory, error) { return read(ctx, nvml.New(), "/sys", perDevice) }

func read(ctx context.Context, lib library, sysfs string, patience time.Duration) (Inventory, error) {
	var inv Inventory
	if r := lib.Init(); r != nvml.SUCCESS {
		if p, ok := noInit(r, onBus(sysfs)); ok {
			inv.Problems = append(inv.Problems, p)
		}
		return inv, ctx.Err()
	}
	inv.Driver, _ = lib.SystemGetDriverVersion()
	if v, r := lib.SystemGetCudaDriverVersion(); r == nvml.SUCCESS {
		inv.CUDA = v/1000*10 + v%1000/10
	}
	n, r := lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		inv.Problems = append(inv.Problems, Problem{What: "NVML does not count its devices: " + text(r), Fix: "reload the NVIDIA driver, or reboot"})
	}
	all, hung, err := readAll(ctx, lib, n, patience)
	if err != nil {
		return inv, err
	}
	if !hung { // a call that hangs still uses the library
		_ = lib.Shutdown()
	}
	for i := range all {
		if g := all[i].group; g != nil {
			g.Driver = clip(inv.Driver, 24)
			if inv.CUDA > 0 {
				g.Cuda = ptr(uint32(inv.CUDA))
			}
		}
	}
	inv.assemble(all)
	return inv, nil
}

// readAll reads all devices side by side. One that does not answer in time is suspect; its goroutine ends with
// its call.
func readAll(ctx context.Context, lib library, n int, patience time.Duration) (all []reading, hung bool, err error) {
	var mu sync.Mutex
	done := make(map[int][]reading, n)
	finished := make(chan struct{}, n)
	for i := range n {
		go func() {
			r := readDevice(lib, i)
			mu.Lock()
			done[i] = r
			mu.Unlock()
			finished <- struct{}{}
		}()
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for waiting := n; waiting > 0; waiting-- {
		select {
		case <-finished:
		case <-ctx.Done():
			return nil, true, ctx.Err()
		case <-timer.C:
			hung, waiting = true, 1
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range n {
		if r, ok := done[i]; ok {
			all = append(all, r...)
			continue
		}
		hung = true
		all = append(all, reading{device: Device{Index: i, Minor: -1, Health: Suspect, Reason: fmt.Sprintf("it did not answer within %s", patience)}})
	}
	return all, hung, nil
}

// readDevice reads one device; with MIG on, its slices instead.
func readDevice(lib library, i int) []reading {
	d, r := lib.DeviceGetHandleByIndex(i)
	if r != nvml.SUCCESS {
		return []reading{broken(Device{Index: i, Minor: -1}, "opening it", r)}
	}
	dev := Device{Index: i, Minor: -1, Health: Healthy}
	if minor, r := d.GetMinorNumber(); r == nvml.SUCCESS {
		dev.Minor = minor
	}
	if pci, r := d.GetPciInfo(); r == nvml.SUCCESS {
		dev.Bus = fmt.Sprintf("%04x:%02x:%02x", pci.Domain, pci.Bus, pci.Device)
	}
	if mode, _, r := d.GetMigMode(); r == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE {
		return readSlices(d, dev)
	}
	return []reading{readOne(d, dev)}
}

// readSlices reads the MIG slices of a device, which itself is not offered.
func readSlices(parent nvml.Device, dev Device) (out []reading) {
	most, r := parent.GetMaxMigDeviceCount()
	if r != nvml.SUCCESS {
		return []reading{broken(dev, "counting its MIG slices", r)}
	}
	for i := range most {
		slice, r := parent.GetMigDeviceHandleByIndex(i)
		if r != nvml.SUCCESS {
			continue // an unused place
		}
		one := readOne(slice, dev)
		one.device.Slice = true
		if one.group != nil {
			one.group.MigMode = "slice"
		}
		out = append(out, one)
	}
	return out
}

// broken is a device that a call failed for. What times out may come back; everything else, unknown codes
// included, is a fault.
func broken(d Device, doing string, r nvml.Return) reading {
	d.Health, d.Reason = Faulted, doing+": "+text(r)
	if r == nvml.ERROR_TIMEOUT || r == nvml.ERROR_NOT_READY {
		d.Health = Suspect
	}
	return reading{device: d}
}

// absent says that a device does not have a property, or the driver no word for it.
func absent(r nvml.Return) bool {
	return r == nvml.ERROR_NOT_SUPPORTED || r == nvml.ERROR_FUNCTION_NOT_FOUND || r == nvml.ERROR_ARGUMENT_VERSION_MISMATCH
}

// readOne reads what an offer has to have, and then what it may have. A call that says more than "absent" is a
// fault of the device.
func readOne(d nvml.Device, dev Device) reading {
	var fault *reading
	ok := func(doing string, r nvml.Return) bool {
		if r != nvml.SUCCESS && !absent(r) && fault == nil {
			b := broken(dev, doing, r)
			fault = &b
		}
		return r == nvml.SUCCESS
	}
	uuid, r := d.GetUUID()
	if r != nvml.SUCCESS {
		return broken(dev, "reading its UUID", r)
	}
	dev.UUID = uuid
	name, r := d.GetName()
	if r != nvml.SUCCESS {
		return broken(dev, "reading its name", r)
	}
	memory, r := d.GetMemoryInfo()
	if r != nvml.SUCCESS {
		return broken(dev, "reading its memory", r)
	}
	g := newGroup(name, memory.Total)
	if major, minor, r := d.GetCudaComputeCapability(); ok("reading its compute capability", r) {
		g.Compute = ptr(uint32(major*10 + minor))
	}
	if a, r := d.GetArchitecture(); ok("reading its architecture", r) {
		g.Arch = architectures[a]
	}
	if w, r := d.GetMemoryBusWidth(); ok("reading its bus width", r) {
		g.BusBits = ptr(w)
	}
	if p, r := d.GetEnforcedPowerLimit(); ok("reading its power limit", r) {
		g.PowerW = ptr(p / 1000)
	}
	if p, r := d.GetPowerManagementDefaultLimit(); ok("reading its default power limit", r) {
		g.PowerDefaultW = ptr(p / 1000)
	}
	if now, _, r := d.GetEccMode(); ok("reading its ECC mode", r) {
		g.Ecc = ptr(now == nvml.FEATURE_ENABLED)
	}
	if n, r := d.GetNumGpuCores(); ok("counting its cores", r) {
		g.Cores = ptr(uint32(n))
	}
	readLinks(d, g, ok)
	if fault != nil {
		return *fault
	}
	return reading{device: dev, group: g}
}

// readLinks reads clocks, PCIe and NVLink.
func readLinks(d nvml.Device, g *pb.GpuGroup, ok func(string, nvml.Return) bool) {
	if c, r := d.GetMaxClockInfo(nvml.CLOCK_MEM); ok("reading its memory clock", r) {
		g.MemMhz = ptr(c)
	}
	if c, r := d.GetMaxClockInfo(nvml.CLOCK_SM); ok("reading its clock", r) {
		g.SmMhz = ptr(c)
	}
	if v, r := d.GetMaxPcieLinkGeneration(); ok("reading its PCIe generation", r) {
		g.PcieGen = ptr(uint32(v))
	}
	if v, r := d.GetMaxPcieLinkWidth(); ok("reading its PCIe width", r) {
		g.PcieWidth = ptr(uint32(v))
	}
	links := uint32(0)
	for i := range nvml.NVLINK_MAX_LINKS {
		state, r := d.GetNvLinkState(i)
		if r != nvml.SUCCESS {
			break
		}
		if state == nvml.FEATURE_ENABLED {
			links++
		}
	}
	if links > 0 {
		g.NvlinkLinks = ptr(links)
	}
}

var architectures = map[nvml.DeviceArchitecture]string{
	nvml.DEVICE_ARCH_KEPLER: "kepler", nvml.DEVICE_ARCH_MAXWELL: "maxwell", nvml.DEVICE_ARCH_PASCAL: "pascal", nvml.DEVICE_ARCH_VOLTA: "volta",
	nvml.DEVICE_ARCH_TURING: "turing", nvml.DEVICE_ARCH_AMPERE: "ampere", nvml.DEVICE_ARCH_ADA: "ada", nvml.DEVICE_ARCH_HOPPER: "hopper",
	nvml.DEVICE_ARCH_BLACKWELL: "blackwell",
}

// noInit says what a failed start of NVML means; no problem when there is no GPU either.
func noInit(r nvml.Return, onBus int) (Problem, bool) {
	switch r {
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return Problem{
			What: fmt.Sprintf("%d NVIDIA GPUs are on the PCI bus, but there is no driver: %s", onBus, text(r)),
			Fix:  "install the NVIDIA driver and load it: modprobe nvidia",
		}, onBus > 0
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return Problem{What: "the NVIDIA library and kernel module have different versions", Fix: "reboot or reload the driver"}, true
	case nvml.ERROR_NO_PERMISSION:
		return Problem{What: "the NVIDIA driver may not be opened", Fix: "give this user access to /dev/nvidiactl and /dev/nvidia*"}, true
	}
	return Problem{What: "NVML does not start: " + text(r), Fix: "run nvidia-smi; reload the driver, or reboot"}, onBus > 0
}

func text(r nvml.Return) string { return fmt.Sprintf("%s (%d)", nvml.ErrorString(r), int(r)) }

func ptr[T any](v T) *T { return &v }
