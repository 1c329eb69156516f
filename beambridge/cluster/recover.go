package cluster

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Observed is one lease as its node reports it.
type Observed struct {
	Lease protocol.LeaseID // Lease is the attempt.
	Fence uint64           // Fence is what the node holds it under.
	Event AttemptEvent     // Event is AttemptStage, AttemptRun or AttemptPublish; anything else renews.
}

// Report takes a node's answer to lease set seq: everything that it holds of this job. What it names is
// renewed, a suspect lease comes back unless it was replaced. What it does not name although the set held it
// is lost: the grant never arrived, or the node lost its journal. Leases that it should not hold are stopped.
func (t *Tracker) Report(node protocol.PeerID, seq uint64, held []Observed, now time.Time) Effects {
	var fx Effects
	k := t.workers[node]
	if k != nil {
		k.seen = now
	}
	named := make(map[protocol.LeaseID]bool, len(held))
	for _, o := range held {
		l := t.leases[o.Lease]
		if l == nil || l.Worker.Peer != node || l.Fence != o.Fence || !l.State.Live() {
			if l == nil || l.State != AttemptHeld {
				fx.Stops = append(fx.Stops, Stop{node, o.Lease, o.Fence, t.stopReason(l)})
			}
			continue
		}
		named[o.Lease] = true
		t.renew(l, o.Event, now, &fx)
	}
	if k != nil {
		k.live = slices.DeleteFunc(k.live, func(l *lease) bool { return !l.State.Live() })
		for _, l := range k.live {
			if l.State.Live() && l.SetSeq <= seq && !named[l.ID] {
				if l.heard {
					t.lost(l, protocol.ReasonRestartLost, "its node does not hold it any more", &fx)
				} else { // nobody's fault: reputation must not read a lost message as a lost chunk
					t.lost(l, protocol.ReasonLeaseExpired, "the grant did not reach its node", &fx)
				}
			}
		}
	}
	t.finish(&fx)
	fx.Pending = t.pending()
	return fx
}

func (t *Tracker) stopReason(l *lease) Reason {
	switch {
	case t.state == JobCancelled:
		return protocol.ReasonCancelled
	case l == nil || t.state.Final():
		return protocol.ReasonSuperseded
	}
	return protocol.ReasonFenced
}

func (t *Tracker) renew(l *lease, e AttemptEvent, now time.Time, fx *Effects) {
	switch e {
	case AttemptStage, AttemptRun, AttemptPublish:
	default:
		e = AttemptRenew
	}
	if l.State == AttemptSuspect {
		l.chunk.lapses--
	}
	l.heard = true
	if e == AttemptRun && !l.began {
		l.since, l.began = now, true
	}
	t.enter(l, e, now)
	t.move(l, e, fx)
	l.expires = now.Add(t.cfg.TTL)
}

// lost ends a lease that cannot come back and queues its chunk.
func (t *Tracker) lost(l *lease, why Reason, text string, fx *Effects) {
	t.replace(l, why, text, fx)
	t.settle(l.chunk, fx)
}

// Expire lets leases lapse that were not renewed within their TTL: they become suspect and their chunks
// ready again. Until somebody has such a chunk the old lease may be renewed or deliver. A chunk that may not
// be leased again fails when its last lease was silent for the Window. An
// attempt that its node reports for longer than the job's Limit allows is ended. Call it about twice a second.
func (t *Tracker) Expire(now time.Time) Effects {
	var fx Effects
	t.live = slices.DeleteFunc(t.live, func(l *lease) bool { return !l.State.Live() })
	if !t.swept && !t.state.Final() {
		t.swept = true
		for _, f := range slices.Sorted(maps.Keys(t.chunks)) {
			if c := t.chunks[f]; c != nil { // a chunk that fails may end the job and with it the others
				t.settle(c, &fx)
			}
		}
	}
	for _, l := range slices.Clone(t.live) {
		switch {
		case working(l.State) && !now.Before(l.expires):
			t.move(l, AttemptSilence, &fx)
			l.chunk.lapses++
			l.giveUp = now.Add(t.cfg.Window)
			t.settle(l.chunk, &fx)
		case t.overdue(l, now):
			t.overrun(l, now, &fx)
		case l.State == AttemptSuspect && !now.Before(l.giveUp) && t.exhausted(l.chunk):
			t.lost(l, protocol.ReasonHeartbeatLost, "its node was silent past the lease and did not come back", &fx)
		}
	}
	t.finish(&fx)
	fx.Pending = t.pending()
	return fx
}

// Unreachable says that a node cannot be dialled: leases of it that were restored and are waited for get one
// TTL instead of the Window.
func (t *Tracker) Unreachable(node protocol.PeerID, now time.Time) {
	for _, l := range t.live {
		if by := now.Add(t.cfg.TTL); l.Worker.Peer == node && working(l.State) && l.expires.After(by) {
			l.expires = by
		}
	}
}

// Drop ends every lease of a node at once: it said that it is gone, or must not be waited for (revoked,
// disqualified). Its member stays until Leave.
func (t *Tracker) Drop(node protocol.PeerID, why Reason, text string) Effects {
	var fx Effects
	for _, l := range slices.Clone(t.live) {
		if l.Worker.Peer == node && l.State.Live() {
			fx.Stops = append(fx.Stops, Stop{node, l.ID, l.Fence, why})
			t.lost(l, why, text, &fx)
		}
	}
	t.finish(&fx)
	fx.Pending = t.pending()
	return fx
}

// Restore rebuilds a Tracker from what was committed: the job's state, every chunk row, and every lease row
// of the chunks that are open, in order of their fences. Chunks that were cut but never leased have no row
// and are cut again. Live leases are waited for during the Window, for their nodes may be working: no new
// fence is given for their chunks until the node reports without them, is Unreachable, or the Window ends.
// Nodes Join again as they call; where none does, the bridge says JobStarved. It returns ErrBadConfig and
// ErrBadRows.
func Restore(cfg Config, state JobState, rows iter.Seq[ChunkRow], leases iter.Seq[LeaseRow], newID func() protocol.LeaseID, now time.Time) (*Tracker, error) {
	t, err := NewTracker(cfg, newID)
	if err != nil {
		return nil, err
	}
	t.state = state
	var taken RangeSet
	for r := range rows {
		if !taken.Add(Range{r.First, r.End}) || r.End > cfg.Inputs {
			return nil, fmt.Errorf("%w: chunk [%d,%d) of %d inputs", ErrBadRows, r.First, r.End, cfg.Inputs)
		}
		t.nCut++
		switch r.State {
		case ChunkDone:
			t.done.Add(Range{r.First, r.End})
			t.nDone++
		case ChunkFailed:
			t.failed.Add(Range{r.First, r.End})
			t.nFailed++
			if t.cause == 0 {
				t.cause, t.causeText = r.Reason, r.Text
			}
		case ChunkOpen:
			t.chunks[r.First] = &chunk{r: Range{r.First, r.End}, fence: r.Fence, want: max(r.Want, 1)}
		default:
			return nil, fmt.Errorf("%w: chunk [%d,%d) is %q", ErrBadRows, r.First, r.End, r.State)
		}
	}
	if state.Final() {
		return t, nil
	}
	t.cutter = NewCutter(cfg.Inputs, &taken)
	for r := range leases {
		if err := t.restoreLease(r, now); err != nil {
			return nil, err
		}
	}
	t.requeue()
	return t, nil
}

func (t *Tracker) restoreLease(r LeaseRow, now time.Time) error {
	c := t.chunks[r.First]
	if c == nil || c.r.End != r.End || r.Fence == 0 || r.Fence > c.fence || t.leases[r.ID] != nil {
		return fmt.Errorf("%w: lease %s of [%d,%d) under fence %d", ErrBadRows, r.ID, r.First, r.End, r.Fence)
	}
	l := &lease{LeaseRow: r, chunk: c, since: now, phased: now, expires: now.Add(t.cfg.Window)}
	if l.Worker.Probation {
		c.explore = true
	}
	if r.Copy && c.want == 1 {
		t.nCopies++
	}
	c.all = append(c.all, l)
	t.leases[l.ID] = l
	switch {
	case r.State.Live():
		if l.State == AttemptSuspect {
			l.State = AttemptRunning // it was committed before its silence could be: wait for it like the others
		}
		l.SetSeq = 0 // sets are numbered anew: the first report tells
		k := t.worker(r.Worker)
		k.held++
		k.live = append(k.live, l)
		t.live = append(t.live, l)
	case r.State == AttemptHeld, r.State == AttemptDone, r.State == AttemptCancelled && r.Reason == protocol.ReasonSuperseded:
	default:
		t.fault(l)
	}
	return nil
}

// requeue puts the open chunks that need a lease where claims find them, by first input.
func (t *Tracker) requeue() {
	for _, f := range slices.Sorted(maps.Keys(t.chunks)) {
		if t.chunks[f].explore {
			t.nExplored++
		}
		t.enqueue(t.chunks[f], false)
	}
}
