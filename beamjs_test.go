package gridbeam_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// TestBeamsJavaScriptSDKCallsADeployment runs Beam's own JavaScript SDK, at the version of its lock file, against real
// processes: test/interop/beam-js/acceptance.mjs says what it does.
func TestBeamsJavaScriptSDKCallsADeployment(t *testing.T) {
	dir := npmInstall(t, "beam-js", "acceptance.mjs")
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
