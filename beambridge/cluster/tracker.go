package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of a Tracker.
var (
	// ErrNotMember means that a node claims from a job whose cluster it does not belong to.
	ErrNotMember = errors.New("cluster: node is no member of the job's cluster")
	// ErrBadConfig means that a Config holds a value that cannot work; the text names the field.
	ErrBadConfig = errors.New("cluster: bad config")
	// ErrBadRows means that stored rows contradict one another.
	ErrBadRows = errors.New("cluster: stored rows contradict one another")
)

// Config is what a Tracker knows of its job and how patient it is.
type Config struct {
	Job     protocol.JobID // Job is the job.
	Inputs  uint64         // Inputs is the length of the input sequence so far.
	Open    bool           // Open says that more inputs may come (Extend) until Seal.
	Chunk   uint64         // Chunk is the job file's size of a chunk; 0 lets Pace choose.
	Seconds float64        // Seconds is the predictor's run time per input; 0 is unknown and makes probes.
	Copies  int            // Copies is on how many independent groups a chunk has to agree; default 1.
	Retries int            // Retries is how often a chunk may be re-run; 0 means at most once, no copies either.
	Explore float64        // Explore is the part of chunks for newcomers, 0 none.
	Aim     float64        // Aim is as in Pace.
	Apart   bool           // Apart says that inputs are calls of their own: a failed chunk fails them, never the job.

	TTL            time.Duration // TTL of a lease without renewal; default 6 s, three renewals.
	Window         time.Duration // Window in which a restored lease, or one that may not be retried, is waited for; default 2 min.
	Limit          time.Duration // Limit is the longest run of one chunk; staging, publishing and waiting have limits of their own then. 0 is none.
	Backoff        time.Duration // Backoff before a node that was busy or refused is given more; default 1 s.
	LeasesPerSlot  int           // LeasesPerSlot bounds leases per node: one that runs and one that stages; default 2.
	Ahead          time.Duration // Ahead lets a slot have more, as many as its node runs in that time; default 100 ms.
	MostPerSlot    int           // MostPerSlot bounds those; default 64.
	AnnouncePer    int           // AnnouncePer bounds ready chunks per slot of the cluster; default 4.
	StragglerTimes float64       // StragglerTimes is how many medians of its siblings a chunk may run before it is copied; default 3.
	StragglerFloor time.Duration // StragglerFloor is what a chunk may always take before it is copied; default 1 s.
	CopyShare      float64       // CopyShare bounds straggler copies as a part of all chunks; default 0.1.
	HopelessAfter  int           // HopelessAfter is how many chunks may fail while none is done before the job fails; default 3.
}

// DefaultConfig returns the figures of scheduling.md 4 for a job of n inputs.
func DefaultConfig(job protocol.JobID, n uint64) Config {
	return Config{
		Job: job, Inputs: n, Copies: 1, Retries: 2, TTL: 6 * time.Second, Window: 2 * time.Minute, Backoff: time.Second,
		LeasesPerSlot: 2, Ahead: 100 * time.Millisecond, MostPerSlot: 64, AnnouncePer: 4, StragglerTimes: 3, StragglerFloor: time.Second,
		CopyShare: 0.1, HopelessAfter: 3,
	}
}

// Validate names the first field that cannot work, with ErrBadConfig.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"Copies: at least 1, at most 9", c.Copies >= 1 && c.Copies <= maxVotes},
		{"Retries: at least 0", c.Retries >= 0},
		{"Copies: with Retries 0 a chunk runs at most once, so 1", c.Retries > 0 || c.Copies == 1},
		{"Explore: 0..1", c.Explore >= 0 && c.Explore <= 1},
		{"Seconds: at least 0", c.Seconds >= 0},
		{"TTL: above 0", c.TTL > 0},
		{"Window: at least TTL", c.Window >= c.TTL},
		{"Limit: at least 0", c.Limit >= 0},
		{"Backoff: at least 0", c.Backoff >= 0},
		{"LeasesPerSlot: at least 1", c.LeasesPerSlot >= 1},
		{"Ahead: at least 0", c.Ahead >= 0},
		{"MostPerSlot: at least LeasesPerSlot", c.MostPerSlot >= c.LeasesPerSlot},
		{"AnnouncePer: at least 1", c.AnnouncePer >= 1},
		{"StragglerTimes: at least 1", c.StragglerTimes >= 1},
		{"StragglerFloor: at least 0", c.StragglerFloor >= 0},
		{"CopyShare: 0..1", c.CopyShare >= 0 && c.CopyShare <= 1},
		{"HopelessAfter: at least 1", c.HopelessAfter >= 1},
	} {
		if !f.ok {
			return fmt.Errorf("%w: %s", ErrBadConfig, f.name)
		}
	}
	return nil
}

// maxVotes bounds the copies of one chunk that may disagree (trust.md 8).
const maxVotes = 9

// MaxAnnounce is how many chunks one call of Announce names: what one gossip message carries.
const MaxAnnounce = protocol.MaxAnnounce

// Worker is a node that belongs to the job's cluster.
type Worker struct {
	Peer      protocol.PeerID // Peer is the node.
	Group     string          // Group is its operator; empty is an operator of its own.
	Site      string          // Site is where it stands; empty is unknown.
	Wallet    string          // Wallet is where its rewards go; empty is unknown.
	Slots     int             // Slots is how many chunks it runs at once, at least 1.
	Probation bool            // Probation says that it gets only Explore chunks, replicated.
}

// Lease is the right to run a chunk once, under a fence.
type Lease struct {
	ID      protocol.LeaseID // ID names the attempt.
	Chunk   protocol.ChunkID // Chunk is NewChunkID of the range.
	Range   Range            // Range are its inputs.
	Fence   uint64           // Fence grows by one per chunk with each lease of it, from 1.
	Attempt int              // Attempt counts the leases of the chunk, from 1.
	Copy    bool             // Copy says that another lease of the chunk is running and not made old by this one.
	Node    protocol.PeerID  // Node holds it.
	State   AttemptState     // State is where it stands.
}

// Ready is a chunk to announce.
type Ready struct {
	ID    protocol.ChunkID // ID is the chunk.
	Range Range            // Range are its inputs.
}

// Chunk states in rows.
const (
	ChunkOpen   ChunkState = "open"   // ChunkOpen: leased at least once and not ended.
	ChunkDone   ChunkState = "done"   // ChunkDone: its result is accounted.
	ChunkFailed ChunkState = "failed" // ChunkFailed: it ended for good without a result.
)

// ChunkState is how a chunk is stored.
type ChunkState string

// ChunkRow is a chunk to persist, keyed by First. A chunk that was never leased has no row: it is cut again.
type ChunkRow struct {
	First  uint64           // First is the first input; unique in a job.
	End    uint64           // End is the index after the last.
	State  ChunkState       // State is where it stands.
	Fence  uint64           // Fence is the highest that was given out.
	Want   int              // Want is how many copies have to agree.
	Winner protocol.LeaseID // Winner is the lease whose result counts, when done.
	Reason Reason           // Reason is the first cause, when failed.
	Text   string           // Text is its wording.
}

// LeaseRow is an attempt to persist, keyed by ID. Times are not part of it: after a restart every clock
// starts anew.
type LeaseRow struct {
	ID     protocol.LeaseID // ID names the attempt.
	First  uint64           // First and End are its chunk.
	End    uint64           // End is the index after the last input.
	Fence  uint64           // Fence is its number.
	Copy   bool             // Copy is as in Lease.
	Worker Worker           // Worker held it; its operator, site and wallet as they were then.
	SetSeq uint64           // SetSeq is the first lease set that holds it.
	State  AttemptState     // State is where it stands.
	Reason Reason           // Reason is how it ended.
	Exit   int32            // Exit is the exit code it ended with.
	Digest string           // Digest names its outputs, when held or done.
	Text   string           // Text is the first cause in words.
}

// Stop asks a node to end a lease.
type Stop struct {
	Node   protocol.PeerID  // Node holds it.
	Lease  protocol.LeaseID // Lease is to be stopped.
	Fence  uint64           // Fence is its number.
	Reason Reason           // Reason is why: superseded, fenced, cancelled, stuck and so on.
}

// Effects are what a call did: rows that have to be committed in one transaction before Stops are sent or
// any answer leaves.
type Effects struct {
	Chunks  []ChunkRow // Chunks are to be inserted or replaced by First.
	Leases  []LeaseRow // Leases are to be inserted or replaced by ID.
	State   JobState   // State is the job's new state; empty when it did not change.
	Reason  Reason     // Reason goes with a failed or cancelled State.
	Text    string     // Text is the reason for people.
	Stops   []Stop     // Stops are to be sent after the commit.
	Pending bool       // Pending says that chunks are ready that Announce has not named yet.
}

// worker is a member with what it holds.
type worker struct {
	Worker
	member    bool
	held      int       // live leases that are not suspect
	notBefore time.Time // busy or refusing until then
	faults    int       // attempts in a row that ended by its own fault
	seen      time.Time
	seconds   float64 // EWMA of run seconds per input; 0 unknown
	chunk     float64 // the same per chunk
	live      []*lease
}

// failure is an ended attempt that counts against its chunk.
type failure struct {
	node   protocol.PeerID
	group  string
	reason Reason
	exit   int32
	job    bool
}

// chunk is one that was cut and has not ended.
type chunk struct {
	r         Range
	fence     uint64
	want      int
	explore   bool // one newcomer among its copies, not more
	queued    bool
	prev      *chunk // neighbours in the ready queue
	next      *chunk
	announced bool
	all       []*lease // every attempt, for fences
	failures  []failure
	lapses    int // suspect leases, each counted as a fault unless it comes back
	first     Reason
	text      string
}

// lease is an attempt in memory.
type lease struct {
	LeaseRow
	chunk   *chunk
	expires time.Time
	since   time.Time // running since, as far as known
	giveUp  time.Time
	heard   bool      // the node was heard to hold it
	began   bool      // the node was heard to run it
	phase   int       // the furthest that its node reported, as phaseRank orders
	phased  time.Time // since when, or since it waits at the head of what its node holds
}

// Tracker is one job's dispatcher: who may run what under which fence, and what each end means. Its memory
// is what is announced and leased, not what is done. It is not safe for concurrent use; each call's Effects
// have to be committed before the next call's answer leaves, and when a commit fails the Tracker is to be
// thrown away and restored from the rows.
type Tracker struct {
	cfg   Config
	newID func() protocol.LeaseID
	state JobState

	cutter *Cutter
	total  uint64
	open   bool
	done   RangeSet
	failed RangeSet

	chunks  map[uint64]*chunk // by first input; cut and not ended
	ready   queue
	fresh   []*chunk // ready and not announced, in order; entries may be stale
	leases  map[protocol.LeaseID]*lease
	live    []*lease // in order of grants, compacted by Expire
	swept   bool     // false until the first Expire has looked at what was restored
	workers map[protocol.PeerID]*worker
	slots   int
	members int

	nDone, nFailed, nCut, nCopies, nExplored int
	cause                                    Reason
	causeText                                string
	samples                                  []float64 // ring of the last 256 run seconds per input
	nSamples                                 int
	slowest                                  float64
}

// NewTracker returns the dispatcher of a fresh job in state pending; newID makes lease IDs. It returns
// ErrBadConfig.
func NewTracker(cfg Config, newID func() protocol.LeaseID) (*Tracker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Tracker{
		cfg: cfg, newID: newID, state: JobPending, cutter: NewCutter(cfg.Inputs, nil), total: cfg.Inputs, open: cfg.Open,
		chunks: map[uint64]*chunk{}, leases: map[protocol.LeaseID]*lease{}, workers: map[protocol.PeerID]*worker{}, slowest: cfg.Seconds,
	}, nil
}

// State returns where the job stands.
func (t *Tracker) State() JobState { return t.state }

// Advance applies an event that the bridge knows of (JobSelect, JobPlaced, JobStarved). It returns
// ErrBadTransition.
func (t *Tracker) Advance(e JobEvent) (Effects, error) {
	var fx Effects
	err := t.event(e, &fx)
	if err == nil {
		t.finish(&fx)
	}
	return fx, err
}

func (t *Tracker) event(e JobEvent, fx *Effects) error {
	next, err := t.state.Next(e)
	if err != nil {
		return fmt.Errorf("job %s: %w", t.cfg.Job, err)
	}
	if next != t.state {
		t.state, fx.State = next, next
	}
	return nil
}

// Join adds a node to the cluster or changes its terms; a selecting or waiting job runs. A pending one has to
// be told JobSelect first.
func (t *Tracker) Join(w Worker, now time.Time) Effects {
	var fx Effects
	if t.state.Final() {
		return fx
	}
	w.Slots = max(1, w.Slots)
	k := t.worker(w)
	if k.member {
		t.slots -= k.Slots
	} else {
		t.members++
	}
	k.Worker, k.member, k.seen = w, true, now
	t.slots += w.Slots
	if t.state == JobSelecting || t.state == JobWaiting {
		_ = t.event(JobPlaced, &fx) // both states take it
	}
	t.finish(&fx)
	fx.Pending = t.pending()
	return fx
}

// Leave takes a node out of the cluster: it gets nothing more, what it holds it may finish.
func (t *Tracker) Leave(peer protocol.PeerID) Effects {
	var fx Effects
	if k := t.workers[peer]; k != nil && k.member {
		k.member = false
		t.slots -= k.Slots
		t.members--
		if t.members == 0 && t.state == JobRunning {
			_ = t.event(JobStarved, &fx) // running takes it
		}
	}
	return fx
}

// worker finds or makes the entry of a node; leases restored before their node joins need one too.
func (t *Tracker) worker(w Worker) *worker {
	k := t.workers[w.Peer]
	if k == nil {
		k = &worker{Worker: w}
		t.workers[w.Peer] = k
	}
	return k
}

// Replicate sets on how many independent groups chunks run that were not leased yet, and which part of them
// newcomers get, as a Plan says: where no vetted node matches, selection wants more copies than the job did.
// A job that runs at most once keeps one copy.
func (t *Tracker) Replicate(copies int, explore float64) {
	copies = min(max(copies, 1), maxVotes)
	if t.cfg.Retries == 0 {
		copies, explore = 1, 0
	}
	t.cfg.Copies, t.cfg.Explore = copies, min(max(explore, 0), 1)
	for _, c := range t.chunks {
		if c.fence == 0 {
			c.want = copies
		}
	}
}

// Extend lengthens open inputs to n in all.
func (t *Tracker) Extend(n uint64) Effects {
	if t.open && n > t.total && !t.state.Final() {
		t.cutter.Extend(t.total, n)
		t.total = n
	}
	return Effects{Pending: t.pending()}
}

// Seal says that no more inputs come.
func (t *Tracker) Seal() Effects {
	var fx Effects
	t.open = false
	t.finish(&fx)
	return fx
}

// Close is Seal for a job whose inputs are calls of their own and of which nobody waits for any more: what no node has
// begun is given up.
func (t *Tracker) Close() Effects {
	var fx Effects
	t.open = false
	for r, ok := t.cutter.Cut(Pace{Chunk: MaxChunk}); ok; r, ok = t.cutter.Cut(Pace{Chunk: MaxChunk}) {
		t.failed.Add(r)
	}
	for _, c := range t.chunks {
		if c.fence == 0 {
			t.failed.Add(c.r)
			t.drop(c, &fx)
		}
	}
	t.finish(&fx)
	return fx
}

// Progress is where a job stands, for people.
type Progress struct {
	State        JobState // State is the job's.
	Inputs       uint64   // Inputs is the length of the sequence so far.
	InputsDone   uint64   // InputsDone are inputs of accounted chunks.
	InputsFailed uint64   // InputsFailed are inputs of chunks that ended for good.
	ChunksDone   int      // ChunksDone counts accounted chunks.
	ChunksFailed int      // ChunksFailed counts chunks that ended for good.
	ChunksReady  int      // ChunksReady wait for a claim.
	Leases       int      // Leases are live, suspects included.
	Suspect      int      // Suspect are silent past their TTL.
	Copies       int      // Copies are straggler copies so far.
	Workers      int      // Workers are members of the cluster.
	Reason       Reason   // Reason is the first cause of a failed chunk; 0 is none.
	Text         string   // Text is its wording.
}

// Progress returns where the job stands; it costs a pass over what is live.
func (t *Tracker) Progress() Progress {
	p := Progress{
		State: t.state, Inputs: t.total, InputsDone: t.done.Len(), InputsFailed: t.failed.Len(), ChunksDone: t.nDone,
		ChunksFailed: t.nFailed, ChunksReady: t.ready.len, Copies: t.nCopies, Workers: t.members, Reason: t.cause, Text: t.causeText,
	}
	for _, l := range t.live {
		if l.State.Live() {
			p.Leases++
			if l.State == AttemptSuspect {
				p.Suspect++
			}
		}
	}
	return p
}

// Done returns the inputs whose chunks are accounted.
func (t *Tracker) Done() []Range { return t.done.Ranges() }

// Leases returns what a node should be working on, in order of grants: its part of a lease set.
func (t *Tracker) Leases(node protocol.PeerID) []Lease {
	k := t.workers[node]
	if k == nil {
		return nil
	}
	var out []Lease
	for _, l := range k.live {
		if l.State.Live() {
			out = append(out, t.view(l))
		}
	}
	return out
}

func (t *Tracker) view(l *lease) Lease {
	return Lease{
		ID: l.ID, Chunk: protocol.NewChunkID(t.cfg.Job, l.First, l.End), Range: Range{l.First, l.End}, Fence: l.Fence,
		Attempt: int(l.Fence), Copy: l.Copy, Node: l.Worker.Peer, State: l.State,
	}
}

func (c *chunk) row(s ChunkState) ChunkRow {
	return ChunkRow{First: c.r.First, End: c.r.End, State: s, Fence: c.fence, Want: c.want}
}

// move applies an event to a lease, keeps its worker's count and notes the row. The events are chosen by
// state, so a refusal is a bug in this package and leaves the lease as it is.
func (t *Tracker) move(l *lease, e AttemptEvent, fx *Effects) bool {
	next, err := l.State.Next(e)
	if err != nil {
		return false
	}
	was, is := working(l.State), working(next)
	if k := t.workers[l.Worker.Peer]; k != nil {
		switch {
		case was && !is:
			k.held--
		case !was && is:
			k.held++
		}
	}
	l.State = next
	if !next.Live() { // what a node reports while it works is not worth a write: it reports again after a restart
		fx.Leases = append(fx.Leases, l.LeaseRow)
	}
	return true
}

// working says that a lease is live and its node was heard of within the TTL.
func working(s AttemptState) bool { return s.Live() && s != AttemptSuspect }

// active counts working leases of a chunk.
func (c *chunk) active() (n int) {
	for _, l := range c.all {
		if working(l.State) {
			n++
		}
	}
	return n
}

// votes returns the largest number of held results that agree, and their digest.
func (c *chunk) votes() (most int, digest string, all int) {
	count := map[string]int{}
	for _, l := range c.all {
		if l.State == AttemptHeld {
			count[l.Digest]++
			all++
			if n := count[l.Digest]; n > most || n == most && l.Digest < digest {
				most, digest = n, l.Digest
			}
		}
	}
	return most, digest, all
}

// exhausted says that the chunk may not be leased again: blame on node, network or nobody is free until
// three times the retries, and with no retries nothing is (scheduling.md 4.5).
func (t *Tracker) exhausted(c *chunk) bool {
	job, other := 0, c.lapses
	for _, f := range c.failures {
		if f.job {
			job++
		} else {
			other++
		}
	}
	return job+max(0, other-3*t.cfg.Retries) > t.cfg.Retries
}

// need is how many more leases a chunk should have.
func (t *Tracker) need(c *chunk) int {
	active := c.active()
	if active >= c.want || t.exhausted(c) { // the common case, without counting votes
		return 0
	}
	votes := 0
	if c.want > 1 {
		votes, _, _ = c.votes()
	}
	return max(0, c.want-votes-active)
}

// finish ends the job when nothing is left.
func (t *Tracker) finish(fx *Effects) {
	if t.state.Final() || t.open || t.done.Len()+t.failed.Len() < t.total {
		return
	}
	if t.nFailed > 0 && !t.cfg.Apart {
		t.endJob(JobFail, t.cause, t.causeText, fx)
		return
	}
	t.endJob(JobFinished, 0, "", fx)
}

// endJob moves the job to a final state and stops what still runs.
func (t *Tracker) endJob(e JobEvent, why Reason, text string, fx *Effects) {
	if t.event(e, fx) != nil {
		return
	}
	fx.Reason, fx.Text = why, text
	stop := protocol.ReasonCancelled
	for _, l := range t.live {
		if l.State.Live() {
			fx.Stops = append(fx.Stops, Stop{l.Worker.Peer, l.ID, l.Fence, stop})
			l.Reason = stop
			t.move(l, AttemptCancel, fx)
		}
	}
	t.live, t.ready, t.fresh = nil, queue{}, nil
	clear(t.chunks)
	clear(t.leases)
}

// Cancel ends the job on its owner's word (or fails it at its deadline with JobFail) and stops every lease.
// It returns ErrBadTransition when the job has ended already.
func (t *Tracker) Cancel(e JobEvent, why Reason, text string) (Effects, error) {
	var fx Effects
	if _, err := t.state.Next(e); err != nil || e != JobCancel && e != JobFail {
		return fx, cmp.Or(err, fmt.Errorf("job %s: %w: cancel by %s", t.cfg.Job, ErrBadTransition, e))
	}
	t.endJob(e, why, text, &fx)
	return fx, nil
}

// Cut returns how many chunks were cut so far, and whether all inputs are in chunks.
func (t *Tracker) Cut() (chunks uint64, all bool) {
	return uint64(t.nCut), !t.open && t.cutter.Remaining() == 0
}
