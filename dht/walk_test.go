package dht

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

func TestAWalkGoesToTheNearestAndEndsWhenTheyHaveAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrail("key")
		for i := range 30 {
			w.hear(identityOf(t, i).id)
			w.hear(identityOf(t, i).id)
		}
		for i := 1; i < len(w.known); i++ {
			if string(w.known[i-1].far) >= string(w.known[i].far) {
				t.Fatal("not the nearest first")
			}
		}
		if len(w.known) != 30 {
			t.Fatalf("%d known", len(w.known))
		}
		ask := func() peer.ID {
			id, ok := w.next()
			if !ok {
				t.Fatal("nobody is left")
			}
			return id
		}
		failed := ask()
		w.answered(failed, false)
		stuck := ask()
		for i := range walkEnds {
			if w.ended(walkEnds) {
				t.Fatalf("ended after %d answers, with one on its way", i)
			}
			w.answered(ask(), true)
		}
		if w.ended(walkEnds) {
			t.Fatal("a nearer one has not answered yet")
		}
		pass(walkLate)
		if w.late(walkLate); !w.ended(walkEnds) {
			t.Fatal("it waits for an answer that is late")
		}
		w.answered(stuck, true) // after all
		if !w.ended(walkEnds) || w.asked != walkEnds+2 {
			t.Fatalf("asked %d", w.asked)
		}
	})
}

func TestHoldersHaveToAgreeOnProviders(t *testing.T) {
	list := func(from, to int) (out []*peer.AddrInfo) {
		for i := from; i < to; i++ {
			out = append(out, &peer.AddrInfo{ID: identityOf(t, i).id})
		}
		return out
	}
	for name, c := range map[string]struct {
		lists  [][]*peer.AddrInfo
		enough bool
		found  int
	}{
		"one alone":                        {[][]*peer.AddrInfo{list(0, 200)}, false, 200},
		"two that agree":                   {[][]*peer.AddrInfo{list(0, 20), list(1, 21)}, false, 21},
		"three that agree":                 {[][]*peer.AddrInfo{list(0, 20), list(1, 21), list(0, 21)}, true, 21},
		"who withholds is not heard":       {[][]*peer.AddrInfo{list(0, 20), nil, nil}, false, 20},
		"two that differ":                  {[][]*peer.AddrInfo{list(0, 20), list(10, 30)}, false, 30},
		"a liar among them":                {[][]*peer.AddrInfo{list(100, 150), list(0, 20), list(0, 19)}, false, 70},
		"two that came late":               {[][]*peer.AddrInfo{list(15, 20), list(16, 20), list(0, 20)}, false, 20},
		"one that gives a part":            {[][]*peer.AddrInfo{list(0, 5), list(0, 20), list(0, 20)}, true, 20},
		"two that give more than is asked": {[][]*peer.AddrInfo{list(0, 100), list(100, 200)}, true, 200},
	} {
		p, enough := &polls{most: 128, seen: map[peer.ID]bool{}}, false
		for _, l := range c.lists {
			enough = p.add(l)
		}
		if enough != c.enough || len(p.infos) != c.found {
			t.Errorf("%s: enough %t of %d, want %t of %d", name, enough, len(p.infos), c.enough, c.found)
		}
	}
}

func TestReadingWhatHoldersKeepTakesFewRequests(t *testing.T) {
	for name, withhold := range map[string]float64{"honest": 0, "a fifth withholds": 0.2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := ordinary(12, 100, 3)
				cfg.moves, cfg.churn, cfg.loss, cfg.withhold, cfg.rare = 0, 0, 0, withhold, 20
				w := newModelWorld(t, cfg)
				pass(6 * time.Minute)
				for _, n := range w.nodes(0)[80:] {
					n.kill() // some of the nearest are dead
				}
				pass(time.Minute)
				client := w.client()
				before, begun := client.now(), time.Now()
				infos, err := client.directory().Providers(context.Background(), "gpu/"+rareModel, 64)
				if err != nil || len(infos) != 20 {
					t.Errorf("%d providers, %v", len(infos), err)
				}
				took := time.Since(begun)
				used := client.now().less(before)
				if used.kinds[kadpb.Message_GET_PROVIDERS] > 12 || used.kinds[kadpb.Message_FIND_NODE] > 0 || took > 5*time.Second {
					t.Errorf("%v requests in %s", used.kinds, took)
				}
				n := w.nodes(0)[0]
				before = client.now()
				if rec, err := client.directory().fromDHT(context.Background(), n.id, 1); err != nil || rec.peer != n.id {
					t.Errorf("record: %v", err)
				}
				if used := client.now().less(before); used.kinds[kadpb.Message_GET_VALUE] > 12 {
					t.Errorf("%v requests", used.kinds)
				}
				before = client.now()
				if infos := client.directory().providers(context.Background(), "gpu/none", 64, client.directory().readProviders); len(infos) > 0 {
					t.Errorf("of a key that nobody has: %d", len(infos))
				}
				if used := client.now().less(before); used.kinds[kadpb.Message_GET_PROVIDERS] > 12 {
					t.Errorf("%v requests for nothing", used.kinds)
				}
				w.end()
			})
		})
	}
}
