package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/internal/journal"
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
	log     *executor.Log
	why     protocol.Reason // of its end, when the node or the bridge wants it
	text    string
	grace   time.Duration

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
	ready   bool                   // everything of it is there
	flying  bool                   // in a message that is not answered
	after   time.Time              // not before
	tries   int
}

// member is a membership in a job's cluster.
type member struct {
	memberFacts
	bridge  *bridge
	since   time.Time
	joined  uint64 // number of the lease set that named it first
	claim   bool   // chunks may be claimed
	left    bool
	held    int // leases in hand, which count against 2 × slots
	ready   bool
	retry   time.Time // when to ask again although nothing was announced
	cancel  context.CancelFunc
	backend *offered
	stage   staging
}

// bridge is a bridge that has a right to use the node, or had one when leases of it were taken.
type bridge struct {
	id     protocol.PeerID
	set    uint64 // number of the last lease set
	heard  time.Time
	meter  *metering.Meter
	loose  []protocol.UsageRecord // to go with the next receipt
	pair   pair                   // of its latest membership
	grant  protocol.GrantID
	chain  *metering.Chain
	mark   journal.Mark  // of the chain's last record
	dirty  bool          // it is not known to be durable
	poke   chan struct{} // capacity 1: there is something to say to it
	heavy  chan struct{} // capacity 1: there is a tree to fetch
	asking bool          // a claim is under way
	quiet  *sync.Cond    // of the book's lock: asking became false
	tries  int           // exchanges that failed in a row
	after  time.Time     // no exchange before
	idle   time.Time     // when idle time is reported next

	receiptTries int       // receipts in a row that were not settled
	receiptAfter time.Time // no receipt before
}

// agree notes by what right the bridge uses the node, and takes the chain of receipts that goes with it; the
// book's lock is held.
func (br *bridge) agree(d *diary, p pair, grant protocol.GrantID) {
	if br.chain == nil || br.pair != p {
		br.pair, br.chain = p, d.chain(p)
	}
	br.grant = grant
}

// book owns all leases, memberships and bridges of the node: one lock, and the journal below it. Records are
// appended under the lock, so that their order is that of the changes, and synced outside of it.
type book struct {
	self  protocol.PeerID
	slots int
	now   func() time.Time
	log   *slog.Logger
	paper *journal.Journal
	// changed tells that state or load may have changed; it must not block.
	changed func()
	// spawn runs something until the node ends or the returned function is called.
	spawn func(func(ctx context.Context)) context.CancelFunc
	// follow listens to a job's topic until ctx ends.
	follow func(ctx context.Context, m *member)
	// link talks to a bridge for as long as the node runs.
	link func(ctx context.Context, b *bridge)

	mu      sync.Mutex
	diary   *diary
	leases  map[protocol.LeaseID]*lease
	members map[protocol.JobID]*member
	offers  map[protocol.JobID]offer
	bridges map[protocol.PeerID]*bridge
	queue   []*lease   // leased, oldest first; those that ended meanwhile are skipped
	work    *sync.Cond // the queue has grown, or closing
	closing bool       // no lease begins any more
	held    []*lease   // by slot, nil for a free one
	lost    int        // slots that are stuck
	alarm   time.Time  // the keeper's next look
	wake    chan struct{}
	full    error         // why the journal cannot be written
	short   string        // why the disk has no room for work, empty when it has; guarded by mu
	fewer   chan struct{} // closed when a lease is over, if somebody waits for that
	done    uint64
	failed  uint64
}

func newBook(self protocol.PeerID, slots int, now func() time.Time, log *slog.Logger) *book {
	b := &book{
		self: self, slots: slots, now: now, log: log, changed: func() {}, wake: make(chan struct{}, 1),
		diary: newDiary(self), leases: map[protocol.LeaseID]*lease{}, members: map[protocol.JobID]*member{},
		offers: map[protocol.JobID]offer{}, bridges: map[protocol.PeerID]*bridge{},
		held: make([]*lease, slots),
	}
	b.work = sync.NewCond(&b.mu)
	return b
}

// open replays the journal.
func (b *book) open(path string) error {
	paper, torn, err := journal.Open(path, b.diary.replay, b.snapshot)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	if torn > 0 {
		b.log.Warn("dropped the torn end of the journal", "bytes", torn)
	}
	b.paper = paper
	return nil
}

// snapshot is called by the journal, without its lock.
func (b *book) snapshot() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	records, err := b.diary.snapshot(b.now())
	if err != nil { // what was decoded from the wire encodes again
		b.log.Error("a part of the journal's snapshot cannot be written", "err", err)
	}
	return records
}

// sync makes records durable and remembers when that is not possible.
func (b *book) sync(m journal.Mark) error {
	err := b.paper.Sync(m)
	b.mu.Lock()
	was := b.full
	if err == nil || !errors.Is(err, journal.ErrClosed) {
		b.full = err
	}
	if (was == nil) != (b.full == nil) {
		b.reopen()
	}
	b.mu.Unlock()
	switch {
	case err != nil && was == nil:
		b.log.Error("the journal cannot be written; no new work is taken", "err", err)
		b.changed()
	case err == nil && was != nil:
		b.log.Info("the journal can be written again")
		b.changed()
	}
	return err
}

// bridgeOf returns the bridge's place in the book, making it on first sight; b.mu is held.
func (b *book) bridgeOf(id protocol.PeerID) *bridge {
	br := b.bridges[id]
	if br != nil {
		return br
	}
	cfg := metering.DefaultConfig(b.self)
	cfg.Slots = b.slots
	meter, err := metering.NewMeter(cfg)
	if err != nil { // the slots were checked
		panic(err)
	}
	br = &bridge{id: id, meter: meter, poke: make(chan struct{}, 1), heavy: make(chan struct{}, 1), quiet: sync.NewCond(&b.mu)}
	b.bridges[id] = br
	if b.assignable() {
		_ = br.meter.Up(b.now(), b.vacant()...)
	}
	b.spawn(func(ctx context.Context) { b.link(ctx, br) })
	return br
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

// nudge wakes the link of a bridge.
func (b *book) nudge(br *bridge) {
	poke(br.poke)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// backoff is the pause before the next try: 1, 2, 4 .. 30 s.
func backoff(tries int) time.Duration {
	return min(time.Second<<min(max(tries, 0), 5), 30*time.Second)
}

// ring makes the keeper look at t at the latest; b.mu is held.
func (b *book) ring(t time.Time) {
	if t.IsZero() || !b.alarm.IsZero() && !t.Before(b.alarm) {
		return
	}
	b.alarm = t
	poke(b.wake)
}

// enqueue lets workers see leases; b.mu is held.
func (b *book) enqueue(ls ...*lease) {
	b.queue = append(b.queue, ls...)
	for range ls {
		b.work.Signal()
	}
}

// take waits for a lease to begin with, and gives it the slot. It returns nil when the node ends.
func (b *book) take(slot int) *lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		for len(b.queue) > 0 && !b.closing {
			l := b.queue[0]
			b.queue[0] = nil
			b.queue = b.queue[1:]
			if l.machine.State == protocol.LeaseLeased && b.apply(l, machine.Begin) {
				b.occupy(l, slot)
				return l
			}
		}
		if b.closing {
			return nil
		}
		b.work.Wait()
	}
}

// occupy gives a slot to a lease: it is its bridge's time now, and no other bridge's; b.mu is held.
func (b *book) occupy(l *lease, slot int) {
	l.slot = slot
	b.held[slot] = l
	now := b.now()
	for _, br := range b.bridges {
		if br != l.member.bridge {
			_ = br.meter.Down(now, uint16(slot))
		}
	}
	m := l.member.bridge.meter
	_ = m.Up(now, uint16(slot))
	if err := m.Prepare(metering.Attempt{Lease: l.ID, Job: l.Job, Chunk: l.Chunk.ID, Fence: l.Fence}, now, uint16(slot)); err != nil {
		b.log.Error("time of a lease is not metered", "lease", l.ID, "err", err)
	}
}

// vacate ends a lease's time on its slot and returns its records; b.mu is held.
func (b *book) vacate(l *lease, c metering.Claimed) []protocol.UsageRecord {
	if l.slot < 0 {
		return nil
	}
	now := b.now()
	records, err := l.member.bridge.meter.Finish(l.ID, now, c)
	if err != nil {
		b.log.Error("time of a lease is not metered", "lease", l.ID, "err", err)
	}
	b.held[l.slot] = nil
	b.meterSlots(now, uint16(l.slot))
	l.slot = -1
	return records
}

// meterSlots tells every bridge's meter whether free slots are assignable; b.mu is held.
func (b *book) meterSlots(now time.Time, slots ...uint16) {
	if len(slots) == 0 {
		return
	}
	for _, br := range b.bridges {
		if b.assignable() {
			_ = br.meter.Up(now, slots...)
		} else {
			_ = br.meter.Down(now, slots...)
		}
	}
}

// vacant lists the slots without a lease; b.mu is held.
func (b *book) vacant() (out []uint16) {
	for i, l := range b.held {
		if l == nil {
			out = append(out, uint16(i))
		}
	}
	return out
}

// assignable says whether slots without a lease may be given work; b.mu is held.
func (b *book) assignable() bool {
	return b.diary.control == "" && !b.closing && b.full == nil && b.short == ""
}

// setShort says why the disk has no room for work, or with an empty text that it has again.
func (b *book) setShort(why string) {
	b.mu.Lock()
	changed := (b.short == "") != (why == "")
	b.short = why
	if changed {
		b.reopen()
	}
	b.mu.Unlock()
	if changed {
		b.log.Warn("room on the disk has changed", "short", why)
		b.changed()
	}
}

// reopen lets slots and links follow a change of whether work is taken; b.mu is held.
func (b *book) reopen() {
	b.meterSlots(b.now(), b.vacant()...)
	for _, br := range b.bridges {
		b.nudge(br)
	}
}

// retry tries a journal again that could not be written.
func (b *book) retry() {
	b.mu.Lock()
	full := b.full != nil
	what := b.diary.control
	b.mu.Unlock()
	if full {
		_ = b.sync(b.paper.Append(controlEntry(what))) // told by sync
	}
}

// heldBy returns the leases of a bridge, in no order; b.mu is held.
func (b *book) heldBy(br *bridge) (out []*lease) {
	for _, l := range b.leases {
		if l.member.bridge == br {
			out = append(out, l)
		}
	}
	return out
}

// inHand counts the leases that wait or run; b.mu is held.
func (b *book) inHand() (n int) {
	for _, m := range b.members {
		n += m.held
	}
	return n
}

// free is how many slots have nothing to do and nothing waiting; b.mu is held.
func (b *book) free() int { return max(0, b.slots-b.lost-b.inHand()) }

// sorted returns leases by grant order: job, then first input.
func sorted(ls []*lease) []*lease {
	slices.SortFunc(ls, func(a, c *lease) int {
		if a.since.Equal(c.since) {
			return slices.Compare(a.ID[:], c.ID[:])
		}
		return a.since.Compare(c.since)
	})
	return ls
}
