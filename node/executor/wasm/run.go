package wasm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// run is one started task: the Handle, and what all instances of the task share.
type run struct {
	backend *Backend
	task    executor.Task
	token   executor.Token

	ctx    context.Context // ends when the run has to end; its cause is a *executor.Failure
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when outcome is set and everything is released

	outcome executor.Outcome // written before done is closed

	// Counters of the outputs: only the run's goroutine changes them, Usage reads them.
	outputBytes atomic.Int64
	outputFiles atomic.Int64
	maxMemory   atomic.Int64
	openFiles   int

	mu  sync.Mutex
	cpu *cpuClock // nil when the run's goroutine is not bound to a thread
}

var _ executor.Handle = (*run)(nil)

// Token implements executor.Handle.
func (r *run) Token() executor.Token { return r.token }

// Wait implements executor.Handle.
func (r *run) Wait(ctx context.Context) (executor.Outcome, error) {
	select {
	case <-r.done:
		return r.outcome, nil
	case <-ctx.Done():
		return executor.Outcome{}, ctx.Err()
	}
}

// Stop implements executor.Handle. A module cannot be given notice (WASI preview 1 has no signals), so the
// grace is not waited for.
func (r *run) Stop(why protocol.Reason, _ time.Duration) {
	r.end(why, errors.New("stopped by the node"))
}

// Usage implements executor.Handle.
func (r *run) Usage() executor.Usage {
	select {
	case <-r.done:
		return r.outcome.Usage
	default:
	}
	u := executor.Usage{
		MaxMemoryBytes: r.maxMemory.Load(),
		OutputBytes:    r.outputBytes.Load(),
		OutputFiles:    r.outputFiles.Load(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cpu != nil {
		u.CPUMillis = r.cpu.used().Milliseconds()
	}
	return u
}

// end ends the run; only the first reason is kept.
func (r *run) end(why protocol.Reason, cause error) {
	r.cancel(&executor.Failure{Reason: why, Err: cause})
}

// stopped says that the run has to end: the host answers no more calls of the module.
func (r *run) stopped() bool { return r.ctx.Err() != nil }

// cause is why the run has to end, nil if it has not to.
func (r *run) cause() *executor.Failure {
	if !r.stopped() {
		return nil
	}
	f, ok := errors.AsType[*executor.Failure](context.Cause(r.ctx))
	if !ok {
		f = &executor.Failure{Reason: protocol.ReasonBackendFailed, Err: context.Cause(r.ctx)}
	}
	return f
}

// hostFault ends the run for a failed call to the host's file system.
func (r *run) hostFault(doing string, err error) experimentalsys.Errno {
	why := protocol.ReasonBackendFailed
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		why = protocol.ReasonNodeDiskFull
	}
	r.end(why, fmt.Errorf("%s: %w", doing, err))
	return experimentalsys.EIO
}

// mountFault ends the run for a failed read of a mount.
func (r *run) mountFault(err error) experimentalsys.Errno {
	r.end(executor.ReasonOf(err, protocol.ReasonDataUnavailable), fmt.Errorf("reading a volume: %w", err))
	return experimentalsys.EIO
}

func (r *run) openFile() experimentalsys.Errno {
	if r.openFiles >= r.task.Limits.OpenFiles {
		return experimentalsys.EAGAIN // WASI's EMFILE cannot be said through wazero
	}
	r.openFiles++
	return 0
}

func (r *run) closeFile() { r.openFiles-- }

// addFile counts a new output file or directory.
func (r *run) addFile() experimentalsys.Errno {
	if most := r.task.Limits.OutputFiles; r.outputFiles.Load() >= most {
		r.end(protocol.ReasonOutputTooLarge, fmt.Errorf("more than %d output files and directories", most))
		return experimentalsys.EIO
	}
	r.outputFiles.Add(1)
	return 0
}

func (r *run) removeFile() { r.outputFiles.Add(-1) }

// grow counts a file's growth to size before it happens, so that the disk never holds more than the limit.
func (r *run) grow(n *outNode, size int64) experimentalsys.Errno {
	more := size - n.size
	if more <= 0 {
		return 0
	}
	if most := r.task.Limits.OutputBytes; more > most-r.outputBytes.Load() {
		r.end(protocol.ReasonOutputTooLarge, fmt.Errorf("more than %d bytes of output", most))
		return experimentalsys.EIO
	}
	r.outputBytes.Add(more)
	n.size = size
	return 0
}

// shrink counts a file's new, smaller size.
func (r *run) shrink(n *outNode, size int64) {
	r.outputBytes.Add(size - n.size)
	n.size = size
}

// unlink counts a name that is gone; the bytes stay counted until the last descriptor is closed, as they
// stay on the disk.
func (r *run) unlink(n *outNode) {
	r.removeFile()
	n.unlinked = true
	if n.open == 0 {
		r.shrink(n, 0)
	}
}

// release counts a closed descriptor.
func (r *run) release(n *outNode) {
	n.open--
	if n.open == 0 && n.unlinked {
		r.shrink(n, 0)
	}
}

// stdio passes printed bytes on until the run ends.
type stdio struct {
	run   *run
	lines *executor.LineWriter
}

// Write implements io.Writer.
func (s *stdio) Write(p []byte) (int, error) {
	n := 0
	for part := range slices.Chunk(p, piece) {
		if s.run.stopped() {
			return n, syscall.EINTR
		}
		m, err := s.lines.Write(part)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// random is an instance's source of random bytes: ChaCha8 (RFC 8439's cipher with 8 rounds, as in
// math/rand/v2), seeded by job and input.
type random struct {
	run *run
	src *rand.ChaCha8
}

// Read implements io.Reader.
func (s *random) Read(p []byte) (int, error) {
	if s.run.stopped() {
		return 0, syscall.EINTR
	}
	return s.src.Read(p[:min(len(p), piece)])
}
