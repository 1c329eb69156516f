//go:build linux && cgo

package gpu

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/gridbeam/gridbeam/internal/stub"
)

// fill makes every function of a device that the mock leaves unset answer NOT_SUPPORTED, where it would panic, gives each
// GPU a place on the bus, and the server events that never come.
func fill(s *server.Server) *server.Server {
	for i, d := range s.Devices {
		x := d.(*server.Device)
		stub.Answer(&x.Device, nvml.ERROR_NOT_SUPPORTED)
		mocked := x.GetNameFunc // "Mock NVIDIA A100-SXM4-40GB"
		x.GetNameFunc = func() (string, nvml.Return) {
			name, r := mocked()
			return strings.TrimPrefix(name, "Mock "), r
		}
		x.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i + 1)}, nvml.SUCCESS }
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }
	s.SystemGetConfComputeStateFunc = func() (nvml.ConfComputeSystemState, nvml.Return) {
		return nvml.ConfComputeSystemState{}, nvml.ERROR_NOT_SUPPORTED
	}
	return s
}

func device(s *server.Server, i int) *server.Device { return s.Devices[i].(*server.Device) }

// hears gives a server events: what the test sends is what Wait returns, to whoever waits.
func hears(s *server.Server) (say func(nvml.EventData, nvml.Return)) {
	type said struct {
		data nvml.EventData
		r    nvml.Return
	}
	events := make(chan said)
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		return &mock.EventSet{
			WaitFunc: func(ms uint32) (nvml.EventData, nvml.Return) {
				timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
				defer timer.Stop()
				select {
				case e := <-events:
					return e.data, e.r
				case <-timer.C:
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
			},
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		}, nvml.SUCCESS
	}
	for _, d := range s.Devices {
		d.(*server.Device).GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypeXidCriticalError, nvml.SUCCESS }
		d.(*server.Device).RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
	}
	return func(data nvml.EventData, r nvml.Return) { events <- said{data, r} }
}

func xid(d nvml.Device, number uint64) nvml.EventData {
	return nvml.EventData{Device: d, EventType: nvml.EventTypeXidCriticalError, EventData: number, GpuInstanceId: anyInstance, ComputeInstanceId: anyInstance}
}

// cut gives a GPU MIG slices of 1g.5gb on the instances 7 and up; procfs tells their device files.
func cut(d *server.Device, n int, procfs string) {
	d.MigMode = nvml.DEVICE_MIG_ENABLE
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	var slices []*mock.Device
	for i := range n {
		m := &mock.Device{}
		m.GetUUIDFunc = func() (string, nvml.Return) { return fmt.Sprintf("MIG-%s-%d", d.UUID, i), nvml.SUCCESS }
		m.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 4864 << 20, Used: 1 << 20}, nvml.SUCCESS
		}
		m.GetNameFunc = func() (string, nvml.Return) { return "NVIDIA A100-SXM4-40GB MIG 1g.5gb", nvml.SUCCESS }
		m.GetGpuInstanceIdFunc = func() (int, nvml.Return) { return 7 + i, nvml.SUCCESS }
		m.GetComputeInstanceIdFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		m.GetCudaComputeCapabilityFunc = func() (int, int, nvml.Return) { return 8, 0, nvml.SUCCESS }
		m.GetArchitectureFunc = func() (nvml.DeviceArchitecture, nvml.Return) { return nvml.DEVICE_ARCH_AMPERE, nvml.SUCCESS }
		stub.Answer(m, nvml.ERROR_NOT_SUPPORTED)
		slices = append(slices, m)
		for at, minor := range map[string]int{fmt.Sprintf("gi%d", 7+i): 66 + 9*i, fmt.Sprintf("gi%d/ci0", 7+i): 67 + 9*i} {
			dir := filepath.Join(procfs, "driver/nvidia/capabilities", fmt.Sprintf("gpu%d", d.Minor), "mig", at)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				panic(err)
			}
			text := fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor)
			if err := os.WriteFile(filepath.Join(dir, "access"), []byte(text), 0o600); err != nil {
				panic(err)
			}
		}
	}
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i >= len(slices) {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return slices[i], nvml.SUCCESS
	}
}

// rig is a machine under watch.
type rig struct {
	*Monitor
	cfg     Config
	mu      sync.Mutex
	changes int
}

func quietLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newRig(t *testing.T, lib nvml.Interface, edit func(*Config)) *rig {
	t.Helper()
	r := &rig{cfg: DefaultConfig()}
	r.cfg.Sysfs, r.cfg.Procfs = t.TempDir(), t.TempDir()
	r.cfg.Changed = func() { r.mu.Lock(); r.changes++; r.mu.Unlock() }
	if edit != nil {
		edit(&r.cfg)
	}
	m, err := NewWith(lib, r.cfg, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	r.Monitor = m
	return r
}

func (r *rig) changed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

func mustRead(t *testing.T, lib nvml.Interface, edit ...func(*Config)) Inventory {
	t.Helper()
	var f func(*Config)
	if len(edit) > 0 {
		f = edit[0]
	}
	r := newRig(t, lib, f)
	inv, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	return inv
}

// healths are the states of an inventory's devices, in order.
func healths(inv Inventory) (out []Health) {
	for i := range inv.Devices {
		out = append(out, inv.Devices[i].Health)
	}
	return out
}

// write puts files below a directory.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
