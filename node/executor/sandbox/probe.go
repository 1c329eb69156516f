//go:build linux

package sandbox

import (
	"context"
	_ "embed" // for the probe's program
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// probeTimeout bounds the whole of Probe's sandbox (execution.md 2).
const probeTimeout = 10 * time.Second

// probeProcesses is the limit that the probe's fork bomb has to run against.
const probeProcesses = 32

//go:embed probe/gridbeam_probe.py
var probeProgram []byte

// Runtime is an interpreter that functions can name.
type Runtime struct {
	// Name is python3.11.
	Name string
	// Version is 3.11.2.
	Version string
	// Cloudpickle is cloudpickle's version, such as 2.2.0; empty if the interpreter has none.
	Cloudpickle string
}

// Runtimes are the interpreters of this machine, for the node's labels. They are looked for once.
func (b *Backend) Runtimes(ctx context.Context) (out []Runtime) {
	for _, r := range b.runtimes(ctx) {
		out = append(out, Runtime{Name: r.name, Version: r.version, Cloudpickle: r.cloudpickle})
	}
	return out
}

// Probe implements executor.Backend: it runs a hostile program in a real sandbox. What is missing on this machine is an
// error that says what to do.
func (b *Backend) Probe(ctx context.Context) (executor.Report, error) {
	report, err := b.probe(ctx)
	if err != nil {
		return executor.Report{}, fmt.Errorf("probing the sandbox backend: %w", err)
	}
	return report, nil
}

func (b *Backend) probe(ctx context.Context) (executor.Report, error) {
	abi := b.landlock()
	plan, err := planLandlock(abi)
	if err != nil {
		return executor.Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*probeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.cfg.Bubblewrap, "--version").Output()
	if err != nil {
		return executor.Report{}, fmt.Errorf("%s does not work (apt-get install bubblewrap): %w", b.cfg.Bubblewrap, err)
	}
	all := b.runtimes(ctx)
	if len(all) == 0 {
		return executor.Report{}, fmt.Errorf("none of %v is a Python below /usr (apt-get install python3 python3-cloudpickle)", b.cfg.Python)
	}
	if err := b.open(ctx); err != nil {
		return executor.Report{}, err
	}
	mode := "soft"
	if !b.cfg.NoCgroups {
		mode = ownGroups().mode
	}
	pickle := all[0].cloudpickle
	if pickle == "" {
		pickle = "none"
	}
	report := executor.Report{
		Backend: backendName, Level: executor.LevelShared, Runtimes: names(all),
		Version: fmt.Sprintf("python %s cloudpickle %s, %s, %s, cgroup %s", all[0].version, pickle, bareVersion(out), plan.words(abi), mode),
	}
	report.Checks, err = b.selfTests(ctx)
	return report, err
}

func bareVersion(out []byte) string { return strings.TrimSpace(string(out)) }

// selfTests is the fast part of the escape suite (execution.md 13).
func (b *Backend) selfTests(ctx context.Context) ([]string, error) {
	dir, err := os.MkdirTemp(b.cfg.Dir, "probe-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = removeTree(dir) }()
	code, out, canary := filepath.Join(dir, "code"), filepath.Join(dir, "out"), filepath.Join(dir, "canary")
	err = errors.Join(os.Mkdir(code, 0o755), os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(code, "gridbeam_probe.py"), probeProgram, 0o644),
		os.WriteFile(canary, []byte("canary"), 0o644))
	if err != nil {
		return nil, err
	}
	witness, err := watchLoopback()
	if err != nil {
		return nil, err
	}
	seen := witness.close
	defer func() { seen() }()
	args, err := json.Marshal(map[string]any{"args": []any{canary, witness.port, probeProcesses}, "kwargs": map[string]any{}})
	if err != nil {
		return nil, err
	}
	limits := executor.DefaultLimits(probeTimeout)
	limits.Memory, limits.Processes = 256<<20, probeProcesses
	raw, err := b.probeOne(ctx, executor.Task{
		Lease: protocol.NewLeaseID(), Tenant: "probe", OutDir: out, Limits: limits,
		Function: &executor.Function{Runtime: "python3", Handler: "gridbeam_probe:check", Code: code, Spec: filepath.Base(dir), Workers: 1, KeepWarm: time.Millisecond},
		Inputs:   []executor.Input{{Value: "probe", Args: args, Encoding: protocol.EncodingJSON}},
	})
	if err != nil {
		return nil, err
	}
	var found map[string]string
	if err := json.Unmarshal(raw, &found); err != nil {
		return nil, fmt.Errorf("the self-test returned %.100q: %w", raw, err)
	}
	if who := seen(); who != "" {
		return nil, fmt.Errorf("self-test %q: a connection from inside reached %s", "hides the host's sockets", who)
	}
	for name, broken := range found {
		if broken != "" {
			return nil, fmt.Errorf("self-test %q: %s", name, broken)
		}
	}
	return append([]string{"starts a sandbox"}, slices.Sorted(maps.Keys(found))...), nil
}

// probeOne runs a task with one input and returns its result.
func (b *Backend) probeOne(ctx context.Context, task executor.Task) ([]byte, error) {
	p, err := b.Prepare(ctx, task)
	if err != nil {
		return nil, err
	}
	h, err := b.Start(ctx, p)
	if err != nil {
		return nil, err
	}
	got, err := h.Wait(ctx)
	if err != nil {
		h.Stop(protocol.ReasonCancelled, 0)
		return nil, err
	}
	if got.Reason != protocol.ReasonDone {
		return nil, fmt.Errorf("a sandbox cannot be started: %s: %s%s", got.Reason, got.FirstCause, remedy(got.FirstCause))
	}
	dir := task.OutputDir(task.Inputs[0].Index)
	raw, err := os.ReadFile(filepath.Join(dir, protocol.OutcomeFile))
	if err != nil {
		return nil, err
	}
	out, err := protocol.ParseInputOutcome(raw)
	if err != nil {
		return nil, err
	}
	if out.Reason != protocol.ReasonDone {
		return nil, fmt.Errorf("the self-test failed: %s: %s", out.Reason, out.Text)
	}
	return os.ReadFile(filepath.Join(dir, protocol.ResultFile))
}

// remedy says what to do about a complaint of bubblewrap's.
func remedy(words string) string {
	if !strings.Contains(words, "bwrap") {
		return ""
	}
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "; AppArmor keeps users from making namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile for bwrap"
	case read("kernel/unprivileged_userns_clone") == "0":
		return "; users cannot make namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
	case read("user/max_user_namespaces") == "0":
		return "; no user namespaces are left: sysctl -w user.max_user_namespaces=10000"
	}
	return ""
}

// witness listens on the host's loopback and remembers who came.
type witness struct {
	port  int
	close func() string // ends it and says where somebody came, or nothing
}

func watchLoopback() (*witness, error) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	w := &witness{port: tcp.Addr().(*net.TCPAddr).Port}
	all := []net.Listener{tcp}
	if l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("@gridbeam-probe-%d", w.port)}); err == nil {
		all = append(all, l)
	}
	came := make(chan string, len(all))
	for _, l := range all {
		go func() { // ends with its listener
			if c, err := l.Accept(); err == nil {
				_ = c.Close()
				came <- l.Addr().String()
				return
			}
			came <- ""
		}()
	}
	closed, who := false, ""
	w.close = func() string {
		if closed {
			return who
		}
		closed = true
		for _, l := range all {
			_ = l.Close()
		}
		for range all {
			if s := <-came; s != "" {
				who = s
			}
		}
		return who
	}
	return w, nil
}
