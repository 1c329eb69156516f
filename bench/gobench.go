package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// goBench runs benchmarks of a package once and returns nanoseconds per operation by name, without the suffix of
// the number of cores, and what else they report by name and unit.
func (b *bench) goBench(ctx context.Context, pkg, pattern string, args ...string) (map[string]float64, error) {
	exe, err := b.testBinary(ctx, pkg)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, exe, append([]string{"-test.run", "^$", "-test.bench", pattern, "-test.timeout", "5m"}, args...)...)
	c.Dir, c.Env = filepath.Join(b.root, pkg), os.Environ()
	if _, err := os.Stat("/dev/shm"); err == nil { // where a node keeps small outputs too
		c.Env = append(c.Env, "TMPDIR=/dev/shm")
	}
	out, err := c.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("benchmark %s of %s: %w\n%s", pattern, pkg, err, out)
	}
	return parseGoBench(string(out)), nil
}

func parseGoBench(text string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") || f[3] != "ns/op" {
			continue
		}
		name := f[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		if ns, err := strconv.ParseFloat(f[2], 64); err == nil {
			out[name] = ns
		}
		for i := 4; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				out[name+" "+f[i+1]] = v
			}
		}
	}
	return out
}

// inTurn runs two benchmarks in turn and returns their milliseconds per operation.
func (b *bench) inTurn(ctx context.Context, pkg, root, ours, bare string) (a, c []float64, err error) {
	for range b.rounds {
		for _, x := range []struct {
			name string
			to   *[]float64
		}{{ours, &a}, {bare, &c}} {
			v, err := b.goBench(ctx, pkg, "^"+root+"$/^"+x.name+"$", "-test.benchtime=300ms")
			if err != nil {
				return nil, nil, err
			}
			ns, ok := v[root+"/"+x.name]
			if !ok {
				return nil, nil, fmt.Errorf("%s/%s of %s gave no figure: %v", root, x.name, pkg, v)
			}
			*x.to = append(*x.to, ns/1e6)
		}
	}
	return a, c, nil
}

// measureSelect reads the selection's own benchmark.
func measureSelect(ctx context.Context, b *bench) ([]result, error) {
	const pkg = "beambridge/cluster"
	if err := b.goTool(ctx, nil, "test", "-count=1", "-run", "^TestPlanAtRNP004SizeIsValid$", "./"+pkg); err != nil {
		return nil, fmt.Errorf("%w: %w", errProof, err)
	}
	ours, bare, err := b.inTurn(ctx, pkg, "BenchmarkSelect138k", "warm", "random")
	if err != nil {
		return nil, err
	}
	how := "median of %d, in turn; every plan has its 800 members, and one was checked member by member; rounds %s"
	out := measured("select.138k_ms", median(ours), median(bare), how, b.rounds, list(ours))
	return []result{out}, b.benchProfileIfMissed(ctx, out, pkg, "^BenchmarkSelect138k$/^warm$")
}

// measureExec reads the executor's own benchmark: what a chunk costs beyond wazero alone.
func measureExec(ctx context.Context, b *bench) ([]result, error) {
	const pkg = "node/executor/wasm"
	ours, bare, err := b.inTurn(ctx, pkg, "BenchmarkWarm", "gridbeam_with_one_output", "wazero_alone")
	if err != nil {
		return nil, err
	}
	over := make([]float64, len(ours))
	for i := range ours {
		over[i] = ours[i] - bare[i]
	}
	how := "a chunk with one output (%s ms) less an instance of wazero alone, median of %d pairs; node/executor/wasm, BenchmarkWarm"
	out := measured("exec.wasm_warm_ms", median(over), median(bare), how, number(median(ours)), b.rounds)
	return []result{out}, b.benchProfileIfMissed(ctx, out, pkg, "^BenchmarkWarm$/^gridbeam_with_one_output$")
}

// benchProfileIfMissed runs a benchmark once more when its target was missed, and leaves where its time went.
func (b *bench) benchProfileIfMissed(ctx context.Context, r result, pkg, pattern string) error {
	if r.Met || b.quick {
		return nil
	}
	path := filepath.Join(b.dir, r.Name+".pb.gz")
	if _, err := b.goBench(ctx, pkg, pattern, "-test.benchtime=3s", "-test.cpuprofile", path); err != nil {
		return err
	}
	exe, err := b.testBinary(ctx, pkg)
	if err != nil {
		return err
	}
	text, err := pprofText(ctx, exe, path)
	if err != nil {
		return err
	}
	return b.keepProfile(r, "where the processor's time went in its benchmark, set-up included.\n\n"+text)
}
