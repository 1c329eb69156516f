package journal

import (
	"os"
	"syscall"
)

// dataSync makes the file's data durable; its size and blocks are already.
func dataSync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
