package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/store"
	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Progress is told how far a long operation has come, from one goroutine at a time. It may be nil.
type Progress func(files, bytes uint64)

func (p Progress) tell(files, bytes uint64) {
	if p != nil {
		p(files, bytes)
	}
}

// maxListed is how many paths an error lists.
const maxListed = 1000

// ImportDir imports a directory of the disk, see Import. It never leaves the directory, whatever links say.
func (s *Store) ImportDir(ctx context.Context, dir string, progress Progress) (Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return Tree{}, fmt.Errorf("importing: %w", err)
	}
	defer root.Close()
	return s.Import(ctx, root.FS(), progress)
}

// Import makes a tree of all files below fsys and makes it durable. Equal content gives an equal root.
// Symbolic links inside the tree are kept if fsys is an fs.ReadLinkFS; links that lead out of it, devices,
// sockets and pipes are refused before anything is read, with ErrUnsupported listing them. It returns also
// ErrNoSpace and ErrUnsupported for names that a tree cannot hold. Modes and times are not kept.
func (s *Store) Import(ctx context.Context, fsys fs.FS, progress Progress) (Tree, error) {
	if err := importable(ctx, fsys); err != nil {
		return Tree{}, err
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	im := &importer{s: s, fsys: fsys, progress: progress, seen: map[store.Digest]struct{}{}}
	ref, err := im.dir(ctx, ".")
	if err != nil {
		return Tree{}, fmt.Errorf("importing: %w", translate(err))
	}
	t := Tree{Root: ref.CID, Bytes: im.bytes, Blocks: uint64(len(im.seen)), Files: im.files}
	if err := s.blocks.Put(rootRecord(t)); err != nil {
		return Tree{}, fmt.Errorf("importing: %w", translate(err))
	}
	return t, s.Sync(ctx)
}

// importable walks names only.
func importable(ctx context.Context, fsys fs.FS) error {
	var bad []string
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		why := ""
		switch t := d.Type(); {
		case name != "." && tree.CheckName(d.Name()) != nil:
			why = "a name that a tree cannot hold"
		case t.IsDir() || t.IsRegular():
		case t&fs.ModeSymlink != 0:
			why = linkFault(fsys, name)
		default:
			why = "a device, socket or pipe"
		}
		if why != "" && len(bad) < maxListed {
			bad = append(bad, fmt.Sprintf("%q is %s", name, why))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: remove or replace before importing: %s", ErrUnsupported, strings.Join(bad, "; "))
	}
	return nil
}

func linkFault(fsys fs.FS, name string) string {
	target, err := fs.ReadLink(fsys, name)
	if err != nil {
		return "a symbolic link that cannot be read"
	}
	if !linkStays(name, target) {
		return fmt.Sprintf("a symbolic link out of the tree to %q", target)
	}
	return ""
}

// linkStays reports whether the target of a link at name stays inside the tree, by its words alone.
func linkStays(name, target string) bool {
	if target == "" || path.IsAbs(target) || len(target) > 4096 || strings.ContainsRune(target, 0) {
		return false
	}
	at := path.Join(path.Dir(name), target)
	return at != ".." && !strings.HasPrefix(at, "../")
}

type importer struct {
	s        *Store
	fsys     fs.FS
	progress Progress
	files    uint64
	bytes    uint64

	mu   sync.Mutex
	seen map[store.Digest]struct{}
}

func (im *importer) put(c cid.Cid, data []byte, children []tree.Link) error {
	b, err := toBlock(c, data, children)
	if err != nil {
		return err
	}
	im.mu.Lock()
	im.seen[b.Digest] = struct{}{}
	im.mu.Unlock()
	return im.s.blocks.Put(nil, b)
}

func (im *importer) dir(ctx context.Context, name string) (tree.Ref, error) {
	if err := ctx.Err(); err != nil {
		return tree.Ref{}, err
	}
	list, err := fs.ReadDir(im.fsys, name)
	if err != nil {
		return tree.Ref{}, err
	}
	entries := make([]tree.Entry, 0, len(list))
	for _, d := range list {
		p := path.Join(name, d.Name())
		var ref tree.Ref
		switch {
		case d.IsDir():
			ref, err = im.dir(ctx, p)
		case d.Type()&fs.ModeSymlink != 0:
			ref, err = im.link(p)
		default:
			ref, err = im.file(ctx, p)
		}
		if err != nil {
			return tree.Ref{}, err
		}
		entries = append(entries, tree.Entry{Name: d.Name(), Ref: ref})
	}
	return tree.Directory(entries, im.put)
}

func (im *importer) link(name string) (tree.Ref, error) {
	target, err := fs.ReadLink(im.fsys, name)
	if err != nil {
		return tree.Ref{}, err
	}
	if !linkStays(name, target) { // it changed since importable looked
		return tree.Ref{}, fmt.Errorf("%w: %q is a symbolic link out of the tree", ErrUnsupported, name)
	}
	return tree.Symlink(target, im.put)
}

func (im *importer) file(ctx context.Context, name string) (tree.Ref, error) {
	f, err := im.fsys.Open(name)
	if err != nil {
		return tree.Ref{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return tree.Ref{}, errors.Join(fmt.Errorf("%w: %q is no regular file", ErrUnsupported, name), err)
	}
	ref, err := tree.File(ctx, f, im.put)
	if err != nil {
		return ref, fmt.Errorf("%s: %w", name, err)
	}
	im.files++
	im.bytes += ref.Size
	im.progress.tell(im.files, im.bytes)
	return ref, nil
}

// File is a file in memory.
type File struct {
	// Path is its slash-separated path in the tree, as fs.ValidPath wants it.
	Path string
	// Data is its content.
	Data []byte
}

// AddFiles makes a tree of files in memory, in any order; none gives the empty directory. It is for the
// outputs of a chunk: nothing waits for the disk, the tree is durable after the next Sync. It returns
// ErrUnsupported for paths that a tree cannot hold, ErrConflict for one that stands twice or is also a
// directory, and ErrNoSpace.
func (s *Store) AddFiles(files []File) (Tree, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	add := adder{seen: map[store.Digest]struct{}{}}
	t, err := add.tree(files)
	if err != nil {
		return Tree{}, err
	}
	return t, translate(s.blocks.Put(rootRecord(t), add.blocks...))
}

// MakeTree makes the tree that AddFiles makes and returns its blocks, children before parents, without keeping
// them: for a small tree that travels inside a message. Its errors are AddFiles'.
func MakeTree(files []File) (Tree, []Block, error) {
	add := adder{seen: map[store.Digest]struct{}{}, carry: true}
	t, err := add.tree(files)
	return t, add.carried, err
}

// adder collects the blocks of a tree in memory.
type adder struct {
	blocks  []store.Block
	seen    map[store.Digest]struct{}
	carry   bool // blocks go to carried
	carried []Block
}

// tree makes the tree of files, in any order.
func (a *adder) tree(files []File) (Tree, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	t := Tree{Files: uint64(len(files))}
	for i, f := range files {
		t.Bytes += uint64(len(f.Data))
		if f.Path == "." || !fs.ValidPath(f.Path) {
			return Tree{}, fmt.Errorf("%w: path %q; use relative paths (no . or .. in them)", ErrUnsupported, f.Path)
		}
		if i > 0 && f.Path == files[i-1].Path {
			return Tree{}, fmt.Errorf("%w: path %q stands twice", ErrConflict, f.Path)
		}
	}
	ref, err := a.dir(files, 0)
	if err != nil {
		return Tree{}, translate(err)
	}
	t.Root, t.Blocks = ref.CID, uint64(len(a.seen))
	return t, nil
}

func (a *adder) put(c cid.Cid, data []byte, children []tree.Link) error {
	b, err := toBlock(c, data, children)
	if err != nil {
		return err
	}
	if _, ok := a.seen[b.Digest]; !ok {
		a.seen[b.Digest] = struct{}{}
		if a.carry {
			a.carried = append(a.carried, Block{CID: c, Data: data})
		} else {
			a.blocks = append(a.blocks, b)
		}
	}
	return nil
}

// dir makes the directory of files, whose paths agree before offset at.
func (a *adder) dir(files []File, at int) (tree.Ref, error) {
	groups := map[string][]File{} // sorting by path does not keep a directory's files together: "a", "a.b", "a/c"
	for _, f := range files {
		name, _, _ := strings.Cut(f.Path[at:], "/")
		groups[name] = append(groups[name], f)
	}
	entries := make([]tree.Entry, 0, len(groups))
	for name, group := range groups {
		var ref tree.Ref
		var err error
		if file := group[0]; len(file.Path) == at+len(name) { // the shortest path sorts first
			if len(group) > 1 {
				return ref, fmt.Errorf("%w: path %q is a file and a directory", ErrConflict, file.Path)
			}
			ref, err = tree.Bytes(file.Data, a.put)
		} else {
			ref, err = a.dir(group, at+len(name)+1)
		}
		if err != nil {
			return ref, err
		}
		entries = append(entries, tree.Entry{Name: name, Ref: ref})
	}
	return tree.Directory(entries, a.put)
}
