//go:build linux && cgo

package node

import (
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

func TestSpecsMayBePublished(t *testing.T) {
	f := fakeMachine(2)
	for i := range 2 {
		f.Devices[i].(*server.Device).GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
			return []nvml.ProcessInfo{{Pid: 424242}}, nvml.SUCCESS
		}
	}
	cfg := DefaultConfig(t.TempDir())
	f.into(t)(&cfg)
	if err := SaveMeasured(cfg.Data, Measured{Method: measureMethod, At: time.Now(), MemoryGBs: 12}); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSpecs(t.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if s.Running || s.Selling.Sellable != 2 || s.Selling.Units != 2 || len(s.Machine.GPUs.Groups) != 1 || s.Machine.Measured == nil || len(s.Profiles) != 2 {
		t.Errorf("specs are %+v", s)
	}
	if r := s.Profiles[0].Requirements[0]; r.Name != "gpu" || !strings.Contains(r.Have, "H100") {
		t.Errorf("the first requirement is %+v", r)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if uuid := f.Devices[i].(*server.Device).UUID; strings.Contains(string(text), uuid) {
			t.Errorf("the text has the UUID %s", uuid)
		}
	}
	if strings.Contains(string(text), "424242") || strings.Contains(string(text), cfg.Data) {
		t.Errorf("the text names what runs here: %s", text)
	}
	st := Status{Inventory: s.Machine, Selling: s.Selling, Profiles: s.Profiles}
	st.Inventory.GPUs.Devices[0].UUID = "GPU-secret"
	again := SpecsOf(&st, time.Now())
	if out, _ := json.Marshal(again); strings.Contains(string(out), "secret") || !again.Running || st.Inventory.GPUs.Devices[0].UUID == "" {
		t.Errorf("of a running node: %s", out)
	}
}
