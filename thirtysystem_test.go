//go:build system

package gridbeam_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// views are the ways on which a client that has just started asks who is there.
var views = []string{"auto", "index", "dht", "scan"}

// TestD2_ThirtyProcessesAreFoundAndTheirEndIsSeen has 30 nodes as processes: a client that knows nothing but an address
// finds all of them in 3 s, on every way; ten that are killed are gone from every view within 90 s, and one that says
// goodbye within 2 s.
func TestD2_ThirtyProcessesAreFoundAndTheirEndIsSeen(t *testing.T) {
	const nodes, killed = 30, 10
	g := newSurveyed(t, nodes)
	look := func(via string) (ids []string, took time.Duration) {
		began := time.Now()
		out, err := exec.CommandContext(t.Context(), g.exe, "nodes", "--via", via, "-o", "json", "--config-dir", filepath.Join(g.dir, "config")).Output()
		took = time.Since(began)
		var rows []struct {
			PeerID string `json:"peer_id"`
		}
		if err != nil || json.Unmarshal(out, &rows) != nil {
			return nil, took
		}
		for _, r := range rows {
			ids = append(ids, r.PeerID)
		}
		return ids, took
	}
	for _, via := range views {
		ids, took := look(via)
		t.Logf("%s: %d nodes in %s", via, len(ids), took.Round(time.Millisecond))
		if len(ids) != nodes || took > 3*time.Second {
			t.Errorf("via %s a cold client finds %d of %d nodes in %s, want all in 3 s", via, len(ids), nodes, took)
		}
	}

	leaver := g.nodes[nodes-1]
	began := time.Now()
	g.stop(leaver)
	stopped := time.Now()
	for {
		if ids, _ := look("index"); !slices.Contains(ids, g.ids[nodes-1]) && len(ids) > 0 {
			break
		}
		if time.Since(stopped) > 10*time.Second {
			t.Fatal("who has said goodbye is listed still after 10 s")
		}
	}
	t.Logf("goodbye: the process ended after %s, it was gone from the index peer's list %s after its end", stopped.Sub(began).Round(time.Millisecond), time.Since(stopped).Round(time.Millisecond))
	if since := time.Since(stopped); since > 2*time.Second {
		t.Errorf("a goodbye is visible after %s, want 2 s", since)
	}

	began = time.Now()
	for _, d := range g.nodes[:killed] {
		g.kill(d)
	}
	left := map[string]time.Duration{}
	for len(left) < len(views) && time.Since(began) < 2*time.Minute {
		for _, via := range views {
			if left[via] != 0 {
				continue
			}
			ids, _ := look(via)
			if !slices.ContainsFunc(g.ids[:killed], func(id string) bool { return slices.Contains(ids, id) }) && len(ids) == nodes-killed-1 {
				left[via] = time.Since(began)
			}
		}
		<-time.After(time.Second)
	}
	for _, via := range views {
		t.Logf("via %s ten killed nodes are gone after %s", via, left[via].Round(time.Second))
		if left[via] == 0 || left[via] > 92*time.Second { // a look takes up to 2 s
			t.Errorf("via %s ten killed nodes are listed for %s, want 90 s at most", via, left[via])
		}
	}
}
