package volumes_test

import (
	"errors"
	"io/fs"
	"maps"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes"
)

// filesOf are all files of a tree.
func filesOf(t *testing.T, s *volumes.Store, root cid.Cid) map[string]string {
	t.Helper()
	fsys, err := s.FS(root)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	if err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		out[name] = string(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOverlayLaysTheTopOverTheBase(t *testing.T) {
	s := open(t)
	add := func(files map[string]string) cid.Cid {
		var list []volumes.File
		for p, text := range files {
			list = append(list, volumes.File{Path: p, Data: []byte(text)})
		}
		tree, err := s.AddFiles(list)
		if err != nil {
			t.Fatal(err)
		}
		return tree.Root
	}
	base := add(map[string]string{"a": "1", "d/x": "2", "d/y": "3", "e": "4", "f/z": "5"})
	top := add(map[string]string{"a": "new", "d/y": "other", "d/n/m": "deep", "e/now": "a directory", "f": "a file"})
	got, err := s.Overlay(t.Context(), base, top)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "new", "d/x": "2", "d/y": "other", "d/n/m": "deep", "e/now": "a directory", "f": "a file"}
	if have := filesOf(t, s, got.Root); !maps.Equal(have, want) {
		t.Errorf("got %v, want %v", have, want)
	}
	if direct := add(want); direct != got.Root {
		t.Errorf("the root is %s, that of the same files is %s", got.Root, direct)
	}
	if again, err := s.Overlay(t.Context(), got.Root, top); err != nil || again.Root != got.Root {
		t.Errorf("once more gives %s, %v", again.Root, err)
	}
	if empty, err := s.Overlay(t.Context(), add(nil), top); err != nil || empty.Root != top {
		t.Errorf("over nothing gives %s, %v; want %s", empty.Root, err, top)
	}
	if _, err := s.Overlay(t.Context(), base, cid.MustParse("bafybeigofgfcedqmjrpkkpaogluahhrlsr2exp2f7xsei2tfiurl433vym")); !errors.Is(err, volumes.ErrNotFound) {
		t.Errorf("a top that is not here: %v", err)
	}
}
