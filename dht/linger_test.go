package dht

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestAHeartbeatThatTellsNothingNewIsForwardedALittleLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(9, 6, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(8 * time.Minute)
		n := w.nodes(0)[0]
		hubs := []*Directory{w.peers[0].directory(), w.peers[1].directory()}
		own := n.directory().ownRecord()
		seq := uint64(1) << 60
		hear := func(d *Directory, leaving bool) (Verdict, time.Duration) {
			raw, err := n.Beat(BeatHeader{Seq: seq, At: time.Now(), Period: 30 * time.Second, CapSeq: own.cap.GetSeq(), CapDigest: own.digest}, leaving)
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			return d.hear(n.id, raw), time.Since(begun)
		}
		waits := map[time.Duration]bool{}
		for range 10 {
			for _, d := range hubs {
				v, wait := hear(d, false)
				if v != Accept || wait > lingerMost {
					t.Errorf("verdict %v after %s", v, wait)
				}
				if h, _ := d.index.get(n.id, time.Now()); h.age != wait {
					t.Errorf("it was taken %s before it was forwarded, which waited for %s", h.age, wait)
				}
				waits[wait] = true
			}
			seq++
			pass(5 * time.Second)
		}
		if len(waits) < 20 || waits[0] {
			t.Errorf("20 waits are %v: no two alike and none of nothing are meant", waits)
		}
		n.mu.Lock()
		n.free = 101
		n.mu.Unlock()
		if v, wait := hear(hubs[0], false); v != Accept || wait != 0 {
			t.Errorf("a change: verdict %v after %s", v, wait)
		}
		seq++
		if v, wait := hear(hubs[0], true); v != Accept || wait != 0 {
			t.Errorf("a goodbye: verdict %v after %s", v, wait)
		}
		hubs[0].lingering.Store(maxLingering)
		seq++
		hear(hubs[1], false)
		seq++
		begun := time.Now()
		if hubs[0].linger(seq); time.Since(begun) != 0 || hubs[0].lingering.Load() != maxLingering {
			t.Errorf("with %d waiting one more waits for %s", maxLingering, time.Since(begun))
		}
		hubs[0].lingering.Store(0)
		w.end()
	})
}

// TestARealHeartbeatComesToAReplicaLittleMoreThanOnce counts what gossipsub brings to five index peers.
func TestARealHeartbeatComesToAReplicaLittleMoreThanOnce(t *testing.T) {
	const hosts, hubs, over = 12, 5, 5 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 11, hosts, 0, func(w *simWorld) {
			for i, h := range w.hosts {
				if h.index = i < hubs; h.index && i >= len(w.boot) {
					w.boot = append(w.boot, h.AddrInfo())
				}
			}
		})
		pass(5 * time.Minute)
		told := func() (n int, size int64) {
			for _, h := range w.hosts {
				h.mu.Lock()
				n += len(h.beats)
				size = gossipSize("/gridbeam/1/avail/00", h.beats[0])
				h.mu.Unlock()
			}
			return n, size
		}
		got := func() (n int64) {
			for i := range hubs {
				n += w.tallies[i].received[flowGossip].Load()
			}
			return n
		}
		beats, _ := told()
		before := got()
		pass(over)
		after, size := told()
		copies := float64(got()-before) / float64(size) / float64(after-beats) / hubs
		t.Logf("%d heartbeats of %d bytes, each %.2f times at each of %d index peers, with all that gossip says beside", after-beats, size, copies, hubs)
		if copies < 0.5 || copies > 2 {
			t.Errorf("a heartbeat comes %.2f times", copies)
		}
	})
}
