package wasm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

const backendName = "wasm"

const (
	// maxStrays is how many compilations may run on past their deadline before no other is begun: one costs
	// no more than a core or two, and the others go on.
	maxStrays = 2
	// closeGrace is how long Close waits for a compilation: a node that is told to stop has to stop.
	closeGrace = 2 * time.Second
)

// Backend runs tasks as WebAssembly modules in this process.
type Backend struct {
	cfg Config
	log *slog.Logger

	modules   *memoryCache
	flights   singleflight.Group
	turn      chan struct{} // holds one token: compilations take turns
	engine    engine
	compile   func(ctx context.Context, key string, binary []byte) (*compiled, error) // the engine's
	compiling sync.WaitGroup                                                          // compilations, strays among them

	life context.Context // ends when the backend closes
	kill context.CancelCauseFunc

	mu     sync.Mutex
	runs   map[protocol.LeaseID]*run
	closed bool
	strays map[string]bool // CIDs whose compilations run on past their deadline
	active sync.WaitGroup  // runs and preparations
}

var _ executor.Backend = (*Backend)(nil)

// New returns a backend. It touches no disk: the first Probe or Prepare does. Close has to be called.
func New(cfg Config, log *slog.Logger) (*Backend, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	life, kill := context.WithCancelCause(context.Background())
	b := &Backend{
		cfg: cfg, log: log,
		modules: newMemoryCache(cfg.CacheModules),
		turn:    make(chan struct{}, 1),
		life:    life, kill: kill,
		runs: map[protocol.LeaseID]*run{}, strays: map[string]bool{},
	}
	b.engine.log = log
	b.compile = b.engine.compile
	if cfg.CacheDir != "" {
		b.engine.disk = &diskCache{dir: cfg.CacheDir, capacity: cfg.CacheBytes}
	}
	return b, nil
}

// Close ends all runs (protocol.ReasonDrained: another node may take them), waits for them and gives the
// compiled code back. A compilation that cannot be interrupted is waited for during closeGrace; then it is
// left behind with the memory of all compiled code, and whichever is over first, it or the process, frees both.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.kill(&executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed})
	b.active.Wait()
	over := make(chan error, 1)
	go func() {
		b.compiling.Wait()
		over <- b.engine.close() // not sooner: the compiler would write into what is gone
	}()
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case err := <-over:
		return err
	case <-grace.C:
		b.log.Warn("leaving a compilation behind that does not end", "waited", closeGrace)
		return nil
	}
}

// enter keeps Close waiting until active.Done; it fails with ErrClosed.
func (b *Backend) enter() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return &executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed}
	}
	b.active.Add(1)
	return nil
}

// Prepare implements executor.Backend: it loads, rewrites, compiles and checks the module unless a cache
// has it. Callers with the same module share one compilation.
func (b *Backend) Prepare(ctx context.Context, task executor.Task) (*executor.Prepared, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	if b.modules.has(task.Module.CID) {
		return &executor.Prepared{Task: task}, nil
	}
	if err := b.enter(); err != nil {
		return nil, err
	}
	ready := b.flights.DoChan(task.Module.CID, func() (any, error) {
		// Who came first may leave; the others want the module all the same.
		return nil, b.prepare(context.WithoutCancel(ctx), task.Module)
	})
	defer b.active.Done()
	select {
	case r := <-ready:
		if r.Err != nil {
			return nil, fmt.Errorf("preparing module %s: %w", task.Module.CID, r.Err)
		}
		return &executor.Prepared{Task: task}, nil
	case <-ctx.Done():
		return nil, &executor.Failure{Reason: protocol.ReasonStartFailed, Err: context.Cause(ctx)}
	}
}

// prepare loads and compiles one module. It is called once at a time per CID.
func (b *Backend) prepare(ctx context.Context, module executor.Module) error {
	if b.modules.has(module.CID) {
		return nil
	}
	if err := b.enter(); err != nil {
		return err
	}
	defer b.active.Done()
	ctx, cancel := context.WithTimeout(ctx, b.cfg.LoadTimeout)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()
	binary, err := module.Load(ctx)
	if err != nil {
		return &executor.Failure{
			Reason: executor.ReasonOf(err, protocol.ReasonDataUnavailable),
			Err:    fmt.Errorf("loading it: %w", err),
		}
	}
	if len(binary) > b.cfg.ModuleBytes {
		return executor.Fail(protocol.ReasonBadModule, "%w: it has %d bytes, at most %d are accepted", errModule, len(binary), b.cfg.ModuleBytes)
	}
	m, err := b.compileInTime(ctx, module.CID, binary)
	if err != nil {
		return err
	}
	b.modules.add(m)
	return nil
}

// compileInTime compiles with a deadline. wazero looks at a context between functions only, so a compilation
// may outlive its deadline in spite of the bounds on functions (bounds.go). It then is a stray: its turn goes
// to the others, but beside maxStrays of them none is begun, which holds hostile modules to a few cores.
func (b *Backend) compileInTime(ctx context.Context, key string, binary []byte) (*compiled, error) {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, executor.Fail(protocol.ReasonBackendFailed, "waiting for the compiler: %w", context.Cause(ctx))
	}
	defer func() { <-b.turn }()
	b.mu.Lock()
	again, strays := b.strays[key], len(b.strays)
	b.mu.Unlock()
	switch {
	case again: // who comes back with the same module gets the same answer, and no second stray
		return nil, b.lateness(context.DeadlineExceeded)
	case strays >= maxStrays:
		return nil, executor.Fail(protocol.ReasonBackendFailed, "%d compilations run on past their deadline: no other is begun", strays)
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.CompileTimeout)
	defer cancel()
	done := b.startCompile(ctx, key, binary)
	select {
	case r := <-done:
		return r.m, b.lateness(r.err)
	case <-ctx.Done():
	}
	select {
	case r := <-done: // both at once: what is done is done
		return r.m, b.lateness(r.err)
	default:
	}
	b.mu.Lock()
	b.strays[key] = true
	b.mu.Unlock()
	b.log.Warn("a compilation runs on past its deadline", "module", key, "bytes", len(binary), "err", ctx.Err())
	go func() { // ends with the compilation, which Close waits for
		if r := <-done; r.m != nil { // it was over at the very deadline
			_ = r.m.module.Close(context.Background())
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.strays, key)
	}()
	return nil, b.lateness(ctx.Err())
}

// compilation is how a compilation ended.
type compilation struct {
	m   *compiled
	err error
}

// startCompile compiles in a goroutine of its own. A result after ctx's end is given back, as nobody takes it.
func (b *Backend) startCompile(ctx context.Context, key string, binary []byte) <-chan compilation {
	done := make(chan compilation, 1)
	b.compiling.Go(func() {
		var r compilation
		defer func() {
			if p := recover(); p != nil {
				r = compilation{err: executor.Fail(protocol.ReasonBadModule, "%w: the compiler cannot take it: %v", errModule, p)}
			}
			done <- r
		}()
		r.m, r.err = b.compile(ctx, key, binary)
		if r.err == nil && ctx.Err() != nil {
			_ = r.m.module.Close(context.Background())
			r = compilation{err: ctx.Err()}
		}
	})
	return done
}

// lateness says whose fault a compilation without an end is.
func (b *Backend) lateness(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return executor.Fail(protocol.ReasonBadModule, "%w: compiling it takes longer than %s", errModule, b.cfg.CompileTimeout)
	case errors.Is(err, context.Canceled):
		return executor.Fail(protocol.ReasonDrained, "compiling: %w", executor.ErrClosed)
	default:
		return err
	}
}

// Start implements executor.Backend.
func (b *Backend) Start(ctx context.Context, p *executor.Prepared) (executor.Handle, error) {
	m := b.modules.acquire(p.Task.Module.CID)
	for m == nil { // it left the cache since Prepare
		if _, err := b.Prepare(ctx, p.Task); err != nil {
			return nil, err
		}
		m = b.modules.acquire(p.Task.Module.CID)
	}
	r, err := b.begin(p.Task)
	if err != nil {
		b.modules.release(m)
		return nil, err
	}
	go r.main(m)
	return r, nil
}

func (b *Backend) begin(task executor.Task) (*run, error) {
	r := &run{
		backend: b, task: task,
		token: executor.Token(backendName + ":" + task.Lease.String()),
		done:  make(chan struct{}),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, &executor.Failure{Reason: protocol.ReasonDrained, Err: executor.ErrClosed}
	}
	if b.runs[task.Lease] != nil {
		return nil, executor.Fail(protocol.ReasonStartFailed, "%w: lease %s runs already", executor.ErrBadTask, task.Lease)
	}
	r.ctx, r.cancel = context.WithCancelCause(b.life)
	b.runs[task.Lease] = r
	b.active.Add(1)
	return r, nil
}

// finish releases what a run held and announces its outcome.
func (b *Backend) finish(r *run, m *compiled) {
	b.modules.release(m)
	b.mu.Lock()
	delete(b.runs, r.task.Lease)
	b.mu.Unlock()
	r.cancel(nil)
	close(r.done)
	b.active.Done()
}

// Reattach implements executor.Backend. Runs live in this process: after a restart there is none, and the
// lease machine starts the task again under the same lease and fence (execution.md 8).
func (b *Backend) Reattach(_ context.Context, token executor.Token, _ *executor.Log) (executor.Handle, error) {
	name, ok := strings.CutPrefix(string(token), backendName+":")
	b.mu.Lock()
	defer b.mu.Unlock()
	for lease, r := range b.runs {
		if ok && lease.String() == name {
			return r, nil
		}
	}
	return nil, fmt.Errorf("reattaching %s: %w", token, executor.ErrGone)
}
