package node

import (
	"syscall"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/wasm"
)

// benchmark runs b.N chunks through a node and a bridge in this process, over loopback.
func benchmark(b *testing.B, backend executor.Backend, binary []byte, slots int, scratch string) {
	bridge := newTestBridge(b, startHost(b), uint64(b.N))
	giveModule(b, bridge, binary)
	cfg := nodeConfig(b.TempDir(), bridge)
	cfg.Slots, cfg.Scratch = slots, scratch
	n := runBackends(b, cfg, []Backend{{Executor: backend, InProcess: true}})
	s := newSession(b)
	b.ResetTimer()
	began, cpu := time.Now(), processorTime(b)
	bridge.join(s.ctx, s.wg, n.Status().PeerID, uint32(slots))
	eventually(b, "all chunks are accounted", func() bool { return bridge.accounted() == b.N })
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "chunks/s")
	b.ReportMetric(float64((processorTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/chunk") // of node and bridge
	bridge.mu.Lock()
	b.ReportMetric(float64(b.N)/float64(bridge.requests), "chunks/message")
	bridge.mu.Unlock()
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkChunks is what a node does in a second when chunks cost nothing: its own overhead.
func BenchmarkChunks(b *testing.B) {
	b.Run("2 slots", func(b *testing.B) { benchmark(b, &fakeBackend{}, []byte("module"), 2, "") })
	b.Run("8 slots", func(b *testing.B) { benchmark(b, &fakeBackend{}, []byte("module"), 8, "") })
}

// BenchmarkWasm is the same with real modules that write one small file.
func BenchmarkWasm(b *testing.B) {
	for name, c := range map[string]struct {
		slots   int
		scratch string
	}{"2 slots, disk": {2, ""}, "2 slots, memory": {2, "/dev/shm"}, "8 slots, memory": {8, "/dev/shm"}} {
		b.Run(name, func(b *testing.B) {
			backend, err := wasm.New(wasm.DefaultConfig(), testLog())
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := backend.Close(); err != nil {
					b.Error(err)
				}
			})
			benchmark(b, backend, writerModule(), c.slots, c.scratch)
		})
	}
}

// BenchmarkOutputs is what one small output costs beside the run that wrote it.
func BenchmarkOutputs(b *testing.B) {
	s, err := newScratch(b.TempDir()+"/work", b.TempDir()+"/runs", "/dev/shm", 2)
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	c := &collector{store: newStore(b)}
	for b.Loop() {
		dir, err := s.dir(0, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		writeTree(b, dir, map[string][]byte{"7/out": []byte("result")})
		b.StartTimer()
		if e, err := c.collect(b.Context(), dir, true); err != nil || !e.clean {
			b.Fatal(err)
		}
	}
}
