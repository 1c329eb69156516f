package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

var crashJob = protocol.JobID{0xc7}

// child is what the test binary does when it was started as a process of its own: it opens the database,
// commits one step after the other and says each number once its commit has returned.
func child(path string) {
	s, err := store.Open(path, quiet)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if os.Getenv("GRIDBEAM_STORE_HOLD") != "" {
		fmt.Println("holding")
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = s.Close()
		return
	}
	for i := steps(s); ; i++ {
		if err := s.Update(context.Background(), step(i)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// step is an Update of several tables that has to be there wholly or not at all.
func step(i uint64) func(*store.Tx) error {
	return func(t *store.Tx) error {
		c, l := grant(crashJob, i, peerID("a"))
		c, l, r := finish(c, l)
		_, err := t.LedgerForce(charge(fmt.Sprintf("charge/%d", i), "u", int64(i)+20))
		return errors.Join(err, t.PutChunks([]store.Chunk{c}), t.PutLeases([]store.Lease{l}), t.PutResults([]store.Result{r}))
	}
}

// steps counts the steps that are there and panics when one of them is there in part or out of order.
func steps(s *store.Store) (n uint64) {
	if err := s.View(context.Background(), func(t *store.Tx) error {
		var chunks, leases, results, charges uint64
		for c, err := range t.Chunks(crashJob) {
			if err != nil || c.First != chunks || c.State != "done" {
				return fmt.Errorf("chunk %d of %d: %+v, %w", c.First, chunks, c, err)
			}
			chunks++
		}
		for _, err := range t.Attempts(crashJob) {
			if err != nil {
				return err
			}
			leases++
		}
		for r, err := range t.Results(crashJob) {
			if err != nil || r.First != results {
				return fmt.Errorf("result %d of %d: %w", r.First, results, err)
			}
			results++
		}
		for x, err := range t.Transactions(0) {
			if err != nil || x.ID != fmt.Sprintf("charge/%d", charges) {
				return fmt.Errorf("transaction %s of %d: %w", x.ID, charges, err)
			}
			charges++
		}
		if n = chunks; leases != n || results != n || charges != n {
			return fmt.Errorf("%d chunks, %d leases, %d results, %d charges", chunks, leases, results, charges)
		}
		return t.LedgerVerify()
	}); err != nil {
		panic(err)
	}
	return n
}

// start runs this binary as child; stop waits for its end.
func start(t *testing.T, path string, env ...string) (cmd *exec.Cmd, lines *bufio.Scanner, stdin io.Closer) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "GRIDBEAM_STORE_CHILD="+path)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out), in
}

func TestEveryAnsweredCommitSurvivesSIGKILL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bridge.db")
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 5 {
		cmd, lines, _ := start(t, path)
		answered, wait := int64(-1), 20+rng.IntN(150)
		for n := 0; lines.Scan(); n++ {
			i, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			answered = i
			if n == wait {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child was to be killed")
		}
		s := open(t, path)
		n := steps(s)
		if int64(n) <= answered {
			t.Fatalf("round %d: %d steps are there, step %d was answered", round, n, answered)
		}
		if int64(n) > answered+2 {
			t.Fatalf("round %d: %d steps are there, only step %d was answered", round, n, answered)
		}
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASecondProcessIsToldWhoHoldsTheDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bridge.db")
	cmd, lines, stdin := start(t, path, "GRIDBEAM_STORE_HOLD=1")
	if !lines.Scan() || lines.Text() != "holding" {
		t.Fatalf("the child says %q", lines.Text())
	}
	_, err := store.Open(path, quiet)
	if !errors.Is(err, store.ErrLocked) || !contains(err, fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("%v, want ErrLocked naming process %d", err, cmd.Process.Pid)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if _, err := store.Open(path, quiet); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second time in this process: %v, want ErrLocked", err)
	}
}

func copyFile(t *testing.T, to, from string, limit int64) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if limit >= 0 && int64(len(b)) > limit {
		b = b[:limit]
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestACopyOfTheFilesMidUpdateHoldsWhatWasCommitted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bridge.db")
	s := open(t, path)
	for i := range uint64(300) { // long enough that the log is folded in between
		update(t, s, func(tx *store.Tx) error {
			if i%50 == 49 {
				if err := step(i)(tx); err != nil {
					return err
				}
				image := filepath.Join(dir, fmt.Sprint("image", i))
				copyFile(t, image, path, -1)
				copyFile(t, image+"-wal", path+"-wal", -1)
				if n := steps(open(t, image)); n != i {
					t.Errorf("the image has %d steps, want the %d that were committed", n, i)
				}
				return nil
			}
			return step(i)(tx)
		})
	}
}

func TestALogThatWasTornAnywhereHoldsWholeUpdates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bridge.db")
	s := open(t, path)
	for i := range uint64(40) {
		update(t, s, step(i))
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	seen := map[uint64]bool{}
	for i := range 60 {
		cut := rng.Int64N(info.Size() + 1)
		image := filepath.Join(dir, fmt.Sprint("image", i))
		copyFile(t, image, path, -1)
		copyFile(t, image+"-wal", path+"-wal", cut)
		torn, err := store.Open(image, quiet)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		seen[steps(torn)] = true
		if err := torn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d different lengths: the cuts missed the log", len(seen))
	}
}

// full mounts a small disk of memory, or skips the test where that is not allowed.
func full(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOT PASSED: a full disk needs a tmpfs, which needs root: %v: %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func TestAFullDiskLosesOnlyTheUpdateThatMetIt(t *testing.T) {
	dir := full(t, "4m")
	path, ballast := filepath.Join(dir, "bridge.db"), filepath.Join(dir, "ballast")
	s := open(t, path)
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	done, refused := uint64(0), 0
	for refused < 20 { // again and again: a refusal must leave the Store usable
		switch err := s.Update(t.Context(), step(done)); {
		case err == nil:
			done++
		case errors.Is(err, store.ErrNoSpace):
			refused++
		default:
			t.Fatalf("after %d steps: %v, want ErrNoSpace", done, err)
		}
		if done > 100_000 {
			t.Fatal("the disk does not get full")
		}
	}
	if n := steps(s); n != done {
		t.Fatalf("%d steps on the full disk, %d were answered", n, done)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		update(t, s, step(done))
		done++
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if n := steps(s); n != done {
		t.Fatalf("%d steps after reopening, %d were answered", n, done)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestADiskThatIsFullFromTheStart(t *testing.T) {
	dir := full(t, "1m")
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20-3*4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(filepath.Join(dir, "bridge.db"), quiet); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
}
