package wasm

import (
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
)

const (
	maxNameBytes = 255
	maxPathBytes = 4096
)

// outFS is an instance's /out: a directory of the host that starts empty and that nobody else touches.
//
// The tree of names and sizes lives in memory, so that what the module sees (sizes, order of entries, inode
// numbers, times, which are 0) is the same on every host, most calls cost no system call, and the limits
// are exact. The host's directory is made with the first file, and reached through an os.Root, which
// follows no link out of it; links cannot be made at all.
//
// A read-only outFS without a directory serves "/", which shows where the mounts are.
type outFS struct {
	experimentalsys.UnimplementedFS

	run      *run
	dir      string // host path; "" makes the tree read-only
	root     *os.Root
	top      *outNode
	lastNode uint64
}

var _ experimentalsys.FS = (*outFS)(nil)

// outNode is a file or a directory. It keeps its size after its name is gone and until it is closed.
type outNode struct {
	ino      uint64
	children map[string]*outNode // of a directory, else nil
	size     int64
	open     int
	unlinked bool
}

func (n *outNode) dir() bool { return n.children != nil }

func (n *outNode) stat() sys.Stat_t {
	st := sys.Stat_t{Dev: 1, Ino: n.ino, Mode: 0o644, Nlink: 1, Size: n.size}
	if n.dir() {
		st.Mode = fs.ModeDir | 0o755
	}
	return st
}

func newOutFS(r *run, dir string) *outFS {
	f := &outFS{run: r, dir: dir}
	f.top = f.node(true)
	return f
}

func (f *outFS) node(dir bool) *outNode {
	f.lastNode++
	n := &outNode{ino: f.lastNode}
	if dir {
		n.children = map[string]*outNode{}
	}
	return n
}

// close closes the host's directory; files close with their instance.
func (f *outFS) close() {
	if f.root != nil {
		_ = f.root.Close()
	}
}

// find splits a path into its parent directory and its name and looks both up. The node is nil if there is
// none; for the top the name is ".".
func (f *outFS) find(p string) (parent *outNode, name, clean string, n *outNode, errno experimentalsys.Errno) {
	clean = path.Clean(strings.TrimPrefix(p, "/"))
	switch {
	case !fs.ValidPath(clean):
		return nil, "", "", nil, experimentalsys.EPERM
	case len(clean) > maxPathBytes:
		return nil, "", "", nil, experimentalsys.ENAMETOOLONG
	case !utf8.ValidString(clean) || strings.ContainsRune(clean, 0):
		return nil, "", "", nil, experimentalsys.EINVAL
	case clean == ".":
		return nil, ".", clean, f.top, 0
	}
	parent = f.top
	for rest := clean; ; {
		var more bool
		name, rest, more = strings.Cut(rest, "/")
		if len(name) > maxNameBytes {
			return nil, "", "", nil, experimentalsys.ENAMETOOLONG
		}
		child := parent.children[name]
		if !more {
			if child != nil && !child.dir() && strings.HasSuffix(p, "/") {
				return nil, "", "", nil, experimentalsys.ENOTDIR
			}
			return parent, name, clean, child, 0
		}
		if child == nil {
			return nil, "", "", nil, experimentalsys.ENOENT
		}
		if !child.dir() {
			return nil, "", "", nil, experimentalsys.ENOTDIR
		}
		parent = child
	}
}

// writable says whether anything can be changed now, and makes the host's directory on first use.
func (f *outFS) writable() experimentalsys.Errno {
	if f.dir == "" {
		return experimentalsys.EROFS
	}
	if f.run.stopped() {
		return experimentalsys.EINTR
	}
	if f.root != nil {
		return 0
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		return f.run.hostFault("making the output directory", err)
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return f.run.hostFault("opening the output directory", err)
	}
	f.root = root
	return 0
}

// OpenFile implements experimentalsys.FS.
func (f *outFS) OpenFile(p string, flag experimentalsys.Oflag, _ fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	parent, name, clean, n, errno := f.find(p)
	if errno != 0 {
		return nil, errno
	}
	write := flag&(experimentalsys.O_WRONLY|experimentalsys.O_RDWR) != 0
	switch {
	case n == nil && flag&experimentalsys.O_CREAT == 0:
		return nil, experimentalsys.ENOENT
	case n != nil && flag&experimentalsys.O_CREAT != 0 && flag&experimentalsys.O_EXCL != 0:
		return nil, experimentalsys.EEXIST
	case n != nil && n.dir() && (write || flag&(experimentalsys.O_CREAT|experimentalsys.O_TRUNC) != 0):
		return nil, experimentalsys.EISDIR
	case n != nil && !n.dir() && flag&experimentalsys.O_DIRECTORY != 0:
		return nil, experimentalsys.ENOTDIR
	case n == nil && strings.HasSuffix(p, "/"):
		return nil, experimentalsys.EISDIR
	}
	if errno := f.run.openFile(); errno != 0 {
		return nil, errno
	}
	if n != nil && n.dir() {
		return &outDir{run: f.run, node: n}, 0
	}
	file, errno := f.openRegular(parent, name, clean, n, flag)
	if errno != 0 {
		f.run.closeFile()
		return nil, errno
	}
	return file, 0
}

func (f *outFS) openRegular(parent *outNode, name, clean string, n *outNode, flag experimentalsys.Oflag) (*outFile, experimentalsys.Errno) {
	if errno := f.writable(); errno != 0 {
		return nil, errno
	}
	created := n == nil
	flags := os.O_RDWR
	if created {
		if errno := f.run.addFile(); errno != 0 {
			return nil, errno
		}
		flags |= os.O_CREATE | os.O_EXCL
	}
	host, err := f.root.OpenFile(clean, flags, 0o600)
	if err != nil {
		if created {
			f.run.removeFile()
		}
		return nil, f.run.hostFault("opening an output file", err)
	}
	if created {
		n = f.node(false)
		parent.children[name] = n
	}
	n.open++
	file := &outFile{
		run: f.run, node: n, host: host,
		read:  flag&experimentalsys.O_WRONLY == 0,
		write: flag&(experimentalsys.O_WRONLY|experimentalsys.O_RDWR) != 0,
		add:   flag&experimentalsys.O_APPEND != 0,
	}
	if flag&experimentalsys.O_TRUNC != 0 && n.size > 0 {
		if errno := file.resize(0); errno != 0 {
			n.open--
			_ = host.Close()
			return nil, errno
		}
	}
	return file, 0
}

// Stat implements experimentalsys.FS.
func (f *outFS) Stat(p string) (sys.Stat_t, experimentalsys.Errno) {
	_, _, _, n, errno := f.find(p)
	if errno == 0 && n == nil {
		errno = experimentalsys.ENOENT
	}
	if errno != 0 {
		return sys.Stat_t{}, errno
	}
	return n.stat(), 0
}

// Lstat implements experimentalsys.FS; there are no links.
func (f *outFS) Lstat(p string) (sys.Stat_t, experimentalsys.Errno) { return f.Stat(p) }

// Mkdir implements experimentalsys.FS.
func (f *outFS) Mkdir(p string, _ fs.FileMode) experimentalsys.Errno {
	parent, name, clean, n, errno := f.find(p)
	if errno != 0 {
		return errno
	}
	if n != nil {
		return experimentalsys.EEXIST
	}
	if errno := f.writable(); errno != 0 {
		return errno
	}
	if errno := f.run.addFile(); errno != 0 {
		return errno
	}
	if err := f.root.Mkdir(clean, 0o700); err != nil {
		f.run.removeFile()
		return f.run.hostFault("making an output directory", err)
	}
	parent.children[name] = f.node(true)
	return 0
}

// Rmdir implements experimentalsys.FS.
func (f *outFS) Rmdir(p string) experimentalsys.Errno {
	parent, name, clean, n, errno := f.find(p)
	switch {
	case errno != 0:
		return errno
	case n == nil:
		return experimentalsys.ENOENT
	case !n.dir():
		return experimentalsys.ENOTDIR
	case len(n.children) > 0:
		return experimentalsys.ENOTEMPTY
	case parent == nil:
		return experimentalsys.EPERM
	}
	return f.remove(parent, name, clean, n)
}

// Unlink implements experimentalsys.FS.
func (f *outFS) Unlink(p string) experimentalsys.Errno {
	parent, name, clean, n, errno := f.find(p)
	switch {
	case errno != 0:
		return errno
	case n == nil:
		return experimentalsys.ENOENT
	case n.dir():
		return experimentalsys.EISDIR
	}
	return f.remove(parent, name, clean, n)
}

func (f *outFS) remove(parent *outNode, name, clean string, n *outNode) experimentalsys.Errno {
	if errno := f.writable(); errno != 0 {
		return errno
	}
	if err := f.root.Remove(clean); err != nil {
		return f.run.hostFault("removing an output file", err)
	}
	delete(parent.children, name)
	f.run.unlink(n)
	return 0
}

// Rename implements experimentalsys.FS.
func (f *outFS) Rename(from, to string) experimentalsys.Errno {
	fromParent, fromName, fromClean, n, errno := f.find(from)
	if errno != 0 {
		return errno
	}
	toParent, toName, toClean, old, errno := f.find(to)
	switch {
	case errno != 0:
		return errno
	case n == nil:
		return experimentalsys.ENOENT
	case fromParent == nil || toParent == nil:
		return experimentalsys.EPERM
	case n == old:
		return 0
	case n.dir() && strings.HasPrefix(toClean+"/", fromClean+"/"):
		return experimentalsys.EINVAL
	case old != nil && n.dir() && !old.dir():
		return experimentalsys.ENOTDIR
	case old != nil && !n.dir() && old.dir():
		return experimentalsys.EISDIR
	case old != nil && len(old.children) > 0:
		return experimentalsys.ENOTEMPTY
	case old == nil && !n.dir() && strings.HasSuffix(to, "/"):
		return experimentalsys.ENOTDIR
	}
	if errno := f.writable(); errno != 0 {
		return errno
	}
	if err := f.root.Rename(fromClean, toClean); err != nil {
		return f.run.hostFault("renaming an output file", err)
	}
	delete(fromParent.children, fromName)
	if old != nil {
		f.run.unlink(old)
	}
	toParent.children[toName] = n
	return 0
}

// Link implements experimentalsys.FS: links are refused, since an output is a tree of files.
func (f *outFS) Link(string, string) experimentalsys.Errno { return experimentalsys.EPERM }

// Symlink implements experimentalsys.FS: links are refused.
func (f *outFS) Symlink(string, string) experimentalsys.Errno { return experimentalsys.EPERM }

// Readlink implements experimentalsys.FS: nothing is a link.
func (f *outFS) Readlink(p string) (string, experimentalsys.Errno) {
	if _, errno := f.Stat(p); errno != 0 {
		return "", errno
	}
	return "", experimentalsys.EINVAL
}

// Chmod implements experimentalsys.FS: modes are not kept.
func (f *outFS) Chmod(p string, _ fs.FileMode) experimentalsys.Errno { return f.Utimens(p, 0, 0) }

// Utimens implements experimentalsys.FS: times are not kept.
func (f *outFS) Utimens(p string, _, _ int64) experimentalsys.Errno {
	_, errno := f.Stat(p)
	return errno
}

// addDirs makes a directory and its parents in a tree that has no place on the host.
func (f *outFS) addDirs(target string) {
	n := f.top
	for name := range strings.SplitSeq(strings.Trim(target, "/"), "/") {
		if n.children[name] == nil {
			n.children[name] = f.node(true)
		}
		n = n.children[name]
	}
}
