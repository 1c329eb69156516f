package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

func putChunk(job protocol.JobID, first uint64) func(*store.Tx) error {
	return func(t *store.Tx) error {
		return t.PutChunks([]store.Chunk{{Job: job, First: first, End: first + 1, State: "open", Fence: 1, Want: 1}})
	}
}

func chunkCount(t testing.TB, s *store.Store, job protocol.JobID) (n int) {
	t.Helper()
	view(t, s, func(tx *store.Tx) error { n = count(t, tx, job); return nil })
	return n
}

func count(t testing.TB, tx *store.Tx, job protocol.JobID) (n int) {
	t.Helper()
	for _, err := range tx.Chunks(job) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestAFailedUpdateLeavesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job, mine := protocol.NewJobID(), errors.New("mine")
	lease := store.Lease{ID: protocol.NewLeaseID(), Job: job, Fence: 1, Node: peerID("a")}

	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		return errors.Join(putChunk(job, 1)(tx), tx.PutLeases([]store.Lease{lease}), mine)
	}); !errors.Is(err, mine) {
		t.Fatalf("%v, want the function's own error", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Update(t.Context(), func(tx *store.Tx) error {
			_ = errors.Join(putChunk(job, 2)(tx), tx.PutLeases([]store.Lease{lease}))
			panic("mine")
		})
	}()
	if err := s.Update(t.Context(), func(tx *store.Tx) error { // the failed write's error is not handed on
		_ = tx.PutResults([]store.Result{{Job: job, First: 3, Node: peerID("a")}, {Job: job, First: 3, Node: peerID("b")}})
		return putChunk(job, 3)(tx)
	}); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("%v, want ErrConflict although the function returned nil", err)
	}
	if n := chunkCount(t, s, job); n != 0 {
		t.Fatalf("%d chunks of failed updates", n)
	}
	// What the undone update learned of the lease's holder must not be believed.
	update(t, s, func(tx *store.Tx) error { return tx.PutLeases([]store.Lease{lease}) })
	view(t, s, func(tx *store.Tx) error {
		got, err := tx.GetLease(job, 0, 1)
		same(t, got, lease, err)
		return nil
	})
}

func TestAViewSeesOneStateWhileTheWriterGoesOn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job := protocol.NewJobID()
	update(t, s, putChunk(job, 0))
	view(t, s, func(old *store.Tx) error {
		if n := count(t, old, job); n != 1 {
			t.Errorf("%d chunks, want 1", n)
		}
		update(t, s, func(tx *store.Tx) error { // the writer does not wait for the view
			if err := putChunk(job, 1)(tx); err != nil {
				return err
			}
			if n := count(t, tx, job); n != 2 {
				t.Errorf("an update sees %d chunks, want its own too", n)
			}
			if n := chunkCount(t, s, job); n != 1 { // nor does a view wait for the writer
				t.Errorf("a view sees %d chunks, want only what was committed", n)
			}
			return nil
		})
		if n := count(t, old, job); n != 1 {
			t.Errorf("the view saw %d chunks after a commit, want still 1", n)
		}
		if n := chunkCount(t, s, job); n != 2 {
			t.Errorf("a new view sees %d chunks, want 2", n)
		}
		return nil
	})
}

func TestViewsNeverSeeHalfAnUpdate(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job := protocol.NewJobID()
	ctx, stop := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	for range 6 { // more than there are read connections
		g.Go(func() error {
			for ctx.Err() == nil {
				if err := s.View(ctx, func(tx *store.Tx) error {
					chunks, results := 0, 0
					for _, err := range tx.Chunks(job) {
						if err != nil {
							return err
						}
						chunks++
					}
					for _, err := range tx.Results(job) {
						if err != nil {
							return err
						}
						results++
					}
					if chunks != results {
						t.Errorf("%d chunks and %d results", chunks, results)
					}
					return nil
				}); err != nil && !errors.Is(err, context.Canceled) {
					return err
				}
			}
			return nil
		})
	}
	for i := range uint64(200) {
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(putChunk(job, i)(tx), tx.PutResults([]store.Result{{Job: job, First: i, Node: peerID("a")}}))
		})
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestUpdatesAreServedOneAtATime(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 25 {
				if err := s.Update(t.Context(), func(tx *store.Tx) error { // lost updates would show
					v, err := tx.GetVolume("n")
					if err != nil && !errors.Is(err, store.ErrNotFound) {
						return err
					}
					return tx.PutVolume(store.Volume{Name: "n", Root: cidOf("n"), Bytes: v.Bytes + 1})
				}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	view(t, s, func(tx *store.Tx) error {
		if v, err := tx.GetVolume("n"); err != nil || v.Bytes != 200 {
			t.Errorf("%d, %v, want 200", v.Bytes, err)
		}
		return nil
	})
}

func TestATxEndsWithItsFunction(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job := protocol.NewJobID()
	var kept *store.Tx
	update(t, s, func(tx *store.Tx) error { kept = tx; return putChunk(job, 0)(tx) })
	if err := putChunk(job, 1)(kept); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a write after the end: %v, want ErrClosed", err)
	}
	if _, err := kept.GetChunk(job, 0); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a read after the end: %v, want ErrClosed", err)
	}
	if err := s.View(t.Context(), func(tx *store.Tx) error {
		for name, err := range map[string]error{
			"chunks": putChunk(job, 1)(tx), "leases": tx.PutLeases([]store.Lease{{Node: peerID("a")}}), "volume": tx.DeleteVolume("x"),
		} {
			if !errors.Is(err, store.ErrReadOnly) {
				t.Errorf("a view wrote %s: %v, want ErrReadOnly", name, err)
			}
		}
		return nil
	}); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("%v, want ErrReadOnly although the function returned nil", err)
	}
}

func TestAWalkInsideAWalkOfTheSameTable(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job := protocol.NewJobID()
	update(t, s, func(tx *store.Tx) error {
		for i := range uint64(10) {
			if err := putChunk(job, i)(tx); err != nil {
				return err
			}
		}
		return nil
	})
	for range 2 { // the second time with the statement that the first has left
		n := 0
		view(t, s, func(tx *store.Tx) error {
			for _, err := range tx.Chunks(job) {
				if err != nil {
					return err
				}
				n += count(t, tx, job)
			}
			return nil
		})
		if n != 100 {
			t.Fatalf("%d rows, want 10 × 10", n)
		}
	}
	view(t, s, func(tx *store.Tx) error {
		for range tx.Chunks(job) {
			break // an abandoned walk must not leave its statement running
		}
		if n := count(t, tx, job); n != 10 {
			t.Errorf("%d rows after an abandoned walk, want 10", n)
		}
		return nil
	})
}

func TestContextsAndCloseEndTheWait(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	job := protocol.NewJobID()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(ctx, putChunk(job, 0)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		cancel()
		if err := s.Update(ctx, putChunk(job, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting for the writer: %v, want Canceled", err)
		}
		return putChunk(job, 0)(tx)
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	update(t, s, func(tx *store.Tx) error {
		for i := range uint64(1000) {
			if err := putChunk(job, i)(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.View(ctx, func(tx *store.Tx) error {
		for _, err := range tx.Chunks(job) {
			if err != nil {
				return err
			}
			cancel()
		}
		return nil
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a long walk: %v, want Canceled", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), putChunk(job, 0)); !errors.Is(err, store.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if err := s.View(t.Context(), func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}

func TestTheFilesAreNobodyElses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "bridge.db"))
	update(t, s, putChunk(protocol.NewJobID(), 0))
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestDamageIsNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bridge.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(path, quiet); !errors.Is(err, store.ErrCorrupt) || !contains(err, path) {
		t.Errorf("%v, want ErrCorrupt naming the file", err)
	}

	path = filepath.Join(dir, "scribbled.db")
	s := open(t, path)
	job := protocol.NewJobID()
	update(t, s, func(tx *store.Tx) error {
		for i := range uint64(5000) {
			if err := putChunk(job, i)(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.Check(t.Context()); err != nil {
		t.Fatalf("a sound file: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 30 * 4096; i < 60*4096; i++ {
		b[i] ^= 0xa5
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if err := s.Check(t.Context()); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	if err := s.View(t.Context(), func(tx *store.Tx) error {
		for _, err := range tx.Chunks(job) {
			if err != nil {
				return err
			}
		}
		return nil
	}); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a walk over it: %v, want ErrCorrupt", err)
	}
}

func TestADirectoryThatIsNotThere(t *testing.T) {
	if _, err := store.Open(filepath.Join(t.TempDir(), "no", "bridge.db"), quiet); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, store.ErrIO) {
		t.Errorf("%v, want ErrIO and ErrNotExist", err)
	}
}
