package protocol

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Profile is a set of minimum specifications by which a reward policy counts a node (discovery.md 9). It limits rewards;
// it keeps nobody from joining. A requirement that is zero or empty is none.
type Profile struct {
	// Name is what the policy is called, Source where its numbers stand.
	Name, Source string
	// Chips are the approved GPUs as the chip part of a slug, such as rtx-4090; one group of them is enough.
	Chips []string
	// Down and Up are bit/s that the line has to exceed, strictly and both.
	Down, Up uint64
	// Memory and Disk are the least bytes of RAM and of one storage of class DiskClass.
	Memory, Disk uint64
	// DiskClass is the class of storage that Disk asks for.
	DiskClass string
}

// approvedRNP006 are the GPUs that RNP-006 lists.
var approvedRNP006 = []string{
	"rtx-4090", "rtx-4080", "rtx-3090-ti", "rtx-3090", "rtx-4070-ti", "rtx-4070", "rtx-3080-ti", "rtx-3080", "rtx-4060-ti", "rtx-4060",
	"rtx-3070-ti", "rtx-3070", "rtx-3060-ti", "rtx-3060", "rtx-3060-laptop", "rtx-3050",
}

// Profiles returns the profiles that are known, by name.
//
// RNP-019 asks for 64 GB of memory and 1 TB of NVMe. Memory is compared in bytes of 10^9, which a machine of 64 GiB
// exceeds after what its kernel keeps; a disk of 10^12 bytes shows less once it has a file system, so 95 % of it is
// enough.
func Profiles() []Profile {
	const mbit, gb = 1_000_000, 1_000_000_000
	old := Profile{Name: "rnp006", Source: "RNP-006", Chips: approvedRNP006, Down: 100 * mbit, Up: 75 * mbit}
	now := old
	now.Name, now.Source = "rnp019", "RNP-019"
	now.Chips = append([]string{"rtx-5090", "rtx-5090-d", "rtx-5080", "rtx-5070-ti", "rtx-5070", "rtx-4090-d"}, approvedRNP006...)
	now.Memory, now.Disk, now.DiskClass = 64*gb, 950*gb, "nvme"
	return []Profile{old, now}
}

// Requirement is one line of an answer: what a profile needs, what the node has, and what to do where that is too little.
type Requirement struct {
	// Name is gpu, bandwidth, memory or disk.
	Name string `json:"requirement"`
	// Have is what the node's record says, in words; Need what the profile asks for.
	Have string `json:"have"`
	// Need is what the profile asks for, in words.
	Need string `json:"need"`
	// Met says whether it is enough.
	Met bool `json:"met"`
	// Fix says what to do; empty when Met.
	Fix string `json:"fix,omitempty"`
}

// Check compares a node's record with the profile, a line a requirement. Bandwidth counts only where peers have measured
// it: a node's own word about its line is none.
func (p *Profile) Check(c *pb.Capability) (out []Requirement) {
	if len(p.Chips) > 0 {
		out = append(out, p.checkGPU(c.GetGpus()))
	}
	if p.Down > 0 || p.Up > 0 {
		out = append(out, p.checkLine(c.GetNetwork()))
	}
	if p.Memory > 0 {
		have := c.GetHost().GetRamBytes()
		r := Requirement{Name: "memory", Have: gigabytes(have), Need: gigabytes(p.Memory), Met: have >= p.Memory}
		if !r.Met {
			r.Fix = "add " + gigabytes(p.Memory-have) + " of memory"
		}
		out = append(out, r)
	}
	if p.Disk > 0 {
		out = append(out, p.checkDisk(c.GetHost().GetStorage()))
	}
	return out
}

// Meets says whether all requirements are met.
func Meets(all []Requirement) bool {
	return !slices.ContainsFunc(all, func(r Requirement) bool { return !r.Met })
}

func (p *Profile) checkGPU(groups []*pb.GpuGroup) Requirement {
	r := Requirement{Name: "gpu", Need: "a GPU of the approved list", Have: "no GPU"}
	var have []string
	for _, g := range groups {
		have = append(have, cmp.Or(g.GetRawName(), g.GetModel()))
		r.Met = r.Met || slices.Contains(p.Chips, chipOf(g.GetModel())) && g.GetCount() > g.GetFaulted()
	}
	if len(have) > 0 {
		r.Have = strings.Join(have, ", ")
	}
	if !r.Met {
		r.Fix = p.Source + " rewards " + strings.Join(p.Chips[:3], ", ") + " and others; jobs run on any GPU"
	}
	return r
}

// chipOf is the chip of a slug vendor-chip-sizegb[-form].
func chipOf(slug string) string {
	_, rest, _ := strings.Cut(slug, "-")
	parts := strings.Split(rest, "-")
	for i, s := range parts {
		if n, ok := strings.CutSuffix(s, "gb"); ok && n != "" && strings.Trim(n, "0123456789") == "" {
			return strings.Join(parts[:i], "-")
		}
	}
	return rest
}

func (p *Profile) checkLine(n *pb.Network) Requirement {
	r := Requirement{Name: "bandwidth", Need: fmt.Sprintf("more than %s down and %s up", megabits(p.Down), megabits(p.Up)), Have: "not measured by peers"}
	r.Fix = "stay connected: bridges measure a node at its start and once a day, while it has no work"
	if n.GetMeasuredBy() != MeasuredByPeers || n.Down == nil || n.Up == nil {
		return r
	}
	r.Have = fmt.Sprintf("%s down and %s up", megabits(n.GetDown()), megabits(n.GetUp()))
	r.Met = n.GetDown() > p.Down && n.GetUp() > p.Up
	r.Fix = ""
	if !r.Met {
		r.Fix = "a faster line, or less other use of this one; exactly the bound is not above it"
	}
	return r
}

func (p *Profile) checkDisk(all []*pb.Storage) Requirement {
	r := Requirement{Name: "disk", Need: gigabytes(p.Disk) + " of " + p.DiskClass, Have: "none of class " + p.DiskClass}
	best := uint64(0)
	for _, s := range all {
		if s.GetClass() == p.DiskClass {
			best = max(best, s.GetTotal())
		}
	}
	if best > 0 {
		r.Have = gigabytes(best) + " of " + p.DiskClass
	}
	r.Met = best >= p.Disk
	if !r.Met {
		r.Fix = "put --data on an NVMe drive of 1 TB"
	}
	return r
}

func megabits(n uint64) string  { return fmt.Sprintf("%.4g Mbit/s", float64(n)/1e6) }
func gigabytes(n uint64) string { return fmt.Sprintf("%.4g GB", float64(n)/1e9) }

// MeasuredByPeers is Network.measured_by of a line that others have measured.
const MeasuredByPeers = "peers"
