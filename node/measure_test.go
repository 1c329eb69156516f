package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestDiskIsMeasuredPastTheCacheAndNothingIsLeft(t *testing.T) {
	if onTmpfs(t.TempDir()) {
		t.Skip("the directory of temporary files is in memory")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 3 * measureBlock
	n, took, how, err := writeThrough(t.Context(), name, size, time.Minute)
	if err != nil || n != size || took <= 0 || how != howDirect && how != howDropped {
		t.Fatalf("wrote %d bytes in %s, %s: %v", n, took, how, err)
	}
	if info, err := os.Stat(name); err != nil || info.Size() != size {
		t.Errorf("the file is %v, %v", info, err)
	}
	if n, took, err = readThrough(t.Context(), name, how, time.Minute); err != nil || n != size || took <= 0 {
		t.Errorf("read %d bytes in %s: %v", n, took, err)
	}
	if n, _, err = readThrough(t.Context(), name, howDropped, time.Minute); err != nil || n != size {
		t.Errorf("with the cache dropped read %d bytes: %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, _, _, err = writeThrough(ctx, name, size, time.Minute); err != nil || n != 0 {
		t.Errorf("after its context's end it wrote %d bytes: %v", n, err)
	}
	began := time.Now()
	if n, _, _, err = writeThrough(t.Context(), name, 1<<40, time.Nanosecond); err != nil || n > measureBlock || time.Since(began) > 10*time.Second {
		t.Errorf("after its time it wrote %d bytes: %v", n, err)
	}
}

func TestAFullDiskIsNotMeasured(t *testing.T) {
	dir := t.TempDir()
	m := Measured{}
	err := m.disk(t.Context(), dir, 1<<62)
	if err == nil || !strings.Contains(err.Error(), "make room") || m.DiskBytes != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("it left %v", left)
	}
	if err := m.disk(t.Context(), filepath.Join(dir, "nowhere"), 0); err == nil {
		t.Error("a directory that is not there was measured")
	}
}

func TestMemoryAndProcessorGiveFiguresInTime(t *testing.T) {
	began := time.Now()
	memory, cpu := memoryBandwidth(t.Context(), 50*time.Millisecond), processorSpeed(t.Context(), 50*time.Millisecond)
	if memory <= 0.01 || memory > 1e5 || cpu <= 0.001 || cpu > 1e6 {
		t.Errorf("memory %v GB/s, processor %v GFLOP/s", memory, cpu)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	a, b, c := []float64{0, 0}, []float64{1, 2}, []float64{10, 20}
	if triad(a, b, c, 3); a[0] != 31 || a[1] != 62 {
		t.Errorf("the triad gives %v", a)
	}
	if got := threeDigits(123456); got != 123000 {
		t.Errorf("three digits of 123456 are %v", got)
	}
	if rate(1e9, 0, 1e6) != 0 || rate(2_000_000, time.Second, 1e6) != 2 {
		t.Error("rates are wrong")
	}
}

func TestWhatWasMeasuredIsKeptAndInTheRecord(t *testing.T) {
	dir := t.TempDir()
	if _, ok := LoadMeasured(dir); ok {
		t.Error("something was measured before anything was")
	}
	m := Measured{Method: measureMethod, At: time.Now().UTC().Truncate(time.Second), DiskReadMBs: 512.4, DiskWriteMBs: 300, DiskBytes: 1 << 28, DiskHow: howDirect, MemoryGBs: 12.6, CPUGflops: 3.4}
	if err := SaveMeasured(dir, m); err != nil {
		t.Fatal(err)
	}
	got, ok := LoadMeasured(dir)
	if !ok || !got.At.Equal(m.At) || got.DiskReadMBs != m.DiskReadMBs {
		t.Errorf("kept is %+v, %t", got, ok)
	}
	s := newTestSpeaker(t)
	s.setMeasured(m)
	now := time.Now()
	record := func(seq uint64) *pb.Capability {
		raw, err := s.Record(seq, now, now.Add(time.Hour), false)
		if err != nil {
			t.Fatal(err)
		}
		c, err := protocol.OpenCapability(raw, s.self)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := record(1)
	if b := c.GetBenchmark(); c.GetHost().GetStorage()[0].GetReadMbS() != 512 || b.GetDiskMbS() != 300 || b.GetMemGbS() != 13 || b.GetCpuScore() != 3 || b.GetAt() != m.At.UnixMilli() || b.GetMethod() != measureMethod {
		t.Errorf("the record says %v and %v", c.GetHost().GetStorage(), b)
	}
	s.setMeasured(Measured{Method: measureMethod, At: m.At, Problems: []string{"disk: full"}})
	if c := record(2); c.GetBenchmark() != nil || c.GetHost().GetStorage()[0].ReadMbS != nil {
		t.Errorf("what was not measured is in the record: %v", c)
	}
	// What does not fit goes first.
	s.setMeasured(m)
	for g := range 8 {
		group := &pb.GpuGroup{Vendor: "nvidia", Model: "nvidia-h100-80gb-sxm", RawName: "NVIDIA H100 80GB HBM3", Count: 64, VramBytes: proto.Uint64(80 << 30), MigProfile: string(rune('a' + g))}
		s.inv.GPUs.Groups = append(s.inv.GPUs.Groups, group)
		for i := range 64 {
			s.inv.GPUs.Devices = append(s.inv.GPUs.Devices, good("GPU-"+string(rune('a'+g))+string(rune('0'+i)), g, "/dev/nvidia0"))
		}
	}
	if c := record(3); c.GetBenchmark() != nil || len(c.GetGpus()) != 8 {
		t.Errorf("a record that is too large keeps its benchmark, and %d groups", len(c.GetGpus()))
	}
}

func TestNothingIsMeasuredBesideALease(t *testing.T) {
	inWorld(t, 1, 1, func(w *world) {
		w.backends[0].behave = untilStopped
		w.joinAll()
		w.within(10*time.Second, "a chunk runs", func() bool { return w.states(0)["running"] == 1 })
		if _, err := w.node(0).Measure(w.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("measuring beside a lease: %v", err)
		}
	})
}

func FuzzMeasured(f *testing.F) {
	for _, seed := range []string{`{}`, `{"method":"gridbeam-host/1","at":"2026-01-01T00:00:00Z","disk_read_mb_s":1e308}`, `{"method":"gridbeam-host/1","at":"2026-01-01T00:00:00Z","memory_gb_s":12}`, `[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, ok := parseMeasured(raw)
		if !ok {
			return
		}
		c := &pb.Capability{Host: &pb.Host{Storage: []*pb.Storage{{}}}}
		m.into(c)
		if _, err := proto.Marshal(c); err != nil {
			t.Error(err)
		}
	})
}
