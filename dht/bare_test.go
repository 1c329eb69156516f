package dht

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// madeUp are heartbeats of keys without records.
func madeUp(x *replica, from, n int, now time.Time) {
	for i := range n {
		id := peer.ID(fmt.Sprint("made up ", from+i))
		x.putBeat(&beat{peer: id, av: heartbeat(id, 1, now, nil, ready)}, time.Second, now)
	}
}

func TestANewcomerIsListedUnderAFloodOfMadeUpKeys(t *testing.T) {
	x := newReplica(8000)
	madeUp(x, 0, 8000, epoch)
	later := epoch.Add(time.Second)
	honest := unsigned("honest", 1, later)
	if fate := x.putBeat(unsignedBeat(honest, 1, later, ready), 2*time.Second, later); fate != beatNews {
		t.Fatalf("the newcomer's heartbeat: %d", fate)
	}
	madeUp(x, 8000, x.bareLimit()-1, later) // while its record is being fetched
	if !x.beats("honest") || !x.putRecord(honest, later) {
		t.Fatal("the newcomer was pushed out before its record could come")
	}
	x.putBeat(unsignedBeat(honest, 2, later, ready), 0, later)
	madeUp(x, 20_000, 20_000, later)
	if got := matches(t, x, "", later); len(got) != 1 || got[0] != "honest" {
		t.Errorf("listed: %q", got)
	}
	if x.bare.len() != x.bareLimit() || len(x.slots) != x.bareLimit()+1 || len(x.bare.of) != x.bareLimit() {
		t.Errorf("%d bare of %d slots, limit %d", x.bare.len(), len(x.slots), x.bareLimit())
	}
}

func TestAHeartbeatWithoutARecordIsForgottenSoon(t *testing.T) {
	x := newReplica(100)
	madeUp(x, 0, 5, epoch)
	known := unsigned("known", 1, epoch)
	x.putBeat(unsignedBeat(known, 1, epoch, ready), 0, epoch)
	x.putRecord(known, epoch)
	x.sweep(epoch.Add(29 * time.Second))
	if x.size() != 6 {
		t.Errorf("%d nodes before their records could be fetched, want 6", x.size())
	}
	x.dropBare("made up 0")
	x.dropBare("known")
	if x.size() != 5 || !x.beats("known") {
		t.Errorf("%d nodes after the fetching of one has failed, want 5", x.size())
	}
	x.sweep(epoch.Add(31 * time.Second))
	if x.size() != 1 || !x.beats("known") || len(x.seen) != 0 {
		t.Errorf("%d nodes, %d remembered; want the known one alone", x.size(), len(x.seen))
	}
}

// A node that says that it is silent for an hour would be offered for hours after its death.
func TestAHeartbeatOfALongPeriodIsIgnoredWithoutBlame(t *testing.T) {
	d := still(t)
	for period, want := range map[uint32]Verdict{0: Reject, 9: Ignore, 10: Accept, 120: Accept, 121: Ignore, 3600: Ignore} {
		who := identityOf(t, 100+int(period))
		av := heartbeat(who.id, 1, epoch, nil, ready)
		av.PeriodS = period
		if got := d.hear(who.id, sign(t, who.key, availabilitySeal(), av)); got != want {
			t.Errorf("period %d s: verdict %d, want %d", period, got, want)
		}
	}
}

func TestOfAFloodOfMadeUpKeysOnlyAPartIsForwarded(t *testing.T) {
	d := still(t)
	d.judge.beat = func(_ []byte, author peer.ID) (*beat, error) {
		return &beat{peer: author, av: heartbeat(author, 1, epoch, nil, ready)}, nil
	}
	forwarded := 0
	for i := range 3 * 4 * unknownRate {
		forwarded += btoi(d.hear(peer.ID(fmt.Sprint(i)), nil) == Accept)
	}
	if forwarded != 4*unknownRate {
		t.Errorf("%d of a burst are forwarded, want %d", forwarded, 4*unknownRate)
	}
}

// still is a directory at epoch that is not running.
func still(t *testing.T) *Directory {
	t.Helper()
	h, gossip := newHost(t, identityOf(t, 1))
	cfg := DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.Index, cfg.Shards = ModeServer, true, true, AllShards()
	d, err := New(cfg, h, gossip, func() time.Time { return epoch }, newRand(1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
