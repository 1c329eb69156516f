package node

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/protocol"
)

// worker runs leases on one slot, one after another: stage, run, collect.
type worker struct {
	slot    int
	memory  uint64 // bytes for a chunk whose job does not say
	book    *book
	depot   *depot
	scratch *scratch
	outputs *collector
	logs    *logShelf
	log     *slog.Logger
}

// run takes leases until the node ends.
func (w *worker) run(ctx context.Context) {
	for {
		l := w.book.take(w.slot)
		if l == nil {
			return
		}
		w.lease(ctx, l)
	}
}

// fail makes a Failure of a reason and a text.
func fail(why protocol.Reason, format string, args ...any) error {
	return executor.Fail(why, format, args...)
}

// lease brings one lease from staging to its end, or to where somebody else has ended it.
func (w *worker) lease(ctx context.Context, l *lease) {
	if l.token != "" {
		w.resume(ctx, l)
		return
	}
	began := w.book.now()
	prepared, dir, blocks, err := w.stage(ctx, l)
	staged := w.book.now().Sub(began)
	var clean bool
	switch {
	case err != nil:
		if executor.ReasonOf(err, protocol.ReasonStartFailed) == protocol.ReasonNodeDiskFull {
			w.book.setShort("its disk is full: " + err.Error()) // until the next look
		}
		w.staged(l, err)
		w.book.end(l, metering.Claimed{})
	case w.start(ctx, l, prepared):
		clean = w.finish(ctx, l, w.wait(l), dir, staged, blocks)
		w.book.paced(l.member, w.book.now().Sub(began))
	}
	if dir != "" && (!clean || l.member.terms.Run.Function != nil) {
		if err := w.scratch.discard(dir); err != nil {
			w.log.Warn("outputs of a chunk cannot be removed", "lease", l.ID, "err", err)
		}
	}
}

// stage brings code, data and a place for outputs.
func (w *worker) stage(ctx context.Context, l *lease) (p *executor.Prepared, dir string, blocks uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.book.staging(l, cancel)
	t := &l.member.terms
	staged, blocks, err := w.depot.job(ctx, l.member)
	if err != nil {
		return nil, "", blocks, err
	}
	inputs, n, err := w.depot.inputs(ctx, &l.Lease, t.Origin)
	blocks += n
	if err == nil && t.Run.Function != nil {
		n, err = w.depot.arguments(ctx, inputs, t.Origin)
		blocks += n
	}
	if err != nil {
		return nil, "", blocks, err
	}
	limits := w.limits(l)
	if t.Run.Function != nil {
		dir, err = w.scratch.runDir(l.ID)
	} else {
		dir, err = w.scratch.dir(w.slot, uint64(limits.OutputBytes))
	}
	if err != nil {
		return nil, "", blocks, outputFault(err)
	}
	p, err = l.member.backend.Prepare(ctx, taskOf(l, staged, inputs, limits, dir, w))
	return p, dir, blocks, err
}

// taskOf puts a lease and what was staged for it into a backend's words.
func taskOf(l *lease, s *staging, inputs []executor.Input, limits executor.Limits, dir string, w *worker) executor.Task {
	t := &l.member.terms
	task := executor.Task{
		Lease: l.ID, Fence: l.Fence, Inputs: inputs, Command: t.Run.Command, Env: t.Run.Env, Mounts: s.mounts, OutDir: dir, Limits: limits, Seed: t.Seed,
		Log: w.logs.open(l, t.Limits.LogBytes),
	}
	f := t.Run.Function
	if f == nil {
		task.Module = w.depot.module(t.Run.Module)
		return task
	}
	spec, warm := s.spec, f.KeepWarm
	if files, uuids := w.book.devices(l); len(files) > 0 {
		task.Devices, task.Env = files, maps.Clone(task.Env)
		if task.Env == nil {
			task.Env = map[string]string{}
		}
		task.Env["CUDA_VISIBLE_DEVICES"] = uuids
		spec, warm = spec+" "+uuids, time.Millisecond // a process that stays has its GPUs open, and they are the next lease's
	}
	task.Tenant = string(l.leaseFacts.bridge) + "/" + f.Tenant
	task.Function = &executor.Function{
		Runtime: t.Run.Host, Handler: f.Handler, OnStart: f.OnStart, Code: s.code, Spec: spec, Workers: int(f.Workers), Timeout: f.Timeout, KeepWarm: warm,
	}
	return task
}

// devices are what the run of a lease may open.
func (b *book) devices(l *lease) ([]executor.Device, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gpus.of(l.ID)
}

// limits are what a lease's run may use.
func (w *worker) limits(l *lease) executor.Limits {
	t := &l.member.terms
	limits := executor.DefaultLimits(l.member.wall)
	if w.memory > 0 {
		limits.Memory = min(limits.Memory, int64(w.memory))
	}
	if t.Limits.MemoryBytes > 0 {
		limits.Memory = int64(t.Limits.MemoryBytes)
	}
	if most := firstSet(t.Limits.OutputBytes, t.Limits.DiskBytes); most > 0 {
		limits.OutputBytes = int64(most)
	}
	if t.Limits.OutputFiles > 0 {
		limits.OutputFiles = int64(t.Limits.OutputFiles)
	}
	if f := t.Run.Function; f != nil {
		if t.Limits.DiskBytes > 0 {
			limits.Disk = int64(t.Limits.DiskBytes)
		}
		limits.CPUMillis = int64(t.Limits.CPUMilli)
		if f.Timeout > 0 { // a runner that keeps time badly must not hold the slot
			limits.Wall = min(limits.Wall, time.Duration(l.Chunk.Len())*f.Timeout+runnerSlack)
		}
	}
	return limits
}

// runnerSlack is what a function's process has besides its inputs' time: it starts, imports, and ends children.
const runnerSlack = 2 * time.Minute

// resume takes up a run that has outlived the process that began it.
func (w *worker) resume(ctx context.Context, l *lease) {
	b := w.book
	dir, err := w.scratch.runDir(l.ID)
	if err != nil { // it is told with the result's outputs
		w.log.Warn("the outputs of a run cannot be found again", "lease", l.ID, "err", err)
	}
	token, _ := splitDevices(l.token)
	h, err := l.member.backend.Reattach(ctx, executor.Token(token), w.logs.open(l, l.member.terms.Limits.LogBytes))
	b.mu.Lock()
	if err != nil {
		l.why, l.text = protocol.ReasonRestartLost, err.Error()
		b.apply(l, machine.Gone)
	} else {
		l.handle = h
		_ = b.apply(l, machine.Alive)
		_ = l.member.bridge.meter.Work(l.ID, b.now())
	}
	b.mu.Unlock()
	if err != nil {
		w.log.Info("a run of before the restart is gone", "lease", l.ID, "err", err)
		w.logs.close(l)
		b.end(l, metering.Claimed{})
	} else {
		w.finish(ctx, l, w.wait(l), dir, 0, 0)
	}
	if err := w.scratch.discard(dir); err != nil && dir != "" {
		w.log.Warn("outputs of a chunk cannot be removed", "lease", l.ID, "err", err)
	}
}

func firstSet(values ...uint64) uint64 {
	for _, v := range values {
		if v > 0 {
			return v
		}
	}
	return 0
}

// staged says that staging failed.
func (w *worker) staged(l *lease, err error) {
	b := w.book
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.machine.State == protocol.LeaseStaging {
		l.why, l.text = executor.ReasonOf(err, protocol.ReasonStartFailed), err.Error()
		w.log.Info("a chunk cannot be prepared", "lease", l.ID, "job", l.Job, "reason", l.why.String(), "err", err)
	}
	b.apply(l, machine.Failed)
}

// start runs what was prepared, unless the lease has ended meanwhile. What a crash must find is durable before.
func (w *worker) start(ctx context.Context, l *lease, p *executor.Prepared) bool {
	b := w.book
	b.mu.Lock()
	ok := b.apply(l, machine.Prepared) && l.machine.State == protocol.LeaseRunning
	if ok {
		_ = l.member.bridge.meter.Work(l.ID, b.now())
	}
	b.mu.Unlock()
	if !ok {
		b.end(l, metering.Claimed{})
		return false
	}
	h, err := l.member.backend.Start(ctx, p)
	if err == nil && !l.member.backend.inProcess {
		_, uuids := b.devices(l)
		err = b.started(l, withDevices(string(h.Token()), uuids))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		l.handle = failedRun{executor.Outcome{Reason: executor.ReasonOf(err, protocol.ReasonStartFailed), ExitCode: -1, FirstCause: err.Error(), Started: b.now(), Ended: b.now()}}
		return true
	}
	l.handle = h
	if l.machine.State == protocol.LeaseStopping { // told while it started
		h.Stop(l.why, l.grace)
	}
	return true
}

// failedRun is a run that did not come about.
type failedRun struct{ out executor.Outcome }

func (f failedRun) Token() executor.Token                          { return "" }
func (f failedRun) Wait(context.Context) (executor.Outcome, error) { return f.out, nil }
func (f failedRun) Stop(protocol.Reason, time.Duration)            {}
func (f failedRun) Usage() executor.Usage                          { return f.out.Usage }

// wait waits for the run's end, however long it takes: a slot whose run clings is not used again.
func (w *worker) wait(l *lease) executor.Outcome {
	out, err := l.handle.Wait(context.Background())
	if err != nil { // only ctx's
		out = executor.Outcome{Reason: protocol.ReasonBackendFailed, ExitCode: -1, FirstCause: err.Error()}
	}
	return out
}

// finish turns a run that has ended into a result; clean says that its output directory is empty again.
func (w *worker) finish(ctx context.Context, l *lease, out executor.Outcome, dir string, staged time.Duration, blocks uint64) (clean bool) {
	o := protocol.Outcome{
		Reason: out.Reason, ExitCode: out.ExitCode, Signal: out.Signal, FirstCause: out.FirstCause, Stage: staged, Run: out.Ended.Sub(out.Started),
		CPU: time.Duration(out.Usage.CPUMillis) * time.Millisecond, MemoryBytes: uint64(max(0, out.Usage.MaxMemoryBytes)),
		OutputBytes: uint64(max(0, out.Usage.OutputBytes)), OutputFiles: uint32(max(0, out.Usage.OutputFiles)),
		LogKept: uint64(max(0, out.LogKept)), LogDropped: uint64(max(0, out.LogDropped)),
	}
	w.book.gpuCause(l, &o)
	claimed := metering.Claimed{CPUMS: out.Usage.CPUMillis, MemMiBS: (out.Usage.MaxMemoryBytes >> 20) * int64(o.Run/time.Second)}
	if !w.book.exited(l, claimed) {
		w.logs.close(l)
		return false
	}
	end := ending{}
	if o.Reason == protocol.ReasonDone || l.member.terms.KeepOutputs == "always" {
		var err error
		if end, err = w.outputs.collect(context.WithoutCancel(ctx), dir, out.Usage.OutputFiles > 0); err != nil {
			o.Reason, o.FirstCause, end = executor.ReasonOf(err, protocol.ReasonOutputInvalid), err.Error(), ending{result: protocol.Result{Root: cid.Undef}}
		}
	}
	if o.Reason == protocol.ReasonNodeDiskFull {
		w.book.setShort("its disk is full: " + o.FirstCause) // until the next look: else it would eat up all chunks
	}
	root := end.result.Root
	end.result = w.book.result(l, o)
	end.result.Root, end.result.BlocksFetched = root, blocks
	end.tail = w.logs.tail(l)
	w.logs.close(l)
	clean = end.clean
	w.book.deliver(l, &end)
	return clean
}

// exited says that a run has ended; false when nobody wants its result.
func (b *book) exited(l *lease, c metering.Claimed) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	stuck := l.machine.State == protocol.LeaseStuck
	if !stuck && !l.machine.Old {
		l.end = &ending{} // not ready: nothing is sent before deliver
	}
	b.apply(l, machine.Exited)
	records := b.vacate(l, c)
	if l.machine.State == protocol.LeasePublishing && !stuck {
		l.end.records = records
		return true
	}
	l.member.bridge.loose = append(l.member.bridge.loose, records...)
	b.nudge(l.member.bridge)
	return false
}

// deliver hands a result to the link.
func (b *book) deliver(l *lease, e *ending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := l.member.bridge
	br.loose = append(br.loose, l.end.records...)
	b.nudge(br)
	if l.machine.State != protocol.LeasePublishing { // stopped meanwhile
		return
	}
	e.after, e.ready = b.now(), true
	l.end = e
	b.letGo(l)
	if e.heavy {
		poke(br.heavy)
	}
}

// end frees the slot of a lease that did not come to run.
func (b *book) end(l *lease, c metering.Claimed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := l.member.bridge
	br.loose = append(br.loose, b.vacate(l, c)...)
	b.nudge(br)
}

// staging lets a lease's preparation be aborted; one that has ended already is aborted at once.
func (b *book) staging(l *lease, abort context.CancelFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.abort = abort
	if l.machine.State != protocol.LeaseStaging {
		abort()
	}
}

// started makes durable that a run lives outside of this process.
func (b *book) started(l *lease, token string) error {
	b.mu.Lock()
	l.token = token
	if f, ok := b.diary.leases[l.ID]; ok {
		f.token = token
		b.diary.leases[l.ID] = f
	}
	mark := b.paper.Append(startedEntry(l.ID, token))
	b.mu.Unlock()
	if err := b.sync(mark); err != nil {
		return fail(protocol.ReasonNodeDiskFull, "noting the start: %w", err)
	}
	return nil
}
