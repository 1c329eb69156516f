package protocol

import (
	"fmt"
	"maps"
	"slices"
)

// Reason is the one reason of an attempt's end: an append-only enum whose numbers are never reused
// (execution.md 7). A number that this version does not know counts as ReasonBridgeError and is shown as given.
type Reason uint32

// The reasons. 10-23 are the job's first guess of blame, 40-52 the node's, 60-63 the network's, 80-90 nobody's.
const (
	ReasonNone Reason = 0
	ReasonDone Reason = 1

	ReasonExitNonzero     Reason = 10
	ReasonSignal          Reason = 11
	ReasonOOM             Reason = 12
	ReasonTimeout         Reason = 13
	ReasonDiskFull        Reason = 14
	ReasonOutputTooLarge  Reason = 15
	ReasonBadModule       Reason = 16
	ReasonBadImage        Reason = 17
	ReasonBadCommand      Reason = 18
	ReasonVolumeDenied    Reason = 19
	ReasonSyscallDenied   Reason = 20
	ReasonGPUApplication  Reason = 21
	ReasonOutputInvalid   Reason = 22
	ReasonBudgetExhausted Reason = 23

	ReasonBackendFailed      Reason = 40
	ReasonStartFailed        Reason = 41
	ReasonNodeDiskFull       Reason = 42
	ReasonGPUFaulted         Reason = 43
	ReasonGPUForeign         Reason = 44
	ReasonHeartbeatLost      Reason = 45
	ReasonRestartLost        Reason = 46
	ReasonHostPressure       Reason = 47
	ReasonResultWrong        Reason = 48
	ReasonHardwareBelowClaim Reason = 49
	ReasonStuck              Reason = 50
	ReasonOperatorKilled     Reason = 51
	ReasonPublishFailed      Reason = 52

	ReasonUnreachable      Reason = 60
	ReasonDataUnavailable  Reason = 61
	ReasonDataSlow         Reason = 62
	ReasonClusterPartition Reason = 63

	ReasonCancelled     Reason = 80
	ReasonPreempted     Reason = 81
	ReasonDrained       Reason = 82
	ReasonSuperseded    Reason = 83
	ReasonFenced        Reason = 84
	ReasonLeaseExpired  Reason = 85
	ReasonBridgeError   Reason = 86
	ReasonRevoked       Reason = 87
	ReasonDeadline      Reason = 88
	ReasonRefusedPolicy Reason = 89
	ReasonBusy          Reason = 90
)

// Blame is who caused an end, as far as its Reason tells: the first guess that trust.md 9 corrects.
type Blame uint8

// Who may be blamed.
const (
	BlameNobody Blame = iota
	BlameJob
	BlameNode
	BlameNetwork
)

// String returns the blame in one word.
func (b Blame) String() string { return [...]string{"nobody", "job", "node", "network"}[b&3] }

// Retry is where a chunk that ended so may run again.
type Retry uint8

// What may follow an end.
const (
	RetryNever     Retry = iota // RetryNever: it would end the same way.
	RetryElsewhere              // RetryElsewhere: on another node, at once.
	RetryLater                  // RetryLater: the same node is good, not now.
)

// String returns the retry in one word.
func (r Retry) String() string { return [...]string{"never", "elsewhere", "later", "never"}[r&3] }

// Status is how an attempt that ended so is shown (scheduling.md 4).
type Status string

// States of an ended attempt.
const (
	StatusDone      Status = "done"
	StatusFailed    Status = "failed"
	StatusLost      Status = "lost"
	StatusCancelled Status = "cancelled"
)

type reasonFacts struct {
	name  string
	text  string
	retry Retry
}

// reasons is the only table of the enum; Blame follows from the number's decade.
var reasons = map[Reason]reasonFacts{
	ReasonDone:               {"done", "done", RetryNever},
	ReasonExitNonzero:        {"exit_nonzero", "the program ended with an exit code other than 0", RetryElsewhere},
	ReasonSignal:             {"signal", "the program was ended by a signal or trap", RetryElsewhere},
	ReasonOOM:                {"oom", "the program needed more memory than its limit; raise resources.memory", RetryNever},
	ReasonTimeout:            {"timeout", "the program ran longer than policy.timeout", RetryNever},
	ReasonDiskFull:           {"disk_full", "the program filled its disk limit; raise resources.disk", RetryNever},
	ReasonOutputTooLarge:     {"output_too_large", "the program wrote more output than its limit", RetryNever},
	ReasonBadModule:          {"bad_module", "the module cannot be run", RetryNever},
	ReasonBadImage:           {"bad_image", "the image cannot be run", RetryNever},
	ReasonBadCommand:         {"bad_command", "the command cannot be run", RetryNever},
	ReasonVolumeDenied:       {"volume_denied", "the job may not use one of its volumes", RetryNever},
	ReasonSyscallDenied:      {"syscall_denied", "the program made a system call that sandboxes do not allow", RetryNever},
	ReasonGPUApplication:     {"gpu_application", "the program crashed its GPU context", RetryElsewhere},
	ReasonOutputInvalid:      {"output_invalid", "the program's output cannot be kept", RetryNever},
	ReasonBudgetExhausted:    {"budget_exhausted", "the job reached policy.max_spend or its user's credit", RetryNever},
	ReasonBackendFailed:      {"backend_failed", "the node's executor failed", RetryElsewhere},
	ReasonStartFailed:        {"start_failed", "the node could not start the program", RetryElsewhere},
	ReasonNodeDiskFull:       {"node_disk_full", "the node's disk is full", RetryElsewhere},
	ReasonGPUFaulted:         {"gpu_faulted", "the node's GPU failed", RetryElsewhere},
	ReasonGPUForeign:         {"gpu_foreign", "somebody else computes on the node's GPU", RetryElsewhere},
	ReasonHeartbeatLost:      {"heartbeat_lost", "the node was silent past the lease", RetryElsewhere},
	ReasonRestartLost:        {"restart_lost", "the node restarted and lost the run", RetryElsewhere},
	ReasonHostPressure:       {"host_pressure", "the node ran out of memory for itself", RetryElsewhere},
	ReasonResultWrong:        {"result_wrong", "the result differs from what other nodes agree on", RetryElsewhere},
	ReasonHardwareBelowClaim: {"hardware_below_claim", "the node has less than it claims", RetryElsewhere},
	ReasonStuck:              {"stuck", "the node could not end the program", RetryElsewhere},
	ReasonOperatorKilled:     {"operator_killed", "the node's operator ended it without notice", RetryElsewhere},
	ReasonPublishFailed:      {"publish_failed", "the node could not hand over the result", RetryElsewhere},
	ReasonUnreachable:        {"unreachable", "the node cannot be reached", RetryElsewhere},
	ReasonDataUnavailable:    {"data_unavailable", "no holder delivered the job's data", RetryElsewhere},
	ReasonDataSlow:           {"data_slow", "the job's data arrived too slowly", RetryElsewhere},
	ReasonClusterPartition:   {"cluster_partition", "the members of the cluster cannot reach one another", RetryElsewhere},
	ReasonCancelled:          {"cancelled", "cancelled by its owner", RetryNever},
	ReasonPreempted:          {"preempted", "made room for more important work", RetryElsewhere},
	ReasonDrained:            {"drained", "the node was drained", RetryElsewhere},
	ReasonSuperseded:         {"superseded", "another copy was first", RetryNever},
	ReasonFenced:             {"fenced", "the lease was given to another node", RetryNever},
	ReasonLeaseExpired:       {"lease_expired", "the lease was not renewed", RetryElsewhere},
	ReasonBridgeError:        {"bridge_error", "the bridge failed", RetryLater},
	ReasonRevoked:            {"revoked", "the grant was revoked", RetryNever},
	ReasonDeadline:           {"deadline", "the job's deadline passed", RetryNever},
	ReasonRefusedPolicy:      {"refused_policy", "the node's policy does not allow it", RetryElsewhere},
	ReasonBusy:               {"busy", "the node is busy", RetryLater},
}

// Known returns the reason itself, or ReasonBridgeError for a number that this version does not know.
func (r Reason) Known() Reason {
	if _, ok := reasons[r]; ok {
		return r
	}
	return ReasonBridgeError
}

// Blame is the first guess of who caused the end.
func (r Reason) Blame() Blame {
	switch r = r.Known(); {
	case r >= 10 && r < 40:
		return BlameJob
	case r >= 40 && r < 60:
		return BlameNode
	case r >= 60 && r < 80:
		return BlameNetwork
	}
	return BlameNobody
}

// Retry is where the chunk may run again.
func (r Reason) Retry() Retry { return reasons[r.Known()].retry }

// Status is how the attempt is shown.
func (r Reason) Status() Status {
	switch r = r.Known(); r {
	case ReasonDone:
		return StatusDone
	case ReasonHeartbeatLost, ReasonRestartLost, ReasonLeaseExpired:
		return StatusLost
	case ReasonCancelled, ReasonSuperseded, ReasonFenced, ReasonRevoked, ReasonPreempted, ReasonDrained, ReasonRefusedPolicy, ReasonBusy:
		return StatusCancelled
	}
	return StatusFailed
}

// Text is the reason for people, in English.
func (r Reason) Text() string {
	if f, ok := reasons[r]; ok {
		return f.text
	}
	return fmt.Sprintf("ended for reason %d, which this version does not know", uint32(r))
}

// String is the reason's name, such as exit_nonzero; an unknown one is shown as given.
func (r Reason) String() string {
	switch f, ok := reasons[r]; {
	case ok:
		return f.name
	case r == ReasonNone:
		return "none"
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Reasons returns every known reason, ascending.
func Reasons() []Reason { return slices.Sorted(maps.Keys(reasons)) }
