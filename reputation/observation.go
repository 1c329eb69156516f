package reputation

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of observations.
var (
	// ErrObservation means an observation that nobody can have made; what wraps it names the field.
	ErrObservation = errors.New("reputation: bad observation")
	// ErrTooLate means an observation older than Config.AmendWithin.
	ErrTooLate = errors.New("reputation: too late to amend")
)

// Check is what kind of test an observation of correctness comes from.
type Check uint8

// Kinds of check (trust.md 8, 9).
const (
	CheckNone     Check = iota // CheckNone: no test.
	CheckExact                 // CheckExact: outputs compared byte by byte with what is known or agreed: audit, canary.
	CheckGraded                // CheckGraded: tolerance, recheck or hardware challenge: the gate judges.
	CheckDisputed              // CheckDisputed: copies differ and nobody could say which is wrong; k becomes 0, no more.
)

// Observation is one thing that the rater saw of a node.
type Observation struct {
	// Node is judged.
	Node protocol.PeerID
	// Group is its operator, or its subnet where the operator is unknown; empty leaves what is known.
	Group string
	// Criterion is what it speaks of.
	Criterion protocol.Criterion
	// Good and Bad are evidence, not negative.
	Good, Bad float64
	// At is when it was seen.
	At time.Time
	// Reason is how the attempt behind it ended, if there is one.
	Reason protocol.Reason
	// Blame is who caused that, in the rater's final opinion.
	Blame protocol.Blame
	// Check is what test it comes from.
	Check Check
	// Ref names what proves it: a lease, a receipt.
	Ref string
}

func (o *Observation) validate() error {
	switch {
	case o.Node == "":
		return fmt.Errorf("%w: Node is missing", ErrObservation)
	case index(o.Criterion) < 0:
		return fmt.Errorf("%w: Criterion %.40q", ErrObservation, o.Criterion)
	case !(o.Good >= 0 && o.Bad >= 0) || math.IsInf(o.Good+o.Bad, 0):
		return fmt.Errorf("%w: Good %v, Bad %v", ErrObservation, o.Good, o.Bad)
	case o.At.IsZero():
		return fmt.Errorf("%w: At is missing", ErrObservation)
	case o.Check > CheckDisputed || o.Check != CheckNone && o.Criterion != protocol.CriterionCorrectness:
		return fmt.Errorf("%w: Check %d of %s", ErrObservation, o.Check, o.Criterion)
	}
	return nil
}

// criteria fixes the order in which criteria are kept and multiplied.
var criteria = [5]protocol.Criterion{
	protocol.CriterionCompletion, protocol.CriterionCorrectness, protocol.CriterionUptime, protocol.CriterionPerformance, protocol.CriterionResponsiveness,
}

// halfLife is how fast evidence fades (trust.md 9).
var halfLife = [5]time.Duration{14 * day, 60 * day, 14 * day, 14 * day, 14 * day}

const day = 24 * time.Hour

func index(c protocol.Criterion) int {
	for i, x := range criteria {
		if x == c {
			return i
		}
	}
	return -1
}

// Attempt is what the rater knows of an ended attempt.
type Attempt struct {
	// Node ran it.
	Node protocol.PeerID
	// Group is the node's operator.
	Group string
	// Reason is how it ended.
	Reason protocol.Reason
	// Blame is who caused it: Reason.Blame, unless the rater knows better (Blamed).
	Blame protocol.Blame
	// GPUSeconds is settled time of GPU slots; 0 where no GPU worked.
	GPUSeconds float64
	// CPUSeconds is processor time.
	CPUSeconds float64
	// At is when it ended.
	At time.Time
	// Ref names its lease or receipt.
	Ref string
}

// FromOutcome is what an ended attempt says about completion: done is good, the node's fault is bad, and the
// rest says nothing (false).
func FromOutcome(a Attempt) (Observation, bool) {
	o := Observation{Node: a.Node, Group: a.Group, Criterion: protocol.CriterionCompletion, At: a.At, Reason: a.Reason, Blame: a.Blame, Ref: a.Ref}
	w := Weight(WorkSeconds(a.GPUSeconds, a.CPUSeconds))
	switch {
	case a.Reason == protocol.ReasonDone:
		o.Good, o.Blame = w, protocol.BlameNobody
	case a.Blame == protocol.BlameNode:
		o.Bad = w
	default:
		return Observation{}, false
	}
	return o, true
}

// FromCheck is what a check says about correctness, with the weight of the work that was checked.
func FromCheck(a Attempt, kind Check, passed bool) Observation {
	o := Observation{Node: a.Node, Group: a.Group, Criterion: protocol.CriterionCorrectness, At: a.At, Check: kind, Ref: a.Ref}
	w := Weight(WorkSeconds(a.GPUSeconds, a.CPUSeconds))
	switch {
	case passed:
		o.Good, o.Reason = w, protocol.ReasonDone
	case kind == CheckDisputed:
		o.Reason = protocol.ReasonResultWrong // nobody knows whose fault it is: no evidence
	default:
		o.Bad, o.Reason, o.Blame = w, protocol.ReasonResultWrong, protocol.BlameNode
	}
	return o
}

// FromUptime is what a scheduled hour says, of which heard sixths (0..6) the node was heard of. Hours that it
// announced 10 minutes ahead to be away are not to be observed.
func FromUptime(node protocol.PeerID, heard int, at time.Time) Observation {
	heard = max(0, min(6, heard))
	return Observation{Node: node, Criterion: protocol.CriterionUptime, Good: float64(heard) / 6, Bad: float64(6-heard) / 6, At: at}
}

// FromPerformance is what a run of own says where the node's class takes median, with the weight of the run;
// false while the class is not known well enough: 5 samples of 3 groups.
func FromPerformance(a Attempt, own, median time.Duration, samples, groups int) (Observation, bool) {
	if samples < 5 || groups < 3 || own <= 0 || median <= 0 {
		return Observation{}, false
	}
	x, w := Speed(median, own), Weight(WorkSeconds(a.GPUSeconds, a.CPUSeconds))
	return Observation{Node: a.Node, Group: a.Group, Criterion: protocol.CriterionPerformance, Good: w * x, Bad: w * (1 - x), At: a.At, Ref: a.Ref}, true
}

// FromAnswer is what an answer to an offer, a stop or a renewal says, that came after t; silence is a t of 2 s
// or more. A "no" says nothing and is not to be observed. The Book takes 20 an hour.
func FromAnswer(node protocol.PeerID, t time.Duration, at time.Time) Observation {
	x := Answer(t)
	return Observation{Node: node, Criterion: protocol.CriterionResponsiveness, Good: x, Bad: 1 - x, At: at}
}

// Ended is what there is to know for the blame of an attempt that did not end well (trust.md 9).
type Ended struct {
	// Reason is what the node or the bridge said.
	Reason protocol.Reason
	// ElsewhereDone says that another group completed the chunk meanwhile.
	ElsewhereDone bool
	// AlikeGroups counts groups on which the chunk ended in the same way, this one included.
	AlikeGroups int
	// AreaSilent says that at least half of the node's /16 or region went silent with it.
	AreaSilent bool
	// CameBack says that it returned with its lease.
	CameBack bool
	// NetworkBlames counts blames on the network in the last 24 h that its neighbours do not share.
	NetworkBlames int
	// CutOff says that more than half of all nodes went silent: the rater itself was away.
	CutOff bool
}

// Blamed corrects the first guess of Reason.Blame by what happened around it.
func Blamed(e Ended) protocol.Blame {
	guess := e.Reason.Blame()
	lost := e.Reason.Status() == protocol.StatusLost
	switch {
	case e.CutOff && (lost || guess == protocol.BlameNetwork):
		return protocol.BlameNobody
	case guess == protocol.BlameJob && e.AlikeGroups >= 3:
		return protocol.BlameJob
	case guess == protocol.BlameJob && e.ElsewhereDone:
		return protocol.BlameNode // the first node, since another could
	case guess == protocol.BlameNode && lost && e.CameBack:
		return protocol.BlameNobody
	case guess == protocol.BlameNode && lost && e.AreaSilent:
		return protocol.BlameNetwork
	case guess == protocol.BlameNetwork && e.NetworkBlames > 3:
		return protocol.BlameNode
	}
	return guess
}
