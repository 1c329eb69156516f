package gridbeam_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// npmInstall copies a program of test/interop and installs what its lock file names into a directory of the test, or skips
// and says what is missing.
func npmInstall(t *testing.T, program string, files ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", "--version").Output()
	major, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
	if n, convErr := strconv.Atoi(major); err != nil || convErr != nil || n < 20 {
		t.Skipf("test/interop/%s needs Node 20 or newer, here is %q; install it from nodejs.org, Debian 12 has 18", program, strings.TrimSpace(string(out)))
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skipf("test/interop/%s is installed by npm, which is not here: apt-get install npm", program)
	}
	dir := t.TempDir()
	for _, name := range append([]string{"package.json", "package-lock.json"}, files...) {
		b, err := os.ReadFile(filepath.Join("test", "interop", program, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("test/interop/%s cannot be installed from the npm registry: %v\n%s", program, err, out[max(0, len(out)-500):])
	}
	return dir
}
