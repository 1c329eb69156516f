package protocol

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A tree of files crosses the bridge's API as a tar stream: volumes on their way in, results on their way out.
// It holds regular files, directories and relative symbolic links, without owners, times and modes; equal trees
// are equal streams.

// Errors of a tree's stream.
var (
	// ErrBadTree means a stream that is no tar, or an entry that a tree cannot hold; the text names it.
	ErrBadTree = errors.New("protocol: bad tree")
	// ErrTreeTooLarge means more bytes or entries than TreeLimits admit.
	ErrTreeTooLarge = errors.New("protocol: tree is too large")
)

// TreeLimits bound what UnpackTree accepts; 0 is no bound.
type TreeLimits struct {
	// Bytes bounds the sum of file sizes.
	Bytes int64
	// Entries bounds files, directories and links together.
	Entries int
}

// TreeProgress is told how many files and bytes have passed. It may be nil and must be quick.
type TreeProgress func(files int, bytes int64)

// maxTreePath bounds a path, maxTreeName one name in it (volumes.md 4).
const (
	maxTreePath = 4096
	maxTreeName = 255
)

// PackTree writes all files below fsys as a tar stream, in the order of fs.WalkDir. Links are kept if fsys is an
// fs.ReadLinkFS. Devices, sockets and pipes and links that lead out of the tree are ErrBadTree; so is a file that
// changes its size meanwhile.
func PackTree(w io.Writer, fsys fs.FS, progress TreeProgress) error {
	p := treePacker{tw: tar.NewWriter(w), fsys: fsys, progress: progress}
	if err := fs.WalkDir(fsys, ".", p.entry); err != nil {
		return err
	}
	if err := p.tw.Close(); err != nil {
		return fmt.Errorf("ending the stream: %w", err)
	}
	return nil
}

type treePacker struct {
	tw       *tar.Writer
	fsys     fs.FS
	progress TreeProgress
	files    int
	bytes    int64
}

func (p *treePacker) entry(name string, d fs.DirEntry, err error) error {
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	if name == "." {
		return nil
	}
	h := &tar.Header{Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	switch t := d.Type(); {
	case t.IsDir():
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o755
		return p.header(h)
	case t.IsRegular():
		h.Typeflag, h.Mode = tar.TypeReg, 0o644
		return p.file(h)
	case t&fs.ModeSymlink != 0:
		target, err := fs.ReadLink(p.fsys, name)
		if err != nil {
			return fmt.Errorf("reading the link %s: %w", name, err)
		}
		if !linkStaysInside(name, target) {
			return fmt.Errorf("%w: the link %q leads to %.200q, out of the tree; remove it or put the file in its place", ErrBadTree, name, target)
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, target, 0o777
		return p.header(h)
	default:
		return fmt.Errorf("%w: %q is a %s; only files, directories and links can be sent", ErrBadTree, name, kindOf(t))
	}
}

func kindOf(t fs.FileMode) string {
	switch {
	case t&fs.ModeNamedPipe != 0:
		return "pipe"
	case t&fs.ModeSocket != 0:
		return "socket"
	case t&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

func (p *treePacker) header(h *tar.Header) error {
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("sending %s: %w", h.Name, err)
	}
	return nil
}

func (p *treePacker) file(h *tar.Header) error {
	f, err := p.fsys.Open(h.Name)
	if err != nil {
		return fmt.Errorf("opening %s: %w", h.Name, err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("reading %s: %w", h.Name, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %q is no regular file any more", ErrBadTree, h.Name)
	}
	h.Size = info.Size()
	if err := p.header(h); err != nil {
		return err
	}
	// One byte more than the header says shows that the file grows.
	n, err := io.Copy(&countingWriter{p}, io.LimitReader(f, h.Size))
	if err != nil {
		return fmt.Errorf("sending %s: %w", h.Name, err)
	}
	if more, _ := io.CopyN(io.Discard, f, 1); n < h.Size || more > 0 {
		return fmt.Errorf("%w: %q changed its size while it was sent; try again when nothing writes to it", ErrBadTree, h.Name)
	}
	p.files++
	p.tell()
	return nil
}

func (p *treePacker) tell() {
	if p.progress != nil {
		p.progress(p.files, p.bytes)
	}
}

// countingWriter tells the progress inside a large file.
type countingWriter struct{ p *treePacker }

// Write implements io.Writer.
func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.p.tw.Write(b)
	w.p.bytes += int64(n)
	w.p.tell()
	return n, err
}

// UnpackTree reads a tar stream into a directory and never leaves it: entries with absolute paths or .., through
// links, of other kinds than file, directory and link, or that come twice are ErrBadTree; links may only lead
// inside. Each file is written beside its place and renamed into it, so a file that was there is replaced whole.
// It returns also ErrTreeTooLarge, and what the disk says.
func UnpackTree(r io.Reader, into *os.Root, limits TreeLimits, progress TreeProgress) error {
	src := &countingReader{Reader: r}
	u := treeUnpacker{tr: tar.NewReader(src), src: src, into: into, limits: limits, progress: progress, seen: make(map[string]byte)}
	for {
		h, err := u.tr.Next()
		if errors.Is(err, io.EOF) {
			return u.end()
		}
		if err != nil {
			return streamError("reading the stream", err)
		}
		if err := u.entry(h); err != nil {
			return err
		}
		u.after = src.bytes
	}
}

// countingReader counts what a tar.Reader, which reads block by block, has read.
type countingReader struct {
	io.Reader
	bytes int64
}

// Read implements io.Reader.
func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.bytes += int64(n)
	return n, err
}

// end checks that the stream has come to its end, two blocks of zeros, and was not cut off between two files,
// which tar.Reader lets pass.
func (u *treeUnpacker) end() error {
	if u.src.bytes-u.after < 1024 {
		return fmt.Errorf("%w: the stream is cut off after %d bytes", ErrBadTree, u.src.bytes)
	}
	return nil
}

type treeUnpacker struct {
	tr       *tar.Reader
	src      *countingReader
	after    int64 // bytes read when the last entry ended, its padding apart
	into     *os.Root
	limits   TreeLimits
	progress TreeProgress
	seen     map[string]byte // path → type of what this stream made
	files    int
	bytes    int64
	entries  int
}

// streamError tells a tar that is none from a source that failed.
func streamError(doing string, err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, tar.ErrInsecurePath) {
		return fmt.Errorf("%w: %s: %w", ErrBadTree, doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (u *treeUnpacker) entry(h *tar.Header) error {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	if h.Typeflag == tar.TypeXGlobalHeader || (name == "" || name == ".") && h.Typeflag == tar.TypeDir {
		return nil // tar writes the directory itself first
	}
	if u.entries++; u.limits.Entries > 0 && u.entries > u.limits.Entries {
		return fmt.Errorf("%w: more than %d files and directories", ErrTreeTooLarge, u.limits.Entries)
	}
	if err := checkTreePath(name); err != nil {
		return err
	}
	if was, ok := u.seen[name]; ok && (was != tar.TypeDir || h.Typeflag != tar.TypeDir) {
		return fmt.Errorf("%w: %q comes twice", ErrBadTree, name)
	}
	if err := u.parents(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(name)
	case tar.TypeReg:
		u.seen[name] = tar.TypeReg
		return u.file(name, h.Size)
	case tar.TypeSymlink:
		if !linkStaysInside(name, h.Linkname) {
			return fmt.Errorf("%w: the link %q leads to %.200q, out of the tree", ErrBadTree, name, h.Linkname)
		}
		u.seen[name] = tar.TypeSymlink
		return u.link(name, h.Linkname)
	case tar.TypeLink:
		return fmt.Errorf("%w: %q is a hard link; send it as a file", ErrBadTree, name)
	}
	return fmt.Errorf("%w: %q is no file, directory or link", ErrBadTree, name)
}

// strange are letters that no path of a tree may have here: a backslash is one like any other where it does not part
// directories.
var strange = map[bool]string{true: "\x00\\", false: "\x00"}[filepath.Separator == '\\']

func checkTreePath(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, strange) || len(name) > maxTreePath {
		return fmt.Errorf("%w: %.200q is no relative path inside the tree", ErrBadTree, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxTreeName {
			return fmt.Errorf("%w: a name in %.200q has %d bytes, at most %d fit", ErrBadTree, name, len(part), maxTreeName)
		}
	}
	return nil
}

// linkStaysInside says that a link at name leads inside the tree whatever other links there are: its target is
// relative and climbs only at its beginning, no higher than the tree. A .. further on could climb out of where
// another link led. That name's parents are directories is parents' business.
func linkStaysInside(name, target string) bool {
	if target == "" || len(target) > maxTreePath || strings.HasPrefix(target, "/") || strings.ContainsAny(target, strange) {
		return false
	}
	depth, leading := strings.Count(name, "/"), true
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "..":
			if !leading || depth == 0 {
				return false
			}
			depth--
		case part != "." && part != "":
			leading = false
		}
	}
	return true
}

// parents makes the directories above an entry and refuses those that are anything else.
func (u *treeUnpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	if t, ok := u.seen[dir]; ok {
		if t == tar.TypeDir {
			return nil
		}
		return fmt.Errorf("%w: %q is no directory, and something lies in it", ErrBadTree, dir)
	}
	if err := u.parents(path.Dir(dir)); err != nil {
		return err
	}
	return u.dir(dir)
}

func (u *treeUnpacker) dir(name string) error {
	if u.seen[name] == tar.TypeDir {
		return nil
	}
	err := u.into.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		info, statErr := u.into.Lstat(name)
		if statErr == nil && !info.IsDir() {
			return fmt.Errorf("%w: %q has to be a directory, but something else stands there", ErrBadTree, name)
		}
		err = statErr
	}
	if err != nil {
		return fmt.Errorf("making the directory %s: %w", name, err)
	}
	u.seen[name] = tar.TypeDir
	return nil
}

func (u *treeUnpacker) file(name string, size int64) (err error) {
	if u.limits.Bytes > 0 && size > u.limits.Bytes-u.bytes {
		return fmt.Errorf("%w: more than %s in files", ErrTreeTooLarge, ByteSize(u.limits.Bytes))
	}
	temp, f, err := u.temp(name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the error at hand is the cause
			_ = u.into.Remove(temp)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, readErr := u.tr.Read(buf)
		if _, err := f.Write(buf[:n]); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		u.bytes += int64(n)
		if u.progress != nil {
			u.progress(u.files, u.bytes)
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return streamError("reading "+name, readErr)
		}
	}
	if err = f.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err = u.into.Rename(temp, name); err != nil {
		return u.occupied(name, err)
	}
	u.files++
	if u.progress != nil {
		u.progress(u.files, u.bytes)
	}
	return nil
}

// occupied explains a rename that failed since a directory stands in the way.
func (u *treeUnpacker) occupied(name string, err error) error {
	if info, statErr := u.into.Lstat(name); statErr == nil && info.IsDir() && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: a directory stands where the file %q has to be", ErrBadTree, name)
	}
	return fmt.Errorf("writing %s: %w", name, err)
}

// temp opens a new file beside an entry's place.
func (u *treeUnpacker) temp(name string) (string, *os.File, error) {
	for i := range 1000 {
		temp := path.Join(path.Dir(name), ".unpack-"+strconv.Itoa(i))
		f, err := u.into.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("writing %s: %w", name, err)
		}
		return temp, f, nil
	}
	return "", nil, fmt.Errorf("writing %s: a thousand .unpack files are left over beside it; remove them", name)
}

func (u *treeUnpacker) link(name, target string) error {
	if info, err := u.into.Lstat(name); err == nil && !info.IsDir() {
		if err := u.into.Remove(name); err != nil {
			return fmt.Errorf("replacing %s: %w", name, err)
		}
	}
	if err := u.into.Symlink(target, name); err != nil {
		return u.occupied(name, err)
	}
	u.files++
	return nil
}
