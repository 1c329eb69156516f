package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

// testBridge is the other end of the wire, as small as it can be: one job, chunks in order, everything in memory.
// Its knobs let it misbehave.
type testBridge struct {
	t       testing.TB
	host    *p2p.Host
	network protocol.NetworkFile
	chain   [][]byte
	grant   protocol.GrantID
	store   *volumes.Store // nil unless the job has data
	net     *volumes.Net
	job     protocol.JobID
	terms   protocol.JobTerms

	mu       sync.Mutex
	next     uint64 // the next chunk that nobody had
	total    uint64
	again    []uint64 // chunks to be given again
	fences   map[uint64]uint64
	leases   map[protocol.LeaseID]protocol.Lease
	holders  map[protocol.LeaseID]protocol.PeerID
	gone     map[protocol.LeaseID]bool // stopped or ended: not named any more
	stops    map[protocol.LeaseID]protocol.Reason
	results  map[uint64][]protocol.Result // by chunk
	done     map[uint64]cid.Cid
	set      uint64
	receipts map[protocol.PeerID][]protocol.Receipt
	hashes   map[protocol.PeerID][32]byte
	logs     map[protocol.LeaseID]string
	verdict  func(r protocol.Result) pb.Verdict // nil accounts everything
	tamper   func(g *protocol.LeaseGrants)      // before it is signed
	away     bool                               // nobody answers
	noSign   bool                               // gives no counter-signatures
	requests int
	reports  map[protocol.PeerID]*pb.LeaseReport
	pokes    map[protocol.PeerID]chan struct{}
	member   map[protocol.PeerID]bool
	reconc   bool
}

// newTestBridge makes a network of its own and serves on the host.
func newTestBridge(t testing.TB, h *p2p.Host, chunks uint64) *testBridge {
	t.Helper()
	now := time.Now()
	var boot []multiaddr.Multiaddr
	boot = append(boot, h.Addrs()...)
	network, err := protocol.NewNetwork("test", h.Key(), boot, now)
	if err != nil {
		t.Fatal(err)
	}
	b := &testBridge{
		t: t, host: h, network: network, job: protocol.NewJobID(), total: chunks, set: uint64(now.UnixMicro()),
		fences: map[uint64]uint64{}, leases: map[protocol.LeaseID]protocol.Lease{}, gone: map[protocol.LeaseID]bool{}, stops: map[protocol.LeaseID]protocol.Reason{},
		results: map[uint64][]protocol.Result{}, done: map[uint64]cid.Cid{}, receipts: map[protocol.PeerID][]protocol.Receipt{}, hashes: map[protocol.PeerID][32]byte{},
		logs: map[protocol.LeaseID]string{}, reports: map[protocol.PeerID]*pb.LeaseReport{}, pokes: map[protocol.PeerID]chan struct{}{},
		member: map[protocol.PeerID]bool{}, holders: map[protocol.LeaseID]protocol.PeerID{},
	}
	b.regrant(now, 24*time.Hour)
	b.terms = protocol.JobTerms{
		Job: b.job, Name: "test", Kind: "map", Run: protocol.Run{Module: someCID(t, "module"), Command: []string{"chunk", "{input}"}},
		Limits: protocol.Limits{MemoryBytes: 64 << 20, DiskBytes: 64 << 20, Wall: time.Minute}, Origin: h.AddrInfo(),
	}
	if err := errors.Join(
		p2p.Serve(h, protocol.ProtoClaim, b.claim), p2p.Serve(h, protocol.ProtoResult, b.result), p2p.Serve(h, protocol.ProtoReceipt, b.receipt),
	); err != nil {
		t.Fatal(err)
	}
	return b
}

// regrant makes the bridge's chain: one link that it gives to itself.
func (b *testBridge) regrant(now time.Time, life time.Duration) {
	b.t.Helper()
	g := protocol.Grant{
		Network: b.network.ID, Issuer: b.host.ID(), Audience: b.host.ID(),
		Abilities: []string{protocol.AbilityJobSubmit, protocol.AbilityJobControl, protocol.AbilityCounterSign}, NotBefore: now.Add(-time.Minute).Truncate(time.Second),
		NotAfter: now.Add(life).Truncate(time.Second),
	}
	raw, err := g.Seal(b.host.Key())
	if err != nil {
		b.t.Fatal(err)
	}
	b.chain, b.grant = [][]byte{raw}, g.ID
}

func someCID(t testing.TB, text string) cid.Cid {
	t.Helper()
	c, err := cid.V1Builder{Codec: cid.Raw, MhType: 0x12}.Sum([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// auth presents the chain to a node.
func (b *testBridge) auth(node protocol.PeerID) (*pb.AuthReply, error) {
	reply := &pb.AuthReply{}
	return reply, p2p.Call(b.t.Context(), b.host, node, protocol.ProtoAuth, &pb.AuthRequest{Network: b.network.ID[:], Links: b.chain}, reply)
}

// reservation is a good one for a node.
func (b *testBridge) reservation(node protocol.PeerID, slots uint32) protocol.Reservation {
	return protocol.Reservation{
		Call: protocol.NewCallID(), Network: b.network.ID, Grant: b.grant, Bridge: b.host.ID(), Node: node, NotAfter: time.Now().Add(time.Minute), Terms: b.terms, Slots: slots,
	}
}

func (b *testBridge) reserve(r protocol.Reservation) (*pb.ReserveReply, error) {
	raw, err := r.Seal(b.host.Key())
	if err != nil {
		b.t.Fatal(err)
	}
	reply := &pb.ReserveReply{}
	return reply, p2p.Call(b.t.Context(), b.host, r.Node, protocol.ProtoReserve, &pb.ReserveRequest{Reservation: raw}, reply)
}

// join brings a node into the job: auth, reservation, lease stream.
func (b *testBridge) join(ctx context.Context, wg *sync.WaitGroup, node protocol.PeerID, slots uint32) {
	b.t.Helper()
	eventually(b.t, "the node is connected", func() bool { return b.host.Connected(node) })
	if reply, err := b.auth(node); err != nil || !reply.GetOk() {
		b.t.Fatalf("auth: %v, %v", reply, err)
	}
	reply, err := b.reserve(b.reservation(node, slots))
	if err != nil || len(reply.GetOffer()) == 0 {
		b.t.Fatalf("reserve: %v, %v", reply, err)
	}
	if o, err := protocol.OpenOffer(reply.GetOffer()); err != nil || o.Node != node || o.Job != b.job || o.Slots == 0 {
		b.t.Fatalf("offer: %+v, %v", o, err)
	}
	b.mu.Lock()
	b.member[node] = true
	b.mu.Unlock()
	b.stream(ctx, wg, node)
}

// stream keeps a lease stream to a node until ctx ends.
func (b *testBridge) stream(ctx context.Context, wg *sync.WaitGroup, node protocol.PeerID) {
	b.mu.Lock()
	change := b.pokes[node]
	if change == nil {
		change = make(chan struct{}, 1)
		b.pokes[node] = change
	}
	b.mu.Unlock()
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := b.talk(ctx, node, change); p2p.CodeOf(err) == p2p.CodeUnauthorized {
				_, _ = b.auth(node)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

func (b *testBridge) talk(ctx context.Context, node protocol.PeerID, change chan struct{}) error {
	f, err := b.host.OpenDuplex(ctx, node, protocol.ProtoLease)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, f.Reset)()
	defer f.Reset()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		b.mu.Lock()
		if b.away {
			b.mu.Unlock()
			return nil
		}
		set := b.desired(node)
		b.mu.Unlock()
		if err := f.Write(set); err != nil {
			return err
		}
		report := &pb.LeaseReport{}
		if err := f.Read(report); err != nil {
			return err
		}
		b.mu.Lock()
		b.reports[node] = report
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-change:
		}
	}
}

// desired is the lease set of a node; b.mu is held.
func (b *testBridge) desired(node protocol.PeerID) *pb.LeaseSet {
	b.set++
	set := &pb.LeaseSet{Seq: b.set, BridgeMs: time.Now().UnixMilli(), Reconcile: b.reconc}
	b.reconc = false
	if b.member[node] {
		set.Jobs = append(set.Jobs, &pb.JobMembership{JobId: b.job[:], Claim: true})
	}
	for id, l := range b.leases {
		if b.gone[id] || b.holders[id] != node {
			continue
		}
		d := &pb.DesiredLease{LeaseId: id[:], Fence: l.Fence, Desired: pb.Desired_DESIRED_RUN}
		if why, ok := b.stops[id]; ok {
			d.Desired, d.Reason = pb.Desired_DESIRED_STOP, uint32(why)
		}
		set.Leases = append(set.Leases, d)
	}
	return set
}

func (b *testBridge) poke(node protocol.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	poke(b.pokes[node])
}

var errAway = p2p.Errorf(p2p.CodeBusy, "away")

// give grants up to n chunks to a node; b.mu is held.
func (b *testBridge) give(node protocol.PeerID, n uint32) *pb.ClaimReply {
	g := protocol.LeaseGrants{
		Network: b.network.ID, Grant: b.grant, Bridge: b.host.ID(), Node: node, NotAfter: time.Now().Add(20 * time.Second), SetSeq: b.set + 1, BridgeTime: time.Now(),
	}
	_, _ = rand.Read(g.Nonce[:])
	for ; n > 0; n-- {
		var first uint64
		switch {
		case len(b.again) > 0:
			first, b.again = b.again[0], b.again[1:]
		case b.next < b.total:
			first = b.next
			b.next++
		default:
			n = 1
			continue
		}
		b.fences[first]++
		l := protocol.Lease{
			ID: protocol.NewLeaseID(), Job: b.job, Chunk: protocol.Chunk{ID: protocol.NewChunkID(b.job, first, first+1), First: first, End: first + 1},
			Fence: b.fences[first], TTL: 6 * time.Second, Attempt: uint32(b.fences[first]), Inputs: []string{fmt.Sprint(first)},
		}
		g.Leases = append(g.Leases, l)
	}
	if b.tamper != nil {
		b.tamper(&g)
	}
	for _, l := range g.Leases {
		b.leases[l.ID], b.holders[l.ID] = l, node
	}
	if len(g.Leases) == 0 {
		return &pb.ClaimReply{Wait: true, RetryMs: 200}
	}
	raw, err := g.Seal(b.host.Key())
	if err != nil {
		b.t.Error(err)
	}
	return &pb.ClaimReply{Grants: raw}
}

func (b *testBridge) claim(_ context.Context, from protocol.PeerID, req *pb.ClaimRequest) (*pb.ClaimReply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	if b.away {
		return nil, errAway
	}
	return b.give(from, req.GetSlots()), nil
}

func (b *testBridge) result(_ context.Context, from protocol.PeerID, req *pb.ResultRequest) (*pb.ResultReply, error) {
	rs, err := protocol.OpenResults(req.GetResults())
	if err != nil || rs.Node != from || rs.Bridge != b.host.ID() {
		b.t.Errorf("results of %s: %v", from, err)
		return nil, malformed(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	if b.away {
		return nil, errAway
	}
	if err := b.keepBlocks(req.GetBlocks()); err != nil {
		b.t.Errorf("blocks: %v", err)
	}
	reply := &pb.ResultReply{}
	for _, r := range rs.Results {
		v := b.judge(from, r)
		reply.Acks = append(reply.Acks, &pb.ResultAck{LeaseId: r.Lease[:], Verdict: v})
	}
	for _, l := range req.GetLogs() {
		b.logs[protocol.LeaseID(l.GetLeaseId())] = string(l.GetText())
	}
	if len(req.GetReceipt()) > 0 {
		reply.Countersign = b.countersign(from, req.GetReceipt())
	}
	for _, c := range req.GetClaims() {
		reply.Claims = append(reply.Claims, b.give(from, c.GetSlots()))
	}
	return reply, nil
}

func (b *testBridge) keepBlocks(in []*pb.InlineBlock) error {
	if b.store == nil {
		return nil
	}
	var blocks []volumes.Block
	for _, x := range in {
		c, err := cid.Cast(x.GetCid())
		if err != nil {
			return err
		}
		blocks = append(blocks, volumes.Block{CID: c, Data: x.GetData()})
	}
	return b.store.PutBlocks(context.Background(), blocks)
}

// judge is the bridge's word on a result; b.mu is held.
func (b *testBridge) judge(from protocol.PeerID, r protocol.Result) pb.Verdict {
	l, known := b.leases[r.Lease]
	if !known || l.Fence != r.Fence || l.Chunk != r.Chunk || b.holders[r.Lease] != from {
		b.t.Errorf("a result of a lease that was not granted: %+v", r)
		return pb.Verdict_VERDICT_REFUSED
	}
	if b.verdict != nil {
		if v := b.verdict(r); v == pb.Verdict_VERDICT_LATER {
			return v
		}
	}
	b.results[r.Chunk.First] = append(b.results[r.Chunk.First], r)
	b.gone[r.Lease] = true
	if r.Fence < b.fences[r.Chunk.First] {
		return pb.Verdict_VERDICT_FENCED
	}
	if r.Outcome.Reason != protocol.ReasonDone {
		return pb.Verdict_VERDICT_RETRY
	}
	if _, ok := b.done[r.Chunk.First]; ok {
		return pb.Verdict_VERDICT_DUPLICATE
	}
	b.done[r.Chunk.First] = r.Root
	return pb.Verdict_VERDICT_ACCOUNTED
}

// countersign checks the chain and signs; b.mu is held.
func (b *testBridge) countersign(from protocol.PeerID, raw []byte) []byte {
	r, hash, err := protocol.OpenReceipt(raw)
	if err != nil || r.Node != from || r.Bridge != b.host.ID() || r.Network != b.network.ID {
		b.t.Errorf("receipt: %v", err)
		return nil
	}
	have := b.receipts[from]
	known := slices.ContainsFunc(have, func(o protocol.Receipt) bool { return o.Seq == r.Seq })
	switch {
	case known && b.hashes[from] != hash:
		b.t.Errorf("two receipts under number %d", r.Seq)
		return nil
	case !known && (r.Seq != uint64(len(have))+1 || r.Prev != b.hashes[from]):
		b.t.Errorf("receipt %d does not follow %d", r.Seq, len(have))
		return nil
	case !known:
		b.receipts[from], b.hashes[from] = append(have, r), hash
	}
	if b.noSign {
		return nil
	}
	cs := protocol.CounterSign{Hash: hash, Node: from, Seq: r.Seq, BridgeTime: time.Now()}
	for _, u := range r.Records {
		cs.Records = append(cs.Records, protocol.RecordVerdict{ID: u.ID, Verdict: protocol.VerdictOK, DurationMS: u.DurationMS, GPUMS: u.GPUMS})
	}
	out, err := cs.Seal(b.host.Key())
	if err != nil {
		b.t.Error(err)
	}
	return out
}

func (b *testBridge) receipt(_ context.Context, from protocol.PeerID, req *pb.ReceiptRequest) (*pb.ReceiptReply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return nil, errAway
	}
	if req.GetPosition() {
		h := b.hashes[from]
		return &pb.ReceiptReply{Seq: uint64(len(b.receipts[from])), Hash: h[:]}, nil
	}
	return &pb.ReceiptReply{Countersign: b.countersign(from, req.GetReceipt())}, nil
}

// announce publishes on the job's topic that chunks are ready, or that the job is cancelled.
func (b *testBridge) announce(topic *p2p.Topic[[]byte], seq uint64, cancelled bool) {
	a := protocol.Announcement{Job: b.job, Bridge: b.host.ID(), Seq: seq, Cancelled: cancelled, Reason: protocol.ReasonCancelled, At: time.Now()}
	if !cancelled {
		a.Reason = protocol.ReasonNone
		a.Ready = []protocol.Chunk{{ID: protocol.NewChunkID(b.job, 0, 1), First: 0, End: 1}}
	}
	raw, err := a.Seal(b.host.Key())
	if err != nil {
		b.t.Error(err)
	}
	if err := topic.Publish(b.t.Context(), raw); err != nil {
		b.t.Error(err)
	}
}

func (b *testBridge) accounted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.done)
}
