package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrNoNVML means that this program was built without NVML (no cgo, or not for Linux).
var ErrNoNVML = errors.New("gpu: built without NVML")

// Health is what can be done with a device (discovery.md 1).
type Health string

// The states of a device.
const (
	Healthy Health = "healthy" // Healthy: it is offered.
	Suspect Health = "suspect" // Suspect: it did not answer in time.
	Faulted Health = "faulted" // Faulted: it cannot be used.
)

// Device is one GPU, or one MIG slice of one.
type Device struct {
	// UUID names it over reboots; it stays on this machine.
	UUID string `json:"uuid"`
	// Index is NVML's number at the moment.
	Index int `json:"index"`
	// Minor is the number of its device file, -1 when it is not known.
	Minor int `json:"minor"`
	// Slice says that it is a MIG slice of a device.
	Slice bool `json:"slice,omitempty"`
	// Bus is its PCI address.
	Bus string `json:"bus"`
	// Group is its index in Inventory.Groups, -1 when it is not offered.
	Group int `json:"group"`
	// Health says whether it is offered, Reason why not.
	Health Health `json:"health"`
	// Reason is why it is not offered.
	Reason string `json:"reason,omitempty"`
}

// Problem is something that keeps GPUs from being offered.
type Problem struct {
	// What is wrong, Fix what to do about it.
	What string `json:"what"`
	// Fix is what to do about it.
	Fix string `json:"fix"`
}

// Inventory is what was found. The zero value is a machine without GPUs.
type Inventory struct {
	// Groups are sets of identical devices that can be offered, in the order of their first device.
	Groups []*pb.GpuGroup `json:"groups,omitempty"`
	// Devices are all that NVML shows, broken ones included.
	Devices []Device `json:"devices,omitempty"`
	// Driver is the driver's version; CUDA is 10 × the version that it supports.
	Driver string `json:"driver,omitempty"`
	// CUDA is 10 × the version that the driver supports, such as 124.
	CUDA int `json:"cuda,omitempty"`
	// Problems keep GPUs from being offered.
	Problems []Problem `json:"problems,omitempty"`
}

// reading is one device as it was read.
type reading struct {
	device Device
	group  *pb.GpuGroup // of one, nil when the device cannot be offered
}

// assemble groups identical devices.
func (inv *Inventory) assemble(all []reading) {
	index := map[string]int{}
	for _, r := range all {
		d := r.device
		d.Group = -1
		if r.group != nil && d.Health == Healthy {
			all, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r.group) // all that was read
			i, ok := index[string(all)]
			if ok {
				inv.Groups[i].Count++
			} else {
				i = len(inv.Groups)
				index[string(all)] = i
				inv.Groups = append(inv.Groups, r.group)
			}
			d.Group = i
		}
		inv.Devices = append(inv.Devices, d)
	}
	for _, d := range inv.Devices {
		if d.Health != Healthy {
			inv.Problems = append(inv.Problems, Problem{
				What: fmt.Sprintf("GPU %s at %s is %s: %s", cmp.Or(d.UUID, "without UUID"), cmp.Or(d.Bus, "unknown bus"), d.Health, d.Reason),
				Fix:  "look into dmesg for Xid; nvidia-smi --gpu-reset, or reboot; reseat or replace it when that does not last",
			})
		}
	}
}

// newGroup names a device as protocol does. NVML's names are exact; an unknown one gets a mechanical slug.
func newGroup(raw string, memory uint64) *pb.GpuGroup {
	name := protocol.NameGPU(raw, memory)
	g := &pb.GpuGroup{Vendor: "nvidia", Model: name.Slug, RawName: clip(raw, 64), Count: 1}
	if name.Form != "" {
		g.Interface = name.Form
	}
	if memory > 0 {
		g.VramBytes = &memory
	}
	return g
}

func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// onBus counts NVIDIA's display controllers below a sysfs root, so that "unreadable" is not "none".
func onBus(sysfs string) int {
	dirs, _ := filepath.Glob(filepath.Join(sysfs, "bus/pci/devices/*"))
	return len(slices.DeleteFunc(dirs, func(dir string) bool {
		vendor, err1 := os.ReadFile(filepath.Join(dir, "vendor"))
		class, err2 := os.ReadFile(filepath.Join(dir, "class"))
		c := strings.TrimSpace(string(class))
		return err1 != nil || err2 != nil || strings.TrimSpace(string(vendor)) != "0x10de" || !strings.HasPrefix(c, "0x0300") && !strings.HasPrefix(c, "0x0302")
	}))
}
