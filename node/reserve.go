package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// offerLife is how long an offer stands.
	offerLife = 30 * time.Second
	// reserveAhead is how far ahead a reservation may end (trust.md 2).
	reserveAhead = 10 * time.Minute
	// maxSeen bounds the reservations that are remembered against replay (trust.md 2).
	maxSeen = 100_000
	// maxOffers bounds the offers that stand at one time.
	maxOffers = 4 * maxJobs
)

// offered is a backend that passed its self-test.
type offered struct {
	executor.Backend
	report    executor.Report
	inProcess bool
}

// names are how the record says it: what it runs, and at which level.
func (o *offered) names() []string {
	level := ":" + o.report.Level.String()
	if len(o.report.Runtimes) == 0 {
		return []string{o.report.Backend + level}
	}
	out := []string{"host" + level}
	for _, r := range o.report.Runtimes {
		out = append(out, r+level)
	}
	return out
}

// runs says that the backend can run something at all.
func (o *offered) runs(r *protocol.Run) bool {
	switch {
	case r.Module.Defined():
		return o.report.Backend == "wasm"
	case r.Function != nil:
		return slices.ContainsFunc(o.report.Runtimes, func(name string) bool { return name == r.Host || strings.HasPrefix(name, r.Host+".") })
	}
	return false
}

// offer is what the node is ready to take up.
type offer struct {
	memberFacts
	backend *offered
	expires time.Time
}

// desk answers reservations.
type desk struct {
	self     protocol.PeerID
	gate     *gate
	book     *book
	policy   *Policy
	backends []*offered
	sign     func(o *protocol.Offer) ([]byte, error)
	// machine is what the policy is held against, without levels.
	machine func() Machine
	// ready says why no work is taken, nil when it is.
	ready func() (protocol.Reason, string)
	// holds counts the bytes of a job's volumes that are here.
	holds func(ctx context.Context, t *protocol.JobTerms) uint64
	now   func() time.Time
}

// serve answers a reservation with an offer, or says why there is none.
func (d *desk) serve(ctx context.Context, from protocol.PeerID, req *pb.ReserveRequest) (*pb.ReserveReply, error) {
	r, err := protocol.OpenReservation(req.GetReservation())
	if err != nil {
		return nil, malformed(err)
	}
	now := d.now()
	switch {
	case r.Bridge != from:
		return nil, p2p.Errorf(p2p.CodeUnauthorized, "the reservation is of bridge %s, this is %s", r.Bridge, from)
	case r.Node != d.self:
		return nil, p2p.Errorf(p2p.CodeUnauthorized, "the reservation is for node %s, this is %s", r.Node, d.self)
	case !now.Before(r.NotAfter.Add(clockSkew)):
		return nil, p2p.Errorf(p2p.CodeStale, "the reservation ended at %s", r.NotAfter.UTC().Format(time.RFC3339))
	case r.NotAfter.Sub(now) > reserveAhead+clockSkew:
		return nil, p2p.Errorf(p2p.CodeRefused, "the reservation ends %s ahead, at most %s", r.NotAfter.Sub(now).Round(time.Second), reserveAhead)
	}
	right, err := d.gate.byGrant(from, r.Grant)
	if err != nil {
		return nil, err
	}
	if right.network != r.Network {
		return nil, refusal(&protocol.AuthError{Code: protocol.AuthNetwork, Link: -1, Text: "the grant counts in another network than the reservation names"})
	}
	if err := d.book.once(r.Call, r.NotAfter.Add(clockSkew), now); err != nil {
		return nil, err
	}
	o, why, text := d.judge(&r, &right, now)
	if why != protocol.ReasonNone {
		return &pb.ReserveReply{Reason: uint32(why), Text: text}, nil
	}
	return d.offer(ctx, &r, o)
}

// malformed says what a peer has sent wrongly.
func malformed(err error) error {
	if errors.Is(err, protocol.ErrSignature) || errors.Is(err, protocol.ErrAuthor) {
		return p2p.Errorf(p2p.CodeUnauthorized, "%s: %s", protocol.AuthSignature, err)
	}
	if errors.Is(err, protocol.ErrTooLarge) {
		return p2p.Errorf(p2p.CodeTooLarge, "%s", err)
	}
	return p2p.Errorf(p2p.CodeMalformed, "%s", err)
}

// judge holds a reservation against everything but the clock.
func (d *desk) judge(r *protocol.Reservation, right *right, now time.Time) (offer, protocol.Reason, string) {
	if why, text := d.ready(); why != protocol.ReasonNone {
		return offer{}, why, text
	}
	able, text := d.able(&r.Terms)
	if len(able) == 0 {
		return offer{}, protocol.ReasonRefusedPolicy, text
	}
	m := d.machine()
	for _, o := range able {
		m.Levels = append(m.Levels, o.report.Level)
	}
	t := &r.Terms
	decision := d.policy.Decide(Request{
		Peer: r.Bridge, Issuers: right.issuers, Rights: &right.Rights, Joined: true, Kind: t.Kind, Memory: t.Limits.MemoryBytes, Disk: t.Limits.DiskBytes,
		Slots: d.slots(r), Wall: t.Limits.Wall, MinIsolation: t.MinIsolation, Rate: r.Rate,
	}, m, now)
	if !decision.OK {
		return offer{}, protocol.ReasonRefusedPolicy, decision.Text
	}
	best := slices.MaxFunc(able, func(a, b *offered) int { return int(a.report.Level) - int(b.report.Level) })
	return offer{
		memberFacts: memberFacts{
			pair: pair{r.Network, r.Bridge}, grant: r.Grant, terms: *t, slots: decision.Slots, wall: decision.Wall, level: uint8(decision.Level),
		},
		backend: best, expires: now.Add(offerLife),
	}, protocol.ReasonNone, ""
}

// slots is how many chunks of a job are wanted at a time, as far as its GPUs go.
func (d *desk) slots(r *protocol.Reservation) int {
	n := int(r.Slots)
	if r.Terms.GPUCount > 0 {
		n = min(n, d.book.gpuSlots(&r.Terms))
	}
	return n
}

// gpuSlots is how many chunks of a job the GPUs are enough for.
func (b *book) gpuSlots(t *protocol.JobTerms) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gpus.slots(t)
}

// able returns the backends that can run a job, or what is missing.
func (d *desk) able(t *protocol.JobTerms) ([]*offered, string) {
	switch {
	case t.GPUCount > 0 && t.Run.Function == nil:
		return nil, "the job needs GPUs, and only functions are given GPUs here"
	case t.GPUCount > 0 && d.book.gpuSlots(t) == 0:
		return nil, fmt.Sprintf("the job needs %d × %s, and this node cannot give them away", t.GPUCount, cmp.Or(strings.Join(t.GPUModels, "|"), "any GPU"))
	case !t.Run.Module.Defined() && t.Run.Function == nil:
		return nil, "the job runs an image or a host program, and this node has no container backend; give the job a wasm module or a function"
	}
	var out []*offered
	for _, o := range d.backends {
		if o.runs(&t.Run) {
			out = append(out, o)
		}
	}
	switch {
	case len(out) > 0:
		return out, ""
	case t.Run.Function != nil:
		return nil, fmt.Sprintf("no sandbox with %s passed its self-test here; the node's log says why", t.Run.Host)
	}
	return nil, "the wasm backend did not pass its self-test here; the node's log says why"
}

func (d *desk) offer(ctx context.Context, r *protocol.Reservation, o offer) (*pb.ReserveReply, error) {
	out := protocol.Offer{
		Call: r.Call, Job: r.Terms.Job, Node: d.self, Bridge: r.Bridge, Slots: uint32(o.slots), Ask: max(d.machine().Ask, d.policy.MinPrice),
		Expires: o.expires, DataHeld: d.holds(ctx, &r.Terms),
	}
	raw, err := d.sign(&out)
	if err != nil {
		return nil, fmt.Errorf("signing an offer: %w", err)
	}
	if !d.book.addOffer(o) {
		return &pb.ReserveReply{Reason: uint32(protocol.ReasonBusy), Text: fmt.Sprintf("the node belongs to %d jobs already", maxJobs)}, nil
	}
	return &pb.ReserveReply{Offer: raw}, nil
}

// once notes a reservation durably; one that was seen before is refused.
func (b *book) once(call protocol.CallID, until, now time.Time) error {
	b.mu.Lock()
	if _, seen := b.diary.seen[call]; seen {
		b.mu.Unlock()
		return p2p.Errorf(p2p.CodeUnauthorized, "%s: this reservation was answered before", protocol.AuthReplay)
	}
	if len(b.diary.seen) >= maxSeen {
		for id, end := range b.diary.seen {
			if !end.After(now) {
				delete(b.diary.seen, id)
			}
		}
		if len(b.diary.seen) >= maxSeen {
			b.mu.Unlock()
			return p2p.Errorf(p2p.CodeBusy, "too many reservations; come back later")
		}
	}
	b.diary.seen[call] = until
	mark := b.paper.Append(seenEntry(call, until))
	b.mu.Unlock()
	if err := b.sync(mark); err != nil {
		return p2p.Errorf(p2p.CodeBusy, "this node cannot write its journal: its disk is full or broken")
	}
	return nil
}

// addOffer remembers an offer until it lapses; a newer one for a job replaces the older.
func (b *book) addOffer(o offer) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.members) >= maxJobs || len(b.offers) >= maxOffers {
		return false
	}
	b.bridgeOf(o.bridge).agree(b.diary, o.pair, o.grant)
	b.offers[o.terms.Job] = o
	b.ring(o.expires)
	return true
}
