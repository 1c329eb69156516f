package beambridge

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
)

// entry is one of an archive.
type entry struct {
	name string
	mode fs.FileMode
	text string
	size uint64 // what it says that it has, if not what it has
	flag uint16
}

// archive makes a zip archive, also one that no honest program would make.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Flags: e.flag}
		if e.mode != 0 {
			h.SetMode(e.mode)
		}
		var w io.Writer
		var err error
		if e.size > 0 || e.flag != 0 {
			h.Method, h.UncompressedSize64, h.CompressedSize64 = zip.Store, max(e.size, uint64(len(e.text))), uint64(len(e.text))
			w, err = z.CreateRaw(h)
		} else {
			w, err = z.CreateHeader(h)
		}
		if err == nil && !strings.HasSuffix(e.name, "/") {
			_, err = io.WriteString(w, e.text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func checkBytes(raw []byte) (*zip.Reader, error) {
	z, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, err
	}
	return z, checkArchive(z, int64(len(raw)))
}

func deep(n int) string { return strings.Repeat("d/", n) + "f" }

func TestArchivesThatLeaveTheirDirectoryOrBurstItAreRefused(t *testing.T) {
	many, dirs := make([]entry, codeFiles+1), make([]entry, 0, codeFiles)
	for i := range many {
		many[i] = entry{name: fmt.Sprint(i)}
	}
	for i := range codeFiles/(codeDepth-1) + 1 {
		dirs = append(dirs, entry{name: fmt.Sprint(i, "/", deep(codeDepth-1))})
	}
	for name, c := range map[string]struct {
		entries []entry
		want    string // of the refusal; empty is taken
	}{
		"plain code":          {[]entry{{name: "app.py", text: "x"}, {name: "pkg/"}, {name: "pkg/__init__.py"}, {name: "run.sh", mode: 0o755}}, ""},
		"nothing":             {nil, ""},
		"the deepest":         {[]entry{{name: deep(codeDepth)}}, ""},
		"deeper":              {[]entry{{name: deep(codeDepth + 1)}}, "in 65 directories"},
		"the longest name":    {[]entry{{name: strings.Repeat("n", codeName)}}, ""},
		"a longer name":       {[]entry{{name: strings.Repeat("n", codeName+1)}}, "a name of 1025 bytes"},
		"as many files":       {many[1:], ""},
		"one more":            {many, "10001 files"},
		"too many, hidden":    {dirs, "10000 directories"},
		"out by ..":           {[]entry{{name: "../f"}}, `"../f"`},
		"out in the middle":   {[]entry{{name: "a/../../f"}}, `"a/../../f"`},
		"absolute":            {[]entry{{name: "/etc/passwd"}}, `"/etc/passwd"`},
		"a directory outside": {[]entry{{name: "../"}}, `"../"`},
		"by Windows' slash":   {[]entry{{name: `..\f`}}, `leaves its directory`},
		"with a drive":        {[]entry{{name: `C:\f`}}, `leaves its directory`},
		"with a zero byte":    {[]entry{{name: "a\x00b"}}, `leaves its directory`},
		"an empty part":       {[]entry{{name: "a//b"}}, `"a//b"`},
		"a link":              {[]entry{{name: "l", mode: fs.ModeSymlink | 0o777, text: "/etc/passwd"}}, `"l", which is no plain file`},
		"a link to a sibling": {[]entry{{name: "f"}, {name: "l", mode: fs.ModeSymlink | 0o777, text: "f"}}, `"l", which is no plain file`},
		"a device":            {[]entry{{name: "d", mode: fs.ModeDevice | 0o600}}, `"d", which is no plain file`},
		"a character device":  {[]entry{{name: "d", mode: fs.ModeDevice | fs.ModeCharDevice | 0o600}}, `"d", which is no plain file`},
		"a pipe":              {[]entry{{name: "p", mode: fs.ModeNamedPipe | 0o600}}, `"p", which is no plain file`},
		"a socket":            {[]entry{{name: "s", mode: fs.ModeSocket | 0o600}}, `"s", which is no plain file`},
		"a name twice":        {[]entry{{name: "f", text: "1"}, {name: "f", text: "2"}}, `"f" twice`},
		"encrypted":           {[]entry{{name: "f", text: "x", flag: 1}}, `encrypted`},
		"one that is huge":    {[]entry{{name: "f", text: "x", size: codeBytes + 1}}, "more than 2 GiB"},
		"huge together":       {[]entry{{name: "f", text: "x", size: codeBytes - 1}, {name: "g", text: "x", size: codeBytes - 1}}, "more than 2 GiB"},
		"sizes that overflow": {[]entry{{name: "f", text: "x", size: 4}, {name: "g", text: "x", size: 1<<64 - 2}}, "more than 2 GiB"},
		"a bomb":              {[]entry{{name: "f", text: strings.Repeat("0", 4<<20)}}, "that is no code"},
	} {
		_, err := checkBytes(archive(t, c.entries...))
		no, refused := errors.AsType[*beamapi.Refusal](err)
		if refused != (c.want != "") || err != nil && !refused || refused && !strings.Contains(no.Text, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestArchivesBecomeTheFilesThatTheyHold takes archives all the way into the store.
func TestArchivesBecomeTheFilesThatTheyHold(t *testing.T) {
	b, _ := tokenBridge(t)
	good := archive(t, entry{name: "app.py", text: "x"}, entry{name: "pkg/a.py", text: "a"})
	tree, size, err := b.keepArchive(t.Context(), hashOf(good), bytes.NewReader(good))
	if err != nil || size != int64(len(good)) || tree.Files != 2 {
		t.Fatalf("%+v, %d, %v", tree, size, err)
	}
	files, err := b.vols.FS(tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(files, "app.py", "pkg/a.py"); err != nil {
		t.Error(err)
	}
	lies := archive(t, entry{name: "f", text: strings.Repeat("x", 1000), size: 2000}) // it has less than it says
	for name, c := range map[string]struct {
		raw  []byte
		hash string
		want string
	}{
		"another hash":       {good, hashOf(lies), "does not have the hash"},
		"no archive":         {[]byte("PK\x03\x04 and no more"), hashOf([]byte("PK\x03\x04 and no more")), "no zip archive"},
		"damaged":            {flip(good, "pkg/a.py", 0), "", "damaged"},
		"a lie about a size": {lies, hashOf(lies), "damaged"},
		"out by ..":          {archive(t, entry{name: "../../f"}), "", "leaves its directory"},
	} {
		if c.hash == "" {
			c.hash = hashOf(c.raw)
		}
		_, _, err := b.keepArchive(t.Context(), c.hash, bytes.NewReader(c.raw))
		if no, ok := errors.AsType[*beamapi.Refusal](err); !ok || !strings.Contains(no.Text, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// flip damages the byte that is some way behind a text.
func flip(raw []byte, after string, n int) []byte {
	out := bytes.Clone(raw)
	i := bytes.Index(out, []byte(after)) + len(after)
	out[min(i+n, len(out)-1)] ^= 0xff
	return out
}

// FuzzArchive looks for an archive that is taken and leaves its directory, or holds more than it said.
func FuzzArchive(f *testing.F) {
	for _, e := range [][]entry{
		{{name: "app.py", text: "x"}, {name: "pkg/"}, {name: "pkg/a.py", text: "a"}},
		{{name: "../f", text: "x"}},
		{{name: "a", text: "x"}, {name: "a/b", text: "x"}},
		{{name: "l", mode: fs.ModeSymlink | 0o777, text: "/etc"}, {name: "l/f", text: "x"}},
		{{name: deep(codeDepth + 1)}},
		{{name: "f", text: "x", size: 1 << 40}},
		{{name: `..\f`}},
		{{name: "a//b"}},
		{{name: "/abs"}},
		{{name: "f", text: strings.Repeat("0", 4<<20)}},
		{{name: "f", text: "x", flag: 1}},
	} {
		f.Add(archive(f, e...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		z, err := checkBytes(raw)
		if err != nil {
			return
		}
		var said, had uint64
		for _, x := range z.File { // what a program would do that joins names to its directory
			name := strings.TrimSuffix(x.Name, "/")
			at := path.Join("/code", name)
			switch mode := x.Mode(); {
			case name != "" && name != "." && at != "/code/"+name, strings.ContainsAny(name, "\\\x00"):
				t.Fatalf("%q was taken, which leads to %q", x.Name, at)
			case len(name) > codeName || strings.Count(name, "/") > codeDepth:
				t.Fatalf("a name of %d bytes in %d directories was taken", len(name), strings.Count(name, "/"))
			case !mode.IsRegular() && !mode.IsDir():
				t.Fatalf("%q was taken, which is %s", x.Name, mode)
			}
			said += x.UncompressedSize64
		}
		if said > codeBytes || said > 1<<20 && said > codeRatio*uint64(len(raw)) {
			t.Fatalf("%d bytes of %d were taken", said, len(raw))
		}
		err = fs.WalkDir(z, ".", func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() || said > 1<<22:
				return nil
			case !d.Type().IsRegular():
				t.Fatalf("%q was taken, which is %s", name, d.Type())
			}
			r, err := z.Open(name)
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, r)
			had += uint64(n)
			return errors.Join(err, r.Close())
		})
		if had > said {
			t.Fatalf("%d bytes came out of an archive that says %d (%v)", had, said, err)
		}
	})
}
