//go:build linux && cgo

package gpu

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fill makes every function that the mock leaves unset answer NOT_SUPPORTED, where it would panic.
func fill(s *server.Server) *server.Server {
	for _, d := range s.Devices {
		v := reflect.ValueOf(&d.(*server.Device).Device).Elem()
		for _, f := range v.Fields() {
			if f.Kind() != reflect.Func || !f.CanSet() || !f.IsNil() {
				continue
			}
			t := f.Type()
			f.Set(reflect.MakeFunc(t, func([]reflect.Value) []reflect.Value {
				out := make([]reflect.Value, t.NumOut())
				for i := range out {
					out[i] = reflect.Zero(t.Out(i))
					if t.Out(i) == reflect.TypeFor[nvml.Return]() {
						out[i] = reflect.ValueOf(nvml.ERROR_NOT_SUPPORTED)
					}
				}
				return out
			}))
		}
		mocked := d.(*server.Device).GetNameFunc // "Mock NVIDIA A100-SXM4-40GB"
		d.(*server.Device).GetNameFunc = func() (string, nvml.Return) {
			name, r := mocked()
			return strings.TrimPrefix(name, "Mock "), r
		}
	}
	return s
}

func device(s *server.Server, i int) *server.Device { return s.Devices[i].(*server.Device) }

func mustRead(t *testing.T, lib library) Inventory {
	t.Helper()
	inv, err := read(t.Context(), lib, t.TempDir(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func TestMachinesBecomeGroupsUnderOurNames(t *testing.T) {
	for name, c := range map[string]struct {
		server  *server.Server
		model   string
		compute uint32
	}{
		"dgx a100": {dgxa100.New(), "nvidia-a100-40gb-sxm", 80},
		"dgx h100": {dgxh100.New(), "nvidia-h100-80gb-sxm", 90},
		"dgx h200": {dgxh200.New(), "nvidia-h200-141gb-sxm", 90},
		"dgx b200": {dgxb200.New(), "nvidia-b200-180gb-sxm", 100},
	} {
		t.Run(name, func(t *testing.T) {
			inv := mustRead(t, fill(c.server))
			if len(inv.Groups) != 1 || len(inv.Devices) != 8 || len(inv.Problems) != 0 {
				t.Fatalf("%d groups, %d devices, problems %v", len(inv.Groups), len(inv.Devices), inv.Problems)
			}
			g := inv.Groups[0]
			if g.GetModel() != c.model || g.GetCount() != 8 || g.GetCompute() != c.compute || g.GetDriver() == "" {
				t.Errorf("group is %v, want 8 × %s of compute %d", g, c.model, c.compute)
			}
			// What the driver does not tell is unknown, not zero.
			if g.Ecc != nil || g.PowerW != nil || g.NvlinkLinks != nil {
				t.Errorf("absent fields are set: %v", g)
			}
			for _, d := range inv.Devices {
				if d.Group != 0 || d.UUID == "" || d.Health != Healthy {
					t.Errorf("device is %+v", d)
				}
			}
		})
	}
}

func TestAMixedMachineHasAGroupPerModel(t *testing.T) {
	s, err := server.New(server.WithGPUs(gpus.A100_SXM4_40GB, gpus.A30_PCIE_24GB, gpus.A100_SXM4_40GB), server.WithDriverVersion("550.54.15"), server.WithCUDADriverVersion(12040))
	if err != nil {
		t.Fatal(err)
	}
	inv := mustRead(t, fill(s))
	if len(inv.Groups) != 2 || inv.Groups[0].GetCount() != 2 || inv.Groups[1].GetModel() != "nvidia-a30-24gb-pcie" && inv.Groups[1].GetModel() != "nvidia-a30-24gb" {
		t.Errorf("groups are %v", inv.Groups)
	}
	if inv.CUDA != 124 || inv.Groups[0].GetCuda() != 124 {
		t.Errorf("CUDA is %d", inv.CUDA)
	}
}

func TestOneBrokenDeviceLeavesTheOthers(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(d *server.Device)
		health Health
		reason string
	}{
		"lost": {func(d *server.Device) {
			d.GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
		}, Faulted, "UUID"},
		"reset required": {func(d *server.Device) {
			d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_RESET_REQUIRED }
		}, Faulted, "memory"},
		"unknown error": {func(d *server.Device) {
			d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) { return 0, 0, nvml.ERROR_UNKNOWN }
		}, Faulted, "ECC"},
		"times out": {func(d *server.Device) { d.GetNameFunc = func() (string, nvml.Return) { return "", nvml.ERROR_TIMEOUT } }, Suspect, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			s := fill(dgxh100.New())
			c.break_(device(s, 3))
			inv := mustRead(t, s)
			if len(inv.Groups) != 1 || inv.Groups[0].GetCount() != 7 {
				t.Fatalf("groups are %v, want 7 good devices", inv.Groups)
			}
			bad := inv.Devices[3]
			if bad.Health != c.health || bad.Group != -1 || !strings.Contains(bad.Reason, c.reason) {
				t.Errorf("the broken device is %+v, want %s for its %s", bad, c.health, c.reason)
			}
			if len(inv.Problems) != 1 || inv.Problems[0].Fix == "" {
				t.Errorf("problems are %v", inv.Problems)
			}
		})
	}
}

func TestAHangingDeviceIsSuspectAlone(t *testing.T) {
	s := fill(dgxa100.New())
	release := make(chan struct{})
	ended := make(chan struct{})
	device(s, 0).GetNameFunc = func() (string, nvml.Return) { <-release; close(ended); return "", nvml.ERROR_UNKNOWN }
	inv, err := read(t.Context(), s, t.TempDir(), 50*time.Millisecond)
	close(release)
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	if inv.Devices[0].Health != Suspect || len(inv.Groups) != 1 || inv.Groups[0].GetCount() != 7 {
		t.Errorf("devices are %+v, groups %v", inv.Devices[0], inv.Groups)
	}
}

// noLibrary fails to start.
type noLibrary struct {
	library
	r nvml.Return
}

func (n noLibrary) Init() nvml.Return { return n.r }

func TestNoDriverIsNotNoGPU(t *testing.T) {
	empty, one := t.TempDir(), t.TempDir()
	dir := filepath.Join(one, "bus/pci/devices/0000:01:00.0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"vendor": "0x10de\n", "class": "0x030200\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		r     nvml.Return
		sysfs string
		want  string
	}{
		"no library, no GPU": {nvml.ERROR_LIBRARY_NOT_FOUND, empty, ""},
		"no library, a GPU":  {nvml.ERROR_LIBRARY_NOT_FOUND, one, "install the NVIDIA driver"},
		"driver not loaded":  {nvml.ERROR_DRIVER_NOT_LOADED, one, "modprobe nvidia"},
		"mismatch":           {nvml.ERROR_LIB_RM_VERSION_MISMATCH, empty, "reload the driver"},
		"no permission":      {nvml.ERROR_NO_PERMISSION, empty, "/dev/nvidiactl"},
	} {
		t.Run(name, func(t *testing.T) {
			inv, err := read(t.Context(), noLibrary{r: c.r}, c.sysfs, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(inv.Problems) > 0 {
				got = inv.Problems[0].Fix
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("fix is %q, want %q", got, c.want)
			}
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := fill(dgxa100.New())
	release := make(chan struct{})
	ended := make(chan struct{})
	device(s, 0).GetNameFunc = func() (string, nvml.Return) { <-release; close(ended); return "", nvml.ERROR_UNKNOWN }
	_, err := read(ctx, s, t.TempDir(), time.Minute)
	close(release)
	<-ended
	if err == nil {
		t.Error("no error although the context was done")
	}
}
