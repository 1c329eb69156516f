package gridbeam_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// surveyed is a bridge and nodes as processes, to be crawled.
type surveyed struct {
	*beamGrid
	ids   []string // of the nodes
	addrs []string // one of each node
	// bridgeID is the bridge's.
	bridgeID string
}

// newSurveyed starts them; node i asks (i+1) cents.
func newSurveyed(t *testing.T, nodes int) *surveyed {
	t.Helper()
	exe, err := gridbeamProgram()
	if err != nil {
		t.Fatal(err)
	}
	g := &surveyed{beamGrid: &beamGrid{TB: t, dir: t.TempDir(), exe: exe}}
	t.Cleanup(func() {
		for _, d := range append(slices.Clone(g.nodes), g.bridge) {
			g.stop(d)
		}
		if t.Failed() {
			for _, d := range append(slices.Clone(g.nodes), g.bridge) {
				b, _ := os.ReadFile(d.log)
				t.Logf("log of %s ends:\n%s", d.name, b[max(0, len(b)-3000):])
			}
		}
	})
	g.args = []string{
		"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--beam", "127.0.0.1:0", "--mdns=false", "--local",
	}
	g.startBridge()
	for i := range nodes {
		name := fmt.Sprint("node", i)
		d := g.start(name, "node", "run", "--data", filepath.Join(g.dir, name), "--join", g.ready.Invitation, "--yes", "--offer-cpu", "--mdns=false", "--local",
			"--listen", "/ip4/127.0.0.1/tcp/0", "--slots", "1", "--drain", "1s", "--price", fmt.Sprintf("0.%02d", i+1))
		g.nodes = append(g.nodes, d)
		var v struct {
			Status struct {
				PeerID    string   `json:"peer_id"`
				Addresses []string `json:"addresses"`
			} `json:"status"`
		}
		g.await(d, &v)
		g.ids, g.addrs = append(g.ids, v.Status.PeerID), append(g.addrs, v.Status.Addresses[0])
	}
	var rows []struct {
		PeerID string `json:"peer_id"`
		State  string `json:"state"`
	}
	soon(t, time.Minute, "everybody has advertised", func() bool {
		out, err := exec.CommandContext(t.Context(), exe, "nodes", "--all", "-o", "json", "--config-dir", filepath.Join(g.dir, "config")).Output()
		return err == nil && json.Unmarshal(out, &rows) == nil && len(rows) == nodes+1
	})
	for _, r := range rows {
		if !slices.Contains(g.ids, r.PeerID) {
			g.bridgeID = r.PeerID
		}
	}
	return g
}

// exit runs a command and returns its exit code.
func (g *surveyed) exit(args ...string) (code int, stdout, stderr string) {
	g.Helper()
	cmd := exec.CommandContext(g.Context(), g.exe, append(args, "--config-dir", filepath.Join(g.dir, "config"))...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// works runs a command that has to end with code 0 and say nothing on standard error.
func (g *surveyed) works(args ...string) string {
	g.Helper()
	code, out, errs := g.exit(args...)
	if code != 0 || errs != "" {
		g.Fatalf("gridbeam %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func readRows[T any](t testing.TB, path string) (rows []T) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var r T
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		rows = append(rows, r)
	}
	return rows
}

// present is a line of _presence.ndjson.
type present struct {
	PeerID string
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Reason string    `json:"reason"`
}

// "Researchers querying the DHT": with no bridge, the totals are the truth, and anybody can check them.
func TestU3_AResearcherReadsTheWholeNetworkWithTheBridgeStopped(t *testing.T) {
	const nodes = 6
	g := newSurveyed(t, nodes)
	killed := time.Now()
	g.kill(g.bridge)
	dir := filepath.Join(g.dir, "crawl")
	out := g.works("network", "crawl", "--out", dir, "--join", g.addrs[2], "--listen", "1s")
	if !strings.Contains(out, "100.0 %") {
		t.Errorf("the crawl says\n%s", out)
	}
	t.Run("totals are the truth", func(t *testing.T) {
		type record struct {
			PeerID string
			Price  *uint64  `json:"claimed_price_uusd_per_hour"`
			State  string   `json:"claimed_state"`
			Roles  []string `json:"claimed_roles"`
		}
		var ids []string
		price := uint64(0)
		for _, r := range readRows[record](t, filepath.Join(dir, "_records.ndjson")) {
			if r.PeerID == g.bridgeID { // its record lives on without it
				continue
			}
			ids = append(ids, r.PeerID)
			if r.State != "ready" || r.Price == nil {
				t.Errorf("record %+v", r)
				continue
			}
			price += *r.Price
		}
		if want := slices.Sorted(slices.Values(g.ids)); !slices.Equal(ids, want) {
			t.Errorf("records of %v, the nodes are %v", ids, want)
		}
		if want := uint64(10_000 * nodes * (nodes + 1) / 2); price != want {
			t.Errorf("they ask %d µUSD together, want %d", price, want)
		}
		var there []string
		for _, p := range readRows[present](t, filepath.Join(dir, "_presence.ndjson")) {
			if p.PeerID == g.bridgeID && !p.End.After(killed) {
				continue // heard by others just before
			}
			there = append(there, p.PeerID)
		}
		if want := slices.Sorted(slices.Values(g.ids)); !slices.Equal(there, want) {
			t.Errorf("present are %v, want %v", there, want)
		}
		var stats []struct {
			By    []string `json:"by"`
			Nodes int      `json:"nodes"`
			Alive int      `json:"alive"`
		}
		if err := json.Unmarshal([]byte(g.works("network", "stats", dir, "--by", "role", "-o", "json")), &stats); err != nil || len(stats) == 0 || stats[0].Nodes != nodes || stats[0].Alive != nodes {
			t.Errorf("stats %+v, %v", stats, err)
		}
	})
	t.Run("exports are the same each time", func(t *testing.T) {
		for _, format := range []string{"csv", "parquet", "ndjson", "html"} {
			a, b := g.works("network", "export", dir, "--format", format), g.works("network", "export", dir, "--format", format)
			if a != b || len(a) < 500 {
				t.Errorf("%s: %d bytes, then %d", format, len(a), len(b))
			}
		}
	})
	t.Run("verify accepts it, and names the row that was touched", func(t *testing.T) { g.tampered(t, dir) })
	t.Run("a crawl that is cut off goes on", func(t *testing.T) { g.interrupted(t) })
	t.Run("a watch notes who leaves, over an interruption", func(t *testing.T) { g.watched(t) })
}

func (g *surveyed) tampered(t *testing.T, dir string) {
	if out := g.works("network", "verify", dir); !strings.Contains(out, "6 files are those of the manifest") {
		t.Errorf("verify says\n%s", out)
	}
	path := filepath.Join(dir, "_records.ndjson")
	g.works("network", "verify", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	cores := []byte(`"claimed_cpu_cores":`)
	row := slices.IndexFunc(lines, func(l []byte) bool { return bytes.Contains(l, cores) }) // the bridge's has none
	if row < 0 {
		t.Fatalf("no row has %s", cores)
	}
	lines[row] = bytes.Replace(lines[row], cores, append(cores, '1'), 1)
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := g.exit("network", "verify", dir); code != 1 || !strings.Contains(errs, fmt.Sprintf("_records.ndjson row %d: not what was signed: claimed_cpu_cores differs", row+1)) {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

// interrupted crawls with Ctrl-C in the middle.
func (g *surveyed) interrupted(t *testing.T) {
	dir := filepath.Join(g.dir, "cut")
	cmd := exec.CommandContext(t.Context(), g.exe, "network", "crawl", "--out", dir, "--join", g.addrs[0], "--listen", "10m", "--config-dir", filepath.Join(g.dir, "config"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	journal := filepath.Join(dir, "_journal.ndjson")
	soon(t, 30*time.Second, "servers have been scanned", func() bool {
		b, _ := os.ReadFile(journal)
		return bytes.Count(b, []byte(`"sweep"`)) >= len(g.ids)
	})
	_ = cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("cut off it ends with %v", err)
	}
	state := func() (c struct {
		State   string `json:"state"`
		Crawled int    `json:"crawled_peers"`
	},
	) {
		b, err := os.ReadFile(filepath.Join(dir, "_crawl.json"))
		if err == nil {
			err = json.Unmarshal(b, &c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if s := state(); s.State != "cancelled" || s.Crawled < len(g.ids) {
		t.Errorf("cut off: %+v", s)
	}
	type visit struct {
		PeerID         string
		VisitStartedAt string
	}
	before := readRows[visit](t, filepath.Join(dir, "_visits.ndjson"))
	g.works("network", "verify", dir)
	g.works("network", "crawl", "--out", dir, "--join", g.addrs[0], "--listen", "0s")
	if s := state(); s.State != "succeeded" {
		t.Errorf("gone on: %+v", s)
	}
	if after := readRows[visit](t, filepath.Join(dir, "_visits.ndjson")); !slices.Equal(after, before) {
		t.Errorf("peers were visited again: %v, before %v", after, before)
	}
	if _, err := os.Stat(journal); err == nil {
		t.Error("the journal of a crawl that is over is still there")
	}
	if code, _, errs := g.exit("network", "crawl", "--out", dir, "--join", g.addrs[0]); code != 2 || !strings.Contains(errs, "is not empty") {
		t.Errorf("a crawl is written over: exit code %d, %s", code, errs)
	}
}

// watched kills a watch, goes on with it, and lets a node leave meanwhile.
func (g *surveyed) watched(t *testing.T) {
	dir := filepath.Join(g.dir, "watch")
	watch := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), g.exe, "network", "watch", "--for", "25s", "--every", "2s", "--out", dir, "--join", g.addrs[1], "--config-dir", filepath.Join(g.dir, "config"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	allSince := func(since time.Time) func() bool {
		return func() bool {
			type open struct {
				Last time.Time `json:"last"`
			}
			var w struct {
				Open []open `json:"open"`
			}
			b, _ := os.ReadFile(filepath.Join(dir, "_watch.json"))
			return json.Unmarshal(b, &w) == nil && len(w.Open) == len(g.ids) && !slices.ContainsFunc(w.Open, func(o open) bool { return !o.Last.After(since) })
		}
	}
	cmd := watch()
	soon(t, 20*time.Second, "everybody is there", allSince(time.Now()))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	cmd = watch()
	soon(t, 20*time.Second, "it goes on, and listens", allSince(time.Now().Add(3*time.Second)))
	leaver := g.nodes[0]
	_ = leaver.cmd.Process.Signal(syscall.SIGTERM)
	<-leaver.done
	left := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	rows := readRows[present](t, filepath.Join(dir, "_presence.ndjson"))
	ended := 0
	for i, r := range rows {
		switch {
		case r.PeerID == g.ids[0]:
			if i != 0 || r.Reason != "left" || r.End.After(left) {
				t.Errorf("who left at %s: %+v", left, r)
			}
		case r.Reason == "observation ended":
			ended++
		default:
			t.Errorf("row %+v", r)
		}
	}
	if ended != len(g.ids)-1 || len(rows) != len(g.ids) {
		t.Errorf("%d rows, %d to the end, want %d and %d", len(rows), ended, len(g.ids), len(g.ids)-1)
	}
}

// lived is when a peer of a demo was there.
type lived struct{ joined, ended time.Time }

// livesOf reads the truth of a demo that has ended.
func livesOf(t testing.TB, path string) map[string]lived {
	t.Helper()
	out := map[string]lived{}
	for _, r := range readRows[struct {
		PeerID string
		Event  string    `json:"event"`
		At     time.Time `json:"at"`
	}](t, path) {
		l := out[r.PeerID]
		if r.Event == "joined" {
			l.joined = r.At
		} else {
			l.ended = r.At
		}
		out[r.PeerID] = l
	}
	return out
}

func readWhole(t testing.TB, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}
