package reputation

import (
	"fmt"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// CriterionScore is one part of a Score.
type CriterionScore struct {
	// Criterion is what it judges.
	Criterion protocol.Criterion `json:"criterion"`
	// Good and Bad are the evidence left today.
	Good float64 `json:"good"`
	// Bad is bad evidence left today.
	Bad float64 `json:"bad"`
	// L is the lower bound: the node is at least that good with 95 % confidence.
	L float64 `json:"l"`
}

// ScoredIncident is an incident with what the score would be without it.
type ScoredIncident struct {
	Incident
	// Without is O as if the incident had not happened.
	Without float64 `json:"without"`
}

// Score is what a rater thinks of a node at one moment.
type Score struct {
	// Node is judged; Group is its operator as far as known.
	Node protocol.PeerID `json:"node"`
	// Group is the node's operator as far as known.
	Group string `json:"group,omitempty"`
	// Anchor says that the bridge's operator named it.
	Anchor bool `json:"anchor,omitempty"`
	// State is what it may be used for, Since when.
	State State `json:"state"`
	// Since is when it came into the state; zero for a node that was never met.
	Since time.Time `json:"since"`
	// First is when it was first met.
	First time.Time `json:"first"`
	// O is the overall score, 0 for a barred node; P is Lcomp × Lcorr, the chance of a good result.
	O float64 `json:"o"`
	// P is Lcomp × Lcorr.
	P float64 `json:"p"`
	// Criteria are its parts, in the order of protocol.Criteria.
	Criteria []CriterionScore `json:"criteria"`
	// Checks counts passed checks, InARow those since the last failure: k.
	Checks int `json:"checks"`
	// InARow is k.
	InARow int `json:"in_a_row"`
	// Audit is p(k), the probability that its next result is checked; 0 for an anchor.
	Audit float64 `json:"audit"`
	// Incidents are the last bad observations, newest first.
	Incidents []ScoredIncident `json:"incidents,omitempty"`
	// Next is what comes next, for people.
	Next string `json:"next"`
}

// Vetted says whether the node's results need no second node: it is vetted, or an anchor that is not barred.
func (s *Score) Vetted() bool { return s.State == StateVetted || s.Anchor && !s.State.Barred() }

// L returns the lower bound of a criterion; 0 for one that does not exist.
func (s *Score) L(c protocol.Criterion) float64 {
	for _, x := range s.Criteria {
		if x.Criterion == c {
			return x.L
		}
	}
	return 0
}

// Score returns what the book thinks of a node at now. One that it never met is a newcomer: O = 0.05.
func (b *Book) Score(id protocol.PeerID, now time.Time) Score {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := b.nodes[id]
	if n == nil {
		n = newcomer(time.Time{})
		n.First = now
	}
	lacks := n.missing(now, &b.cfg)
	s := Score{
		Node: id, Group: n.Group, Anchor: n.Anchor, State: n.State, Since: n.Since, First: n.First, Checks: n.Checks, InARow: n.InARow,
		Audit: AuditProbability(n.InARow, b.cfg.SpotCheck), Criteria: make([]CriterionScore, len(criteria)),
	}
	if s.State == StateProbation && lacks == (missing{}) {
		s.State = StateVetted // Advance has not been called since its time came
	}
	var l [5]float64
	for i, c := range criteria {
		r, bad := n.Evidence[i].at(now, halfLife[i])
		l[i] = Lower(r, bad)
		s.Criteria[i] = CriterionScore{c, r, bad, l[i]}
	}
	s.P = l[0] * l[1]
	if !s.State.Barred() {
		s.O = Overall(l)
	}
	if s.Anchor {
		s.Audit = 0
	}
	for i := len(n.Incidents) - 1; i >= 0; i-- {
		s.Incidents = append(s.Incidents, ScoredIncident{n.Incidents[i], n.without(&n.Incidents[i], l, now)})
	}
	s.Next = n.next(&s, lacks, &b.cfg)
	return s
}

// without is O if an incident had not happened.
func (n *node) without(x *Incident, l [5]float64, now time.Time) float64 {
	i := index(x.Criterion)
	if i < 0 {
		return Overall(l)
	}
	r, s := n.Evidence[i].at(now, halfLife[i])
	l[i] = Lower(r, s-x.Bad*Decay(now.Sub(x.At), halfLife[i]))
	return Overall(l)
}

// next says what a node has to do or to wait for.
func (n *node) next(s *Score, lacks missing, cfg *Config) string {
	switch s.State {
	case StateVetted:
		return fmt.Sprintf("vetted; every %s result is checked", share(s.Audit))
	case StateSuspended, StateContained:
		if n.Exact {
			return fmt.Sprintf("%d passed checks in a row to probation", max(0, cfg.ReleaseChecks-n.InARow))
		}
		passes := int((n.Test - testBack) / -testPass)
		return fmt.Sprintf("about %d passed checks to probation", max(1, passes+1))
	case StateDisqualified:
		return "out; only the bridge's operator can pardon it"
	}
	if s.Anchor {
		return "named by the bridge's operator: counts as vetted"
	}
	var parts []string
	if lacks.checks > 0 {
		parts = append(parts, fmt.Sprintf("%d checks", lacks.checks))
	}
	if lacks.time > 0 {
		parts = append(parts, fmt.Sprintf("%d h", int((lacks.time+time.Hour-1)/time.Hour)))
	}
	if lacks.correct {
		parts = append(parts, fmt.Sprintf("correctness %.2f", cfg.VetCorrect))
	}
	return strings.Join(parts, " and ") + " to vetted"
}

// share says a probability as 1st, 2nd, 20th.
func share(p float64) string {
	if p <= 0 {
		return "no"
	}
	n := int(1/p + 0.5)
	switch {
	case n <= 1:
		return "single"
	case n%10 == 2 && n%100 != 12:
		return fmt.Sprintf("%dnd", n)
	case n%10 == 3 && n%100 != 13:
		return fmt.Sprintf("%drd", n)
	case n%10 == 1 && n%100 != 11:
		return fmt.Sprintf("%dst", n)
	}
	return fmt.Sprintf("%dth", n)
}

// Explain says a score for people: state, O, each criterion with its evidence, incidents, and what is next.
func Explain(s Score) string {
	var b strings.Builder
	state := string(s.State)
	if s.Anchor {
		state += ", anchor"
	}
	fmt.Fprintf(&b, "%s  %s  O %.4f  p %.4f\n", s.Node, state, s.O, s.P)
	for i, c := range s.Criteria {
		fmt.Fprintf(&b, "  %-15s L %.4f ^ %.2f   good %.2f  bad %.2f\n", c.Criterion, c.L, exponents[i], c.Good, c.Bad)
	}
	fmt.Fprintf(&b, "  checks %d passed, %d in a row; next: %s\n", s.Checks, s.InARow, s.Next)
	for _, x := range s.Incidents {
		fmt.Fprintf(&b, "  %s  %s: %s (%s), weight %.2f; O without it %.4f", x.At.UTC().Format(time.RFC3339), x.Criterion, x.Reason.Text(), x.Blame, x.Bad, x.Without)
		if x.Ref != "" {
			fmt.Fprintf(&b, "  %s", x.Ref)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
