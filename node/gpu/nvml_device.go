//go:build linux && cgo

package gpu

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// readCard reads one GPU and what MIG has cut it into.
func (s *session) readCard(ctx context.Context, i int, before []*card) *card {
	p := &probe{session: s, ctx: ctx, health: Healthy}
	dev := Device{Index: i, Minor: -1, Group: -1}
	c := &card{index: i}
	if i < len(before) { // should it not answer at all: within a start of NVML an index is one device
		c.uuid, c.bus, dev.UUID, dev.Bus = before[i].uuid, before[i].bus, before[i].uuid, before[i].bus
	}
	d, ok := must(p, "opening it", func() (nvml.Device, nvml.Return) { return s.lib.DeviceGetHandleByIndex(i) })
	if !ok {
		dev.Health, dev.Reason, dev.Fix = p.health, p.reason, p.fix
		c.readings = append([]reading{{device: dev}}, slicesOf(before, i, &dev)...)
		return c
	}
	c.handle = d
	whole := p.whole(d, &dev)
	c.uuid, c.bus = dev.UUID, dev.Bus
	parts := p.parts(d, &dev, c)
	dev.Health, dev.Reason, dev.Fix = p.health, p.reason, cmp.Or(dev.Fix, p.fix)
	if p.health != Healthy {
		whole = nil
		if len(parts) == 0 {
			parts = slicesOf(before, i, &dev)
			c.slices = nil
			if i < len(before) {
				c.slices = before[i].slices
			}
		}
	}
	c.readings = append([]reading{{device: dev, group: whole}}, parts...)
	return c
}

// whole reads what an offer has to have, and then what it may have; nil when it could not be read.
func (p *probe) whole(d nvml.Device, dev *Device) *pb.GpuGroup {
	if minor, ok := value(p, "reading its device file", "", d.GetMinorNumber); ok {
		dev.Minor = minor
		dev.Files = []string{fmt.Sprintf("/dev/nvidia%d", minor)}
	}
	if pci, ok := value(p, "reading its PCI address", "", d.GetPciInfo); ok {
		dev.Bus = busOf(&pci)
		dev.NUMA = numaOf(p.sysfs, dev.Bus)
	}
	uuid, ok := must(p, "reading its UUID", d.GetUUID)
	if !ok {
		return nil
	}
	dev.UUID = uuid
	name, ok := must(p, "reading its name", d.GetName)
	if !ok {
		return nil
	}
	memory, ok := must(p, "reading its memory", d.GetMemoryInfo)
	if !ok {
		return nil
	}
	g := newGroup(name, memory.Total)
	dev.Name, dev.Model = name, g.GetModel()
	p.chip(d, g)
	p.power(d, g)
	p.bus(d, g, dev)
	p.settings(d, g, dev)
	p.links(d, g, dev)
	g.Confidential = p.confidential
	g.Driver = clip(p.driver, 24)
	if p.cuda > 0 {
		g.Cuda = ptr(uint32(p.cuda))
	}
	return g
}

// two makes one value of a pair.
func two[A, B any](f func() (A, B, nvml.Return)) func() (struct {
	a A
	b B
}, nvml.Return,
) {
	return func() (out struct {
		a A
		b B
	}, r nvml.Return,
	) {
		out.a, out.b, r = f()
		return out, r
	}
}

func (p *probe) chip(d nvml.Device, g *pb.GpuGroup) {
	if v, ok := value(p, "reading its compute capability", "", two(d.GetCudaComputeCapability)); ok {
		g.Compute = ptr(uint32(v.a*10 + v.b))
	}
	if a, ok := value(p, "reading its architecture", "nvmlDeviceGetArchitecture", d.GetArchitecture); ok {
		g.Arch = architectures[a]
	}
	if w, ok := value(p, "reading its bus width", "nvmlDeviceGetMemoryBusWidth", d.GetMemoryBusWidth); ok {
		g.BusBits = ptr(w)
	}
	if n, ok := value(p, "counting its cores", "nvmlDeviceGetNumGpuCores", d.GetNumGpuCores); ok {
		g.Cores = ptr(uint32(n))
	}
	if c, ok := value(p, "reading its memory clock", "", clock(d.GetMaxClockInfo, nvml.CLOCK_MEM)); ok {
		g.MemMhz = ptr(c)
	}
	if c, ok := value(p, "reading its clock", "", clock(d.GetMaxClockInfo, nvml.CLOCK_SM)); ok {
		g.SmMhz = ptr(c)
	}
}

func clock(f func(nvml.ClockType) (uint32, nvml.Return), which nvml.ClockType) func() (uint32, nvml.Return) {
	return func() (uint32, nvml.Return) { return f(which) }
}

func (p *probe) power(d nvml.Device, g *pb.GpuGroup) {
	if w, ok := value(p, "reading its power limit", "", d.GetEnforcedPowerLimit); ok {
		g.PowerW = ptr(w / 1000)
	}
	if w, ok := value(p, "reading its default power limit", "", d.GetPowerManagementDefaultLimit); ok {
		g.PowerDefaultW = ptr(w / 1000)
	}
}

// bus reads how it is connected. The record says what the GPU can do in this machine; that it does less is a note.
func (p *probe) bus(d nvml.Device, g *pb.GpuGroup, dev *Device) {
	b := &dev.Board
	if v, ok := value(p, "reading its PCIe generation", "", d.GetMaxPcieLinkGeneration); ok && v > 0 {
		g.PcieGen, b.PCIeMaxGen = ptr(uint32(v)), uint32(v)
	}
	if v, ok := value(p, "reading its PCIe width", "", d.GetMaxPcieLinkWidth); ok && v > 0 {
		g.PcieWidth, b.PCIeMaxWidth = ptr(uint32(v)), uint32(v)
	}
	if v, ok := value(p, "reading its PCIe generation", "", d.GetCurrPcieLinkGeneration); ok && v > 0 {
		b.PCIeGen = uint32(v)
	}
	if v, ok := value(p, "reading its PCIe width", "", d.GetCurrPcieLinkWidth); ok && v > 0 {
		b.PCIeWidth = uint32(v)
	}
	if b.PCIeWidth > 0 && b.PCIeWidth < b.PCIeMaxWidth {
		dev.Notes = append(dev.Notes, fmt.Sprintf("PCIe has %d of %d lanes: reseat it, or use another slot", b.PCIeWidth, b.PCIeMaxWidth))
	}
	if bar, ok := value(p, "reading its BAR1", "", d.GetBAR1MemoryInfo); ok {
		b.BAR1 = bar.Bar1Total
	}
}

var computeModes = map[nvml.ComputeMode]string{
	nvml.COMPUTEMODE_DEFAULT: "default", nvml.COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive-thread", nvml.COMPUTEMODE_PROHIBITED: "prohibited",
	nvml.COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive-process",
}

func (p *probe) settings(d nvml.Device, g *pb.GpuGroup, dev *Device) {
	b := &dev.Board
	if v, ok := value(p, "reading its ECC mode", "", two(d.GetEccMode)); ok {
		g.Ecc = ptr(v.a == nvml.FEATURE_ENABLED)
		if b.ECCPending = v.a != v.b; b.ECCPending {
			dev.Notes = append(dev.Notes, "its ECC mode changes at the next reboot")
		}
	}
	if v, ok := value(p, "reading its display", "", d.GetDisplayActive); ok {
		g.Display = ptr(v == nvml.FEATURE_ENABLED)
	}
	if v, ok := value(p, "reading its persistence mode", "", d.GetPersistenceMode); ok {
		b.Persistence = ptr(v == nvml.FEATURE_ENABLED)
	}
	if v, ok := value(p, "reading its compute mode", "", d.GetComputeMode); ok {
		b.ComputeMode = computeModes[v]
		if v == nvml.COMPUTEMODE_PROHIBITED {
			dev.Barred, dev.Fix = "its compute mode is prohibited", fmt.Sprintf("nvidia-smi -i %s -c 0", dev.Bus)
		}
	}
}

// nvlinkMajor are the versions of NVLink by NVML's numbers.
var nvlinkMajor = map[uint32]uint32{1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}

// links reads NVLink: how many, where they end, and the fabric beyond this machine.
func (p *probe) links(d nvml.Device, g *pb.GpuGroup, dev *Device) {
	b := &dev.Board
	links := uint32(0)
	for i := range nvml.NVLINK_MAX_LINKS {
		state, r := d.GetNvLinkState(i)
		if r != nvml.SUCCESS {
			if classOf(r) == wrong {
				p.note("reading its NVLinks", r)
			}
			break
		}
		if state != nvml.FEATURE_ENABLED {
			continue
		}
		if links++; links == 1 {
			if v, ok := value(p, "reading its NVLink version", "", func() (uint32, nvml.Return) { return d.GetNvLinkVersion(i) }); ok && nvlinkMajor[v] > 0 {
				g.NvlinkVersion = ptr(nvlinkMajor[v])
			}
		}
		if p.can("nvmlDeviceGetNvLinkRemoteDeviceType") {
			if kind, r := d.GetNvLinkRemoteDeviceType(i); r == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
				b.Switches = true
				continue
			}
		}
		if remote, r := d.GetNvLinkRemotePciInfo(i); r == nvml.SUCCESS {
			bus := busOf(&remote)
			if bus == dev.Bus {
				continue
			}
			if b.PeerLinks == nil {
				b.PeerLinks = map[string]int{}
			}
			if b.PeerLinks[bus]++; b.PeerLinks[bus] == 1 {
				b.Peers = append(b.Peers, bus)
			}
		}
	}
	if links > 0 {
		g.NvlinkLinks = ptr(links)
	}
	fabric, ok := value(p, "reading its NVLink fabric", "nvmlDeviceGetGpuFabricInfo", d.GetGpuFabricInfo)
	if ok && (fabric.State == nvml.GPU_FABRIC_STATE_NOT_STARTED || fabric.State == nvml.GPU_FABRIC_STATE_IN_PROGRESS) {
		dev.Notes = append(dev.Notes, "its NVLink fabric is not up, so CUDA may fail: systemctl start nvidia-fabricmanager")
	}
	if ok && fabric.State == nvml.GPU_FABRIC_STATE_COMPLETED && fabric.Status == 0 && fabric.ClusterUuid != [16]uint8{} {
		b.Cluster, b.Clique = fmt.Sprintf("%x", fabric.ClusterUuid), ptr(fabric.CliqueId)
		g.FabricClique = ptr(fabric.CliqueId)
	}
}

func busOf(pci *nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device)
}

// linkUp numbers the islands that NVLink makes of the cards, and says where all of an island are joined with all others.
func linkUp(cards []*card) {
	byBus := map[string]int{}
	island := make([]int, len(cards))
	for i, c := range cards {
		byBus[c.bus], island[i] = i, i
	}
	board := func(i int) *Board { return &cards[i].readings[0].device.Board }
	root := func(i int) int {
		for island[i] != i {
			i = island[i]
		}
		return i
	}
	lastSwitched := -1
	for i := range cards {
		for _, bus := range board(i).Peers {
			if j, ok := byBus[bus]; ok {
				island[root(max(i, j))] = root(min(i, j))
			}
		}
		if board(i).Switches {
			if lastSwitched >= 0 {
				island[root(i)] = root(lastSwitched)
			}
			lastSwitched = i
		}
	}
	numbers := map[int]int{}
	members := map[int][]int{}
	for i, c := range cards {
		if c.readings[0].group.GetNvlinkLinks() == 0 {
			continue
		}
		r := root(i)
		if _, ok := numbers[r]; !ok {
			numbers[r] = len(numbers)
		}
		board(i).Island = ptr(numbers[r])
		members[r] = append(members[r], i)
	}
	for _, all := range members {
		mesh := true
		for _, i := range all {
			mesh = mesh && (board(i).Switches || len(board(i).Peers) == len(all)-1)
		}
		for _, i := range all {
			cards[i].readings[0].group.NvlinkFullMesh = ptr(mesh && len(all) > 1)
		}
	}
}

var architectures = map[nvml.DeviceArchitecture]string{
	nvml.DEVICE_ARCH_KEPLER: "kepler", nvml.DEVICE_ARCH_MAXWELL: "maxwell", nvml.DEVICE_ARCH_PASCAL: "pascal", nvml.DEVICE_ARCH_VOLTA: "volta",
	nvml.DEVICE_ARCH_TURING: "turing", nvml.DEVICE_ARCH_AMPERE: "ampere", nvml.DEVICE_ARCH_ADA: "ada", nvml.DEVICE_ARCH_HOPPER: "hopper",
	nvml.DEVICE_ARCH_BLACKWELL: "blackwell", nvml.DEVICE_ARCH_RUBIN: "rubin",
}

// parts reads the MIG slices of a GPU; it is not offered itself while MIG is on.
func (p *probe) parts(d nvml.Device, dev *Device, c *card) (out []reading) {
	mode, ok := value(p, "reading its MIG mode", "nvmlDeviceGetMigMode", two(d.GetMigMode))
	if ok && mode.a != mode.b {
		dev.Notes = append(dev.Notes, "its MIG mode changes when it is reset")
	}
	if !ok || mode.a != nvml.DEVICE_MIG_ENABLE || p.health != Healthy {
		return nil
	}
	most, _ := value(p, "counting its MIG slices", "nvmlDeviceGetMaxMigDeviceCount", d.GetMaxMigDeviceCount)
	memory, _ := d.GetMemoryInfo()
	for i := range most {
		slice, r := d.GetMigDeviceHandleByIndex(i)
		if r != nvml.SUCCESS {
			if classOf(r) == wrong {
				p.note("opening a MIG slice", r)
			}
			continue // an unused place
		}
		part := *p // what is wrong with a slice is no fault of its neighbours
		one, handle := part.slice(slice, dev, memory.Total)
		out, c.slices = append(out, one), append(c.slices, handle)
		p.stale = p.stale || part.stale
	}
	dev.Slices = len(out)
	if len(out) == 0 {
		dev.Barred, dev.Fix = "MIG is on, and it has no slices", fmt.Sprintf("nvidia-smi mig -i %d -cgi PROFILE -C, or nvidia-smi -i %d -mig 0", dev.Index, dev.Index)
	} else {
		dev.Barred = fmt.Sprintf("MIG has cut it into %d slices, which are offered instead", len(out))
	}
	return out
}

// slice reads one MIG slice. What it shares with its neighbours, such as clocks, power and links, is not its own.
func (p *probe) slice(d nvml.Device, parent *Device, whole uint64) (reading, sliceHandle) {
	dev := Device{
		Index: parent.Index, Minor: parent.Minor, Bus: parent.Bus, NUMA: parent.NUMA, Name: parent.Name, Model: parent.Model, Group: -1,
		Slice: &Slice{Parent: parent.UUID},
	}
	h := sliceHandle{handle: d}
	done := func(g *pb.GpuGroup) (reading, sliceHandle) {
		dev.Health, dev.Reason = p.health, p.reason
		if p.health != Healthy {
			g = nil
		}
		return reading{dev, g}, h
	}
	uuid, ok := must(p, "reading a slice's UUID", d.GetUUID)
	if !ok {
		return done(nil)
	}
	dev.UUID, h.uuid = uuid, uuid
	memory, ok := must(p, "reading a slice's memory", d.GetMemoryInfo)
	if !ok {
		return done(nil)
	}
	gi, ok1 := value(p, "reading a slice's instance", "nvmlDeviceGetGpuInstanceId", d.GetGpuInstanceId)
	ci, ok2 := value(p, "reading a slice's instance", "nvmlDeviceGetComputeInstanceId", d.GetComputeInstanceId)
	h.instance, h.compute = anyInstance, anyInstance
	if ok1 && ok2 {
		h.instance, h.compute = uint32(gi), uint32(ci)
	}
	dev.Slice.Instance, dev.Slice.Compute = h.instance, h.compute
	g := newGroup(parent.Name, whole)
	g.VramBytes = ptr(memory.Total)
	g.MigMode = "slice"
	name, _ := d.GetName()
	attributes, haveAttributes := value(p, "reading a slice's size", "nvmlDeviceGetAttributes_v2", d.GetAttributes)
	g.MigProfile = clip(profileOf(name, attributes, haveAttributes, memory.Total, whole), 16)
	dev.Slice.Profile = g.GetMigProfile()
	p.chip(d, g)
	g.MemMhz, g.SmMhz, g.BusBits, g.Cores = nil, nil, nil, nil
	if v, ok := value(p, "reading its ECC mode", "", two(d.GetEccMode)); ok {
		g.Ecc = ptr(v.a == nvml.FEATURE_ENABLED)
	}
	g.Confidential, g.Driver = p.confidential, clip(p.driver, 24)
	if p.cuda > 0 {
		g.Cuda = ptr(uint32(p.cuda))
	}
	p.sliceFiles(&dev, h, parent)
	return done(g)
}

// sliceFiles names the device files of a slice: the GPU's, and those by which the driver tells slices apart.
func (p *probe) sliceFiles(dev *Device, h sliceHandle, parent *Device) {
	instance := fmt.Sprintf("gi%d", h.instance)
	of, compute := capability(p.procfs, parent.Minor, instance), capability(p.procfs, parent.Minor, fmt.Sprintf("%s/ci%d", instance, h.compute))
	if parent.Minor < 0 || of == "" || compute == "" {
		dev.Barred, dev.Fix = "the device files of the slice are not known, so no program can be kept to it", "nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/config"
		return
	}
	dev.Files = []string{fmt.Sprintf("/dev/nvidia%d", parent.Minor), of, compute}
}

// profileOf names a slice's size as nvidia-smi does: by the driver's name of it, such as "NVIDIA A100 MIG 1g.5gb", else by its
// share of the GPU's eighths of memory.
func profileOf(name string, a nvml.DeviceAttributes, known bool, memory, whole uint64) string {
	if _, profile, ok := strings.Cut(name, " MIG "); ok && strings.Contains(profile, "g.") {
		return strings.TrimSpace(profile)
	}
	if !known || a.GpuInstanceSliceCount == 0 || whole == 0 {
		return fmt.Sprintf("%dgb", (memory+1<<30-1)>>30)
	}
	eighths := (memory*8 + whole - 1) / whole
	gb := (eighths*((whole+1<<30-1)>>30) + 4) / 8
	if a.ComputeInstanceSliceCount != 0 && a.ComputeInstanceSliceCount != a.GpuInstanceSliceCount {
		return fmt.Sprintf("%dc.%dg.%dgb", a.ComputeInstanceSliceCount, a.GpuInstanceSliceCount, gb)
	}
	return fmt.Sprintf("%dg.%dgb", a.GpuInstanceSliceCount, gb)
}

// anyInstance is an instance's number that is not told; an event with it is about the whole GPU.
const anyInstance = 0xFFFFFFFF
