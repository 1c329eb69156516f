//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// copyTree copies directories, regular files and links of src, a directory, to dst, which must not exist. What else is
// there is left out. The copy belongs to the given user, unless uid is negative; its owner can write all of it.
func copyTree(src, dst string, uid int) error {
	return filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(name, src))
		switch {
		case d.IsDir():
			err = os.Mkdir(to, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			var target string
			if target, err = os.Readlink(name); err == nil {
				err = os.Symlink(target, to)
			}
		case d.Type().IsRegular():
			err = copyFile(name, to)
		default:
			return nil
		}
		if err == nil && uid >= 0 {
			err = os.Lchown(to, uid, uid)
		}
		return err
	})
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|info.Mode().Perm()&0o111)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil { // file systems that share blocks do it at once
		_, err = io.Copy(out, in)
	}
	return errors.Join(err, out.Close())
}

// removeTree removes a directory whose files may belong to code that made them hard to remove.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	// A directory without rights for its owner stops an ordinary user; what ran there has ended.
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(name, 0o700)
			if err != nil { // it was not readable before
				if entries, again := os.ReadDir(name); again == nil {
					for _, e := range entries {
						_ = removeTree(filepath.Join(name, e.Name()))
					}
				}
				return fs.SkipDir
			}
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing a sandbox's files: %w", err)
	}
	return nil
}

// stampOf is what tells a file from an earlier state of it.
func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), changed: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = int64(st.Ino)
		s.changed = time.Unix(st.Ctim.Unix()) // unlike the time of modification nobody can set it
	}
	return s
}
