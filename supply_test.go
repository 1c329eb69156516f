package gridbeam_test

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// claimant is a peer that says of itself what a test wants, in records that are signed and published as any
// node's, and notes for which jobs it is asked. It is always busy, so it runs nothing.
type claimant struct {
	*testnet.Process
	farm *farm

	mu       sync.Mutex
	says     *pb.Capability // its host and GPUs
	key      crypto.PrivKey
	records  [][]byte // that it has signed, oldest first
	beats    [][]byte
	announce *dht.Announcer
	asked    map[protocol.JobID]int
}

var (
	_ dht.Source   = (*claimant)(nil)
	_ dht.SeqStore = (*claimant)(nil)
)

// claim adds a claimant; it is started with the farm, or by Start.
func (f *farm) claim(gpus ...*pb.GpuGroup) *claimant {
	c := &claimant{farm: f, asked: map[protocol.JobID]int{}, says: &pb.Capability{
		Host: &pb.Host{
			Os: "linux", Arch: "amd64", Threads: proto.Uint32(16), RamBytes: proto.Uint64(64 << 30), Executors: []string{"wasm:strong"},
			Storage: []*pb.Storage{{Class: "ssd", Total: 100 << 30, Usable: 100 << 30}},
		},
		Gpus: gpus,
	}}
	c.Process = f.net.Process(c.run, func(cfg *p2p.Config) { cfg.Bootstrap = []peer.AddrInfo{f.bridge.AddrInfo()} })
	return c
}

// gpus is a group of devices as their driver names them.
func gpus(raw string, gib float64, count uint32) *pb.GpuGroup {
	bytes := uint64(gib * (1 << 30))
	return &pb.GpuGroup{Vendor: "nvidia", Model: protocol.NameGPU(raw, bytes).Slug, RawName: raw, Count: count, VramBytes: &bytes}
}

func (c *claimant) run(ctx context.Context, env testnet.Env) error {
	cfg := dht.DefaultConfig()
	cfg.K, cfg.Mode = 8, dht.ModeClient
	rnd := func() *rand.Rand { return rand.New(rand.NewPCG(1, uint64(c.Index()))) }
	dir, err := dht.New(cfg, env.Host.Host(), newShardGossip(env.Host), time.Now, rnd(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	announce, err := dht.NewAnnouncer(dir, dht.DefaultSchedule(), c, c, rnd())
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.key, c.announce = env.Host.Key(), announce
	c.mu.Unlock()
	err = errors.Join(
		p2p.Serve(env.Host, protocol.ProtoAuth, func(context.Context, peer.ID, *pb.AuthRequest) (*pb.AuthReply, error) {
			return &pb.AuthReply{Ok: true, Grant: make([]byte, 32), Expires: time.Now().Add(time.Hour).UnixMilli()}, nil
		}),
		p2p.Serve(env.Host, protocol.ProtoReserve, c.reserve),
		env.Host.HandleDuplex(protocol.ProtoLease, func(ctx context.Context, f *p2p.Frames) error { return c.report(f) }),
	)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	dirCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() { done <- dir.Run(dirCtx) }()
	err = announce.Run(ctx)
	stop()
	return errors.Join(err, <-done)
}

func (c *claimant) reserve(_ context.Context, _ peer.ID, req *pb.ReserveRequest) (*pb.ReserveReply, error) {
	r, err := protocol.OpenReservation(req.GetReservation())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[r.Terms.Job]++
	return &pb.ReserveReply{Reason: uint32(protocol.ReasonBusy), Text: "this peer only notes who asks"}, nil
}

func (c *claimant) report(f *p2p.Frames) error {
	for {
		set := &pb.LeaseSet{}
		if err := f.Read(set); err != nil {
			return nil
		}
		if err := f.Write(&pb.LeaseReport{Seq: set.GetSeq(), State: "READY"}); err != nil {
			return nil
		}
	}
}

// wasAsked says whether a bridge wanted it for a job.
func (c *claimant) wasAsked(id protocol.JobID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[id] > 0
}

// changeTo makes it say something new of its GPUs, in its next record.
func (c *claimant) changeTo(gpus ...*pb.GpuGroup) {
	c.mu.Lock()
	c.says.Gpus = gpus
	announce := c.announce
	c.mu.Unlock()
	announce.RecordChanged()
}

// Record implements dht.Source.
func (c *claimant) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := proto.CloneOf(c.says)
	r.Format, r.MinReader, r.PeerId, r.Seq, r.Issued, r.Expires = 1, 1, []byte(c.ID()), seq, issued.UnixMilli(), expires.UnixMilli()
	r.Agent, r.Roles, r.Tombstone = "gridbeam/claimant", []string{"node"}, leaving
	for _, a := range c.AddrInfo().Addrs {
		r.Addrs = append(r.Addrs, a.Bytes())
	}
	label, err := protocol.SignLabel(c.farm.operator, c.ID(), protocol.LabelOperator, "node", issued.Add(24*time.Hour))
	if err != nil {
		return nil, err
	}
	r.Labels = append(r.Labels, label)
	raw, err := protocol.SealCapability(c.key, r)
	c.records = append(c.records, raw)
	return raw, err
}

// Beat implements dht.Source.
func (c *claimant) Beat(b dht.BeatHeader, leaving bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &pb.Availability{
		Format: 1, PeerId: []byte(c.ID()), Seq: b.Seq, At: b.At.UnixMilli(), PeriodS: uint32(max(1, b.Period/time.Second)), State: pb.NodeState_NODE_STATE_READY,
		CapSeq: b.CapSeq, CapDigest: b.CapDigest[:], RamFreeMib: 32 << 10, DiskFreeGib: 90,
	}
	for i, g := range c.says.Gpus {
		a.Groups = append(a.Groups, &pb.GroupLoad{Index: uint32(i), Free: g.Count})
	}
	if leaving {
		a.State = pb.NodeState_NODE_STATE_LEAVING
	}
	raw, err := protocol.SealAvailability(c.key, a)
	c.beats = append(c.beats, raw)
	return raw, err
}

// LastSeq implements dht.SeqStore.
func (c *claimant) LastSeq() (uint64, error) { return 0, nil }

// SaveSeq implements dht.SeqStore.
func (c *claimant) SaveSeq(uint64) error { return nil }
