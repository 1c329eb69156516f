package cluster

import (
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Verdict is what the bridge makes of a result.
type Verdict string

// Verdicts.
const (
	VerdictAccounted   Verdict = "accounted"    // VerdictAccounted: it is the chunk's result, counted once.
	VerdictHeld        Verdict = "held"         // VerdictHeld: good, it waits for the copies it is compared with.
	VerdictDuplicate   Verdict = "duplicate"    // VerdictDuplicate: the chunk has its result already; evidence only.
	VerdictFenced      Verdict = "fenced"       // VerdictFenced: its fence is old or its lease was stopped; evidence only.
	VerdictRetry       Verdict = "retry"        // VerdictRetry: it failed and the chunk will be leased again.
	VerdictChunkFailed Verdict = "chunk failed" // VerdictChunkFailed: it failed and the chunk ended for good.
	VerdictJobFailed   Verdict = "job failed"   // VerdictJobFailed: it ended the chunk and with it the job.
	VerdictRefused     Verdict = "refused"      // VerdictRefused: it contradicts its lease: other node, range or fence.
)

// End is how an attempt ended, from a result whose signature was checked.
type End struct {
	Lease   protocol.LeaseID // Lease is the attempt.
	Node    protocol.PeerID  // Node signed it.
	Range   Range            // Range is the chunk it speaks of.
	Fence   uint64           // Fence is the lease's.
	Reason  Reason           // Reason is how it ended; 1 is done.
	Exit    int32            // Exit is the exit code: equal ones on three operators convict the job.
	Digest  string           // Digest names the outputs; copies agree when it is equal.
	Seconds float64          // Seconds is the run time; 0 counts as a microsecond.
	Text    string           // Text is the first cause in words.
}

// Result judges the end of an attempt. The first valid result of a chunk wins; whatever else arrives for it
// changes nothing. A result may be repeated, late, or arrive before anything else was heard of its lease.
func (t *Tracker) Result(e End, now time.Time) (Verdict, Effects) {
	var fx Effects
	if k := t.workers[e.Node]; k != nil {
		k.seen = now
	}
	l := t.leases[e.Lease]
	if l != nil && (l.Worker.Peer != e.Node || l.Fence != e.Fence || l.First != e.Range.First || l.End != e.Range.End) {
		return VerdictRefused, fx
	}
	if e.Range.First >= e.Range.End || e.Range.End > t.total {
		return VerdictRefused, fx
	}
	if t.done.Overlaps(e.Range) {
		return VerdictDuplicate, fx
	}
	if t.state.Final() || l == nil {
		return VerdictFenced, fx
	}
	if l.State == AttemptHeld {
		return VerdictHeld, fx
	}
	if !l.State.Live() {
		return VerdictFenced, fx
	}
	if l.State == AttemptSuspect {
		l.chunk.lapses--
	}
	t.moved(l, now)
	l.Reason, l.Exit, l.Digest, l.Text = e.Reason, e.Exit, e.Digest, e.Text
	var v Verdict
	if e.Reason == protocol.ReasonDone {
		t.learn(l, max(e.Seconds, 1e-6))
		if k := t.workers[e.Node]; k != nil {
			k.faults = 0
		}
		v = t.good(l, &fx)
	} else {
		v = t.bad(l, now, &fx)
	}
	t.finish(&fx)
	if v == VerdictChunkFailed && t.state == JobFailed {
		v = VerdictJobFailed
	}
	fx.Pending = t.pending()
	return v, fx
}

// good takes a done attempt: alone it wins, among copies it waits until enough agree.
func (t *Tracker) good(l *lease, fx *Effects) Verdict {
	c := l.chunk
	if c.want == 1 {
		t.move(l, AttemptAccept, fx)
		return t.close(c, l, fx)
	}
	t.move(l, AttemptHold, fx)
	most, digest, all := c.votes()
	if most >= c.want {
		var winner *lease
		for _, o := range c.all {
			if o.State != AttemptHeld {
				continue
			}
			if o.Digest == digest {
				if winner == nil {
					winner = o
				}
				t.move(o, AttemptAccept, fx)
			} else {
				o.Reason, o.Text = protocol.ReasonResultWrong, "its outputs differ from what the other copies agree on"
				t.move(o, AttemptFail, fx)
			}
		}
		return t.close(c, winner, fx)
	}
	if all >= maxVotes {
		c.first, c.text = protocol.ReasonResultWrong, "nine copies do not agree on their outputs"
		t.failChunk(c, fx)
		return VerdictChunkFailed
	}
	t.settle(c, fx)
	return VerdictHeld
}

// close accounts a chunk and stops what still runs of it.
func (t *Tracker) close(c *chunk, winner *lease, fx *Effects) Verdict {
	if !t.done.Add(c.r) {
		return VerdictDuplicate
	}
	t.nDone++
	row := c.row(ChunkDone)
	row.Winner = winner.ID
	fx.Chunks = append(fx.Chunks, row)
	t.drop(c, fx)
	return VerdictAccounted
}

// drop forgets an ended chunk; leases that still run are stopped.
func (t *Tracker) drop(c *chunk, fx *Effects) {
	for _, o := range c.all {
		if o.State.Live() {
			fx.Stops = append(fx.Stops, Stop{o.Worker.Peer, o.ID, o.Fence, protocol.ReasonSuperseded})
			o.Reason = protocol.ReasonSuperseded
			t.move(o, AttemptCancel, fx)
		} else if o.State == AttemptHeld {
			t.move(o, AttemptCancel, fx)
		}
		delete(t.leases, o.ID)
	}
	t.ready.remove(c)
	delete(t.chunks, c.r.First)
}

// bad takes an attempt that ended with another reason than done.
func (t *Tracker) bad(l *lease, now time.Time, fx *Effects) Verdict {
	c := l.chunk
	t.move(l, endEvent(l.Reason), fx)
	t.fault(l)
	if k := t.workers[l.Worker.Peer]; k != nil {
		k.pause(l.Reason, t.cfg.Backoff, now)
	}
	if retryNever(l.Reason) || t.convicted(c, l) {
		t.failChunk(c, fx)
		return VerdictChunkFailed
	}
	if t.settle(c, fx) {
		return VerdictChunkFailed
	}
	return VerdictRetry
}

// pause keeps a node from taking more for a while: one that is busy for a backoff, one that fails by its own fault
// twice as long each time in a row, up to a minute. A node that fails at once would otherwise use up every
// chunk's retries before another node has claimed one.
func (k *worker) pause(why Reason, backoff time.Duration, now time.Time) {
	switch {
	case notBegun(why):
		k.notBefore = now.Add(backoff)
	case why.Blame() == protocol.BlameNode:
		k.notBefore = now.Add(min(backoff<<min(k.faults, 6), time.Minute))
		k.faults++
	}
}

// endEvent is how a reason is shown among the attempts (execution.md 7).
func endEvent(r Reason) AttemptEvent {
	switch r {
	case 45, 46, 85:
		return AttemptReplace
	case 80, 81, 82, 83, 84, 87, 89, 90:
		return AttemptCancel
	}
	return AttemptFail
}

// convicted says that three operators saw the job end alike: it is the job.
func (t *Tracker) convicted(c *chunk, l *lease) bool {
	if !blamesJob(l.Reason) {
		return false
	}
	groups := map[string]bool{}
	for _, f := range c.failures {
		if f.reason == l.Reason && f.exit == l.Exit {
			groups[f.group] = true
		}
	}
	return len(groups) >= 3
}

// settle queues a chunk that needs leases, or fails one that may not be leased again and of which nothing
// can come any more; it reports whether it failed.
func (t *Tracker) settle(c *chunk, fx *Effects) bool {
	if t.need(c) > 0 {
		t.enqueue(c, true)
		return false
	}
	if !t.exhausted(c) {
		return false
	}
	for _, l := range c.all {
		if l.State.Live() {
			return false // it may still return a result that counts
		}
	}
	t.failChunk(c, fx)
	return true
}

// Abandon ends an open chunk for good because nobody wants it any more, and stops what runs of it for that reason. A
// chunk that has ended, or was not leased yet, is left as it is.
func (t *Tracker) Abandon(first uint64, why Reason, text string) Effects {
	var fx Effects
	c := t.chunks[first]
	if c == nil || c.fence == 0 || t.state.Final() {
		return fx
	}
	for _, l := range c.all {
		if l.State.Live() {
			fx.Stops = append(fx.Stops, Stop{l.Worker.Peer, l.ID, l.Fence, why})
			l.Reason, l.Text = why, text
			t.move(l, AttemptCancel, &fx)
		}
	}
	c.first, c.text = why, text
	t.failChunk(c, &fx)
	t.finish(&fx)
	fx.Pending = t.pending()
	return fx
}

// failChunk ends a chunk for good, and the job where every other chunk would end alike or none was ever done.
func (t *Tracker) failChunk(c *chunk, fx *Effects) {
	t.failed.Add(c.r)
	t.nFailed++
	if t.cause == 0 {
		t.cause, t.causeText = c.first, c.text
	}
	row := c.row(ChunkFailed)
	row.Reason, row.Text = c.first, c.text
	fx.Chunks = append(fx.Chunks, row)
	t.drop(c, fx)
	if t.cfg.Apart {
		return
	}
	if fatal(c.first) || t.nDone == 0 && t.nFailed >= t.cfg.HopelessAfter {
		t.endJob(JobFail, t.cause, t.causeText, fx)
	}
}
