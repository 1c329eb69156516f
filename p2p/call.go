package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
	"google.golang.org/protobuf/proto"
)

// Call sends req to the peer and decodes its answer into resp, within ctx (Config.CallTimeout if that has
// no deadline). It dials when there is no connection and an address is known. Errors: *Error is the peer's
// answer; ErrUnreachable, ErrUnsupported and ErrTooLarge mean that the request was not acted on;
// ErrPeerGone and those of the context leave that open, so requests have to be safe to repeat.
func Call(ctx context.Context, h *Host, p peer.ID, id libprotocol.ID, req, resp proto.Message) error {
	body, err := proto.Marshal(req)
	if err != nil {
		return fmt.Errorf("encoding %T: %w", req, err)
	}
	return h.call(ctx, p, id, body, func(b []byte) error {
		if err := proto.Unmarshal(b, resp); err != nil {
			return fmt.Errorf("%w: answer is no %T", ErrFrame, resp)
		}
		return nil
	})
}

// Call is the package's Call for bodies that are bytes, such as signed envelopes.
func (h *Host) Call(ctx context.Context, p peer.ID, id libprotocol.ID, body []byte) (answer []byte, err error) {
	err = h.call(ctx, p, id, body, func(b []byte) error { answer = append([]byte(nil), b...); return nil })
	return answer, err
}

func (h *Host) call(ctx context.Context, p peer.ID, id libprotocol.ID, body []byte, take func([]byte) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.cfg.CallTimeout)
		defer cancel()
	}
	lane, err := h.pool.lane(p, id)
	if err != nil {
		return err
	}
	if len(body) > lane.limits.MaxFrame {
		return fmt.Errorf("%w: request of %d bytes, limit %d", ErrTooLarge, len(body), lane.limits.MaxFrame)
	}
	select {
	case lane.slots <- struct{}{}:
		defer func() { <-lane.slots }()
	case <-ctx.Done():
		return fmt.Errorf("calling %s: %w", id, ctx.Err())
	}
	for {
		f, warm, err := h.pool.take(ctx, lane)
		if err != nil {
			return fmt.Errorf("calling %s: %w", id, err)
		}
		again, err := lane.exchange(ctx, f, body, take)
		if warm && again && ctx.Err() == nil {
			continue // a stream that had grown old; this request was not looked at
		}
		if err != nil {
			return fmt.Errorf("calling %s: %w", id, err)
		}
		return nil
	}
}

// lane holds the streams to one peer for one protocol. Each serves one request at a time.
type lane struct {
	peer   peer.ID
	id     libprotocol.ID
	limits ProtocolLimits
	slots  chan struct{} // capacity CallStreams: so many requests are under way

	mu   sync.Mutex
	idle []idleStream // youngest last
}

type idleStream struct {
	f     *Frames
	since time.Time
}

// exchange sends one request over f and reads its answer. f goes back to the lane when it is clean and is
// reset otherwise, so that an answer given up on can never meet a later request. again says that the peer
// certainly did not act on the request.
func (l *lane) exchange(ctx context.Context, f *Frames, body []byte, take func([]byte) error) (again bool, err error) {
	stop := context.AfterFunc(ctx, f.Reset)
	clean := false
	defer func() {
		f.release()
		if stop() && clean {
			l.put(f)
		} else {
			f.Reset()
		}
	}()
	if whole, err := f.writeFrame(kindMessage, body); err != nil {
		if ctx.Err() != nil {
			return !whole, ctx.Err()
		}
		return !whole, translate(err)
	}
	if d, ok := ctx.Deadline(); ok { // the handler may think until the caller's deadline
		f.limits.Idle = max(time.Until(d), 0) + time.Second
	}
	f.first = false
	k, b, err := f.next()
	switch {
	case err == nil && k == kindMessage:
		clean = true
		return false, take(b)
	case err == nil && k == kindError:
		clean = true
		return false, decodeError(b)
	case err == nil:
		return true, fmt.Errorf("%w: it is leaving", ErrPeerGone)
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrFrame), errors.Is(err, ErrMemory):
		return false, err
	case errors.Is(err, io.EOF):
		return false, fmt.Errorf("%w: stream ended", ErrPeerGone)
	default:
		return false, translate(err)
	}
}

// translate maps libp2p's errors to this package's.
func translate(err error) error {
	if _, ok := errors.AsType[multistream.ErrNotSupported[libprotocol.ID]](err); ok {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %w", ErrPeerGone, err)
}

func (l *lane) put(f *Frames) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, idleStream{f, time.Now()})
}

// pool holds the lanes of a host.
type pool struct {
	host *Host

	mu    sync.Mutex
	lanes map[laneKey]*lane
}

type laneKey struct {
	peer peer.ID
	id   libprotocol.ID
}

func (p *pool) init(h *Host) {
	p.host, p.lanes = h, make(map[laneKey]*lane)
}

func (p *pool) lane(to peer.ID, id libprotocol.ID) (*lane, error) {
	limits, ok := p.host.cfg.Protocols[id]
	if !ok {
		return nil, fmt.Errorf("p2p: protocol %s has no limits in Config.Protocols", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lanes == nil || p.host.libp2p == nil {
		return nil, ErrClosed
	}
	key := laneKey{to, id}
	l := p.lanes[key]
	if l == nil {
		l = &lane{peer: to, id: id, limits: limits, slots: make(chan struct{}, limits.CallStreams)}
		p.lanes[key] = l
	}
	return l, nil
}

// staleAfter is how long a stream may rest in the pool: half the time after which the serving side drops it.
func (l *lane) staleAfter() time.Duration { return l.limits.Idle / 2 }

// take returns the youngest stream that still looks usable, or opens one.
func (p *pool) take(ctx context.Context, l *lane) (f *Frames, warm bool, err error) {
	now := time.Now()
	l.mu.Lock()
	for n := len(l.idle); n > 0 && f == nil; n = len(l.idle) {
		s := l.idle[n-1]
		l.idle = l.idle[:n-1]
		if s.f.stream.Conn().IsClosed() || now.Sub(s.since) > l.staleAfter() {
			s.f.Reset()
			continue
		}
		f = s.f
	}
	l.mu.Unlock()
	if f != nil {
		return f, true, nil
	}
	f, err = p.host.newStream(ctx, l.peer, l.id, l.limits)
	return f, false, err
}

// run closes streams that nobody used for a while, until ctx is done.
func (p *pool) run(ctx context.Context) error {
	t := time.NewTicker(15 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			p.sweep(now)
		}
	}
}

func (p *pool) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.lanes {
		l.mu.Lock()
		keep := l.idle[:0]
		for _, s := range l.idle {
			if s.f.stream.Conn().IsClosed() || now.Sub(s.since) > l.staleAfter() {
				s.f.Reset()
			} else {
				keep = append(keep, s)
			}
		}
		clear(l.idle[len(keep):])
		l.idle = keep
		gone := len(keep) == 0 && len(l.slots) == 0
		l.mu.Unlock()
		if gone { // a call that holds this lane already works on, on streams that die with it
			delete(p.lanes, key)
		}
	}
}

func (p *pool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lanes {
		l.mu.Lock()
		for _, s := range l.idle {
			s.f.Reset()
		}
		l.idle = nil
		l.mu.Unlock()
	}
	p.lanes = nil
}

// OpenDuplex opens a long stream to the peer; it dials when there is no connection and an address is
// known. ctx bounds the opening alone; the caller closes the stream. Errors are ErrUnreachable,
// ErrUnsupported and ErrClosed.
func (h *Host) OpenDuplex(ctx context.Context, p peer.ID, id libprotocol.ID) (*Frames, error) {
	limits, ok := h.cfg.Protocols[id]
	if !ok {
		return nil, fmt.Errorf("p2p: protocol %s has no limits in Config.Protocols", id)
	}
	f, err := h.newStream(ctx, p, id, limits)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", id, err)
	}
	f.first = false // the peer may have nothing to say for a while
	return f, nil
}

func (h *Host) newStream(ctx context.Context, p peer.ID, id libprotocol.ID, limits ProtocolLimits) (*Frames, error) {
	if h.libp2p == nil {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.DialTimeout)
	defer cancel()
	s, err := h.libp2p.NewStream(ctx, p, id)
	if err != nil {
		if _, ok := errors.AsType[multistream.ErrNotSupported[libprotocol.ID]](err); ok {
			return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		if errors.Is(err, network.ErrResourceLimitExceeded) {
			return nil, fmt.Errorf("%w: %w", ErrMemory, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return newFrames(s, h.cfg, limits), nil
}
