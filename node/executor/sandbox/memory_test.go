//go:build linux

package sandbox

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// shareMemory has ways to take memory that no process has for itself. MiB of each are said by the test.
const shareMemory = `import ctypes, mmap, os, time
MiB = 1 << 20
L = ctypes.CDLL(None, use_errno=True)
def touch(m, begin, end):
    for i in range(begin * MiB, end * MiB, 4096): m[i] = 1
def children(n, do):
    for i in range(n):
        if os.fork() == 0:
            do(i)
            time.sleep(60)
            os._exit(0)
def shared(n):
    global keep
    keep = mmap.mmap(-1, n * MiB)
    children(4, lambda i: touch(keep, n * i // 4, n * (i + 1) // 4))
def dropped(n):
    global keep
    keep = mmap.mmap(-1, n * MiB)
    for i in range(0, n, 8):
        touch(keep, i, min(n, i + 8))
        keep.madvise(mmap.MADV_DONTNEED)
def fill(fd, n):
    for i in range(n): os.write(fd, b'x' * MiB)
def memfd(n):
    fill(os.memfd_create('x'), n)
def closed(n):
    fd = os.memfd_create('x')
    fill(fd, n)
    L.mmap.restype = ctypes.c_void_p
    L.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    if L.mmap(None, n * MiB, 3, 1, fd, 0) in (None, -1): raise OSError
    os.close(fd)
def scratch(n):
    open('/tmp/x', 'wb').write(b'x' * (n // 2 * MiB))
    fd = os.open('/dev/shm/x', os.O_RDWR | os.O_CREAT)
    os.unlink('/dev/shm/x')
    os.chmod('/dev/shm', 0)
    os.chmod('/dev', 0)
    fill(fd, n // 2)
def copied(n):
    global keep
    keep = bytearray(b'x') * (n * MiB)
    children(4, lambda i: None)
def mapped(n):
    global keep
    f = open('/dev/shm/x', 'w+b')
    f.truncate(n * MiB)
    keep = mmap.mmap(f.fileno(), n * MiB)
    touch(keep, 0, n)
    children(4, lambda i: [keep[j] for j in range(0, n * MiB, 4096)])
def vforked(n):
    global keep
    keep = bytearray(b'x') * (n * MiB)
    os.mkfifo('/tmp/fifo')
    if os.fork() == 0:
        keep = None
        time.sleep(2)
        open('/tmp/fifo', 'wb').close()
        os._exit(0)
    os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, '/tmp/fifo', os.O_RDONLY, 0)])
def sysv(n):
    import errno
    if L.shmget(0, n * MiB, 0o1600) != -1 or ctypes.get_errno() != errno.EPERM: raise OSError('made a segment')
def f(how, n, wait):
    globals()[how](n)
    time.sleep(wait)
    return 'lived'
`

// TestMemoryThatIsSharedCounts takes memory that belongs to several processes or to none.
func TestMemoryThatIsSharedCounts(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		for _, how := range []string{"shared", "dropped", "memfd", "closed", "scratch"} {
			t.Run(how, func(t *testing.T) {
				if how == "shared" && !b.cfg.NoCgroups {
					t.Skip("the kernel ends those that touch a page too many, one after the other: the input itself is not among them")
				}
				task := job(t, shareMemory, []any{how, 160, 60})
				task.Limits.Memory = 128 << 20
				if how == "scratch" { // what is written first has half of it
					task.Inputs = job(t, shareMemory, []any{how, 126, 60}).Inputs
				}
				task.Limits.Wall /= 3
				out := wait(t, start(t, b, task))
				if out.Reason == protocol.ReasonOOM && out.FirstCause != "" {
					return // the whole sandbox went
				}
				if o, _ := outcomeOf(t, task, 0); out.Reason != protocol.ReasonDone || o.Reason != protocol.ReasonOOM {
					t.Errorf("ended with %s, the input with %+v", out.Reason, o)
				}
			})
		}
	})
}

// TestMemoryCountsOnce shares memory in ways in which a sum over the processes would count it several times.
func TestMemoryCountsOnce(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		for how, most := range map[string]int64{"copied": 128, "mapped": 128, "vforked": 200} {
			t.Run(how, func(t *testing.T) {
				task := job(t, shareMemory, []any{how, 48, 1}) // with five processes 240 MiB, were it counted by each
				task.Limits.Memory = 128 << 20
				if how == "vforked" { // two processes share all of it for two seconds
					task = job(t, shareMemory, []any{how, 130, 0})
					task.Limits.Memory = 230 << 20
					task.Function.Spec = how
				}
				out := want(t, b, task, protocol.ReasonDone)
				if o, result := outcomeOf(t, task, 0); result != `"lived"` || out.Usage.MaxMemoryBytes < 40<<20 || out.Usage.MaxMemoryBytes > most<<20 {
					t.Errorf("it had %d bytes and ended with %+v", out.Usage.MaxMemoryBytes, o)
				}
			})
		}
	})
}

func TestMemoryOfNoProcessIsRefusedWithoutCgroups(t *testing.T) {
	b := newBackend(t, func(c *Config) { c.NoCgroups = true })
	task := job(t, shareMemory, []any{"sysv", 1, 0})
	want(t, b, task, protocol.ReasonDone)
	if o, result := outcomeOf(t, task, 0); result != `"lived"` {
		t.Errorf("outcome is %+v", o)
	}
}

func TestAProcessThatIsGoneHasNoMemory(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if n := ownMemory(cmd.Process.Pid); n != 0 {
		t.Errorf("it has %d bytes", n)
	}
	if n, err := tmpfsUse("/proc/" + "0/root/tmp"); n != 0 || err != nil {
		t.Errorf("its files have %d bytes, %v", n, err)
	}
	if n := ownMemory(os.Getpid()); n < 1<<20 || n > 1<<40 {
		t.Errorf("this process has %d bytes", n)
	}
	if c := processCPU(os.Getpid()); c < 0 || c > time.Hour {
		t.Errorf("this process has taken %s", c)
	}
}
