package wasm

import "math"

// tick is how far each look at a clock moves it, in nanoseconds. Programs that wait by looking come to an
// end, and none sees the same instant twice.
const tick = 1000

// clock is an instance's only time: it starts at 0 (1970), moves by tick with each reading and by the whole
// length of each sleep, and never shows how fast the machine is. One clock serves wall time and monotonic
// time. It is used by the instance's goroutine only.
type clock struct{ ns int64 }

func (c *clock) advance(d int64) {
	if d > 0 {
		c.ns += min(d, math.MaxInt64-c.ns)
	}
}

func (c *clock) nanotime() int64 {
	c.advance(tick)
	return c.ns
}

func (c *clock) walltime() (sec int64, nsec int32) {
	ns := c.nanotime()
	return ns / 1e9, int32(ns % 1e9)
}

func (c *clock) sleep(ns int64) { c.advance(ns) }
