//go:build linux

package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/protocol"
)

// child is bubblewrap with all that runs below it.
type child struct {
	cmd    *exec.Cmd
	runner net.Conn // the runner's socket
	out    chan outgoing
	init   atomic.Int64 // descriptor + 1 of the sandbox's first process; 0 until it is known
	pid    atomic.Int64 // its number on the host
	killed atomic.Bool
	tail   tail
	said   atomic.Bool // the runner has sent a frame
}

// outgoing is a frame for the runner.
type outgoing struct {
	header  runnerFrame
	payload []byte
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-tailBytes):]...)
	t.b = t.b[max(0, len(t.b)-tailBytes):]
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(valid(t.b))
}

// start makes the sandbox's files and starts it. It is not called by the loop, which answers meanwhile.
func (s *shim) start() error {
	if err := s.spec.prepareFiles(s.dir); err != nil {
		return err
	}
	seen := map[int]map[string]stamp{}
	for i, m := range s.spec.Mounts {
		if !m.ReadOnly {
			seen[i] = snapshot(filepath.Join(s.dir, writableName(i)))
		}
	}
	binds, options := s.spec.binds(s.dir)
	if s.spec.UID >= 0 {
		if err := stage(binds); err != nil {
			return err
		}
	}
	hidden, args, err := s.spec.bwrapArgs(binds, options, s.group.mode == "soft")
	if err != nil {
		return err
	}
	told, err := optionsFile(hidden)
	if err != nil {
		return err
	}
	defer func() { _ = told.Close() }()
	c, theirs, err := newChild(&s.spec, args)
	if err != nil {
		return err
	}
	info, infoWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	c.cmd.ExtraFiles = []*os.File{runnerFD - 3: theirs, infoFD - 3: infoWriter, optionsFD - 3: told}
	started := make(chan error)
	s.all.Go(func() { s.hold(c, started) })
	err = <-started
	_, _ = theirs.Close(), infoWriter.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("starting bubblewrap: %w", err), info.Close(), c.runner.Close())
	}
	s.do(func() {
		s.child, s.seen, s.starting = c, seen, false
		c.out <- outgoing{header: runnerFrame{
			Op: "load", Handler: s.spec.Handler, OnStart: s.spec.OnStart, Code: insideCode, Workers: s.spec.Workers, Fork: true, Env: s.spec.Env,
		}}
		if s.ending {
			s.killChild()
		}
	})
	s.all.Go(func() { c.learn(info) })
	s.all.Go(func() { c.write(s.over) })
	return nil
}

// newChild makes the command and the socket.
func newChild(spec *boxSpec, args []string) (*child, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the runner's socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "runner"), os.NewFile(uintptr(pair[1]), "runner")
	defer func() { _ = ours.Close() }()
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("making the runner's socket: %w", err)
	}
	c := &child{
		cmd:    exec.Command(spec.Bubblewrap, args...), //nolint:noctx // it ends by kill, which ends all that it has started
		runner: conn,
		out:    make(chan outgoing, 16+4*spec.Workers), // the loop never waits for it: run and cancel for each that is open fit
	}
	c.cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
	c.cmd.Stdout, c.cmd.Stderr = &c.tail, &c.tail
	c.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if spec.UID >= 0 {
		c.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.UID), Groups: []uint32{}}
	}
	return c, theirs, nil
}

// hold starts the command and waits for its end, all on one thread: bubblewrap dies with the thread that started it.
func (s *shim) hold(c *child, started chan<- error) {
	runtime.LockOSThread() // and never unlock: the thread goes with this goroutine
	leave, err := s.group.enter()
	if err != nil {
		started <- err
		return
	}
	if s.group.mode == "v2" {
		dir, err := os.Open(s.group.dir(""))
		if err != nil {
			started <- err
			return
		}
		defer func() { _ = dir.Close() }()
		c.cmd.SysProcAttr.UseCgroupFD, c.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	err = c.cmd.Start()
	leave()
	if started <- err; err != nil {
		return
	}
	read := make(chan struct{})
	s.all.Go(func() {
		defer close(read)
		s.listen(c)
	})
	err = c.cmd.Wait()
	<-read // all that was sent before the end has been handed to the loop
	_ = c.runner.Close()
	var status syscall.WaitStatus
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status, _ = exit.Sys().(syscall.WaitStatus)
	}
	s.do(func() { s.gone(c, status) })
	if fd := c.init.Swap(0); fd > 0 {
		_ = unix.Close(int(fd - 1))
	}
}

// learn reads which process is the sandbox's first.
func (c *child) learn(info *os.File) {
	defer func() { _ = info.Close() }()
	var about struct {
		PID int `json:"child-pid"`
	}
	if json.NewDecoder(info).Decode(&about) != nil || about.PID <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(about.PID, 0)
	if err != nil {
		return
	}
	c.pid.Store(int64(about.PID))
	c.init.Store(int64(fd) + 1)
	if c.killed.Load() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// kill ends the sandbox: the end of its first process is the end of all of its process namespace. If that process is not
// known yet, learn kills it. Should that not help, all in the cgroup, bubblewrap and its orphans are killed.
func (c *child) kill(g *group) {
	if c.killed.Swap(true) {
		return
	}
	if fd := c.init.Load(); fd > 0 {
		_ = unix.PidfdSendSignal(int(fd-1), unix.SIGKILL, nil, 0)
	}
	time.AfterFunc(time.Second, func() {
		g.kill()
		_ = c.cmd.Process.Kill()
		for _, pid := range childrenOf(os.Getpid()) { // its orphans are ours, and keep their numbers until we look
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
}

// childrenOf lists the children of a process.
func childrenOf(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range tasks {
		b, _ := os.ReadFile(file)
		for word := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(word); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// strays ends all processes of the sandbox but its first one and the runner, which is the first that it has started: what
// an input has left behind in a session of its own. The runner has no child while no input runs.
func (c *child) strays() {
	init := int(c.pid.Load())
	if init == 0 {
		return
	}
	first := childrenOf(init)
	if len(first) == 0 {
		return
	}
	queue := append(childrenOf(first[0]), first[1:]...)
	for seen := 0; len(queue) > 0 && seen < 4096; seen++ {
		pid := queue[0]
		queue = append(queue[1:], childrenOf(pid)...)
		_ = unix.Kill(pid, unix.SIGKILL) // it is in the sandbox, so its number is nobody else's until its parent has looked
	}
}

// write sends frames to the runner.
func (c *child) write(over <-chan struct{}) {
	for {
		select {
		case o := <-c.out:
			if writeFrame(c.runner, o.header, o.payload) != nil {
				return // the reader sees the same end
			}
		case <-over:
			return
		}
	}
}

// listen reads the runner's frames until it ends or breaks the rules.
func (s *shim) listen(c *child) {
	r := bufio.NewReaderSize(c.runner, 64<<10)
	for {
		var f runnerFrame
		payload, err := readFrame(r, &f)
		if err != nil {
			s.do(func() { s.mute(c, err) })
			return
		}
		c.said.Store(true)
		s.do(func() { s.heard(&f, payload) })
	}
}

// mute is told that nothing more will come from the runner.
func (s *shim) mute(c *child, err error) {
	if errors.Is(err, errFrame) && s.cur != nil && s.cur.cause == nil {
		s.cur.cause = &cause{protocol.ReasonExitNonzero, "the runner's process was tampered with: " + err.Error()}
	}
	if errors.Is(err, errFrame) || s.child == c {
		s.ending = true
		// Usually it has just ended. If it has not, it is deaf and of no use.
		time.AfterFunc(time.Second, func() { s.do(s.killChild) })
	}
}

// cpu is the processor time of all processes of the sandbox by /proc, for where there is no cgroup.
func (c *child) cpu() (cpu time.Duration) {
	pids, _ := c.tree()
	for _, pid := range pids {
		cpu += processCPU(pid)
	}
	return cpu
}

// processCPU reads the processor time of a process and its dead children.
func processCPU(pid int) (cpu time.Duration) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	if len(f) < 22 {
		return 0
	}
	const tick = time.Second / 100 // USER_HZ
	for _, i := range []int{11, 12, 13, 14} {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		cpu += time.Duration(n) * tick
	}
	return cpu
}
