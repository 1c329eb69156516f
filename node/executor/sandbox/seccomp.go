//go:build linux && (amd64 || arm64)

package sandbox

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h), on a little-endian machine.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16 // the low halves are at dataArgs + 8 * n
)

// namespaces are all flags of clone that make a namespace. CLONE_NEWTIME lies among the bits of the exit signal and
// counts for clone3 and unshare only, which are refused as a whole.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// bothArchs are the system calls that code may make, of those that both architectures have. What is not here is EPERM:
// all of mount, ptrace and reading other processes, bpf, perf, keys, userfaultfd, io_uring, handles, namespaces, kernel
// modules, kexec, swap, clocks, quotas, accounting.
var bothArchs = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_MMAP, unix.SYS_MPROTECT, unix.SYS_MUNMAP, unix.SYS_BRK,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGTIMEDWAIT,
	unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_SIGSUSPEND, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_SIGALTSTACK, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV,
	unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_SCHED_YIELD, unix.SYS_MREMAP, unix.SYS_MSYNC,
	unix.SYS_MINCORE, unix.SYS_MADVISE, unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL, unix.SYS_SHMDT, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_NANOSLEEP,
	unix.SYS_GETITIMER, unix.SYS_SETITIMER, unix.SYS_GETPID, unix.SYS_SENDFILE, unix.SYS_CONNECT, unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_SENDTO,
	unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG, unix.SYS_SHUTDOWN, unix.SYS_BIND, unix.SYS_LISTEN,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SOCKETPAIR, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_TGKILL, unix.SYS_UNAME, unix.SYS_SEMGET,
	unix.SYS_SEMOP, unix.SYS_SEMCTL, unix.SYS_SEMTIMEDOP, unix.SYS_MSGGET, unix.SYS_MSGSND, unix.SYS_MSGRCV, unix.SYS_MSGCTL, unix.SYS_FCNTL, unix.SYS_FLOCK,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_TRUNCATE, unix.SYS_FTRUNCATE, unix.SYS_GETDENTS64, unix.SYS_GETCWD, unix.SYS_CHDIR, unix.SYS_FCHDIR,
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UMASK, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRLIMIT,
	unix.SYS_GETRUSAGE, unix.SYS_SYSINFO, unix.SYS_TIMES, unix.SYS_GETUID, unix.SYS_GETGID, unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_GETEUID,
	unix.SYS_GETEGID, unix.SYS_SETPGID, unix.SYS_GETPPID, unix.SYS_SETSID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_GETGROUPS, unix.SYS_SETGROUPS,
	unix.SYS_SETRESUID, unix.SYS_GETRESUID, unix.SYS_SETRESGID, unix.SYS_GETRESGID, unix.SYS_GETPGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_GETSID,
	unix.SYS_CAPGET, unix.SYS_CAPSET, unix.SYS_MKNODAT, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_GETPRIORITY, unix.SYS_SETPRIORITY,
	unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_GETPARAM, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_GETSCHEDULER, unix.SYS_SCHED_GET_PRIORITY_MAX,
	unix.SYS_SCHED_GET_PRIORITY_MIN, unix.SYS_SCHED_RR_GET_INTERVAL, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETATTR,
	unix.SYS_SCHED_GETATTR, unix.SYS_MLOCK, unix.SYS_MUNLOCK, unix.SYS_MLOCKALL, unix.SYS_MUNLOCKALL, unix.SYS_MLOCK2, unix.SYS_PRCTL, unix.SYS_SETRLIMIT,
	unix.SYS_PRLIMIT64, unix.SYS_SYNC, unix.SYS_SYNCFS, unix.SYS_SYNC_FILE_RANGE, unix.SYS_GETTID, unix.SYS_READAHEAD, unix.SYS_SETXATTR, unix.SYS_LSETXATTR,
	unix.SYS_FSETXATTR, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_FGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, unix.SYS_FLISTXATTR,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_FUTEX, unix.SYS_FUTEX_WAITV, unix.SYS_FUTEX_WAKE, unix.SYS_FUTEX_WAIT,
	unix.SYS_FUTEX_REQUEUE, unix.SYS_SET_TID_ADDRESS, unix.SYS_RESTART_SYSCALL, unix.SYS_FADVISE64, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME,
	unix.SYS_TIMER_GETTIME, unix.SYS_TIMER_GETOVERRUN, unix.SYS_TIMER_DELETE, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY,
	unix.SYS_GET_MEMPOLICY, unix.SYS_SET_MEMPOLICY_HOME_NODE, unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK, unix.SYS_MQ_TIMEDSEND, unix.SYS_MQ_TIMEDRECEIVE,
	unix.SYS_MQ_NOTIFY, unix.SYS_MQ_GETSETATTR, unix.SYS_IOPRIO_SET, unix.SYS_IOPRIO_GET, unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH,
	unix.SYS_INOTIFY_RM_WATCH, unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT,
	unix.SYS_SYMLINKAT, unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_PSELECT6, unix.SYS_PPOLL, unix.SYS_SET_ROBUST_LIST,
	unix.SYS_GET_ROBUST_LIST, unix.SYS_SPLICE, unix.SYS_TEE, unix.SYS_VMSPLICE, unix.SYS_UTIMENSAT, unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME,
	unix.SYS_TIMERFD_GETTIME, unix.SYS_SIGNALFD4, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_FALLOCATE, unix.SYS_GETCPU, unix.SYS_SECCOMP,
	unix.SYS_GETRANDOM, unix.SYS_MEMFD_CREATE, unix.SYS_MEMBARRIER, unix.SYS_COPY_FILE_RANGE, unix.SYS_PKEY_MPROTECT, unix.SYS_PKEY_ALLOC,
	unix.SYS_PKEY_FREE, unix.SYS_STATX, unix.SYS_RSEQ, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_CACHESTAT,
	unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF, unix.SYS_IO_SETUP, unix.SYS_IO_DESTROY,
	unix.SYS_IO_SUBMIT, unix.SYS_IO_CANCEL, unix.SYS_IO_GETEVENTS, unix.SYS_IO_PGETEVENTS,
}

// Answers of a filter.
var (
	answerAllow = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	answerPerm  = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	answerNosys = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	answerKill  = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS}
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func arg(n uint32) unix.SockFilter { return load(dataArgs + 8*n) }

// unless skips the next `then` instructions unless the accumulator compares to k.
func unless(compare uint16, k uint32, then int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | compare | unix.BPF_K, K: k, Jf: uint8(then)}
}

// when skips the next `then` instructions when the accumulator compares to k.
func when(compare uint16, k uint32, then int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | compare | unix.BPF_K, K: k, Jt: uint8(then)}
}

// seccompFilter is the whole filter for this architecture, as classic BPF. With noSysV the memory that System V's calls keep
// without any process is refused.
func seccompFilter(noSysV bool) []unix.SockFilter {
	f := []unix.SockFilter{load(dataArch), when(unix.BPF_JEQ, auditArch, 1), answerKill, load(dataNumber)}
	f = append(f, firstChecks...)
	special := func(number uint32, body ...unix.SockFilter) { // each body ends in an answer
		f = append(append(f, unless(unix.BPF_JEQ, number, len(body))), body...)
	}
	// glibc falls back to clone, whose flags can be looked at; those of clone3 lie in memory.
	special(unix.SYS_CLONE3, answerNosys)
	// Threads share their descriptors: with some of its own one could hide files from who counts them by the process.
	special(unix.SYS_CLONE, arg(0), unless(unix.BPF_JSET, namespaces, 1), answerPerm,
		when(unix.BPF_JSET, unix.CLONE_FILES, 2), unless(unix.BPF_JSET, unix.CLONE_THREAD, 1), answerPerm, answerAllow)
	special(unix.SYS_CLOSE_RANGE, arg(2), unless(unix.BPF_JSET, unix.CLOSE_RANGE_UNSHARE, 1), answerPerm, answerAllow)
	special(unix.SYS_SOCKET, arg(0),
		when(unix.BPF_JEQ, unix.AF_UNIX, 3), when(unix.BPF_JEQ, unix.AF_INET, 2), when(unix.BPF_JEQ, unix.AF_INET6, 1), answerPerm,
		arg(1), unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf}, // the rest are flags
		when(unix.BPF_JEQ, unix.SOCK_STREAM, 3), when(unix.BPF_JEQ, unix.SOCK_DGRAM, 2), when(unix.BPF_JEQ, unix.SOCK_SEQPACKET, 1), answerPerm, answerAllow)
	// Input pushed into a terminal is read by who owns it.
	special(unix.SYS_IOCTL, arg(1), when(unix.BPF_JEQ, unix.TIOCSTI, 2), when(unix.BPF_JEQ, unix.TIOCLINUX, 1), answerAllow, answerPerm)
	special(unix.SYS_PERSONALITY, arg(0), when(unix.BPF_JEQ, 0, 2), when(unix.BPF_JEQ, 0xffffffff, 1), answerPerm, answerAllow)
	if noSysV {
		special(unix.SYS_SHMGET, answerPerm)
		special(unix.SYS_MSGGET, answerPerm)
	}
	for _, r := range spans(append(slices.Clone(bothArchs), thisArch...)) {
		f = append(f, unless(unix.BPF_JGE, r[0], 2), when(unix.BPF_JGT, r[1], 1), answerAllow)
	}
	return append(f, answerPerm)
}

// spans turns numbers into the fewest ranges, ends included.
func spans(numbers []uint32) (out [][2]uint32) {
	slices.Sort(numbers)
	for _, n := range slices.Compact(numbers) {
		if last := len(out) - 1; last >= 0 && out[last][1]+1 == n {
			out[last][1] = n
			continue
		}
		out = append(out, [2]uint32{n, n})
	}
	return out
}

// setSeccomp puts the calling thread under the filter. It needs no_new_privs.
func setSeccomp(noSysV bool) error {
	filter := seccompFilter(noSysV)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("setting the seccomp filter: %w", errno)
	}
	return nil
}
