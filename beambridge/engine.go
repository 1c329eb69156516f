package beambridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
)

// ErrStopped means that the bridge is not running: it has not come up yet, or it is going down.
var ErrStopped = errors.New("beambridge: bridge is not running")

// errNotNow is what a caller gets whose event was undone with the commit it was part of.
var errNotNow = errors.New("beambridge: it could not be made durable; try again")

const (
	// mailbox is how many events wait at most: a full one makes the streams that bring them wait.
	mailbox = 4096
	// batch bounds the events of one transaction, so that the first of them does not wait for ever.
	batch = 1024
	// tick is how often clocks are looked at: leases lapse to within half a second (scheduling.md 4).
	tick = 500 * time.Millisecond
	// troubled is how long the engine rests after a failed commit: a full disk does not heal by trying.
	troubled = 250 * time.Millisecond
)

// event is something that happened, applied by the engine's goroutine.
type event func(t *turn)

// engine owns all jobs, nodes and books. Only its goroutine touches the fields below the line.
type engine struct {
	bridge *Bridge
	log    *slog.Logger
	now    func() time.Time
	store  *store.Store
	mail   chan event
	gone   chan struct{} // closed when the engine has ended
	prices settlement.Prices

	// owned by the engine's goroutine
	jobs     map[protocol.JobID]*job
	opens    map[callKey]*job // open jobs that take calls
	calls    *callIndex       // that have not ended
	nodes    map[protocol.PeerID]*node
	attempts map[protocol.LeaseID]*attempt
	ended    []*attempt         // in order of their ends, to be forgotten
	owing    map[*line]struct{} // lines whose growth is not charged yet
	money    *metering.Book
	judge    *reputation.Book
	paces    *paces
	setSeq   uint64 // of the newest lease set, over all nodes; grows over restarts
	version  uint64 // of the newest change of a job, likewise
	fleet    uint64 // grows when the set of nodes that could work changes
	hour     int64  // the hour whose uptime was judged last
	pacedAt  time.Time
	forgot   time.Time // old calls were looked for last
	crowd    int       // ended jobs in memory
	carry    *turn     // a turn whose rows could wait; the next one writes them
	careful  int       // so many turns take one event each, after a commit has failed
}

// turn is one round of the engine: some events, one transaction, and what follows it.
type turn struct {
	e   *engine
	now time.Time

	must     bool                    // it has rows that have to be durable before anything leaves
	lazily   bool                    // while a step adds only rows that may wait
	closing  []*job                  // jobs whose outputs need no merging: they end with this turn
	first    []func(*store.Tx) error // before the rows below
	jobs     map[*job]struct{}
	chunks   map[chunkKey]store.Chunk
	leases   map[leaseKey]store.Lease
	results  []store.Result
	members  []store.Member
	receipts []store.Receipt
	days     []store.Idle
	tails    []store.LogTail
	callRows map[string]store.Call
	lines    map[*line]struct{}
	spoke    map[protocol.PeerID]struct{} // whose receipts the book has checked
	judged   map[protocol.PeerID]struct{}
	ends     []ending // attempts and chunks that have ended, to be judged before the commit
	paced    bool
	setAside map[string]int64 // credit that this turn reserves, by user

	push     map[protocol.PeerID]struct{} // nodes that get a lease set at once
	announce map[*job]struct{}
	touched  map[*job]struct{}
	after    []func(error)
}

type chunkKey struct {
	job   protocol.JobID
	first uint64
}

type leaseKey struct {
	job          protocol.JobID
	first, fence uint64
}

// newTurn begins a turn with the rows that could wait in the one before.
func (e *engine) newTurn() *turn {
	t := &turn{
		e: e, now: e.now(), jobs: map[*job]struct{}{}, chunks: map[chunkKey]store.Chunk{}, leases: map[leaseKey]store.Lease{}, lines: map[*line]struct{}{},
		spoke: map[protocol.PeerID]struct{}{}, judged: map[protocol.PeerID]struct{}{}, push: map[protocol.PeerID]struct{}{}, announce: map[*job]struct{}{}, touched: map[*job]struct{}{}, setAside: map[string]int64{},
		callRows: map[string]store.Call{},
	}
	if c := e.carry; c != nil {
		t.jobs, t.members, t.lines, t.judged, t.paced = c.jobs, c.members, c.lines, c.judged, c.paced
		e.carry = nil
	}
	return t
}

// rows counts what a turn would write.
func (t *turn) rows() int {
	n := len(t.first) + len(t.jobs) + len(t.chunks) + len(t.leases) + len(t.results) + len(t.members) + len(t.receipts) + len(t.days) + len(t.tails) + len(t.lines) + len(t.judged) + len(t.callRows)
	if t.paced {
		n++
	}
	return n
}

// need says that the turn has to be durable before anything of it leaves.
func (t *turn) need() { t.must = t.must || !t.lazily }

// also runs f within the turn's transaction, before its rows.
func (t *turn) also(f func(*store.Tx) error) {
	t.first = append(t.first, f)
	t.must = true
}

// run applies events until ctx is done. It returns an error when nothing can be promised any more.
func (e *engine) run(ctx context.Context) error {
	defer close(e.gone)
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		t := e.newTurn()
		select {
		case <-ctx.Done():
			t.must = true
			return e.finish(context.WithoutCancel(ctx), t) // what could wait is written now
		case ev := <-e.mail:
			t.now = e.now()
			ev(t)
			e.drain(t)
		case <-clock.C:
			t.now, t.must = e.now(), true
			e.tick(t)
		}
		if err := e.finish(ctx, t); err != nil {
			return err
		}
	}
}

// drain takes whatever waits into the same turn.
func (e *engine) drain(t *turn) {
	if e.careful > 0 {
		e.careful--
		return
	}
	for range batch {
		select {
		case ev := <-e.mail:
			ev(t)
		default:
			return
		}
	}
}

// finish commits a turn, undoes it if that fails, and runs what waits for it.
func (e *engine) finish(ctx context.Context, t *turn) error {
	err := e.commit(ctx, t)
	if err != nil {
		fatal := errors.Is(err, store.ErrIO) || errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrClosed)
		if !fatal {
			e.log.Error("a transaction failed; what it was about is taken up again from the disk", "err", err)
			e.carry = nil
			fatal = e.undo(ctx) != nil
		}
		for _, f := range t.after {
			f(fmt.Errorf("%w: %w", errNotNow, err))
		}
		if fatal {
			return fmt.Errorf("keeping the bridge's state: %w", err)
		}
		e.careful = batch
		rest := time.NewTimer(troubled)
		defer rest.Stop()
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		return nil
	}
	for j := range t.touched {
		e.version++
		j.changedTo(e.version)
	}
	for _, f := range t.after {
		f(nil)
	}
	for j := range t.announce {
		if len(j.hungry) > 0 {
			clear(j.hungry)
			e.bridge.announce(j)
		}
	}
	for id := range t.push {
		e.sendSet(id, t.now)
	}
	return nil
}

// commit writes the rows of a turn; a turn without rows costs nothing.
func (e *engine) commit(ctx context.Context, t *turn) error {
	t.settle()
	if err := t.charge(); err != nil {
		return err
	}
	for _, j := range t.closing {
		t.merged(j, j.early, "")
	}
	if t.rows() == 0 {
		return nil
	}
	if !t.must { // memberships and scores may be lost in a crash: they are made again
		e.carry = t
		return nil
	}
	// A commit that has begun is not given up: its answer would be a guess.
	return e.store.Update(context.WithoutCancel(ctx), t.write)
}

// write is the transaction.
func (t *turn) write(tx *store.Tx) error {
	for _, f := range t.first {
		if err := f(tx); err != nil {
			return err
		}
	}
	if len(t.jobs) > 0 {
		rows := make([]store.Job, 0, len(t.jobs))
		for j := range t.jobs {
			rows = append(rows, j.row)
		}
		if err := tx.PutJobs(rows); err != nil {
			return err
		}
	}
	var err error
	put := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	if len(t.members) > 0 {
		put(func() error { return tx.PutMembers(t.members) })
	}
	if len(t.chunks) > 0 {
		put(func() error { return tx.PutChunks(values(t.chunks)) })
	}
	if len(t.leases) > 0 {
		put(func() error { return tx.PutLeases(values(t.leases)) })
	}
	if len(t.results) > 0 {
		put(func() error { return tx.PutResults(t.results) })
	}
	if len(t.receipts) > 0 {
		put(func() error { return tx.PutReceipts(t.receipts) })
	}
	if len(t.days) > 0 {
		put(func() error { return tx.AddIdle(t.days) })
	}
	if len(t.tails) > 0 {
		put(func() error { return tx.PutLogTails(t.tails) })
	}
	if len(t.callRows) > 0 {
		put(func() error { return tx.PutCalls(values(t.callRows)) })
	}
	if len(t.lines) > 0 {
		put(func() error { return tx.PutUsage(t.usageRows()) })
	}
	if len(t.judged) > 0 {
		put(func() error { return t.writeScores(tx) })
	}
	if t.paced {
		put(func() error { return tx.PutPaces(t.e.paces.dirty()) })
	}
	return err
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// then runs f after the turn's commit, with nil, or with why nothing of the turn has happened.
func (t *turn) then(f func(error)) { t.after = append(t.after, f) }

// save writes a job's row with this turn.
func (t *turn) save(j *job) {
	t.jobs[j] = struct{}{}
	t.touched[j] = struct{}{}
	t.need()
}

// post hands an event to the engine; it waits while the mailbox is full.
func (e *engine) post(ctx context.Context, ev event) error {
	select {
	case <-e.gone:
		return ErrStopped
	default:
	}
	select {
	case e.mail <- ev:
		return nil
	case <-e.gone:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask runs f in the engine and returns what it gave once that is durable.
func ask[T any](ctx context.Context, e *engine, f func(t *turn) (T, error)) (out T, err error) {
	type answer struct {
		v   T
		err error
	}
	ch := make(chan answer, 1) // the engine never waits for who has given up
	err = e.post(ctx, func(t *turn) {
		v, err := f(t)
		t.then(func(fail error) {
			if err == nil {
				err = fail
			}
			ch <- answer{v, err}
		})
	})
	if err != nil {
		return out, err
	}
	select {
	case a := <-ch:
		return a.v, a.err
	case <-e.gone:
		select {
		case a := <-ch:
			return a.v, a.err
		default:
			return out, ErrStopped
		}
	case <-ctx.Done():
		return out, ctx.Err()
	}
}
