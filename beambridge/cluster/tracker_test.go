package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestLeaseExpiresWhenHeartbeatsStopAndComesBackUntilItIsReplaced(t *testing.T) {
	d := newDesk(t, 1, nil, "a", "b")
	old := d.one("n0")
	d.wait(5.9)
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Fatalf("%+v was granted while its lease is alive", got)
	}
	d.wait(0.2)
	if p := d.tr.Progress(); p.Suspect != 1 || p.ChunksReady != 1 || len(d.tr.Announce()) != 1 {
		t.Fatalf("after the TTL: %+v, want one suspect whose chunk is announced again", p)
	}
	d.report("n0", old) // nobody has it yet: it comes back
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Fatalf("%+v was granted although the old lease was renewed", got)
	}
	d.wait(6.1)
	next := d.one("n1")
	if next.Fence != 2 || next.Copy || next.Range != old.Range {
		t.Fatalf("re-lease %+v, want fence 2 of the same chunk", next)
	}
	d.report("n0", old)
	if len(d.stops) != 1 || d.stops[0].Lease != old.ID || d.stops[0].Reason != protocol.ReasonFenced {
		t.Errorf("stops %+v, want the old lease fenced", d.stops)
	}
	d.want("a result under the old fence", d.result(old, protocol.ReasonDone, 0), VerdictFenced)
	d.want("the result under the new one", d.result(next, protocol.ReasonDone, 0), VerdictAccounted)
	d.want("the old one again", d.result(old, protocol.ReasonDone, 0), VerdictDuplicate)
	d.want("the new one again", d.result(next, protocol.ReasonDone, 0), VerdictDuplicate)
	if d.tr.State() != JobDone || d.leases[old.ID].State != AttemptLost {
		t.Errorf("job %s, old attempt %s", d.tr.State(), d.leases[old.ID].State)
	}
}

func TestSilentLeaseMayStillDeliverUntilItIsReplaced(t *testing.T) {
	d := newDesk(t, 1, nil, "a", "b")
	l := d.one("n0")
	d.wait(60)
	d.want("a late result", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
}

func TestResultThatContradictsItsLeaseIsRefused(t *testing.T) {
	d := newDesk(t, 3, nil, "a", "b")
	l := d.one("n0")
	for what, change := range map[string]func(*End){
		"other node": func(e *End) { e.Node = "n1" }, "other fence": func(e *End) { e.Fence++ }, "other range": func(e *End) { e.Range.End++ },
		"range beyond the job": func(e *End) { e.Lease, e.Range = protocol.LeaseID{9}, Range{3, 4} }, "empty range": func(e *End) { e.Lease, e.Range = protocol.LeaseID{9}, Range{1, 1} },
	} {
		e := End{Lease: l.ID, Node: l.Node, Range: l.Range, Fence: l.Fence, Reason: protocol.ReasonDone}
		change(&e)
		if v, fx := d.tr.Result(e, d.now); v != VerdictRefused || len(fx.Chunks)+len(fx.Leases) > 0 {
			t.Errorf("%s: %s with %+v", what, v, fx)
		}
	}
	d.want("a lease nobody gave", d.result(Lease{ID: protocol.LeaseID{9}, Node: "n1", Range: Range{1, 2}, Fence: 1}, protocol.ReasonDone, 0), VerdictFenced)
	d.want("the honest one", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
}

func TestThreeOperatorsThatSeeTheSameEndConvictTheJob(t *testing.T) {
	d := newDesk(t, 2, func(c *Config) { c.Retries = 10 }, "a", "b", "c", "d")
	d.want("first", d.result(d.one("n0"), 10, 3), VerdictRetry)
	if got := d.grant("n0", 2); len(got) != 1 || got[0].Range.First != 1 {
		t.Fatalf("n0 got %+v: it must not get the chunk again that it failed while others are there", got)
	}
	d.want("other exit code", d.result(d.one("n1"), 10, 4), VerdictRetry)
	d.want("second", d.result(d.one("n2"), 10, 3), VerdictRetry)
	d.want("third operator alike", d.result(d.one("n3"), 10, 3), VerdictChunkFailed)
	if c := d.chunks[0]; c.State != ChunkFailed || c.Reason != protocol.ReasonExitNonzero || c.Text != "reason exit_nonzero" {
		t.Errorf("chunk row %+v", c)
	}
}

func TestFaultsOfNodesAreFreeUpToThreeTimesTheRetries(t *testing.T) {
	d := newDesk(t, 1, func(c *Config) { c.Retries = 2 }, "a")
	for i := range 8 { // 6 are free, 2 use the retries up
		d.want(fmt.Sprint("fault ", i+1), d.result(d.one("n0"), 43, 0), VerdictRetry)
		d.wait(60) // longer than any pause
	}
	d.want("fault 9 ends the chunk and, it being the only one, the job", d.result(d.one("n0"), 60, 0), VerdictJobFailed)
	if d.tr.State() != JobFailed || d.chunks[0].Reason != 43 {
		t.Errorf("job %s, first cause %d; want failed by 43", d.tr.State(), d.chunks[0].Reason)
	}
}

func TestANodeThatFailsByItsOwnFaultWaitsTwiceAsLongEachTime(t *testing.T) {
	d := newDesk(t, 4, func(c *Config) { c.Retries = 9 }, "a")
	for i, pause := range []float64{1, 2, 4, 8, 16, 32, 60, 60} {
		d.want(fmt.Sprint("fault ", i+1), d.result(d.one("n0"), protocol.ReasonNodeDiskFull, 0), VerdictRetry)
		d.wait(pause - 1)
		if got := d.grant("n0", 1); pause > 1 && len(got) > 0 {
			t.Fatalf("after %v s of %v it got %+v", pause-1, pause, got)
		}
		d.wait(1)
	}
	d.want("a good one", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
	d.want("a fault after it", d.result(d.one("n0"), protocol.ReasonNodeDiskFull, 0), VerdictRetry)
	d.wait(1)
	if got := d.grant("n0", 1); len(got) != 1 {
		t.Fatalf("1 s after the first fault in a row it got %+v", got)
	}
}

func TestFailuresOfTheJobUseItsRetries(t *testing.T) {
	d := newDesk(t, 2, func(c *Config) { c.Retries = 2 }, "a")
	d.want("first", d.result(d.one("n0"), 10, 1), VerdictRetry)
	d.want("second", d.result(d.one("n0"), 10, 1), VerdictRetry)
	d.want("third", d.result(d.one("n0"), 10, 1), VerdictChunkFailed)
}

func TestReasonsThatWouldRepeatEverywhereAreNotRetried(t *testing.T) {
	d := newDesk(t, 2, nil, "a", "b")
	d.want("out of memory", d.result(d.one("n0"), 12, 0), VerdictChunkFailed)
	if d.tr.State() != JobRunning {
		t.Errorf("job %s: the other chunk may be smaller", d.tr.State())
	}
}

func TestBadModuleEndsTheJobAndStopsTheOthers(t *testing.T) {
	d := newDesk(t, 3, nil, "a", "b")
	other := d.one("n1")
	d.want("a bad module", d.result(d.one("n0"), 16, 0), VerdictJobFailed)
	if d.tr.State() != JobFailed || len(d.stops) != 1 || d.stops[0].Lease != other.ID {
		t.Errorf("job %s, stops %+v", d.tr.State(), d.stops)
	}
	d.want("the other's result", d.result(other, protocol.ReasonDone, 0), VerdictFenced)
}

func TestJobWhoseFirstThreeChunksFailIsHopeless(t *testing.T) {
	d := newDesk(t, 10, func(c *Config) { c.Retries = 1 }, "a")
	for range 2 {
		d.want("out of memory", d.result(d.one("n0"), 12, 0), VerdictChunkFailed)
	}
	d.want("the third", d.result(d.one("n0"), 12, 0), VerdictJobFailed)

	d = newDesk(t, 10, nil, "a")
	d.want("one is done", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
	for range 8 {
		d.want("out of memory", d.result(d.one("n0"), 12, 0), VerdictChunkFailed)
	}
	d.want("the last is good", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
	if p := d.tr.Progress(); p.State != JobFailed || p.ChunksDone != 2 || p.ChunksFailed != 8 {
		t.Errorf("%+v: a job with failed chunks runs to its end and is failed", p)
	}
}

func TestRetriesZeroMeansAtMostOnce(t *testing.T) {
	d := newDesk(t, 2, func(c *Config) { c.Retries = 0 }, "a", "b")
	l := d.one("n0")
	d.wait(30)
	if got := d.grant("n1", 2); len(got) != 1 || got[0].Range == l.Range {
		t.Fatalf("n1 got %+v: the silent chunk must not run twice", got)
	}
	d.want("it comes back late", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
	d.wait(7) // the other falls silent too, for good
	d.wait(119)
	if d.tr.State() != JobRunning {
		t.Fatalf("job %s inside the window", d.tr.State())
	}
	d.wait(2)
	if d.tr.State() != JobFailed || d.chunks[1].Reason != protocol.ReasonHeartbeatLost {
		t.Errorf("job %s, %+v: after the window the silent chunk failed", d.tr.State(), d.chunks[1])
	}

	d = newDesk(t, 1, func(c *Config) { c.Retries = 0 }, "a", "b")
	d.want("a node that never began", d.result(d.one("n0"), protocol.ReasonBusy, 0), VerdictRetry)
	d.want("so another may", d.result(d.one("n1"), protocol.ReasonDone, 0), VerdictAccounted)
}

func TestBusyNodeIsLeftAloneForAWhile(t *testing.T) {
	d := newDesk(t, 1, nil, "a")
	d.want("busy", d.result(d.one("n0"), protocol.ReasonBusy, 0), VerdictRetry)
	if got := d.grant("n0", 1); len(got) != 0 {
		t.Error("a busy node got more at once")
	}
	d.wait(1.1)
	d.want("later", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
}

func TestStragglerIsCopiedOnAnIdleNodeAndTheLoserStopped(t *testing.T) {
	d := newDesk(t, 20, nil, "a", "b")
	slow := d.one("n0")
	for range 18 {
		d.want("a sibling", d.result(d.one("n1"), protocol.ReasonDone, 0), VerdictAccounted)
	}
	last := d.one("n1")
	d.report("n0", slow)
	d.now = d.now.Add(2 * time.Second)
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Fatalf("%+v: 2 s is no straggler when the median is 1 s", got)
	}
	d.now = d.now.Add(1500 * time.Millisecond)
	d.report("n0", slow)
	d.report("n1", last)
	c := d.one("n1")
	if !c.Copy || c.Fence != 2 || c.Range != slow.Range {
		t.Fatalf("%+v, want a copy of %v with fence 2", c, slow.Range)
	}
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Errorf("%+v: at most two copies, and none of a chunk on its own node", got)
	}
	d.report("n0", slow) // the copy made no fence old
	d.want("the copy wins", d.result(c, protocol.ReasonDone, 0), VerdictAccounted)
	if len(d.stops) != 1 || d.stops[0].Lease != slow.ID || d.stops[0].Reason != protocol.ReasonSuperseded {
		t.Errorf("stops %+v, want the loser superseded", d.stops)
	}
	d.want("the loser", d.result(slow, protocol.ReasonDone, 0), VerdictDuplicate)
}

func TestOriginalMayWinAgainstItsCopy(t *testing.T) {
	d := newDesk(t, 10, nil, "a", "b")
	slow := d.one("n0")
	for range 9 {
		d.result(d.one("n1"), protocol.ReasonDone, 0)
	}
	d.now = d.now.Add(5 * time.Second)
	c := d.one("n1")
	d.want("the original", d.result(slow, protocol.ReasonDone, 0), VerdictAccounted)
	d.want("the copy", d.result(c, protocol.ReasonDone, 0), VerdictDuplicate)
	if d.tr.Progress().ChunksDone != 10 {
		t.Errorf("%+v", d.tr.Progress())
	}
}

func TestCopiesAreComparedAndStayOnDifferentOperators(t *testing.T) {
	d := newDesk(t, 1, func(c *Config) { c.Copies = 2 }, "a", "a", "b", "c")
	first := d.one("n0")
	if got := d.grant("n1", 1); len(got) != 0 {
		t.Fatalf("%+v: two copies on one operator", got)
	}
	second := d.one("n2")
	end := func(l Lease, digest string) Verdict {
		v, fx := d.tr.Result(End{Lease: l.ID, Node: l.Node, Range: l.Range, Fence: l.Fence, Reason: protocol.ReasonDone, Digest: digest}, d.now)
		d.keep(fx)
		return v
	}
	d.want("first", end(first, "x"), VerdictHeld)
	d.want("first again", end(first, "x"), VerdictHeld)
	d.want("second disagrees", end(second, "y"), VerdictHeld)
	third := d.one("n3")
	d.restart() // votes survive
	d.report("n3", third)
	d.want("third decides", end(third, "x"), VerdictAccounted)
	if a, b := d.leases[first.ID].State, d.leases[second.ID]; a != AttemptDone || b.State != AttemptFailed || b.Reason != protocol.ReasonResultWrong {
		t.Errorf("first %s, second %+v", a, b)
	}
}

func TestNewcomersGetOnlyReplicatedTrialChunks(t *testing.T) {
	d := newDesk(t, 100, func(c *Config) { c.Explore = 0.03 }, "a")
	d.keep(d.tr.Join(Worker{Peer: "new", Group: "n", Slots: 4, Probation: true}, d.now))
	d.grant("n0", 1)
	trial := d.grant("new", 4)
	if len(trial) != 1 {
		t.Fatalf("a newcomer got %d chunks at once, want 1 trial", len(trial))
	}
	d.want("alone it decides nothing", d.result(trial[0], protocol.ReasonDone, 0), VerdictHeld)
	again := d.one("n0")
	if again.Range != trial[0].Range {
		t.Fatalf("the vetted node got %v, want the trial %v", again.Range, trial[0].Range)
	}
	d.want("the vetted copy agrees", d.result(again, protocol.ReasonDone, 0), VerdictAccounted)
}

func TestGrantThatNeverArrivedIsFoundByTheReport(t *testing.T) {
	d := newDesk(t, 1, nil, "a", "b")
	d.seq = 4
	l := d.one("n0") // first held by set 5
	d.seq = 3
	d.report("n0") // set 4 did not hold it
	if len(d.grant("n1", 1)) != 0 {
		t.Fatal("an older report ended a lease")
	}
	d.report("n0") // set 5 did
	next := d.one("n1")
	if next.Fence != 2 {
		t.Errorf("%+v", next)
	}
	if r := d.leases[l.ID]; r.State != AttemptLost || r.Reason != protocol.ReasonLeaseExpired {
		t.Errorf("%+v: a grant that got lost is nobody's fault", r)
	}
	d.want("it did run after all", d.result(l, protocol.ReasonDone, 0), VerdictFenced)
	d.report("n1", next)
	d.report("n1")
	if r := d.leases[next.ID]; r.State != AttemptLost || r.Reason != protocol.ReasonRestartLost {
		t.Errorf("%+v: what a node held and lost is its fault", r)
	}
}

func TestRestartKeepsRunningChunksAndGivesNoNewFenceInsideTheWindow(t *testing.T) {
	d := newDesk(t, 4, nil, "a", "b")
	a, b := d.one("n0"), d.one("n1")
	d.want("one is done", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
	d.restart()
	d.wait(60) // neither has called yet
	if got := d.grant("n1", 4); len(got) != 1 || got[0].Range.First != 3 {
		t.Fatalf("inside the window n1 got %+v, want only the chunk that was never leased", got)
	}
	d.report("n0", a)
	d.want("adopted", d.result(a, protocol.ReasonDone, 0), VerdictAccounted)
	d.tr.Unreachable("n1", d.now)
	d.wait(6.1)
	got := d.grant("n0", 4)
	if !slices.ContainsFunc(got, func(l Lease) bool { return l.Range == b.Range && l.Fence == 2 }) {
		t.Errorf("%+v, want the unreachable node's %v under fence 2", got, b.Range)
	}
	d.want("a repeated result from before the restart", d.result(a, protocol.ReasonDone, 0), VerdictDuplicate)
	if p := d.tr.Progress(); p.ChunksDone != 2 {
		t.Errorf("%+v", p)
	}
}

func TestRestoreRefusesRowsThatContradictOneAnother(t *testing.T) {
	cfg := DefaultConfig(protocol.JobID{1}, 10)
	open := ChunkRow{First: 0, End: 2, State: ChunkOpen, Fence: 1, Want: 1}
	for what, rows := range map[string]struct {
		c []ChunkRow
		l []LeaseRow
	}{
		"overlap":        {c: []ChunkRow{open, {First: 1, End: 3, State: ChunkDone}}},
		"beyond the end": {c: []ChunkRow{{First: 9, End: 11, State: ChunkDone}}},
		"unknown state":  {c: []ChunkRow{{First: 0, End: 1, State: "odd"}}},
		"fence too high": {c: []ChunkRow{open}, l: []LeaseRow{{First: 0, End: 2, Fence: 2, State: AttemptLeased}}},
		"no such chunk":  {c: []ChunkRow{open}, l: []LeaseRow{{First: 3, End: 4, Fence: 1, State: AttemptLeased}}},
	} {
		if _, err := Restore(cfg, JobRunning, slices.Values(rows.c), slices.Values(rows.l), protocol.NewLeaseID, noon); !errors.Is(err, ErrBadRows) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestProbesComeFirstAndTheRestIsCutWhenTheyReturn(t *testing.T) {
	d := newDesk(t, 1000, func(c *Config) { c.Chunk = 0 }, "a")
	ready := d.tr.Announce()
	if len(ready) != 4 || ready[0].Range.Len() != 1 {
		t.Fatalf("%d chunks %v at first, want 4 probes for 4 slots", len(ready), ready)
	}
	if l := d.one("n0"); d.result(l, protocol.ReasonDone, 0) != VerdictAccounted { // 1 s an input
		t.Fatal("probe")
	}
	ready = d.tr.Announce()
	if len(ready) == 0 || ready[0].Range.Len() != 30 || ready[0].ID != protocol.NewChunkID(d.cfg.Job, ready[0].Range.First, ready[0].Range.End) {
		t.Errorf("then %v, want chunks of 30 inputs for 30 s", ready)
	}
}

func TestNodeHoldsAtMostTwoLeasesASlot(t *testing.T) {
	d := newDesk(t, 100, nil, "a", "b")
	if n := len(d.grant("n0", 50)); n != 8 {
		t.Errorf("%d leases on 4 slots, want 8", n)
	}
	if n := len(d.tr.Announce()); n > 4*8 {
		t.Errorf("%d chunks announced on 8 slots, want at most 32", n)
	}
	if _, _, err := d.tr.Grant("stranger", 1, 1, d.now); !errors.Is(err, ErrNotMember) {
		t.Errorf("a stranger's claim: %v", err)
	}
}

func TestCancelStopsEveryLeaseAndNothingCountsAfterwards(t *testing.T) {
	d := newDesk(t, 10, nil, "a", "b")
	ls := append(d.grant("n0", 2), d.grant("n1", 1)...)
	fx, err := d.tr.Cancel(JobCancel, protocol.ReasonCancelled, "by its owner")
	if err != nil || fx.State != JobCancelled || len(fx.Stops) != 3 {
		t.Fatalf("%+v, %v", fx, err)
	}
	d.want("a result afterwards", d.result(ls[0], protocol.ReasonDone, 0), VerdictFenced)
	if got := d.grant("n0", 1); len(got) != 0 || d.tr.Announce() != nil {
		t.Error("a cancelled job gave out work")
	}
	if _, err := d.tr.Cancel(JobCancel, 0, ""); !errors.Is(err, ErrBadTransition) {
		t.Errorf("cancelled twice: %v", err)
	}
}

func TestJobWaitsWithoutNodesAndRunsWhenOneComes(t *testing.T) {
	d := newDesk(t, 1, nil, "a")
	l := d.one("n0")
	if fx := d.tr.Leave("n0"); fx.State != JobWaiting {
		t.Errorf("%+v", fx)
	}
	if _, _, err := d.tr.Grant("n0", 1, 1, d.now); !errors.Is(err, ErrNotMember) {
		t.Errorf("a node that left claims: %v", err)
	}
	d.wait(7)
	if fx := d.tr.Join(Worker{Peer: "n9", Slots: 1}, d.now); fx.State != JobRunning || !fx.Pending {
		t.Errorf("%+v", fx)
	}
	d.want("the node that left may finish until it is replaced", d.result(l, protocol.ReasonDone, 0), VerdictAccounted)
	if d.tr.State() != JobDone {
		t.Error(d.tr.State())
	}
}

func TestDroppedNodeLosesItsLeasesAtOnce(t *testing.T) {
	d := newDesk(t, 1, nil, "a", "b")
	l := d.one("n0")
	d.keep(d.tr.Drop("n0", 87, "revoked"))
	if next := d.one("n1"); next.Fence != 2 {
		t.Errorf("%+v", next)
	}
	d.want("its result", d.result(l, protocol.ReasonDone, 0), VerdictFenced)
}

func TestOpenInputsGrowUntilSealed(t *testing.T) {
	d := newDesk(t, 0, func(c *Config) { c.Open = true }, "a")
	if d.tr.State() != JobRunning {
		t.Fatalf("an open job without inputs is %s", d.tr.State())
	}
	if fx := d.tr.Extend(2); !fx.Pending {
		t.Error("new inputs are not pending")
	}
	for range 2 {
		d.want("item", d.result(d.one("n0"), protocol.ReasonDone, 0), VerdictAccounted)
	}
	if fx := d.tr.Seal(); fx.State != JobDone {
		t.Errorf("%+v", fx)
	}
	if d := newDesk(t, 0, nil, "a"); d.tr.State() != JobDone {
		t.Errorf("a closed job without inputs is %s", d.tr.State())
	}
}

func TestBadConfigNamesTheField(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"Copies": func(c *Config) { c.Copies = 0 }, "Retries": func(c *Config) { c.Retries = -1 }, "TTL": func(c *Config) { c.TTL = 0 },
		"Window": func(c *Config) { c.Window = time.Second }, "LeasesPerSlot": func(c *Config) { c.LeasesPerSlot = 0 },
	} {
		cfg := DefaultConfig(protocol.JobID{}, 1)
		change(&cfg)
		if _, err := NewTracker(cfg, protocol.NewLeaseID); !errors.Is(err, ErrBadConfig) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestMillionChunksStayWithinMemory runs a job of 1,000,000 chunks of one input through three nodes, results
// out of order, and looks at the heap.
func TestMillionChunksStayWithinMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const n = 1_000_000
	d := newDesk(t, n, nil, "a", "b", "c")
	d.chunks, d.leases = nil, nil
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := 0; d.tr.State() == JobRunning; i++ {
		if d.tr.Progress().ChunksDone == n*9/10 { // while everything is still held
			runtime.GC()
			runtime.ReadMemStats(&after)
		}
		ls, _, err := d.tr.Grant(protocol.PeerID(fmt.Sprint("n", i%3)), 8, 1, d.now)
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(ls)
		for _, l := range ls {
			if v, _ := d.tr.Result(End{Lease: l.ID, Node: l.Node, Range: l.Range, Fence: l.Fence, Reason: protocol.ReasonDone, Seconds: 1}, d.now); v != VerdictAccounted {
				t.Fatal(v)
			}
		}
		if i%1000 == 0 {
			d.tr.Expire(d.now)
		}
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); after.HeapAlloc == 0 || grown > 4<<20 || d.tr.Progress().ChunksDone != n {
		t.Errorf("%d MiB more and %+v", grown>>20, d.tr.Progress())
	}
}

// BenchmarkDispatch is one chunk's grant and result in a job of a million, without any I/O.
func BenchmarkDispatch(b *testing.B) {
	cfg := DefaultConfig(protocol.JobID{1}, 1<<40)
	cfg.Chunk = 1
	var id uint64
	tr, err := NewTracker(cfg, func() (l protocol.LeaseID) { id++; binary.BigEndian.PutUint64(l[:], id); return l })
	if err != nil {
		b.Fatal(err)
	}
	_, _ = tr.Advance(JobSelect)
	tr.Join(Worker{Peer: "n", Slots: 8}, noon)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ls, _, _ := tr.Grant("n", 1, 1, noon)
		tr.Result(End{Lease: ls[0].ID, Node: "n", Range: ls[0].Range, Fence: ls[0].Fence, Reason: protocol.ReasonDone, Seconds: 1}, noon)
		if i%1000 == 0 {
			tr.Expire(noon)
		}
	}
}
