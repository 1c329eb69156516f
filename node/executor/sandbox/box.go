//go:build linux

package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// answerWithin is how long a shim may take to take a lease or to refuse it, and to end when it has said good-bye.
const answerWithin = 20 * time.Second

// errRefused means that a shim did not take a lease.
var errRefused = errors.New("sandbox: the lease was refused")

// box is the daemon's side of one sandbox: a connection to its shim.
type box struct {
	backend *Backend
	id      string
	tenant  string
	spec    string
	dir     string
	cmd     *exec.Cmd // nil if an earlier process has started it
	conn    net.Conn
	answers chan message // accepted, refused; one: a shim answers one question at a time
	dead    chan struct{}
	words   string // what the shim has complained of, set before dead is closed

	writing sync.Mutex // held while writing to conn

	// guarded by backend.mu
	busy     bool
	cur      *run
	lastUsed time.Time
	letting  bool // the backend closes: what runs is let go
}

// launch starts a shim for a new sandbox and connects to it.
func (b *Backend) launch(spec *boxSpec) (*box, error) {
	b.evict()
	b.sweepExits()
	dir := filepath.Join(b.cfg.Dir, boxesName, spec.ID)
	fail := func(err error) (*box, error) {
		return nil, executor.Fail(protocol.ReasonStartFailed, "starting a sandbox: %w", errors.Join(err, removeTree(dir)))
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fail(err)
	}
	if err := writeJSON(filepath.Join(dir, specName), spec); err != nil {
		return fail(err)
	}
	var l *net.UnixListener
	err := viaDir(dir, func(path string) (err error) {
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path}); err == nil {
			l.SetUnlinkOnClose(false)
		}
		return err
	})
	if err != nil {
		return fail(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }()
	words, err := os.OpenFile(filepath.Join(dir, shimLogName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = words.Close() }()
	cmd := exec.Command(b.cfg.Shim[0], append(append([]string{}, b.cfg.Shim[1:]...), dir)...) //nolint:noctx // it outlives whoever starts it
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "GOMAXPROCS=2"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = words, words, []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if spec.UID >= 0 {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // for the stage
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	x := &box{backend: b, id: spec.ID, tenant: spec.Tenant, spec: spec.Spec, dir: dir, cmd: cmd, busy: true}
	if err := x.connect(); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fail(err)
	}
	return x, nil
}

// viaDir calls f with a short path to the socket in a directory: a socket's path has 108 bytes at most.
func viaDir(dir string, f func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return f("/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + socketName)
}

// connect dials the shim and begins to listen to it.
func (x *box) connect() error {
	err := viaDir(x.dir, func(path string) (err error) {
		x.conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
		return err
	})
	if err != nil {
		return err
	}
	x.answers, x.dead = make(chan message, 1), make(chan struct{})
	b := x.backend
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		_ = x.conn.Close()
		return executor.ErrClosed
	}
	b.boxes[x.id] = x
	b.active.Go(x.listen)
	return nil
}

// send writes one frame.
func (x *box) send(m message, payload []byte) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	return writeFrame(x.conn, m, payload)
}

// idle takes the sandbox that was used last of those that may serve a task.
func (b *Backend) idle(t *executor.Task) (best *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.boxes {
		if !x.busy && x.tenant == t.Tenant && x.spec == t.Function.Spec && (best == nil || x.lastUsed.After(best.lastUsed)) {
			best = x
		}
	}
	if best != nil {
		best.busy = true
	}
	return best
}

// evict ends the sandboxes that have waited longest until no more wait than may.
func (b *Backend) evict() {
	for {
		var oldest *box
		waiting := 0
		b.mu.Lock()
		for _, x := range b.boxes {
			if x.busy {
				continue
			}
			waiting++
			if oldest == nil || x.lastUsed.Before(oldest.lastUsed) {
				oldest = x
			}
		}
		if waiting <= b.cfg.MaxWarm {
			oldest = nil
		} else {
			oldest.busy = true
		}
		b.mu.Unlock()
		if oldest == nil {
			return
		}
		oldest.end()
	}
}

// end tells the shim to end its sandbox. It does not wait.
func (x *box) end() { _ = x.send(message{Op: "end"}, nil) }

// letGo is called when the backend closes.
func (x *box) letGo() {
	b := x.backend
	b.mu.Lock()
	x.letting = true
	running := x.cur != nil
	b.mu.Unlock()
	if running {
		_ = x.conn.Close()
		return
	}
	x.end()
	_ = x.conn.SetReadDeadline(time.Now().Add(answerWithin))
}

// lease hands a run to the sandbox, which the caller has taken.
func (x *box) lease(ctx context.Context, r *run) error {
	t := &r.task
	x.hold(r)
	err := x.send(message{Op: "lease", Lease: r.id.String(), Out: t.OutDir, Limits: &t.Limits, Count: len(t.Inputs)}, nil)
	for _, in := range t.Inputs {
		if err == nil {
			err = x.send(message{Op: "input", Input: in.Index, Task: in.Value, Encoding: string(in.Encoding)}, in.Args)
		}
	}
	if err == nil {
		err = x.send(message{Op: "begin"}, nil)
	}
	if err == nil {
		err = x.answer(ctx, r)
	}
	if err != nil {
		x.release(r)
	}
	return err
}

// attach takes a run up again.
func (x *box) attach(ctx context.Context, r *run) error {
	x.hold(r)
	err := x.send(message{Op: "attach", Lease: r.id.String()}, nil)
	if err == nil {
		err = x.answer(ctx, r)
	}
	if err != nil {
		x.release(r)
		x.backend.mu.Lock()
		x.busy = !errors.Is(err, errRefused)
		x.backend.mu.Unlock()
	}
	return err
}

// hold makes a run the sandbox's.
func (x *box) hold(r *run) {
	r.token = executor.Token(backendName + ":" + x.id + "/" + r.id.String())
	r.box = x
	x.backend.mu.Lock()
	defer x.backend.mu.Unlock()
	x.cur, x.busy = r, true
}

// release undoes hold for a run that was not taken. The sandbox serves nobody any more.
func (x *box) release(r *run) {
	x.backend.mu.Lock()
	defer x.backend.mu.Unlock()
	if x.cur == r {
		x.cur = nil
	}
	r.box = nil
}

// answer waits for the shim's word.
func (x *box) answer(ctx context.Context, r *run) error {
	late := time.NewTimer(answerWithin)
	defer late.Stop()
	select {
	case m := <-x.answers:
		if m.Op == "accepted" {
			return nil
		}
		return fmt.Errorf("%w: %s", errRefused, m.Text)
	case <-x.dead:
		x.backend.mu.Lock()
		defer x.backend.mu.Unlock()
		if r.taken { // and lost since: it has its end
			return nil
		}
		return fmt.Errorf("%w: the shim has ended", errRefused)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return fmt.Errorf("%w: the shim does not answer", errRefused)
	}
}

// listen hears the shim until it or the connection ends.
func (x *box) listen() {
	r := bufio.NewReaderSize(x.conn, 64<<10)
	for {
		var m message
		payload, err := readFrame(r, &m)
		if err != nil {
			x.lost(err)
			return
		}
		x.heard(&m, payload)
	}
}

func (x *box) heard(m *message, payload []byte) {
	b := x.backend
	b.mu.Lock()
	r := x.cur
	b.mu.Unlock()
	switch m.Op {
	case "hello": // one that an earlier process has started may have become idle
		b.mu.Lock()
		if x.cmd == nil && x.cur == nil {
			x.busy = m.Running
		}
		b.mu.Unlock()
	case "accepted", "refused":
		if r != nil && m.Op == "accepted" {
			b.mu.Lock()
			r.taken = true
			b.mu.Unlock()
		}
		select {
		case x.answers <- *m:
		default: // nobody has asked
		}
	case "log":
		if r != nil && r.task.Log != nil {
			r.task.Log.AppendOf(m.Input, protocol.LogStream(m.Stream), payload)
		}
	case "done":
		if r != nil {
			r.inputDone(m.Input)
		}
	case "usage":
		if r != nil && m.Usage != nil {
			r.use(*m.Usage)
		}
	case "outcome":
		if r == nil || m.Outcome == nil || m.Outcome.Lease != r.id.String() {
			return
		}
		b.mu.Lock()
		x.cur, x.lastUsed = nil, time.Now()
		x.busy = x.letting || m.Ending
		closing := x.letting
		b.mu.Unlock()
		r.finish(m.Outcome.outcome())
		if closing {
			x.end()
		} else {
			b.evict()
		}
	}
}

// lost is called once, when the connection is gone.
func (x *box) lost(err error) {
	b := x.backend
	_ = x.conn.Close()
	b.mu.Lock()
	r, letting := x.cur, x.letting
	if r != nil && !r.taken {
		r = nil // who handed it over still waits for the answer, and looks elsewhere
	}
	x.cur, x.busy = nil, true
	delete(b.boxes, x.id)
	b.mu.Unlock()
	x.words = x.lastWords()
	close(x.dead)
	if r != nil && letting {
		if x.cmd != nil {
			_ = x.cmd.Process.Release()
		}
		r.abandon()
		return
	}
	if !errors.Is(err, io.EOF) && !letting {
		b.log.Warn("the connection to a sandbox's shim is broken", "sandbox", x.id, "err", err)
	}
	x.bury()
	if r == nil {
		return
	}
	if e, err := openExit(filepath.Join(b.cfg.Dir, exitsName), r.id.String()); err == nil {
		r.finish(e.outcome())
		return
	}
	r.finish(executor.Outcome{
		ExitCode: -1, Reason: protocol.ReasonBackendFailed, FirstCause: shorten("the process that held the sandbox has ended"+x.words, executor.MaxFirstCause),
		Started: r.started, Ended: time.Now(), Usage: r.Usage(),
	})
}

// bury waits for the shim's end, helps it along if need be, and removes what it has left.
func (x *box) bury() {
	var who identity
	known := readJSON(filepath.Join(x.dir, identityName), &who) == nil
	if x.cmd != nil {
		hang := time.AfterFunc(answerWithin, func() { _ = x.cmd.Process.Kill() })
		_ = x.cmd.Wait()
		hang.Stop()
	} else if known && !waitGone(&who, answerWithin) {
		_ = who.kill()
		waitGone(&who, time.Second)
	}
	x.backend.sweepBox(x.id)
}

// waitGone waits for a process that is not this one's child.
func waitGone(who *identity, most time.Duration) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(most); who.alive(); <-tick.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// complaint is what a shim that has ended complained of.
func (x *box) complaint() string {
	select {
	case <-x.dead:
		return x.words
	default:
		return ""
	}
}

// lastWords is what a shim has complained of, with a separator before it.
func (x *box) lastWords() string {
	b, err := os.ReadFile(filepath.Join(x.dir, shimLogName))
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(valid(b[max(0, len(b)-1024):]))
}

// sweepBox removes what a dead shim has left: processes, cgroups, files.
func (b *Backend) sweepBox(id string) {
	dir := filepath.Join(b.cfg.Dir, boxesName, id)
	if !isDir(dir) {
		return // it has done that itself
	}
	err := errors.Join(ownGroups().named(id).remove(stuckAfter), removeTree(dir))
	if err != nil {
		b.log.Error("a sandbox's leftovers cannot be removed", "sandbox", id, "err", err)
	}
}

// adopt looks for sandboxes that an earlier process has left: those that live are taken over, the others swept.
func (b *Backend) adopt(ctx context.Context) {
	entries, _ := os.ReadDir(filepath.Join(b.cfg.Dir, boxesName))
	for _, e := range entries {
		if ctx.Err() != nil {
			return
		}
		dir := filepath.Join(b.cfg.Dir, boxesName, e.Name())
		var spec boxSpec
		err := readJSON(filepath.Join(dir, specName), &spec)
		if err == nil {
			x := &box{backend: b, id: spec.ID, tenant: spec.Tenant, spec: spec.Spec, dir: dir, busy: true}
			if err = x.connect(); err == nil {
				continue
			}
		}
		var who identity
		if readJSON(filepath.Join(dir, identityName), &who) == nil && who.alive() { // it lives and does not listen: about to end, or ill
			if !waitGone(&who, time.Second) {
				_ = who.kill()
				waitGone(&who, time.Second)
			}
		}
		b.sweepBox(e.Name())
	}
}
