package gridbeam_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// Each test below is a sentence of RNP-005, named after its row in the README's table of features. It drives the
// real parts: hosts, streams, gossip, records, journals, tables. A row without a test is not built yet.

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }

// every is a pace.
func every(d time.Duration) func(executor.Input, uint64) time.Duration {
	return func(executor.Input, uint64) time.Duration { return d }
}

// "Select specific GPU types."
func TestJ1_ThePlanNeverHoldsANodeThatViolatesWhatTheJobWants(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 5)
		type supply struct {
			*claimant
			chip    string
			gb      int
			count   int
			compute float64
		}
		var all []supply
		for i, s := range []struct {
			raw   string
			gib   float64
			chip  string
			gb    int
			major float64
		}{
			{"NVIDIA H100 80GB HBM3", 79.65, "H100", 80, 9},
			{"NVIDIA A100-SXM4-80GB", 79.15, "A100", 80, 8},
			{"NVIDIA A100-SXM4-40GB", 39.39, "A100", 40, 8},
			{"NVIDIA GeForce RTX 4090", 23.99, "RTX 4090", 24, 8.9},
			{"Tesla T4", 15.36, "T4", 16, 7.5},
			{"", 0, "", 0, 0},
		} {
			for k := range 2 {
				if s.raw == "" {
					all = append(all, supply{claimant: f.claim()})
					continue
				}
				n := 1 + (3*i+5*k)%8
				g := gpus(s.raw, s.gib, uint32(n))
				compute := uint32(math.Round(s.major * 10))
				g.Compute = &compute
				all = append(all, supply{f.claim(g), s.chip, s.gb, n, s.major})
			}
		}
		f.start()
		for _, s := range all {
			s.Start()
		}
		f.known(len(all))
		r := rand.New(rand.NewPCG(5, 5))
		module := f.module()
		some, refused := 0, 0
		for range 60 {
			j := sweep(1)
			models := []string{"H100", "A100", "A100-40", "RTX 4090", "T4"}
			r.Shuffle(len(models), func(a, b int) { models[a], models[b] = models[b], models[a] })
			j.Resources.GPU = models[:r.IntN(3)]
			j.Resources.GPUCount = uint32(r.IntN(6))
			j.Resources.MinVRAM = []protocol.VRAM{0, 0, 24, 40, 80}[r.IntN(5)]
			if r.IntN(3) == 0 {
				j.Placement.Where = "gpu.compute >= 8.0"
			}
			want := j.WithDefaults().Resources
			st, err := f.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: j, ModuleCID: module})
			if errors.Is(err, protocol.ErrBadJob) { // it contradicts itself: no such GPU is sold
				refused++
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			id := st.ID
			pass(1500 * time.Millisecond) // a placement and its answers
			asked, fit := 0, 0
			for _, s := range all {
				accepted := len(want.GPU) == 0 || slices.ContainsFunc(want.GPU, func(m string) bool {
					return m == s.chip || m == "A100-40" && s.chip == "A100" && s.gb == 40
				})
				fits := want.GPUCount == 0 || s.count >= int(want.GPUCount) && accepted && s.gb >= int(want.MinVRAM)
				if j.Placement.Where != "" {
					fits = fits && s.compute >= 8
				}
				if fits {
					fit++
				}
				if s.wasAsked(id) {
					asked++
					if !fits {
						t.Errorf("a node with %d × %s (%d GB, %.1f) was asked: %+v where %q", s.count, s.chip, s.gb, s.compute, want, j.Placement.Where)
					}
				}
			}
			some += fit
			if fit > 0 && asked == 0 {
				t.Errorf("%d nodes fit %+v where %q, none was asked", fit, want, j.Placement.Where)
			}
			if st, _ := f.status(id); fit == 0 && !strings.HasPrefix(st.Text, "0 of 12 match") {
				t.Errorf("no node fits %+v, and the job says %q", want, st.Text)
			}
			if _, err := f.Bridge().CancelJob(context.Background(), alice, id); err != nil {
				t.Fatal(err)
			}
		}
		if some < 40 || refused > 30 {
			t.Errorf("only %d pairs of job and node fit, %d jobs were refused: this proves little", some, refused)
		}
	})
}

// "Specify node reputation thresholds."
func TestJ2_TheThresholdOfReputationIsExactAndLittleEvidenceIsNotEnough(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 6)
		fail := true
		for range 3 {
			m := f.place(machineKind{slots: 4, anchor: true, pace: every(500 * time.Millisecond)})
			m.kind.verdict = func(in executor.Input, fence uint64) protocol.Reason {
				if in.Index == 7 && fail {
					fail = false // one chunk of the veterans' ends badly, by its node's own fault
					return protocol.ReasonBackendFailed
				}
				return protocol.ReasonDone
			}
		}
		f.start()
		f.known(3)
		a := &audit{farm: f, texts: numbers(300)}
		a.job = f.submit(sweep(300))
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		novice := f.add(machineKind{slots: 4, anchor: true, pace: every(500 * time.Millisecond)})
		f.known(4)

		score := map[protocol.PeerID]protocol.Reputation{}
		failed := 0
		for _, m := range f.machines {
			r, err := f.Bridge().Reputation(context.Background(), alice, m.ID())
			if err != nil {
				t.Fatal(err)
			}
			score[m.ID()] = r
			for _, c := range r.Criteria {
				if c.Criterion == protocol.CriterionCompletion && c.Bad > 0 {
					failed++
				}
			}
		}
		least := math.Inf(1)
		for id, r := range score {
			if id != novice.ID() {
				least = min(least, r.Score)
			}
			for _, min := range []float64{math.Nextafter(r.Score, 0), r.Score, math.Nextafter(r.Score, 1)} {
				j := sweep(10)
				j.Placement.MinReputation = min
				want := 0
				for _, o := range score {
					if o.Score >= min {
						want++
					}
				}
				if got := f.check(j); got.Matching != want {
					t.Errorf("min_reputation %v: %d nodes match, want %d: %s", min, got.Matching, want, got.Summary)
				}
			}
		}
		for _, c := range score[novice.ID()].Criteria {
			if c.Bad != 0 {
				t.Errorf("the novice has evidence against it: %+v", c)
			}
		}
		if failed != 1 || score[novice.ID()].Score >= least {
			t.Errorf("%d veterans failed, the worst of them scores %v, who has done nothing wrong and nothing else %v", failed, least, score[novice.ID()].Score)
		}
	})
}

// "Break large ML tasks into smaller chunks."
func TestJ3_WhateverTheInputsTheChunksAreTheWholeExactlyOnce(t *testing.T) {
	axis := func(name string, n int) protocol.GridAxis {
		x := protocol.GridAxis{Name: name}
		for i := range n {
			x.Values = append(x.Values, fmt.Append(nil, i, ".5"))
		}
		return x
	}
	kinds := []struct {
		name   string
		inputs protocol.JobInputs
		lines  []string
		texts  []string
		chunk  uint64
	}{
		{name: "range", inputs: protocol.JobInputs{Range: &protocol.IntRange{First: -20, Last: 30}}, chunk: 4},
		{name: "list", inputs: protocol.JobInputs{List: []string{"a", "b b", "ü", `{"x":1}`, "a.txt"}}, chunk: 2},
		{name: "lines", inputs: protocol.JobInputs{Lines: "in.txt"}, lines: strings.Split(strings.Repeat("line ", 3)+strings.Join(numbers(70), "\n"), "\n")},
		{name: "grid", inputs: protocol.JobInputs{Grid: protocol.Grid{axis("hidden", 4), axis("lr", 5)}}, chunk: 7},
	}
	for i := range kinds {
		k := &kinds[i]
		switch {
		case k.inputs.Range != nil:
			for n := k.inputs.Range.First; n <= k.inputs.Range.Last; n++ {
				k.texts = append(k.texts, fmt.Sprint(n))
			}
		case k.inputs.Grid != nil: // the last axis runs fastest
			for h := range 4 {
				for l := range 5 {
					k.texts = append(k.texts, fmt.Sprintf(`{"hidden":%d.5,"lr":%d.5}`, h, l))
				}
			}
		default:
			k.texts = append(append(k.texts, k.inputs.List...), k.lines...)
		}
	}
	results := map[string]map[string]bool{}
	for _, nodes := range []int{1, 3} {
		inBubble(t, func(t *testing.T) {
			f := newFarm(t, uint64(nodes))
			for range nodes {
				f.place(machineKind{slots: 2, pace: every(700 * time.Millisecond)})
			}
			f.start()
			f.known(nodes)
			for _, k := range kinds {
				j := sweep(1)
				j.Inputs, j.Chunk = k.inputs, k.chunk
				s, err := f.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: j, ModuleCID: f.module(), Lines: k.lines})
				if err != nil {
					t.Fatal(err)
				}
				a := &audit{farm: f, job: s.ID, texts: k.texts}
				if nodes > 1 { // kill -9
					pass(1200 * time.Millisecond)
					f.machines[1].Crash()
				}
				last := a.over(5*time.Minute, func(protocol.JobStatus) {})
				if nodes > 1 {
					f.machines[1].Restart()
					f.machines[1].awaitNode()
				}
				a.outputs(last)
				if results[k.name] == nil {
					results[k.name] = map[string]bool{}
				}
				results[k.name][last.ResultCID] = true
			}
		})
	}
	for name, cids := range results {
		if len(cids) != 1 {
			t.Errorf("%s: one node and three gave different bytes: %v", name, slices.Collect(maps.Keys(cids)))
		}
	}
}

// "Suitable for distribution across the network."
func TestJ4_AChunkThatRanTwiceIsAccountedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 8)
		for range 3 {
			f.place(machineKind{slots: 2, ask: 2_000_000, anchor: true, pace: every(4 * time.Second)})
		}
		f.start()
		f.known(3)
		a := &audit{farm: f, texts: numbers(40), deposit: 50_000_000}
		f.credit(a.deposit)
		a.job = f.submit(sweep(40))
		pass(6 * time.Second)
		f.net.Partition([]int{f.machines[2].Index()})
		pass(11 * time.Second) // its leases lapse, others get them, and it finishes them all the same
		f.net.Heal()
		last := a.over(5*time.Minute, func(protocol.JobStatus) {})
		begun := map[uint64]int{}
		a.leasesEnd()
		twice := 0
		for _, m := range f.machines {
			for _, r := range m.runs() {
				if begun[r.first]++; begun[r.first] == 2 {
					twice++
				}
			}
		}
		a.close(last)
		if twice == 0 || a.saw.lost == 0 {
			t.Errorf("no chunk ran twice: %s", a.saw)
		}
	})
}

// "The agent handles orchestration commands": its daemon is killed mid-job.
func TestC2_AKilledDaemonTakesItsLeasesUpAgainAndNothingRunsTwice(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 9)
		m := f.place(machineKind{slots: 3, anchor: true, pace: every(15 * time.Second)})
		f.start()
		f.known(1)
		a := &audit{farm: f, texts: numbers(9), held: map[protocol.LeaseID]protocol.PeerID{}}
		a.job = f.submit(sweep(9))
		pass(6 * time.Second)
		synctest.Wait()
		for _, l := range m.Node().Status().Leases {
			a.held[l.Lease] = m.ID()
		}
		m.Crash()
		pass(2 * time.Second)
		m.Restart()
		last := a.over(5*time.Minute, func(protocol.JobStatus) {})
		if last.Leases != 9 || len(last.Retried) != 0 {
			t.Errorf("%d leases for 9 chunks, again: %+v", last.Leases, last.Retried)
		}
		a.close(last)
		if a.saw.held < 6 || a.saw.resumed != a.saw.held {
			t.Errorf("held when it was killed: %d, finished under the same fence: %d", a.saw.held, a.saw.resumed)
		}
	})
}

// "Select an optimal set of nodes": the choice is explained, term by term.
func TestO1_TheSelectionExplainsEveryNodeInSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 10)
		for i := range 4 {
			f.place(machineKind{slots: 2, ask: uint64(1_000_000 * (i + 1)), anchor: true, pace: every(time.Second)})
		}
		f.start()
		f.known(4)
		f.credit(50_000_000)
		a := &audit{farm: f, texts: numbers(60)}
		for range 2 { // with the second the predictor knows the class
			a.job = f.submit(sweep(60))
			a.over(5*time.Minute, func(protocol.JobStatus) {})
		}
		s, _ := f.status(a.job)
		x, err := f.Bridge().ExplainJob(context.Background(), alice, a.job)
		if err != nil {
			t.Fatal(err)
		}
		if x.Total != 4 || x.Matching != 4 || len(x.Chosen) == 0 || len(x.Filters) == 0 || x.Summary == "" || x.PredictedSeconds <= 0 || x.ActualSeconds <= 0 {
			t.Fatalf("explanation: %+v", x)
		}
		members := map[protocol.PeerID]bool{}
		for _, n := range s.Nodes {
			members[n.PeerID] = true
		}
		for i, n := range x.Chosen {
			e := (n.Queue + n.Start + n.Data + n.Run + n.RTT) / n.P
			if math.Abs(e-n.E) > 1e-6*max(1, e) || n.P <= 0 || n.P > 1 || n.Run < 0.9 || n.Cents <= 0 || n.ActualRun < 0.9 {
				t.Errorf("%d: E = %v, its terms give %v: %+v", i, n.E, e, n)
			}
			if !members[n.PeerID] || i > 0 && x.Chosen[i-1].Rank >= n.Rank {
				t.Errorf("chosen %d is %+v after %+v; members %v", i, n, x.Chosen[max(0, i-1)], members)
			}
		}
		left := x.Total
		for _, c := range x.Filters {
			if c.Left > left || c.Want == "" || c.Name == "" {
				t.Errorf("filter %+v after %d were left", c, left)
			}
			left = c.Left
		}
		j := sweep(1)
		j.Placement.Where = "cpu.cores >= 100000"
		if r := f.check(j); r.Matching != 0 || r.Known != 4 || !strings.Contains(r.Summary, "0 of 4") || !strings.Contains(r.Summary, "where") {
			t.Errorf("nobody matches: %+v", r)
		}
	})
}

// "Prioritised": with equal hardware the better score is chosen.
func TestR2_OfEqualNodesTheOneWithTheBetterScoreIsChosen(t *testing.T) {
	for bad := range 2 {
		inBubble(t, func(t *testing.T) {
			f := newFarm(t, 20+uint64(bad))
			for i := range 2 {
				m := f.place(machineKind{slots: 2, anchor: true, pace: every(time.Second)})
				m.kind.verdict = func(in executor.Input, fence uint64) protocol.Reason {
					if i == bad && in.Index%5 == 0 && fence == 1 {
						return protocol.ReasonBackendFailed
					}
					return protocol.ReasonDone
				}
			}
			f.start()
			f.known(2)
			a := &audit{farm: f, texts: numbers(40)}
			a.job = f.submit(sweep(40))
			a.over(5*time.Minute, func(protocol.JobStatus) {})
			var score [2]protocol.Reputation
			for i, m := range f.machines {
				var err error
				if score[i], err = f.Bridge().Reputation(context.Background(), alice, m.ID()); err != nil {
					t.Fatal(err)
				}
			}
			if score[bad].Score >= score[1-bad].Score || score[bad].P >= score[1-bad].P {
				t.Fatalf("the failing node scores %v, the other %v", score[bad].Score, score[1-bad].Score)
			}
			for range 3 {
				pass(time.Minute) // heartbeats say that both are free
				j := sweep(4)
				j.Placement.Nodes = protocol.NodeRange{Min: 1, Max: 1}
				a = &audit{farm: f, job: f.submit(j), texts: numbers(4)}
				last := a.over(5*time.Minute, func(protocol.JobStatus) {})
				for _, n := range last.Nodes {
					if n.Chunks > 0 && n.PeerID == f.machines[bad].ID() {
						t.Errorf("the node that fails was chosen: %+v", last.Nodes)
					}
				}
			}
		})
	}
}

// "Differential blame": a poisoned job harms no node's score.
func TestR4_APoisonedJobHarmsNoNodesScore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 11)
		for range 4 {
			m := f.place(machineKind{slots: 2, anchor: true, pace: every(time.Second)})
			m.kind.verdict = func(in executor.Input, _ uint64) protocol.Reason {
				if in.Value == "poison" {
					return protocol.ReasonExitNonzero
				}
				return protocol.ReasonDone
			}
		}
		f.start()
		f.known(4)
		a := &audit{farm: f, texts: numbers(40)}
		a.job = f.submit(sweep(40))
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		completion := func() (out []protocol.CriterionScore) {
			for _, m := range f.machines {
				r, err := f.Bridge().Reputation(context.Background(), alice, m.ID())
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range r.Criteria {
					if c.Criterion == protocol.CriterionCompletion || c.Criterion == protocol.CriterionCorrectness {
						out = append(out, c)
					}
				}
			}
			return out
		}
		before := completion()
		j := sweep(1)
		j.Inputs = protocol.JobInputs{List: []string{"poison", "poison", "poison", "poison"}}
		id := f.submit(j)
		f.await(5*time.Minute, "the poisoned job fails", func() bool { s, ok := f.status(id); return ok && s.State == "failed" })
		if s, _ := f.status(id); s.Reason != protocol.ReasonExitNonzero.String() {
			t.Errorf("its cause is %s: %s", s.Reason, s.Text)
		}
		for i, c := range completion() {
			if c.Bad > before[i].Bad {
				t.Errorf("%s: %v against a node after the poisoned job, %v before", c.Criterion, c.Bad, before[i].Bad)
			}
		}
	})
}

// "Meter GPU and other resources per job and node": the states make up the time that the node was there.
func TestM1_TheStatesOfANodeSumToItsUptime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const slots = 3
		f := newFarm(t, 12)
		m := f.place(machineKind{slots: slots, anchor: true, pace: every(7 * time.Second)})
		f.start()
		f.known(1)
		began := time.Now()
		a := &audit{farm: f, texts: numbers(20)}
		a.job = f.submit(sweep(20))
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		pass(5 * time.Minute)
		m.Crash()
		m.Restart()
		m.awaitNode()
		pass(5 * time.Minute)
		up := time.Since(began)
		if err := f.bridge.Stop(); err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(filepath.Join(f.bridge.Dir(), "bridge.db"), farmLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		err = db.View(context.Background(), func(tx *store.Tx) error {
			days, err := tx.Idles(m.ID())
			if err != nil || len(days) == 0 {
				return fmt.Errorf("days: %v, %w", days, err)
			}
			idle, preparing, working := int64(0), int64(0), int64(0)
			for _, d := range days {
				idle, preparing, working = idle+d.IdleMS, preparing+d.PreparingMS, working+d.WorkingMS
			}
			// A crash costs what was not reported yet, the last minutes of idle time are still to come.
			all, whole := time.Duration(idle+preparing+working)*time.Millisecond, slots*up
			if all > whole || all < whole-slots*3*time.Minute {
				t.Errorf("idle %d + preparing %d + working %d ms are %s of %s slot time", idle, preparing, working, all, whole)
			}
			if ran := time.Duration(working) * time.Millisecond; ran > 20*7*time.Second || ran < 20*7*time.Second*98/100 {
				t.Errorf("%s of work are settled, 20 chunks took 7 s each", ran)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// "Determines proportional RNDR rewards."
func TestM3_TheSharesOfAPoolAreProportionalAndLoseNoUnit(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 13)
		for i := range 3 {
			f.place(machineKind{slots: 1 + i, ask: 1_000_000, anchor: true, pace: every(time.Second)})
		}
		f.start()
		f.known(3)
		f.credit(50_000_000)
		a := &audit{farm: f, texts: numbers(70)}
		a.job = f.submit(sweep(70))
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		pass(20 * time.Second) // late receipts
		st, err := f.Bridge().JobStatement(context.Background(), alice, a.job)
		if err != nil || len(st.Lines) != 3 {
			t.Fatalf("statement %+v, %v", st, err)
		}
		parts, burns, weights := int64(0), int64(0), []settlement.Weight{}
		for _, l := range st.Lines {
			parts, burns = parts+l.SharePPM, burns+l.BurnUUSD
			weights = append(weights, settlement.Weight{Peer: l.Node, W: big.NewInt(l.BurnUUSD)})
			if want := float64(l.BurnUUSD) / float64(st.Total.BurnUUSD) * 1e6; math.Abs(float64(l.SharePPM)-want) > 1 {
				t.Errorf("%s burned %d of %d and has %d ppm", l.Node, l.BurnUUSD, st.Total.BurnUUSD, l.SharePPM)
			}
		}
		if parts != 1_000_000 || burns != st.Total.BurnUUSD || burns == 0 {
			t.Errorf("%d ppm, %d of %d burned", parts, burns, st.Total.BurnUUSD)
		}
		for _, pool := range []int64{0, 1, 2, 999, 1e8, 7_777_777_777} {
			units, carry, err := settlement.Split(pool, weights)
			if err != nil {
				t.Fatal(err)
			}
			for i, u := range units {
				carry += u
				if want := float64(pool) * float64(st.Lines[i].BurnUUSD) / float64(burns); math.Abs(float64(u)-want) > 1 {
					t.Errorf("%d of %d units for %d of %d burned", u, pool, st.Lines[i].BurnUUSD, burns)
				}
			}
			if carry != pool {
				t.Errorf("%d units of %d were shared", carry, pool)
			}
		}
	})
}
