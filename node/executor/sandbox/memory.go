//go:build linux

package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/protocol"
)

// scratchPlaces are the file systems in memory that a sandbox has of its own and can write to.
var scratchPlaces = []string{"/tmp", "/dev/shm"}

// inodeBytes is what a file in memory counts beside its pages.
const inodeBytes = 1024

// watchMemory is the watchdog of memory where there are no cgroups. It takes a third of a core at most, however many
// processes there are.
func (s *shim) watchMemory() {
	s.patrol(usageEvery, 2, func(c *child) {
		used, err := c.memory(s.scratchMounts())
		s.do(func() { s.judgeMemory(c, used, err) })
	})
}

// judgeMemory ends the lease if its memory is over the limit.
func (s *shim) judgeMemory(c *child, used int64, err error) {
	if s.cur == nil || s.child != c {
		return
	}
	s.cur.peak = max(s.cur.peak, used)
	switch limit := s.spec.Limits.Memory; {
	case err != nil:
		s.breach(protocol.ReasonOOM, err.Error())
	case used > limit:
		s.breach(protocol.ReasonOOM, fmt.Sprintf("it has %d bytes of memory, the limit is %d", used, limit))
	}
}

// scratchMounts are those of the scratchPlaces that no mount of the task covers.
func (s *shim) scratchMounts() (places []string) {
	for _, place := range scratchPlaces {
		covered := false
		for _, m := range s.spec.Mounts {
			covered = covered || within(place, m.Target)
		}
		if !covered {
			places = append(places, place)
		}
	}
	return places
}

// memory is what the sandbox has of it, in bytes: each page of its processes' own once, however many share it; files in
// memory, whether they have a name, a descriptor or a mapping only. Pages of the disk's files do not count: the kernel
// takes them back. It fails with errUncounted.
func (c *child) memory(places []string) (used int64, err error) {
	pids, parents := c.tree()
	for i, pid := range pids {
		if i == 0 || !sameMemory(pid, parents[i]) {
			used += ownMemory(pid)
		}
	}
	if len(pids) < 2 { // the sandbox is still being made
		return used, nil
	}
	for _, place := range places {
		size, err := tmpfsUse(fmt.Sprintf("/proc/%d/root%s", pids[0], place))
		if err != nil {
			return used, fmt.Errorf("%w: %w", errUncounted, err)
		}
		used += size
	}
	held, err := heldFiles(pids)
	device := memoryDevice()
	for id, size := range held {
		if id.dev == device {
			used += size
		}
	}
	return used, err
}

// memoryDevice is the device of files that never had a name: shared memory, memfd_create.
func memoryDevice() uint64 {
	fd, err := unix.MemfdCreate("device", unix.MFD_CLOEXEC)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	_ = unix.Fstat(fd, &st)
	return st.Dev
}

// tmpfsUse is what a tmpfs takes. Where the code has the shim's own user it can take the right to pass the directory above.
func tmpfsUse(path string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.EACCES) && unix.Chmod(filepath.Dir(path), 0o755) == nil {
		err = unix.Statfs(path, &st)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return 0, nil // it has ended
	}
	if err != nil {
		return 0, fmt.Errorf("looking at %s: %w", path, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return 0, nil
	}
	return int64(st.Blocks-st.Bfree)*st.Bsize + int64(st.Files-st.Ffree)*inodeBytes, nil
}

// sameMemory tells whether two processes are one in all but their numbers, as between vfork and exec.
func sameMemory(a, b int) bool {
	const vm = 1 // KCMP_VM of linux/kcmp.h
	same, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), vm, 0, 0, 0)
	return errno == 0 && same == 0
}

// ownMemory is a process's share of the pages that belong to processes rather than to files.
func ownMemory(pid int) int64 {
	for _, tid := range threadsOf(pid) { // the first may have ended before the others
		if n, ok := rollup(fmt.Sprintf("/proc/%d/smaps_rollup", tid)); ok {
			return n
		}
	}
	m, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // a kernel without CONFIG_PROC_PAGE_MONITOR
	if words := strings.Fields(string(m)); len(words) > 2 {
		all, _ := strconv.ParseInt(words[1], 10, 64)
		shared, _ := strconv.ParseInt(words[2], 10, 64)
		return (all - shared) * int64(os.Getpagesize())
	}
	return 0
}

// rollup reads the share of anonymous memory and of swap from a file smaps_rollup.
func rollup(path string) (size int64, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		word := strings.Fields(s.Text())
		if len(word) == 3 && (word[0] == "Pss_Anon:" || word[0] == "SwapPss:") {
			n, err := strconv.ParseInt(word[1], 10, 64)
			ok = err == nil
			size += n << 10
		}
	}
	return size, ok
}
