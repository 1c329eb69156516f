package dht

import (
	"fmt"
	"testing"
	"time"
)

func TestAskersOfOneNetworkHaveNoMoreThanItsShare(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	const tries = 1000
	for what, c := range map[string]struct {
		who   func(i int) asker
		peers int // as many as so many peers may have together, where their network has its share; 0 is all
	}{
		"one peer":                       {func(i int) asker { return askerAt(1, "/ip4/8.8.8.8/tcp/%d", i) }, 1},
		"many peers at one IPv4 address": {func(i int) asker { return askerAt(i, "/ip4/8.8.8.8/tcp/%d", i) }, tries},
		"many peers of an IPv6 /48":      {func(i int) asker { return askerAt(i, "/ip6/2606:4700:1:%x::1/tcp/1", i) }, tries},
		"many peers of IPv6 /48s":        {func(i int) asker { return askerAt(i, "/ip6/2606:4700:%x::1/tcp/1", i) }, 0},
		"many peers on our own machine":  {func(i int) asker { return askerAt(i, "/ip4/127.0.0.1/tcp/%d", i) }, 0},
	} {
		r, q, s := newAskRates(1, 5), newQuota(func() time.Time { return now }), newScans(&Config{ScanRate: 1, ScanQuota: 5})
		for kind, k := range map[string]struct {
			take          func(who asker) bool
			ofPeer, share int
		}{
			"questions": {func(who asker) bool { return r.take(who, now) == 0 }, 5, netShare},
			"records":   {func(who asker) bool { return q.allow(who, true) }, putsPerMinute, netShare},
			"providers": {func(who asker) bool { return q.allow(who, false) }, providesPerMinute, netShare},
			"scans":     {func(who asker) bool { return s.spend(who, 1, now) == 0 }, 5, scanNetShare},
		} {
			got, want := 0, tries
			if c.peers > 0 {
				want = min(tries, k.ofPeer*min(c.peers, k.share))
			}
			for i := range tries {
				got += btoi(k.take(c.who(i)))
			}
			if got != want {
				t.Errorf("%s: %d of %d %s are taken, want %d", what, got, tries, kind, want)
			}
		}
	}
}

func TestNobodyGetsNewTokensBecauseStrangersCome(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r, used := newRates(0.001, 3), usage{}
	for range 3 {
		if r.take("greedy", now) != 0 {
			t.Fatal("the first three are refused")
		}
	}
	for used.spend(asker{peer: "greedy"}, 1, 3, netShare) {
	}
	for i := range 3 * maxBuckets {
		who := fmt.Sprint("stranger ", i)
		r.take(who, now)
		used.spend(askerAt(i, "/ip4/127.0.0.1/tcp/1"), 1, 3, netShare)
		if len(r.buckets) > maxBuckets || len(used) > maxBuckets {
			t.Fatalf("%d buckets, %d counters", len(r.buckets), len(used))
		}
	}
	if r.take("greedy", now) == 0 || used.spend(asker{peer: "greedy"}, 1, 3, netShare) {
		t.Error("strangers brought new tokens")
	}
	if r.take("greedy", now.Add(time.Hour)) != 0 {
		t.Error("no token after an hour")
	}
}
