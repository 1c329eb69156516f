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
)

// maxProcesses is how many processes of a sandbox are looked at.
const maxProcesses = 4096

// processes are those of the sandbox, as far as a look at what changes meanwhile can tell.
func (c *child) processes(g *group) []int {
	if g.mode != "soft" {
		return processesOf(g.dir("pids"))
	}
	pids, _ := c.tree()
	return pids
}

// tree lists the sandbox's first process and all below it, each with its parent. What loses its parent becomes a child of
// the first.
func (c *child) tree() (pids, parents []int) {
	first := int(c.pid.Load())
	if first == 0 {
		return nil, nil
	}
	pids, parents = []int{first}, []int{0}
	for i := 0; i < len(pids) && len(pids) < maxProcesses; i++ {
		for _, pid := range childrenOf(pids[i]) {
			pids, parents = append(pids, pid), append(parents, pids[i])
		}
	}
	return pids, parents
}

// heldSize is what files without a name take on some devices: who has them open or mapped can still write to them. It fails
// with errUncounted.
func heldSize(pids []int, devices map[uint64]bool) (size int64, err error) {
	held, err := heldFiles(pids)
	for id, used := range held {
		if devices[id.dev] {
			size += max(entryBytes, used)
		}
	}
	return size, err
}

// heldFiles are the regular files without a name that processes have open or mapped, with the bytes that each takes. Of
// one that is mapped only, and that this process may not look at, that is the end of what is mapped of it.
//
// What nobody holds but a message in a socket is not seen.
func heldFiles(pids []int) (map[fileID]int64, error) {
	held := map[fileID]int64{}
	for _, pid := range pids {
		err := openFiles(pid, func(st *unix.Stat_t) {
			if st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
				held[fileID{st.Dev, st.Ino}] = st.Blocks * 512
			}
		})
		if err != nil {
			return held, fmt.Errorf("%w: the descriptors of a process: %w", errUncounted, err)
		}
	}
	guessed := map[fileID]bool{}
	for _, pid := range pids {
		mappedFiles(pid, held, guessed)
	}
	return held, nil
}

// openFiles calls f for each descriptor of a process. One thread that lives is asked: the filter refuses threads with
// descriptors of their own. A process that is gone has none.
func openFiles(pid int, f func(*unix.Stat_t)) error {
	var refused error
	tids := threadsOf(pid)
	for _, tid := range tids {
		dir := fmt.Sprintf("/proc/%d/fd", tid)
		names, err := readNames(dir)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Stat(dir+"/"+name, &st) == nil {
				f(&st)
			}
		}
		if errors.Is(err, unix.EACCES) {
			var n int
			if n, err = lendFiles(tid, tid != pid, f); n > 0 {
				return nil
			}
		}
		if len(names) > 0 {
			return nil
		}
		if err != nil {
			refused = err
		}
	}
	// Where this machine lends no descriptors at all nobody is blamed; who lives on without a first thread means to hide.
	if _, err := identify(pid); errors.Is(err, unix.ESRCH) && len(threadsOf(pid)) > 1 {
		return refused
	}
	return nil
}

// pidfdThread is PIDFD_THREAD of Linux 6.9.
const pidfdThread = unix.O_EXCL

// lendFiles is openFiles for a process whose descriptors are not to be listed: one that may not be dumped, to a shim of the
// same ordinary user, which has all rights over it by the user namespace that it made, but none over root's files in /proc.
// It returns how many there are.
func lendFiles(tid int, thread bool, f func(*unix.Stat_t)) (count int, err error) {
	flags := 0
	if thread {
		flags = pidfdThread
	}
	process, err := unix.PidfdOpen(tid, flags)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(process) }()
	names, err := readNames(fmt.Sprintf("/proc/%d/fdinfo", tid))
	if errors.Is(err, unix.EACCES) { // before Linux 5.14: all numbers that it may have
		var most unix.Rlimit
		if err = unix.Prlimit(tid, unix.RLIMIT_NOFILE, nil, &most); err != nil {
			return 0, err
		}
		for n := range min(most.Cur, 1<<16) {
			names = append(names, strconv.FormatUint(n, 10))
		}
	}
	for _, name := range names {
		n, bad := strconv.Atoi(name)
		if bad != nil {
			continue
		}
		fd, failed := unix.PidfdGetfd(process, n, 0)
		if failed != nil {
			if !changed(failed) && !errors.Is(failed, unix.EBADF) && !errors.Is(failed, unix.ESRCH) {
				err = failed
			}
			continue
		}
		var st unix.Stat_t
		failed = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if failed == nil {
			count++
			f(&st)
		}
	}
	return count, err
}

// mappedFiles adds the files without a name that a process has mapped, unless they are known; guessed are those of which
// only the mappings are.
func mappedFiles(pid int, held map[fileID]int64, guessed map[fileID]bool) {
	for _, tid := range threadsOf(pid) {
		file, err := os.Open(fmt.Sprintf("/proc/%d/maps", tid))
		if err != nil {
			continue
		}
		lines := 0
		s := bufio.NewScanner(file)
		for ; s.Scan(); lines++ {
			at, id, end, ok := parseMap(s.Text())
			if !ok {
				continue
			}
			if _, known := held[id]; known && !guessed[id] {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(fmt.Sprintf("/proc/%d/map_files/%s", tid, at), &st) == nil { // root only
				if st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
					held[fileID{st.Dev, st.Ino}] = st.Blocks * 512
				}
				continue
			}
			guessed[id] = true
			held[id] = max(held[id], end)
		}
		_ = file.Close()
		if lines > 0 {
			return
		}
	}
}

// parseMap reads a line of /proc/PID/maps: where, which file, and where in it the mapping ends. It is not ok unless the file
// has no name any more.
func parseMap(line string) (at string, id fileID, end int64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || !strings.HasSuffix(line, " (deleted)") {
		return "", id, 0, false
	}
	from, to, _ := strings.Cut(f[0], "-")
	major, minor, _ := strings.Cut(f[3], ":")
	var n [5]uint64
	for i, word := range []string{from, to, f[2], major, minor} {
		v, err := strconv.ParseUint(word, 16, 64)
		if err != nil {
			return "", id, 0, false
		}
		n[i] = v
	}
	ino, err := strconv.ParseUint(f[4], 10, 64)
	if err != nil || n[1] < n[0] || n[1]-n[0]+n[2] > 1<<62 {
		return "", id, 0, false
	}
	return f[0], fileID{unix.Mkdev(uint32(n[3]), uint32(n[4])), ino}, int64(n[1] - n[0] + n[2]), true
}

// threadsOf lists the threads of a process: the first may have ended before the others, and then knows nothing.
func threadsOf(pid int) (tids []int) {
	names, _ := readNames(fmt.Sprintf("/proc/%d/task", pid))
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	return d.Readdirnames(-1)
}
