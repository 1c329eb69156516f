package gridbeam_test

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBeamsPythonSDK runs Beam's own Python SDK against real processes, where somebody has it: it is under the AGPL, so
// it is neither kept here nor fetched. BEAM_SDK_PYTHONPATH names directories with beta9 and what it imports.
func TestBeamsPythonSDK(t *testing.T) {
	sdk := os.Getenv("BEAM_SDK_PYTHONPATH")
	if sdk == "" {
		t.Skip("Beam's Python SDK is not here: set BEAM_SDK_PYTHONPATH to directories that hold beta9 and what it imports")
	}
	g := newBeamGrid(t, 2)
	dir, home := t.TempDir(), t.TempDir()
	b, err := os.ReadFile(filepath.Join("test", "interop", "beam-python", "acceptance.py"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "acceptance.py"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(g.ready.Beam)
	if err != nil {
		t.Fatal(err)
	}
	script := func(ctx context.Context, what string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "/usr/bin/python3", "acceptance.py", what)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PYTHONPATH="+sdk, "HOME="+home, "BETA9_GATEWAY_HOST="+host, "BETA9_GATEWAY_PORT="+port, "BETA9_TOKEN="+g.token)
		return cmd
	}
	run := func(what string, want ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := script(ctx, what).CombinedOutput()
		for _, w := range want {
			if err != nil || !strings.Contains(string(out), w) {
				t.Errorf("%s: %v, want %q in\n%s", what, err, w, out)
			}
		}
	}
	run("remote", "squaring 7", "RESULT 49")
	run("fails", "IndexError: list index out of range", "return values[n]", "RESULT None")
	run("large", "RESULT True")
	run("many", "RESULT True")

	power := time.AfterFunc(1500*time.Millisecond, func() { g.kill(g.nodes[0]) }) // while the map runs
	defer power.Stop()
	run("map", "RESULT True")
	interrupted(t, g, script(t.Context(), "sleep"))
}

// interrupted starts a call, presses Ctrl-C when it has begun, and sees it end on its node.
func interrupted(t *testing.T, g *beamGrid, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "begins") {
		all.WriteString(lines.Text() + "\n")
	}
	pressed := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatalf("%v\n%s", err, all.String())
	}
	go func() {
		for lines.Scan() { // the rest is of no use
		}
	}()
	for strings.Contains(g.gridbeam("node", "status", "--data", filepath.Join(g.dir, "node1")), "running") {
		if time.Since(pressed) > 10*time.Second {
			t.Fatal("10 s after Ctrl-C its node still runs it")
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Logf("over on its node %s after Ctrl-C", time.Since(pressed).Round(10*time.Millisecond))
	_ = cmd.Wait()
}
