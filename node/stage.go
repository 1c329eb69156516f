package node

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

const (
	moduleFile = "module.wasm" // the one file of a module's tree
	inputsFile = "inputs"      // the one file of a tree of inputs: a JSON string a line
	// maxModule bounds a module, in bytes; the backend has a bound of its own.
	maxModule = 256 << 20
	// maxInputLine bounds one input of a tree, in bytes.
	maxInputLine = 1 << 20
)

// depot brings what jobs need to this machine.
type depot struct {
	store *volumes.Store
	// trees are what functions get as paths.
	trees *materials
	// fetch brings a tree from holders and returns how many blocks came over the wire.
	fetch func(ctx context.Context, root cid.Cid, holders []peer.AddrInfo) (blocks uint64, err error)
}

// staging is what of a job is here; it is made once a membership.
type staging struct {
	turn   chan struct{} // capacity 1: one worker brings it, the others wait as long as their leases want
	done   bool          // the fields below belong to whoever has the turn
	mounts []executor.Mount
	code   string // directory of a function's code
	spec   string // of a function
}

// need fetches a tree unless it is here.
func (d *depot) need(ctx context.Context, what string, root cid.Cid, holders []peer.AddrInfo) (uint64, error) {
	here, err := d.store.Has(ctx, root)
	if err != nil {
		return 0, fmt.Errorf("looking for %s: %w", what, err)
	}
	if here {
		return 0, nil
	}
	blocks, err := d.fetch(ctx, root, holders)
	if err != nil {
		return blocks, fmt.Errorf("fetching %s: %w", what, dataFault(ctx, err))
	}
	return blocks, nil
}

// dataFault says whose fault it is that data is not here.
func dataFault(ctx context.Context, err error) error {
	why := protocol.ReasonDataUnavailable
	switch {
	case errors.Is(err, volumes.ErrNoSpace):
		why = protocol.ReasonNodeDiskFull
	case ctx.Err() != nil:
		why = protocol.ReasonDataSlow
	}
	return &executor.Failure{Reason: why, Err: err}
}

// job brings a job's code and volumes; blocks counts what came over the wire for this call.
func (d *depot) job(ctx context.Context, m *member) (s *staging, blocks uint64, err error) {
	s = &m.stage
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, 0, dataFault(ctx, context.Cause(ctx))
	}
	if s.done {
		return s, 0, nil
	}
	t := &m.terms
	code, what := t.Run.Module, "the module"
	if t.Run.Function != nil {
		code, what = t.Run.Function.Code, "the code"
	}
	if blocks, err = d.need(ctx, what, code, []peer.AddrInfo{t.Origin}); err != nil {
		return nil, blocks, err
	}
	if t.Run.Function != nil {
		if s.code, err = d.trees.need(ctx, code); err != nil {
			return nil, blocks, fmt.Errorf("laying out the code: %w", dataFault(ctx, err))
		}
		s.spec = specOf(t)
	}
	s.mounts = nil
	for i := range t.Volumes {
		v := &t.Volumes[i]
		n, err := d.need(ctx, "volume "+v.Name, v.Root, holders(v, t.Origin))
		blocks += n
		if err != nil {
			return nil, blocks, err
		}
		mount, err := d.mount(ctx, v, t.Run.Function != nil)
		if err != nil {
			return nil, blocks, fmt.Errorf("opening volume %s: %w", v.Name, dataFault(ctx, err))
		}
		s.mounts = append(s.mounts, mount)
	}
	s.done = true
	return s, blocks, nil
}

// mount is a volume that is here as a backend takes it: a directory for a function, else a file system.
func (d *depot) mount(ctx context.Context, v *protocol.VolumeRef, plain bool) (m executor.Mount, err error) {
	m = executor.Mount{Target: v.At, ReadOnly: v.Mode == "ro", Links: v.Links}
	if plain {
		m.Dir, err = d.trees.need(ctx, v.Root)
	} else {
		m.FS, err = d.store.FS(v.Root)
	}
	return m, err
}

// specOf names everything that a function's process depends on, but for the job that calls it: two jobs with the
// same terms may share warm processes.
func specOf(t *protocol.JobTerms) string {
	same := *t
	same.Job, same.Name, same.Seed, same.Origin, same.Volumes = protocol.JobID{}, "", [32]byte{}, peer.AddrInfo{}, slices.Clone(t.Volumes)
	for i := range same.Volumes {
		same.Volumes[i].Holders = nil
	}
	raw, err := same.Encode()
	if err != nil { // the terms were valid
		raw = t.Job[:]
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

// arguments turns texts of a lease into the arguments of a function; large ones are trees that are fetched.
func (d *depot) arguments(ctx context.Context, inputs []executor.Input, origin peer.AddrInfo) (blocks uint64, err error) {
	for i := range inputs {
		in := &inputs[i]
		f, err := protocol.ParseFunctionInput(in.Value)
		if err != nil {
			return blocks, executor.Fail(protocol.ReasonBridgeError, "input %d: %w", in.Index, err)
		}
		in.Value, in.Args, in.Encoding = f.Task, f.Args, f.Encoding
		if f.Encoding == "" {
			in.Encoding = executor.EncodingSkip
		}
		if !f.Root.Defined() {
			continue
		}
		n, err := d.need(ctx, "an argument", f.Root, []peer.AddrInfo{origin})
		blocks += n
		if err != nil {
			return blocks, err
		}
		tree, err := d.store.FS(f.Root)
		if err == nil {
			in.Args, err = fs.ReadFile(tree, protocol.ArgsFile)
		}
		if err != nil {
			return blocks, executor.Fail(protocol.ReasonDataUnavailable, "reading the arguments of input %d: %w", in.Index, err)
		}
	}
	return blocks, nil
}

// holders lists who has a volume: whom the reference names, and where the job comes from.
func holders(v *protocol.VolumeRef, origin peer.AddrInfo) []peer.AddrInfo {
	out := slices.Clone(v.Holders)
	if origin.ID != "" && !slices.ContainsFunc(out, func(h peer.AddrInfo) bool { return h.ID == origin.ID }) {
		out = append(out, origin)
	}
	return out
}

// module is a job's code. It is loaded when no cache has it compiled.
func (d *depot) module(root cid.Cid) executor.Module {
	return executor.Module{CID: root.String(), Load: func(context.Context) ([]byte, error) {
		tree, err := d.store.FS(root)
		if err != nil {
			return nil, executor.Fail(protocol.ReasonDataUnavailable, "opening the module: %w", err)
		}
		f, err := tree.Open(moduleFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, executor.Fail(protocol.ReasonBadModule, "the module's tree has no file %s", moduleFile)
		}
		if err != nil {
			return nil, executor.Fail(protocol.ReasonDataUnavailable, "opening the module: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxModule+1))
		if err != nil {
			return nil, executor.Fail(protocol.ReasonDataUnavailable, "reading the module: %w", err)
		}
		if len(b) > maxModule {
			return nil, executor.Fail(protocol.ReasonBadModule, "the module has more than %d bytes", maxModule)
		}
		return b, nil
	}}
}

// inputs returns a lease's inputs, out of the lease or of a tree.
func (d *depot) inputs(ctx context.Context, l *protocol.Lease, origin peer.AddrInfo) ([]executor.Input, uint64, error) {
	out := make([]executor.Input, 0, l.Chunk.Len())
	add := func(text string) {
		out = append(out, executor.Input{Index: l.Chunk.First + uint64(len(out)), Value: text})
	}
	if !l.InputsCID.Defined() {
		for _, text := range l.Inputs {
			add(text)
		}
		return out, 0, nil
	}
	blocks, err := d.need(ctx, "the inputs", l.InputsCID, []peer.AddrInfo{origin})
	if err != nil {
		return nil, blocks, err
	}
	bad := func(format string, args ...any) ([]executor.Input, uint64, error) {
		return nil, blocks, executor.Fail(protocol.ReasonDataUnavailable, "the tree of inputs: "+format, args...)
	}
	tree, err := d.store.FS(l.InputsCID)
	if err != nil {
		return bad("%w", err)
	}
	f, err := tree.Open(inputsFile)
	if err != nil {
		return bad("%w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 64<<10), maxInputLine)
	for lines.Scan() {
		var text string
		if err := json.Unmarshal(lines.Bytes(), &text); err != nil {
			return bad("line %d: %w", len(out)+1, err)
		}
		if uint64(len(out)) == l.Chunk.Len() {
			return bad("more lines than the chunk's %d inputs", l.Chunk.Len())
		}
		add(text)
	}
	if err := lines.Err(); err != nil {
		return bad("%w", err)
	}
	if uint64(len(out)) != l.Chunk.Len() {
		return bad("%d lines for %d inputs", len(out), l.Chunk.Len())
	}
	return out, blocks, nil
}
