package dht

import (
	"context"
	"time"

	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// modelGossip is gossip as an epidemic: a node sends a heartbeat to each index peer that it is connected to; each of
// them runs the product's validator and forwards what it accepts to the others, but not to who sent it. Copies that
// come later are counted and not judged again, as the router's cache of what was seen does.
type modelGossip struct {
	n   *modelNode
	run int
}

// Subscribe implements Gossip.
func (g modelGossip) Subscribe(ctx context.Context, topic string, take func(peer.ID, []byte) Verdict) error {
	w := g.n.w
	w.mu.Lock()
	g.n.takes[topic] = take
	w.mu.Unlock()
	<-ctx.Done()
	return nil
}

// gossipSize is a message's size on the stream: pubsub's own encoding.
func gossipSize(topic string, data []byte) int64 {
	m := &pubsubpb.Message{From: make([]byte, 38), Data: data, Seqno: make([]byte, 8), Topic: &topic, Signature: make([]byte, 64)}
	rpc := &pubsubpb.RPC{Publish: []*pubsubpb.Message{m}}
	return int64(proto.Size(rpc) + 2)
}

// Publish implements Gossip.
func (g modelGossip) Publish(_ context.Context, topic string, data []byte) (int, error) {
	n, w := g.n, g.n.w
	if !n.runs(g.run) {
		return 0, nil
	}
	w.log("publish", n, nil)
	size, what := gossipSize(topic, data), hash(uint64(n.at), uint64(time.Now().UnixNano()))
	w.mu.RLock()
	defer w.mu.RUnlock()
	ready, direct := map[*modelNode]time.Duration{}, 0
	for _, p := range n.conns {
		if !p.index {
			continue
		}
		direct++
		n.sent[flowGossip].Add(size)
		n.begun[flowGossip].Add(1)
		if p.up && !w.lost(n, p, what) {
			p.received[flowGossip].Add(size)
			ready[p] = w.way(n, p, int(size))
		}
	}
	// What the index peers tell one another: each forwards what it hears first, once.
	for range w.peers {
		for _, p := range w.peers {
			if at, heard := ready[p]; heard {
				for _, o := range w.peers {
					if o == p || o == n || !o.up || w.lost(p, o, what) {
						continue
					}
					if was, ok := ready[o]; !ok || at+w.base(p, o) < was {
						ready[o] = at + w.base(p, o)
					}
				}
			}
		}
	}
	for p, after := range ready {
		for _, o := range w.peers {
			if o != p && o != n && o.up && ready[o] > after-w.base(o, p) { // who sent it first gets none back
				p.sent[flowGossip].Add(size)
				o.received[flowGossip].Add(size)
			}
		}
		time.AfterFunc(after, func() { g.arrive(p, topic, data) })
	}
	return direct, nil
}

func (g modelGossip) arrive(p *modelNode, topic string, data []byte) {
	w := p.w
	w.mu.RLock()
	take := p.takes[topic]
	up := p.up
	w.mu.RUnlock()
	if take == nil || !up {
		return
	}
	if v := take(g.n.id, data); v != Accept {
		w.log("ignored", g.n, p)
		return
	}
	w.log("heard", g.n, p)
	w.found.heard(g.n, p, data)
}
