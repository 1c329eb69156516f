package wasm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/sys"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// POSIX numbers of the signals that a native program would get where a module traps.
const (
	sigILL  = 4
	sigABRT = 6
	sigFPE  = 8
	sigSEGV = 11
)

// main runs all inputs and releases everything. It is the run's goroutine.
func (r *run) main(m *compiled) {
	defer r.backend.finish(r, m)
	cpu, unbind := bindCPU()
	defer unbind()
	r.mu.Lock()
	r.cpu = cpu
	r.mu.Unlock()

	started := time.Now()
	timeout := time.AfterFunc(r.task.Limits.Wall, func() {
		r.end(protocol.ReasonTimeout, fmt.Errorf("ran longer than %s", r.task.Limits.Wall))
	})
	out := r.inputs(m)
	timeout.Stop()

	out.Started, out.Ended = started, time.Now()
	out.Usage = r.Usage()
	if r.task.Log != nil {
		out.LogKept, out.LogDropped = r.task.Log.Counts()
	}
	r.mu.Lock()
	r.cpu = nil
	r.mu.Unlock()
	r.outcome = out
}

// inputs runs one input after another until one fails.
func (r *run) inputs(m *compiled) (out executor.Outcome) {
	host := r.newHost()
	defer func() {
		// A panic here would take the daemon and everybody's leases with it.
		if p := recover(); p != nil {
			out.ExitCode, out.Reason = -1, protocol.ReasonBackendFailed
			out.FirstCause = firstCause(fmt.Sprintf("the wasm backend panicked: %v", p))
		}
	}()
	for _, in := range r.task.Inputs {
		if f := r.cause(); f != nil {
			out.ExitCode, out.Reason, out.FirstCause = -1, f.Reason, firstCause(f.Error())
			return out
		}
		end := host.input(m, in)
		host.stdout.lines.Flush()
		host.stderr.lines.Flush()
		if end.Reason != protocol.ReasonDone {
			end.InputsDone = out.InputsDone
			end.FirstCause = firstCause(fmt.Sprintf("input %d: %s", in.Index, end.FirstCause))
			return end
		}
		out.InputsDone++
		if r.task.OnInput != nil {
			r.task.OnInput(in)
		}
	}
	out.Reason = protocol.ReasonDone
	return out
}

// firstCause fits a text into an Outcome: valid UTF-8 and short.
func firstCause(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= executor.MaxFirstCause {
		return s
	}
	s = s[:executor.MaxFirstCause]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// host is what the instances of one run get from outside.
type host struct {
	run            *run
	base           wazero.ModuleConfig
	mounts         wazero.FSConfig
	stdout, stderr *stdio
	memory         allocator
}

func (r *run) newHost() *host {
	h := &host{
		run:    r,
		stdout: &stdio{run: r, lines: executor.NewLineWriter(r.task.Log, executor.Stdout)},
		stderr: &stdio{run: r, lines: executor.NewLineWriter(r.task.Log, executor.Stderr)},
		memory: allocator{limit: uint64(r.task.Limits.Memory)},
	}
	// Instances are anonymous and start nothing by themselves: _start is called when the flag is within reach.
	h.base = wazero.NewModuleConfig().WithName("").WithStartFunctions().WithStdout(h.stdout).WithStderr(h.stderr)
	for _, name := range slices.Sorted(maps.Keys(r.task.Env)) {
		h.base = h.base.WithEnv(name, r.task.Env[name])
	}
	top := newOutFS(r, "")
	top.addDirs("/out")
	for _, m := range r.task.Mounts {
		top.addDirs(m.Target)
	}
	// "/" comes first: programs take the first directory for the working directory.
	h.mounts = wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(top, "/")
	for _, m := range r.task.Mounts {
		h.mounts = h.mounts.(sysfs.FSConfig).WithSysFSMount(&volFS{run: r, fs: m.FS}, m.Target)
	}
	return h
}

// input runs one input in an instance of its own.
func (h *host) input(m *compiled, in executor.Input) executor.Outcome {
	r := h.run
	if m.minMemory > h.memory.limit {
		return failed(protocol.ReasonOOM, 0, fmt.Sprintf("out of memory: the module starts with %d bytes, the limit is %d", m.minMemory, h.memory.limit))
	}
	out := newOutFS(r, r.task.OutputDir(in.Index))
	defer out.close()
	var now clock
	h.memory.denied = 0
	ctx := experimental.WithMemoryAllocator(context.Background(), &h.memory)
	instance, err := m.runtime.InstantiateModule(ctx, m.module, h.base.
		WithArgs(r.task.Args(in)...).
		WithFSConfig(h.mounts.(sysfs.FSConfig).WithSysFSMount(out, "/out")).
		WithRandSource(&random{run: r, src: rand.NewChaCha8(executor.InputSeed(r.task.Seed, in.Index))}).
		WithWalltime(now.walltime, tick).
		WithNanotime(now.nanotime, tick).
		WithNanosleep(now.sleep))
	if err == nil {
		err = r.call(ctx, instance)
		_ = instance.Close(ctx)
	} else if !isTrap(err) {
		// Compiled and yet not linkable: an import of the wrong kind.
		return failed(protocol.ReasonBadModule, 0, err.Error())
	}
	r.maxMemory.Store(max(r.maxMemory.Load(), int64(h.memory.peak)))
	return h.classify(err)
}

// call runs the module until it returns, exits, traps or is stopped.
func (r *run) call(ctx context.Context, instance api.Module) error {
	flag := instance.ExportedGlobal(exportStop).(api.MutableGlobal)
	disarm := context.AfterFunc(r.ctx, func() { flag.Set(1) })
	defer disarm()
	if init := instance.ExportedFunction(exportInit); init != nil {
		if _, err := init.Call(ctx); err != nil {
			return err
		}
	}
	_, err := instance.ExportedFunction("_start").Call(ctx)
	return err
}

// classify turns how an instance ended into an outcome.
func (h *host) classify(err error) executor.Outcome {
	// Whoever ended the run made the host's calls fail from then on, so even an instance that returned well
	// may have missed a part of its input or output.
	if f := h.run.cause(); f != nil {
		return failed(f.Reason, 0, f.Error())
	}
	exit, exited := errors.AsType[*sys.ExitError](err)
	if err == nil || exited && exit.ExitCode() == 0 {
		return executor.Outcome{Reason: protocol.ReasonDone}
	}
	var text string
	var end executor.Outcome
	if exited {
		code := int32(exit.ExitCode())
		end = executor.Outcome{ExitCode: code, Reason: protocol.ReasonExitNonzero}
		if code == 126 || code == 127 {
			end.Reason = protocol.ReasonBadCommand
		}
		text = fmt.Sprintf("exit code %d", code)
	} else {
		end = failed(protocol.ReasonSignal, signalOf(err), "")
		text = err.Error()
	}
	if h.memory.denied > 0 {
		end.Reason = protocol.ReasonOOM
		text = fmt.Sprintf("out of memory: it wanted %d bytes, the limit is %d; %s", h.memory.denied, h.memory.limit, text)
	}
	if tail := h.stderr.lines.Tail(); tail != "" {
		text += ": " + tail
	}
	end.FirstCause = text
	return end
}

func failed(why protocol.Reason, signal int32, text string) executor.Outcome {
	return executor.Outcome{ExitCode: -1, Signal: signal, Reason: why, FirstCause: text}
}

// isTrap tells a trap, and what wazero caught on the module's stack, from an error of linking.
func isTrap(err error) bool {
	return strings.Contains(err.Error(), "wasm error: ") || strings.Contains(err.Error(), "(recovered by wazero)")
}

// signalOf maps a trap to the signal of a native program. wazero exports no error values for traps; their
// texts are those of the WebAssembly specification's test suite.
func signalOf(err error) int32 {
	text := err.Error()
	for _, known := range []struct {
		text   string
		signal int32
	}{
		{"out of bounds memory access", sigSEGV},
		{"stack overflow", sigSEGV},
		{"integer divide by zero", sigFPE},
		{"integer overflow", sigFPE},
		{"invalid conversion to integer", sigFPE},
		{"(recovered by wazero)", sigABRT},
	} {
		if strings.Contains(text, known.text) {
			return known.signal
		}
	}
	return sigILL
}
