package dht

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
)

func TestAClientThatStaysAsksThreeIndexPeersAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(13, 40, 5)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(6 * time.Minute)
		client := w.client()
		ask := func(what string, queries, kademlia int64) {
			before := client.now()
			got, ex, err := client.directory().Find(context.Background(), Query{})
			used := client.now().less(before)
			if err != nil || ex.IndexHeard != 3 || len(got) < 40 {
				t.Errorf("%s: %d nodes of %d index peers, %v", what, len(got), ex.IndexHeard, err)
			}
			if used.begun[flowQuery] > queries || used.begun[flowKad] > kademlia {
				t.Errorf("%s: %d queries and %d requests of Kademlia, at most %d and %d are meant", what, used.begun[flowQuery], used.begun[flowKad], queries, kademlia)
			}
		}
		ask("at first", 3, 8)
		ask("again", 3, 0)
		pass(indexMemory)
		ask("after half an hour", 3, 8)
		client.directory().indexes.turn <- struct{}{}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if ids, _ := client.directory().indexPeers(ctx, false); len(ids) != 0 || ctx.Err() == nil {
			t.Error("who looks for index peers while another one does waits no longer than it wants")
		}
		client.directory().indexes.release()
		for _, p := range w.peers[:3] {
			p.leave()
		}
		pass(time.Minute)
		if got, ex, err := client.directory().Find(context.Background(), Query{Via: ViaIndex}); err != nil || len(got) < 40 || ex.IndexHeard == 0 {
			t.Errorf("of those remembered three have left: %d nodes of %d index peers, %v", len(got), ex.IndexHeard, err)
		}
		w.end()
	})
}

func TestAReplicaGetsNewRecordsFromNodesAndOtherReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(14, 60, 5)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(10 * time.Minute)
		var before counts
		for _, p := range w.peers {
			before = before.plus(p.now())
		}
		pass(time.Hour)
		var after counts
		for _, p := range w.peers {
			after = after.plus(p.now())
		}
		used := after.less(before)
		// 60 nodes tell of two records in an hour; two of five index peers are not connected to each.
		if asked := used.begun[flowQuery]; asked < 60*2*4 {
			t.Errorf("%d queries: records do not come from anywhere", asked)
		}
		if gets := used.kinds[kadpb.Message_GET_VALUE]; gets > 60*2 {
			t.Errorf("%d requests to holders for %d records", gets, 60*2*2)
		}
		for _, p := range w.peers {
			for _, n := range w.nodes(0) {
				if h, ok := p.directory().index.get(n.id, time.Now()); !ok || h.waits {
					t.Errorf("%d waits for the record of %d", p.at, n.at)
				}
			}
		}
		w.end()
	})
}

func TestKeysAreAnnouncedOnceMoreSoonAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(15, 30, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		n := w.come(nil)
		told := func(after time.Duration) int64 {
			before := n.now()
			pass(after)
			return n.now().less(before).kinds[kadpb.Message_ADD_PROVIDER]
		}
		first, again, later := told(time.Minute), told(2*time.Minute), told(50*time.Minute)
		if first == 0 || again != first || later != 0 {
			t.Errorf("%d holders told at the start, %d two minutes later, %d within the hour", first, again, later)
		}
		w.end()
	})
}
