package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

func newStore(t testing.TB) *volumes.Store {
	t.Helper()
	cfg := volumes.DefaultConfig(filepath.Join(t.TempDir(), "volumes"))
	cfg.Reserve = 0
	s, err := volumes.Open(cfg, testLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// writeTree writes files; a name that ends in / is an empty directory.
func writeTree(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if name[len(name)-1] == '/' {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOutputsBecomeTheTreeThatAnImportGives(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for name, c := range map[string]struct {
		files map[string][]byte
		heavy bool
	}{
		"one small file":            {map[string][]byte{"7/out": []byte("x")}, false},
		"several inputs":            {map[string][]byte{"7/out": []byte("x"), "8/a/b": []byte("y"), "10/out": nil}, false},
		"an empty directory":        {map[string][]byte{"7/out": []byte("x"), "7/empty/": nil}, false},
		"too large to travel along": {map[string][]byte{"7/out": big[:100_000]}, true},
		"too large for memory":      {map[string][]byte{"7/out": big, "8/small": []byte("x")}, true},
		"large, with an empty one":  {map[string][]byte{"7/out": big, "7/empty/": nil}, true},
		"the same bytes twice":      {map[string][]byte{"7/out": big[:60_000], "8/out": big[:60_000]}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeTree(t, dir, c.files)
			store := newStore(t)
			got, err := (&collector{store: store}).collect(t.Context(), dir, true)
			if err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(dir); err != nil || got.clean != (len(left) == 0) {
				t.Errorf("clean %t with %v left, %v", got.clean, left, err)
			}
			again := t.TempDir()
			writeTree(t, again, c.files)
			want, err := newStore(t).ImportDir(t.Context(), again, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.result.Root != want.Root || got.heavy != c.heavy {
				t.Errorf("root %s, heavy %t, want %s, %t", got.result.Root, got.heavy, want.Root, c.heavy)
			}
			if !c.heavy { // what travels along is the whole tree
				third := newStore(t)
				if err := third.PutBlocks(t.Context(), got.blocks); err != nil {
					t.Fatal(err)
				}
				if here, err := third.Has(t.Context(), got.result.Root); err != nil || !here {
					t.Errorf("the blocks that travel are not the whole tree: %t, %v", here, err)
				}
				if got.inline > protocol.MaxInlineBlocks {
					t.Errorf("%d bytes travel", got.inline)
				}
			}
		})
	}
}

func TestNoOutputIsTheEmptyDirectory(t *testing.T) {
	store := newStore(t)
	c := &collector{store: store}
	want, err := store.AddFiles(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, written := range []bool{false, true} {
		e, err := c.collect(t.Context(), t.TempDir(), written)
		if err != nil || e.result.Root != want.Root || e.heavy || len(e.blocks) != 1 {
			t.Errorf("written %t: %s, %d blocks, %v, want %s", written, e.result.Root, len(e.blocks), err, want.Root)
		}
	}
}

func TestLinksInOutputsLeadNowhere(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string][]byte{"7/out": []byte("x")})
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "7", "link")); err != nil {
		t.Fatal(err)
	}
	if e, err := (&collector{store: newStore(t)}).collect(t.Context(), dir, true); err == nil {
		t.Errorf("a link out of the outputs became %s", e.result.Root)
	}
}

func TestScratchIsEmptyAtTheStartAndBetweenRuns(t *testing.T) {
	base := t.TempDir()
	work := filepath.Join(base, "work")
	writeTree(t, work, map[string][]byte{"0/9/left-by-a-crash": []byte("x")})
	s, err := newScratch(work, t.TempDir(), "", 2)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := s.dir(0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("the directory holds %v, %v", entries, err)
		}
		writeTree(t, dir, map[string][]byte{"1/a": []byte("x"), "2/b/c": []byte("y")})
		if err := s.clear(dir); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	if _, err := os.Stat(work); err == nil {
		t.Error("the work directory is there after the end")
	}
}

func TestOnlyOutputsThatFitGoToMemory(t *testing.T) {
	if !onTmpfs("/dev/shm") {
		t.Skip("/dev/shm is not in memory here")
	}
	work := filepath.Join(t.TempDir(), "work")
	s, err := newScratch(work, t.TempDir(), "/dev/shm", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	small, err := s.dir(0, 1<<20)
	if err != nil || !onTmpfs(small) {
		t.Errorf("outputs of 1 MiB go to %s, %v", small, err)
	}
	large, err := s.dir(1, 1<<50)
	if err != nil || filepath.Dir(large) != work {
		t.Errorf("outputs of 1 PiB go to %s, %v", large, err)
	}
}

func TestWhatDeadNodesLeftInMemoryIsRemoved(t *testing.T) {
	if !onTmpfs("/dev/shm") {
		t.Skip("/dev/shm is not in memory here")
	}
	memory, err := os.MkdirTemp("/dev/shm", "node-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(memory)
	make1 := func() *scratch {
		s, err := newScratch(filepath.Join(t.TempDir(), "work"), t.TempDir(), memory, 1)
		if err != nil || s.fast == "" {
			t.Fatalf("%+v, %v", s, err)
		}
		return s
	}
	dead, alive := make1(), make1()
	writeTree(t, dead.fast, map[string][]byte{"0/1/out": []byte("x")})
	if err := dead.held.Close(); err != nil { // its process has died
		t.Fatal(err)
	}
	last := make1()
	for s, want := range map[*scratch]bool{dead: false, alive: true, last: true} {
		if _, err := os.Stat(s.fast); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", s.fast, err == nil, want)
		}
	}
	alive.close()
	last.close()
}

func TestInputsComeOutOfATree(t *testing.T) {
	store := newStore(t)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"two lines":       {"\"a b\"\n\"c\\n\"\n", []string{"a b", "c\n"}},
		"no last newline": {"\"a\"\n\"b\"", []string{"a", "b"}},
		"too few":         {"\"a\"\n", nil},
		"too many":        {"\"a\"\n\"b\"\n\"c\"\n", nil},
		"no JSON":         {"a\nb\n", nil},
	} {
		tree, err := store.Import(t.Context(), fstest.MapFS{inputsFile: {Data: []byte(c.text)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := &depot{store: store}
		l := &protocol.Lease{Chunk: protocol.Chunk{First: 10, End: 12}, InputsCID: tree.Root}
		got, _, err := d.inputs(context.Background(), l, peerNone)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		for i, w := range c.want {
			if got[i].Value != w || got[i].Index != uint64(10+i) {
				t.Errorf("%s: input %d is %+v, want %q", name, i, got[i], w)
			}
		}
	}
}
