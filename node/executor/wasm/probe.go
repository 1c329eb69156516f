package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// probeTimeout bounds each self-test.
const probeTimeout = 10 * time.Second

// selfTest is a module and the end that it has to come to on a machine that keeps the rules.
type selfTest struct {
	name   string
	module program
	wall   time.Duration
	want   protocol.Reason
}

var (
	importOpen = hostCall{name: "path_open", params: 9, wide: []int{5, 6}}
	importExit = hostCall{name: "proc_exit", params: 1, silent: true}
)

// openEscape opens a path, which lies in memory at 0, below the first mount (descriptor 3 is "/") and traps
// if that succeeds.
func openEscape(target string) program {
	return program{
		imports: []hostCall{importOpen},
		data:    target,
		code: join(i32(3), i32(0), i32(0), i32(int32(len(target))), i32(0), i64(0), i64(0), i32(0), i32(1024),
			call(0), []byte{0x45, 0x04, 0x40, 0x00, 0x0b}), // i32.eqz; if; unreachable; end
	}
}

// selfTests is the fast part of the escape suite (execution.md 13).
func selfTests() []selfTest {
	return []selfTest{
		{"runs a module", program{}, probeTimeout, protocol.ReasonDone},
		{"passes an exit code", program{imports: []hostCall{importExit}, code: join(i32(3), call(0))}, probeTimeout, protocol.ReasonExitNonzero},
		{"stops an endless loop", program{code: []byte{0x03, 0x40, 0x0c, 0, 0x0b}}, 20 * time.Millisecond, protocol.ReasonTimeout},
		{"stops endless recursion", program{code: call(0)}, probeTimeout, protocol.ReasonSignal},
		{"bounds memory", program{pages: 1024}, probeTimeout, protocol.ReasonOOM},
		{"hides parent directories", openEscape("../../../etc/passwd"), probeTimeout, protocol.ReasonDone},
		{"hides absolute paths", openEscape("/etc/passwd"), probeTimeout, protocol.ReasonDone},
	}
}

// Probe implements executor.Backend: it runs the self-tests.
func (b *Backend) Probe(ctx context.Context) (executor.Report, error) {
	dir, err := os.MkdirTemp("", "gridbeam-probe-")
	if err != nil {
		return executor.Report{}, fmt.Errorf("probing the wasm backend: %w", err)
	}
	report, err := b.probe(ctx, dir)
	debug.FreeOSMemory() // the recursion grew the heap by 160 MB, which an idle node would keep for minutes
	return report, errors.Join(err, os.RemoveAll(dir))
}

func (b *Backend) probe(ctx context.Context, dir string) (executor.Report, error) {
	report := executor.Report{Backend: backendName, Version: "wazero " + wazeroVersion(), Level: executor.LevelStrong}
	for i, test := range selfTests() {
		out, err := b.probeOne(ctx, test, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return executor.Report{}, fmt.Errorf("self-test %q of the wasm backend: %w", test.name, err)
		}
		if out.Reason != test.want {
			return executor.Report{}, fmt.Errorf("self-test %q of the wasm backend ended with reason %d, want %d: %s",
				test.name, out.Reason, test.want, out.FirstCause)
		}
		report.Checks = append(report.Checks, test.name)
	}
	return report, nil
}

func (b *Backend) probeOne(ctx context.Context, test selfTest, dir string) (executor.Outcome, error) {
	binary := test.module.assemble()
	sum := sha256.Sum256(binary)
	limits := executor.DefaultLimits(test.wall)
	limits.Memory = 16 << 20
	task := executor.Task{
		Lease:   protocol.NewLeaseID(),
		Module:  executor.Module{CID: "probe-" + hex.EncodeToString(sum[:]), Load: func(context.Context) ([]byte, error) { return binary, nil }},
		Inputs:  []executor.Input{{}},
		Command: []string{"probe"},
		OutDir:  dir,
		Limits:  limits,
	}
	p, err := b.Prepare(ctx, task)
	if err != nil {
		return executor.Outcome{}, err
	}
	h, err := b.Start(ctx, p)
	if err != nil {
		return executor.Outcome{}, err
	}
	return h.Wait(ctx)
}

// wazeroVersion is the version that this binary was built with.
func wazeroVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "of unknown version"
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/tetratelabs/wazero" {
			return dep.Version
		}
	}
	return "of unknown version"
}
