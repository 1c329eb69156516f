package volumes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes"
)

// The root of the sample is frozen: "ipfs add -r --profile unixfs-v1-2025" of the same files gives it.
const sampleRoot = "bafybeifllfs2arxasiux7tcpirmr2pe7temyxw5tnkv2t7wsqhnr4bxbju"

func TestImportGivesTheFrozenRoot(t *testing.T) {
	s := open(t)
	files, size := uint64(0), uint64(0)
	tr, err := s.Import(t.Context(), sample(), func(f, b uint64) { files, size = f, b })
	if err != nil {
		t.Fatal(err)
	}
	if tr.Root.String() != sampleRoot {
		t.Errorf("root %s, want %s", tr.Root, sampleRoot)
	}
	want := uint64(0)
	for _, data := range regular(sample()) {
		want += uint64(len(data))
	}
	if tr.Files != 8 || tr.Bytes != want || files != 8 || size != want {
		t.Errorf("%+v, progress %d files %d bytes, want 8 files %d bytes", tr, files, size, want)
	}
	// A walk over what is stored counts the same, and a second import is the same tree.
	dir := filepath.Join(t.TempDir(), "copy")
	if err := s.Export(t.Context(), tr.Root, dir, nil); err != nil {
		t.Fatal(err)
	}
	other := open(t)
	again, err := other.ImportDir(t.Context(), dir, nil)
	if err != nil || again != tr {
		t.Fatalf("import of the export: %+v, %v; want %+v", again, err, tr)
	}
	var blocks []volumes.Block
	for b, err := range s.Blocks(tr.Root) {
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	if uint64(len(blocks)) != tr.Blocks {
		t.Fatalf("%d blocks, want %d", len(blocks), tr.Blocks)
	}
	third := open(t)
	if has, err := third.Has(t.Context(), tr.Root); has || err != nil {
		t.Fatalf("an empty store has the tree: %v", err)
	}
	rand.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	if err := third.PutBlocks(t.Context(), blocks[1:]); err != nil {
		t.Fatal(err)
	}
	if has, err := third.Has(t.Context(), tr.Root); has || err != nil {
		t.Fatalf("a tree without one block is complete: %v", err)
	}
	if err := third.PutBlocks(t.Context(), blocks[:1]); err != nil {
		t.Fatal(err)
	}
	if st, err := third.Stat(t.Context(), tr.Root); err != nil || st != tr {
		t.Fatalf("stat by walking %+v, %v; want %+v", st, err, tr)
	}
	sameFiles(t, contents(t, third, tr.Root), regular(sample()))
}

func TestImportedTreeSurvivesReopen(t *testing.T) {
	cfg := config(t.TempDir())
	s, err := volumes.Open(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	tr := importFS(t, s, sample())
	if _, err := volumes.Open(cfg, quiet); !errors.Is(err, volumes.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = volumes.Open(cfg, quiet); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sameFiles(t, contents(t, s, tr.Root), regular(sample()))
}

// An import that is killed leaves a store that opens, says the tree is not complete, and can import again.
func TestImportKilledInTheMiddle(t *testing.T) {
	cfg := config(t.TempDir())
	s, err := volumes.Open(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	whole := importFS(t, s, sample())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pack := filepath.Join(cfg.Dir, "pack", "0.dat")
	st, err := os.Stat(pack)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []int64{3, 2, 1, 0} {
		if err := os.Truncate(pack, st.Size()*part/4+1); err != nil {
			t.Fatal(err)
		}
		if s, err = volumes.Open(cfg, quiet); err != nil {
			t.Fatal(err)
		}
		if has, err := s.Has(t.Context(), whole.Root); has || err != nil {
			t.Fatalf("with %d quarters of the pack the tree is complete: %v", part, err)
		}
		if tr := importFS(t, s, sample()); tr != whole {
			t.Fatalf("import after the crash: %+v", tr)
		}
		sameFiles(t, contents(t, s, whole.Root), regular(sample()))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImportRefusesWhatLeavesTheTree(t *testing.T) {
	s := open(t)
	for target, ok := range map[string]bool{"../x": false, "/etc/passwd": false, "dir/../../x": false, "": false, "dir/../x": true, "x": true} {
		m := fstest.MapFS{"link": {Data: []byte(target), Mode: fs.ModeSymlink}, "dir/f": {}, "x": {}}
		_, err := s.Import(t.Context(), m, nil)
		if ok != (err == nil) || (!ok && (!errors.Is(err, volumes.ErrUnsupported) || !strings.Contains(err.Error(), `"link"`))) {
			t.Errorf("link to %q: %v", target, err)
		}
	}
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	_, err := s.ImportDir(t.Context(), dir, nil)
	if !errors.Is(err, volumes.ErrUnsupported) || !strings.Contains(err.Error(), `"pipe"`) || !strings.Contains(err.Error(), `"etc"`) {
		t.Errorf("pipe and link: %v", err)
	}
	if _, err := s.ImportDir(t.Context(), filepath.Join(dir, "absent"), nil); !errors.Is(err, volumes.ErrNotFound) {
		t.Errorf("absent directory: %v", err)
	}
}

func TestImportCanBeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := open(t).Import(ctx, sample(), func(uint64, uint64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled import: %v", err)
	}
}

func TestMakeTreeGivesTheBlocksThatAddFilesKeeps(t *testing.T) {
	for _, files := range [][]volumes.File{
		nil,
		{{Path: "a", Data: []byte("x")}},
		{{Path: "7/out", Data: bytesOf(1, 70_000)}, {Path: "7/same", Data: bytesOf(1, 70_000)}, {Path: "10/b/c", Data: nil}},
	} {
		kept, other := open(t), open(t)
		want, err := kept.AddFiles(files)
		if err != nil {
			t.Fatal(err)
		}
		got, blocks, err := volumes.MakeTree(files)
		if err != nil || got != want || uint64(len(blocks)) != want.Blocks {
			t.Errorf("%d files: %+v with %d blocks, %v, want %+v", len(files), got, len(blocks), err, want)
		}
		if err := other.PutBlocks(t.Context(), blocks); err != nil {
			t.Fatal(err)
		}
		if here, err := other.Has(t.Context(), want.Root); err != nil || !here {
			t.Errorf("%d files: the blocks are not the whole tree: %v", len(files), err)
		}
	}
	if _, _, err := volumes.MakeTree([]volumes.File{{Path: "../a"}}); !errors.Is(err, volumes.ErrUnsupported) {
		t.Errorf("a path out of the tree gives %v", err)
	}
}

func TestAddFilesEqualsImport(t *testing.T) {
	s, other := open(t), open(t)
	m := fstest.MapFS{}
	var files []volumes.File
	for name, data := range regular(sample()) {
		m[name] = &fstest.MapFile{Data: data}
		files = append(files, volumes.File{Path: name, Data: data})
	}
	for _, name := range []string{"a", "a.b", "a-/c", "z/a", "z.a"} { // sort differently as paths and as names
		m[name] = &fstest.MapFile{Data: []byte(name)}
		files = append(files, volumes.File{Path: name, Data: []byte(name)})
	}
	got, err := s.AddFiles(files)
	if want := importFS(t, other, m); err != nil || got != want {
		t.Fatalf("%+v, %v; import gives %+v", got, err, want)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]volumes.File{{{Path: "../x"}}, {{Path: "/x"}}, {{Path: "."}}, {{Path: ""}}, {{Path: "a//b"}}, {{Path: strings.Repeat("n", 256)}}} {
		if _, err := s.AddFiles(bad); !errors.Is(err, volumes.ErrUnsupported) {
			t.Errorf("%q: %v", bad[0].Path, err)
		}
	}
	for _, bad := range [][]volumes.File{{{Path: "x"}, {Path: "x"}}, {{Path: "x"}, {Path: "x/y"}}} {
		if _, err := s.AddFiles(bad); !errors.Is(err, volumes.ErrConflict) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// The wrong bytes are well-formed, so that only the hash can tell: other content for a leaf, another
// directory for a directory.
func TestPutBlocksRefusesWrongBytes(t *testing.T) {
	source := open(t)
	parts := func(content string) (dir, leaf volumes.Block) {
		for b, err := range source.Blocks(add(t, source, map[string]string{"a": content}).Root) {
			if err != nil {
				t.Fatal(err)
			}
			if b.CID.Type() == cid.Raw {
				leaf = b
			} else {
				dir = b
			}
		}
		return dir, leaf
	}
	dir, leaf := parts("content")
	otherDir, otherLeaf := parts("CONTENT")
	for what, wrong := range map[string]volumes.Block{
		"leaf":      {CID: leaf.CID, Data: otherLeaf.Data},
		"directory": {CID: dir.CID, Data: otherDir.Data},
		"nonsense":  {CID: dir.CID, Data: []byte("not it")},
		"cut leaf":  {CID: leaf.CID, Data: leaf.Data[:3]},
	} {
		s := open(t)
		if err := s.PutBlocks(t.Context(), []volumes.Block{otherLeaf, wrong}); !errors.Is(err, volumes.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		for _, c := range []cid.Cid{wrong.CID, otherLeaf.CID} { // all or none
			if has, err := s.Has(t.Context(), c); has || err != nil {
				t.Errorf("%s: %s is had after the refusal: %v", what, c, err)
			}
		}
	}
}

func TestFSConformsToIOFS(t *testing.T) {
	s := open(t)
	tr := importFS(t, s, sample())
	fsys, err := s.FS(tr.Root)
	if err != nil {
		t.Fatal(err)
	}
	small := sample() // the conformance test reads each file byte by byte, several times
	maps.DeleteFunc(small, func(_ string, f *fstest.MapFile) bool { return len(f.Data) >= 1<<20 })
	smallFS, err := s.FS(importFS(t, s, small).Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(smallFS, slices.Collect(maps.Keys(small))...); err != nil {
		t.Fatal(err)
	}
	for _, through := range []string{"link", "dir/sub/directory/sub/b"} {
		if got, err := fs.ReadFile(fsys, through); err != nil || !bytes.Equal(got, bytesOf(5, 10000)) {
			t.Errorf("%s: %v", through, err)
		}
	}
	f, err := fsys.Open("big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, part := bytesOf(3, 5<<20+12345), make([]byte, 3000)
	if n, err := f.(io.ReaderAt).ReadAt(part, 1<<20-1500); n != 3000 || err != nil || !bytes.Equal(part, want[1<<20-1500:][:3000]) {
		t.Errorf("read across two leaves: %d, %v", n, err)
	}
	if at, err := f.(io.Seeker).Seek(-10, io.SeekEnd); err != nil || at != int64(len(want)-10) {
		t.Errorf("seek: %d, %v", at, err)
	}
	if rest, err := io.ReadAll(f); err != nil || !bytes.Equal(rest, want[len(want)-10:]) {
		t.Errorf("last ten bytes: %q, %v", rest, err)
	}
	if _, err := fs.Stat(fsys, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := s.FS(add(t, open(t), map[string]string{"f": "elsewhere"}).Root); !errors.Is(err, volumes.ErrNotFound) {
		t.Errorf("absent tree: %v", err)
	}
}

func TestFSListsShardedDirectory(t *testing.T) {
	s := open(t)
	files := map[string]string{}
	for i := range 6000 {
		files[fmt.Sprintf("d/%06d.json", i)] = fmt.Sprint(i)
	}
	tr := add(t, s, files)
	fsys, err := s.FS(tr.Root)
	if err != nil {
		t.Fatal(err)
	}
	list, err := fs.ReadDir(fsys, "d")
	if err != nil || len(list) != 6000 || !slices.IsSortedFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }) {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	if b, err := fs.ReadFile(fsys, "d/004711.json"); err != nil || string(b) != "4711" {
		t.Fatalf("%q, %v", b, err)
	}
	if st, err := s.Stat(t.Context(), tr.Root); err != nil || st != tr || st.Files != 6000 {
		t.Fatalf("%+v, %v", st, err)
	}
}

func TestMergeDependsOnNeitherOrderNorGrouping(t *testing.T) {
	s := open(t)
	var roots []cid.Cid
	all := map[string]string{"shared/readme": "the same everywhere"}
	for i := range 60 {
		files := map[string]string{
			"shared/readme":                "the same everywhere",
			fmt.Sprintf("out/%d.json", i):  fmt.Sprint(i),
			fmt.Sprintf("deep/%d/x", i/10): "common to ten",
		}
		roots = append(roots, add(t, s, files).Root)
		maps.Copy(all, files)
	}
	want := add(t, open(t), all)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		todo := slices.Clone(roots)
		rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
		for len(todo) > 1 { // merge random groups until one is left
			k := 1 + rng.IntN(len(todo))
			tr, err := s.Merge(t.Context(), slices.Values(todo[:k]))
			if err != nil {
				t.Fatal(err)
			}
			todo = append(todo[k:], tr.Root)
			if k == 1 {
				rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
			}
		}
		if todo[0] != want.Root {
			t.Fatalf("seed %d: root %s, want %s", seed, todo[0], want.Root)
		}
	}
	tr, err := s.Merge(t.Context(), slices.Values(roots))
	if err != nil || tr != want {
		t.Fatalf("%+v, %v; want %+v", tr, err, want)
	}
	empty, err := s.Merge(t.Context(), slices.Values([]cid.Cid(nil)))
	if err != nil || empty.Files != 0 || empty.Root.String() != "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354" {
		t.Fatalf("merge of nothing: %+v, %v", empty, err)
	}
}

func TestMergeNamesConflicts(t *testing.T) {
	s := open(t)
	a := add(t, s, map[string]string{"same": "1", "d/x": "1", "d/y": "1", "kind": "file"})
	b := add(t, s, map[string]string{"same": "1", "d/x": "2", "d/y": "1", "kind/f": "directory"})
	_, err := s.Merge(t.Context(), slices.Values([]cid.Cid{a.Root, b.Root}))
	e, ok := errors.AsType[*volumes.ConflictError](err)
	if !ok || !errors.Is(err, volumes.ErrConflict) || !slices.Equal(e.Paths, []string{"d/x", "kind"}) {
		t.Fatalf("conflicts: %v", err)
	}
	many, more := map[string]string{}, map[string]string{}
	for i := range 1500 {
		many[fmt.Sprint(i)], more[fmt.Sprint(i)] = "a", "b"
	}
	_, err = s.Merge(t.Context(), slices.Values([]cid.Cid{add(t, s, many).Root, add(t, s, more).Root}))
	if e, ok := errors.AsType[*volumes.ConflictError](err); !ok || len(e.Paths) != 1000 || !e.More {
		t.Fatalf("1,500 conflicts: %v", err)
	}
}

func TestExportStaysInItsDirectory(t *testing.T) {
	s := open(t)
	tr := add(t, s, map[string]string{"dir/file": "new", "f": "new"})
	outside := t.TempDir()
	victim := filepath.Join(outside, "file")
	if err := os.WriteFile(victim, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(dir string) error{
		"directory is a link out": func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "dir")) },
		"directory is a link in": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "x"), 0o700), os.Symlink("x", filepath.Join(dir, "dir")))
		},
		"file is a link out":  func(dir string) error { return os.Symlink(victim, filepath.Join(dir, "f")) },
		"file is a directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, "f"), 0o700) },
	} {
		dir := t.TempDir()
		if err := prepare(dir); err != nil {
			t.Fatal(err)
		}
		if err := s.Export(t.Context(), tr.Root, dir, nil); !errors.Is(err, volumes.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "old" {
			t.Fatalf("%s: a file outside was written", name)
		}
		left, err := filepath.Glob(filepath.Join(dir, ".gridbeam-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: temporary files are left: %v %v", name, left, err)
		}
	}
}

// A tree that somebody else wrote may hold names and links that lead out.
func TestHostileTreeIsNotExported(t *testing.T) {
	s := open(t)
	leaf := add(t, s, map[string]string{"x": "evil"})
	fsys, err := s.FS(leaf.Root)
	if err != nil {
		t.Fatal(err)
	}
	st, err := fs.Stat(fsys, "x")
	if err != nil {
		t.Fatal(err)
	}
	link := hostileLink(t, s, "../../evil")
	for name, child := range map[string]cid.Cid{"..": st.Sys().(cid.Cid), "a/b": st.Sys().(cid.Cid), "/abs": st.Sys().(cid.Cid), "": st.Sys().(cid.Cid), "l": link} {
		root := hostileDir(t, s, name, child)
		parent := t.TempDir()
		dir := filepath.Join(parent, "to")
		err := s.Export(t.Context(), root, dir, nil)
		if !errors.Is(err, volumes.ErrCorrupt) && !errors.Is(err, volumes.ErrDenied) {
			t.Errorf("%q: %v", name, err)
		}
		if list, _ := os.ReadDir(parent); len(list) != 1 {
			t.Errorf("%q: something was written outside", name)
		}
	}
	fsys, err = s.FS(hostileDir(t, s, "l", link))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.ReadFile(fsys, "l"); !errors.Is(err, volumes.ErrDenied) {
		t.Errorf("link out of the tree: %v", err)
	}
	self, err := s.FS(hostileDir(t, s, "l", hostileLink(t, s, "l")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.ReadFile(self, "l"); !errors.Is(err, volumes.ErrDenied) {
		t.Errorf("link to itself: %v", err)
	}
}

func TestGCKeepsPinnedTrees(t *testing.T) {
	s := open(t)
	a := add(t, s, map[string]string{"a": string(bytesOf(1, 3<<20)), "both": "x"})
	b := add(t, s, map[string]string{"b": string(bytesOf(2, 3<<20)), "both": "x"})
	if err := s.Pin(a.Root); err != nil {
		t.Fatal(err)
	}
	blocks, _, err := s.GC(t.Context())
	if err != nil || blocks != b.Blocks-1 {
		t.Fatalf("%d blocks collected, %v; want %d", blocks, err, b.Blocks-1)
	}
	if has, err := s.Has(t.Context(), a.Root); !has || err != nil {
		t.Fatalf("pinned tree: %v", err)
	}
	if has, err := s.Has(t.Context(), b.Root); has || err != nil {
		t.Fatalf("unpinned tree: %v", err)
	}
	if err := s.Unpin(a.Root); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.GC(t.Context(), a.Root); err != nil {
		t.Fatal(err)
	}
	if has, err := s.Has(t.Context(), a.Root); !has || err != nil {
		t.Fatalf("tree that the caller keeps: %v", err)
	}
	if blocks, _, err := s.GC(t.Context()); err != nil || blocks != a.Blocks {
		t.Fatalf("%d blocks collected, %v; want %d", blocks, err, a.Blocks)
	}
}

func TestFullDiskFailsTheImportAndLeavesNoTree(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("SKIPPED, the full disk is not tested: mounting a tmpfs needs root: %v", err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	cfg := config(filepath.Join(dir, "s"))
	cfg.Reserve = 24 << 20
	s, err := volumes.Open(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	small := importFS(t, s, sample())
	big := fstest.MapFS{}
	for i := range 60 {
		big[fmt.Sprint(i)] = &fstest.MapFile{Data: bytesOf(100+i, 1<<20)}
	}
	if _, err := s.Import(t.Context(), big, nil); !errors.Is(err, volumes.ErrNoSpace) || !strings.Contains(err.Error(), "gc") {
		t.Fatalf("import on a full disk: %v", err)
	}
	sameFiles(t, contents(t, s, small.Root), regular(sample()))
	if _, _, err := s.GC(t.Context(), small.Root); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, contents(t, s, small.Root), regular(sample()))
}

func TestConfigNamesTheFaultyField(t *testing.T) {
	for field, change := range map[string]func(*volumes.Config){
		"Dir":         func(c *volumes.Config) { c.Dir = "" },
		"PackSize":    func(c *volumes.Config) { c.PackSize = 1 },
		"Inline":      func(c *volumes.Config) { c.Inline = -1 },
		"SyncBytes":   func(c *volumes.Config) { c.SyncBytes = 0 },
		"Cache":       func(c *volumes.Config) { c.Cache = 0 },
		"ReadTimeout": func(c *volumes.Config) { c.ReadTimeout = 0 },
		"MaxBlocks":   func(c *volumes.Config) { c.MaxBlocks = 0 },
	} {
		cfg := volumes.DefaultConfig("x")
		change(&cfg)
		if _, err := volumes.Open(cfg, quiet); !errors.Is(err, volumes.ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := volumes.DefaultConfig("x").Validate(); err != nil {
		t.Error(err)
	}
	if err := volumes.DefaultNetConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func BenchmarkAddFilesOneSmallFile(b *testing.B) {
	s := open(b)
	i := 0
	for b.Loop() {
		i++
		if _, err := s.AddFiles([]volumes.File{{Path: "out.json", Data: fmt.Appendf(nil, `{"chunk":%d}`, i)}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge10000(b *testing.B) {
	s := open(b)
	var roots []cid.Cid
	for i := range 10000 {
		roots = append(roots, add(b, s, map[string]string{fmt.Sprintf("out/%d.json", i): fmt.Sprint(i)}).Root)
	}
	for b.Loop() {
		if _, err := s.Merge(b.Context(), slices.Values(roots)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkImport64MiB(b *testing.B) {
	b.SetBytes(64 << 20)
	data := bytesOf(1, 64<<20)
	for b.Loop() {
		b.StopTimer()
		s := open(b)
		b.StartTimer()
		if _, err := s.Import(b.Context(), fstest.MapFS{"f": {Data: data}}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAFileThatIsCutOffIsNoFile has readers that say in the middle, in the one way or another, that something is
// missing.
func TestAFileThatIsCutOffIsNoFile(t *testing.T) {
	s := open(t)
	for _, size := range []int{0, 1000, 1 << 20, 3<<20 + 7} {
		for _, why := range []error{io.ErrUnexpectedEOF, errors.New("the line is cut"), nil} {
			_, err := s.Import(t.Context(), cutFS{size, why}, nil)
			if (err == nil) != (why == nil) || why != nil && !errors.Is(err, why) {
				t.Errorf("after %d bytes with %v: %v", size, why, err)
			}
		}
	}
}

// cutFS holds one file that ends with an error.
type cutFS struct {
	size int
	why  error
}

func (c cutFS) Open(name string) (fs.File, error) {
	f, err := fstest.MapFS{"f": {Data: make([]byte, c.size)}}.Open(name)
	if err != nil || name != "f" {
		return f, err
	}
	return cutFile{f, c.why}, nil
}

type cutFile struct {
	fs.File
	why error
}

func (c cutFile) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	if errors.Is(err, io.EOF) && c.why != nil {
		err = c.why
	}
	return n, err
}
