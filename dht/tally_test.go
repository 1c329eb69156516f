package dht

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/gridbeam/gridbeam/protocol"
)

// flow is one of the kinds of traffic that a directory causes.
type flow int

// The kinds: Kademlia's requests and answers, queries (find, get, hello, probe), heartbeats over gossip.
const (
	flowKad flow = iota
	flowQuery
	flowGossip
	flows
)

var flowNames = [flows]string{"kademlia", "queries", "gossip"}

// tally counts what one node sends and receives of the directory: bytes on streams, without what the transport adds,
// and messages that it begins. A request with its answer is one message, a copy of a heartbeat is one.
type tally struct {
	sent, received [flows]atomic.Int64
	begun          [flows]atomic.Int64
	kinds          [6]atomic.Int64 // of Kademlia's requests, by kadpb.Message_MessageType
}

// counts is a tally at one moment.
type counts struct {
	sent, received, begun [flows]int64
	kinds                 [6]int64
}

func (t *tally) now() (c counts) {
	for f := range flows {
		c.sent[f], c.received[f], c.begun[f] = t.sent[f].Load(), t.received[f].Load(), t.begun[f].Load()
	}
	for k := range t.kinds {
		c.kinds[k] = t.kinds[k].Load()
	}
	return c
}

// less is what came after another moment.
func (c counts) less(o counts) counts {
	for f := range flows {
		c.sent[f], c.received[f], c.begun[f] = c.sent[f]-o.sent[f], c.received[f]-o.received[f], c.begun[f]-o.begun[f]
	}
	for k := range c.kinds {
		c.kinds[k] -= o.kinds[k]
	}
	return c
}

func (c counts) plus(o counts) counts {
	for f := range flows {
		c.sent[f], c.received[f], c.begun[f] = c.sent[f]+o.sent[f], c.received[f]+o.received[f], c.begun[f]+o.begun[f]
	}
	for k := range c.kinds {
		c.kinds[k] += o.kinds[k]
	}
	return c
}

func total(of [flows]int64) (n int64) {
	for _, v := range of {
		n += v
	}
	return n
}

func flowOf(id libprotocol.ID) (flow, bool) {
	switch {
	case id == protocol.ProtoKad:
		return flowKad, true
	case id == protocol.ProtoQuery:
		return flowQuery, true
	case strings.HasPrefix(string(id), "/meshsub/") || strings.HasPrefix(string(id), "/floodsub/"):
		return flowGossip, true
	}
	return 0, false
}

// meter counts the bytes of a real host's streams by protocol.
type meter struct {
	metrics.Reporter
	*tally
}

func (meter) LogSentMessage(int64) {}
func (meter) LogRecvMessage(int64) {}
func (m meter) LogSentMessageStream(n int64, id libprotocol.ID, _ peer.ID) {
	if f, ok := flowOf(id); ok {
		m.sent[f].Add(n)
	}
}

func (m meter) LogRecvMessageStream(n int64, id libprotocol.ID, _ peer.ID) {
	if f, ok := flowOf(id); ok {
		m.received[f].Add(n)
	}
}

// countingHost counts the requests that a real host sends.
type countingHost struct {
	host.Host
	*tally
}

func (h countingHost) NewStream(ctx context.Context, p peer.ID, ids ...libprotocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	switch s.Protocol() {
	case protocol.ProtoQuery:
		h.begun[flowQuery].Add(1)
	case protocol.ProtoKad:
		return &countingStream{Stream: s, tally: h.tally}, nil
	}
	return s, nil
}

// countingStream reads the frames that are written to a stream: a varint with their length, then a message that begins
// with its type, which is left out when it is PUT_VALUE.
type countingStream struct {
	network.Stream
	*tally
	mu    sync.Mutex
	state int // 0 in the length, 1 at the first byte, 2 at the type, 3 in the rest
	left  uint64
	shift uint
}

func (s *countingStream) Write(b []byte) (int, error) {
	s.mu.Lock()
	for _, c := range b {
		s.step(c)
	}
	s.mu.Unlock()
	return s.Stream.Write(b)
}

func (s *countingStream) step(c byte) {
	if s.state == 0 {
		s.left |= uint64(c&0x7f) << s.shift
		s.shift += 7
		if c < 0x80 {
			s.state = 1
		}
		return
	}
	s.left--
	switch {
	case s.state == 1 && c == 0x08:
		s.state = 2
	case s.state == 1:
		s.request(kadpb.Message_PUT_VALUE)
		s.state = 3
	case s.state == 2:
		s.request(kadpb.Message_MessageType(c))
		s.state = 3
	}
	if s.left == 0 {
		s.state, s.shift = 0, 0
	}
}

func (s *countingStream) request(kind kadpb.Message_MessageType) {
	s.begun[flowKad].Add(1)
	if int(kind) < len(s.kinds) {
		s.kinds[kind].Add(1)
	}
}

// countingGossip counts the copies of heartbeats that a peer sends.
type countingGossip struct {
	Gossip
	*tally
}

func (g countingGossip) Publish(ctx context.Context, topic string, data []byte) (int, error) {
	n, err := g.Gossip.Publish(ctx, topic, data)
	g.begun[flowGossip].Add(int64(n))
	return n, err
}

// rates are means of nodes over a time.
type meanRates struct {
	messages       float64 // begun, a node and hour
	sent, received float64 // bytes a node and second
	by             counts  // means, a node and hour
}

func meansOf(all []counts, over time.Duration) (r meanRates) {
	var sum counts
	for _, c := range all {
		sum = sum.plus(c)
	}
	n, hours := float64(len(all)), over.Hours()
	r.messages = float64(total(sum.begun)) / n / hours
	r.sent, r.received = float64(total(sum.sent))/n/over.Seconds(), float64(total(sum.received))/n/over.Seconds()
	for f := range flows {
		r.by.begun[f] = int64(float64(sum.begun[f]) / n / hours)
		r.by.sent[f] = int64(float64(sum.sent[f]) / n / hours)
		r.by.received[f] = int64(float64(sum.received[f]) / n / hours)
	}
	for k := range sum.kinds {
		r.by.kinds[k] = int64(float64(sum.kinds[k]) / n / hours)
	}
	return r
}
