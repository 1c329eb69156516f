//go:build linux

package sandbox

import (
	"bufio"
	"io"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// BenchmarkColdStart is from Start to the end of a lease with one trivial input, in a new sandbox each time.
func BenchmarkColdStart(b *testing.B) {
	back := newBackend(b, nil)
	task := job(b, "def f():\n    return 1\n", nil)
	for i := 0; b.Loop(); i++ {
		task = again(b, task)
		f := *task.Function
		f.Spec = string(rune('a' + i))
		f.KeepWarm = time.Millisecond
		task.Function = &f
		want(b, back, task, protocol.ReasonDone)
	}
}

// BenchmarkWarmLease is the same in a sandbox that waits (exec.sandbox_warm_ms: at most 3 ms over a bare pipe).
func BenchmarkWarmLease(b *testing.B) {
	back := newBackend(b, nil)
	task := job(b, "def f():\n    return 1\n", nil)
	want(b, back, task, protocol.ReasonDone)
	var took []time.Duration
	for b.Loop() {
		task = again(b, task)
		began := time.Now()
		want(b, back, task, protocol.ReasonDone)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkWarmInputs is one input of a lease that has many.
func BenchmarkWarmInputs(b *testing.B) {
	back := newBackend(b, nil)
	inputs := make([][]any, 1000)
	task := job(b, "def f():\n    return 1\n", inputs...)
	want(b, back, task, protocol.ReasonDone)
	for b.Loop() {
		task = again(b, task)
		want(b, back, task, protocol.ReasonDone)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(inputs))/1000, "ms/input")
}

// BenchmarkBarePipe is what the others are compared with: a Python process that answers each line.
func BenchmarkBarePipe(b *testing.B) {
	cmd := exec.CommandContext(b.Context(), DefaultConfig().Python[0], "-I", "-u", "-c", "import sys\nfor line in sys.stdin:\n    print(1)")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r := bufio.NewReader(out)
	for b.Loop() {
		if _, err := io.WriteString(in, "x\n"); err != nil {
			b.Fatal(err)
		}
		if _, err := r.ReadString('\n'); err != nil {
			b.Fatal(err)
		}
	}
	_ = in.Close()
	_ = cmd.Wait()
}
