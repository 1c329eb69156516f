package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const formatVersion = 1

// Open opens the store in cfg.Dir, making it if absent, and recovers what a crash left. It returns
// ErrLocked naming the pid of the process that has it open, ErrFormat for one that it cannot read, and
// ErrNoSpace.
func Open(cfg Config, log *slog.Logger) (*Store, error) {
	s := &Store{
		cfg: cfg, log: log, fs: cfg.FS, unlock: func() error { return nil },
		pending: map[Digest]place{}, roots: map[Digest]Root{},
	}
	if s.fs == nil {
		s.fs = vfs.Default
	}
	if err := s.fs.MkdirAll(s.fs.PathJoin(cfg.Dir, "pack"), 0o700); err != nil {
		return nil, noSpace(fmt.Errorf("making block store: %w", err))
	}
	if cfg.FS == nil {
		if err := s.lock(); err != nil {
			return nil, err
		}
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(noSpace(err), s.unlock())
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := s.checkFormat(); err != nil {
		return err
	}
	opts := &pebble.Options{
		FS: s.fs, Logger: quiet{s.log}, FormatMajorVersion: pebble.FormatNewest,
		MemTableSize: 8 << 20, MaxOpenFiles: 500, CacheSize: s.cfg.Cache,
	}
	for i := range opts.Levels { // most lookups of a Put ask for what is not here
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	if s.db, err = pebble.Open(s.fs.PathJoin(s.cfg.Dir, "index"), opts); err != nil {
		return fmt.Errorf("opening block index: %w", err)
	}
	s.packs = newPackSet(s.fs, s.fs.PathJoin(s.cfg.Dir, "pack"), s.cfg.PackSize)
	if err := s.recover(); err != nil {
		return errors.Join(fmt.Errorf("recovering packs: %w", err), s.packs.close(), s.db.Close())
	}
	for _, dir := range []string{s.cfg.Dir, s.fs.PathDir(s.cfg.Dir)} { // else a crash takes the new directory away
		if err := syncDir(s.fs, dir); err != nil {
			return errors.Join(err, s.packs.close(), s.db.Close())
		}
	}
	return nil
}

// quiet passes pebble's words to slog: nothing in normal running deserves more than Debug.
type quiet struct{ log *slog.Logger }

func (q quiet) Infof(format string, args ...any)  { q.log.Debug(fmt.Sprintf(format, args...)) }
func (q quiet) Errorf(format string, args ...any) { q.log.Warn(fmt.Sprintf(format, args...)) }

// Fatalf must not return by pebble's contract: its commit pipeline is broken and later commits would hang.
func (q quiet) Fatalf(format string, args ...any) {
	panic("store: index cannot go on: " + fmt.Sprintf(format, args...))
}

func (s *Store) lock() error {
	path := filepath.Join(s.cfg.Dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return noSpace(fmt.Errorf("opening lock: %w", err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s is in use by process %s; stop it or use another directory",
				ErrLocked, s.cfg.Dir, bytes.TrimSpace(pid))
		}
		return fmt.Errorf("locking %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // only for the other's message
	}
	s.unlock = f.Close
	return nil
}

type format struct {
	Format   int      `json:"format"`
	Features []string `json:"features"`
}

func (s *Store) checkFormat() error {
	path := s.fs.PathJoin(s.cfg.Dir, "format.json")
	f, err := s.fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return s.writeFormat(path)
	}
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	_ = f.Close()
	var have format
	if err == nil {
		err = json.Unmarshal(b, &have)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is unreadable (%w); restore it or use another directory", ErrFormat, path, err)
	}
	if have.Format != formatVersion || len(have.Features) > 0 {
		return fmt.Errorf("%w: %s says format %d with features %q, this version reads format %d without any; use a newer gridbeam",
			ErrFormat, path, have.Format, have.Features, formatVersion)
	}
	return nil
}

func (s *Store) writeFormat(path string) error {
	b, err := json.Marshal(format{Format: formatVersion, Features: []string{}})
	if err != nil {
		return err
	}
	f, err := s.fs.Create(path+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.fs.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(s.fs, s.cfg.Dir)
}

// recover brings packs and index together: what stands behind the synced length is adopted record by
// record as far as digests match, what the index claims beyond a pack's end is forgotten.
func (s *Store) recover() error {
	names, err := s.fs.List(s.packs.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := strconv.ParseUint(strings.TrimSuffix(name, ".dat"), 10, 32)
		if err != nil || name != fmt.Sprintf("%d.dat", n) {
			continue
		}
		if err := s.recoverPack(uint32(n)); err != nil {
			return err
		}
	}
	return s.dropMissingPacks()
}

func (s *Store) recoverPack(n uint32) error {
	st, err := s.fs.Stat(s.packs.path(n))
	if err != nil {
		return err
	}
	synced, err := s.syncedLength(n)
	if err != nil {
		return err
	}
	if st.Size() < synced {
		s.log.Warn("pack is shorter than it was; its lost blocks will be fetched again", "pack", n, "bytes", st.Size(), "synced", synced)
		if err := s.forget(n, st.Size()); err != nil {
			return err
		}
		synced = st.Size()
	}
	end := synced
	if st.Size() > synced {
		if end, err = s.adopt(n, synced, st.Size()); err != nil {
			return err
		}
	}
	if n >= s.packs.cur {
		s.packs.cur, s.packs.size = n, end
	}
	return nil
}

func (s *Store) syncedLength(n uint32) (int64, error) {
	v, err := s.lookup(packKey(n))
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil || len(v) != 8 {
		return 0, errors.Join(ErrCorrupt, err)
	}
	return int64(binary.LittleEndian.Uint64(v)), nil
}

// adopt reads whole records of pack n from offset from on and returns where the last good one ends.
func (s *Store) adopt(n uint32, from, size int64) (int64, error) {
	batch := s.db.NewBatch()
	defer batch.Close()
	head, data, count := make([]byte, headerSize), make([]byte, MaxBlock), 0
	for from+headerSize <= size {
		if _, err := s.packs.readAt(n, head, from); err != nil {
			return 0, err
		}
		h, err := decodeHeader(head)
		if err != nil || from+headerSize+int64(h.length) > size {
			break
		}
		payload := data[:h.length]
		if _, err := s.packs.readAt(n, payload, from+headerSize); err != nil {
			return 0, err
		}
		if sha256.Sum256(payload) != h.digest {
			break
		}
		p := place{packed: true, pack: n, offset: uint64(from) + headerSize, length: h.length, crc: h.crc}
		_ = batch.Set(key(keyBlock, h.digest[:]), p.encode(), nil)
		from += headerSize + int64(h.length)
		count++
	}
	if dropped := size - from; dropped > 0 || count > 0 {
		s.log.Info("recovered pack after an unclean stop", "pack", n, "adopted", count, "dropped_bytes", dropped)
	}
	s.packs.dirty[n], s.packs.fresh = from, true
	if _, err := s.packs.sync(); err != nil {
		return 0, err
	}
	_ = batch.Set(packKey(n), binary.LittleEndian.AppendUint64(nil, uint64(from)), nil)
	return from, s.db.Apply(batch, pebble.Sync)
}

// forget deletes the index entries of pack n that end behind size, and the roots, whose trees may now lack
// blocks: they are found complete again by walking.
func (s *Store) forget(n uint32, size int64) error {
	batch := s.db.NewBatch()
	defer batch.Close()
	err := s.scan(keyBlock, nil, func(k, v []byte) error {
		if p, err := decodePlace(v); err == nil && p.packed && p.pack == n && int64(p.offset)+int64(p.length) > size {
			return batch.Delete(k, nil)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_ = batch.DeleteRange([]byte{keyRoot}, []byte{keyRoot + 1}, nil)
	_ = batch.Set(packKey(n), binary.LittleEndian.AppendUint64(nil, uint64(size)), nil)
	return s.db.Apply(batch, pebble.Sync)
}

// dropMissingPacks forgets the blocks of packs whose files are gone.
func (s *Store) dropMissingPacks() error {
	var gone []uint32
	err := s.scan(keyPack, nil, func(k, _ []byte) error {
		n := binary.BigEndian.Uint32(k[1:])
		if _, err := s.fs.Stat(s.packs.path(n)); errors.Is(err, os.ErrNotExist) {
			gone = append(gone, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range gone {
		s.log.Warn("pack is gone; its blocks will be fetched again", "pack", n)
		if err := s.forget(n, 0); err != nil {
			return err
		}
		if err := s.db.Delete(packKey(n), pebble.Sync); err != nil {
			return err
		}
	}
	return nil
}

// scan calls each for the index keys of a kind that begin with prefix, in order; k and v are borrowed.
func (s *Store) scan(kind byte, prefix []byte, each func(k, v []byte) error) error {
	lower := key(kind, prefix)
	upper := bytes.Clone(lower)
	for i := len(upper) - 1; i >= 0; i-- {
		if upper[i]++; upper[i] != 0 {
			break
		}
		upper = upper[:i]
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	for it.First(); it.Valid() && err == nil; it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			err = each(it.Key(), v)
		}
	}
	return errors.Join(err, it.Close())
}

// Close syncs, closes and unlocks; a second Close returns ErrClosed.
func (s *Store) Close() error {
	serr := s.Sync(context.Background())
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	return errors.Join(serr, s.packs.close(), s.db.Close(), s.unlock())
}
