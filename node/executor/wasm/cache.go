package wasm

import (
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
)

// compiled is a module in machine code.
type compiled struct {
	key       string // CID
	runtime   wazero.Runtime
	module    wazero.CompiledModule
	minMemory uint64 // bytes that an instance starts with

	// Guarded by memoryCache.mu.
	users   int
	evicted bool
	place   *list.Element
}

// memoryCache keeps compiled modules by CID, the least recently used one leaves first. A module that is in
// use stays compiled until its last user is gone.
type memoryCache struct {
	capacity int

	mu     sync.Mutex
	byKey  map[string]*compiled
	recent list.List // of *compiled, the newest in front
}

func newMemoryCache(capacity int) *memoryCache {
	return &memoryCache{capacity: capacity, byKey: map[string]*compiled{}}
}

// acquire returns a module that release has to be called for, nil if it is not here.
func (c *memoryCache) acquire(key string) *compiled {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.byKey[key]
	if m != nil {
		m.users++
		c.recent.MoveToFront(m.place)
	}
	return m
}

func (c *memoryCache) has(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byKey[key] != nil
}

// add takes a module over.
func (c *memoryCache) add(m *compiled) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.place = c.recent.PushFront(m)
	c.byKey[m.key] = m
	for c.recent.Len() > c.capacity {
		c.evict(c.recent.Back().Value.(*compiled))
	}
}

func (c *memoryCache) evict(m *compiled) {
	c.recent.Remove(m.place)
	delete(c.byKey, m.key)
	m.evicted = true
	if m.users == 0 {
		_ = m.module.Close(context.Background())
	}
}

func (c *memoryCache) release(m *compiled) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.users--
	if m.users == 0 && m.evicted {
		_ = m.module.Close(context.Background())
	}
}

// diskCache bounds the directory that wazero writes machine code to. wazero names its files by a key that it
// tells nobody, so what file belongs to which CID is learned by looking: compilations take turns, and the
// new file is the compiled module's. Its age is the time of its last use.
type diskCache struct {
	dir      string
	capacity int64
}

const indexDir = "index"

// open makes the directory, for its owner only: machine code that is read back is run.
func (c *diskCache) open() error {
	for _, dir := range []string{c.dir, filepath.Join(c.dir, indexDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(c.dir, indexDir))
	if err != nil {
		return err
	}
	for _, e := range entries { // forget modules whose code was pruned
		index := filepath.Join(c.dir, indexDir, e.Name())
		name, err := os.ReadFile(index)
		if err != nil || !fs.ValidPath(string(name)) {
			_ = os.Remove(index)
		} else if _, err := os.Stat(filepath.Join(c.dir, string(name))); errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(index)
		}
	}
	return nil
}

func (c *diskCache) indexFile(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.dir, indexDir, hex.EncodeToString(sum[:]))
}

type cacheFile struct {
	path string // relative to dir
	size int64
	used time.Time
}

// files lists the machine code on the disk.
func (c *diskCache) files() ([]cacheFile, error) {
	var all []cacheFile
	err := fs.WalkDir(os.DirFS(c.dir), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p == indexDir:
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			all = append(all, cacheFile{path: p, size: info.Size(), used: info.ModTime()})
		}
		return err
	})
	return all, err
}

// used notes that a module was compiled or read: before are the files as they were, and the file that came
// since, or else the one in the index, is the youngest now. Then the oldest are removed until the rest fits.
func (c *diskCache) used(key string, before []cacheFile, now time.Time) error {
	after, err := c.files()
	if err != nil {
		return err
	}
	name := ""
	for _, f := range after {
		known := slices.ContainsFunc(before, func(b cacheFile) bool { return b.path == f.path })
		if !known && !strings.HasSuffix(f.path, ".tmp") {
			name = f.path
		}
	}
	if name != "" {
		if err := os.WriteFile(c.indexFile(key), []byte(name), 0o600); err != nil {
			return err
		}
	} else if b, err := os.ReadFile(c.indexFile(key)); err == nil && fs.ValidPath(string(b)) {
		name = string(b)
		if err := os.Chtimes(filepath.Join(c.dir, name), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return c.prune(after, name)
}

// prune removes the least recently used files but the one that is just used.
func (c *diskCache) prune(files []cacheFile, keep string) error {
	var total int64
	for _, f := range files {
		total += f.size
	}
	slices.SortFunc(files, func(a, b cacheFile) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.path, b.path))
	})
	for _, f := range files {
		if total <= c.capacity {
			return nil
		}
		if f.path == keep {
			continue
		}
		if err := os.Remove(filepath.Join(c.dir, f.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pruning compiled modules: %w", err)
		}
		total -= f.size
	}
	return nil
}
