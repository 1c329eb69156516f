package executortest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

func (s *suite) clocks(t *testing.T) {
	task := s.task(t, "clock")
	s.want(t, task, protocol.ReasonDone)
	got := tree(t, task.OutDir)["7/clock"]
	at, slept, _ := strings.Cut(got, " ")
	ns, err := strconv.ParseInt(at, 10, 64)
	if err != nil || ns < 0 || ns > int64(time.Minute) {
		t.Errorf("the wall clock shows %q ns since 1970, want about 0", at)
	}
	if d, err := time.ParseDuration(slept); err != nil || d < time.Hour || d > time.Hour+time.Minute {
		t.Errorf("an hour of sleep seemed to take %q", slept)
	}
}

// deterministic runs inputs in chunks of different sizes and twice.
func (s *suite) deterministic(t *testing.T) {
	for _, act := range []string{"random", "clock"} {
		var want map[string]string
		for _, size := range []int{1, 2, 4, 4} {
			got := map[string]string{}
			for first := 0; first < 4; first += size {
				task := s.task(t, act)
				task.Seed[0] = 1
				task.Inputs = nil
				for i := first; i < first+size; i++ {
					task.Inputs = append(task.Inputs, executor.Input{Index: uint64(i)})
				}
				s.want(t, task, protocol.ReasonDone)
				maps.Copy(got, tree(t, task.OutDir))
			}
			if want == nil {
				want = got
			}
			if len(got) != 4 || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: chunks of %d gave %v, want %v", act, size, got, want)
			}
		}
		if act == "random" && (want["0/random"] == want["1/random"] || want["0/random"] == "") {
			t.Error("two inputs draw the same random numbers")
		}
	}
	task := s.task(t, "random")
	task.Inputs[0].Index, task.Seed[0] = 0, 2
	s.want(t, task, protocol.ReasonDone)
	other := s.task(t, "random")
	other.Inputs[0].Index, other.Seed[0] = 0, 1
	s.want(t, other, protocol.ReasonDone)
	if tree(t, task.OutDir)["0/random"] == tree(t, other.OutDir)["0/random"] {
		t.Error("two jobs draw the same random numbers")
	}
}

func (s *suite) log(t *testing.T) {
	task := s.task(t, "flood", "100000")
	task.Log = executor.NewLog(10_000, time.Now)
	out := s.want(t, task, protocol.ReasonDone)
	if out.LogKept > 10_000 || out.LogKept < 5000 || out.LogKept+out.LogDropped != 100_000 {
		t.Errorf("log has %d bytes, dropped %d, of 100000", out.LogKept, out.LogDropped)
	}
	records, next, lost, end := task.Log.Read(0, 1<<20)
	if lost != out.LogDropped || next != 100_000 || end || !strings.HasPrefix(records[len(records)-1].Line, "000000999") {
		t.Errorf("read %d records to %d, lost %d, end %v", len(records), next, lost, end)
	}
	task = s.task(t, "complain", "to stderr")
	s.want(t, task, protocol.ReasonDone)
	if records, _, _, _ := task.Log.Read(0, 1<<20); len(records) != 1 || records[0].Stream != executor.Stderr || records[0].Line != "to stderr" {
		t.Errorf("records are %+v", records)
	}
}

func (s *suite) reattach(t *testing.T) {
	task := s.task(t, "spin")
	h := s.spinning(t, task)
	again, err := s.backend.Reattach(t.Context(), h.Token(), nil)
	if err != nil {
		t.Fatal(err)
	}
	again.Stop(protocol.ReasonCancelled, 0)
	if out := wait(t, h); out.Reason != protocol.ReasonCancelled {
		t.Errorf("reason is %d", out.Reason)
	}
	for _, token := range []executor.Token{h.Token(), "", "other:token"} {
		if _, err := s.backend.Reattach(t.Context(), token, nil); !errors.Is(err, executor.ErrGone) {
			t.Errorf("reattaching %q: %v, want ErrGone", token, err)
		}
	}
}

func (s *suite) oneLease(t *testing.T) {
	task := s.task(t, "spin")
	h := s.spinning(t, task)
	p, err := s.backend.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.backend.Start(t.Context(), p); err == nil {
		t.Error("one lease was started twice")
	}
	h.Stop(protocol.ReasonCancelled, 0)
	wait(t, h)
	task.Command = []string{"guest", "exit", "0"}
	s.want(t, task, protocol.ReasonDone) // the lease's name is free again
}

func (s *suite) parallel(t *testing.T) {
	var all sync.WaitGroup
	for i := range 16 {
		task := s.task(t, "write", "/out/result", "{input}")
		task.Inputs = []executor.Input{{Index: uint64(i), Value: strconv.Itoa(i * i)}}
		all.Go(func() {
			p, err := s.backend.Prepare(t.Context(), task)
			if err != nil {
				t.Error(err)
				return
			}
			h, err := s.backend.Start(t.Context(), p)
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := h.Wait(t.Context()); err != nil || out.Reason != protocol.ReasonDone {
				t.Errorf("outcome is %+v, %v", out, err)
				return
			}
			b, err := os.ReadFile(filepath.Join(task.OutputDir(uint64(i)), "result"))
			if err != nil || string(b) != strconv.Itoa(i*i) {
				t.Errorf("input %d wrote %q, %v", i, b, err)
			}
		})
	}
	all.Wait()
}

func (s *suite) close(t *testing.T) {
	other := &suite{Harness: s.Harness, backend: s.New(t)}
	h := other.spinning(t, other.task(t, "spin"))
	if c, ok := other.backend.(interface{ Close() error }); ok {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if out := wait(t, h); out.Reason != protocol.ReasonDrained {
			t.Errorf("reason is %d, want drained", out.Reason)
		}
		if _, err := other.backend.Prepare(t.Context(), other.task(t, "exit", "0")); err == nil {
			_, err = other.backend.Start(t.Context(), &executor.Prepared{Task: other.task(t, "exit", "0")})
			if !errors.Is(err, executor.ErrClosed) {
				t.Errorf("starting on a closed backend: %v", err)
			}
		}
		return
	}
	h.Stop(protocol.ReasonDrained, 0)
	wait(t, h)
}

// brokenFS is a volume whose blocks cannot be fetched.
type brokenFS struct {
	fstest.MapFS
	err error
}

type brokenFile struct {
	fs.File
	err error
}

func (b brokenFS) Open(name string) (fs.File, error) {
	f, err := b.MapFS.Open(name)
	if err == nil && name == "file" {
		f = brokenFile{File: f, err: b.err}
	}
	return f, err
}

func (b brokenFile) Read([]byte) (int, error) { return 0, b.err }

func (s *suite) faultyMount(t *testing.T) {
	for why, err := range map[protocol.Reason]error{
		protocol.ReasonDataUnavailable: errors.New("nobody has the block"),
		protocol.ReasonNodeDiskFull:    executor.Fail(protocol.ReasonNodeDiskFull, "no room for the block"),
	} {
		task := s.task(t, "cat", "/data/file")
		task.Mounts = []executor.Mount{{FS: brokenFS{fstest.MapFS{"file": {Data: []byte("x")}}, err}, Target: "/data", ReadOnly: true}}
		if out := s.want(t, task, why); !strings.Contains(out.FirstCause, err.Error()) {
			t.Errorf("first cause %q lacks %q", out.FirstCause, err)
		}
	}
}

func (s *suite) waitContext(t *testing.T) {
	h := s.spinning(t, s.task(t, "spin"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	h.Stop(protocol.ReasonCancelled, 0)
	wait(t, h)
}

func (s *suite) usage(t *testing.T) {
	task := s.task(t, "spin")
	task.Limits.Wall = 30 * time.Second
	h := s.spinning(t, task)
	deadline := time.NewTicker(5 * time.Millisecond)
	defer deadline.Stop()
	for h.Usage().CPUMillis < 20 {
		select {
		case <-deadline.C:
		case <-t.Context().Done():
			t.Fatal("no processor time was counted")
		}
	}
	seen := h.Usage()
	h.Stop(protocol.ReasonCancelled, 0)
	out := wait(t, h)
	if out.Usage.CPUMillis < seen.CPUMillis || out.Usage != h.Usage() {
		t.Errorf("usage is %+v in the end, was %+v", out.Usage, seen)
	}
	if most := out.Ended.Sub(out.Started).Milliseconds() + 100; out.Usage.CPUMillis > most {
		t.Errorf("one thread used %d ms of processor time in %d ms", out.Usage.CPUMillis, most)
	}
	if out.Usage.MaxMemoryBytes <= 0 || out.Usage.MaxMemoryBytes > s.Memory {
		t.Errorf("it had %d bytes of memory", out.Usage.MaxMemoryBytes)
	}
}

func (s *suite) unloadable(t *testing.T) {
	for why, err := range map[protocol.Reason]error{
		protocol.ReasonDataUnavailable: errors.New("nobody has it"),
		protocol.ReasonNodeDiskFull:    executor.Fail(protocol.ReasonNodeDiskFull, "no room for it"),
	} {
		task := s.task(t, "exit", "0")
		task.Module = executor.Module{CID: "unloadable", Load: func(context.Context) ([]byte, error) { return nil, err }}
		_, got := s.backend.Prepare(t.Context(), task)
		if !errors.Is(got, err) || executor.ReasonOf(got, 0) != why {
			t.Errorf("error is %v with reason %d, want %v with %d", got, executor.ReasonOf(got, 0), err, why)
		}
	}
}

func (s *suite) staleOutput(t *testing.T) {
	task := s.task(t, "write", "/out/result", "new")
	if err := os.MkdirAll(task.OutputDir(7), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(task.OutputDir(7), "result"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.want(t, task, protocol.ReasonBackendFailed)
	if got := tree(t, task.OutDir)["7/result"]; got != "old" {
		t.Errorf("what an earlier run left was overwritten: %q", got)
	}
}

func (s *suite) openFiles(t *testing.T) {
	task := s.task(t, "hoard")
	task.Limits.OpenFiles = 20
	s.want(t, task, protocol.ReasonDone)
	if n, err := strconv.Atoi(strings.TrimSpace(printed(task))); err != nil || n < 10 || n > 20 {
		t.Errorf("it held %d files open, the limit is 20 (%v)", n, err)
	}
}
