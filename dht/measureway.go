package dht

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// What flows downwards: chunks that end in a nonce, which comes back once the whole chunk has been read.
const (
	measureChunk    = 256 << 10
	measureNonce    = 8
	measureBlock    = 64 << 10 // what is read at a time upwards
	maxMeasureAhead = 128      // chunks of one stream whose nonce has not come back
)

var (
	errEcho  = errors.New("a nonce came back that was not sent, or not yet")
	errBroke = errors.New("a data stream broke off")
)

// measuredWay counts the bytes of one way. The first eighth of the time is for the connection to reach its speed and does
// not count.
type measuredWay struct {
	start, from, to time.Time
	most            int64  // bytes
	stop            func() // called once when they are used up

	mu             sync.Mutex
	total, counted int64
	full           time.Time // when most was reached, which ends it
}

func newMeasuredWay(start time.Time, d time.Duration, most int64) *measuredWay {
	return &measuredWay{start: start, from: start.Add(d / 8), to: start.Add(d), most: most, stop: func() {}}
}

// add counts n bytes that have arrived; it says whether more are wanted.
func (t *measuredWay) add(n int, at time.Time) bool {
	t.mu.Lock()
	if !t.full.IsZero() || at.After(t.to) {
		t.mu.Unlock()
		return false
	}
	t.total += int64(n)
	if !at.Before(t.from) {
		t.counted += int64(n)
	}
	last := t.total >= t.most
	if last {
		t.full = at
	}
	t.mu.Unlock()
	if last {
		t.stop()
	}
	return !last
}

// over says whether nothing more counts.
func (t *measuredWay) over(at time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.full.IsZero() || !at.Before(t.to)
}

// rate is bit/s. Where the bytes were used up before a second eighth of the time, the first one counts, too: so
// short a window would say anything.
func (t *measuredWay) rate() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	counted, took := t.counted, t.to.Sub(t.from)
	if !t.full.IsZero() {
		if took = t.full.Sub(t.from); took < t.from.Sub(t.start) {
			counted, took = t.total, t.full.Sub(t.start)
		}
	}
	return uint64(float64(counted) * 8 / max(took, time.Millisecond).Seconds())
}

// ahead is how many chunks of a stream may be on their way when so many have come back in so much time: what the
// line takes in two seconds. So a slow line does not fill with what nobody waits for any more.
func ahead(echoed int, since time.Duration) int {
	return min(1+int(2*float64(echoed)/max(since, time.Second).Seconds()), maxMeasureAhead)
}

// measure measures one way of a session. It returns the rate in bit/s and the bytes that flowed.
func (m *meters) measure(ctx context.Context, ses *session, way pb.MeasureDirection) (rate uint64, moved int64, err error) {
	streams, err := m.gather(ctx, ses, way)
	reset := func() {
		for _, s := range streams {
			_ = s.Reset()
		}
	}
	defer reset()
	if err != nil {
		return 0, 0, err
	}
	stop := context.AfterFunc(ctx, reset)
	defer stop()
	t := newMeasuredWay(time.Now(), m.cfg.MeasureTime, ses.most-ses.most%measureChunk)
	t.stop = func() {
		for _, s := range streams {
			_ = s.SetDeadline(time.Now()) // nobody waits for more
		}
	}
	w := &sending{tally: t}
	one, kept := t.receive, measureBlock
	if way == pb.MeasureDirection_MEASURE_DIRECTION_DOWN {
		w.filler = make([]byte, measureChunk)
		_, _ = rand.Read(w.filler) // never fails
		one, kept = w.run, measureChunk
	}
	errs := make([]error, len(streams))
	var all sync.WaitGroup
	for i, s := range streams {
		all.Go(func() { errs[i] = reserved(s, kept, func() error { return one(s) }) })
	}
	all.Wait()
	err = errors.Join(ctx.Err(), errors.Join(errs...))
	t.mu.Lock()
	moved = max(t.total, min(w.sent.Load(), t.most))
	t.mu.Unlock()
	return t.rate(), moved, err
}

// reserved runs f with the memory of its buffer set aside.
func reserved(s network.Stream, size int, f func() error) error {
	if err := s.Scope().ReserveMemory(size, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(size)
	return f()
}

// receive counts what comes on a stream until the tally is over.
func (t *measuredWay) receive(s network.Stream) error {
	if err := s.SetReadDeadline(t.to); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	buf := make([]byte, measureBlock)
	for {
		n, err := s.Read(buf)
		if !t.add(n, time.Now()) {
			return nil
		}
		if err != nil && !t.over(time.Now()) {
			return fmt.Errorf("%w: %w", errBroke, err)
		}
		if err != nil {
			return nil
		}
	}
}

// sending is the way down over all streams.
type sending struct {
	tally  *measuredWay
	filler []byte
	sent   atomic.Int64 // bytes
}

// lane is one stream of it.
type lane struct {
	stream network.Stream
	freed  chan struct{} // capacity 1: a nonce has come back, or none will

	mu     sync.Mutex
	out    [][measureNonce]byte // sent and not back, oldest first
	echoed int
	gone   bool
}

// run sends chunks on a stream and counts those whose nonces come back, until the tally is over.
func (w *sending) run(s network.Stream) error {
	l := &lane{stream: s, freed: make(chan struct{}, 1)}
	if err := s.SetDeadline(w.tally.to); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	var wrote error
	var writing sync.WaitGroup
	writing.Go(func() {
		if wrote = w.write(l); wrote != nil {
			_ = s.Reset()
		}
	})
	read := w.read(l)
	l.mu.Lock()
	l.gone = true
	l.mu.Unlock()
	l.free()
	if w.tally.over(time.Now()) || read != nil {
		_ = s.Reset() // a write that waits for a reader who has stopped
	}
	writing.Wait()
	if read != nil {
		return read
	}
	return wrote
}

func (l *lane) free() {
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// next notes a nonce that is about to be sent; it waits while enough chunks are on their way, and says when there
// is nothing more to send.
func (w *sending) next(l *lane) (nonce [measureNonce]byte, more bool) {
	_, _ = rand.Read(nonce[:]) // never fails
	for {
		now := time.Now()
		if w.tally.over(now) {
			return nonce, false
		}
		l.mu.Lock()
		room := len(l.out) < ahead(l.echoed, now.Sub(w.tally.start))
		gone := l.gone
		if room && !gone {
			if w.sent.Add(measureChunk) > w.tally.most {
				l.mu.Unlock()
				return nonce, false
			}
			l.out = append(l.out, nonce)
		}
		l.mu.Unlock()
		switch {
		case gone:
			return nonce, false
		case room:
			return nonce, true
		}
		<-l.freed
	}
}

func (w *sending) write(l *lane) error {
	chunk := bytes.Clone(w.filler)
	for {
		nonce, more := w.next(l)
		if !more {
			return nil
		}
		copy(chunk[measureChunk-measureNonce:], nonce[:])
		if _, err := l.stream.Write(chunk); err != nil {
			if w.tally.over(time.Now()) {
				return nil
			}
			return fmt.Errorf("%w: %w", errBroke, err)
		}
	}
}

// read takes nonces as they come back: each has to be the oldest that is out.
func (w *sending) read(l *lane) error {
	var nonce, want [measureNonce]byte
	for {
		if _, err := io.ReadFull(l.stream, nonce[:]); err != nil {
			if w.tally.over(time.Now()) {
				return nil
			}
			return fmt.Errorf("%w: %w", errBroke, err)
		}
		l.mu.Lock()
		good := len(l.out) > 0
		if good {
			want, l.out = l.out[0], l.out[1:]
			good = nonce == want
			l.echoed++
		}
		l.mu.Unlock()
		if !good {
			return errEcho
		}
		l.free()
		if !w.tally.add(measureChunk, time.Now()) {
			return nil
		}
	}
}
