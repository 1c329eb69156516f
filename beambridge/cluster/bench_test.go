package cluster

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// rnp004Fleet is RNP-004's published size: 138,400 GPUs in five pools, a node each, spread over places and
// operators.
func rnp004Fleet() []Candidate {
	r := rand.New(rand.NewPCG(4, 4))
	pools := []struct {
		n   int
		gpu GPU
	}{
		{60_000, GPU{"nvidia-rtx-3090-24gb", 1, 24}},
		{30_000, GPU{"nvidia-rtx-4090-24gb", 1, 24}},
		{20_000, GPU{"nvidia-a100-80gb-sxm", 1, 80}},
		{18_400, GPU{"nvidia-rtx-a6000-48gb", 1, 48}},
		{10_000, GPU{"nvidia-h100-80gb-sxm", 1, 80}},
	}
	var out []Candidate
	for _, p := range pools {
		for range p.n {
			c := good(fmt.Sprintf("peer-%06d-%016x", len(out), r.Uint64()))
			c.GPUs = []GPU{p.gpu}
			c.Group = fmt.Sprintf("op%d", r.IntN(20_000))
			c.Region = pickOne(r, "us", "us", "eu", "ap")
			c.Country = map[string]string{"us": "US", "eu": "DE", "ap": "JP"}[c.Region]
			c.Tier = Tier(1 + r.IntN(4))
			c.RTT = time.Duration(1+r.IntN(200)) * time.Millisecond
			c.O, c.P = 0.5+r.Float64()/2, 0.5+r.Float64()/2
			c.Price, c.Work, c.SecondsPerInput = 100_000+r.Uint64N(400_000), r.Uint64N(1000), 5+10*r.Float64()
			out = append(out, c)
		}
	}
	r.Shuffle(len(out), func(a, b int) { out[a], out[b] = out[b], out[a] })
	return out
}

// rnp004Job is the request of RNP-004's example: 800 RTX 3090, nine tenths of them in one region, ping up to
// 40 ms, a tier of 500 MB/s, which is ultra here.
func rnp004Job() Job {
	return Job{
		Kind: KindMap, GPUModels: []string{"nvidia-rtx-3090-24gb"}, GPUCount: 1, MinNodes: 800, MaxNodes: 800,
		Regions: []Share{{"us", 90}, {"eu", 10}}, MaxRTT: 40 * time.Millisecond, Bandwidth: TierUltra, Chunks: 10_000,
	}
}

// BenchmarkSelect138k is select.138k_ms on a warm fleet; every plan is checked outside the clock. The cold
// case builds the columns too; random is the baseline: any 800 that match, shuffled.
func BenchmarkSelect138k(b *testing.B) {
	cs := rnp004Fleet()
	job := rnp004Job()
	f := NewFleet(cs)
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, x, err := f.Select(job, noon, 1)
			if err != nil || len(p.Members) != 800 {
				b.Fatal(err, x)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/select")
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := Select(job, cs, noon, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("random", func(b *testing.B) {
		r := rand.New(rand.NewPCG(1, 1))
		for b.Loop() {
			var rows []int
			for i := range cs {
				if violation(job, cs[i]) == "" {
					rows = append(rows, i)
				}
			}
			r.Shuffle(len(rows), func(a, b int) { rows[a], rows[b] = rows[b], rows[a] })
			if len(rows) < 800 {
				b.Fatal(len(rows))
			}
		}
	})
}

func TestPlanAtRNP004SizeIsValid(t *testing.T) {
	cs := rnp004Fleet()
	p, x, err := Select(rnp004Job(), cs, noon, 1)
	if err != nil || len(p.Members) != 800 {
		t.Fatal(err, x)
	}
	checkPlan(t, 0, rnp004Job(), cs, p)
	t.Log(x.Summary())
}

// BenchmarkGang is the worst case of one gang search: its budget is spent whatever the size.
func BenchmarkGang(b *testing.B) {
	for _, n := range []int{8, 32, 128} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			var cs []Candidate
			for i := range 1000 {
				c := good(fmt.Sprintf("n%d", i))
				c.SecondsPerInput = 5 + 10*r.Float64()
				cs = append(cs, c)
			}
			f := NewFleet(cs)
			job := Job{Kind: KindGang, MinNodes: n, MaxNodes: n, Link: func(x, y *Candidate) Link {
				return Link{Seconds: float64((peerHash(string(x.Peer))^peerHash(string(y.Peer)))%1000) / 100}
			}}
			for b.Loop() {
				if _, x, err := f.Select(job, noon, 1); err != nil {
					b.Fatal(err, x)
				}
			}
		})
	}
}
