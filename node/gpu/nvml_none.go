//go:build !linux || !cgo

package gpu

import (
	"context"
	"fmt"
	"log/slog"
)

// Monitor knows what the PCI bus tells: this build has no NVML.
type Monitor struct {
	cfg Config
}

// New returns a Monitor; it reads nothing yet. It returns ErrConfig.
func New(cfg Config, _ *slog.Logger) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Monitor{cfg: cfg}, nil
}

// Read looks at the PCI bus alone. It returns ErrNoNVML.
func (m *Monitor) Read(context.Context) (Inventory, error) { return m.Inventory(), ErrNoNVML }

// Inventory says what is on the PCI bus.
func (m *Monitor) Inventory() Inventory {
	var inv Inventory
	inv.OnBus, inv.Others = onBus(m.cfg.Sysfs)
	if inv.OnBus > 0 {
		inv.Problems = append(inv.Problems, Problem{
			What: fmt.Sprintf("%d NVIDIA GPUs are on the PCI bus, but this gridbeam cannot read them", inv.OnBus),
			Fix:  "build with CGO_ENABLED=1 on Linux",
		})
	}
	return inv
}

// Prove does nothing: no device is known by its UUID.
func (m *Monitor) Prove(context.Context) {}

// Run waits for ctx's end: there is nothing to follow.
func (m *Monitor) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Clear returns ErrNoDevice.
func (m *Monitor) Clear(uuid string) error { return fmt.Errorf("%w: %q", ErrNoDevice, uuid) }

// Close does nothing.
func (m *Monitor) Close() {}
