package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Errors of the package.
var (
	// ErrNoNVML means that this program was built without NVML (no cgo, or not for Linux).
	ErrNoNVML = errors.New("gpu: built without NVML")
	// ErrNoDevice means that no GPU has the UUID that was asked for.
	ErrNoDevice = errors.New("gpu: no such GPU")
	// ErrRan means that a Monitor was run twice.
	ErrRan = errors.New("gpu: the monitor has run already")
)

// Device is one GPU, or one MIG slice of one.
type Device struct {
	// UUID names it over reboots; it stays on this machine. Empty when it could not be read.
	UUID string `json:"uuid,omitempty"`
	// Index is NVML's number at the moment, which may be another after a reboot.
	Index int `json:"index"`
	// Minor is the number of its device file, or of the GPU that it is a slice of; -1 when it is not known.
	Minor int `json:"minor"`
	// Bus is its PCI address.
	Bus string `json:"bus"`
	// NUMA is the memory node that it is nearest to; nil when the machine does not tell.
	NUMA *int `json:"numa,omitempty"`
	// Name is the driver's, Model protocol's slug.
	Name string `json:"name,omitempty"`
	// Model is protocol's slug.
	Model string `json:"model,omitempty"`
	// Slice is what of a GPU it is; nil for a whole one.
	Slice *Slice `json:"slice,omitempty"`
	// Slices is how many MIG slices the GPU is cut into; it is not offered itself then.
	Slices int `json:"slices,omitempty"`
	// Files are the device files that a program needs to use it, besides those that all programs need.
	Files []string `json:"files,omitempty"`
	// Group is its index in Inventory.Groups, -1 when it belongs to none.
	Group int `json:"group"`
	// Health says whether it is offered, since Since; Reason why not.
	Health Health `json:"health"`
	// Reason is why it is not healthy.
	Reason string `json:"reason,omitempty"`
	// Since is when it came into Health.
	Since time.Time `json:"since"`
	// Barred is why it is not offered although it may be healthy, such as a setting; Fix undoes that.
	Barred string `json:"barred,omitempty"`
	// Fix undoes what bars it, or may heal it.
	Fix string `json:"fix,omitempty"`
	// Notes are oddities that do not keep it from being offered.
	Notes []string `json:"notes,omitempty"`
	// Board is how it is built in and set up.
	Board Board `json:"board"`
	// Proof is what came of having it compute last; nil before the first time.
	Proof *Proof `json:"proof,omitempty"`
	// Now is what was measured last; nil before the first time.
	Now *Sensors `json:"now,omitempty"`
}

// Sellable says whether the device may get new leases.
func (d *Device) Sellable() bool { return d.Health == Healthy && d.Barred == "" && d.Group >= 0 }

// why says what keeps the device from being offered; empty when nothing does.
func (d *Device) why() string {
	switch {
	case d.Health != Healthy && d.Reason != "":
		return fmt.Sprintf("%s: %s", d.Health, d.Reason)
	case d.Health != Healthy:
		return string(d.Health)
	default:
		return d.Barred
	}
}

// String names the device for people.
func (d *Device) String() string {
	what := "GPU"
	if d.Slice != nil {
		what = "MIG slice " + d.Slice.Profile + " of GPU"
	}
	text := fmt.Sprintf("%s %d", what, d.Index)
	if d.Name != "" {
		text += " (" + d.Name + ")"
	}
	if d.Bus != "" {
		text += " at " + d.Bus
	}
	return text
}

// Slice is a part of a GPU that MIG has cut off.
type Slice struct {
	// Parent is the GPU's UUID.
	Parent string `json:"parent,omitempty"`
	// Profile names its size, such as 1g.5gb.
	Profile string `json:"profile"`
	// Instance and Compute are its numbers within the GPU.
	Instance uint32 `json:"gpu_instance"`
	// Compute is its compute instance's number.
	Compute uint32 `json:"compute_instance"`
}

// Board is how a GPU is built in and set up. What it does not tell is absent.
type Board struct {
	// PCIeGen and PCIeWidth are how it is connected now, PCIeMaxGen and PCIeMaxWidth how it could be in this machine. An
	// idle GPU lowers the generation, not the width.
	PCIeGen uint32 `json:"pcie_gen,omitempty"`
	// PCIeWidth is in lanes.
	PCIeWidth uint32 `json:"pcie_width,omitempty"`
	// PCIeMaxGen is the highest generation of this GPU in this machine.
	PCIeMaxGen uint32 `json:"pcie_max_gen,omitempty"`
	// PCIeMaxWidth is in lanes.
	PCIeMaxWidth uint32 `json:"pcie_max_width,omitempty"`
	// BAR1 is the memory in bytes that the processor can see at a time.
	BAR1 uint64 `json:"bar1_bytes,omitempty"`
	// Persistence says whether the driver stays loaded without users of the GPU.
	Persistence *bool `json:"persistence,omitempty"`
	// ComputeMode is default, exclusive-process, exclusive-thread or prohibited.
	ComputeMode string `json:"compute_mode,omitempty"`
	// ECCPending says that the ECC mode changes at the next reboot.
	ECCPending bool `json:"ecc_pending,omitempty"`
	// Peers are the PCI addresses of GPUs that NVLink joins it with directly, Switches says that it goes through NVSwitch.
	Peers []string `json:"nvlink_peers,omitempty"`
	// PeerLinks is how many NVLinks lead to each of Peers.
	PeerLinks map[string]int `json:"nvlink_peer_links,omitempty"`
	// Switches says that its NVLinks end at NVSwitches.
	Switches bool `json:"nvswitch,omitempty"`
	// Island numbers the set of GPUs that NVLink joins, from 0; nil without NVLink.
	Island *int `json:"nvlink_island,omitempty"`
	// Cluster and Clique name its NVLink fabric beyond this machine, where there is one.
	Cluster string `json:"fabric_cluster,omitempty"`
	// Clique is its part of the fabric.
	Clique *uint32 `json:"fabric_clique,omitempty"`
}

// Sensors are what a GPU measured of itself. What it does not tell is absent.
type Sensors struct {
	// At is when.
	At time.Time `json:"at"`
	// TemperatureC is in degrees Celsius.
	TemperatureC *uint32 `json:"temperature_c,omitempty"`
	// PowerW is the draw in watts.
	PowerW *uint32 `json:"power_w,omitempty"`
	// SMMHz and MemMHz are the clocks.
	SMMHz *uint32 `json:"sm_mhz,omitempty"`
	// MemMHz is the memory's clock.
	MemMHz *uint32 `json:"mem_mhz,omitempty"`
	// UtilPct is the share of time in which something ran, in percent.
	UtilPct *uint32 `json:"util_pct,omitempty"`
	// MemoryUsed is in bytes.
	MemoryUsed *uint64 `json:"memory_used,omitempty"`
	// Throttle are the reasons for which it is slowed down against its will.
	Throttle []string `json:"throttle,omitempty"`
	// ECCErrors are uncorrected memory errors since the driver was loaded, ECCErrorsEver in its life.
	ECCErrors *uint64 `json:"ecc_uncorrected,omitempty"`
	// ECCErrorsEver are uncorrected memory errors in its life.
	ECCErrorsEver *uint64 `json:"ecc_uncorrected_ever,omitempty"`
	// Remapped are memory rows that were replaced after uncorrected errors.
	Remapped *uint32 `json:"remapped_rows,omitempty"`
	// Processes are those that compute on it.
	Processes []int `json:"processes,omitempty"`
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
	// Groups are sets of identical devices, in the order of their first device. Count is of all of them, whatever their
	// health.
	Groups []*pb.GpuGroup `json:"groups,omitempty"`
	// Devices are all that NVML shows, broken ones included, and those that were there before.
	Devices []Device `json:"devices,omitempty"`
	// OnBus is how many NVIDIA GPUs the PCI bus shows, with a driver or without.
	OnBus int `json:"on_bus,omitempty"`
	// Others are display controllers of other vendors, which are named and not offered.
	Others []string `json:"others,omitempty"`
	// Driver is the driver's version.
	Driver string `json:"driver,omitempty"`
	// CUDA is the version that the driver supports in NVML's form, as protocol.CUDAVersion reads it: 12040 is 12.4.
	CUDA int `json:"cuda,omitempty"`
	// Problems keep GPUs from being offered that are not in Devices.
	Problems []Problem `json:"problems,omitempty"`
	// Tested says that devices are offered when they have computed (Config.Prove), not after a time of quiet alone.
	Tested bool `json:"tested,omitempty"`
	// Faults counts how often devices have become faulted or locked since the start, a MIG slice being one of its own, by
	// reason: xid_N, nvml (a call about it failed, or its memory cannot be repaired) or proof (it did not compute what it
	// should). It is gridbeam_gpu_faults_total.
	Faults map[string]uint64 `json:"faults_total,omitempty"`
}

// Units counts what could be sold if all was well: whole GPUs, slices instead of the GPUs that they are cut from, and GPUs
// that the bus shows and NVML does not.
func (inv Inventory) Units() int {
	units, whole := 0, 0
	for i := range inv.Devices {
		d := &inv.Devices[i]
		if d.Slice == nil {
			whole++
		}
		if d.Slices == 0 {
			units++
		}
	}
	return units + max(0, inv.OnBus-whole)
}

// Sellable counts the devices that may get new leases.
func (inv Inventory) Sellable() (n int) {
	for i := range inv.Devices {
		if inv.Devices[i].Sellable() {
			n++
		}
	}
	return n
}

// Unsold says of each GPU that cannot be sold why, with the fix.
func (inv Inventory) Unsold() []Problem {
	out := slices.Clone(inv.Problems)
	for i := range inv.Devices {
		d := &inv.Devices[i]
		if d.Slices > 0 || d.Sellable() {
			continue
		}
		out = append(out, Problem{What: fmt.Sprintf("%s is not offered: %s", d, cmp.Or(d.why(), "it belongs to no group")), Fix: cmp.Or(d.Fix, fixFor(d.Health))})
	}
	return out
}

// fixFor is what may help a device in a state, when nothing better is known.
func fixFor(h Health) string {
	switch h {
	case Untested:
		return "nothing: its test takes some seconds, and waits for the tests of others"
	case Suspect, Recovering:
		return fmt.Sprintf("nothing, if it stays quiet for %s and passes its test", quietTime)
	case Locked:
		return "look into dmesg for Xid; when the GPU is good again: gridbeam node gpu clear"
	case Foreign:
		return "end that process, or leave the GPU out; a lease is never mixed with it"
	case Absent:
		return "look into dmesg; reseat it, or restart the machine"
	default:
		return "look into dmesg for Xid; nvidia-smi --gpu-reset, or reboot; reseat or replace it when that does not last"
	}
}

// reading is one device as it was read.
type reading struct {
	device Device
	group  *pb.GpuGroup // of one, nil when the device was not read wholly
}

// assemble groups identical devices.
func (inv *Inventory) assemble(all []reading) {
	index := map[string]int{}
	for _, r := range all {
		d := r.device
		d.Group = -1
		if r.group != nil && d.Slices == 0 {
			key, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r.group) // all that was read
			i, ok := index[string(key)]
			if ok {
				inv.Groups[i].Count++
			} else {
				i = len(inv.Groups)
				index[string(key)] = i
				inv.Groups = append(inv.Groups, proto.CloneOf(r.group))
			}
			d.Group = i
		}
		inv.Devices = append(inv.Devices, d)
	}
}

// newGroup names a device as protocol does, by the driver's name and the memory of a whole GPU in bytes. NVML's names are
// exact; an unknown one gets a mechanical slug, and is kept beside it.
func newGroup(raw string, memory uint64) *pb.GpuGroup {
	name := protocol.NameGPU(raw, memory)
	g := &pb.GpuGroup{Vendor: "nvidia", Model: name.Slug, RawName: clip(raw, 64), Count: 1, Interface: name.Form}
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
