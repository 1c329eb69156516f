package dht

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// unsigned is a record as if it had been verified.
func unsigned(id peer.ID, seq uint64, now time.Time, gpus ...*pb.GpuGroup) *record {
	r := &record{raw: fmt.Appendf(nil, "%s %d", id, seq), peer: id, cap: machine(id, seq, now, gpus...)}
	r.digest = digestOf(r.raw)
	return r
}

func unsignedBeat(r *record, seq uint64, now time.Time, state pb.NodeState, groups ...*pb.GroupLoad) *beat {
	return &beat{peer: r.peer, av: heartbeat(r.peer, seq, now, r.raw, state, groups...)}
}

func parsed(t testing.TB, where string) *protocol.Filter {
	t.Helper()
	f, err := protocol.ParseFilter(where)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func matches(t testing.TB, x *replica, where string, now time.Time) []peer.ID {
	t.Helper()
	hits, _ := newAsking(Query{Filter: parsed(t, where)}, now, false).match(x)
	ids := []peer.ID{}
	for _, h := range hits {
		ids = append(ids, h.peer)
	}
	return sortedIDs(ids)
}

func TestNothingOlderThanWhatWasSeenIsTakenForADay(t *testing.T) {
	x := newReplica(10)
	old, present := unsigned("a", 5, epoch), unsigned("a", 7, epoch)
	if !x.putRecord(present, epoch) || x.putBeat(unsignedBeat(present, 9, epoch, ready), 0, epoch) != beatTaken {
		t.Fatal("the present record is refused")
	}
	if x.putRecord(old, epoch) || x.putBeat(unsignedBeat(present, 8, epoch, ready), 0, epoch) != beatOld {
		t.Error("something older is taken while the node is known")
	}
	later := epoch.Add(2 * time.Hour) // long gone
	x.sweep(later)
	if x.size() != 0 {
		t.Fatal("a node whose record has ended is still held")
	}
	for _, after := range []time.Duration{2 * time.Hour, 23 * time.Hour} {
		now := epoch.Add(after)
		x.sweep(now)
		if x.putRecord(unsigned("a", 6, now), now) || x.putBeat(unsignedBeat(present, 9, now, ready), 0, now) != beatOld {
			t.Errorf("%s after it was heard last, a node is rolled back", after)
		}
	}
	now := epoch.Add(25 * time.Hour)
	x.sweep(now)
	if !x.putRecord(unsigned("a", 6, now), now) {
		t.Error("what happened more than a day ago is still held against a node")
	}
}

func TestASlotOfANodeThatIsGoneServesAnother(t *testing.T) {
	x := newReplica(3000)
	now := epoch
	for round := range 4 { // each generation dies before the next
		now = now.Add(3 * time.Hour)
		x.sweep(now)
		for i := range 3000 {
			id := peer.ID(fmt.Sprintf("%d/%d", round, i))
			model := []string{"nvidia-h100-80gb-sxm", "nvidia-l4-24gb"}[(i+round)%2]
			r := unsigned(id, 1, now, gpu(model, 4, []float64{79.65, 22.5}[(i+round)%2]))
			if !x.putRecord(r, now) || x.putBeat(unsignedBeat(r, 1, now, ready, &pb.GroupLoad{Free: uint32(i % 5)}), 0, now) != beatTaken {
				t.Fatalf("round %d: node %d has no room", round, i)
			}
		}
		if x.putRecord(unsigned("one more", 1, now), now) {
			t.Fatal("more nodes are held than the limit says")
		}
		if got := len(matches(t, x, `gpu.model == "H100" && gpu.free >= 2`, now)); got != 900 {
			t.Errorf("round %d: %d nodes with two free H100, want 900", round, got)
		}
		if got := matches(t, x, `gpu.model == "T4"`, now); len(got) != 0 {
			t.Errorf("round %d: %v", round, got)
		}
	}
	if len(x.chunks) != 3 {
		t.Errorf("%d chunks for 3000 nodes: slots are not used again", len(x.chunks))
	}
}

func TestModelsThatStrangersInventShareABitmapAndAreFoundAllTheSame(t *testing.T) {
	x := newReplica(3000)
	put := func(i int) {
		if !x.putRecord(unsigned(peer.ID(fmt.Sprint(i)), 1, epoch, gpu(fmt.Sprintf("nvidia-x%d-8gb", i), 1, 8)), epoch) {
			t.Fatal("no room")
		}
	}
	for i := range 2000 {
		put(i)
	}
	if n := len(x.classes.of); n > maxModels+10 {
		t.Errorf("%d bitmaps for invented models", n)
	}
	for _, i := range []int{0, 511, 512, 1999} {
		f := parsed(t, fmt.Sprintf(`gpu.model == "nvidia-x%d-8gb"`, i))
		hits, _ := newAsking(Query{Filter: f, Literal: true}, epoch, false).match(x)
		if len(hits) != 1 || hits[0].peer != peer.ID(fmt.Sprint(i)) {
			t.Errorf("model %d: %d nodes", i, len(hits))
		}
	}
	x.sweep(epoch.Add(3 * time.Hour))
	if n := len(x.classes.of); n != 0 || x.classes.models != 0 {
		t.Errorf("%d bitmaps of nobody", n)
	}
}

func TestHeartbeatsOfStrangersWithoutARecordCannotFillTheIndex(t *testing.T) {
	x := newReplica(800)
	taken := 0
	for i := range 5000 {
		id := peer.ID(fmt.Sprint(i))
		if x.putBeat(&beat{peer: id, av: heartbeat(id, 1, epoch, nil, ready)}, time.Second, epoch) == beatNews {
			taken++
		}
	}
	if taken != 5000 || x.size() != 116 || len(x.seen) != 0 {
		t.Errorf("%d taken, %d held, %d remembered", taken, x.size(), len(x.seen))
	}
	for i := range 600 {
		if !x.putRecord(unsigned(peer.ID(fmt.Sprint("honest", i)), 1, epoch), epoch) {
			t.Fatalf("honest node %d has no room", i)
		}
	}
}

func TestOrderWithALimitIsThePrefixOfTheOrderWithout(t *testing.T) {
	x := newReplica(4000)
	for i := range 4000 {
		x.putRecord(unsigned(peer.ID(fmt.Sprint(i)), 1, epoch), epoch)
	}
	hits, _ := newAsking(Query{Literal: true}, epoch, false).match(x)
	for seed := range uint64(50) {
		all := arrange(hits, seed, 0)
		for _, limit := range []int{1, 7, 100, 999, 3999, 5000} {
			some := arrange(hits, seed, limit)
			if want := all[:min(limit, 4000)]; !slices.EqualFunc(some, want, func(a, b hit) bool { return a.peer == b.peer }) {
				t.Fatalf("seed %d, limit %d: another order", seed, limit)
			}
		}
	}
}

func TestPagesAreTheWholeAnswer(t *testing.T) {
	x := newReplica(1000)
	for i := range 1000 {
		x.putRecord(unsigned(peer.ID(fmt.Sprint(i)), 1, epoch), epoch)
	}
	hits, _ := newAsking(Query{Literal: true}, epoch, false).match(x)
	all := arrange(hits, 5, 0)
	var got []hit
	for from := uint64(0); ; {
		page, cursor := pageOf(all, 5, from, 300)
		got = append(got, page...)
		if cursor == nil {
			break
		}
		from = shuffled(all[len(got)].order, 5)
	}
	if !slices.EqualFunc(got, all, func(a, b hit) bool { return a.peer == b.peer }) {
		t.Errorf("pages give %d of %d", len(got), len(all))
	}
}

func TestQueriesRunBesideHeartbeatsAndChanges(t *testing.T) {
	const n = 300
	x := newReplica(n)
	records := make([]*record, n)
	for i := range records {
		records[i] = unsigned(peer.ID(fmt.Sprint(i)), 1, epoch, gpu("nvidia-l4-24gb", 8, 22.5))
		x.putRecord(records[i], epoch)
		x.putBeat(unsignedBeat(records[i], 1, epoch, ready, &pb.GroupLoad{Free: 8}), 0, epoch)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 1))
		for seq := uint64(2); ; seq++ {
			select {
			case <-stop:
				return
			default:
			}
			i := rnd.IntN(n)
			if seq%3 == 0 {
				records[i] = unsigned(records[i].peer, seq, epoch, gpu("nvidia-l4-24gb", 8, 22.5))
				x.putRecord(records[i], epoch)
			}
			// Whatever the moment, a node has two or eight free GPUs.
			x.putBeat(unsignedBeat(records[i], seq, epoch, ready, &pb.GroupLoad{Free: uint32(2 + 6*rnd.IntN(2))}), 0, epoch)
		}
	})
	for range 500 {
		hits, ex := newAsking(Query{Filter: parsed(t, `gpu.model == "L4"`), Literal: true}, epoch, false).match(x)
		if len(hits) != n || ex.Population != n {
			t.Fatalf("%d of %d nodes are found while they change", len(hits), n)
		}
		if hits, _ := newAsking(Query{Filter: parsed(t, `gpu.free == 3`)}, epoch, false).match(x); len(hits) != 0 {
			t.Fatalf("%d nodes have a number of free GPUs that none ever had", len(hits))
		}
	}
	close(stop)
	all.Wait()
}
