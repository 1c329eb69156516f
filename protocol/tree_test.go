package protocol

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// tarOf makes a stream of headers; content is as many bytes as Size says.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o777
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name string, size int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size}
}

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}

func TestTreesTravelWhole(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for name, data := range map[string]string{"a": "1", "d/b": strings.Repeat("2", 200_000), "d/e/empty": "", "ünï/c": "3"} {
		if err := os.MkdirAll(filepath.Join(from, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(from, "none"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../a", filepath.Join(from, "d/link")); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	files, sum := 0, int64(0)
	if err := PackTree(&stream, openRoot(t, from).FS(), func(f int, b int64) { files, sum = f, b }); err != nil {
		t.Fatal(err)
	}
	if files != 4 || sum != 200_002 {
		t.Errorf("told of %d files, %d bytes", files, sum)
	}
	// A file of an earlier result is replaced, one that the tree does not name stays.
	for name, data := range map[string]string{"a": "old and longer", "other": "mine"} {
		if err := os.WriteFile(filepath.Join(to, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := bytes.Clone(stream.Bytes())
	if err := UnpackTree(&stream, openRoot(t, to), TreeLimits{Bytes: 200_002, Entries: 9}, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "d/link")); string(b) != "1" {
		t.Errorf("through the link: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "other")); string(b) != "mine" {
		t.Errorf("a file beside: %q, %v", b, err)
	}
	if err := os.Remove(filepath.Join(to, "other")); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := PackTree(&again, openRoot(t, to).FS(), nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again.Bytes()) {
		t.Error("an equal tree gives another stream")
	}
}

func TestStreamsThatLeaveTheDirectoryAreRefused(t *testing.T) {
	for what, stream := range map[string][]byte{
		"absolute":             tarOf(t, file("/etc/x", 1)),
		"parent":               tarOf(t, file("../x", 1)),
		"parent inside":        tarOf(t, file("a/../../x", 1)),
		"dot inside":           tarOf(t, file("a/./x", 1)),
		"its own name":         tarOf(t, file(".", 0)),
		"long name":            tarOf(t, file(strings.Repeat("x", 256), 1)),
		"absolute link":        tarOf(t, link("l", "/etc")),
		"link out":             tarOf(t, link("l", "..")),
		"link out of below":    tarOf(t, link("d/l", "../../x")),
		"link then up":         tarOf(t, link("x/y/L", "../.."), link("x/y/z/M", "../L/../..")),
		"empty link":           tarOf(t, link("l", "")),
		"through a link":       tarOf(t, link("l", "d"), file("l/x", 1)),
		"into a link's dir":    tarOf(t, link("l", "d"), tar.Header{Name: "l/", Typeflag: tar.TypeDir}),
		"through an old link":  tarOf(t, file("outside/x", 1)),
		"hard link":            tarOf(t, file("a", 1), tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "a"}),
		"pipe":                 tarOf(t, tar.Header{Name: "p", Typeflag: tar.TypeFifo}),
		"device":               tarOf(t, tar.Header{Name: "p", Typeflag: tar.TypeChar}),
		"twice":                tarOf(t, file("a", 1), file("a", 1)),
		"file, then below it":  tarOf(t, file("a", 1), file("a/b", 1)),
		"directory, then file": tarOf(t, file("a/b", 1), file("a", 1)),
		"no tar":               bytes.Repeat([]byte("no tar "), 200),
		"cut off":              tarOf(t, file("a", 5000))[:2000],
		"cut between files":    tarOf(t, file("a", 512), file("b", 1))[:1024],
		"cut in the padding":   tarOf(t, file("a", 1), file("b", 1))[:900],
		"cut before its end":   tarOf(t, file("a", 1))[:1024+512],
		"nothing":              {},
	} {
		dir := t.TempDir()
		inside, outside := filepath.Join(dir, "inside"), filepath.Join(dir, "outside")
		for _, d := range []string{inside, outside} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(outside, filepath.Join(inside, "outside")); err != nil {
			t.Fatal(err)
		}
		err := UnpackTree(bytes.NewReader(stream), openRoot(t, inside), TreeLimits{}, nil)
		if !errors.Is(err, ErrBadTree) {
			t.Errorf("%s: %v", what, err)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Errorf("%s: %v outside (%v)", what, left, err)
		}
		if beside, err := os.ReadDir(dir); err != nil || len(beside) != 2 {
			t.Errorf("%s: %v beside (%v)", what, beside, err)
		}
	}
}

func TestTreesBeyondTheirLimitsAreRefused(t *testing.T) {
	many := []tar.Header{file("a", 10), file("b/c", 10)}
	for _, c := range []struct {
		limits TreeLimits
		ok     bool
	}{{TreeLimits{20, 2}, true}, {TreeLimits{19, 2}, false}, {TreeLimits{20, 1}, false}, {TreeLimits{}, true}} {
		err := UnpackTree(bytes.NewReader(tarOf(t, many...)), openRoot(t, t.TempDir()), c.limits, nil)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrTreeTooLarge) {
			t.Errorf("%+v: %v", c.limits, err)
		}
	}
	// A header that lies about petabytes is refused before anything is read.
	huge := tarOf(t, file("a", 0))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 50, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	huge = append(b.Bytes(), huge...)
	if err := UnpackTree(bytes.NewReader(huge), openRoot(t, t.TempDir()), TreeLimits{Bytes: 1 << 40}, nil); !errors.Is(err, ErrTreeTooLarge) {
		t.Errorf("a petabyte: %v", err)
	}
}

func TestTreesThatCannotBeSentAreNamed(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PackTree(io.Discard, openRoot(t, dir).FS(), nil); !errors.Is(err, ErrBadTree) || !strings.Contains(err.Error(), `"pipe" is a pipe`) {
		t.Errorf("%v", err)
	}
	dir = t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	if err := PackTree(io.Discard, openRoot(t, dir).FS(), nil); !errors.Is(err, ErrBadTree) || !strings.Contains(err.Error(), "out of the tree") {
		t.Errorf("%v", err)
	}
	grows := growing{fstest.MapFS{"log": {Data: []byte("1234")}}}
	if err := PackTree(io.Discard, grows, nil); !errors.Is(err, ErrBadTree) || !strings.Contains(err.Error(), "changed its size") {
		t.Errorf("%v", err)
	}
}

// growing lies about sizes, as a file does that somebody writes to.
type growing struct{ fstest.MapFS }

type growingFile struct{ fs.File }

type growingInfo struct{ fs.FileInfo }

func (g growing) Open(name string) (fs.File, error) {
	f, err := g.MapFS.Open(name)
	if name == "log" && err == nil {
		return growingFile{f}, nil
	}
	return f, err
}

func (f growingFile) Stat() (fs.FileInfo, error) {
	info, err := f.File.Stat()
	return growingInfo{info}, err
}

func (i growingInfo) Size() int64 { return i.FileInfo.Size() - 1 }

func FuzzUnpackTree(f *testing.F) {
	f.Add(tarOf(f, file("a", 1), link("l", "a"), file("d/e", 9)))
	f.Add(tarOf(f, link("x/y/L", "../.."), link("x/y/z/M", "../L/../..")))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		dir := t.TempDir()
		inside := filepath.Join(dir, "inside")
		if err := os.Mkdir(inside, 0o700); err != nil {
			t.Fatal(err)
		}
		root := openRoot(t, inside)
		err := UnpackTree(bytes.NewReader(stream), root, TreeLimits{Bytes: 1 << 20, Entries: 100}, nil)
		if beside, _ := os.ReadDir(dir); len(beside) != 1 {
			t.Fatalf("%v beside", beside)
		}
		if err != nil {
			return
		}
		// What was unpacked can be packed again: no link leads out.
		if err := PackTree(io.Discard, root.FS(), nil); err != nil {
			t.Fatal(err)
		}
		_ = filepath.WalkDir(inside, func(p string, d fs.DirEntry, _ error) error {
			if d.Type()&fs.ModeSymlink != 0 {
				if to, err := filepath.EvalSymlinks(p); err == nil && to != inside && !strings.HasPrefix(to, inside+"/") {
					t.Fatalf("%s leads to %s", p, to)
				}
			}
			return nil
		})
	})
}
