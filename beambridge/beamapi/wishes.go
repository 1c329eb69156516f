package beamapi

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

// wishes are what one source of a request asks of nodes and money beyond Beam's plain fields. A zero field asks nothing.
type wishes struct {
	gpu           protocol.GPUNames
	minVRAM       protocol.VRAM
	minReputation float64
	regions       []string
	hosts         []string
	nodes         protocol.NodeRange
	maxRTT        protocol.Duration
	where         string
	redundancy    uint32
	prefer        string
	maxSpend      *protocol.Money
	life          protocol.Duration
	pool          string
	resultAny     bool
	resultAllow   []string
}

// poolWishes reads RNP-005's options, as Beam's Pool has them.
func poolWishes(p *beamwire.PoolConfig) (wishes, error) {
	w := wishes{pool: cmp.Or(p.GetSelector(), p.GetName()), hosts: p.GetProviders()}
	reserved := p.GetNodes() > 0 || p.GetTtl() != "" || p.GetMaxSpend() != 0 || len(p.GetProviders()) > 0 || len(p.GetRegions()) > 0 || p.GetMinReliability() != 0
	if reserved && (p.GetSelector() == "" || p.GetSelector() == p.GetName()) {
		w.pool = "" // a name for the options themselves, not for an operator's policy
	}
	var err error
	if w.gpu, err = gpuNames("pool.gpu", p.GetGpu()); err != nil {
		return w, err
	}
	if n := p.GetNodes(); n > 0 {
		w.nodes = protocol.NodeRange{Min: 1, Max: n}
	}
	if t := p.GetTtl(); t != "" {
		if w.life, err = protocol.ParseDuration(t); err != nil || w.life <= 0 {
			return w, refuse("pool.ttl: %.64q is no length of time, such as 90m or 2h", t)
		}
	}
	switch m := p.GetMaxSpend(); {
	case m == 0:
	case !(m > 0 && m <= 1e9):
		return w, refuse("pool.max_spend: %g is no amount of US dollars", m)
	default:
		micro := protocol.Money(math.Floor(m * 1e6))
		if micro < 1 {
			return w, refuse("pool.max_spend: %g is less than a millionth of a US dollar", m)
		}
		w.maxSpend = &micro
	}
	if w.regions, err = places("pool.regions", p.GetRegions()); err != nil {
		return w, err
	}
	if r := p.GetMinReliability(); !(r >= 0 && r <= 1) {
		return w, refuse("pool.min_reliability: %g is no number of 0 to 1", r)
	}
	w.minReputation = p.GetMinReliability()
	return w, nil
}

// and joins two sources; where both ask, the stricter holds and sets intersect. Its argument is the closer one: its order
// of GPUs is that of preference.
func (w wishes) and(o wishes) (wishes, error) {
	var err error
	if w.gpu, err = bothGPUs(o.gpu, w.gpu); err != nil {
		return w, err
	}
	w.minVRAM = max(w.minVRAM, o.minVRAM)
	w.minReputation = max(w.minReputation, o.minReputation)
	if w.regions, err = bothPlaces(w.regions, o.regions); err != nil {
		return w, err
	}
	if w.nodes, err = bothRanges(w.nodes, o.nodes); err != nil {
		return w, err
	}
	w.maxRTT = stricter(w.maxRTT, o.maxRTT)
	w.life = stricter(w.life, o.life)
	switch {
	case w.where == "":
		w.where = o.where
	case o.where != "":
		w.where = "(" + w.where + ") && (" + o.where + ")"
	}
	if len(w.hosts) == 0 {
		w.hosts = o.hosts
	} else if len(o.hosts) > 0 {
		w.hosts = slices.DeleteFunc(slices.Clone(w.hosts), func(h string) bool { return !slices.Contains(o.hosts, h) })
		if len(w.hosts) == 0 {
			return w, refuse("providers: nothing is in both lists")
		}
	}
	w.redundancy = max(w.redundancy, o.redundancy)
	w.prefer = cmp.Or(o.prefer, w.prefer)
	if w.maxSpend == nil || o.maxSpend != nil && *o.maxSpend < *w.maxSpend {
		w.maxSpend = o.maxSpend
	}
	if w.pool != "" && o.pool != "" && w.pool != o.pool {
		return w, refuse("pool %.64q and GRIDBEAM_POOL %.64q are two policies: name one", w.pool, o.pool)
	}
	w.pool = cmp.Or(o.pool, w.pool)
	w.resultAny = w.resultAny || o.resultAny
	w.resultAllow = append(slices.Clone(w.resultAllow), o.resultAllow...)
	return w, nil
}

// apply puts the wishes into a stub that has Beam's plain fields.
func (w wishes) apply(s *Stub) error {
	r, p, pol := &s.Job.Resources, &s.Job.Placement, &s.Job.Policy
	var err error
	if r.GPU, err = bothGPUs(w.gpu, r.GPU); err != nil {
		return err
	}
	r.MinVRAM = w.minVRAM
	if r.GPUCount == 0 && (len(r.GPU) > 0 || r.MinVRAM > 0) {
		r.GPUCount = 1
	}
	p.Nodes, p.MinReputation, p.MaxRTT, p.Where, p.HostType = w.nodes, w.minReputation, w.maxRTT, w.where, w.hosts
	for _, place := range w.regions {
		p.Regions = append(p.Regions, protocol.RegionShare{Place: place})
	}
	pol.Redundancy, pol.Prefer, pol.MaxSpend, pol.Deadline = w.redundancy, w.prefer, w.maxSpend, w.life
	s.Life, s.Pool = time.Duration(w.life), w.pool
	s.ResultAny, s.ResultAllow = w.resultAny, w.resultAllow
	return nil
}

// stricter is the shorter of two bounds, of which 0 is none.
func stricter(a, b protocol.Duration) protocol.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// bothRanges is the part that two ranges share; zero is every size.
func bothRanges(a, b protocol.NodeRange) (protocol.NodeRange, error) {
	switch none := (protocol.NodeRange{}); {
	case a == none:
		return b, nil
	case b == none:
		return a, nil
	}
	both := protocol.NodeRange{Min: max(a.Min, b.Min), Max: min(a.Max, b.Max)}
	if both.Min > both.Max {
		return both, refuse("nodes: %s and GRIDBEAM_NODES=%s have no size in common", a, b)
	}
	return both, nil
}

// gpuNames turns names into protocol's, in their order. Empty ones are skipped.
func gpuNames(field string, names []string) (out protocol.GPUNames, err error) {
	for _, name := range names {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		set, err := protocol.ResolveGPU(name)
		if err != nil {
			return nil, refuse("%s: %s", field, strings.TrimPrefix(err.Error(), "protocol: "))
		}
		if !slices.Contains(out, set.Alias) {
			out = append(out, set.Alias)
		}
	}
	return out, nil
}

// bothGPUs is what two lists of protocol's names share, in the order of the first; an empty list is every GPU, or none.
func bothGPUs(first, second protocol.GPUNames) (protocol.GPUNames, error) {
	if len(first) == 0 || len(second) == 0 {
		return append(slices.Clone(first), second...), nil
	}
	var both protocol.GPUNames
	add := func(name string) {
		if !slices.Contains(both, name) {
			both = append(both, name)
		}
	}
	for _, a := range first {
		for _, b := range second {
			x, errX := protocol.ResolveGPU(a)
			y, errY := protocol.ResolveGPU(b)
			switch {
			case errX != nil || errY != nil:
				return nil, refuse("gpu: %v", errors.Join(errX, errY))
			case y.Any || !x.Any && within(x, y):
				add(a)
			case x.Any || within(y, x):
				add(b)
			default:
				for _, slug := range x.Slugs {
					if y.Has(slug) {
						add(slug)
					}
				}
			}
		}
	}
	if len(both) == 0 {
		return nil, refuse("gpu: %s and %s have no GPU in common", strings.Join(first, ","), strings.Join(second, ","))
	}
	return both, nil
}

// within says that every model of x is one of y.
func within(x, y protocol.GPUSet) bool {
	return !slices.ContainsFunc(x.Slugs, func(slug string) bool { return !y.Has(slug) })
}

// places reads regions; their canonical names come back in order.
func places(field string, names []string) (out []string, err error) {
	for _, name := range names {
		p, err := protocol.ParsePlace(strings.TrimSpace(name))
		if err != nil {
			return nil, refuse("%s: %s", field, strings.TrimPrefix(err.Error(), "protocol: "))
		}
		out = append(out, p.String())
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// bothPlaces is what two lists of places share; an empty list is everywhere.
func bothPlaces(a, b []string) ([]string, error) {
	if len(a) == 0 || len(b) == 0 {
		return append(slices.Clone(a), b...), nil
	}
	var both []string
	for _, x := range a {
		for _, y := range b {
			p, errP := protocol.ParsePlace(x)
			q, errQ := protocol.ParsePlace(y)
			switch {
			case errP != nil || errQ != nil:
				return nil, refuse("regions: %v", errors.Join(errP, errQ))
			case lies(p, q):
				both = append(both, x)
			case lies(q, p):
				both = append(both, y)
			}
		}
	}
	if len(both) == 0 {
		return nil, refuse("regions: %s and %s have no place in common", strings.Join(a, ","), strings.Join(b, ","))
	}
	slices.Sort(both)
	return slices.Compact(both), nil
}

// lies says that a place is in another.
func lies(in, of protocol.Place) bool {
	switch {
	case of.Subdivision != "":
		return in == of
	case of.Country != "":
		return in.Country == of.Country
	}
	return in.Macro == of.Macro
}
