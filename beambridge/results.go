package beambridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

// handing is one message of results with everything that came in it, opened.
type handing struct {
	from    protocol.PeerID
	hash    []byte // of the envelope of the results; by itself, since attempts keep it
	results []handed
	receipt *receipt
	tails   map[protocol.LeaseID]string
	claims  []*claim
	counter []byte
}

// handed is one result on its way to its verdict.
type handed struct {
	noun    protocol.Result
	missing error               // why its outputs are not here
	wrong   string              // why its outputs are not those of its chunk
	ends    map[uint64]inputEnd // how the calls in the chunk ended
	alone   cid.Cid             // the directory of the one input that has written something, in the first chunk of a job
	verdict pb.Verdict
	text    string
}

func (h *handed) ack() *pb.ResultAck {
	return &pb.ResultAck{LeaseId: h.noun.Lease[:], Verdict: h.verdict, Text: h.text}
}

// later asks a node to hand everything in again.
func (h *handing) later() *pb.ResultReply {
	reply := &pb.ResultReply{}
	for i := range h.results {
		h.results[i].verdict, h.results[i].text = pb.Verdict_VERDICT_LATER, "the bridge cannot keep it just now"
		reply.Acks = append(reply.Acks, h.results[i].ack())
	}
	for range h.claims {
		reply.Claims = append(reply.Claims, &pb.ClaimReply{Wait: true, RetryMs: claimRetry})
	}
	return reply
}

// unpack verifies a message of results and brings their outputs here, durably.
func (b *Bridge) unpack(ctx context.Context, from protocol.PeerID, req *pb.ResultRequest) (*handing, error) {
	h := &handing{from: from, claims: openClaims(req.GetClaims()), tails: map[protocol.LeaseID]string{}}
	if len(req.GetResults()) > 0 {
		rs, err := protocol.OpenResults(req.GetResults())
		switch {
		case err != nil:
			return nil, p2p.Errorf(p2p.CodeMalformed, "%v", err)
		case rs.Node != from || rs.Bridge != b.self:
			return nil, p2p.Errorf(p2p.CodeUnauthorized, "the results are of %s for %s", rs.Node, rs.Bridge)
		}
		sum := sha256.Sum256(req.GetResults())
		h.hash = sum[:]
		for _, r := range rs.Results {
			h.results = append(h.results, handed{noun: r})
		}
	}
	if len(req.GetReceipt()) > 0 {
		var err error
		if h.receipt, err = b.openReceipt(from, req.GetReceipt()); err != nil {
			return nil, p2p.Errorf(p2p.CodeMalformed, "%v", err)
		}
	}
	for _, l := range req.GetLogs() {
		if text := l.GetText(); len(l.GetLeaseId()) == 16 && len(text) > 0 {
			h.tails[protocol.LeaseID(l.GetLeaseId())] = string(text[max(0, len(text)-protocol.MaxLogTail):])
		}
	}
	return h, b.bring(ctx, h, req)
}

// bring makes the outputs of good results durable before anybody is told that they count.
func (b *Bridge) bring(ctx context.Context, h *handing, req *pb.ResultRequest) error {
	var at []int
	var roots []cid.Cid
	for i := range h.results {
		if x := &h.results[i].noun; x.Outcome.Reason == protocol.ReasonDone && x.Root != b.nothing {
			at, roots = append(at, i), append(roots, x.Root)
		}
	}
	defer func() {
		for i := range h.results {
			if r := &h.results[i]; r.missing == nil && r.noun.Outcome.Reason == protocol.ReasonDone {
				r.wrong = b.misshapen(ctx, &r.noun)
				_, calls := b.calling.Load(r.noun.Job)
				switch {
				case r.wrong != "":
				case calls:
					r.ends, r.wrong = b.readEnds(&r.noun)
				case r.noun.Chunk.First == 0:
					r.alone = b.alone(ctx, r.noun.Root)
				}
			}
		}
	}()
	if len(roots) == 0 && len(req.GetBlocks()) == 0 {
		return nil
	}
	whole, err := b.putBlocks(ctx, req.GetBlocks(), roots)
	if err != nil {
		if _, known := errors.AsType[*p2p.Error](err); known {
			return err
		}
		b.lack(h, err)
		return nil
	}
	for k, i := range at {
		if !whole[k] {
			h.results[i].missing = b.fetch(ctx, h.from, roots[k])
		}
	}
	if err := b.vols.Sync(ctx); err != nil {
		b.lack(h, err)
	}
	return nil
}

// misshapen says why a tree cannot be the outputs of a chunk: it holds a directory for each input that has written
// something, named by the index, and nothing else. What a node adds would end up in the merged result of others.
func (b *Bridge) misshapen(ctx context.Context, x *protocol.Result) string {
	if x.Root == b.nothing {
		return ""
	}
	for e, err := range b.vols.List(ctx, x.Root) {
		switch {
		case err != nil:
			return "its outputs are no tree: " + plainText(err)
		case !e.Dir:
			return fmt.Sprintf("its outputs hold %.40q, which is no directory", e.Name)
		}
		n, err := strconv.ParseUint(e.Name, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != e.Name || n < x.Chunk.First || n >= x.Chunk.End {
			return fmt.Sprintf("its outputs hold %.40q, which is no input of the chunk", e.Name)
		}
	}
	return ""
}

// lack marks every result as one whose outputs could not be kept.
func (b *Bridge) lack(h *handing, err error) {
	if ctxErr := b.ctx().Err(); ctxErr == nil {
		b.log.Error("outputs could not be kept", "peer", h.from, "err", err)
	}
	for i := range h.results {
		h.results[i].missing = err
	}
}

// handIn gives each result its verdict, accounts the receipt and grants what is claimed, in this order: what a
// receipt says is held against the ends that its results made.
func (t *turn) handIn(h *handing) {
	n := t.e.node(h.from)
	n.alive(t.now)
	n.heard = maxTime(n.heard, t.now)
	for i := range h.results {
		t.handInOne(h, &h.results[i])
	}
	if h.receipt != nil {
		counter, err := t.account(h.receipt)
		if err != nil {
			t.e.log.Warn("a receipt was not taken", "peer", h.from, "err", err)
		}
		h.counter = counter
	}
	t.grantAll(h.from, h.claims)
}

// handInOne gives one result its verdict.
func (t *turn) handInOne(h *handing, r *handed) {
	e, x := t.e, &r.noun
	if r.missing != nil {
		r.verdict, r.text = pb.Verdict_VERDICT_LATER, "its outputs could not be fetched: "+plainText(r.missing)
		if !errors.Is(r.missing, volumes.ErrCorrupt) && !errors.Is(r.missing, volumes.ErrTooLarge) {
			return
		}
		x.Outcome.Reason, x.Outcome.FirstCause = protocol.ReasonOutputInvalid, plainText(r.missing)
	}
	if r.wrong != "" {
		x.Outcome.Reason, x.Outcome.FirstCause, x.Root = protocol.ReasonResultWrong, r.wrong, cid.Undef
	}
	a := e.attempts[x.Lease]
	if a != nil && a.row.Node == h.from && a.row.Fence == x.Fence && a.row.First == x.Chunk.First && a.row.End == x.Chunk.End {
		t.bound(a, x)
		t.report(a, h, x)
	}
	j := e.jobs[x.Job]
	if j == nil {
		r.verdict, r.text = pb.Verdict_VERDICT_FENCED, "the bridge does not know the job any more"
		return
	}
	end := cluster.End{
		Lease: x.Lease, Node: h.from, Range: cluster.Range{First: x.Chunk.First, End: x.Chunk.End}, Fence: x.Fence, Reason: x.Outcome.Reason,
		Exit: x.Outcome.ExitCode, Seconds: x.Outcome.Run.Seconds(), Text: x.Outcome.FirstCause,
	}
	if x.Outcome.Reason == protocol.ReasonDone {
		end.Digest = x.Root.String()
		if x.Chunk.First == 0 && x.Chunk.End == j.row.Inputs {
			j.early, j.earlyOf = r.alone, x.Root
		}
	}
	verdict, fx := j.tracker.Result(end, t.now)
	if j.calls != nil && verdict == cluster.VerdictAccounted { // before the job may be over by it
		t.returnedCalls(j, end.Range, x.Root, r.ends)
	}
	t.apply(j, fx)
	r.verdict, r.text = ackOf(verdict), string(verdict)
}

// bound keeps what a node claims of its run within what the bridge has seen: it can have run no longer than it held
// the lease, on no more cores than it has. Predictions and reservations rest on it.
func (t *turn) bound(a *attempt, x *protocol.Result) {
	held := max(0, t.now.Sub(a.row.Granted))
	cores := 64
	if n := t.e.nodes[a.row.Node]; n != nil && n.cores > 0 {
		cores = n.cores
	}
	x.Outcome.Run = min(x.Outcome.Run, held)
	x.Outcome.CPU = min(x.Outcome.CPU, held*time.Duration(cores))
}

// report notes what a node says of an attempt of its own, whatever the verdict.
func (t *turn) report(a *attempt, h *handing, x *protocol.Result) {
	delete(t.e.node(h.from).stops, a.row.ID)
	if a.told {
		return // it is handed in again
	}
	a.told = true
	if a.stopped {
		a.job.open--
	}
	t.returned(a)
	a.row.RunUS, a.row.CPUMS, a.row.BlocksFetched = x.Outcome.Run.Microseconds(), x.Outcome.CPU.Milliseconds(), x.BlocksFetched
	a.root, a.sign = x.Root, h.hash
	if text, ok := h.tails[a.row.ID]; ok {
		t.must = true
		t.tails = append(t.tails, store.LogTail{Job: a.row.Job, First: a.row.First, Lease: a.row.ID, Node: h.from, Text: text, At: t.now})
	}
}

func ackOf(v cluster.Verdict) pb.Verdict {
	switch v {
	case cluster.VerdictAccounted, cluster.VerdictHeld:
		return pb.Verdict_VERDICT_ACCOUNTED
	case cluster.VerdictDuplicate:
		return pb.Verdict_VERDICT_DUPLICATE
	case cluster.VerdictFenced:
		return pb.Verdict_VERDICT_FENCED
	case cluster.VerdictRetry, cluster.VerdictChunkFailed, cluster.VerdictJobFailed:
		return pb.Verdict_VERDICT_RETRY
	}
	return pb.Verdict_VERDICT_REFUSED
}

// plainText is an error for a node: one line, bounded.
func plainText(err error) string {
	s := strings.ReplaceAll(fmt.Sprint(err), "\n", " ")
	return s[:min(len(s), 300)]
}
