package volumes_test

import (
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/volumes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func config(dir string) volumes.Config {
	cfg := volumes.DefaultConfig(dir)
	cfg.Reserve = 0
	return cfg
}

func open(t testing.TB) *volumes.Store {
	t.Helper()
	s, err := volumes.Open(config(t.TempDir()), quiet)
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

func bytesOf(seed, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// sample is a tree with every kind of file that matters.
func sample() fstest.MapFS {
	m := fstest.MapFS{
		"empty":             {Data: nil},
		"hello.txt":         {Data: []byte("hello\n")},
		"just-a-leaf":       {Data: bytesOf(1, 1<<20)},
		"two-leaves":        {Data: bytesOf(2, 1<<20+1)},
		"big":               {Data: bytesOf(3, 5<<20+12345)},
		"dir/a":             {Data: bytesOf(4, 3000)},
		"dir/sub/b":         {Data: bytesOf(5, 10000)},
		"dir/sub/日本語":       {Data: []byte("ünïcödé")},
		"emptydir":          {Mode: fs.ModeDir | 0o755},
		"link":              {Data: []byte("dir/sub/b"), Mode: fs.ModeSymlink},
		"dir/sub/up":        {Data: []byte("../../hello.txt"), Mode: fs.ModeSymlink},
		"dir/sub/directory": {Data: []byte(".."), Mode: fs.ModeSymlink},
	}
	return m
}

// regular is the files of a MapFS.
func regular(m fstest.MapFS) map[string][]byte {
	out := map[string][]byte{}
	for name, f := range m {
		if f.Mode.IsRegular() {
			out[name] = f.Data
		}
	}
	return out
}

func importFS(t testing.TB, s *volumes.Store, fsys fs.FS) volumes.Tree {
	t.Helper()
	tr, err := s.Import(t.Context(), fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func add(t testing.TB, s *volumes.Store, files map[string]string) volumes.Tree {
	t.Helper()
	var list []volumes.File
	for name, data := range files {
		list = append(list, volumes.File{Path: name, Data: []byte(data)})
	}
	tr, err := s.AddFiles(list)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// contents reads all files of a tree through FS.
func contents(t testing.TB, s *volumes.Store, root cid.Cid) map[string][]byte {
	t.Helper()
	fsys, err := s.FS(root)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := fsys.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		out[name], err = io.ReadAll(f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sameFiles(t testing.TB, got, want map[string][]byte) {
	t.Helper()
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("files %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for name, w := range want {
		if string(got[name]) != string(w) {
			t.Fatalf("%s: %d bytes that differ from the %d wanted", name, len(got[name]), len(w))
		}
	}
}
