package dht

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestTwoIndexPeersThatLieTogetherDoNotHideWhatAThirdGives(t *testing.T) {
	c := newCrowd(t, 50, 1, time.Now())
	client, indexes := indexed(t, c, -1, -1, -1)
	var invented []*pb.QueryRow
	now := time.Now()
	for i := range 50 {
		who := identityOf(t, 1000+i)
		raw := sign(t, who.key, capabilitySeal(), machine(who.id, 1, now, gpu("nvidia-l4-24gb", 1, 22.5)))
		beat := sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, now, raw, ready))
		invented = append(invented, &pb.QueryRow{Capability: raw, Availability: beat})
	}
	for _, p := range indexes[1:] {
		p.answerWith(func() []*pb.QueryRow { return invented })
	}
	f := parsed(t, "gpu.count >= 1")
	var ex Explanation
	eventually(t, "the honest one's nodes are found", func() bool {
		got, e, err := client.dir.Find(within(t, 20*time.Second), Query{Filter: f, Literal: true, Via: ViaIndex})
		found := map[peer.ID]bool{}
		for _, g := range got {
			found[g.Peer] = true
		}
		ex = e
		return err == nil && len(e.Index) == 3 && !slices.ContainsFunc(c.records, func(r *record) bool { return !found[r.peer] })
	})
	honest := slices.IndexFunc(ex.Index, func(a IndexAnswer) bool { return a.Peer == indexes[0].id })
	if honest < 0 || !ex.Index[honest].Lacking || ex.Index[honest].Lacks != 50 || ex.IndexHeard != 2 {
		t.Errorf("%+v", ex)
	}
	eventually(t, "too few count, so the nodes are asked too", func() bool {
		_, e, err := client.dir.Find(within(t, 20*time.Second), Query{Filter: f, Literal: true})
		return err == nil && e.Tier == "index+cold"
	})
}

func TestWhoLacksMoreThanAFifthOfWhatTwoOthersGaveDoesNotCount(t *testing.T) {
	rows := func(from, to int) map[peer.ID]answered {
		out := map[peer.ID]answered{}
		for i := from; i < to; i++ {
			out[peer.ID([]byte{byte(i)})] = answered{}
		}
		return out
	}
	for _, c := range []struct {
		has   int
		lacks bool
	}{{100, false}, {80, false}, {79, true}, {0, true}} {
		a := []*polled{{rows: rows(0, c.has), upTo: math.MaxUint64}, {rows: rows(0, 100), upTo: math.MaxUint64}, {rows: rows(0, 100), upTo: math.MaxUint64}}
		lacking(a, 1)
		if a[0].Lacking != c.lacks || a[0].Lacks != 100-c.has || a[1].Lacking || a[2].Lacking {
			t.Errorf("one that has %d of 100: %+v", c.has, a[0].IndexAnswer)
		}
	}
}
