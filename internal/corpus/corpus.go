// Package corpus keeps what fuzzing has found worth trying: a file a target, not one an input. `make corpora` writes them.
package corpus

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// maxLine is how long an input may be in a file, in bytes.
const maxLine = 1 << 20

// Add gives a fuzz target the inputs of testdata/corpus/NAME.txt in its package, NAME being the target's. Each line is an
// input, its values as in the files of Go's fuzzer, with tabs between them: []byte("\x01"), string("a"), bool(true).
func Add(f *testing.F) {
	f.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "corpus", f.Name()+".txt"))
	if err != nil {
		f.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var values []any
		for text := range strings.SplitSeq(lines.Text(), "\t") {
			v, err := value(text)
			if err != nil {
				f.Fatalf("line %d: %v", n, err)
			}
			values = append(values, v)
		}
		f.Add(values...)
	}
	if err := lines.Err(); err != nil {
		f.Fatal(err)
	}
}

// value reads one value.
func value(text string) (any, error) {
	kind, rest, _ := strings.Cut(text, "(")
	inner, ok := strings.CutSuffix(rest, ")")
	if !ok {
		return nil, fmt.Errorf("%q is no value", text)
	}
	if kind == "bool" {
		return strconv.ParseBool(inner) //nolint:wrapcheck // it names what it could not read
	}
	s, err := strconv.Unquote(inner)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is not quoted: %w", inner, err)
	case kind == "string":
		return s, nil
	case kind == "[]byte":
		return []byte(s), nil
	default:
		return nil, fmt.Errorf("values of type %s are not read", kind)
	}
}
