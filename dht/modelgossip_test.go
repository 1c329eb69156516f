package dht

import (
	"context"
	"slices"
	"sync"
	"time"

	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// modelGossip is gossip as an epidemic: a node sends a heartbeat to each index peer that it is connected to. Each of
// them tells the other index peers, its mesh, at once that it has it (IDONTWANT), runs the product's validator for as
// long as that takes, and then forwards what it accepted to the others, but not to who sent it and not to who has told
// by then that it has it. Copies that come later are counted and not judged again, as the router's cache of what was
// seen does.
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

// dontWantSize is that of telling a neighbour that one has a message, with p2p's 16 bytes for its name.
var dontWantSize = func() int64 {
	rpc := &pubsubpb.RPC{Control: &pubsubpb.ControlMessage{Idontwant: []*pubsubpb.ControlIDontWant{{MessageIDs: []string{string(make([]byte, 16))}}}}}
	return int64(proto.Size(rpc) + 1)
}()

// spreading is one message on its way.
type spreading struct {
	g     modelGossip
	topic string
	data  []byte
	size  int64
	what  uint64
	peers []*modelNode // index peers

	mu    sync.Mutex
	heard []bool               // by index peer
	told  map[[2]int]time.Time // when the first of two index peers learns that the second has the message
}

// Publish implements Gossip.
func (g modelGossip) Publish(_ context.Context, topic string, data []byte) (int, error) {
	n, w := g.n, g.n.w
	if !n.runs(g.run) {
		return 0, nil
	}
	w.log("publish", n, nil)
	w.mu.RLock()
	defer w.mu.RUnlock()
	s := &spreading{
		g: g, topic: topic, data: data, size: gossipSize(topic, data), what: hash(uint64(n.at), uint64(time.Now().UnixNano())),
		peers: w.peers, heard: make([]bool, len(w.peers)), told: map[[2]int]time.Time{},
	}
	direct := 0
	for i, p := range s.peers {
		if p == n || !slices.Contains(n.conns, p) {
			continue
		}
		direct++
		n.begun[flowGossip].Add(1)
		s.send(n, -1, i, w.way(n, p, int(s.size)))
	}
	return direct, nil
}

// send brings a copy on its way; the network's mu is held for reading.
func (s *spreading) send(from *modelNode, fromAt, at int, after time.Duration) {
	p := s.peers[at]
	from.sent[flowGossip].Add(s.size)
	if !p.up || p.w.lost(from, p, s.what) {
		return
	}
	p.received[flowGossip].Add(s.size)
	time.AfterFunc(after, func() { s.arrive(fromAt, at) })
}

// arrive is at an index peer.
func (s *spreading) arrive(fromAt, at int) {
	p, w := s.peers[at], s.g.n.w
	s.mu.Lock()
	again := s.heard[at]
	s.heard[at] = true
	s.mu.Unlock()
	w.mu.RLock()
	take, up := p.takes[s.topic], p.up
	if !again && up && take != nil {
		s.tell(fromAt, at)
	}
	w.mu.RUnlock()
	if take == nil || !up || again {
		return
	}
	begun := time.Now()
	if v := take(s.g.n.id, s.data); v != Accept {
		w.log("ignored", s.g.n, p)
		return
	}
	w.log("heard", s.g.n, p)
	w.found.heard(s.g.n, p, s.data, begun)
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !p.up {
		return
	}
	now := time.Now()
	for i, o := range s.peers {
		s.mu.Lock()
		since, told := s.told[[2]int{at, i}]
		s.mu.Unlock()
		if has := told && !since.After(now); i != at && i != fromAt && o != s.g.n && o.up && !has {
			s.send(p, at, i, w.base(p, o))
		}
	}
}

// tell says to the mesh that an index peer has the message; the network's mu is held for reading.
func (s *spreading) tell(fromAt, at int) {
	p, w := s.peers[at], s.g.n.w
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.peers {
		if i == at || i == fromAt || !o.up {
			continue
		}
		p.sent[flowGossip].Add(dontWantSize)
		o.received[flowGossip].Add(dontWantSize)
		s.told[[2]int{i, at}] = time.Now().Add(w.base(p, o))
	}
}
