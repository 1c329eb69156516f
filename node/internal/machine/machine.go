// Package machine says what may happen to a lease on a node: one table, from state and event to state and effects
// (execution.md 8). It is pure; the owner of the lease carries the effects out and keeps the clocks.
//
// Desired and observed state are kept apart: what the bridge wants arrives as events (Renew, Stop), what the
// backend does as others. A lease whose fence is known to be old is marked so for good, and is never published.
//
// Only node imports it. It guarantees: no lease starts while it may still run, none is published under an old
// fence, and from every state the passing of time alone leads to the end, but for a process that cannot be
// killed.
package machine

import (
	"errors"
	"fmt"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrNoTransition means that an event cannot happen in a state: the owner has lost count.
var ErrNoTransition = errors.New("machine: no such transition")

// Event is what happens to a lease.
type Event uint8

// The events.
const (
	Begin    Event = iota + 1 // Begin: a slot is free for it.
	Prepared                  // Prepared: code and data are here.
	Failed                    // Failed: staging failed; the outcome says why.
	Exited                    // Exited: the run ended; the outcome says how.
	Renew                     // Renew: the bridge wants it to run.
	Stop                      // Stop: the bridge wants it to end, or names it no more: its fence is old.
	Return                    // Return: this node wants it to end: drained, preempted, revoked, over a limit.
	Lapse                     // Lapse: the TTL passed without renewal.
	Linger                    // Linger: it has been an orphan for too long.
	Overdue                   // Overdue: staging or publishing took too long.
	Grace                     // Grace: the time to end by itself is over.
	Clings                    // Clings: it runs on although it was killed.
	Lost                      // Lost: the node does not know its own process, after a restart.
	Alive                     // Alive: it does after all, and it runs.
	Gone                      // Gone: the process is not there and left no outcome.
	Acked                     // Acked: the bridge has judged the result.
	Later                     // Later: the bridge could not be asked, or wants to be asked again.
)

var events = [...]string{
	"", "begin", "prepared", "failed", "exited", "renew", "stop", "return", "lapse", "linger", "overdue", "grace", "clings", "lost", "alive", "gone", "acked", "later",
}

// String returns the event's name.
func (e Event) String() string {
	if int(e) < len(events) {
		return events[e]
	}
	return fmt.Sprintf("event %d", uint8(e))
}

// Events returns all events.
func Events() (all []Event) {
	for e := Begin; e <= Later; e++ {
		all = append(all, e)
	}
	return all
}

// Effect is what the owner has to do. Effects may be repeated without harm.
type Effect uint8

// The effects.
const (
	Prepare  Effect = iota + 1 // Prepare: fetch code and data.
	Abort                      // Abort: stop preparing.
	Start                      // Start: run it.
	Halt                       // Halt: ask the run to end, then wait for the grace.
	Kill                       // Kill: end the run by force.
	Probe                      // Probe: find out whether the process lives.
	Publish                    // Publish: hand the outcome over.
	Retry                      // Retry: hand it over again, after a pause.
	Keep                       // Keep: nobody takes the outcome: keep it for whoever asks.
	Answer                     // Answer: somebody asks: hand the kept outcome over.
	Withdraw                   // Withdraw: never reuse the slot, tell the owner.
	Release                    // Release: forget it, free what it held.
)

var effects = [...]string{"", "prepare", "abort", "start", "halt", "kill", "probe", "publish", "retry", "keep", "answer", "withdraw", "release"}

// String returns the effect's name.
func (e Effect) String() string {
	if int(e) < len(effects) {
		return effects[e]
	}
	return fmt.Sprintf("effect %d", uint8(e))
}

// Lease is where a lease stands.
type Lease struct {
	// State is the observed state.
	State protocol.LeaseState
	// Old says that the fence is known to be old: the lease was stopped or replaced.
	Old bool
}

// New is a lease that was just granted.
func New() Lease { return Lease{State: protocol.LeaseLeased} }

type key struct {
	state protocol.LeaseState
	old   bool
	event Event
}

type row struct {
	to  protocol.LeaseState
	old bool // the fence is old from here
	do  []Effect
}

const (
	leased     = protocol.LeaseLeased
	staging    = protocol.LeaseStaging
	running    = protocol.LeaseRunning
	stopping   = protocol.LeaseStopping
	orphaned   = protocol.LeaseOrphaned
	unknown    = protocol.LeaseUnknown
	publishing = protocol.LeasePublishing
	stuck      = protocol.LeaseStuck
	ended      = protocol.LeaseEnded
)

// table is the only place that says how a lease moves. Beyond execution.md 8 it says that an outcome of this
// node's own making (failed staging, a process that is gone, work handed back) is published like any other, so
// that the bridge need not wait for the TTL.
var table = build()

func build() map[key]row {
	t := map[key]row{}
	for _, r := range []struct {
		from protocol.LeaseState
		on   Event
		to   protocol.LeaseState
		do   []Effect
	}{
		{leased, Begin, staging, []Effect{Prepare}},
		{leased, Renew, leased, nil},
		{leased, Stop, ended, []Effect{Release}},
		{leased, Return, publishing, []Effect{Publish}},
		{leased, Lapse, ended, []Effect{Release}},

		{staging, Prepared, running, []Effect{Start}},
		{staging, Failed, publishing, []Effect{Publish}},
		{staging, Renew, staging, nil},
		{staging, Stop, ended, []Effect{Abort, Release}},
		{staging, Return, publishing, []Effect{Abort, Publish}},
		{staging, Lapse, ended, []Effect{Abort, Release}},
		{staging, Overdue, publishing, []Effect{Abort, Publish}},

		{running, Exited, publishing, []Effect{Publish}},
		{running, Renew, running, nil},
		{running, Stop, stopping, []Effect{Halt}},
		{running, Return, stopping, []Effect{Halt}},
		{running, Lapse, orphaned, nil},
		{running, Lost, unknown, []Effect{Probe}},

		{stopping, Exited, publishing, []Effect{Publish}},
		{stopping, Renew, stopping, nil},
		{stopping, Stop, stopping, nil},
		{stopping, Return, stopping, nil},
		{stopping, Lapse, stopping, nil},
		{stopping, Linger, stopping, nil},
		{stopping, Grace, stopping, []Effect{Kill}},
		{stopping, Clings, stuck, []Effect{Withdraw, Publish}},
		{stopping, Lost, stopping, []Effect{Probe}},
		{stopping, Alive, stopping, []Effect{Halt}},
		{stopping, Gone, publishing, []Effect{Publish}},

		{orphaned, Exited, publishing, []Effect{Publish}},
		{orphaned, Renew, running, nil},
		{orphaned, Stop, stopping, []Effect{Halt}},
		{orphaned, Return, stopping, []Effect{Halt}},
		{orphaned, Lapse, orphaned, nil},
		{orphaned, Linger, stopping, []Effect{Halt}},
		{orphaned, Lost, unknown, []Effect{Probe}},

		{unknown, Alive, running, nil},
		{unknown, Exited, publishing, []Effect{Publish}},
		{unknown, Gone, publishing, []Effect{Publish}},
		{unknown, Renew, unknown, nil},
		{unknown, Stop, stopping, []Effect{Halt}},
		{unknown, Return, stopping, []Effect{Halt}},
		{unknown, Lapse, stopping, []Effect{Halt}},
		{unknown, Lost, unknown, []Effect{Probe}},

		{publishing, Acked, ended, []Effect{Release}},
		{publishing, Later, publishing, []Effect{Retry}},
		{publishing, Overdue, ended, []Effect{Keep}},
		{publishing, Renew, publishing, nil},
		{publishing, Stop, ended, []Effect{Release}},
		{publishing, Return, publishing, nil},
		{publishing, Lapse, publishing, nil},

		{stuck, Exited, ended, []Effect{Release}},
		{stuck, Gone, ended, []Effect{Release}},
		{stuck, Acked, stuck, nil},
		{stuck, Later, stuck, []Effect{Retry}},
		{stuck, Renew, stuck, nil},
		{stuck, Stop, stuck, nil},
		{stuck, Return, stuck, nil},
		{stuck, Lapse, stuck, nil},
		{stuck, Overdue, stuck, nil},
	} {
		old := r.on == Stop
		t[key{r.from, false, r.on}] = row{r.to, old, r.do}
		t[key{r.from, true, r.on}] = row{r.to, true, r.do}
	}
	// Under an old fence nothing is published, begun or taken up again.
	t[key{stopping, true, Exited}] = row{ended, true, []Effect{Release}}
	t[key{stopping, true, Gone}] = row{ended, true, []Effect{Release}}
	t[key{stopping, true, Clings}] = row{stuck, true, []Effect{Withdraw}}
	t[key{stuck, true, Later}] = row{stuck, true, nil}
	for _, s := range []protocol.LeaseState{leased, staging, running, orphaned, unknown, publishing} {
		for _, e := range Events() {
			delete(t, key{s, true, e}) // a stop leads out of these states at once
		}
	}
	for _, e := range Events() { // over is over
		t[key{ended, false, e}] = row{to: ended}
		t[key{ended, true, e}] = row{to: ended, old: true}
	}
	t[key{ended, false, Renew}] = row{to: ended, do: []Effect{Answer}}
	t[key{ended, false, Stop}] = row{ended, true, []Effect{Release}}
	return t
}

// Next returns where the lease stands after an event and what is to be done, or ErrNoTransition with the lease
// unchanged.
func (l Lease) Next(e Event) (Lease, []Effect, error) {
	r, ok := table[key{l.State, l.Old, e}]
	if !ok {
		return l, nil, fmt.Errorf("%w: %s takes no %s", ErrNoTransition, l.State, e)
	}
	return Lease{r.to, r.old}, r.do, nil
}
