//go:build !linux || !cgo

package gpu

import (
	"context"
	"fmt"
)

// Read looks at the PCI bus alone: this build has no NVML. It returns ErrNoNVML.
func Read(context.Context) (Inventory, error) {
	inv := Inventory{}
	if n := onBus("/sys"); n > 0 {
		inv.Problems = append(inv.Problems, Problem{
			What: fmt.Sprintf("%d NVIDIA GPUs are on the PCI bus, but this gridbeam cannot read them", n),
			Fix:  "build with CGO_ENABLED=1 on Linux",
		})
	}
	return inv, ErrNoNVML
}
