package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// kit is a machine with two H100, one L4, one broken and one slice.
func kit() *devices { return newDevices(kitInventory()) }

func kitInventory() *gpu.Inventory {
	vram := uint64(80 << 30)
	return &gpu.Inventory{
		Groups: []*pb.GpuGroup{{Model: "nvidia-h100-80gb-sxm", Count: 2, VramBytes: &vram}, {Model: "nvidia-l4-24gb", Count: 1}},
		Devices: []gpu.Device{
			good("a", 0, "/dev/nvidia0"),
			{UUID: "broken", Group: -1, Minor: 1, Files: []string{"/dev/nvidia1"}, Health: gpu.Faulted},
			good("b", 0, "/dev/nvidia2"),
			good("c", 1, "/dev/nvidia3"),
			{UUID: "slice", Group: 1, Minor: 4, Slice: &gpu.Slice{Profile: "1g.5gb"}, Health: gpu.Healthy, Files: []string{"/dev/nvidia4", "/dev/nvidia-caps/nvidia-cap1"}},
			{UUID: "no file", Group: 1, Minor: -1, Health: gpu.Healthy},
		},
	}
}

func good(uuid string, group int, files ...string) gpu.Device {
	return gpu.Device{UUID: uuid, Group: group, Health: gpu.Healthy, Files: files}
}

func gpuLease(id byte, count uint32, models ...string) *lease {
	l := &lease{member: &member{}}
	l.ID = protocol.LeaseID{id}
	l.member.terms.GPUCount, l.member.terms.GPUModels = count, models
	return l
}

func TestNoGPUBelongsToTwoLeases(t *testing.T) {
	d := kit()
	one, two, more := gpuLease(1, 1, "H100"), gpuLease(2, 1, "H100"), gpuLease(3, 1, "H100")
	for range 2 { // once more changes nothing
		if !d.take(one) {
			t.Fatal("a free H100 is not given away")
		}
	}
	if !d.take(two) || d.take(more) {
		t.Fatal("two H100 are for two leases")
	}
	files, uuids := d.of(one.ID)
	if uuids != "a" || len(files) != 3 || files[0].Path != "/dev/nvidia0" {
		t.Errorf("the first lease has %v, %s", files, uuids)
	}
	if _, uuids := d.of(two.ID); uuids != "b" {
		t.Errorf("the second lease has %s", uuids)
	}
	d.release(one.ID)
	if files, _ := d.of(one.ID); len(files) > 0 || !d.take(more) {
		t.Error("a GPU that was given back is not given away again")
	}
}

func TestChunkGetsIdenticalGPUs(t *testing.T) {
	d := kit()
	if d.take(gpuLease(1, 3)) {
		t.Error("two H100 and an L4 passed for three GPUs")
	}
	if !d.take(gpuLease(2, 2)) || d.free([]string{"a", "b"}) != 0 || d.free([]string{"c", "broken"}) != 1 {
		t.Errorf("two of any model left %d H100 and %d L4", d.free([]string{"a", "b"}), d.free([]string{"c"}))
	}
	if d.take(gpuLease(3, 1, "H100")) || !d.take(gpuLease(4, 1, "L4", "H100")) {
		t.Error("only the L4 is left")
	}
}

func TestSlotsOfAJobAreWhatItsGPUsAreEnoughFor(t *testing.T) {
	d := kit()
	for _, c := range []struct {
		count  uint32
		models []string
		want   int
	}{{1, nil, 3}, {2, nil, 1}, {1, []string{"H100"}, 2}, {1, []string{"T4"}, 0}, {3, nil, 0}} {
		if got := d.slots(&protocol.JobTerms{GPUCount: c.count, GPUModels: c.models}); got != c.want {
			t.Errorf("%d × %v: %d slots, want %d", c.count, c.models, got, c.want)
		}
	}
}

func TestWhatIsGivenAwayFollowsHealth(t *testing.T) {
	d := kit()
	one := gpuLease(1, 1, "H100")
	if !d.take(one) {
		t.Fatal("a free H100 is not given away")
	}
	inv := kitInventory()
	inv.Devices[2].Health, inv.Devices[2].Reason = gpu.Suspect, "hot"
	if lost := d.update(inv); len(lost) != 0 || d.free([]string{"b"}) != 0 || d.take(gpuLease(2, 1, "H100")) || d.slots(&protocol.JobTerms{GPUCount: 1}) != 2 {
		t.Errorf("a suspect GPU is given away, or a lease lost: %v", lost)
	}
	inv.Devices[0].Health, inv.Devices[0].Reason = gpu.Faulted, "fallen off the bus"
	if lost := d.update(inv); len(lost) != 1 || !strings.Contains(lost[one.ID], "fallen off the bus") {
		t.Errorf("the lost leases are %v", lost)
	}
	d.release(one.ID)
	inv = kitInventory()
	if lost := d.update(inv); len(lost) != 0 || d.free([]string{"a", "b", "c"}) != 3 {
		t.Errorf("all are good again, and %d are free", d.free([]string{"a", "b", "c"}))
	}
	if !d.take(one) {
		t.Fatal("a GPU that is good again is not given away")
	}
	inv.Devices = inv.Devices[1:] // it is gone altogether
	if lost := d.update(inv); len(lost) != 1 {
		t.Errorf("the lost leases are %v", lost)
	}
	d.release(one.ID)
	d.update(inv)
	if d.take(gpuLease(3, 2, "H100")) {
		t.Error("a GPU that is gone is given away")
	}
	d.barred = true
	if d.free([]string{"b", "c"}) != 0 || d.take(gpuLease(4, 1)) || d.slots(&protocol.JobTerms{GPUCount: 1}) != 0 {
		t.Error("what nothing can hand over is given away")
	}
}

func TestSellingSaysWhyNot(t *testing.T) {
	inv := kitInventory()
	inv.Devices[1].Reason = "fallen off the bus"
	inv.OnBus = 7 // one more than the GPUs that NVML shows: a slice is none of the bus
	inv.Problems = []gpu.Problem{{What: "unreadable", Fix: "reload"}}
	s := sellingOf(inv, "", false)
	text := fmt.Sprint(s.Unsold)
	if s.Sellable != 3 || s.Units != 8 || len(s.Unsold) != 4 {
		t.Errorf("%d of %d, and %q", s.Sellable, s.Units, text)
	}
	for _, want := range []string{"fallen off the bus", "1 MIG slices", "device file", "unreadable"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	for _, p := range s.Unsold {
		if p.Fix == "" {
			t.Errorf("%q has no fix", p.What)
		}
	}
	if s := sellingOf(inv, "nothing runs them", false); s.Sellable != 0 || s.Units != 8 || !strings.Contains(fmt.Sprint(s.Unsold), "nothing runs them") {
		t.Errorf("with nothing to run them %+v", s)
	}
	if s := sellingOf(&gpu.Inventory{}, "nothing runs them", false); s.Units != 0 || len(s.Unsold) != 0 {
		t.Errorf("a machine without GPUs says %+v", s)
	}
}

func TestProcessorsBesideBrokenGPUsAreWithheldUnlessTheirOwnerOffersThem(t *testing.T) {
	in := func(states ...gpu.Health) (inv gpu.Inventory) {
		for i, h := range states {
			inv.Devices = append(inv.Devices, gpu.Device{UUID: fmt.Sprint(i), Health: h})
		}
		return inv
	}
	cut := in(gpu.Healthy, gpu.Faulted)
	cut.Devices[0].Slices, cut.Devices[1].Slice = 1, &gpu.Slice{}
	barred := in(gpu.Healthy)
	barred.Devices[0].Barred = "its compute mode is prohibited"
	for name, c := range map[string]struct {
		inv  gpu.Inventory
		held bool
	}{
		"no GPU": {gpu.Inventory{}, false}, "others' GPUs": {gpu.Inventory{Others: []string{"amd"}}, false},
		"one of two is good": {in(gpu.Faulted, gpu.Healthy), false}, "suspect": {in(gpu.Suspect), false}, "not tested yet": {in(gpu.Untested), false},
		"somebody else's": {in(gpu.Faulted, gpu.Foreign), false}, "barred by a setting": {barred, false},
		"broken": {in(gpu.Faulted, gpu.Locked), true}, "gone": {in(gpu.Absent), true}, "coming back": {in(gpu.Recovering), true},
		"unreadable": {gpu.Inventory{OnBus: 2, Problems: []gpu.Problem{{What: "no driver"}}}, true}, "a broken slice of a good GPU": {cut, true},
	} {
		s := sellingOf(&c.inv, "", false)
		if (s.Withheld != "") != c.held || c.held && !strings.Contains(s.Withheld, "offer: {cpu: true} in node.yaml") {
			t.Errorf("%s: withheld is %q, want %t", name, s.Withheld, c.held)
		}
		if s := sellingOf(&c.inv, "", true); s.Withheld != "" {
			t.Errorf("%s, and its owner offers the processors: %q", name, s.Withheld)
		}
	}
}

func TestRunKeepsItsGPUsOverARestart(t *testing.T) {
	d := kit()
	token, uuids := splitDevices(withDevices("sandbox:x/y", "b"))
	if token != "sandbox:x/y" {
		t.Fatalf("the token is %q", token)
	}
	l := gpuLease(1, 1, "H100")
	d.keep(l.ID, uuids)
	if !d.take(l) {
		t.Fatal("it has its GPU")
	}
	if _, have := d.of(l.ID); have != "b" {
		t.Errorf("it has %s now, its run has b open", have)
	}
	if token, uuids := splitDevices(withDevices("plain", "")); token != "plain" || uuids != "" {
		t.Errorf("without GPUs: %q, %q", token, uuids)
	}
}
