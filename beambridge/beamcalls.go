package beambridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	row, _, err := f.b.callNow(ctx, id)
	if err != nil {
		return beamapi.Task{}, beamError(err)
	}
	return f.wholeTask(ctx, who, &row)
}

// wholeTask is a call with its result, for its owner.
func (f beamFace) wholeTask(ctx context.Context, who beamapi.Principal, row *store.Call) (beamapi.Task, error) {
	if row.User != who.Workspace {
		return beamapi.Task{}, beamapi.ErrNotFound
	}
	t, err := f.taskOf(ctx, who, row)
	if err != nil {
		return t, err
	}
	t.Result, err = f.b.callResult(row)
	return t, err
}

// Await implements beamapi.Calls.
func (f beamFace) Await(ctx context.Context, who beamapi.Principal, id string, not beamapi.Status) (beamapi.Task, error) {
	for {
		row, changed, err := f.b.callNow(ctx, id)
		if err != nil {
			return beamapi.Task{}, beamError(err)
		}
		if changed == nil || beamapi.Status(row.State) != not || row.User != who.Workspace {
			return f.wholeTask(ctx, who, &row)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return beamapi.Task{}, ctx.Err()
		case <-f.b.engine.gone:
			return beamapi.Task{}, beamError(ErrStopped)
		}
	}
}

// callNow is a call as it stands, and the channel that is closed with its next change, nil where there will be none.
// What is not written with each change, such as where a call runs, is newer than its row.
func (b *Bridge) callNow(ctx context.Context, id string) (row store.Call, changed <-chan struct{}, err error) {
	if err := b.running(); err != nil {
		return row, nil, err
	}
	type seen struct {
		row     store.Call
		changed <-chan struct{}
	}
	open, err := ask(ctx, b.engine, func(t *turn) (*seen, error) {
		if c := t.e.calls.get(id); c != nil {
			return &seen{c.row, c.watch()}, nil
		}
		return nil, nil
	})
	switch {
	case err != nil:
		return row, nil, err
	case open != nil:
		return open.row, open.changed, nil
	}
	row, err = view(ctx, b, func(tx *store.Tx) (store.Call, error) { return tx.GetCall(id) })
	return row, nil, err
}

// newer puts what the engine knows of calls that have not ended into their rows.
func (b *Bridge) newer(ctx context.Context, rows []*store.Call) error {
	if rows = slices.DeleteFunc(rows, func(c *store.Call) bool { return !c.Ended.IsZero() }); len(rows) == 0 {
		return nil
	}
	now, err := ask(ctx, b.engine, func(t *turn) ([]store.Call, error) {
		var out []store.Call
		for _, r := range rows {
			if c := t.e.calls.get(r.ID); c != nil {
				out = append(out, c.row)
			}
		}
		return out, nil
	})
	k := 0
	for i := range now { // in the order of rows
		for rows[k].ID != now[i].ID {
			k++
		}
		*rows[k] = now[i]
	}
	return err
}

// taskOf puts a call into Beam's words.
func (f beamFace) taskOf(ctx context.Context, who beamapi.Principal, row *store.Call) (beamapi.Task, error) {
	t := beamapi.Task{
		ID: row.ID, Status: beamapi.Status(row.State), StubID: row.Stub, DeploymentID: row.Deployment, Created: row.Created, Started: row.Started, Ended: row.Ended,
		Encoding: protocol.Encoding(row.Encoding), Exit: row.Exit, Text: row.Text, Node: nodeText(row.Node),
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
	all, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Call, error) { return tx.CallsOfUser(who.Workspace, mostListed) })
	if err != nil {
		return nil, 0, beamError(err)
	}
	var rows []*store.Call
	for i := range all {
		if r := &all[i]; chosen(q.IDs, r.ID) && chosen(q.StubIDs, r.Stub) {
			rows = append(rows, r)
		}
	}
	moving := len(q.Statuses)+len(q.Nodes) > 0 // of what is chosen by these, the engine knows more
	if moving {
		if err := f.b.newer(ctx, slices.Clone(rows)); err != nil {
			return nil, 0, beamError(err)
		}
	}
	rows = slices.DeleteFunc(rows, func(r *store.Call) bool {
		return !chosen(q.Statuses, beamapi.Status(r.State)) || len(q.Nodes) > 0 && !slices.Contains(q.Nodes, nodeText(r.Node)) || len(q.StubNames) > 0 && !slices.Contains(q.StubNames, f.stubName(ctx, who, r.Stub))
	})
	total := len(rows)
	rows = rows[:min(total, q.Limit)]
	if !moving {
		if err := f.b.newer(ctx, slices.Clone(rows)); err != nil {
			return nil, 0, beamError(err)
		}
	}
	var out []beamapi.Task
	for _, r := range rows {
		t, err := f.taskOf(ctx, who, r)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, t)
	}
	return out, total, nil
}

// nodeText is a node's ID for people, empty for none.
func nodeText(id protocol.PeerID) string {
	if id == "" {
		return ""
	}
	return id.String()
}

// stubName is what a stub is called, empty for one that was forgotten.
func (f beamFace) stubName(ctx context.Context, who beamapi.Principal, id string) string {
	s, err := f.Stub(ctx, who, id)
	if err != nil {
		return ""
	}
	return s.Name
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
