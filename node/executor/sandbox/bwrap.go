//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/node/executor"
)

// Paths inside of a sandbox.
const (
	insideCode   = "/mnt/code"
	insideOurs   = "/run/gridbeam"
	insideInit   = insideOurs + "/init"
	insideRunner = insideOurs + "/python"
	insideID     = 1000 // user and group
)

// taken are paths that no mount may cover or contain.
var taken = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/proc", "/sys", "/dev", "/run", insideCode}

// boxSpec is all that a shim has to know to start its sandbox. The daemon writes it to the file spec.json.
type boxSpec struct {
	ID         string            `json:"id"`
	Tenant     string            `json:"tenant"`
	Spec       string            `json:"spec"`
	Bubblewrap string            `json:"bubblewrap"`
	Init       []string          `json:"init"`
	Python     string            `json:"python"`
	Runner     string            `json:"runner"` // host directory with the runner's files
	UID        int               `json:"uid"`    // negative: the daemon's own
	Handler    string            `json:"handler"`
	OnStart    string            `json:"on_start"`
	Code       string            `json:"code"`
	Workers    int               `json:"workers"`
	TimeoutMS  int64             `json:"timeout_ms"`
	Env        map[string]string `json:"env"`
	Mounts     []mountSpec       `json:"mounts"`
	Devices    []string          `json:"devices"`
	Limits     executor.Limits   `json:"limits"`
	KeepWarm   time.Duration     `json:"keep_warm"`
	KeepOrphan time.Duration     `json:"keep_orphan"`
	MaxAge     time.Duration     `json:"max_age"`
	MaxInputs  int               `json:"max_inputs"`
	Exits      string            `json:"exits"` // host directory of exit files
	NoCgroups  bool              `json:"no_cgroups"`
}

// mountSpec is an executor.Mount whose directory is on the host.
type mountSpec struct {
	Dir      string   `json:"dir"`
	Target   string   `json:"target"`
	Links    []string `json:"links"`
	ReadOnly bool     `json:"ro"`
}

// Names in the directory of a sandbox.
const (
	specName     = "spec.json"
	socketName   = "socket"
	identityName = "shim.json"
	shimLogName  = "shim.log"
	codeName     = "code"
	etcName      = "etc"
)

// writableName is the private copy of the n-th mount.
func writableName(n int) string { return "w" + strconv.Itoa(n) }

// bind is one thing of the host that is seen inside.
type bind struct {
	from, to string
	option   string // of bwrap
}

// stagePlaces are directories of the host on which a shim of root may mount its stage, in its own mount namespace.
var stagePlaces = []string{"/mnt", "/media", "/srv", "/tmp"}

// stage mounts all sources below a directory that every user may pass, because bwrap runs as a user who may not pass
// the directories that they lie in. The shim has a mount namespace of its own, so nobody else sees it and it goes with
// the shim.
func stage(binds []bind) error {
	fds := make([]int, len(binds))
	for i, b := range binds { // first all: the stage may cover one
		fd, err := unix.Open(b.from, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", b.from, err)
		}
		defer func() { _ = unix.Close(fd) }()
		fds[i] = fd
	}
	var at string
	err := errors.New("none of the directories exists")
	for _, at = range stagePlaces {
		if err = unix.Mount("gridbeam", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,size=1m"); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("mounting the stage on one of %v: %w", stagePlaces, err)
	}
	for i := range binds {
		to := filepath.Join(at, strconv.Itoa(i))
		var st unix.Stat_t
		if err := unix.Fstat(fds[i], &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = os.Mkdir(to, 0o711)
		} else {
			err = os.WriteFile(to, nil, 0o644)
		}
		if err == nil {
			err = unix.Mount("/proc/self/fd/"+strconv.Itoa(fds[i]), to, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("staging %s: %w", binds[i].from, err)
		}
		binds[i].from = to
	}
	return nil
}

// hostBinds are the parts of the host that every sandbox sees.
func hostBinds() (binds []bind, options []string) {
	binds = []bind{{"/usr", "/usr", "--ro-bind"}}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		switch target, err := os.Readlink(dir); {
		case err == nil:
			options = append(options, "--symlink", target, dir)
		case isDir(dir):
			binds = append(binds, bind{dir, dir, "--ro-bind"})
		}
	}
	for _, path := range []string{"/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/etc/ssl/certs", "/etc/ca-certificates.conf", "/etc/mime.types"} {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			binds = append(binds, bind{target, path, "--ro-bind"})
		}
	}
	return binds, options
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// ownEtc are files of /etc that name nobody of the host.
var ownEtc = map[string]string{
	"passwd":        "root:x:0:0::/:/bin/false\nbeam:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
	"group":         "root:x:0:\nbeam:x:1000:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

// binds are all that a sandbox sees of the host; dir is the sandbox's own directory, whose copies are made.
func (s *boxSpec) binds(dir string) (binds []bind, options []string) {
	binds, options = hostBinds()
	for _, name := range []string{"passwd", "group", "hosts", "nsswitch.conf"} {
		binds = append(binds, bind{filepath.Join(dir, etcName, name), "/etc/" + name, "--ro-bind"})
	}
	binds = append(binds,
		bind{s.Init[0], insideInit, "--ro-bind"}, bind{s.Runner, insideRunner, "--ro-bind"}, bind{filepath.Join(dir, codeName), insideCode, "--bind"})
	var mounts []bind
	for i, m := range s.Mounts {
		b := bind{m.Dir, m.Target, "--ro-bind"}
		if !m.ReadOnly {
			b = bind{filepath.Join(dir, writableName(i)), m.Target, "--bind"}
		}
		mounts = append(mounts, b)
		for _, link := range m.Links {
			if filepath.IsAbs(link) {
				options = append(options, "--symlink", m.Target, link)
			}
		}
	}
	slices.SortStableFunc(mounts, func(a, b bind) int { return len(a.to) - len(b.to) }) // outer ones first
	return append(binds, mounts...), options
}

// scratch is the size of /tmp and of /dev/shm each, in bytes. They lie in memory, which bounds them anyway; a size
// below the limit makes "no space left" of what would be the end.
func (s *boxSpec) scratch() int64 { return min(s.Limits.Disk, s.Limits.Memory/2) }

// Descriptors of bubblewrap: the runner's socket, what it tells about the sandbox, and what it is told.
const (
	runnerFD  = 3
	infoFD    = 4
	optionsFD = 5
)

// bwrapArgs are bubblewrap's options, which it reads from optionsFD, and its arguments. The code can read the latter in
// /proc/1/cmdline, so they name nothing of the host.
func (s *boxSpec) bwrapArgs(binds []bind, options []string, soft bool) (hidden, shown []string, err error) {
	size := strconv.FormatInt(s.scratch(), 10)
	args := []string{
		"--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--disable-userns",
		"--die-with-parent", "--new-session", "--hostname", "gridbeam", "--uid", strconv.Itoa(insideID), "--gid", strconv.Itoa(insideID),
		"--info-fd", strconv.Itoa(infoFD), "--clearenv", "--cap-drop", "ALL",
		"--proc", "/proc", "--dev", "/dev",
	}
	for _, place := range scratchPlaces {
		args = append(args, "--size", size, "--tmpfs", place)
	}
	for _, b := range binds {
		args = append(args, b.option, b.from, b.to)
	}
	args = append(args, options...)
	order := initOrder{
		Land: landRules{
			Read:  []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/proc", insideRunner},
			Write: append(slices.Clone(scratchPlaces), insideCode),
			Files: []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"},
			List:  []string{"/"},
		},
		OpenFiles: uint64(s.Limits.OpenFiles),
		FileSize:  uint64(s.Limits.Disk), // behind the watch of the disk: what no look at the files sees is no larger, each
		// -I: no environment, no directory of the user's; nothing of the working directory.
		Command: []string{s.Python, "-I", insideRunner + "/runner.py"},
	}
	if soft {
		order.Processes, order.NoSysV = uint64(s.Limits.Processes), true
	}
	for _, m := range s.Mounts {
		if m.ReadOnly {
			order.Land.Read = append(order.Land.Read, m.Target)
		} else {
			order.Land.Write = append(order.Land.Write, m.Target)
		}
	}
	for _, d := range s.Devices {
		args = append(args, "--dev-bind", d, d)
		order.Land.Files = append(order.Land.Files, d)
	}
	raw, err := json.Marshal(order)
	if err != nil {
		return nil, nil, err
	}
	args = append(args, "--remount-ro", "/", "--chdir", insideCode)
	for name, value := range map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "USER": "beam", "LANG": "C.UTF-8", "TMPDIR": "/tmp",
	} {
		args = append(args, "--setenv", name, value)
	}
	shown = append([]string{"--args", strconv.Itoa(optionsFD), "--", insideInit}, s.Init[1:]...)
	return args, append(shown, string(raw)), nil
}

// optionsFile is a file in memory with bubblewrap's options.
func optionsFile(options []string) (*os.File, error) {
	fd, err := unix.MemfdCreate("options", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file for bubblewrap's options: %w", err)
	}
	f := os.NewFile(uintptr(fd), "options")
	if _, err = f.WriteString(strings.Join(options, "\x00") + "\x00"); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("writing bubblewrap's options: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

// prepareFiles makes the sandbox's private files in its directory.
func (s *boxSpec) prepareFiles(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, etcName), 0o755); err != nil {
		return err
	}
	for name, text := range ownEtc {
		if err := os.WriteFile(filepath.Join(dir, etcName, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	code := filepath.Join(dir, codeName)
	if err := copyTree(s.Code, code, s.UID); err != nil {
		return fmt.Errorf("copying the code: %w", err)
	}
	root, err := os.OpenRoot(code)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for i, m := range s.Mounts {
		if !m.ReadOnly {
			if err := copyTree(m.Dir, filepath.Join(dir, writableName(i)), s.UID); err != nil {
				return fmt.Errorf("copying what is mounted at %s: %w", m.Target, err)
			}
		}
		for _, link := range m.Links {
			if filepath.IsAbs(link) {
				continue
			}
			if err := s.link(root, filepath.Clean(link), m.Target); err != nil {
				return fmt.Errorf("linking %s to %s: %w", link, m.Target, err)
			}
		}
	}
	return nil
}

// link makes a link in the code's copy; what the user's files have there gives way, as it would to a mount.
func (s *boxSpec) link(root *os.Root, link, target string) error {
	if parent := filepath.Dir(link); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
		for p := parent; s.UID >= 0 && p != "."; p = filepath.Dir(p) {
			if err := root.Lchown(p, s.UID, s.UID); err != nil {
				return err
			}
		}
	}
	if err := root.RemoveAll(link); err != nil {
		return err
	}
	return root.Symlink(target, link)
}

// checkPaths refuses mounts and links that would cover what the sandbox itself needs. It names the field.
func checkPaths(t *executor.Task) error {
	for i, m := range t.Mounts {
		for _, p := range append([]string{m.Target}, m.Links...) {
			abs := filepath.IsAbs(p)
			if !abs && !filepath.IsLocal(p) || !abs && filepath.Clean(p) == "." {
				return fmt.Errorf("%w: Mounts[%d].Links: %q leads out of the work directory", executor.ErrBadTask, i, p)
			}
			for _, own := range taken {
				inCode := own == insideCode && strings.HasPrefix(p, own+"/")
				if abs && !inCode && (within(p, own) || within(own, p)) {
					return fmt.Errorf("%w: Mounts[%d]: %q overlaps %s, which the sandbox has itself", executor.ErrBadTask, i, p, own)
				}
			}
		}
	}
	for i, d := range t.Devices {
		if filepath.Clean(d.Path) != d.Path || !strings.HasPrefix(d.Path, "/dev/") {
			return fmt.Errorf("%w: Devices[%d].Path %q is no clean path below /dev", executor.ErrBadTask, i, d.Path)
		}
	}
	return nil
}

// within tells whether a path is a directory or lies in it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
