package ipfs

import (
	"context"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap/client"
	"github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// protocols are what bsnet registers on the host and does not take away when it stops.
var protocols = []protocol.ID{
	bsnet.ProtocolBitswap, bsnet.ProtocolBitswapOneOne, bsnet.ProtocolBitswapOneZero, bsnet.ProtocolBitswapNoVers,
}

// generation is how many wants one generation of the guard's memory holds: two of them are many windows, so
// that a late answer to a cancelled want is never taken for a wrong block.
const generation = 1 << 18

type clock func() time.Time

// guard stands between the network and bitswap's client.
type guard struct {
	*client.Client
	cfg      Config
	evidence func(Evidence)
	now      clock
	start    time.Time

	mu     sync.Mutex
	bans   map[peer.ID]time.Time
	recent map[string]struct{} // multihashes asked for, in two generations
	older  map[string]struct{}
}

func newGuard(c *client.Client, cfg Config, evidence func(Evidence)) *guard {
	return &guard{
		Client: c, cfg: cfg, evidence: evidence, now: time.Now, start: time.Now(),
		bans: map[peer.ID]time.Time{}, recent: map[string]struct{}{}, older: map[string]struct{}{},
	}
}

func (g *guard) expect(wants []cid.Cid) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range wants {
		g.recent[string(c.Hash())] = struct{}{}
	}
	if len(g.recent) >= generation {
		g.older, g.recent = g.recent, map[string]struct{}{}
	}
}

func (g *guard) asked(c cid.Cid) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := string(c.Hash())
	if _, ok := g.recent[k]; ok {
		return true
	}
	_, ok := g.older[k]
	return ok
}

func (g *guard) banned(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.bans[p]
	if ok && g.now().After(until) {
		delete(g.bans, p)
		return false
	}
	return ok
}

// ReceiveMessage passes on what was asked. The CID of a block is computed from its bytes when a message is
// decoded, so wrong bytes show up under a CID that nobody wanted.
func (g *guard) ReceiveMessage(ctx context.Context, p peer.ID, m message.BitSwapMessage) {
	if g.banned(p) {
		return
	}
	for _, b := range m.Blocks() {
		if g.asked(b.Cid()) {
			continue
		}
		if g.now().Sub(g.start) < g.cfg.Grace {
			continue // the client drops what it does not want
		}
		g.mu.Lock()
		g.bans[p] = g.now().Add(g.cfg.Ban)
		g.mu.Unlock()
		g.Client.PeerDisconnected(p) // its wants go to other peers at once
		if g.evidence != nil {
			g.evidence(Evidence{Peer: p, Got: b.Cid(), Bytes: len(b.RawData())})
		}
		return
	}
	g.Client.ReceiveMessage(ctx, p, m)
}

// PeerConnected passes on peers that are not banned.
func (g *guard) PeerConnected(p peer.ID) {
	if !g.banned(p) {
		g.Client.PeerConnected(p)
	}
}
