package cluster

// Reason is a number of the append-only enum of execution.md 7.
type Reason uint32

const (
	reasonDone        Reason = 1
	reasonCancelled   Reason = 80
	reasonSuperseded  Reason = 83
	reasonFenced      Reason = 84
	reasonRefused     Reason = 89
	reasonBusy        Reason = 90
	reasonBridge      Reason = 86
	reasonSilent      Reason = 45
	reasonRestartLost Reason = 46
	reasonWrong       Reason = 48

	reasonLeaseExpired Reason = 85
)

func known(r Reason) Reason {
	switch {
	case r == 1, r >= 10 && r <= 23, r >= 40 && r <= 52, r >= 60 && r <= 63, r >= 80 && r <= 90:
		return r
	}
	return reasonBridge
}

// blamesJob says that the job itself is the first guess of who caused an end.
func blamesJob(r Reason) bool { r = known(r); return r >= 10 && r <= 23 }

// retryNever says that another node would end the same way.
func retryNever(r Reason) bool { return blamesJob(r) && r != 10 && r != 11 && r != 21 }

// fatal says that every other chunk of the job would end the same way too: what is wrong is the module, the
// image, the command, a volume or the budget, not the input.
func fatal(r Reason) bool { return r == 16 || r == 17 || r == 18 || r == 19 || r == 23 }

// notBegun says that the node declares it never started: re-leasing is no re-run.
func notBegun(r Reason) bool { return r == reasonRefused || r == reasonBusy }
