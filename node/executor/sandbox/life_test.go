//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// sandboxOf is the sandbox that a handle's token names.
func sandboxOf(h executor.Handle) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(string(h.Token()), backendName+":"), "/")
	return id
}

func TestWarmSandboxServesOneTenantAndSpec(t *testing.T) {
	b := newBackend(t, nil)
	first := job(t, "import os\nopen('/tmp/mark', 'a').write('x')\ndef f():\n    return open('/tmp/mark').read()\n", nil)
	h := start(t, b, first)
	wait(t, h)
	for name, change := range map[string]func(*executor.Task){
		"same":         func(*executor.Task) {},
		"other tenant": func(task *executor.Task) { task.Tenant = "other" },
		"other spec":   func(task *executor.Task) { task.Function.Spec += "'" },
	} {
		task := again(t, first)
		f := *task.Function
		task.Function = &f
		change(&task)
		h2 := start(t, b, task)
		wait(t, h2)
		if same := sandboxOf(h) == sandboxOf(h2); same != (name == "same") {
			t.Errorf("%s: served by the same sandbox: %v", name, same)
		}
		if _, result := outcomeOf(t, task, 0); result != `"x"` {
			t.Errorf("%s: the mark is %s", name, result)
		}
	}
}

func TestASandboxHasOneLeaseAtATime(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import time\ndef f(s):\n    print('on')\n    time.sleep(s)\n", []any{30})
	h := start(t, b, task)
	if err := task.Log.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	other := again(t, task)
	h2 := start(t, b, other)
	if sandboxOf(h) == sandboxOf(h2) {
		t.Error("two leases are in one sandbox")
	}
	p, err := b.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(t.Context(), p); !errors.Is(err, executor.ErrBadTask) {
		t.Errorf("one lease was started twice: %v", err)
	}
	for _, x := range []executor.Handle{h, h2} {
		x.Stop(protocol.ReasonCancelled, 0)
		x.Stop(protocol.ReasonDrained, 0)
		if out := wait(t, x); out.Reason != protocol.ReasonCancelled {
			t.Errorf("ended with %s", out.Reason)
		}
	}
}

func TestTheLeastRecentlyUsedIsEndedFirst(t *testing.T) {
	b := newBackend(t, func(c *Config) { c.MaxWarm = 1 })
	var ids []string
	for i := range 3 {
		task := job(t, fmt.Sprintf("def f():\n    return %d\n", i), nil)
		h := start(t, b, task)
		wait(t, h)
		ids = append(ids, sandboxOf(h))
	}
	left := func() (out []string) {
		entries, _ := os.ReadDir(filepath.Join(b.cfg.Dir, boxesName))
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	until(t, func() bool { return slices.Equal(left(), ids[2:]) }, "not the newest sandbox alone is left")
}

func TestSandboxesEndByAgeInputsAndIdleness(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"idle":   func(c *Config) { c.KeepWarm = time.Millisecond },
		"age":    func(c *Config) { c.MaxAge = time.Millisecond },
		"inputs": func(c *Config) { c.MaxInputs = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, change)
			h := start(t, b, job(t, "def f():\n    pass\n", nil))
			wait(t, h)
			until(t, func() bool { return !isDir(filepath.Join(b.cfg.Dir, boxesName, sandboxOf(h))) }, "the sandbox is still there")
		})
	}
}

func TestAWarmSandboxWithoutADaemonEnds(t *testing.T) {
	b := newBackend(t, func(c *Config) { c.KeepOrphan = 50 * time.Millisecond })
	h := start(t, b, job(t, "def f():\n    pass\n", nil))
	wait(t, h)
	dir := filepath.Join(b.cfg.Dir, boxesName, sandboxOf(h))
	var who identity
	if err := readJSON(filepath.Join(dir, identityName), &who); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	x := b.boxes[sandboxOf(h)]
	b.mu.Unlock()
	_ = x.conn.Close() // as the daemon's death would
	if !waitGone(&who, answerWithin/2) {
		t.Error("its shim is still alive")
	}
	until(t, func() bool { return !isDir(dir) }, "its directory is still there")
}

// TestWallLimitKillsTheGroup has the input itself say how much processor time it gets, which depends on the machine's load.
func TestWallLimitKillsTheGroup(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		task := job(t, `import signal, time
def f():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said = 0
    while True:
        for _ in range(20000): pass
        now = int(time.process_time() * 1000)
        if now >= said + 10:
            said = now
            print(now, flush=True)
`, nil)
		task.Limits.Wall = 2 * time.Second
		out := want(t, b, task, protocol.ReasonTimeout)
		if took := out.Ended.Sub(out.Started); took < task.Limits.Wall || took > 20*time.Second {
			t.Errorf("it ran for %s", took)
		}
		lines := printed(task)
		if len(lines) == 0 {
			t.Fatal("it said nothing")
		}
		said, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		// The clock has ticks of 10 ms for each kind of time, and a little passes between the last look and the end.
		if out.Usage.CPUMillis <= 0 || out.Usage.CPUMillis < said-said/10-40 || out.Usage.MaxMemoryBytes <= 0 {
			t.Errorf("usage is %+v, it says that it took %d ms", out.Usage, said)
		}
	})
}

func TestOneInputTimesOutAloneByTheRunner(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import time\ndef f(s):\n    time.sleep(s)\n    return s\n", []any{60}, []any{0})
	task.Function.Timeout = 300 * time.Millisecond
	want(t, b, task, protocol.ReasonDone)
	slow, _ := outcomeOf(t, task, 0)
	quick, result := outcomeOf(t, task, 1)
	if slow.Reason != protocol.ReasonTimeout || slow.Exit != 4 || quick.Reason != protocol.ReasonDone || result != "0" {
		t.Errorf("outcomes are %+v and %+v", slow, quick)
	}
}

func TestStopGivesNotice(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, `import signal, sys, time
def f():
    def bye(*_):
        print('noticed', flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, bye)
    print('on', flush=True)
    time.sleep(60)
`, nil)
	h := start(t, b, task)
	if err := task.Log.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	h.Stop(protocol.ReasonPreempted, 5*time.Second)
	if out := wait(t, h); out.Reason != protocol.ReasonPreempted || out.Ended.Sub(out.Started) > 5*time.Second {
		t.Errorf("outcome is %+v", out)
	}
	if !slices.Contains(printed(task), "noticed") {
		t.Errorf("it printed %q", printed(task))
	}
	// The sandbox obeyed: it serves on.
	h2 := start(t, b, again(t, task))
	if sandboxOf(h) != sandboxOf(h2) {
		t.Error("a sandbox that had obeyed was not used again")
	}
	h2.Stop(protocol.ReasonCancelled, 0)
	wait(t, h2)
}

func TestCodeThatCannotBeLoadedFailsEachInput(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import nothing_of_that_name\n", nil, nil)
	want(t, b, task, protocol.ReasonDone)
	for i := range uint64(2) {
		if o, _ := outcomeOf(t, task, i); o.Reason != protocol.ReasonBadCommand || o.Exit != 2 || !strings.Contains(o.Text, "nothing_of_that_name") {
			t.Errorf("input %d: %+v", i, o)
		}
	}
}

func TestWithdrawnInputsDoNotRun(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f(x):\n    print('ran', x)\n    return x\n", []any{0}, []any{1}, []any{2})
	task.Inputs[1] = executor.Input{Index: 1, Encoding: executor.EncodingSkip}
	want(t, b, task, protocol.ReasonDone)
	if o, _ := outcomeOf(t, task, 1); o.Reason != protocol.ReasonCancelled || o.Exit != 3 {
		t.Errorf("outcome is %+v", o)
	}
	if got := printed(task); !slices.Equal(got, []string{"ran 0", "ran 2"}) {
		t.Errorf("it printed %q", got)
	}
}

func TestExceptionsAreResults(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f(x):\n    return 1 / x\n", []any{0}, []any{2})
	if out := want(t, b, task, protocol.ReasonDone); out.InputsDone != 2 {
		t.Errorf("outcome is %+v", out)
	}
	o, _ := outcomeOf(t, task, 0)
	if o.Reason != protocol.ReasonExitNonzero || !strings.Contains(o.Text, "ZeroDivisionError") || !strings.Contains(o.Text, "app.py") {
		t.Errorf("outcome is %+v", o)
	}
}

func TestMountsAreThereBeforeTheFirstLine(t *testing.T) {
	b := newBackend(t, nil)
	vol := t.TempDir()
	if err := os.WriteFile(filepath.Join(vol, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	task := job(t, `AT_IMPORT = open('/data/file').read()
def f():
    try:
        open('/data/new', 'w')
        return 'wrote'
    except OSError:
        return AT_IMPORT + open('mine/file').read() + open('/other/file').read()
`, nil)
	task.Mounts = []executor.Mount{{Dir: vol, Target: "/data", Links: []string{"mine", "/other"}, ReadOnly: true}}
	want(t, b, task, protocol.ReasonDone)
	if o, result := outcomeOf(t, task, 0); result != `"contentcontentcontent"` {
		t.Errorf("outcome is %+v, result %s", o, result)
	}
}

func TestBadTasksAreRefusedByField(t *testing.T) {
	b := newBackend(t, nil)
	for field, change := range map[string]func(*executor.Task){
		"Function.Runtime": func(t *executor.Task) { t.Function.Runtime = "" },
		"python2.7":        func(t *executor.Task) { t.Function.Runtime = "python2.7" },
		"overlaps /usr":    func(t *executor.Task) { t.Mounts = []executor.Mount{{Dir: "/tmp", Target: "/usr/x"}} },
		"overlaps /mnt":    func(t *executor.Task) { t.Mounts = []executor.Mount{{Dir: "/tmp", Target: "/mnt"}} },
		"leads out": func(t *executor.Task) {
			t.Mounts = []executor.Mount{{Dir: "/tmp", Target: "/x", Links: []string{"../x"}}}
		},
		"Devices[0]":       func(t *executor.Task) { t.Devices = []executor.Device{{Path: "/dev/../etc/shadow"}} },
		"Limits.Processes": func(t *executor.Task) { t.Limits.Processes = 0 },
		"Env is too large": func(t *executor.Task) { t.Env = map[string]string{"A": strings.Repeat("x", maxEnv)} },
		"arguments of input 0": func(t *executor.Task) {
			t.Inputs[0].Args = make([]byte, maxPayload+1)
		},
	} {
		task := job(t, "def f():\n    pass\n", nil)
		change(&task)
		_, err := b.Prepare(t.Context(), task)
		if err == nil || !strings.Contains(err.Error(), field) || executor.ReasonOf(err, 0) == 0 {
			t.Errorf("%s: error is %v", field, err)
		}
	}
}

// daemonOrder is what a daemon of the tests, a process of its own, is to start.
type daemonOrder struct {
	Config   Config
	Lease    protocol.LeaseID
	Tenant   string
	OutDir   string
	Inputs   []executor.Input
	Limits   executor.Limits
	Function *executor.Function
}

// daemon starts a task, prints its token, and waits to be killed. It is another process: TestMain runs it.
func daemon(file string) error {
	var order daemonOrder
	if err := readJSON(file, &order); err != nil {
		return err
	}
	b, err := New(order.Config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	p, err := b.Prepare(testContext, executor.Task{
		Lease: order.Lease, Tenant: order.Tenant, OutDir: order.OutDir, Inputs: order.Inputs, Limits: order.Limits, Function: order.Function,
	})
	if err != nil {
		return err
	}
	h, err := b.Start(testContext, p)
	if err != nil {
		return err
	}
	fmt.Println(h.Token())
	select {}
}

// startDaemon runs a task in a daemon of its own, returns the token, and how to kill -9 the daemon.
func startDaemon(t *testing.T, cfg Config, task executor.Task) (executor.Token, func()) {
	t.Helper()
	raw, err := json.Marshal(daemonOrder{cfg, task.Lease, task.Tenant, task.OutDir, task.Inputs, task.Limits, task.Function})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "order.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), cfg.Init[0], "daemon", file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 200)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return executor.Token(strings.TrimSpace(string(b[:n]))), func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func TestARunSurvivesItsDaemon(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import time\ndef f(s):\n    print('begin', flush=True)\n    time.sleep(s)\n    print('end')\n    return 'done'\n", []any{1.5})
	token, kill := startDaemon(t, b.cfg, task)
	kill()
	log := executor.NewLog(1<<20, time.Now)
	h, err := b.Reattach(t.Context(), token, log)
	if err != nil {
		t.Fatal(err)
	}
	if h.Token() != token {
		t.Errorf("token is %s, was %s", h.Token(), token)
	}
	if out := wait(t, h); out.Reason != protocol.ReasonDone || out.InputsDone != 1 || out.Ended.Sub(out.Started) < 1500*time.Millisecond {
		t.Errorf("outcome is %+v", out)
	}
	task.Log = log
	if got := printed(task); !slices.Equal(got, []string{"begin", "end"}) {
		t.Errorf("it printed %q", got)
	}
	if o, result := outcomeOf(t, task, 0); result != `"done"` {
		t.Errorf("outcome is %+v", o)
	}
	if _, err := b.Reattach(t.Context(), token, nil); !errors.Is(err, executor.ErrGone) {
		t.Errorf("reattaching what was given out: %v", err)
	}
	// The sandbox is warm for the new daemon.
	next := again(t, task)
	next.Inputs[0].Args = []byte(`{"args":[0],"kwargs":{}}`)
	h2 := start(t, b, next)
	wait(t, h2)
	if sandboxOf(h2) != sandboxOf(h) {
		t.Error("the adopted sandbox was not used")
	}
}

func TestARunThatEndedMeanwhileIsFoundByItsExitFile(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f():\n    return 5\n", nil)
	task.Function.KeepWarm = time.Millisecond
	token, kill := startDaemon(t, b.cfg, task)
	kill()
	exit := filepath.Join(b.cfg.Dir, exitsName, task.Lease.String()+exitEnd)
	id, _, _ := strings.Cut(strings.TrimPrefix(string(token), backendName+":"), "/")
	until(t, func() bool { return !isDir(filepath.Join(b.cfg.Dir, boxesName, id)) }, "the orphaned sandbox does not end")
	whole, err := os.ReadFile(exit)
	if err != nil {
		t.Fatal(err)
	}
	for name, torn := range map[string]string{"torn": string(whole[:len(whole)/2]), "empty": "", "another boot": strings.Replace(string(whole), bootID(), "00", 1)} {
		if err := os.WriteFile(exit, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Reattach(t.Context(), token, nil); !errors.Is(err, executor.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(exit, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := b.Reattach(t.Context(), token, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out := wait(t, h); out.Reason != protocol.ReasonDone || out.InputsDone != 1 {
		t.Errorf("outcome is %+v", out)
	}
}

func TestADeadShimTakesItsSandboxAlong(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import time\ndef f():\n    print('on', flush=True)\n    time.sleep(600)\n", nil)
	h := start(t, b, task)
	if err := task.Log.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	var who identity
	if err := readJSON(filepath.Join(b.cfg.Dir, boxesName, sandboxOf(h), identityName), &who); err != nil {
		t.Fatal(err)
	}
	if !who.alive() || who.PID == os.Getpid() || ownGroups().mode != "soft" && who.Group == 0 {
		t.Fatalf("identity is %+v", who)
	}
	if err := who.kill(); err != nil {
		t.Fatal(err)
	}
	if out := wait(t, h); out.Reason != protocol.ReasonBackendFailed || out.FirstCause == "" {
		t.Errorf("outcome is %+v", out)
	}
}

func TestAReusedNumberIsNeverSignalled(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	who, err := identify(cmd.Process.Pid)
	if err != nil || !who.alive() {
		t.Fatalf("identity is %+v, %v", who, err)
	}
	for name, other := range map[string]identity{
		"started earlier": {PID: who.PID, Start: who.Start - 1, Boot: who.Boot},
		"another boot":    {PID: who.PID, Start: who.Start, Boot: "00"},
	} {
		if err := other.kill(); err != nil || !who.alive() {
			t.Errorf("%s: it was taken for the other: %v", name, err)
		}
	}
	if err := who.kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if who.alive() {
		t.Error("it was not killed")
	}
	if err := who.kill(); err != nil {
		t.Errorf("killing who is gone: %v", err)
	}
}

func TestCloseLeavesRunsAlone(t *testing.T) {
	b := newBackend(t, nil)
	first, err := New(b.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	task := job(t, "import time\ndef f():\n    print('on', flush=True)\n    time.sleep(1)\n    return 'survived'\n", nil)
	h := start(t, first, task)
	if err := task.Log.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(t.Context()); !errors.Is(err, executor.ErrClosed) {
		t.Errorf("waiting on a closed backend: %v", err)
	}
	if _, err := first.Prepare(t.Context(), task); !errors.Is(err, executor.ErrClosed) {
		t.Errorf("preparing on a closed backend: %v", err)
	}
	again, err := b.Reattach(t.Context(), h.Token(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if out := wait(t, again); out.Reason != protocol.ReasonDone {
		t.Errorf("outcome is %+v", out)
	}
}

func TestUnknownTokensAreGone(t *testing.T) {
	b := newBackend(t, nil)
	for _, token := range []executor.Token{"", "other:token", "sandbox:x", "sandbox:0011223344556677/nothing", executor.Token("sandbox:../" + protocol.NewLeaseID().String())} {
		if _, err := b.Reattach(t.Context(), token, nil); !errors.Is(err, executor.ErrGone) {
			t.Errorf("reattaching %q: %v", token, err)
		}
	}
}

// TestKillNineLosesNothing kills daemons while their runs are in all states that they pass through.
func TestKillNineLosesNothing(t *testing.T) {
	loops := 20
	if testing.Short() {
		loops = 3
	}
	state := newBackend(t, nil).cfg // its end looks for leftovers
	for i := range loops {
		task := job(t, "import time\ndef f(s):\n    print('ran', flush=True)\n    time.sleep(s)\n    return 'once'\n", []any{0}, []any{float64(i) / 50}, []any{0})
		token, kill := startDaemon(t, state, task)
		delay := time.NewTimer(time.Duration(i) * 7 * time.Millisecond)
		<-delay.C
		kill()
		b, err := New(state, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		h, err := b.Reattach(t.Context(), token, nil)
		if err != nil {
			t.Fatalf("loop %d: %v", i, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("loop %d: reattached after %s", i, took)
		}
		if out := wait(t, h); out.Reason != protocol.ReasonDone || out.InputsDone != 3 {
			t.Errorf("loop %d: outcome is %+v", i, out)
		}
		for n := range uint64(3) {
			o, result := outcomeOf(t, task, n)
			if result != `"once"` || len(o.Log) != 1 {
				t.Errorf("loop %d: input %d ran %d times: %+v", i, n, len(o.Log), o)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
