package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes"
)

// materialIdle is how long a directory that no job uses is kept: longer than any process stays warm, for one may
// still have it mounted.
const materialIdle = 2 * time.Hour

// materials are trees as plain read-only directories, for code that is given paths. A directory is made once,
// however many jobs use it.
type materials struct {
	dir   string
	store *volumes.Store
	now   func() time.Time

	mu    sync.Mutex
	trees map[cid.Cid]*material
}

// material is one tree.
type material struct {
	turn chan struct{} // capacity 1: who has it looks at here
	here bool
	used time.Time // guarded by materials.mu
}

// bootFile names the boot that the directories were made in: after a crash of the machine files may be torn.
const bootFile = ".boot"

// newMaterials opens the directory; what an earlier boot of the machine has left is removed, for nothing of it was
// synced.
func newMaterials(dir string, store *volumes.Store, now func() time.Time) (*materials, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte(now().String()) // unknown: every start is a boot
	}
	old, err := os.ReadFile(filepath.Join(dir, bootFile))
	if err != nil || string(old) != string(boot) {
		err = errors.Join(removeTree(dir), os.MkdirAll(dir, 0o711), os.WriteFile(filepath.Join(dir, bootFile), boot, 0o600))
		if err != nil {
			return nil, fmt.Errorf("making the directory of trees: %w", err)
		}
	}
	m := &materials{dir: dir, store: store, now: now, trees: map[cid.Cid]*material{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the directory of trees: %w", err)
	}
	for _, e := range entries {
		root, err := cid.Decode(e.Name())
		if err == nil {
			m.trees[root] = &material{turn: make(chan struct{}, 1), here: true, used: now()}
		} else if strings.HasSuffix(e.Name(), partEnd) {
			_ = removeTree(filepath.Join(dir, e.Name())) // it takes room, no more
		}
	}
	return m, nil
}

// partEnd ends the name of a tree that is not complete.
const partEnd = ".part"

// need returns a directory with the files of a tree that is in the store.
func (m *materials) need(ctx context.Context, root cid.Cid) (string, error) {
	m.mu.Lock()
	t := m.trees[root]
	if t == nil {
		t = &material{turn: make(chan struct{}, 1)}
		m.trees[root] = t
	}
	t.used = m.now()
	m.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	dir := filepath.Join(m.dir, root.String())
	if t.here {
		return dir, nil
	}
	part := dir + partEnd
	if err := removeTree(part); err != nil {
		return "", err
	}
	err := m.store.Export(ctx, root, part, nil)
	if err == nil {
		err = readOnly(part)
	}
	if err == nil {
		err = os.Rename(part, dir)
	}
	if err != nil {
		return "", errors.Join(err, removeTree(part))
	}
	t.here = true
	return dir, nil
}

// sweep removes trees that were not used for long, but for those that are needed.
func (m *materials) sweep(needed []cid.Cid) {
	keep := make(map[cid.Cid]bool, len(needed))
	for _, c := range needed {
		keep[c] = true
	}
	m.mu.Lock()
	var gone []cid.Cid
	for root, t := range m.trees {
		if t.here && !keep[root] && m.now().Sub(t.used) > materialIdle && len(t.turn) == 0 {
			gone = append(gone, root)
			delete(m.trees, root)
		}
	}
	m.mu.Unlock()
	for _, root := range gone {
		dir := filepath.Join(m.dir, root.String())
		if err := os.Rename(dir, dir+partEnd); err == nil {
			_ = removeTree(dir + partEnd) // what cannot go now goes with the next start
		}
	}
}

// readOnly lets everybody read a tree and nobody write it: processes of other users have it mounted.
func readOnly(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(name, 0o755)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			return os.Chmod(name, 0o444|info.Mode().Perm()&0o111)
		}
		return nil
	})
}

// removeTree removes a directory with all that is in it; one that is not there is no error.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing a tree: %w", err)
	}
	return nil
}
