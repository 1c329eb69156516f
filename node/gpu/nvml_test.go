//go:build linux && cgo

package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == proofCommand { // the child of a test
		if err := RunProof(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			syscall.Exit(1)
		}
		syscall.Exit(0) // the race detector's exit takes a second
	}
	goleak.VerifyTestMain(m)
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
			if len(inv.Groups) != 1 || len(inv.Devices) != 8 || len(inv.Unsold()) != 0 || inv.Sellable() != 8 || inv.Units() != 8 {
				t.Fatalf("%d groups, %d devices, %d of %d, problems %v", len(inv.Groups), len(inv.Devices), inv.Sellable(), inv.Units(), inv.Unsold())
			}
			g := inv.Groups[0]
			if g.GetModel() != c.model || g.GetCount() != 8 || g.GetCompute() != c.compute || g.GetDriver() == "" {
				t.Errorf("group is %v, want 8 × %s of compute %d", g, c.model, c.compute)
			}
			// What the driver does not tell is unknown, not zero.
			if g.Ecc != nil || g.PowerW != nil || g.NvlinkLinks != nil || g.Confidential != nil || g.PcieGen != nil {
				t.Errorf("absent fields are set: %v", g)
			}
			for i, d := range inv.Devices {
				if d.Group != 0 || d.UUID == "" || d.Health != Healthy || d.Bus != fmt.Sprintf("0000:%02x:00.0", i+1) || !slices.Equal(d.Files, []string{fmt.Sprintf("/dev/nvidia%d", i)}) {
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
	fill(s)
	device(s, 1).GetNameFunc = func() (string, nvml.Return) { return "NVIDIA Z9000 Ultra", nvml.SUCCESS } // nobody has entered it
	inv := mustRead(t, s)
	if len(inv.Groups) != 2 || inv.Groups[0].GetCount() != 2 || inv.Groups[1].GetModel() != "nvidia-z9000-ultra-24gb" || inv.Groups[1].GetRawName() != "NVIDIA Z9000 Ultra" {
		t.Errorf("groups are %v", inv.Groups)
	}
	if inv.CUDA != 12040 || inv.Groups[0].GetCuda() != 12040 {
		t.Errorf("CUDA is %d", inv.CUDA)
	}
}

// TestEverythingThatTheRecordHasAFieldForIsRead gives a GPU an answer to every question.
func TestEverythingThatTheRecordHasAFieldForIsRead(t *testing.T) {
	s := fill(dgxh100.NewWithGPUs(gpus.Multiple(2, gpus.H100_SXM5_80GB)...))
	s.SystemGetConfComputeStateFunc = func() (nvml.ConfComputeSystemState, nvml.Return) {
		return nvml.ConfComputeSystemState{CcFeature: nvml.CC_SYSTEM_FEATURE_ENABLED}, nvml.SUCCESS
	}
	for i := range 2 {
		full(device(s, i), i)
	}
	var sysfs string
	r := newRig(t, s, func(c *Config) {
		sysfs = c.Sysfs
		write(t, sysfs, map[string]string{"bus/pci/devices/0000:01:00.0/numa_node": "1\n", "bus/pci/devices/0000:02:00.0/numa_node": "-1\n"})
	})
	inv, err := r.Read(t.Context())
	r.Close()
	if err != nil || len(inv.Groups) != 1 {
		t.Fatalf("%v, groups %v", err, inv.Groups)
	}
	g := inv.Groups[0]
	for name, same := range map[string]bool{
		"pcie": g.GetPcieGen() == 5 && g.GetPcieWidth() == 16, "nvlink": g.GetNvlinkLinks() == 2 && g.GetNvlinkVersion() == 4 && g.GetNvlinkFullMesh(),
		"fabric": g.FabricClique != nil && g.GetFabricClique() == 3, "memory": g.GetBusBits() == 5120 && g.GetMemMhz() == 2619 && g.GetSmMhz() == 1980,
		"power": g.GetPowerW() == 650 && g.GetPowerDefaultW() == 700, "ecc": g.Ecc != nil && g.GetEcc(), "cores": g.GetCores() == 16896,
		"confidential": g.Confidential != nil && g.GetConfidential(), "display": g.Display != nil && !g.GetDisplay(), "arch": g.GetArch() == "hopper",
		"cuda": g.GetCuda() == 12040,
	} {
		if !same {
			t.Errorf("%s: group is %v", name, g)
		}
	}
	d := inv.Devices[0]
	b, now := d.Board, d.Now
	if b.BAR1 != 128<<30 || b.Persistence == nil || !*b.Persistence || b.ComputeMode != "exclusive-process" || !slices.Equal(b.Peers, []string{"0000:02:00.0"}) ||
		b.PeerLinks["0000:02:00.0"] != 2 || b.Island == nil || *b.Island != 0 || b.Cluster == "" || b.PCIeGen != 1 || b.PCIeWidth != 8 || d.NUMA == nil || *d.NUMA != 1 || inv.Devices[1].NUMA != nil {
		t.Errorf("board is %+v, NUMA %v and %v", b, d.NUMA, inv.Devices[1].NUMA)
	}
	if len(d.Notes) != 1 || !strings.Contains(d.Notes[0], "8 of 16 lanes") {
		t.Errorf("notes are %v", d.Notes)
	}
	if now == nil || *now.TemperatureC != 41 || *now.PowerW != 120 || *now.SMMHz != 345 || *now.UtilPct != 7 || *now.MemoryUsed != 1<<30 || *now.ECCErrors != 2 ||
		*now.ECCErrorsEver != 9 || *now.Remapped != 1 || !slices.Equal(now.Throttle, []string{"power brake"}) {
		t.Errorf("sensors are %+v", now)
	}
	if inv.Sellable() != 2 {
		t.Errorf("%d of %d can be sold: %v", inv.Sellable(), inv.Units(), inv.Unsold())
	}
}

// full lets a GPU answer everything; two are joined by two NVLinks.
func full(d *server.Device, i int) {
	word := func(v uint32) func() (uint32, nvml.Return) {
		return func() (uint32, nvml.Return) { return v, nvml.SUCCESS }
	}
	number := func(v int) func() (int, nvml.Return) { return func() (int, nvml.Return) { return v, nvml.SUCCESS } }
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		return nvml.Memory{Total: 81559 << 20, Used: 1 << 30}, nvml.SUCCESS
	}
	d.GetMaxPcieLinkGenerationFunc, d.GetMaxPcieLinkWidthFunc = number(5), number(16)
	d.GetCurrPcieLinkGenerationFunc, d.GetCurrPcieLinkWidthFunc = number(1), number(16-8*(1-i))
	d.GetMemoryBusWidthFunc, d.GetEnforcedPowerLimitFunc, d.GetPowerManagementDefaultLimitFunc, d.GetPowerUsageFunc = word(5120), word(650_000), word(700_000), word(120_400)
	d.GetNumGpuCoresFunc = number(16896)
	d.GetMaxClockInfoFunc = func(c nvml.ClockType) (uint32, nvml.Return) {
		return map[nvml.ClockType]uint32{nvml.CLOCK_MEM: 2619, nvml.CLOCK_SM: 1980}[c], nvml.SUCCESS
	}
	d.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 345, nvml.SUCCESS }
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 41, nvml.SUCCESS }
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 7}, nvml.SUCCESS }
	d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
		return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	d.GetTotalEccErrorsFunc = func(_ nvml.MemoryErrorType, c nvml.EccCounterType) (uint64, nvml.Return) {
		return map[nvml.EccCounterType]uint64{nvml.VOLATILE_ECC: 2, nvml.AGGREGATE_ECC: 9}[c], nvml.SUCCESS
	}
	d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 1, false, false, nvml.SUCCESS }
	d.GetDisplayActiveFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_DISABLED, nvml.SUCCESS }
	d.GetPersistenceModeFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
	d.GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) { return nvml.COMPUTEMODE_EXCLUSIVE_PROCESS, nvml.SUCCESS }
	d.GetBAR1MemoryInfoFunc = func() (nvml.BAR1Memory, nvml.Return) { return nvml.BAR1Memory{Bar1Total: 128 << 30}, nvml.SUCCESS }
	d.GetCurrentClocksThrottleReasonsFunc = func() (uint64, nvml.Return) {
		return nvml.ClocksThrottleReasonHwPowerBrakeSlowdown | nvml.ClocksEventReasonSwPowerCap, nvml.SUCCESS
	}
	d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
		if link < 2 {
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		return nvml.FEATURE_DISABLED, nvml.SUCCESS
	}
	d.GetNvLinkVersionFunc = func(int) (uint32, nvml.Return) { return uint32(nvml.NVLINK_VERSION_4_0), nvml.SUCCESS }
	d.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) { return nvml.NVLINK_DEVICE_TYPE_GPU, nvml.SUCCESS }
	d.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(2 - i)}, nvml.SUCCESS }
	d.GetGpuFabricInfoFunc = func() (nvml.GpuFabricInfo, nvml.Return) {
		return nvml.GpuFabricInfo{ClusterUuid: [16]uint8{1}, CliqueId: 3, State: nvml.GPU_FABRIC_STATE_COMPLETED}, nvml.SUCCESS
	}
}

func TestNVLinkMakesIslands(t *testing.T) {
	for name, c := range map[string]struct {
		peers    [][]int // of each GPU, by number
		switched []bool
		islands  []int
		mesh     bool
	}{
		"two pairs":             {[][]int{{1}, {0}, {3}, {2}}, nil, []int{0, 0, 1, 1}, true},
		"a ring is one island":  {[][]int{{1, 3}, {0, 2}, {1, 3}, {2, 0}}, nil, []int{0, 0, 0, 0}, false},
		"all with all":          {[][]int{{1, 2}, {0, 2}, {0, 1}}, nil, []int{0, 0, 0}, true},
		"switches join all":     {[][]int{nil, nil, nil, nil}, []bool{true, true, true, true}, []int{0, 0, 0, 0}, true},
		"pairs through a third": {[][]int{{2}, {2}, {0, 1}}, nil, []int{0, 0, 0}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := fill(dgxa100.NewWithGPUs(gpus.Multiple(len(c.peers), gpus.A100_SXM4_40GB)...))
			for i, peers := range c.peers {
				d := device(s, i)
				ends := max(len(peers), 1)
				d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
					if link >= ends {
						return 0, nvml.ERROR_INVALID_ARGUMENT
					}
					return nvml.FEATURE_ENABLED, nvml.SUCCESS
				}
				d.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) {
					if c.switched != nil {
						return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
					}
					return nvml.NVLINK_DEVICE_TYPE_GPU, nvml.SUCCESS
				}
				d.GetNvLinkRemotePciInfoFunc = func(link int) (nvml.PciInfo, nvml.Return) {
					return nvml.PciInfo{Bus: uint32(peers[link] + 1)}, nvml.SUCCESS
				}
			}
			inv := mustRead(t, s)
			var islands []int
			for _, d := range inv.Devices {
				islands = append(islands, *d.Board.Island)
			}
			if !slices.Equal(islands, c.islands) {
				t.Errorf("islands are %v, want %v", islands, c.islands)
			}
			for _, g := range inv.Groups {
				if g.GetNvlinkFullMesh() != c.mesh {
					t.Errorf("full mesh is %t, want %t", g.GetNvlinkFullMesh(), c.mesh)
				}
			}
		})
	}
}

func TestSlicesAreOfferedInsteadOfTheirGPU(t *testing.T) {
	s := fill(dgxa100.NewWithGPUs(gpus.Multiple(3, gpus.A100_SXM4_40GB)...))
	r := newRig(t, s, func(c *Config) {
		cut(device(s, 1), 3, c.Procfs)
		device(s, 2).MigMode = nvml.DEVICE_MIG_ENABLE // and not cut
		device(s, 2).GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
		device(s, 2).GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
	})
	inv, err := r.Read(t.Context())
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Devices) != 6 || inv.Units() != 5 || inv.Sellable() != 4 {
		t.Fatalf("%d devices, %d of %d can be sold: %v", len(inv.Devices), inv.Sellable(), inv.Units(), inv.Unsold())
	}
	parent, slice := inv.Devices[1], inv.Devices[2]
	if parent.Sellable() || parent.Slices != 3 || parent.Group != -1 {
		t.Errorf("the GPU itself is %+v", parent)
	}
	if slice.Slice == nil || slice.Slice.Parent != parent.UUID || slice.Slice.Profile != "1g.5gb" || !slice.Sellable() || slice.UUID != "MIG-"+parent.UUID+"-0" ||
		!slices.Equal(slice.Files, []string{"/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"}) {
		t.Errorf("a slice is %+v", slice)
	}
	g := inv.Groups[slice.Group]
	if g.GetCount() != 3 || g.GetModel() != "nvidia-a100-40gb-sxm" || g.GetMigProfile() != "1g.5gb" || g.GetVramBytes() != 4864<<20 || g.GetCompute() != 80 || g.SmMhz != nil {
		t.Errorf("the group of slices is %v", g)
	}
	unsold := inv.Unsold()
	if len(unsold) != 1 || !strings.Contains(unsold[0].What, "no slices") || !strings.Contains(unsold[0].Fix, "nvidia-smi") {
		t.Errorf("unsold are %v", unsold)
	}
}

func TestProfilesAreNamedAsTheVendorDoes(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name          string
		gi, ci        uint32
		memory, whole uint64
		want          string
	}{
		{"NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0, 0, 4864 * mib, 40960 * mib, "1g.5gb"},
		{"NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", 0, 0, 9856 * mib, 81559 * mib, "1g.10gb+me"},
		{"", 1, 1, 4864 * mib, 40960 * mib, "1g.5gb"},
		{"", 3, 3, 19968 * mib, 40960 * mib, "3g.20gb"},
		{"", 2, 1, 9856 * mib, 40960 * mib, "1c.2g.10gb"},
		{"", 7, 7, 40192 * mib, 40960 * mib, "7g.40gb"},
		{"", 0, 0, 4864 * mib, 40960 * mib, "5gb"},
	} {
		got := profileOf(c.name, nvml.DeviceAttributes{GpuInstanceSliceCount: c.gi, ComputeInstanceSliceCount: c.ci}, c.gi > 0, c.memory, c.whole)
		if got != c.want {
			t.Errorf("%+v is %q", c, got)
		}
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
		"no name": {func(d *server.Device) {
			d.GetNameFunc = func() (string, nvml.Return) { return "", nvml.ERROR_NOT_SUPPORTED }
		}, Faulted, "name"},
		"row not remapped": {func(d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 8, false, true, nvml.SUCCESS }
		}, Faulted, "replace"},
		"remapping waits": {func(d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 1, true, false, nvml.SUCCESS }
		}, Suspect, "next reset"},
		"page waits": {func(d *server.Device) {
			d.GetRetiredPagesPendingStatusFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
		}, Suspect, "next reset"},
		"wants a reset": {func(d *server.Device) {
			d.GetFieldValuesFunc = func(v []nvml.FieldValue) nvml.Return { v[0].Value[0] = 1; return nvml.SUCCESS }
		}, Suspect, "a reset"},
		"hot": {func(d *server.Device) {
			d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 84, nvml.SUCCESS }
		}, Suspect, "84 °C"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := fill(dgxh100.New())
				c.break_(device(s, 3))
				inv := mustRead(t, s)
				bad := inv.Devices[3]
				if inv.Sellable() != 7 || inv.Units() != 8 || bad.Sellable() || bad.Health != c.health || !strings.Contains(bad.Reason, c.reason) {
					t.Errorf("%d of %d; the broken device is %+v, want %s for its %s", inv.Sellable(), inv.Units(), bad, c.health, c.reason)
				}
				if unsold := inv.Unsold(); len(unsold) != 1 || unsold[0].Fix == "" || !strings.Contains(unsold[0].What, c.reason) {
					t.Errorf("unsold are %v", unsold)
				}
			})
		})
	}
}

func TestWhatADeviceDoesNotSupportIsNoFault(t *testing.T) {
	for _, r := range []nvml.Return{
		nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_ARGUMENT_VERSION_MISMATCH, nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_NO_PERMISSION,
		nvml.ERROR_NO_DATA, nvml.ERROR_DEPRECATED,
	} {
		s := fill(dgxa100.NewWithGPUs(gpus.A100_SXM4_40GB))
		d := device(s, 0)
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 77, r }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 200, r }
		inv := mustRead(t, s)
		if inv.Sellable() != 1 || inv.Groups[0].PowerW != nil || inv.Devices[0].Now.TemperatureC != nil {
			t.Errorf("%v: %+v, %v", r, inv.Devices[0], inv.Groups)
		}
	}
}

// TestFunctionsThatTheDriverLacksAreNotCalled: go-nvml binds lazily, and the process ends at a call of what is not there.
func TestFunctionsThatTheDriverLacksAreNotCalled(t *testing.T) {
	s := fill(dgxa100.NewWithGPUs(gpus.A100_SXM4_40GB))
	young := []string{"nvmlDeviceGetArchitecture", "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetNumGpuCores", "nvmlDeviceGetGpuFabricInfo", "nvmlDeviceGetMigMode", "nvmlDeviceGetRemappedRows", "nvmlSystemGetConfComputeState"}
	s.LookupSymbolFunc = func(symbol string) error {
		if slices.Contains(young, symbol) {
			return errors.New("undefined symbol")
		}
		return nil
	}
	d := device(s, 0)
	called := func() { t.Error("a function was called that the driver does not have") }
	d.GetArchitectureFunc = func() (nvml.DeviceArchitecture, nvml.Return) { called(); return 0, nvml.SUCCESS }
	d.GetMemoryBusWidthFunc = func() (uint32, nvml.Return) { called(); return 0, nvml.SUCCESS }
	d.GetNumGpuCoresFunc = func() (int, nvml.Return) { called(); return 0, nvml.SUCCESS }
	d.GetGpuFabricInfoFunc = func() (nvml.GpuFabricInfo, nvml.Return) { called(); return nvml.GpuFabricInfo{}, nvml.SUCCESS }
	d.GetMigModeFunc = func() (int, int, nvml.Return) { called(); return 0, 0, nvml.SUCCESS }
	d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { called(); return 0, 0, false, false, nvml.SUCCESS }
	s.SystemGetConfComputeStateFunc = func() (nvml.ConfComputeSystemState, nvml.Return) {
		called()
		return nvml.ConfComputeSystemState{}, nvml.SUCCESS
	}
	if inv := mustRead(t, s); inv.Sellable() != 1 || inv.Groups[0].GetArch() != "" || inv.Groups[0].GetCompute() != 80 {
		t.Errorf("groups are %v", inv.Groups)
	}
}

func TestSettingsCanKeepAGPUFromBeingSold(t *testing.T) {
	s := fill(dgxa100.NewWithGPUs(gpus.A100_SXM4_40GB))
	device(s, 0).GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) { return nvml.COMPUTEMODE_PROHIBITED, nvml.SUCCESS }
	inv := mustRead(t, s)
	if unsold := inv.Unsold(); inv.Sellable() != 0 || len(unsold) != 1 || !strings.Contains(unsold[0].What, "prohibited") || unsold[0].Fix != "nvidia-smi -i 0000:01:00.0 -c 0" {
		t.Errorf("unsold are %+v", unsold)
	}
}

func TestAHangingDeviceIsSuspectAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fill(dgxa100.New())
		release := make(chan struct{})
		device(s, 0).GetNameFunc = func() (string, nvml.Return) { <-release; return "", nvml.ERROR_UNKNOWN }
		began := time.Now()
		inv := mustRead(t, s)
		close(release)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("reading took %s", took)
		}
		if inv.Devices[0].Health != Suspect || inv.Sellable() != 7 || inv.Units() != 8 {
			t.Errorf("devices are %+v, groups %v", inv.Devices[0], inv.Groups)
		}
		synctest.Wait()
	})
}

// noStart fails to start.
type noStart struct {
	nvml.Interface
	r nvml.Return
}

func (n noStart) Init() nvml.Return { return n.r }

func TestNoDriverIsNotNoGPU(t *testing.T) {
	one := map[string]string{
		"bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "bus/pci/devices/0000:01:00.0/class": "0x030200\n",
		"bus/pci/devices/0000:01:00.1/vendor": "0x10de\n", "bus/pci/devices/0000:01:00.1/class": "0x040300\n", // its sound
		"bus/pci/devices/0000:03:00.0/vendor": "0x1002\n", "bus/pci/devices/0000:03:00.0/class": "0x038000\n", "bus/pci/devices/0000:03:00.0/device": "0x74a1\n",
		"bus/pci/devices/0000:03:00.0/mem_info_vram_total": "206141652992\n",
		"bus/pci/devices/0000:00:02.0/vendor":              "0x8086\n", "bus/pci/devices/0000:00:02.0/class": "0x030000\n", // in the processor
	}
	for name, c := range map[string]struct {
		r     nvml.Return
		files map[string]string
		want  string
	}{
		"no library, no GPU": {nvml.ERROR_LIBRARY_NOT_FOUND, nil, ""},
		"no library, a GPU":  {nvml.ERROR_LIBRARY_NOT_FOUND, one, "install the NVIDIA driver"},
		"driver not loaded":  {nvml.ERROR_DRIVER_NOT_LOADED, one, "modprobe nvidia"},
		"mismatch":           {nvml.ERROR_LIB_RM_VERSION_MISMATCH, nil, "reload the driver"},
		"no permission":      {nvml.ERROR_NO_PERMISSION, nil, "/dev/nvidiactl"},
		"something else":     {nvml.ERROR_UNKNOWN, one, "nvidia-smi"},
	} {
		t.Run(name, func(t *testing.T) {
			inv := mustRead(t, noStart{r: c.r}, func(cfg *Config) { write(t, cfg.Sysfs, c.files) })
			got := ""
			if unsold := inv.Unsold(); len(unsold) > 0 {
				got = unsold[0].Fix
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("fix is %q, want %q", got, c.want)
			}
			if c.files != nil && (inv.Units() != 1 || inv.Sellable() != 0 || !slices.Equal(inv.Others, []string{"amd 0x74a1 at 0000:03:00.0, 196592 MiB"})) {
				t.Errorf("%d of %d can be sold, others are %q", inv.Sellable(), inv.Units(), inv.Others)
			}
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := fill(dgxa100.New())
		release := make(chan struct{})
		var once sync.Once
		device(s, 0).GetNameFunc = func() (string, nvml.Return) { <-release; return "", nvml.ERROR_UNKNOWN }
		_, err := newRig(t, s, nil).Read(ctx)
		once.Do(func() { close(release) })
		if err == nil {
			t.Error("no error although the context was done")
		}
		synctest.Wait()
	})
}
