//go:build linux

package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/node/executor"
)

// groupPrefix begins the names of our cgroups.
const groupPrefix = "gridbeam-"

// daemonLeaf is where the daemon and the shims sit in v2, beside the sandboxes' cgroups.
const daemonLeaf = groupPrefix + "daemon"

// groupPlaces says in which directories cgroups of our own can be made.
type groupPlaces struct {
	// mode is v2, v1 or soft.
	mode string
	// parents maps controllers to directories; v2 has one, under "".
	parents map[string]string
}

// controllers of v1 that are used; the first two are needed.
var controllers = []string{"memory", "pids", "cpuacct", "cpu", "freezer"}

// findGroups looks at this process's cgroups and tries to make one. mountinfo and cgroup are the texts of the files of
// those names in /proc/self.
func findGroups(mountinfo, cgroup string) groupPlaces {
	v1, v2 := cgroupMounts(mountinfo)
	own := map[string]string{}
	for line := range strings.Lines(cgroup) {
		if part := strings.SplitN(strings.TrimSpace(line), ":", 3); len(part) == 3 {
			for c := range strings.SplitSeq(part[1], ",") {
				own[c] = part[2]
			}
		}
	}
	if parent, ok := v2.ours(strings.TrimSuffix(own[""], "/"+daemonLeaf)); ok && delegated(parent) && canMake(parent) {
		return groupPlaces{mode: "v2", parents: map[string]string{"": parent}}
	}
	places := groupPlaces{mode: "v1", parents: map[string]string{}}
	for i, c := range controllers {
		m, ok := v1[c]
		parent := ""
		if ok {
			parent, ok = m.ours(own[c])
		}
		ok = ok && canMake(parent)
		if !ok && i < 2 {
			return groupPlaces{mode: "soft"}
		}
		if ok {
			places.parents[c] = parent
		}
	}
	return places
}

// cgroupMount is where a hierarchy is mounted, and which of its directories is there.
type cgroupMount struct{ root, at string }

// ours is the directory of a cgroup, or the mount's own if that is not to be seen.
func (m cgroupMount) ours(path string) (string, bool) {
	if m.at == "" {
		return "", false
	}
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/"))
	dir := filepath.Join(m.at, rest)
	if info, err := os.Stat(dir); !ok || err != nil || !info.IsDir() {
		dir = m.at
	}
	return dir, true
}

func cgroupMounts(mountinfo string) (v1 map[string]cgroupMount, v2 cgroupMount) {
	v1 = map[string]cgroupMount{}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		m := cgroupMount{root: left[3], at: left[4]}
		switch right[0] {
		case "cgroup2":
			v2 = m
		case "cgroup":
			for option := range strings.SplitSeq(right[2], ",") {
				if slices.Contains(controllers, option) {
					v1[option] = m
				}
			}
		}
	}
	return v1, v2
}

// delegated tells whether children of a v2 cgroup can be given memory and pids, and gives them if need be.
func delegated(dir string) bool {
	has := func(file string) bool {
		b, _ := os.ReadFile(filepath.Join(dir, file))
		words := strings.Fields(string(b))
		return slices.Contains(words, "memory") && slices.Contains(words, "pids")
	}
	if has("cgroup.subtree_control") {
		return true
	}
	if !has("cgroup.controllers") {
		return false
	}
	enable := func() error {
		return errors.Join(
			os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids"), 0),
			ignore(os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+cpu"), 0)))
	}
	if err := enable(); err == nil {
		return true
	}
	// A cgroup with processes of its own can give nothing to children: move them into a leaf.
	leaf := filepath.Join(dir, daemonLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return false
	}
	for _, pid := range processesOf(dir) {
		_ = os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
	return enable() == nil
}

func ignore(error) error { return nil }

func canMake(parent string) bool {
	dir, err := os.MkdirTemp(parent, groupPrefix+"try-")
	if err != nil {
		return false
	}
	return os.Remove(dir) == nil
}

// group is the cgroups of one sandbox; with mode soft it has none and answers nothing.
type group struct {
	mode string
	dirs map[string]string // as groupPlaces.parents
}

// named is the group of a sandbox, whether it exists or not.
func (p groupPlaces) named(id string) *group {
	g := &group{mode: p.mode, dirs: map[string]string{}}
	for c, parent := range p.parents {
		g.dirs[c] = filepath.Join(parent, groupPrefix+id)
	}
	return g
}

// dir is the directory with a controller's files.
func (g *group) dir(controller string) string {
	if g.mode == "v2" {
		controller = ""
	}
	return g.dirs[controller]
}

// create makes the cgroups and sets their limits.
func (g *group) create(l *executor.Limits) error {
	for _, dir := range g.dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making a cgroup: %w", err)
		}
	}
	set := func(controller, file string, value any, needed bool) error {
		dir := g.dir(controller)
		if dir == "" {
			return nil
		}
		err := os.WriteFile(filepath.Join(dir, file), []byte(fmt.Sprint(value)), 0)
		if err != nil && needed {
			return fmt.Errorf("setting a cgroup's limit: %w", err)
		}
		return nil
	}
	const period = 100_000 // microseconds, the kernel's default
	quota := l.CPUMillis * period / 1000
	switch g.mode {
	case "v2":
		cpu := "max"
		if quota > 0 {
			cpu = strconv.FormatInt(max(quota, 1000), 10)
		}
		return errors.Join(
			set("", "memory.max", l.Memory, true), set("", "memory.swap.max", 0, false),
			set("", "pids.max", l.Processes, true), set("", "cpu.max", fmt.Sprintf("%s %d", cpu, period), false))
	case "v1":
		if quota == 0 {
			quota = -1
		}
		return errors.Join(
			set("memory", "memory.limit_in_bytes", l.Memory, true), set("memory", "memory.memsw.limit_in_bytes", l.Memory, false),
			set("memory", "memory.swappiness", 0, false), set("pids", "pids.max", l.Processes, true), set("cpu", "cpu.cfs_quota_us", quota, false))
	}
	return nil
}

// inode is part of a sandbox's identity; 0 without cgroups.
func (g *group) inode() uint64 {
	var st unix.Stat_t
	if dir := g.dir("memory"); dir == "" || unix.Stat(dir, &st) != nil {
		return 0
	}
	return st.Ino
}

// enter moves the calling thread into the cgroups of v1, so that what it forks is born there, and returns how it
// comes back. For v2 the clone itself places the child.
func (g *group) enter() (leave func(), err error) {
	if g.mode != "v1" {
		return func() {}, nil
	}
	tid := []byte(strconv.Itoa(unix.Gettid()))
	var back []string
	leave = func() {
		for _, file := range back {
			_ = os.WriteFile(file, tid, 0)
		}
	}
	for _, dir := range g.dirs {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), tid, 0); err != nil {
			leave()
			return nil, fmt.Errorf("entering a cgroup: %w", err)
		}
		back = append(back, filepath.Join(filepath.Dir(dir), "tasks"))
	}
	return leave, nil
}

// number reads a file that has one number, or the number that follows a word in a file of words and numbers.
func (g *group) number(controller, file, word string) int64 {
	dir := g.dir(controller)
	if dir == "" {
		return 0
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	if word == "" {
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return n
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == word {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// oomKills is how many processes the kernel has killed for the memory limit so far.
func (g *group) oomKills() int64 {
	if g.mode == "v2" {
		return g.number("", "memory.events", "oom_kill")
	}
	return g.number("memory", "memory.oom_control", "oom_kill")
}

// cpu is processor time used so far.
func (g *group) cpu() time.Duration {
	if g.mode == "v2" {
		return time.Duration(g.number("", "cpu.stat", "usage_usec")) * time.Microsecond
	}
	return time.Duration(g.number("cpuacct", "cpuacct.usage", ""))
}

// peak is the largest memory since the last resetPeak, where the kernel can reset it.
func (g *group) peak() int64 {
	if g.mode == "v2" {
		return max(g.number("", "memory.peak", ""), g.number("", "memory.current", ""))
	}
	return g.number("memory", "memory.max_usage_in_bytes", "")
}

func (g *group) resetPeak() {
	if g.mode == "v1" {
		_ = os.WriteFile(filepath.Join(g.dir("memory"), "memory.max_usage_in_bytes"), []byte("0"), 0)
	}
}

// resident is the memory that is used and cannot be dropped.
func (g *group) resident() int64 {
	if g.mode == "v2" {
		return g.number("", "memory.current", "") - g.number("", "memory.stat", "inactive_file")
	}
	return g.number("memory", "memory.usage_in_bytes", "") - g.number("memory", "memory.stat", "total_inactive_file")
}

// processesOf lists the processes of one cgroup directory.
func processesOf(dir string) (pids []int) {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if pid, err := strconv.Atoi(s.Text()); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill sends SIGKILL to whatever is in the group. A process is held by a descriptor first and then looked for in the
// group again, so that a number that was taken by somebody else meanwhile is never hit.
func (g *group) kill() {
	if g.mode == "v2" && os.WriteFile(filepath.Join(g.dir(""), "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	freeze := func(state string) {
		if dir := g.dirs["freezer"]; dir != "" {
			_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte(state), 0)
		}
	}
	freeze("FROZEN")
	for _, dir := range g.dirs {
		for _, pid := range processesOf(dir) {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			if slices.Contains(processesOf(dir), pid) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			_ = unix.Close(fd)
		}
	}
	freeze("THAWED")
}

// remove removes the cgroups, killing what is in them, and says whether all are gone. It takes up to the given time.
func (g *group) remove(within time.Duration) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); ; <-tick.C {
		var err error
		for _, dir := range g.dirs {
			if e := unix.Rmdir(dir); e != nil && !errors.Is(e, unix.ENOENT) {
				err = fmt.Errorf("removing cgroup %s: %w", dir, e)
			}
		}
		if err == nil || time.Now().After(end) {
			return err
		}
		g.kill()
	}
}
