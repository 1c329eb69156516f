package dht

import (
	"testing"
	"time"
)

// A replica that has not heard a node's last heartbeat is played it late: it counts as heard when the node can have sent
// it, its clock being two minutes behind at most.
func TestAHeartbeatThatIsHeldBackShowsADeadNodeNoLongerThanItsClockMayBeWrong(t *testing.T) {
	for _, late := range []time.Duration{0, time.Minute, 2 * time.Minute, 3 * time.Minute, 5 * time.Minute} {
		d := still(t)
		now := epoch.Add(late)
		d.clock = func() time.Time { return now }
		who := identityOf(t, 7)
		raw := sign(t, who.key, capabilitySeal(), machine(who.id, 1, epoch, gpu("nvidia-l4-24gb", 1, 22.5)))
		if err := d.Learn(who.id, raw); err != nil {
			t.Fatal(err)
		}
		beat := sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, epoch, raw, ready))
		if v := d.hear(who.id, beat); v != Accept {
			t.Fatalf("%s late: verdict %d", late, v)
		}
		until := epoch.Add(min(late, maxAhead)).Add(90*time.Second - lingerMost) // of its death
		for at, want := range map[time.Time]int{now: btoi(!now.After(until)), until: 1, until.Add(time.Millisecond): 0} {
			if at.Before(now) {
				continue
			}
			if out, _ := newAsking(Query{Filter: parsed(t, "gpu.count == 1")}, at, false).run(d.index); len(out) != want {
				t.Errorf("%s late, %s after its death: offered %d times, want %d", late, at.Sub(epoch), len(out), want)
			}
		}
	}
}

func TestANodeWhoseClockIsTwoMinutesWrongIsNotStaleAtOnce(t *testing.T) {
	for _, ahead := range []time.Duration{-2 * time.Minute, 2 * time.Minute} {
		d := still(t)
		who := identityOf(t, 7)
		raw := sign(t, who.key, capabilitySeal(), machine(who.id, 1, epoch.Add(ahead)))
		if err := d.Learn(who.id, raw); err != nil {
			t.Fatal(err)
		}
		d.hear(who.id, sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, epoch.Add(ahead), raw, ready)))
		for at, want := range map[time.Duration]string{0: "READY", 89 * time.Second: "READY", 91 * time.Second: stateStale} {
			if h, ok := d.index.get(who.id, epoch.Add(at)); !ok || h.state != want {
				t.Errorf("clock %s ahead: after %s %q, want %q", ahead, at, h.state, want)
			}
		}
	}
}
