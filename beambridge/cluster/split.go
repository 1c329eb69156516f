package cluster

import (
	"cmp"
	"iter"
	"math"
)

// Bounds and aims of chunk sizes (scheduling.md 2).
const (
	// MinChunk is the least number of inputs in a chunk.
	MinChunk = 1
	// MaxChunk is the largest number of inputs in a chunk: its inputs have to fit one frame of a stream.
	MaxChunk = 10_000
	// AimSeconds is the predicted run time of a chunk on the slowest selected node: long enough that start
	// and dispatch vanish, short enough that a lost node costs little.
	AimSeconds = 30.0
	// PerNode is the least number of chunks per node, so that the tail can be balanced.
	PerNode = 4
)

// Pace is what is known about how fast a job runs when its next chunk is cut.
type Pace struct {
	// Nodes is the number of nodes that work on the job; 0 counts as 1.
	Nodes int
	// SecondsPerInput is the prediction for the slowest of them; 0 is unknown.
	SecondsPerInput float64
	// Chunk is the size that the job file asks for; 0 leaves the size to the rules below.
	Chunk uint64
	// Aim is the predicted run time of a chunk that is aimed at, in seconds; 0 is AimSeconds. Where somebody waits for
	// each result it is short, for results return with their chunk.
	Aim float64
}

// Size returns the number of inputs of the next chunk when remaining inputs of the job are not cut yet:
// guided self-scheduling (Polychronopoulos and Kuck 1987), remaining/(4 × nodes), so that early chunks are
// large and the tail is fine, but never more than Aim of predicted run time. A time under 20 s is what
// the rule of 4 chunks per node and the tail give when there is less work than that. An unknown pace
// gives 1, a probe.
func (p Pace) Size(remaining uint64) uint64 {
	if remaining == 0 {
		return 0
	}
	if p.Chunk > 0 {
		return min(p.Chunk, remaining)
	}
	if p.SecondsPerInput <= 0 || math.IsNaN(p.SecondsPerInput) {
		return MinChunk
	}
	size := remaining / (PerNode * uint64(max(p.Nodes, 1)))
	if aim := cmp.Or(p.Aim, AimSeconds) / p.SecondsPerInput; aim < float64(MaxChunk) {
		size = min(size, uint64(aim))
	}
	return min(max(size, MinChunk), MaxChunk, remaining)
}

// Known says whether a size can be chosen without a probe: the job file fixes it or a prediction exists.
func (p Pace) Known() bool { return p.Chunk > 0 || p.SecondsPerInput > 0 }

// Cutter cuts an input sequence into chunks, one at a time, from the front. It holds only what is not cut
// yet, normally one range; after a restart the holes between the chunks that were kept.
type Cutter struct {
	rest      []Range
	remaining uint64
}

// NewCutter returns a cutter for inputs [0, n) without those in the taken set, which may be nil.
func NewCutter(n uint64, taken *RangeSet) *Cutter {
	if taken == nil {
		taken = &RangeSet{}
	}
	c := &Cutter{rest: taken.Missing(n)}
	for _, r := range c.rest {
		c.remaining += r.Len()
	}
	return c
}

// Extend appends inputs [from, to) to the sequence: open inputs grow while the job runs.
func (c *Cutter) Extend(from, to uint64) {
	if from >= to {
		return
	}
	if k := len(c.rest) - 1; k >= 0 && c.rest[k].End == from {
		c.rest[k].End = to
	} else {
		c.rest = append(c.rest, Range{from, to})
	}
	c.remaining += to - from
}

// Remaining returns the number of inputs that are not cut yet.
func (c *Cutter) Remaining() uint64 { return c.remaining }

// Cut takes the next chunk off the sequence; false when nothing is left.
func (c *Cutter) Cut(p Pace) (Range, bool) {
	if c.remaining == 0 {
		return Range{}, false
	}
	r := &c.rest[0]
	size := min(p.Size(c.remaining), r.Len())
	out := Range{r.First, r.First + size}
	r.First += size
	c.remaining -= size
	if r.Len() == 0 {
		c.rest = c.rest[1:]
	}
	return out, true
}

// Split yields the chunks of n inputs at a pace that does not change. With an unknown pace each chunk is a
// probe of one input: cut as results return with a Cutter instead.
func Split(n uint64, p Pace) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		c := NewCutter(n, nil)
		for r, ok := c.Cut(p); ok; r, ok = c.Cut(p) {
			if !yield(r) {
				return
			}
		}
	}
}
