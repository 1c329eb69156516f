package beambridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// order is a call as its caller makes it.
type order struct {
	id         string
	user       string
	stub       string
	deployment string
	spec       protocol.Job
	encoding   protocol.Encoding
	args       []byte
	headless   bool
	wait       bool
	most       int // calls of the function that may be open; 0 is the bound of the workspace alone
}

// mostCalls bounds the calls of everybody that have not ended: each is kept in memory.
const mostCalls = 100_000

// errNoJob asks for an open job for a call.
var errNoJob = errors.New("beambridge: no open job for the call")

// call hands a call to the open job of its function, or to a new one, and returns once it is durable. Who waits gets
// a waiter.
func (b *Bridge) call(ctx context.Context, o order) (*waiter, error) {
	r, key, err := b.function(ctx, &o)
	if err != nil {
		return nil, err
	}
	text, root, err := b.keepArgs(ctx, &o)
	if err != nil {
		return nil, err
	}
	c := &call{row: store.Call{
		ID: o.id, User: o.user, Stub: o.stub, Deployment: o.deployment, Headless: o.headless, Args: text, Created: b.cfg.Clock(),
	}}
	if o.wait {
		c.wait = newWaiter()
	}
	put := func(fresh *job) error {
		_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
			if err := t.e.calls.full(o.user, o.stub, o.most); err != nil {
				return struct{}{}, err
			}
			j := t.e.opens[key]
			if j == nil || j.over != "" || j.calls.sealed {
				if fresh == nil {
					return struct{}{}, errNoJob
				}
				if _, err := t.submit(fresh); err != nil {
					return struct{}{}, err
				}
				j = fresh
				t.supersede(key)
				t.e.opens[key] = j
			}
			c.spec = j.callSpec()
			if root.Defined() {
				b.reads.allow(j, root)
			}
			t.accept(j, c)
			return struct{}{}, nil
		})
		return err
	}
	err = put(nil)
	if errors.Is(err, errNoJob) {
		var j *job
		if j, err = b.newJob(ctx, protocol.NewJobID(), o.user, r); err != nil {
			return nil, err
		}
		j.calls.key = key
		err = put(j)
	}
	if err != nil && ctx.Err() != nil {
		b.abandon(o.id) // it may have been taken all the same
	}
	return c.wait, err
}

// function resolves what a call runs: its job as it would be submitted now, and the key of the open job that it fits.
func (b *Bridge) function(ctx context.Context, o *order) (*resolved, callKey, error) {
	key := callKey{user: o.user, stub: o.stub}
	if err := o.spec.Validate(); err != nil {
		return nil, key, err
	}
	r := &resolved{spec: o.spec.WithDefaults()}
	if err := offeredFunction(&r.spec); err != nil {
		return nil, key, err
	}
	code, err := cid.Decode(r.spec.Run.Code)
	if err != nil {
		return nil, key, badField("run.code", r.spec.Run.Code, "is no CID: %v", err)
	}
	tree, err := b.vols.Stat(ctx, code)
	switch {
	case errors.Is(err, volumes.ErrNotFound):
		return nil, key, badField("run.code", r.spec.Run.Code, "is code that this bridge does not have; upload it first")
	case err != nil:
		return nil, key, fmt.Errorf("looking up code %s: %w", code, err)
	}
	if err := b.mounts(ctx, o.user, r); err != nil {
		return nil, key, err
	}
	run, p, res := &r.spec.Run, &r.spec.Policy, &r.spec.Resources
	r.want = wantOf(&r.spec)
	r.terms = protocol.JobTerms{
		Name: r.spec.Name, Kind: string(r.spec.Kind), MinIsolation: p.MinIsolation, KeepOutputs: p.KeepOutputs, Seed: seedOf(code, &r.spec),
		Run: protocol.Run{Host: run.Host, Env: run.Env, Function: &protocol.Function{
			Handler: run.Handler, OnStart: run.OnStart, Code: code, CodeBytes: tree.Bytes, Workers: max(1, run.Workers), Timeout: p.Timeout.Std(),
			KeepWarm: run.KeepWarm.Std(), Tenant: o.user,
		}},
		Limits:  protocol.Limits{MemoryBytes: uint64(res.Memory), DiskBytes: uint64(res.Disk), CPUMilli: uint32(res.CPU), Network: "none"},
		Volumes: r.terms.Volumes, GPUModels: res.GPU, GPUCount: res.GPUCount,
	}
	key.sees = roots(r.terms.Volumes)
	return r, key, nil
}

// offeredFunction refuses what a function cannot have yet.
func offeredFunction(j *protocol.Job) error {
	switch {
	case j.Kind != protocol.JobMap || !j.Inputs.Open || j.Run.Handler == "":
		return badField("run.handler", j.Run.Handler, "a function is a job of kind map with open inputs and a handler")
	case j.Resources.Network != "none":
		return notOffered("resources.network", "functions get no network yet", "put the data into a volume")
	case j.Policy.Compare != "none" || j.Policy.Redundancy > 1:
		return notOffered("policy.redundancy", "results of functions are not compared yet", "leave policy.redundancy and policy.compare out")
	}
	return nil
}

// keepArgs puts a call's arguments into the text of an input; large ones become a tree that the node fetches.
func (b *Bridge) keepArgs(ctx context.Context, o *order) (text string, root cid.Cid, err error) {
	in := protocol.FunctionInput{Task: o.id, Encoding: o.encoding, Args: o.args}
	if len(o.args) > protocol.ArgsInline {
		tree, err := b.vols.AddFiles([]volumes.File{{Path: protocol.ArgsFile, Data: o.args}})
		if err == nil {
			err = b.vols.Sync(ctx)
		}
		if err != nil {
			return "", root, fmt.Errorf("keeping the arguments of call %s: %w", o.id, err)
		}
		in.Args, in.Root, root = nil, tree.Root, tree.Root
	}
	return in.String(), root, nil
}

// abandon withdraws a call whose caller has gone; a headless one goes on.
func (b *Bridge) abandon(id string) {
	_ = b.engine.post(b.ctx(), func(t *turn) { // a bridge that goes down ends its calls by itself
		c := t.e.calls.get(id)
		switch {
		case c == nil:
		case c.row.Headless:
			if c.wait != nil {
				c.wait.hear(nil)
				c.wait = nil
			}
		default:
			t.cancelCall(c, protocol.ReasonCancelled, "its caller went away")
		}
	})
}

// readEnds reads how every input of a chunk of calls has ended. wrong says why the outputs cannot be those of the
// chunk.
func (b *Bridge) readEnds(x *protocol.Result) (ends map[uint64]inputEnd, wrong string) {
	tree, err := b.vols.FS(x.Root)
	if err != nil {
		return nil, "its outputs cannot be read: " + plainText(err)
	}
	ends = make(map[uint64]inputEnd, x.Chunk.Len())
	for i := x.Chunk.First; i < x.Chunk.End; i++ {
		dir := strconv.FormatUint(i, 10)
		raw, err := readLimited(tree, path.Join(dir, protocol.OutcomeFile), maxOutcomeFile)
		if err != nil {
			return nil, fmt.Sprintf("input %d has no outcome: %s", i, plainText(err))
		}
		o, err := protocol.ParseInputOutcome(raw)
		if err != nil {
			return nil, fmt.Sprintf("the outcome of input %d: %s", i, plainText(err))
		}
		if o.Reason == protocol.ReasonDone {
			info, err := fs.Stat(tree, path.Join(dir, protocol.ResultFile))
			if err != nil || !info.Mode().IsRegular() {
				return nil, fmt.Sprintf("input %d is done and has no result", i)
			}
		}
		_, err = fs.Stat(tree, path.Join(dir, protocol.WrittenDir))
		ends[i] = inputEnd{outcome: o, written: err == nil}
	}
	return ends, ""
}

// maxOutcomeFile bounds the outcome of one input, in bytes.
const maxOutcomeFile = 1 << 20

// readLimited reads a small file of a tree.
func readLimited(tree fs.FS, name string, most int64) ([]byte, error) {
	info, err := fs.Stat(tree, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", name, most)
	}
	return fs.ReadFile(tree, name)
}

// callResult reads what a call returned; nothing when it did not end well.
func (b *Bridge) callResult(row *store.Call) ([]byte, error) {
	if row.Reason != protocol.ReasonDone || !row.Result.Defined() {
		return nil, nil
	}
	tree, err := b.vols.FS(row.Result)
	if err == nil {
		var raw []byte
		if raw, err = readLimited(tree, path.Join(strconv.FormatUint(row.Input, 10), protocol.ResultFile), protocol.MaxResultFile); err == nil {
			return raw, nil
		}
	}
	return nil, fmt.Errorf("reading the result of call %s: %w", row.ID, err)
}

// roots names what a function sees of volumes: a call that is made when they have moved goes to a job that sees them as they
// are, whoever has moved them. Beam's volumes are one file system for all, so what a call that has returned wrote is there.
func roots(refs []protocol.VolumeRef) string {
	var b strings.Builder
	for i := range refs {
		b.Write(refs[i].Root.Bytes())
	}
	return b.String()
}

// mergeWritten lays what a call has written into volumes over what they hold: the last to end wins, file by file.
func (b *Bridge) mergeWritten(ctx context.Context, end *callEnd) {
	b.merging.Lock()
	defer b.merging.Unlock()
	err := b.mergeCall(ctx, end)
	if err != nil && ctx.Err() == nil {
		b.log.Error("what a call wrote could not be merged into its volumes; it is tried again with the next start", "call", end.row.ID, "err", err)
	}
}

func (b *Bridge) mergeCall(ctx context.Context, end *callEnd) error {
	dir, err := b.subtree(ctx, end.row.Written, strconv.FormatUint(end.row.Input, 10), protocol.WrittenDir)
	if err != nil {
		return err
	}
	var rows []store.Volume
	for _, v := range end.spec.volumes {
		top, err := b.subtree(ctx, dir, strings.Split(strings.TrimPrefix(v.at, "/"), "/")...)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		row, err := b.mergeInto(ctx, end, v.name, top)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		for _, row := range rows {
			t.also(func(tx *store.Tx) error { return tx.PutVolume(row) })
		}
		row := end.row
		row.Written = cid.Undef
		t.callRows[row.ID] = row
		t.must = true
		return struct{}{}, nil
	})
	return err
}

func (b *Bridge) mergeInto(ctx context.Context, end *callEnd, name string, top cid.Cid) (row store.Volume, err error) {
	key := volumeKey(end.row.User, name)
	if err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.GetVolume(key)
		return err
	}); err != nil {
		return row, fmt.Errorf("looking up volume %s: %w", name, err)
	}
	tree, err := b.vols.Overlay(ctx, row.Root, top)
	if err == nil {
		err = b.vols.Pin(tree.Root)
	}
	if err != nil {
		return row, fmt.Errorf("merging into volume %s: %w", name, err)
	}
	row.Root, row.Bytes, row.Blocks, row.Files, row.Created = tree.Root, tree.Bytes, tree.Blocks, tree.Files, b.cfg.Clock()
	return row, nil
}

// subtree finds a directory below a tree; fs.ErrNotExist when there is none.
func (b *Bridge) subtree(ctx context.Context, root cid.Cid, names ...string) (cid.Cid, error) {
next:
	for _, name := range names {
		for e, err := range b.vols.List(ctx, root) {
			if err != nil {
				return cid.Undef, fmt.Errorf("looking for %s: %w", name, err)
			}
			if e.Name == name && e.Dir {
				root = e.CID
				continue next
			}
		}
		return cid.Undef, fmt.Errorf("looking for %s in %s: %w", name, root, fs.ErrNotExist)
	}
	return root, nil
}

// oweMerges takes up what calls had written before a restart, in order of their ends. One that cannot be read keeps
// nobody from the others.
func (b *Bridge) oweMerges(ctx context.Context) error {
	var ends []*callEnd
	err := b.store.View(ctx, func(tx *store.Tx) error {
		for row, err := range tx.CallsWritten() {
			if err != nil {
				return err
			}
			spec, err := owedSpec(tx, row.Job)
			if err != nil {
				b.log.Error("what a call wrote cannot be merged into its volumes", "call", row.ID, "err", err)
				continue
			}
			ends = append(ends, &callEnd{row: row, spec: spec})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("looking for writes that were not merged: %w", err)
	}
	for _, end := range ends {
		b.mergeWritten(ctx, end)
	}
	return nil
}

func owedSpec(tx *store.Tx, id protocol.JobID) (*callSpec, error) {
	j, err := tx.GetJob(id)
	if err != nil {
		return nil, err
	}
	terms, err := protocol.DecodeJobTerms(j.Terms)
	if err != nil {
		return nil, fmt.Errorf("the terms of job %s: %w", id, err)
	}
	return &callSpec{volumes: writables(&terms)}, nil
}
