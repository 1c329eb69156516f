package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// grantLife is the longest life of a grant message (trust.md 2).
const grantLife = 30 * time.Second

// A slot has two leases in hand, one to run and one to wait; of short chunks as many as are over within aheadFor,
// at most mostAhead, so that they share round trips and signatures.
const (
	aheadFor  = 100 * time.Millisecond
	mostAhead = 64
)

// ahead is how many leases of a job a slot has in hand; b.mu is held.
func (m *member) ahead() int {
	if m.pace <= 0 {
		return 2
	}
	return int(max(2, min(mostAhead, aheadFor/m.pace)))
}

// paced notes what a chunk took, from its staging to its end.
func (b *book) paced(m *member, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.pace == 0 {
		m.pace = took
	} else {
		m.pace += (took - m.pace) / 8
	}
}

// claims lists what the node would take from a bridge now, as many leases as a slot has in hand, for each job and
// in all; b.mu is held. It asks where something was announced, where it is time to ask again, and together with each
// result: who was given less than it asked for, because the rest was for others, has room again.
func (b *book) claims(br *bridge, results []*lease, now time.Time) (out []*pb.ClaimRequest, members []*member) {
	if !b.assignable() {
		return nil, nil
	}
	inHand := b.inHand()
	for _, m := range b.members {
		if m.bridge != br || m.left || !m.claim {
			continue
		}
		if !m.ready && (m.retry.IsZero() || now.Before(m.retry)) && !slices.ContainsFunc(results, func(l *lease) bool { return l.member == m }) {
			continue
		}
		n := min(m.ahead()*m.slots-m.held, m.ahead()*(b.slots-b.lost)-inHand)
		if n <= 0 {
			continue
		}
		inHand += n
		out = append(out, &pb.ClaimRequest{JobId: m.terms.Job[:], Slots: uint32(n)})
		members = append(members, m)
	}
	return out, members
}

// answered notes what a bridge said to a claim, and takes what it granted.
func (b *book) answered(br *bridge, m *member, asked int, reply *pb.ClaimReply, g *gate) error {
	b.mu.Lock()
	now := b.now()
	m.retry = time.Time{}
	switch {
	case reply.GetGone():
		m.ready = false
		b.leave(m)
	case len(reply.GetGrants()) == 0:
		if ms := reply.GetRetryMs(); ms > 0 {
			m.retry = now.Add(time.Duration(min(ms, 60_000)) * time.Millisecond)
		}
	}
	b.mu.Unlock()
	if len(reply.GetGrants()) == 0 {
		return nil
	}
	taken, err := b.accept(br, m, asked, reply.GetGrants(), g)
	b.mu.Lock()
	if err == nil && taken == asked { // there may be more
		m.ready = true
	} else { // not again at once, unless something was announced meanwhile
		m.retry = now.Add(time.Second)
	}
	b.mu.Unlock()
	return err
}

// accept takes signed leases: it checks that they are this bridge's to give and new, makes them durable with one
// sync, and lets them begin. It returns how many it took.
func (b *book) accept(br *bridge, m *member, asked int, raw []byte, g *gate) (int, error) {
	grants, err := protocol.OpenLeaseGrants(raw)
	if err != nil {
		return 0, malformed(err)
	}
	now := b.now()
	right, err := g.byGrant(br.id, grants.Grant)
	switch {
	case grants.Bridge != br.id || grants.Node != b.self:
		return 0, p2p.Errorf(p2p.CodeUnauthorized, "leases of %s for %s", grants.Bridge, grants.Node)
	case err != nil:
		return 0, err
	case right.network != grants.Network || !right.Can(protocol.AbilityJobSubmit, now):
		return 0, p2p.Errorf(p2p.CodeUnauthorized, "%s: the grant does not allow leases in this network", protocol.AuthAbility)
	case !now.Before(grants.NotAfter.Add(clockSkew)):
		return 0, p2p.Errorf(p2p.CodeStale, "%s: the leases ended at %s", protocol.AuthReplay, grants.NotAfter.UTC().Format(time.RFC3339))
	case grants.NotAfter.Sub(grants.BridgeTime) > grantLife || grants.NotAfter.Sub(now) > grantLife+clockSkew:
		return 0, p2p.Errorf(p2p.CodeRefused, "the leases may be taken for longer than %s", grantLife)
	}
	b.mu.Lock()
	br.meter.Hear(now, grants.BridgeTime)
	fresh := b.admit(br, m, asked, grants, now)
	if len(fresh) == 0 {
		b.mu.Unlock()
		return 0, nil
	}
	leases := make([]protocol.Lease, len(fresh))
	for i, l := range fresh {
		leases[i] = l.Lease
	}
	e, err := grantsEntry(br.id, grants.SetSeq, leases)
	if err != nil {
		b.drop(fresh)
		b.mu.Unlock()
		return 0, fmt.Errorf("journalling leases: %w", err)
	}
	mark := b.paper.Append(e)
	b.mu.Unlock()
	// One sync for the whole message, before any of it begins.
	if err := b.sync(mark); err != nil {
		b.mu.Lock()
		b.drop(fresh)
		b.mu.Unlock()
		return 0, fmt.Errorf("journalling leases: %w", err)
	}
	b.mu.Lock()
	b.enqueue(fresh...)
	b.mu.Unlock()
	return len(fresh), nil
}

// admit adds the leases of a message that are new here; b.mu is held. A lease that is known, of a fence that is
// not higher than what was given before, of another job, or more than was asked for is passed over.
func (b *book) admit(br *bridge, m *member, asked int, g protocol.LeaseGrants, now time.Time) (fresh []*lease) {
	for i := range g.Leases {
		l := &g.Leases[i]
		switch {
		case b.leases[l.ID] != nil:
			continue
		case l.Job != m.terms.Job || b.members[l.Job] != m || m.left:
			b.log.Warn("refused a lease of a job that was not asked for", "lease", l.ID, "job", l.Job)
			continue
		case l.Fence <= b.diary.fences[l.Job][l.Chunk.First]:
			b.log.Warn("refused a lease under an old fence", "lease", l.ID, "job", l.Job, "fence", l.Fence)
			continue
		case len(fresh) >= asked:
			b.log.Warn("refused a lease that was not asked for", "lease", l.ID, "job", l.Job)
			continue
		}
		fresh = append(fresh, b.addLease(leaseFacts{Lease: *l, bridge: br.id, setSeq: g.SetSeq}, m, now))
	}
	return fresh
}

// addLease takes a lease into the book; b.mu is held.
func (b *book) addLease(f leaseFacts, m *member, now time.Time) *lease {
	l := &lease{leaseFacts: f, member: m, machine: machine.New(), since: now, until: now.Add(f.TTL), slot: -1, inHand: true}
	b.leases[f.ID] = l
	b.diary.grant(f)
	m.held++
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
	b.noteLoad()
	b.ring(l.until)
	return l
}

// drop takes back leases that could not be made durable; b.mu is held.
func (b *book) drop(fresh []*lease) {
	for _, l := range fresh {
		if b.leases[l.ID] == l && l.machine.State != protocol.LeaseEnded {
			b.stop(l, protocol.ReasonNodeDiskFull, 0)
		}
	}
}

// announced takes an announcement of a job: there is something to claim, or the job is over.
func (b *book) announced(m *member, a protocol.Announcement) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.Cancelled {
		m.ready, m.claim = false, false
		for _, l := range b.heldBy(m.bridge) {
			if l.member == m {
				b.stop(l, a.Reason.Known(), stopGrace)
			}
		}
		return
	}
	if len(a.Ready) > 0 && !m.left {
		m.ready = true
		b.nudge(m.bridge)
	}
}

// listen hears a job's topic for as long as the node is a member. Only the bridge may speak there.
func listen(ctx context.Context, h *p2p.Host, b *book, m *member) error {
	topic, err := p2p.Join(h, protocol.TopicJob(m.terms.Job), p2p.TopicConfig[protocol.Announcement]{
		Decode: func(data []byte, author protocol.PeerID) (protocol.Announcement, error) {
			a, err := protocol.OpenAnnouncement(data)
			if err == nil && (a.Bridge != author || a.Job != m.terms.Job) {
				return a, fmt.Errorf("%w: announcement of job %s by %s", protocol.ErrAuthor, a.Job, author)
			}
			return a, err
		},
		Members: func(p protocol.PeerID) bool { return p == m.memberFacts.bridge },
	})
	if err != nil {
		return err
	}
	defer topic.Close()
	sub, err := topic.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Close()
	last := uint64(0)
	for {
		got, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if a := got.Value; a.Seq > last {
			last = a.Seq
			b.announced(m, a)
		}
	}
}
