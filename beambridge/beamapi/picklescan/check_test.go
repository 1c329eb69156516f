package picklescan

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden is one line of a file that testdata/golden.py wrote.
type golden struct {
	name string
	b    []byte
}

func goldens(t testing.TB, file string) []golden {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	for line := range strings.Lines(string(text)) {
		name, digits, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, golden{name, b})
	}
	if len(all) < 100 {
		t.Fatalf("%s has %d lines", file, len(all))
	}
	return all
}

func TestPlainDataPasses(t *testing.T) {
	for _, g := range goldens(t, "safe.txt") {
		if err := Check(g.b, Options{}); err != nil {
			t.Errorf("%s: %v", g.name, err)
		}
	}
}

func TestHostilePicklesAreRefused(t *testing.T) {
	for _, g := range goldens(t, "hostile.txt") {
		err := Check(g.b, Options{})
		if !errors.Is(err, ErrRefused) && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s passes: %v", g.name, err)
		}
		if err := Check(g.b, Options{Any: true}); err != nil {
			t.Errorf("%s with Any: %v", g.name, err)
		}
	}
}

// Every prefix of a pickle is refused: none is a pickle itself.
func TestCutPicklesAreRefused(t *testing.T) {
	for _, g := range goldens(t, "safe.txt") {
		for n := range min(len(g.b), 200) {
			if Check(g.b[:n], Options{}) == nil && n < len(g.b) {
				t.Fatalf("%s passes when cut at %d", g.name, n)
			}
		}
	}
}

func TestRefusalsNameTheGlobalAndTheRemedy(t *testing.T) {
	for _, c := range []struct{ pickle, want string }{
		{"cos\nsystem\n(Vtrue\ntR.", "os.system"},
		{"\x80\x04\x8c\x05torch\x8c\x06Tensor\x93.", "torch.Tensor"},
		{"\x80\x04\x8c\x08builtins\x8c\x07str.foo\x93.", "builtins.str.foo"},
		{"c\x1b[2Jevil\nx\n.", `"\x1b[2Jevil.x"`},
		{"(Vtrue\nios\nsystem\n.", "os.system"},
	} {
		err := Check([]byte(c.pickle), Options{})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), Remedy) {
			t.Errorf("%q: %v, want %s and the remedy", c.pickle, err, c.want)
		}
	}
	long := "c" + strings.Repeat("m", 1<<20) + "\nx\n."
	if err := Check([]byte(long), Options{}); len(err.Error()) > 600 {
		t.Errorf("a name of 1 MiB gives %d bytes of text", len(err.Error()))
	}
}

func TestAllowPassesExactlyTheNamedClass(t *testing.T) {
	point := func(module, class string) []byte {
		return []byte("\x80\x03c" + module + "\n" + class + "\n)\x81}X\x01\x00\x00\x00xK\x01sb.")
	}
	for _, c := range []struct {
		name  string
		b     []byte
		allow []string
		want  bool
	}{
		{"named", point("main", "Point"), []string{"main.Point"}, true},
		{"in a package", point("a.b", "Point"), []string{"x.Y", "a.b.Point"}, true},
		{"not named", point("main", "Point"), []string{"main.Other"}, false},
		{"another module", point("os", "Point"), []string{"main.Point"}, false},
		{"split elsewhere", point("a", "b.Point"), []string{"a.b.Point"}, false},
		{"prefix", point("main", "PointX"), []string{"main.Point"}, false},
		{"empty module", point("", "Point"), []string{".Point", "Point"}, false},
		{"old protocol", []byte("cmain\nPoint\n)\x81."), []string{"main.Point"}, false},
		{"protocol lowered", []byte("\x80\x03\x80\x02cmain\nPoint\n)\x81."), []string{"main.Point"}, false},
		{"keywords", []byte("\x80\x04cmain\nPoint\n)}\x92."), []string{"main.Point"}, true},
	} {
		if err := Check(c.b, Options{Allow: c.allow}); (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestPicklesThatTakeMuchMemoryAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"too large": make([]byte, MaxSize+1),
		"stack":     append(bytes.Repeat([]byte("N"), maxStack+1), '.'),
		"marks":     append(bytes.Repeat([]byte("("), maxMarks+1), '.'),
		"memo":      []byte("Nr\xff\xff\xff\x00."),
	} {
		if err := Check(b, Options{}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// answer is what testdata/walk.py says of one pickle.
type answer struct {
	Ops   []int       `json:"ops"`
	Walk  string      `json:"walk"`
	Load  string      `json:"load"`
	Names [][2]string `json:"names"`
}

// cpython asks a real interpreter; it skips the test if there is none.
func cpython(t *testing.T, pickles [][]byte) []answer {
	t.Helper()
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Skip("no /usr/bin/python3 to compare with: install python3")
	}
	var in bytes.Buffer
	for _, b := range pickles {
		in.WriteString(hex.EncodeToString(b) + "\n")
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/walk.py")
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []answer
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	if len(all) != len(pickles) {
		t.Fatalf("%d answers to %d pickles", len(all), len(pickles))
	}
	return all
}

// agree checks a pickle that passed against what CPython made of it.
func agree(t *testing.T, name string, b []byte, a answer) {
	t.Helper()
	var ops []int
	m := &machine{in: b, trace: func(at int, _ byte) { ops = append(ops, at) }}
	if err := m.run(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if a.Walk == "" {
		for i := range max(len(ops), len(a.Ops)) {
			if i >= len(ops) || i >= len(a.Ops) || ops[i] != a.Ops[i] {
				t.Fatalf("%s (%x): opcode %d is not where CPython has it", name, b, i)
			}
		}
	}
	for _, n := range a.Names {
		if strings.HasPrefix(n[0], "numpy.") || n[0] == "numpy" {
			continue // its modules move
		}
		if table[n[0]][n[1]] == nil {
			t.Errorf("%s (%x) passes and CPython looks up %s.%s", name, b, n[0], n[1])
		}
	}
}

func TestWalksAgreeWithCPython(t *testing.T) {
	safe := goldens(t, "safe.txt")
	pickles := make([][]byte, len(safe))
	for i, g := range safe {
		pickles[i] = g.b
	}
	for i, a := range cpython(t, pickles) {
		if a.Walk != "" || (a.Load != "" && !strings.Contains(a.Load, "numpy") && !strings.Contains(a.Load, "No module named 'pathlib._local'") &&
			!strings.Contains(a.Load, "ExceptionGroup")) {
			t.Errorf("%s: CPython says %q %q", safe[i].name, a.Walk, a.Load)
		}
		agree(t, safe[i].name, safe[i].b, a)
	}
}

// Goldens with bytes changed, cut, doubled and spliced: what still passes must look up nothing else in CPython.
func TestMutatedPicklesLookUpNothingElse(t *testing.T) {
	seeds := append(goldens(t, "safe.txt"), goldens(t, "hostile.txt")...)
	rng := rand.New(rand.NewPCG(1, 2))
	var passed [][]byte
	for range 200_000 {
		b := mutate(rng, seeds)
		if len(b) < 4096 && Check(b, Options{}) == nil {
			passed = append(passed, b)
		}
	}
	if len(passed) < 1000 {
		t.Fatalf("only %d of the mutated pickles pass", len(passed))
	}
	for i, a := range cpython(t, passed) {
		agree(t, "mutated", passed[i], a)
	}
}

func mutate(rng *rand.Rand, seeds []golden) []byte {
	b := bytes.Clone(seeds[rng.IntN(len(seeds))].b)
	for range 1 + rng.IntN(3) {
		if len(b) == 0 {
			return b
		}
		i := rng.IntN(len(b))
		switch rng.IntN(4) {
		case 0:
			b[i] = byte(rng.Uint32())
		case 1:
			b = append(b[:i], b[min(len(b), i+1+rng.IntN(4)):]...)
		case 2:
			other := seeds[rng.IntN(len(seeds))].b
			if len(other) > 0 {
				j := rng.IntN(len(other))
				b = append(b[:i:i], append(bytes.Clone(other[j:min(len(other), j+rng.IntN(40))]), b[i:]...)...)
			}
		case 3:
			for code := byte(rng.Uint32()); ; code++ {
				if opcodes[code].do != nil {
					b[i] = code
					break
				}
			}
		}
	}
	return b
}

func FuzzCheck(f *testing.F) {
	for _, file := range []string{"safe.txt", "hostile.txt"} {
		for _, g := range goldens(f, file) {
			f.Add(g.b)
		}
	}
	for _, c := range costs() {
		if b := c.build(min(c.small, 100)); len(b) < 10_000 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Check(b, Options{})
		if err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrMalformed) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if err == nil && b[len(b)-1] != '.' {
			t.Fatalf("%x passes", b)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	const size = 15 << 20
	blob := append([]byte("\x80\x05\x8e\x00\x00\xf0\x00\x00\x00\x00\x00"), make([]byte, size)...)
	floats := []byte("\x80\x05](")
	for len(floats) < size {
		floats = append(floats, "G\x3f\xf0\x00\x00\x00\x00\x00\x00"...)
	}
	strs := []byte("\x80\x05](")
	for len(strs) < size {
		strs = append(strs, "\x8c\x10abcdefghijklmnop\x94"...)
	}
	for name, pickle := range map[string][]byte{
		"bytes": append(blob, '.'), "floats": append(floats, "e."...), "texts": append(strs, "e."...),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(pickle)))
			for b.Loop() {
				if err := Check(pickle, Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
