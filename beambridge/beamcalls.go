package beambridge

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// runningCall is a call whose caller waits.
type runningCall struct {
	b    *Bridge
	id   string
	wait *waiter
	over bool
}

// Invoke implements beamapi.Calls.
func (f beamFace) Invoke(ctx context.Context, who beamapi.Principal, c beamapi.Call) (beamapi.Running, error) {
	s, err := f.Stub(ctx, who, c.StubID)
	if err != nil {
		return nil, err
	}
	if err := f.b.touch(ctx, c.StubID); err != nil {
		return nil, beamError(err)
	}
	o := order{
		id: protocol.NewJobID().String(), user: who.Workspace, stub: c.StubID, deployment: c.Deployment, spec: s.Job, encoding: c.Encoding, args: c.Args,
		headless: c.Headless, wait: true, most: int(s.MaxPending),
	}
	w, err := f.b.call(ctx, o)
	if err != nil {
		return nil, beamError(err)
	}
	return &runningCall{b: f.b, id: o.id, wait: w}, nil
}

// TaskID implements beamapi.Running.
func (r *runningCall) TaskID() string { return r.id }

// Next implements beamapi.Running.
func (r *runningCall) Next(ctx context.Context) (beamapi.Event, error) {
	output, end, err := r.wait.next(ctx)
	if err != nil || end == nil {
		return beamapi.Event{Output: output}, err
	}
	r.over = true
	e := beamapi.Event{Done: true, Exit: end.row.Exit, Encoding: protocol.Encoding(end.row.Encoding)}
	if end.row.Reason != protocol.ReasonDone {
		e.Output = strings.TrimRight(end.row.Text, "\n") + "\n"
		return e, nil
	}
	e.Result, err = r.b.callResult(&end.row)
	return e, err
}

// Abandon implements beamapi.Running.
func (r *runningCall) Abandon() {
	if !r.over {
		r.b.abandon(r.id)
	}
}

// Task implements beamapi.Calls.
func (f beamFace) Task(ctx context.Context, who beamapi.Principal, id string) (beamapi.Task, error) {
	row, err := view(ctx, f.b, func(tx *store.Tx) (store.Call, error) { return tx.GetCall(id) })
	if err != nil {
		return beamapi.Task{}, beamError(err)
	}
	if row.User != who.Workspace {
		return beamapi.Task{}, beamapi.ErrNotFound
	}
	live, err := f.b.liveCalls(ctx, who.Workspace)
	if err != nil {
		return beamapi.Task{}, beamError(err)
	}
	if now, ok := live[id]; ok {
		row = now
	}
	t, err := f.taskOf(ctx, who, &row)
	if err != nil {
		return t, err
	}
	t.Result, err = f.b.callResult(&row)
	return t, err
}

// liveCalls are a user's calls that have not ended.
func (b *Bridge) liveCalls(ctx context.Context, user string) (map[string]store.Call, error) {
	return ask(ctx, b.engine, func(t *turn) (map[string]store.Call, error) {
		out := map[string]store.Call{}
		for id, c := range t.e.calls.byID {
			if c.row.User == user {
				out[id] = c.row
			}
		}
		return out, nil
	})
}

// taskOf puts a call into Beam's words.
func (f beamFace) taskOf(ctx context.Context, who beamapi.Principal, row *store.Call) (beamapi.Task, error) {
	t := beamapi.Task{
		ID: row.ID, Status: beamapi.Status(row.State), StubID: row.Stub, DeploymentID: row.Deployment, Created: row.Created, Started: row.Started, Ended: row.Ended,
		Encoding: protocol.Encoding(row.Encoding), Exit: row.Exit, Text: row.Text,
	}
	if row.Node != "" {
		t.Node = row.Node.String()
	}
	s, err := f.Stub(ctx, who, row.Stub)
	if err != nil && !errors.Is(err, beamapi.ErrNotFound) { // a call may outlive its function's entry
		return t, err
	}
	t.StubName, t.StubType = s.Name, s.Type
	if row.Deployment != "" {
		d, err := view(ctx, f.b, func(tx *store.Tx) (store.Deployment, error) { return tx.GetDeployment(row.Deployment) })
		if err != nil {
			return t, beamError(err)
		}
		t.DeploymentName, t.DeploymentVersion = d.Name, uint32(d.Version)
	}
	return t, nil
}

// Tasks implements beamapi.Calls.
func (f beamFace) Tasks(ctx context.Context, who beamapi.Principal, q beamapi.TaskFilter) ([]beamapi.Task, int, error) {
	rows, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Call, error) { return tx.CallsOfUser(who.Workspace, mostListed) })
	if err != nil {
		return nil, 0, beamError(err)
	}
	live, err := f.b.liveCalls(ctx, who.Workspace)
	if err != nil {
		return nil, 0, beamError(err)
	}
	var out []beamapi.Task
	total := 0
	for i := range rows {
		if now, ok := live[rows[i].ID]; ok {
			rows[i] = now
		}
		row := &rows[i]
		node := ""
		if row.Node != "" {
			node = row.Node.String()
		}
		if !chosen(q.Statuses, beamapi.Status(row.State)) || !chosen(q.IDs, row.ID) || !chosen(q.StubIDs, row.Stub) || !chosen(q.Nodes, node) {
			continue
		}
		t, err := f.taskOf(ctx, who, row)
		if err != nil {
			return nil, 0, err
		}
		if !chosen(q.StubNames, t.StubName) {
			continue
		}
		if total++; len(out) < q.Limit {
			out = append(out, t)
		}
	}
	return out, total, nil
}

// StopTasks implements beamapi.Calls.
func (f beamFace) StopTasks(ctx context.Context, who beamapi.Principal, ids []string) error {
	_, err := view(ctx, f.b, func(tx *store.Tx) (struct{}, error) {
		for _, id := range ids {
			row, err := tx.GetCall(id)
			if err == nil && row.User != who.Workspace {
				err = fmt.Errorf("%w: call %s", store.ErrNotFound, id)
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	if err != nil {
		return beamError(err)
	}
	_, err = ask(ctx, f.b.engine, func(t *turn) (struct{}, error) {
		for _, id := range ids {
			if c := t.e.calls.get(id); c != nil {
				t.cancelCall(c, protocol.ReasonCancelled, "stopped by its owner")
			}
		}
		return struct{}{}, nil
	})
	return beamError(err)
}
