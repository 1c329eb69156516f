package wasm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// compileWorkers is how many functions are compiled at once. Two is the least with which wazero looks at
// the context between functions.
const compileWorkers = 2

// engine holds wazero's runtimes: one that keeps machine code on the disk, and one that does not, for when
// the disk is full or its files are damaged. Both are made when they are first needed.
type engine struct {
	log  *slog.Logger
	disk *diskCache // nil: memory only

	mu        sync.Mutex
	cached    wazero.Runtime
	cache     wazero.CompilationCache
	plain     wazero.Runtime
	functions map[string]api.FunctionDefinition // of WASI
}

func (e *engine) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx := context.Background()
	var errs []error
	for _, r := range []wazero.Runtime{e.cached, e.plain} {
		if r != nil {
			errs = append(errs, r.Close(ctx))
		}
	}
	if e.cache != nil {
		errs = append(errs, e.cache.Close(ctx))
	}
	e.cached, e.plain, e.cache = nil, nil, nil
	return errors.Join(errs...)
}

// compile rewrites, compiles and checks a module.
func (e *engine) compile(ctx context.Context, key string, binary []byte) (*compiled, error) {
	rewritten, minMemory, err := instrument(binary)
	if err != nil {
		return nil, &executor.Failure{Reason: protocol.ReasonBadModule, Err: err}
	}
	ctx = experimental.WithCompilationWorkers(ctx, compileWorkers)
	m := &compiled{key: key, minMemory: minMemory}
	if e.disk != nil {
		if err := e.compileCached(ctx, m, rewritten); err == nil {
			return m, e.check(m)
		} else if ctx.Err() != nil {
			return nil, err
		}
		// A damaged or full disk must not count against the module: the compiler itself decides.
	}
	if m.runtime, err = e.open(ctx, false); err != nil {
		return nil, err
	}
	if m.module, err = m.runtime.CompileModule(ctx, rewritten); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, executor.Fail(protocol.ReasonBadModule, "%w: %w", errModule, err)
	}
	return m, e.check(m)
}

// compileCached compiles with the disk's help; it logs what the disk did wrong.
func (e *engine) compileCached(ctx context.Context, m *compiled, binary []byte) error {
	runtime, err := e.open(ctx, true)
	if err != nil {
		e.log.Warn("no cache for compiled modules", "dir", e.disk.dir, "err", err)
		return err
	}
	before, err := e.disk.files()
	if err != nil {
		e.log.Warn("no cache for compiled modules", "dir", e.disk.dir, "err", err)
		return err
	}
	m.runtime = runtime
	if m.module, err = runtime.CompileModule(ctx, binary); err != nil {
		return err
	}
	if ctx.Err() != nil { // another compilation has the turn by now, and looks for its own file
		_ = m.module.Close(context.Background())
		return ctx.Err()
	}
	if err := e.disk.used(m.key, before, time.Now()); err != nil {
		e.log.Warn("cache of compiled modules", "dir", e.disk.dir, "err", err)
	}
	return nil
}

// open returns a runtime with WASI in it.
func (e *engine) open(ctx context.Context, cached bool) (wazero.Runtime, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	slot := &e.plain
	if cached {
		slot = &e.cached
	}
	if *slot != nil {
		return *slot, nil
	}
	// Debug information is not read: it is large, from strangers, and instrument has moved the code.
	cfg := wazero.NewRuntimeConfigCompiler().WithDebugInfoEnabled(false)
	if cached {
		if err := e.disk.open(); err != nil {
			return nil, fmt.Errorf("opening %s: %w", e.disk.dir, err)
		}
		cache, err := wazero.NewCompilationCacheWithDir(e.disk.dir)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", e.disk.dir, err)
		}
		e.cache = cache
		cfg = cfg.WithCompilationCache(cache)
	}
	r := wazero.NewRuntimeWithConfig(ctx, cfg)
	wasi, err := hostModule(r).Compile(ctx)
	if err == nil {
		e.functions = wasi.ExportedFunctions()
		_, err = r.InstantiateModule(ctx, wasi, wazero.NewModuleConfig())
	}
	if err != nil {
		return nil, errors.Join(executor.Fail(protocol.ReasonBackendFailed, "starting wazero: %w", err), r.Close(ctx))
	}
	*slot = r
	return r, nil
}

// errnoNotsup is WASI's ENOTSUP.
const errnoNotsup = 58

// hostModule is WASI preview 1 but for fd_renumber, which wazero answers by growing its table of
// descriptors to whatever number the module names: two calls would take 16 GiB of the host's memory.
func hostModule(r wazero.Runtime) wazero.HostModuleBuilder {
	b := r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	return b.NewFunctionBuilder().
		WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) { stack[0] = errnoNotsup }),
			[]api.ValueType{api.ValueTypeI32, api.ValueTypeI32}, []api.ValueType{api.ValueTypeI32}).
		Export("fd_renumber")
}

// check refuses a compiled module that could not be linked or has no beginning.
func (e *engine) check(m *compiled) error {
	err := e.checkImports(m.module)
	if err == nil {
		err = checkExports(m.module)
	}
	if err != nil {
		_ = m.module.Close(context.Background())
		return &executor.Failure{Reason: protocol.ReasonBadModule, Err: err}
	}
	return nil
}

func (e *engine) checkImports(module wazero.CompiledModule) error {
	if len(module.ImportedMemories()) > 0 {
		return fmt.Errorf("%w: it imports a memory; it has to bring its own", errModule)
	}
	for _, f := range module.ImportedFunctions() {
		from, name, _ := f.Import()
		if from != wasi_snapshot_preview1.ModuleName {
			return fmt.Errorf("%w: it imports %s.%s; only %s is offered (build it with GOOS=wasip1 GOARCH=wasm, or for wasm32-wasip1)",
				errModule, clip(from), clip(name), wasi_snapshot_preview1.ModuleName)
		}
		offered := e.functions[name]
		if offered == nil || !slices.Equal(offered.ParamTypes(), f.ParamTypes()) || !slices.Equal(offered.ResultTypes(), f.ResultTypes()) {
			return fmt.Errorf("%w: it imports %s.%s, which does not exist with this signature", errModule, from, clip(name))
		}
	}
	return nil
}

func checkExports(module wazero.CompiledModule) error {
	start := module.ExportedFunctions()["_start"]
	switch {
	case start == nil:
		return fmt.Errorf("%w: it exports no function _start: it is a library, not a program", errModule)
	case len(start.ParamTypes())+len(start.ResultTypes()) > 0:
		return fmt.Errorf("%w: its _start takes or returns values", errModule)
	}
	return nil
}

// clip bounds a name from a module inside a message.
func clip(name string) string {
	const most = 64
	if len(name) > most {
		name = name[:most] + "..."
	}
	return strings.ToValidUTF8(name, "\ufffd")
}
