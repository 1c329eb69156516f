//go:build !linux

package wasm

import "time"

// cpuClock takes a run's elapsed time for its processor time: a module computes all the time.
type cpuClock struct{ begin time.Time }

func bindCPU() (*cpuClock, func()) { return &cpuClock{begin: time.Now()}, func() {} }

func (c *cpuClock) used() time.Duration { return time.Since(c.begin) }
