package main

import (
	"context"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// measureLatency submits jobs of one chunk, one after the other, in turn with requests to a bare host.
func measureLatency(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 3, nonceModule())
	if err != nil {
		return nil, err
	}
	defer g.close()
	e, err := b.newEcho(ctx)
	if err != nil {
		return nil, err
	}
	defer e.close()
	jobs, asks := 100, 500
	if b.quick {
		jobs = 30
	}
	l := &latency{g: g}
	for range 20 { // warm: every node has the module compiled, the stream a stream
		if _, err := l.one(ctx); err != nil {
			return nil, err
		}
		if _, err := e.ask(); err != nil {
			return nil, err
		}
	}
	var ours, bare, ours50, bare50 []float64
	for range b.rounds {
		var a, c []float64
		for range asks {
			d, err := e.ask()
			if err != nil {
				return nil, err
			}
			c = append(c, milliseconds(d))
		}
		for range jobs {
			d, err := l.one(ctx)
			if err != nil {
				return nil, err
			}
			a = append(a, milliseconds(d))
		}
		ours, bare, ours50, bare50 = append(ours, a...), append(bare, c...), append(ours50, median(a)), append(bare50, median(c))
		b.say("  p50 %.2f ms, bare %.3f ms", median(a), median(c))
	}
	if err := l.prove(ctx); err != nil {
		return nil, err
	}
	out := []result{
		measured("dispatch.p50_ms", median(ours50), median(bare50), "median of the medians of %d rounds of %d jobs, one at a time, each output compared; rounds %s", b.rounds, jobs, list(ours50)),
		measured("dispatch.p99_ms", quantile(ours, 0.99), quantile(bare, 0.99), "of all %d jobs; the slowest took %s ms", len(ours), number(quantile(ours, 1))),
	}
	return out, g.profileIfMissed(ctx, out[0], 6*time.Second, func(ctx context.Context) error {
		_, err := l.one(ctx)
		return err
	})
}

// latency runs jobs of one input and remembers them.
type latency struct {
	g    *grid
	jobs []protocol.JobID
	of   []string
}

func (l *latency) one(ctx context.Context) (time.Duration, error) {
	in := nonces(1)
	s, took, err := l.g.complete(ctx, "latency", in)
	if err == nil {
		l.jobs, l.of = append(l.jobs, s.ID), append(l.of, in[0])
	}
	return took, err
}

// prove compares the output of every job.
func (l *latency) prove(ctx context.Context) error {
	for i, id := range l.jobs {
		if err := l.g.proveOutputs(ctx, id, l.of[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func list(v []float64) string {
	texts := make([]string, len(v))
	for i, x := range v {
		texts[i] = number(x)
	}
	return "(" + strings.Join(texts, ", ") + ")"
}
