//go:build system

package gridbeam_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestO3_AJobThatAsksForBandwidthRunsWhereTheBridgeHasMeasuredIt has two nodes as processes, of which one lets the bridge
// measure its line: a job that asks for bandwidth waits for that and runs there alone. The line is loopback.
func TestO3_AJobThatAsksForBandwidthRunsWhereTheBridgeHasMeasuredIt(t *testing.T) {
	g := newGrid(t)
	g.args = []string{
		"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0", "--beam", "", "--mdns=false",
	}
	g.startBridge()
	for name, flag := range map[string]string{"measured": "--measure-line", "unmeasured": "--measure-line=false"} {
		d := g.start(name, "node", "run", "--data", filepath.Join(g.dir, name), "--join", g.ready.Invitation, "--yes", "--offer-cpu", "--mdns=false",
			"--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--slots", "1", flag)
		g.nodes = append(g.nodes, d)
		var up struct{}
		g.await(d, &up)
	}
	job := g.sweepJob("placement: {bandwidth: low}\n")
	if out := g.gridbeam("job", "validate", job); !strings.Contains(out, "bandwidth low leaves 0") {
		t.Errorf("before anything is measured a job is told:\n%s", out)
	}
	began := time.Now()
	if out := g.gridbeam("job", "submit", job, "--wait"); !strings.Contains(out, "2 of 2") {
		t.Errorf("the job says:\n%s", out)
	}
	t.Logf("measured, told and done after %s", time.Since(began).Round(time.Second))
	for name, works := range map[string]bool{"measured": true, "unmeasured": false} {
		var s struct {
			ChunksDone int `json:"done"`
			Line       struct {
				Peers []struct {
					Down int64 `json:"down_bps"`
				} `json:"peers"`
			} `json:"line"`
		}
		out := g.gridbeam("node", "status", "--data", filepath.Join(g.dir, name), "-o", "json")
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if (s.ChunksDone > 0) != works || (len(s.Line.Peers) > 0) != works {
			t.Errorf("the %s node says %s", name, out)
		}
	}
}
