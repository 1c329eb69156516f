//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/protocol"
)

const (
	entryBytes = 4096 // what a file counts at least, for inodes run out, too
	maxDepth   = 256  // of directories in each other; deeper ones cannot be counted with the descriptors that a shim may have
)

// errUncounted means that nobody can say what files take.
var errUncounted = errors.New("sandbox: what its files take cannot be counted")

// watchDisk looks at what the sandbox's files take while it has a lease. It takes a fifth of a core at most, however many
// files there are.
func (s *shim) watchDisk() { s.patrol(diskEvery, 4, s.lookAtDisk) }

// patrol looks at the child of the present lease every so often until the shim is over. After a look it rests so many
// times as long as that took, but at most ten times every.
func (s *shim) patrol(every time.Duration, rest int, look func(c *child)) {
	wait := time.NewTimer(every)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-s.over:
			return
		}
		var c *child
		s.do(func() {
			if s.cur != nil {
				c = s.child
			}
		})
		began := time.Now()
		if c != nil {
			look(c)
		}
		wait.Reset(max(every, min(time.Duration(rest)*time.Since(began), 10*every)))
	}
}

// lookAtDisk ends the lease if the sandbox's files take more than they may.
func (s *shim) lookAtDisk(c *child) {
	limit := s.spec.Limits.Disk
	used, err := treeSize(limit, s.ownTrees()...)
	if err == nil && used <= limit {
		var held int64
		held, err = heldSize(c.processes(s.group), s.devices())
		used += held
	}
	s.do(func() {
		switch {
		case s.child != c:
		case err != nil:
			s.breach(protocol.ReasonDiskFull, err.Error())
		case used > limit:
			s.breach(protocol.ReasonDiskFull, fmt.Sprintf("its files take %d bytes of disk and more, the limit is %d", used, limit))
		}
	})
}

// ownTrees are the directories that the code can write on the host's disk.
func (s *shim) ownTrees() []string {
	dirs := []string{filepath.Join(s.dir, codeName)}
	for i, m := range s.spec.Mounts {
		if !m.ReadOnly {
			dirs = append(dirs, filepath.Join(s.dir, writableName(i)))
		}
	}
	return dirs
}

// devices are those on which the trees lie: directories and files of one overlay may say different ones.
func (s *shim) devices() map[uint64]bool {
	devices := map[uint64]bool{}
	for _, path := range []string{s.dir, filepath.Join(s.dir, specName)} {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			devices[st.Dev] = true
		}
	}
	return devices
}

// fileID names a file of this machine.
type fileID struct{ dev, ino uint64 }

// treeSize is what the files below directories take on the disk, in bytes; it stops counting beyond most. What runs there
// may change them at the same time: nothing is followed out of a directory, and files that go meanwhile are no error. A
// directory that its owner may not read is made readable. It fails with errUncounted.
func treeSize(most int64, dirs ...string) (int64, error) {
	t := treeCount{most: most, linked: map[fileID]bool{}}
	for _, dir := range dirs {
		if err := t.tree(unix.AT_FDCWD, dir, 0); err != nil {
			return t.size, fmt.Errorf("%w: %w", errUncounted, err)
		}
	}
	return t.size, nil
}

// treeCount counts what files take.
type treeCount struct {
	size, most int64
	linked     map[fileID]bool // files with several names, which count once
}

// tree counts what is in a directory.
func (t *treeCount) tree(parent int, name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories lie in each other %d deep, at most %d are looked at", depth, maxDepth)
	}
	fd, err := openDir(parent, name)
	if changed(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("a directory cannot be read: %w", err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer func() { _ = dir.Close() }()
	for t.size <= t.most {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if err := t.entry(fd, name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || changed(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a directory cannot be read: %w", err)
		}
	}
	return nil
}

// entry counts one name in a directory.
func (t *treeCount) entry(dir int, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EACCES) && unix.Fchmod(dir, 0o755) == nil { // it may be read and not passed
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if changed(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("a file cannot be looked at: %w", err)
	}
	id := fileID{st.Dev, st.Ino}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if t.linked[id] {
			t.size += entryBytes
			return nil
		}
		t.linked[id] = true
	}
	if t.size += max(entryBytes, st.Blocks*512); st.Mode&unix.S_IFMT != unix.S_IFDIR || t.size > t.most {
		return nil
	}
	return t.tree(dir, name, depth+1)
}

// openDir opens a directory to read it, and makes it readable first if need be: where the code has the shim's own user, the
// rights that it takes from a directory are taken from the shim.
func openDir(parent int, name string) (int, error) {
	const flags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|flags, 0)
	if !errors.Is(err, unix.EACCES) {
		return fd, err
	}
	at, err := unix.Openat(parent, name, unix.O_PATH|flags, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(at) }()
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(at), 0o755); err != nil {
		return -1, err
	}
	return unix.Openat(parent, name, unix.O_RDONLY|flags, 0)
}

// changed tells whether an error says that something is not there any more, or is another thing now.
func changed(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
