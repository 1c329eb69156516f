package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/gridbeam/gridbeam/protocol"
)

func (d *demo) print(w io.Writer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	r := &d.res
	p("\nbest of %d   %s", r.ChunksDone, compact(r.Best.Config))
	p("accuracy     %.4f on the test part, %.4f on the validation part", r.Best.Accuracy, r.Best.ValidationAccuracy)
	p("result       %s", r.ResultCID)
	p("time         %.1f s for the job, %.1f s in all", r.JobSeconds, r.WallSeconds)
	p("accounts     %d of %d chunks counted once, %d usage records signed by node and bridge", r.ChunksDone, r.ChunksTotal, r.Receipts)
	p("cost         %s of the user's credit, %s left", usd(r.CostUUSD), usd(r.CreditUUSD))
	if k := r.Killed; k != nil {
		p("survived     the loss of %s (pid %d); leased again: %s", d.nameOf(k.PeerID), k.PID, chunkList(k.Chunks))
	}
	for _, n := range r.Nodes {
		p("\n%s %s", d.nameOf(n.PeerID), n.PeerID)
		p("  pid %d, %d chunks, %.2f CPU seconds, %d blocks fetched, earned %s, score %.4f -> %.4f", n.PID, n.Chunks, n.CPUSeconds, n.BlocksFetched, usd(n.EarnedUUSD),
			n.ScoreBefore, n.ScoreAfter)
		for _, a := range n.After {
			before := protocol.CriterionScore{}
			for _, b := range n.Before {
				if b.Criterion == a.Criterion {
					before = b
				}
			}
			p("    %-15s lower bound %.4f -> %.4f  (good %.2f -> %.2f, bad %.2f -> %.2f, weight %.2f)", a.Criterion, before.Lower, a.Lower, before.Good, a.Good, before.Bad, a.Bad, a.Weight)
		}
	}
}

func chunkList(chunks []demoChunk) string {
	if len(chunks) == 0 {
		return "nothing"
	}
	var parts []string
	for _, c := range chunks {
		parts = append(parts, fmt.Sprintf("[%d,%d) fence %d", c.First, c.End, c.Fence))
	}
	return strings.Join(parts, ", ")
}

func compact(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return printable(string(raw))
	}
	b, err := json.Marshal(v)
	if err != nil {
		return printable(string(raw))
	}
	return string(b)
}
