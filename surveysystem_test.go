//go:build system

package gridbeam_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A crawl of a demo whose nodes come and go, against the demo's own truth.
func TestACrawlOfAChurningNetworkFindsWhoIsThereAndNobodyElse(t *testing.T) {
	const nodes = 40
	exe, err := gridbeamProgram()
	if err != nil {
		t.Fatal(err)
	}
	g := &surveyed{beamGrid: &beamGrid{TB: t, dir: t.TempDir(), exe: exe}}
	truth := filepath.Join(g.dir, "truth.ndjson")
	demo := g.start("demo", "demo", "--keep", "--nodes", "40", "--churn", "--churn-every", "4s", "--truth", truth)
	t.Cleanup(func() { g.stop(demo) })
	var ready struct {
		ConfigDir string `json:"config_dir"`
	}
	g.await(demo, &ready)
	dir := filepath.Join(g.dir, "crawl")
	cmd := exec.CommandContext(t.Context(), exe, "network", "crawl", "--out", dir, "--listen", "40s", "--coverage", "0.9", "--config-dir", ready.ConfigDir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_ = demo.cmd.Process.Signal(syscall.SIGINT)
	<-demo.done

	var m struct {
		Manifest struct {
			Started  time.Time `json:"started_at"`
			Finished time.Time `json:"finished_at"`
			Coverage json.RawMessage
		} `json:"manifest"`
	}
	readWhole(t, filepath.Join(dir, "manifest.json"), &m)
	from, to := m.Manifest.Started, m.Manifest.Finished
	lives := livesOf(t, truth)
	there := map[string]present{}
	for _, p := range readRows[present](t, filepath.Join(dir, "_presence.ndjson")) {
		there[p.PeerID] = p
	}
	through, missed, during, false_, gone := 0, 0, 0, 0, 0
	for id, l := range lives {
		_, found := there[id]
		if l.joined.Before(from) && l.ended.After(to) {
			if through++; !found {
				missed++
				t.Errorf("%s was there all the time and was not found", id)
			}
		}
		if l.joined.Before(to) && l.ended.After(from) {
			during++
		}
		if l.ended.Before(to) && l.ended.After(from) {
			gone++
		}
	}
	for id, p := range there {
		// A node answers a moment before it says that it is ready; its clock is ours.
		if l, ok := lives[id]; !ok || p.Start.Before(l.joined.Add(-5*time.Second)) || p.End.After(l.ended) {
			false_++
			t.Errorf("presence %+v, the truth is %+v", p, l)
		}
	}
	t.Logf("%d nodes were there all the time, %d of them were missed; %d were there at some time, %d left or were killed meanwhile; %d found, %d of them false; coverage %s",
		through, missed, during, gone, len(there), false_, m.Manifest.Coverage)
	if through < nodes/2 || gone == 0 || during <= through {
		t.Error("too little happened: this proves nothing")
	}
}
