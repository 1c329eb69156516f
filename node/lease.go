package node

import (
	"context"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// Phases of a lease and what they may take (execution.md 3 and 8).
const (
	stageLimit   = 10 * time.Minute
	publishLimit = 10 * time.Minute
	killPatience = 5 * time.Second
	minOrphan    = time.Minute
	maxOrphan    = 15 * time.Minute
	maxGrace     = 120 * time.Second
	stopGrace    = 10 * time.Second
	maxJobs      = 256 // memberships at one time
)

// lease is a lease that the node holds. Its fields are guarded by the book's lock, but for what the worker that
// runs it owns: see worker.go.
type lease struct {
	leaseFacts
	member  *member
	machine machine.Lease
	since   time.Time // it came into its state
	until   time.Time // the TTL
	began   time.Time // it began to run
	phase   time.Time // when staging, an orphan, a stop or publishing takes too long; zero: never
	killed  bool
	slot    int  // that it has, -1 for none
	inHand  bool // it counts against what a job may have here
	handle  executor.Handle
	abort   context.CancelFunc // of staging
	why     protocol.Reason    // of its end, when the node or the bridge wants it
	text    string
	grace   time.Duration

	xid uint64  // that the driver blames its program for, 0 for none
	end *ending // how it ended, when there is something to publish
}

// ending is an outcome on its way to the bridge.
type ending struct {
	result  protocol.Result
	blocks  []volumes.Block        // the tree, when it is small enough to travel with the result
	inline  int                    // their bytes
	heavy   bool                   // the bridge has to fetch the tree
	tail    []byte                 // the end of the log
	records []protocol.UsageRecord // of the run, while it is not ready
	clean   bool                   // the directory of the outputs is empty again
	ready   bool                   // everything of it is there
	counted bool                   // among those that the node has done
	flying  bool                   // in a message that is not answered
	after   time.Time              // not before
	tries   int
}

// apply lets an event happen to a lease and carries out what can be done at once; b.mu is held. It says whether
// the event was possible.
func (b *book) apply(l *lease, e machine.Event) bool {
	next, do, err := l.machine.Next(e)
	if err != nil {
		b.log.Debug("event came too late", "lease", l.ID, "event", e.String(), "state", l.machine.State.String())
		return false
	}
	was := l.machine.State
	l.machine = next
	now := b.now()
	if next.State != was {
		l.since = now
		b.enter(l, was, now)
	}
	for _, d := range do {
		b.effect(l, d, now)
	}
	return true
}

// letGo makes room for another lease: this one has nothing to run or wait for any more; b.mu is held.
func (b *book) letGo(l *lease) {
	if !l.inHand {
		return
	}
	l.inHand = false
	l.member.held--
	b.nudge(l.member.bridge)
	b.noteLoad()
}

// enter sets the clock of a phase.
func (b *book) enter(l *lease, was protocol.LeaseState, now time.Time) {
	if s := l.machine.State; s == protocol.LeaseEnded || s == protocol.LeaseStuck {
		b.letGo(l)
	}
	if l.machine.State == protocol.LeaseEnded && b.fewer != nil {
		close(b.fewer)
		b.fewer = nil
	}
	if was == protocol.LeaseStuck && l.machine.State == protocol.LeaseEnded {
		b.lost--
	}
	l.phase = time.Time{}
	switch l.machine.State {
	case protocol.LeaseStaging:
		l.phase = now.Add(stageLimit)
	case protocol.LeaseRunning:
		if l.began.IsZero() {
			l.began = now
		}
	case protocol.LeaseOrphaned:
		l.phase = now.Add(max(minOrphan, min(maxOrphan, now.Sub(l.began)/2)))
	case protocol.LeaseStopping:
		l.killed = false
		l.phase = now.Add(l.grace)
	case protocol.LeasePublishing, protocol.LeaseStuck:
		l.phase = now.Add(publishLimit)
	}
	b.ring(l.phase)
}

// effect carries out what can be done without waiting; what waits (prepare, start, publish) is done by the
// worker and the link, who see the state.
func (b *book) effect(l *lease, d machine.Effect, now time.Time) {
	switch d {
	case machine.Abort:
		if l.abort != nil {
			l.abort()
		}
	case machine.Halt:
		if l.handle != nil {
			l.handle.Stop(l.why, l.grace)
		}
	case machine.Kill:
		l.killed = true
		l.phase = now.Add(killPatience)
		if l.handle != nil {
			l.handle.Stop(l.why, 0)
		}
		b.ring(l.phase)
	case machine.Publish, machine.Answer:
		b.publish(l, now)
	case machine.Retry:
		if l.end != nil {
			l.end.after = now.Add(backoff(l.end.tries))
			l.end.tries++
		}
	case machine.Keep:
		b.keep(l, now)
	case machine.Withdraw:
		b.lost++
		b.log.Error("a run does not end although it was killed; its slot is not used again until the node restarts", "lease", l.ID, "job", l.Job)
	case machine.Release:
		b.release(l)
	}
}

// publish hands over what a lease has to say; b.mu is held. The worker of a run that has just ended adds outputs
// before it is ready; every other end is complete.
func (b *book) publish(l *lease, now time.Time) {
	if l.end == nil {
		why, text := l.why, l.text
		if l.machine.State == protocol.LeaseStuck {
			why, text = protocol.ReasonStuck, "it runs on although it was killed"
		}
		if why == protocol.ReasonNone {
			why = protocol.ReasonStartFailed
		}
		l.end = &ending{ready: true, result: b.result(l, protocol.Outcome{Reason: why, ExitCode: -1, FirstCause: text})}
	}
	l.end.after, l.end.flying = now, false
	if !l.end.ready { // the worker collects its outputs, and delivers it
		return
	}
	b.letGo(l)
	b.nudge(l.member.bridge)
}

func (b *book) result(l *lease, o protocol.Outcome) protocol.Result {
	return protocol.Result{Job: l.Job, Chunk: l.Chunk, Lease: l.ID, Fence: l.Fence, Outcome: o}
}

// keep stores an outcome that nobody takes; b.mu is held.
func (b *book) keep(l *lease, now time.Time) {
	if l.end == nil || !l.end.ready {
		b.release(l)
		return
	}
	o := outcomeFacts{result: l.end.result, bridge: l.leaseFacts.bridge, at: now, kept: true}
	e, err := outcomeEntry(&o)
	if err != nil {
		b.log.Error("an outcome cannot be kept", "lease", l.ID, "err", err)
		b.release(l)
		return
	}
	b.diary.outcomes[l.ID] = o
	b.paper.Append(e)
	l.phase = now.Add(keepOutcome)
	b.ring(l.phase)
	b.log.Warn("nobody took a result; it is kept for a day", "lease", l.ID, "job", l.Job)
}

// release forgets a lease; b.mu is held. The record need not be durable: without it the lease runs again after a
// crash and its bridge says that it is over.
func (b *book) release(l *lease) {
	if b.leases[l.ID] != l {
		return
	}
	delete(b.leases, l.ID)
	delete(b.diary.leases, l.ID)
	delete(b.diary.outcomes, l.ID)
	b.paper.Append(endedEntry(l.ID))
	l.phase = time.Time{}
	b.dropMember(l.member)
}

// dropMember forgets a membership that was left, with its last lease; b.mu is held.
func (b *book) dropMember(m *member) {
	if !m.left || b.members[m.terms.Job] != m {
		return
	}
	for _, l := range b.leases {
		if l.member == m {
			return
		}
	}
	m.cancel()
	delete(b.members, m.terms.Job)
	delete(b.diary.members, m.terms.Job)
	delete(b.diary.fences, m.terms.Job)
	b.paper.Append(leftEntry(m.terms.Job))
	b.log.Info("left a job", "job", m.terms.Job)
	b.changed()
}

// stop ends a lease on the bridge's word; b.mu is held.
func (b *book) stop(l *lease, why protocol.Reason, grace time.Duration) {
	if l.machine.State == protocol.LeaseEnded || l.machine.Old {
		return
	}
	l.why, l.grace = why, min(max(grace, 0), maxGrace)
	b.apply(l, machine.Stop)
}

// giveBack ends a lease on this node's own word; b.mu is held.
func (b *book) giveBack(l *lease, why protocol.Reason, text string, grace time.Duration) {
	if l.why == protocol.ReasonNone {
		l.why, l.text, l.grace = why, text, min(max(grace, 0), maxGrace)
	}
	b.apply(l, machine.Return)
}
