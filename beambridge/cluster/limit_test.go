package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// says reports leases in a phase.
func (d *desk) says(node string, e AttemptEvent, ls ...Lease) {
	d.seq++
	var held []Observed
	for _, l := range ls {
		held = append(held, Observed{l.ID, l.Fence, e})
	}
	d.keep(d.tr.Report(protocol.PeerID(node), d.seq, held, d.now))
}

// stays lets time pass while a node reports its leases every two seconds.
func (d *desk) stays(node string, e AttemptEvent, seconds float64, ls ...Lease) {
	for ; seconds > 0; seconds -= 2 {
		d.says(node, e, ls...)
		d.wait(min(seconds, 2))
	}
}

// tenSeconds is the timeout of a job.
func tenSeconds(c *Config) { c.Limit = 10 * time.Second }

func TestAnAttemptIsEndedWhenItsPhaseTakesTooLong(t *testing.T) {
	once := func(c *Config) { tenSeconds(c); c.Retries = 0 }
	for name, c := range map[string]struct {
		phase   AttemptEvent
		seconds float64 // the last moment at which it is left alone
		change  func(*Config)
		state   AttemptState
		reason  Reason
		text    string
	}{
		"waiting":          {AttemptRenew, 1239, tenSeconds, AttemptCancelled, protocol.ReasonBusy, "did not begin"},
		"waiting, once":    {AttemptRenew, 1239, once, AttemptLost, protocol.ReasonLeaseExpired, "did not begin"},
		"staging":          {AttemptStage, 629, tenSeconds, AttemptFailed, protocol.ReasonStuck, "prepares"},
		"running":          {AttemptRun, 39, tenSeconds, AttemptFailed, protocol.ReasonStuck, "at most 10s is allowed (policy.timeout)"},
		"running, once":    {AttemptRun, 39, once, AttemptFailed, protocol.ReasonStuck, "policy.timeout"},
		"publishing":       {AttemptPublish, 629, tenSeconds, AttemptFailed, protocol.ReasonStuck, "publishes"},
		"publishing, once": {AttemptPublish, 629, once, AttemptFailed, protocol.ReasonStuck, "publishes"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, 1, c.change, "a")
			l := d.one("n0")
			d.stays("n0", c.phase, c.seconds, l)
			if got := d.leases[l.ID]; !got.State.Live() || len(d.stops) != 0 {
				t.Fatalf("within its limit: %+v, stops %+v", got, d.stops)
			}
			d.stays("n0", c.phase, 2, l)
			got := d.leases[l.ID]
			if got.State != c.state || got.Reason != c.reason || !strings.Contains(got.Text, c.text) {
				t.Errorf("past its limit: %s by %s (%q), want %s by %s (%q)", got.State, got.Reason, got.Text, c.state, c.reason, c.text)
			}
			if len(d.stops) == 0 || d.stops[0].Lease != l.ID || d.stops[0].Reason != c.reason {
				t.Errorf("stops %+v, want the lease's by %s", d.stops, c.reason)
			}
			d.want("a result after that", d.result(l, protocol.ReasonDone, 0), VerdictFenced)
			if once := d.cfg.Retries == 0; once != (d.tr.State() == JobFailed) || once && (d.chunks[0].Reason != c.reason || d.chunks[0].Text != got.Text) {
				t.Errorf("the job is %s with %+v", d.tr.State(), d.chunks[0])
			}
		})
	}
}

func TestAnotherNodeGetsTheChunkOfOneThatRunsForEver(t *testing.T) {
	d := newDesk(t, 1, tenSeconds, "a", "b")
	l := d.one("n0")
	d.stays("n0", AttemptRun, 41, l)
	d.says("n1", AttemptRun) // it is there
	if got := d.grant("n0", 1); len(got) != 0 {
		t.Fatalf("the node that kept it gets it again: %+v", got)
	}
	again := d.one("n1")
	if again.Fence != 2 || again.Copy {
		t.Errorf("the new lease is %+v, want the next fence and no copy", again)
	}
	d.stops = nil
	if d.says("n0", AttemptRun, l); len(d.stops) != 1 || d.stops[0].Reason != protocol.ReasonFenced {
		t.Errorf("who goes on reporting the old lease is told %+v", d.stops)
	}
	d.want("the late result", d.result(l, protocol.ReasonDone, 0), VerdictFenced)
	d.want("the other's", d.result(again, protocol.ReasonDone, 0), VerdictAccounted)
	if d.tr.State() != JobDone {
		t.Errorf("the job is %s", d.tr.State())
	}
}

func TestAnHonestSlowChunkIsLeftAlone(t *testing.T) {
	for name, phases := range map[string]map[AttemptEvent]float64{
		"its full timeout":   {AttemptStage: 590, AttemptRun: 15, AttemptPublish: 590},
		"a short preparing":  {AttemptStage: 4, AttemptRun: 38},
		"a reordered report": {AttemptRenew: 1200, AttemptStage: 600, AttemptRun: 30},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, 1, tenSeconds, "a")
			l := d.one("n0")
			for _, p := range []AttemptEvent{AttemptRenew, AttemptStage, AttemptRun, AttemptPublish} {
				d.stays("n0", p, phases[p], l)
			}
			d.want("its result", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
		})
	}
}

func TestAPhaseThatWasLeftGivesNoMoreTime(t *testing.T) {
	d := newDesk(t, 1, tenSeconds, "a")
	l := d.one("n0")
	for range 5 {
		d.stays("n0", AttemptRun, 4, l)
		d.wait(7) // silent, and back
		d.stays("n0", AttemptStage, 2, l)
	}
	if got := d.leases[l.ID]; got.Reason != protocol.ReasonStuck {
		t.Errorf("between silence, staging and running it is %s by %s after 65 s", got.State, got.Reason)
	}
}

func TestALeaseThatWaitsBehindAnotherHasItsTimeFromThen(t *testing.T) {
	for name, c := range map[string]struct {
		ends int // the lease that ends meanwhile
		want AttemptState
	}{"one before it": {0, AttemptLeased}, "one after it": {2, AttemptCancelled}} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, 3, tenSeconds, "a")
			ls := d.grant("n0", 3)
			d.stays("n0", AttemptRenew, 620, ls...)
			d.want("the end of "+name, d.result(ls[c.ends], protocol.ReasonDone, 0), VerdictAccounted)
			d.stays("n0", AttemptRenew, 622, ls[1])
			if got := d.leases[ls[1].ID]; got.State != c.want {
				t.Errorf("after 1,242 s it is %s (%s), want %s", got.State, got.Text, c.want)
			}
		})
	}
}

func TestARestoredLeaseHasItsTimeFromTheRestart(t *testing.T) {
	d := newDesk(t, 1, tenSeconds, "a", "b")
	l := d.one("n0")
	d.stays("n0", AttemptRun, 30, l)
	d.restart()
	d.stays("n0", AttemptRun, 39, l)
	if len(d.stops) != 0 {
		t.Fatalf("it is stopped before its limit: %+v", d.stops)
	}
	d.stays("n0", AttemptRun, 2, l)
	if len(d.stops) != 1 || d.leases[l.ID].Reason != protocol.ReasonStuck {
		t.Errorf("stops %+v, lease %+v", d.stops, d.leases[l.ID])
	}
	d.restart()
	if got := d.one("n1"); got.Fence != 2 {
		t.Errorf("after another restart the chunk is %+v", got)
	}
	d.want("the late result", d.result(l, protocol.ReasonDone, 0), VerdictFenced)
}

func TestWithoutALimitNothingIsEnded(t *testing.T) {
	d := newDesk(t, 1, nil, "a")
	l := d.one("n0")
	d.stays("n0", AttemptRun, 7200, l)
	d.want("its result after two hours", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
	c := DefaultConfig(protocol.JobID{7}, 10)
	if c.Limit = -1; c.Validate() == nil {
		t.Error("a negative Limit is taken")
	}
}
