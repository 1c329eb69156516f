//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights of Landlock, by what is done with a tree (linux/landlock.h).
const (
	landRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	landFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	landMake = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	landDevices = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	landFileAll = landFile | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV // what a rule of a file may name
)

// landlockABI is the kernel's version of Landlock, 0 if it has none.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// landRules is what a sandbox may reach.
type landRules struct {
	// Read are trees that are read and executed.
	Read []string `json:"read"`
	// Write are trees in which everything may be done but making devices.
	Write []string `json:"write"`
	// Files are files that are read and written, devices among them.
	Files []string `json:"files"`
	// List are directories whose names may be listed, with all below them.
	List []string `json:"list"`
}

// landPlan is what a version of Landlock enforces.
type landPlan struct {
	attr  unix.LandlockRulesetAttr
	size  uintptr  // of attr that the version knows
	write uint64   // rights in trees that may be written
	files uint64   // rights of files
	lacks []string // what newer versions enforce and this one does not
}

// planLandlock decides what is enforced with a version of Landlock. Without any there is no sandbox. What a version lacks
// the namespaces, the seccomp filter and the mounts forbid by themselves; it is the wall behind them that is missing.
func planLandlock(abi int) (*landPlan, error) {
	if abi < 1 {
		return nil, errors.New("this kernel has no Landlock: run Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and lsm=landlock,… on its command line")
	}
	p := &landPlan{write: landRead | landFile | landMake, files: landFile}
	fs := uint64(landRead | landFile | landMake | landDevices)
	p.size = unsafe.Sizeof(p.attr.Handled_access_fs)
	if abi >= 2 { // before, a file cannot be moved to another directory at all
		fs |= unix.LANDLOCK_ACCESS_FS_REFER
		p.write |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
		p.write |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
		p.files |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	} else {
		p.lacks = append(p.lacks, "truncation")
	}
	if abi >= 4 { // no rule allows a port: no TCP at all
		p.attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		p.size = unsafe.Offsetof(p.attr.Scoped)
	} else {
		p.lacks = append(p.lacks, "TCP")
	}
	if abi >= 5 {
		fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
		p.files |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	} else {
		p.lacks = append(p.lacks, "ioctl")
	}
	if abi >= 6 {
		p.attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		p.size = unsafe.Offsetof(p.attr.Quiet_access_fs)
	} else {
		p.lacks = append(p.lacks, "signals", "abstract sockets")
	}
	p.attr.Handled_access_fs = fs
	return p, nil
}

// words is what the node says of the isolation by a version of Landlock.
func (p *landPlan) words(abi int) string {
	if len(p.lacks) == 0 {
		return fmt.Sprintf("landlock %d", abi)
	}
	return fmt.Sprintf("landlock %d (not of %s)", abi, strings.Join(p.lacks, ", "))
}

// restrict puts the calling thread, and whatever it becomes or starts, under the rules. It needs no_new_privs.
func (l *landRules) restrict() error {
	plan, err := planLandlock(landlockABI())
	if err != nil {
		return err
	}
	set, err := l.ruleset(plan)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(set) }()
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0); errno != 0 {
		return fmt.Errorf("restricting itself by Landlock: %w", errno)
	}
	return nil
}

// ruleset makes the rules as far as a plan goes.
func (l *landRules) ruleset(plan *landPlan) (int, error) {
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&plan.attr)), plan.size, 0)
	if errno != 0 {
		return -1, fmt.Errorf("making a Landlock ruleset: %w", errno)
	}
	for _, part := range []struct {
		paths  []string
		rights uint64
	}{
		{l.Read, landRead},
		{l.Write, plan.write},
		{l.Files, plan.files},
		{l.List, unix.LANDLOCK_ACCESS_FS_READ_DIR},
	} {
		for _, path := range part.paths {
			if err := landAllow(int(set), path, part.rights); err != nil {
				return -1, errors.Join(err, unix.Close(int(set)))
			}
		}
	}
	return int(set), nil
}

func landAllow(set int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // what is not there needs no rule
	}
	if err != nil {
		return fmt.Errorf("opening %s for Landlock: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at %s for Landlock: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= landFileAll
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("allowing %s by Landlock: %w", path, errno)
	}
	return nil
}
