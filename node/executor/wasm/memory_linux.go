package wasm

import (
	"math"

	"golang.org/x/sys/unix"
)

// reserve maps size bytes of zeros that take no memory until they are touched. It returns nil where the
// kernel refuses (a limit of the address space): memory then comes from the heap.
func reserve(size uint64) ([]byte, func([]byte)) {
	if size == 0 || size > math.MaxInt {
		return nil, nil
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil
	}
	return b, func(b []byte) { _ = unix.Munmap(b) }
}
