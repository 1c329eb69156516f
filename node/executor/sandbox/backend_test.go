//go:build linux

package sandbox

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// testConfig is a configuration whose shim and init are this test binary.
func testConfig(t testing.TB, dir string) Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Dir = dir
	// Data races of a shim are found by nothingLeft; without -race this is an unused variable.
	cfg.Shim = []string{"/usr/bin/env", "GORACE=log_path=" + dir + racesEnd + " atexit_sleep_ms=0", self, "shim"}
	cfg.Init = []string{self, "sandbox-init"}
	return cfg
}

// newBackend returns a backend that leaves nothing behind, or the test fails.
func newBackend(t testing.TB, change func(*Config)) *Backend {
	t.Helper()
	if _, err := os.Stat(DefaultConfig().Bubblewrap); err != nil {
		t.Skip("bubblewrap is missing: apt-get install bubblewrap")
	}
	cfg := testConfig(t, filepath.Join(t.TempDir(), "state"))
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, cfg.Dir)
	})
	return b
}

// racesEnd begins the end of the names of files with data races, beside a backend's directory.
const racesEnd = "-races"

// nothingLeft fails if a sandbox, an exit file or a cgroup of it is still there.
func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	races, _ := filepath.Glob(dir + racesEnd + "*")
	for _, file := range races {
		text, _ := os.ReadFile(file)
		t.Errorf("a shim has a data race:\n%s", text)
	}
	for _, sub := range []string{boxesName, exitsName} {
		entries, _ := os.ReadDir(filepath.Join(dir, sub))
		for _, e := range entries {
			t.Errorf("%s/%s is left", sub, e.Name())
			for c, at := range ownGroups().named(e.Name()).dirs {
				if isDir(at) {
					t.Errorf("the %s cgroup %s is left with %v", c, at, processesOf(at))
				}
			}
		}
	}
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// job is a task that calls a function of the given module text with JSON arguments, one list each.
func job(t testing.TB, code string, inputs ...[]any) executor.Task {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	task := executor.Task{
		Lease: protocol.NewLeaseID(), Fence: 1, Tenant: "tenant", OutDir: t.TempDir(), Limits: executor.DefaultLimits(time.Minute),
		Function: &executor.Function{Runtime: "python3", Handler: "app:f", Code: dir, Spec: code, Workers: 1},
		Log:      executor.NewLog(executor.DefaultLogBytes, time.Now),
	}
	task.Limits.Memory = 256 << 20
	for i, args := range inputs {
		if args == nil {
			args = []any{}
		}
		raw, err := json.Marshal(map[string]any{"args": args, "kwargs": map[string]any{}})
		if err != nil {
			t.Fatal(err)
		}
		task.Inputs = append(task.Inputs, executor.Input{Index: uint64(i), Value: "task", Args: raw, Encoding: protocol.EncodingJSON})
	}
	return task
}

// again is the same work under a new lease.
func again(t testing.TB, task executor.Task) executor.Task {
	t.Helper()
	task.Lease, task.OutDir = protocol.NewLeaseID(), t.TempDir()
	task.Log = executor.NewLog(executor.DefaultLogBytes, time.Now)
	return task
}

func start(t testing.TB, b *Backend, task executor.Task) executor.Handle {
	t.Helper()
	p, err := b.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	h, err := b.Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func wait(t testing.TB, h executor.Handle) executor.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := h.Wait(ctx)
	if err != nil {
		t.Fatalf("waiting for %s: %v", h.Token(), err)
	}
	return out
}

// want runs a task and fails unless it ends for the given reason.
func want(t testing.TB, b *Backend, task executor.Task, why protocol.Reason) executor.Outcome {
	t.Helper()
	out := wait(t, start(t, b, task))
	if out.Reason != why {
		t.Fatalf("ended with %s, want %s: %s", out.Reason, why, out.FirstCause)
	}
	return out
}

// outcomeOf reads an input's outcome and result.
func outcomeOf(t testing.TB, task executor.Task, index uint64) (protocol.InputOutcome, string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(task.OutputDir(index), protocol.OutcomeFile))
	if err != nil {
		t.Fatal(err)
	}
	out, err := protocol.ParseInputOutcome(raw)
	if err != nil {
		t.Fatal(err)
	}
	result, err := os.ReadFile(filepath.Join(task.OutputDir(index), protocol.ResultFile))
	if (err == nil) != (out.Reason == protocol.ReasonDone) {
		t.Errorf("input %d ended with %s, and its result: %v", index, out.Reason, err)
	}
	return out, string(result)
}

func printed(task executor.Task) (lines []string) {
	records, _, _, _ := task.Log.Read(0, 1<<30)
	for _, r := range records {
		lines = append(lines, r.Line)
	}
	return lines
}

func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		b, err := os.ReadFile(p)
		all[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestProbeProvesTheSandbox(t *testing.T) {
	b := newBackend(t, nil)
	report, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", report)
	if report.Backend != "sandbox" || report.Level != executor.LevelShared || len(report.Checks) < 7 || len(report.Runtimes) == 0 {
		t.Errorf("report is %+v", report)
	}
}

func TestAFunctionIsCalledAndPrints(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f(x):\n    print('got', x)\n    return x * x\n", []any{3}, []any{4})
	var order []uint64
	task.OnInput = func(in executor.Input) { order = append(order, in.Index) }
	out := want(t, b, task, protocol.ReasonDone)
	if out.InputsDone != 2 || len(order) != 2 {
		t.Errorf("outcome is %+v, told %v", out, order)
	}
	for i, w := range []string{"9", "16"} {
		o, result := outcomeOf(t, task, uint64(i))
		if o.Reason != protocol.ReasonDone || result != w || o.Encoding != protocol.EncodingJSON || len(o.Log) != 1 {
			t.Errorf("input %d: %+v, result %q", i, o, result)
		}
	}
	if got := strings.Join(printed(task), "|"); got != "got 3|got 4" {
		t.Errorf("it printed %q", got)
	}
}
