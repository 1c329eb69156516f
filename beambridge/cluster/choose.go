package cluster

import (
	"fmt"
	"math"
	"slices"
	"sort"
)

// enough is the part of the predicted makespan that one more node has to save to be worth taking.
const enough = 0.02

// LargestRemainder splits n seats by weights (Hamilton's method): whole parts first, the rest to the largest
// remainders, ties to the earlier. Weights that are all zero give nothing.
func LargestRemainder(n int, weights []float64) []int {
	out := make([]int, len(weights))
	var sum float64
	for _, w := range weights {
		sum += w
	}
	if !(sum > 0) || n <= 0 {
		return out
	}
	rem := make([]float64, len(weights))
	left := n
	for i, w := range weights {
		exact := float64(n) * w / sum
		// 0.9 × 800 must be 720 although 0.9 has no exact binary form.
		out[i] = int(math.Floor(exact + 1e-9))
		rem[i] = exact - float64(out[i])
		left -= out[i]
	}
	idx := make([]int, len(weights))
	for i := range idx {
		idx[i] = i
	}
	sort.SliceStable(idx, func(a, b int) bool { return rem[idx[a]] > rem[idx[b]]+1e-12 })
	for k := 0; left > 0; k, left = k+1, left-1 {
		out[idx[k%len(idx)]]++
	}
	return out
}

// picker takes sets of a given size off a ranked list.
type picker struct {
	f       *Fleet
	j       *Job
	list    []ranked
	groups  []int32 // list position → dense number of its group
	ngroups int
	shared  bool // the job's regions have shares
	taken   []int
	count   []int
	skipped []int
}

func newPicker(f *Fleet, j *Job, list []ranked) *picker {
	p := &picker{f: f, j: j, list: list, groups: make([]int32, len(list))}
	ids := map[string]int32{}
	for i := range list {
		c := &f.rows[list[i].row]
		key := groupKey(c)
		id, ok := ids[key]
		if !ok {
			id = int32(len(ids))
			ids[key] = id
		}
		p.groups[i] = id
	}
	p.ngroups = len(ids)
	p.count = make([]int, p.ngroups)
	for _, s := range j.Regions {
		p.shared = p.shared || s.Weight > 0
	}
	return p
}

// groupKey names the operator; a node without a known one is an operator of its own.
func groupKey(c *Candidate) string {
	if c.Group == "" {
		return "\x00" + string(c.Peer)
	}
	return c.Group
}

// quotas returns how many of n nodes each share gets.
func (p *picker) quotas(n int) []int {
	if !p.shared {
		return []int{n}
	}
	w := make([]float64, len(p.j.Regions))
	for i, s := range p.j.Regions {
		w[i] = s.Weight
	}
	return LargestRemainder(n, w)
}

// capOf is how many of n nodes one operator may have.
func (p *picker) capOf(n int) int {
	if n <= 4 {
		return n
	}
	return max(1, int(float64(n)*p.j.MaxShare+1e-9))
}

// pick returns the list positions of the best n nodes under quotas and operator caps, ascending; the shares
// that could not be filled otherwise. Caps give way when nobody else matches, quotas do not.
func (p *picker) pick(n int) (taken, short []int) {
	quota, limit := p.quotas(n), p.capOf(n)
	clear(p.count)
	p.taken, p.skipped = p.taken[:0], p.skipped[:0]
	open := n
	for i := range p.list {
		if open == 0 {
			break
		}
		r := 0
		if p.shared {
			r = int(p.list[i].place)
		}
		if quota[r] == 0 {
			continue
		}
		if g := p.groups[i]; p.count[g] < limit {
			p.count[g]++
			quota[r]--
			open--
			p.taken = append(p.taken, i)
		} else {
			p.skipped = append(p.skipped, i)
		}
	}
	for _, i := range p.skipped {
		r := 0
		if p.shared {
			r = int(p.list[i].place)
		}
		if quota[r] > 0 {
			quota[r]--
			open--
			p.taken = append(p.taken, i)
		}
	}
	if open > 0 {
		return nil, quota
	}
	slices.Sort(p.taken)
	return slices.Clone(p.taken), nil
}

func (p *picker) span(at []int) float64 {
	rs := make([]ranked, len(at))
	for k, i := range at {
		rs[k] = p.list[i]
	}
	return makespan(p.j, rs, p.f)
}

// grow takes nodes in order until one more saves at most 2 % of the makespan (map, service and task).
func (p *picker) grow() (at []int, short []int) {
	least, most := p.j.MinNodes, p.j.MaxNodes
	if most == 0 || most > len(p.list) {
		most = len(p.list)
	}
	if p.j.Kind == KindTask {
		least, most = 1, max(1, min(p.j.Copies, most))
	}
	at, short = p.pick(least)
	if short != nil {
		return nil, short
	}
	t := p.span(at)
	for n := least + 1; n <= most; n++ {
		next, lack := p.pick(n)
		if lack != nil {
			break
		}
		t2 := p.span(next)
		if (t-t2)/t <= enough {
			break
		}
		at, t = next, t2
	}
	return at, nil
}

// independent says whether two nodes may hold copies of one chunk: other operator, other site, other wallet.
func independent(a, b *Candidate) bool {
	return groupKey(a) != groupKey(b) &&
		(a.Site == "" || a.Site != b.Site) && (a.Wallet == "" || a.Wallet != b.Wallet)
}

// spread counts, greedily in order, how many members are pairwise independent, up to want.
func (p *picker) spread(at []int, want int) (kept []int) {
	for _, i := range at {
		c := &p.f.rows[p.list[i].row]
		if len(kept) < want && !slices.ContainsFunc(kept, func(k int) bool { return !independent(c, &p.f.rows[p.list[k].row]) }) {
			kept = append(kept, i)
		}
	}
	return kept
}

// diversify makes a set hold as many independent nodes as a chunk has copies, by adding the next best
// independent ones or, at the size limit, exchanging them for the worst that are not needed.
func (p *picker) diversify(at []int) ([]int, error) {
	want := p.j.Copies
	if want <= 1 {
		return at, nil
	}
	kept := p.spread(at, want)
	for len(kept) < want {
		next := -1
		for i := range p.list {
			c := &p.f.rows[p.list[i].row]
			if !slices.Contains(at, i) && !slices.ContainsFunc(kept, func(k int) bool { return !independent(c, &p.f.rows[p.list[k].row]) }) {
				next = i
				break
			}
		}
		if next < 0 {
			return nil, fmt.Errorf("%w: copies of a chunk need %d, %d are there", ErrDomains, want, len(kept))
		}
		full := p.j.MaxNodes > 0 && len(at) >= p.j.MaxNodes || p.shared || p.j.Kind == KindTask && len(at) >= want
		if full {
			drop := -1
			for k, i := range slices.Backward(at) {
				same := !p.shared || p.list[i].place == p.list[next].place
				if same && !slices.Contains(kept, i) {
					drop = k
					break
				}
			}
			if drop < 0 {
				return nil, fmt.Errorf("%w: a cluster of %d nodes cannot hold %d", ErrDomains, len(at), want)
			}
			at = slices.Delete(at, drop, drop+1)
		}
		at = append(at, next)
		slices.Sort(at)
		kept = append(kept, next)
	}
	return at, nil
}
