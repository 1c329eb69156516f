package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

const (
	// inMemory is the size up to which outputs become a tree in memory; larger ones are streamed.
	inMemory = 1 << 20
	// inlineTree is the size up to which a result's tree travels with it (contract of results).
	inlineTree = 64 << 10
	// scratchShare is which part of what is free in memory outputs of all slots together may fill.
	scratchShare = 4
)

// scratch gives out directories for outputs: in memory for jobs whose outputs fit there, else on disk.
type scratch struct {
	disk  string // directory on the disk
	fast  string // directory in memory, empty for none
	slots uint64
}

// newScratch makes the directories empty: what is in them was left by a crash.
func newScratch(dir, memory string, slots int) (*scratch, error) {
	s := &scratch{disk: dir, slots: uint64(slots)}
	if memory != "" && onTmpfs(memory) {
		h := fnv.New64a()
		_, _ = h.Write([]byte(dir))
		s.fast = filepath.Join(memory, "gridbeam-"+strconv.Itoa(os.Getuid())+"-"+strconv.FormatUint(h.Sum64(), 36))
	}
	for _, dir := range []string{s.disk, s.fast} {
		if dir == "" {
			continue
		}
		err := os.RemoveAll(dir)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil && dir == s.fast { // somebody else's, or no room: the disk will do
			s.fast = ""
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("clearing the work directory: %w", err)
		}
	}
	return s, nil
}

// dir makes the output directory of a slot for a job that may write so many bytes; there is one run a slot.
func (s *scratch) dir(slot int, limit uint64) (string, error) {
	base := s.disk
	if s.fast != "" {
		var st syscall.Statfs_t
		if syscall.Statfs(s.fast, &st) == nil && limit*s.slots <= st.Bavail*uint64(st.Bsize)/scratchShare {
			base = s.fast
		}
	}
	dir := filepath.Join(base, strconv.Itoa(slot))
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) { // empty: clear has left it for the next run
		return dir, nil
	}
	return dir, err
}

// clear removes what a run has written, and leaves the directory.
func (s *scratch) clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// close removes the directories.
func (s *scratch) close() {
	for _, dir := range []string{s.disk, s.fast} {
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
}

// collector makes trees of outputs.
type collector struct {
	store *volumes.Store
}

// errNotSmall stops reading outputs into memory.
var errNotSmall = errors.New("node: outputs do not fit into memory")

// collect makes a tree of a run's output directory: a directory by index for each input that wrote something. An
// empty directory that the job has made is kept, whatever the size of the rest, so that the tree does not depend
// on how inputs were cut into chunks.
func (c *collector) collect(ctx context.Context, dir string, written bool) (ending, error) {
	if !written {
		return c.nothing()
	}
	files, err := readSmall(dir)
	switch {
	case errors.Is(err, errNotSmall):
		tree, err := c.store.ImportDir(ctx, dir, nil)
		if err != nil {
			return ending{}, outputFault(err)
		}
		return c.pack(tree)
	case err != nil:
		return ending{}, outputFault(err)
	case len(files) == 0:
		return c.nothing()
	}
	if e, ok, err := light(files); ok || err != nil {
		return e, err
	}
	tree, err := c.store.AddFiles(files)
	if err != nil {
		return ending{}, outputFault(err)
	}
	return c.pack(tree)
}

// light makes the tree of outputs that travel with their result, without keeping it here: the bridge keeps it
// before it answers, and until then the blocks are in memory. A crash in between runs the lease again.
func light(files []volumes.File) (e ending, ok bool, err error) {
	size := 0
	for _, f := range files {
		size += len(f.Data)
	}
	if size > inlineTree {
		return e, false, nil
	}
	tree, blocks, err := volumes.MakeTree(files)
	if err != nil {
		return e, false, outputFault(err)
	}
	for _, b := range blocks {
		e.inline += len(b.Data)
	}
	if e.inline > inlineTree {
		return ending{}, false, nil
	}
	e.result.Root, e.blocks = tree.Root, blocks
	return e, true, nil
}

func outputFault(err error) error {
	why := protocol.ReasonOutputInvalid
	switch {
	case errors.Is(err, volumes.ErrNoSpace) || errors.Is(err, syscall.ENOSPC):
		why = protocol.ReasonNodeDiskFull
	case errors.Is(err, context.Canceled) || errors.Is(err, volumes.ErrClosed) || errors.Is(err, fs.ErrPermission):
		why = protocol.ReasonBackendFailed
	}
	return fail(why, "keeping the outputs: %w", err)
}

// nothing is the ending of a run without outputs: the empty directory.
func (c *collector) nothing() (ending, error) {
	e, _, err := light(nil)
	return e, err
}

// pack takes the blocks of a small tree along.
func (c *collector) pack(tree volumes.Tree) (e ending, err error) {
	e.result.Root = tree.Root
	if tree.Bytes > inlineTree {
		e.heavy = true
		return e, nil
	}
	for b, err := range c.store.Blocks(tree.Root) {
		if err != nil {
			return e, outputFault(err)
		}
		if e.inline += len(b.Data); e.inline > inlineTree {
			e.heavy, e.blocks, e.inline = true, nil, 0
			return e, nil
		}
		e.blocks = append(e.blocks, b)
	}
	return e, nil
}

// again takes the blocks of a tree along that was made before a restart.
func (c *collector) again(root cid.Cid) (ending, error) {
	if !root.Defined() {
		return ending{}, nil
	}
	tree, err := c.store.Stat(context.Background(), root)
	if err != nil {
		return ending{}, err
	}
	return c.pack(tree)
}

// readSmall reads the files below a directory; errNotSmall when they are large, many, or of a kind that only a
// full import treats rightly.
func readSmall(dir string) (files []volumes.File, err error) {
	left := inMemory
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return files, walkSmall(root, ".", &files, &left)
}

func walkSmall(root *os.Root, dir string, files *[]volumes.File, left *int) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	_ = d.Close()
	if err != nil {
		return err
	}
	if len(entries) == 0 && dir != "." {
		return errNotSmall // an empty directory: AddFiles knows files only
	}
	for _, e := range entries {
		name := e.Name()
		if dir != "." {
			name = dir + "/" + name
		}
		if e.IsDir() {
			if err := walkSmall(root, name, files, left); err != nil {
				return err
			}
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if *left -= int(min(info.Size(), inMemory)) + 256; *left < 0 || !info.Mode().IsRegular() {
			return errNotSmall
		}
		b, err := root.ReadFile(name)
		if err != nil {
			return err
		}
		*files = append(*files, volumes.File{Path: name, Data: b})
	}
	return nil
}
