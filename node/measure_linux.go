package node

import (
	"os"

	"golang.org/x/sys/unix"
)

// oDirect opens files past the system's cache.
const oDirect = unix.O_DIRECT

// syncData makes what was written safe on the disk.
func syncData(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// dropCached makes the system read a file from its disk again.
func dropCached(f *os.File) error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
