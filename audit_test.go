package gridbeam_test

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// audit judges a job of makeBelieve's by what is left of it: outputs, rows, money and what nodes still hold. It
// knows what to expect without asking bridge or node.
type audit struct {
	*farm
	job     protocol.JobID
	texts   []string                             // of the inputs
	deposit int64                                // of the one user, micro-USD
	held    map[protocol.LeaseID]protocol.PeerID // what nodes held when they crashed, as their journals have it
	saw     simulated
}

// numbers are the texts of the inputs 0..n-1.
func numbers(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strconv.Itoa(i)
	}
	return out
}

// over waits until the job is over and done, and returns its status.
func (a *audit) over(within time.Duration, each func(protocol.JobStatus)) (last protocol.JobStatus) {
	a.Helper()
	a.await(within, "the job is over", func() bool {
		if s, ok := a.status(a.job); ok {
			last = s
			each(s)
		}
		return last.State.Over()
	})
	n := uint64(len(a.texts))
	if last.State != "done" || last.ChunksDone != last.ChunksTotal || last.ChunksFailed != 0 || last.InputsDone != n {
		a.Fatalf("job %s (%s %s): %d of %d chunks done, %d failed, %d of %d inputs", last.State, last.Reason, last.Text, last.ChunksDone, last.ChunksTotal, last.ChunksFailed, last.InputsDone, n)
	}
	return last
}

// close holds everything against everything, once the job is over; it stops the bridge.
func (a *audit) close(last protocol.JobStatus) {
	a.Helper()
	a.leasesEnd()
	a.outputs(last)
	pass(20 * time.Second) // late receipts are waited for
	if acc, err := a.Bridge().Account(context.Background(), alice); err != nil || acc.ReservedUUSD != 0 {
		a.Errorf("account after the job: %d micro-USD set aside (%v)", acc.ReservedUUSD, err)
	}
	if err := a.bridge.Stop(); err != nil {
		a.Fatalf("the bridge's end: %v", err)
	}
	a.books()
}

// leasesEnd waits until no node holds anything of the job.
func (a *audit) leasesEnd() {
	for i, m := range a.machines {
		var s []string
		a.await(2*time.Minute, fmt.Sprintf("node %d holds nothing of the job", i), func() bool {
			n := m.Node()
			if n == nil {
				return false
			}
			s = nil
			st := n.Status()
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
				a.Errorf("node %d ran leases twice at one time: %v", i, b.twice)
			}
		}
	}
}

// expected is the tree of the outputs of inputs, made without network, bridge or node.
func (a *audit) expected(s *volumes.Store, from, to uint64, index bool) cid.Cid {
	files := make([]volumes.File, 0, to-from)
	for i := from; i < to; i++ {
		path, content := outputOf(a.texts[i])
		if index {
			path = strconv.FormatUint(i, 10) + "/" + path
		}
		files = append(files, volumes.File{Path: path, Data: []byte(content)})
	}
	tree, err := s.AddFiles(files)
	if err != nil {
		a.Fatal(err)
	}
	return tree.Root
}

func (a *audit) scratch() *volumes.Store {
	s, err := volumes.Open(volumes.DefaultConfig(filepath.Join(a.TempDir(), "volumes")), farmLog(a.T))
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		if err := s.Close(); err != nil {
			a.Error(err)
		}
	})
	return s
}

// outputs holds the job's outputs against those that were computed directly: every file of every input.
func (a *audit) outputs(last protocol.JobStatus) {
	s := a.scratch()
	if want := a.expected(s, 0, uint64(len(a.texts)), false); last.ResultCID != want.String() || last.Note != "" {
		a.Errorf("result %s (%s), want %s", last.ResultCID, last.Note, want)
	}
	files, root, err := a.Bridge().JobResults(context.Background(), alice, a.job)
	if err != nil || root != last.ResultCID {
		a.Fatalf("results: %s, %v", root, err)
	}
	for i, text := range a.texts {
		path, want := outputOf(text)
		if got, err := fs.ReadFile(files, path); err != nil || string(got) != want {
			a.Errorf("output of input %d is %q (%v), want %q", i, got, err, want)
		}
	}
}

// books opens what the bridge has left on its disk and holds it against itself and against what the nodes did.
func (a *audit) books() {
	db, err := store.Open(filepath.Join(a.bridge.Dir(), "bridge.db"), farmLog(a.T))
	if err != nil {
		a.Fatal(err)
	}
	defer db.Close()
	if err := db.Check(context.Background()); err != nil {
		a.Error(err)
	}
	err = db.View(context.Background(), func(tx *store.Tx) error {
		leases := a.attempts(tx)
		a.accounts(tx, leases)
		a.money(tx)
		return nil
	})
	if err != nil {
		a.Error(err)
	}
}

// attempts looks at every lease that was ever given.
func (a *audit) attempts(tx *store.Tx) map[protocol.LeaseID]store.Lease {
	leases := map[protocol.LeaseID]store.Lease{}
	for l, err := range tx.Attempts(a.job) {
		if err != nil {
			a.Fatal(err)
		}
		leases[l.ID] = l
		a.saw.leases++
		state := cluster.AttemptState(l.State)
		if l.Ended.IsZero() || state.Live() {
			a.Errorf("lease of input %d under fence %d has not ended: %s", l.First, l.Fence, l.State)
		}
		if state == cluster.AttemptLost {
			a.saw.lost++
		}
		if l.Copy {
			a.saw.copies++
		}
		// No disk was lost, so no node may have forgotten a lease.
		if l.Reason == protocol.ReasonRestartLost {
			a.Errorf("lease of input %d under fence %d: %s", l.First, l.Fence, l.Text)
		}
		if node, ok := a.held[l.ID]; ok {
			a.saw.held++
			if state == cluster.AttemptDone && l.Node == node {
				a.saw.resumed++
			}
		}
	}
	return leases
}

// accounts holds the accounted results against the leases: each input exactly once, by a lease that counted.
func (a *audit) accounts(tx *store.Tx, leases map[protocol.LeaseID]store.Lease) {
	s := a.scratch()
	next, byNode := uint64(0), map[protocol.PeerID]uint64{}
	defer func() {
		for _, m := range a.machines {
			if m.kind.stranger {
				a.saw.strangers += int(byNode[m.ID()])
			}
		}
	}()
	for r, err := range tx.Results(a.job) {
		if err != nil {
			a.Fatal(err)
		}
		switch {
		case r.First < next:
			a.Errorf("input %d is counted twice: again by lease %s", r.First, r.Lease)
		case r.First > next:
			a.Errorf("inputs %d to %d are lost", next, r.First-1)
		}
		next = max(next, r.End)
		byNode[r.Node]++
		if want := a.expected(s, r.First, r.End, true); r.Root != want {
			a.Errorf("outputs of input %d are %s, want %s", r.First, r.Root, want)
		}
		l, ok := leases[r.Lease]
		switch {
		case !ok || l.Node != r.Node || l.Fence != r.Fence || l.First != r.First || l.End != r.End:
			a.Errorf("input %d was counted for a lease that was not given: %+v", r.First, r)
		case l.State != string(cluster.AttemptDone):
			a.Errorf("input %d was counted for a lease under fence %d that had ended before: %s, %s", r.First, r.Fence, l.State, l.Text)
		}
		c, err := tx.GetChunk(a.job, r.First)
		if err != nil || c.State != string(cluster.ChunkDone) || c.Winner != r.Lease || c.End != r.End {
			a.Errorf("input %d was counted for lease %s, its chunk says %+v (%v)", r.First, r.Lease, c, err)
		}
		if c.Fence > 1 {
			a.saw.again++
		}
	}
	if next != uint64(len(a.texts)) {
		a.Errorf("inputs from %d on are lost", next)
	}
	usage, err := tx.Usage(a.job)
	if err != nil {
		a.Fatal(err)
	}
	for _, u := range usage {
		if u.Chunks != byNode[u.Node] {
			a.Errorf("node %s: %d chunks in its sum, %d results", u.Node, u.Chunks, byNode[u.Node])
		}
	}
}

// money holds the ledger against itself, against the sums of use, and those against what really ran.
func (a *audit) money(tx *store.Tx) {
	if err := tx.LedgerVerify(); err != nil {
		a.Error(err)
	}
	all, err := tx.Balances("")
	if err != nil {
		a.Fatal(err)
	}
	total := map[protocol.Currency]int64{}
	for _, p := range all {
		total[p.Currency] += p.Amount
	}
	for c, n := range total {
		if n != 0 {
			a.Errorf("the books are off by %d %s: %v", n, c, all)
		}
	}
	job, err := tx.GetJob(a.job)
	if err != nil {
		a.Fatal(err)
	}
	usage, err := tx.Usage(a.job)
	if err != nil {
		a.Fatal(err)
	}
	charged := int64(0)
	for _, u := range usage {
		charged += u.ChargedUUSD
		bill, err := settlement.Bill(u.Rate, u.BilledMS)
		if err != nil || bill != u.ChargedUUSD {
			a.Errorf("node %s was charged %d micro-USD, its bill is %d (%v)", u.Node, u.ChargedUUSD, bill, err)
		}
		if u.BilledMS > u.GPUMS || u.Chunks > 0 && u.BilledMS == 0 {
			a.Errorf("node %s: %d ms billed, %d used, %d chunks", u.Node, u.BilledMS, u.GPUMS, u.Chunks)
		}
		if most := a.worked(u.Node); u.WorkingMS > most {
			a.Errorf("node %s: %d ms of work are settled, it worked %d", u.Node, u.WorkingMS, most)
		}
	}
	if charged == 0 && a.deposit > 0 || job.Spent != charged {
		a.Errorf("the job spent %d micro-USD, its nodes were charged %d", job.Spent, charged)
	}
	credit, err := tx.Balance(settlement.AccountCredit(alice.User), protocol.USD)
	if err != nil || credit+job.Spent != a.deposit {
		a.Errorf("credit is %d after spending %d of %d (%v)", credit, job.Spent, a.deposit, err)
	}
}

// worked is for how long a node's executor really ran, in milliseconds, each run rounded up.
func (a *audit) worked(id protocol.PeerID) (ms int64) {
	for _, m := range a.machines {
		if m.ID() != id {
			continue
		}
		for _, r := range m.runs() {
			ms += int64(math.Ceil(float64(r.ended.Sub(r.began))/float64(time.Millisecond))) + 1
		}
	}
	return ms
}
