package cluster

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// The simulation drives a Tracker as a bridge does, against nodes that journal their leases, over a network
// that loses, repeats, delays and reorders messages and partitions nodes; either side may crash at any
// point, the bridge also between the decision and the commit and between the commit and the answer. The
// oracle is a store and a ledger that know nothing of fences: they only see what was committed and accounted.

type simMsg struct {
	at   int // ms
	n    int // order of sending breaks ties
	run  func()
	node int
	boot int
}

type simQueue []simMsg

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(a, b int) bool {
	return q[a].at < q[b].at || q[a].at == q[b].at && q[a].n < q[b].n
}
func (q simQueue) Swap(a, b int) { q[a], q[b] = q[b], q[a] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simMsg)) }
func (q *simQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

type simLease struct {
	Lease
	firstSet uint64
	doneAt   int
	end      *End
	sentAt   int
}

type simNode struct {
	Worker
	i        int
	alive    bool
	boot     int
	lastSet  uint64
	leases   map[protocol.LeaseID]*simLease // its journal
	known    map[protocol.LeaseID]bool
	slow     int
	cutUntil int
	liar     bool // runs for ever, and hands in when it was told to stop
}

type sim struct {
	r      *rand.Rand
	cfg    Config
	now    int
	seq    int
	q      simQueue
	quiet  bool // faults are over
	nodes  []*simNode
	t      *Tracker // nil while the bridge is down
	back   int
	sets   []uint64
	ids    uint64
	poison map[uint64]bool
	faulty bool // nodes fail chunks at random
	long   int  // how much longer than a quarter of a second an input takes

	chunks  map[uint64]ChunkRow
	leases  map[protocol.LeaseID]LeaseRow
	state   JobState
	account map[uint64]int // per input
	begun   map[uint64]int // per input: times that some node began it
	err     error
	stats   simStats
}

type simStats struct{ restarts, fenced, dup, retries, lost, copies, failed, held, stuck int }

func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at %d ms: "+format, append([]any{s.now}, args...)...)
	}
}

func (s *sim) time() time.Time { return noon.Add(time.Duration(s.now) * time.Millisecond) }

func (s *sim) newID() (id protocol.LeaseID) {
	s.ids++
	binary.BigEndian.PutUint64(id[8:], s.ids)
	return id
}

func newSim(seed uint64) *sim {
	r := rand.New(rand.NewPCG(seed, 99))
	cfg := DefaultConfig(protocol.JobID{1}, 1+r.Uint64N(60))
	cfg.Chunk = r.Uint64N(6) // 0: probes and guided sizes
	cfg.Retries = pickOne(r, 50, 50, 2, 0)
	if cfg.Retries > 0 {
		cfg.Copies = pickOne(r, 1, 1, 1, 2)
		cfg.Explore = pickOne(r, 0, 0, 0.2)
	}
	s := &sim{
		r: r, cfg: cfg, chunks: map[uint64]ChunkRow{}, leases: map[protocol.LeaseID]LeaseRow{}, state: JobPending,
		account: map[uint64]int{}, begun: map[uint64]int{}, poison: map[uint64]bool{}, faulty: cfg.Retries < 50 && r.IntN(2) == 0,
	}
	s.long = pickOne(r, 1, 1, 5, 20)
	if cfg.Retries < 50 && r.IntN(3) == 0 {
		s.poison[r.Uint64N(cfg.Inputs)] = true
	}
	for i := range 2 + r.IntN(4) {
		w := Worker{Peer: protocol.PeerID(fmt.Sprintf("node%d", i)), Group: fmt.Sprintf("op%d", i%3), Slots: 1 + r.IntN(3), Probation: i > 2 && r.IntN(3) == 0}
		n := &simNode{Worker: w, i: i, alive: true, slow: 1, leases: map[protocol.LeaseID]*simLease{}, known: map[protocol.LeaseID]bool{}}
		if r.IntN(5) == 0 {
			n.slow = 15
		}
		s.nodes = append(s.nodes, n)
		s.sets = append(s.sets, 0)
	}
	if seed%4 == 0 && len(s.nodes) > 3 { // an honest node of its operator stays
		s.nodes[3].liar = true
		s.cfg.Limit = 12 * time.Minute // the slowest honest chunk takes 11
	}
	t, err := NewTracker(s.cfg, s.newID)
	if err != nil {
		s.fail("%v", err)
		return s
	}
	s.t = t
	s.do(func() Effects { fx, _ := s.t.Advance(JobSelect); return fx }, nil)
	for _, n := range s.nodes {
		s.do(func() Effects { return s.t.Join(n.Worker, s.time()) }, nil)
	}
	return s
}

// do runs one call of the Tracker, commits its effects and answers; the bridge may crash in between.
func (s *sim) do(call func() Effects, answer func()) {
	if s.t == nil {
		return
	}
	fx := call()
	if s.crash(200) {
		return // decided, not committed
	}
	s.commit(fx)
	if s.crash(200) {
		return // committed, not answered
	}
	for _, x := range fx.Stops {
		s.toNode(s.node(x.Node), func(n *simNode) { s.stop(n, x.Lease) })
	}
	if answer != nil {
		answer()
	}
}

func (s *sim) crash(odds int) bool {
	if s.quiet || s.r.IntN(odds) > 0 {
		return false
	}
	s.t, s.back = nil, s.now+s.r.IntN(8000)
	s.stats.restarts++
	return true
}

func (s *sim) commit(fx Effects) {
	for _, c := range fx.Chunks {
		old, ok := s.chunks[c.First]
		switch {
		case ok && (old.State != ChunkOpen || old.End != c.End || c.Fence < old.Fence):
			s.fail("chunk row went from %+v to %+v", old, c)
		case c.State == ChunkDone:
			w, ok := s.leases[c.Winner]
			if !ok && !slices.ContainsFunc(fx.Leases, func(l LeaseRow) bool { return l.ID == c.Winner }) {
				s.fail("chunk %v was won by an unknown lease", c)
			}
			if ok && !w.State.Live() && w.State != AttemptHeld {
				s.fail("chunk %v was won by a lease that had been committed as %s", c, w.State)
			}
			for i := c.First; i < c.End; i++ {
				s.account[i]++
			}
		case c.State == ChunkFailed:
			s.stats.failed++
		}
		s.chunks[c.First] = c
	}
	for _, l := range fx.Leases {
		old, ok := s.leases[l.ID]
		if ok && !old.State.Live() && old.State != AttemptHeld {
			s.fail("lease row went from %s to %s", old.State, l.State)
		}
		if !ok {
			for _, o := range s.leases {
				if o.First == l.First && o.Fence >= l.Fence {
					s.fail("lease of [%d,%d) got fence %d after %d", l.First, l.End, l.Fence, o.Fence)
				}
				if s.cfg.Copies > 1 && o.First == l.First && (o.State == AttemptHeld || o.State.Live() && l.Copy) && o.Worker.Group == l.Worker.Group && o.State == AttemptHeld {
					s.fail("two copies of [%d,%d) on operator %s", l.First, l.End, l.Worker.Group)
				}
			}
			if l.Copy {
				s.stats.copies++
			}
		}
		if l.State == AttemptLost {
			s.stats.lost++
		}
		if l.Reason == protocol.ReasonStuck {
			s.stats.stuck++
		}
		s.leases[l.ID] = l
	}
	if fx.State != "" {
		s.state = fx.State
	}
}

// restart brings the bridge back from its rows, in the random order of a map like any table without ORDER BY,
// but leases by fence as Restore asks.
func (s *sim) restart() {
	open := map[uint64]bool{}
	for _, c := range s.chunks {
		open[c.First] = c.State == ChunkOpen
	}
	rows := slices.SortedFunc(maps.Values(s.leases), func(a, b LeaseRow) int { return int(a.Fence) - int(b.Fence) })
	rows = slices.DeleteFunc(rows, func(l LeaseRow) bool { return !open[l.First] })
	t, err := Restore(s.cfg, s.state, maps.Values(s.chunks), slices.Values(rows), s.newID, s.time())
	if err != nil {
		s.fail("restore: %v", err)
		return
	}
	s.t = t
	if s.state == JobPending {
		s.do(func() Effects { fx, _ := s.t.Advance(JobSelect); return fx }, nil)
	}
	for _, n := range s.nodes {
		s.do(func() Effects { return s.t.Join(n.Worker, s.time()) }, nil)
	}
}

func (s *sim) node(p protocol.PeerID) *simNode {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.Peer == p })]
}

func (s *sim) send(n *simNode, boot int, run func()) {
	copies := 1
	if !s.quiet {
		if n.cutUntil > s.now || s.r.IntN(12) == 0 {
			return
		}
		if s.r.IntN(12) == 0 {
			copies = 2
		}
	}
	for range copies {
		s.seq++
		delay := 1 + s.r.IntN(30)
		if !s.quiet && s.r.IntN(10) == 0 {
			delay = s.r.IntN(15_000)
		}
		heap.Push(&s.q, simMsg{at: s.now + delay, n: s.seq, run: run, node: n.i, boot: boot})
	}
}

func (s *sim) toNode(n *simNode, run func(*simNode)) { s.send(n, n.boot, func() { run(n) }) }
func (s *sim) toBridge(n *simNode, run func()) {
	s.send(n, -1, func() {
		if s.t != nil {
			run()
		}
	})
}

func (s *sim) stop(n *simNode, id protocol.LeaseID) {
	if l := n.leases[id]; l != nil && n.liar {
		l.doneAt = min(l.doneAt, s.now)
		return
	}
	delete(n.leases, id)
}

// beat is what a node does twice a second: finish, publish, claim.
func (s *sim) beat(n *simNode) {
	ids := slices.SortedFunc(maps.Keys(n.leases), func(a, b protocol.LeaseID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range ids {
		l := n.leases[id]
		if l.end == nil && l.doneAt <= s.now {
			l.end = s.outcome(n, l)
		}
		if l.end != nil && s.now-l.sentAt >= 1000 {
			l.sentAt = s.now
			e := *l.end
			s.toBridge(n, func() { s.result(n, e) })
		}
	}
	if free := 2*n.Slots - len(n.leases); free > 0 {
		s.toBridge(n, func() {
			if n.i >= len(s.sets) {
				return
			}
			var got []Lease
			set := s.sets[n.i] + 1
			s.do(func() Effects {
				var fx Effects
				var err error
				if got, fx, err = s.t.Grant(n.Peer, free, set, s.time()); err != nil {
					s.fail("%v", err)
				}
				return fx
			}, func() {
				if len(got) > 0 {
					s.toNode(n, func(n *simNode) { s.granted(n, got, set) })
				}
			})
		})
	}
}

func (s *sim) granted(n *simNode, got []Lease, set uint64) {
	for _, l := range got {
		if n.known[l.ID] || n.lastSet > set {
			continue // repeated, or a newer set did not hold it any more
		}
		n.known[l.ID] = true
		run := (50 + s.r.IntN(400)) * int(l.Range.Len()) * n.slow * s.long
		if n.liar {
			run = 1 << 40
		}
		n.leases[l.ID] = &simLease{Lease: l, firstSet: set, doneAt: s.now + run}
		for i := l.Range.First; i < l.Range.End; i++ {
			s.begun[i]++
		}
	}
}

func (s *sim) outcome(n *simNode, l *simLease) *End {
	e := &End{Lease: l.ID, Node: n.Peer, Range: l.Range, Fence: l.Fence, Reason: protocol.ReasonDone, Digest: l.Range.String(), Seconds: float64(l.Range.Len()) / 4 * float64(s.long)}
	for i := l.Range.First; i < l.Range.End; i++ {
		if s.poison[i] {
			e.Reason, e.Exit = 10, 1
		}
	}
	if e.Reason == protocol.ReasonDone && s.faulty && s.r.IntN(10) == 0 && !s.quiet {
		e.Reason = pickOne(s.r, Reason(40), 43, 60, 81, protocol.ReasonBusy)
	}
	if e.Reason == protocol.ReasonBusy { // its word that it never began
		for i := l.Range.First; i < l.Range.End; i++ {
			s.begun[i]--
		}
	}
	return e
}

func (s *sim) result(n *simNode, e End) {
	var v Verdict
	s.do(func() Effects {
		var fx Effects
		v, fx = s.t.Result(e, s.time())
		return fx
	}, func() {
		switch v {
		case VerdictFenced:
			s.stats.fenced++
		case VerdictDuplicate:
			s.stats.dup++
		case VerdictRetry:
			s.stats.retries++
		case VerdictHeld:
			s.stats.held++
		case VerdictRefused:
			s.fail("an honest result was refused: %+v", e)
		}
		s.toNode(n, func(n *simNode) { delete(n.leases, e.Lease) })
	})
}

// renewal is one lease set to one node and its report.
func (s *sim) renewal(n *simNode) {
	s.sets[n.i]++
	seq := s.sets[n.i]
	want := map[protocol.LeaseID]bool{}
	for _, l := range s.t.Leases(n.Peer) {
		want[l.ID] = true
	}
	s.toNode(n, func(n *simNode) {
		if seq < n.lastSet {
			return
		}
		n.lastSet = seq
		var held []Observed
		for id, l := range n.leases {
			if !want[id] && l.firstSet <= seq && l.end == nil {
				delete(n.leases, id)
				continue
			}
			ev := AttemptRun
			if l.end != nil {
				ev = AttemptPublish
			}
			held = append(held, Observed{id, l.Fence, ev})
		}
		slices.SortFunc(held, func(a, b Observed) int { return slices.Compare(a.Lease[:], b.Lease[:]) })
		s.toBridge(n, func() {
			s.do(func() Effects { return s.t.Report(n.Peer, seq, held, s.time()) }, nil)
		})
	})
}

func (s *sim) faults() {
	n := s.nodes[s.r.IntN(len(s.nodes))]
	switch s.r.IntN(60) {
	case 0: // a partition; the node works on
		n.cutUntil = s.now + s.r.IntN(20_000)
	case 1: // crash: the journal survives, its containers run on
		n.alive, n.boot = false, n.boot+1
	case 2: // crash with the disk
		n.alive, n.boot = false, n.boot+1
		n.leases = map[protocol.LeaseID]*simLease{}
	case 3:
		if s.t != nil {
			s.t, s.back = nil, s.now+s.r.IntN(8000)
			s.stats.restarts++
		}
	}
	for _, n := range s.nodes {
		if !n.alive && s.r.IntN(20) == 0 {
			n.alive = true
		}
	}
}

// simulate runs one seed to its end and returns what went wrong.
func simulate(seed uint64) (*sim, error) {
	s := newSim(seed)
	const faultsEnd, end = 40_000, 3_600_000 // the slowest chunk takes 11 min
	for s.now = 0; s.now < end && s.err == nil; s.now += 250 {
		for len(s.q) > 0 && s.q[0].at <= s.now {
			m := heap.Pop(&s.q).(simMsg)
			n := s.nodes[m.node]
			if m.boot >= 0 && (!n.alive || m.boot != n.boot) {
				continue // streams end with the process
			}
			m.run()
		}
		if s.now >= faultsEnd && !s.quiet {
			s.quiet = true
			for _, n := range s.nodes {
				n.alive, n.cutUntil, n.slow = true, 0, min(n.slow, 4)
			}
		}
		if !s.quiet {
			s.faults()
		}
		if s.t == nil {
			if s.now < s.back && !s.quiet {
				continue
			}
			if s.restart(); s.t == nil {
				continue
			}
		}
		if s.state.Final() {
			break
		}
		s.do(func() Effects { return s.t.Expire(s.time()) }, nil)
		if s.t != nil {
			s.t.Announce()
		}
		for _, n := range s.nodes {
			if s.t != nil && s.now%2000 == 0 {
				s.renewal(n)
			}
			if n.alive && s.now%500 == 0 {
				s.beat(n)
			}
		}
	}
	if s.err == nil {
		s.check()
	}
	return s, s.err
}

func (s *sim) check() {
	if !s.state.Final() {
		s.fail("the job is still %s: %+v", s.state, s.t.Progress())
		return
	}
	failed := map[uint64]bool{}
	for _, c := range s.chunks {
		for i := c.First; i < c.End && c.State == ChunkFailed; i++ {
			failed[i] = true
		}
	}
	for i := range s.cfg.Inputs {
		switch n := s.account[i]; {
		case n > 1:
			s.fail("input %d was counted %d times", i, n)
		case n == 1 && failed[i]:
			s.fail("input %d is done and failed", i)
		case n == 0 && s.state == JobDone:
			s.fail("input %d was lost", i)
		case n == 0 && !failed[i] && len(failed) < s.cfg.HopelessAfter:
			s.fail("input %d was lost in a job that is %s", i, s.state)
		}
		if s.cfg.Retries == 0 && s.begun[i] > 1 {
			s.fail("input %d was begun %d times with retries 0", i, s.begun[i])
		}
	}
	if s.cfg.Retries == 50 && s.state != JobDone {
		s.fail("the job is %s although every chunk can succeed", s.state)
	}
	if (s.state == JobDone) != (len(failed) == 0) {
		s.fail("job %s with %d failed inputs", s.state, len(failed))
	}
}

// simSeeds is how many seeds one run tries; the system build tries 100,000.
var simSeeds = 2000

func TestNothingIsLostOrCountedTwiceWhateverFails(t *testing.T) {
	seeds := simSeeds
	if testing.Short() {
		seeds = 300
	}
	var mu sync.Mutex
	var sum simStats
	t.Run("seeds", func(t *testing.T) {
		const workers = 4
		for w := range workers {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				var mine simStats
				for seed := w; seed < seeds; seed += workers {
					s, err := simulate(uint64(seed))
					if err != nil {
						t.Fatalf("seed %d (%+v): %v", seed, s.cfg, err)
					}
					mine.add(s.stats)
				}
				mu.Lock()
				defer mu.Unlock()
				sum.add(mine)
			})
		}
	})
	t.Logf("%d seeds: %+v", seeds, sum)
	if !t.Failed() && (sum.restarts == 0 || sum.fenced == 0 || sum.dup == 0 || sum.retries == 0 || sum.lost == 0 || sum.copies == 0 || sum.failed == 0 || sum.held == 0 || sum.stuck == 0) {
		t.Errorf("the seeds never met some fault: %+v", sum)
	}
}

func (a *simStats) add(b simStats) {
	a.restarts, a.fenced, a.dup, a.retries = a.restarts+b.restarts, a.fenced+b.fenced, a.dup+b.dup, a.retries+b.retries
	a.lost, a.copies, a.failed, a.held = a.lost+b.lost, a.copies+b.copies, a.failed+b.failed, a.held+b.held
	a.stuck += b.stuck
}
