package beambridge

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// end begins the end of a job whose tracker has come to a final state: the nodes are told, the outputs merged.
func (b *Bridge) end(j *job, fx cluster.Effects) {
	b.farewell(j, fx.Reason)
	b.log.Info("a job's chunks are over", "job", j.id(), "state", fx.State, "reason", fx.Reason)
	f := func() { b.merge(b.ctx(), j.id(), j) }
	if j.calls != nil {
		f = func() { _ = b.engine.post(b.ctx(), func(t *turn) { t.merged(j, cid.Undef, "") }) }
		if !j.merging {
			return
		}
	}
	if root := j.row.Result; !j.merging && root.Defined() {
		f = func() { b.hold(root) }
	}
	if !b.spawn(f) {
		j.merging = false
	}
}

// hold keeps a job's outputs from collection. A job that ended with its only result is stored before this; after
// a crash in between its outputs are held with the start.
func (b *Bridge) hold(root cid.Cid) {
	if err := b.vols.Pin(root); err != nil {
		b.log.Error("a job's outputs could not be held", "result", root, "err", err)
	}
}

// alone returns the one directory in a result's tree: where a chunk is the whole job and one input alone has
// written something, its directory is what merging would give.
func (b *Bridge) alone(ctx context.Context, root cid.Cid) (dir cid.Cid) {
	if root == b.nothing {
		return root
	}
	for e, err := range b.vols.List(ctx, root) {
		if err != nil || !e.Dir || dir.Defined() {
			return cid.Undef
		}
		dir = e.CID
	}
	return dir
}

// merge makes one tree of the outputs of all accounted chunks and tells the engine.
func (b *Bridge) merge(ctx context.Context, id protocol.JobID, j *job) {
	root, note, err := b.mergeOutputs(ctx, id)
	if ctx.Err() != nil {
		return // it is merged again after the restart
	}
	if err != nil {
		b.log.Error("a job's outputs could not be merged", "job", id, "err", err)
		note = "its outputs could not be merged: " + plainText(err)
	}
	_ = b.engine.post(ctx, func(t *turn) { t.merged(j, root, note) })
}

// mergeOutputs merges by path what every input has written: the tree depends neither on how inputs were cut
// into chunks, nor on nodes or order. Where two inputs wrote different things to one path, each keeps a
// directory of its own, named by its index, and the note says so.
func (b *Bridge) mergeOutputs(ctx context.Context, id protocol.JobID) (root cid.Cid, note string, err error) {
	roots, err := b.accountedRoots(ctx, id)
	if err != nil || len(roots) == 0 {
		return cid.Undef, "", err
	}
	var broken error
	tree, err := b.vols.Merge(ctx, b.inputTrees(ctx, roots, &broken))
	var conflict *volumes.ConflictError
	if broken == nil && err == nil {
		return tree.Root, "", b.vols.Pin(tree.Root)
	}
	if broken != nil && !errors.Is(broken, volumes.ErrUnsupported) {
		return cid.Undef, "", broken
	}
	if broken == nil && !errors.As(err, &conflict) {
		return cid.Undef, "", err
	}
	why := "what an input wrote is no directory"
	if conflict != nil {
		why = fmt.Sprintf("%d paths were written differently by several inputs, such as %q", len(conflict.Paths), conflict.Paths[0])
	}
	tree, err = b.vols.Merge(ctx, func(yield func(cid.Cid) bool) {
		for _, r := range roots {
			if !yield(r) {
				return
			}
		}
	})
	if err != nil {
		return cid.Undef, "", err
	}
	return tree.Root, why + "; so each input has a directory named by its index", b.vols.Pin(tree.Root)
}

// accountedRoots are the trees of a job's accounted chunks, in order of inputs.
func (b *Bridge) accountedRoots(ctx context.Context, id protocol.JobID) (roots []cid.Cid, err error) {
	rows := 0
	err = b.store.View(ctx, func(tx *store.Tx) error {
		for r, err := range tx.Results(id) {
			if err != nil {
				return err
			}
			rows++
			if r.Root.Defined() && r.Root != b.nothing {
				roots = append(roots, r.Root)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the results of job %s: %w", id, err)
	}
	if len(roots) == 0 && rows > 0 {
		roots = append(roots, b.nothing)
	}
	return roots, nil
}

// inputTrees yields the directory of every input in the trees; an error stops it and is put into broken.
func (b *Bridge) inputTrees(ctx context.Context, roots []cid.Cid, broken *error) iter.Seq[cid.Cid] {
	return func(yield func(cid.Cid) bool) {
		for _, r := range roots {
			if r == b.nothing {
				continue
			}
			for e, err := range b.vols.List(ctx, r) {
				if err != nil {
					*broken = err
					return
				}
				if !e.Dir {
					*broken = fmt.Errorf("%w: %s in %s is a file", volumes.ErrUnsupported, e.Name, r)
					return
				}
				if !yield(e.CID) {
					return
				}
			}
		}
	}
}

// merged takes over a job's merged outputs: now it is over for everybody.
func (t *turn) merged(j *job, root cid.Cid, note string) {
	e := t.e
	if e.jobs[j.id()] != j {
		return
	}
	j.merging = false
	j.row.Result = root
	if j.calls == nil || note != "" { // how calls have failed is already said
		j.row.ResultNote = note
	}
	if p := j.tracker.Progress(); p.InputsDone < p.Inputs && root.Defined() && note == "" {
		j.row.ResultNote = fmt.Sprintf("partial: %d of %d inputs", p.InputsDone, p.Inputs)
	}
	if j.over == cluster.JobDone {
		j.row.State, j.row.Reason, j.row.Text, j.row.Ended = string(cluster.JobDone), protocol.ReasonDone, "", t.now
	}
	j.plan.After = map[string]float64{}
	for id := range j.lines {
		j.plan.After[id.String()] = e.judge.Score(id, t.now).O
	}
	j.plan.Retried = retriedOf(j)
	j.writePlan()
	if j.open == 0 {
		t.release(j)
	}
	t.paced = true
	t.nameOutputs(j, root)
	t.save(j)
	e.log.Info("job ended", "job", j.id(), "state", j.row.State, "result", root, "spent_uusd", j.row.Spent)
}

// nameOutputs gives the outputs the name that a rw-shared volume at /out asks for.
func (t *turn) nameOutputs(j *job, root cid.Cid) {
	for _, v := range j.spec.Volumes {
		if v.Mode != "rw-shared" || !root.Defined() || j.over != cluster.JobDone {
			continue
		}
		b, now := t.e.bridge, t.now
		tree, err := b.vols.Stat(b.ctx(), root)
		if err != nil {
			t.e.log.Error("the outputs could not be named", "job", j.id(), "volume", v.Name, "err", err)
			continue
		}
		t.also(func(tx *store.Tx) error {
			return tx.PutVolume(store.Volume{Name: volumeKey(j.row.User, v.Name), Root: root, Bytes: tree.Bytes, Blocks: tree.Blocks, Files: tree.Files, Created: now})
		})
	}
}
