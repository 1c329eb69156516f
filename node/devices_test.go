package node

import (
	"testing"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// kit is a machine with two H100, one L4, one broken and one slice.
func kit() *devices {
	vram := uint64(80 << 30)
	return newDevices(&gpu.Inventory{
		Groups: []*pb.GpuGroup{{Model: "nvidia-h100-80gb-sxm", Count: 2, VramBytes: &vram}, {Model: "nvidia-l4-24gb", Count: 1}},
		Devices: []gpu.Device{
			{UUID: "a", Group: 0, Minor: 0},
			{UUID: "broken", Group: -1, Minor: 1},
			{UUID: "b", Group: 0, Minor: 2},
			{UUID: "c", Group: 1, Minor: 3},
			{UUID: "slice", Group: 1, Minor: 4, Slice: true},
			{UUID: "no file", Group: 1, Minor: -1},
		},
	})
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
	if !d.take(gpuLease(2, 2)) || d.free(0) != 0 || d.free(1) != 1 {
		t.Errorf("two of any model left %d H100 and %d L4", d.free(0), d.free(1))
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
