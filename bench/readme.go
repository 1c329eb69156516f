package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Marks between which the README's tables stand.
const (
	latestBegin, latestEnd   = "<!-- latest: begin -->", "<!-- latest: end -->"
	historyBegin, historyEnd = "<!-- history: begin -->", "<!-- history: end -->"
)

const historyHead = "| row | commit | date | value | baseline | ratio | target | met |\n|---|---|---|---|---|---|---|---|\n"

// writeReadme replaces the table of the newest figures and adds them to the history.
func (rep *report) writeReadme(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the README of the benchmark: %w", err)
	}
	text, err := rep.readme(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing the README of the benchmark: %w", err)
	}
	return nil
}

func (rep *report) readme(text string) (string, error) {
	text, err := replace(text, latestBegin, latestEnd, rep.latestTable())
	if err != nil {
		return "", err
	}
	old, err := between(text, historyBegin, historyEnd)
	if err != nil {
		return "", err
	}
	return replace(text, historyBegin, historyEnd, rep.history(old))
}

func (rep *report) latestTable() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "Commit `%s`, %s: %s.\n\n| row | value | unit | baseline | | ratio | target | |\n|---|---|---|---|---|---|---|---|\n", rep.Commit, rep.Date, rep.Machine)
	for _, r := range rep.Results {
		_, _ = fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", r.Name, number(r.Value), r.Unit, optional(r.BaselineValue), r.Baseline, optional(r.Ratio), find(r.Name).goal(), verdict(r.Met))
	}
	return b.String()
}

// history is the old history with this report's rows, by row and then in the order of measuring. A row is
// measured anew for the same commit: the newer figure stands.
func (rep *report) history(old string) string {
	type entry struct{ name, commit, line string }
	var all []entry
	for line := range strings.Lines(old) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		all = append(all, entry{strings.Trim(cells[1], " `"), strings.Trim(cells[2], " `"), strings.TrimSpace(line)})
	}
	for _, r := range rep.Results {
		e := entry{r.Name, rep.Commit, fmt.Sprintf("| `%s` | `%s` | %s | %s %s | %s | %s | %s | %s |", r.Name, rep.Commit, rep.Date, number(r.Value), r.Unit,
			optional(r.BaselineValue), optional(r.Ratio), find(r.Name).goal(), verdict(r.Met))}
		all = slices.DeleteFunc(all, func(x entry) bool { return x.name == e.name && x.commit == e.commit })
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b entry) int { return place(a.name) - place(b.name) })
	var b strings.Builder
	_, _ = b.WriteString(historyHead)
	for _, e := range all {
		_, _ = b.WriteString(e.line + "\n")
	}
	return b.String()
}

func between(text, begin, end string) (string, error) {
	_, rest, ok1 := strings.Cut(text, begin)
	inner, _, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("there is no %s … %s", begin, end)
	}
	return inner, nil
}

func replace(text, begin, end, inner string) (string, error) {
	if _, err := between(text, begin, end); err != nil {
		return "", err
	}
	before, rest, _ := strings.Cut(text, begin)
	_, after, _ := strings.Cut(rest, end)
	return before + begin + "\n" + inner + end + after, nil
}
