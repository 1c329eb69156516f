package cluster

import (
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

const (
	// phaseLimit is what staging and publishing may take (execution.md 3); the node has the same.
	phaseLimit = 10 * time.Minute
	// slack is what a node may take beyond a limit to end the program and to say so itself: the longest grace, the
	// patience after a kill and a few reports.
	slack = 30 * time.Second
	// queuePause keeps a node that did not begin what it holds from taking more, so that others come first.
	queuePause = time.Minute
)

// phaseRank orders what a node reports of a lease; 0 is that it only waits there.
func phaseRank(e AttemptEvent) int {
	switch e {
	case AttemptStage:
		return 1
	case AttemptRun:
		return 2
	case AttemptPublish:
		return 3
	}
	return 0
}

// enter notes the first time that a node reports a phase: whatever it reports afterwards, a phase that was left
// gives no more time.
func (t *Tracker) enter(l *lease, e AttemptEvent, now time.Time) {
	if r := phaseRank(e); r > l.phase {
		l.phase, l.phased = r, now
		t.moved(l, now)
	}
}

// moved says that a lease went on: those that its node got after it and that wait behind it have their time from
// then. What came later moves nobody, so that a node cannot keep a chunk for ever by running others.
func (t *Tracker) moved(l *lease, now time.Time) {
	k := t.workers[l.Worker.Peer]
	if k == nil || t.cfg.Limit == 0 {
		return
	}
	for i := len(k.live) - 1; i >= 0 && k.live[i] != l; i-- {
		if o := k.live[i]; o.phase == 0 {
			o.phased = now
		}
	}
}

// patient is how long a lease may be in the phase that its node reports. One that waits has as long as a lease
// before it may take in all.
func (t *Tracker) patient(l *lease) time.Duration {
	switch l.phase {
	case 0:
		return phaseLimit + t.cfg.Limit + phaseLimit + slack
	case 2:
		return t.cfg.Limit + slack
	}
	return phaseLimit + slack
}

// overdue says that a node holds a lease for longer than the job allows.
func (t *Tracker) overdue(l *lease, now time.Time) bool {
	return t.cfg.Limit > 0 && working(l.State) && now.Sub(l.phased) >= t.patient(l)
}

// overrun ends such a lease: its node is told to stop, its fence is old, and its chunk is leased anew or, when it
// may not be, fails. A chunk that only waited at a node was never run there by the node's own word: nobody is
// blamed and no retry used up, unless it may run only once.
func (t *Tracker) overrun(l *lease, now time.Time, fx *Effects) {
	took, most := now.Sub(l.phased).Round(time.Second), t.patient(l)
	l.Reason = protocol.ReasonStuck
	switch l.phase {
	case 0:
		l.Reason, l.Text = protocol.ReasonBusy, fmt.Sprintf("its node held the chunk for %s and did not begin it", took)
		if t.cfg.Retries == 0 { // it may have begun it just now
			l.Reason = protocol.ReasonLeaseExpired
		}
	case 1:
		l.Text = fmt.Sprintf("its node reported that it prepares the chunk for %s, at most %s is allowed", took, most)
	case 2:
		l.Text = fmt.Sprintf("its node reported that the chunk runs for %s and did not end it, at most %s is allowed (policy.timeout)", took, t.cfg.Limit)
	default:
		l.Text = fmt.Sprintf("its node reported that it publishes the chunk for %s, at most %s is allowed", took, most)
	}
	fx.Stops = append(fx.Stops, Stop{l.Worker.Peer, l.ID, l.Fence, l.Reason})
	waited := l.phase == 0
	t.bad(l, now, fx)
	if k := t.workers[l.Worker.Peer]; k != nil && waited {
		k.notBefore = now.Add(queuePause)
	}
}
