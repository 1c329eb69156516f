package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

// module puts a WebAssembly module together whose only function, _start, has the given body.
func module(body ...byte) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x05\x03\x01\x00\x01")
	m = append(m, "\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x00"...)
	return append(append(m, 0x0a, byte(len(body)+4), 1, byte(len(body)+2), 0), append(body, 0x0b)...)
}

// TestBadJobsEndInOneSentenceAndLoseNothing submits jobs that cannot work to a real network, each of which has
// to end with its cause, and then one that can.
func TestBadJobsEndInOneSentenceAndLoseNothing(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	g.startNode("node-1")
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(g.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("text.wasm", []byte("#!/bin/sh\necho hello\n"))
	write("trap.wasm", module(0x00))
	write("loop.wasm", module(0x03, 0x40, 0x0c, 0x00, 0x0b))
	write("fine.wasm", module(0x01))
	job := func(wasm, more string) string {
		return fmt.Sprintf("name: bad\nkind: map\nrun: {wasm: %s, command: [x, \"{input}\"]}\ninputs: {range: 0..3}\nchunk: 1\n%s\n", wasm, more)
	}
	binary, err := os.ReadFile(buildWasm(t, "./node/executor/executortest/guest"))
	if err != nil {
		t.Fatal(err)
	}
	write("guest.wasm", binary)
	guest := func(args, more string) string {
		return strings.Replace(job("guest.wasm", more), `command: [x, "{input}"]`, "command: [guest, "+args+"]", 1)
	}
	for _, c := range []struct {
		name, file string
		code       int
		want       string
	}{
		{"no wasm", job("text.wasm", ""), exitUsage, "does not begin with"},
		{"no such module", job("nothing.wasm", ""), exitUsage, "nothing.wasm"},
		{"trap", job("trap.wasm", "policy: {timeout: 20s, retries: 0}"), exitFailed, "unreachable"},
		{"endless loop", job("loop.wasm", "policy: {timeout: 1s}"), exitFailed, "policy.timeout"},
		{"writes too much", guest("fill, /out/big, \"4000000\"", "resources: {disk: 1MiB}"), exitFailed, "output"},
		{"exit code", guest("exit, \"3\"", "policy: {retries: 0}"), exitFailed, "exit"},
		{"too much memory", guest("alloc, \"300000000\"", "resources: {memory: 64MiB}"), exitFailed, "out of memory"},
		{"missing volume", job("fine.wasm", "volumes: [{name: nowhere, at: /data}]"), exitUsage, "nowhere"},
		{"unknown field", job("fine.wasm", "chunks: 3"), exitUsage, "chunk"},
		{"wrong kind", strings.Replace(job("fine.wasm", ""), "kind: map", "kind: mop", 1), exitUsage, "kind"},
		{"kind not offered", strings.Replace(job("fine.wasm", ""), "kind: map", "kind: gang", 1), exitUsage, "kind"},
		{"wrong filter", job("fine.wasm", "placement: {where: 'cpu.corse >= 1'}"), exitUsage, "placement.where"},
		{"wrong memory", job("fine.wasm", "resources: {memory: lots}"), exitUsage, "resources.memory"},
		{"wrong budget", job("fine.wasm", "policy: {max_spend: cheap}"), exitUsage, "policy.max_spend"},
		{"no file", "", exitUsage, "empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write("job.yaml", []byte(c.file))
			code, _, stderr := gridbeam(t, "job", "submit", filepath.Join(g.dir, "job.yaml"), "--wait", "--config-dir", g.config())
			if code != c.code || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "goroutine") {
				t.Errorf("exit code %d, want %d with %q in %q", code, c.code, c.want, stderr)
			}
		})
	}
	// Unbearable for one node is no reason to fail: the job waits and says for what.
	write("job.yaml", []byte(job("fine.wasm", "placement: {where: 'cpu.cores >= 100000'}")))
	var s protocol.JobStatus
	g.run(exitOK, &s, "job", "submit", filepath.Join(g.dir, "job.yaml"), "--output", "json")
	g.eventually("the job waits with its reason", func() bool {
		g.run(exitOK, &s, "job", "status", s.ID.String(), "--output", "json")
		return s.State == "waiting" && strings.Contains(s.Text, "cpu.cores")
	})
	g.run(exitOK, &s, "job", "cancel", s.ID.String(), "--output", "json")
	if s.State != "cancelled" {
		t.Errorf("a cancelled job is %s", s.State)
	}
	// After all that the network still works.
	write("job.yaml", []byte(job("fine.wasm", "")))
	g.run(exitOK, &s, "job", "submit", filepath.Join(g.dir, "job.yaml"), "--wait", "--output", "json")
	if s.State != "done" || s.InputsDone != 4 {
		t.Errorf("a good job after the bad ones ended as %+v", s)
	}
}

func TestDaemonsThatCannotStartSayWhatToDo(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	g.startNode("node-1")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	open := filepath.Join(g.dir, "open")
	g.run(exitOK, nil, "node", "init", "--data", open)
	if err := os.Chmod(filepath.Join(open, "identity.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := func() string { return t.TempDir() }
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"second node on one data directory", []string{"node", "run", "--data", filepath.Join(g.dir, "node-1")}, exitFailed, []string{"in use", fmt.Sprint(g.nodes[0].pid())}},
		{"second bridge on one data directory", []string{"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--api", "127.0.0.1:0", "--beam", "", "--listen", "/ip4/127.0.0.1/tcp/0"}, exitFailed, []string{"in use", fmt.Sprint(g.bridge.pid())}},
		{"node's port in use", []string{"node", "run", "--data", fresh(), "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)}, exitFailed, []string{"in use", fmt.Sprint(port)}},
		{"bridge's port in use", []string{"bridge", "run", "--data", fresh(), "--api", "127.0.0.1:0", "--beam", "", "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)}, exitFailed, []string{"in use", fmt.Sprint(port)}},
		{"API's port in use", []string{"bridge", "run", "--data", fresh(), "--api", fmt.Sprintf("127.0.0.1:%d", port), "--beam", "", "--listen", "/ip4/127.0.0.1/tcp/0"}, exitFailed, []string{"in use", fmt.Sprint(port)}},
		{"key readable by others", []string{"node", "run", "--data", open}, exitUsage, []string{"chmod 600", "identity.key"}},
		{"not an invitation", []string{"node", "run", "--data", fresh(), "--join", "gridbeam:abc"}, exitUsage, []string{"--join"}},
		{"join without a yes", []string{"node", "run", "--data", fresh(), "--join", g.ready.Invitation}, exitUsage, []string{"--yes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := gridbeam(t, append(c.args, "--config-dir", g.config(), "--mdns=false", "--log-level", "error")...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr)
			}
			for _, w := range c.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("%q is not in %q", w, stderr)
				}
			}
		})
	}
}

// TestAFullDiskLosesNothing fills the disk of a node's data: it takes no work and says why, and goes on when
// there is room again.
func TestAFullDiskLosesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	g := newGrid(t)
	disk := filepath.Join(g.dir, "node-1")
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", disk).CombinedOutput(); err != nil {
			t.Errorf("unmounting: %v: %s", err, out)
		}
	})
	g.startBridge()
	g.startNode("node-1")
	g.run(exitOK, nil, "volume", "import", "digits", sweepData)
	// What is left is less than the node's reserve.
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 380<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var s protocol.JobStatus
	g.run(exitOK, &s, "job", "submit", g.job(sweepJob), "--output", "json")
	g.eventually("the job says that the node's disk is full", func() bool {
		g.run(exitOK, &s, "job", "status", s.ID.String(), "--output", "json")
		return s.State == "waiting" && (strings.Contains(s.Text, "ready") || strings.Contains(s.Text, "disk"))
	})
	if status, _ := g.run(exitOK, nil, "node", "status", "--data", disk); !strings.Contains(status, "PAUSED") || !strings.Contains(status, "make room") {
		t.Errorf("node status says %q", status)
	}
	if s.State.Over() {
		t.Fatalf("the job ended as %+v", s)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	g.run(exitOK, &s, "job", "wait", s.ID.String(), "--output", "json")
	if s.State != "done" || s.InputsDone != 64 {
		t.Fatalf("with room again the job ended as %+v", s)
	}
}
