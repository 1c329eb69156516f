//go:build linux

package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/sandbox/python"
	"github.com/gridbeam/gridbeam/protocol"
)

const backendName = "sandbox"

// Names in the backend's directory.
const (
	boxesName  = "boxes"
	exitsName  = "exits"
	runnerName = "runner-"
)

// keepExits is how long the exit file of a lease that nobody asks for is kept (execution.md 8).
const keepExits = 24 * time.Hour

// Backend runs functions in sandboxes of the host's Python.
type Backend struct {
	cfg      Config
	log      *slog.Logger
	landlock func() int // the kernel's version

	readying sync.Mutex // held while the directory is made ready
	isReady  bool
	runner   string // directory with the runner's files

	mu      sync.Mutex
	boxes   map[string]*box // by ID, those that live
	runs    map[protocol.LeaseID]*run
	ended   map[string]bool // leases whose outcome was given out here
	runtime []runtimeFound  // nil until it was looked for
	closed  bool
	active  sync.WaitGroup // goroutines of boxes
}

var _ executor.Backend = (*Backend)(nil)

// New returns a backend. It touches no disk: the first Probe, Prepare or Reattach does. Close has to be called.
func New(cfg Config, log *slog.Logger) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Backend{cfg: cfg, log: log, landlock: landlockABI, boxes: map[string]*box{}, runs: map[protocol.LeaseID]*run{}, ended: map[string]bool{}}, nil
}

// runtimeFound is an interpreter of the host.
type runtimeFound struct {
	path        string // below /usr
	name        string // python3.11
	version     string // 3.11.2
	cloudpickle string // 2.2.0, or empty
}

// lookScript prints what a runtimeFound says.
const lookScript = `import sys
try:
    import cloudpickle
    c = cloudpickle.__version__
except ImportError:
    c = "-"
print("%d.%d" % sys.version_info[:2], "%d.%d.%d" % sys.version_info[:3], c)`

// runtimes looks for interpreters, once.
func (b *Backend) runtimes(ctx context.Context) []runtimeFound {
	b.mu.Lock()
	found := b.runtime
	b.mu.Unlock()
	if found != nil {
		return found
	}
	found = []runtimeFound{}
	for _, path := range b.cfg.Python {
		target, err := filepath.EvalSymlinks(path)
		if err != nil || !within(target, "/usr") {
			continue
		}
		cmd := exec.CommandContext(ctx, target, "-I", "-c", lookScript)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
		out, err := cmd.Output()
		f := strings.Fields(string(out))
		if err != nil || len(f) != 3 {
			b.log.Warn("an interpreter does not work", "path", path, "err", err)
			continue
		}
		found = append(found, runtimeFound{path: target, name: "python" + f[0], version: f[1], cloudpickle: strings.Trim(f[2], "-")})
	}
	if ctx.Err() == nil {
		b.mu.Lock()
		b.runtime = found
		b.mu.Unlock()
	}
	return found
}

// pick is the interpreter for a Function.Runtime.
func (b *Backend) pick(ctx context.Context, name string) (runtimeFound, error) {
	all := b.runtimes(ctx)
	for _, r := range all {
		if r.name == name || name == "python3" {
			return r, nil
		}
	}
	return runtimeFound{}, executor.Fail(protocol.ReasonRefusedPolicy, "this node has no %s below /usr, it has %v", name, names(all))
}

func names(all []runtimeFound) (out []string) {
	for _, r := range all {
		out = append(out, r.name)
	}
	return out
}

// open makes the directory ready, writes the runner's files, and takes up what an earlier process has left.
func (b *Backend) open(ctx context.Context) error {
	b.readying.Lock()
	defer b.readying.Unlock()
	if b.isReady {
		return nil
	}
	for _, dir := range []string{b.cfg.Dir, filepath.Join(b.cfg.Dir, boxesName), filepath.Join(b.cfg.Dir, exitsName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return executor.Fail(protocol.ReasonBackendFailed, "making the sandboxes' directory: %w", err)
		}
	}
	if err := b.writeRunner(); err != nil {
		return executor.Fail(protocol.ReasonBackendFailed, "writing the runner: %w", err)
	}
	b.adopt(ctx)
	b.sweepExits()
	b.isReady = true
	return nil
}

// writeRunner writes the embedded Python files into a directory that is named after them.
func (b *Backend) writeRunner() error {
	sum := sha256.New()
	files := map[string][]byte{}
	err := fs.WalkDir(python.Files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := python.Files.ReadFile(name)
		files[name] = raw
		_, _ = fmt.Fprintf(sum, "%s %d %s", name, len(raw), raw)
		return err
	})
	if err != nil {
		return err
	}
	b.runner = filepath.Join(b.cfg.Dir, runnerName+hex.EncodeToString(sum.Sum(nil)[:8]))
	if isDir(b.runner) {
		return nil
	}
	part, err := os.MkdirTemp(b.cfg.Dir, runnerName+"part-")
	if err != nil {
		return err
	}
	for name, raw := range files {
		to := filepath.Join(part, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, raw, 0o644)); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(part, 0o755), os.Rename(part, b.runner))
}

// sweepExits removes exit files that nobody will ask for.
func (b *Backend) sweepExits() {
	dir := filepath.Join(b.cfg.Dir, exitsName)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		b.mu.Lock()
		ended := b.ended[strings.TrimSuffix(e.Name(), exitEnd)]
		b.mu.Unlock()
		age := keepExits
		if ended {
			age = time.Minute // it was given out; this process has had the time to write down what came of it
		}
		if err == nil && time.Since(info.ModTime()) > age {
			_ = os.Remove(filepath.Join(dir, e.Name()))
			b.mu.Lock()
			delete(b.ended, strings.TrimSuffix(e.Name(), exitEnd))
			b.mu.Unlock()
		}
	}
}

// Prepare implements executor.Backend: it judges the task and looks for its runtime.
func (b *Backend) Prepare(ctx context.Context, task executor.Task) (*executor.Prepared, error) {
	if err := b.judge(ctx, &task); err != nil {
		return nil, err
	}
	return &executor.Prepared{Task: task}, nil
}

// maxEnv bounds the environment: it travels in one frame's header, beside other things.
const maxEnv = 48 << 10

func (b *Backend) judge(ctx context.Context, task *executor.Task) error {
	if b.isClosed() {
		return &executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed}
	}
	if err := task.Validate(); err != nil {
		return err
	}
	f := task.Function
	if f == nil {
		return executor.Fail(protocol.ReasonStartFailed, "%w: Function is nil: a sandbox runs functions", executor.ErrBadTask)
	}
	if task.Limits.Processes <= 0 || task.Limits.Disk <= 0 {
		return executor.Fail(protocol.ReasonStartFailed, "%w: Limits.Processes and Disk are %d and %d, want more than 0", executor.ErrBadTask, task.Limits.Processes, task.Limits.Disk)
	}
	if err := checkPaths(task); err != nil {
		return &executor.Failure{Reason: protocol.ReasonBadCommand, Err: err}
	}
	size := 0
	for name, value := range task.Env {
		size += 2 * (len(name) + len(value) + 4)
	}
	if size > maxEnv {
		return executor.Fail(protocol.ReasonBadCommand, "%w: Env is too large: at most %d bytes are passed", executor.ErrBadTask, maxEnv/2)
	}
	for _, in := range task.Inputs {
		if len(in.Args) > maxPayload {
			return executor.Fail(protocol.ReasonBadCommand, "%w: Inputs: the arguments of input %d have %d bytes, at most %d are passed: use a volume",
				executor.ErrBadTask, in.Index, len(in.Args), maxPayload)
		}
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	_, err := b.pick(ctx, f.Runtime)
	return err
}

func (b *Backend) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// specOf is what a new sandbox for a task is told.
func (b *Backend) specOf(ctx context.Context, t *executor.Task) (*boxSpec, error) {
	f := t.Function
	found, err := b.pick(ctx, f.Runtime)
	if err != nil {
		return nil, err
	}
	var id [8]byte
	_, _ = rand.Read(id[:])
	s := &boxSpec{
		ID: hex.EncodeToString(id[:]), Tenant: t.Tenant, Spec: f.Spec, Bubblewrap: b.cfg.Bubblewrap, Init: b.cfg.Init, Python: found.path, Runner: b.runner,
		UID: -1, Handler: f.Handler, OnStart: f.OnStart, Code: f.Code, Workers: f.Workers, TimeoutMS: f.Timeout.Milliseconds(), Env: t.Env, Limits: t.Limits,
		KeepWarm: f.KeepWarm, KeepOrphan: b.cfg.KeepOrphan, MaxAge: b.cfg.MaxAge, MaxInputs: b.cfg.MaxInputs, Exits: filepath.Join(b.cfg.Dir, exitsName), NoCgroups: b.cfg.NoCgroups,
	}
	if s.KeepWarm == 0 || s.KeepWarm > b.cfg.KeepWarm {
		s.KeepWarm = b.cfg.KeepWarm
	}
	if os.Geteuid() == 0 {
		s.UID = int(b.cfg.UIDBase) + int(id[0])<<16 + int(id[1])<<8 + int(id[2])
	}
	for _, m := range t.Mounts {
		s.Mounts = append(s.Mounts, mountSpec{Dir: m.Dir, Target: m.Target, Links: m.Links, ReadOnly: m.ReadOnly})
	}
	for _, d := range t.Devices {
		s.Devices = append(s.Devices, d.Path)
	}
	return s, nil
}

// Start implements executor.Backend: an idle sandbox of the same tenant and spec takes the lease, or a new one.
func (b *Backend) Start(ctx context.Context, p *executor.Prepared) (executor.Handle, error) {
	if err := b.judge(ctx, &p.Task); err != nil {
		return nil, err
	}
	r := newRun(b, p.Task)
	if err := b.enter(r); err != nil {
		return nil, err
	}
	for x := b.idle(&p.Task); x != nil; x = b.idle(&p.Task) {
		if err := x.lease(ctx, r); err == nil {
			return r, nil
		} // it has ended between two leases, or is about to: there may be another
	}
	spec, err := b.specOf(ctx, &p.Task)
	if err == nil {
		var x *box
		if x, err = b.launch(spec); err == nil {
			if err = x.lease(ctx, r); err != nil {
				x.end()
				err = executor.Fail(protocol.ReasonStartFailed, "handing a lease to a new sandbox: %w%s", err, x.complaint())
			}
		}
	}
	if err != nil {
		b.leave(r)
		return nil, err
	}
	return r, nil
}

// enter books a run by its lease.
func (b *Backend) enter(r *run) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return &executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed}
	}
	if b.runs[r.id] != nil {
		return executor.Fail(protocol.ReasonStartFailed, "%w: lease %s runs already", executor.ErrBadTask, r.id)
	}
	b.runs[r.id] = r
	delete(b.ended, r.id.String())
	return nil
}

func (b *Backend) leave(r *run) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.runs, r.id)
}

// Reattach implements executor.Backend. It returns executor.ErrGone if the run, its shim and its exit file are gone.
func (b *Backend) Reattach(ctx context.Context, token executor.Token, log *executor.Log) (executor.Handle, error) {
	gone := func(why any) error { return fmt.Errorf("reattaching %s: %w: %v", token, executor.ErrGone, why) }
	rest, ok := strings.CutPrefix(string(token), backendName+":")
	id, lease, also := strings.Cut(rest, "/")
	var leaseID protocol.LeaseID
	if !ok || !also || leaseID.UnmarshalText([]byte(lease)) != nil {
		return nil, gone("it is no token of this backend")
	}
	if b.isClosed() {
		return nil, &executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed}
	}
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	b.mu.Lock()
	have, x, ended := b.runs[leaseID], b.boxes[id], b.ended[lease]
	b.mu.Unlock()
	switch {
	case have != nil:
		return have, nil
	case ended:
		return nil, gone("its outcome was given out")
	}
	r := newRun(b, executor.Task{Lease: leaseID, Log: log})
	if err := b.enter(r); err != nil {
		return nil, err
	}
	if x != nil {
		if err := x.attach(ctx, r); err == nil {
			return r, nil
		}
	}
	e, err := openExit(filepath.Join(b.cfg.Dir, exitsName), lease)
	if err != nil {
		b.leave(r)
		return nil, gone(err)
	}
	r.token = token
	r.finish(e.outcome())
	return r, nil
}

// Close ends the sandboxes that wait for work, and lets go of those that work: they go on, and the next process finds
// them by Reattach. Runs that have not ended answer Wait with executor.ErrClosed.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	var boxes []*box
	for _, x := range b.boxes {
		boxes = append(boxes, x)
	}
	b.mu.Unlock()
	for _, x := range boxes {
		x.letGo()
	}
	b.active.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for lease := range b.ended {
		_ = os.Remove(filepath.Join(b.cfg.Dir, exitsName, lease+exitEnd))
	}
	return nil
}
