package beambridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

var _ api.Volumes = (*Bridge)(nil)

// PutModule implements api.Volumes.
func (b *Bridge) PutModule(ctx context.Context, _ api.Principal, fsys fs.FS) (protocol.ModuleInfo, error) {
	if err := b.running(); err != nil {
		return protocol.ModuleInfo{}, err
	}
	t, err := b.importTree(ctx, fsys)
	if err != nil {
		return protocol.ModuleInfo{}, err
	}
	return protocol.ModuleInfo{CID: t.Root.String(), Bytes: t.Bytes}, nil
}

// importTree keeps files as a tree, durably and safe from collection.
func (b *Bridge) importTree(ctx context.Context, fsys fs.FS) (volumes.Tree, error) {
	t, err := b.vols.Import(ctx, fsys, nil)
	if err == nil {
		err = b.vols.Pin(t.Root)
	}
	switch {
	case errors.Is(err, volumes.ErrNoSpace):
		return t, &protocol.APIError{Code: protocol.CodeNoSpace, Text: "the bridge's disk is full", Fix: "whoever runs the bridge has to free space"}
	case errors.Is(err, volumes.ErrUnsupported):
		return t, &protocol.APIError{Code: protocol.CodeBadTree, Text: err.Error()}
	case err != nil:
		return t, fmt.Errorf("keeping a tree: %w", err)
	}
	return t, nil
}

// PutVolume implements api.Volumes.
func (b *Bridge) PutVolume(ctx context.Context, who api.Principal, name string, fsys fs.FS) (protocol.VolumeInfo, error) {
	if err := b.running(); err != nil {
		return protocol.VolumeInfo{}, err
	}
	t, err := b.importTree(ctx, fsys)
	if err != nil {
		return protocol.VolumeInfo{}, err
	}
	row := store.Volume{Name: volumeKey(who.User, name), Root: t.Root, Bytes: t.Bytes, Blocks: t.Blocks, Files: t.Files, Created: b.cfg.Clock()}
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutVolume(row) })
		return struct{}{}, nil
	})
	return volumeInfo(name, row), err
}

// Volume implements api.Volumes.
func (b *Bridge) Volume(ctx context.Context, who api.Principal, name string) (protocol.VolumeInfo, error) {
	if err := b.running(); err != nil {
		return protocol.VolumeInfo{}, err
	}
	var row store.Volume
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.GetVolume(volumeKey(who.User, name))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return protocol.VolumeInfo{}, &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("there is no volume %s", name), Fix: "`gridbeam volume list` shows yours"}
	}
	return volumeInfo(name, row), err
}

// ListVolumes implements api.Volumes.
func (b *Bridge) ListVolumes(ctx context.Context, who api.Principal) (protocol.VolumeList, error) {
	if err := b.running(); err != nil {
		return protocol.VolumeList{}, err
	}
	out := protocol.VolumeList{Volumes: []protocol.VolumeInfo{}}
	err := b.store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.Volumes()
		for _, v := range rows {
			if name, ok := ownName(who.User, v.Name); ok {
				out.Volumes = append(out.Volumes, volumeInfo(name, v))
			}
		}
		return err
	})
	return out, err
}

// JobResults implements api.Outcomes.
func (b *Bridge) JobResults(ctx context.Context, who api.Principal, id protocol.JobID) (fs.FS, string, error) {
	s, err := b.Job(ctx, who, id)
	if err != nil {
		return nil, "", err
	}
	switch {
	case s.ResultCID == "" && s.State.Over():
		return nil, "", &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("job %s is %s and has no outputs", id, s.State), Fix: "`gridbeam job status` says why"}
	case s.ResultCID == "":
		return nil, "", &protocol.APIError{Code: protocol.CodeNotYet, Text: fmt.Sprintf("job %s is %s", id, s.State), Fix: "wait for it with `gridbeam job wait`", RetryMS: 1000}
	}
	root, err := cid.Decode(s.ResultCID)
	if err != nil {
		return nil, "", fmt.Errorf("the result of job %s: %w", id, err)
	}
	fsys, err := b.vols.FS(root)
	if err != nil {
		return nil, "", fmt.Errorf("opening the results of job %s: %w", id, err)
	}
	return fsys, s.ResultCID, nil
}
