//go:build linux

package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

// hideFiles has ways to write to the disk where a look at the trees sees nothing; each writes 48 MiB.
const hideFiles = `import ctypes, os, threading, time
MiB = 1 << 20
L = ctypes.CDLL(None, use_errno=True)
L.mmap.restype = ctypes.c_void_p
L.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
EXIT = 60 if os.uname().machine == 'x86_64' else 93
def unlinked(n):
    fd = os.open('/mnt/code/gone%d' % n, os.O_RDWR | os.O_CREAT)
    os.unlink('/mnt/code/gone%d' % n)
    os.write(fd, b'x' * 16 * MiB)
    return fd
def opened():
    for n in range(3): unlinked(n)
def elsewhere():
    if os.fork() == 0:
        os.setsid()
        opened()
        time.sleep(60)
def mapped():
    for n in range(3):
        fd = unlinked(n)
        if L.mmap(None, 16 * MiB, 3, 1, fd, 0) in (None, -1): raise OSError
        os.close(fd)
def headless():
    if os.fork() == 0:
        threading.Thread(target=lambda: (opened(), time.sleep(60))).start()
        L.syscall(EXIT, 0)
def locked():
    os.makedirs('/mnt/code/a/b')
    for n in range(48): open('/mnt/code/a/b/%d' % n, 'wb').write(b'x' * MiB)
    os.chmod('/mnt/code/a/b', 0)
    os.chmod('/mnt/code/a', 0)
def unpassable():
    os.mkdir('/mnt/code/a')
    for n in range(48): open('/mnt/code/a/%d' % n, 'wb').write(b'x' * MiB)
    os.chmod('/mnt/code/a', 0o600)
def deep():
    os.chdir('/mnt/code')
    for n in range(400):
        os.mkdir('d')
        os.chdir('d')
def f(how):
    globals()[how]()
    time.sleep(60)
`

func TestFilesThatNobodySeesCount(t *testing.T) {
	modes(t, func(t *testing.T, b *Backend) {
		for _, how := range []string{"opened", "elsewhere", "mapped", "headless", "locked", "unpassable", "deep"} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				task := job(t, hideFiles, []any{how})
				task.Limits.Disk = 32 << 20
				task.Limits.Memory = 1 << 30
				task.Limits.Wall /= 3
				out := want(t, b, task, protocol.ReasonDiskFull)
				if took := out.Ended.Sub(out.Started); took > task.Limits.Wall/2 {
					t.Errorf("it was seen after %s", took)
				}
			})
		}
	})
}

func TestAFileIsNoLargerThanTheDiskLimit(t *testing.T) {
	b := newBackend(t, nil)
	task := job(t, "import os\ndef f():\n    fd = os.open('/mnt/code/x', os.O_RDWR | os.O_CREAT)\n    os.ftruncate(fd, 33 << 20)\n", nil)
	task.Limits.Disk = 32 << 20
	want(t, b, task, protocol.ReasonDone)
	if o, _ := outcomeOf(t, task, 0); o.Reason != protocol.ReasonExitNonzero || !strings.Contains(o.Text, "File too large") {
		t.Errorf("outcome is %+v", o)
	}
}

func TestTreesCountEachFileOnce(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "sub", "file"), make([]byte, 1<<20), 0o644),
		os.Link(filepath.Join(dir, "sub", "file"), filepath.Join(dir, "again")), os.Symlink("/usr", filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const whole = 1<<20 + 4*entryBytes // a file, its second name, a link, two directories' own, of which the first is not counted
	if got, err := treeSize(1<<30, dir); err != nil || got < whole-entryBytes || got > whole+entryBytes {
		t.Errorf("it takes %d bytes, want %d: %v", got, whole, err)
	}
	if got, err := treeSize(1<<19, dir); err != nil || got <= 1<<19 {
		t.Errorf("counting as far as a limit found %d bytes, %v", got, err)
	}
	if got, err := treeSize(1<<30, filepath.Join(dir, "gone")); err != nil || got != 0 {
		t.Errorf("a directory that is gone takes %d bytes, %v", got, err)
	}
}

func TestMapsSayWhichFilesHaveNoName(t *testing.T) {
	for line, want := range map[string]bool{
		"7f7ca4530000-7f7ca4630000 rw-s 00001000 fe:00 9978443                    /tmp/x y (deleted)": true,
		"7f7ca4530000-7f7ca4630000 rw-s 00000000 fe:00 9978443                    /tmp/x":             false,
		"7f7ca4530000-7f7ca4630000 rw-s 00000000 00:00 0 ":                                            false,
		"x-y rw-s 00000000 fe:00 9978443 /tmp/x (deleted)":                                            false,
		"ffffffffffffffff-0 rw-s 00000000 fe:00 9978443 /tmp/x (deleted)":                             false,
		"": false,
	} {
		at, id, end, ok := parseMap(line)
		if ok != want || ok && (at != "7f7ca4530000-7f7ca4630000" || id.ino != 9978443 || end != 1<<20+4096) {
			t.Errorf("%q: %s, %+v, %d, %v", line, at, id, end, ok)
		}
	}
}
