package cluster

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Fleet holds candidates together with columns of what requirements ask, so that one pass over 100,000
// nodes touches a few hundred kilobytes per requirement instead of every node's record. Keep one warm and
// change it with Set; it answers as Select does. It is not safe for concurrent use.
type Fleet struct {
	rows []Candidate

	ready, fresh, where, free, standing, tier []uint8
	runs                                      [backends][]uint8
	cores, o                                  []float64
	memory, disk, missing, price              []uint64
	rtt                                       []time.Duration
	kit, place, labels, host                  []uint32
	hash                                      []uint64 // of the peer ID, breaks ties whatever the order

	kits     interner[[]GPU]
	places   interner[[3]string]
	labelSet interner[[]string]
	hosts    interner[[]string]

	mask []uint32 // scratch of one Select: bit k is set where filter k fails
}

// interner numbers distinct values, so that a requirement is evaluated once per value, not once per node.
type interner[T any] struct {
	ids    map[string]uint32
	values []T
}

func (in *interner[T]) id(key string, v T) uint32 {
	if id, ok := in.ids[key]; ok {
		return id
	}
	if in.ids == nil {
		in.ids = map[string]uint32{}
	}
	id := uint32(len(in.values))
	in.ids[key], in.values = id, append(in.values, v)
	return id
}

// NewFleet builds the columns of the candidates; it keeps the slice.
func NewFleet(candidates []Candidate) *Fleet {
	n := len(candidates)
	f := &Fleet{rows: candidates}
	for _, c := range []*[]uint8{&f.ready, &f.fresh, &f.where, &f.free, &f.standing, &f.tier, &f.runs[0], &f.runs[1], &f.runs[2]} {
		*c = make([]uint8, n)
	}
	f.cores, f.o = make([]float64, n), make([]float64, n)
	for _, c := range []*[]uint64{&f.memory, &f.disk, &f.missing, &f.price, &f.hash} {
		*c = make([]uint64, n)
	}
	f.rtt = make([]time.Duration, n)
	f.kit, f.place, f.labels, f.host, f.mask = make([]uint32, n), make([]uint32, n), make([]uint32, n), make([]uint32, n), make([]uint32, n)
	for i := range candidates {
		f.index(i)
	}
	return f
}

// Len returns the number of candidates.
func (f *Fleet) Len() int { return len(f.rows) }

// At returns candidate i; it must not be changed but by Set.
func (f *Fleet) At(i int) *Candidate { return &f.rows[i] }

// Set replaces candidate i.
func (f *Fleet) Set(i int, c Candidate) {
	f.rows[i] = c
	f.index(i)
}

func (f *Fleet) index(i int) {
	c := &f.rows[i]
	f.ready[i], f.fresh[i], f.where[i] = b2u(c.Ready), b2u(c.Fresh), b2u(c.Where)
	f.free[i] = b2u(c.Slots > 0 || c.Queue > 0)
	f.standing[i], f.tier[i] = uint8(c.Standing), uint8(c.Tier)
	for b := range c.Runs {
		f.runs[b][i] = uint8(c.Runs[b])
	}
	f.cores[i], f.o[i], f.memory[i], f.disk[i] = c.Cores, c.O, c.Memory, c.Disk
	f.missing[i], f.price[i], f.rtt[i] = c.DataMissing+c.ImageMissing, c.Price, c.RTT
	var key strings.Builder
	for _, g := range c.GPUs {
		fmt.Fprintf(&key, "%s\x00%d\x00%d\x00", g.Model, g.Count, g.VRAMGB)
	}
	f.kit[i] = f.kits.id(key.String(), c.GPUs)
	f.place[i] = f.places.id(c.Region+"\x00"+c.Country+"\x00"+c.Subdivision, [3]string{c.Region, c.Country, c.Subdivision})
	f.labels[i] = f.labelSet.id(strings.Join(c.Labels, "\x00"), c.Labels)
	f.host[i] = f.hosts.id(strings.Join(c.Hosts, "\x00"), c.Hosts)
	f.hash[i] = peerHash(string(c.Peer))
}

func b2u(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// peerHash is FNV-1a with a final mix (splitmix64): ties are broken by it, xored with the seed.
func peerHash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// filter is a hard requirement with a name.
type filter struct {
	name, want string
	fail       func(bit uint32) int   // marks the candidates that violate it, returns how many
	value      func(i int) float64    // what a candidate has, where that is a number
	lower      bool                   // a lower value is a better one
	show       func(v float64) string // the value for people
	fix        string                 // what to do where it leaves nobody
}

func failBelow[T cmp.Ordered](mask []uint32, col []T, least T) func(uint32) int {
	return func(bit uint32) (n int) {
		for i, v := range col {
			if !(v >= least) {
				mask[i] |= bit
				n++
			}
		}
		return n
	}
}

func failAbove[T cmp.Ordered](mask []uint32, col []T, most T) func(uint32) int {
	return func(bit uint32) (n int) {
		for i, v := range col {
			if !(v <= most) {
				mask[i] |= bit
				n++
			}
		}
		return n
	}
}

func failUnless(mask []uint32, col []uint32, ok []bool) func(uint32) int {
	return func(bit uint32) (n int) {
		for i, v := range col {
			if !ok[v] {
				mask[i] |= bit
				n++
			}
		}
		return n
	}
}

// filters returns the requirements of a normal job in the order in which the explanation counts them down.
func (f *Fleet) filters(j *Job) []filter {
	fs := []filter{
		{name: "ready", want: "ready", fail: failBelow(f.mask, f.ready, 1)},
		{name: "fresh", want: "heard of lately", fail: failBelow(f.mask, f.fresh, 1)},
		{name: "standing", want: "not suspended", fail: failBelow(f.mask, f.standing, uint8(StandingProbation))},
		{name: "run", want: "run " + j.Backend.String(), fail: failBelow(f.mask, f.runs[j.Backend], uint8(IsolationDev))},
	}
	if j.Backend == BackendHost {
		fs[len(fs)-1].want = "runs functions"
		fs[len(fs)-1].fix = "start a node with `gridbeam node run --min-isolation shared`, on a machine that has bubblewrap and python3"
	}
	add := func(x filter) { fs = append(fs, x) }
	if j.Host != "" {
		ok := make([]bool, len(f.hosts.values))
		for i, names := range f.hosts.values {
			ok[i] = slices.ContainsFunc(names, func(n string) bool { return n == j.Host || strings.HasPrefix(n, j.Host+".") })
		}
		add(filter{name: "host", want: "host " + j.Host, fix: "ask for a Python that a node has, or start a node that has this one", fail: failUnless(f.mask, f.host, ok)})
	}
	if j.Isolation > IsolationDev {
		add(filter{name: "min_isolation", want: "min_isolation " + j.Isolation.String(), fail: failBelow(f.mask, f.runs[j.Backend], uint8(j.Isolation))})
	}
	if j.GPUCount > 0 {
		model, vram := f.kitVerdicts(j)
		want := fmt.Sprintf("gpu_count %d", j.GPUCount)
		if len(j.GPUModels) > 0 {
			want = "gpu " + strings.Join(j.GPUModels, "|")
			if j.GPUCount > 1 {
				want += fmt.Sprintf(" x %d", j.GPUCount)
			}
		}
		add(filter{name: "gpu", want: want, fail: failUnless(f.mask, f.kit, model)})
		if j.MinVRAMGB > 0 {
			add(filter{
				name: "min_vram", want: fmt.Sprintf("min_vram %dGB", j.MinVRAMGB), fail: failUnless(f.mask, f.kit, vram),
				value: f.bestVRAM, show: func(v float64) string { return fmt.Sprintf("%.0fGB", v) },
			})
		}
	}
	if j.Cores > 0 {
		add(filter{
			name: "cpu", want: fmt.Sprintf("cpu %g", j.Cores), fail: failBelow(f.mask, f.cores, j.Cores),
			value: func(i int) float64 { return f.cores[i] }, show: func(v float64) string { return fmt.Sprintf("%g", v) },
		})
	}
	if j.Memory > 0 {
		add(filter{
			name: "memory", want: "memory " + bytesText(j.Memory), fail: failBelow(f.mask, f.memory, j.Memory),
			value: func(i int) float64 { return float64(f.memory[i]) }, show: func(v float64) string { return bytesText(uint64(v)) },
		})
	}
	add(filter{
		name: "disk", want: "disk " + bytesText(j.Disk) + " beside the data", fail: f.failDisk(j.Disk),
		value: func(i int) float64 { return max(0, float64(f.disk[i])-float64(f.missing[i])) }, show: func(v float64) string { return bytesText(uint64(v)) },
	})
	add(filter{name: "slots", want: "a free slot", fail: failBelow(f.mask, f.free, 1)})
	return append(fs, f.placeFilters(j)...)
}

// placeFilters are the requirements of the job file's placement part.
func (f *Fleet) placeFilters(j *Job) (fs []filter) {
	add := func(x filter) { fs = append(fs, x) }
	if j.Where != "" {
		add(filter{name: "where", want: "where " + j.Where, fail: failBelow(f.mask, f.where, 1)})
	}
	if len(j.Regions) > 0 {
		names := make([]string, len(j.Regions))
		for i, r := range j.Regions {
			names[i] = r.Region
		}
		ok := make([]bool, len(f.places.values))
		for i, p := range f.places.values {
			ok[i] = regionOf(j.Regions, p[0], p[1], p[2]) >= 0
		}
		add(filter{name: "regions", want: "regions " + strings.Join(names, "|"), fail: failUnless(f.mask, f.place, ok)})
	}
	if j.MaxRTT > 0 {
		add(filter{
			name: "max_rtt", want: "max_rtt " + j.MaxRTT.String(), fail: f.failFar(j.MaxRTT), lower: true,
			value: func(i int) float64 {
				if f.rtt[i] <= 0 {
					return math.Inf(1)
				}
				return float64(f.rtt[i])
			},
			show: func(v float64) string {
				if math.IsInf(v, 1) {
					return "not measured"
				}
				return time.Duration(v).Round(100 * time.Microsecond).String()
			},
		})
	}
	if j.Bandwidth > TierUnknown {
		add(filter{
			name: "bandwidth", want: "bandwidth " + j.Bandwidth.String(), fail: failBelow(f.mask, f.tier, uint8(j.Bandwidth)),
			value: func(i int) float64 { return float64(f.tier[i]) }, show: func(v float64) string { return cmp.Or(Tier(v).String(), "not measured") },
		})
	}
	if len(j.HostTypes) > 0 {
		add(filter{
			name: "host_type", want: "host_type " + strings.Join(j.HostTypes, "|"),
			fail: failUnless(f.mask, f.labels, f.labelVerdicts(func(l []string) bool {
				return slices.ContainsFunc(j.HostTypes, func(t string) bool { return slices.Contains(l, "host.type="+t) })
			})),
		})
	}
	if len(j.Compliance) > 0 {
		add(filter{
			name: "compliance", want: "compliance " + strings.Join(j.Compliance, "+"),
			fail: failUnless(f.mask, f.labels, f.labelVerdicts(func(l []string) bool {
				return !slices.ContainsFunc(j.Compliance, func(t string) bool { return !slices.Contains(l, "compliance="+t) })
			})),
		})
	}
	if j.MaxPrice > 0 {
		add(filter{
			name: "max_price", want: "max_price " + priceText(j.MaxPrice), fail: failAbove(f.mask, f.price, j.MaxPrice), lower: true,
			value: func(i int) float64 { return float64(f.price[i]) }, show: func(v float64) string { return priceText(uint64(v)) },
		})
	}
	if j.MinReputation > 0 {
		add(filter{
			name: "min_reputation", want: fmt.Sprintf("min_reputation %g", j.MinReputation), fail: failBelow(f.mask, f.o, j.MinReputation),
			value: func(i int) float64 { return f.o[i] }, show: func(v float64) string { return fmt.Sprintf("%.3g", v) },
		})
	}
	return fs
}

// kitVerdicts evaluates models and memory once per distinct set of GPUs. Where different devices satisfy the
// one and the other but none both, min_vram is what fails.
func (f *Fleet) kitVerdicts(j *Job) (model, vram []bool) {
	model, vram = make([]bool, len(f.kits.values)), make([]bool, len(f.kits.values))
	for i, gpus := range f.kits.values {
		both := false
		for _, g := range gpus {
			if g.Count < j.GPUCount {
				continue
			}
			m := len(j.gpus) == 0 || slices.ContainsFunc(j.gpus, func(s protocol.GPUSet) bool { return s.Has(g.Model) })
			v := g.VRAMGB >= j.MinVRAMGB
			model[i], vram[i], both = model[i] || m, vram[i] || v, both || m && v
		}
		if model[i] && vram[i] && !both {
			vram[i] = false
		}
	}
	return model, vram
}

func (f *Fleet) bestVRAM(i int) float64 {
	best := 0
	for _, g := range f.rows[i].GPUs {
		best = max(best, g.VRAMGB)
	}
	return float64(best)
}

func (f *Fleet) labelVerdicts(ok func([]string) bool) []bool {
	out := make([]bool, len(f.labelSet.values))
	for i, l := range f.labelSet.values {
		out[i] = ok(l)
	}
	return out
}

// failDisk wants room for the job's own files and for everything that has still to be fetched.
func (f *Fleet) failDisk(need uint64) func(uint32) int {
	return func(bit uint32) (n int) {
		for i, have := range f.disk {
			if have < need || have-need < f.missing[i] {
				f.mask[i] |= bit
				n++
			}
		}
		return n
	}
}

// failFar wants a round trip that is known and short enough.
func (f *Fleet) failFar(most time.Duration) func(uint32) int {
	return func(bit uint32) (n int) {
		for i, have := range f.rtt {
			if have <= 0 || have > most {
				f.mask[i] |= bit
				n++
			}
		}
		return n
	}
}

// regionOf returns which share a place belongs to, or -1. The narrowest name wins: a country named by itself over its
// region, a subdivision over its country.
func regionOf(shares []Share, region, country, subdivision string) int {
	for i, s := range shares {
		if subdivision != "" && strings.EqualFold(s.Region, subdivision) {
			return i
		}
	}
	for i, s := range shares {
		if country != "" && strings.EqualFold(s.Region, country) {
			return i
		}
	}
	for i, s := range shares {
		if region != "" && strings.EqualFold(s.Region, region) {
			return i
		}
	}
	return -1
}

// match evaluates all filters and returns the matching rows and the counts of each filter.
func (f *Fleet) match(j *Job) ([]int32, []Filter) {
	clear(f.mask)
	fs := f.filters(j)
	counts := make([]Filter, len(fs))
	for k := range fs {
		counts[k] = Filter{Name: fs[k].name, Want: fs[k].want, Removed: fs[k].fail(1 << k)}
	}
	var first [33]int
	for _, m := range f.mask {
		first[bits.TrailingZeros32(m)]++ // 32 where nothing fails
	}
	left := len(f.rows)
	for k := range fs {
		before := left
		left -= first[k]
		counts[k].Left = left
		if left == 0 && before > 0 {
			counts[k].Fix = fs[k].fix
		}
		if left == 0 && before > 0 && fs[k].value != nil {
			counts[k].Best = f.best(&fs[k], 1<<k-1)
		}
	}
	out := make([]int32, 0, left)
	for i, m := range f.mask {
		if m == 0 {
			out = append(out, int32(i))
		}
	}
	return out, counts
}

// best returns the best value among the rows that the filters before this one left.
func (f *Fleet) best(x *filter, before uint32) string {
	var best float64
	seen := false
	for i, m := range f.mask {
		if m&before != 0 {
			continue
		}
		v := x.value(i)
		if !seen || (x.lower && v < best) || (!x.lower && v > best) {
			best, seen = v, true
		}
	}
	return x.show(best)
}

// Misses returns the requirements of a job that one candidate does not meet, empty when it matches: the view
// of gridbeam node explain. It returns ErrBadJob.
func Misses(job Job, c Candidate) ([]Filter, error) {
	j, err := job.normal()
	if err != nil {
		return nil, err
	}
	f := NewFleet([]Candidate{c})
	_, counts := f.match(&j)
	var out []Filter
	for k, x := range f.filters(&j) {
		if counts[k].Removed > 0 {
			if x.value != nil {
				counts[k].Best = x.show(x.value(0))
			}
			out = append(out, counts[k])
		}
	}
	return out, nil
}

func bytesText(b uint64) string {
	for _, u := range []struct {
		n    uint64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if b >= u.n {
			return fmt.Sprintf("%.3g%s", float64(b)/float64(u.n), u.name)
		}
	}
	return fmt.Sprintf("%dB", b)
}

func priceText(u uint64) string { return fmt.Sprintf("$%.4g/h", float64(u)/1e6) }
