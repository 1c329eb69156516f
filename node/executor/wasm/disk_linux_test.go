package wasm

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestModuleThatFillsTheDiskEndsOnANodeWithoutRoom(t *testing.T) {
	b := newBackend(t, nil)
	module := guestModule(t)
	task := newTask(t, module.CID, nil)
	task.Module = module
	task.Command = []string{"guest", "fill", "/out/f", "4194304", "whatever happens"}
	if err := unix.Mount("gridbeam-test", task.OutDir, "tmpfs", 0, "size=1m"); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			t.Skip("mounting a small tmpfs needs root: run this test as root to see a full disk")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(task.OutDir, 0); err != nil {
			t.Error(err)
		}
	})
	out := runTask(t, b, task)
	if out.Reason != protocol.ReasonNodeDiskFull || !strings.Contains(out.FirstCause, "no space left") {
		t.Errorf("outcome is %+v", out)
	}
}
