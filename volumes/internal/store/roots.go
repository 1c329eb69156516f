package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Root returns the record of a complete tree; it returns ErrNotFound.
func (s *Store) Root(d Digest) (Root, error) {
	if err := s.enter(); err != nil {
		return Root{}, err
	}
	defer s.life.RUnlock()
	s.mu.RLock()
	r, ok := s.roots[d]
	s.mu.RUnlock()
	if ok {
		return r, nil
	}
	v, err := s.lookup(key(keyRoot, d[:]))
	if err != nil {
		return Root{}, err
	}
	return decodeRoot(d, v)
}

// Roots calls each for every recorded root, in order of digest, durable ones only.
func (s *Store) Roots(each func(Root) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return s.scan(keyRoot, nil, func(k, v []byte) error {
		r, err := decodeRoot(Digest(k[1:]), v)
		if err != nil {
			return err
		}
		return each(r)
	})
}

// DropRoot forgets that a tree is complete; its blocks stay until a Sweep.
func (s *Store) DropRoot(d Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	s.mu.Lock()
	delete(s.roots, d)
	s.mu.Unlock()
	return s.db.Delete(key(keyRoot, d[:]), pebble.NoSync)
}

// Parents calls each for the nodes that were put with d as a child, until each returns false.
func (s *Store) Parents(d Digest, each func(Digest) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	stop := errors.New("stop")
	err := s.scan(keyParent, d[:], func(k, _ []byte) error {
		if len(k) != 1+2*len(d) {
			return ErrCorrupt
		}
		if !each(Digest(k[1+len(d):])) {
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		return nil
	}
	return err
}

// Pin marks a tree as wanted, durably; Unpin takes the mark away.
func (s *Store) Pin(d Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return s.db.Set(key(keyPin, d[:]), nil, pebble.Sync)
}

// Unpin takes away the mark of Pin.
func (s *Store) Unpin(d Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return s.db.Delete(key(keyPin, d[:]), pebble.Sync)
}

// Pins calls each for every pinned digest.
func (s *Store) Pins(each func(Digest) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return s.scan(keyPin, nil, func(k, _ []byte) error { return each(Digest(k[1:])) })
}

// Freed says what a Sweep took away.
type Freed struct {
	// Blocks counts the blocks that are gone.
	Blocks uint64
	// Bytes is the disk space of unlinked packs plus the inline bytes, which the index frees in time.
	Bytes uint64
}

// sweepBatch is how many deletions go in one index batch: the sweep's memory.
const sweepBatch = 10000

// Sweep deletes every block for which live is false, and packs that hold no live block. The caller sees to
// it that nothing is put meanwhile. The index forgets a block before its pack goes, so a crash between
// leaves garbage, never a hole.
func (s *Store) Sweep(ctx context.Context, live func(Digest) bool) (Freed, error) {
	if err := s.enter(); err != nil {
		return Freed{}, err
	}
	defer s.life.RUnlock()
	if err := s.sync(ctx); err != nil {
		return Freed{}, err
	}
	var freed Freed
	kept := map[uint32]bool{}
	batch := s.db.NewBatch()
	defer func() { _ = batch.Close() }()
	spill := func(ctx context.Context) error { // the index keeps the order of batches, durable or not
		if batch.Count() < sweepBatch {
			return ctx.Err()
		}
		err := s.db.Apply(batch, pebble.NoSync)
		_ = batch.Close()
		batch = s.db.NewBatch()
		return errors.Join(err, ctx.Err())
	}
	dead := func(k, _ []byte) error { // of a root its own digest, of an edge the parent's
		if !live(Digest(k[len(k)-len(Digest{}):])) {
			_ = batch.Delete(k, nil)
		}
		return spill(ctx)
	}
	if err := errors.Join(s.scan(keyRoot, nil, dead), s.scan(keyParent, nil, dead)); err != nil {
		return freed, err
	}
	err := s.scan(keyBlock, nil, func(k, v []byte) error {
		p, err := decodePlace(v)
		if err != nil {
			return fmt.Errorf("index entry %x: %w", k, err)
		}
		if live(Digest(k[1:])) {
			if p.packed {
				kept[p.pack] = true
			}
			return nil
		}
		freed.Blocks++
		if !p.packed {
			freed.Bytes += uint64(len(p.inline))
		}
		_ = batch.Delete(k, nil)
		return spill(ctx)
	})
	if err != nil {
		return freed, err
	}
	if err := s.db.Apply(batch, pebble.Sync); err != nil {
		return freed, err
	}
	return freed, s.unlinkPacks(kept, &freed)
}

func (s *Store) unlinkPacks(kept map[uint32]bool, freed *Freed) error {
	var dead []uint32
	err := s.scan(keyPack, nil, func(k, _ []byte) error {
		if n := binary.BigEndian.Uint32(k[1:]); !kept[n] && n != s.packs.cur {
			dead = append(dead, n)
		}
		return nil
	})
	for _, n := range dead {
		st, serr := s.fs.Stat(s.packs.path(n))
		if serr != nil {
			continue
		}
		if err = errors.Join(err, s.packs.remove(n), s.db.Delete(packKey(n), pebble.NoSync)); err == nil {
			freed.Bytes += uint64(st.Size())
		}
	}
	return err
}
