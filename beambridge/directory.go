package beambridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// gossip carries heartbeats for the directory over the host's topics. Each topic is joined once and kept.
type gossip struct {
	host  *p2p.Host
	news  func() // called after each heartbeat that was taken; must not block
	mu    sync.Mutex
	shard map[string]*shard
}

// shard is a joined availability topic; take is nil while nobody listens.
type shard struct {
	topic *p2p.Topic[[]byte]
	mu    sync.Mutex
	take  func(peer.ID, []byte) dht.Verdict
}

var _ dht.Gossip = (*gossip)(nil)

func newGossip(host *p2p.Host, news func()) *gossip {
	return &gossip{host: host, news: news, shard: map[string]*shard{}}
}

func (g *gossip) join(name string) (*shard, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.shard[name]; s != nil {
		return s, nil
	}
	s := &shard{}
	topic, err := p2p.Join(g.host, name, p2p.TopicConfig[[]byte]{
		MaxSize:  protocol.MaxAvailability,
		Decode:   func(data []byte, _ peer.ID) ([]byte, error) { return data, nil }, // the directory judges
		Validate: func(_ context.Context, m p2p.Received[[]byte]) p2p.Verdict { return s.judge(m, g.news) },
	})
	if err != nil {
		return nil, err
	}
	s.topic = topic
	g.shard[name] = s
	return s, nil
}

func (s *shard) judge(m p2p.Received[[]byte], news func()) p2p.Verdict {
	s.mu.Lock()
	take := s.take
	s.mu.Unlock()
	if take == nil {
		return p2p.Ignore
	}
	switch take(m.Author, m.Data) {
	case dht.Accept:
		news()
		return p2p.Accept
	case dht.Reject:
		return p2p.Reject
	default:
		return p2p.Ignore
	}
}

// Publish implements dht.Gossip.
func (g *gossip) Publish(ctx context.Context, topic string, data []byte) (int, error) {
	s, err := g.join(topic)
	if err != nil {
		return 0, err
	}
	return len(s.topic.Peers()), s.topic.Publish(ctx, data)
}

// Subscribe implements dht.Gossip.
func (g *gossip) Subscribe(ctx context.Context, topic string, take func(peer.ID, []byte) dht.Verdict) error {
	s, err := g.join(topic)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.take = take
	s.mu.Unlock()
	sub, err := s.topic.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Close()
	for { // take has seen it already; the queue only has to be emptied
		if _, err := sub.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// hear gives a heartbeat that came some other way to whoever listens to its topic.
func (g *gossip) hear(author peer.ID, beat []byte) {
	g.mu.Lock()
	var s *shard
	for _, x := range g.shard { // the directory takes beats of any shard alike
		s = x
		break
	}
	g.mu.Unlock()
	if s != nil {
		s.judge(p2p.Received[[]byte]{Author: author, Via: author, Data: beat}, g.news)
	}
}

// greet asks a peer that has just connected what it is, instead of waiting for its next heartbeat: after a
// restart the directory is empty, and a node that joins has beaten before anybody heard it.
func (b *Bridge) greet(ctx context.Context) error {
	n := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		select {
		case b.guests <- c.RemotePeer():
		default: // its heartbeat comes
		}
	}}
	b.host.Host().Network().Notify(n)
	defer b.host.Host().Network().StopNotify(n)
	for {
		var id protocol.PeerID
		select {
		case <-ctx.Done():
			return nil
		case id = <-b.guests:
		}
		b.spawn(func() { b.meet(ctx, id) })
	}
}

// meet learns a connected peer's record and heartbeat from itself.
func (b *Bridge) meet(ctx context.Context, id protocol.PeerID) {
	ctx, stop := context.WithTimeout(ctx, meetFor)
	defer stop()
	for range meetTries { // it may not have made its record yet
		c, err := b.dir.Get(ctx, id)
		if err == nil && len(c.Beat) > 0 {
			b.gossip.hear(id, c.Beat)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(meetPause):
		}
	}
}

const (
	// meetFor, meetTries and meetPause bound how long a peer is asked what it is.
	meetFor   = 10 * time.Second
	meetTries = 4
	meetPause = 500 * time.Millisecond
)

// close leaves all topics.
func (g *gossip) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, s := range g.shard {
		errs = append(errs, s.topic.Close())
	}
	clear(g.shard)
	return errors.Join(errs...)
}

// herald says what the bridge is in the directory: who it is and where, no machine for work.
type herald struct {
	key   crypto.PrivKey
	self  protocol.PeerID
	host  *p2p.Host
	agent string
}

var _ dht.Source = (*herald)(nil)

// Record implements dht.Source.
func (h *herald) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	c := &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(h.self), Seq: seq, Issued: issued.UnixMilli(), Expires: expires.UnixMilli(), Agent: h.agent,
		Roles: []string{"bridge", "index"}, Tombstone: leaving,
	}
	if h.host.Relays() {
		c.Roles = append(c.Roles, dht.AttrRelay)
	}
	for _, a := range h.host.Told() {
		if b := a.Bytes(); len(b) <= 128 && len(c.Addrs) < 6 {
			c.Addrs = append(c.Addrs, b)
		}
	}
	return protocol.SealCapability(h.key, c)
}

// Beat implements dht.Source.
func (h *herald) Beat(b dht.BeatHeader, leaving bool) ([]byte, error) {
	state := pb.NodeState_NODE_STATE_READY
	if leaving {
		state = pb.NodeState_NODE_STATE_LEAVING
	}
	return protocol.SealAvailability(h.key, &pb.Availability{
		Format: 1, PeerId: []byte(h.self), Seq: b.Seq, At: b.At.UnixMilli(), PeriodS: uint32(max(1, b.Period/time.Second)), State: state,
		CapSeq: b.CapSeq, CapDigest: b.CapDigest[:],
	})
}

// seqFile keeps the record's sequence number in a file of the data directory.
type seqFile string

var _ dht.SeqStore = seqFile("")

// LastSeq implements dht.SeqStore.
func (f seqFile) LastSeq() (uint64, error) {
	raw, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the record's number: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the record's number in %s: %w", string(f), err)
	}
	return n, nil
}

// SaveSeq implements dht.SeqStore.
func (f seqFile) SaveSeq(seq uint64) error {
	return writeFile(string(f), strconv.AppendUint(nil, seq, 10))
}

// isWorker says whether a record is one of a machine that takes work.
func isWorker(c *pb.Capability) bool {
	bridge, node := false, false
	for _, r := range c.GetRoles() {
		bridge, node = bridge || r == "bridge", node || r == "node"
	}
	return node || !bridge
}
