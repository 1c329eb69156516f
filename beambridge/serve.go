package beambridge

import (
	"context"
	"errors"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

const (
	// claimMost bounds the leases of one claim, so that the answer fits a frame.
	claimMost = 256
	// claimInline bounds the bytes of a claim's inputs that travel in its answer, inputsInline those of one chunk.
	claimInline  = 512 << 10
	inputsInline = 64 << 10
	// claimRetry is when a node with nothing to do asks again at the latest, milliseconds.
	claimRetry = 1000
	// fetchFor bounds how long a result waits for its outputs to be fetched; the node hands it in again.
	fetchFor = 60 * time.Second
)

// serve answers the work protocols.
func (b *Bridge) serve() error {
	return errors.Join(
		p2p.Serve(b.host, protocol.ProtoClaim, func(ctx context.Context, from peer.ID, req *pb.ClaimRequest) (*pb.ClaimReply, error) {
			replies, err := b.claims(ctx, from, []*pb.ClaimRequest{req})
			if err != nil {
				return nil, err
			}
			return replies[0], nil
		}),
		p2p.Serve(b.host, protocol.ProtoResult, b.results),
		p2p.Serve(b.host, protocol.ProtoReceipt, b.idle),
	)
}

// claim is what one node wants of one job, and what it gets.
type claim struct {
	id     protocol.JobID
	slots  int
	job    *job // nil where the node has no business with it
	leases []cluster.Lease
	setSeq uint64
}

// claims answers claims: leases where there are any, else when to ask again.
func (b *Bridge) claims(ctx context.Context, from protocol.PeerID, reqs []*pb.ClaimRequest) ([]*pb.ClaimReply, error) {
	cs := openClaims(reqs)
	if _, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) { t.grantAll(from, cs); return struct{}{}, nil }); err != nil {
		return nil, notNow(err)
	}
	return b.claimReplies(from, cs), nil
}

func openClaims(reqs []*pb.ClaimRequest) []*claim {
	cs := make([]*claim, len(reqs))
	for i, r := range reqs {
		cs[i] = &claim{slots: min(int(r.GetSlots()), claimMost)}
		if len(r.GetJobId()) == 16 {
			cs[i].id = protocol.JobID(r.GetJobId())
		}
	}
	return cs
}

// notNow is what a node hears when the bridge cannot answer.
func notNow(err error) error {
	if errors.Is(err, ErrStopped) || errors.Is(err, context.Canceled) {
		return p2p.Errorf(p2p.CodeBusy, "the bridge is going down")
	}
	return p2p.Errorf(p2p.CodeBusy, "the bridge cannot keep its state just now; try again")
}

// grantAll applies claims.
func (t *turn) grantAll(from protocol.PeerID, cs []*claim) {
	if len(cs) == 0 {
		return
	}
	n := t.e.node(from)
	n.alive(t.now)
	for _, c := range cs {
		j := t.e.jobs[c.id]
		if j == nil || j.over != "" {
			continue
		}
		if m := j.members[from]; m != nil && m.State == memberIs && !j.joined[from] {
			j.joined[from] = true // it speaks before its first report since the tracker was restored
			t.apply(j, j.tracker.Join(clusterWorker(m), t.now))
		}
		c.setSeq = t.e.setSeq + 1
		leases, fx, err := j.tracker.Grant(from, c.slots, c.setSeq, t.now)
		if err != nil {
			continue // no member
		}
		c.job, c.leases = j, leases
		if m := j.members[from]; len(leases) < c.slots && m != nil && len(j.tracker.Leases(from)) < 2*m.Slots {
			j.hungry[from] = struct{}{}
		} else {
			delete(j.hungry, from)
		}
		n.busy += len(leases)
		t.apply(j, fx)
		if j.calls != nil {
			for i := range leases {
				t.leased(j, from, &leases[i])
			}
		}
	}
}

// claimReplies turns what was granted into signed messages. It runs beside the engine: inputs do not change.
func (b *Bridge) claimReplies(to protocol.PeerID, cs []*claim) []*pb.ClaimReply {
	out := make([]*pb.ClaimReply, len(cs))
	left := claimInline
	for i, c := range cs {
		switch {
		case c.job == nil:
			out[i] = &pb.ClaimReply{Gone: true, Text: "this node is no member of the job's cluster"}
		case len(c.leases) == 0:
			out[i] = &pb.ClaimReply{Wait: true, RetryMs: claimRetry}
		default:
			raw, err := b.grants(to, c, &left)
			if err != nil { // the leases lapse; they are given again
				b.log.Error("leases could not be put into words", "job", c.id, "peer", to, "err", err)
				out[i] = &pb.ClaimReply{Wait: true, RetryMs: claimRetry}
				continue
			}
			out[i] = &pb.ClaimReply{Grants: raw}
		}
	}
	return out
}

// grants signs the leases of one claim.
func (b *Bridge) grants(to protocol.PeerID, c *claim, left *int) ([]byte, error) {
	_, grant, err := b.auth.current()
	if err != nil {
		return nil, err
	}
	now := b.cfg.Clock()
	g := protocol.LeaseGrants{
		Network: b.network.ID, Grant: grant, Bridge: b.self, Node: to, NotAfter: now.Add(requestLife), Nonce: protocol.NewCallID(), SetSeq: c.setSeq,
		BridgeTime: now, Leases: make([]protocol.Lease, len(c.leases)),
	}
	kept := false
	for i, l := range c.leases {
		x := protocol.Lease{
			ID: l.ID, Job: c.id, Chunk: protocol.Chunk{ID: l.Chunk, First: l.Range.First, End: l.Range.End}, Fence: l.Fence, TTL: leaseTTL, Attempt: uint32(l.Attempt),
		}
		texts := c.job.texts(l.Range)
		size := 0
		for _, s := range texts {
			size += len(s) + 4
		}
		if size <= inputsInline && size <= *left {
			*left -= size
			x.Inputs = texts
		} else {
			if x.InputsCID, err = b.keepInputs(texts); err != nil {
				return nil, err
			}
			b.reads.allow(c.job, x.InputsCID)
			kept = true
		}
		g.Leases[i] = x
	}
	if kept {
		if err := b.vols.Sync(b.ctx()); err != nil {
			return nil, err
		}
	}
	return g.Seal(b.key())
}

// results takes what a node hands in: outputs first, then everything in one event of the engine.
func (b *Bridge) results(ctx context.Context, from peer.ID, req *pb.ResultRequest) (*pb.ResultReply, error) {
	if err := b.partner(from); err != nil {
		return nil, err
	}
	h, err := b.unpack(ctx, from, req)
	if err != nil {
		return nil, err
	}
	if _, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) { t.handIn(h); return struct{}{}, nil }); err != nil {
		if errors.Is(err, errNotNow) {
			return h.later(), nil
		}
		return nil, notNow(err)
	}
	reply := &pb.ResultReply{Countersign: h.counter, Claims: b.claimReplies(from, h.claims)}
	for i := range h.results {
		reply.Acks = append(reply.Acks, h.results[i].ack())
	}
	return reply, nil
}

// idle takes receipts of idle and running time, and tells where the node's chain stands.
func (b *Bridge) idle(ctx context.Context, from peer.ID, req *pb.ReceiptRequest) (*pb.ReceiptReply, error) {
	if err := b.partner(from); err != nil {
		return nil, err
	}
	var r *receipt
	if len(req.GetReceipt()) > 0 {
		var err error
		if r, err = b.openReceipt(from, req.GetReceipt()); err != nil {
			return nil, p2p.Errorf(p2p.CodeMalformed, "%v", err)
		}
	}
	reply, err := ask(ctx, b.engine, func(t *turn) (*pb.ReceiptReply, error) {
		t.e.node(from).alive(t.now)
		reply := &pb.ReceiptReply{}
		if r != nil {
			counter, err := t.account(r)
			var no errReceipt
			if err != nil && !errors.As(err, &no) {
				return nil, err
			}
			if err != nil {
				reply.Error = err.Error()
			}
			reply.Countersign = counter
		}
		p := t.e.money.Position(from)
		reply.Seq, reply.Hash = p.Seq, p.Hash[:]
		return reply, nil
	})
	if err != nil {
		return nil, notNow(err)
	}
	return reply, nil
}

// partner refuses who has no link to this bridge: strangers must not fill its disk. A node that has just come
// back is met within seconds and tries again.
func (b *Bridge) partner(id protocol.PeerID) error {
	if _, ok := b.partners.Load(id); !ok {
		return p2p.Errorf(p2p.CodeBusy, "this bridge does not know this node yet; try again")
	}
	return nil
}

// openReceipt verifies a receipt of the peer that hands it in.
func (b *Bridge) openReceipt(from protocol.PeerID, raw []byte) (*receipt, error) {
	noun, hash, err := protocol.OpenReceipt(raw)
	switch {
	case err != nil:
		return nil, err
	case noun.Node != from:
		return nil, protocol.ErrAuthor
	case noun.Network != b.network.ID:
		return nil, errReceipt{"the receipt counts in another network"}
	}
	return &receipt{noun, raw, hash}, nil
}

// fetch brings the outputs of a result here, durable after the next Sync. It reports whether they are here.
func (b *Bridge) fetch(ctx context.Context, from protocol.PeerID, root cid.Cid) error {
	if has, err := b.vols.Has(ctx, root); err != nil || has {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, fetchFor)
	defer stop()
	_, err := b.net.Fetch(ctx, root, []peer.AddrInfo{{ID: from}}, nil)
	return err
}

// putBlocks stores what came inside a message and reports which of the roots are whole by it.
func (b *Bridge) putBlocks(ctx context.Context, in []*pb.InlineBlock, roots []cid.Cid) ([]bool, error) {
	blocks := make([]volumes.Block, 0, len(in))
	size := 0
	for _, x := range in {
		c, err := cid.Cast(x.GetCid())
		if err != nil {
			return nil, p2p.Errorf(p2p.CodeMalformed, "a block's CID: %v", err)
		}
		if size += len(x.GetData()); size > protocol.MaxInlineBlocks {
			return nil, p2p.Errorf(p2p.CodeTooLarge, "blocks of more than %d bytes travel in a message; let them be fetched", protocol.MaxInlineBlocks)
		}
		blocks = append(blocks, volumes.Block{CID: c, Data: x.GetData()})
	}
	whole, err := b.vols.PutTrees(ctx, blocks, roots)
	if errors.Is(err, volumes.ErrCorrupt) {
		return nil, p2p.Errorf(p2p.CodeMalformed, "%v", err)
	}
	return whole, err
}
