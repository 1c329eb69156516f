package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"
)

// Message is a pointer to a generated protobuf message T.
type Message[T any] interface {
	*T
	proto.Message
}

// Serve answers requests of one protocol: each Req that a peer sends is given to handler, and what handler
// returns is sent back. A handler's context ends at shutdown; that a caller gave up is not known before its
// answer is written. An *Error (see Errorf) reaches the peer as it is; of any other error the peer learns
// CodeInternal alone. Req is valid after the handler's return. Requests of one stream are answered in
// order, a peer has up to Config.Protocols' StreamsPerPeer of them. The protocol must be listed there.
func Serve[Req, Resp any, PReq Message[Req], PResp Message[Resp]](
	h *Host, id libprotocol.ID, handler func(ctx context.Context, from peer.ID, req PReq) (PResp, error),
) error {
	return h.Handle(id, func(ctx context.Context, from peer.ID, body []byte) ([]byte, error) {
		req := PReq(new(Req))
		if err := proto.Unmarshal(body, req); err != nil {
			return nil, Errorf(CodeMalformed, "request is no %T", req)
		}
		resp, err := handler(ctx, from, req)
		if err != nil {
			return nil, err
		}
		out, err := proto.Marshal(resp)
		if err != nil {
			return nil, fmt.Errorf("encoding %T: %w", resp, err)
		}
		return out, nil
	})
}

// Handle is Serve for requests that are bytes, such as signed envelopes. body is valid until handler
// returns.
func (h *Host) Handle(id libprotocol.ID, handler func(ctx context.Context, from peer.ID, body []byte) ([]byte, error)) error {
	return h.accept(id, func(ctx context.Context, f *Frames) {
		for {
			k, body, err := f.next()
			if err != nil {
				h.refuse(f, err)
				return
			}
			if k != kindMessage {
				f.Reset()
				return
			}
			out, err := handler(ctx, f.Peer(), body)
			if err != nil {
				_, err = f.writeFrame(kindError, encodeError(h.wireError(id, f.Peer(), err)))
			} else {
				err = f.WriteBytes(out)
				if errors.Is(err, ErrTooLarge) {
					_, err = f.writeFrame(kindError, encodeError(&Error{CodeInternal, "the answer exceeds the protocol's frame limit"}))
				}
			}
			if err != nil {
				f.Reset()
				return
			}
		}
	})
}

// refuse ends a request stream whose next request did not come as it should.
func (h *Host) refuse(f *Frames, err error) {
	switch {
	case errors.Is(err, io.EOF):
		_ = f.Close()
	case errors.Is(err, ErrTooLarge):
		f.dismiss(&Error{CodeTooLarge, fmt.Sprintf("a request may have %d bytes", f.limits.MaxFrame)})
	case errors.Is(err, ErrMemory):
		f.dismiss(&Error{CodeBusy, "memory for requests is used up"})
	case errors.Is(err, ErrFrame):
		f.dismiss(&Error{CodeMalformed, "not a frame"})
	case f.first: // a new stream that says nothing deserves nothing
		f.Reset()
	case f.r.Buffered() == 0: // idle, or we are leaving: what crosses this goodbye was not looked at
		f.dismiss(nil)
	default:
		f.Reset()
	}
}

// dismiss answers the request under way with a reason, if there is one, and says that no further request
// is taken on this stream.
func (f *Frames) dismiss(reason *Error) {
	if reason != nil {
		_, _ = f.writeFrame(kindError, encodeError(reason))
	}
	_, _ = f.writeFrame(kindGoodbye, nil)
	_ = f.Close()
}

func (h *Host) wireError(id libprotocol.ID, from peer.ID, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	h.log.Warn("request failed", "protocol", id, "peer", from, "err", err)
	return &Error{CodeInternal, "the peer failed to serve the request"}
}

// HandleDuplex hands each stream of the protocol that a peer opens to handler. The stream ends when handler
// returns: orderly after nil, with the reason after an *Error. At shutdown ctx is cancelled and reads fail
// with ErrClosed, while a last frame can still be written.
func (h *Host) HandleDuplex(id libprotocol.ID, handler func(ctx context.Context, f *Frames) error) error {
	return h.accept(id, func(ctx context.Context, f *Frames) {
		err := handler(ctx, f)
		switch {
		case err == nil:
			_ = f.Close()
		case ctx.Err() != nil, errors.Is(err, ErrClosed), errors.Is(err, io.EOF):
			f.dismiss(nil)
		default:
			_ = f.Fail(h.wireError(id, f.Peer(), err))
		}
	})
}

// accept registers a stream handler that tracks its streams and their end.
func (h *Host) accept(id libprotocol.ID, serve func(ctx context.Context, f *Frames)) error {
	limits, ok := h.cfg.Protocols[id]
	if !ok {
		return fmt.Errorf("p2p: protocol %s has no limits in Config.Protocols", id)
	}
	if h.libp2p == nil {
		return ErrClosed
	}
	h.libp2p.SetStreamHandler(id, func(s network.Stream) {
		f := newFrames(s, h.cfg, limits)
		if s.Scope().ReserveMemory(streamBuffers, network.ReservationPriorityMedium) != nil || !h.track(f, id) {
			f.Reset()
			return
		}
		defer h.untrack(f)
		serve(h.base, f)
	})
	return nil
}

func (h *Host) track(f *Frames, id libprotocol.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return false
	}
	h.handlers.Add(1)
	h.open[f] = id
	return true
}

func (h *Host) untrack(f *Frames) {
	f.release()
	h.mu.Lock()
	delete(h.open, f)
	h.mu.Unlock()
	h.handlers.Done()
}
