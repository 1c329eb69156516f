package volumes

import (
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// ConflictError lists the paths that stand in the way of a merge. It is ErrConflict.
type ConflictError struct {
	// Paths are the first of them, sorted, at most 1,000.
	Paths []string
	// More reports that there are more.
	More bool
}

// Error names the first paths and what can be done.
func (e *ConflictError) Error() string {
	shown := e.Paths[:min(len(e.Paths), 10)]
	return fmt.Sprintf("%v: %d paths have different contents in the trees to merge, among them %q; let each tree write its own paths",
		ErrConflict, len(e.Paths), shown)
}

// Unwrap makes it ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }

// Merge makes the union of trees by path and makes it durable: directories are merged, equal content at one
// path is taken once, different content is a *ConflictError. All trees have to be here wholly (ErrNotFound).
// The root depends on neither order nor grouping of the roots; none gives the empty directory. It holds one
// directory of the result in memory at a time, with one CID for each tree that has it.
func (s *Store) Merge(ctx context.Context, roots iter.Seq[cid.Cid]) (Tree, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	m := &merger{s: s}
	set := cidSet{}
	for c := range roots {
		set.add(c)
	}
	if len(set) == 0 {
		ref, err := tree.Directory(nil, m.put)
		if err != nil {
			return Tree{}, translate(err)
		}
		set.add(ref.CID)
	}
	ref, err := m.merge(ctx, ".", set)
	if err != nil {
		return Tree{}, fmt.Errorf("merging: %w", translate(err))
	}
	if len(m.conflicts) > 0 {
		slices.Sort(m.conflicts)
		return Tree{}, &ConflictError{Paths: m.conflicts, More: m.more}
	}
	t, err := s.record(ctx, ref.CID)
	if err != nil {
		return Tree{}, fmt.Errorf("merging: %w", err)
	}
	return t, s.Sync(ctx)
}

// cidSet is the distinct nodes at one path.
type cidSet map[cid.Cid]struct{}

func (cs cidSet) add(c cid.Cid) { cs[c] = struct{}{} }

type merger struct {
	s         *Store
	conflicts []string
	more      bool
}

func (m *merger) put(c cid.Cid, data []byte, children []tree.Link) error {
	b, err := toBlock(c, data, children)
	if err != nil {
		return err
	}
	return m.s.blocks.Put(nil, b)
}

func (m *merger) conflict(name string) {
	if len(m.conflicts) < maxListed {
		m.conflicts = append(m.conflicts, name)
	} else {
		m.more = true
	}
}

// slot is what stands under one name: the first link as it is, and the others if they differ.
type slot struct {
	first tree.Link
	rest  cidSet
}

// merge makes one node of the distinct nodes that stand at a path. A path that stands in one tree only, or
// with one content, keeps its node; the CID of a union is that of its content, whoever contributed what.
func (m *merger) merge(ctx context.Context, name string, set cidSet) (tree.Ref, error) {
	if strings.Count(name, "/") > maxDepth {
		return tree.Ref{}, fmt.Errorf("%w: %.80q… is too deep", ErrTooLarge, name)
	}
	names := map[string]*slot{}
	for c := range set {
		if err := ctx.Err(); err != nil {
			return tree.Ref{}, err
		}
		n, err := m.s.load(ctx, c)
		if err != nil {
			return tree.Ref{}, err
		}
		if !n.Kind.IsDir() {
			if len(set) == 1 {
				return tree.Ref{CID: c, Kind: n.Kind}, nil
			}
			m.conflict(name)
			return tree.Ref{}, nil
		}
		if len(set) == 1 {
			return tree.Ref{CID: c, Kind: n.Kind}, nil
		}
		if err := tree.Entries(ctx, m.s.get, n, func(l tree.Link) error { join(names, l); return nil }); err != nil {
			return tree.Ref{}, err
		}
	}
	entries := make([]tree.Entry, 0, len(names))
	for base, sl := range names {
		ref := tree.Ref{CID: sl.first.CID, Tsize: sl.first.Tsize}
		if sl.rest != nil {
			var err error
			if ref, err = m.merge(ctx, path.Join(name, base), sl.rest); err != nil {
				return tree.Ref{}, err
			}
		}
		entries = append(entries, tree.Entry{Name: base, Ref: ref})
	}
	if len(m.conflicts) > 0 {
		return tree.Ref{}, nil // nothing to build any more, only paths to name
	}
	return tree.Directory(entries, m.put)
}

func join(names map[string]*slot, l tree.Link) {
	sl, ok := names[l.Name]
	if !ok {
		names[l.Name] = &slot{first: l}
		return
	}
	if sl.first.CID == l.CID && sl.rest == nil {
		sl.first.Tsize = max(sl.first.Tsize, l.Tsize) // a claim: writers may differ, order must not matter
		return
	}
	if sl.rest == nil {
		sl.rest = cidSet{}
		sl.rest.add(sl.first.CID)
	}
	sl.rest.add(l.CID)
}
