package cluster

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// good is a candidate that nothing is wrong with.
func good(name string) Candidate {
	return Candidate{
		Peer: protocol.PeerID(name), Group: "op-" + name, Ready: true, Fresh: true, Where: true,
		GPUs: []GPU{{Model: "nvidia-rtx-3090-24gb", Count: 1, VRAMGB: 24}}, Runs: [backends]Isolation{IsolationStrong, IsolationShared, IsolationShared},
		Cores: 8, Memory: 32 << 30, Disk: 500 << 30, Slots: 1, Region: "eu", Country: "DE", Tier: TierHigh,
		Labels: []string{"host.type=miner"}, O: 0.95, P: 0.9, Standing: StandingVetted, RTT: 20 * time.Millisecond, Price: 200_000, SecondsPerInput: 10,
	}
}

func pickOne[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }

func randomCandidate(r *rand.Rand, i int) Candidate {
	c := good(fmt.Sprintf("n%d", i))
	c.Group = fmt.Sprintf("op%d", r.IntN(12))
	c.Site = pickOne(r, "", "s1", "s2", "s3")
	c.Wallet = pickOne(r, "", "", "w1", "w2")
	c.Ready, c.Fresh, c.Where = r.IntN(12) > 0, r.IntN(12) > 0, r.IntN(6) > 0
	c.GPUs = nil
	for range r.IntN(3) {
		g := pickOne(r, GPU{"nvidia-rtx-3090-24gb", 1, 24}, GPU{"nvidia-h100-80gb-sxm", 8, 80}, GPU{"nvidia-rtx-4090-24gb", 2, 24})
		g.Count = 1 + r.IntN(8)
		c.GPUs = append(c.GPUs, g)
	}
	for b := range c.Runs {
		c.Runs[b] = Isolation(r.IntN(4))
	}
	c.Cores, c.Memory, c.Disk = float64(r.IntN(32)), r.Uint64N(64<<30), r.Uint64N(100<<30)
	c.DataMissing, c.ImageMissing = r.Uint64N(20<<30), r.Uint64N(1<<30)
	c.Bandwidth = pickOne(r, 0, 1e7, 1e8, 1e9)
	c.Slots, c.Queue = r.IntN(4), time.Duration(r.IntN(3))*time.Second
	c.Region, c.Country = pickOne(r, "eu", "us", "ap"), pickOne(r, "DE", "US", "JP")
	c.Tier, c.RTT = Tier(r.IntN(5)), time.Duration(r.IntN(100))*time.Millisecond
	c.Labels = pickOne(r, nil, []string{"host.type=datacenter"}, []string{"host.type=miner", "compliance=gdpr"})
	c.O, c.P = r.Float64(), r.Float64()
	c.Standing, c.Checks, c.Work = Standing(r.IntN(4)), r.IntN(30), r.Uint64N(10)
	c.Price, c.SecondsPerInput = r.Uint64N(1_000_000), r.Float64()*20
	return c
}

func randomJob(r *rand.Rand) Job {
	j := Job{
		Kind: pickOne(r, KindMap, KindMap, KindTask, KindService, KindGang), Backend: Backend(r.IntN(3)), Isolation: Isolation(r.IntN(3)),
		Prefer: pickOne(r, "", PreferFast, PreferBalanced, PreferCheap), AllowUnvetted: pickOne(r, "", UnvettedReplicated, UnvettedSingle, UnvettedNever),
		Chunks: r.Uint64N(200), ChunkInputs: 1 + r.Uint64N(5), MinNodes: r.IntN(6), Copies: r.IntN(3),
	}
	if r.IntN(2) == 0 {
		j.MaxNodes = j.MinNodes + r.IntN(6)
	}
	if r.IntN(2) == 0 {
		j.GPUModels, j.GPUCount = []string{"nvidia-h100-80gb-sxm", "nvidia-rtx-3090-24gb"}[:1+r.IntN(2)], r.IntN(4)
	}
	if r.IntN(3) == 0 {
		j.MinVRAMGB = pickOne(r, 24, 40, 80)
	}
	if r.IntN(2) == 0 {
		j.Cores, j.Memory, j.Disk = float64(r.IntN(8)), r.Uint64N(16<<30), r.Uint64N(20<<30)
	}
	if r.IntN(2) == 0 {
		j.MinReputation = r.Float64() * 0.6
	}
	if r.IntN(3) == 0 {
		j.Regions = pickOne(r, []Share{{"us", 90}, {"eu", 10}}, []Share{{Region: "eu"}, {Region: "JP"}}, []Share{{"US", 1}, {"ap", 1}, {"eu", 1}})
	}
	if r.IntN(3) == 0 {
		j.MaxRTT = time.Duration(20+r.IntN(80)) * time.Millisecond
	}
	if r.IntN(4) == 0 {
		j.Bandwidth = Tier(r.IntN(3))
	}
	if r.IntN(4) == 0 {
		j.HostTypes = []string{"datacenter", "miner"}
	}
	if r.IntN(6) == 0 {
		j.Compliance = []string{"gdpr"}
	}
	if r.IntN(4) == 0 {
		j.Where = "gpu.compute >= 8.0"
	}
	if r.IntN(4) == 0 {
		j.MaxPrice = 300_000 + r.Uint64N(500_000)
	}
	if j.Kind == KindGang && r.IntN(2) == 0 {
		j.Link = func(a, b *Candidate) Link {
			h := peerHash(min(string(a.Peer), string(b.Peer)) + max(string(a.Peer), string(b.Peer)))
			return Link{RTT: time.Duration(h%60) * time.Millisecond, Seconds: float64(h%1000) / 100}
		}
	}
	return j
}

// violation is the oracle: the requirements once more, written for one node at a time.
func violation(j Job, c Candidate) string {
	need := j.GPUCount
	if need == 0 && (len(j.GPUModels) > 0 || j.MinVRAMGB > 0) {
		need = 1
	}
	gpu := need == 0 || slices.ContainsFunc(c.GPUs, func(g GPU) bool {
		return g.Count >= need && g.VRAMGB >= j.MinVRAMGB && (len(j.GPUModels) == 0 || slices.Contains(j.GPUModels, g.Model))
	})
	place := len(j.Regions) == 0 || slices.ContainsFunc(j.Regions, func(s Share) bool {
		return slices.ContainsFunc([]string{c.Region, c.Country, c.Subdivision}, func(at string) bool { return at != "" && strings.EqualFold(s.Region, at) })
	})
	host := len(j.HostTypes) == 0
	for _, h := range j.HostTypes {
		host = host || slices.Contains(c.Labels, "host.type="+h)
	}
	for _, h := range j.Compliance {
		host = host && slices.Contains(c.Labels, "compliance="+h)
	}
	switch {
	case !c.Ready || !c.Fresh || c.Standing == StandingBarred:
		return "state"
	case c.Runs[j.Backend] < max(j.Isolation, IsolationDev):
		return "isolation"
	case !gpu:
		return "gpu"
	case c.Cores < j.Cores || c.Memory < j.Memory || float64(c.Disk) < float64(j.Disk)+float64(c.DataMissing)+float64(c.ImageMissing):
		return "resources"
	case c.Slots == 0 && c.Queue == 0:
		return "slots"
	case j.Where != "" && !c.Where:
		return "where"
	case !place || !host:
		return "place"
	case j.MaxRTT > 0 && (c.RTT <= 0 || c.RTT > j.MaxRTT) || c.Tier < j.Bandwidth:
		return "network"
	case j.MaxPrice > 0 && c.Price > j.MaxPrice:
		return "price"
	case c.O < j.MinReputation:
		return "reputation"
	}
	return ""
}

func TestPlanNeverHoldsAViolatingNode(t *testing.T) {
	plans := 0
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 10))
		cs := make([]Candidate, r.IntN(150))
		for i := range cs {
			cs[i] = randomCandidate(r, i)
		}
		j := randomJob(r)
		p, x, err := Select(j, cs, noon, seed)
		match := 0
		for _, c := range cs {
			if violation(j, c) == "" {
				match++
			}
		}
		if x.Matching != match {
			t.Fatalf("seed %d: %d match, the oracle says %d: %s", seed, x.Matching, match, x.Summary())
		}
		if err != nil {
			if len(p.Members) > 0 || (match == 0) != errors.Is(err, ErrNoMatch) {
				t.Fatalf("seed %d: %d match, %d members, %v", seed, match, len(p.Members), err)
			}
			continue
		}
		plans++
		checkPlan(t, seed, j, cs, p)
	}
	if plans < 500 {
		t.Fatalf("only %d of 4000 random cases gave a plan: the test looks at too little", plans)
	}
}

func checkPlan(t *testing.T, seed uint64, j Job, cs []Candidate, p Plan) {
	t.Helper()
	seen := map[int]bool{}
	vetted := slices.ContainsFunc(cs, func(c Candidate) bool { return violation(j, c) == "" && c.Standing >= StandingVetted })
	for _, m := range slices.Concat(p.Members, p.Spares, p.Newcomer) {
		if v := violation(j, cs[m.Row]); v != "" || seen[m.Row] || cs[m.Row].Peer != m.Peer {
			t.Fatalf("seed %d: member %s violates %q, or is there twice", seed, m.Peer, v)
		}
		seen[m.Row] = true
	}
	for _, m := range p.Members {
		if vetted && cs[m.Row].Standing < StandingVetted && j.AllowUnvetted != UnvettedSingle {
			t.Fatalf("seed %d: newcomer %s is a member beside vetted nodes", seed, m.Peer)
		}
	}
	n := len(p.Members)
	if j.Kind != KindTask && n < max(1, j.MinNodes) || (j.MaxNodes > 0 && n > j.MaxNodes) {
		t.Fatalf("seed %d: %d members for nodes %d..%d", seed, n, j.MinNodes, j.MaxNodes)
	}
	if shares := j.Regions; len(shares) > 0 && shares[0].Weight > 0 {
		w := make([]float64, len(shares))
		got := make([]int, len(shares))
		for i, s := range shares {
			w[i] = s.Weight
		}
		for _, m := range p.Members {
			got[slices.IndexFunc(shares, func(s Share) bool { return s.Region == m.Region })]++
		}
		if want := LargestRemainder(n, w); !slices.Equal(got, want) {
			t.Fatalf("seed %d: regions %v, want %v", seed, got, want)
		}
	}
	var spread []int
	for _, m := range p.Members {
		if !slices.ContainsFunc(spread, func(k int) bool { return !independent(&cs[k], &cs[m.Row]) }) {
			spread = append(spread, m.Row)
		}
	}
	if p.Copies > 1 && len(spread) < p.Copies {
		t.Fatalf("seed %d: %d copies but only %d independent members", seed, p.Copies, len(spread))
	}
	if j.Link != nil && j.MaxRTT > 0 {
		for a := range p.Members {
			for b := range a {
				if l := j.Link(&cs[p.Members[a].Row], &cs[p.Members[b].Row]); l.RTT > j.MaxRTT {
					t.Fatalf("seed %d: gang members %v apart, limit %v", seed, l.RTT, j.MaxRTT)
				}
			}
		}
	}
}

func TestOrderOfCandidatesChangesNothing(t *testing.T) {
	for seed := range uint64(800) {
		r := rand.New(rand.NewPCG(seed, 11))
		cs := make([]Candidate, 1+r.IntN(60))
		for i := range cs {
			cs[i] = randomCandidate(r, i)
			if r.IntN(3) > 0 && i > 0 { // many exact ties
				p := cs[i].Peer
				cs[i] = cs[r.IntN(i)]
				cs[i].Peer = p
			}
		}
		j := randomJob(r)
		p1, x1, err1 := Select(j, slices.Clone(cs), noon, 7)
		r.Shuffle(len(cs), func(a, b int) { cs[a], cs[b] = cs[b], cs[a] })
		p2, x2, err2 := Select(j, cs, noon, 7)
		if (err1 == nil) != (err2 == nil) || x1.Summary() != x2.Summary() || names(p1.Members) != names(p2.Members) ||
			names(p1.Spares) != names(p2.Spares) || names(p1.Newcomer) != names(p2.Newcomer) {
			t.Fatalf("seed %d:\n%v %s\n%v %s", seed, names(p1.Members), x1, names(p2.Members), x2)
		}
	}
}

func names(ms []Member) string {
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s:%d", string(m.Peer), m.Rank))
	}
	return strings.Join(out, " ")
}

// TestStrictlyBetterNodeIsNeverRankedLower improves one property of one node and looks at its rank against
// its unimproved twin.
func TestStrictlyBetterNodeIsNeverRankedLower(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 12))
		var cs []Candidate
		for i := range 2 + r.IntN(30) {
			c := randomCandidate(r, i)
			cs = append(cs, c)
		}
		worse := good("worse")
		worse.SecondsPerInput, worse.DataMissing, worse.ImageMissing = 5, 1<<30, 1<<20
		worse.Start, worse.Queue, worse.Work, worse.Bandwidth = time.Second, time.Second, 5, 1e7
		better := worse
		better.Peer = "better"
		switch r.IntN(9) {
		case 0:
			better.P += 0.05
		case 1:
			better.SecondsPerInput--
		case 2:
			better.DataMissing /= 2
		case 3:
			better.ImageMissing = 0
		case 4:
			better.RTT /= 2
		case 5:
			better.Price /= 2
		case 6:
			better.Work--
		case 7:
			better.Queue = 0
		case 8:
			better.Bandwidth *= 2
		}
		cs = append(cs, worse, better)
		j := Job{Kind: KindMap, Prefer: pickOne(r, PreferFast, PreferBalanced, PreferCheap), AllowUnvetted: UnvettedSingle}
		n, err := j.normal()
		if err != nil {
			t.Fatal(err)
		}
		f := NewFleet(cs)
		rows, _ := f.match(&n)
		at := map[string]ranked{}
		rank := map[string]int{}
		for k, x := range f.rank(&n, rows, seed) {
			name := string(cs[x.row].Peer)
			at[name], rank[name] = x, k
		}
		same := at["better"].Key == at["worse"].Key && at["better"].work == at["worse"].work && at["better"].Cents == at["worse"].Cents
		if !same && rank["better"] > rank["worse"] {
			t.Fatalf("seed %d (%s): better is #%d %+v, worse #%d %+v", seed, j.Prefer, rank["better"], at["better"], rank["worse"], at["worse"])
		}
	}
}

func TestSwapSearchEqualsBruteForceForEightNodes(t *testing.T) {
	worstRatio := 1.0
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 13))
		k := 2 + r.IntN(7)
		n := 1 + r.IntN(k)
		s := &gangSearch{e: make([]float64, k), pair: make([]float64, k*k), place: make([]int32, k), group: make([]int32, k), limit: n, k: k, budget: swapBudget}
		for i := range k {
			s.e[i], s.group[i] = r.Float64()*10, int32(i)
			for b := range i {
				v := r.Float64() * 10
				if r.IntN(8) == 0 {
					v = math.Inf(1)
				}
				s.pair[i*k+b], s.pair[b*k+i] = v, v
			}
		}
		first := make([]int, n)
		for i := range first {
			first[i] = i
		}
		_, got := s.run(first, []int{n})
		want := math.Inf(1)
		for m := range 1 << k {
			var set []int
			for i := range k {
				if m>>i&1 == 1 {
					set = append(set, i)
				}
			}
			if len(set) == n {
				want = min(want, s.cost(set).worst)
			}
		}
		if got.worst != want {
			worstRatio = max(worstRatio, got.worst/want)
			t.Errorf("seed %d: %d of %d: swap search %.4g, brute force %.4g", seed, n, k, got.worst, want)
		}
	}
	t.Logf("worst ratio %.3f", worstRatio)
}

func TestLargestRemainder(t *testing.T) {
	for _, c := range []struct {
		n    int
		w    []float64
		want []int
	}{
		{800, []float64{90, 10}, []int{720, 80}},
		{7, []float64{90, 10}, []int{6, 1}},
		{10, []float64{1, 1, 1}, []int{4, 3, 3}},
		{1, []float64{50, 50}, []int{1, 0}},
		{0, []float64{1}, []int{0}},
		{3, []float64{0, 0}, []int{0, 0}},
		{100, []float64{0.1, 0.2, 0.7}, []int{10, 20, 70}},
	} {
		if got := LargestRemainder(c.n, c.w); !slices.Equal(got, c.want) {
			t.Errorf("%d by %v = %v, want %v", c.n, c.w, got, c.want)
		}
	}
}

func TestNoOperatorHoldsTheMajorityWhenOthersMatch(t *testing.T) {
	var cs []Candidate
	for i := range 20 {
		c := good(fmt.Sprintf("big%d", i))
		c.Group, c.SecondsPerInput = "big", 1
		cs = append(cs, c)
	}
	for i := range 20 {
		cs = append(cs, good(fmt.Sprintf("small%d", i)))
	}
	count := func(n int) (big int) {
		p, _, err := Select(Job{Kind: KindMap, MinNodes: n, MaxNodes: n, Chunks: 1000}, cs, noon, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range p.Members {
			if cs[m.Row].Group == "big" {
				big++
			}
		}
		return big
	}
	if got := count(4); got != 4 {
		t.Errorf("4 nodes: %d of the fast operator, want 4, the rule begins above 4", got)
	}
	if got := count(10); got != 5 {
		t.Errorf("10 nodes: %d of the fast operator, want 5", got)
	}
	cs = cs[:21] // only one other is left: the cap gives way
	if got := count(10); got != 9 {
		t.Errorf("10 nodes with one other operator's node: %d of the fast operator, want 9", got)
	}
}

func TestMoreNodesAreTakenOnlyWhileTheyHelp(t *testing.T) {
	var cs []Candidate
	for i := range 100 {
		cs = append(cs, good(fmt.Sprintf("n%d", i)))
	}
	size := func(j Job) int {
		p, _, err := Select(j, cs, noon, 1)
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Members)
	}
	if n := size(Job{Kind: KindMap, Chunks: 8}); n != 8 {
		t.Errorf("8 chunks: %d nodes, want 8", n)
	}
	if n := size(Job{Kind: KindTask}); n != 1 {
		t.Errorf("a task: %d nodes, want 1", n)
	}
	if n := size(Job{Kind: KindTask, Copies: 3}); n != 3 {
		t.Errorf("a task in 3 copies: %d nodes, want 3", n)
	}
	if n := size(Job{Kind: KindMap, Chunks: 10_000}); n < 45 || n > 52 {
		t.Errorf("10,000 chunks: %d nodes, want about 50, where one more saves 2 %%", n)
	}
	if n := size(Job{Kind: KindMap, Chunks: 10_000, MinNodes: 80}); n != 80 {
		t.Errorf("at least 80: %d nodes", n)
	}
}

func TestUnvettedNodes(t *testing.T) {
	vetted, fresh, fresh2 := good("vetted"), good("fresh"), good("fresh2")
	fresh.Standing, fresh2.Standing, fresh2.Checks = StandingProbation, StandingProbation, 9
	all := []Candidate{vetted, fresh, fresh2}
	p, _, err := Select(Job{Kind: KindMap, Chunks: 100}, all, noon, 1)
	if err != nil || len(p.Members) != 1 || p.Copies != 1 || len(p.Newcomer) != 1 || p.Newcomer[0].Peer != "fresh" || p.Explore != DefaultExplore {
		t.Errorf("with a vetted node: %+v, %v; want the newcomer with the least evidence explored", p, err)
	}
	only := all[1:]
	p, _, err = Select(Job{Kind: KindMap, Chunks: 100}, only, noon, 1)
	if err != nil || len(p.Members) != 2 || p.Copies != 2 {
		t.Errorf("replicated: %+v, %v", p, err)
	}
	p, _, err = Select(Job{Kind: KindTask, AllowUnvetted: UnvettedSingle}, only, noon, 1)
	if err != nil || len(p.Members) != 1 || p.Copies != 1 {
		t.Errorf("single: %+v, %v", p, err)
	}
	if _, x, err := Select(Job{Kind: KindMap, AllowUnvetted: UnvettedNever}, only, noon, 1); !errors.Is(err, ErrUnvetted) || !strings.Contains(x.String(), "allow_unvetted") {
		t.Errorf("never: %v\n%s", err, x)
	}
	if _, _, err = Select(Job{Kind: KindMap}, only[:1], noon, 1); !errors.Is(err, ErrDomains) {
		t.Errorf("one newcomer alone: %v, want ErrDomains", err)
	}
}

func TestOvershootsAFifthAboveTenNodes(t *testing.T) {
	var cs []Candidate
	for i := range 40 {
		cs = append(cs, good(fmt.Sprintf("n%d", i)))
	}
	for n, want := range map[int]int{10: 0, 11: 3, 20: 4, 39: 1} {
		p, _, err := Select(Job{Kind: KindMap, MinNodes: n, MaxNodes: n, Chunks: 1000}, cs, noon, 1)
		if err != nil || p.Overshot != want {
			t.Errorf("%d nodes: overshoot %d, %v; want %d", n, p.Overshot, err, want)
		}
	}
}

func TestExplanationCountsWhatEachRequirementRemoved(t *testing.T) {
	var cs []Candidate
	for i := range 212 {
		c := good(fmt.Sprintf("n%d", i))
		c.Region, c.O = "us", 0.5
		if i < 31 {
			c.GPUs = []GPU{{"nvidia-h100-80gb-sxm", 1, 80}}
		}
		if i < 9 || i >= 200 {
			c.Region = "eu"
		}
		if i == 3 {
			c.O = 0.87
		}
		cs = append(cs, c)
	}
	_, x, err := Select(Job{Kind: KindMap, MinVRAMGB: 40, Regions: []Share{{Region: "eu"}}, MinReputation: 0.9}, cs, noon, 1)
	want := "0 of 212 match: min_vram 40GB leaves 31, regions eu leaves 9, min_reputation 0.9 leaves 0 (best is 0.87)"
	if got := x.Summary(); got != want || !errors.Is(err, ErrNoMatch) {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	for _, f := range x.Filters {
		if want, ok := map[string]int{"min_vram": 181, "regions": 191, "min_reputation": 212}[f.Name]; ok && f.Removed != want {
			t.Errorf("%s alone removed %d, want %d", f.Name, f.Removed, want)
		}
	}
	miss, err := Misses(Job{Kind: KindMap, MinVRAMGB: 40, MinReputation: 0.9}, cs[3])
	if err != nil || len(miss) != 1 || miss[0].Name != "min_reputation" || miss[0].Best != "0.87" {
		t.Errorf("one node's view: %+v, %v", miss, err)
	}
}

func TestGPUNamesMeanWhatTheJobFileSays(t *testing.T) {
	big, small := good("big"), good("small")
	big.GPUs = []GPU{{"nvidia-a100-80gb-sxm", 1, 80}}
	small.GPUs = []GPU{{"nvidia-a100-40gb-sxm", 1, 40}}
	for name, want := range map[string]int{"A100-40": 1, "A100-80": 1, "nvidia-a100-80gb-sxm": 1, "any": 2, "H100": 0} {
		if _, x, _ := Select(Job{Kind: KindMap, GPUModels: []string{name}}, []Candidate{big, small}, noon, 1); x.Matching != want {
			t.Errorf("gpu %s: %s, want %d", name, x.Summary(), want)
		}
	}
}

func TestHolderOfTheDataWinsAmongEquals(t *testing.T) {
	far, near := good("far"), good("near")
	far.DataMissing, near.DataMissing = 8<<30, 0
	p, _, err := Select(Job{Kind: KindTask}, []Candidate{far, near}, noon, 1)
	if err != nil || p.Members[0].Peer != "near" {
		t.Errorf("%v %v: want the node that holds the blocks", names(p.Members), err)
	}
}

func TestLeastWorkedOfEqualsGoesFirst(t *testing.T) {
	busy, idle := good("busy"), good("idle")
	busy.Work, idle.SecondsPerInput = 100, busy.SecondsPerInput*1.04
	p, _, err := Select(Job{Kind: KindTask, Prefer: PreferFast}, []Candidate{busy, idle}, noon, 1)
	if err != nil || p.Members[0].Peer != "idle" {
		t.Errorf("%v %v: within 5 %% the node with the least work goes first", names(p.Members), err)
	}
	idle.SecondsPerInput = busy.SecondsPerInput * 1.06
	p, _, _ = Select(Job{Kind: KindTask, Prefer: PreferFast}, []Candidate{busy, idle}, noon, 1)
	if p.Members[0].Peer != "busy" {
		t.Error("beyond 5 % the faster node goes first")
	}
}

func TestBadJobsNameTheField(t *testing.T) {
	for field, j := range map[string]Job{
		"kind": {Kind: "batch"}, "nodes": {Kind: KindMap, MinNodes: 4, MaxNodes: 2}, "min_reputation": {Kind: KindMap, MinReputation: math.NaN()},
		"prefer": {Kind: KindMap, Prefer: "best"}, "allow_unvetted": {Kind: KindMap, AllowUnvetted: "yes"}, "regions": {Kind: KindMap, Regions: []Share{{"eu", -1}}},
		"max_share": {Kind: KindMap, MaxShare: 2}, "gpu_count": {Kind: KindMap, GPUCount: -1}, "gpu": {Kind: KindMap, GPUModels: []string{"Voodoo2"}}, "backend": {Kind: KindMap, Backend: 9},
	} {
		if _, _, err := Select(j, []Candidate{good("a")}, noon, 1); !errors.Is(err, ErrBadJob) || !strings.Contains(fmt.Sprint(err), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
