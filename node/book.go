package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/node/internal/journal"
	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/protocol"
)

// member is a membership in a job's cluster.
type member struct {
	memberFacts
	bridge  *bridge
	since   time.Time
	joined  uint64 // number of the lease set that named it first
	claim   bool   // chunks may be claimed
	left    bool
	held    int           // leases in hand, which count against ahead × slots
	pace    time.Duration // what a chunk took here lately, staging and outputs included; 0 is not known
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
	gpus    *devices
	lost    int       // slots that are stuck
	alarm   time.Time // the keeper's next look
	wake    chan struct{}
	full    error         // why the journal cannot be written
	busy    bool          // as it was told last
	works   bool          // there was something in hand when it was told last
	short   string        // why the disk has no room for work, empty when it has; guarded by mu
	fewer   chan struct{} // closed when a lease is over, if somebody waits for that
	more    chan struct{} // closed when a lease comes, if somebody waits for that
	done    uint64
	failed  uint64
}

func newBook(self protocol.PeerID, slots int, now func() time.Time, log *slog.Logger) *book {
	b := &book{
		self: self, slots: slots, now: now, log: log, changed: func() {}, wake: make(chan struct{}, 1),
		diary: newDiary(self), leases: map[protocol.LeaseID]*lease{}, members: map[protocol.JobID]*member{},
		offers: map[protocol.JobID]offer{}, bridges: map[protocol.PeerID]*bridge{},
		held: make([]*lease, slots), gpus: &devices{},
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
		for !b.closing {
			l := b.dequeue()
			if l == nil {
				break
			}
			if l.machine.State == protocol.LeaseLeased && b.apply(l, machine.Begin) || l.toFind() {
				b.occupy(l, slot)
				return l
			}
			b.gpus.release(l.ID)
		}
		if b.closing {
			return nil
		}
		b.work.Wait()
	}
}

// dequeue takes the oldest lease off the queue that has the GPUs it needs; one that has to wait for them keeps its
// place. b.mu is held.
func (b *book) dequeue() *lease {
	for i, l := range b.queue {
		over := l.machine.State != protocol.LeaseLeased && !l.toFind()
		if !over && !b.gpus.take(l) {
			continue
		}
		b.queue[i] = nil
		if i == 0 {
			b.queue = b.queue[1:]
		} else {
			b.queue = slices.Delete(b.queue, i, i+1)
		}
		return l
	}
	return nil
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
	b.gpus.release(l.ID)
	if l.member.terms.GPUCount > 0 {
		b.work.Broadcast() // somebody may wait for its GPUs
	}
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

// needed are the trees that what is held depends on.
func (b *book) needed() (roots []cid.Cid) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add := func(c cid.Cid) {
		if c.Defined() {
			roots = append(roots, c)
		}
	}
	terms := func(t *protocol.JobTerms) {
		add(t.Run.Module)
		if f := t.Run.Function; f != nil {
			add(f.Code)
		}
		for i := range t.Volumes {
			add(t.Volumes[i].Root)
		}
	}
	for _, m := range b.members {
		terms(&m.terms)
	}
	for _, o := range b.offers {
		terms(&o.terms)
	}
	for _, l := range b.leases {
		add(l.InputsCID)
		if l.end != nil {
			add(l.end.result.Root)
		}
	}
	return roots
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

// noteLoad tells when the node has become busy or idle, or is so no more; b.mu is held.
func (b *book) noteLoad() {
	if busy, idle := b.free() == 0, b.inHand() == 0; busy != b.busy || idle == b.works {
		b.busy, b.works = busy, !idle
		b.changed()
	}
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
