package store_test

import (
	"errors"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestNothingIsCountedTwice(t *testing.T) {
	job, a, b := protocol.NewJobID(), peerID("a"), peerID("b")
	l := store.Lease{ID: protocol.NewLeaseID(), Job: job, First: 5, End: 6, Fence: 2, Node: a, State: "leased"}
	r := store.Result{Job: job, First: 5, End: 6, Lease: l.ID, Fence: 2, Node: a}
	c := store.Receipt{Node: a, Seq: 7, Hash: [32]byte{1}, Raw: []byte("signed")}
	base := func(tx *store.Tx) error {
		return errors.Join(tx.PutLeases([]store.Lease{l}), tx.PutResults([]store.Result{r}), tx.PutReceipts([]store.Receipt{c}))
	}
	for name, f := range map[string]struct {
		put  func(*store.Tx) error
		want error
	}{
		"the same result again":     {func(tx *store.Tx) error { return tx.PutResults([]store.Result{r}) }, store.ErrConflict},
		"another node's result":     {func(tx *store.Tx) error { r := r; r.Node, r.Fence = b, 3; return tx.PutResults([]store.Result{r}) }, store.ErrConflict},
		"another lease, same fence": {func(tx *store.Tx) error { l := l; l.ID = protocol.NewLeaseID(); return tx.PutLeases([]store.Lease{l}) }, store.ErrConflict},
		"a live lease's ID again":   {func(tx *store.Tx) error { l := l; l.First = 6; return tx.PutLeases([]store.Lease{l}) }, store.ErrConflict},
		"another receipt, same seq": {func(tx *store.Tx) error { c := c; c.Hash = [32]byte{2}; return tx.PutReceipts([]store.Receipt{c}) }, store.ErrConflict},
		"the same lease, ended":     {func(tx *store.Tx) error { l := l; l.Ended = when; return tx.PutLeases([]store.Lease{l}) }, nil},
		"the next fence": {func(tx *store.Tx) error {
			l := l
			l.ID, l.Fence = protocol.NewLeaseID(), 3
			return tx.PutLeases([]store.Lease{l})
		}, nil},
		"the same receipt again": {func(tx *store.Tx) error { return tx.PutReceipts([]store.Receipt{c}) }, nil},
		"another job's result":   {func(tx *store.Tx) error { r := r; r.Job = protocol.NewJobID(); return tx.PutResults([]store.Result{r}) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
			update(t, s, base)
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				if err := tx.PutVolume(store.Volume{Name: "beside", Root: cidOf("x")}); err != nil {
					return err
				}
				return f.put(tx)
			})
			if !errors.Is(err, f.want) {
				t.Fatalf("%v, want %v", err, f.want)
			}
			view(t, s, func(tx *store.Tx) error {
				if _, err := tx.GetVolume("beside"); (err == nil) != (f.want == nil) {
					t.Errorf("what was written beside it: %v", err)
				}
				got, err := tx.GetResult(job, 5)
				same(t, got, r, err)
				receipt, err := tx.GetReceipt(a, 7)
				same(t, receipt, c, err)
				return nil
			})
		})
	}
}

func TestLiveLeasesAreFoundByID(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	l := store.Lease{ID: protocol.NewLeaseID(), Job: protocol.NewJobID(), First: 5, End: 6, Fence: 2, Node: peerID("a"), State: "leased"}
	update(t, s, func(tx *store.Tx) error { return tx.PutLeases([]store.Lease{l}) })
	view(t, s, func(tx *store.Tx) error {
		got, err := tx.LiveLease(l.ID)
		same(t, got, l, err)
		return nil
	})
	l.State, l.Ended = "lost", when
	update(t, s, func(tx *store.Tx) error { return tx.PutLeases([]store.Lease{l}) })
	view(t, s, func(tx *store.Tx) error {
		if _, err := tx.LiveLease(l.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an ended lease is live: %v", err)
		}
		got, err := tx.GetLease(l.Job, l.First, l.Fence)
		same(t, got, l, err)
		return nil
	})
}

func TestARestartGetsTheLeasesOfOpenChunksByFence(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job, node := protocol.NewJobID(), peerID("a")
	states := map[uint64]string{0: "done", 1: "open", 2: "failed", 3: "open"}
	update(t, s, func(tx *store.Tx) error {
		for first, state := range states {
			if err := tx.PutChunks([]store.Chunk{{Job: job, First: first, End: first + 1, State: state}}); err != nil {
				return err
			}
			for fence := uint64(3); fence > 0; fence-- {
				l := store.Lease{ID: protocol.NewLeaseID(), Job: job, First: first, End: first + 1, Fence: fence, Node: node}
				if fence < 3 {
					l.Ended = when // a tracker needs the failures of an open chunk too
				}
				if err := tx.PutLeases([]store.Lease{l}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	var got [][2]uint64
	view(t, s, func(tx *store.Tx) error {
		for l, err := range tx.OpenLeases(job) {
			if err != nil {
				return err
			}
			got = append(got, [2]uint64{l.Fence, l.First})
		}
		return nil
	})
	same(t, got, [][2]uint64{{1, 1}, {1, 3}, {2, 1}, {2, 3}, {3, 1}, {3, 3}}, nil)
}

func TestWhatPeopleAskOfAJob(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job, a, b := protocol.NewJobID(), peerID("a"), peerID("b")
	if a > b {
		a, b = b, a
	}
	lease := func(first, fence uint64, node protocol.PeerID) store.Lease {
		return store.Lease{
			ID: leaseID(job, first, fence), Job: job, First: first, End: first + 10, Fence: fence, Node: node, Slots: int(fence), State: "done",
			Ended: when, RunUS: 1000, CPUMS: 10, BlocksFetched: 3,
		}
	}
	lost, live := lease(10, 1, a), lease(20, 1, b)
	lost.State, live.Ended = "lost", time.Time{}
	update(t, s, func(tx *store.Tx) error {
		return errors.Join(
			tx.PutChunks([]store.Chunk{
				{Job: job, First: 0, End: 10, State: "done", Fence: 1},
				{Job: job, First: 10, End: 20, State: "done", Fence: 2},
				{Job: job, First: 20, End: 30, State: "open", Fence: 1},
			}),
			tx.PutLeases([]store.Lease{lease(0, 1, a), lost, lease(10, 2, b), live}),
			tx.PutResults([]store.Result{
				{Job: job, First: 0, End: 10, Lease: leaseID(job, 0, 1), Fence: 1, Node: a},
				{Job: job, First: 10, End: 20, Lease: leaseID(job, 10, 2), Fence: 2, Node: b},
			}),
			tx.PutLogTails([]store.LogTail{
				{Job: job, First: 10, Lease: leaseID(job, 10, 2), Node: b, Text: "third", At: when.Add(2)},
				{Job: job, First: 10, Lease: lost.ID, Node: a, Text: "second", At: when.Add(-time.Second)},
				{Job: job, First: 0, Lease: leaseID(job, 0, 1), Node: a, Text: "first", At: when.Add(time.Hour)},
				{Job: protocol.NewJobID(), First: 0, Lease: leaseID(job, 0, 1), Node: a, Text: "another job"},
			}),
		)
	})
	view(t, s, func(tx *store.Tx) error {
		shares, err := tx.NodeShares(job)
		same(t, shares, []store.NodeShare{
			{Node: a, Attempts: 2, Chunks: 1, Inputs: 10, RunUS: 2000, CPUMS: 20, BlocksFetched: 6},
			{Node: b, Attempts: 2, Live: 1, Chunks: 1, Inputs: 10, Retaken: 1, RunUS: 2000, CPUMS: 20, BlocksFetched: 6},
		}, err)
		chunks, err := tx.CountChunks(job)
		same(t, chunks, map[string]uint64{"done": 2, "open": 1}, err)
		inputs, err := tx.CountInputs(job)
		same(t, inputs, map[string]uint64{"done": 20, "open": 10}, err)
		at, err := tx.AttemptsAt(job, 10)
		same(t, at, []store.Lease{lost, lease(10, 2, b)}, err)
		var texts []string
		for l, err := range tx.LogTails(job, 0) {
			if err != nil {
				return err
			}
			texts = append(texts, l.Text)
		}
		same(t, texts, []string{"first", "second", "third"}, nil)
		var again []uint64
		for c, err := range tx.Refenced(job) {
			if err != nil {
				return err
			}
			again = append(again, c.First)
		}
		same(t, again, []uint64{10}, nil)
		return nil
	})
}

func TestJobsAreListedNewestFirst(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	var jobs []store.Job
	for i := range 5 {
		jobs = append(jobs, store.Job{
			ID: protocol.JobID{byte(i)}, Name: string(rune('a' + i)), User: []string{"u", "v"}[i%2], State: []string{"done", "running"}[i/4],
			Created: when.Add(time.Duration(i) * time.Second), Spec: []byte("large"),
		})
	}
	update(t, s, func(tx *store.Tx) error { return tx.PutJobs(jobs) })
	view(t, s, func(tx *store.Tx) error {
		for want, f := range map[string]store.JobFilter{
			"edcba": {}, "ed": {Limit: 2}, "db": {User: "v"}, "e": {State: "running"}, "cba": {Before: when.Add(2 * time.Second)}, "ca": {User: "u", State: "done"},
		} {
			got, err := tx.ListJobs(f)
			if err != nil {
				return err
			}
			names := ""
			for _, j := range got {
				names += j.Name
				if j.Spec != nil {
					t.Errorf("the list carries bodies")
				}
			}
			if names != want {
				t.Errorf("%+v yields %q, want %q", f, names, want)
			}
		}
		in, err := tx.JobsIn("running", "done")
		same(t, in, []store.Job{jobs[4], jobs[0], jobs[1], jobs[2], jobs[3]}, err)
		n, err := tx.CountJobs()
		same(t, n, map[string]uint64{"done": 4, "running": 1}, err)
		return nil
	})
}

func TestSumsGrow(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	u := store.UsageSum{Job: protocol.NewJobID(), Node: peerID("a"), WorkingMS: 1, PreparingMS: 2, GPUMS: 3, BilledMS: 4, Records: 5, Chunks: 6, ChargedUUSD: 7, Rate: 100}
	d := store.Idle{Node: u.Node, Day: "2026-10-01", IdleMS: 1, PreparingMS: 2, WorkingMS: 3}
	for range 3 {
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.AddUsage([]store.UsageSum{u}), tx.AddIdle([]store.Idle{d}))
		})
	}
	view(t, s, func(tx *store.Tx) error {
		got, err := tx.GetUsage(u.Job, u.Node)
		same(t, got, store.UsageSum{Job: u.Job, Node: u.Node, WorkingMS: 3, PreparingMS: 6, GPUMS: 9, BilledMS: 12, Records: 15, Chunks: 18, ChargedUUSD: 21, Rate: 100}, err)
		day, err := tx.GetIdle(d.Node, d.Day)
		same(t, day, store.Idle{Node: d.Node, Day: d.Day, IdleMS: 3, PreparingMS: 6, WorkingMS: 9}, err)
		return nil
	})
}

func TestASumThatLeaves64BitsIsRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	u := store.UsageSum{Node: peerID("a"), WorkingMS: math.MaxInt64}
	update(t, s, func(tx *store.Tx) error { return tx.AddUsage([]store.UsageSum{u}) })
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.AddUsage([]store.UsageSum{u}) }); !errors.Is(err, store.ErrBadRow) {
		t.Errorf("%v, want ErrBadRow", err)
	}
}

func TestChainsOfReceipts(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	a, b := peerID("a"), peerID("b")
	if a > b {
		a, b = b, a
	}
	receipt := func(n protocol.PeerID, seq uint64) store.Receipt {
		return store.Receipt{Node: n, Seq: seq, Hash: [32]byte{byte(seq)}, Raw: []byte("r"), At: when}
	}
	update(t, s, func(tx *store.Tx) error {
		return tx.PutReceipts([]store.Receipt{receipt(a, 1), receipt(a, 2), receipt(b, 1), receipt(a, 3)})
	})
	view(t, s, func(tx *store.Tx) error {
		last, err := tx.LastReceipt(a)
		same(t, last, receipt(a, 3), err)
		if _, err := tx.LastReceipt(peerID("c")); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a node without a chain: %v, want ErrNotFound", err)
		}
		heads, err := tx.ChainHeads()
		same(t, heads, []store.ChainHead{{a, 3, [32]byte{3}}, {b, 1, [32]byte{1}}}, err)
		n, err := tx.CountReceipts()
		same(t, n, uint64(4), err)
		var seqs []uint64
		for r, err := range tx.Receipts(a, 1) {
			if err != nil {
				return err
			}
			seqs = append(seqs, r.Seq)
		}
		same(t, seqs, []uint64{2, 3}, nil)
		return nil
	})
}

func TestNamesAndTokensAreTakenBack(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	x := store.Token{Hash: [32]byte{1}, User: "u", Created: when}
	update(t, s, func(tx *store.Tx) error {
		return errors.Join(tx.PutVolume(store.Volume{Name: "v", Root: cidOf("v")}), tx.PutToken(x), tx.DeleteVolume("v"), tx.RevokeToken(x.Hash, when.Add(time.Hour)))
	})
	x.Revoked = when.Add(time.Hour)
	update(t, s, func(tx *store.Tx) error {
		if err := tx.DeleteVolume("v"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("deleting again: %v", err)
		}
		if err := tx.RevokeToken(x.Hash, when); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("revoking again: %v", err)
		}
		got, err := tx.GetToken(x.Hash)
		same(t, got, x, err)
		all, err := tx.Tokens("")
		same(t, all, []store.Token{x}, err)
		return nil
	})
}
