package python

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAllFilesThatRunAreEmbedded(t *testing.T) {
	var embedded, wanted []string
	walk := func(files fs.FS, into *[]string) {
		err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".py") && !strings.HasPrefix(path, "tests/") {
				*into = append(*into, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(Files, &embedded)
	walk(os.DirFS("."), &wanted)
	if !slices.Equal(embedded, wanted) || len(wanted) < 7 {
		t.Fatalf("embedded %v, want %v", embedded, wanted)
	}
}

// The runner's own tests, with each Python of the host that is new enough.
func TestRunnerBehavesInEachPython(t *testing.T) {
	pythons := interpreters()
	if len(pythons) == 0 {
		t.Skip("no python3 of version 3.9 or later on PATH or in /usr/bin: install python3")
	}
	for _, python := range pythons {
		t.Run(filepath.Base(python), func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), python, "-B", "tests/test_runner.py")
			cmd.WaitDelay = 5 * time.Second
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", python, err, out)
			}
			t.Logf("%s: %s", python, out[max(0, len(out)-200):])
		})
	}
}

// interpreters are /usr/bin/python3 and one of each further version on PATH that starts.
func interpreters() []string {
	const ask = "import sys; print('%d.%d' % sys.version_info[:2] if sys.version_info >= (3, 9) else '')"
	candidates := []string{"/usr/bin/python3"}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		more, _ := filepath.Glob(filepath.Join(dir, "python3*")) // the pattern is well-formed
		candidates = append(candidates, more...)
	}
	var found []string
	seen := map[string]bool{"": true}
	for _, c := range candidates {
		if strings.HasSuffix(c, "-config") {
			continue
		}
		out, err := exec.Command(c, "-c", ask).Output()
		if version := strings.TrimSpace(string(out)); err == nil && !seen[version] {
			seen[version] = true
			found = append(found, c)
		}
	}
	return found
}
