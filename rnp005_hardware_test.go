//go:build linux && cgo

package gridbeam_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/gridbeam/gridbeam/internal/stub"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
)

// "Identifies GPU models, memory, CPU cores, storage and network specifications": from the driver, which go-nvml's mock
// servers stand for here, to what a bridge finds. A GPU that is broken, or breaks, is not among them; the others of its
// machine are.
func TestD1_ABridgeFindsWhatTheDriverTellsAndNothingThatIsBroken(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 33)
		breaks := &atomic.Bool{}
		broken, cut, failing := answering(dgxh100.New()), answering(dgxa100.New()), answering(dgxh200.New())
		broken.Devices[3].(*server.Device).GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
		procfs := t.TempDir()
		slice(t, cut.Devices[5].(*server.Device), 3, procfs)
		failing.Devices[0].(*server.Device).GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) {
			if breaks.Load() {
				return 0, nvml.ERROR_GPU_IS_LOST
			}
			return 40, nvml.SUCCESS
		}
		machines := []*server.Server{answering(dgxa100.New()), answering(dgxh100.New()), failing, answering(dgxb200.New()), broken, cut, nil}
		for _, s := range machines {
			sysfs := t.TempDir()
			f.place(machineKind{change: func(c *node.Config) {
				c.GPUs = func(g gpu.Config, log *slog.Logger) (*gpu.Monitor, error) {
					g.Sysfs, g.Procfs = sysfs, procfs
					if s == nil {
						return gpu.NewWith(noDriver{&mock.Interface{}}, g, log)
					}
					return gpu.NewWith(s, g, log)
				}
			}})
		}
		f.start()
		f.known(len(machines))
		find := func(when string, want map[string]int) {
			t.Helper()
			for where, n := range want {
				filter, err := protocol.ParseFilter(where)
				if err != nil {
					t.Fatal(err)
				}
				if list, err := f.Bridge().ListNodes(t.Context(), alice, filter); err != nil || len(list.Nodes) != n {
					t.Errorf("%s, %s: %d nodes match, want %d: %v", when, where, len(list.Nodes), n, err)
				}
				j := sweep(1)
				j.Placement.Where = where
				if r := f.check(j); r.Known != len(machines) || r.Matching != n {
					t.Errorf("%s, a job that wants %s: %d of %d nodes match, want %d: %s", when, where, r.Matching, r.Known, n, r.Summary)
				}
			}
		}
		find("at first", map[string]int{
			`cpu.cores >= 1 && node.ram_gb > 0 && node.disk_gb >= 0`: len(machines),
			`gpu.count >= 1`:                               6,
			`gpu.model == "H100" && gpu.count == 8`:        1,
			`gpu.model == "H100" && gpu.count == 7`:        1, // one is lost
			`gpu.model == "A100-40" && gpu.count == 8`:     1,
			`gpu.model == "A100" && gpu.count == 7`:        1, // one is cut
			`gpu.mig && gpu.vram_gb < 8 && gpu.count == 3`: 1,
			`gpu.model == "H200" && gpu.count == 8`:        1,
			`gpu.vram_gb >= 141`:                           2,
			`gpu.compute >= 9.0 && gpu.vram_gb == 80`:      2,
			`gpu.model == "B200" && gpu.compute == 10.0`:   1,
			`gpu.model == "T4"`:                            0,
		})
		breaks.Store(true)
		pass(5 * time.Minute) // the record is told anew when a fault has lasted a minute, two minutes after the last at the least
		find("after one has broken", map[string]int{
			`gpu.model == "H200" && gpu.count == 8`: 0, `gpu.model == "H200" && gpu.count == 7`: 1, `gpu.count >= 1`: 6,
		})
	})
}

// answering makes what a mock leaves unset say that it is not supported, and gives its GPUs events that never come.
func answering(s *server.Server) *server.Server {
	stub.Answer(&s.Interface, nvml.ERROR_NOT_SUPPORTED)
	for i, d := range s.Devices {
		d := d.(*server.Device)
		stub.Answer(&d.Device, nvml.ERROR_NOT_SUPPORTED)
		mocked := d.GetNameFunc // "Mock NVIDIA A100-SXM4-40GB"
		d.GetNameFunc = func() (string, nvml.Return) {
			name, r := mocked()
			return strings.TrimPrefix(name, "Mock "), r
		}
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i + 1)}, nvml.SUCCESS }
	}
	return s
}

// slice cuts a GPU into MIG slices of 1g.5gb, and has the driver tell their device files.
func slice(t *testing.T, d *server.Device, n int, procfs string) {
	t.Helper()
	for i := range n {
		dir := filepath.Join(procfs, "driver/nvidia/capabilities", fmt.Sprintf("gpu%d/mig/gi%d/ci0", d.Minor, 7+i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for j, at := range []string{filepath.Dir(dir), dir} {
			if err := os.WriteFile(filepath.Join(at, "access"), fmt.Appendf(nil, "DeviceFileMinor: %d\n", 66+9*i+j), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.MigMode = nvml.DEVICE_MIG_ENABLE
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i >= n {
			return nil, nvml.ERROR_NOT_FOUND
		}
		m := &mock.Device{
			GetUUIDFunc:                            func() (string, nvml.Return) { return fmt.Sprintf("MIG-%s-%d", d.UUID, i), nvml.SUCCESS },
			GetNameFunc:                            func() (string, nvml.Return) { return "NVIDIA A100-SXM4-40GB MIG 1g.5gb", nvml.SUCCESS },
			GetMemoryInfoFunc:                      func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 4864 << 20}, nvml.SUCCESS },
			GetGpuInstanceIdFunc:                   func() (int, nvml.Return) { return 7 + i, nvml.SUCCESS },
			GetComputeInstanceIdFunc:               func() (int, nvml.Return) { return 0, nvml.SUCCESS },
			GetCudaComputeCapabilityFunc:           func() (int, int, nvml.Return) { return 8, 0, nvml.SUCCESS },
			GetDeviceHandleFromMigDeviceHandleFunc: func() (nvml.Device, nvml.Return) { return d, nvml.SUCCESS },
		}
		stub.Answer(m, nvml.ERROR_NOT_SUPPORTED)
		return m, nvml.SUCCESS
	}
}

// noDriver is a machine without NVIDIA's driver.
type noDriver struct{ nvml.Interface }

func (noDriver) Init() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
