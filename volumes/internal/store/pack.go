package store

import (
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// maxOpen bounds the open pack files.
const maxOpen = 256

// packSet is the append-only files of large leaves. Lock order: write before files.
type packSet struct {
	fs    vfs.FS
	dir   string
	limit int64

	write sync.Mutex       // held while appending and syncing
	cur   uint32           // newest pack
	size  int64            // its length
	dirty map[uint32]int64 // packs with unsynced bytes → their length
	fresh bool             // the directory has a new name that is not synced
	buf   []byte

	files sync.Mutex
	open  map[uint32]*packFile
}

type packFile struct {
	vfs.File
	refs int
}

func newPackSet(fs vfs.FS, dir string, limit int64) *packSet {
	return &packSet{fs: fs, dir: dir, limit: limit, dirty: map[uint32]int64{}, open: map[uint32]*packFile{}}
}

func (ps *packSet) path(n uint32) string { return ps.fs.PathJoin(ps.dir, fmt.Sprintf("%d.dat", n)) }

// take returns an open pack; release gives it back.
func (ps *packSet) take(n uint32) (*packFile, error) {
	ps.files.Lock()
	defer ps.files.Unlock()
	if f, ok := ps.open[n]; ok {
		f.refs++
		return f, nil
	}
	for id, f := range ps.open {
		if len(ps.open) < maxOpen {
			break
		}
		if f.refs == 0 {
			_ = f.Close()
			delete(ps.open, id)
		}
	}
	f, err := ps.fs.OpenReadWrite(ps.path(n), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	pf := &packFile{File: f, refs: 1}
	ps.open[n] = pf
	return pf, nil
}

func (ps *packSet) release(f *packFile) {
	ps.files.Lock()
	f.refs--
	ps.files.Unlock()
}

func (ps *packSet) readAt(n uint32, p []byte, off int64) (int, error) {
	f, err := ps.take(n)
	if err != nil {
		return 0, err
	}
	defer ps.release(f)
	k, err := f.ReadAt(p, off)
	if k == len(p) {
		err = nil
	}
	return k, err
}

// append writes one record and returns where its payload lies. A failed write leaves the length as it was,
// so the next record overwrites what got there.
func (ps *packSet) append(d Digest, data []byte) (place, error) {
	ps.write.Lock()
	defer ps.write.Unlock()
	if ps.size >= ps.limit {
		ps.cur, ps.size, ps.fresh = ps.cur+1, 0, true
	} else if ps.size == 0 {
		ps.fresh = true
	}
	f, err := ps.take(ps.cur)
	if err != nil {
		return place{}, err
	}
	defer ps.release(f)
	h := header{length: uint32(len(data)), digest: d, crc: crc32.Checksum(data, castagnoli)}
	ps.buf = append(ps.buf[:0], make([]byte, headerSize)...)
	h.encode(ps.buf)
	ps.buf = append(ps.buf, data...)
	if _, err := f.WriteAt(ps.buf, ps.size); err != nil {
		return place{}, err
	}
	p := place{packed: true, pack: ps.cur, offset: uint64(ps.size) + headerSize, length: h.length, crc: h.crc}
	ps.size += int64(len(ps.buf))
	ps.dirty[ps.cur] = ps.size
	return p, nil
}

// sync makes all appended records durable and returns the new lengths of the packs that it synced.
func (ps *packSet) sync() (map[uint32]int64, error) {
	ps.write.Lock()
	dirty, fresh := ps.dirty, ps.fresh
	ps.dirty, ps.fresh = map[uint32]int64{}, false
	ps.write.Unlock()
	err := ps.syncFiles(dirty, fresh)
	if err != nil { // nothing is known to be durable: next time again
		ps.write.Lock()
		for n, l := range dirty {
			ps.dirty[n] = max(l, ps.dirty[n])
		}
		ps.fresh = ps.fresh || fresh
		ps.write.Unlock()
		return nil, err
	}
	return dirty, nil
}

func (ps *packSet) syncFiles(dirty map[uint32]int64, fresh bool) error {
	for n := range dirty {
		f, err := ps.take(n)
		if err != nil {
			return err
		}
		err = f.SyncData()
		ps.release(f)
		if err != nil {
			return err
		}
	}
	if fresh {
		return syncDir(ps.fs, ps.dir)
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (ps *packSet) remove(n uint32) error {
	ps.files.Lock()
	defer ps.files.Unlock()
	if f, ok := ps.open[n]; ok {
		if f.refs > 0 {
			return nil // being read; a later sweep takes it
		}
		_ = f.Close()
		delete(ps.open, n)
	}
	return ps.fs.Remove(ps.path(n))
}

func (ps *packSet) close() (err error) {
	ps.files.Lock()
	defer ps.files.Unlock()
	for n, f := range ps.open {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		delete(ps.open, n)
	}
	return err
}
