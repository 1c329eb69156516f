package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a process that the driver has started.
type child struct {
	name  string
	cmd   *exec.Cmd
	log   string         // its standard error
	stdin io.WriteCloser // closing it ends a baseline's host
	began time.Time
	ready chan []byte   // capacity 1: its first line with event "ready"
	done  chan struct{} // closed when it has ended
	err   error         // how, once done is closed
}

// spawn starts a program with its log in a file of its own.
func spawn(name, logs, exe string, args ...string) (*child, error) {
	p := &child{name: name, log: filepath.Join(logs, name+".log"), ready: make(chan []byte, 1), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()   // the child has its own
	p.cmd = exec.Command(exe, args...) //nolint:noctx // ended by kill and stop, in order
	p.cmd.Stderr = f
	p.cmd.SysProcAttr = ownGroup()
	out, err1 := p.cmd.StdoutPipe()
	in, err2 := p.cmd.StdinPipe()
	p.stdin, p.began = in, time.Now()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go p.read(out)
	return p, nil
}

// read waits for the ready line, then for the end.
func (p *child) read(out io.Reader) {
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if bytes.Contains(s.Bytes(), []byte(`"event":"ready"`)) {
			select {
			case p.ready <- bytes.Clone(s.Bytes()):
			default:
			}
		}
	}
	_, _ = io.Copy(io.Discard, out)
	p.err = p.cmd.Wait()
	close(p.done)
}

// awaitReady decodes the ready line into v and returns how long the process took for it.
func (p *child) awaitReady(ctx context.Context, v any) (time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	select {
	case line := <-p.ready:
		took := time.Since(p.began)
		if err := json.Unmarshal(line, v); err != nil {
			return 0, fmt.Errorf("reading the start of %s: %w", p.name, err)
		}
		return took, nil
	case <-p.done:
		return 0, fmt.Errorf("%s ended at its start (%w):\n%s", p.name, p.err, p.tail())
	case <-ctx.Done():
		return 0, fmt.Errorf("%s is not ready: %w; its log ends:\n%s", p.name, ctx.Err(), p.tail())
	}
}

// tail returns the end of the child's log.
func (p *child) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

func (p *child) pid() int { return p.cmd.Process.Pid }

// kill ends the child as a power cut would and waits for it.
func (p *child) kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.done
}

// stop asks the child to end, and kills it after a while.
func (p *child) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.stdin.Close()
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

// rss is the resident memory of a process in bytes.
func rss(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading memory of a process: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory", pid)
}

// cpuTime is the processor time that the living threads of a process have used, to the nanosecond: the ticks of
// /proc/PID/stat are too coarse for an idle one.
func cpuTime(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("reading the processor time of %d: there is no schedstat", pid)
	}
	var sum time.Duration
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// goTool runs the go command in the source tree.
func (b *bench) goTool(ctx context.Context, env []string, args ...string) error {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Env = b.root, append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// pause waits, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
