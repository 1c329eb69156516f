package dht

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAWrongClockStopsAdvertisingOnceTwoRoundsOfThreeSaySo(t *testing.T) {
	s := time.Second
	c := conditions{}
	for i, r := range []struct {
		clocks   []time.Duration
		off      bool
		wait     time.Duration
		whatItIs string
	}{
		{[]time.Duration{s, -s, 0}, false, conditionsEvery, "right"},
		{[]time.Duration{2 * time.Hour, 2 * time.Hour}, false, conditionsEvery, "two say nothing"},
		{[]time.Duration{61 * s, 61 * s, 0}, false, conditionsSoon, "one round may be lies"},
		{[]time.Duration{0, s, 61 * s}, false, conditionsEvery, "and was"},
		{[]time.Duration{-61 * s, -2 * time.Hour, 0, -62 * s}, false, conditionsSoon, "behind"},
		{nil, false, conditionsSoon, "nobody answers"},
		{[]time.Duration{-61 * s, -61 * s, -61 * s}, true, conditionsSoon, "behind twice"},
		{[]time.Duration{0, 0}, true, conditionsSoon, "two say nothing"},
		{[]time.Duration{70 * s, 70 * s, 70 * s}, true, conditionsSoon, "set wrongly"},
		{[]time.Duration{60 * s, 60 * s, 60 * s}, false, conditionsEvery, "within a minute"},
	} {
		c = c.judged(r.clocks, nil)
		if c.off != r.off || c.wait() != r.wait {
			t.Errorf("round %d, %s: off %t, again in %s", i, r.whatItIs, c.off, c.wait())
		}
	}
}

func TestHeartbeatsComeHalfAsOftenAbove20000Nodes(t *testing.T) {
	d := still(t)
	own, err := openCapability(sign(t, identityOf(t, 1).key, capabilitySeal(), machine(d.host.ID(), 1, epoch)), d.host.ID(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	d.own = own
	src := &beatSource{t: t}
	a, err := NewAnnouncer(d, DefaultSchedule(), src, nil, newRand(1))
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []struct {
		populations []int
		want        time.Duration
	}{
		{nil, 30 * time.Second},
		{[]int{20_000, 20_000, 90_000}, 30 * time.Second},
		{[]int{90_000, 90_000}, 30 * time.Second}, // two may lie
		{[]int{20_001, 5, 90_000}, time.Minute},
		{[]int{19_000, 19_000, 19_000}, time.Minute}, // no flapping
		{[]int{18_000, 18_000, 90_000}, 30 * time.Second},
	} {
		a.conditions = a.conditions.judged(nil, r.populations)
		if err := a.publishBeat(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if a.every() != r.want || src.last.Period != r.want {
			t.Errorf("round %d: a heartbeat every %s, said to be %s, want %s", i, a.every(), src.last.Period, r.want)
		}
	}
	a.plan.Beat = time.Second // a test's
	if err := a.publishBeat(t.Context(), false); err != nil || src.last.Period != minPeriod {
		t.Errorf("%v; period %s", err, src.last.Period)
	}
}

// beatSource signs heartbeats of identity 1.
type beatSource struct {
	t    *testing.T
	last BeatHeader
}

func (s *beatSource) Record(uint64, time.Time, time.Time, bool) ([]byte, error) {
	return nil, context.Canceled
}

func (s *beatSource) Beat(h BeatHeader, _ bool) ([]byte, error) {
	s.last = h
	who := identityOf(s.t, 1)
	av := heartbeat(who.id, h.Seq, h.At, nil, ready)
	av.PeriodS = uint32(h.Period / time.Second)
	return sign(s.t, who.key, availabilitySeal(), av), nil
}

func TestThreeIndexPeersTellThePopulationAndTheTime(t *testing.T) {
	c := newCrowd(t, 40, 1, time.Now())
	_, indexes := indexed(t, c, -1, -1, -1)
	node := startPeer(t, 200, nil)
	for _, p := range indexes {
		connect(t, node.host, p.host)
	}
	var clocks []time.Duration
	eventually(t, "three index peers answer", func() bool {
		node.dir.indexes.at = time.Time{} // looked for again, not every half hour
		var populations []int
		clocks, populations = node.dir.askConditions(within(t, 10*time.Second), false)
		return len(populations) == 3 && middle(populations) >= 40 && len(clocks) == 3
	})
	if slices.ContainsFunc(clocks, func(c time.Duration) bool { return c.Abs() > 5*time.Second }) {
		t.Errorf("others' clocks: %s", clocks)
	}
}

func TestANodeWithAWrongClockFallsSilentUntilItIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 5, 6, 0)
		pass(5 * time.Minute)
		h := w.hosts[5]
		sent := func() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.beats) + len(h.records) }
		if sent() < 8 || h.directory().ClockOff() {
			t.Fatalf("with a good clock %d messages, off %t", sent(), h.directory().ClockOff())
		}
		h.ahead.Store(int64(-75 * time.Second))
		pass(40 * time.Minute)
		before := sent()
		pass(10 * time.Minute)
		if !h.directory().ClockOff() || sent() != before {
			t.Errorf("with a clock 75 s behind: off %t, %d messages in ten minutes", h.directory().ClockOff(), sent()-before)
		}
		h.ahead.Store(0)
		pass(3 * time.Minute)
		if h.directory().ClockOff() || sent() < before+3 {
			t.Errorf("after it was set: off %t, %d messages", h.directory().ClockOff(), sent()-before)
		}
	})
}
