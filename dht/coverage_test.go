package dht

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// withheld is how a fraction of the servers hide what they hold.
type withheld string

const (
	hideAll    withheld = "all they hold"
	hideSome   withheld = "each one half, its own choice"
	hideChosen withheld = "the same tenth of all peers"
	hideRegion withheld = "all they hold, and they are neighbours" // identities chosen to own a part of the key space
)

// model is the arithmetic of a survey: who holds what, who hides what, two passes over halves of the servers. The
// code under test is the estimator; hosts and wires are in survey_test.go.
type model struct {
	servers, peers, holders int
	fraction                float64
	how                     withheld
}

// run returns what is truly seen, and what the estimate says.
func (m model) run(seed uint64) (truth float64, c Coverage) {
	r := rand.New(rand.NewPCG(seed, 7))
	servers := make([][32]byte, m.servers)
	for i := range servers {
		servers[i] = sha256.Sum256(fmt.Appendf(nil, "server %d %d", seed, i))
	}
	slices.SortFunc(servers, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	liars, halves := r.Perm(m.servers), r.Perm(m.servers)
	liar := make([]bool, m.servers)
	for i := range int(m.fraction * float64(m.servers)) {
		if m.how == hideRegion {
			liar[i] = true // the lowest keys
		} else {
			liar[liars[i]] = true
		}
	}
	var n1, n2, both, seen int
	for p := range m.peers {
		key := sha256.Sum256(fmt.Appendf(nil, "peer %d %d", seed, p))
		var in [2]bool
		for _, s := range nearestOf(servers, key, m.holders) {
			if liar[s] && (m.how == hideAll || m.how == hideRegion || m.how == hideSome && r.IntN(2) == 0 || m.how == hideChosen && p%10 == 0) {
				continue
			}
			in[halves[s]%2] = true
		}
		for _, x := range []struct {
			is bool
			n  *int
		}{{in[0], &n1}, {in[1], &n2}, {in[0] && in[1], &both}, {in[0] || in[1], &seen}} {
			if x.is {
				*x.n++
			}
		}
	}
	return float64(seen) / float64(m.peers), EstimateCoverage(n1, n2, both, seen, true)
}

func nearestOf(servers [][32]byte, key [32]byte, k int) []int {
	index := make([]int, len(servers))
	for i := range index {
		index[i] = i
	}
	slices.SortFunc(index, func(a, b int) int {
		for i := range key {
			if x, y := servers[a][i]^key[i], servers[b][i]^key[i]; x != y {
				return int(x) - int(y)
			}
		}
		return 0
	})
	return index[:k]
}

// TestTheBiasOfTheCoverageIsAsPublished computes the table of docs/research.md: run it with -v to see it.
func TestTheBiasOfTheCoverageIsAsPublished(t *testing.T) {
	const seeds = 5
	for _, c := range []struct {
		model
		truth, estimate float64 // means, as published
	}{
		{model{400, 2000, 20, 0.2, hideAll}, 1, 1},
		{model{400, 2000, 20, 0.2, hideSome}, 1, 1},
		{model{400, 2000, 20, 0.2, hideChosen}, 1, 1},
		{model{400, 2000, 20, 0.5, hideAll}, 1, 1},
		{model{400, 2000, 20, 0.8, hideAll}, 0.985, 0.993},
		{model{400, 2000, 4, 0.2, hideAll}, 1, 0.984},
		{model{400, 2000, 4, 0.5, hideAll}, 0.935, 0.879},
		{model{400, 2000, 20, 0.2, hideRegion}, 0.832, 1},
	} {
		var truth, estimate, inside float64
		for seed := range uint64(seeds) {
			is, got := c.run(seed)
			truth, estimate = truth+is/seeds, estimate+got.Share()/seeds
			if got.ShareLow() <= is && is <= got.ShareHigh() {
				inside++
			}
		}
		t.Logf("%3.0f %% of %d servers withhold %s, %d holders: seen %.4f, estimated %.4f, bias %+.4f, truth in the interval %.0f of %d",
			100*c.fraction, c.servers, c.how, c.holders, truth, estimate, estimate-truth, inside, seeds)
		if math.Abs(truth-c.truth) > 0.001 || math.Abs(estimate-c.estimate) > 0.001 {
			t.Errorf("published as seen %v, estimated %v", c.truth, c.estimate)
		}
	}
}
