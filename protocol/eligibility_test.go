package protocol

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// eligible is a node that every profile counts.
func eligible() *pb.Capability {
	return &pb.Capability{
		Gpus:    []*pb.GpuGroup{{Vendor: "nvidia", Model: "nvidia-rtx-4090-24gb", RawName: "NVIDIA GeForce RTX 4090", Count: 1}},
		Network: &pb.Network{Down: new(uint64(100_000_001)), Up: new(uint64(75_000_001)), MeasuredBy: MeasuredByPeers},
		Host:    &pb.Host{RamBytes: new(uint64(64_000_000_000)), Storage: []*pb.Storage{{Class: "nvme", Total: 950_000_000_000}}},
	}
}

func TestProfilesHaveExactBounds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pb.Capability)
		fails  map[string]string // profile -> requirement that is not met
	}{
		"just enough":            {func(*pb.Capability) {}, nil},
		"exactly 100 down":       {func(c *pb.Capability) { *c.Network.Down = 100_000_000 }, map[string]string{"rnp006": "bandwidth", "rnp019": "bandwidth"}},
		"exactly 75 up":          {func(c *pb.Capability) { *c.Network.Up = 75_000_000 }, map[string]string{"rnp006": "bandwidth", "rnp019": "bandwidth"}},
		"fast by its own word":   {func(c *pb.Capability) { c.Network.MeasuredBy = "self" }, map[string]string{"rnp006": "bandwidth", "rnp019": "bandwidth"}},
		"no measured line":       {func(c *pb.Capability) { c.Network = nil }, map[string]string{"rnp006": "bandwidth", "rnp019": "bandwidth"}},
		"no GPU":                 {func(c *pb.Capability) { c.Gpus = nil }, map[string]string{"rnp006": "gpu", "rnp019": "gpu"}},
		"all its GPUs faulted":   {func(c *pb.Capability) { c.Gpus[0].Faulted = new(uint32(1)) }, map[string]string{"rnp006": "gpu", "rnp019": "gpu"}},
		"a GPU of a later list":  {func(c *pb.Capability) { c.Gpus[0].Model = "nvidia-rtx-5090-32gb" }, map[string]string{"rnp006": "gpu"}},
		"a card of 12 GB":        {func(c *pb.Capability) { c.Gpus[0].Model = "nvidia-rtx-3080-12gb" }, nil},
		"another with its name":  {func(c *pb.Capability) { c.Gpus[0].Model = "nvidia-rtx-4090-laptop-16gb" }, map[string]string{"rnp006": "gpu", "rnp019": "gpu"}},
		"a byte of memory less":  {func(c *pb.Capability) { *c.Host.RamBytes-- }, map[string]string{"rnp019": "memory"}},
		"a byte of disk less":    {func(c *pb.Capability) { c.Host.Storage[0].Total-- }, map[string]string{"rnp019": "disk"}},
		"a disk of another kind": {func(c *pb.Capability) { c.Host.Storage[0].Class = "hdd" }, map[string]string{"rnp019": "disk"}},
	} {
		node := proto.CloneOf(eligible())
		c.change(node)
		for _, p := range Profiles() {
			all := p.Check(node)
			var missed []string
			for _, r := range all {
				if r.Met != (r.Fix == "") || r.Need == "" || r.Have == "" {
					t.Errorf("%s, %s: a line without its words: %+v", name, p.Name, r)
				}
				if !r.Met {
					missed = append(missed, r.Name)
				}
			}
			if got := strings.Join(missed, " "); got != c.fails[p.Name] || Meets(all) != (got == "") {
				t.Errorf("%s: %s misses %q, want %q", name, p.Name, got, c.fails[p.Name])
			}
		}
	}
}

func TestApprovedCardsAreFoundByTheirDriversNames(t *testing.T) {
	for _, p := range Profiles() {
		for _, chip := range p.Chips {
			raw := "NVIDIA GeForce " + strings.ToUpper(strings.ReplaceAll(chip, "-", " "))
			if rest, ok := strings.CutSuffix(raw, " LAPTOP"); ok {
				raw = rest + " Laptop GPU"
			}
			if got := chipOf(NameGPU(raw, 8<<30).Slug); got != chip {
				t.Errorf("%s approves %s, but %q is a %s", p.Name, chip, raw, got)
			}
		}
	}
}
