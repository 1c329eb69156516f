package dht

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Source makes and signs what this peer says of itself.
type Source interface {
	// Record returns the signed capability record with these fields set. leaving asks for a tombstone.
	Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error)
	// Beat returns the signed heartbeat with these fields set. leaving asks for state LEAVING.
	Beat(h BeatHeader, leaving bool) ([]byte, error)
}

// BeatHeader are the fields of a heartbeat that the announcer knows.
type BeatHeader struct {
	// Seq is the heartbeat's own sequence number.
	Seq uint64
	// At is now.
	At time.Time
	// Period is when the next one comes at the latest.
	Period time.Duration
	// CapSeq and CapDigest name the record that it speaks of.
	CapSeq    uint64
	CapDigest [8]byte
}

// SeqStore keeps the last sequence number over restarts.
type SeqStore interface {
	// LastSeq returns the last saved number, 0 when there is none.
	LastSeq() (uint64, error)
	// SaveSeq keeps a number; when it returns, the number survives a crash.
	SaveSeq(seq uint64) error
}

// Schedule says when to publish (discovery.md 4). All but the gaps vary by ±10 %.
type Schedule struct {
	// Record is the time between two records without a change. Default 30 min.
	Record time.Duration
	// RecordGap is the least time between two records. Default 2 min.
	RecordGap time.Duration
	// RecordLife is how long a record is valid. Default 90 min.
	RecordLife time.Duration
	// Provide is the time between two rounds of provider keys. Default 60 min.
	Provide time.Duration
	// Beat is the time between two heartbeats without a change, 1 s..2 min; above 20,000 nodes, by the median of three
	// index peers, it is a minute at least. Default 30 s.
	Beat time.Duration
	// BeatGap is the least time between two heartbeats that changes have brought forward; a regular one holds no change
	// back. Default 5 s.
	BeatGap time.Duration
	// Retry are the waits after failures to publish, the last one for ever. Default 5, 15, 45 s, 2, 5 min.
	Retry []time.Duration
	// Goodbye bounds the farewell when the announcer stops. Default 2 s.
	Goodbye time.Duration
}

// DefaultSchedule returns the defaults that the fields' comments name.
func DefaultSchedule() Schedule {
	return Schedule{
		Record: 30 * time.Minute, RecordGap: 2 * time.Minute, RecordLife: 90 * time.Minute,
		Provide: 60 * time.Minute, Beat: 30 * time.Second, BeatGap: 5 * time.Second,
		Retry:   []time.Duration{5 * time.Second, 15 * time.Second, 45 * time.Second, 2 * time.Minute, 5 * time.Minute},
		Goodbye: 2 * time.Second,
	}
}

// Validate returns ErrConfig with the name of the first field that cannot be used.
func (s Schedule) Validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"Record", s.Record},
		{"RecordGap", s.RecordGap},
		{"RecordLife", s.RecordLife},
		{"Provide", s.Provide},
		{"Beat", s.Beat},
		{"BeatGap", s.BeatGap},
		{"Goodbye", s.Goodbye},
	} {
		if f.value <= 0 {
			return fmt.Errorf("%w: Schedule.%s has to be above 0", ErrConfig, f.name)
		}
	}
	switch {
	case s.RecordLife > maxLifetime:
		return fmt.Errorf("%w: Schedule.RecordLife is above %s", ErrConfig, maxLifetime)
	case s.RecordLife < s.Record+s.Record/10:
		return fmt.Errorf("%w: Schedule.RecordLife ends before the next record", ErrConfig)
	case s.Beat < time.Second || s.Beat > maxPeriod:
		return fmt.Errorf("%w: Schedule.Beat is not within 1 s..%s", ErrConfig, maxPeriod)
	case len(s.Retry) == 0:
		return fmt.Errorf("%w: Schedule.Retry is empty", ErrConfig)
	}
	return nil
}

// Announcer publishes this peer's record, provider keys and heartbeats on schedule, and says goodbye. One goroutine
// sends heartbeats, and records and keys are published by one other at a time, which owns the records' numbers.
type Announcer struct {
	d      *Directory
	plan   Schedule
	source Source
	seqs   SeqStore
	mu     sync.Mutex // guards rnd and conditions
	rnd    *rand.Rand
	record chan struct{} // capacity 1: changes that come together are one
	beat   chan struct{} // capacity 1, likewise
	moved  chan struct{} // capacity 1, likewise
	// What others say, and that it has changed (capacity 1).
	conditions conditions
	changed    chan struct{}

	seq     uint64
	beatSeq uint64
	planted bool // keys have been announced since the start
	tries   int
	failing bool
	stored  atomic.Pointer[Stored]
}

// NewAnnouncer prepares an announcer; it starts nothing. It returns ErrConfig.
func NewAnnouncer(d *Directory, plan Schedule, source Source, seqs SeqStore, rnd *rand.Rand) (*Announcer, error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	return &Announcer{
		d: d, plan: plan, source: source, seqs: seqs, rnd: rnd,
		record: make(chan struct{}, 1), beat: make(chan struct{}, 1), moved: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}, nil
}

// RecordChanged tells that the record's content has changed; a new one goes out after RecordGap.
func (a *Announcer) RecordChanged() { poke(a.record) }

// soonMoves is how many records that tell of a move may go out soon after one another: a node behind a NAT learns of its
// addresses, of its NAT and of its relay one after the other, and until the last of them nobody can ask it.
const soonMoves = 3

// Moved tells that this peer is reached elsewhere: a new record goes out after RecordGap, the first three times after
// BeatGap, and provider keys with it, as their holders hand the addresses on.
func (a *Announcer) Moved() { poke(a.moved) }

// BeatChanged tells that state or load has changed; a heartbeat goes out after BeatGap, else at once.
func (a *Announcer) BeatChanged() { poke(a.beat) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// poked says whether something has come meanwhile, which is published with what is due.
func poked(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Run publishes until ctx ends, then says goodbye: a heartbeat LEAVING and a tombstone of 10 min, as a DHT
// cannot delete. It returns nil on orderly cancel, ErrIdentityInUse when another process publishes under our
// key, and the source's or store's errors.
func (a *Announcer) Run(ctx context.Context) error {
	if err := a.d.up(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	last, err := a.seqs.LastSeq()
	if err != nil {
		return fmt.Errorf("reading the last sequence number: %w", err)
	}
	a.seq = last
	ask, stop := context.WithCancel(ctx)
	var asking sync.WaitGroup
	a.mu.Lock()
	own := rand.New(rand.NewPCG(a.rnd.Uint64(), a.rnd.Uint64())) // so that who draws first is nobody's luck
	a.mu.Unlock()
	asking.Go(func() { a.watchConditions(ask, own) })
	err = a.loop(ctx)
	stop()
	asking.Wait()
	if err == nil && a.d.ownRecord() != nil {
		a.goodbye(context.WithoutCancel(ctx))
	}
	return err
}

// agenda is when what is due next. Its zero moments are over.
type agenda struct {
	record, provide, beat  time.Time
	lastRecord, lastChange time.Time
	moves                  int  // records that told of a move soon
	moving                 bool // the next record does
	changed                bool // the next heartbeat is brought forward
	busy                   bool // a record or keys are being published
}

// never is far enough away.
const never = 1000 * time.Hour

// published is what came of publishing a record or keys.
type published struct {
	record bool
	wait   time.Duration // until the next one
	err    error
}

// loop publishes what is due. Records and keys go to holders of which some may have died, so they are published one at a
// time beside it: heartbeats do not wait for them.
func (a *Announcer) loop(ctx context.Context) error {
	now := a.d.now()
	next := agenda{record: now, provide: now, beat: now}
	done := make(chan published, 1) // one is under way at most
	defer func() {
		if next.busy {
			<-done
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var record, moved, beat bool
		select {
		case <-ctx.Done():
			return nil
		case <-a.record:
			record = true
		case <-a.moved:
			moved = true
		case <-a.beat:
			beat = true
		case p := <-done:
			next.busy = false
			if p.err != nil {
				return p.err
			}
			next.after(p, a.d.now())
		case <-a.changed:
		case <-timer.C:
		}
		next.hear(a.plan, record || poked(a.record), moved || poked(a.moved), beat || poked(a.beat))
		if a.present().off { // what is due stays so
			timer.Reset(never)
			continue
		}
		now = a.d.now()
		if !now.Before(next.beat) {
			if err := a.publishBeat(ctx, false); err != nil {
				return err
			}
			if next.changed {
				next.lastChange, next.changed = now, false
			}
			next.beat = now.Add(a.vary(a.every()))
		}
		if publish := next.job(a, now); publish != nil {
			go func() { done <- publish(ctx) }()
		}
		timer.Reset(max(0, next.at().Sub(a.d.now())))
	}
}

// hear brings forward what has changed.
func (n *agenda) hear(plan Schedule, record, moved, beat bool) {
	if record {
		n.record = earlier(n.record, n.lastRecord.Add(plan.RecordGap))
	}
	if moved && !n.lastRecord.IsZero() { // else the first record tells
		at := n.lastRecord.Add(plan.RecordGap)
		if n.moves < soonMoves {
			at, n.moving = n.lastRecord.Add(plan.BeatGap), true
		}
		n.record, n.provide = earlier(n.record, at), earlier(n.provide, at)
	}
	if beat {
		n.beat, n.changed = earlier(n.beat, n.lastChange.Add(plan.BeatGap)), true
	}
}

// job begins what is due of records and keys, nil for nothing.
func (n *agenda) job(a *Announcer, now time.Time) func(context.Context) published {
	switch {
	case n.busy:
		return nil
	case !now.Before(n.record):
		n.busy, n.lastRecord, n.record = true, now, now.Add(never)
		n.moves, n.moving = n.moves+btoi(n.moving), false
		return func(ctx context.Context) published {
			wait, err := a.publishRecord(ctx)
			return published{true, wait, err}
		}
	case !now.Before(n.provide):
		n.busy, n.provide = true, now.Add(never)
		return func(ctx context.Context) published { return published{false, a.publishKeys(ctx), nil} }
	}
	return nil
}

// after notes what has been published; what has changed meanwhile stays due.
func (n *agenda) after(p published, now time.Time) {
	if !p.record {
		n.provide = earlier(n.provide, now.Add(p.wait))
		return
	}
	n.record = earlier(n.record, now.Add(p.wait))
	// The record is new, and heartbeats have to name it. Keys do not wait for a network: who is its only server so
	// far keeps its own.
	n.beat = now
}

// at is when the first of it is due.
func (n *agenda) at() time.Time {
	if n.busy {
		return n.beat
	}
	return earlier(n.record, earlier(n.beat, n.provide))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// vary spreads a period by ±10 %, so that nodes started together do not publish together.
func (a *Announcer) vary(d time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return varied(d, a.rnd)
}

// varied is a tenth more or less, so that peers that have started together do not stay together.
func varied(d time.Duration, rnd *rand.Rand) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rnd.Float64()))
}

func (a *Announcer) retry() time.Duration {
	wait := a.plan.Retry[min(a.tries, len(a.plan.Retry)-1)]
	a.tries++
	return wait
}

// nextSeq is max(last+1, now in µs), saved before it is used (discovery.md 2).
func (a *Announcer) nextSeq() (uint64, error) {
	a.seq = max(a.seq+1, uint64(a.d.now().UnixMicro()))
	if err := a.seqs.SaveSeq(a.seq); err != nil {
		return 0, fmt.Errorf("saving sequence number %d: %w", a.seq, err)
	}
	return a.seq, nil
}

// publishRecord makes, signs and stores a record; it returns when to do so again.
func (a *Announcer) publishRecord(ctx context.Context) (time.Duration, error) {
	// At the start connections are just being made: a moment's patience spares the first retry.
	patience, cancel := context.WithTimeout(ctx, a.plan.Retry[0])
	_ = a.d.waitServers(patience) // sendRecord reports it
	cancel()
	p, err := a.sendRecord(ctx, a.plan.RecordLife, false)
	switch {
	case ctx.Err() != nil:
		return time.Hour, nil // the loop ends
	case err == nil:
		if a.failing {
			a.d.log.Info("directory has our record again", "holders", p.Holders, "acks", p.Acks)
		}
		a.failing, a.tries = false, 0
		return a.vary(a.plan.Record), nil
	case errors.Is(err, ErrIdentityInUse):
		return 0, err
	case !errors.Is(err, ErrNoServers) && !errors.Is(err, ErrTooFewHolders):
		return 0, err
	case p.NewerSeq > a.seq:
		// A run of ours before this one got further than what was saved: go on behind it.
		a.seq = p.NewerSeq
		return 0, nil
	default:
		if !a.failing {
			a.d.log.Warn("our record is not in the directory, trying again", "err", err)
		}
		a.failing = true
		return a.retry(), nil
	}
}

func (a *Announcer) sendRecord(ctx context.Context, life time.Duration, leaving bool) (Published, error) {
	seq, err := a.nextSeq()
	if err != nil {
		return Published{}, err
	}
	now := a.d.now()
	raw, err := a.source.Record(seq, now, now.Add(life), leaving)
	if err != nil {
		return Published{}, fmt.Errorf("making a capability record: %w", err)
	}
	p, err := a.d.Advertise(ctx, raw)
	a.note(p)
	return p, err
}

func (a *Announcer) publishBeat(ctx context.Context, leaving bool) error {
	own := a.d.ownRecord()
	if own == nil {
		return nil
	}
	now := a.d.now()
	a.beatSeq = max(a.beatSeq+1, uint64(now.UnixMicro()))
	raw, err := a.source.Beat(BeatHeader{
		Seq: a.beatSeq, At: now, Period: max(a.every(), minPeriod), CapSeq: own.cap.GetSeq(), CapDigest: own.digest,
	}, leaving)
	if err != nil {
		return fmt.Errorf("making a heartbeat: %w", err)
	}
	if _, err := a.d.Beat(ctx, raw); err != nil && ctx.Err() == nil {
		if errors.Is(err, ErrBounds) || errors.Is(err, ErrNotOwner) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrFormat) {
			return err // the source is at fault: it would never get better
		}
		a.d.log.Warn("heartbeat was not sent", "err", err)
	}
	return nil
}

// publishKeys announces the record's attributes; it returns when to do so again.
func (a *Announcer) publishKeys(ctx context.Context) time.Duration {
	own := a.d.ownRecord()
	if own == nil {
		return a.plan.Retry[0]
	}
	if err := a.d.Provide(ctx, Attributes(own.cap)); err != nil && ctx.Err() == nil {
		a.d.log.Debug("provider keys not announced, trying again", "err", err)
		return a.plan.Retry[min(1, len(a.plan.Retry)-1)]
	}
	if a.planted {
		return a.vary(a.plan.Provide)
	}
	// Right after the start few servers may be known, as when a whole network starts: soon the nearest are.
	a.planted = true
	return a.vary(a.plan.RecordGap)
}

// goodbye tells the others that we leave; it is done when the time is up, said or not. The heartbeat goes
// first and speaks of the record that the others hold.
func (a *Announcer) goodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.plan.Goodbye)
	defer cancel()
	if err := a.publishBeat(ctx, true); err != nil {
		a.d.log.Debug("goodbye not said", "err", err)
	}
	if _, err := a.sendRecord(ctx, 10*time.Minute, true); err != nil {
		a.d.log.Debug("tombstone not stored", "err", err)
	}
}

func (d *Directory) ownRecord() *record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.own
}
