package volumes

import (
	"context"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Overlay lays one tree over another and makes the result durable: directories are merged, and where both have
// something else under one name, top's stands. Both have to be here wholly (ErrNotFound).
func (s *Store) Overlay(ctx context.Context, base, top cid.Cid) (Tree, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	m := &merger{s: s}
	ref, err := m.overlay(ctx, base, top, 0)
	if err != nil {
		return Tree{}, fmt.Errorf("laying %s over %s: %w", top, base, translate(err))
	}
	t, err := s.record(ctx, ref.CID)
	if err != nil {
		return Tree{}, fmt.Errorf("laying %s over %s: %w", top, base, err)
	}
	return t, s.Sync(ctx)
}

func (m *merger) overlay(ctx context.Context, base, top cid.Cid, depth int) (tree.Ref, error) {
	if err := ctx.Err(); err != nil {
		return tree.Ref{}, err
	}
	if depth > maxDepth {
		return tree.Ref{}, fmt.Errorf("%w: %s is too deep", ErrTooLarge, top)
	}
	b, err := m.s.load(ctx, base)
	if err != nil {
		return tree.Ref{}, err
	}
	t, err := m.s.load(ctx, top)
	if err != nil {
		return tree.Ref{}, err
	}
	if base == top || !b.Kind.IsDir() || !t.Kind.IsDir() {
		return tree.Ref{CID: top, Kind: t.Kind}, nil
	}
	under := map[string]tree.Link{}
	if err := tree.Entries(ctx, m.s.get, b, func(l tree.Link) error { under[strings.Clone(l.Name)] = l; return nil }); err != nil {
		return tree.Ref{}, err
	}
	var entries []tree.Entry
	err = tree.Entries(ctx, m.s.get, t, func(l tree.Link) error {
		ref := tree.Ref{CID: l.CID, Tsize: l.Tsize}
		if old, ok := under[l.Name]; ok {
			delete(under, l.Name)
			var err error
			if ref, err = m.overlay(ctx, old.CID, l.CID, depth+1); err != nil {
				return err
			}
			if ref.Tsize == 0 {
				ref.Tsize = l.Tsize
			}
		}
		entries = append(entries, tree.Entry{Name: l.Name, Ref: ref})
		return nil
	})
	if err != nil {
		return tree.Ref{}, err
	}
	for name, l := range under {
		entries = append(entries, tree.Entry{Name: name, Ref: tree.Ref{CID: l.CID, Tsize: l.Tsize}})
	}
	return tree.Directory(entries, m.put)
}
