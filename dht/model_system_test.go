//go:build system

package dht

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

// measured is how long the network of 10,000 is watched, after 20 minutes of warming up; there is a question every 5 minutes.
var measured = flag.Duration("measured", 2*time.Hour, "for how long a model of 10,000 nodes is measured")

// The goals of discovery.md 12 over two hours.

func TestAModelOf1000NodesHoldsItsGoals(t *testing.T) {
	if raceEnabled {
		t.Skip("minutes without the race detector")
	}
	r := modelled(t, ordinary(1, 1_000, 5), 20*time.Minute, 2*time.Hour, 24)
	goals{
		recall: 0.995, visible: 2 * time.Second, killed: 90*time.Second + pollStep, left: 2 * time.Second, idle: 500,
		ingest: 25_000, coldClient: 3 * time.Second, allPaths: 0.99, dhtAlone: 0.95, messages: true,
	}.hold(t, &r)
	recall := min(mean(r.f.recalls["replica all"]), mean(r.f.recalls["index peers all"]))
	fmt.Printf("BenchmarkModel1k 1 0 ns/op %f recall %f idle-B/s\n", recall, max(r.idle.sent, r.idle.received)) // bench reads it
}

func TestAModelOf10000NodesHoldsItsGoals(t *testing.T) {
	if raceEnabled {
		t.Skip("minutes without the race detector")
	}
	r := modelled(t, ordinary(1, 10_000, 5), 20*time.Minute, *measured, max(1, int(*measured/(5*time.Minute))))
	goals{
		recall: 0.99, visible: 3 * time.Second, killed: 90*time.Second + pollStep, left: 2 * time.Second, idle: 500,
		ingest: 250_000, coldClient: 10 * time.Second, allPaths: 0.99, dhtAlone: 0.95, messages: true,
	}.hold(t, &r)
}

func TestAModelOf1000NodesFindsThemAlthoughServersWithhold(t *testing.T) {
	if raceEnabled {
		t.Skip("minutes without the race detector")
	}
	cfg := ordinary(1, 1_000, 5)
	cfg.withhold = 0.2
	r := modelled(t, cfg, 20*time.Minute, time.Hour, 24)
	for path, least := range map[string]float64{"all paths rare": 0.99, "DHT alone rare": 0.95} {
		if got := mean(r.f.recalls[path]); got < least {
			t.Errorf("recall by %s is %.3f, goal %.3f", path, got, least)
		}
	}
}
