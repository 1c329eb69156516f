package beambridge

import (
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// leaseTTL is a lease's life without renewal, setEvery how often it is renewed (scheduling.md 4).
	leaseTTL = 6 * time.Second
	setEvery = 2 * time.Second
	// memberSilence is how long a member may be silent before it counts as gone from the cluster.
	memberSilence = 12 * time.Second
	// stopGrace is how long a stopped chunk has to end before it is killed (execution.md 11).
	stopGrace = 10 * time.Second
	// stopFor is how long a stop is repeated to a node that does not answer.
	stopFor = time.Minute
	// presenceGap is how far apart two signs of life may be for the time between them to count as presence: 3
	// heartbeats (settlement.md 2).
	presenceGap = 90 * time.Second
	// presences bounds the remembered stretches of a node's presence.
	presences = 64
	// answerEvery spaces observations of responsiveness: the book takes 20 an hour.
	answerEvery = 3 * time.Minute
)

// node is what the engine knows of one node.
type node struct {
	id     protocol.PeerID
	link   *link
	up     bool // the lease stream is open
	fresh  bool // the node has not reported since this process began: sets are for reconciling
	jobs   map[*job]struct{}
	stops  map[protocol.LeaseID]stopping
	sent   uint64 // number of the newest set
	sentAt time.Time
	heard  time.Time // the newest sign of life over the lease stream
	since  time.Time // the first sign of life in this process
	spans  []span    // presence, oldest first
	rtt    time.Duration
	busy   int // live leases, over all jobs
	free   int // slots free as it reports
	state  string
	boot   string
	judged time.Time // when its answers were observed last

	// from the directory
	ready  bool // READY or BUSY there
	anchor bool
	group  string
	model  string
	ask    int64 // micro-USD per slot-hour
	cores  int
}

// span is a stretch of presence.
type span struct{ from, to time.Time }

// stopping is a stop that its node has not carried out yet.
type stopping struct {
	fence  uint64
	reason protocol.Reason
	at     time.Time
}

// node finds or makes the entry of a node.
func (e *engine) node(id protocol.PeerID) *node {
	n := e.nodes[id]
	if n == nil {
		n = &node{id: id, fresh: true, jobs: map[*job]struct{}{}, stops: map[protocol.LeaseID]stopping{}, model: noModel}
		e.nodes[id] = n
	}
	return n
}

func (e *engine) isAnchor(id protocol.PeerID) bool {
	n := e.nodes[id]
	return n != nil && n.anchor
}

func (e *engine) model(id protocol.PeerID) string {
	if n := e.nodes[id]; n != nil {
		return n.model
	}
	return noModel
}

// busy counts a node's live leases.
func (e *engine) busy(id protocol.PeerID, by int) {
	if n := e.nodes[id]; n != nil {
		n.busy = max(0, n.busy+by)
	}
}

// jobsOf are the jobs that a node works for.
func (e *engine) jobsOf(id protocol.PeerID) (out []*job) {
	if n := e.nodes[id]; n != nil {
		for j := range n.jobs {
			out = append(out, j)
		}
	}
	return out
}

// alive notes a sign of life.
func (n *node) alive(now time.Time) {
	if n.since.IsZero() {
		n.since = now
	}
	if k := len(n.spans) - 1; k >= 0 && now.Sub(n.spans[k].to) <= presenceGap {
		n.spans[k].to = maxTime(n.spans[k].to, now)
		return
	}
	n.spans = append(n.spans, span{now, now})
	if len(n.spans) > presences {
		n.spans = slices.Delete(n.spans, 0, len(n.spans)-presences)
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// present says that the node counts as heard of in [from, to): signs of life not further apart than three
// heartbeats.
func (n *node) present(from, to time.Time) bool {
	for _, s := range n.spans {
		if !from.Before(s.from.Add(-presenceGap)) && !to.After(s.to.Add(presenceGap)) {
			return true
		}
	}
	return false
}

// anyIn says that there was a sign of life within a time.
func (n *node) anyIn(from, to time.Time) bool {
	return slices.ContainsFunc(n.spans, func(s span) bool { return s.from.Before(to) && !s.to.Before(from) })
}

// wanted says that a lease stream to the node is needed whatever the directory says.
func (n *node) wanted() bool { return len(n.jobs) > 0 || len(n.stops) > 0 }

// sendSet hands a node what it should hold now. Sets are built from committed state alone.
func (e *engine) sendSet(id protocol.PeerID, now time.Time) {
	n := e.nodes[id]
	if n == nil {
		return
	}
	e.linkTo(n)
	if !n.up {
		return // the set goes out when the stream opens
	}
	e.setSeq++
	set := &pb.LeaseSet{Seq: e.setSeq, BridgeMs: now.UnixMilli(), Reconcile: n.fresh}
	for j := range n.jobs {
		if m := j.members[id]; m != nil && m.State == memberIs && j.over == "" {
			set.Jobs = append(set.Jobs, &pb.JobMembership{JobId: j.row.ID[:], Claim: true})
		}
		for _, l := range j.tracker.Leases(id) {
			set.Leases = append(set.Leases, &pb.DesiredLease{LeaseId: l.ID[:], Fence: l.Fence, Desired: pb.Desired_DESIRED_RUN})
		}
	}
	for lease, s := range n.stops {
		if now.Sub(s.at) > stopFor {
			delete(n.stops, lease)
			continue
		}
		set.Leases = append(set.Leases, &pb.DesiredLease{
			LeaseId: lease[:], Fence: s.fence, Desired: pb.Desired_DESIRED_STOP, GraceMs: uint32(stopGrace.Milliseconds()), Reason: uint32(s.reason),
		})
	}
	n.sent, n.sentAt = set.Seq, now
	n.link.send(set)
}

// reported takes a node's answer to a lease set.
func (t *turn) reported(id protocol.PeerID, r *pb.LeaseReport, rtt time.Duration) {
	e := t.e
	n := e.node(id)
	n.alive(t.now)
	n.heard, n.fresh, n.free = t.now, false, int(r.GetFreeSlots())
	if rtt > 0 {
		t.answered(n, rtt)
	}
	if boot := string(r.GetBoot()); boot != n.boot {
		n.boot = boot
		e.bridge.auth.forget(id)
	}
	held := map[protocol.JobID][]cluster.Observed{}
	named := map[protocol.LeaseID]bool{}
	for _, o := range r.GetLeases() {
		if len(o.GetLeaseId()) != 16 || len(o.GetJobId()) != 16 {
			continue
		}
		lease, jobID := protocol.LeaseID(o.GetLeaseId()), protocol.JobID(o.GetJobId())
		named[lease] = true
		held[jobID] = append(held[jobID], cluster.Observed{Lease: lease, Fence: o.GetFence(), Event: observed(o.GetState())})
		if a := e.attempts[lease]; a != nil && a.row.Node == id {
			t.returned(a)
		}
	}
	for lease := range n.stops {
		if !named[lease] {
			delete(n.stops, lease)
		}
	}
	unknown := map[protocol.JobID]bool{}
	for _, raw := range r.GetUnknownJobs() {
		if len(raw) == 16 {
			unknown[protocol.JobID(raw)] = true
		}
	}
	for j := range n.jobs {
		t.reportedOf(j, n, r, held[j.id()], unknown[j.id()])
	}
	t.standing(n, r.GetState())
}

// reportedOf takes what a node says of one job.
func (t *turn) reportedOf(j *job, n *node, r *pb.LeaseReport, held []cluster.Observed, unknown bool) {
	if m := j.members[n.id]; m != nil && m.State == memberIs && j.over == "" {
		switch {
		case unknown:
			t.leave(j, n.id) // it has lost the terms; it is asked again
		case !j.joined[n.id]:
			j.joined[n.id] = true
			t.apply(j, j.tracker.Join(clusterWorker(m), t.now))
		}
	}
	t.apply(j, j.tracker.Report(n.id, r.GetSeq(), held, t.now))
	if j.over != "" && len(held) == 0 {
		delete(n.jobs, j)
	}
}

// standing follows what a node says of its readiness.
func (t *turn) standing(n *node, state string) {
	n.state = state
	switch state {
	case "DRAINING", "PAUSED", "LEAVING":
		for j := range n.jobs {
			if m := j.members[n.id]; m != nil && m.State == memberIs && j.over == "" {
				t.leave(j, n.id)
			}
		}
	}
}

// answered notes how fast a node answers.
func (t *turn) answered(n *node, rtt time.Duration) {
	if n.rtt == 0 {
		n.rtt = rtt
	} else {
		n.rtt += (rtt - n.rtt) / 4
	}
	t.e.bridge.rtts.Store(n.id, n.rtt)
	if t.now.Sub(n.judged) >= answerEvery {
		n.judged = t.now
		t.observe(reputation.FromAnswer(n.id, rtt, t.now))
	}
}

func observed(s pb.LeaseState) cluster.AttemptEvent {
	switch s {
	case pb.LeaseState_LEASE_STATE_STAGING:
		return cluster.AttemptStage
	case pb.LeaseState_LEASE_STATE_RUNNING, pb.LeaseState_LEASE_STATE_STOPPING, pb.LeaseState_LEASE_STATE_ORPHANED:
		return cluster.AttemptRun
	case pb.LeaseState_LEASE_STATE_PUBLISHING, pb.LeaseState_LEASE_STATE_ENDED:
		return cluster.AttemptPublish
	}
	return cluster.AttemptRenew
}

// leave takes a node out of a job's cluster: it gets nothing more, what it holds it may finish.
func (t *turn) leave(j *job, id protocol.PeerID) {
	m := j.members[id]
	if m == nil || m.State != memberIs {
		return
	}
	m.State = memberWas
	delete(j.joined, id)
	delete(j.hungry, id)
	t.members = append(t.members, *m)
	t.touched[j] = struct{}{}
	t.push[id] = struct{}{}
	t.apply(j, j.tracker.Leave(id))
	if n := t.e.nodes[id]; n != nil && len(j.tracker.Leases(id)) == 0 {
		delete(n.jobs, j)
	}
	t.then(func(err error) {
		if err == nil {
			j.guests().remove(id)
			t.e.bridge.reads.drop(j, id)
			t.e.replace(j, t.now)
		}
	})
}

// member makes a node a member of a job's cluster.
func (t *turn) member(j *job, m store.Member) {
	row := m
	row.State = memberIs
	j.members[m.Node] = &row
	t.members = append(t.members, row)
	j.joined[m.Node] = true
	t.e.node(m.Node).jobs[j] = struct{}{}
	t.apply(j, j.tracker.Join(clusterWorker(&row), t.now))
	t.push[m.Node] = struct{}{}
	t.touched[j] = struct{}{}
}
