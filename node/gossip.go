package node

import (
	"context"
	"errors"
	"sync"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// gossip lets the directory publish heartbeats over this host's topics. A node publishes to topics that it does
// not subscribe to, and keeps no replica.
type gossip struct {
	host *p2p.Host

	mu     sync.Mutex
	topics map[string]*p2p.Topic[[]byte]
}

var _ dht.Gossip = (*gossip)(nil)

func newGossip(h *p2p.Host) *gossip {
	return &gossip{host: h, topics: map[string]*p2p.Topic[[]byte]{}}
}

func (g *gossip) topic(name string) (*p2p.Topic[[]byte], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.topics[name]; t != nil {
		return t, nil
	}
	t, err := p2p.Join(g.host, name, p2p.TopicConfig[[]byte]{
		MaxSize: protocol.MaxAvailability,
		Decode:  func(data []byte, _ protocol.PeerID) ([]byte, error) { return data, nil },
	})
	if err == nil {
		g.topics[name] = t
	}
	return t, err
}

// Publish implements dht.Gossip.
func (g *gossip) Publish(ctx context.Context, topic string, data []byte) (int, error) {
	t, err := g.topic(topic)
	if err != nil {
		return 0, err
	}
	return len(t.Peers()), t.Publish(ctx, data)
}

// Subscribe implements dht.Gossip; a node listens to nobody's heartbeats.
func (g *gossip) Subscribe(context.Context, string, func(protocol.PeerID, []byte) dht.Verdict) error {
	return errors.New("node: heartbeats of others are not listened to")
}

func (g *gossip) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.topics {
		_ = t.Close()
	}
}
