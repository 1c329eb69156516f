package dht

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
)

// modelHost is what one run of a modelled node has in place of a libp2p host. Methods that no Directory calls are those
// of the nil interfaces inside.
type modelHost struct {
	host.Host
	n   *modelNode
	run int
	bus event.Bus

	mu       sync.Mutex
	handlers map[libprotocol.ID]network.StreamHandler
}

// maxModelConns is p2p's low water of 256 connections; the oldest that nobody keeps goes.
const maxModelConns = 160

func newModelHost(n *modelNode) *modelHost {
	return &modelHost{n: n, run: n.run, bus: eventbus.NewBus(), handlers: map[libprotocol.ID]network.StreamHandler{}}
}

func (h *modelHost) ID() peer.ID                    { return h.n.id }
func (h *modelHost) Network() network.Network       { return modelSwarm{h: h} }
func (h *modelHost) EventBus() event.Bus            { return h.bus }
func (h *modelHost) Peerstore() peerstore.Peerstore { return modelStore{h: h} }
func (h *modelHost) Addrs() []multiaddr.Multiaddr   { return []multiaddr.Multiaddr{h.n.addr} }
func (h *modelHost) Close() error                   { return nil }

func (h *modelHost) SetStreamHandler(id libprotocol.ID, handle network.StreamHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handlers[id] = handle
}

func (h *modelHost) RemoveStreamHandler(id libprotocol.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.handlers, id)
}

func (h *modelHost) handler(id libprotocol.ID) network.StreamHandler {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handlers[id]
}

// modelSwarm are the node's connections.
type modelSwarm struct {
	network.Network
	h *modelHost
}

func (s modelSwarm) Peers() []peer.ID {
	h := s.h
	h.n.w.mu.RLock()
	defer h.n.w.mu.RUnlock()
	var out []peer.ID
	for _, c := range h.n.conns {
		out = append(out, c.id)
	}
	return out
}

func (s modelSwarm) Connectedness(id peer.ID) network.Connectedness {
	h := s.h
	if h.n.connected(id) {
		return network.Connected
	}
	return network.NotConnected
}

func (s modelSwarm) ConnsToPeer(id peer.ID) []network.Conn {
	h := s.h
	if !h.n.connected(id) {
		return nil
	}
	return []network.Conn{modelConn{h: h, remote: h.n.w.node(id)}}
}

func (h *modelHost) Connect(ctx context.Context, info peer.AddrInfo) error {
	_, err := h.dial(ctx, info.ID)
	return err
}

// dial makes a connection where there is none: a handshake, and identify before the first stream.
func (h *modelHost) dial(ctx context.Context, id peer.ID) (*modelNode, error) {
	w := h.n.w
	to := w.node(id)
	switch {
	case to == nil:
		return nil, fmt.Errorf("%w: %s is unknown", errModelDead, id)
	case !h.n.runs(h.run):
		return nil, errModelDead
	case h.n.connected(id):
		return to, nil
	case !to.alive():
		if err := sleep(ctx, modelDial); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: dialling %s timed out", errModelDead, id)
	}
	if err := sleep(ctx, 2*w.roundTrip(h.n, to)); err != nil {
		return nil, err
	}
	if !to.alive() || !h.n.runs(h.run) {
		return nil, errModelDead
	}
	w.connect(h.n, to)
	return to, nil
}

// connect joins two nodes and tells both.
func (w *modelNet) connect(a, b *modelNode) {
	w.mu.Lock()
	already := slices.Contains(a.conns, b)
	if !already {
		for _, n := range []*modelNode{a, b} {
			if !n.index && len(n.conns) >= maxModelConns {
				if i := slices.IndexFunc(n.conns, func(o *modelNode) bool { return !o.index }); i >= 0 {
					w.cutLocked(n, n.conns[i])
				}
			}
		}
		a.conns, b.conns = append(a.conns, b), append(b.conns, a)
	}
	ha, hb, ta, tb := a.host, b.host, a.table, b.table
	w.mu.Unlock()
	if already {
		return
	}
	if ta != nil && !b.client {
		_, _ = ta.TryAddPeer(b.id, true, true)
	}
	if tb != nil && !a.client {
		_, _ = tb.TryAddPeer(a.id, true, true)
	}
	a.dials.Add(1)
	w.log("connect", a, b)
	ha.identified(b)
	hb.identified(a)
}

func (w *modelNet) cutLocked(a, b *modelNode) {
	a.conns = slices.DeleteFunc(a.conns, func(n *modelNode) bool { return n == b })
	b.conns = slices.DeleteFunc(b.conns, func(n *modelNode) bool { return n == a })
}

// identified says on the bus that a peer has come, which only replicas listen to.
func (h *modelHost) identified(p *modelNode) {
	if h == nil || !h.n.index {
		return
	}
	em, err := h.bus.Emitter(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		h.n.w.fail("the bus: %v", err)
		return
	}
	defer func() { _ = em.Close() }()
	_ = em.Emit(event.EvtPeerIdentificationCompleted{Peer: p.id, Protocols: []libprotocol.ID{protocol.ProtoQuery, protocol.ProtoKad}})
}

// NewStream opens a stream; its protocol is negotiated with the first request.
func (h *modelHost) NewStream(ctx context.Context, id peer.ID, ids ...libprotocol.ID) (network.Stream, error) {
	to, err := h.dial(ctx, id)
	if err != nil {
		return nil, err
	}
	return &modelStream{h: h, to: to, id: ids[0], answered: make(chan struct{}), gone: make(chan struct{})}, nil
}

// modelStore is a peerstore in which everybody's address is known.
type modelStore struct {
	peerstore.Peerstore
	h *modelHost
}

func (s modelStore) Addrs(id peer.ID) []multiaddr.Multiaddr {
	if n := s.h.n.w.node(id); n != nil {
		return []multiaddr.Multiaddr{n.addr}
	}
	return nil
}

func (s modelStore) PeerInfo(id peer.ID) peer.AddrInfo {
	return peer.AddrInfo{ID: id, Addrs: s.Addrs(id)}
}

func (modelStore) AddAddrs(peer.ID, []multiaddr.Multiaddr, time.Duration) {}
func (modelStore) LatencyEWMA(peer.ID) time.Duration                      { return 0 }
func (modelStore) SupportsProtocols(_ peer.ID, ids ...libprotocol.ID) ([]libprotocol.ID, error) {
	return ids, nil
}

// modelConn is a connection as its end sees it.
type modelConn struct {
	network.Conn
	h      *modelHost
	remote *modelNode
}

func (c modelConn) RemotePeer() peer.ID                  { return c.remote.id }
func (c modelConn) LocalPeer() peer.ID                   { return c.h.n.id }
func (c modelConn) RemoteMultiaddr() multiaddr.Multiaddr { return c.remote.addr }
func (c modelConn) Stat() network.ConnStats              { return network.ConnStats{} }

// modelStream carries one request and its answer. Each arrives as a whole, after its way and its bytes' time; what
// either end resets, or who has died, is not told: deadlines decide.
type modelStream struct {
	network.Stream
	h  *modelHost
	to *modelNode
	id libprotocol.ID

	out      bytes.Buffer
	in       *bytes.Reader
	err      error
	deadline time.Time
	answered chan struct{} // closed when in or err is set
	gone     chan struct{} // closed by Reset

	mu         sync.Mutex
	sent, over bool
}

// negotiation is multistream-select's header and the protocol's name, each way.
func negotiation(id libprotocol.ID) int { return 20 + 2 + len(id) }

func (s *modelStream) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *modelStream) Protocol() libprotocol.ID    { return s.id }
func (s *modelStream) Conn() network.Conn          { return modelConn{h: s.h, remote: s.to} }
func (s *modelStream) Scope() network.StreamScope  { return &network.NullScope{} }
func (s *modelStream) SetDeadline(t time.Time) error {
	s.deadline = t
	return nil
}

func (s *modelStream) CloseWrite() error { s.send(); return nil }
func (s *modelStream) Close() error      { s.send(); return nil }
func (s *modelStream) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		close(s.gone)
	}
	return nil
}

// send brings the request on its way, once.
func (s *modelStream) send() {
	s.mu.Lock()
	first := !s.sent && !s.over
	s.sent = true
	s.mu.Unlock()
	if !first {
		return
	}
	f, _ := flowOf(s.id)
	from, to, w := s.h.n, s.to, s.h.n.w
	size := s.out.Len() + negotiation(s.id)
	from.sent[f].Add(int64(size))
	from.begun[f].Add(1)
	if f == flowKad {
		from.kinds[kadKind(s.out.Bytes())].Add(1)
	}
	w.log(string(s.id), from, to)
	request := slices.Clone(s.out.Bytes())
	time.AfterFunc(w.way(from, to, size), func() { s.arrive(f, request) })
}

// arrive is at the other end.
func (s *modelStream) arrive(f flow, request []byte) {
	from, to, w := s.h.n, s.to, s.h.n.w
	there := to.running()
	if there == nil || !from.runs(s.h.run) {
		return
	}
	to.received[f].Add(int64(len(request))) // the negotiation came before the protocol was known
	handle := there.handler(s.id)
	if handle == nil {
		s.answer(nil, fmt.Errorf("%w: protocol %s is not spoken", errModelDead, s.id), w.way(to, from, 0))
		return
	}
	server := &modelServer{h: there, from: from, id: s.id, in: bytes.NewReader(request)}
	handle(server)
	if server.reset.Load() {
		s.answer(nil, fmt.Errorf("%w: stream was reset", errModelDead), w.way(to, from, 0))
		return
	}
	if !to.runs(there.run) {
		return
	}
	size := server.out.Len()
	to.sent[f].Add(int64(size))
	from.received[f].Add(int64(size + negotiation(s.id)))
	s.answer(server.out.Bytes(), nil, w.way(to, from, size))
}

func (s *modelStream) answer(raw []byte, err error, after time.Duration) {
	time.AfterFunc(after, func() {
		s.in, s.err = bytes.NewReader(raw), err
		close(s.answered)
	})
}

func (s *modelStream) Read(b []byte) (int, error) {
	s.send()
	var late <-chan time.Time
	if !s.deadline.IsZero() {
		t := time.NewTimer(time.Until(s.deadline))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-s.answered:
	case <-s.gone:
		return 0, network.ErrReset
	case <-late:
		return 0, context.DeadlineExceeded
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.in.Read(b)
}

// modelServer is the end of the stream that answers.
type modelServer struct {
	network.Stream
	h     *modelHost
	from  *modelNode
	id    libprotocol.ID
	in    io.Reader
	out   bytes.Buffer
	reset atomic.Bool
}

func (s *modelServer) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *modelServer) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *modelServer) Protocol() libprotocol.ID    { return s.id }
func (s *modelServer) Conn() network.Conn          { return modelConn{h: s.h, remote: s.from} }
func (s *modelServer) Scope() network.StreamScope  { return &network.NullScope{} }
func (s *modelServer) SetDeadline(time.Time) error { return nil }
func (s *modelServer) Close() error                { return nil }
func (s *modelServer) Reset() error                { s.reset.Store(true); return nil }
