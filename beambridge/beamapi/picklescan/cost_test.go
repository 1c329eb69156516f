package picklescan

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"math/big"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// writer writes pickles that Python does not.
type writer struct{ bytes.Buffer }

func (w *writer) put(parts ...string) *writer {
	for _, p := range parts {
		w.WriteString(p)
	}
	return w
}

func (w *writer) times(n int, parts ...string) *writer {
	for range n {
		w.put(parts...)
	}
	return w
}

// global pushes a global and keeps it as a memo entry.
func (w *writer) global(module, attr string, entry int) *writer {
	return w.put("c", module, "\n", attr, "\nq", string([]byte{byte(entry)}))
}

func (w *writer) text(s string) *writer {
	return w.put("X", string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))), s)
}

func (w *writer) int(v int64) *writer {
	return w.put("\x8a\x08", string(binary.LittleEndian.AppendUint64(nil, uint64(v))))
}

func (w *writer) long(v *big.Int) *writer {
	le := v.Bytes()
	slices.Reverse(le)
	le = append(le, 0)
	return w.put("\x8b", string(binary.LittleEndian.AppendUint32(nil, uint32(len(le)))), string(le))
}

func (w *writer) float(f float64) *writer {
	return w.put("G", string(binary.BigEndian.AppendUint64(nil, math.Float64bits(f))))
}

func (w *writer) done() []byte { return append(w.Bytes(), '.') }

func begin() *writer { return (&writer{}).put("\x80\x04") }

// keysOf makes a dict or set of n keys.
func keysOf(kind string, n int, key func(w *writer, i int)) []byte {
	w := begin()
	switch kind {
	case "set":
		w.put("\x8f(")
	case "dict":
		w.put("}(")
	case "frozenset":
		w.put("(")
	case "old set":
		w = (&writer{}).put("\x80\x02c__builtin__\nset\n](")
	}
	for i := range n {
		key(w, i)
		if kind == "dict" {
			w.put("N")
		}
	}
	w.put(map[string]string{"set": "\x90", "dict": "u", "frozenset": "\x91", "old set": "e\x85R"}[kind])
	return w.done()
}

// repeated loads a value into memo entry 1 and calls a global with a tuple of it n times.
func repeated(module, attr string, n int, value func(w *writer)) []byte {
	w := begin().put("](").global(module, attr, 0).put("0")
	value(w)
	w.put("q\x010")
	return w.times(n, "h\x00h\x01R").put("e").done()
}

// longList is a list of n small numbers within a tuple.
func longList(n int) func(*writer) {
	return func(w *writer) { w.put("](").times(n, "K\x01").put("e\x85") }
}

func longText(n int, more string) func(*writer) {
	return func(w *writer) { w.text(strings.Repeat("1", n)).put(more) }
}

func longBytes(n int) func(*writer) {
	return func(w *writer) {
		w.put("B", string(binary.LittleEndian.AppendUint32(nil, uint32(n))), strings.Repeat("x", n), "\x85")
	}
}

func bigDict(n int) func(*writer) {
	return func(w *writer) {
		w.put("}(")
		for i := range n {
			w.put("J", string(binary.LittleEndian.AppendUint32(nil, uint32(i))), "N")
		}
		w.put("u\x85")
	}
}

// collidingPair gives two integers whose tuple has the hash that (0, 0) has, for the i-th first one.
func collidingPair(i int) (int64, int64) {
	const prime1, prime2, prime5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
	inverse := func(p uint64) uint64 {
		x := p
		for range 6 {
			x *= 2 - p*x
		}
		return x
	}
	first := bits.RotateLeft64(prime5, 31)
	first *= prime1
	want := first // the accumulator after (0,); any would do
	for a := int64(i)*1000 + 1; ; a++ {
		lane := uint64(a)
		acc := bits.RotateLeft64(prime5+lane*prime2, 31)
		acc *= prime1
		b := int64((bits.RotateLeft64(want*inverse(prime1), -31) - acc) * inverse(prime2))
		if b > -modulus && b < modulus && b != -1 {
			return a, b
		}
	}
}

// costly is an attack that grows with n.
type costly struct {
	name  string
	small int // Python takes far longer for it than its bytes explain, or dies
	full  int // Check refuses it
	build func(n int) []byte
}

func nested(kind string) func(int) []byte {
	return func(n int) []byte {
		return keysOf(kind, 1, func(w *writer, _ int) { w.put("N").times(n, "2\x86") })
	}
}

// chain calls a global with what it returned, n times, each time with what stands in before and after.
func chain(module, attr, before, after string, n int) []byte {
	return begin().global(module, attr, 0).put("0").times(n, "h\x00", before).put("N").times(n, after, "R").done()
}

// states chains exceptions by an attribute.
func states(class, attr string, n int) []byte {
	w := begin().global("builtins", class, 0).put("0").text(attr).put("q\x010h\x00)Rq\x020")
	return w.times(n, "h\x00)R}h\x01h\x02sbq\x020").put("h\x02").done()
}

func multiples(kind string, key func(w *writer, v *big.Int)) func(int) []byte {
	return func(n int) []byte {
		return keysOf(kind, n, func(w *writer, i int) { key(w, new(big.Int).Mul(big.NewInt(int64(i+1)), big.NewInt(modulus))) })
	}
}

// called makes a key by a call of a global with one text.
func called(module, attr string) func(*writer, *big.Int) {
	return func(w *writer, v *big.Int) { w.put("c", module, "\n", attr, "\n").text(v.String()).put("\x85R") }
}

func costs() []costly {
	prime := func(w *writer, v *big.Int) { w.long(v) }
	rounds := 20_000
	all := []costly{
		{"tuples of themselves in a set", 24, 40, nested("set")},
		{"tuples of themselves as a key", 24, 40, nested("dict")},
		{"tuples of themselves in a frozenset", 24, 40, nested("frozenset")},
		{"tuples of themselves in an old set", 24, 40, nested("old set")},
		{"frozensets of themselves compared", 23, 40, func(n int) []byte {
			chain := func(w *writer, entry string) *writer { // {x, (x,)} again and again
				return w.put("(\x91q", entry, "0").times(n, "(h", entry, "h", entry, "\x85\x91q", entry, "0")
			}
			w := begin()
			chain(w, "\x00")
			chain(w, "\x01")
			return w.put("\x8f(h\x00h\x01\x90").done()
		}},
		{"a tuple nested deep as a key", 500_000, 255, func(n int) []byte {
			return begin().put("})").times(n, "\x85").put("Ns").done()
		}},
		{"slices of slices", 500_000, 300, func(n int) []byte { return chain("builtins", "slice", "", "\x85", n) }},
		{"file names that are errors", 400_000, 300, func(n int) []byte { return chain("builtins", "OSError", "K\x01K\x02", "\x87", n) }},
		{"errors chained by their cause", 500_000, 1, func(n int) []byte { return states("OSError", "__cause__", n) }},
		{"errors chained by a field", 500_000, 1, func(n int) []byte { return states("SyntaxError", "msg", n) }},
		{"an endless tuple of arguments", 1, 1, func(int) []byte {
			return begin().put("cbuiltins\nOSError\n)R}").text("args").put("cbuiltins\nrange\n").int(1 << 50).put("\x85Rsb").done()
		}},
		{"arguments set again and again", 400, 1, func(n int) []byte {
			w := begin().put("}").text("args")
			w.put("](").times(200_000, "K\x01").put("e")
			return w.put("sq\x000cbuiltins\nOSError\n)R").times(n, "h\x00b").done()
		}},
		{"a state set again and again", 1_500, rounds, func(n int) []byte {
			w := begin().put("}(")
			for i := range 3000 {
				w.text(strconv.Itoa(i)).put("N")
			}
			return w.put("uq\x000cbuiltins\nOSError\n)R").times(n, "h\x00b").done()
		}},
		{"a long key again and again", 250_000, rounds * 40, func(n int) []byte {
			text := strings.Repeat("k", 100_000)
			w := begin().put("](").text(text).put("q\x000").text(text).put("q\x010e0}h\x00Ns")
			return w.times(n, "h\x01Ns").done()
		}},
		{"a long integer as key again and again", 20_000, rounds * 40, func(n int) []byte {
			w := begin().long(new(big.Int).Lsh(big.NewInt(1), 800_000)).put("q\x000}")
			return w.times(n, "h\x00Ns").done()
		}},
		{"one long tuple in many sets", 4_000, rounds * 40, func(n int) []byte {
			w := begin().put("(").times(10_000, "N").put("tq\x000](")
			return w.times(n, "\x8f(h\x00\x90").put("e").done()
		}},
		{"two integers by their quotient", 1, 1, func(int) []byte {
			x := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 8_000_000), big.NewInt(1))
			w := begin().put("cbuiltins\nrange\nK\x00").long(x)
			return w.long(new(big.Int).Rsh(x, 4_000_000)).put("\x87R").done()
		}},
		{"two integers by their divisor", 400_000, 1_200_000, func(n int) []byte {
			w := begin().put("cfractions\nFraction\n").long(new(big.Int).Exp(big.NewInt(3), big.NewInt(int64(n)), nil))
			return w.long(new(big.Int).Exp(big.NewInt(7), big.NewInt(int64(n/2)), nil)).put("\x86R").done()
		}},
		{"a long integer made a Decimal", 1, 1, func(int) []byte {
			return begin().put("cdecimal\nDecimal\n").long(new(big.Int).Lsh(big.NewInt(1), 6_000_000)).put("\x85R").done()
		}},
		{"long fractions again and again", 2_000, rounds, func(n int) []byte {
			return repeated("fractions", "Fraction", n, func(w *writer) { w.text(strings.Repeat("7", 2040) + "/" + strings.Repeat("3", 2040)).put("\x85") })
		}},
		{"pairs that hash alike", 6_000, 60_000, func(n int) []byte {
			return keysOf("dict", n, func(w *writer, i int) {
				a, b := collidingPair(i)
				w.int(a).int(b).put("\x86")
			})
		}},
		{"tuples of -1 and -2", 12, 16, func(n int) []byte {
			return keysOf("set", 1<<n, func(w *writer, i int) {
				w.put("(")
				for k := range n {
					w.put([]string{"J\xff\xff\xff\xff", "J\xfe\xff\xff\xff"}[i>>k&1])
				}
				w.put("t")
			})
		}},
		{"tuples of a text and its bytes", 12, 18, func(n int) []byte {
			return keysOf("set", 1<<n, func(w *writer, i int) {
				w.put("(")
				for k := range n {
					w.put([]string{"C\x01a", "\x8c\x01a"}[i>>k&1])
				}
				w.put("t")
			})
		}},
		{"frozensets of -1 and -2", 6_000, 60_000, func(n int) []byte {
			return keysOf("dict", n, func(w *writer, i int) {
				w.put("(")
				for k := range 17 {
					w.put("K", string([]byte{byte(k)}), []string{"J\xff\xff\xff\xff", "J\xfe\xff\xff\xff"}[i>>k&1], "\x86")
				}
				w.put("\x91")
			})
		}},
		{"complex numbers that hash alike", 5_000, 60_000, func(n int) []byte {
			return keysOf("set", n, func(w *writer, i int) {
				w.put("cbuiltins\ncomplex\n").float(float64(-1000003 * (i + 1))).float(float64(i + 1)).put("\x86R")
			})
		}},
		{"UUIDs that hash alike", 2_000, 30_000, func(n int) []byte {
			return keysOf("dict", n, func(w *writer, i int) {
				w.put("cuuid\nUUID\n)\x81}").text("int").long(new(big.Int).Mul(big.NewInt(int64(i+1)), big.NewInt(modulus))).put("sb")
			})
		}},
		{"Decimals that hash alike", 4_000, 30_000, multiples("dict", called("decimal", "Decimal"))},
		{"Fractions that hash alike", 1_500, 30_000, multiples("set", called("fractions", "Fraction"))},
	}
	for _, kind := range []string{"dict", "set", "frozenset", "old set"} {
		all = append(all, costly{"integers that hash alike in a " + kind, 8_000, 60_000, multiples(kind, prime)})
	}
	for _, x := range []struct {
		module, attr string
		value        func(*writer)
	}{
		{"builtins", "list", longList(200_000)},
		{"builtins", "tuple", longList(200_000)},
		{"collections", "deque", longList(200_000)},
		{"builtins", "set", func(w *writer) { bigList(w, 60_000) }},
		{"builtins", "frozenset", func(w *writer) { bigList(w, 60_000) }},
		{"builtins", "bytes", longList(200_000)},
		{"builtins", "bytearray", longBytes(2_000_000)},
		{"_codecs", "encode", longText(2_000_000, "X\x06\x00\x00\x00latin1\x86")},
		{"builtins", "dict", bigDict(60_000)},
		{"collections", "OrderedDict", bigDict(60_000)},
		{"collections", "Counter", bigDict(60_000)},
		{"decimal", "Decimal", longText(2_000_000, "\x85")},
		{"pathlib", "PurePosixPath", func(w *writer) { w.text(strings.Repeat("a/", 200_000)).put("\x85") }},
		{"builtins", "UnicodeDecodeError", func(w *writer) {
			w.put("(").text("x").put("\x96", string(binary.LittleEndian.AppendUint64(nil, 2_000_000)), strings.Repeat("x", 2_000_000), "K\x00K\x01").text("y").put("t")
		}},
	} {
		small := 60
		if strings.Contains("bytearray encode bytes Decimal UnicodeDecodeError", x.attr) {
			small = 250 // copied by whole pages
		}
		all = append(all, costly{"copies by " + x.attr, small, rounds, func(n int) []byte { return repeated(x.module, x.attr, n, x.value) }})
	}
	return all
}

func bigList(w *writer, n int) {
	w.put("](")
	for i := range n {
		w.put("J", string(binary.LittleEndian.AppendUint32(nil, uint32(i))))
	}
	w.put("e\x85")
}

func TestCostlyPicklesAreRefusedAtOnce(t *testing.T) {
	for _, c := range costs() {
		b := c.build(c.full)
		at := time.Now()
		err := Check(b, Options{})
		took := time.Since(at)
		if !errors.Is(err, ErrRefused) || len(b) > MaxSize {
			t.Errorf("%s: %d bytes: %v", c.name, len(b), err)
		}
		if took > time.Minute { // 0.3 s; ten times that under the race detector, and more on a busy machine
			t.Errorf("%s: judging %d bytes took %s", c.name, len(b), took)
		}
		t.Logf("%s: %d bytes judged in %s", c.name, len(b), took.Round(100*time.Microsecond))
	}
}

// loaded is what testdata/cost.py says of one pickle.
type loaded struct {
	Seconds float64 `json:"seconds"`
	Signal  int     `json:"signal"`
	Raised  string  `json:"raised"`
}

// load has CPython load the files of a directory, each for so many seconds at most and with 1500 MiB.
func load(t *testing.T, dir, seconds string) map[string]loaded {
	t.Helper()
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) == 0 {
		t.Fatal(err, "no pickles")
	}
	out := script(t, strings.Join(files, "\n")+"\n", "cost.py", seconds, "1500")
	lines, all := strings.Split(strings.TrimSpace(out), "\n"), map[string]loaded{}
	if len(lines) != len(files) {
		t.Fatalf("%d answers to %d pickles", len(lines), len(files))
	}
	for i, f := range files {
		var l loaded
		if err := json.Unmarshal([]byte(lines[i]), &l); err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = l
	}
	return all
}

// script runs one of testdata with CPython; it skips the test if there is none.
func script(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Skip("no /usr/bin/python3 to compare with: install python3")
	}
	cmd := exec.CommandContext(t.Context(), python, append([]string{"testdata/" + name}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, stderr.String())
	}
	return string(out)
}

// What Check refuses is dear indeed: a small one of each takes CPython longer than plain data of its size, or
// is its end.
func TestCostlyPicklesAreCostlyInCPython(t *testing.T) {
	if testing.Short() {
		t.Skip("short: CPython works on attacks for a minute")
	}
	dir, sizes := t.TempDir(), map[string]int{}
	for _, c := range costs() {
		b := c.build(c.small)
		sizes[c.name] = len(b)
		if err := os.WriteFile(filepath.Join(dir, c.name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, l := range load(t, dir, "1") {
		ended := l.Signal != 0 || l.Raised == "MemoryError"
		if plain := float64(sizes[name]) * 100e-9; !ended && (l.Seconds < 0.03 || l.Seconds < plain) {
			t.Errorf("%s: CPython loads its %d bytes in %.3f s, %q: what is dear about it?", name, sizes[name], l.Seconds, l.Raised)
		}
	}
}

var full = flag.Bool("full", false, "judge large results of all protocols and of a result's full size: a minute")

// Whatever Python writes of plain data passes, however large, and CPython loads it in the time that its size takes.
func TestLargeResultsPassAndLoadQuickly(t *testing.T) {
	if testing.Short() {
		t.Skip("short: CPython writes and loads hundreds of results")
	}
	dir, scale, protocols := t.TempDir(), "0.1", "25"
	if *full {
		scale, protocols = "1", "012345"
	}
	script(t, "", "large.py", dir, scale, protocols)
	for name, l := range load(t, dir, "20") {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		if err := Check(b, Options{}); err != nil {
			t.Errorf("%s: %d bytes: %v", name, len(b), err)
		}
		if took, most := time.Since(at), 2*time.Second+time.Duration(len(b))*time.Microsecond; took > most {
			t.Errorf("%s: judging %d bytes took %s", name, len(b), took)
		}
		if l.Signal != 0 || l.Raised != "" || l.Seconds > 1+float64(len(b))*400e-9 {
			t.Errorf("%s: CPython on %d bytes: %.2f s, signal %d, %q", name, len(b), l.Seconds, l.Signal, l.Raised)
		}
	}
}

func TestHashesAreThoseOfCPython(t *testing.T) {
	n := 0
	for line := range strings.Lines(script(t, "", "hashes.py")) {
		digits, want, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{in: b}
		if err := m.run(); err != nil {
			t.Fatalf("%s: %v", digits, err)
		}
		if got := strconv.FormatInt(int64(m.lane(m.stack[0])), 10); got != want {
			t.Errorf("%s: hash %s, in CPython %s", digits, got, want)
		}
		n++
	}
	if n < 1000 {
		t.Errorf("only %d hashes were compared", n)
	}
}

func TestWhatACallHasFilledTakesNoMore(t *testing.T) {
	for name, b := range map[string][]byte{
		"set":  begin().put("cbuiltins\nset\n](K\x01K\x02e\x85R(K\x03\x90").done(),
		"dict": begin().put("cbuiltins\ndict\n}K\x01Ns\x85RK\x02Ns").done(),
	} {
		if err := Check(b, Options{}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
