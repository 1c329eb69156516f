package dht

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Streams whose first frame has not come yet are held apart from those that are answered, so that who says nothing keeps
// no answer from others. Peers and networks have no more than their share of either: a network is an IPv4 /24 or an IPv6
// /48, and one machine none.
const (
	// firstFrame bounds the wait for the first frame, which comes with the stream, and then the wait for a slot: some round
	// trips of the slowest lines, with a packet lost.
	firstFrame    = 3 * time.Second
	firstFrames   = 512 // streams that are waited for at a time, maxQueryRequest each
	firstsOfPeer  = 16
	firstsOfNet   = 32
	answersOfPeer = 4
	answersOfNet  = 8
)

// asker is who asks, and from where.
type asker struct {
	peer peer.ID
	addr multiaddr.Multiaddr
	// limited says that the connection goes through a relay, whose addr then is.
	limited bool
}

func askerOf(c network.Conn) asker {
	return asker{peer: c.RemotePeer(), addr: c.RemoteMultiaddr(), limited: c.Stat().Limited}
}

// relayed says that the address is a relay's, or that nobody knows whose.
func (a asker) relayed() bool {
	if a.addr == nil || a.limited {
		return true
	}
	_, err := a.addr.ValueForProtocol(multiaddr.P_CIRCUIT)
	return err == nil
}

// net names the asker's network by its first bytes, empty when it is our own machine.
func (a asker) net(v4bytes, v6bytes int) string {
	if a.addr == nil || manet.IsIPLoopback(a.addr) {
		return ""
	}
	return netOf(a.addr, v4bytes, v6bytes)
}

// gate has a number of slots, of which a peer and a network hold no more than their share.
type gate struct {
	total, ofPeer, ofNet int

	mu    sync.Mutex
	all   int
	held  map[string]int // by peer and by network
	freed chan struct{}  // closed when a slot is given back; nil while nobody waits
}

func newGate(total, ofPeer, ofNet int) *gate {
	return &gate{total: total, ofPeer: ofPeer, ofNet: ofNet, held: map[string]int{}}
}

// enter takes a slot; it says whether there was one.
func (g *gate) enter(who asker) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.enterLocked(who)
}

func (g *gate) enterLocked(who asker) bool {
	id, net := "peer "+string(who.peer), who.net(3, 6)
	if g.all >= g.total || g.held[id] >= g.ofPeer || net != "" && g.held[net] >= g.ofNet {
		return false
	}
	g.all++
	g.held[id]++
	if net != "" {
		g.held[net]++
	}
	return true
}

// wait takes a slot as soon as there is one; it returns the context's error when that ends first.
func (g *gate) wait(ctx context.Context, who asker) error {
	for {
		g.mu.Lock()
		if g.enterLocked(who) {
			g.mu.Unlock()
			return nil
		}
		if g.freed == nil {
			g.freed = make(chan struct{})
		}
		freed := g.freed
		g.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a slot: %w", ctx.Err())
		}
	}
}

// leave gives a slot back.
func (g *gate) leave(who asker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	for _, name := range []string{"peer " + string(who.peer), who.net(3, 6)} {
		if g.held[name]--; name == "" || g.held[name] <= 0 {
			delete(g.held, name)
		}
	}
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

// door is how the streams of a protocol come in, each with one request, until it is shut.
type door struct {
	most          int // bytes of a request
	firsts, slots *gate
	rates         *askRates // of requests
	// refuse tells a peer that it has asked too often, answer answers it.
	refuse func(s network.Stream, wait time.Duration) error
	answer func(ctx context.Context, s network.Stream, who asker, raw []byte) error

	mu      sync.Mutex
	shut    bool
	running sync.WaitGroup // grows under mu while shut is false
}

// open serves a protocol until the returned function is called, which waits for the answers under way.
func (o *door) open(ctx context.Context, d *Directory, name libprotocol.ID) (stop func()) {
	o.firsts = newGate(firstFrames, firstsOfPeer, firstsOfNet)
	ctx, cancel := context.WithCancel(ctx)
	d.host.SetStreamHandler(name, func(s network.Stream) {
		who := askerOf(s.Conn())
		o.mu.Lock()
		if o.shut || !o.firsts.enter(who) {
			o.mu.Unlock()
			_ = s.Reset()
			return
		}
		o.running.Add(1)
		o.mu.Unlock()
		defer o.running.Done()
		release := context.AfterFunc(ctx, func() { _ = s.Reset() })
		defer release()
		if err := o.take(ctx, s, who, d.now); err != nil {
			d.log.Debug("not answered", "protocol", name, "peer", who.peer, "err", err)
			_ = s.Reset()
			return
		}
		_ = s.Close()
	})
	return func() {
		d.host.RemoveStreamHandler(name)
		o.mu.Lock()
		o.shut = true
		o.mu.Unlock()
		cancel()
		o.running.Wait()
	}
}

// take reads a request and has it answered in a slot, which is free again before the asker learns that all has come.
func (o *door) take(ctx context.Context, s network.Stream, who asker, now func() time.Time) error {
	raw, err := o.admit(ctx, s, who, now)
	o.firsts.leave(who)
	if err != nil || raw == nil {
		return err
	}
	defer o.slots.leave(who)
	return o.answer(ctx, s, who, raw)
}

// admit reads a request in time and takes a slot for its answer; nil when the asker has been refused.
func (o *door) admit(ctx context.Context, s network.Stream, who asker, now func() time.Time) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, firstFrame)
	defer cancel()
	if err := s.SetDeadline(time.Now().Add(firstFrame)); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	if err := s.Scope().ReserveMemory(o.most, network.ReservationPriorityMedium); err != nil {
		return nil, fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(o.most)
	raw, err := msgio.NewVarintReaderSize(struct{ io.Reader }{s}, o.most).ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if wait := o.rates.take(who, now()); wait > 0 {
		return nil, o.refuse(s, wait)
	}
	if raw == nil { // an empty message
		raw = []byte{}
	}
	return raw, o.slots.wait(ctx, who)
}
