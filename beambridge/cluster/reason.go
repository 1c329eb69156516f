package cluster

import "github.com/gridbeam/gridbeam/protocol"

// Reason is why an attempt, chunk or job ended; the enum and what follows from it is protocol's (execution.md 7).
type Reason = protocol.Reason

// blamesJob says that the job itself is the first guess of who caused an end.
func blamesJob(r Reason) bool { return r.Blame() == protocol.BlameJob }

// retryNever says that another node would end the same way.
func retryNever(r Reason) bool { return blamesJob(r) && r.Retry() == protocol.RetryNever }

// fatal says that every other chunk of the job would end the same way too: what is wrong is the module, the
// image, the command, a volume or the budget, not the input.
func fatal(r Reason) bool {
	switch r {
	case protocol.ReasonBadModule, protocol.ReasonBadImage, protocol.ReasonBadCommand, protocol.ReasonVolumeDenied, protocol.ReasonBudgetExhausted:
		return true
	}
	return false
}

// notBegun says that the node declares it never started: re-leasing is no re-run.
func notBegun(r Reason) bool { return r == protocol.ReasonRefusedPolicy || r == protocol.ReasonBusy }
