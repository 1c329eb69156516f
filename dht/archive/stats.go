package archive

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrKey means something that Stats cannot count by.
var ErrKey = errors.New("archive: cannot count by this")

// Stat is one line of Stats: what peers with these values claim together.
type Stat struct {
	// By are the values of the keys, in their order; unknown is "unknown".
	By []string `json:"by"`
	// Peers with a current record, Nodes those of them that offer work; bridges and others do not.
	Peers int `json:"peers"`
	// Nodes that offer work.
	Nodes int `json:"nodes"`
	// Alive of the peers: they gave a sign of life.
	Alive int `json:"alive"`
	// GPUs claimed, and those of them that heartbeats call free.
	GPUs uint64 `json:"claimed_gpus"`
	// Free of them by heartbeats.
	Free uint64 `json:"claimed_gpus_free"`
	// VRAMGB is nominal GB of all of them.
	VRAMGB uint64 `json:"claimed_vram_gb"`
	// Cores of the nodes.
	Cores uint64 `json:"claimed_cpu_cores"`
}

// keys are what can be counted by.
var keys = map[string]func(*flatRow) string{
	"model":        func(r *flatRow) string { return orNone(r.GPUModel, r.Group != nil) },
	"vendor":       func(r *flatRow) string { return orNone(r.GPUVendor, r.Group != nil) },
	"region":       func(r *flatRow) string { return region(r) },
	"country":      func(r *flatRow) string { return orUnknown(r.Country) },
	"state":        func(r *flatRow) string { return orUnknown(r.State) },
	"agent":        func(r *flatRow) string { return orUnknown(r.Agent) },
	"reachability": func(r *flatRow) string { return orUnknown(r.Reachability) },
	"os":           func(r *flatRow) string { return orUnknown(r.OS) },
	"arch":         func(r *flatRow) string { return orUnknown(r.Arch) },
	"role":         func(r *flatRow) string { return orUnknown(r.Roles) },
	"executors":    func(r *flatRow) string { return orUnknown(r.Executors) },
	"alive":        func(r *flatRow) string { return strconv.FormatBool(r.Alive) },
}

// Keys are the names that Stats counts by, sorted.
func Keys() []string {
	out := make([]string, 0, len(keys))
	for k := range keys {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func orUnknown(s *string) string {
	if s == nil {
		return "unknown"
	}
	return *s
}

func orNone(s *string, has bool) string {
	if !has {
		return "none"
	}
	return orUnknown(s)
}

// region is the part of the world that a node claims, from the country where it says no more.
func region(r *flatRow) string {
	if r.Macro != nil {
		return *r.Macro
	}
	if r.Country != nil {
		for _, macro := range protocol.Regions() {
			if slices.Contains(protocol.RegionCountries(macro), *r.Country) {
				return macro
			}
		}
	}
	return "unknown"
}

// Stats counts current records by keys, largest first. A peer with several groups of GPUs counts in each line
// that one of its groups falls into. It returns ErrKey.
func (a *Archive) Stats(by []string) ([]Stat, error) {
	for _, k := range by {
		if keys[k] == nil {
			return nil, fmt.Errorf("%w: %.40q; want %s", ErrKey, k, strings.Join(Keys(), ", "))
		}
	}
	sums := map[string]*Stat{}
	type member struct{ sum, peer string }
	counted := map[member]bool{}
	rows := a.rows(false)
	for i := range rows {
		r := &rows[i]
		values := make([]string, len(by))
		for k, name := range by {
			values[k] = keys[name](r)
		}
		key := strings.Join(values, "\x00")
		s := sums[key]
		if s == nil {
			s = &Stat{By: values}
			sums[key] = s
		}
		s.add(r, !counted[member{key, r.PeerID}])
		counted[member{key, r.PeerID}] = true
	}
	out := make([]Stat, 0, len(sums))
	for _, s := range sums {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(x, y Stat) int {
		return cmp.Or(cmp.Compare(y.GPUs, x.GPUs), cmp.Compare(y.Peers, x.Peers), slices.Compare(x.By, y.By))
	})
	return out, nil
}

func (s *Stat) add(r *flatRow, first bool) {
	if first {
		s.Peers++
		if r.Roles == nil || slices.Contains(strings.Fields(*r.Roles), "node") {
			s.Nodes++
		}
		if r.Alive {
			s.Alive++
		}
		if r.Cores != nil {
			s.Cores += uint64(*r.Cores)
		}
	}
	if r.GPUCount == nil {
		return
	}
	s.GPUs += uint64(*r.GPUCount)
	if r.GPUFree != nil {
		s.Free += uint64(*r.GPUFree)
	}
	if r.GPUVRAMGB != nil {
		s.VRAMGB += uint64(*r.GPUVRAMGB) * uint64(*r.GPUCount)
	}
}
