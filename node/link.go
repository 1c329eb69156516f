package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/node/internal/journal"
	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Bounds of one message to a bridge; together they stay below protocol.MaxFrame.
const (
	maxResultBytes = 384 << 10 // signed results, by estimate
	maxTailBytes   = 128 << 10 // log tails
	exchangeTime   = 30 * time.Second
	heavyTime      = publishLimit // the bridge fetches a tree before it answers
)

// link talks to one bridge. There is one exchange at a time, so that receipts arrive in their order; what gathers
// meanwhile goes with the next one, and when nothing is under way a result goes out at once.
type link struct {
	book   *book
	bridge *bridge
	gate   *gate
	key    crypto.PrivKey
	idle   time.Duration
	log    *slog.Logger
	// call sends a request to the bridge.
	call func(ctx context.Context, to protocol.PeerID, id libprotocol.ID, req, resp proto.Message) error
}

// parcel is what one message carries.
type parcel struct {
	leases  []*lease
	results []protocol.Result
	claims  []*pb.ClaimRequest
	members []*member
	receipt *metering.Issued
	req     *pb.ResultRequest
}

func (p *parcel) empty() bool {
	return len(p.results) == 0 && len(p.claims) == 0 && p.receipt == nil
}

// run sends what there is to send until ctx ends.
func (l *link) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.bridge.poke:
		case <-timer.C:
		}
		for ctx.Err() == nil {
			p := l.gather()
			if p.empty() {
				break
			}
			l.exchange(ctx, p)
		}
		timer.Reset(l.pause())
	}
}

// pause is how long nothing has to be sent unless somebody pokes.
func (l *link) pause() time.Duration {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	next := l.bridge.idle
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, m := range b.members {
		if m.bridge == l.bridge && m.claim && !m.left {
			sooner(m.retry)
		}
	}
	for _, x := range b.leases {
		if x.member.bridge == l.bridge && x.end != nil && x.end.ready && !x.end.flying {
			sooner(x.end.after)
		}
	}
	if next.IsZero() {
		return time.Minute
	}
	if l.bridge.after.After(next) {
		next = l.bridge.after
	}
	return max(next.Sub(now), time.Millisecond)
}

// gather takes together what can go out now.
func (l *link) gather() *parcel {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	now, p := b.now(), &parcel{req: &pb.ResultRequest{}}
	if now.Before(l.bridge.after) {
		return p
	}
	l.pack(p, now)
	p.claims, p.members = b.claims(l.bridge, p.leases, now)
	for _, m := range p.members { // whatever is announced from here on makes it ready again
		m.ready = false
	}
	l.bridge.asking = len(p.claims) > 0
	if err := l.account(p, now); err != nil {
		l.log.Error("a receipt cannot be written", "peer", l.bridge.id, "err", err)
	}
	return p
}

// pack puts results that are ready into a parcel, oldest first, as many as fit; b.mu is held.
func (l *link) pack(p *parcel, now time.Time) {
	var ready []*lease
	for _, x := range l.book.leases {
		if e := x.end; e != nil && x.member.bridge == l.bridge && e.ready && !e.flying && !e.heavy && !now.Before(e.after) && !x.machine.Old {
			if s := x.machine.State; s == protocol.LeasePublishing || s == protocol.LeaseStuck || s == protocol.LeaseEnded {
				ready = append(ready, x)
			}
		}
	}
	bytes, inline, tails := 0, 0, 0
	for _, x := range sorted(ready) {
		e := x.end
		size := 256 + len(e.result.Outcome.FirstCause)
		if len(p.results) == protocol.MaxResults || bytes+size > maxResultBytes || inline+e.inline > protocol.MaxInlineBlocks {
			break
		}
		bytes, inline = bytes+size, inline+e.inline
		e.flying = true
		p.leases, p.results = append(p.leases, x), append(p.results, e.result)
		for _, blk := range e.blocks {
			p.req.Blocks = append(p.req.Blocks, &pb.InlineBlock{Cid: blk.CID.Bytes(), Data: blk.Data})
		}
		if len(e.tail) > 0 && tails+len(e.tail) <= maxTailBytes {
			tails += len(e.tail)
			p.req.Logs = append(p.req.Logs, &pb.LogTail{LeaseId: x.ID[:], Text: e.tail})
		}
	}
}

// account adds the receipt that is due: the oldest that the bridge has not signed, else a new one of the records
// that wait; b.mu is held. It is durable when send comes to it.
func (l *link) account(p *parcel, now time.Time) error {
	br := l.bridge
	if br.chain == nil || br.grant == (protocol.GrantID{}) {
		br.loose = nil // nobody to report to
		return nil
	}
	if !br.idle.IsZero() && !now.Before(br.idle) {
		br.loose = append(br.loose, br.meter.Idle(now)...)
		for _, x := range l.book.held {
			if x != nil && x.member.bridge == br {
				records, err := br.meter.Interim(x.ID, now, metering.Claimed{})
				if err == nil {
					br.loose = append(br.loose, records...)
				}
			}
		}
		br.idle = now.Add(l.idle)
	}
	if br.idle.IsZero() {
		br.idle = now.Add(l.idle)
	}
	if now.Before(br.receiptAfter) {
		return nil
	}
	if pending := br.chain.Pending(); len(pending) > 0 {
		p.receipt = &pending[0]
		return nil
	}
	// Records of ended leases ride with their results; those of stopped ones do not wait for company either.
	n := min(len(br.loose), protocol.MaxRecordsPerReceipt)
	if n == 0 {
		return nil
	}
	issued, err := br.chain.Issue(br.loose[:n], br.grant, now, l.key)
	if err != nil {
		br.loose = nil // they cannot be signed, now or later
		return err
	}
	br.loose = slices.Delete(br.loose, 0, n)
	br.mark, br.dirty = l.book.paper.Append(receiptEntry(br.pair, issued[0].Raw)), true
	p.receipt = &issued[0]
	return nil
}

// durable makes the chain durable before one of its receipts is sent: a number that was used must not be
// forgotten.
func (l *link) durable() error {
	b, br := l.book, l.bridge
	b.mu.Lock()
	mark, dirty := br.mark, br.dirty
	b.mu.Unlock()
	if !dirty {
		return nil
	}
	err := b.sync(mark)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		br.dirty = false
		return nil
	}
	// The record is lost; the next try writes the chain as a whole.
	state, stateErr := br.chain.State()
	if stateErr == nil {
		br.mark = b.paper.Append(chainEntry(br.pair, state))
	}
	return errors.Join(err, stateErr)
}

// exchange sends a parcel and takes the answer.
func (l *link) exchange(ctx context.Context, p *parcel) {
	if p.receipt != nil {
		if err := l.durable(); err != nil { // it goes another time; results do not wait for the disk
			p.receipt = nil
			l.receiptFailed(err)
		}
	}
	var err error
	switch {
	case len(p.results) > 0:
		err = l.sendResults(ctx, p, exchangeTime)
	case len(p.claims) > 0:
		err = l.sendClaims(ctx, p)
		if err == nil && p.receipt != nil {
			l.sent(p)
			err = l.sendReceipt(ctx, p.receipt)
		}
	case p.receipt != nil:
		err = l.sendReceipt(ctx, p.receipt)
	}
	l.settle(p, err)
}

// sent says that no grant is under way any more.
func (l *link) sent(*parcel) {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	l.bridge.asking = false
	l.bridge.quiet.Broadcast()
}

// receiptFailed lets receipts wait without holding up anything else.
func (l *link) receiptFailed(err error) {
	b, br := l.book, l.bridge
	b.mu.Lock()
	defer b.mu.Unlock()
	br.receiptAfter = b.now().Add(backoff(br.receiptTries))
	br.receiptTries++
	if br.receiptTries == 1 {
		l.log.Warn("a receipt was not settled, trying again", "peer", br.id, "err", err)
	}
}

// settle notes whether the bridge could be talked to.
func (l *link) settle(p *parcel, err error) {
	b, br := l.book, l.bridge
	b.mu.Lock()
	defer b.mu.Unlock()
	br.asking = false
	br.quiet.Broadcast()
	now := b.now()
	if err == nil {
		br.tries, br.after = 0, time.Time{}
		return
	}
	for _, m := range p.members {
		m.ready, m.retry = false, now.Add(backoff(br.tries))
	}
	for _, x := range p.leases {
		x.end.flying = false
		b.apply(x, machine.Later)
	}
	pause := backoff(br.tries)
	if len(p.leases) == 0 && br.tries > 8 { // it seems to be gone for good, and nothing of it waits
		pause = 10 * time.Minute
	}
	br.after = now.Add(pause)
	br.tries++
	if br.tries == 1 {
		l.log.Warn("the bridge cannot be talked to, trying again", "peer", br.id, "err", err)
	}
}

// sendResults publishes results with their receipt and claims more.
func (l *link) sendResults(ctx context.Context, p *parcel, patience time.Duration) error {
	signed, err := (&protocol.Results{Node: l.book.self, Bridge: l.bridge.id, Results: p.results}).Seal(l.key)
	if err != nil {
		return fmt.Errorf("signing results: %w", err)
	}
	p.req.Results, p.req.Claims = signed, p.claims
	if p.receipt != nil {
		p.req.Receipt = p.receipt.Raw
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply := &pb.ResultReply{}
	if err := l.call(ctx, l.bridge.id, protocol.ProtoResult, p.req, reply); err != nil {
		return err
	}
	l.acks(p, reply)
	l.granted(p, reply.GetClaims())
	if p.receipt != nil {
		l.countersigned(ctx, p.receipt, reply.GetCountersign())
	}
	return nil
}

// acks lets each lease hear its verdict. What the bridge says nothing about is asked again.
func (l *link) acks(p *parcel, reply *pb.ResultReply) {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	verdicts := make(map[protocol.LeaseID]pb.Verdict, len(reply.GetAcks()))
	for _, a := range reply.GetAcks() {
		if len(a.GetLeaseId()) == 16 {
			verdicts[protocol.LeaseID(a.GetLeaseId())] = a.GetVerdict()
		}
	}
	for _, x := range p.leases {
		x.end.flying = false
		switch v := verdicts[x.ID]; v {
		case pb.Verdict_VERDICT_LATER, pb.Verdict_VERDICT_UNSPECIFIED:
			b.apply(x, machine.Later)
			continue
		case pb.Verdict_VERDICT_REFUSED:
			l.log.Warn("the bridge refused a result", "lease", x.ID, "job", x.Job)
		}
		b.count(x)
		if b.leases[x.ID] != x { // its job has ended meanwhile
			continue
		}
		if x.machine.State == protocol.LeaseEnded { // a kept outcome that somebody took after all
			b.release(x)
			continue
		}
		b.apply(x, machine.Acked)
	}
}

// count counts a result that its bridge has taken or refused, once; b.mu is held.
func (b *book) count(x *lease) {
	if x.end.counted {
		return
	}
	x.end.counted = true
	b.done++
	if x.end.result.Outcome.Reason != protocol.ReasonDone {
		b.failed++
	}
}

// granted takes the answers to the claims of a parcel, in their order.
func (l *link) granted(p *parcel, replies []*pb.ClaimReply) {
	for i, m := range p.members {
		reply := &pb.ClaimReply{Wait: true, RetryMs: 1000}
		if i < len(replies) {
			reply = replies[i]
		}
		err := l.book.answered(l.bridge, m, int(p.claims[i].GetSlots()), reply, l.gate)
		if err != nil && !errors.Is(err, journal.ErrFull) { // a full disk is told once
			l.log.Warn("leases were not taken", "peer", l.bridge.id, "job", m.terms.Job, "err", err)
		}
	}
}

func (l *link) sendClaims(ctx context.Context, p *parcel) error {
	for i, claim := range p.claims {
		reply := &pb.ClaimReply{}
		ctx, cancel := context.WithTimeout(ctx, exchangeTime)
		err := l.call(ctx, l.bridge.id, protocol.ProtoClaim, claim, reply)
		cancel()
		if p2p.CodeOf(err) == p2p.CodeNotFound {
			reply, err = &pb.ClaimReply{Gone: true}, nil
		}
		if err != nil {
			return err
		}
		l.granted(&parcel{claims: p.claims[i : i+1], members: p.members[i : i+1]}, []*pb.ClaimReply{reply})
	}
	return nil
}

// sendReceipt sends a receipt of idle time, or of leases whose results did not need it.
func (l *link) sendReceipt(ctx context.Context, r *metering.Issued) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	reply := &pb.ReceiptReply{}
	if err := l.call(ctx, l.bridge.id, protocol.ProtoReceipt, &pb.ReceiptRequest{Receipt: r.Raw}, reply); err != nil {
		return err
	}
	l.countersigned(ctx, r, reply.GetCountersign())
	return nil
}

// countersigned takes the bridge's word on a receipt. A bridge that gives none does not stand where this node
// does: its position is asked for, and taken when it is ahead (this node has lost its disk). When it is behind
// the receipts stay and are sent again, in their order.
func (l *link) countersigned(ctx context.Context, r *metering.Issued, raw []byte) {
	var err error
	if len(raw) == 0 {
		err = l.adopt(ctx)
		if err == nil {
			err = errors.New("node: the bridge gave no counter-signature")
		}
	} else {
		err = l.sign(r, raw)
	}
	if err != nil {
		l.receiptFailed(err)
	}
}

func (l *link) sign(r *metering.Issued, raw []byte) error {
	b, br := l.book, l.bridge
	cs, err := protocol.OpenCounterSign(raw, br.id)
	if err != nil {
		return fmt.Errorf("the bridge's counter-signature: %w", err)
	}
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	br.meter.Hear(now, cs.BridgeTime)
	if err := br.chain.Countersigned(&cs); err != nil {
		return err
	}
	b.paper.Append(signedEntry(br.pair, r.Seq, r.Hash))
	br.receiptTries, br.receiptAfter = 0, time.Time{}
	return nil
}

func (l *link) adopt(ctx context.Context) error {
	reply := &pb.ReceiptReply{}
	if err := l.call(ctx, l.bridge.id, protocol.ProtoReceipt, &pb.ReceiptRequest{Position: true}, reply); err != nil {
		return err
	}
	if len(reply.GetHash()) != 32 {
		return errors.New("node: the bridge has not counter-signed, and does not say where the chain of receipts stands")
	}
	b, br := l.book, l.bridge
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := br.chain.Adopt(metering.Position{Seq: reply.GetSeq(), Hash: [32]byte(reply.GetHash())}); err != nil {
		return err
	}
	state, err := br.chain.State()
	if err != nil {
		return err
	}
	br.mark, br.dirty = b.paper.Append(chainEntry(br.pair, state)), true
	l.log.Warn("took up the chain of receipts where the bridge has it", "peer", br.id, "seq", reply.GetSeq())
	return nil
}

// runHeavy publishes results whose trees the bridge has to fetch first, one at a time and beside the others: a
// large output must not hold up small ones. Its receipt goes the common way.
func (l *link) runHeavy(ctx context.Context) {
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.bridge.heavy:
		case <-timer.C:
		}
		next := time.Minute
		for ctx.Err() == nil {
			p, wait := l.gatherHeavy()
			if p == nil {
				next = wait
				break
			}
			if err := l.sendResults(ctx, p, heavyTime); err != nil {
				l.settleHeavy(p, err)
			}
		}
		timer.Reset(next)
	}
}

func (l *link) gatherHeavy() (*parcel, time.Duration) {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	now, wait := b.now(), time.Minute
	for _, x := range b.leases {
		e := x.end
		if e == nil || x.member.bridge != l.bridge || !e.heavy || !e.ready || e.flying || x.machine.Old {
			continue
		}
		if d := e.after.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		e.flying = true
		p := &parcel{leases: []*lease{x}, results: []protocol.Result{e.result}, req: &pb.ResultRequest{}}
		if len(e.tail) > 0 {
			p.req.Logs = []*pb.LogTail{{LeaseId: x.ID[:], Text: e.tail}}
		}
		return p, 0
	}
	return nil, wait
}

func (l *link) settleHeavy(p *parcel, err error) {
	b := l.book
	b.mu.Lock()
	defer b.mu.Unlock()
	l.log.Warn("a large result was not taken, trying again", "peer", l.bridge.id, "lease", p.leases[0].ID, "err", err)
	for _, x := range p.leases {
		x.end.flying = false
		b.apply(x, machine.Later)
	}
}
