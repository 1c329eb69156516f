package dht

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// simGossip is a Gossip over p2p's topics, as the roles have one.
type simGossip struct {
	host *p2p.Host

	mu     sync.Mutex
	topics map[string]*simTopic
}

type simTopic struct {
	topic *p2p.Topic[[]byte]
	mu    sync.Mutex
	take  func(peer.ID, []byte) Verdict
}

func (g *simGossip) join(name string) (*simTopic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.topics[name]; s != nil {
		return s, nil
	}
	s := &simTopic{}
	topic, err := p2p.Join(g.host, name, p2p.TopicConfig[[]byte]{
		MaxSize: protocol.MaxAvailability,
		Decode:  func(data []byte, _ peer.ID) ([]byte, error) { return data, nil },
		Validate: func(_ context.Context, m p2p.Received[[]byte]) p2p.Verdict {
			s.mu.Lock()
			take := s.take
			s.mu.Unlock()
			if take == nil {
				return p2p.Ignore
			}
			return map[Verdict]p2p.Verdict{Accept: p2p.Accept, Ignore: p2p.Ignore, Reject: p2p.Reject}[take(m.Author, m.Data)]
		},
	})
	if err != nil {
		return nil, err
	}
	s.topic = topic
	g.topics[name] = s
	return s, nil
}

func (g *simGossip) Publish(ctx context.Context, topic string, data []byte) (int, error) {
	s, err := g.join(topic)
	if err != nil {
		return 0, err
	}
	return len(s.topic.Peers()), s.topic.Publish(ctx, data)
}

func (g *simGossip) Subscribe(ctx context.Context, topic string, take func(peer.ID, []byte) Verdict) error {
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
	for {
		if _, err := sub.Next(ctx); err != nil {
			return nil
		}
	}
}

// simWorld is a simulated network of real hosts in virtual time.
type simWorld struct {
	t     *testing.T
	net   *testnet.Net
	k     int
	hosts []*simHost
	boot  []peer.AddrInfo

	network *protocol.NetworkFile // whose landmarks are measured every 10 min; nil for none
	tallies []tally               // by the number of the process

	lies     atomic.Int64 // false records that hostile servers gave
	withheld atomic.Int64 // of what they said that they keep

	mu     sync.Mutex
	signed map[string]bool // every record that its node has signed
}

// simHost is one process: an honest node, an index peer or a hostile server.
type simHost struct {
	*testnet.Process
	w       *simWorld
	at      int
	index   bool
	hostile int          // 0 is honest, else its kind
	ahead   atomic.Int64 // of its clock, in ns

	mu       sync.Mutex
	key      crypto.PrivKey
	dir      *Directory
	announce *Announcer
	seq      uint64 // survives crashes
	model    string
	place    string   // that it claims
	records  [][]byte // that it signed, the latest last
	beats    [][]byte
}

var (
	_ Source   = (*simHost)(nil)
	_ SeqStore = (*simHost)(nil)
)

func (h *simHost) clock() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) }

func (h *simHost) LastSeq() (uint64, error) { h.mu.Lock(); defer h.mu.Unlock(); return h.seq, nil }
func (h *simHost) SaveSeq(seq uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq = seq
	return nil
}

// Record implements Source.
func (h *simHost) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	c := machine(h.ID(), seq, issued)
	c.Expires, c.Tombstone = expires.UnixMilli(), leaving
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index {
		c.Roles = []string{"index"}
	} else {
		c.Roles = []string{"node"}
		c.Gpus = []*pb.GpuGroup{gpu(h.model, 4, 22.5)}
	}
	for _, a := range h.AddrInfo().Addrs {
		c.Addrs = append(c.Addrs, a.Bytes())
	}
	c.Location = &pb.Location{Country: h.place}
	if own := h.dir.LandmarkRTTs(); own.RTT != nil {
		c.Location.LandmarkEpoch, c.Location.LandmarkRtt = &own.Epoch, own.RTT
	}
	raw, err := protocol.SealCapability(h.key, c)
	if err == nil {
		h.records = append(h.records, raw)
		h.w.mu.Lock()
		h.w.signed[string(raw)] = true
		h.w.mu.Unlock()
	}
	return raw, err
}

// Beat implements Source.
func (h *simHost) Beat(b BeatHeader, leaving bool) ([]byte, error) {
	av := &pb.Availability{
		Format: 1, PeerId: []byte(h.ID()), Seq: b.Seq, At: b.At.UnixMilli(), PeriodS: uint32(b.Period / time.Second), State: ready,
		CapSeq: b.CapSeq, CapDigest: b.CapDigest[:], Groups: []*pb.GroupLoad{{Free: 4}},
	}
	if leaving {
		av.State = pb.NodeState_NODE_STATE_LEAVING
	}
	raw, err := protocol.SealAvailability(h.key, av)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beats = append(h.beats, raw)
	return raw, err
}

// latest is the record that it signed last.
func (h *simHost) latest() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.records) == 0 {
		return nil
	}
	return h.records[len(h.records)-1]
}

func (h *simHost) directory() *Directory { h.mu.Lock(); defer h.mu.Unlock(); return h.dir }

// main is the process: a directory, its announcer and, for a hostile one, its evil.
func (h *simHost) main(ctx context.Context, env testnet.Env) error {
	cfg := DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.K, cfg.StoreBytes = ModeServer, true, h.w.k, 8<<20
	if h.index {
		cfg.Index, cfg.Shards = true, AllShards()
	}
	gossip := &simGossip{host: env.Host, topics: map[string]*simTopic{}}
	count := &h.w.tallies[h.at]
	rnd := func() *rand.Rand { return rand.New(rand.NewPCG(uint64(h.at), uint64(env.Run))) }
	d, err := New(cfg, countingHost{env.Host.Host(), count}, countingGossip{gossip, count}, h.clock, rnd(), quiet)
	if err != nil {
		return err
	}
	a, err := NewAnnouncer(d, DefaultSchedule(), h, h, rnd())
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.dir, h.announce, h.key = d, a, env.Host.Key()
	h.mu.Unlock()
	for i, info := range h.w.boot {
		if info.ID != h.ID() && (i < 3 || h.index) {
			env.Host.Keep(info)
		}
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Run(serving); err != nil {
			h.w.t.Errorf("directory %d: %v", h.at, err)
		}
	})
	if h.hostile > 0 {
		all.Go(func() { h.evil(serving, d, gossip) })
	}
	if h.w.network != nil {
		d.SetNetwork(*h.w.network)
		all.Go(func() {
			if err := d.Locate(serving, LocateConfig{Every: 10 * time.Minute, Again: time.Minute, Changed: a.RecordChanged}); err != nil {
				h.w.t.Errorf("landmarks of %d: %v", h.at, err)
			}
		})
	}
	if !h.index || h.hostile == 0 {
		watch := DefaultWatch()
		watch.Anchors, watch.Unseen = h.w.boot, a.RecordChanged
		all.Go(func() { _ = d.Watch(ctx, watch) })
	}
	err = a.Run(ctx)
	stop()
	all.Wait()
	if errors.Is(context.Cause(ctx), testnet.ErrCrashed) {
		return nil
	}
	return err
}

// newSim starts a network of n hosts, of which three are index peers and a share is hostile.
func newSim(t *testing.T, seed uint64, n int, hostile float64, change ...func(*simWorld)) *simWorld {
	t.Helper()
	w := &simWorld{t: t, k: 20, signed: map[string]bool{}, tallies: make([]tally, n+8)}
	w.net = testnet.New(t, testnet.Options{Seed: seed, Libp2p: func(i int) []libp2p.Option {
		return []libp2p.Option{libp2p.BandwidthReporter(meter{tally: &w.tallies[i]})}
	}})
	models := []string{"nvidia-h100-80gb-sxm", "nvidia-l4-24gb", "nvidia-rtx-4090-24gb"}
	for i := range n {
		h := &simHost{w: w, at: i, index: i < 3, model: models[i%3]}
		if bad := int(float64(n) * hostile); i >= 3 && i < 3+bad {
			h.hostile = 1 + i%3
		}
		h.Process = w.net.Process(h.main)
		w.hosts = append(w.hosts, h)
		if h.index {
			w.boot = append(w.boot, h.AddrInfo())
		}
	}
	for _, f := range change {
		f(w)
	}
	for i, h := range w.hosts {
		h.Start()
		if i%10 == 9 {
			pass(time.Second)
		}
	}
	return w
}

func pass(d time.Duration) { <-time.After(d) }

// honest are the nodes that tell the truth, of a set of indices left out.
func (w *simWorld) honest(out ...int) map[peer.ID]*simHost {
	all := map[peer.ID]*simHost{}
	for _, h := range w.hosts {
		if !h.index && h.hostile == 0 {
			all[h.ID()] = h
		}
	}
	for _, i := range out {
		delete(all, w.hosts[i].ID())
	}
	return all
}

// client starts a directory on a host of its own that only asks, and returns it.
func (w *simWorld) client() *Directory {
	w.t.Helper()
	ready := make(chan *Directory, 1)
	p := w.net.Process(func(ctx context.Context, env testnet.Env) error {
		cfg := DefaultConfig()
		cfg.Mode, cfg.Loopback, cfg.K, cfg.ColdSample, cfg.ColdTimeout = ModeClient, true, w.k, 2*len(w.hosts), 30*time.Second
		d, err := New(cfg, env.Host.Host(), nil, time.Now, rand.New(rand.NewPCG(99, 99)), quiet)
		if err != nil {
			return err
		}
		for _, info := range w.boot {
			env.Host.Keep(info)
		}
		ready <- d
		return d.Run(ctx)
	})
	p.Start()
	return <-ready
}

// ask returns the nodes that a query finds, after checking that nothing false is among them: every record is one
// that its node has signed.
func (w *simWorld) ask(d *Directory, query Query) (map[peer.ID]Candidate, Explanation) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, ex, err := d.Find(ctx, query)
	if err != nil {
		w.t.Fatalf("asking: %v, %+v", err, ex)
	}
	out := map[peer.ID]Candidate{}
	for _, c := range got {
		w.mu.Lock()
		signed := w.signed[string(c.Record)]
		w.mu.Unlock()
		if !signed || peer.ID(c.Capability.GetPeerId()) != c.Peer {
			w.t.Errorf("a record is listed that %s never signed", c.Peer)
		}
		out[c.Peer] = c
	}
	return out, ex
}

// recall is the share of nodes that are found with what they last said.
func recall(want map[peer.ID]*simHost, got map[peer.ID]Candidate) (share float64, missing []string) {
	found := 0
	for id, h := range want {
		if c, ok := got[id]; ok && string(c.Record) == string(h.latest()) {
			found++
		} else {
			missing = append(missing, fmt.Sprintf("%d (listed %t)", h.at, ok))
		}
	}
	return float64(found) / float64(len(want)), missing
}

// nodesQuery asks for all nodes.
func nodesQuery(t *testing.T, via Via) Query {
	return Query{Filter: parsed(t, `gpus.count >= 1`), Via: via, Seed: 7}
}

// forgery is a record of a node that another key has signed.
func forgery(h, by *simHost) ([]byte, error) {
	c := machine(h.ID(), 1<<60, time.Now(), gpu("nvidia-b200-180gb", 8, 178))
	payload, err := proto.Marshal(c)
	if err != nil {
		return nil, err
	}
	return sealRaw(by.key, capabilitySeal(), payload)
}
