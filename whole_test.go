package gridbeam_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// The network of the simulation: its size, and what befalls it.
const (
	wholeNodes     = 20
	wholeSlots     = 8
	wholeChunks    = 2000
	wholeCrashes   = 5 // of nodes; the bridge crashes once as well
	wholeDeposit   = 100_000_000
	wholeStrangers = 4 // nodes that are not the bridge's operator's
)

// wholeSeeds is how many seeds one run tries; the system build tries 50.
var wholeSeeds = 5

// TestNothingIsLostOrCountedTwiceInAWholeNetwork runs real nodes and a real bridge, with their disks, streams,
// gossip, journals, tables and money, on a simulated network in virtual time: nodes crash and come back, the
// bridge does, and part of the network is cut off for a while. Only the executor is a fake.
func TestNothingIsLostOrCountedTwiceInAWholeNetwork(t *testing.T) {
	seeds := wholeSeeds
	if testing.Short() {
		seeds = 1
	}
	var sum simulated
	for seed := range seeds {
		t.Run("seed "+strconv.Itoa(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWhole(t, uint64(seed))
				w.run()
				t.Logf("%s", w.saw)
				sum.add(w.saw)
			})
		})
	}
	if !t.Failed() && seeds > 1 && (sum.lost == 0 || sum.again == 0 || sum.resumed == 0 || sum.copies == 0) {
		t.Errorf("the seeds never met some fault: %s", sum)
	}
}

// simulated counts what a seed met.
type simulated struct {
	leases, lost, again, copies, held, resumed, strangers int
	took                                                  time.Duration // virtual
}

func (a *simulated) add(b simulated) {
	a.leases, a.lost, a.again, a.copies = a.leases+b.leases, a.lost+b.lost, a.again+b.again, a.copies+b.copies
	a.held, a.resumed, a.took = a.held+b.held, a.resumed+b.resumed, a.took+b.took
	a.strangers += b.strangers
}

func (a simulated) String() string {
	return fmt.Sprintf("%d leases, %d lost, %d chunks leased again, %d copies; of %d leases held in crashes %d were finished under the same fence; %d chunks of strangers; %s",
		a.leases, a.lost, a.again, a.copies, a.held, a.resumed, a.strangers, a.took)
}

// whole is one seed of the simulation.
type whole struct {
	*farm
	seed uint64
	r    *rand.Rand
	job  protocol.JobID
	held map[protocol.LeaseID]protocol.PeerID // what nodes held when they crashed, as their journals have it
	saw  simulated
}

// act is something that befalls the network.
type act struct {
	at   time.Duration // since the job was submitted
	what string
	do   func()
}

func newWhole(t *testing.T, seed uint64) *whole {
	w := &whole{farm: unstarted(t, seed), seed: seed, r: rand.New(rand.NewPCG(seed, 20)), held: map[protocol.LeaseID]protocol.PeerID{}}
	for i := range wholeNodes {
		stranger := i >= wholeNodes-wholeStrangers
		w.place(machineKind{slots: wholeSlots, ask: uint64(1_000_000 + 100_000*(i%5)), anchor: !stranger, stranger: stranger, pace: w.pace(i)})
	}
	w.start()
	return w
}

// pace says how long a node takes for an input, from the seed alone: 0.5 to 6 s, now and then 15 s. Most runs end with
// an even second of the network's time, a hundred at once: the worst for whoever has to keep them apart, and what
// travels and is committed together makes the simulation four times faster.
func (w *whole) pace(i int) func(executor.Input, uint64) time.Duration {
	return func(in executor.Input, fence uint64) time.Duration {
		h := fnv.New64a()
		_, _ = fmt.Fprint(h, w.seed, i, in.Index, fence)
		r := rand.New(rand.NewPCG(h.Sum64(), w.seed))
		long := time.Duration((0.5 + 3.5*r.Float64()) * float64(time.Second))
		if r.IntN(200) == 0 {
			long = 15 * time.Second
		}
		if r.IntN(20) > 0 {
			now := time.Now()
			long = now.Add(long).Truncate(2 * time.Second).Add(2 * time.Second).Sub(now)
		}
		return long
	}
}

func (w *whole) run() {
	w.credit(wholeDeposit)
	w.await(2*time.Minute, "every node is known to the bridge", func() bool {
		list, err := w.Bridge().ListNodes(context.Background(), alice, nil)
		return err == nil && len(list.Nodes) >= wholeNodes
	})
	began := time.Now()
	w.job = w.submit(sweep(wholeChunks))
	for _, a := range w.plan() {
		time.Sleep(a.at - time.Since(began)) // virtual
		if s, ok := w.status(w.job); ok && s.State.Over() {
			w.Fatalf("the job was %s before %s at %s: this seed proves nothing", s.State, a.what, a.at)
		}
		w.Logf("%8s  %s", a.at.Round(time.Millisecond), a.what)
		a.do()
	}
	var last protocol.JobStatus
	w.await(10*time.Minute, "the job is over", func() bool {
		if s, ok := w.status(w.job); ok {
			last = s
			w.progress(began, s)
		}
		return last.State.Over()
	})
	w.saw.took = time.Since(began)
	if last.State != "done" || last.ChunksDone != wholeChunks || last.ChunksTotal != wholeChunks || last.ChunksFailed != 0 || last.InputsDone != wholeChunks {
		w.Fatalf("job %s (%s %s): %d of %d chunks done, %d failed, %d inputs", last.State, last.Reason, last.Text, last.ChunksDone, last.ChunksTotal, last.ChunksFailed, last.InputsDone)
	}
	w.leasesEnd()
	w.outputs(last)
	time.Sleep(20 * time.Second) // virtual: late receipts are waited for
	if a, err := w.Bridge().Account(context.Background(), alice); err != nil || a.ReservedUUSD != 0 || a.SpentUUSD == 0 {
		w.Errorf("account after the job: %d micro-USD set aside, %d spent (%v)", a.ReservedUUSD, a.SpentUUSD, err)
	}
	if err := w.bridge.Stop(); err != nil {
		w.Fatalf("the bridge's end: %v", err)
	}
	w.books()
}

// progress is for a reader of -v.
func (w *whole) progress(began time.Time, s protocol.JobStatus) {
	if time.Since(began)%(5*time.Second) >= time.Second {
		return
	}
	members := 0
	for _, n := range s.Nodes {
		if n.State == "member" {
			members++
		}
	}
	w.Logf("%8s  %d chunks done, %d leases live of %d, %d members %s", time.Since(began).Round(time.Millisecond), s.ChunksDone, s.ChunksRunning, s.Leases, members, s.Text)
}

// plan draws what befalls the network, in order of time: the job takes longer than all of it.
func (w *whole) plan() (acts []act) {
	seconds := func(from, to float64) time.Duration {
		return time.Duration((from + w.r.Float64()*(to-from)) * float64(time.Second))
	}
	add := func(at time.Duration, what string, do func()) { acts = append(acts, act{at, what, do}) }
	order := w.r.Perm(wholeNodes)
	for k := range wholeCrashes {
		m := w.machines[order[k]]
		at, down := seconds(4, 30), seconds(0.2, 3)
		if k >= 2 { // longer than a lease lives without renewal
			down = seconds(0.2, 14)
		}
		add(at, fmt.Sprintf("node %d crashes", order[k]), func() { w.crash(m) })
		add(at+down, fmt.Sprintf("node %d is back", order[k]), m.Restart)
	}
	cutAt, healed, bridgeAt, back := time.Duration(0), time.Duration(0), time.Duration(0), time.Duration(0)
	for {
		cutAt, bridgeAt = seconds(5, 24), seconds(6, 30)
		healed, back = cutAt+seconds(7, 12), bridgeAt+seconds(0.2, 6)
		// A bridge that has restarted waits for nodes longer than a lease lives, so both at once loses less.
		if apart := bridgeAt > healed+time.Second || back < cutAt; apart || w.r.IntN(4) == 0 {
			break
		}
	}
	add(bridgeAt, "the bridge crashes", w.crashBridge)
	add(back, "the bridge is back", w.startBridge)
	cut := order[wholeCrashes-1 : wholeCrashes-1+4+w.r.IntN(6)]
	side := make([]int, len(cut))
	for i, n := range cut {
		side[i] = w.machines[n].Index()
	}
	add(cutAt, fmt.Sprintf("nodes %v are cut off", cut), func() { w.net.Partition(side) })
	add(healed, "the network is whole again", w.net.Heal)
	slices.SortStableFunc(acts, func(a, b act) int { return int(a.at - b.at) })
	return acts
}

// crash takes a node down and notes what its journal has.
func (w *whole) crash(m *machine) {
	synctest.Wait() // everybody is at rest: no lease is between memory and disk
	for _, l := range m.Node().Status().Leases {
		w.held[l.Lease] = protocol.PeerID(m.ID())
	}
	m.Crash()
}

// leasesEnd waits until no node holds anything of the job.
func (w *whole) leasesEnd() {
	for i, m := range w.machines {
		var s []string
		w.await(2*time.Minute, fmt.Sprintf("node %d holds nothing of the job", i), func() bool {
			s = nil
			st := m.Node().Status()
			for _, l := range st.Leases {
				s = append(s, fmt.Sprintf("%d under fence %d: %s", l.First, l.Fence, l.State))
			}
			for _, j := range st.Jobs {
				s = append(s, "member of "+j.Name)
			}
			return len(s) == 0
		})
		for _, b := range append(m.past, m.backend) {
			if len(b.twice) > 0 {
				w.Errorf("node %d ran leases twice at one time: %v", i, b.twice)
			}
		}
	}
}

// expected is the tree of the outputs of inputs, made without network, bridge or node.
func (w *whole) expected(s *volumes.Store, from, to uint64, index bool) cid.Cid {
	files := make([]volumes.File, 0, to-from)
	for i := from; i < to; i++ {
		path, content := outputOf(strconv.FormatUint(i, 10))
		if index {
			path = strconv.FormatUint(i, 10) + "/" + path
		}
		files = append(files, volumes.File{Path: path, Data: []byte(content)})
	}
	tree, err := s.AddFiles(files)
	if err != nil {
		w.Fatal(err)
	}
	return tree.Root
}

func (w *whole) scratch() *volumes.Store {
	s, err := volumes.Open(volumes.DefaultConfig(filepath.Join(w.TempDir(), "volumes")), farmLog(w.T))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.Error(err)
		}
	})
	return s
}

// outputs holds the job's outputs against those that were computed directly: every file of every input.
func (w *whole) outputs(last protocol.JobStatus) {
	s := w.scratch()
	if want := w.expected(s, 0, wholeChunks, false); last.ResultCID != want.String() || last.Note != "" {
		w.Errorf("result %s (%s), want %s", last.ResultCID, last.Note, want)
	}
	files, root, err := w.Bridge().JobResults(context.Background(), alice, w.job)
	if err != nil || root != last.ResultCID {
		w.Fatalf("results: %s, %v", root, err)
	}
	for i := range uint64(wholeChunks) {
		path, want := outputOf(strconv.FormatUint(i, 10))
		if got, err := fs.ReadFile(files, path); err != nil || string(got) != want {
			w.Errorf("output of input %d is %q (%v), want %q", i, got, err, want)
		}
	}
}

// books opens what the bridge has left on its disk and holds it against itself and against what the nodes did.
func (w *whole) books() {
	db, err := store.Open(filepath.Join(w.bridge.Dir(), "bridge.db"), farmLog(w.T))
	if err != nil {
		w.Fatal(err)
	}
	defer db.Close()
	if err := db.Check(context.Background()); err != nil {
		w.Error(err)
	}
	err = db.View(context.Background(), func(tx *store.Tx) error {
		leases := w.attempts(tx)
		w.accounts(tx, leases)
		w.money(tx)
		return nil
	})
	if err != nil {
		w.Error(err)
	}
}

// attempts looks at every lease that was ever given.
func (w *whole) attempts(tx *store.Tx) map[protocol.LeaseID]store.Lease {
	leases := map[protocol.LeaseID]store.Lease{}
	for l, err := range tx.Attempts(w.job) {
		if err != nil {
			w.Fatal(err)
		}
		leases[l.ID] = l
		w.saw.leases++
		state := cluster.AttemptState(l.State)
		if l.Ended.IsZero() || state.Live() {
			w.Errorf("lease of input %d under fence %d has not ended: %s", l.First, l.Fence, l.State)
		}
		if state == cluster.AttemptLost {
			w.saw.lost++
		}
		if l.Copy {
			w.saw.copies++
		}
		// No disk was lost, so no node may have forgotten a lease.
		if l.Reason == protocol.ReasonRestartLost {
			w.Errorf("lease of input %d under fence %d: %s", l.First, l.Fence, l.Text)
		}
		if node, ok := w.held[l.ID]; ok {
			w.saw.held++
			if state == cluster.AttemptDone && l.Node == node {
				w.saw.resumed++
			}
		}
	}
	return leases
}

// accounts holds the accounted results against the leases: each input exactly once, by a lease that counted.
func (w *whole) accounts(tx *store.Tx, leases map[protocol.LeaseID]store.Lease) {
	s := w.scratch()
	next, byNode := uint64(0), map[protocol.PeerID]uint64{}
	defer func() {
		for _, m := range w.machines[wholeNodes-wholeStrangers:] {
			w.saw.strangers += int(byNode[m.ID()])
		}
	}()
	for r, err := range tx.Results(w.job) {
		if err != nil {
			w.Fatal(err)
		}
		switch {
		case r.First < next:
			w.Errorf("input %d is counted twice: again by lease %s", r.First, r.Lease)
		case r.First > next:
			w.Errorf("inputs %d to %d are lost", next, r.First-1)
		}
		next = max(next, r.End)
		byNode[r.Node]++
		if want := w.expected(s, r.First, r.End, true); r.Root != want {
			w.Errorf("outputs of input %d are %s, want %s", r.First, r.Root, want)
		}
		l, ok := leases[r.Lease]
		switch {
		case !ok || l.Node != r.Node || l.Fence != r.Fence || l.First != r.First || l.End != r.End:
			w.Errorf("input %d was counted for a lease that was not given: %+v", r.First, r)
		case l.State != string(cluster.AttemptDone):
			w.Errorf("input %d was counted for a lease under fence %d that had ended before: %s, %s", r.First, r.Fence, l.State, l.Text)
		}
		c, err := tx.GetChunk(w.job, r.First)
		if err != nil || c.State != string(cluster.ChunkDone) || c.Winner != r.Lease || c.End != r.End {
			w.Errorf("input %d was counted for lease %s, its chunk says %+v (%v)", r.First, r.Lease, c, err)
		}
		if c.Fence > 1 {
			w.saw.again++
		}
	}
	if next != wholeChunks {
		w.Errorf("inputs from %d on are lost", next)
	}
	usage, err := tx.Usage(w.job)
	if err != nil {
		w.Fatal(err)
	}
	for _, u := range usage {
		if u.Chunks != byNode[u.Node] {
			w.Errorf("node %s: %d chunks in its sum, %d results", u.Node, u.Chunks, byNode[u.Node])
		}
	}
}

// money holds the ledger against itself, against the sums of use, and those against what really ran.
func (w *whole) money(tx *store.Tx) {
	if err := tx.LedgerVerify(); err != nil {
		w.Error(err)
	}
	all, err := tx.Balances("")
	if err != nil {
		w.Fatal(err)
	}
	total := map[protocol.Currency]int64{}
	for _, p := range all {
		total[p.Currency] += p.Amount
	}
	for c, n := range total {
		if n != 0 {
			w.Errorf("the books are off by %d %s: %v", n, c, all)
		}
	}
	job, err := tx.GetJob(w.job)
	if err != nil {
		w.Fatal(err)
	}
	usage, err := tx.Usage(w.job)
	if err != nil {
		w.Fatal(err)
	}
	charged := int64(0)
	for _, u := range usage {
		charged += u.ChargedUUSD
		bill, err := settlement.Bill(u.Rate, u.BilledMS)
		if err != nil || bill != u.ChargedUUSD {
			w.Errorf("node %s was charged %d micro-USD, its bill is %d (%v)", u.Node, u.ChargedUUSD, bill, err)
		}
		if u.BilledMS > u.GPUMS || u.Chunks > 0 && u.BilledMS == 0 {
			w.Errorf("node %s: %d ms billed, %d used, %d chunks", u.Node, u.BilledMS, u.GPUMS, u.Chunks)
		}
		if most := w.worked(u.Node); u.WorkingMS > most {
			w.Errorf("node %s: %d ms of work are settled, it worked %d", u.Node, u.WorkingMS, most)
		}
	}
	if charged == 0 || job.Spent != charged {
		w.Errorf("the job spent %d micro-USD, its nodes were charged %d", job.Spent, charged)
	}
	credit, err := tx.Balance(settlement.AccountCredit(alice.User), protocol.USD)
	if err != nil || credit+job.Spent != wholeDeposit {
		w.Errorf("credit is %d after spending %d of %d (%v)", credit, job.Spent, int64(wholeDeposit), err)
	}
}

// worked is for how long a node's executor really ran, in milliseconds, each run rounded up.
func (w *whole) worked(id protocol.PeerID) (ms int64) {
	for _, m := range w.machines {
		if m.ID() != id {
			continue
		}
		for _, r := range m.runs() {
			ms += int64(math.Ceil(float64(r.ended.Sub(r.began))/float64(time.Millisecond))) + 1
		}
	}
	return ms
}
