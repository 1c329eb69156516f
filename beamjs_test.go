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

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// TestBeamsJavaScriptSDKCallsADeployment runs Beam's own JavaScript SDK, at the version of its lock file, against real
// processes: test/interop/beam-js/acceptance.mjs says what it does.
func TestBeamsJavaScriptSDKCallsADeployment(t *testing.T) {
	dir := beamJS(t)
	g := newBeamGrid(t, 2)
	c := g.client()
	for name, handler := range map[string]string{"square": "app:square", "slow": "app:slow"} {
		stub, _, err := c.Prepare(t.Context(), beamclient.Function{
			Files:   map[string]string{"app.py": "import time\n\ndef square(n):\n    return n * n\n\ndef slow(n):\n    time.sleep(n)\n"},
			Handler: handler, Kind: "function/deployment", Force: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		d, err := c.Call(t.Context(), "/gateway.GatewayService/DeployStub", beamclient.Message{}.Text(1, stub).Text(2, name))
		if err != nil || d.Num(1) != 1 || d.Num(3) != 1 || !strings.Contains(d.Text(4), "/function/"+name+"/v1") {
			t.Fatalf("deploying %s: %v, %v", name, d, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "acceptance.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GATEWAY="+g.ready.API, "TOKEN="+g.token, "WORKSPACE=operator")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// beamJS installs the SDK into a directory of the test, or skips and says what is missing.
func beamJS(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", "--version").Output()
	major, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
	if n, convErr := strconv.Atoi(major); err != nil || convErr != nil || n < 20 {
		t.Skipf("Beam's JavaScript SDK needs Node 20 or newer, here is %q; install it from nodejs.org, Debian 12 has 18", strings.TrimSpace(string(out)))
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("Beam's JavaScript SDK is installed by npm, which is not here: apt-get install npm")
	}
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "acceptance.mjs"} {
		b, err := os.ReadFile(filepath.Join("test", "interop", "beam-js", name))
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
		t.Skipf("Beam's JavaScript SDK cannot be installed from the npm registry: %v\n%s", err, out[max(0, len(out)-500):])
	}
	return dir
}
