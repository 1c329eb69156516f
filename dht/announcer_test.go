package dht

import (
	"testing"
	"testing/synctest"
	"time"
)

// A node behind a NAT is reached once it has a relay, some time after its start; one whose relays come and go must not
// burden the directory.
func TestWhoIsReachedElsewhereSaysSoSoonAtFirstAndThenSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 5, 5, 0)
		pass(time.Minute)
		h := w.hosts[4]
		if got, ok := h.announce.Stored(); !ok || got.Holders == 0 || got.Acks != got.Holders || time.Since(got.At) > time.Minute {
			t.Errorf("who took the record: %+v, %t", got, ok)
		}
		records := func() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.records) }
		if records() != 1 {
			t.Fatalf("after a minute it has published %d records, want 1", records())
		}
		h.announce.Moved()
		pass(10 * time.Second)
		if records() != 2 {
			t.Errorf("10 s after it got a relay it has published %d records, want 2", records())
		}
		for range 60 { // a relay that flaps
			h.announce.Moved()
			pass(time.Second)
		}
		if records() != 1+soonMoves {
			t.Errorf("after a minute of moving it has published %d records, want %d", records(), 1+soonMoves)
		}
		pass(2 * time.Minute)
		if records() != 2+soonMoves {
			t.Errorf("two minutes later it has published %d records, want %d", records(), 2+soonMoves)
		}
	})
}

func TestNobodyHasTakenARecordThatWasNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 1, 1, 0) // nobody to ask
		pass(time.Minute)
		if got, ok := w.hosts[0].announce.Stored(); ok {
			t.Errorf("%+v", got)
		}
	})
}
