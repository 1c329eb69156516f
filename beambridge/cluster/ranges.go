package cluster

import (
	"fmt"
	"slices"
	"sort"
)

// Range is a half-open range [First, End) of a job's input sequence.
type Range struct {
	First uint64 `json:"first"` // First is the index of the first input.
	End   uint64 `json:"end"`   // End is the index after the last input.
}

// Len returns the number of inputs in the range.
func (r Range) Len() uint64 { return r.End - r.First }

// String returns the range as first..end with an exclusive end, e.g. [0,64).
func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.First, r.End) }

// RangeSet is a set of inputs kept as disjoint, sorted, merged ranges: a job of ten million finished chunks
// costs as much memory as it has holes. The zero value is empty.
type RangeSet struct {
	rs  []Range
	len uint64
}

// Len returns the number of inputs in the set.
func (s *RangeSet) Len() uint64 { return s.len }

// Ranges returns a copy of the set's ranges in ascending order.
func (s *RangeSet) Ranges() []Range { return slices.Clone(s.rs) }

// Contains says whether input i is in the set.
func (s *RangeSet) Contains(i uint64) bool {
	k := sort.Search(len(s.rs), func(k int) bool { return s.rs[k].End > i })
	return k < len(s.rs) && s.rs[k].First <= i
}

// Overlaps says whether any input of r is in the set.
func (s *RangeSet) Overlaps(r Range) bool {
	k := sort.Search(len(s.rs), func(k int) bool { return s.rs[k].End > r.First })
	return k < len(s.rs) && s.rs[k].First < r.End
}

// Add puts r into the set and reports whether all of it was new; a range that overlaps is refused whole, for
// nothing may be counted twice. An empty range is refused.
func (s *RangeSet) Add(r Range) bool {
	if r.First >= r.End || s.Overlaps(r) {
		return false
	}
	k := sort.Search(len(s.rs), func(k int) bool { return s.rs[k].First >= r.First })
	left := k > 0 && s.rs[k-1].End == r.First
	right := k < len(s.rs) && s.rs[k].First == r.End
	switch {
	case left && right:
		s.rs[k-1].End = s.rs[k].End
		s.rs = slices.Delete(s.rs, k, k+1)
	case left:
		s.rs[k-1].End = r.End
	case right:
		s.rs[k].First = r.First
	default:
		s.rs = slices.Insert(s.rs, k, r)
	}
	s.len += r.Len()
	return true
}

// Missing returns the ranges of [0, n) that are not in the set, ascending.
func (s *RangeSet) Missing(n uint64) []Range {
	var out []Range
	var at uint64
	for _, r := range s.rs {
		if r.First >= n {
			break
		}
		if r.First > at {
			out = append(out, Range{at, r.First})
		}
		at = r.End
	}
	if at < n {
		out = append(out, Range{at, n})
	}
	return out
}
