package wasm

import (
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
)

// volFS shows an fs.FS read-only. Times are 0 and inode numbers come from paths, so that a module sees the
// same on each node whatever holds the files there. A read that fails in the file system is the fault of
// who lent it, not of the module: it ends the run.
type volFS struct {
	experimentalsys.UnimplementedFS

	run *run
	fs  fs.FS
}

var _ experimentalsys.FS = (*volFS)(nil)

// OpenFile implements experimentalsys.FS.
func (v *volFS) OpenFile(p string, flag experimentalsys.Oflag, _ fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	const change = experimentalsys.O_WRONLY | experimentalsys.O_RDWR | experimentalsys.O_CREAT | experimentalsys.O_TRUNC | experimentalsys.O_APPEND
	clean := path.Clean(strings.TrimPrefix(p, "/"))
	switch {
	case !fs.ValidPath(clean):
		return nil, experimentalsys.EPERM
	case len(clean) > maxPathBytes:
		return nil, experimentalsys.ENAMETOOLONG
	case flag&change != 0:
		return nil, experimentalsys.EROFS
	case v.run.stopped():
		return nil, experimentalsys.EINTR
	}
	if errno := v.run.openFile(); errno != 0 {
		return nil, errno
	}
	f, errno := v.open(clean)
	if errno == 0 && !f.stat.Mode.IsDir() && (flag&experimentalsys.O_DIRECTORY != 0 || strings.HasSuffix(p, "/")) {
		_ = f.file.Close()
		errno = experimentalsys.ENOTDIR
	}
	if errno != 0 {
		v.run.closeFile()
		return nil, errno
	}
	if f.stat.Mode.IsDir() {
		return &volDir{volFile: f}, 0
	}
	return f, 0
}

func (v *volFS) open(clean string) (*volFile, experimentalsys.Errno) {
	file, err := v.fs.Open(clean)
	if err != nil {
		return nil, v.errno(err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, v.errno(err)
	}
	st, ok := volStat(clean, info)
	if !ok {
		_ = file.Close()
		return nil, experimentalsys.EPERM
	}
	return &volFile{vol: v, path: clean, file: file, stat: st}, 0
}

// escapes ends the text of os.Root's error, which has no name, for a link that leads out of it. Such a link
// is a property of the data, not a fault of the node.
const escapes = "path escapes from parent"

// errno translates an error; whatever is not about the name is a fault of the mount.
func (v *volFS) errno(err error) experimentalsys.Errno {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return experimentalsys.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return experimentalsys.EACCES
	case errors.Is(err, fs.ErrInvalid):
		return experimentalsys.EINVAL
	case strings.HasSuffix(err.Error(), escapes):
		return experimentalsys.EACCES
	default:
		return v.run.mountFault(err)
	}
}

// volStat refuses what is neither a file nor a directory: a volume has no devices, sockets or pipes.
func volStat(clean string, info fs.FileInfo) (sys.Stat_t, bool) {
	h := fnv.New64a()
	_, _ = io.WriteString(h, clean)
	st := sys.Stat_t{Dev: 1, Ino: h.Sum64() | 1, Nlink: 1}
	switch {
	case info.IsDir():
		st.Mode = fs.ModeDir | 0o555
	case info.Mode().IsRegular():
		st.Mode, st.Size = 0o444|info.Mode()&0o111, info.Size()
	default:
		return st, false
	}
	return st, true
}

// Stat implements experimentalsys.FS.
func (v *volFS) Stat(p string) (sys.Stat_t, experimentalsys.Errno) {
	clean := path.Clean(strings.TrimPrefix(p, "/"))
	switch {
	case !fs.ValidPath(clean):
		return sys.Stat_t{}, experimentalsys.EPERM
	case v.run.stopped():
		return sys.Stat_t{}, experimentalsys.EINTR
	}
	info, err := fs.Stat(v.fs, clean)
	if err != nil {
		return sys.Stat_t{}, v.errno(err)
	}
	st, ok := volStat(clean, info)
	if !ok {
		return st, experimentalsys.EPERM
	}
	if !info.IsDir() && strings.HasSuffix(p, "/") {
		return st, experimentalsys.ENOTDIR
	}
	return st, 0
}

// Lstat implements experimentalsys.FS: a link of the volume shows as what it leads to.
func (v *volFS) Lstat(p string) (sys.Stat_t, experimentalsys.Errno) { return v.Stat(p) }

// Readlink implements experimentalsys.FS.
func (v *volFS) Readlink(p string) (string, experimentalsys.Errno) {
	if _, errno := v.Stat(p); errno != 0 {
		return "", errno
	}
	return "", experimentalsys.EINVAL
}

// Mkdir implements experimentalsys.FS.
func (v *volFS) Mkdir(string, fs.FileMode) experimentalsys.Errno { return experimentalsys.EROFS }

// Chmod implements experimentalsys.FS.
func (v *volFS) Chmod(string, fs.FileMode) experimentalsys.Errno { return experimentalsys.EROFS }

// Rename implements experimentalsys.FS.
func (v *volFS) Rename(string, string) experimentalsys.Errno { return experimentalsys.EROFS }

// Rmdir implements experimentalsys.FS.
func (v *volFS) Rmdir(string) experimentalsys.Errno { return experimentalsys.EROFS }

// Unlink implements experimentalsys.FS.
func (v *volFS) Unlink(string) experimentalsys.Errno { return experimentalsys.EROFS }

// Link implements experimentalsys.FS.
func (v *volFS) Link(string, string) experimentalsys.Errno { return experimentalsys.EROFS }

// Symlink implements experimentalsys.FS.
func (v *volFS) Symlink(string, string) experimentalsys.Errno { return experimentalsys.EROFS }

// Utimens implements experimentalsys.FS.
func (v *volFS) Utimens(string, int64, int64) experimentalsys.Errno { return experimentalsys.EROFS }

// volFile is an open file of a volFS.
type volFile struct {
	rest

	vol  *volFS
	path string
	file fs.File
	stat sys.Stat_t
	at   int64 // the guest's offset
	pos  int64 // where the file itself stands, if it can only be read in order
}

var _ experimentalsys.File = (*volFile)(nil)

// Ino implements experimentalsys.File.
func (f *volFile) Ino() (sys.Inode, experimentalsys.Errno) { return f.stat.Ino, 0 }

// Stat implements experimentalsys.File.
func (f *volFile) Stat() (sys.Stat_t, experimentalsys.Errno) { return f.stat, 0 }

// Seek implements experimentalsys.File.
func (f *volFile) Seek(offset position, whence int) (position, experimentalsys.Errno) {
	return seek(&f.at, f.stat.Size, offset, whence)
}

// Read implements experimentalsys.File.
func (f *volFile) Read(p []byte) (int, experimentalsys.Errno) {
	n, errno := f.Pread(p, f.at)
	f.at += int64(n)
	return n, errno
}

// Pread implements experimentalsys.File.
func (f *volFile) Pread(p []byte, at int64) (n int, errno experimentalsys.Errno) {
	switch {
	case at < 0:
		return 0, experimentalsys.EINVAL
	case f.vol.run.stopped():
		return 0, experimentalsys.EINTR
	}
	n, err := f.readAt(p[:min(len(p), piece)], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, f.vol.errno(err)
	}
	return n, 0
}

func (f *volFile) readAt(p []byte, at int64) (int, error) {
	if r, ok := f.file.(io.ReaderAt); ok {
		return r.ReadAt(p, at)
	}
	if at != f.pos {
		s, ok := f.file.(io.Seeker)
		if !ok {
			return 0, errors.New("the file can only be read in order")
		}
		if _, err := s.Seek(at, io.SeekStart); err != nil {
			return 0, err
		}
		f.pos = at
	}
	n, err := f.file.Read(p)
	f.pos += int64(n)
	return n, err
}

// Write implements experimentalsys.File.
func (f *volFile) Write([]byte) (int, experimentalsys.Errno) { return 0, experimentalsys.EBADF }

// Pwrite implements experimentalsys.File.
func (f *volFile) Pwrite([]byte, int64) (int, experimentalsys.Errno) {
	return 0, experimentalsys.EBADF
}

// Truncate implements experimentalsys.File.
func (f *volFile) Truncate(int64) experimentalsys.Errno { return experimentalsys.EBADF }

// Utimens implements experimentalsys.File.
func (f *volFile) Utimens(int64, int64) experimentalsys.Errno { return experimentalsys.EROFS }

// Close implements experimentalsys.File.
func (f *volFile) Close() experimentalsys.Errno {
	if f.file == nil {
		return experimentalsys.EBADF
	}
	_ = f.file.Close()
	f.file = nil
	f.vol.run.closeFile()
	return 0
}

// volDir is an open directory of a volFS.
type volDir struct {
	experimentalsys.DirFile
	*volFile

	list listing
}

var _ experimentalsys.File = (*volDir)(nil)

// IsAppend implements experimentalsys.File.
func (d *volDir) IsAppend() bool { return d.DirFile.IsAppend() }

// SetAppend implements experimentalsys.File.
func (d *volDir) SetAppend(add bool) experimentalsys.Errno { return d.DirFile.SetAppend(add) }

// IsDir implements experimentalsys.File.
func (d *volDir) IsDir() (bool, experimentalsys.Errno) { return true, 0 }

// Read implements experimentalsys.File.
func (d *volDir) Read([]byte) (int, experimentalsys.Errno) { return 0, experimentalsys.EISDIR }

// Pread implements experimentalsys.File.
func (d *volDir) Pread([]byte, int64) (int, experimentalsys.Errno) {
	return 0, experimentalsys.EISDIR
}

// Write implements experimentalsys.File.
func (d *volDir) Write([]byte) (int, experimentalsys.Errno) { return 0, experimentalsys.EISDIR }

// Pwrite implements experimentalsys.File.
func (d *volDir) Pwrite([]byte, int64) (int, experimentalsys.Errno) {
	return 0, experimentalsys.EISDIR
}

// Truncate implements experimentalsys.File.
func (d *volDir) Truncate(int64) experimentalsys.Errno { return experimentalsys.EISDIR }

// Seek implements experimentalsys.File.
func (d *volDir) Seek(offset position, whence int) (position, experimentalsys.Errno) {
	return d.list.rewind(offset, whence)
}

// Readdir implements experimentalsys.File.
func (d *volDir) Readdir(n int) ([]experimentalsys.Dirent, experimentalsys.Errno) {
	return d.list.next(n, func() ([]experimentalsys.Dirent, experimentalsys.Errno) {
		entries, err := fs.ReadDir(d.vol.fs, d.path)
		if err != nil {
			return nil, d.vol.errno(err)
		}
		all := make([]experimentalsys.Dirent, 0, len(entries))
		for _, e := range entries {
			kind := e.Type()
			if kind != 0 && kind != fs.ModeDir {
				// What a link leads to is known only by asking; other kinds are not shown.
				st, errno := d.vol.Stat(path.Join(d.path, e.Name()))
				if errno != 0 {
					continue
				}
				kind = st.Mode.Type()
			}
			h := fnv.New64a()
			_, _ = io.WriteString(h, path.Join(d.path, e.Name()))
			all = append(all, experimentalsys.Dirent{Ino: h.Sum64() | 1, Name: e.Name(), Type: kind})
		}
		slices.SortFunc(all, func(a, b experimentalsys.Dirent) int { return strings.Compare(a.Name, b.Name) })
		return all, 0
	})
}
