package volumes

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/ipfs/go-cid"
)

// Export writes a tree into a directory, which is made if absent. Each file is written beside its place and
// renamed into it, so a reader never sees half of one; files that the tree does not name are left alone.
// It follows no symbolic link and never leaves the directory: a link, or a file where a directory has to
// be, is ErrDenied. Links of the tree that stay inside it are written as links. It returns also
// ErrNotFound or ErrUnavailable for missing blocks and ErrNoSpace.
func (s *Store) Export(ctx context.Context, root cid.Cid, dir string, progress Progress) error {
	if err := s.export(ctx, root, dir, progress); err != nil {
		return fmt.Errorf("exporting %s to %s: %w", root, dir, translate(noSpace(err)))
	}
	return nil
}

func (s *Store) export(ctx context.Context, root cid.Cid, dir string, progress Progress) error {
	fsys, err := s.FS(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	to, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	e := &exporter{from: fsys, to: to, progress: progress}
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case name == ".":
			return nil
		case d.IsDir():
			return e.dir(name)
		case d.Type()&fs.ModeSymlink != 0:
			return e.link(name)
		}
		return e.file(name)
	})
}

type exporter struct {
	from         fs.FS
	to           *os.Root
	progress     Progress
	files, bytes uint64
}

func (e *exporter) dir(name string) error {
	err := e.to.Mkdir(name, 0o777)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := e.to.Lstat(name)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%w: %q stands where a directory has to be; remove it or export elsewhere", ErrDenied, name)
	}
	return err
}

func temporary(name string) string { return path.Join(path.Dir(name), ".gridbeam-"+rand.Text()) }

// place puts the finished temporary in its place, unless a link or directory stands there.
func (e *exporter) place(temp, name string) error {
	st, err := e.to.Lstat(name)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %q stands where a file has to be; remove it or export elsewhere", ErrDenied, name)
	} else if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = e.to.Rename(temp, name)
	}
	if err != nil {
		err = errors.Join(err, e.to.Remove(temp))
	}
	return err
}

func (e *exporter) link(name string) error {
	target, err := fs.ReadLink(e.from, name)
	if err != nil {
		return err
	}
	if !linkStays(name, target) {
		return fmt.Errorf("%w: link %q leads out of the tree to %q", ErrDenied, name, target)
	}
	temp := temporary(name)
	if err := e.to.Symlink(target, temp); err != nil {
		return err
	}
	if st, err := e.to.Lstat(name); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return e.to.Rename(temp, name) // a link of an earlier export
	}
	return e.place(temp, name)
}

func (e *exporter) file(name string) error {
	src, err := e.from.Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	temp := temporary(name)
	dst, err := e.to.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	n, err := io.Copy(dst, bufio.NewReaderSize(src, 1<<20))
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, e.to.Remove(temp))
	}
	if err := e.place(temp, name); err != nil {
		return err
	}
	e.files++
	e.bytes += uint64(n)
	e.progress.tell(e.files, e.bytes)
	return nil
}
