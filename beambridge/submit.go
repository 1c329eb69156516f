package beambridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

var (
	_ api.Jobs     = (*Bridge)(nil)
	_ api.Outcomes = (*Bridge)(nil)
)

// longestRun is the longest run of a chunk of a job without policy.timeout: what nodes allow unless their owners say
// otherwise.
const longestRun = 24 * time.Hour

// SubmitJob implements api.Jobs: the job is durable when it returns, and nodes are being asked.
func (b *Bridge) SubmitJob(ctx context.Context, who api.Principal, req protocol.SubmitRequest) (protocol.JobStatus, error) {
	if err := b.running(); err != nil {
		return protocol.JobStatus{}, err
	}
	id := protocol.NewJobID()
	if req.RequestID != "" {
		if len(req.RequestID) > 64 {
			return protocol.JobStatus{}, &protocol.APIError{Code: protocol.CodeBadRequest, Field: "request_id", Text: "request_id has more than 64 bytes"}
		}
		id = protocol.SubmittedJobID(who.User, req.RequestID)
		if s, err := b.Job(ctx, who, id); err == nil {
			return s, nil
		}
	}
	r, err := b.resolve(ctx, who.User, req, false)
	if err != nil {
		return protocol.JobStatus{}, err
	}
	j, err := b.newJob(ctx, id, who.User, r)
	if err != nil {
		return protocol.JobStatus{}, err
	}
	if j, err = ask(ctx, b.engine, func(t *turn) (*job, error) { return t.submit(j) }); err != nil {
		return protocol.JobStatus{}, err
	}
	return ask(ctx, b.engine, func(t *turn) (protocol.JobStatus, error) { return t.e.status(j), nil })
}

// newJob makes a job in memory; the engine takes it over with submit.
func (b *Bridge) newJob(ctx context.Context, id protocol.JobID, user string, r *resolved) (*job, error) {
	now := b.cfg.Clock()
	r.terms.Job = id
	r.terms.Origin = b.origin()
	terms, err := r.terms.Encode()
	if err != nil {
		return nil, badField("run", "", "%v", err)
	}
	spec, err := json.Marshal(r.spec)
	if err != nil {
		return nil, fmt.Errorf("encoding the job file: %w", err)
	}
	row := store.Job{
		ID: id, User: user, Name: r.spec.Name, Kind: string(r.spec.Kind), State: string(cluster.JobPending), Spec: spec, Terms: terms,
		Inputs: r.inputs.Len(), ChunkSize: r.spec.Chunk, Created: now,
	}
	if r.spec.Policy.MaxSpend != nil {
		row.MaxSpend = int64(*r.spec.Policy.MaxSpend)
	}
	if r.lines != nil {
		if row.InputRoot, err = b.keepInputs(r.lines); err != nil {
			return nil, err
		}
		if err := b.vols.Pin(row.InputRoot); err != nil {
			return nil, fmt.Errorf("keeping inputs: %w", err)
		}
		if err := b.vols.Sync(ctx); err != nil {
			return nil, fmt.Errorf("keeping inputs: %w", err)
		}
	}
	j := b.engine.empty(row, r.spec, r.terms, r.inputs)
	j.tracker, err = cluster.NewTracker(b.engine.trackerConfig(j), protocol.NewLeaseID)
	if err != nil {
		return nil, fmt.Errorf("making the job's tracker: %w", err)
	}
	return j, nil
}

// empty is a job without a tracker.
func (e *engine) empty(row store.Job, spec protocol.Job, terms protocol.JobTerms, inputs cluster.Inputs) *job {
	j := &job{
		row: row, spec: spec, terms: terms, inputs: inputs, want: wantOf(&spec), class: classOf(terms.Run.Module, terms.Run.Command),
		members: map[protocol.PeerID]*store.Member{}, joined: map[protocol.PeerID]bool{}, lines: map[protocol.PeerID]*line{}, faults: map[uint64][]fault{},
		compared: map[uint64][]*attempt{}, refused: map[protocol.PeerID]decline{}, retried: map[uint64]protocol.RetriedChunk{}, changed: make(chan struct{}),
		plan: planRecord{Before: map[string]float64{}}, announced: uint64(e.now().UnixMicro()),
		hungry: map[protocol.PeerID]struct{}{},
	}
	if spec.Run.Handler != "" {
		j.calls = newCallBook(callKey{user: row.User})
		j.calls.idle = e.now()
		j.class = classOf(terms.Run.Function.Code, []string{spec.Run.Host, spec.Run.Handler})
		e.bridge.calling.Store(row.ID, struct{}{})
	}
	if d := spec.Policy.Deadline.Std(); d > 0 {
		j.deadline = row.Created.Add(d)
	}
	return j
}

// trackerConfig is what a job's tracker works by.
func (e *engine) trackerConfig(j *job) cluster.Config {
	c := cluster.DefaultConfig(j.id(), j.row.Inputs)
	c.Chunk, c.Seconds, c.TTL = j.row.ChunkSize, e.paces.slowest(j.class), leaseTTL
	c.Limit = cmp.Or(j.terms.Limits.Wall, longestRun)
	c.Retries, c.Copies = int(*j.spec.Policy.Retries), int(j.spec.Policy.Redundancy)
	if j.plan.Copies > 0 {
		c.Copies, c.Explore = j.plan.Copies, max(0, j.plan.Explore)
	}
	if c.Retries == 0 {
		c.Copies, c.Explore = 1, 0
	}
	if j.calls != nil {
		c.Apart, c.Open, c.Aim = true, !j.calls.sealed, callAim
	}
	return c
}

// submit stores a job, sets credit aside and starts its first placement.
func (t *turn) submit(j *job) (*job, error) {
	e := t.e
	if old := e.jobs[j.id()]; old != nil {
		return old, nil
	}
	j.row.Created = t.now
	if err := t.fund(j); err != nil {
		return nil, err
	}
	if j.row.Reserved == 0 && e.highestAsk() > 0 && !e.anyFree() {
		return nil, &protocol.APIError{
			Code: protocol.CodeNoCredit, Text: fmt.Sprintf("every node asks a price and %s has no credit", j.row.User),
			Fix: "whoever runs the bridge posts it with `gridbeam settlement credit`",
		}
	}
	fx, err := j.tracker.Advance(cluster.JobSelect)
	if err != nil {
		return nil, err
	}
	e.jobs[j.id()] = j
	t.apply(j, fx)
	t.save(j)
	t.then(func(err error) {
		if err != nil {
			delete(e.jobs, j.id()) // nobody was told of it
			return
		}
		e.bridge.begin(j)
		e.replace(j, t.now)
	})
	return j, nil
}

// CheckJob implements api.Jobs.
func (b *Bridge) CheckJob(ctx context.Context, who api.Principal, req protocol.SubmitRequest) (protocol.ValidateReply, error) {
	if err := b.running(); err != nil {
		return protocol.ValidateReply{}, err
	}
	r, err := b.resolve(ctx, who.User, req, true)
	if err != nil {
		return protocol.ValidateReply{}, err
	}
	s := &placing{want: r.want, terms: r.terms, credit: true, members: map[protocol.PeerID]bool{}}
	s.want.Chunks = max(1, r.inputs.Len())
	list, from, err := b.candidates(ctx, s)
	if err != nil {
		return protocol.ValidateReply{}, fmt.Errorf("looking for nodes: %w", err)
	}
	b.measure(ctx, s, list, from)
	_, why, err := cluster.Select(s.want, list, b.cfg.Clock(), 0)
	reply := protocol.ValidateReply{Inputs: r.inputs.Len(), Known: why.Total, Matching: why.Matching, Summary: why.Summary(), Notes: append(why.Notes, b.regionNotes(s, list)...)}
	if errors.Is(err, cluster.ErrBadJob) {
		return reply, badField("placement", "", "%v", err)
	}
	return reply, nil
}
