package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrBusy means that something is not measured because leases would suffer from it, and spoil it.
var ErrBusy = errors.New("node: chunks are in hand")

// measureMethod names how the figures came about, in the record: other methods give other figures.
const measureMethod = "gridbeam-host/1"

// Bounds of a measurement. It takes some twelve seconds at most.
const (
	measureFile  = 256 << 20 // bytes that are written and read
	measureLeast = 16 << 20  // fewer say nothing
	measureDisk  = 5 * time.Second
	measureMem   = 500 * time.Millisecond
	measureCPU   = 200 * time.Millisecond
	measureName  = "measured.json"
	// measureWait is the time after the start before anything is measured: a short run is not worth it.
	measureWait = 2 * time.Minute
	// measureLook is how often it is looked whether a measurement is due and the node idle.
	measureLook = 10 * time.Minute
)

// Measured is what a node has measured of its machine. What could not be measured is 0, and Problems says why.
type Measured struct {
	// Method names how, At when.
	Method string `json:"method"`
	// At is when.
	At time.Time `json:"at"`
	// DiskReadMBs and DiskWriteMBs are what one program reads and writes in a row in the data directory, past the system's
	// cache, in 10^6 bytes a second.
	DiskReadMBs float64 `json:"disk_read_mb_s"`
	// DiskWriteMBs is with the bytes safe on the disk.
	DiskWriteMBs float64 `json:"disk_write_mb_s"`
	// DiskBytes were written, DiskHow says how the cache was kept out: direct or dropped.
	DiskBytes uint64 `json:"disk_bytes"`
	// DiskHow is direct, or dropped.
	DiskHow string `json:"disk_how,omitempty"`
	// MemoryGBs is the memory's bandwidth in 10^9 bytes a second, all processors together: a[i] = b[i] + s·c[i].
	MemoryGBs float64 `json:"memory_gb_s"`
	// CPUGflops is what all processors together reach in double precision, in plain compiled code: 10^9 operations a second.
	CPUGflops float64 `json:"cpu_gflops"`
	// Problems say what could not be measured.
	Problems []string `json:"problems,omitempty"`
}

// Measure measures the machine and the disk of a directory, in some twelve seconds at most; it leaves nothing there. The
// error is ctx's: what cannot be measured is in Problems.
func Measure(ctx context.Context, dir string, reserve uint64, now func() time.Time) (Measured, error) {
	m := Measured{Method: measureMethod, At: now().UTC().Truncate(time.Second)}
	if err := m.disk(ctx, dir, reserve); err != nil {
		m.Problems = append(m.Problems, "disk: "+err.Error())
	}
	if ctx.Err() != nil {
		return Measured{}, ctx.Err()
	}
	m.MemoryGBs = memoryBandwidth(ctx, measureMem)
	m.CPUGflops = processorSpeed(ctx, measureCPU)
	return m, ctx.Err()
}

// disk measures the disk of a directory.
func (m *Measured) disk(ctx context.Context, dir string, reserve uint64) error {
	_, free := readDisk(dir)
	if free < reserve+diskMargin+2*measureLeast {
		return fmt.Errorf("%s has %d MiB free, and %d are kept in reserve: make room", dir, free>>20, reserve>>20)
	}
	if onTmpfs(dir) {
		return fmt.Errorf("%s is in memory, and no disk: put --data on one", dir)
	}
	size := min(measureFile, (free-reserve-diskMargin)/2)
	size -= size % measureBlock
	f, err := os.CreateTemp(dir, ".measure-*")
	if err != nil {
		return fmt.Errorf("making a file: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	written, took, how, err := writeThrough(ctx, f.Name(), size, measureDisk)
	if err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	if written < measureLeast {
		return fmt.Errorf("only %d MiB were written in %s", written>>20, took.Round(time.Millisecond))
	}
	m.DiskBytes, m.DiskWriteMBs, m.DiskHow = written, rate(written, took, 1e6), how
	read, took, err := readThrough(ctx, f.Name(), how, measureDisk)
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if read >= measureLeast {
		m.DiskReadMBs = rate(read, took, 1e6)
	}
	return nil
}

// rate is bytes in a time, in a unit a second, to three digits.
func rate(n uint64, took time.Duration, unit float64) float64 {
	if took <= 0 {
		return 0
	}
	return threeDigits(float64(n) / took.Seconds() / unit)
}

func threeDigits(x float64) float64 {
	if x <= 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(x)))
	return math.Round(x*scale) / scale
}

// LoadMeasured reads what was measured last in a data directory; false when nothing was, or it cannot be read any more.
func LoadMeasured(dir string) (Measured, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, measureName))
	if err != nil || len(raw) > 1<<16 {
		return Measured{}, false
	}
	return parseMeasured(raw)
}

func parseMeasured(raw []byte) (m Measured, ok bool) {
	if json.Unmarshal(raw, &m) != nil || m.Method != measureMethod || m.At.IsZero() {
		return Measured{}, false
	}
	for _, x := range []float64{m.DiskReadMBs, m.DiskWriteMBs, m.MemoryGBs, m.CPUGflops} {
		if x < 0 || x > 1e9 {
			return Measured{}, false
		}
	}
	return m, true
}

// SaveMeasured keeps what was measured, for LoadMeasured.
func SaveMeasured(dir string, m Measured) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("keeping what was measured: %w", err)
	}
	tmp := filepath.Join(dir, "."+measureName+".new")
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping what was measured: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, measureName)); err != nil {
		return fmt.Errorf("keeping what was measured: %w", err)
	}
	return nil
}

// removeLeftovers removes files of measurements that a crash has cut off.
func removeLeftovers(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, ".measure-*"))
	for _, name := range old {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// into puts what was measured into the record's fields for it: a claim, as every benchmark of one's own.
func (m *Measured) into(c *pb.Capability) {
	whole := func(x float64) *uint32 {
		if x < 0.5 || x > math.MaxUint32 {
			return nil
		}
		return proto.Uint32(uint32(math.Round(x)))
	}
	if s := c.GetHost().GetStorage(); len(s) > 0 {
		s[0].ReadMbS = whole(m.DiskReadMBs)
	}
	b := &pb.Benchmark{Method: m.Method, At: m.At.UnixMilli(), MemGbS: whole(m.MemoryGBs), CpuScore: whole(m.CPUGflops), DiskMbS: whole(m.DiskWriteMBs)}
	if b.MemGbS != nil || b.CpuScore != nil || b.DiskMbS != nil {
		c.Benchmark = b
	}
}

// measureDaily measures while the node is idle, when the last figures are older than Config.Measure, until ctx ends.
func (s *site) measureDaily(ctx context.Context) {
	if s.cfg.Measure <= 0 {
		return
	}
	removeLeftovers(s.cfg.Data)
	timer := time.NewTimer(measureWait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(measureLook)
		if last := s.speaker.measuredAt(); s.cfg.Clock().Sub(last) < s.cfg.Measure {
			continue
		}
		if _, err := s.measure(ctx); err != nil && !errors.Is(err, ErrBusy) && ctx.Err() == nil {
			s.log.Warn("the machine was not measured", "err", err)
		}
	}
}

// measure measures now, and says so in the record. It returns ErrBusy while chunks are in hand.
func (s *site) measure(ctx context.Context) (Measured, error) {
	if running, queued := s.book.load(); running+queued > 0 {
		return Measured{}, fmt.Errorf("%w: %d; measuring would disturb them, and they the figures: try again when the node is idle", ErrBusy, running+queued)
	}
	s.measuring.Lock()
	defer s.measuring.Unlock()
	m, err := Measure(ctx, s.cfg.Data, s.cfg.Reserve, s.cfg.Clock)
	if err != nil {
		return Measured{}, err
	}
	if running, _ := s.book.load(); running > 0 {
		return Measured{}, fmt.Errorf("%w: some began meanwhile; what was measured beside them is dropped", ErrBusy)
	}
	if err := SaveMeasured(s.cfg.Data, m); err != nil {
		return Measured{}, err
	}
	s.speaker.setMeasured(m)
	s.announce.RecordChanged()
	s.log.Info("measured the machine", "disk_read_mb_s", m.DiskReadMBs, "disk_write_mb_s", m.DiskWriteMBs, "memory_gb_s", m.MemoryGBs, "cpu_gflops", m.CPUGflops, "problems", m.Problems)
	return m, nil
}

func (s *speaker) setMeasured(m Measured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inv.Measured = &m
}

func (s *speaker) measuredAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inv.Measured == nil {
		return time.Time{}
	}
	return s.inv.Measured.At
}
