package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// usd writes micro-dollars for people.
func usd(micro int64) string {
	sign := ""
	if micro < 0 {
		sign, micro = "-", -micro
	}
	text := fmt.Sprintf("%s$%d.%06d", sign, micro/1_000_000, micro%1_000_000)
	for strings.HasSuffix(text, "0") && len(text)-strings.IndexByte(text, '.') > 3 {
		text = text[:len(text)-1]
	}
	return text
}

// counted is "1 node" or "2 nodes".
func counted[N ~int | ~uint32 | ~uint64 | ~int64](n N, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// jobLine is where a job stands, in one line.
func jobLine(s *protocol.JobStatus) string {
	parts := []string{string(s.State)}
	if s.ChunksRunning > 0 {
		parts = append(parts, counted(s.ChunksRunning, "chunk")+" given out")
	}
	if n := members(s); n > 0 {
		parts = append(parts, "on "+counted(n, "node"))
	}
	if len(s.Retried) > 0 {
		parts = append(parts, fmt.Sprintf("%d given out again", len(s.Retried)))
	}
	if s.CallsFailed > 0 {
		parts = append(parts, printable(s.Note))
	}
	if s.ChunksFailed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", s.ChunksFailed))
	}
	if s.Text != "" && !s.State.Over() {
		parts = append(parts, printable(s.Text))
	}
	return strings.Join(parts, ", ")
}

func members(s *protocol.JobStatus) (n int) {
	for i := range s.Nodes {
		if s.Nodes[i].State == "member" {
			n++
		}
	}
	return n
}

// seconds is how long a job has taken so far.
func seconds(s *protocol.JobStatus, now time.Time) float64 {
	end := s.Ended
	if end.IsZero() {
		end = now
	}
	return end.Sub(s.Created).Seconds()
}

// writeStatus prints a whole status for a person.
func writeStatus(w io.Writer, s *protocol.JobStatus, now time.Time) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("job %s  %s  (%s)", s.ID, printable(s.Name), s.Kind)
	p("state    %s after %.1f s", s.State, seconds(s, now))
	if s.Text != "" {
		p("because  %s", printable(s.Text))
	}
	p("inputs   %d of %d done in %d chunks, %d running, %d failed", s.InputsDone, s.Inputs, s.ChunksDone, s.ChunksRunning, s.ChunksFailed)
	if s.CallsFailed > 0 {
		p("calls    %d of %d failed", s.CallsFailed, s.Inputs)
	}
	for _, v := range s.Volumes {
		p("volume   %s  %s, %d bytes in %d blocks", printable(v.Name), v.CID, v.Bytes, v.Blocks)
	}
	if s.ResultCID != "" {
		p("result   %s", s.ResultCID)
	}
	if s.Note != "" {
		p("note     %s", printable(s.Note))
	}
	limit := ""
	if s.MaxSpendUUSD > 0 {
		limit = " of at most " + usd(s.MaxSpendUUSD)
	}
	p("cost     %s%s, %d usage records signed by both sides", usd(s.SpentUUSD), limit, s.Receipts)
	if len(s.Nodes) > 0 {
		writeJobNodes(w, s)
	}
	for _, r := range s.Retried {
		if r.Reason == "" {
			p("inputs [%d,%d) were given out again, under fence %d, while the first lease was still good", r.First, r.End, r.Fence)
		} else {
			p("inputs [%d,%d) were given out again, under fence %d: %s on %s", r.First, r.End, r.Fence, r.Reason, shortID(r.LostNode.String()))
		}
	}
}

func writeJobNodes(w io.Writer, s *protocol.JobStatus) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NODE\tSTATE\tCHUNKS\tFAILED\tCPU S\tBLOCKS\tCOST\tSCORE")
	for i := range s.Nodes {
		n := &s.Nodes[i]
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%.2f\t%d\t%s\t%.4f -> %.4f\n", shortID(n.PeerID.String()), n.State, n.Chunks, n.Failed, n.CPUSeconds, n.BlocksFetched,
			usd(n.SpentUUSD), n.ScoreBefore, n.ScoreAfter)
	}
	_ = t.Flush()
}

func jobColumns(now time.Time) []column[protocol.JobStatus] {
	type s = protocol.JobStatus
	return []column[s]{
		{"JOB", func(j *s) string { return j.ID.String() }},
		{"NAME", func(j *s) string { return j.Name }},
		{"STATE", func(j *s) string { return string(j.State) }},
		{"DONE", func(j *s) string { return fmt.Sprintf("%d/%d", j.InputsDone, j.Inputs) }},
		{"COST", func(j *s) string { return usd(j.SpentUUSD) }},
		{"SECONDS", func(j *s) string { return fmt.Sprintf("%.1f", seconds(j, now)) }},
		{"SUBMITTED", func(j *s) string { return j.Created.Local().Format(time.DateTime) }},
		{"WHY", func(j *s) string { return whyOf(j) }},
	}
}

// writeExplain prints why these nodes.
func writeExplain(w io.Writer, x *protocol.Explain) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("%s.", strings.TrimSuffix(printable(x.Summary), "."))
	for _, f := range x.Filters {
		if f.Removed > 0 || f.Left == 0 {
			best := ""
			if f.Best != "" {
				best = fmt.Sprintf(" (best is %s)", printable(f.Best))
			}
			p("  %s: alone rules out %d, leaves %d%s", printable(f.Want), f.Removed, f.Left, best)
		}
	}
	for _, n := range x.Notes {
		p("%s", printable(n))
	}
	if len(x.Chosen) > 0 {
		p("expected time to a good result of one chunk: (queue + start + data + run + round trip) / reliability")
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "RANK\tNODE\tSLOTS\tEXPECTED\tQUEUE\tSTART\tDATA\tRUN\tROUND TRIP\tRELIABILITY\tCENTS\tRAN IN")
		for _, c := range x.Chosen {
			ran := "-"
			if c.ActualRun > 0 {
				ran = short(c.ActualRun)
			}
			_, _ = fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.4f\t%.4f\t%s\n", c.Rank, shortID(c.PeerID.String()), c.Slots, short(c.E), short(c.Queue), short(c.Start),
				short(c.Data), short(c.Run), short(c.RTT), c.P, c.Cents, ran)
		}
		_ = t.Flush()
	}
	if x.PredictedSeconds > 0 {
		actual := "still running"
		if x.ActualSeconds > 0 {
			actual = short(x.ActualSeconds)
		}
		p("predicted %s, actual %s", short(x.PredictedSeconds), actual)
	}
}

// short writes seconds with three digits.
func short(s float64) string {
	switch {
	case s == 0:
		return "0"
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1000)
	case s < 120:
		return fmt.Sprintf("%.3g s", s)
	}
	return fmt.Sprintf("%.3g min", s/60)
}

// writeReputation prints a rater's view of a node with every part of the score.
func writeReputation(w io.Writer, r *protocol.Reputation) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("node %s, rated by %s at %s", r.PeerID, shortID(r.Rater.String()), r.At.UTC().Format(time.RFC3339))
	p("standing %s, overall score O = %.4f, success probability p = %.4f, %d checks passed", r.Standing, r.Score, r.P, r.Checks)
	writeCriteria(w, r.Criteria, "  ")
	if r.Next != "" {
		p("next: %s", printable(r.Next))
	}
	for _, i := range r.Incidents {
		p("  %s %s, blamed on %s", i.At.UTC().Format(time.RFC3339), i.Reason, i.Blame)
	}
}

func writeCriteria(w io.Writer, criteria []protocol.CriterionScore, indent string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "%sCRITERION\tGOOD\tBAD\tLOWER BOUND\tWEIGHT\n", indent)
	for _, c := range criteria {
		_, _ = fmt.Fprintf(t, "%s%s\t%.2f\t%.2f\t%.4f\t%.2f\n", indent, c.Criterion, c.Good, c.Bad, c.Lower, c.Weight)
	}
	_ = t.Flush()
}

// whyOf is why a job waits or failed, or how calls of a function did.
func whyOf(s *protocol.JobStatus) string {
	if s.Text == "" && s.CallsFailed > 0 {
		return firstLine(s.Note)
	}
	return firstLine(s.Text)
}
