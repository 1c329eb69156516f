package dht

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestFindEqualsBruteForceForAnyFilter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	x, all := world(t, rnd, 150)
	local := func(id peer.ID) (float64, float64) {
		b := id[len(id)-1]
		if b < 64 {
			return math.NaN(), float64(b) / 64
		}
		return float64(b), math.NaN()
	}
	verify := func(id peer.ID, _ *pb.Label) bool { return id[len(id)-1]%2 == 0 }
	matchedSome := 0
	for i := range 3000 {
		if i%100 == 99 { // the population changes, and with it every bitmap
			for k, e := range all {
				retell(t, x, rnd, e, k, uint64(i))
			}
		}
		text := randomFilter(rnd, 4)
		f, err := protocol.ParseFilter(text)
		if err != nil {
			if strings.Contains(err.Error(), "at most") {
				continue
			}
			t.Fatalf("%s: %v", text, err)
		}
		q := Query{Filter: f, Literal: i%2 == 0, Seed: 3, Explain: i%3 == 0, Local: local, Verify: verify}
		got, ex := newAsking(q, epoch, false).run(x)
		blunt := newAsking(q, epoch, false)
		blunt.blunt = true
		if unhinted, _ := blunt.run(x); !reflect.DeepEqual(got, unhinted) {
			t.Fatalf("%s (literal %t): %d with hints, %d without", text, q.Literal, len(got), len(unhinted))
		}
		asked := f
		if !q.Literal {
			asked, _ = f.WithImplied()
		}
		bare := f // what is asked of a node without GPUs, which has no slices to leave out
		if !q.Literal && !f.Mentions(protocol.FieldNodeState) {
			bare = parsed(t, "("+f.String()+`) && node.state in ["READY", "BUSY"]`)
		}
		want := map[peer.ID][]int{}
		for _, e := range all {
			of := asked
			if len(e.record.cap.GetGpus()) == 0 {
				of = bare
			}
			if match, groups := (oracle{q: &q, now: epoch, e: e}).groups(of); match {
				if !f.MentionsGPU() {
					groups = nil
				}
				want[e.peer] = groups
			}
		}
		have := map[peer.ID][]int{}
		for _, c := range got {
			have[c.Peer] = c.Groups
		}
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("%s (literal %t): index finds %d, brute force %d", text, q.Literal, len(have), len(want))
		}
		if ex.Matched != len(want) || ex.Population != len(all) {
			t.Fatalf("%s: explanation %+v", text, ex)
		}
		if len(want) > 0 {
			matchedSome++
		}
	}
	if matchedSome < 500 {
		t.Errorf("only %d filters matched anything: the property is tested on air", matchedSome)
	}
}

func TestExplanationCountsWhatEachClauseRemoves(t *testing.T) {
	x := newReplica(10)
	add := func(n int, state pb.NodeState, cores uint32, gpus ...*pb.GpuGroup) {
		id := identityOf(t, n).id
		c := machine(id, 1, epoch, gpus...)
		c.Host.Cores = &cores
		rec := &record{raw: fmt.Appendf(nil, "%d", n), peer: id, cap: c}
		rec.digest = digestOf(rec.raw)
		x.putRecord(rec, epoch)
		x.putBeat(&beat{peer: id, av: heartbeat(id, 1, epoch, rec.raw, state)}, 0, epoch)
	}
	add(1, ready, 8, gpu("nvidia-l4-24gb", 1, 22.5))
	add(2, ready, 2, gpu("nvidia-l4-24gb", 1, 22.5))
	add(3, pb.NodeState_NODE_STATE_PAUSED, 8, gpu("nvidia-l4-24gb", 1, 22.5))
	add(4, ready, 8, gpu("nvidia-t4-16gb", 1, 15))
	add(5, ready, 2)
	f, err := protocol.ParseFilter(`cpu.cores >= 4 && gpu.vram_gb >= 20`)
	if err != nil {
		t.Fatal(err)
	}
	_, ex := newAsking(Query{Filter: f, Explain: true}, epoch, false).run(x)
	want := []ClauseCount{
		{"cpu.cores >= 4", false, 2, 1, 3},
		{"gpu.vram_gb >= 20", false, 2, 1, 2},
		{"!gpu.mig", true, 0, 0, 2},
		{`node.state in ["READY", "BUSY"]`, true, 1, 1, 1},
	}
	if !slices.Equal(ex.Clauses, want) || ex.Matched != 1 || ex.Population != 5 {
		t.Errorf("explanation %+v", ex)
	}
}

// TestExplanationOfNoMatchNamesTheClauseThatDidIt: a node without GPUs has no gpu.count, so the clause rejects all, and
// the implied clause about slices is not to blame.
func TestExplanationOfNoMatchNamesTheClauseThatDidIt(t *testing.T) {
	x := newReplica(10)
	for n := range 3 {
		id := identityOf(t, n).id
		var gpus []*pb.GpuGroup
		if n == 0 {
			gpus = append(gpus, gpu("nvidia-l4-24gb", 2, 22.5))
		}
		rec := &record{raw: fmt.Appendf(nil, "%d", n), peer: id, cap: machine(id, 1, epoch, gpus...)}
		rec.digest = digestOf(rec.raw)
		x.putRecord(rec, epoch)
		x.putBeat(&beat{peer: id, av: heartbeat(id, 1, epoch, rec.raw, ready)}, 0, epoch)
	}
	for where, want := range map[string][]ClauseCount{
		`gpu.count == 0`:                 {{`gpu.count == 0`, false, 3, 3, 0}, {"!gpu.mig", true, 0, 0, 0}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 0}},
		`gpu.count == 0 && gpu.free > 9`: {{`gpu.count == 0`, false, 3, 0, 0}, {"gpu.free > 9", false, 3, 0, 0}, {"!gpu.mig", true, 0, 0, 0}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 0}},
		`gpus.count == 0`:                {{`gpus.count == 0`, false, 1, 1, 2}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 2}},
		`gpu.count > 1 || cpu.cores > 1`: {{`gpu.count > 1 || cpu.cores > 1`, false, 0, 0, 3}, {"!gpu.mig", true, 0, 0, 3}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 3}},
	} {
		_, ex := newAsking(Query{Filter: parsed(t, where), Explain: true}, epoch, false).run(x)
		if !slices.Equal(ex.Clauses, want) {
			t.Errorf("%s: explanation %+v, want %+v", where, ex.Clauses, want)
		}
		for i, c := range ex.Clauses {
			if c.Left > ex.Population-c.Removed || c.RemovedAlone > c.Removed || i == 0 && c.Left != ex.Population-c.Removed {
				t.Errorf("%s: of %d nodes %+v contradicts itself", where, ex.Population, c)
			}
		}
		if last := ex.Clauses[len(ex.Clauses)-1].Left; last != ex.Matched {
			t.Errorf("%s: %d are left of %d that match", where, last, ex.Matched)
		}
	}
}

func TestAllGPUClausesHoldForOneGroup(t *testing.T) {
	id := identityOf(t, 1).id
	rec := &record{peer: id, cap: machine(id, 1, epoch, gpu("nvidia-t4-16gb", 8, 15), gpu("nvidia-h100-80gb-pcie", 1, 79.65))}
	x := newReplica(1)
	x.putRecord(rec, epoch)
	for where, want := range map[string][]int{
		`gpu.model == "H100" && gpu.count >= 8`: nil,
		`gpu.model == "H100" || gpu.count >= 8`: {0, 1},
		`gpu.vram_gb >= 40`:                     {1},
		`!(gpu.model == "T4")`:                  {1},
	} {
		f, err := protocol.ParseFilter(where)
		if err != nil {
			t.Fatal(err)
		}
		hits, _ := newAsking(Query{Filter: f, Literal: true}, epoch, false).match(x)
		var got []int
		if len(hits) == 1 {
			got = hits[0].groups
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: groups %v, want %v", where, got, want)
		}
	}
}

func TestEqualSeedsGiveEqualOrders(t *testing.T) {
	_, all := world(t, rand.New(rand.NewPCG(1, 2)), 60)
	shake := rand.New(rand.NewPCG(3, 4))
	order := func(seed uint64) []peer.ID {
		x := newReplica(len(all))
		for _, i := range shake.Perm(len(all)) { // whatever the order of arrival
			x.putRecord(all[i].record, epoch)
		}
		got, _ := newAsking(Query{Literal: true, Seed: seed}, epoch, false).run(x)
		var ids []peer.ID
		for _, c := range got {
			ids = append(ids, c.Peer)
		}
		return ids
	}
	if a, b := order(1), order(1); !slices.Equal(a, b) {
		t.Error("one seed gave two orders")
	}
	if slices.Equal(order(1), order(2)) {
		t.Error("two seeds gave one order")
	}
}

func TestBandwidthTiersBeginStrictlyAboveTheirBounds(t *testing.T) {
	const m = 1_000_000
	for _, c := range []struct {
		down, up uint64
		want     string
	}{
		{100 * m, 75 * m, "none"},
		{100*m + 1, 75*m + 1, "low"},
		{100*m + 1, 75 * m, "none"},
		{400 * m, 300 * m, "low"},
		{400*m + 1, 300*m + 1, "medium"},
		{800*m + 1, 600 * m, "medium"},
		{800*m + 1, 600*m + 1, "high"},
		{1600 * m, 1200 * m, "high"},
		{1600*m + 1, 1200*m + 1, "ultra"},
		{0, 0, "none"},
		{1 << 63, 1 << 63, "ultra"},
	} {
		if got := BandwidthTier(c.down, c.up); got != c.want {
			t.Errorf("%d/%d: %s, want %s", c.down, c.up, got, c.want)
		}
	}
}
