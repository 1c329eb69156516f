package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Errors of the store; volumes translates them.
var (
	// ErrNotFound means that a block or root is not here.
	ErrNotFound = errors.New("store: not found")
	// ErrCorrupt means that what the disk returned is not what was written.
	ErrCorrupt = errors.New("store: corrupt")
	// ErrNoSpace means that the disk is full, or would fall below the reserve.
	ErrNoSpace = errors.New("store: no space left")
	// ErrLocked means that another process has the directory open.
	ErrLocked = errors.New("store: locked")
	// ErrFormat means that the directory was written by a newer version.
	ErrFormat = errors.New("store: unknown format")
	// ErrTooLarge means that a block is larger than MaxBlock.
	ErrTooLarge = errors.New("store: block too large")
	// ErrClosed means that the store has been closed.
	ErrClosed = errors.New("store: closed")
)

// Config says where and how blocks are kept.
type Config struct {
	// Dir is the directory; it is made if absent.
	Dir string
	// Reserve is the free space in bytes that writes leave: the index needs room to compact itself.
	Reserve uint64
	// PackSize is the size in bytes at which a new pack begins.
	PackSize int64
	// Inline is the largest leaf in bytes that lives in the index instead of a pack.
	Inline int
	// SyncBytes is how many bytes may wait unsynced before a Put syncs by itself.
	SyncBytes int64
	// Cache is the memory in bytes for blocks of the index; 0 is pebble's own 8 MiB.
	Cache int64
	// FS replaces the disk in tests; nil is the operating system's, with a lock file.
	FS vfs.FS
}

// Block is a block to be put.
type Block struct {
	// Digest is the SHA-256 of Data; the caller has checked it.
	Digest Digest
	// Data is the block; it is not kept.
	Data []byte
	// Node marks a dag-pb node, which lives in the index whatever its size.
	Node bool
	// Children are the digests of the blocks that a node links to.
	Children []Digest
}

// Store is the block store of one directory. Its methods may be called by several goroutines.
type Store struct {
	cfg    Config
	log    *slog.Logger
	fs     vfs.FS
	unlock func() error
	db     *pebble.DB
	packs  *packSet

	life   sync.RWMutex // read-held by every operation, so that Close waits for them
	closed bool

	syncMu sync.Mutex // one sync at a time; whoever waited finds its work done

	mu       sync.RWMutex
	pending  map[Digest]place // in a pack, not yet in the index
	roots    map[Digest]Root  // wait for pending
	failed   error            // of a sync: what the disk holds is unknown until the store is opened anew
	unsynced int64            // bytes put since the last sync
	appended uint64           // counts Puts, so that a sync knows what it covers
	synced   uint64
}

// Put keeps blocks. They are readable at once and durable after the next Sync. Blocks that are here are
// skipped. A root, if given, is recorded with them. It returns ErrNoSpace, ErrTooLarge or ErrClosed; on an
// error nothing is recorded of a root.
func (s *Store) Put(root *Root, blocks ...Block) error {
	if err := s.put(root, blocks); err != nil {
		return noSpace(err)
	}
	s.mu.RLock()
	due := s.unsynced > s.cfg.SyncBytes
	s.mu.RUnlock()
	if due { // bounds what a crash can lose and what memory the places take
		return s.Sync(context.Background())
	}
	return nil
}

func (s *Store) put(root *Root, blocks []Block) error {
	total := uint64(0)
	for _, b := range blocks {
		if len(b.Data) > MaxBlock {
			return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b.Data), MaxBlock)
		}
		total += uint64(len(b.Data))
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	if err := s.room(total); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	places, bytes, err := s.place(batch, blocks)
	if err != nil {
		return err
	}
	s.mu.Lock()
	err = s.failed
	maps.Copy(s.pending, places)
	s.unsynced += bytes
	s.appended++
	if root != nil && len(s.pending) > 0 { // the record must not be durable before the blocks
		s.roots[root.Digest], root = *root, nil
	}
	s.mu.Unlock()
	if root != nil {
		_ = batch.Set(key(keyRoot, root.Digest[:]), root.encode(), nil)
	}
	if err != nil || batch.Empty() {
		return err
	}
	return s.db.Apply(batch, pebble.NoSync)
}

// place appends large leaves to a pack and small blocks to the batch; it returns where the leaves lie.
func (s *Store) place(batch *pebble.Batch, blocks []Block) (places map[Digest]place, bytes int64, err error) {
	for _, b := range blocks {
		if has, err := s.has(b.Digest); err != nil || has {
			if err != nil {
				return nil, 0, err
			}
			continue
		}
		bytes += int64(len(b.Data))
		if b.Node || len(b.Data) <= s.cfg.Inline {
			_ = batch.Set(key(keyBlock, b.Digest[:]), place{inline: b.Data}.encode(), nil)
			for _, ch := range b.Children {
				_ = batch.Set(key(keyParent, ch[:], b.Digest[:]), nil, nil)
			}
			continue
		}
		if places == nil {
			places = map[Digest]place{}
		}
		if _, twice := places[b.Digest]; twice {
			continue
		}
		if places[b.Digest], err = s.packs.append(b.Digest, b.Data); err != nil {
			return nil, 0, err
		}
	}
	return places, bytes, nil
}

// enter begins an operation; the caller ends it by s.life.RUnlock.
func (s *Store) enter() error {
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return ErrClosed
	}
	return nil
}

// room returns ErrNoSpace when n more bytes would leave less than the reserve.
func (s *Store) room(n uint64) error {
	u, err := s.fs.GetDiskUsage(s.cfg.Dir)
	if err != nil {
		return nil // a file system that cannot say; writes will fail by themselves
	}
	if u.AvailBytes < s.cfg.Reserve+n {
		return fmt.Errorf("%w: %d MiB free at %s, %d MiB of them kept in reserve; free some space or run gc",
			ErrNoSpace, u.AvailBytes>>20, s.cfg.Dir, s.cfg.Reserve>>20)
	}
	return nil
}

func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Sync makes everything durable that was put before it. Callers that come together share one sync.
func (s *Store) Sync(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return s.sync(ctx)
}

func (s *Store) sync(ctx context.Context) error {
	s.mu.RLock()
	want := s.appended
	s.mu.RUnlock()
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	failed, done := s.failed, s.synced >= want
	covers, bytes := s.appended, s.unsynced
	places, roots := maps.Clone(s.pending), maps.Clone(s.roots)
	s.mu.RUnlock()
	if failed != nil || done {
		return failed
	}
	err := s.flush(places, roots)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// A disk that failed to sync may report success the next time and still have lost the pages.
		s.failed = noSpace(fmt.Errorf("syncing blocks (open the store anew): %w", err))
		return s.failed
	}
	for d := range places {
		delete(s.pending, d)
	}
	for d, r := range roots {
		if s.roots[d] == r {
			delete(s.roots, d)
		}
	}
	s.synced = covers
	s.unsynced -= bytes
	return nil
}

func (s *Store) flush(places map[Digest]place, roots map[Digest]Root) error {
	lengths, err := s.packs.sync()
	if err != nil {
		return err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	for d, p := range places {
		_ = batch.Set(key(keyBlock, d[:]), p.encode(), nil)
	}
	for n, l := range lengths {
		_ = batch.Set(packKey(n), binary.LittleEndian.AppendUint64(nil, uint64(l)), nil)
	}
	for d, r := range roots {
		_ = batch.Set(key(keyRoot, d[:]), r.encode(), nil)
	}
	if batch.Empty() {
		return s.db.LogData(nil, pebble.Sync)
	}
	return s.db.Apply(batch, pebble.Sync)
}

func (s *Store) has(d Digest) (bool, error) {
	_, err := s.find(d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// find says where a block lies; inline bytes are the caller's own copy.
func (s *Store) find(d Digest) (place, error) {
	s.mu.RLock()
	p, ok := s.pending[d]
	s.mu.RUnlock()
	if ok {
		return p, nil
	}
	v, err := s.lookup(key(keyBlock, d[:]))
	if err != nil {
		return place{}, err
	}
	return decodePlace(v)
}

// lookup returns a copy of an index value.
func (s *Store) lookup(k []byte) ([]byte, error) {
	v, closer, err := s.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	defer closer.Close()
	return append(make([]byte, 0, len(v)), v...), nil
}

// Has reports whether a block is here.
func (s *Store) Has(d Digest) (bool, error) {
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.life.RUnlock()
	return s.has(d)
}

// Size returns a block's size in bytes; it returns ErrNotFound.
func (s *Store) Size(d Digest) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	p, err := s.find(d)
	return p.size(), err
}

// Get returns a whole block, checked by CRC32C if it lies in a pack; it returns ErrNotFound or ErrCorrupt.
func (s *Store) Get(d Digest) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	p, err := s.find(d)
	if err != nil {
		return nil, err
	}
	if !p.packed {
		return p.inline, nil
	}
	b := make([]byte, p.length)
	if _, err := s.packs.readAt(p.pack, b, int64(p.offset)); err != nil {
		return nil, fmt.Errorf("%w: block %x in pack %d: %w", ErrCorrupt, d, p.pack, err)
	}
	if crc32.Checksum(b, castagnoli) != p.crc {
		return nil, fmt.Errorf("%w: block %x in pack %d: checksum differs", ErrCorrupt, d, p.pack)
	}
	return b, nil
}

// ReadAt reads a part of a block without checking it: leaves are checked when they arrive. It returns
// io.EOF at the block's end, ErrNotFound or ErrCorrupt.
func (s *Store) ReadAt(d Digest, p []byte, off int64) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.life.RUnlock()
	pl, err := s.find(d)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= int64(pl.size()) {
		return 0, io.EOF
	}
	full := len(p)
	p = p[:min(int64(full), int64(pl.size())-off)]
	if pl.packed {
		_, err = s.packs.readAt(pl.pack, p, int64(pl.offset)+off)
	} else {
		copy(p, pl.inline[off:])
	}
	if err != nil {
		return 0, fmt.Errorf("%w: block %x in pack %d: %w", ErrCorrupt, d, pl.pack, err)
	}
	if len(p) < full {
		return len(p), io.EOF
	}
	return len(p), nil
}

// Drop forgets one block, so that it can be fetched anew: for blocks that turned out ErrCorrupt.
func (s *Store) Drop(d Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	s.mu.Lock()
	delete(s.pending, d)
	s.mu.Unlock()
	return s.db.Delete(key(keyBlock, d[:]), pebble.Sync)
}
