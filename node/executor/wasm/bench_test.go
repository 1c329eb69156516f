package wasm

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// bare is wazero alone: one runtime, one compiled module.
func bare(b *testing.B, binary []byte, cfg wazero.RuntimeConfig) (wazero.Runtime, wazero.CompiledModule) {
	b.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, cfg.WithDebugInfoEnabled(false))
	b.Cleanup(func() { _ = r.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	m, err := r.CompileModule(ctx, binary)
	if err != nil {
		b.Fatal(err)
	}
	return r, m
}

func chunk(b *testing.B, backend *Backend, task executor.Task, want protocol.Reason) {
	task.Lease = protocol.NewLeaseID()
	p, err := backend.Prepare(b.Context(), task)
	if err != nil {
		b.Fatal(err)
	}
	h, err := backend.Start(b.Context(), p)
	if err != nil {
		b.Fatal(err)
	}
	if out, err := h.Wait(b.Context()); err != nil || out.Reason != want {
		b.Fatalf("outcome is %+v, %v", out, err)
	}
}

// writeResult opens /out/r (descriptor 4), writes 32 bytes and ends.
func writeResult() program {
	return program{
		imports: []hostCall{importsWrite, importOpen},
		data:    string(make([]byte, 200)) + "r",
		code: join(
			i32(4), i32(0), i32(200), i32(1), i32(1), []byte{0x42, 0xc0, 0}, i64(0), i32(0), i32(300), call(1), []byte{0x1a},
			writeOnce(5, 32)),
	}
}

// BenchmarkWarm is exec.wasm_warm_ms: what a chunk of a compiled module costs over wazero alone.
func BenchmarkWarm(b *testing.B) {
	binary := nothing.assemble()
	b.Run("wazero alone", func(b *testing.B) {
		r, m := bare(b, binary, wazero.NewRuntimeConfigCompiler())
		for b.Loop() {
			instance, err := r.InstantiateModule(context.Background(), m, wazero.NewModuleConfig().WithName(""))
			if err != nil {
				b.Fatal(err)
			}
			_ = instance.Close(context.Background())
		}
	})
	b.Run("gridbeam", func(b *testing.B) {
		backend := newBackend(b, nil)
		task := newTask(b, "nothing", binary)
		for b.Loop() {
			chunk(b, backend, task, protocol.ReasonDone)
		}
	})
	b.Run("gridbeam with one output", func(b *testing.B) {
		backend := newBackend(b, nil)
		p := writeResult()
		task := newTask(b, "result", p.assemble())
		base, n := task.OutDir, 0
		for b.Loop() {
			n++
			task.OutDir = base
			task.Inputs[0].Index = uint64(n)
			chunk(b, backend, task, protocol.ReasonDone)
		}
		b.StopTimer()
		if info, err := os.Stat(filepath.Join(task.OutputDir(uint64(n)), "r")); err != nil || info.Size() != 32 {
			b.Errorf("output is %v, %v", info, err)
		}
	})
}

// BenchmarkGoProgram is the same for a program of the Go compiler.
func BenchmarkGoProgram(b *testing.B) {
	module := guestModule(b)
	binary, err := module.Load(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("wazero alone", func(b *testing.B) {
		r, m := bare(b, binary, wazero.NewRuntimeConfigCompiler())
		for b.Loop() {
			_, err := r.InstantiateModule(context.Background(), m, wazero.NewModuleConfig().WithName("").WithArgs("guest", "exit", "0"))
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("gridbeam", func(b *testing.B) {
		backend := newBackend(b, func(c *Config) { c.CacheDir = guestCache() })
		task := newTask(b, "guest", binary)
		task.Command = []string{"guest", "exit", "0"}
		chunk(b, backend, task, protocol.ReasonDone) // compiles
		for b.Loop() {
			chunk(b, backend, task, protocol.ReasonDone)
		}
	})
}

// countdown is a loop of 10^8 empty rounds: what a stop check costs where it costs most.
func countdown() program {
	return program{locals: 1, code: join(
		i32(100_000_000), []byte{0x21, 0, 0x02, 0x40},
		loop(join([]byte{0x20, 0}, i32(1), []byte{0x6b, 0x22, 0, 0x45, 0x0d, 1})), []byte{0x0b})}
}

// BenchmarkTightLoop compares the ways to make a loop stoppable.
func BenchmarkTightLoop(b *testing.B) {
	p := countdown()
	binary := p.assemble()
	for name, cfg := range map[string]wazero.RuntimeConfig{
		"unstoppable":    wazero.NewRuntimeConfigCompiler(),
		"wazero's check": wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(true),
	} {
		b.Run(name, func(b *testing.B) {
			r, m := bare(b, binary, cfg)
			ctx := b.Context()
			for b.Loop() {
				instance, err := r.InstantiateModule(ctx, m, wazero.NewModuleConfig().WithName(""))
				if err != nil {
					b.Fatal(err)
				}
				_ = instance.Close(ctx)
			}
		})
	}
	b.Run("gridbeam's check", func(b *testing.B) {
		backend := newBackend(b, nil)
		task := newTask(b, "countdown", binary)
		chunk(b, backend, task, protocol.ReasonDone)
		for b.Loop() {
			chunk(b, backend, task, protocol.ReasonDone)
		}
	})
}

// TestWarmChunkCostsLittle holds a generous multiple of the target of 0.5 ms, so that a file system or a
// goroutine per task that slips in is noticed on a busy machine too; BenchmarkWarm has the figure.
func TestWarmChunkCostsLittle(t *testing.T) {
	b := newBackend(t, nil)
	task := newTask(t, "nothing", nothing.assemble())
	runTask(t, b, task)
	best := time.Hour
	for range 50 {
		task.Lease = protocol.NewLeaseID()
		begin := time.Now()
		runTask(t, b, task)
		best = min(best, time.Since(begin))
	}
	if best > 500*time.Microsecond {
		t.Errorf("the fastest of 50 warm chunks took %s, want at most 500 µs", best)
	}
}
