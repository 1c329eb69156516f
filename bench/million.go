package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// millionInputs is the size of the job.
const millionInputs = 1_000_000

// measureMillion looks at the bridge's memory while it takes in and dispatches a job of 1,000,000 chunks, for a
// bounded time: the job is cancelled before its end.
func measureMillion(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 3, nonceModule())
	if err != nil {
		return nil, err
	}
	defer g.close()
	idle, err := rss(g.bridge.pid())
	if err != nil {
		return nil, err
	}
	length := time.Minute
	if b.quick {
		length = 10 * time.Second
	}
	req := g.request("million", nil)
	req.Job.Inputs = protocol.JobInputs{Range: &protocol.IntRange{First: 0, Last: millionInputs - 1}}
	began := time.Now()
	s, err := g.client.Submit(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("submitting: %w", err)
	}
	submitted := time.Since(began)
	id, most := s.ID, idle
	for time.Since(began) < length && !s.State.Over() {
		now, err := rss(g.bridge.pid())
		if err != nil {
			return nil, err
		}
		most = max(most, now)
		if !pause(ctx, 100*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
		if s, err = g.client.Job(ctx, id); err != nil {
			return nil, fmt.Errorf("watching: %w", err)
		}
	}
	if s.Inputs != millionInputs || s.ChunksDone == 0 || s.State.Over() && s.ChunksDone != millionInputs {
		return nil, fmt.Errorf("%w: the job is %s (%s) with %d inputs and %d chunks done", errProof, s.State, s.Text, s.Inputs, s.ChunksDone)
	}
	const mib = 1 << 20
	out := measured("dispatch.million_chunks_mib", float64(most)/mib, 0,
		"highest VmRSS of the bridge process in %.0f s, looked at each 100 ms; %s MiB before; submitted in %.2f s, %d chunks were done by then", time.Since(began).Seconds(), number(float64(idle)/mib), submitted.Seconds(), s.ChunksDone)
	if err := b.heapIfMissed(ctx, out, "the bridge", g.pprof); err != nil {
		return []result{out}, err
	}
	if _, err := g.client.Cancel(ctx, id); err != nil {
		return []result{out}, fmt.Errorf("cancelling: %w", err)
	}
	return []result{out}, nil
}
