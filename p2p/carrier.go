package p2p

import (
	"context"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
)

// carriers remembers the open connections over which gossip has gone, one way or the other.
type carriers struct {
	mu    sync.Mutex
	conns map[string]struct{} // by the connection's ID
}

// carry notes that a stream of gossip is on c. It says whether c is still open; if not, c is not kept.
func (s *carriers) carry(c network.Conn) (open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[string]struct{})
	}
	s.conns[c.ID()] = struct{}{}
	if c.IsClosed() { // its end may have been told before this
		delete(s.conns, c.ID())
		return false
	}
	return true
}

// drop forgets a connection that has ended and says whether gossip went over it.
func (s *carriers) drop(c network.Conn) (carried bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, carried = s.conns[c.ID()]
	delete(s.conns, c.ID())
	return carried
}

// gossipHost is the host as gossip's router sees it: whatever stream the router opens or is given, subs learns over which
// connection it goes.
type gossipHost struct {
	host.Host
	subs *subscriptions
}

func (g gossipHost) NewStream(ctx context.Context, p peer.ID, pids ...libprotocol.ID) (network.Stream, error) {
	st, err := g.Host.NewStream(ctx, p, pids...)
	if err == nil {
		g.note(st)
	}
	return st, err //nolint:wrapcheck // the router's own call
}

func (g gossipHost) SetStreamHandler(pid libprotocol.ID, h network.StreamHandler) {
	g.Host.SetStreamHandler(pid, func(st network.Stream) { g.note(st); h(st) })
}

func (g gossipHost) SetStreamHandlerMatch(pid libprotocol.ID, match func(libprotocol.ID) bool, h network.StreamHandler) {
	g.Host.SetStreamHandlerMatch(pid, match, func(st network.Stream) { g.note(st); h(st) })
}

func (g gossipHost) note(st network.Stream) {
	if c := st.Conn(); !g.subs.carriers.carry(c) {
		g.subs.ended(g.Network(), c, true)
	}
}
