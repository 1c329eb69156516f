package cluster

import (
	"fmt"
	"strings"
	"time"
)

// Filter is what one requirement did.
type Filter struct {
	Name    string `json:"name"`           // Name is the predicate, as fields of the job file are called.
	Want    string `json:"want"`           // Want is the requirement with its value, e.g. min_vram 40GB.
	Removed int    `json:"removed"`        // Removed is how many candidates it alone rules out.
	Left    int    `json:"left"`           // Left is how many were left after it and all before it.
	Best    string `json:"best,omitempty"` // Best is the best value that was there, where it left nobody.
	Fix     string `json:"fix,omitempty"`  // Fix says what to do where it left nobody, if that is not plain from Want.
}

// Explanation says why a selection came out as it did: what gridbeam job explain prints.
type Explanation struct {
	At       time.Time `json:"at"`              // At is when it was made.
	Total    int       `json:"total"`           // Total is the number of candidates.
	Matching int       `json:"matching"`        // Matching is how many meet every requirement.
	Filters  []Filter  `json:"filters"`         // Filters are the requirements in the order of evaluation.
	Chosen   []Member  `json:"chosen"`          // Chosen are the members with the terms of their expected time.
	Notes    []string  `json:"notes,omitempty"` // Notes are further sentences.
}

func (x *Explanation) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

// Summary is one sentence: "0 of 212 match: min_vram 40GB leaves 31, regions eu leaves 9, min_reputation 0.9
// leaves 0 (best is 0.87)". Requirements that removed nobody further are left out, as is what comes after
// the one that left nobody.
func (x Explanation) Summary() string {
	if x.Total == 0 {
		return "no nodes are known yet: start one with `gridbeam node run`, or check --join"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d match", x.Matching, x.Total)
	before, sep := x.Total, ": "
	for _, f := range x.Filters {
		if f.Left == before {
			continue
		}
		fmt.Fprintf(&b, "%s%s leaves %d", sep, f.Want, f.Left)
		sep = ", "
		if f.Left == 0 {
			if f.Fix != "" {
				fmt.Fprintf(&b, ": %s", f.Fix)
			}
			if f.Best != "" {
				fmt.Fprintf(&b, " (best is %s)", f.Best)
			}
			break
		}
		before = f.Left
	}
	return b.String()
}

// reason is the summary with the notes, in one line for an error.
func (x Explanation) reason() string {
	return strings.Join(append([]string{x.Summary()}, x.Notes...), ". ")
}

// Hardest returns the requirement whose absence alone would admit most, for "what to change" advice; false
// when nothing was removed.
func (x Explanation) Hardest() (Filter, bool) {
	var best Filter
	for _, f := range x.Filters {
		if f.Removed > best.Removed {
			best = f
		}
	}
	return best, best.Removed > 0
}

// String is the whole explanation for a person: the summary, the notes and a line per chosen node.
func (x Explanation) String() string {
	var b strings.Builder
	b.WriteString(x.Summary() + ".\n")
	for _, n := range x.Notes {
		b.WriteString(n + "\n")
	}
	if h, ok := x.Hardest(); ok && x.Matching == 0 {
		fmt.Fprintf(&b, "By itself `%s` rules out most: %d of %d.\n", h.Want, h.Removed, x.Total)
	}
	for _, m := range x.Chosen {
		fmt.Fprintf(&b, "%s\n", m)
	}
	return b.String()
}

// String is one node's line: its rank and how its expected time adds up.
func (m Member) String() string {
	t := m.Terms
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s: %s to a good result", m.Rank, m.Peer, secondsText(t.E))
	sep := " = ("
	for _, part := range []struct {
		name string
		s    float64
	}{{"queue", t.Queue}, {"start", t.Start}, {"data", t.Data}, {"run", t.Run}, {"round trip", t.RTT}} {
		if part.s > 0 {
			fmt.Fprintf(&b, "%s%s %s", sep, part.name, secondsText(part.s))
			sep = " + "
		}
	}
	if sep == " + " {
		fmt.Fprintf(&b, ") / %.3g reliability", t.P)
	}
	if t.Cents > 0 {
		fmt.Fprintf(&b, ", %.3g cents a chunk", t.Cents)
	}
	if m.Region != "" {
		fmt.Fprintf(&b, ", for region %s", m.Region)
	}
	return b.String()
}

func secondsText(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1000)
	case s < 120:
		return fmt.Sprintf("%.3g s", s)
	}
	return fmt.Sprintf("%.3g min", s/60)
}
