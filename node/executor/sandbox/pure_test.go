//go:build linux

package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestConfigNamesTheFieldThatIsWrong(t *testing.T) {
	good := testConfig(t, "/var/lib/sandbox")
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Config){
		"Dir": func(c *Config) { c.Dir = "x" }, "Shim": func(c *Config) { c.Shim = nil }, "Init": func(c *Config) { c.Init = []string{"x"} },
		"Bubblewrap": func(c *Config) { c.Bubblewrap = "" }, "Python": func(c *Config) { c.Python = nil }, "UIDBase": func(c *Config) { c.UIDBase = 0 },
		"KeepWarm": func(c *Config) { c.KeepWarm = 0 }, "KeepOrphan": func(c *Config) { c.KeepOrphan = 0 }, "MaxWarm": func(c *Config) { c.MaxWarm = -1 }, "MaxAge": func(c *Config) { c.MaxAge = 0 },
		"MaxInputs": func(c *Config) { c.MaxInputs = 0 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: error is %v", field, err)
		}
	}
}

// TestCgroupsAreFoundInEachMode makes trees that look like what kernels mount.
func TestCgroupsAreFoundInEachMode(t *testing.T) {
	mount := func(fs, at, options string) string {
		return fmt.Sprintf("30 20 0:26 / %s rw shared:9 - %s cgroup rw,%s\n", at, fs, options)
	}
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v2 := func(given, gives string) string {
		dir := t.TempDir()
		for _, sub := range []string{"unit", "unit/" + daemonLeaf} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(dir+"/unit", "cgroup.controllers", given)
		write(dir+"/unit", "cgroup.subtree_control", gives)
		return dir
	}
	memory, pids, whole, poor, ready := t.TempDir(), t.TempDir(), v2("cpu memory pids", ""), v2("hugetlb", ""), v2("memory pids", "memory pids")
	for name, c := range map[string]struct{ mounts, own, mode, parent string }{
		"v2":               {mount("cgroup2", whole, "rw"), "0::/unit\n", "v2", whole + "/unit"},
		"v2, in the leaf":  {mount("cgroup2", ready, "rw"), "0::/unit/" + daemonLeaf + "\n", "v2", ready + "/unit"},
		"v1":               {mount("cgroup", memory, "memory") + mount("cgroup", pids, "pids"), "4:memory:/\n8:pids:/gone\n", "v1", memory},
		"hybrid":           {mount("cgroup2", poor, "rw") + mount("cgroup", memory, "memory") + mount("cgroup", pids, "pids"), "4:memory:/\n8:pids:/\n0::/unit\n", "v1", memory},
		"no pids":          {mount("cgroup", memory, "memory"), "4:memory:/\n", "soft", ""},
		"none":             {"", "", "soft", ""},
		"a mount is gone":  {mount("cgroup", "/nonexistent", "memory") + mount("cgroup", pids, "pids"), "4:memory:/\n8:pids:/\n", "soft", ""},
		"lines are broken": {"x\n - \n", "x:y\n::\n", "soft", ""},
	} {
		got := findGroups(c.mounts, c.own)
		parent := got.parents["memory"] + got.parents[""]
		if got.mode != c.mode || parent != c.parent {
			t.Errorf("%s: found %+v, want %s in %s", name, got, c.mode, c.parent)
		}
	}
}

// TestSeccompAnswersEachNumber runs the filter by hand over all numbers.
func TestSeccompAnswersEachNumber(t *testing.T) {
	filter, soft := seccompFilter(false), seccompFilter(true)
	const allow, perm = uint32(unix.SECCOMP_RET_ALLOW), unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	ask := func(arch, number uint32, args ...uint32) uint32 {
		args = append(args, make([]uint32, 6)...)
		return runFilter(t, filter, arch, number, args)
	}
	for name, c := range map[string]struct{ got, want uint32 }{
		"read":                 {ask(auditArch, unix.SYS_READ), allow},
		"another architecture": {ask(auditArch^1, unix.SYS_READ), unix.SECCOMP_RET_KILL_PROCESS},
		"clone3":               {ask(auditArch, unix.SYS_CLONE3), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		"a thread":             {ask(auditArch, unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_FILES|unix.CLONE_THREAD), allow},
		"a fork":               {ask(auditArch, unix.SYS_CLONE, uint32(unix.SIGCHLD)), allow},
		"descriptors apart":    {ask(auditArch, unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_THREAD), perm},
		"closing":              {ask(auditArch, unix.SYS_CLOSE_RANGE, 3, 9, unix.CLOSE_RANGE_CLOEXEC), allow},
		"closing apart":        {ask(auditArch, unix.SYS_CLOSE_RANGE, 3, 9, unix.CLOSE_RANGE_UNSHARE), perm},
		"a user namespace":     {ask(auditArch, unix.SYS_CLONE, unix.CLONE_NEWUSER), perm},
		"a mount namespace":    {ask(auditArch, unix.SYS_CLONE, unix.CLONE_NEWNS|unix.CLONE_VM), perm},
		"a unix socket":        {ask(auditArch, unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC), allow},
		"a netlink socket":     {ask(auditArch, unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_DGRAM), perm},
		"a raw socket":         {ask(auditArch, unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC), perm},
		"a packet socket":      {ask(auditArch, unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_DGRAM), perm},
		"terminal input":       {ask(auditArch, unix.SYS_IOCTL, 0, unix.TIOCSTI), perm},
		"terminal size":        {ask(auditArch, unix.SYS_IOCTL, 0, unix.TIOCGWINSZ), allow},
		"a personality":        {ask(auditArch, unix.SYS_PERSONALITY, 0x0400000), perm},
		"its personality":      {ask(auditArch, unix.SYS_PERSONALITY, 0xffffffff), allow},
	} {
		if c.got != c.want {
			t.Errorf("%s: the answer is %#x, want %#x", name, c.got, c.want)
		}
	}
	allowed := map[uint32]bool{unix.SYS_CLONE: true, unix.SYS_CLOSE_RANGE: true, unix.SYS_IOCTL: true, unix.SYS_PERSONALITY: true}
	for _, n := range append(append([]uint32{}, bothArchs...), thisArch...) {
		allowed[n] = true
	}
	for n := range uint32(1024) {
		if got := ask(auditArch, n) == allow; got != allowed[n] {
			t.Errorf("call %d is allowed: %v", n, got)
		}
		sysV := n == unix.SYS_SHMGET || n == unix.SYS_MSGGET
		if got := runFilter(t, soft, auditArch, n, make([]uint32, 6)) == allow; got != (allowed[n] && !sysV) {
			t.Errorf("call %d is allowed without cgroups: %v", n, got)
		}
		if ask(auditArch, n|0x40000000) == allow {
			t.Errorf("call %d of x32 is allowed", n)
		}
	}
}

// runFilter is a machine for the instructions that the filter uses.
func runFilter(t *testing.T, filter []unix.SockFilter, arch, number uint32, args []uint32) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(filter); pc++ {
		i := filter[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			switch i.K {
			case dataNumber:
				a = number
			case dataArch:
				a = arch
			default:
				a = args[(i.K-dataArgs)/8]
			}
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > i.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&i.K != 0)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d has code %#x", pc, i.Code)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFramesComeBackAsTheyWent(t *testing.T) {
	var b bytes.Buffer
	for _, size := range []int{0, 1, 64 << 10, maxPayload} {
		if err := writeFrame(&b, message{Op: "input", Input: 1 << 60}, bytes.Repeat([]byte{7}, size)); err != nil {
			t.Fatal(err)
		}
	}
	r := bufio.NewReader(&b)
	for _, size := range []int{0, 1, 64 << 10, maxPayload} {
		var m message
		p, err := readFrame(r, &m)
		if err != nil || len(p) != size || m.Op != "input" || m.Input != 1<<60 {
			t.Errorf("read %+v with %d bytes, %v", m, len(p), err)
		}
	}
	if _, err := readFrame(r, &message{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := writeFrame(&b, message{}, make([]byte, maxPayload+1)); !errors.Is(err, errFrame) {
		t.Errorf("writing too much: %v", err)
	}
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, runnerFrame{Op: "result", Input: 3, Reason: "done"}, []byte("x"))
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 1, 255, 255, 255, 255, '{'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bufio.NewReader(bytes.NewReader(raw))
		for range 10 {
			var frame runnerFrame
			p, err := readFrame(r, &frame)
			if err != nil {
				return
			}
			if len(p) > maxPayload {
				t.Fatalf("a payload of %d bytes", len(p))
			}
			// Whatever a runner says becomes an outcome that the bridge reads.
			s := &shim{group: &group{mode: "soft"}}
			out := s.judge(&frame)
			if (out.Reason == protocol.ReasonDone) != (out.Exit == 0) || out.Reason == protocol.ReasonNone || len(out.Text) > protocol.MaxInputText {
				t.Fatalf("%+v became %+v", frame, out)
			}
		}
	})
}

// TestAnOutcomeIsReadableWhateverWasPrinted prints what grows most when it is written as JSON.
func TestAnOutcomeIsReadableWhateverWasPrinted(t *testing.T) {
	for name, text := range map[string]string{
		"empty lines": strings.Repeat("\n", 1<<20), "control bytes": strings.Repeat("\x01", 1<<20), "angles": strings.Repeat("<\n", 1<<20), "no text": strings.Repeat("\xff", 1<<20),
	} {
		w := newWork("lease", t.TempDir(), executor.DefaultLimits(time.Minute))
		u := &unit{index: 1}
		w.print(u, protocol.LogStdout, []byte(text))
		w.flush(u)
		o := outputs{dir: w.out, most: 10 << 20, many: 10}
		dir, err := o.begin(1)
		if err != nil {
			t.Fatal(err)
		}
		out := &protocol.InputOutcome{Reason: protocol.ReasonExitNonzero, Exit: 1, Text: shorten(strings.Repeat("<", 1<<20), protocol.MaxInputText), Log: u.printed, LogDropped: u.dropped}
		if err := o.finish(dir, out, nil); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(dir, protocol.OutcomeFile))
		if err != nil {
			t.Fatal(err)
		}
		back, err := protocol.ParseInputOutcome(raw)
		if err != nil || len(back.Log) == 0 || back.LogDropped == 0 {
			t.Errorf("%s: %d bytes, %d lines, %v", name, len(raw), len(back.Log), err)
		}
	}
}

func TestLinesAreCutWhereTheyEnd(t *testing.T) {
	w := newWork("lease", t.TempDir(), executor.DefaultLimits(time.Minute))
	u := &unit{index: 9}
	long := strings.Repeat("y", executor.MaxLogLine)
	for _, part := range []string{"a", "b\n", "\n", long, long + "z\n", "tail"} {
		w.print(u, protocol.LogStderr, []byte(part))
	}
	w.print(u, protocol.LogStdout, []byte("out\n"))
	w.flush(u)
	records, _, _, _ := w.log.Read(0, 1<<20)
	var got []string
	for _, r := range records {
		if r.Input != 9 {
			t.Errorf("a line is input %d's", r.Input)
		}
		got = append(got, r.Line)
	}
	if want := []string{"ab", "", long, long, "z", "out", "tail"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d lines, want %d: %.60q", len(got), len(want), got)
	}
}
