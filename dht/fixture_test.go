package dht

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	kadrecord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	envelope "github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// identity is a key whose seed is a number, so that tests are repeatable.
type identity struct {
	key crypto.PrivKey
	id  peer.ID
}

func identityOf(t testing.TB, n int) identity {
	t.Helper()
	seed := sha256.Sum256(fmt.Appendf(nil, "identity %d", n))
	return identityFrom(seed[:])
}

func identityFrom(seed []byte) identity {
	key, _, err := crypto.GenerateEd25519Key(newSeedReader(seed))
	if err != nil { // a seed reader does not fail
		panic(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil { // nor does a key of this type
		panic(err)
	}
	return identity{key, id}
}

type seedReader struct{ seed []byte }

func newSeedReader(seed []byte) io.Reader { return &seedReader{seed} }

func (r *seedReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.seed[i%len(r.seed)]
	}
	return len(p), nil
}

// seal describes how a noun is signed, written here a second time, so that tests can forge what protocol
// refuses to sign and so that the two have to agree.
type seal struct {
	domain, codec string
	payload       []byte
}

func (s *seal) Domain() string                 { return s.domain }
func (s *seal) Codec() []byte                  { return []byte(s.codec) }
func (s *seal) MarshalRecord() ([]byte, error) { return s.payload, nil }
func (s *seal) UnmarshalRecord(b []byte) error { s.payload = bytes.Clone(b); return nil }
func capabilitySeal() *seal {
	return &seal{domain: "gridbeam/capability/v1", codec: "/gridbeam/capability"}
}

func availabilitySeal() *seal {
	return &seal{domain: "gridbeam/availability/v1", codec: "/gridbeam/availability"}
}

func sign(t testing.TB, key crypto.PrivKey, as *seal, m proto.Message) []byte {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	as.payload = payload
	env, err := envelope.Seal(as, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := env.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func p32(n uint32) *uint32 { return &n }
func p64(n uint64) *uint64 { return &n }

// machine is a plausible record of a node with the given GPUs.
func machine(id peer.ID, seq uint64, now time.Time, gpus ...*pb.GpuGroup) *pb.Capability {
	return &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(id), Seq: seq,
		Issued: now.UnixMilli(), Expires: now.Add(90 * time.Minute).UnixMilli(), Agent: "gridbeam/test",
		Host: &pb.Host{Os: "linux", Arch: "amd64", Cores: p32(8), RamBytes: p64(64e9)},
		Gpus: gpus,
	}
}

func gpu(model string, count uint32, vramGiB float64) *pb.GpuGroup {
	return &pb.GpuGroup{Vendor: "nvidia", Model: model, Count: count, VramBytes: p64(uint64(vramGiB * (1 << 30)))}
}

func heartbeat(id peer.ID, seq uint64, now time.Time, record []byte, state pb.NodeState, groups ...*pb.GroupLoad) *pb.Availability {
	d := digestOf(record)
	return &pb.Availability{
		Format: 1, PeerId: []byte(id), Seq: seq, At: now.UnixMilli(), PeriodS: 30, State: state,
		CapDigest: d[:], Groups: groups, UpSince: now.Add(-time.Hour).UnixMilli(),
	}
}

const ready = pb.NodeState_NODE_STATE_READY

// rawGossip is a Gossip over a plain router, as p2p's is over its own.
type rawGossip struct {
	ps *pubsub.PubSub
	id peer.ID

	mu     sync.Mutex
	topics map[string]*pubsub.Topic
}

var _ Gossip = (*rawGossip)(nil)

func (g *rawGossip) join(name string) (*pubsub.Topic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t, ok := g.topics[name]; ok {
		return t, nil
	}
	t, err := g.ps.Join(name)
	if err == nil {
		g.topics[name] = t
	}
	return t, err
}

func (g *rawGossip) Publish(ctx context.Context, topic string, data []byte) (int, error) {
	t, err := g.join(topic)
	if err != nil {
		return 0, err
	}
	return len(t.ListPeers()), t.Publish(ctx, data)
}

func (g *rawGossip) Subscribe(ctx context.Context, topic string, take func(peer.ID, []byte) Verdict) error {
	verdicts := map[Verdict]pubsub.ValidationResult{Accept: pubsub.ValidationAccept, Ignore: pubsub.ValidationIgnore, Reject: pubsub.ValidationReject}
	err := g.ps.RegisterTopicValidator(topic, func(_ context.Context, via peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if via == g.id {
			return pubsub.ValidationAccept
		}
		return verdicts[take(m.GetFrom(), m.Data)]
	})
	if err != nil {
		return err
	}
	t, err := g.join(topic)
	if err != nil {
		return err
	}
	sub, err := t.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Cancel()
	for {
		if _, err := sub.Next(ctx); err != nil {
			return nil
		}
	}
}

// testPeer is a real host with a running directory.
type testPeer struct {
	identity
	host   host.Host
	gossip *rawGossip
	dir    *Directory
	stop   func()
}

// newHost listens on loopback TCP.
func newHost(t testing.TB, who identity) (host.Host, *rawGossip) {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(who.key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithFloodPublish(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, &rawGossip{ps: ps, id: h.ID(), topics: map[string]*pubsub.Topic{}}
}

func startPeer(t testing.TB, n int, mutate func(*Config)) *testPeer {
	t.Helper()
	p := &testPeer{identity: identityOf(t, n)}
	p.host, p.gossip = newHost(t, p.identity)
	cfg := DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.K = ModeServer, true, 8
	cfg.BeatGap = time.Millisecond
	if mutate != nil {
		mutate(&cfg)
	}
	dir, err := New(cfg, p.host, p.gossip, time.Now, rand.New(rand.NewPCG(1, uint64(n))), quiet)
	if err != nil {
		t.Fatal(err)
	}
	p.dir = dir
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- dir.Run(ctx) }()
	var once sync.Once
	p.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(p.stop)
	if err := dir.up(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func connect(t testing.TB, from, to host.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := from.Connect(ctx, peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok or fails.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// quickly bounds what cannot succeed.
const quickly = 2 * time.Second

// sealed is a signed record of the peer.
func (p *testPeer) sealed(t testing.TB, gpus ...*pb.GpuGroup) []byte {
	t.Helper()
	now := time.Now()
	return sign(t, p.key, capabilitySeal(), machine(p.id, uint64(now.UnixMicro()), now, gpus...))
}

// advertise publishes a record and a heartbeat of the peer.
func (p *testPeer) advertise(t testing.TB, gpus ...*pb.GpuGroup) []byte {
	t.Helper()
	raw := p.sealed(t, gpus...)
	ctx := within(t, 20*time.Second)
	if got, err := p.dir.Advertise(ctx, raw); err != nil {
		t.Fatalf("advertising: %+v %v", got, err)
	}
	c := &pb.Capability{Gpus: gpus}
	if err := p.dir.Provide(ctx, Attributes(c)); err != nil {
		t.Fatal(err)
	}
	p.beat(t, raw, ready)
	return raw
}

func (p *testPeer) beat(t testing.TB, record []byte, state pb.NodeState) {
	t.Helper()
	now := time.Now()
	rec, err := openCapability(record, p.id, now)
	if err != nil {
		t.Fatal(err)
	}
	var loads []*pb.GroupLoad
	for i, g := range rec.cap.GetGpus() {
		loads = append(loads, &pb.GroupLoad{Index: uint32(i), Free: g.GetCount()})
	}
	raw := sign(t, p.key, availabilitySeal(), heartbeat(p.id, uint64(now.UnixMicro()), now, record, state, loads...))
	if _, err := p.dir.Beat(within(t, 5*time.Second), raw); err != nil {
		t.Fatal(err)
	}
}

// kadValue is a value as kad-dht keeps it in its store.
func kadValue(t testing.TB, key string, raw []byte, received time.Time) []byte {
	t.Helper()
	rec := kadrecord.MakePutRecord(key, raw)
	rec.TimeReceived = received.UTC().Format(time.RFC3339Nano)
	b, err := proto.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// storeKey is the datastore key under which kad-dht keeps a value.
func storeKey(key string) ds.Key {
	return ds.NewKey("/" + protocol.NamespaceCapability + "/" + noPadding.EncodeToString([]byte(key)))
}

func scanWriter(w io.Writer) msgio.Writer { return msgio.NewVarintWriter(struct{ io.Writer }{w}) }
func newRand(seed uint64) *rand.Rand      { return rand.New(rand.NewPCG(seed, seed)) }
