package gpu

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrConfig means that a field of the configuration cannot be used; the text names it.
var ErrConfig = errors.New("gpu: bad configuration")

// Config says how GPUs are watched. DefaultConfig has the defaults that the fields name.
type Config struct {
	// Sysfs and Procfs are where the kernel tells of devices and processes. Default /sys and /proc.
	Sysfs, Procfs string
	// Patience bounds the reading of one device: one that does not answer is suspect. Default 10 s (discovery.md 1).
	Patience time.Duration
	// Sample is the time between two looks at each device's health. Default 5 s.
	Sample time.Duration
	// Reread is the time between two readings of all; a driver that comes or goes is noticed with the next Sample. Default
	// 10 min.
	Reread time.Duration
	// HotC is the temperature in °C from which a device gets no new leases (execution.md 10). Default 83; 0 is none.
	HotC uint32
	// History is the file that keeps the faults of devices over restarts; empty keeps none. Default none.
	History string
	// Busy says whether a lease has the device with this UUID: what computes on it then is ours. It may be called at any
	// time; nil says no.
	Busy func(uuid string) bool
	// Changed is told that Inventory gives another answer about what can be sold. It must not block. nil is nobody.
	Changed func()
	// JobFault is told of an Xid that the program on a device is to blame for (13 31 43 45 68 109). It must not block. nil
	// is nobody.
	JobFault func(uuid string, xid uint64)
	// Prove has the GPU or MIG slice with a UUID compute, in another process, and says what came of it: Prover.Prove. It
	// may take a while, and returns soon after its context ends. A device is offered, at first and after anything was wrong
	// with it, when it has computed. Default nil: 60 s of quiet alone bring it back.
	Prove func(ctx context.Context, uuid string) Proof
	// Clock tells the time. Default time.Now.
	Clock func() time.Time
}

// DefaultConfig returns the defaults that the fields name.
func DefaultConfig() Config {
	return Config{Sysfs: "/sys", Procfs: "/proc", Patience: 10 * time.Second, Sample: 5 * time.Second, Reread: 10 * time.Minute, HotC: 83, Clock: time.Now}
}

// Validate returns ErrConfig naming the first field that cannot be used.
func (c Config) Validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Patience", c.Patience}, {"Sample", c.Sample}, {"Reread", c.Reread}} {
		if f.value < 10*time.Millisecond || f.value > time.Hour {
			return fmt.Errorf("%w: %s is %s, want 10 ms..1 h", ErrConfig, f.name, f.value)
		}
	}
	switch {
	case c.Sysfs == "":
		return fmt.Errorf("%w: Sysfs is empty, want a directory such as /sys", ErrConfig)
	case c.Procfs == "":
		return fmt.Errorf("%w: Procfs is empty, want a directory such as /proc", ErrConfig)
	case c.Clock == nil:
		return fmt.Errorf("%w: Clock is nil", ErrConfig)
	}
	return nil
}
