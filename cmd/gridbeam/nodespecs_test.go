package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/gpu"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestGPUsAreSaidWithWhyNot(t *testing.T) {
	group := &pb.GpuGroup{Model: "nvidia-h100-80gb-sxm", Count: 4}
	for name, c := range map[string]struct {
		inv  gpu.Inventory
		sale node.Selling
		want []string
	}{
		"without GPUs": {want: []string{"gpus       none: this node offers its processors"}},
		"others'":      {inv: gpu.Inventory{Others: []string{"amd 0x74a1"}}, want: []string{"none of NVIDIA's: this node offers its processors", "amd 0x74a1"}},
		"some": {
			inv:  gpu.Inventory{Groups: []*pb.GpuGroup{group}},
			sale: node.Selling{Sellable: 3, Units: 4, Unsold: []gpu.Problem{{What: "GPU 1 is not offered: faulted: Xid 79\x1b[31m", Fix: "reseat it"}}},
			want: []string{"gpus       3 of 4 GPUs can be sold", "4 x nvidia-h100-80gb-sxm", "not sold: GPU 1 is not offered: faulted: Xid 79", "fix: reseat it"},
		},
		"untested": {
			inv: gpu.Inventory{Groups: []*pb.GpuGroup{group}, Devices: []gpu.Device{
				{Index: 2, Health: gpu.Healthy, Proof: &gpu.Proof{Verdict: gpu.Unable, Why: "no libcuda.so.1\x1b[31m"}}, {Index: 3, Proof: &gpu.Proof{Verdict: gpu.Passed}},
			}},
			sale: node.Selling{Sellable: 4, Units: 4},
			want: []string{"not tested: GPU 2: no libcuda.so.1"},
		},
		"unreadable": {
			sale: node.Selling{Units: 1, Withheld: "offer: {cpu: true}", Unsold: []gpu.Problem{{What: "1 NVIDIA GPUs are on the PCI bus, but the driver is not loaded", Fix: "modprobe nvidia"}}},
			want: []string{"0 of 1 GPUs can be sold, and its processors are not offered: offer: {cpu: true}", "modprobe nvidia"},
		},
	} {
		var b bytes.Buffer
		writeGPUs(func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }, &c.inv, &c.sale)
		for _, want := range c.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: %q does not say %q", name, b.String(), want)
			}
		}
		if strings.Contains(b.String(), "\x1b") {
			t.Errorf("%s: what a driver says reaches the terminal as it is: %q", name, b.String())
		}
	}
}

func TestSpecsAreSaidWithWhatWasMeasured(t *testing.T) {
	hot := uint32(84)
	s := node.Specs{
		Machine: node.Inventory{
			Threads: 2, Measured: &node.Measured{At: time.Now(), DiskReadMBs: 1320, DiskWriteMBs: 300, DiskBytes: 256 << 20, DiskHow: "direct", MemoryGBs: 12, Problems: []string{"x"}},
			GPUs: gpu.Inventory{
				Groups:  []*pb.GpuGroup{{Model: "nvidia-l4-24gb", Count: 1, Driver: "550.54.15", Cuda: new(uint32(12040))}},
				Devices: []gpu.Device{{Index: 0, Bus: "0000:01:00.0", Name: "NVIDIA L4", Health: gpu.Suspect, Notes: []string{"PCIe has 8 of 16 lanes"}, Proof: &gpu.Proof{Verdict: gpu.Failed, Why: "it hangs", Again: time.Now()}, Now: &gpu.Sensors{TemperatureC: &hot, Throttle: []string{"thermal slowdown"}}}},
			},
		},
		Selling: node.Selling{Units: 1},
	}
	var b bytes.Buffer
	writeSpecs(&b, &s)
	for _, want := range []string{
		"no node runs here", "disk reads 1320 MB/s and writes 300 MB/s (256 MiB, direct), memory 12 GB/s", "not measured: x", "0 of 1 GPUs can be sold",
		"GPU 0 (NVIDIA L4) at 0000:01:00.0: suspect", "CUDA 12.4", "84 °C", "thermal slowdown", "8 of 16 lanes",
		"failed its test (it hangs), again at ",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q does not say %q", b.String(), want)
		}
	}
	s.Machine.Measured = nil
	b.Reset()
	if writeSpecs(&b, &s); !strings.Contains(b.String(), "gridbeam node measure") {
		t.Errorf("%q does not say how to measure", b.String())
	}
}
