package wasm

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// cpuClock measures the processor time of the thread that a run is bound to, and can be read from any
// other thread while that one lives.
type cpuClock struct {
	id    int32
	begin time.Duration
}

// bindCPU binds the calling goroutine to its thread until the returned function is called.
func bindCPU() (*cpuClock, func()) {
	runtime.LockOSThread()
	// The kernel's encoding of "CPU time of thread tid": the complement of tid, 3 bits of flags, of which 4
	// says thread and 2 says scheduler clock (include/linux/posix-timers.h).
	c := &cpuClock{id: int32(^unix.Gettid()<<3) | 6}
	c.begin, _ = c.read()
	return c, runtime.UnlockOSThread
}

func (c *cpuClock) read() (time.Duration, bool) {
	var ts unix.Timespec
	if err := unix.ClockGettime(c.id, &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}

// used is the processor time since bindCPU.
func (c *cpuClock) used() time.Duration {
	now, ok := c.read()
	if !ok {
		return 0
	}
	return now - c.begin
}
