package volumes

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Entry is what stands in a directory of a tree.
type Entry struct {
	// Name is its name.
	Name string
	// CID is its root.
	CID cid.Cid
	// Dir says that it is a directory.
	Dir bool
}

// errEnough ends a listing whose reader has seen enough.
var errEnough = errors.New("volumes: enough seen")

// List iterates the entries of the directory root, in no set order. It ends with ErrNotFound at a block that
// is missing, ErrUnsupported for a root that is no directory, or ctx's error.
func (s *Store) List(ctx context.Context, root cid.Cid) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := s.list(ctx, root, func(e Entry) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errEnough) {
			yield(Entry{}, translate(err))
		}
	}
}

func (s *Store) list(ctx context.Context, root cid.Cid, yield func(Entry) bool) error {
	dir, err := s.load(ctx, root)
	if err != nil {
		return err
	}
	if !dir.Kind.IsDir() {
		return fmt.Errorf("%w: %s is no directory", ErrUnsupported, root)
	}
	return tree.Entries(ctx, s.get, dir, func(l tree.Link) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := Entry{Name: l.Name, CID: l.CID}
		if l.CID.Type() == cid.DagProtobuf {
			n, err := s.load(ctx, l.CID)
			if err != nil {
				return err
			}
			e.Dir = n.Kind.IsDir()
		}
		if !yield(e) {
			return errEnough
		}
		return nil
	})
}
