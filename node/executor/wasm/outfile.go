package wasm

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
)

// position is an offset. The alias shows go vet that wazero's Seek, which returns an Errno, is not meant to
// be io.Seeker's.
type position = int64

// piece bounds what one host call moves before the end of the run is looked at again, in bytes.
const piece = 1 << 20

// rest fills in what neither files nor directories of ours do. It is embedded one level deeper than the
// answers that shall win over it.
type rest struct {
	experimentalsys.UnimplementedFile
}

// outDir is an open directory of an outFS.
type outDir struct {
	experimentalsys.DirFile
	rest

	run  *run
	node *outNode
	list listing
}

var _ experimentalsys.File = (*outDir)(nil)

// Ino implements experimentalsys.File.
func (d *outDir) Ino() (sys.Inode, experimentalsys.Errno) { return d.node.ino, 0 }

// Stat implements experimentalsys.File.
func (d *outDir) Stat() (sys.Stat_t, experimentalsys.Errno) { return d.node.stat(), 0 }

// Seek implements experimentalsys.File.
func (d *outDir) Seek(offset position, whence int) (position, experimentalsys.Errno) {
	return d.list.rewind(offset, whence)
}

// Readdir implements experimentalsys.File.
func (d *outDir) Readdir(n int) ([]experimentalsys.Dirent, experimentalsys.Errno) {
	return d.list.next(n, func() ([]experimentalsys.Dirent, experimentalsys.Errno) {
		all := make([]experimentalsys.Dirent, 0, len(d.node.children))
		for _, name := range slices.Sorted(maps.Keys(d.node.children)) {
			child := d.node.children[name]
			all = append(all, experimentalsys.Dirent{Ino: child.ino, Name: name, Type: child.stat().Mode.Type()})
		}
		return all, 0
	})
}

// Sync implements experimentalsys.File.
func (d *outDir) Sync() experimentalsys.Errno { return 0 }

// Utimens implements experimentalsys.File.
func (d *outDir) Utimens(int64, int64) experimentalsys.Errno { return 0 }

// Close implements experimentalsys.File.
func (d *outDir) Close() experimentalsys.Errno {
	d.run.closeFile()
	return 0
}

// listing hands out the entries of a directory piece by piece, in the order of their names.
type listing struct {
	entries []experimentalsys.Dirent
	loaded  bool
}

func (l *listing) rewind(offset int64, whence int) (int64, experimentalsys.Errno) {
	if offset != 0 || whence != io.SeekStart {
		return 0, experimentalsys.EINVAL
	}
	*l = listing{}
	return 0, 0
}

func (l *listing) next(n int, load func() ([]experimentalsys.Dirent, experimentalsys.Errno)) ([]experimentalsys.Dirent, experimentalsys.Errno) {
	if !l.loaded {
		entries, errno := load()
		if errno != 0 {
			return nil, errno
		}
		l.entries, l.loaded = entries, true
	}
	if n < 0 || n > len(l.entries) {
		n = len(l.entries)
	}
	some := l.entries[:n:n]
	l.entries = l.entries[n:]
	return some, 0
}

// outFile is an open file of an outFS. Offset and mode are kept here; the host's file is always open for
// both directions and used by position.
type outFile struct {
	rest

	run              *run
	node             *outNode
	host             *os.File
	read, write, add bool
	at               int64
}

var _ experimentalsys.File = (*outFile)(nil)

// Ino implements experimentalsys.File.
func (f *outFile) Ino() (sys.Inode, experimentalsys.Errno) { return f.node.ino, 0 }

// Stat implements experimentalsys.File.
func (f *outFile) Stat() (sys.Stat_t, experimentalsys.Errno) { return f.node.stat(), 0 }

// IsAppend implements experimentalsys.File.
func (f *outFile) IsAppend() bool { return f.add }

// SetAppend implements experimentalsys.File.
func (f *outFile) SetAppend(add bool) experimentalsys.Errno {
	f.add = add
	return 0
}

// Seek implements experimentalsys.File.
func (f *outFile) Seek(offset position, whence int) (position, experimentalsys.Errno) {
	return seek(&f.at, f.node.size, offset, whence)
}

func seek(at *int64, size, offset int64, whence int) (int64, experimentalsys.Errno) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += *at
	case io.SeekEnd:
		offset += size
	default:
		return 0, experimentalsys.EINVAL
	}
	if offset < 0 {
		return 0, experimentalsys.EINVAL
	}
	*at = offset
	return offset, 0
}

// Read implements experimentalsys.File.
func (f *outFile) Read(p []byte) (int, experimentalsys.Errno) {
	n, errno := f.Pread(p, f.at)
	f.at += int64(n)
	return n, errno
}

// Pread implements experimentalsys.File.
func (f *outFile) Pread(p []byte, at int64) (int, experimentalsys.Errno) {
	switch {
	case !f.read:
		return 0, experimentalsys.EBADF
	case at < 0:
		return 0, experimentalsys.EINVAL
	case f.run.stopped():
		return 0, experimentalsys.EINTR
	}
	n, err := f.host.ReadAt(p[:min(len(p), piece)], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, f.run.hostFault("reading an output file", err)
	}
	return n, 0
}

// Write implements experimentalsys.File.
func (f *outFile) Write(p []byte) (int, experimentalsys.Errno) {
	if f.add {
		f.at = f.node.size
	}
	n, errno := f.Pwrite(p, f.at)
	f.at += int64(n)
	return n, errno
}

// Pwrite implements experimentalsys.File.
func (f *outFile) Pwrite(p []byte, at int64) (int, experimentalsys.Errno) {
	switch {
	case !f.write:
		return 0, experimentalsys.EBADF
	case at < 0 || at+int64(len(p)) < 0:
		return 0, experimentalsys.EINVAL
	case len(p) == 0:
		return 0, 0
	}
	// The whole growth is counted before the first byte goes to the disk.
	if errno := f.run.grow(f.node, at+int64(len(p))); errno != 0 {
		return 0, errno
	}
	written := 0
	for written < len(p) {
		if f.run.stopped() {
			return written, experimentalsys.EINTR
		}
		n, err := f.host.WriteAt(p[written:min(len(p), written+piece)], at+int64(written))
		written += n
		if err != nil {
			return written, f.run.hostFault("writing an output file", err)
		}
	}
	return written, 0
}

// Truncate implements experimentalsys.File.
func (f *outFile) Truncate(size int64) experimentalsys.Errno {
	if !f.write {
		return experimentalsys.EBADF
	}
	if size < 0 {
		return experimentalsys.EINVAL
	}
	return f.resize(size)
}

func (f *outFile) resize(size int64) experimentalsys.Errno {
	if f.run.stopped() {
		return experimentalsys.EINTR
	}
	if errno := f.run.grow(f.node, size); errno != 0 {
		return errno
	}
	if err := f.host.Truncate(size); err != nil {
		return f.run.hostFault("resizing an output file", err)
	}
	f.run.shrink(f.node, size)
	return 0
}

// Sync implements experimentalsys.File: outputs become durable when the node commits them.
func (f *outFile) Sync() experimentalsys.Errno { return 0 }

// Datasync implements experimentalsys.File.
func (f *outFile) Datasync() experimentalsys.Errno { return 0 }

// Utimens implements experimentalsys.File: times are not kept.
func (f *outFile) Utimens(int64, int64) experimentalsys.Errno { return 0 }

// Close implements experimentalsys.File.
func (f *outFile) Close() experimentalsys.Errno {
	if f.host == nil {
		return experimentalsys.EBADF
	}
	err := f.host.Close()
	f.host = nil
	f.run.closeFile()
	f.run.release(f.node)
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return f.run.hostFault("closing an output file", err)
	}
	return 0
}
