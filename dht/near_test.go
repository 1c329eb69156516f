package dht

import (
	"context"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestPingsDecideWhereAFilterAsksForRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 3, 9, 0)
		w.net.Slow(7, 60*time.Millisecond) // each way: 130 ms to and fro
		w.net.Slow(8, 60*time.Millisecond)
		pass(2 * time.Minute)
		client := w.client()
		pass(5 * time.Second)
		for where, want := range map[string]int{
			`node.rtt_ms < 50 && gpus.count >= 1`:                      4,
			`node.rtt_ms >= 100 && gpus.count >= 1`:                    2,
			`node.rtt_ms < 1000 && gpus.count >= 1`:                    6,
			`(node.rtt_ms < 50 || cpu.cores >= 1) && gpus.count >= 1`:  6,
			`node.rtt_ms < 50 && gpu.model == "T4"`:                    0,
			`node.rtt_ms < 50 && node.reputation > 0 && gpus.free > 0`: 0, // nobody has scores here
		} {
			for name, d := range map[string]*Directory{"client": client, "replica": w.hosts[0].directory()} {
				got, _ := w.ask(d, Query{Filter: parsed(t, where)})
				if len(got) != want {
					t.Errorf("%s, %s: %d nodes, want %d", where, name, len(got), want)
				}
			}
		}
		rtts := client.Measure(context.Background(), []peer.ID{w.hosts[4].ID(), w.hosts[7].ID(), identityOf(t, 1).id})
		if near, far := rtts[w.hosts[4].ID()], rtts[w.hosts[7].ID()]; len(rtts) != 2 || near > 20*time.Millisecond || far < 120*time.Millisecond || far > 160*time.Millisecond {
			t.Errorf("measured %v", rtts)
		}
	})
}

func TestTheBestEstimatesArePingedFirst(t *testing.T) {
	estimates := map[peer.ID]float64{"a": 30, "b": math.NaN(), "c": 10, "d": 20}
	of := func(id peer.ID) float64 { return estimates[id] }
	ids := []peer.ID{"a", "b", "c", "d"}
	if got := nearestFirst(ids, of, 0); !slices.Equal(got, []peer.ID{"c", "d", "a", "b"}) {
		t.Errorf("order %v", got)
	}
	if got := nearestFirst(ids, of, 2); !slices.Equal(got, []peer.ID{"c", "d"}) {
		t.Errorf("first two %v", got)
	}
}
