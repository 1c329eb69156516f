package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
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
	runs  string // directory on the disk for runs that outlive this process
	fast  string // directory in memory, empty for none
	slots uint64
	held  *os.File // locked while fast is in use, so that others can tell what a crash has left
}

// newScratch makes the directories empty: what is in them was left by a crash.
func newScratch(dir, runs, memory string, slots int) (*scratch, error) {
	s := &scratch{disk: dir, runs: runs, slots: uint64(slots)}
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
	s.claim(memory)
	return s, nil
}

// scratchLock is the file in a directory in memory whose lock says that its node lives.
const scratchLock = ".lock"

// claim locks the directory in memory, and removes those that nodes of this user left there which are dead: their
// data directories may be gone, so that nobody else would.
func (s *scratch) claim(memory string) {
	if s.fast == "" {
		return
	}
	f, err := lockScratch(s.fast, os.O_CREATE)
	if err != nil {
		s.fast = ""
		return
	}
	s.held = f
	left, _ := filepath.Glob(filepath.Join(memory, "gridbeam-"+strconv.Itoa(os.Getuid())+"-*"))
	for _, dir := range left {
		if dir == s.fast {
			continue
		}
		if f, err := lockScratch(dir, 0); err == nil {
			_ = os.RemoveAll(dir) // what cannot go now goes another time
			_ = f.Close()
		}
	}
}

func lockScratch(dir string, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, scratchLock), os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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

// runDir makes or finds the output directory of a run that may outlive this process.
func (s *scratch) runDir(id protocol.LeaseID) (string, error) {
	dir := filepath.Join(s.runs, hex.EncodeToString(id[:]))
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return dir, nil
	}
	return dir, err
}

// keepRuns removes the directories of runs but for those that are known.
func (s *scratch) keepRuns(known func(name string) bool) error {
	if err := os.MkdirAll(s.runs, 0o700); err != nil {
		return fmt.Errorf("making the directory of runs: %w", err)
	}
	entries, err := os.ReadDir(s.runs)
	if err != nil {
		return fmt.Errorf("reading the directory of runs: %w", err)
	}
	for _, e := range entries {
		if !known(e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.runs, e.Name())))
		}
	}
	return err
}

// discard removes a run's directory of its own, or clears that of a slot.
func (s *scratch) discard(dir string) error {
	if filepath.Dir(dir) == s.runs {
		return os.RemoveAll(dir)
	}
	return s.clear(dir)
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
	if s.held != nil {
		_ = s.held.Close()
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
	some, err := readSmall(dir)
	switch {
	case errors.Is(err, errNotSmall):
		tree, err := c.store.ImportDir(ctx, dir, nil)
		if err != nil {
			return ending{}, outputFault(err)
		}
		return c.pack(tree)
	case err != nil:
		return ending{}, outputFault(err)
	case len(some.files) == 0:
		return c.nothing()
	}
	e, ok, err := light(some.files)
	if err != nil {
		return ending{}, err
	}
	if !ok {
		tree, err := c.store.AddFiles(some.files)
		if err != nil {
			return ending{}, outputFault(err)
		}
		if e, err = c.pack(tree); err != nil {
			return ending{}, err
		}
	}
	e.clean = some.remove(dir)
	return e, nil
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

// small are outputs in memory.
type small struct {
	files []volumes.File
	dirs  []string // parents before children
	left  int      // bytes that may follow
}

// readSmall reads the files below a directory; errNotSmall when they are large, many, or of a kind that only a
// full import treats rightly. Nobody writes there any more.
func readSmall(dir string) (*small, error) {
	s := &small{left: inMemory}
	return s, s.walk(dir, "")
}

func (s *small) walk(dir, below string) error {
	entries, err := os.ReadDir(filepath.Join(dir, below))
	if err != nil {
		return err
	}
	if len(entries) == 0 && below != "" {
		return errNotSmall // an empty directory: AddFiles knows files only
	}
	for _, e := range entries {
		name := path.Join(below, e.Name())
		if e.IsDir() {
			s.dirs = append(s.dirs, name)
			if err := s.walk(dir, name); err != nil {
				return err
			}
			continue
		}
		if !e.Type().IsRegular() {
			return errNotSmall
		}
		b, err := readWhole(filepath.Join(dir, name), s.left-256)
		if err != nil {
			return err
		}
		s.left -= len(b) + 256
		s.files = append(s.files, volumes.File{Path: name, Data: b})
	}
	return nil
}

// readWhole reads a regular file of at most limit bytes, without what os.File does beyond that: most chunks write
// one small file, and this is a good part of what it costs to take it.
func readWhole(name string, limit int) ([]byte, error) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Size > int64(limit) {
		return nil, errNotSmall
	}
	b := make([]byte, st.Size)
	for n := 0; n < len(b); {
		m, err := syscall.Read(fd, b[n:])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			return nil, &fs.PathError{Op: "read", Path: name, Err: cmp.Or(err, io.ErrUnexpectedEOF)}
		}
		n += m
	}
	return b, nil
}

// remove deletes what was read; what it cannot delete is left to scratch.clear.
func (s *small) remove(dir string) (clean bool) {
	clean = true
	for i := range s.files {
		clean = syscall.Unlink(filepath.Join(dir, s.files[i].Path)) == nil && clean
	}
	for _, name := range slices.Backward(s.dirs) {
		clean = syscall.Rmdir(filepath.Join(dir, name)) == nil && clean
	}
	return clean
}
