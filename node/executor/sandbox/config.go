//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Config is the backend's configuration.
type Config struct {
	// Dir is an absolute host directory of the backend's own, made with mode 0700: sandboxes, sockets, exit files.
	Dir string
	// Shim is the command that ends up in RunShim with the arguments that are appended to it: the gridbeam binary's
	// absolute path and "shim".
	Shim []string
	// Init is the command that ends up in RunInit: the same binary's absolute path and "sandbox-init".
	Init []string
	// Bubblewrap is the path of bwrap; default /usr/bin/bwrap.
	Bubblewrap string
	// Python lists interpreters to try, below /usr; default /usr/bin/python3 and /usr/local/bin/python3.
	Python []string
	// UIDBase is the first of the 2^24 user IDs that sandboxes run as when the daemon is root, one each; default
	// 1,879,048,192, the begin of the range that systemd leaves to nobody (uids-gids in its documentation).
	UIDBase uint32
	// KeepWarm is how long a sandbox waits for more work of its spec, at most: a function may ask for less; default 10 min
	// (execution.md 11).
	KeepWarm time.Duration
	// KeepOrphan is the same for a sandbox whose daemon is gone: it waits for the daemon's next start; default 30 s.
	KeepOrphan time.Duration
	// MaxWarm bounds the sandboxes that wait; the least recently used is ended first; default 8, a node's chunks.
	MaxWarm int
	// MaxAge ends a sandbox that is as old, once it is idle; default 1 h (execution.md 11).
	MaxAge time.Duration
	// MaxInputs ends a sandbox that has served as many inputs, once it is idle; default 10,000 (execution.md 11).
	MaxInputs int
	// NoCgroups gives up cgroups even where they could be made; for tests.
	NoCgroups bool
}

// DefaultConfig returns the defaults, without Dir, Shim and Init.
func DefaultConfig() Config {
	return Config{
		Bubblewrap: "/usr/bin/bwrap",
		Python:     []string{"/usr/bin/python3", "/usr/local/bin/python3"},
		UIDBase:    1_879_048_192,
		KeepWarm:   10 * time.Minute,
		KeepOrphan: 30 * time.Second,
		MaxWarm:    8,
		MaxAge:     time.Hour,
		MaxInputs:  10_000,
	}
}

// Validate names the first field that is out of range.
func (c *Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("sandbox: Dir %q is not absolute", c.Dir)
	case len(c.Shim) == 0 || !filepath.IsAbs(c.Shim[0]):
		return fmt.Errorf("sandbox: Shim %q does not begin with an absolute path", c.Shim)
	case len(c.Init) == 0 || !filepath.IsAbs(c.Init[0]):
		return fmt.Errorf("sandbox: Init %q does not begin with an absolute path", c.Init)
	case !filepath.IsAbs(c.Bubblewrap):
		return fmt.Errorf("sandbox: Bubblewrap %q is not absolute", c.Bubblewrap)
	case len(c.Python) == 0:
		return errors.New("sandbox: Python is empty")
	case c.UIDBase < 1000 || c.UIDBase > 1<<31-uidRange:
		return fmt.Errorf("sandbox: UIDBase is %d, want 1000 to %d", c.UIDBase, 1<<31-uidRange)
	case c.KeepWarm <= 0:
		return errors.New("sandbox: KeepWarm has to be more than 0")
	case c.KeepOrphan <= 0:
		return errors.New("sandbox: KeepOrphan has to be more than 0")
	case c.MaxWarm < 0:
		return errors.New("sandbox: MaxWarm is negative")
	case c.MaxAge <= 0:
		return errors.New("sandbox: MaxAge has to be more than 0")
	case c.MaxInputs <= 0:
		return errors.New("sandbox: MaxInputs has to be more than 0")
	}
	return nil
}

// uidRange is the number of user IDs from UIDBase on.
const uidRange = 1 << 24
