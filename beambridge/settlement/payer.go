package settlement

import "github.com/gridbeam/gridbeam/protocol"

// Payer is who pays for an attempt.
type Payer uint8

// Who may pay.
const (
	PayerNobody Payer = iota // PayerNobody: neither does the user pay nor the node earn.
	PayerUser                // PayerUser: the user pays, the node earns.
	PayerBridge              // PayerBridge: the node earns for witnessed time, expense/speculation pays.
)

// String returns the payer in one word.
func (p Payer) String() string { return [...]string{"nobody", "user", "bridge", "nobody"}[p&3] }

// Ending is what there is to know of an ended attempt for its bill.
type Ending struct {
	// Reason is how it ended.
	Reason protocol.Reason
	// Blame is the bridge's verdict on who caused it; Reason.Blame is the first guess.
	Blame protocol.Blame
	// Accounted says that its result counts.
	Accounted bool
	// Asked says that it was a copy or check that the user asked for (redundancy, spot_check).
	Asked bool
	// Audit says that the bridge added it for itself: a canary, a newcomer's check, a straggler's copy.
	Audit bool
}

// PaidBy is the table of settlement.md 2: who pays for an attempt that ended so.
func PaidBy(e Ending) Payer {
	switch {
	case e.Reason == protocol.ReasonDone && (e.Accounted || e.Asked):
		return PayerUser
	case e.Blame == protocol.BlameNode:
		return PayerNobody // it failed, or its silence lost the chunk
	case e.Audit, e.Reason == protocol.ReasonDone: // a losing copy
		return PayerBridge
	case e.Reason == protocol.ReasonCancelled, e.Reason == protocol.ReasonDeadline, e.Reason == protocol.ReasonBudgetExhausted:
		return PayerUser // its owner's decision
	case e.Reason == protocol.ReasonRefusedPolicy, e.Reason == protocol.ReasonBusy, e.Reason == protocol.ReasonRevoked, e.Reason == protocol.ReasonNone:
		return PayerNobody // it never began, or nobody may pay for it
	case e.Blame == protocol.BlameJob:
		return PayerUser
	}
	return PayerBridge // the network, a drain or preemption, a losing copy, the bridge itself
}
