package cluster

import (
	"math/rand/v2"
	"testing"
)

// TestChunksCoverTheInputsExactlyOnce cuts random sequences at paces that change while they are cut and adds
// up what came out.
func TestChunksCoverTheInputsExactlyOnce(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := r.Uint64N(20_000)
		var taken RangeSet
		for range r.IntN(5) { // what a restart finds done already
			if n > 0 {
				a := r.Uint64N(n)
				taken.Add(Range{a, min(n, a+1+r.Uint64N(50))})
			}
		}
		seen := make([]int, n)
		for _, x := range taken.Ranges() {
			for i := x.First; i < x.End; i++ {
				seen[i]++
			}
		}
		c := NewCutter(n, &taken)
		for {
			p := Pace{Nodes: r.IntN(20), SecondsPerInput: []float64{0, 0.001, 0.5, 3, 300}[r.IntN(5)]}
			if r.IntN(10) == 0 {
				p.Chunk = 1 + r.Uint64N(20_000)
			}
			x, ok := c.Cut(p)
			if !ok {
				break
			}
			if x.Len() == 0 || (p.Chunk == 0 && x.Len() > MaxChunk) {
				t.Fatalf("seed %d: chunk %v of pace %+v", seed, x, p)
			}
			for i := x.First; i < x.End; i++ {
				seen[i]++
			}
		}
		for i, k := range seen {
			if k != 1 {
				t.Fatalf("seed %d: input %d of %d is in %d chunks", seed, i, n, k)
			}
		}
	}
}

func TestChunkSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		remaining uint64
		p         Pace
		want      uint64
	}{
		{"nothing known is a probe", 1000, Pace{Nodes: 4}, 1},
		{"the job file decides", 1000, Pace{Nodes: 4, Chunk: 7, SecondsPerInput: 9}, 7},
		{"not more than is left", 3, Pace{Nodes: 4, Chunk: 7}, 3},
		{"30 s of predicted run time", 100_000, Pace{Nodes: 4, SecondsPerInput: 0.5}, 60},
		{"at least one input", 100_000, Pace{Nodes: 4, SecondsPerInput: 100}, 1},
		{"four chunks a node before 30 s", 160, Pace{Nodes: 4, SecondsPerInput: 0.5}, 10},
		{"milliseconds: guided", 16_000, Pace{Nodes: 4, SecondsPerInput: 0.001}, 1000},
		{"never above 10,000", 10_000_000, Pace{Nodes: 4, SecondsPerInput: 0.0001}, 10_000},
		{"no nodes yet counts as one", 40, Pace{SecondsPerInput: 0.001}, 10},
		{"nothing left", 0, Pace{Nodes: 1}, 0},
	} {
		if got := c.p.Size(c.remaining); got != c.want {
			t.Errorf("%s: size %d, want %d", c.name, got, c.want)
		}
	}
}

// TestEachNodeGetsAtLeastFourChunks holds whenever there are four inputs a node.
func TestEachNodeGetsAtLeastFourChunks(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		nodes := 1 + r.IntN(30)
		n := uint64(PerNode*nodes) + r.Uint64N(5000)
		k := 0
		for range Split(n, Pace{Nodes: nodes, SecondsPerInput: r.Float64()}) {
			k++
		}
		if k < PerNode*nodes {
			t.Fatalf("seed %d: %d inputs on %d nodes became %d chunks", seed, n, nodes, k)
		}
	}
}

func TestTenMillionSingleInputsAreCutInConstantMemory(t *testing.T) {
	var taken RangeSet
	c := NewCutter(10_000_000, nil)
	for {
		x, ok := c.Cut(Pace{Chunk: 1})
		if !ok {
			break
		}
		if !taken.Add(x) {
			t.Fatalf("%v was cut twice", x)
		}
	}
	if got := taken.Ranges(); len(got) != 1 || taken.Len() != 10_000_000 {
		t.Fatalf("done set is %d ranges of %d inputs, want one of 10,000,000", len(got), taken.Len())
	}
}

func TestRangeSetAgainstABitmap(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		var s RangeSet
		bits := make([]bool, 64)
		for range 40 {
			x := Range{First: r.Uint64N(60)}
			x.End = x.First + r.Uint64N(5)
			x.End = min(x.End, 64)
			fresh := x.First < x.End
			for i := x.First; i < x.End; i++ {
				fresh = fresh && !bits[i]
			}
			if s.Overlaps(x) == fresh && x.First < x.End {
				t.Fatalf("seed %d: Overlaps(%v) is wrong", seed, x)
			}
			if s.Add(x) != fresh {
				t.Fatalf("seed %d: Add(%v) = %v", seed, x, !fresh)
			}
			for i := x.First; fresh && i < x.End; i++ {
				bits[i] = true
			}
		}
		n := uint64(0)
		for i, b := range bits {
			if b {
				n++
			}
			if s.Contains(uint64(i)) != b {
				t.Fatalf("seed %d: Contains(%d) is wrong", seed, i)
			}
		}
		miss := uint64(0)
		for _, m := range s.Missing(64) {
			miss += m.Len()
		}
		if s.Len() != n || miss != 64-n {
			t.Fatalf("seed %d: %d inputs and %d missing, want %d and %d", seed, s.Len(), miss, n, 64-n)
		}
	}
}
