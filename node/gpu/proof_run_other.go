//go:build !linux

package gpu

import (
	"context"
	"time"
)

// Prover has GPUs compute; on this system it cannot.
type Prover struct{}

// NewProver returns a Prover.
func NewProver([]string, string) *Prover { return &Prover{} }

// Prove says that no GPU can be tested here.
func (*Prover) Prove(context.Context, string) Proof {
	return Proof{Verdict: Unable, Why: "GPUs are tested on Linux alone", At: time.Now()}
}
