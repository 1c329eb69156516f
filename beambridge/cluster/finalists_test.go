package cluster

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func finalistsOf(t *testing.T, j Job, cs []Candidate, most int) []int {
	t.Helper()
	rows, err := Finalists(j, cs, 7, most)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestThreeFinalistsForEachNodeThatIsNeeded(t *testing.T) {
	var cs []Candidate
	for i := range 300 {
		c := good("n" + string(rune('a'+i/26)) + string(rune('a'+i%26)))
		c.RTT = time.Duration(i) * time.Millisecond // the first is unknown
		c.Group = string(c.Peer)
		cs = append(cs, c)
	}
	ms := time.Millisecond
	for name, c := range map[string]struct {
		job  Job
		most int
		want int
	}{
		"two nodes":               {Job{Kind: KindMap, MaxNodes: 2, Chunks: 50, MaxRTT: 40 * ms}, 96, 6},
		"a task":                  {Job{Kind: KindTask, Chunks: 50, MaxRTT: 40 * ms}, 96, 3},
		"as many as help":         {Job{Kind: KindMap, Chunks: 500}, 96, 96},
		"few chunks":              {Job{Kind: KindMap, Chunks: 5}, 96, 15},
		"estimates up to 1.5":     {Job{Kind: KindMap, Chunks: 500, MaxRTT: 20 * ms}, 96, 31}, // 0..30 ms
		"never more than allowed": {Job{Kind: KindMap, MaxNodes: 90, Chunks: 500}, 50, 50},
	} {
		if got := finalistsOf(t, c.job, cs, c.most); len(got) != c.want {
			t.Errorf("%s: %d finalists, want %d", name, len(got), c.want)
		}
	}
	for i := range cs {
		if i%10 == 0 {
			cs[i].Region, cs[i].Country = "noram", "US"
			cs[i].SecondsPerInput = 500 // far behind all others
		}
	}
	shared := Job{Kind: KindMap, MaxNodes: 10, Chunks: 500, Regions: []Share{{"eu", 90}, {"us", 10}}}
	us := 0
	for _, i := range finalistsOf(t, shared, cs, 96) {
		us += int(b2u(cs[i].Country == "US"))
	}
	if us != 3 {
		t.Errorf("a tenth from the US gives %d finalists there, want 3", us)
	}
	if rows := finalistsOf(t, Job{Kind: KindMap, MinVRAMGB: 999}, cs, 96); len(rows) != 0 {
		t.Errorf("%d finalists for what nobody has", len(rows))
	}
	if _, err := Finalists(Job{Kind: "dance"}, cs, 7, 96); !errors.Is(err, ErrBadJob) {
		t.Errorf("a job that is none: %v", err)
	}
}

// Whoever is pinged could be chosen, and with no bound that bites whoever is chosen was pinged.
func TestFinalistsAreThoseThatMayBeChosen(t *testing.T) {
	chosen := 0
	for seed := range uint64(2500) {
		r := rand.New(rand.NewPCG(seed, 21))
		cs := make([]Candidate, 1+r.IntN(60))
		for i := range cs {
			cs[i] = randomCandidate(r, i)
			cs[i].Group, cs[i].Site, cs[i].Wallet = string(cs[i].Peer), "", ""
		}
		j := randomJob(r)
		rows, err := Finalists(j, cs, seed, len(cs))
		if err != nil {
			t.Fatal(err)
		}
		for k, i := range rows {
			c := cs[i]
			if c.RTT = min(c.RTT, j.MaxRTT); j.MaxRTT > 0 {
				c.RTT = max(c.RTT, 1)
			}
			if v := violation(j, c); v != "" || j.MaxRTT > 0 && cs[i].RTT > j.MaxRTT*3/2 || slices.Contains(rows[:k], i) {
				t.Fatalf("seed %d: finalist %d violates %q, or is there twice", seed, i, v)
			}
		}
		back := slices.Clone(cs)
		slices.Reverse(back)
		again, err := Finalists(j, back, seed, len(cs))
		for k := range again {
			again[k] = len(cs) - 1 - again[k]
		}
		if err != nil || !slices.Equal(rows, again) {
			t.Fatalf("seed %d: finalists %v, in another order of candidates %v", seed, rows, again)
		}
		if j.MaxNodes > 0 || j.Kind == KindGang || len(j.Regions) > 0 {
			continue
		}
		j.Chunks, j.MaxRTT = max(j.Chunks, uint64(len(cs))), 0
		p, _, err := Select(j, cs, noon, seed)
		if err != nil {
			continue
		}
		rows, _ = Finalists(j, cs, seed, len(cs))
		for _, m := range p.Members {
			chosen++
			if !slices.Contains(rows, m.Row) {
				t.Fatalf("seed %d: %s was chosen and no finalist", seed, m.Peer)
			}
		}
	}
	if chosen < 500 {
		t.Fatalf("only %d members were looked at", chosen)
	}
}

func TestWhoseRoundTripNobodyKnowsIsNotWithinABound(t *testing.T) {
	c := good("n")
	c.RTT = 0
	_, x, err := Select(Job{Kind: KindMap, MaxRTT: time.Hour}, []Candidate{c}, noon, 1)
	if !errors.Is(err, ErrNoMatch) || x.Filters[len(x.Filters)-1].Best != "not measured" {
		t.Errorf("%v: %s", err, x.Summary())
	}
	if _, _, err := Select(Job{Kind: KindMap}, []Candidate{c}, noon, 1); err != nil {
		t.Errorf("without a bound: %v", err)
	}
}

func TestASubdivisionIsAPlaceOfItsOwn(t *testing.T) {
	a, b := good("a"), good("b")
	a.Subdivision, b.Subdivision = "DE-BE", "DE-HH"
	p, x, err := Select(Job{Kind: KindMap, Regions: []Share{{Region: "de-be"}}}, []Candidate{a, b}, noon, 1)
	if err != nil || x.Matching != 1 || p.Members[0].Peer != a.Peer {
		t.Errorf("%v: %s", err, x.Summary())
	}
}
