package cluster

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// took hands in a result with a run time.
func (d *desk) took(l Lease, seconds float64) {
	d.t.Helper()
	_, fx := d.tr.Result(End{Lease: l.ID, Node: l.Node, Range: l.Range, Fence: l.Fence, Reason: protocol.ReasonDone, Digest: "same", Seconds: seconds}, d.now)
	d.keep(fx)
}

func TestANodeHoldsAsManyShortChunksAsItRunsInATenthOfASecond(t *testing.T) {
	for _, c := range []struct {
		seconds float64
		want    int
	}{{10, 8}, {0.051, 8}, {0.020, 20}, {0.010, 40}, {0.0001, 256}} { // four slots, at least two and at most 64 each
		d := newDesk(t, 100_000, nil, "g")
		if got := len(d.grant("n0", 1000)); got != 8 {
			t.Fatalf("%d leases while nothing is known of the pace, want two a slot", got)
		}
		for _, l := range d.tr.Leases("n0") {
			d.took(l, c.seconds)
		}
		if got := len(d.grant("n0", 1000)); got != c.want {
			t.Errorf("%d leases of %g s, want %d", got, c.seconds, c.want)
		}
	}
}

func TestNobodyHoardsTheTailOfShortChunks(t *testing.T) {
	d := newDesk(t, 48, nil, "a", "b")
	for _, l := range d.grant("n0", 8) {
		d.took(l, 0.001)
	}
	if got := len(d.grant("n0", 1000)); got != 20 { // half of the slots, half of the 40 that are left
		t.Errorf("one of two nodes holds %d of the last 40 chunks, want its half", got)
	}
	if got := len(d.grant("n1", 1000)); got != 8 { // it has shown no pace yet
		t.Errorf("the other gets %d, want two a slot", got)
	}
}

func TestAShortChunkIsNoStragglerWithinASecond(t *testing.T) {
	d := newDesk(t, 5, nil, "a", "b")
	for range 4 {
		d.took(d.one("n0"), 0.001)
	}
	slow := d.one("n0")
	d.report("n0", slow)
	d.wait(0.9)
	d.report("n0", slow)
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Errorf("a chunk is copied after 0.9 s: %+v", got)
	}
	d.wait(0.2)
	d.report("n0", slow)
	if got := d.grant("n1", 1); len(got) != 1 || got[0].Range != slow.Range {
		t.Errorf("a chunk of 1 ms that takes longer than a second is not copied: %+v", got)
	}
}

func TestAheadIsBounded(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"Ahead": func(c *Config) { c.Ahead = -time.Second }, "MostPerSlot": func(c *Config) { c.MostPerSlot = 1 }, "StragglerFloor": func(c *Config) { c.StragglerFloor = -1 },
	} {
		c := DefaultConfig(protocol.JobID{7}, 10)
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
