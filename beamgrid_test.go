package gridbeam_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// gridbeamProgram is the program as its users have it, built once in a run.
var gridbeamProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gridbeam-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "gridbeam")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "./cmd/gridbeam")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building gridbeam: %w\n%s", err, out)
	}
	return path, os.Chmod(dir, 0o755) // sandboxes of other users start from it
})

// daemon is a gridbeam process.
type daemon struct {
	name  string
	cmd   *exec.Cmd
	log   string
	lines chan []byte
	done  chan struct{}
}

// beamGrid is a bridge and nodes as processes that know nothing of this user's own files.
type beamGrid struct {
	testing.TB
	dir    string
	exe    string
	bridge *daemon
	nodes  []*daemon
	ready  struct {
		API        string `json:"api"`
		Beam       string `json:"beam"`
		Invitation string `json:"invitation"`
	}
	token string
	args  []string // of the bridge
	space string   // network namespace in which programs start, empty for the machine's own
}

// newGrid has a directory and the program, and ends what is started in it.
func newGrid(t testing.TB) *beamGrid {
	t.Helper()
	exe, err := gridbeamProgram()
	if err != nil {
		t.Fatal(err)
	}
	g := &beamGrid{TB: t, dir: t.TempDir(), exe: exe}
	t.Cleanup(func() {
		all := append(slices.Clone(g.nodes), g.bridge)
		for _, d := range all {
			if d != nil {
				g.stop(d)
			}
		}
		g.endOrphans()
		if !t.Failed() {
			return
		}
		for _, d := range all {
			if d != nil {
				b, _ := os.ReadFile(d.log)
				t.Logf("log of %s ends:\n%s", d.name, b[max(0, len(b)-6000):])
			}
		}
	})
	return g
}

// sweepJob writes a job of two inputs that reads the volume digits, with more at its end, and returns its file.
func (g *beamGrid) sweepJob(more string) string {
	g.Helper()
	wasm := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(g.dir, "sweep.wasm"), "./examples/sweep")
	wasm.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := wasm.CombinedOutput(); err != nil {
		g.Fatalf("%v\n%s", err, out)
	}
	job := filepath.Join(g.dir, "job.yaml")
	if err := os.WriteFile(job, []byte(`
name: sweep
kind: map
run: {wasm: sweep.wasm, command: [sweep, --data, /data, --config, "{input}"]}
inputs: {grid: {lr: [0.05], hidden: [16], epochs: [2], seed: [1, 2]}}
volumes: [{name: digits, at: /data, mode: ro}]
`+more), 0o600); err != nil {
		g.Fatal(err)
	}
	g.gridbeam("volume", "import", "digits", filepath.Join("examples", "sweep", "data"))
	return job
}

// newBeamGrid starts a bridge and nodes that run functions. Where the machine has no sandbox it skips, and says what
// is missing.
func newBeamGrid(t testing.TB, nodes int) *beamGrid {
	t.Helper()
	for _, path := range []string{"/usr/bin/bwrap", "/usr/bin/python3"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("functions need %s: apt-get install bubblewrap python3 python3-cloudpickle", path)
		}
	}
	g := newGrid(t)
	g.args = []string{
		"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0",
		"--api", "127.0.0.1:0", "--beam", "127.0.0.1:0", "--mdns=false", "--api-rate", "0",
	}
	g.startBridge()
	for i := range nodes {
		g.nodes = append(g.nodes, g.startNode(fmt.Sprint("node", i)))
	}
	for end := time.Now().Add(30 * time.Second); ; {
		out, err := g.command("nodes") // it fails while there is none
		if strings.Count(out, " ready ") == nodes {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the bridge does not know its nodes: %v\n%s", err, out)
		}
		<-time.After(100 * time.Millisecond)
	}
	return g
}

func (g *beamGrid) startBridge() {
	g.Helper()
	g.bridge = g.start("bridge", g.args...)
	g.await(g.bridge, &g.ready)
	b, err := os.ReadFile(filepath.Join(g.dir, "config", "client.json"))
	var settings struct {
		Token string `json:"token"`
	}
	if err == nil {
		err = json.Unmarshal(b, &settings)
	}
	if err != nil {
		g.Fatal(err)
	}
	g.token = settings.Token
}

func (g *beamGrid) startNode(name string) *daemon {
	g.Helper()
	d := g.start(name, "node", "run", "--data", filepath.Join(g.dir, name), "--join", g.ready.Invitation, "--yes", "--offer-cpu", "--min-isolation", "shared", "--mdns=false",
		"--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--slots", "2")
	var v struct {
		Status struct {
			Executors []string `json:"executors"`
		} `json:"status"`
	}
	g.await(d, &v)
	if !strings.Contains(strings.Join(v.Status.Executors, " "), "python3.") {
		b, _ := os.ReadFile(d.log)
		g.Fatalf("%s runs %v and no functions; its log:\n%s", name, v.Status.Executors, b)
	}
	return d
}

func (g *beamGrid) start(name string, args ...string) *daemon {
	g.Helper()
	d := &daemon{name: name, log: filepath.Join(g.dir, name+".log"), lines: make(chan []byte, 16), done: make(chan struct{})}
	f, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.Fatal(err)
	}
	defer f.Close()
	d.cmd = g.program(context.Background(), append(args, "--config-dir", filepath.Join(g.dir, "config"), "--output", "json"))
	d.cmd.Stderr = f
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := d.cmd.StdoutPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		g.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			select {
			case d.lines <- bytes.Clone(s.Bytes()):
			default:
			}
		}
		_ = d.cmd.Wait()
		close(d.done)
	}()
	return d
}

// program is a run of gridbeam to be started.
func (g *beamGrid) program(ctx context.Context, args []string) *exec.Cmd {
	if g.space != "" {
		return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", g.space, g.exe}, args...)...)
	}
	return exec.CommandContext(ctx, g.exe, args...)
}

// await waits for the line that says that a daemon is ready.
func (g *beamGrid) await(d *daemon, v any) {
	g.Helper()
	limit := time.NewTimer(90 * time.Second)
	defer limit.Stop()
	for {
		select {
		case line := <-d.lines:
			if bytes.Contains(line, []byte(`"ready"`)) {
				if err := json.Unmarshal(line, v); err != nil {
					g.Fatal(err)
				}
				return
			}
		case <-d.done:
			b, _ := os.ReadFile(d.log)
			g.Fatalf("%s ended at its start:\n%s", d.name, b)
		case <-limit.C:
			b, _ := os.ReadFile(d.log)
			g.Fatalf("%s is not ready:\n%s", d.name, b)
		}
	}
}

// kill ends a daemon as a power cut would.
func (g *beamGrid) kill(d *daemon) {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// stop asks a daemon to end, and kills it if it does not.
func (g *beamGrid) stop(d *daemon) {
	select {
	case <-d.done:
		return
	default:
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		g.Errorf("%s did not end within 30 s and was killed", d.name)
		g.kill(d)
	}
}

// endOrphans ends the sandboxes of nodes that were killed. A node that could say good-bye has left none.
func (g *beamGrid) endOrphans() {
	found, _ := filepath.Glob(filepath.Join(g.dir, "*", "sandbox", "boxes", "*", "identity.json"))
	for _, path := range found {
		var who struct {
			PID int `json:"pid"`
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &who)
		}
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", who.PID))
		if err != nil || !bytes.Contains(args, []byte(filepath.Dir(path))) { // it has ended by itself
			continue
		}
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			_ = syscall.Kill(who.PID, sig)
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && syscall.Kill(who.PID, 0) == nil; <-time.After(10 * time.Millisecond) {
			}
		}
		if syscall.Kill(who.PID, 0) == nil {
			g.Errorf("the shim of %s does not end", filepath.Dir(path))
		}
	}
}

// client is a Beam client of the grid.
func (g *beamGrid) client() *beamclient.Client {
	g.Helper()
	return g.dial(g.token)
}

func (g *beamGrid) dial(token string) *beamclient.Client {
	g.Helper()
	c, err := beamclient.Dial(g.ready.Beam, token)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = c.Close() })
	return c
}

// command runs a command as a user would, and returns what it printed.
func (g *beamGrid) command(args ...string) (string, error) {
	out, err := g.program(g.Context(), append(args, "--config-dir", filepath.Join(g.dir, "config"))).CombinedOutput()
	return string(out), err
}

// gridbeam runs a command that has to work.
func (g *beamGrid) gridbeam(args ...string) string {
	g.Helper()
	out, err := g.command(args...)
	if err != nil {
		g.Fatalf("gridbeam %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
