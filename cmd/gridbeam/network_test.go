package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

const (
	sourceRoot = "../.."
	sweepData  = sourceRoot + "/examples/sweep/data"
)

var modules sync.Map // package -> func() (string, error)

// buildWasm builds a Go program of this module for wasip1, once in a run.
func buildWasm(t *testing.T, pkg string) string {
	t.Helper()
	return buildOnce(t, pkg, filepath.Base(pkg)+".wasm", "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
}

// program builds gridbeam as its users have it: the commands of a test run in the test's process, with the race
// detector where that is on; daemons are this program, for the detector slows the compiler of modules tenfold.
func program(t *testing.T) string {
	t.Helper()
	return buildOnce(t, "./cmd/gridbeam", "gridbeam", "CGO_ENABLED=0")
}

func buildOnce(t *testing.T, pkg, name string, env ...string) string {
	t.Helper()
	build, _ := modules.LoadOrStore(pkg, sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "gridbeam-test-")
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, name)
		cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, pkg)
		cmd.Dir = sourceRoot
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
		}
		return path, nil
	}))
	path, err := build.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sweepWasm builds the module of examples/sweep.
func sweepWasm(t *testing.T) string { t.Helper(); return buildWasm(t, "./examples/sweep") }

// grid is a bridge and nodes as processes with a configuration directory of their own.
type grid struct {
	t      *testing.T
	dir    string
	l      *launcher
	bridge *child
	ready  bridgeReady
	ports  [2]int // of the bridge: peers, API
	nodes  []*child
	status []nodeReady
}

func newGrid(t *testing.T) *grid {
	t.Helper()
	g := &grid{t: t, dir: t.TempDir(), ports: [2]int{freePort(t), freePort(t)}}
	g.l = &launcher{exe: program(t), dir: g.dir, common: []string{"--config-dir", g.config(), "--output", "json"}}
	t.Cleanup(func() {
		for _, n := range g.nodes {
			if !n.wasKilled() {
				if err := n.stop(20 * time.Second); err != nil {
					t.Error(err)
				}
			}
		}
		if g.bridge != nil && !g.bridge.wasKilled() {
			if err := g.bridge.stop(20 * time.Second); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			for _, p := range append(append([]*child{}, g.nodes...), g.bridge) {
				if p != nil {
					t.Logf("log of %s ends:\n%s", p.name, p.tail(30))
				}
			}
		}
	})
	return g
}

func (g *grid) config() string { return filepath.Join(g.dir, "config") }

// freePort finds a TCP port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (g *grid) startBridge(extra ...string) {
	g.t.Helper()
	var err error
	g.bridge, err = g.l.start("bridge", append([]string{
		"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--mdns=false",
		"--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", g.ports[0]), "--api", fmt.Sprintf("127.0.0.1:%d", g.ports[1]), "--beam", "127.0.0.1:0",
	}, extra...)...)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	if err := g.bridge.ready(ctx, &g.ready); err != nil {
		g.t.Fatal(err)
	}
}

func (g *grid) startNode(name string, extra ...string) nodeReady {
	g.t.Helper()
	n, err := g.l.start(name, append([]string{"node", "run", "--data", filepath.Join(g.dir, name), "--mdns=false", "--offer-cpu", "--drain", "1s"}, extra...)...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.nodes = append(g.nodes, n)
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	var r nodeReady
	if err := n.ready(ctx, &r); err != nil {
		g.t.Fatal(err)
	}
	g.status = append(g.status, r)
	return r
}

// run runs a command against the grid and decodes its JSON; it fails the test on another exit code than want.
func (g *grid) run(want int, v any, args ...string) (stdout, stderr string) {
	g.t.Helper()
	code, stdout, stderr := gridbeam(g.t, append(args, "--config-dir", g.config())...)
	if code != want {
		g.t.Fatalf("gridbeam %s: exit code %d, want %d\n%s\n%s", strings.Join(args, " "), code, want, stdout, stderr)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(stdout), v); err != nil {
			g.t.Fatalf("gridbeam %s printed %q: %v", strings.Join(args, " "), stdout, err)
		}
	}
	return stdout, stderr
}

// job writes a job file and the module beside it.
func (g *grid) job(text string) string {
	g.t.Helper()
	module, err := os.ReadFile(sweepWasm(g.t))
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "sweep.wasm"), module, 0o600); err != nil {
		g.t.Fatal(err)
	}
	path := filepath.Join(g.dir, "job.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return path
}

// eventually repeats a look until it is content or a minute has passed.
func (g *grid) eventually(what string, look func() bool) {
	g.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-deadline.C:
			g.t.Fatalf("after a minute still not: %s", what)
		case <-g.t.Context().Done():
			g.t.Fatal(g.t.Context().Err())
		}
	}
}

func TestJobOutlivesASIGKILLOfTheBridge(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	g.startNode("node-1")
	g.startNode("node-2")
	var v protocol.VolumeInfo
	g.run(exitOK, &v, "volume", "import", "digits", sweepData, "--output", "json")
	if !strings.HasPrefix(v.CID, "bafy") || v.Files != 2 {
		t.Fatalf("imported %+v", v)
	}
	var s protocol.JobStatus
	g.run(exitOK, &s, "job", "submit", g.job(sweepJob), "--output", "json")
	id := s.ID.String()
	look := func() protocol.JobStatus {
		var now protocol.JobStatus
		g.run(exitOK, &now, "job", "status", id, "--output", "json")
		return now
	}
	g.eventually("eight inputs are done", func() bool { return look().InputsDone >= 8 })
	if err := g.bridge.kill(); err != nil {
		t.Fatal(err)
	}
	g.run(exitNotConnected, nil, "job", "status", id)
	g.startBridge()
	if g.ready.Restored != 1 {
		t.Fatalf("the bridge took %d jobs up again, want 1", g.ready.Restored)
	}
	g.run(exitOK, &s, "job", "wait", id, "--output", "json")
	if s.State != "done" || s.InputsDone != 64 || s.ChunksDone != 64 {
		t.Fatalf("job ended as %+v", s)
	}
	counted := uint64(0)
	for _, n := range s.Nodes {
		counted += n.Chunks
	}
	if counted != 64 {
		t.Fatalf("nodes account for %d chunks of 64", counted)
	}
	out := filepath.Join(g.dir, "out")
	g.run(exitOK, nil, "job", "results", id, "--out", out)
	best, err := bestOf(filepath.Join(out, "results"), 64)
	if err != nil || best.Accuracy < 0.95 {
		t.Fatalf("best is %+v, %v", best, err)
	}
	// Submitted again, the job gives the same bytes.
	var again protocol.JobStatus
	g.run(exitOK, &again, "job", "submit", filepath.Join(g.dir, "job.yaml"), "--wait", "--output", "json")
	if again.ResultCID != s.ResultCID || again.ID == s.ID {
		t.Fatalf("a second run gave %s, the first %s", again.ResultCID, s.ResultCID)
	}
	g.run(exitOK, nil, "job", "explain", id)
	g.run(exitOK, nil, "settlement", "report", id)
	if logs, _ := g.run(exitOK, nil, "job", "logs", id); strings.Count(logs, "validation accuracy") < 64 {
		t.Fatalf("the log has %d lines of 64 chunks", strings.Count(logs, "validation accuracy"))
	}
}

func TestNodesAreListedWithTheBridgeStopped(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	g.startNode("node-1")
	r := g.startNode("node-2")
	list := func() (rows []nodeRow) {
		var out bytes.Buffer
		run(t.Context(), []string{"nodes", "--join", r.Status.Addresses[0], "--where", "cpu.cores >= 1", "--output", "json", "--config-dir", g.config()}, strings.NewReader(""), &out, new(bytes.Buffer))
		_ = json.Unmarshal(out.Bytes(), &rows)
		return rows
	}
	g.eventually("both nodes have advertised", func() bool { return len(list()) == 2 })
	if err := g.bridge.kill(); err != nil {
		t.Fatal(err)
	}
	rows := list()
	if len(rows) != 2 {
		t.Fatalf("with the bridge gone %d of 2 nodes are listed", len(rows))
	}
	for _, row := range rows {
		if row.Cores < 1 || row.RAM == 0 || len(row.Runs) == 0 || row.Operator == "" {
			t.Errorf("listed %+v", row)
		}
	}
	g.run(exitNoMatch, nil, "nodes", "--join", r.Status.Addresses[0], "--where", "cpu.cores >= 100000")
	csv, _ := g.run(exitOK, nil, "nodes", "--join", r.Status.Addresses[0], "--output", "csv")
	if strings.Count(csv, "\n") != 3 || !strings.HasPrefix(csv, "peer_id,state,cores") {
		t.Errorf("CSV is %q", csv)
	}
}

func TestDemoGivesTheSameBytesWhoeverRunsItAndWhoeverDies(t *testing.T) {
	if testing.Short() {
		t.Skip("several whole networks; run without -short")
	}
	demo := func(extra ...string) demoResult {
		t.Helper()
		var stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program(t), append([]string{"demo", "--wasm", sweepWasm(t), "--dataset", sweepData, "--output", "json", "--timeout", "4m"}, extra...)...)
		cmd.Stderr = &stderr
		stdout, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, &stderr)
		}
		var r demoResult
		if err := json.Unmarshal(stdout, &r); err != nil {
			t.Fatalf("printed %q: %v", stdout, err)
		}
		if r.ChunksDone != 64 || r.ChunksTotal != 64 || r.Best.Accuracy < 0.95 || r.CostUUSD <= 0 || r.Receipts == 0 {
			t.Fatalf("demo gave %+v", r)
		}
		return r
	}
	one := demo("--nodes", "1")
	three := demo("--nodes", "3", "--kill-node")
	if one.ResultCID != three.ResultCID {
		t.Errorf("one node gave %s, three of which one died %s", one.ResultCID, three.ResultCID)
	}
	k := three.Killed
	if k == nil || k.PID == 0 || k.Leases == 0 || len(k.Chunks) == 0 {
		t.Fatalf("killed %+v", k)
	}
	for _, c := range k.Chunks {
		if c.Fence < 2 {
			t.Errorf("chunk [%d,%d) of the killed node has fence %d", c.First, c.End, c.Fence)
		}
	}
	moved := false
	for _, n := range three.Nodes {
		moved = moved || n.ScoreAfter != n.ScoreBefore
		if n.Chunks > 0 && n.BlocksFetched == 0 {
			t.Errorf("%s ran %d chunks without fetching a block", n.PeerID, n.Chunks)
		}
	}
	if !moved {
		t.Error("no score moved")
	}
	flipped := demo("--nodes", "2", "--dataset", flipLabel(t))
	if flipped.ResultCID == one.ResultCID || flipped.Volume.CID == one.Volume.CID {
		t.Error("one flipped label left the CIDs as they were")
	}
}

// flipLabel copies the data set with the label of its first row changed.
func flipLabel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(sweepData)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "digits.csv.gz")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	end := bytes.IndexByte(text, '\n')
	at := end - 1
	if text[at] == '\r' {
		at--
	}
	text[at] = '0' + (text[at]-'0'+1)%10
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
