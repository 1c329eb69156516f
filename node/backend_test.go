package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// fakeBackend runs nothing: what a run does is decided by the test.
type fakeBackend struct {
	// behave makes the outcome of a run; nil is done at once. It may wait for stop.
	behave func(task executor.Task, stop <-chan protocol.Reason) executor.Outcome
	// write makes an output file for each input; output, if set, says what is in it.
	write  bool
	output func(task executor.Task) []byte
	level  executor.Level
	// runtimes are the languages of functions that it says it runs.
	runtimes []string
	// prepare may fail staging.
	prepare func(task executor.Task) error
	probe   error

	mu      sync.Mutex
	running map[protocol.LeaseID]*fakeRun
	starts  map[protocol.LeaseID]int
	most    int
	twice   bool // a lease ran twice at a time
}

var _ executor.Backend = (*fakeBackend)(nil)

func (f *fakeBackend) Probe(context.Context) (executor.Report, error) {
	l := f.level
	if l == 0 {
		l = executor.LevelStrong
	}
	return executor.Report{Backend: "wasm", Version: "fake", Level: l, Runtimes: f.runtimes}, f.probe
}

func (f *fakeBackend) Prepare(_ context.Context, task executor.Task) (*executor.Prepared, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	if f.prepare != nil {
		if err := f.prepare(task); err != nil {
			return nil, err
		}
	}
	return &executor.Prepared{Task: task}, nil
}

func (f *fakeBackend) Start(_ context.Context, p *executor.Prepared) (executor.Handle, error) {
	r := &fakeRun{lease: p.Task.Lease, stop: make(chan protocol.Reason, 1), done: make(chan struct{})}
	f.mu.Lock()
	if f.running == nil {
		f.running, f.starts = map[protocol.LeaseID]*fakeRun{}, map[protocol.LeaseID]int{}
	}
	if f.running[p.Task.Lease] != nil {
		f.twice = true
	}
	f.running[p.Task.Lease] = r
	f.starts[p.Task.Lease]++
	f.most = max(f.most, len(f.running))
	f.mu.Unlock()
	go func() {
		began := time.Now()
		out := executor.Outcome{Reason: protocol.ReasonDone, InputsDone: len(p.Task.Inputs)}
		if f.behave != nil {
			out = f.behave(p.Task, r.stop)
		}
		if (f.write || f.output != nil) && out.Reason == protocol.ReasonDone {
			for _, in := range p.Task.Inputs {
				data := []byte("result of " + in.Value)
				if f.output != nil {
					data = f.output(p.Task)
				}
				if err := writeOutput(p.Task, in, data); err != nil {
					out = executor.Outcome{Reason: protocol.ReasonBackendFailed, FirstCause: err.Error()}
				}
			}
			out.Usage.OutputFiles = int64(len(p.Task.Inputs))
		}
		out.Started, out.Ended = began, time.Now()
		f.mu.Lock()
		delete(f.running, p.Task.Lease)
		f.mu.Unlock()
		r.out = out
		close(r.done)
	}()
	return r, nil
}

func writeOutput(task executor.Task, in executor.Input, data []byte) error {
	dir := task.OutputDir(in.Index)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "out"), data, 0o600)
}

func (f *fakeBackend) Reattach(context.Context, executor.Token, *executor.Log) (executor.Handle, error) {
	return nil, executor.ErrGone
}

func (f *fakeBackend) runs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}

// fakeRun is one run.
type fakeRun struct {
	lease protocol.LeaseID
	stop  chan protocol.Reason
	done  chan struct{}
	out   executor.Outcome
}

func (r *fakeRun) Token() executor.Token { return executor.Token("wasm:" + r.lease.String()) }

func (r *fakeRun) Wait(ctx context.Context) (executor.Outcome, error) {
	select {
	case <-r.done:
		return r.out, nil
	case <-ctx.Done():
		return executor.Outcome{}, ctx.Err()
	}
}

func (r *fakeRun) Stop(why protocol.Reason, _ time.Duration) {
	select {
	case r.stop <- why:
	default:
	}
}

func (r *fakeRun) Usage() executor.Usage { return executor.Usage{} }

// untilStopped runs until it is told to end.
func untilStopped(_ executor.Task, stop <-chan protocol.Reason) executor.Outcome {
	return executor.Outcome{Reason: <-stop, ExitCode: -1, FirstCause: "stopped"}
}

var errBroken = errors.New("broken")
