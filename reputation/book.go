package reputation

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of a Book.
var (
	// ErrConfig means a configuration that cannot work; what wraps it names the field.
	ErrConfig = errors.New("reputation: bad configuration")
	// ErrSnapshot means bytes that are no node's state.
	ErrSnapshot = errors.New("reputation: malformed snapshot")
)

// Config holds the rules of vetting and amending.
type Config struct {
	// VetChecks is how many checks a newcomer has to pass; default 25.
	VetChecks int
	// VetAfter is how long it has to be known; default 72 h.
	VetAfter time.Duration
	// VetCorrect is the least Lcorr for it; default 0.85.
	VetCorrect float64
	// SpotCheck is q, the least probability of an audit; default 0.05.
	SpotCheck float64
	// ReleaseChecks is how many exact checks in a row release a node after a first conviction; default 20.
	ReleaseChecks int
	// SecondWithin is how soon a second conviction disqualifies; default 60 days.
	SecondWithin time.Duration
	// AmendWithin is how long an observation can be taken back; default 24 h.
	AmendWithin time.Duration
	// AnswersPerHour bounds observations of responsiveness; default 20.
	AnswersPerHour int
	// Incidents is how many bad observations are kept to be shown; default 20.
	Incidents int
}

// DefaultConfig returns the rules of trust.md 9.
func DefaultConfig() Config {
	return Config{
		VetChecks: 25, VetAfter: 72 * time.Hour, VetCorrect: .85, SpotCheck: .05, ReleaseChecks: 20, SecondWithin: 60 * day, AmendWithin: day,
		AnswersPerHour: 20, Incidents: 20,
	}
}

// Validate returns ErrConfig naming the field.
func (c *Config) Validate() error {
	switch {
	case c.VetChecks < 1 || c.VetAfter < 0:
		return fmt.Errorf("%w: VetChecks is %d after VetAfter %s", ErrConfig, c.VetChecks, c.VetAfter)
	case !(c.VetCorrect >= 0 && c.VetCorrect < 1):
		return fmt.Errorf("%w: VetCorrect is %v, want 0..1", ErrConfig, c.VetCorrect)
	case !(c.SpotCheck >= 0 && c.SpotCheck <= 1):
		return fmt.Errorf("%w: SpotCheck is %v, want 0..1", ErrConfig, c.SpotCheck)
	case c.ReleaseChecks < 1 || c.SecondWithin < 0:
		return fmt.Errorf("%w: ReleaseChecks is %d, SecondWithin %s", ErrConfig, c.ReleaseChecks, c.SecondWithin)
	case c.AmendWithin < 0 || c.AnswersPerHour < 1 || c.Incidents < 0 || c.Incidents > 1000:
		return fmt.Errorf("%w: AmendWithin is %s, AnswersPerHour %d, Incidents %d", ErrConfig, c.AmendWithin, c.AnswersPerHour, c.Incidents)
	}
	return nil
}

// Transition is what an event did to a node's state.
type Transition struct {
	// From and To are equal when nothing changed.
	From, To State
}

// Changed says whether the state is another one.
func (t Transition) Changed() bool { return t.From != t.To }

// Book holds what one rater thinks of its nodes. It is safe for concurrent use.
type Book struct {
	cfg Config

	mu    sync.RWMutex // guards everything below
	nodes map[protocol.PeerID]*node
}

// evidence is good and bad weight as it was worth at At.
type evidence struct {
	Good float64   `json:"good"`
	Bad  float64   `json:"bad"`
	At   time.Time `json:"at"`
}

// at is the evidence as it is worth at a time.
func (e evidence) at(now time.Time, half time.Duration) (r, s float64) {
	d := Decay(now.Sub(e.At), half)
	return e.Good * d, e.Bad * d
}

// add adds weight seen at a time; the order of observations does not matter.
func (e *evidence) add(r, s float64, at time.Time, half time.Duration) {
	if at.After(e.At) {
		if !e.At.IsZero() {
			e.Good, e.Bad = e.at(at, half)
		}
		e.At = at
	}
	d := Decay(e.At.Sub(at), half)
	e.Good, e.Bad = max(0, e.Good+r*d), max(0, e.Bad+s*d)
}

// Incident is a bad observation that is kept to be shown.
type Incident struct {
	// At is when it was seen.
	At time.Time `json:"at"`
	// Criterion is what it counts against.
	Criterion protocol.Criterion `json:"criterion"`
	// Bad is its weight at At.
	Bad float64 `json:"bad"`
	// Reason is how the attempt ended.
	Reason protocol.Reason `json:"reason"`
	// Blame is who is held to have caused it.
	Blame protocol.Blame `json:"blame"`
	// Ref names the lease or receipt.
	Ref string `json:"ref,omitempty"`
}

// node is everything that is kept of one node; its JSON is the store's.
type node struct {
	Format    int                     `json:"format"`
	Group     string                  `json:"group,omitempty"`
	Anchor    bool                    `json:"anchor,omitempty"`
	First     time.Time               `json:"first"`
	State     State                   `json:"state"`
	Since     time.Time               `json:"since"`
	Evidence  [len(criteria)]evidence `json:"evidence"`
	Checks    int                     `json:"checks"`
	InARow    int                     `json:"in_a_row"`
	Gate      Gate                    `json:"gate"`
	Test      float64                 `json:"test"`      // log likelihood ratio while barred by the gate
	Convicted time.Time               `json:"convicted"` // last failed exact check
	Exact     bool                    `json:"exact"`     // barred by an exact conviction, not by the gate
	Hour      int64                   `json:"hour"`      // Unix hour of Answers
	Answers   int                     `json:"answers"`
	Incidents []Incident              `json:"incidents,omitempty"`
}

// NewBook returns an empty book. It returns ErrConfig.
func NewBook(cfg Config) (*Book, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Book{cfg: cfg, nodes: map[protocol.PeerID]*node{}}, nil
}

func newcomer(at time.Time) *node {
	return &node{Format: 1, First: at, Since: at, State: StateProbation, Gate: NewGate()}
}

func (b *Book) node(id protocol.PeerID, at time.Time) *node {
	n := b.nodes[id]
	if n == nil {
		n = newcomer(at)
		b.nodes[id] = n
	}
	return n
}

// Meet notes that a node is there: its time as a newcomer begins at the first Meet or Observe. An anchor is
// named by the bridge's operator: it counts as vetted and is not audited, and it earns its scores like others.
func (b *Book) Meet(id protocol.PeerID, group string, anchor bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.node(id, now)
	n.Anchor = anchor
	if group != "" {
		n.Group = group
	}
}

// Observe adds an observation and moves the node's state. It returns ErrObservation and then changes nothing.
// Answers beyond Config.AnswersPerHour count nothing.
func (b *Book) Observe(o Observation) (Transition, error) {
	if err := o.validate(); err != nil {
		return Transition{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.node(o.Node, o.At)
	if o.Group != "" {
		n.Group = o.Group
	}
	if o.Criterion == protocol.CriterionResponsiveness && !n.answer(o.At, b.cfg.AnswersPerHour) {
		return Transition{n.State, n.State}, nil
	}
	i := index(o.Criterion)
	n.Evidence[i].add(o.Good, o.Bad, o.At, halfLife[i])
	if o.Bad > 0 && (o.Criterion == protocol.CriterionCompletion || o.Criterion == protocol.CriterionCorrectness) {
		n.Incidents = append(n.Incidents, Incident{At: o.At, Criterion: o.Criterion, Bad: o.Bad, Reason: o.Reason, Blame: o.Blame, Ref: o.Ref})
		n.Incidents = slices.Delete(n.Incidents, 0, max(0, len(n.Incidents)-b.cfg.Incidents))
	}
	t := Transition{From: n.State}
	if o.Check != CheckNone {
		n.check(&o, &b.cfg)
	}
	n.advance(o.At, &b.cfg)
	t.To = n.State
	if t.Changed() && t.To == StateDisqualified {
		b.spread(n.Group, o.At)
	}
	return t, nil
}

// answer counts an answer against the hour's bound.
func (n *node) answer(at time.Time, most int) bool {
	if h := at.Unix() / 3600; h != n.Hour {
		n.Hour, n.Answers = h, 0
	}
	if n.Answers >= most {
		return false
	}
	n.Answers++
	return true
}

// check counts a check and lets it move the state.
func (n *node) check(o *Observation, cfg *Config) {
	if o.Check == CheckDisputed {
		n.InARow = 0
		return
	}
	failed := o.Bad > 0
	if failed {
		n.InARow = 0
	} else {
		n.Checks++
		n.InARow++
	}
	if o.Check == CheckGraded {
		if failed {
			n.Gate = n.Gate.After(0, 1)
		} else {
			n.Gate = n.Gate.After(1, 0)
		}
	}
	switch {
	case o.Check == CheckExact && failed:
		again := !n.Convicted.IsZero() && o.At.Sub(n.Convicted) <= cfg.SecondWithin
		n.Convicted, n.Exact = o.At, true
		if again {
			n.move(eventDisqualify, o.At)
		} else {
			n.move(eventSuspend, o.At)
		}
	case n.State.Barred() && n.Exact:
		if n.InARow >= cfg.ReleaseChecks {
			n.move(eventRelease, o.At)
		}
	case n.State.Barred():
		n.test(failed, o.At)
	case failed && n.Gate.Suspends():
		n.move(eventSuspend, o.At)
	}
}

// test is one step of the sequential test of a node that the gate has barred.
func (n *node) test(failed bool, at time.Time) {
	if failed {
		n.Test += testFailure
	} else {
		n.Test += testPass
	}
	switch {
	case n.Test >= testOut:
		n.move(eventDisqualify, at)
	case n.Test <= testBack:
		n.move(eventRelease, at)
	}
}

// move applies an event; one that the table does not have changes nothing.
func (n *node) move(e event, at time.Time) {
	s, err := n.State.next(e)
	if err != nil || s == n.State {
		return
	}
	if s == StateProbation { // gate and test begin anew, counters are kept
		n.Gate, n.Test, n.Exact = NewGate(), 0, false
	}
	if s == StateSuspended {
		n.Test = 0
	}
	n.State, n.Since = s, at
}

// advance vets a newcomer whose conditions are met.
func (n *node) advance(now time.Time, cfg *Config) {
	if n.State == StateProbation && n.missing(now, cfg) == (missing{}) {
		n.move(eventVet, now)
	}
}

// missing is what a newcomer lacks to be vetted; zero is nothing.
type missing struct {
	checks  int
	time    time.Duration
	correct bool
}

func (n *node) missing(now time.Time, cfg *Config) missing {
	r, s := n.Evidence[1].at(now, halfLife[1])
	return missing{
		checks:  max(0, cfg.VetChecks-n.Checks),
		time:    max(0, cfg.VetAfter-now.Sub(n.First)),
		correct: Lower(r, s) < cfg.VetCorrect,
	}
}

// Amend takes back an observation that turned out to be another's fault, as if it had never been made: its
// decayed weight is subtracted exactly, its incident goes, and its check is not counted. States and the gate
// stay as they are; Pardon is for those. It returns ErrObservation, or ErrTooLate after Config.AmendWithin.
func (b *Book) Amend(o Observation, now time.Time) error {
	if err := o.validate(); err != nil {
		return err
	}
	if now.Sub(o.At) > b.cfg.AmendWithin {
		return fmt.Errorf("%w: it is of %s", ErrTooLate, o.At.UTC().Format(time.RFC3339))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.nodes[o.Node]
	if n == nil {
		return fmt.Errorf("%w: Node %s is not known", ErrObservation, o.Node)
	}
	i := index(o.Criterion)
	n.Evidence[i].add(-o.Good, -o.Bad, o.At, halfLife[i])
	if o.Check == CheckExact || o.Check == CheckGraded {
		if o.Bad == 0 {
			n.Checks, n.InARow = max(0, n.Checks-1), max(0, n.InARow-1)
		}
	}
	if k := slices.IndexFunc(n.Incidents, func(x Incident) bool {
		return x.At.Equal(o.At) && x.Criterion == o.Criterion && x.Bad == o.Bad && x.Ref == o.Ref
	}); k >= 0 {
		n.Incidents = slices.Delete(n.Incidents, k, k+1)
	}
	return nil
}

// Contain says that a suspended node's last chunk is over: from now on it gets audit chunks only.
func (b *Book) Contain(id protocol.PeerID, now time.Time) Transition {
	return b.event(id, eventContain, now)
}

// Convict disqualifies a node at once, on a proof that anybody can check: two receipts under one number, two
// results under one fence, a GPU that failed a joint challenge (trust.md 9).
func (b *Book) Convict(id protocol.PeerID, reason protocol.Reason, ref string, now time.Time) Transition {
	t := b.event(id, eventDisqualify, now)
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.node(id, now)
	n.Incidents = append(n.Incidents, Incident{At: now, Criterion: protocol.CriterionCorrectness, Reason: reason, Blame: protocol.BlameNode, Ref: ref})
	n.Incidents = slices.Delete(n.Incidents, 0, max(0, len(n.Incidents)-b.cfg.Incidents))
	return t
}

// Pardon lets a barred node begin again in probation; its evidence stays.
func (b *Book) Pardon(id protocol.PeerID, now time.Time) Transition {
	return b.event(id, eventPardon, now)
}

// Advance vets a node whose time has come without a new observation.
func (b *Book) Advance(id protocol.PeerID, now time.Time) Transition {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.node(id, now)
	t := Transition{From: n.State}
	n.advance(now, &b.cfg)
	t.To = n.State
	return t
}

func (b *Book) event(id protocol.PeerID, e event, now time.Time) Transition {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.node(id, now)
	t := Transition{From: n.State}
	n.move(e, now)
	t.To = n.State
	if t.Changed() && t.To == StateDisqualified {
		b.spread(n.Group, now)
	}
	return t
}

// spread disqualifies the rest of a group of which two keys, and a fifth of all, are disqualified.
func (b *Book) spread(group string, now time.Time) {
	if group == "" {
		return
	}
	var all, out int
	for _, n := range b.nodes {
		if n.Group == group {
			all++
			if n.State == StateDisqualified {
				out++
			}
		}
	}
	if out < 2 || out*5 < all {
		return
	}
	for _, n := range b.nodes {
		if n.Group == group && !n.Anchor {
			n.move(eventDisqualify, now)
		}
	}
}

// Nodes returns the nodes that the book knows, in the order of their IDs.
func (b *Book) Nodes() []protocol.PeerID {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]protocol.PeerID, 0, len(b.nodes))
	for id := range b.nodes {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Snapshot encodes what the book knows of a node, for the store; nil if it knows nothing.
func (b *Book) Snapshot(id protocol.PeerID) ([]byte, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := b.nodes[id]
	if n == nil {
		return nil, nil
	}
	raw, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encoding the score of %s: %w", id, err)
	}
	return raw, nil
}

// Forget drops what the book knows of a node, before a Restore from the store or after a commit that failed.
func (b *Book) Forget(id protocol.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, id)
}

// Restore takes up what Snapshot wrote. It returns ErrSnapshot and then changes nothing.
func (b *Book) Restore(id protocol.PeerID, raw []byte) error {
	n := &node{}
	if err := json.Unmarshal(raw, n); err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if n.Format != 1 || !n.State.known() || n.Checks < 0 || n.InARow < 0 || !(n.Gate.Alpha >= 0 && n.Gate.Beta >= 0 && n.Gate.Alpha+n.Gate.Beta > 0) {
		return fmt.Errorf("%w: format %d, state %.20q, %d checks", ErrSnapshot, n.Format, n.State, n.Checks)
	}
	for i, e := range n.Evidence {
		if !(e.Good >= 0 && e.Bad >= 0) || math.IsInf(e.Good+e.Bad, 0) {
			return fmt.Errorf("%w: evidence of %s is %v good, %v bad", ErrSnapshot, criteria[i], e.Good, e.Bad)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[id] = n
	return nil
}
