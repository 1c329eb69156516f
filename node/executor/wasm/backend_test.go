package wasm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if guest.dir != "" {
			_ = os.RemoveAll(guest.dir)
		}
		os.Exit(code)
	}))
}

func newBackend(t testing.TB, change func(*Config)) *Backend {
	t.Helper()
	cfg := DefaultConfig()
	cfg.CompileTimeout = 5 * time.Minute // the race detector makes a compiler twenty times slower
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func newTask(t testing.TB, cid string, binary []byte, inputs ...executor.Input) executor.Task {
	t.Helper()
	if len(inputs) == 0 {
		inputs = []executor.Input{{}}
	}
	limits := executor.DefaultLimits(30 * time.Second)
	limits.Memory = 64 << 20
	return executor.Task{
		Lease:   protocol.NewLeaseID(),
		Module:  executor.Module{CID: cid, Load: func(context.Context) ([]byte, error) { return binary, nil }},
		Inputs:  inputs,
		Command: []string{"prog"},
		OutDir:  t.TempDir(),
		Limits:  limits,
		Log:     executor.NewLog(executor.DefaultLogBytes, time.Now),
	}
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

func runTask(t testing.TB, b *Backend, task executor.Task) executor.Outcome {
	t.Helper()
	out, err := start(t, b, task).Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProbePassesAndLeavesNothingBehind(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	report, err := newBackend(t, nil).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Level != executor.LevelStrong || len(report.Checks) != len(selfTests()) {
		t.Errorf("report is %+v", report)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
		t.Errorf("probe left %v", left)
	}
}

// writeOnce stores an iovec at address 0 that points at n bytes from address 64, and pushes the arguments of
// fd_write(fd, 0, 1, 32).
func writeOnce(fd, n int32) []byte {
	return join(
		i32(0), i32(64), []byte{0x36, 2, 0}, // i32.store
		i32(4), i32(n), []byte{0x36, 2, 0},
		i32(fd), i32(0), i32(1), i32(32), call(0), []byte{0x1a})
}

func loop(body []byte) []byte { return join([]byte{0x03, 0x40}, body, []byte{0x0c, 0, 0x0b}) }

func TestLogBombIsHeldToItsRing(t *testing.T) {
	p := program{imports: []hostCall{importsWrite}, pages: 32, code: loop(writeOnce(1, 1<<20))}
	task := newTask(t, "log-bomb", p.assemble())
	task.Limits.Wall = 300 * time.Millisecond
	task.Log = executor.NewLog(1<<20, time.Now)
	out := runTask(t, newBackend(t, nil), task)
	if out.Reason != protocol.ReasonTimeout || out.LogKept > 1<<20 || out.LogDropped < 1<<20 {
		t.Errorf("outcome is %+v", out)
	}
}

// TestHostCallOfManyPiecesIsStopped makes one call that would move 8 TiB: 8,192 iovecs of the whole memory.
func TestHostCallOfManyPiecesIsStopped(t *testing.T) {
	const pages, iovecs = 1024, 1 << 20
	fill := join( // local 0 counts down: mem[8*i] = 0, mem[8*i+4] = all of the memory
		i32(iovecs), []byte{0x21, 0},
		loop(join(
			[]byte{0x20, 0, 0x41, 3, 0x74}, i32(pages*pageBytes), []byte{0x36, 2, 4}, // i32.store offset=4
			[]byte{0x20, 0}, i32(1), []byte{0x6b, 0x22, 0, 0x0d, 0}, // local.tee; br_if 0
			[]byte{0x0c, 1},
		)))
	// The loop above leaves by br 1, out of a block.
	code := join([]byte{0x02, 0x40}, fill, []byte{0x0b}, i32(1), i32(8), i32(iovecs-1), i32(0), call(0), []byte{0x1a})
	p := program{imports: []hostCall{importsWrite}, pages: pages, locals: 1, code: code}
	task := newTask(t, "iovec-bomb", p.assemble())
	task.Limits.Wall = 200 * time.Millisecond
	task.Limits.Memory = pages * pageBytes
	task.Log = nil
	out := runTask(t, newBackend(t, nil), task)
	if out.Reason != protocol.ReasonTimeout || out.Ended.Sub(out.Started) > 5*time.Second {
		t.Errorf("outcome is %+v after %s", out, out.Ended.Sub(out.Started))
	}
}

func TestRenumberingCannotGrowTheDescriptorTable(t *testing.T) {
	p := program{imports: []hostCall{{name: "fd_renumber", params: 2}, importExit}, code: join(i32(1), i32(1<<31-1), call(0), call(1))}
	if out := runTask(t, newBackend(t, nil), newTask(t, "renumber", p.assemble())); out.ExitCode != errnoNotsup {
		t.Errorf("outcome is %+v, want exit code %d", out, errnoNotsup)
	}
}

func TestTrapsAreNamedAsSignals(t *testing.T) {
	b := newBackend(t, nil)
	for name, test := range map[string]struct {
		code   []byte
		signal int32
		text   string
	}{
		"unreachable":    {[]byte{0x00}, sigILL, "unreachable"},
		"out of bounds":  {join(i32(-4), []byte{0x28, 2, 0, 0x1a}), sigSEGV, "out of bounds"},
		"divide by zero": {join(i32(1), i32(0), []byte{0x6d, 0x1a}), sigFPE, "divide by zero"},
		"recursion":      {call(0), sigSEGV, "stack overflow"},
	} {
		p := program{code: test.code}
		out := runTask(t, b, newTask(t, name, p.assemble()))
		if out.Reason != protocol.ReasonSignal || out.Signal != test.signal || out.ExitCode != -1 || !strings.Contains(out.FirstCause, test.text) {
			t.Errorf("%s: outcome is %+v", name, out)
		}
	}
}

// TestExitCodeOfWazerosOwnIsTheModules uses the codes that wazero itself uses for a context's end.
func TestExitCodeOfWazerosOwnIsTheModules(t *testing.T) {
	b := newBackend(t, nil)
	for _, code := range []int32{-1, -0x10000001} {
		p := program{imports: []hostCall{importExit}, code: join(i32(code), call(0))}
		if out := runTask(t, b, newTask(t, fmt.Sprint(code), p.assemble())); out.Reason != protocol.ReasonExitNonzero || out.ExitCode != code {
			t.Errorf("outcome is %+v, want exit code %d", out, code)
		}
	}
}

func TestMemoryGoesBackAtTheEndOfEachInput(t *testing.T) {
	// Each instance touches all of its 48 MiB; 200 of them are 9.6 GiB.
	const pages = 768
	touch := join(i32(pages*pageBytes-4096), []byte{0x21, 0}, []byte{0x02, 0x40},
		loop(join([]byte{0x20, 0}, i32(1), []byte{0x36, 2, 0, 0x20, 0}, i32(4096), []byte{0x6b, 0x22, 0, 0x0d, 0, 0x0c, 1})), []byte{0x0b})
	p := program{pages: pages, locals: 1, code: touch}
	var inputs []executor.Input
	for i := range 200 {
		inputs = append(inputs, executor.Input{Index: uint64(i)})
	}
	before := resident(t)
	out := runTask(t, newBackend(t, nil), newTask(t, "touch", p.assemble(), inputs...))
	if out.Reason != protocol.ReasonDone || out.Usage.MaxMemoryBytes != pages*pageBytes {
		t.Errorf("outcome is %+v", out)
	}
	if more := resident(t) - before; more > 64<<20 {
		t.Errorf("the process has grown by %d bytes", more)
	}
}

// resident is the process's memory in bytes, as the kernel counts it.
func resident(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("this machine does not tell the size of a process: %v", err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func TestNothingIsWrittenForAnInputWithoutOutput(t *testing.T) {
	task := newTask(t, "nothing", nothing.assemble())
	runTask(t, newBackend(t, nil), task)
	if left, _ := os.ReadDir(task.OutDir); len(left) > 0 {
		t.Errorf("the output directory has %v", left)
	}
}

func TestFullDiskIsTheNodesFault(t *testing.T) {
	b := newBackend(t, nil)
	for err, why := range map[error]protocol.Reason{
		&fs.PathError{Op: "write", Err: syscall.ENOSPC}: protocol.ReasonNodeDiskFull,
		&fs.PathError{Op: "write", Err: syscall.EDQUOT}: protocol.ReasonNodeDiskFull,
		&fs.PathError{Op: "write", Err: syscall.EIO}:    protocol.ReasonBackendFailed,
	} {
		r, beginErr := b.begin(newTask(t, "x", nil))
		if beginErr != nil {
			t.Fatal(beginErr)
		}
		h := r.newHost()
		r.hostFault("writing an output file", err)
		// However the module takes the failed call, even with exit code 0, the fault decides.
		if out := h.classify(nil); out.Reason != why || !strings.Contains(out.FirstCause, "writing an output file") {
			t.Errorf("%v: outcome is %+v", err, out)
		}
		b.finish(r, &compiled{})
	}
}

func TestConcurrentPreparesCompileOnce(t *testing.T) {
	b := newBackend(t, nil)
	var loads atomic.Int32
	gate := make(chan struct{})
	binary := nothing.assemble()
	task := newTask(t, "once", nil)
	task.Module.Load = func(context.Context) ([]byte, error) {
		loads.Add(1)
		<-gate
		return binary, nil
	}
	leaver, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := b.Prepare(leaver, task)
		first <- err
	}()
	eventually(t, func() bool { return loads.Load() == 1 })
	var others errgroup.Group
	for range 8 {
		others.Go(func() error { _, err := b.Prepare(t.Context(), task); return err })
	}
	leave() // the first caller leaves; the others still want the module
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the leaver got %v", err)
	}
	close(gate)
	if err := others.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := b.Prepare(t.Context(), task); err != nil || loads.Load() != 1 {
		t.Errorf("loaded %d times, %v", loads.Load(), err)
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("it never came")
		}
	}
}

func TestEvictedModuleStaysCompiledWhileItRuns(t *testing.T) {
	b := newBackend(t, func(c *Config) { c.CacheModules = 1 })
	h := start(t, b, newTask(t, "loop", loopForEver.assemble()))
	for i := range 5 {
		p := program{code: join(i32(int32(i)), []byte{0x1a})}
		if out := runTask(t, b, newTask(t, fmt.Sprint("other-", i), p.assemble())); out.Reason != protocol.ReasonDone {
			t.Fatalf("outcome is %+v", out)
		}
	}
	if len(b.modules.byKey) != 1 {
		t.Errorf("%d modules are kept, want 1", len(b.modules.byKey))
	}
	h.Stop(protocol.ReasonCancelled, 0)
	if out, err := h.Wait(t.Context()); err != nil || out.Reason != protocol.ReasonCancelled {
		t.Errorf("outcome is %+v, %v", out, err)
	}
	// A Prepared of an evicted module can still be started.
	p, err := b.Prepare(t.Context(), newTask(t, "nothing", nothing.assemble()))
	if err != nil {
		t.Fatal(err)
	}
	runTask(t, b, newTask(t, "loop-2", (&program{code: i32Drop}).assemble()))
	again, err := b.Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := again.Wait(t.Context()); err != nil || out.Reason != protocol.ReasonDone {
		t.Errorf("outcome is %+v, %v", out, err)
	}
}

var i32Drop = []byte{0x41, 1, 0x1a}

func TestCompiledCodeIsReadBackFromTheDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	onDisk := func(c *Config) { c.CacheDir = dir }
	binary := nothing.assemble()
	b := newBackend(t, onDisk)
	runTask(t, b, newTask(t, "m", binary))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("cache directory: %v, %v", info, err)
	}
	files, err := b.engine.disk.files()
	if err != nil || len(files) != 1 {
		t.Fatalf("cache has %v, %v", files, err)
	}
	old := time.Now().Add(-time.Hour)
	file := filepath.Join(dir, files[0].path)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	again := newBackend(t, onDisk)
	if out := runTask(t, again, newTask(t, "m", binary)); out.Reason != protocol.ReasonDone {
		t.Errorf("outcome is %+v", out)
	}
	after, err := again.engine.disk.files()
	if err != nil || len(after) != 1 || !after[0].used.After(old) {
		t.Errorf("cache has %v, %v: want the same file with a new time", after, err)
	}
}

func TestDamagedCacheDoesNotCondemnTheModule(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"cut": func(t *testing.T, file string) {
			if err := os.Truncate(file, 20); err != nil {
				t.Fatal(err)
			}
		},
		"a byte": func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a directory": func(t *testing.T, file string) {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			onDisk := func(c *Config) { c.CacheDir = dir }
			p := program{imports: []hostCall{importExit}, code: join(i32(9), call(0))}
			b := newBackend(t, onDisk)
			runTask(t, b, newTask(t, "m", p.assemble()))
			files, err := b.engine.disk.files()
			if err != nil || len(files) != 1 {
				t.Fatalf("cache has %v, %v", files, err)
			}
			damage(t, filepath.Join(dir, files[0].path))
			if out := runTask(t, newBackend(t, onDisk), newTask(t, "m", p.assemble())); out.ExitCode != 9 {
				t.Errorf("outcome is %+v", out)
			}
		})
	}
}

func TestLeastRecentlyUsedCodeLeavesTheDisk(t *testing.T) {
	dir := t.TempDir()
	module := func(i int) []byte { p := program{code: join(i32(int32(i)), []byte{0x1a})}; return p.assemble() }
	b := newBackend(t, func(c *Config) { c.CacheDir = dir })
	if _, err := b.Prepare(t.Context(), newTask(t, "0", module(0))); err != nil {
		t.Fatal(err)
	}
	files, err := b.engine.disk.files()
	if err != nil {
		t.Fatal(err)
	}
	one := files[0]
	small := newBackend(t, func(c *Config) { c.CacheDir, c.CacheBytes = dir, one.size*3+one.size/2 })
	now := time.Now()
	for i := range 3 { // 0, 1, 2 are there, 0 is the oldest
		name := fmt.Sprint(i)
		if _, err := small.Prepare(t.Context(), newTask(t, name, module(i))); err != nil {
			t.Fatal(err)
		}
		if err := small.engine.disk.used(name, mustFiles(t, small), now.Add(time.Duration(i-10)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := small.engine.disk.used("0", mustFiles(t, small), now); err != nil { // now 1 is
		t.Fatal(err)
	}
	if _, err := small.Prepare(t.Context(), newTask(t, "3", module(3))); err != nil {
		t.Fatal(err)
	}
	left := mustFiles(t, small)
	if len(left) != 3 || !slices.ContainsFunc(left, func(f cacheFile) bool { return f.path == one.path }) {
		t.Errorf("cache has %v, want 3 files, %s among them", left, one.path)
	}
	index, _ := os.ReadDir(filepath.Join(dir, indexDir))
	if len(index) != 4 {
		t.Errorf("index has %d entries", len(index))
	}
	if err := small.engine.disk.open(); err != nil {
		t.Fatal(err)
	}
	if index, _ = os.ReadDir(filepath.Join(dir, indexDir)); len(index) != 3 {
		t.Errorf("index has %d entries after a restart, want 3", len(index))
	}
}

func mustFiles(t *testing.T, b *Backend) []cacheFile {
	t.Helper()
	files, err := b.engine.disk.files()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestUnusableCacheDirectoryIsDoneWithout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBackend(t, func(c *Config) { c.CacheDir = filepath.Join(file, "cache") })
	if out := runTask(t, b, newTask(t, "m", nothing.assemble())); out.Reason != protocol.ReasonDone {
		t.Errorf("outcome is %+v", out)
	}
}

func TestSlowCompilationIsABadModule(t *testing.T) {
	module := guestModule(t)
	b := newBackend(t, func(c *Config) { c.CompileTimeout = time.Millisecond })
	task := newTask(t, "slow", nil)
	task.Module.Load = module.Load
	if _, err := b.Prepare(t.Context(), task); executor.ReasonOf(err, 0) != protocol.ReasonBadModule || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error is %v", err)
	}
}

func TestConfigNamesTheBadField(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"CacheDir":       func(c *Config) { c.CacheDir = "relative" },
		"CacheBytes":     func(c *Config) { c.CacheBytes = 0 },
		"CacheModules":   func(c *Config) { c.CacheModules = 0 },
		"CompileTimeout": func(c *Config) { c.CompileTimeout = 0 },
		"LoadTimeout":    func(c *Config) { c.LoadTimeout = -1 },
		"ModuleBytes":    func(c *Config) { c.ModuleBytes = 0 },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if _, err := New(cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: error is %v", field, err)
		}
	}
}

// TestCollectorRunsWhileAModuleComputes: code that cannot be preempted would stop the daemon with the first
// collection.
func TestCollectorRunsWhileAModuleComputes(t *testing.T) {
	b := newBackend(t, nil)
	noMemory := wasmModule(
		rawSection(1, 1, 0x60, 0, 0), rawSection(3, 1, 0),
		rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 0)...)...),
		rawSection(10, 1, 7, 0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b),
	)
	for name, module := range map[string][]byte{
		"a loop": loopForEver.assemble(), "a loop without memory": noMemory, "a recursion": callsTwice(),
	} {
		task := newTask(t, name, module)
		h := start(t, b, task)
		eventually(t, func() bool { return h.Usage().CPUMillis > 0 })
		for range 20 {
			begin := time.Now()
			runtime.GC()
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: a collection took %s", name, took)
			}
		}
		h.Stop(protocol.ReasonCancelled, 0)
		if out, err := h.Wait(t.Context()); err != nil || out.Reason != protocol.ReasonCancelled {
			t.Errorf("%s: outcome is %+v, %v", name, out, err)
		}
	}
}
