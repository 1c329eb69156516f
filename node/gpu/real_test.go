package gpu_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
)

// TestRealCard compares what is read of this machine's own GPUs with what nvidia-smi says, and watches them for a moment. The
// test binary can be carried to a machine with a card: go test -c -o gpu.test ./node/gpu, there ./gpu.test -test.run RealCard -test.v
func TestRealCard(t *testing.T) {
	m, err := gpu.New(gpu.DefaultConfig(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	inv, err := m.Read(t.Context())
	defer m.Close()
	switch {
	case errors.Is(err, gpu.ErrNoNVML):
		t.Skip("this binary was built without NVML: build with CGO_ENABLED=1 on Linux")
	case err != nil:
		t.Fatal(err)
	case len(inv.Devices) == 0 && len(inv.Unsold()) == 0:
		t.Skip("no NVIDIA GPU is on the PCI bus, and NVML shows none")
	case len(inv.Devices) == 0:
		t.Skipf("there are GPUs that cannot be read: %v", inv.Unsold())
	}
	text, err := json.MarshalIndent(inv, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d GPUs can be sold\n%s", inv.Sellable(), inv.Units(), text)
	for i := range inv.Devices {
		checkReal(t, &inv, &inv.Devices[i])
	}
	watchReal(t, m)
	proveReal(t, &inv)
}

// proveReal has each device compute, in a child process of this binary.
func proveReal(t *testing.T, inv *gpu.Inventory) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	prover := gpu.NewProver([]string{self, "gpu-proof"}, "") // TestMain knows the word
	for i := range inv.Devices {
		d := &inv.Devices[i]
		if d.UUID == "" || d.Slices > 0 {
			continue
		}
		p := prover.Prove(t.Context(), d.UUID)
		t.Logf("%s: %s %s, %d bytes in %d ms", d, p.Verdict, p.Why, p.Bytes, p.TookMs)
		if p.Verdict != gpu.Passed && d.Sellable() {
			t.Errorf("%s cannot be tested, or fails: %s", d, p.Why)
		}
	}
}

// checkReal asks of one device what must hold on every real one.
func checkReal(t *testing.T, inv *gpu.Inventory, d *gpu.Device) {
	t.Helper()
	if d.Slice != nil || d.UUID == "" {
		return
	}
	if !strings.HasPrefix(d.UUID, "GPU-") || d.Name == "" || d.Bus == "" || d.Now == nil {
		t.Errorf("device is %+v", *d)
	}
	if d.Group >= 0 {
		g := inv.Groups[d.Group]
		if g.GetVramBytes() < 1<<30 || g.GetCompute() < 30 || g.GetDriver() == "" || g.GetModel() == "" {
			t.Errorf("its group is %v", g)
		}
		if _, _, ok := protocol.CUDAVersion(g.GetCuda()); !ok {
			t.Errorf("its CUDA version is %d", g.GetCuda())
		}
		if _, err := protocol.ResolveGPU(g.GetRawName()); err != nil {
			t.Logf("%s is in no table, its slug is %s", g.GetRawName(), g.GetModel())
		}
	}
	smi, err := exec.LookPath("nvidia-smi")
	if err != nil {
		t.Log("nvidia-smi is not here to compare with")
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, smi, "--id="+d.UUID, "--format=csv,noheader,nounits",
		"--query-gpu=uuid,name,memory.total,driver_version,compute_cap,enforced.power.limit,pcie.link.gen.max,pcie.link.width.max").Output()
	if err != nil {
		t.Logf("nvidia-smi does not answer: %v", err)
		return
	}
	f := strings.Split(strings.TrimSpace(string(out)), ", ")
	if len(f) != 8 || d.Group < 0 {
		t.Logf("nvidia-smi says %q", out)
		return
	}
	g := inv.Groups[d.Group]
	number := func(s string) float64 { n, _ := strconv.ParseFloat(s, 64); return n }
	for what, same := range map[string]bool{
		"uuid": f[0] == d.UUID, "name": f[1] == d.Name, "memory in MiB": number(f[2]) == float64(g.GetVramBytes()>>20), "driver": f[3] == g.GetDriver(),
		"compute": number(f[4])*10 == float64(g.GetCompute()), "power limit": g.PowerW == nil || int(number(f[5])) == int(g.GetPowerW()),
		"pcie generation": g.PcieGen == nil || number(f[6]) == float64(g.GetPcieGen()), "pcie width": g.PcieWidth == nil || number(f[7]) == float64(g.GetPcieWidth()),
	} {
		if !same {
			t.Errorf("%s: nvidia-smi says %q, we read %v", what, f, g)
		}
	}
}

// watchReal follows the health of real devices for a moment: nothing may change by being looked at.
func watchReal(t *testing.T, m *gpu.Monitor) {
	t.Helper()
	before := m.Inventory()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
	after := m.Inventory()
	if before.Sellable() != after.Sellable() {
		t.Errorf("%d could be sold, after 12 s %d: %v", before.Sellable(), after.Sellable(), after.Unsold())
	}
	for i := range after.Devices {
		if d := &after.Devices[i]; d.Now != nil && i < len(before.Devices) && before.Devices[i].Now != nil && !d.Now.At.After(before.Devices[i].Now.At) {
			t.Errorf("%s was not looked at again", d)
		}
	}
}
