package wasm

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Config is the backend's configuration.
type Config struct {
	// CacheDir is an absolute host directory for machine code, made with mode 0700; empty keeps it in
	// memory only. Nobody else may write there: what is read back is run.
	CacheDir string
	// CacheBytes bounds CacheDir; default 2 GiB (execution.md 2).
	CacheBytes int64
	// CacheModules bounds the modules that are kept compiled in memory; default 32: a Go program takes
	// about 15 MiB.
	CacheModules int
	// CompileTimeout bounds one compilation; default 30 s, sixty times what a Go program takes.
	// One that cannot be interrupted then is left to itself, and its module is refused.
	CompileTimeout time.Duration
	// LoadTimeout bounds Module.Load; default 10 min, the limit of staging (execution.md 3).
	LoadTimeout time.Duration
	// ModuleBytes bounds a module; default 256 MiB.
	ModuleBytes int
}

// DefaultConfig returns the defaults, without a CacheDir.
func DefaultConfig() Config {
	return Config{
		CacheBytes:     2 << 30,
		CacheModules:   32,
		CompileTimeout: 30 * time.Second,
		LoadTimeout:    10 * time.Minute,
		ModuleBytes:    256 << 20,
	}
}

// Validate names the first field that is out of range.
func (c *Config) Validate() error {
	switch {
	case c.CacheDir != "" && !filepath.IsAbs(c.CacheDir):
		return fmt.Errorf("wasm: CacheDir %q is not absolute", c.CacheDir)
	case c.CacheBytes <= 0:
		return errors.New("wasm: CacheBytes has to be more than 0")
	case c.CacheModules <= 0:
		return errors.New("wasm: CacheModules has to be more than 0")
	case c.CompileTimeout <= 0:
		return errors.New("wasm: CompileTimeout has to be more than 0")
	case c.LoadTimeout <= 0:
		return errors.New("wasm: LoadTimeout has to be more than 0")
	case c.ModuleBytes <= 0:
		return errors.New("wasm: ModuleBytes has to be more than 0")
	}
	return nil
}
