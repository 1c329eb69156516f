//go:build linux

package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// TestTheHostIsOutOfReach runs what a hostile function would, each with its witness on the host's side.
func TestTheHostIsOutOfReach(t *testing.T) {
	b := newBackend(t, nil)
	secret := filepath.Join(t.TempDir(), "node.key")
	if err := os.WriteFile(secret, []byte("canary"), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := watchLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if who := w.close(); who != "" {
			t.Errorf("a connection from inside reached %s", who)
		}
	}()
	victim := unix.Getpid()
	const tools = "import ctypes, errno, os, socket, platform\nL = ctypes.CDLL(None, use_errno=True)\n" +
		"def call(n, *a):\n    r = L.syscall(n, *a)\n    return 'refused' if r == -1 and ctypes.get_errno() in (1, 38) else 'did it: %d %d' % (r, ctypes.get_errno())\n"
	read := func(path string) string {
		return fmt.Sprintf("    try:\n        return repr(open(%q, 'rb').read(64))\n    except OSError:\n        return 'refused'\n", path)
	}
	numbers := map[string]int{
		"mount": unix.SYS_MOUNT, "umount2": unix.SYS_UMOUNT2, "pivot_root": unix.SYS_PIVOT_ROOT, "chroot": unix.SYS_CHROOT, "unshare": unix.SYS_UNSHARE,
		"setns": unix.SYS_SETNS, "ptrace": unix.SYS_PTRACE, "process_vm_readv": unix.SYS_PROCESS_VM_READV, "process_vm_writev": unix.SYS_PROCESS_VM_WRITEV,
		"bpf": unix.SYS_BPF, "perf_event_open": unix.SYS_PERF_EVENT_OPEN, "keyctl": unix.SYS_KEYCTL, "add_key": unix.SYS_ADD_KEY, "userfaultfd": unix.SYS_USERFAULTFD,
		"io_uring_setup": unix.SYS_IO_URING_SETUP, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT, "name_to_handle_at": unix.SYS_NAME_TO_HANDLE_AT,
		"init_module": unix.SYS_INIT_MODULE, "finit_module": unix.SYS_FINIT_MODULE, "kexec_load": unix.SYS_KEXEC_LOAD, "reboot": unix.SYS_REBOOT, "swapon": unix.SYS_SWAPON,
		"settimeofday": unix.SYS_SETTIMEOFDAY, "clock_settime": unix.SYS_CLOCK_SETTIME, "sethostname": unix.SYS_SETHOSTNAME, "fsopen": unix.SYS_FSOPEN,
		"open_tree": unix.SYS_OPEN_TREE, "move_mount": unix.SYS_MOVE_MOUNT, "mount_setattr": unix.SYS_MOUNT_SETATTR, "clone3": unix.SYS_CLONE3, "acct": unix.SYS_ACCT,
		"syslog": unix.SYS_SYSLOG, "kcmp": unix.SYS_KCMP, "pidfd_getfd": unix.SYS_PIDFD_GETFD,
	}
	tests := map[string]string{
		"/etc/shadow":           read("/etc/shadow"),
		"the node's key":        read(secret),
		"key by /proc/1/root":   read("/proc/1/root" + secret),
		"key by /proc/self/cwd": read("/proc/self/cwd/../../../.." + secret),
		"/proc/kcore":           read("/proc/kcore"),
		"docker.sock":           "    s = socket.socket(socket.AF_UNIX)\n    try:\n        s.connect('/var/run/docker.sock')\n        return 'connected'\n    except OSError:\n        return 'refused'\n",
		"loopback":              fmt.Sprintf("    try:\n        socket.create_connection(('127.0.0.1', %d), 1)\n        return 'connected'\n    except OSError:\n        return 'refused'\n", w.port),
		"abstract socket": fmt.Sprintf("    s = socket.socket(socket.AF_UNIX)\n    try:\n        s.connect('\\0gridbeam-probe-%d')\n        return 'connected'\n    except OSError:\n        return 'refused'\n",
			w.port),
		"metadata":     "    try:\n        socket.create_connection(('169.254.169.254', 80), 1)\n        return 'connected'\n    except OSError:\n        return 'refused'\n",
		"raw socket":   "    try:\n        socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\n        return 'opened'\n    except OSError:\n        return 'refused'\n",
		"netlink":      "    try:\n        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n        return 'opened'\n    except OSError:\n        return 'refused'\n",
		"host process": fmt.Sprintf("    try:\n        os.kill(%d, 0)\n        return 'there' if %d > 100 else 'refused'\n    except OSError:\n        return 'refused'\n", victim, victim),
		"namespaces by clone": "    import signal\n    n = 56 if platform.machine() == 'x86_64' else 220\n    r = L.syscall(n, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)\n" +
			"    if r == 0: os._exit(0)\n    return 'refused' if r == -1 else 'cloned'\n",
		"core_pattern":       "    try:\n        open('/proc/sys/kernel/core_pattern', 'w').write('|x')\n        return 'wrote'\n    except OSError:\n        return 'refused'\n",
		"sysrq":              "    try:\n        open('/proc/sysrq-trigger', 'w').write('h')\n        return 'wrote'\n    except OSError:\n        return 'refused'\n",
		"own limits":         "    import resource\n    try:\n        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))\n        return 'raised'\n    except (OSError, ValueError):\n        return 'refused'\n",
		"cgroups":            "    return 'refused' if not os.path.exists('/sys/fs/cgroup') else 'there'\n",
		"write below usr":    "    try:\n        open('/usr/lib/x', 'w')\n        return 'wrote'\n    except OSError:\n        return 'refused'\n",
		"write at the root":  "    try:\n        open('/x', 'w')\n        return 'wrote'\n    except OSError:\n        return 'refused'\n",
		"device file":        "    try:\n        os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0))\n        return 'made'\n    except OSError:\n        return 'refused'\n",
		"setuid":             "    try:\n        os.setuid(0)\n        return 'root'\n    except OSError:\n        return 'refused'\n",
		"the daemon's files": "    return 'refused' if not os.path.exists('/mnt/0') and not os.path.exists(" + strconv.Quote(b.cfg.Dir) + ") else 'there'\n",
		"inherited files": "    extra = [os.readlink('/proc/self/fd/' + f) for f in os.listdir('/proc/self/fd') if int(f) > 2 and os.path.lexists('/proc/self/fd/' + f)]\n" +
			"    more = [e for e in extra if not e.startswith(('pipe:', '/memfd', '/proc/', '/dev/null', 'anon_inode'))]\n" +
			"    return 'refused' if len(more) == 1 and more[0].startswith('socket:') else repr(extra)\n", // its result's
		"the runner's environment": "    import os as o\n    return 'refused' if not set(o.environ) - {'PATH', 'HOME', 'USER', 'LANG', 'TMPDIR', 'PWD', 'HANDLER', 'PYTHON_VERSION', 'TASK_ID', 'GRIDBEAM_ATTEMPT'} else repr(dict(o.environ))\n",
	}
	for name, n := range numbers {
		tests["call "+name] = fmt.Sprintf("    return call(%d, 0, 0, 0, 0, 0, 0)\n", n)
	}
	var code strings.Builder
	code.WriteString(tools)
	var order []string
	for name, body := range tests {
		fmt.Fprintf(&code, "def t%d():\n%s\n", len(order), body)
		order = append(order, name)
	}
	code.WriteString("def f():\n    out = {}\n    for i in range(" + strconv.Itoa(len(order)) + "):\n        out[i] = globals()['t%d' % i]()\n    return out\n")
	task := job(t, code.String(), nil)
	want(t, b, task, protocol.ReasonDone)
	o, result := outcomeOf(t, task, 0)
	var got map[string]string
	if err := json.Unmarshal([]byte(result), &got); err != nil {
		t.Fatalf("%+v: %v", o, err)
	}
	for i, name := range order {
		if got[strconv.Itoa(i)] != "refused" {
			t.Errorf("%s: %s", name, got[strconv.Itoa(i)])
		}
	}
}

// modes are the ways of bounding that this machine offers.
func modes(t *testing.T, test func(t *testing.T, b *Backend)) {
	for name, soft := range map[string]bool{"cgroups": false, "soft": true} {
		t.Run(name, func(t *testing.T) {
			if !soft && ownGroups().mode == "soft" {
				t.Skip("no cgroups can be made here: run as root or with Delegate=yes")
			}
			test(t, newBackend(t, func(c *Config) { c.NoCgroups = soft }))
		})
	}
}

func TestForkBombIsBounded(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		task := job(t, `import os, signal
def f():
    n = 0
    try:
        while n < 1000:
            if os.fork() == 0:
                while True:
                    signal.pause()
            n += 1
    except OSError:
        pass
    return n
`, nil)
		task.Limits.Processes = 50
		want(t, b, task, protocol.ReasonDone)
		if o, result := outcomeOf(t, task, 0); o.Reason != protocol.ReasonDone || len(result) > 2 || result == "0" {
			t.Errorf("it made %s processes, the limit is 50: %+v", result, o)
		}
	})
}

func TestMemoryBombEndsInOOM(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		task := job(t, "def f(n):\n    x = bytearray(n)\n    for i in range(0, n, 4096): x[i] = 1\n    import time\n    time.sleep(5)\n    return len(x)\n", []any{1 << 20}, []any{1 << 30})
		task.Inputs = task.Inputs[1:]
		task.Limits.Memory = 128 << 20
		out := wait(t, start(t, b, task))
		if out.Reason == protocol.ReasonOOM && out.FirstCause != "" {
			return // the whole sandbox went
		}
		if o, _ := outcomeOf(t, task, 1); out.Reason != protocol.ReasonDone || o.Reason != protocol.ReasonOOM || o.Exit == 0 {
			t.Errorf("ended with %s, the input with %+v", out.Reason, o)
		}
		if out.Usage.MaxMemoryBytes > 130<<20 {
			t.Errorf("it had %d bytes", out.Usage.MaxMemoryBytes)
		}
	})
}

// TestScratchEndsBeforeTheMemory fills what lies in memory by itself: its own size says no before anything is killed. That
// it counts as memory is shown by TestMemoryThatIsSharedCounts.
func TestScratchEndsBeforeTheMemory(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		task := job(t, `import os
def f(place):
    n = 0
    try:
        with open(place + '/x', 'wb', 0) as o:
            while n < 1000:
                n += o.write(b'x' * (1 << 20)) >> 20
    except OSError as err:
        return [n, err.strerror]
    finally:
        os.unlink(place + '/x')
    return n
`, []any{"/dev/shm"}, []any{"/tmp"})
		want(t, b, task, protocol.ReasonDone)
		for i := range task.Inputs {
			if o, result := outcomeOf(t, task, uint64(i)); result != `[128,"No space left on device"]` && result != `[127,"No space left on device"]` {
				t.Errorf("%s: result is %s, outcome %+v", task.Inputs[i].Args, result, o)
			}
		}
	})
}

func TestDiskBombEndsInDiskFull(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f():\n    i = 0\n    while True:\n        with open('/mnt/code/x%d' % i, 'wb') as o:\n            o.write(b'x' * (1 << 20))\n        i += 1\n        if i > 64:\n            import time\n            time.sleep(30)\n", nil)
	task.Limits.Disk = 32 << 20
	out := want(t, b, task, protocol.ReasonDiskFull)
	if !strings.Contains(out.FirstCause, "33554432") {
		t.Errorf("first cause is %q", out.FirstCause)
	}
}

func TestAFloodOfLogsStaysARing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := newBackend(t, nil)
	task := job(t, "import sys\ndef f(n):\n    line = 'x' * 1023 + '\\n'\n    for i in range(n):\n        sys.stdout.write(line)\n    print('last')\n    return 'answer'\n", []any{200_000})
	task.Log = executor.NewLog(1<<20, time.Now)
	out := want(t, b, task, protocol.ReasonDone)
	o, result := outcomeOf(t, task, 0)
	if result != `"answer"` || o.LogDropped == 0 {
		t.Errorf("outcome is %+v with %d lines", o.Reason, len(o.Log))
	}
	if out.LogKept > executor.DefaultLogBytes || out.LogKept+out.LogDropped != 200_000*1024+5 {
		t.Errorf("kept %d, dropped %d", out.LogKept, out.LogDropped)
	}
	if lines := printed(task); lines[len(lines)-1] != "last" {
		t.Errorf("the last line is %.20q", lines[len(lines)-1])
	}
}

func TestWhoKillsTheRunnerEndsTheChunk(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import os, signal\ndef f(x):\n    if x:\n        os.kill(os.getppid(), signal.SIGKILL)\n        signal.pause()\n    return x\n", []any{0}, []any{1}, []any{0})
	out := want(t, b, task, protocol.ReasonSignal)
	if out.InputsDone != 1 || out.Signal != 9 || out.FirstCause == "" {
		t.Errorf("outcome is %+v", out)
	}
	if o, _ := outcomeOf(t, task, 0); o.Reason != protocol.ReasonDone {
		t.Errorf("the input before is %+v", o)
	}
	// The next lease has a new sandbox.
	next := again(t, task)
	next.Inputs = next.Inputs[:1]
	want(t, b, next, protocol.ReasonDone)
}

// forge has one input write answers wherever another's could be written, and read where another's arguments lie.
const forge = `import json, os, struct, threading, time
if IMPORT_THREAD: threading.Thread(target=threading.Event().wait, daemon=True).start()
def answer():
    head = json.dumps({"reason": "done", "exit": 0, "encoding": "json"}).encode()
    return struct.pack(">II", len(head), 8) + head + b'"forged"'
def attack(seconds):
    own, until, reached = str(os.getpid()), time.monotonic() + seconds, set()
    while time.monotonic() < until:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if pid == own: continue
            try: reached.add(open("/proc/%s/mem" % pid, "rb") and "memory")
            except OSError: pass
            for fd in range(3, 40):
                path = "/proc/%s/fd/%d" % (pid, fd)
                try:
                    kind = os.readlink(path).split(":")[0]
                    if kind not in ("pipe", "/memfd", "socket"): continue
                    f = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError: continue
                reached.add(kind)
                try: os.write(f, answer())
                except OSError: pass
                finally: os.close(f)
    return sorted(reached)
def f(what, n):
    if what == "attack": return attack(n)
    time.sleep(n)
    return "honest"
`

func TestNoInputCanAnswerForAnother(t *testing.T) {
	b := newBackend(t, nil)
	for name, thread := range map[string]string{"forked": "False", "started anew": "True"} {
		t.Run(name, func(t *testing.T) {
			inputs := [][]any{{"attack", 3}}
			for range 8 {
				inputs = append(inputs, []any{"sleep", 0.3})
			}
			task := job(t, strings.Replace(forge, "IMPORT_THREAD", thread, 1), inputs...)
			task.Function.Workers = 2
			want(t, b, task, protocol.ReasonDone)
			for i := range task.Inputs[1:] {
				if o, result := outcomeOf(t, task, uint64(i+1)); result != `"honest"` {
					t.Errorf("input %d: %s, %+v", i+1, result, o)
				}
			}
			// Until a new process has closed its door others can reach what it prints.
			if o, result := outcomeOf(t, task, 0); result != "[]" && name == "forked" {
				t.Errorf("it reached %s: %+v", result, o)
			}
		})
	}
}

// TestTheHostsPathsAreNotNamedInside reads what each process inside says of its start. What is mounted still names, in
// mountinfo, the directories of the host's file systems.
func TestTheHostsPathsAreNotNamedInside(t *testing.T) {
	b := newBackend(t, nil)
	vol := t.TempDir()
	task := job(t, `import os
def f():
    out = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        for name in 'cmdline', 'environ':
            try: out.append(open('/proc/%s/%s' % (pid, name), 'rb').read().decode(errors='replace'))
            except OSError: pass
    return out
`, nil)
	task.Mounts = []executor.Mount{{Dir: vol, Target: "/data", ReadOnly: true}}
	want(t, b, task, protocol.ReasonDone)
	_, result := outcomeOf(t, task, 0)
	if !strings.Contains(result, "runner.py") {
		t.Errorf("it saw nothing: %s", result)
	}
	for _, secret := range []string{b.cfg.Dir, vol, task.Function.Code, b.cfg.Init[0]} {
		if strings.Contains(result, secret) {
			t.Errorf("%s is named inside: %s", secret, result)
		}
	}
}

// TestNothingIsLeftForAnother leaves files and shared memory where all can read them and looks for them as somebody else.
func TestNothingIsLeftForAnother(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		first := job(t, `import os, ctypes
L = ctypes.CDLL(None, use_errno=True)
PLACES = '/tmp', '/dev/shm', '/mnt/code', '/dev/mqueue'
def f(leave):
    found = []
    for place in PLACES:
        try:
            found += [place + '/' + n for n in os.listdir(place) if n.startswith('mark')]
            if leave: open(place + '/mark', 'w').write('secret')
        except OSError: pass
    if L.shmget(77, 4096, 0) != -1: found.append('shm')
    if leave: L.shmget(77, 4096, 0o1666)
    if leave and os.fork() == 0:
        os.setsid()
        import time
        time.sleep(1000)
    return found
`, []any{true})
		h := start(t, b, first)
		if out := wait(t, h); out.Reason != protocol.ReasonDone {
			t.Fatalf("%+v", out)
		}
		look := func(change func(*executor.Task)) (string, bool) {
			task := again(t, first)
			f := *task.Function
			task.Function = &f
			task.Inputs = []executor.Input{{Value: "task", Args: []byte(`{"args":[false],"kwargs":{}}`), Encoding: protocol.EncodingJSON}}
			change(&task)
			h2 := start(t, b, task)
			wait(t, h2)
			_, result := outcomeOf(t, task, 0)
			return result, sandboxOf(h) == sandboxOf(h2)
		}
		for name, change := range map[string]func(*executor.Task){
			"another tenant": func(task *executor.Task) { task.Tenant = "other" }, "another job": func(task *executor.Task) { task.Function.Spec += "'" },
		} {
			if found, same := look(change); found != "[]" || same {
				t.Errorf("%s finds %s, in the same sandbox: %v", name, found, same)
			}
		}
		// The same job's next input does find them: doc.go says so, and it shows that this test looks in the right places.
		if found, same := look(func(*executor.Task) {}); !same || !strings.Contains(found, "/tmp/mark") || !strings.Contains(found, "/dev/shm/mark") {
			t.Errorf("the same job finds %s, in the same sandbox: %v", found, same)
		}
	})
}

// TestNothingOutlivesItsLease leaves processes behind in the ways that there are, in a sandbox that stays warm: nobody would
// count what they compute.
func TestNothingOutlivesItsLease(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		mark := "gridbeam-straggler-" + filepath.Base(filepath.Dir(b.cfg.Dir)) + strconv.Itoa(os.Getpid())
		task := job(t, `import os, subprocess, sys
def f(mark):
    for i in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv('/bin/sh', ['sh', '-c', 'sleep 1000 & wait', mark])
            os._exit(0)
        os.wait()
    return 'left'
`, []any{mark})
		h := start(t, b, task)
		if out := wait(t, h); out.Reason != protocol.ReasonDone {
			t.Fatalf("%+v", out)
		}
		until(t, func() bool { return len(hostProcesses(mark)) == 0 }, "processes outlive their lease")
		next := start(t, b, again(t, task))
		if out := wait(t, next); out.Reason != protocol.ReasonDone || sandboxOf(next) != sandboxOf(h) {
			t.Errorf("the sandbox does not serve on: %+v", out)
		}
	})
}

// TestASandboxThatComputesWithoutALeaseEnds has the code start a process with its import, which no lease's end ends.
func TestASandboxThatComputesWithoutALeaseEnds(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		task := job(t, "import os, threading, time\ndef f():\n    return 1\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1)\n    while True: pass\n", nil)
		h := start(t, b, task)
		if out := wait(t, h); out.Reason != protocol.ReasonDone {
			t.Fatalf("%+v", out)
		}
		dir := filepath.Join(b.cfg.Dir, boxesName, sandboxOf(h))
		until(t, func() bool { return !isDir(dir) || len(processesBelow(dir)) == 0 }, "it computes on")
	})
}

// processesBelow are the sandbox's processes that the shim of a directory holds, beyond bubblewrap, its first one and the runner.
func processesBelow(dir string) (pids []int) {
	var who identity
	if readJSON(filepath.Join(dir, identityName), &who) != nil {
		return nil
	}
	for _, bwrap := range childrenOf(who.PID) {
		for _, first := range childrenOf(bwrap) {
			of := childrenOf(first)
			for i, pid := range of {
				pids = append(pids, childrenOf(pid)...)
				if i > 0 {
					pids = append(pids, pid)
				}
			}
		}
	}
	return slices.DeleteFunc(pids, func(pid int) bool { // those that have ended and whose end nobody has looked at
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

// hostProcesses lists processes of the host whose command line has a word in it.
func hostProcesses(word string) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), word) && !strings.HasPrefix(f, fmt.Sprintf("/proc/%d/", os.Getpid())) {
			pids = append(pids, f)
		}
	}
	return pids
}

// until waits for a condition.
func until(t testing.TB, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestHostileFilesInWritableMounts(t *testing.T) {
	b := newBackend(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	vol := t.TempDir()
	for name, text := range map[string]string{secret: "canary", filepath.Join(vol, "old"): "old", filepath.Join(vol, "changed"): "before"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	task := job(t, `import os
def f(secret):
    os.symlink(secret, '/data/link')
    os.symlink('/etc', '/data/dirlink')
    os.mkfifo('/data/pipe')
    os.makedirs('/data/sub/deep')
    open('/data/sub/deep/new', 'w').write('new')
    open('/data/changed', 'w').write('after!')
    os.chmod('/data/changed', 0)
    os.symlink('../../../../../../..', '/data/sub/up')
    open('relative/here', 'w').write('by a link')
    return sorted(os.listdir('/data'))
`, []any{secret})
	task.Mounts = []executor.Mount{{Dir: vol, Target: "/data", Links: []string{"relative"}}}
	want(t, b, task, protocol.ReasonDone)
	if o, _ := outcomeOf(t, task, 0); o.Reason != protocol.ReasonDone {
		t.Fatalf("outcome is %+v", o)
	}
	got := tree(t, filepath.Join(task.OutputDir(0), protocol.WrittenDir))
	wanted := map[string]string{"data/sub/deep/new": "new", "data/changed": "after!", "data/here": "by a link"}
	if os.Geteuid() != 0 {
		delete(wanted, "data/changed") // a file without rights is nobody's to read
		delete(got, "data/changed")
	}
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("written files are %v, want %v", got, wanted)
	}
	if now := tree(t, vol); now["changed"] != "before" || len(now) != 2 {
		t.Errorf("the volume itself is %v", now)
	}
	// What the first input wrote is not reported again by the next.
	next := again(t, task)
	next.Function.Handler = "app:f"
	next.Inputs[0].Args = []byte(`{"args":["x"],"kwargs":{}}`)
	want(t, b, next, protocol.ReasonDone)
	if _, err := os.Stat(filepath.Join(next.OutputDir(0), protocol.WrittenDir, "data", "sub")); err == nil {
		t.Error("a file that did not change was reported again")
	}
}

func TestOutputsAreBounded(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "def f():\n    open('/data/big', 'wb').write(b'x' * 3000000)\n", nil)
	task.Mounts = []executor.Mount{{Dir: t.TempDir(), Target: "/data"}}
	task.Limits.OutputBytes = 1 << 20
	want(t, b, task, protocol.ReasonOutputTooLarge)
}

// Landlock stands behind the namespaces: what only it forbids shows that it is there.
func TestLandlockIsThereBehindTheNamespaces(t *testing.T) {
	if abi := landlockABI(); abi < 4 {
		t.Skipf("Landlock of this kernel has ABI %d; its rules for TCP, which show that it is on, come with 4 (Linux 6.7)", abi)
	}
	b := newBackend(t, nil)
	task := job(t, `
import socket
def f(x):
    s = socket.socket()
    try:
        s.bind(("127.0.0.1", 0))
        return "bound"
    except PermissionError:
        return "denied"
`, []any{1})
	want(t, b, task, protocol.ReasonDone)
	if o, result := outcomeOf(t, task, 0); result != "\"denied\"" {
		t.Errorf("listening on its own loopback: %s (%+v)", result, o)
	}
}
