package volumes

import (
	"fmt"
	"time"
)

// Config says where and how trees are kept.
type Config struct {
	// Dir is the directory of the store, usually <data>/volumes. No default.
	Dir string
	// Reserve is the free space in bytes that writes leave on the disk. Default 256 MiB: the index needs
	// room to compact itself, and a full disk stops more than this program.
	Reserve uint64
	// PackSize is the length in bytes at which a new pack file begins. Default 64 MiB (volumes.md 5).
	PackSize int64
	// Inline is the largest leaf in bytes that is kept in the index. Default 4 KiB: smaller than a pack's
	// record is worth, larger costs the index too much copying.
	Inline int
	// SyncBytes is how many bytes may wait for the disk before a write waits. Default 64 MiB (volumes.md 8).
	SyncBytes int64
	// Cache is the memory in bytes for the index. Default 64 MiB: below that, merging and serving many small
	// files reads the disk for most lookups.
	Cache int64
	// ReadTimeout is how long a read of an FS waits for a missing block. Default 60 s (volumes.md 7).
	ReadTimeout time.Duration
	// MaxBlocks bounds the distinct blocks of one tree. Default 16 Mi: 16 TiB of leaves.
	MaxBlocks int
}

// DefaultConfig returns the defaults for a store in dir.
func DefaultConfig(dir string) Config {
	return Config{
		Dir: dir, Reserve: 256 << 20, PackSize: 64 << 20, Inline: 4 << 10, SyncBytes: 64 << 20,
		Cache: 64 << 20, ReadTimeout: time.Minute, MaxBlocks: 16 << 20,
	}
}

// Validate returns ErrConfig naming the field that is out of range.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return fmt.Errorf("%w: Dir is empty; name the data directory", ErrConfig)
	case c.PackSize < 1<<20 || c.PackSize > 1<<40:
		return fmt.Errorf("%w: PackSize is %d, want 1 MiB to 1 TiB", ErrConfig, c.PackSize)
	case c.Inline < 0 || c.Inline > 1<<20:
		return fmt.Errorf("%w: Inline is %d, want 0 to 1 MiB", ErrConfig, c.Inline)
	case c.SyncBytes < 1:
		return fmt.Errorf("%w: SyncBytes is %d, want at least 1", ErrConfig, c.SyncBytes)
	case c.Cache < 1<<20:
		return fmt.Errorf("%w: Cache is %d, want at least 1 MiB", ErrConfig, c.Cache)
	case c.ReadTimeout <= 0:
		return fmt.Errorf("%w: ReadTimeout is %s, want more than 0", ErrConfig, c.ReadTimeout)
	case c.MaxBlocks < 1:
		return fmt.Errorf("%w: MaxBlocks is %d, want at least 1", ErrConfig, c.MaxBlocks)
	}
	return nil
}

// NetConfig tunes serving and fetching (volumes.md 6 and 17 give the measurements behind the defaults).
type NetConfig struct {
	// Outstanding is how many bytes may be on their way to one peer. Default 32 MiB: bitswap's own 1 MiB is
	// one block per round trip.
	Outstanding int
	// Workers serve peers side by side. Default 32.
	Workers int
	// Window is the most wants that one Fetch has outstanding. Default 512: servers drop what exceeds 1,024.
	Window int
	// WindowBytes is the most expected bytes that one Fetch has outstanding. Default 64 MiB.
	WindowBytes uint64
	// Stall is how long a Fetch waits with nothing arriving. Default 60 s.
	Stall time.Duration
	// Connect is how long connecting to the holders may take. Default 15 s.
	Connect time.Duration
	// Ban is how long a peer that sent wrong bytes is not asked. Default 1 h.
	Ban time.Duration
	// Grace is the time after the start in which bytes that nobody asked for are dropped without blame:
	// peers may still answer what this host asked before it restarted. Default 30 s.
	Grace time.Duration
	// AuthTTL is how long an answer of the Authorizer is remembered. Default 2 s: a revocation stops
	// fetches within 5 s (volumes.md 11).
	AuthTTL time.Duration
	// Evidence, if not nil, is told of a peer that sent wrong bytes. It must not block.
	Evidence func(Evidence)
}

// DefaultNetConfig returns the defaults.
func DefaultNetConfig() NetConfig {
	return NetConfig{
		Outstanding: 32 << 20, Workers: 32, Window: 512, WindowBytes: 64 << 20, Stall: time.Minute,
		Connect: 15 * time.Second, Ban: time.Hour, Grace: 30 * time.Second, AuthTTL: 2 * time.Second,
	}
}

// Validate returns ErrConfig naming the field that is out of range.
func (c NetConfig) Validate() error {
	switch {
	case c.Outstanding < 1<<20:
		return fmt.Errorf("%w: Outstanding is %d, want at least one leaf of 1 MiB", ErrConfig, c.Outstanding)
	case c.Workers < 1:
		return fmt.Errorf("%w: Workers is %d, want at least 1", ErrConfig, c.Workers)
	case c.Window < 1 || c.Window > 1024:
		return fmt.Errorf("%w: Window is %d, want 1 to 1024", ErrConfig, c.Window)
	case c.WindowBytes < 1<<20:
		return fmt.Errorf("%w: WindowBytes is %d, want at least one leaf of 1 MiB", ErrConfig, c.WindowBytes)
	case c.Stall <= 0 || c.Connect <= 0 || c.Ban < 0 || c.Grace < 0 || c.AuthTTL < 0:
		return fmt.Errorf("%w: Stall and Connect have to be more than 0; Ban, Grace and AuthTTL not less", ErrConfig)
	}
	return nil
}
