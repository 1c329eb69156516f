package beambridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

// puppet is the other end of the wire, as small as it can be: a node that speaks the contract and runs nothing.
// Its knobs let it misbehave.
type puppet struct {
	t        testing.TB
	operator crypto.PrivKey // nil: a stranger
	slots    int
	ask      uint64
	act      func(l protocol.Lease) deed // nil does every chunk well in 100 ms
	tamper   func(r *protocol.Receipt)   // before it is signed
	decline  protocol.Reason             // of reservations
	deaf     bool                        // lease sets are not answered
	keep     bool                        // leases are run by hand, through do
	tell     func(f *p2p.Frames, req *pb.LogRequest) error

	mu      sync.Mutex
	host    *p2p.Host
	bridge  protocol.PeerID
	network protocol.NetworkFile
	files   *volumes.Store
	ctx     context.Context
	wg      *sync.WaitGroup
	rights  map[protocol.GrantID]bool
	terms   map[protocol.JobID]protocol.JobTerms
	member  map[protocol.JobID]bool
	leases  map[protocol.LeaseID]protocol.Lease
	stopped map[protocol.LeaseID]protocol.Reason
	seen    []protocol.Lease // in the order in which they were granted
	acks    map[protocol.LeaseID][]pb.Verdict
	chain   *metering.Chain
	signs   []protocol.CounterSign
	reports int
	runs    int // how often its process has come up
}

// deed is how a puppet ends a lease.
type deed struct {
	after  time.Duration
	reason protocol.Reason
	exit   int32
	files  []volumes.File // below the directory of the first input
	silent bool           // nothing is handed in
}

// well is a chunk done: each input leaves a file that depends on nothing but the input.
func well(l protocol.Lease) deed {
	return deed{after: 100 * time.Millisecond, reason: protocol.ReasonDone}
}

func newPuppet(t testing.TB, operator crypto.PrivKey, slots int) *puppet {
	return &puppet{
		t: t, operator: operator, slots: slots, rights: map[protocol.GrantID]bool{}, terms: map[protocol.JobID]protocol.JobTerms{},
		member: map[protocol.JobID]bool{}, leases: map[protocol.LeaseID]protocol.Lease{}, stopped: map[protocol.LeaseID]protocol.Reason{}, acks: map[protocol.LeaseID][]pb.Verdict{},
	}
}

// run is the process: it serves, advertises itself and works until ctx is done. What a node journals stays in
// the puppet, so that a crash loses nothing.
func (p *puppet) run(ctx context.Context, env testnet.Env, bridge peer.AddrInfo, network protocol.NetworkFile) error {
	files, err := volumes.Open(volumes.DefaultConfig(env.Dir+"/volumes"), env.Log)
	if err != nil {
		return err
	}
	defer files.Close()
	wg := &sync.WaitGroup{}
	defer wg.Wait()
	p.mu.Lock()
	p.host, p.bridge, p.network, p.files, p.ctx, p.wg = env.Host, bridge.ID, network, files, ctx, wg
	if p.chain == nil {
		p.chain = metering.NewChain(network.ID, env.Host.ID(), bridge.ID)
	}
	p.mu.Unlock()
	serve, err := files.Serve(volumes.DefaultNetConfig(), env.Host.Host(), nil, nil)
	if err != nil {
		return err
	}
	err = errors.Join(
		p2p.Serve(env.Host, protocol.ProtoAuth, p.auth),
		p2p.Serve(env.Host, protocol.ProtoReserve, p.reserve),
		env.Host.HandleDuplex(protocol.ProtoLease, p.sets),
		env.Host.HandleDuplex(protocol.ProtoLogs, p.logs),
		env.Host.Connect(ctx, bridge),
	)
	if err != nil {
		return err
	}
	wg.Go(func() { _ = serve.Run(ctx) })
	p.mu.Lock()
	p.runs++
	p.mu.Unlock()
	return p.advertise(ctx, env)
}

func (p *puppet) auth(_ context.Context, from peer.ID, req *pb.AuthRequest) (*pb.AuthReply, error) {
	rights, err := protocol.VerifyChain(req.GetLinks(), protocol.GrantCheck{Network: p.network.ID, Audience: from, IsRoot: p.network.IsRoot, Now: time.Now()})
	if err != nil {
		return &pb.AuthReply{Code: string(protocol.CodeOfAuth(err)), Text: err.Error()}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rights[rights.Grant] = true
	return &pb.AuthReply{Ok: true, Grant: rights.Grant[:], Expires: rights.Expires.UnixMilli()}, nil
}

func (p *puppet) reserve(_ context.Context, from peer.ID, req *pb.ReserveRequest) (*pb.ReserveReply, error) {
	r, err := protocol.OpenReservation(req.GetReservation())
	if err != nil {
		return nil, p2p.Errorf(p2p.CodeMalformed, "%v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r.Bridge != from || r.Node != p.host.ID():
		return nil, p2p.Errorf(p2p.CodeRefused, "for somebody else")
	case !p.rights[r.Grant]:
		return nil, p2p.Errorf(p2p.CodeUnauthorized, "%s", protocol.AuthAgain)
	case p.decline != protocol.ReasonNone:
		return &pb.ReserveReply{Reason: uint32(p.decline), Text: p.decline.Text()}, nil
	}
	p.terms[r.Terms.Job] = r.Terms
	o := protocol.Offer{Call: r.Call, Job: r.Terms.Job, Node: p.host.ID(), Bridge: from, Slots: uint32(min(p.slots, int(r.Slots))), Ask: p.ask, Expires: time.Now().Add(30 * time.Second)}
	raw, err := o.Seal(p.host.Key())
	return &pb.ReserveReply{Offer: raw}, err
}

// sets answers lease sets.
func (p *puppet) sets(_ context.Context, f *p2p.Frames) error {
	for {
		s := &pb.LeaseSet{}
		if err := f.Read(s); err != nil {
			return nil
		}
		r, joined, mute := p.set(s)
		if mute {
			continue
		}
		if err := f.Write(r); err != nil {
			return nil
		}
		for _, id := range joined {
			p.spawn(func() { p.claim(id) })
		}
	}
}

func (p *puppet) set(s *pb.LeaseSet) (r *pb.LeaseReport, joined []protocol.JobID, mute bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deaf {
		return nil, nil, true
	}
	p.reports++
	r = &pb.LeaseReport{Seq: s.GetSeq(), State: "READY", FreeSlots: uint32(p.slots), Boot: []byte("boot")}
	named := map[protocol.JobID]bool{}
	for _, m := range s.GetJobs() {
		id := protocol.JobID(m.GetJobId())
		named[id] = true
		if _, ok := p.terms[id]; !ok {
			r.UnknownJobs = append(r.UnknownJobs, id[:])
		} else if !p.member[id] {
			p.member[id] = true
			joined = append(joined, id)
		}
	}
	for id := range p.member {
		if !named[id] {
			delete(p.member, id)
		}
	}
	for _, d := range s.GetLeases() {
		if d.GetDesired() == pb.Desired_DESIRED_STOP {
			id := protocol.LeaseID(d.GetLeaseId())
			if _, ok := p.leases[id]; ok {
				p.stopped[id] = protocol.Reason(d.GetReason())
			}
		}
	}
	for _, l := range p.leases {
		r.Leases = append(r.Leases, &pb.ObservedLease{
			LeaseId: l.ID[:], JobId: l.Job[:], Chunk: &pb.ChunkRange{ChunkId: l.Chunk.ID[:], First: l.Chunk.First, End: l.Chunk.End}, Fence: l.Fence, State: pb.LeaseState_LEASE_STATE_RUNNING,
		})
	}
	return r, joined, false
}

func (p *puppet) logs(_ context.Context, f *p2p.Frames) error {
	req := &pb.LogRequest{}
	if err := f.Read(req); err != nil {
		return nil
	}
	if p.tell != nil {
		return p.tell(f, req)
	}
	return f.Write(&pb.LogChunk{Data: []byte("live from the node\n"), End: true})
}

// spawn runs f while the process lives.
func (p *puppet) spawn(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx != nil && p.ctx.Err() == nil {
		p.wg.Go(f)
	}
}

// wait passes virtual time; false when the process ended.
func (p *puppet) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-p.ctx.Done():
		return false
	}
}

// claim asks for leases until the job is gone or its slots are full.
func (p *puppet) claim(id protocol.JobID) {
	for {
		p.mu.Lock()
		member, free := p.member[id], 2*p.slots-len(p.leases)
		p.mu.Unlock()
		if !member || free <= 0 {
			return
		}
		reply := &pb.ClaimReply{}
		if err := p2p.Call(p.ctx, p.host, p.bridge, protocol.ProtoClaim, &pb.ClaimRequest{JobId: id[:], Slots: uint32(free)}, reply); err != nil {
			if !p.wait(time.Second) {
				return
			}
			continue
		}
		if !p.take(id, reply) {
			return
		}
		if !p.wait(time.Duration(max(1, reply.GetRetryMs())) * time.Millisecond) {
			return
		}
	}
}

// take starts what a claim's answer grants; false when there is nothing to ask for any more.
func (p *puppet) take(id protocol.JobID, reply *pb.ClaimReply) bool {
	if reply.GetGone() {
		return false
	}
	if len(reply.GetGrants()) == 0 {
		return true
	}
	g, err := protocol.OpenLeaseGrants(reply.GetGrants())
	if err != nil || g.Node != p.host.ID() || g.Bridge != p.bridge {
		p.t.Errorf("grants: %v", err)
		return false
	}
	for _, l := range g.Leases {
		p.mu.Lock()
		if l.Job != id {
			p.t.Errorf("a lease of job %s answers a claim of %s", l.Job, id)
		}
		p.leases[l.ID] = l
		p.seen = append(p.seen, l)
		p.mu.Unlock()
		if !p.keep {
			p.spawn(func() { p.do(l) })
		}
	}
	return true
}

// do ends a lease as act says and hands it in until the bridge has taken it.
func (p *puppet) do(l protocol.Lease) {
	act := p.act
	if act == nil {
		act = well
	}
	d := act(l)
	began := time.Now()
	if !p.wait(d.after) || d.silent {
		return
	}
	req, err := p.request(l, d, time.Since(began))
	if err != nil {
		p.t.Error(err)
		return
	}
	for p.handIn(l, req) {
		if !p.wait(time.Second) {
			return
		}
	}
	if !p.keep {
		p.claim(l.Job)
	}
}

// handIn sends a result once; true asks for another try.
func (p *puppet) handIn(l protocol.Lease, req *pb.ResultRequest) (again bool) {
	reply, err := p.send(req)
	if err != nil {
		return true
	}
	for _, a := range reply.GetAcks() {
		p.mu.Lock()
		id := protocol.LeaseID(a.GetLeaseId())
		p.acks[id] = append(p.acks[id], a.GetVerdict())
		if a.GetVerdict() == pb.Verdict_VERDICT_LATER {
			again = true
		} else {
			delete(p.leases, id)
		}
		p.mu.Unlock()
	}
	for _, c := range reply.GetClaims() {
		p.take(l.Job, c)
	}
	return again
}

func (p *puppet) send(req *pb.ResultRequest) (*pb.ResultReply, error) {
	reply := &pb.ResultReply{}
	if err := p2p.Call(p.ctx, p.host, p.bridge, protocol.ProtoResult, req, reply); err != nil {
		return nil, err
	}
	if raw := reply.GetCountersign(); len(raw) > 0 {
		s, err := protocol.OpenCounterSign(raw, p.bridge)
		if err != nil {
			p.t.Errorf("counter-signature: %v", err)
			return reply, nil
		}
		p.mu.Lock()
		p.signs = append(p.signs, s)
		_ = p.chain.Countersigned(&s)
		p.mu.Unlock()
	}
	return reply, nil
}

// request puts the end of a lease into a message: result, receipt and the blocks of what it wrote.
func (p *puppet) request(l protocol.Lease, d deed, took time.Duration) (*pb.ResultRequest, error) {
	r := p.result(l, d, took)
	req := &pb.ResultRequest{Logs: []*pb.LogTail{{LeaseId: l.ID[:], Text: fmt.Appendf(nil, "input %d\nends\n", l.Chunk.First)}}}
	if d.reason == protocol.ReasonDone {
		files := d.files
		if files == nil {
			files = outputs(l)
		}
		tree, err := p.files.AddFiles(files)
		if err != nil {
			return nil, err
		}
		r.Root = tree.Root
		for b, err := range p.files.Blocks(tree.Root) {
			if err != nil {
				return nil, err
			}
			req.Blocks = append(req.Blocks, &pb.InlineBlock{Cid: b.CID.Bytes(), Data: b.Data})
		}
	}
	var err error
	rs := protocol.Results{Node: p.host.ID(), Bridge: p.bridge, Results: []protocol.Result{r}}
	if req.Results, err = rs.Seal(p.host.Key()); err != nil {
		return nil, err
	}
	req.Receipt, err = p.receipt(l, took)
	return req, err
}

func (p *puppet) result(l protocol.Lease, d deed, took time.Duration) protocol.Result {
	return protocol.Result{
		Job: l.Job, Chunk: l.Chunk, Lease: l.ID, Fence: l.Fence,
		Outcome: protocol.Outcome{Reason: d.reason, ExitCode: d.exit, FirstCause: "as the test wants it", Run: max(took, time.Microsecond), CPU: took},
	}
}

// outputs are what the inputs of a lease write: input i the file out/i with its own text.
func outputs(l protocol.Lease) (files []volumes.File) {
	for i, text := range l.Inputs {
		n := strconv.FormatUint(l.Chunk.First+uint64(i), 10)
		files = append(files, volumes.File{Path: n + "/out/" + n, Data: []byte("of " + text)})
	}
	return files
}

// receipt signs the working time of a lease, in the cells that it fell into.
func (p *puppet) receipt(l protocol.Lease, took time.Duration) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := time.Now().UnixMilli()
	var records []protocol.UsageRecord
	for start := end - took.Milliseconds(); start < end; {
		cell := start / protocol.CellMillis
		stop := min(end, (cell+1)*protocol.CellMillis)
		records = append(records, protocol.UsageRecord{
			ID: protocol.NewRecordID(p.host.ID(), l.ID[:], 0, protocol.UsageWorking, uint64(cell)), Lease: l.ID, Job: l.Job, Chunk: l.Chunk.ID, Fence: l.Fence,
			State: protocol.UsageWorking, StartMS: start, EndMS: stop, DurationMS: stop - start, GPUMS: stop - start,
		})
		start = stop
	}
	if p.tamper != nil {
		return p.forged(records)
	}
	var grant protocol.GrantID
	issued, err := p.chain.Issue(records, grant, time.Now(), p.host.Key())
	if err != nil || len(issued) == 0 {
		return nil, err
	}
	return issued[0].Raw, nil
}

// forged signs a receipt outside of the chain, changed by tamper.
func (p *puppet) forged(records []protocol.UsageRecord) ([]byte, error) {
	at := p.chain.Position()
	r := protocol.Receipt{Format: 1, Network: p.network.ID, Node: p.host.ID(), Bridge: p.bridge, Seq: at.Seq + 1, Prev: at.Hash, Records: records, IssuedMS: time.Now().UnixMilli()}
	p.tamper(&r)
	raw, _, err := r.Seal(p.host.Key())
	return raw, err
}

// advertise keeps the puppet in the directory.
func (p *puppet) advertise(ctx context.Context, env testnet.Env) error {
	cfg := dht.DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.K = dht.ModeServer, true, 8
	rnd := rand.New(rand.NewPCG(uint64(env.Run), 7))
	d, err := dht.New(cfg, env.Host.Host(), &onlyPublish{host: env.Host, topics: map[string]*p2p.Topic[[]byte]{}}, time.Now, rnd, env.Log)
	if err != nil {
		return err
	}
	a, err := dht.NewAnnouncer(d, dht.DefaultSchedule(), &puppetSource{p}, seqFile(env.Dir+"/seq"), rnd)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	err = a.Run(ctx)
	return errors.Join(err, <-done)
}

// onlyPublish is a node's gossip.
type onlyPublish struct {
	host   *p2p.Host
	mu     sync.Mutex
	topics map[string]*p2p.Topic[[]byte]
}

func (g *onlyPublish) Publish(ctx context.Context, name string, data []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.topics[name]
	if t == nil {
		var err error
		if t, err = p2p.Join(g.host, name, p2p.TopicConfig[[]byte]{Decode: func(b []byte, _ peer.ID) ([]byte, error) { return b, nil }}); err != nil {
			return 0, err
		}
		g.topics[name] = t
	}
	return len(t.Peers()), t.Publish(ctx, data)
}

func (g *onlyPublish) Subscribe(context.Context, string, func(peer.ID, []byte) dht.Verdict) error {
	return errors.New("a puppet hears nobody")
}

// puppetSource says what a puppet is.
type puppetSource struct{ p *puppet }

func (s *puppetSource) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	p := s.p
	id := p.host.ID()
	cores, ram := uint32(p.slots), uint64(16<<30)
	c := &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(id), Seq: seq, Issued: issued.UnixMilli(), Expires: expires.UnixMilli(), Agent: "gridbeam/test", Roles: []string{"node"}, Tombstone: leaving,
		Host:   &pb.Host{Os: "linux", Arch: "amd64", Cores: &cores, RamBytes: &ram, Storage: []*pb.Storage{{Class: "ssd", Total: 1 << 40, Usable: 1 << 40}}, Executors: []string{"wasm:strong", "host:shared", "python3.11:shared"}},
		Policy: &pb.PolicyHint{PriceUusdPerHour: &p.ask},
	}
	for _, a := range p.host.AddrInfo().Addrs {
		c.Addrs = append(c.Addrs, a.Bytes())
	}
	if p.operator != nil {
		l, err := protocol.SignLabel(p.operator, id, protocol.LabelOperator, "node", expires)
		if err != nil {
			return nil, err
		}
		c.Labels = append(c.Labels, l)
	}
	return protocol.SealCapability(p.host.Key(), c)
}

func (s *puppetSource) Beat(b dht.BeatHeader, leaving bool) ([]byte, error) {
	state := pb.NodeState_NODE_STATE_READY
	if leaving {
		state = pb.NodeState_NODE_STATE_LEAVING
	}
	return protocol.SealAvailability(s.p.host.Key(), &pb.Availability{
		Format: 1, PeerId: []byte(s.p.host.ID()), Seq: b.Seq, At: b.At.UnixMilli(), PeriodS: uint32(b.Period / time.Second), State: state, CapSeq: b.CapSeq, CapDigest: b.CapDigest[:],
		RamFreeMib: 8 << 10, DiskFreeGib: 100,
	})
}

// holds returns what the puppet holds, in the order in which it was granted.
func (p *puppet) holds() (out []protocol.Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.seen {
		if _, ok := p.leases[l.ID]; ok && !slices.ContainsFunc(out, func(o protocol.Lease) bool { return o.ID == l.ID }) {
			out = append(out, l)
		}
	}
	return out
}

// verdicts returns what the bridge said of a lease.
func (p *puppet) verdicts(id protocol.LeaseID) []pb.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.acks[id])
}

// expected is the tree that a job over 0..n-1 has to end with, made without a bridge.
func expected(t testing.TB, n uint64) cid.Cid {
	t.Helper()
	s, err := volumes.Open(volumes.DefaultConfig(t.TempDir()), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var files []volumes.File
	for i := range n {
		name := strconv.FormatUint(i, 10)
		files = append(files, volumes.File{Path: "out/" + name, Data: bytes.Clone([]byte("of " + name))})
	}
	tree, err := s.AddFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Root
}
