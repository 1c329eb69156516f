package gridbeam_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// directoryPeer is a real host on TCP and loopback with a directory, as a node has them.
type directoryPeer struct {
	key  crypto.PrivKey
	id   peer.ID
	host *p2p.Host
	dir  *dht.Directory
	seq  uint64
}

func newDirectoryPeer(t *testing.T, index bool) *directoryPeer {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := p2p.LoopbackConfig()
	cfg.Listen = []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/0")}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h, err := p2p.New(cfg, key, log)
	if err == nil {
		err = h.Open(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	d := dht.DefaultConfig()
	d.Mode, d.Loopback, d.BeatGap = dht.ModeServer, true, time.Millisecond
	if index {
		d.Shards, d.Index = dht.AllShards(), true
	}
	p := &directoryPeer{key: key, host: h, id: h.Host().ID()}
	if p.dir, err = dht.New(d, h.Host(), newShardGossip(h), time.Now, rand.New(rand.NewPCG(1, 2)), log); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{h.Run, p.dir.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return p
}

func connectDirectories(t *testing.T, a, b *directoryPeer) {
	t.Helper()
	if err := a.host.Connect(t.Context(), peer.AddrInfo{ID: b.id, Addrs: b.host.Host().Addrs()}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); a.dir.Servers() == 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server does not know the others")
		}
	}
}

// advertise stores a record of a machine with these GPUs and returns it.
func (p *directoryPeer) advertise(t *testing.T, gpus ...*pb.GpuGroup) []byte {
	t.Helper()
	now := time.Now()
	p.seq = uint64(now.UnixMicro())
	c := &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(p.id), Seq: p.seq, Issued: now.UnixMilli(), Expires: now.Add(time.Hour).UnixMilli(), Agent: "gridbeam/test",
		Host: &pb.Host{Os: "linux", Arch: "amd64", Cores: new(uint32(16)), RamBytes: new(uint64(64e9))}, Gpus: gpus,
	}
	raw, err := protocol.SealCapability(p.key, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if got, err := p.dir.Advertise(ctx, raw); err != nil {
		t.Fatalf("%+v: %v", got, err)
	}
	if err := p.dir.Provide(ctx, dht.Attributes(c)); err != nil {
		t.Fatal(err)
	}
	return raw
}

// beat publishes heartbeats until ctx ends.
func (p *directoryPeer) beat(ctx context.Context, t *testing.T, record []byte, groups ...*pb.GroupLoad) {
	digest := sha256.Sum256(record)
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		now := time.Now()
		raw, err := protocol.SealAvailability(p.key, &pb.Availability{
			Format: 1, PeerId: []byte(p.id), Seq: uint64(now.UnixMicro()), At: now.UnixMilli(), PeriodS: 30, State: pb.NodeState_NODE_STATE_READY,
			CapDigest: digest[:8], Groups: groups,
		})
		if err == nil {
			_, err = p.dir.Beat(ctx, raw)
		}
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// sees says yes once the directory knows of a peer what it says of itself.
func (p *directoryPeer) sees(t *testing.T, what, id string) string {
	t.Helper()
	who, err := peer.Decode(id)
	if err != nil {
		return err.Error()
	}
	found := "nothing"
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		c, err := p.dir.Get(ctx, who)
		cancel()
		if err != nil {
			found = err.Error()
			continue
		}
		found = fmt.Sprintf("%s of agent %s with %d cores, seq %d", c.State, c.Capability.GetAgent(), c.Capability.GetHost().GetCores(), c.Capability.GetSeq())
		good := c.Capability.GetAgent() == "js/1" && c.Capability.GetHost().GetCores() == 12 && c.Capability.GetSeq() > 1
		if good && (what == "stored" || c.State == "READY") {
			return "yes"
		}
	}
	return found
}

var _ dht.Gossip = (*shardGossip)(nil)

// shardGossip carries heartbeats over a host's topics.
type shardGossip struct {
	host *p2p.Host

	mu     sync.Mutex
	topics map[string]*p2p.Topic[[]byte]
	take   map[string]func(peer.ID, []byte) dht.Verdict
}

func newShardGossip(h *p2p.Host) *shardGossip {
	return &shardGossip{host: h, topics: map[string]*p2p.Topic[[]byte]{}, take: map[string]func(peer.ID, []byte) dht.Verdict{}}
}

func (g *shardGossip) join(name string) (*p2p.Topic[[]byte], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if topic := g.topics[name]; topic != nil {
		return topic, nil
	}
	verdicts := map[dht.Verdict]p2p.Verdict{dht.Accept: p2p.Accept, dht.Ignore: p2p.Ignore, dht.Reject: p2p.Reject}
	topic, err := p2p.Join(g.host, name, p2p.TopicConfig[[]byte]{
		MaxSize: protocol.MaxAvailability,
		Decode:  asBytes,
		Validate: func(_ context.Context, m p2p.Received[[]byte]) p2p.Verdict {
			g.mu.Lock()
			take := g.take[name]
			g.mu.Unlock()
			if take == nil {
				return p2p.Ignore
			}
			return verdicts[take(m.Author, m.Data)]
		},
	})
	if err == nil {
		g.topics[name] = topic
	}
	return topic, err
}

// Publish implements dht.Gossip.
func (g *shardGossip) Publish(ctx context.Context, name string, data []byte) (int, error) {
	topic, err := g.join(name)
	if err != nil {
		return 0, err
	}
	return len(topic.Peers()), topic.Publish(ctx, data)
}

// Subscribe implements dht.Gossip.
func (g *shardGossip) Subscribe(ctx context.Context, name string, take func(peer.ID, []byte) dht.Verdict) error {
	topic, err := g.join(name)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.take[name] = take
	g.mu.Unlock()
	sub, err := topic.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		if _, err := sub.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func asBytes(b []byte, _ peer.ID) ([]byte, error) { return b, nil }
