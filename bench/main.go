// Command bench measures gridbeam against its figures to beat, each row beside its baseline and in the same
// minutes, on real processes.
//
// The flow:
//  1. It builds the programs that it starts: the Go guest, and the test binaries that hold baselines.
//  2. Each measure brings up what it needs (a bridge and three nodes on loopback, with a real disk under them),
//     takes turns with its baseline (A B A B), and proves that the work was done: outputs by hash, accounts by the
//     store after SIGKILL.
//  3. A missed target is shown as missed, and its profile is left in bench/profiles.
//  4. The rows go to bench/latest.json and into the tables of bench/README.md.
//
// Exit codes: 0 also when targets are missed, 1 when a measurement failed or a proof did not hold, 2 for usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// bench is one run of the driver.
type bench struct {
	root   string // of the source tree
	dir    string // temporary, on a real disk
	exe    string // bin/gridbeam
	guest  string // the Go guest, compiled
	rounds int    // of ours and the baseline in turn, at least 5 but with -quick
	quick  bool
	built  map[string]bool // test binaries
	began  time.Time
	log    io.Writer
}

func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.log, "%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// measure gives the rows that share a set-up.
type measure struct {
	rows []string
	run  func(context.Context, *bench) ([]result, error)
}

// measures are in the order in which they run: what is quick and what matters most first.
var measures = []measure{
	{[]string{"dispatch.p50_ms", "dispatch.p99_ms"}, measureLatency},
	{[]string{"dispatch.chunks_per_s"}, measureThroughput},
	{[]string{"dispatch.go_wasm_ratio"}, measureGuest},
	{[]string{"dispatch.failover_p99_s"}, measureFailover},
	{[]string{"dispatch.million_chunks_mib"}, measureMillion},
	{[]string{"select.138k_ms"}, measureSelect},
	{[]string{"directory.query_p99_ms", "directory.mib"}, measureDirectory},
	{[]string{"directory.recall", "directory.idle_bytes_per_s"}, measureModel},
	{[]string{"node.ready_ms"}, measureReady},
	{[]string{"node.rss_mib", "node.idle_cpu_pct"}, measureIdle},
	{[]string{"exec.wasm_warm_ms"}, measureExec},
	{[]string{"beam.remote_p50_ms", "beam.map_per_s"}, measureBeam},
	{[]string{"exec.sandbox_warm_ms"}, measureSandbox},
}

// budget is how long everything may take.
const budget = 20 * time.Minute

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fl := flag.NewFlagSet("bench", flag.ContinueOnError)
	fl.SetOutput(stderr)
	only := fl.String("only", "", "measure only rows that begin so, such as dispatch or node.rss_mib")
	quick := fl.Bool("quick", false, "fewer rounds, for a first look; nothing is written")
	tmp := fl.String("tmp", "", "where processes keep their data; it should be a real disk (default: the system's)")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	todo := selected(*only)
	if len(todo) == 0 || fl.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "bench: no row begins with %q; rows: %s\n", *only+strings.Join(fl.Args(), " "), strings.Join(names(measures), " "))
		return 2
	}
	ctx, cancel := context.WithTimeoutCause(ctx, budget, fmt.Errorf("the benchmark took longer than %s", budget))
	defer cancel()
	b := &bench{quick: *quick, rounds: 5, built: map[string]bool{}, began: time.Now(), log: stderr}
	if *quick {
		b.rounds = 2
	}
	if err := b.prepare(ctx, *tmp); err != nil {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	rep := newReport(ctx, b.root, b.dir)
	failed := b.measureAll(ctx, todo, &rep)
	rep.print(stdout)
	if !*quick {
		if err := rep.write(b.root, *only != ""); err != nil {
			failed = append(failed, err)
		}
	}
	for _, err := range failed {
		_, _ = fmt.Fprintln(stderr, "bench:", err)
	}
	if len(failed) > 0 {
		return 1
	}
	return 0
}

// measureAll goes on after a failure: the other rows are worth having.
func (b *bench) measureAll(ctx context.Context, todo []measure, rep *report) (failed []error) {
	for _, m := range todo {
		b.say("%s", strings.Join(m.rows, ", "))
		rows, err := m.run(ctx, b)
		rep.Results = append(rep.Results, rows...)
		if ctx.Err() != nil {
			return append(failed, fmt.Errorf("%s: %w", strings.Join(m.rows, ", "), errors.Join(context.Cause(ctx), err)))
		}
		if err != nil {
			b.say("FAILED: %s", err)
			failed = append(failed, fmt.Errorf("%s: %w", strings.Join(m.rows, ", "), err))
		}
	}
	return failed
}

func selected(prefix string) []measure {
	var out []measure
	for _, m := range measures {
		if slices.ContainsFunc(m.rows, func(r string) bool { return strings.HasPrefix(r, prefix) }) {
			out = append(out, m)
		}
	}
	return out
}

func names(ms []measure) (out []string) {
	for _, m := range ms {
		out = append(out, m.rows...)
	}
	return out
}

// prepare finds the source tree and builds what is started.
func (b *bench) prepare(ctx context.Context, tmp string) (err error) {
	b.root, err = os.Getwd()
	if err != nil {
		return fmt.Errorf("finding the source tree: %w", err)
	}
	if _, err := os.Stat(filepath.Join(b.root, "bench", "bare")); err != nil {
		return errors.New("run it from the root of the source tree: make bench")
	}
	b.exe = filepath.Join(b.root, "bin", "gridbeam")
	if b.dir, err = os.MkdirTemp(tmp, "gridbeam-bench-"); err != nil {
		return fmt.Errorf("making a temporary directory: %w", err)
	}
	b.guest = filepath.Join(b.dir, "guest.wasm")
	if err := b.goTool(ctx, []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"}, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", b.guest, "./bench/guest"); err != nil {
		return errors.Join(err, os.RemoveAll(b.dir))
	}
	return nil
}
