package cluster

import (
	"math"
	"slices"
	"time"
)

// Link is what is known or estimated of the path between two members of a gang.
type Link struct {
	RTT     time.Duration // RTT is round trip; compared with the job's max_rtt.
	Seconds float64       // Seconds is what the path costs one round of the gang, by its bandwidth and RTT.
}

// swapBudget bounds the work of one gang search in link look-ups: about 10 ms on one core of 2026. A count
// and not a clock, so that equal calls give equal plans.
const swapBudget = 3_500_000

// gangSearch minimises max E + slowest pair over sets of n finalists.
type gangSearch struct {
	e      []float64
	pair   []float64 // k × k, +Inf where the link breaks max_rtt
	place  []int32
	group  []int32
	limit  int // of members of one group
	k      int
	budget int
}

// cost orders sets: the objective first, then the sums, so that a swap which improves what is not yet the
// slowest still counts as progress.
type cost struct{ worst, sum float64 }

func (a cost) less(b cost) bool {
	if a.worst != b.worst {
		return a.worst < b.worst
	}
	return a.sum < b.sum-1e-12
}

func (s *gangSearch) at(i, j int) float64 { return s.pair[i*s.k+j] }

func (s *gangSearch) cost(set []int) cost {
	var maxE, maxP, sum float64
	for a, i := range set {
		maxE = max(maxE, s.e[i])
		sum += s.e[i]
		for _, j := range set[:a] {
			p := s.at(i, j)
			maxP = max(maxP, p)
			sum += min(p, 1e9)
		}
	}
	s.budget -= len(set) * len(set) / 2
	return cost{maxE + maxP, sum}
}

// fits says whether finalist b may stand in the place of set[out] under places and operator limits.
func (s *gangSearch) fits(set []int, out, b int) bool {
	if slices.Contains(set, b) || s.place[b] != s.place[set[out]] {
		return false
	}
	n := 1
	for k, i := range set {
		if k != out && s.group[i] == s.group[b] {
			n++
		}
	}
	return n <= s.limit
}

// greedy builds a set from one member on, each time adding what hurts least; nil where limits stop it.
func (s *gangSearch) greedy(start int, quota []int) []int {
	quota = slices.Clone(quota)
	if quota[s.place[start]] == 0 {
		return nil
	}
	quota[s.place[start]]--
	set := []int{start}
	left := 0
	for _, q := range quota {
		left += q
	}
	count := map[int32]int{s.group[start]: 1}
	maxE, maxP := s.e[start], 0.0
	for ; left > 0; left-- {
		best, bestCost, bestP := -1, cost{math.Inf(1), math.Inf(1)}, 0.0
		for b := range s.k {
			if quota[s.place[b]] == 0 || count[s.group[b]] >= s.limit || slices.Contains(set, b) {
				continue
			}
			p, sum := maxP, s.e[b]
			for _, i := range set {
				p = max(p, s.at(i, b))
				sum += min(s.at(i, b), 1e9)
			}
			if c := (cost{max(maxE, s.e[b]) + p, sum}); best < 0 || c.less(bestCost) {
				best, bestCost, bestP = b, c, p
			}
		}
		s.budget -= s.k * len(set)
		if best < 0 {
			return nil
		}
		set = append(set, best)
		quota[s.place[best]]--
		count[s.group[best]]++
		maxE, maxP = max(maxE, s.e[best]), bestP
	}
	return set
}

// improve swaps one member, and where the set is small two at a time, until nothing is better.
func (s *gangSearch) improve(set []int) ([]int, cost) {
	cur := s.cost(set)
	for s.budget > 0 {
		if next, c, ok := s.swap(set, cur); ok {
			set, cur = next, c
			continue
		}
		if len(set)*s.k <= 256 {
			if next, c, ok := s.swap2(set, cur); ok {
				set, cur = next, c
				continue
			}
		}
		break
	}
	return set, cur
}

func (s *gangSearch) swap(set []int, cur cost) ([]int, cost, bool) {
	best, bestCost := []int(nil), cur
	for out := range set {
		for b := range s.k {
			if s.budget <= 0 {
				break
			}
			if !s.fits(set, out, b) {
				continue
			}
			trial := slices.Clone(set)
			trial[out] = b
			if c := s.cost(trial); c.less(bestCost) {
				best, bestCost = trial, c
			}
		}
	}
	return best, bestCost, best != nil
}

func (s *gangSearch) swap2(set []int, cur cost) ([]int, cost, bool) {
	for out := range set {
		for b := range s.k {
			if !s.fits(set, out, b) {
				continue
			}
			trial := slices.Clone(set)
			trial[out] = b
			if next, c, ok := s.swap(trial, cur); ok {
				return next, c, true
			}
		}
	}
	return nil, cur, false
}

// run searches from the given set and from greedy sets of up to 16 starts.
func (s *gangSearch) run(first []int, quota []int) ([]int, cost) {
	best, bestCost := s.improve(slices.Clone(first))
	for start := 0; start < min(s.k, 16) && s.budget > 0; start++ {
		g := s.greedy(start, quota)
		if g == nil {
			continue
		}
		if set, c := s.improve(g); c.less(bestCost) {
			best, bestCost = set, c
		}
	}
	slices.Sort(best)
	return best, bestCost
}

// gang chooses ranks: the largest size within nodes that matches, then the set of that size with the least
// max E + slowest pair. Links are asked for among finalists only.
func (p *picker) gang() (at []int, short []int, seconds float64) {
	n := p.j.MaxNodes
	if n == 0 {
		n = p.j.MinNodes
	}
	n = min(n, max(len(p.list), p.j.MinNodes))
	for ; ; n-- {
		if at, short = p.pick(n); short == nil || n <= p.j.MinNodes {
			break
		}
	}
	if short != nil {
		return nil, short, 0
	}
	if p.j.Link == nil || n == 1 {
		return at, nil, p.list[at[len(at)-1]].E
	}
	final := p.finalists(at)
	s := p.search(final, at)
	first := make([]int, len(at))
	for k, i := range at {
		first[k] = slices.Index(final, i)
	}
	set, c := s.run(first, p.quotas(n))
	if math.IsInf(c.worst, 1) {
		return nil, p.quotas(n), 0
	}
	at = at[:0]
	for _, k := range set {
		at = append(at, final[k])
	}
	slices.Sort(at)
	return at, nil, c.worst
}

// finalists are the list positions among which links are looked at: the picked set and the next best of
// each place.
func (p *picker) finalists(at []int) []int {
	final := slices.Clone(at)
	seen := map[int]bool{}
	room := make([]int, max(1, len(p.j.Regions)))
	for i := range room {
		room[i] = 48
	}
	for _, i := range at {
		seen[i] = true
	}
	for i := range p.list {
		r := 0
		if p.shared {
			r = int(p.list[i].place)
		}
		if !seen[i] && room[r] > 0 {
			room[r]--
			final = append(final, i)
		}
	}
	slices.Sort(final)
	return final
}

func (p *picker) search(final, at []int) *gangSearch {
	k := len(final)
	s := &gangSearch{
		e: make([]float64, k), pair: make([]float64, k*k), place: make([]int32, k), group: make([]int32, k),
		limit: p.capOf(len(at)), k: k, budget: swapBudget,
	}
	for a, i := range final {
		s.e[a], s.group[a] = p.list[i].E, p.groups[i]
		if p.shared {
			s.place[a] = p.list[i].place
		}
		for b := range a {
			ca, cb := &p.f.rows[p.list[i].row], &p.f.rows[p.list[final[b]].row]
			l := p.j.Link(ca, cb)
			sec := l.Seconds
			if p.j.MaxRTT > 0 && l.RTT > p.j.MaxRTT {
				sec = math.Inf(1)
			}
			s.pair[a*k+b], s.pair[b*k+a] = sec, sec
		}
	}
	held := map[int32]int{}
	for _, i := range at { // where caps had to give way they give way here too
		held[p.groups[i]]++
		s.limit = max(s.limit, held[p.groups[i]])
	}
	return s
}
