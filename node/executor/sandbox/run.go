//go:build linux

package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// run is one lease, as the daemon sees it.
type run struct {
	backend *Backend
	id      protocol.LeaseID
	task    executor.Task
	token   executor.Token // set before the handle is given out
	box     *box
	inputs  map[uint64]executor.Input
	started time.Time
	done    chan struct{} // closed when outcome is set
	left    chan struct{} // closed when the backend has closed without an end
	taken   bool          // the shim has accepted it; guarded by backend.mu

	mu      sync.Mutex
	usage   executor.Usage
	outcome executor.Outcome
}

var _ executor.Handle = (*run)(nil)

func newRun(b *Backend, t executor.Task) *run {
	r := &run{backend: b, id: t.Lease, task: t, inputs: map[uint64]executor.Input{}, started: time.Now(), done: make(chan struct{}), left: make(chan struct{})}
	for _, in := range t.Inputs {
		r.inputs[in.Index] = in
	}
	return r
}

// Token implements executor.Handle.
func (r *run) Token() executor.Token { return r.token }

// Wait implements executor.Handle. When the backend closes before the end it fails with executor.ErrClosed: the run
// goes on without us.
func (r *run) Wait(ctx context.Context) (executor.Outcome, error) {
	select {
	case <-r.done:
		return r.outcome, nil
	default:
	}
	select {
	case <-r.done:
		return r.outcome, nil
	case <-r.left:
		return executor.Outcome{}, executor.ErrClosed
	case <-ctx.Done():
		return executor.Outcome{}, ctx.Err()
	}
}

// Stop implements executor.Handle.
func (r *run) Stop(why protocol.Reason, grace time.Duration) {
	if x := r.box; x != nil {
		_ = x.send(message{Op: "stop", Lease: r.id.String(), Reason: uint16(why), GraceMS: grace.Milliseconds()}, nil)
	}
}

// Usage implements executor.Handle.
func (r *run) Usage() executor.Usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.usage
}

func (r *run) use(u executor.Usage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.usage = u
}

// inputDone is called from the connection's goroutine.
func (r *run) inputDone(index uint64) {
	if in, ok := r.inputs[index]; ok && r.task.OnInput != nil {
		r.task.OnInput(in)
	}
}

// finish announces the outcome, once.
func (r *run) finish(out executor.Outcome) {
	if out.Started.Before(r.started) && !out.Started.IsZero() {
		r.started = out.Started
	}
	r.outcome = out
	r.use(out.Usage)
	b := r.backend
	b.mu.Lock()
	delete(b.runs, r.id)
	b.ended[r.id.String()] = true
	b.mu.Unlock()
	close(r.done)
}

// abandon tells those who wait that the backend has closed.
func (r *run) abandon() {
	r.backend.leave(r)
	close(r.left)
}
