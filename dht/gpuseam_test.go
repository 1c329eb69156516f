//go:build linux && cgo

package dht

import (
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/gridbeam/gridbeam/internal/stub"
	nodegpu "github.com/gridbeam/gridbeam/node/gpu"
)

// TestFiltersReadWhatNodesWrite goes from NVML through a node's reading and its record to a filter: both ends have to have one
// form of every field.
func TestFiltersReadWhatNodesWrite(t *testing.T) {
	s, err := server.New(server.WithGPUs(gpus.A100_SXM4_80GB, gpus.A100_SXM4_80GB), server.WithDriverVersion("550.54.15"), server.WithCUDADriverVersion(12040))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range s.Devices {
		stub.Answer(&d.(*server.Device).Device, nvml.ERROR_NOT_SUPPORTED)
		d.(*server.Device).GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
		d.(*server.Device).GetMaxPcieLinkGenerationFunc = func() (int, nvml.Return) { return 4, nvml.SUCCESS }
		d.(*server.Device).GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
	}
	stub.Answer(&s.Interface, nvml.ERROR_NOT_SUPPORTED)
	cfg := nodegpu.DefaultConfig()
	cfg.Sysfs, cfg.Procfs = t.TempDir(), t.TempDir()
	m, err := nodegpu.NewWith(s, cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	inv, err := m.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	id := identityOf(t, 1).id
	rec := &record{raw: fmt.Appendf(nil, "x"), peer: id, cap: machine(id, 1, epoch, inv.Groups...)}
	rec.digest = digestOf(rec.raw)
	x := newReplica(1)
	x.putRecord(rec, epoch)
	for where, want := range map[string]int{
		`gpu.cuda == version("12.4")`: 1, `gpu.cuda >= version("12.4")`: 1, `gpu.cuda > version("12.4")`: 0, `gpu.cuda >= version("11.8")`: 1,
		`gpu.cuda < version("13.0")`: 1, `gpu.driver >= version("550.54")`: 1, `gpu.driver > version("550.54.15")`: 0,
		`gpu.compute == 8.0`: 1, `gpu.arch == "ampere"`: 1, `gpu.vram_gb == 80`: 1, `gpu.power_w == 400`: 1, `gpu.pcie_gen >= 4`: 1, `gpu.ecc`: 1,
		`gpu.model == "A100-80"`: 1, `gpu.model == "A100-40"`: 0, `gpu.count == 2`: 1, `!gpu.mig`: 1, `gpu.interface == "sxm"`: 1,
	} {
		if hits, _ := newAsking(Query{Filter: parsed(t, where), Literal: true}, epoch, false).match(x); len(hits) != want {
			t.Errorf("%s finds %d, want %d: the group is %v", where, len(hits), want, inv.Groups)
		}
	}
	broken := uint32(1)
	rec.cap.Gpus[0].Faulted = &broken
	x = newReplica(1)
	x.putRecord(rec, epoch)
	if hits, _ := newAsking(Query{Filter: parsed(t, `gpu.count >= 2`), Literal: true}, epoch, false).match(x); len(hits) != 0 {
		t.Error("a broken GPU counts")
	}
}
