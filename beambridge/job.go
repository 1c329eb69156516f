package beambridge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// memberIs and memberWas are the states of a store.Member.
	memberIs  = "member"
	memberWas = "left"
	// lingering is how long an ended job is kept in memory: nodes hand in results for 10 minutes.
	lingering = 10 * time.Minute
	// mostEnded bounds the ended jobs in memory, ownAttempts the attempts that a job itself remembers: a bridge of
	// many short jobs must not keep each of them for as long as a few long ones.
	mostEnded   = 2000
	ownAttempts = 64
	// lateReceipts is how long an ended job's reservation waits for the receipts of what ran to the end.
	lateReceipts = 15 * time.Second
)

// job is one in memory: everything that the engine needs to run it.
type job struct {
	row     store.Job
	spec    protocol.Job // with defaults
	terms   protocol.JobTerms
	inputs  cluster.Inputs
	calls   *callBook   // of an open job, else nil
	want    cluster.Job // what selection asks of nodes
	class   string      // what the predictor knows it by
	tracker *cluster.Tracker
	topic   *jobTopic

	members map[protocol.PeerID]*store.Member
	joined  map[protocol.PeerID]bool // members that this tracker knows
	lines   map[protocol.PeerID]*line
	faults  map[uint64][]fault // by first input of open chunks: ends that are the job's until somebody does better
	// compared are the attempts whose results wait for one another, by first input.
	compared map[uint64][]*attempt
	plan     planRecord

	placing  bool
	fleet    uint64 // what the engine's fleet was when it was placed last
	placed   time.Time
	refused  map[protocol.PeerID]decline // nodes that declined are not asked before
	deadline time.Time
	lonely   time.Time // since when no member was heard of; zero while there is one

	leases   uint64     // attempts in all
	own      []*attempt // the first of them, to be forgotten with the job
	retried  map[uint64]protocol.RetriedChunk
	over     cluster.JobState // final state of the tracker, before its results are merged
	merging  bool
	early    cid.Cid // its merged outputs, where one result is all there is
	earlyOf  cid.Cid // that result's tree
	released bool    // its reservation was given back
	reserves int     // how often credit was set aside for it
	endedAt  time.Time
	open     int // attempts that have ended or were stopped, whose node has not reported yet

	announced uint64 // of the newest announcement
	// hungry are the members that got less than they claimed and could hold more: only for them is anything
	// announced, for the others ask by themselves.
	hungry  map[protocol.PeerID]struct{}
	seq     uint64
	changed chan struct{} // closed at the next change
}

// planRecord is what is kept of a selection: row Plan.
type planRecord struct {
	Explanation cluster.Explanation `json:"explanation"`
	Copies      int                 `json:"copies"`
	Explore     float64             `json:"explore,omitempty"`
	Makespan    float64             `json:"makespan_s,omitempty"`
	// Before is each member's score when it joined, After at the job's end. Their keys are the IDs' text: as keys,
	// JSON takes the bytes of a string type as they are.
	Before  map[string]float64      `json:"before,omitempty"`
	After   map[string]float64      `json:"after,omitempty"`
	Retried []protocol.RetriedChunk `json:"retried,omitempty"`
}

// attempt is a lease as the bridge witnessed it.
type attempt struct {
	job   *job
	row   store.Lease
	chunk protocol.ChunkID
	root  cid.Cid // of its outputs, once it ended well
	// accounted says that its result is the chunk's.
	accounted bool
	sign      []byte // the hash of the envelope that said so
	asked     bool   // a copy that the user asked for
	extra     bool   // a copy that the bridge wants for itself
	// unbilled is settled slot time of which nobody knows yet who pays: milliseconds.
	unbilled int64
	final    bool // its end was judged: what receipts still bring goes to payer at once
	payer    settlement.Payer
	stopped  bool // its node was asked to end it and owes a report
	told     bool // its node has reported the end
	// held is the observation that was made when it was given up, to be taken back if its node returns.
	held *reputation.Observation
}

// use is settled slot time.
type use struct {
	records                 uint64
	preparing, working, gpu int64
}

// line is what one node does for one job: sums and what was charged.
type line struct {
	job     *job
	node    protocol.PeerID
	ask     int64
	rate    int64
	use     use
	billed  int64 // ms that the user pays
	charged int64
	// chargedAt is when it was charged last.
	chargedAt time.Time
	bridge    int64 // ms that the bridge pays
	expense   int64 // and what was posted for it
	chunks    uint64
	failed    uint64
	cpu       int64 // ms as the node says
	run       int64 // µs
	blocks    uint64
	ended     uint64 // runs in run
}

// fault is an end that the job is blamed for, as long as nobody else completes the chunk.
type fault struct {
	node   protocol.PeerID
	group  string
	lease  protocol.LeaseID
	reason protocol.Reason
	cpu    float64
}

func (j *job) id() protocol.JobID { return j.row.ID }

// changedTo wakes who waits for a change.
func (j *job) changedTo(version uint64) {
	j.seq = version
	close(j.changed)
	j.changed = make(chan struct{})
}

// line returns a node's line.
func (j *job) line(node protocol.PeerID) *line {
	l := j.lines[node]
	if l == nil {
		l = &line{job: j, node: node}
		j.lines[node] = l
	}
	return l
}

// left is what of the reservation is not spent.
func (j *job) left() int64 { return max(0, j.row.Reserved-j.row.Spent) }

// writePlan puts the record of the selection into the row.
func (j *job) writePlan() {
	raw, err := json.Marshal(j.plan)
	if err == nil { // maps of plain values
		j.row.Plan = raw
	}
}

// apply takes over what a call of the job's tracker did.
func (t *turn) apply(j *job, fx cluster.Effects) {
	for i := range fx.Leases {
		t.lease(j, &fx.Leases[i])
	}
	for i := range fx.Chunks {
		t.chunk(j, &fx.Chunks[i])
	}
	for _, l := range fx.Leases {
		if !l.State.Live() && l.State != cluster.AttemptHeld {
			t.ends = append(t.ends, ending{a: t.e.attempts[l.ID]})
		}
	}
	for i := range fx.Chunks {
		if c := &fx.Chunks[i]; c.State != cluster.ChunkOpen {
			t.ends = append(t.ends, ending{job: j, first: c.First, winner: t.e.attempts[c.Winner]})
		}
	}
	for _, s := range fx.Stops {
		t.stop(s)
	}
	if fx.State != "" {
		t.state(j, fx)
	}
	if fx.Pending {
		t.announce[j] = struct{}{}
	}
	if len(fx.Leases)+len(fx.Chunks) > 0 || fx.State != "" {
		t.touched[j] = struct{}{}
	}
}

// lease notes a lease's row; the attempt is made with the lease.
func (t *turn) lease(j *job, r *cluster.LeaseRow) {
	a := t.e.attempts[r.ID]
	if a == nil {
		a = &attempt{job: j, chunk: protocol.NewChunkID(j.id(), r.First, r.End), row: store.Lease{Granted: t.now}}
		t.e.attempts[r.ID] = a
		if len(j.own) < ownAttempts {
			j.own = append(j.own, a)
		}
		j.leases++
		if j.row.Started.IsZero() {
			j.row.Started = t.now
			t.save(j)
		}
		if r.Fence > 1 {
			t.retake(j, r)
		}
		a.asked, a.extra = r.Copy && j.spec.Policy.Redundancy > 1, r.Copy && j.spec.Policy.Redundancy <= 1
	}
	w := r.Worker
	a.row.ID, a.row.Job, a.row.First, a.row.End, a.row.Fence, a.row.Copy = r.ID, j.id(), r.First, r.End, r.Fence, r.Copy
	a.row.Node, a.row.Group, a.row.Site, a.row.Wallet, a.row.Slots, a.row.Probation = w.Peer, w.Group, w.Site, w.Wallet, w.Slots, w.Probation
	a.row.SetSeq, a.row.State, a.row.Reason, a.row.Exit, a.row.Digest, a.row.Text = r.SetSeq, string(r.State), r.Reason, r.Exit, r.Digest, r.Text
	if !r.State.Live() && a.row.Ended.IsZero() {
		a.row.Ended = t.now
		t.e.ended = append(t.e.ended, a)
	}
	if r.State == cluster.AttemptHeld {
		j.compared[r.First] = append(j.compared[r.First], a)
	}
	t.leases[leaseKey{j.id(), r.First, r.Fence}] = a.row
	t.must = true
}

// retake remembers that a chunk was leased again, for people.
func (t *turn) retake(j *job, r *cluster.LeaseRow) {
	x := protocol.RetriedChunk{First: r.First, End: r.End, Fence: r.Fence}
	if old, ok := j.retried[r.First]; ok {
		x.LostNode, x.Reason = old.LostNode, old.Reason
	}
	if len(j.retried) < 1000 || j.retried[r.First].Fence > 0 {
		j.retried[r.First] = x
	}
}

// chunk notes a chunk's row, and with the end of a chunk its one accounted result.
func (t *turn) chunk(j *job, c *cluster.ChunkRow) {
	t.must = true
	t.chunks[chunkKey{j.id(), c.First}] = store.Chunk{
		Job: j.id(), First: c.First, End: c.End, State: string(c.State), Fence: c.Fence, Want: c.Want, Winner: c.Winner, Reason: c.Reason, Text: c.Text,
	}
	if c.State == cluster.ChunkFailed && j.calls != nil {
		t.failedCalls(j, cluster.Range{First: c.First, End: c.End}, c.Reason, c.Text)
	}
	if c.State != cluster.ChunkDone {
		return
	}
	if a := t.e.attempts[c.Winner]; a != nil {
		root := a.root
		if !root.Defined() { // its result was taken before a restart: the digest names it
			root, _ = cid.Decode(a.row.Digest)
		}
		a.accounted = true
		j.line(a.row.Node).chunks++
		t.lines[j.line(a.row.Node)] = struct{}{}
		t.results = append(t.results, store.Result{
			Job: j.id(), First: c.First, End: c.End, Lease: c.Winner, Fence: a.row.Fence, Node: a.row.Node, Root: root, Signed: a.sign,
		})
	}
}

// stop asks a node to end a lease, at once and with every set until it has.
func (t *turn) stop(s cluster.Stop) {
	n := t.e.node(s.Node)
	if _, told := n.stops[s.Lease]; !told || s.Reason != protocol.ReasonSuperseded { // the first reason is the cause
		n.stops[s.Lease] = stopping{s.Fence, s.Reason, t.now}
	}
	t.push[s.Node] = struct{}{}
	if a := t.e.attempts[s.Lease]; a != nil && !a.stopped && !a.told {
		a.job.open++
		a.stopped = true
	}
}

// state follows the tracker's job to a new state. A done job is only stored as done with its merged result: a
// crash in between merges again.
func (t *turn) state(j *job, fx cluster.Effects) {
	if !fx.State.Final() {
		j.row.State = string(fx.State)
		if fx.State == cluster.JobRunning {
			j.row.Reason, j.row.Text = protocol.ReasonNone, ""
		}
		t.save(j)
		return
	}
	j.over, j.endedAt = fx.State, t.now
	if j.calls != nil {
		t.orphanCalls(j, cmp.Or(fx.Reason, protocol.ReasonCancelled), fx.Text)
	}
	for _, l := range j.lines {
		t.lines[l] = struct{}{} // what is owed is charged with the end
	}
	if fx.State != cluster.JobDone {
		j.row.State, j.row.Reason, j.row.Text, j.row.Ended = string(fx.State), fx.Reason, endText(j, fx), t.now
	}
	t.save(j)
	for id := range j.members {
		t.push[id] = struct{}{}
	}
	if fx.State == cluster.JobDone && !j.merging && t.isAll(j) {
		t.closing = append(t.closing, j)
		t.then(func(err error) {
			if err == nil {
				t.e.bridge.end(j, fx)
			}
		})
	} else if !j.merging {
		j.merging = true
		t.then(func(err error) {
			if err == nil {
				t.e.bridge.end(j, fx)
			}
		})
	}
}

// isAll says that the one result that counts is the one whose outputs need no merging.
func (t *turn) isAll(j *job) bool {
	if j.calls != nil {
		return true // each call has a result of its own
	}
	if !j.early.Defined() || len(t.results) == 0 {
		return false
	}
	r := &t.results[len(t.results)-1]
	return r.Job == j.id() && r.First == 0 && r.End == j.row.Inputs && r.Root == j.earlyOf
}

// endText says why a job failed or was cancelled.
func endText(j *job, fx cluster.Effects) string {
	r := fx.Reason
	p := j.tracker.Progress()
	text := fx.Text
	if text == "" && r != protocol.ReasonNone {
		text = r.Text()
	}
	if fx.State == cluster.JobFailed && p.ChunksFailed > 0 {
		return fmt.Sprintf("%d of %d inputs failed: %s", p.InputsFailed, p.Inputs, text)
	}
	return text
}

// clusterWorker is the tracker's view of a member.
func clusterWorker(m *store.Member) cluster.Worker {
	return cluster.Worker{Peer: m.Node, Group: m.Group, Site: m.Site, Wallet: m.Wallet, Slots: m.Slots, Probation: m.Probation}
}
