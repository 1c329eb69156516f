package node

import (
	"context"
	"time"

	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/protocol"
)

// keep runs the clocks of all leases: it sleeps until the earliest could run out. Renewals only move clocks away,
// so that the hot path never touches a timer.
func (b *book) keepTime(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-b.wake:
		}
		b.mu.Lock()
		b.lookAtClocks()
		next := b.alarm
		b.mu.Unlock()
		wait := time.Hour
		if !next.IsZero() {
			wait = max(0, next.Sub(b.now()))
		}
		timer.Reset(wait)
	}
}

// lookAtClocks lets what has run out happen, and sets the alarm to what runs out next; b.mu is held.
func (b *book) lookAtClocks() {
	now := b.now()
	for _, l := range b.leases {
		if !l.until.IsZero() && !now.Before(l.until) {
			l.until = time.Time{}
			if l.machine.State == protocol.LeaseUnknown {
				l.why = protocol.ReasonLeaseExpired
			}
			b.apply(l, machine.Lapse)
		}
		if !l.phase.IsZero() && !now.Before(l.phase) {
			l.phase = time.Time{}
			b.overdue(l)
		}
	}
	for job, o := range b.offers {
		if !now.Before(o.expires) {
			delete(b.offers, job)
		}
	}
	b.alarm = time.Time{}
	for _, l := range b.leases {
		b.soonest(l.until)
		b.soonest(l.phase)
	}
	for _, o := range b.offers {
		b.soonest(o.expires)
	}
}

func (b *book) soonest(t time.Time) {
	if !t.IsZero() && (b.alarm.IsZero() || t.Before(b.alarm)) {
		b.alarm = t
	}
}

// overdue says what it means that a phase took too long; b.mu is held.
func (b *book) overdue(l *lease) {
	switch l.machine.State {
	case protocol.LeaseStaging:
		l.why, l.text = protocol.ReasonDataSlow, "staging took longer than "+stageLimit.String()
		b.apply(l, machine.Overdue)
	case protocol.LeaseOrphaned:
		l.why, l.text = protocol.ReasonLeaseExpired, "the bridge did not renew the lease"
		b.apply(l, machine.Linger)
	case protocol.LeaseStopping:
		if l.killed {
			b.apply(l, machine.Clings)
		} else {
			b.apply(l, machine.Grace)
		}
	case protocol.LeasePublishing, protocol.LeaseStuck:
		b.apply(l, machine.Overdue)
	case protocol.LeaseEnded: // it was kept for long enough
		b.release(l)
	}
}
