//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// initPrefix begins whatever RunInit says when it fails, so that the shim can tell its words from the job's.
const initPrefix = "gridbeam sandbox-init: "

// initOrder is RunInit's argument.
type initOrder struct {
	// Land is what may be reached.
	Land landRules `json:"land"`
	// OpenFiles, Processes and FileSize, in bytes, are rlimits; 0 leaves them.
	OpenFiles uint64 `json:"open_files"`
	Processes uint64 `json:"processes"`
	FileSize  uint64 `json:"file_size"`
	// NoSysV refuses System V's shared memory and messages, which without cgroups nobody outside can count.
	NoSysV bool `json:"no_sysv"`
	// Command is what it becomes; its first element is a path.
	Command []string `json:"command"`
}

// RunInit is the body of the hidden command that is the first of ours inside a sandbox: it gives up what the code must
// not have and becomes the runner. args are those that the shim appended to Config.Init. It returns only with an error.
func RunInit(args []string) error {
	runtime.LockOSThread() // Landlock and seccomp are the thread's; the one that execs is the one that stays
	if len(args) != 1 {
		return errors.New(initPrefix + "want one argument: it is started by gridbeam only")
	}
	var order initOrder
	if err := json.Unmarshal([]byte(args[0]), &order); err != nil {
		return fmt.Errorf(initPrefix+"reading its order: %w", err)
	}
	if len(order.Command) == 0 {
		return errors.New(initPrefix + "its order has no command")
	}
	for _, limit := range []struct {
		what int
		most uint64
	}{{unix.RLIMIT_NOFILE, order.OpenFiles}, {unix.RLIMIT_NPROC, order.Processes}, {unix.RLIMIT_FSIZE, order.FileSize}, {unix.RLIMIT_CORE, 0}} {
		if limit.most == 0 && limit.what != unix.RLIMIT_CORE {
			continue
		}
		if err := unix.Prlimit(0, limit.what, &unix.Rlimit{Cur: limit.most, Max: limit.most}, nil); err != nil {
			return fmt.Errorf(initPrefix+"setting rlimit %d: %w", limit.what, err)
		}
	}
	// When the host is short of memory a job goes first (execution.md 3); where this is refused nothing is lost.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	// 3 is the socket to the shim; the rest is this process's own.
	if err := unix.CloseRange(4, 1<<31, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf(initPrefix+"closing descriptors: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf(initPrefix+"setting no_new_privs: %w", err)
	}
	if err := order.Land.restrict(); err != nil {
		return fmt.Errorf(initPrefix+"%w", err)
	}
	env := os.Environ()
	if err := setSeccomp(order.NoSysV); err != nil {
		return fmt.Errorf(initPrefix+"%w", err)
	}
	return fmt.Errorf(initPrefix+"starting %s: %w", order.Command[0], unix.Exec(order.Command[0], order.Command, env))
}
