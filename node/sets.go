package node

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// answerPatience is how long a lease set that names an unknown lease waits for the answer to a claim that is
// under way: most likely the grant is in it, and a report without the lease would say that it is lost.
const answerPatience = time.Second

// desired is a lease set as the book takes it.
type desired struct {
	seq       uint64
	bridgeMS  int64
	leases    map[protocol.LeaseID]*pb.DesiredLease
	jobs      map[protocol.JobID]bool // with whether chunks may be claimed
	reconcile bool
}

func readSet(m *pb.LeaseSet) (desired, error) {
	d := desired{
		seq: m.GetSeq(), bridgeMS: m.GetBridgeMs(), reconcile: m.GetReconcile(),
		leases: make(map[protocol.LeaseID]*pb.DesiredLease, len(m.GetLeases())), jobs: make(map[protocol.JobID]bool, len(m.GetJobs())),
	}
	for _, l := range m.GetLeases() {
		if len(l.GetLeaseId()) != 16 {
			return d, p2p.Errorf(p2p.CodeMalformed, "a lease ID has %d bytes, want 16", len(l.GetLeaseId()))
		}
		d.leases[protocol.LeaseID(l.GetLeaseId())] = l
	}
	for _, j := range m.GetJobs() {
		if len(j.GetJobId()) != 16 {
			return d, p2p.Errorf(p2p.CodeMalformed, "a job ID has %d bytes, want 16", len(j.GetJobId()))
		}
		d.jobs[protocol.JobID(j.GetJobId())] = j.GetClaim()
	}
	return d, nil
}

// clerk answers lease streams.
type clerk struct {
	gate *gate
	book *book
	boot []byte // of this process
	// state is the node's word for itself.
	state func() State
}

// serve reads the sets of one bridge and answers each with a report.
func (c *clerk) serve(ctx context.Context, f *p2p.Frames) error {
	for {
		m := &pb.LeaseSet{}
		if err := f.Read(m); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil || p2p.CodeOf(err) != 0 {
				return nil
			}
			return err
		}
		right, err := c.gate.any(f.Peer(), protocol.AbilityJobSubmit)
		if err != nil {
			return err
		}
		set, err := readSet(m)
		if err != nil {
			return err
		}
		report := c.book.applySet(ctx, f.Peer(), &right, set)
		report.State, report.NodeMs, report.Boot = string(c.state()), c.book.now().UnixMilli(), c.boot
		if err := f.Write(report); err != nil {
			return err
		}
	}
}

// applySet brings what the node holds in line with what a bridge wants, and reports what it then holds. An older
// set than the last one changes nothing (execution.md 8).
func (b *book) applySet(ctx context.Context, from protocol.PeerID, right *right, set desired) *pb.LeaseReport {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := b.bridgeOf(from)
	now := b.now()
	br.heard = now
	br.agree(b.diary, pair{right.network, from}, right.Grant)
	br.meter.Hear(now, time.UnixMilli(set.bridgeMS))
	if br.tries > 0 { // it is back
		br.tries, br.after = 0, time.Time{}
		b.freshen(br, now)
	}
	b.awaitGrants(ctx, br, set)
	report := &pb.LeaseReport{Seq: set.seq}
	if set.seq >= br.set {
		br.set = set.seq
		b.applyJobs(br, set, report)
		b.applyLeases(br, set)
	}
	for _, l := range sorted(b.heldBy(br)) {
		if l.machine.State == protocol.LeaseEnded {
			continue
		}
		report.Leases = append(report.Leases, &pb.ObservedLease{
			LeaseId: l.ID[:], JobId: l.Job[:], Chunk: &pb.ChunkRange{ChunkId: l.Chunk.ID[:], First: l.Chunk.First, End: l.Chunk.End},
			Fence: l.Fence, State: pb.LeaseState(l.machine.State),
		})
	}
	report.FreeSlots = uint32(b.free())
	return report
}

// freshen makes results that wait for a bridge's return go out at once; b.mu is held.
func (b *book) freshen(br *bridge, now time.Time) {
	for _, l := range b.heldBy(br) {
		if l.end != nil && l.end.ready {
			l.end.after = now
		}
	}
	b.nudge(br)
	poke(br.heavy)
}

// awaitGrants waits for the answer to a claim under way when a set names a lease that is not known yet; b.mu is
// held, and released while it waits.
func (b *book) awaitGrants(ctx context.Context, br *bridge, set desired) {
	unknown := func() bool {
		for id, l := range set.leases {
			if b.leases[id] == nil && l.GetDesired() == pb.Desired_DESIRED_RUN {
				return true
			}
		}
		return false
	}
	if !br.asking || !unknown() {
		return
	}
	late := false
	wake := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		late = true
		br.quiet.Broadcast()
	}
	timer := time.AfterFunc(answerPatience, wake)
	defer timer.Stop()
	defer context.AfterFunc(ctx, wake)()
	for br.asking && !late && unknown() {
		br.quiet.Wait()
	}
}

// applyJobs joins and leaves jobs; b.mu is held.
func (b *book) applyJobs(br *bridge, set desired, report *pb.LeaseReport) {
	for job, claim := range set.jobs {
		m := b.members[job]
		if m == nil || m.bridge != br || m.left {
			if m = b.join(br, job, set.seq); m == nil {
				report.UnknownJobs = append(report.UnknownJobs, job[:])
				continue
			}
		}
		if claim && !m.claim {
			m.ready = true
			b.nudge(br)
		}
		m.claim = claim
	}
	if set.reconcile { // the bridge has just come back and may not remember all
		return
	}
	for job, m := range b.members {
		if _, named := set.jobs[job]; m.bridge == br && !named && m.joined < set.seq {
			b.leave(m)
		}
	}
}

// join makes the node a member of a job that it has offered itself for; b.mu is held.
func (b *book) join(br *bridge, job protocol.JobID, seq uint64) *member {
	o, ok := b.offers[job]
	if m := b.members[job]; m != nil && m.bridge != br { // another bridge's job of the same name: nobody's accident
		return nil
	}
	if !ok || o.bridge != br.id || !b.now().Before(o.expires) {
		return nil
	}
	e, err := memberEntry(&o.memberFacts)
	if err != nil {
		b.log.Error("terms of a job cannot be kept", "job", job, "err", err)
		return nil
	}
	delete(b.offers, job)
	b.diary.members[job] = o.memberFacts
	b.paper.Append(e) // durable with the first grant
	if m := b.members[job]; m != nil {
		m.left, m.joined, m.memberFacts, m.backend, m.ready = false, seq, o.memberFacts, o.backend, true
		return m
	}
	b.log.Info("joined a job", "job", job, "name", o.terms.Name, "slots", o.slots, "bridge", br.id)
	return b.addMember(o.memberFacts, o.backend, seq)
}

// addMember begins to live a membership; b.mu is held.
func (b *book) addMember(f memberFacts, backend *offered, seq uint64) *member {
	br := b.bridgeOf(f.bridge)
	br.agree(b.diary, f.pair, f.grant)
	m := &member{memberFacts: f, bridge: br, since: b.now(), joined: seq, ready: true, backend: backend, stage: staging{turn: make(chan struct{}, 1)}}
	b.members[f.terms.Job] = m
	m.cancel = b.spawn(func(ctx context.Context) { b.follow(ctx, m) })
	b.nudge(br)
	b.changed()
	return m
}

// leave ends a membership: nothing more is claimed, and it is forgotten with its last lease; b.mu is held.
func (b *book) leave(m *member) {
	m.left, m.claim = true, false
	b.dropMember(m)
}

// applyLeases renews what is named and stops what is not; b.mu is held.
func (b *book) applyLeases(br *bridge, set desired) {
	now := b.now()
	for _, l := range b.heldBy(br) {
		want := set.leases[l.ID]
		switch {
		case want == nil && (set.reconcile || set.seq < l.setSeq):
		case want == nil:
			b.stop(l, protocol.ReasonFenced, 0)
		case want.GetFence() > l.Fence:
			b.stop(l, protocol.ReasonFenced, 0)
		case want.GetDesired() == pb.Desired_DESIRED_STOP:
			b.stop(l, protocol.Reason(want.GetReason()).Known(), time.Duration(want.GetGraceMs())*time.Millisecond)
		case want.GetDesired() == pb.Desired_DESIRED_RUN:
			l.until = now.Add(l.TTL)
			b.apply(l, machine.Renew)
		}
	}
}
