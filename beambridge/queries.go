package beambridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// noSuchJob is what a stranger hears as well as who mistypes.
func noSuchJob(id protocol.JobID) error {
	return &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("there is no job %s", id), Fix: "`gridbeam job list` shows yours"}
}

func owns(who api.Principal, user string) bool { return who.User == user || who.Can(api.ScopeAdmin) }

// status is how a job in memory stands.
func (e *engine) status(j *job) protocol.JobStatus {
	p := j.tracker.Progress()
	s := rowStatus(&j.row)
	s.Seq = j.seq
	if j.merging && j.over == cluster.JobFailed { // it is over for others when its result and note are there
		s.State, s.Reason, s.Text, s.Ended = protocol.JobState(cluster.JobRunning), "", "", time.Time{}
	}
	s.ChunksDone, s.ChunksFailed, s.ChunksRunning = uint64(p.ChunksDone), uint64(p.ChunksFailed), uint64(p.Leases)
	s.ChunksTotal, s.Cut = j.tracker.Cut()
	s.InputsDone, s.Leases = p.InputsDone, j.leases
	s.Retried = retriedOf(j)
	if j.calls != nil {
		s.CallsFailed = j.calls.failed
	}
	for _, id := range peersOf(j) {
		l, m := j.lines[id], j.members[id]
		n := protocol.JobNode{PeerID: id, State: memberWas, ScoreBefore: j.plan.Before[id.String()], ScoreAfter: e.judge.Score(id, e.now()).O}
		if m != nil {
			n.State, n.Slots = m.State, m.Slots
		}
		if after, ok := j.plan.After[id.String()]; ok {
			n.ScoreAfter = after
		}
		if l != nil {
			n.Chunks, n.Failed, n.CPUSeconds, n.WorkingMS, n.BlocksFetched, n.SpentUUSD = l.chunks, l.failed, float64(l.cpu)/1000, l.use.working, l.blocks, l.charged
			s.Receipts += l.use.records
		}
		s.Nodes = append(s.Nodes, n)
	}
	for _, v := range j.terms.Volumes {
		s.Volumes = append(s.Volumes, protocol.VolumeInfo{Name: v.Name, CID: v.Root.String(), Bytes: v.Bytes, Blocks: v.Blocks})
	}
	return s
}

// peersOf are the nodes that a job has had to do with, in the order of their IDs.
func peersOf(j *job) []protocol.PeerID {
	all := map[protocol.PeerID]bool{}
	for id := range j.lines {
		all[id] = true
	}
	for id := range j.members {
		all[id] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func retriedOf(j *job) (out []protocol.RetriedChunk) {
	for _, first := range slices.Sorted(maps.Keys(j.retried)) {
		out = append(out, j.retried[first])
	}
	return out
}

// rowStatus is what a job's row alone says.
func rowStatus(r *store.Job) protocol.JobStatus {
	s := protocol.JobStatus{
		ID: r.ID, Name: r.Name, Kind: protocol.JobKind(r.Kind), User: r.User, State: protocol.JobState(r.State), Text: r.Text, Inputs: r.Inputs,
		Created: r.Created, Started: r.Started, Ended: r.Ended, Note: r.ResultNote, SpentUUSD: r.Spent, MaxSpendUUSD: r.MaxSpend,
	}
	if r.Reason != protocol.ReasonNone {
		s.Reason = r.Reason.String()
	}
	if r.Result.Defined() {
		s.ResultCID = r.Result.String()
	}
	return s
}

// storedStatus is how a job stands that is not in memory any more.
func storedStatus(tx *store.Tx, r *store.Job) (s protocol.JobStatus, err error) {
	s = rowStatus(r)
	s.Cut = true
	chunks, err := tx.CountChunks(r.ID)
	if err != nil {
		return s, err
	}
	inputs, err := tx.CountInputs(r.ID)
	if err != nil {
		return s, err
	}
	for state, n := range chunks {
		s.ChunksTotal += n
		switch cluster.ChunkState(state) {
		case cluster.ChunkDone:
			s.ChunksDone = n
		case cluster.ChunkFailed:
			s.ChunksFailed = n
		}
	}
	s.InputsDone = inputs[string(cluster.ChunkDone)]
	calls, err := tx.CountCalls(r.ID)
	if err != nil {
		return s, err
	}
	for state, n := range calls {
		if callFailed(state) {
			s.CallsFailed += n
		}
	}
	var plan planRecord
	if len(r.Plan) > 0 {
		if err := json.Unmarshal(r.Plan, &plan); err != nil {
			return s, fmt.Errorf("the plan of job %s: %w", r.ID, err)
		}
	}
	s.Retried = plan.Retried
	return s, storedNodes(tx, r.ID, &plan, &s)
}

// storedNodes fills in who worked for a stored job.
func storedNodes(tx *store.Tx, id protocol.JobID, plan *planRecord, s *protocol.JobStatus) error {
	nodes := map[protocol.PeerID]*protocol.JobNode{}
	at := func(p protocol.PeerID) *protocol.JobNode {
		if nodes[p] == nil {
			nodes[p] = &protocol.JobNode{PeerID: p, State: memberWas, ScoreBefore: plan.Before[p.String()], ScoreAfter: plan.After[p.String()]}
		}
		return nodes[p]
	}
	members, err := tx.Members(id)
	if err != nil {
		return err
	}
	for _, m := range members {
		n := at(m.Node)
		n.State, n.Slots = m.State, m.Slots
	}
	shares, err := tx.NodeShares(id)
	if err != nil {
		return err
	}
	for _, x := range shares {
		n := at(x.Node)
		n.Chunks, n.CPUSeconds, n.BlocksFetched = x.Chunks, float64(x.CPUMS)/1000, x.BlocksFetched
		n.Failed = x.Attempts - min(x.Attempts, x.Live+x.Chunks)
		s.Leases += x.Attempts
	}
	sums, err := tx.Usage(id)
	if err != nil {
		return err
	}
	for _, u := range sums {
		n := at(u.Node)
		n.WorkingMS, n.SpentUUSD = u.WorkingMS, u.ChargedUUSD
		s.Receipts += u.Records
	}
	for _, p := range slices.Sorted(maps.Keys(nodes)) {
		s.Nodes = append(s.Nodes, *nodes[p])
	}
	return nil
}

// Job implements api.Jobs.
func (b *Bridge) Job(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.JobStatus, error) {
	s, _, err := b.look(ctx, who, id)
	return s, err
}

// look returns how a job stands, and the channel that is closed at its next change; nil where there will be
// none.
func (b *Bridge) look(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.JobStatus, <-chan struct{}, error) {
	if err := b.running(); err != nil {
		return protocol.JobStatus{}, nil, err
	}
	type seen struct {
		s  protocol.JobStatus
		ch <-chan struct{}
	}
	v, err := ask(ctx, b.engine, func(t *turn) (*seen, error) {
		j := t.e.jobs[id]
		if j == nil {
			return nil, nil
		}
		return &seen{t.e.status(j), j.changed}, nil
	})
	if err != nil {
		return protocol.JobStatus{}, nil, err
	}
	if v != nil {
		if !owns(who, v.s.User) {
			return protocol.JobStatus{}, nil, noSuchJob(id)
		}
		return v.s, v.ch, nil
	}
	var s protocol.JobStatus
	err = b.store.View(ctx, func(tx *store.Tx) error {
		r, err := tx.GetJob(id)
		if err != nil {
			return err
		}
		s, err = storedStatus(tx, &r)
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && !owns(who, s.User) {
		return protocol.JobStatus{}, nil, noSuchJob(id)
	}
	return s, nil, err
}

// WaitJob implements api.Jobs.
func (b *Bridge) WaitJob(ctx context.Context, who api.Principal, id protocol.JobID, since uint64) (protocol.JobStatus, error) {
	ask := context.WithoutCancel(ctx) // the end of the wait is answered with how the job stands
	for {
		s, changed, err := b.look(ask, who, id)
		if err != nil || changed == nil || s.State.Over() || s.Seq > since {
			return s, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, nil
		case <-b.engine.gone:
			return s, nil
		}
	}
}

// ListJobs implements api.Jobs.
func (b *Bridge) ListJobs(ctx context.Context, who api.Principal, q api.JobQuery) (protocol.JobList, error) {
	if err := b.running(); err != nil {
		return protocol.JobList{}, err
	}
	limit := min(max(q.Limit, 1), 1000)
	states := q.States
	if len(states) == 0 {
		states = []protocol.JobState{""}
	}
	user := who.User
	if q.All {
		user = ""
	}
	var rows []store.Job
	err := b.store.View(ctx, func(tx *store.Tx) error {
		for _, s := range states {
			list, err := tx.ListJobs(store.JobFilter{User: user, State: string(s), Limit: limit + 1})
			if err != nil {
				return err
			}
			rows = append(rows, list...)
		}
		return nil
	})
	if err != nil {
		return protocol.JobList{}, err
	}
	slices.SortStableFunc(rows, func(a, b store.Job) int { return b.Created.Compare(a.Created) })
	out := protocol.JobList{Jobs: []protocol.JobStatus{}, More: len(rows) > limit}
	rows = rows[:min(len(rows), limit)]
	live, err := ask(ctx, b.engine, func(t *turn) (map[protocol.JobID]protocol.JobStatus, error) {
		m := map[protocol.JobID]protocol.JobStatus{}
		for i := range rows {
			if j := t.e.jobs[rows[i].ID]; j != nil {
				m[rows[i].ID] = t.e.status(j)
			}
		}
		return m, nil
	})
	if err != nil {
		return protocol.JobList{}, err
	}
	return out, b.store.View(ctx, func(tx *store.Tx) error {
		for i := range rows {
			s, ok := live[rows[i].ID]
			if !ok {
				if s, err = storedStatus(tx, &rows[i]); err != nil {
					return err
				}
			}
			s.Nodes, s.Retried = nil, nil
			out.Jobs = append(out.Jobs, s)
		}
		return nil
	})
}

// CancelJob implements api.Outcomes.
func (b *Bridge) CancelJob(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.JobStatus, error) {
	if _, err := b.Job(ctx, who, id); err != nil {
		return protocol.JobStatus{}, err
	}
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		if j := t.e.jobs[id]; j != nil && j.over == "" {
			fx, err := j.tracker.Cancel(cluster.JobCancel, protocol.ReasonCancelled, "cancelled by "+who.User)
			if err != nil {
				return struct{}{}, nil // it has ended by itself
			}
			t.apply(j, fx)
		}
		return struct{}{}, nil
	})
	if err != nil {
		return protocol.JobStatus{}, err
	}
	short, stop := context.WithTimeout(ctx, cancelFor)
	defer stop()
	s, err := b.Job(ctx, who, id)
	for err == nil && !s.State.Over() && short.Err() == nil { // what it has so far is merged first
		s, err = b.WaitJob(short, who, id, s.Seq)
	}
	return s, err
}

// cancelFor is how long a cancellation waits for the job's outputs so far.
const cancelFor = 5 * time.Second

// ExplainJob implements api.Outcomes.
func (b *Bridge) ExplainJob(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.Explain, error) {
	s, err := b.Job(ctx, who, id)
	if err != nil {
		return protocol.Explain{}, err
	}
	var raw []byte
	actual := map[protocol.PeerID]float64{}
	err = b.store.View(ctx, func(tx *store.Tx) error {
		r, err := tx.GetJob(id)
		if err != nil {
			return err
		}
		raw = r.Plan
		shares, err := tx.NodeShares(id)
		for _, x := range shares {
			if x.Chunks > 0 {
				actual[x.Node] = float64(x.RunUS) / 1e6 / float64(x.Chunks)
			}
		}
		return err
	})
	if err != nil {
		return protocol.Explain{}, err
	}
	plan, err := ask(ctx, b.engine, func(t *turn) (planRecord, error) { // newer than the row, while the job is in memory
		var p planRecord
		if j := t.e.jobs[id]; j != nil {
			return j.plan, nil
		}
		if len(raw) > 0 {
			return p, json.Unmarshal(raw, &p)
		}
		return p, nil
	})
	if err != nil {
		return protocol.Explain{}, err
	}
	return explained(s, &plan, actual), nil
}

func explained(s protocol.JobStatus, plan *planRecord, actual map[protocol.PeerID]float64) protocol.Explain {
	w := &plan.Explanation
	x := protocol.Explain{
		Job: s.ID, At: w.At, Total: w.Total, Matching: w.Matching, Summary: w.Summary(), Notes: w.Notes, PredictedSeconds: plan.Makespan,
		Filters: []protocol.ExplainFilter{}, Chosen: []protocol.ExplainNode{},
	}
	if !s.Ended.IsZero() && !s.Started.IsZero() {
		x.ActualSeconds = s.Ended.Sub(s.Started).Seconds()
	}
	for _, f := range w.Filters {
		x.Filters = append(x.Filters, protocol.ExplainFilter{Name: f.Name, Want: f.Want, Removed: f.Removed, Left: f.Left, Best: f.Best})
	}
	for _, m := range w.Chosen {
		t := m.Terms
		x.Chosen = append(x.Chosen, protocol.ExplainNode{
			PeerID: m.Peer, Rank: m.Rank, Region: m.Region, Slots: m.Slots, Queue: t.Queue, Start: t.Start, Data: t.Data, Run: t.Run, RTT: t.RTT, P: t.P,
			E: t.E, Cents: t.Cents, ActualRun: actual[m.Peer],
		})
	}
	return x
}

// JobStatement implements api.Outcomes.
func (b *Bridge) JobStatement(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.Statement, error) {
	if _, err := b.Job(ctx, who, id); err != nil {
		return protocol.Statement{}, err
	}
	var uses []settlement.Usage
	err := b.store.View(ctx, func(tx *store.Tx) error {
		asks := map[protocol.PeerID]int64{}
		members, err := tx.Members(id)
		if err != nil {
			return err
		}
		for _, m := range members {
			asks[m.Node] = m.Ask
		}
		sums, err := tx.Usage(id)
		for _, u := range sums {
			uses = append(uses, settlement.Usage{
				Node: u.Node, AskUUSD: asks[u.Node], RateUUSD: u.Rate, Chunks: u.Chunks, Records: u.Records, PreparingMS: u.PreparingMS, WorkingMS: u.WorkingMS,
				GPUMS: u.GPUMS, BilledMS: u.BilledMS,
			})
		}
		return err
	})
	if err != nil {
		return protocol.Statement{}, err
	}
	return b.engine.prices.NewStatement(id, uses, 0, b.cfg.Clock())
}

// volumeKey is a user's name for a volume as it is stored.
func volumeKey(user, name string) string { return user + "/" + name }

func volumeInfo(name string, v store.Volume) protocol.VolumeInfo {
	return protocol.VolumeInfo{Name: name, CID: v.Root.String(), Bytes: v.Bytes, Blocks: v.Blocks, Files: v.Files, Created: v.Created}
}

// ownName takes the user off a stored volume's name; false for somebody else's.
func ownName(user, key string) (string, bool) { return strings.CutPrefix(key, user+"/") }
