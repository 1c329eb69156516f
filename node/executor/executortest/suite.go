package executortest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// Harness is a backend under test.
type Harness struct {
	// New returns a backend that is closed when the test ends.
	New func(t *testing.T) executor.Backend
	// Guest is the program in the guest directory, built for the backend.
	Guest executor.Module
	// Memory is a limit in bytes with which the guest can start.
	Memory int64
}

// suite is one run of the suite on one backend.
type suite struct {
	Harness
	backend executor.Backend
}

// Run runs the whole suite.
func Run(t *testing.T, h Harness) {
	s := &suite{Harness: h, backend: h.New(t)}
	for name, test := range map[string]func(*testing.T){
		"ProbeProvesTheBackend":            s.probe,
		"ExitCodesBecomeReasons":           s.exitCodes,
		"InputsRunInOrderInTheirOwnOutput": s.inputs,
		"FirstFailureEndsTheChunk":         s.firstFailure,
		"ArgumentsCarryInputAndIndex":      s.arguments,
		"EnvironmentIsTheTasks":            s.environment,
		"MountsAreReadOnly":                s.mounts,
		"OutputBehavesLikeAFileSystem":     s.files,
		"OutputLimitsHoldBeforeTheDisk":    s.outputLimits,
		"RemovedOutputIsNotCounted":        s.churn,
		"MemoryLimitEndsInOOM":             s.memory,
		"WallLimitEndsALoop":               s.wall,
		"StopEndsALoop":                    s.stop,
		"FirstReasonIsKept":                s.firstReason,
		"DeepRecursionEnds":                s.recursion,
		"NothingOfTheHostIsReached":        s.escape,
		"ClocksShowNothing":                s.clocks,
		"SameInputSameBytes":               s.deterministic,
		"LogIsARing":                       s.log,
		"BadTasksAreRefusedByField":        s.badTasks,
		"ReattachFindsARun":                s.reattach,
		"OneLeaseRunsOnce":                 s.oneLease,
		"ManyRunAtOnce":                    s.parallel,
		"CloseEndsRuns":                    s.close,
		"AFaultyMountIsNotTheJobsFault":    s.faultyMount,
		"WaitHonoursItsContext":            s.waitContext,
		"UsageGrowsAndIsInTheOutcome":      s.usage,
		"UnloadableModuleCarriesItsReason": s.unloadable,
		"OutputDirectoryMustBeFresh":       s.staleOutput,
		"OpenFilesAreBounded":              s.openFiles,
	} {
		t.Run(name, test)
	}
}

func (s *suite) task(t *testing.T, args ...string) executor.Task {
	t.Helper()
	limits := executor.DefaultLimits(time.Minute)
	limits.Memory = s.Memory
	return executor.Task{
		Lease:   protocol.NewLeaseID(),
		Fence:   1,
		Module:  s.Guest,
		Inputs:  []executor.Input{{Index: 7, Value: "seven"}},
		Command: append([]string{"guest"}, args...),
		OutDir:  t.TempDir(),
		Limits:  limits,
		Log:     executor.NewLog(executor.DefaultLogBytes, time.Now),
	}
}

func (s *suite) start(t *testing.T, task executor.Task) executor.Handle {
	t.Helper()
	p, err := s.backend.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.backend.Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func wait(t *testing.T, h executor.Handle) executor.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := h.Wait(ctx)
	if err != nil {
		t.Fatalf("waiting for %s: %v", h.Token(), err)
	}
	return out
}

func (s *suite) run(t *testing.T, task executor.Task) executor.Outcome {
	t.Helper()
	return wait(t, s.start(t, task))
}

// want runs a task and fails unless it ends for the given reason.
func (s *suite) want(t *testing.T, task executor.Task, why protocol.Reason) executor.Outcome {
	t.Helper()
	out := s.run(t, task)
	if out.Reason != why {
		t.Fatalf("%v ended with reason %d, want %d: %s", task.Command, out.Reason, why, out.FirstCause)
	}
	if (out.FirstCause == "") != (why == protocol.ReasonDone) {
		t.Errorf("first cause is %q for reason %d", out.FirstCause, why)
	}
	if len(out.FirstCause) > executor.MaxFirstCause {
		t.Errorf("first cause has %d bytes", len(out.FirstCause))
	}
	if out.Ended.Before(out.Started) || out.Started.IsZero() {
		t.Errorf("started %v, ended %v", out.Started, out.Ended)
	}
	return out
}

// spinning starts an endless loop and returns when it turns.
func (s *suite) spinning(t *testing.T, task executor.Task) executor.Handle {
	t.Helper()
	h := s.start(t, task)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := task.Log.Wait(ctx, 0); err != nil {
		t.Fatalf("the loop has not begun: %v", err)
	}
	return h
}

func printed(task executor.Task) string {
	var b strings.Builder
	records, _, _, _ := task.Log.Read(0, 1<<30)
	for _, r := range records {
		b.WriteString(r.Line + "\n")
	}
	return b.String()
}

// tree is all files below a directory, with their contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		all[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (s *suite) probe(t *testing.T) {
	report, err := s.backend.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Backend == "" || report.Version == "" || report.Level == 0 || len(report.Checks) == 0 {
		t.Errorf("report is %+v", report)
	}
}

func (s *suite) exitCodes(t *testing.T) {
	for code, why := range map[int32]protocol.Reason{
		0: protocol.ReasonDone, 1: protocol.ReasonExitNonzero, 3: protocol.ReasonExitNonzero, 255: protocol.ReasonExitNonzero,
		126: protocol.ReasonBadCommand, 127: protocol.ReasonBadCommand,
	} {
		if out := s.want(t, s.task(t, "exit", fmt.Sprint(code)), why); out.ExitCode != code {
			t.Errorf("exit code is %d, want %d", out.ExitCode, code)
		}
	}
	out := s.want(t, s.task(t, "cat", "/data/missing"), protocol.ReasonExitNonzero)
	if !strings.Contains(out.FirstCause, "/data/missing") || !strings.Contains(out.FirstCause, "input 7") {
		t.Errorf("first cause %q names neither what the program complained of nor the input", out.FirstCause)
	}
}

func (s *suite) inputs(t *testing.T) {
	task := s.task(t, "write", "/out/result", "{index}={input}")
	task.Inputs = []executor.Input{{Index: 9, Value: "i"}, {Index: 2, Value: "ii"}, {Index: 1 << 60, Value: "iii"}}
	var order []uint64
	task.OnInput = func(in executor.Input) { order = append(order, in.Index) }
	if out := s.want(t, task, protocol.ReasonDone); out.InputsDone != 3 || out.Usage.OutputFiles != 3 || out.Usage.OutputBytes != 30 {
		t.Errorf("outcome is %+v", out)
	}
	if !slices.Equal(order, []uint64{9, 2, 1 << 60}) {
		t.Errorf("inputs ran in the order %v", order)
	}
	want := map[string]string{"9/result": "9=i", "2/result": "2=ii", "1152921504606846976/result": "1152921504606846976=iii"}
	if got := tree(t, task.OutDir); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("outputs are %v, want %v", got, want)
	}
}

func (s *suite) firstFailure(t *testing.T) {
	task := s.task(t, "exit", "{input}")
	task.Inputs = []executor.Input{{Index: 0, Value: "0"}, {Index: 1, Value: "5"}, {Index: 2, Value: "6"}}
	if out := s.want(t, task, protocol.ReasonExitNonzero); out.InputsDone != 1 || out.ExitCode != 5 {
		t.Errorf("outcome is %+v, want 1 input done and exit code 5", out)
	}
}

func (s *suite) arguments(t *testing.T) {
	task := s.task(t, "print", "a{input}b", "{index}", "{inputs}", "")
	task.Inputs[0].Value = "x {index}"
	s.want(t, task, protocol.ReasonDone)
	if got, want := printed(task), "ax {index}b 7 {inputs} \n"; got != want {
		t.Errorf("it printed %q, want %q", got, want)
	}
}

func (s *suite) environment(t *testing.T) {
	t.Setenv("GRIDBEAM_TEST_SECRET", "leaked")
	task := s.task(t, "env", "NAME")
	task.Env = map[string]string{"NAME": "value = 1"}
	s.want(t, task, protocol.ReasonDone)
	if got := printed(task); got != "value = 1\n" {
		t.Errorf("variable is %q", got)
	}
	task = s.task(t, "env", "GRIDBEAM_TEST_SECRET")
	s.want(t, task, protocol.ReasonDone)
	if got := printed(task); got != "\n" {
		t.Errorf("the host's environment shows: %q", got)
	}
}

// volume is a host directory as a mount that keeps within itself, and a secret beside it with links to it.
func volume(t *testing.T) (m executor.Mount, dir, secret string) {
	t.Helper()
	base := t.TempDir()
	dir, secret = filepath.Join(base, "volume"), filepath.Join(base, "secret")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "dir"), 0o755),
		os.WriteFile(secret, []byte("secret"), 0o644),
		os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644),
		os.WriteFile(filepath.Join(dir, "dir", "b"), []byte("bb"), 0o644),
		os.WriteFile(filepath.Join(dir, "dir", "a"), []byte("a"), 0o644),
		os.Symlink(secret, filepath.Join(dir, "link")),
		os.Symlink("../../secret", filepath.Join(dir, "dir", "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return executor.Mount{FS: root.FS(), Target: "/data", ReadOnly: true}, dir, secret
}

func (s *suite) mounts(t *testing.T) {
	m, _, _ := volume(t)
	task := s.task(t, "cat", "/data/file")
	task.Mounts = []executor.Mount{m}
	s.want(t, task, protocol.ReasonDone)
	if got := printed(task); got != "content\n" {
		t.Errorf("file has %q", got)
	}
	sub, err := fs.Sub(m.FS, "dir")
	if err != nil {
		t.Fatal(err)
	}
	task = s.task(t, "list", "/sub")
	task.Mounts = []executor.Mount{m, {FS: sub, Target: "/sub/deep", ReadOnly: true}}
	s.want(t, task, protocol.ReasonDone)
	want := "/sub true 0 0\n/sub/deep true 0 0\n/sub/deep/a false 1 0\n/sub/deep/b false 2 0\n"
	if got := printed(task); got != want {
		t.Errorf("the mount shows\n%s\nwant\n%s", got, want)
	}
}

func (s *suite) files(t *testing.T) {
	task := s.task(t, "files")
	out := s.want(t, task, protocol.ReasonDone)
	want := map[string]string{"7/c/b/final": "hello therex", "7/c/x": "x", "7/c/y": "y", "7/c/z": "z"}
	if got := tree(t, task.OutDir); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("outputs are %v, want %v", got, want)
	}
	if out.Usage.OutputBytes != 15 || out.Usage.OutputFiles != 6 {
		t.Errorf("usage is %+v, want 15 bytes in 4 files and 2 directories", out.Usage)
	}
	s.want(t, s.task(t, "refuse"), protocol.ReasonDone)
}

func (s *suite) outputLimits(t *testing.T) {
	const most = 1 << 20
	for name, args := range map[string][]string{
		"write":      {"fill", "/out/f", "1048577"},
		"persist":    {"fill", "/out/f", "1048577", "whatever happens"},
		"truncate":   {"sparse", "/out/f", "1048577"},
		"write far":  {"sparse", "/out/f", "1048576", "write"},
		"keep open":  {"churn", "/out/f", "400000", "3", "hold"},
		"many files": {"litter", "/out", "101"},
	} {
		t.Run(name, func(t *testing.T) {
			task := s.task(t, args...)
			task.Limits.OutputBytes, task.Limits.OutputFiles = most, 100
			out := s.want(t, task, protocol.ReasonOutputTooLarge)
			if out.Usage.OutputBytes > most || out.Usage.OutputFiles > 100 {
				t.Errorf("usage is %+v", out.Usage)
			}
			if got := tree(t, task.OutDir); len(got) > 100 || len(got["7/f"]) > most {
				t.Errorf("the disk has %d files, f of %d bytes", len(got), len(got["7/f"]))
			}
		})
	}
	for name, args := range map[string][]string{
		"write":      {"fill", "/out/f", "1048576"},
		"truncate":   {"sparse", "/out/f", "1048576"},
		"many files": {"litter", "/out", "100"},
	} {
		t.Run(name+" just fits", func(t *testing.T) {
			task := s.task(t, args...)
			task.Limits.OutputBytes, task.Limits.OutputFiles = most, 100
			s.want(t, task, protocol.ReasonDone)
		})
	}
}

func (s *suite) churn(t *testing.T) {
	task := s.task(t, "churn", "/out/f", "400000", "20", "close")
	task.Limits.OutputBytes, task.Limits.OutputFiles = 1<<20, 2
	if out := s.want(t, task, protocol.ReasonDone); out.Usage.OutputBytes != 0 || out.Usage.OutputFiles != 0 {
		t.Errorf("usage is %+v, want nothing left", out.Usage)
	}
}

func (s *suite) memory(t *testing.T) {
	task := s.task(t, "alloc", fmt.Sprint(s.Memory*2))
	out := s.want(t, task, protocol.ReasonOOM)
	if out.Usage.MaxMemoryBytes > s.Memory {
		t.Errorf("it had %d bytes, the limit is %d", out.Usage.MaxMemoryBytes, s.Memory)
	}
	s.want(t, s.task(t, "alloc", fmt.Sprint(s.Memory/4)), protocol.ReasonDone)
}

func (s *suite) wall(t *testing.T) {
	task := s.task(t, "spin")
	task.Limits.Wall = 300 * time.Millisecond
	out := s.want(t, task, protocol.ReasonTimeout)
	if took := out.Ended.Sub(out.Started); took < 300*time.Millisecond || took > 10*time.Second {
		t.Errorf("it ran for %s, the limit is 300 ms", took)
	}
}

func (s *suite) stop(t *testing.T) {
	task := s.task(t, "spin")
	h := s.spinning(t, task)
	h.Stop(protocol.ReasonCancelled, 0)
	if out := wait(t, h); out.Reason != protocol.ReasonCancelled || out.InputsDone != 0 {
		t.Errorf("outcome is %+v", out)
	}
	h.Stop(protocol.ReasonCancelled, 0) // a second time, and after the end
	if out := wait(t, h); out.Reason != protocol.ReasonCancelled {
		t.Errorf("outcome changed to %+v", out)
	}
}

func (s *suite) firstReason(t *testing.T) {
	h := s.spinning(t, s.task(t, "spin"))
	h.Stop(protocol.ReasonDrained, 0)
	h.Stop(protocol.ReasonCancelled, 0)
	if out := wait(t, h); out.Reason != protocol.ReasonDrained {
		t.Errorf("reason is %d, want the first", out.Reason)
	}
}

func (s *suite) recursion(t *testing.T) {
	out := s.run(t, s.task(t, "recurse"))
	switch out.Reason {
	case protocol.ReasonSignal, protocol.ReasonOOM, protocol.ReasonExitNonzero:
	default:
		t.Errorf("reason is %d: %s", out.Reason, out.FirstCause)
	}
}

func (s *suite) escape(t *testing.T) {
	m, dir, secret := volume(t)
	before := tree(t, filepath.Dir(dir))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	witness := make(chan struct{})
	go func() { // the host's own eyes: whoever connects is seen, whatever the job says
		defer close(witness)
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
			t.Error("the job connected to a service of the host")
		}
	}()
	task := s.task(t, "escape", secret, l.Addr().String())
	task.Mounts = []executor.Mount{m}
	s.want(t, task, protocol.ReasonDone)
	_ = l.Close()
	<-witness
	if got := printed(task); got != "got: \n" {
		t.Errorf("the job %s", got)
	}
	if after := tree(t, filepath.Dir(dir)); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the host's files are %v, were %v", after, before)
	}
	for name := range tree(t, task.OutDir) {
		t.Errorf("the job left %s", name)
	}
}

func (s *suite) badTasks(t *testing.T) {
	m, _, _ := volume(t)
	for field, change := range map[string]func(*executor.Task){
		"Module.CID":         func(t *executor.Task) { t.Module.CID = "" },
		"Module.Load":        func(t *executor.Task) { t.Module.Load = nil },
		"Inputs":             func(t *executor.Task) { t.Inputs = nil },
		"index 7 comes":      func(t *executor.Task) { t.Inputs = append(t.Inputs, t.Inputs...) },
		"input 7 has a zero": func(t *executor.Task) { t.Inputs[0].Value = "a\x00" },
		"Command":            func(t *executor.Task) { t.Command = nil },
		"Command[1]":         func(t *executor.Task) { t.Command[1] = "\x00" },
		"Env":                func(t *executor.Task) { t.Env = map[string]string{"a=b": "c"} },
		"OutDir":             func(t *executor.Task) { t.OutDir = "out" },
		"Mounts[0].FS":       func(t *executor.Task) { t.Mounts = []executor.Mount{{Target: "/data", ReadOnly: true}} },
		"Mounts[0].Target":   func(t *executor.Task) { t.Mounts = []executor.Mount{{FS: m.FS, Target: "data", ReadOnly: true}} },
		"lies in /out":       func(t *executor.Task) { t.Mounts = []executor.Mount{{FS: m.FS, Target: "/out/x", ReadOnly: true}} },
		"Mounts[1].Target":   func(t *executor.Task) { t.Mounts = []executor.Mount{m, m} },
		"Mounts[0].ReadOnly": func(t *executor.Task) { t.Mounts = []executor.Mount{{FS: m.FS, Target: "/data"}} },
		"Limits.Memory":      func(t *executor.Task) { t.Limits.Memory = 0 },
		"Limits.Wall":        func(t *executor.Task) { t.Limits.Wall = 0 },
		"Limits.OutputBytes": func(t *executor.Task) { t.Limits.OutputBytes = -1 },
		"Limits.OutputFiles": func(t *executor.Task) { t.Limits.OutputFiles = 0 },
		"Limits.OpenFiles":   func(t *executor.Task) { t.Limits.OpenFiles = 0 },
	} {
		task := s.task(t, "exit", "0")
		change(&task)
		_, err := s.backend.Prepare(t.Context(), task)
		if !errors.Is(err, executor.ErrBadTask) || !strings.Contains(err.Error(), field) || executor.ReasonOf(err, 0) == 0 {
			t.Errorf("%s: error is %v", field, err)
		}
	}
}
