package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/store"
	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// FS returns a read-only view of a tree: an fs.FS that is also ReadDirFS, StatFS, ReadFileFS and
// ReadLinkFS; its files are io.ReaderAt and io.Seeker. Links inside the tree are followed. Modes are 0444
// and 0555, times zero: a tree does not keep them. With a running Net missing blocks are fetched when they
// are read, for at most Config.ReadTimeout each (ErrUnavailable); without, they are ErrNotFound. The root
// has to be a directory.
func (s *Store) FS(root cid.Cid) (fs.FS, error) {
	if _, err := digest(root); err != nil {
		return nil, err
	}
	v := &view{s: s, root: root, nodes: map[cid.Cid]*tree.Node{}}
	n, err := v.node(root)
	if err != nil {
		return nil, fmt.Errorf("opening tree %s: %w", root, translate(err))
	}
	if !n.Kind.IsDir() {
		return nil, fmt.Errorf("%w: %s is a file, not a directory", ErrUnsupported, root)
	}
	return v, nil
}

// view is a tree as an fs.FS.
type view struct {
	s    *Store
	root cid.Cid

	mu    sync.Mutex
	nodes map[cid.Cid]*tree.Node // the last nodes used
}

var (
	_ fs.ReadDirFS  = (*view)(nil)
	_ fs.StatFS     = (*view)(nil)
	_ fs.ReadFileFS = (*view)(nil)
	_ fs.ReadLinkFS = (*view)(nil)
)

// maxNodes bounds the decoded nodes of a view: some hundred KiB each at worst.
const maxNodes = 256

// maxLinks bounds the symbolic links followed on the way to one path, as Linux does.
const maxLinks = 40

// fetching runs read, and when a block is missing brings it and runs read again.
func (s *Store) fetching(c cid.Cid, read func() error) error {
	err := read()
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	n := s.net.Load()
	d, derr := digest(c)
	if n == nil || derr != nil {
		return errors.Join(err, derr)
	}
	if d == emptyBlock {
		if err := s.putEmpty(); err != nil {
			return err
		}
		return read()
	}
	if errors.Is(err, store.ErrCorrupt) {
		if derr := s.blocks.Drop(d); derr != nil {
			return errors.Join(err, derr)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ReadTimeout)
	defer cancel()
	if err := n.one(ctx, c); err != nil {
		return fmt.Errorf("%w: block %s did not come within %s (%w); check that a holder is connected", ErrUnavailable, c, s.cfg.ReadTimeout, err)
	}
	return read()
}

func (v *view) get(ctx context.Context, c cid.Cid) (b []byte, err error) {
	err = v.s.fetching(c, func() error { b, err = v.s.get(ctx, c); return err })
	return b, err
}

func (v *view) leaf(_ context.Context, c cid.Cid, p []byte, off int64) (k int, err error) {
	d, err := digest(c)
	if err != nil {
		return 0, err
	}
	err = v.s.fetching(c, func() error { k, err = v.s.blocks.ReadAt(d, p, off); return err })
	return k, err
}

func (v *view) node(c cid.Cid) (*tree.Node, error) { return v.load(context.Background(), c) }

func (v *view) load(ctx context.Context, c cid.Cid) (*tree.Node, error) {
	v.mu.Lock()
	n, ok := v.nodes[c]
	v.mu.Unlock()
	if ok {
		return n, nil
	}
	n, err := tree.Load(ctx, v.get, c)
	if err != nil || c.Type() == cid.Raw {
		return n, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.nodes) >= maxNodes { // any will do: the working set is small
		for k := range v.nodes {
			delete(v.nodes, k)
			break
		}
	}
	v.nodes[c] = n
	return n, nil
}

// entry is a resolved path.
type entry struct {
	name string // base name
	cid  cid.Cid
	node *tree.Node // nil for a raw leaf: its size is known without reading it
	size int64
}

func (v *view) entry(name string, l tree.Link) (entry, error) {
	e := entry{name: name, cid: l.CID}
	if l.CID.Type() == cid.Raw {
		d, err := digest(l.CID)
		if err != nil {
			return e, err
		}
		n, err := v.s.blocks.Size(d)
		if err != nil { // not here yet: the parent's word, which is checked when it is read
			n = int(min(l.Tsize, tree.MaxBlock))
		}
		e.size = int64(n)
		return e, nil
	}
	n, err := v.node(l.CID)
	if err != nil {
		return e, err
	}
	e.node = n
	if n.Kind.IsFile() {
		e.size = int64(n.Size)
	}
	if n.Kind == tree.KindSymlink {
		e.size = int64(len(n.Data))
	}
	return e, nil
}

func (e entry) kind() tree.Kind {
	if e.node == nil {
		return tree.KindRaw
	}
	return e.node.Kind
}

// resolve finds a path; follow says whether a link at its end is followed.
func (v *view) resolve(op, name string, follow bool) (entry, error) {
	fail := func(err error) (entry, error) {
		if errors.Is(err, tree.ErrNoEntry) {
			err = fs.ErrNotExist
		}
		return entry{}, &fs.PathError{Op: op, Path: name, Err: translate(err)}
	}
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	rest, at, links := name, ".", 0
	cur, err := v.entry(".", tree.Link{CID: v.root})
	for err == nil && rest != "." && rest != "" {
		if cur.node == nil || !cur.node.Kind.IsDir() {
			return fail(fmt.Errorf("%q is no directory: %w", at, fs.ErrNotExist))
		}
		base, tail, _ := strings.Cut(rest, "/")
		l, lerr := tree.Lookup(context.Background(), v.get, cur.node, base)
		if lerr != nil {
			return fail(lerr)
		}
		var next entry
		if next, err = v.entry(base, l); err != nil {
			break
		}
		if next.kind() != tree.KindSymlink || (tail == "" && !follow) {
			cur, at, rest = next, path.Join(at, base), tail
			continue
		}
		target := string(next.node.Data)
		if links++; links > maxLinks || !linkStays(path.Join(at, base), target) {
			return fail(fmt.Errorf("%w: link %q to %q leads out of the tree or in circles", ErrDenied, path.Join(at, base), target))
		}
		rest, at = path.Join(at, target, tail), "."
		cur, err = v.entry(".", tree.Link{CID: v.root})
	}
	if err != nil {
		return fail(err)
	}
	return cur, nil
}

// Open implements fs.FS.
func (v *view) Open(name string) (fs.File, error) {
	e, err := v.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	if e.kind().IsDir() {
		return &dirFile{v: v, e: e, path: name}, nil
	}
	if e.node == nil {
		if e.node, err = v.rawNode(e); err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: translate(err)}
		}
	}
	return &file{v: v, e: e, path: name}, nil
}

// rawNode shows a lone raw leaf as a file of one link, so that reading it needs no special case.
func (v *view) rawNode(e entry) (*tree.Node, error) {
	d, err := digest(e.cid)
	if err != nil {
		return nil, err
	}
	var size int
	err = v.s.fetching(e.cid, func() error { size, err = v.s.blocks.Size(d); return err })
	return &tree.Node{
		Kind: tree.KindFile, Links: []tree.Link{{CID: e.cid}}, BlockSizes: []uint64{uint64(size)}, Size: uint64(size),
	}, err
}

// Stat implements fs.StatFS.
func (v *view) Stat(name string) (fs.FileInfo, error) {
	e, err := v.resolve("stat", name, true)
	if err != nil {
		return nil, err
	}
	return info{e}, nil
}

// Lstat implements fs.ReadLinkFS.
func (v *view) Lstat(name string) (fs.FileInfo, error) {
	e, err := v.resolve("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return info{e}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (v *view) ReadLink(name string) (string, error) {
	e, err := v.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	if e.kind() != tree.KindSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return string(e.node.Data), nil
}

// ReadFile implements fs.ReadFileFS.
func (v *view) ReadFile(name string) ([]byte, error) {
	f, err := v.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, ok := f.(*file)
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a directory")}
	}
	if r.e.node.Size > 1<<40 {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: read it in parts", ErrTooLarge)}
	}
	return io.ReadAll(r) // grows with what is there: sizes are claims
}

// ReadDir implements fs.ReadDirFS.
func (v *view) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := v.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	return v.list(e, name)
}

func (v *view) list(e entry, name string) ([]fs.DirEntry, error) {
	if !e.kind().IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	var out []fs.DirEntry
	err := tree.Entries(context.Background(), v.get, e.node, func(l tree.Link) error {
		sub, err := v.entry(l.Name, l)
		out = append(out, fs.FileInfoToDirEntry(info{sub}))
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: translate(err)}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

// info is an entry's fs.FileInfo.
type info struct{ e entry }

// Name implements fs.FileInfo.
func (i info) Name() string { return i.e.name }

// Size implements fs.FileInfo.
func (i info) Size() int64 { return i.e.size }

// Mode implements fs.FileInfo.
func (i info) Mode() fs.FileMode {
	switch {
	case i.e.kind().IsDir():
		return fs.ModeDir | 0o555
	case i.e.kind() == tree.KindSymlink:
		return fs.ModeSymlink | 0o777
	}
	return 0o444
}

// ModTime implements fs.FileInfo; trees keep no times.
func (i info) ModTime() time.Time { return time.Time{} }

// IsDir implements fs.FileInfo.
func (i info) IsDir() bool { return i.e.kind().IsDir() }

// Sys implements fs.FileInfo; it is the CID.
func (i info) Sys() any { return i.e.cid }

// file is an open file. ReadAt may be called side by side; Read and Seek share one position.
type file struct {
	v    *view
	e    entry
	path string

	mu     sync.Mutex
	off    int64
	closed bool
	ahead  []byte // content from offset start, so that small reads in order do not ask the index each time
	start  int64
}

// readAhead is how much a small Read takes from the store at once.
const readAhead = 64 << 10

var (
	_ io.ReaderAt = (*file)(nil)
	_ io.Seeker   = (*file)(nil)
)

// Stat implements fs.File.
func (f *file) Stat() (fs.FileInfo, error) { return info{f.e}, nil }

// Read implements fs.File.
func (f *file) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, &fs.PathError{Op: "read", Path: f.path, Err: fs.ErrClosed}
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := 0, error(nil)
	if len(p) >= readAhead {
		n, err = f.readAt(p, f.off)
	} else {
		if f.off < f.start || f.off >= f.start+int64(len(f.ahead)) {
			if f.ahead == nil {
				f.ahead = make([]byte, 0, min(readAhead, max(f.e.size, 1)))
			}
			f.start = f.off
			var k int
			k, err = f.readAt(f.ahead[:cap(f.ahead)], f.off)
			f.ahead = f.ahead[:k]
		}
		if f.off-f.start < int64(len(f.ahead)) {
			n = copy(p, f.ahead[f.off-f.start:])
		}
	}
	f.off += int64(n)
	if n > 0 {
		err = nil // of a later part, or the end: the next Read meets it
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	if closed {
		return 0, &fs.PathError{Op: "read", Path: f.path, Err: fs.ErrClosed}
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: f.path, Err: fs.ErrInvalid}
	}
	return f.readAt(p, off)
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	n, err := tree.ReadFileAt(context.Background(), f.v.load, f.v.leaf, f.e.node, p, uint64(off))
	if err != nil && !errors.Is(err, io.EOF) {
		err = &fs.PathError{Op: "read", Path: f.path, Err: translate(err)}
	}
	return n, err
}

// Seek implements io.Seeker.
func (f *file) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += int64(f.e.node.Size)
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, &fs.PathError{Op: "seek", Path: f.path, Err: fs.ErrInvalid}
	}
	f.off = offset
	return offset, nil
}

// Close implements fs.File.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.path, Err: fs.ErrClosed}
	}
	f.closed = true
	return nil
}

// dirFile is an open directory.
type dirFile struct {
	v    *view
	e    entry
	path string

	list []fs.DirEntry
	read bool
}

// Stat implements fs.File.
func (d *dirFile) Stat() (fs.FileInfo, error) { return info{d.e}, nil }

// Read implements fs.File; directories have no bytes.
func (d *dirFile) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path, Err: errors.New("is a directory")}
}

// Close implements fs.File.
func (d *dirFile) Close() error { return nil }

// ReadDir implements fs.ReadDirFile.
func (d *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		list, err := d.v.list(d.e, d.path)
		if err != nil {
			return nil, err
		}
		d.list, d.read = list, true
	}
	if n <= 0 {
		out := d.list
		d.list = nil
		return out, nil
	}
	if len(d.list) == 0 {
		return nil, io.EOF
	}
	out := d.list[:min(n, len(d.list))]
	d.list = d.list[len(out):]
	return out, nil
}
