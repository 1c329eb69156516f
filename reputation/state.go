package reputation

import (
	"errors"
	"fmt"
)

// ErrBadTransition means that an event cannot happen in a state.
var ErrBadTransition = errors.New("reputation: no such transition")

// State is what a node may be used for (trust.md 9).
type State string

// The states.
const (
	StateProbation    State = "probation"    // StateProbation: a newcomer: all its work is replicated.
	StateVetted       State = "vetted"       // StateVetted: enough checks passed over enough time.
	StateSuspended    State = "suspended"    // StateSuspended: failed; running chunks are replicated, no new ones.
	StateContained    State = "contained"    // StateContained: gets audit chunks only, until a test decides.
	StateDisqualified State = "disqualified" // StateDisqualified: out for good; a pardon is an act of a person.
)

// Barred says whether a node in the state gets no work.
func (s State) Barred() bool {
	return s == StateSuspended || s == StateContained || s == StateDisqualified
}

// event is what happens to a node's state.
type event string

const (
	eventVet        event = "vet"        // the last condition of vetting is met
	eventSuspend    event = "suspend"    // the gate falls, or a first conviction
	eventContain    event = "contain"    // its last running chunk is over
	eventRelease    event = "release"    // the test or a row of canaries cleared it
	eventDisqualify event = "disqualify" // the test, a second conviction, or proof
	eventPardon     event = "pardon"     // a person's decision
)

type stateKey struct {
	state State
	event event
}

// stateTable is the only place that says how a state moves.
var stateTable = map[stateKey]State{
	{StateProbation, eventVet}:           StateVetted,
	{StateProbation, eventSuspend}:       StateSuspended,
	{StateProbation, eventDisqualify}:    StateDisqualified,
	{StateVetted, eventSuspend}:          StateSuspended,
	{StateVetted, eventDisqualify}:       StateDisqualified,
	{StateSuspended, eventContain}:       StateContained,
	{StateSuspended, eventRelease}:       StateProbation,
	{StateSuspended, eventDisqualify}:    StateDisqualified,
	{StateSuspended, eventPardon}:        StateProbation,
	{StateContained, eventRelease}:       StateProbation,
	{StateContained, eventDisqualify}:    StateDisqualified,
	{StateContained, eventPardon}:        StateProbation,
	{StateDisqualified, eventPardon}:     StateProbation,
	{StateSuspended, eventSuspend}:       StateSuspended, // it fails on while barred
	{StateContained, eventSuspend}:       StateContained,
	{StateContained, eventContain}:       StateContained,
	{StateDisqualified, eventSuspend}:    StateDisqualified,
	{StateDisqualified, eventContain}:    StateDisqualified,
	{StateDisqualified, eventRelease}:    StateDisqualified,
	{StateDisqualified, eventVet}:        StateDisqualified,
	{StateVetted, eventVet}:              StateVetted,
	{StateDisqualified, eventDisqualify}: StateDisqualified,
}

func (s State) next(e event) (State, error) {
	if n, ok := stateTable[stateKey{s, e}]; ok {
		return n, nil
	}
	return s, fmt.Errorf("%w: %s cannot take %s", ErrBadTransition, s, e)
}

// known says whether a text is a state.
func (s State) known() bool {
	switch s {
	case StateProbation, StateVetted, StateSuspended, StateContained, StateDisqualified:
		return true
	}
	return false
}
