package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

const (
	// longRounds keep a chunk of the work module busy for longer than a round of the failover takes.
	longRounds = 1_000_000_000_000
	// failoverChunks is as many as one node runs at once, so that whoever takes up what was lost has room for it.
	failoverChunks = 2
)

// measureFailover kills nodes that hold leases and looks, on the other nodes, for when the same chunks run there
// under a higher fence.
func measureFailover(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 3, workModule(longRounds))
	if err != nil {
		return nil, err
	}
	defer g.close()
	var took []float64
	rounds := b.rounds + 3 // few are cheap, and a p99 wants many
	if b.quick {
		rounds = 2
	}
	for range rounds {
		s, err := g.failover(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w; the bridge's log ends:\n%s", err, g.bridge.tail())
		}
		took = append(took, s...)
		b.say("  chunks ran elsewhere after %s s", list(s))
	}
	p50 := median(took)
	return []result{measured("dispatch.failover_p99_s", quantile(took, 0.99), 0,
		"%d chunks of %d nodes that were killed with SIGKILL, each seen running on another node under a higher fence; p50 %s s", len(took), rounds, number(p50))}, nil
}

// failover does one round: it returns, for each chunk that the killed node ran, the seconds until it ran elsewhere.
func (g *grid) failover(ctx context.Context) ([]float64, error) {
	ctx, stop := context.WithTimeout(ctx, 90*time.Second)
	defer stop()
	req := g.request("failover", nonces(failoverChunks))
	req.Job.Policy.Timeout = protocol.Duration(10 * time.Minute)
	s, err := g.client.Submit(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("submitting: %w", err)
	}
	victim, lost, err := g.allRunning(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	victim.kill()
	var took []float64
	for len(lost) > 0 {
		for _, w := range g.nodes {
			if w == victim {
				continue
			}
			st, err := g.status(ctx, w)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				return nil, err
			}
			for _, l := range running(&st, s.ID) {
				if fence, ok := lost[l.First]; ok && l.Fence > fence {
					took = append(took, time.Since(began).Seconds())
					delete(lost, l.First)
				}
			}
		}
		if !pause(ctx, 10*time.Millisecond) {
			return nil, fmt.Errorf("%w: %d chunks of a killed node run nowhere: %w", errProof, len(lost), context.Cause(ctx))
		}
	}
	if _, err := g.client.Cancel(ctx, s.ID); err != nil {
		return nil, fmt.Errorf("cancelling: %w", err)
	}
	if err := g.startNode(ctx, victim); err != nil {
		return nil, err
	}
	return took, g.idle(ctx)
}

func running(st *node.Status, job protocol.JobID) (out []node.LeaseStatus) {
	for _, l := range st.Leases {
		if l.Job == job && l.State == protocol.LeaseRunning.String() {
			out = append(out, l)
		}
	}
	return out
}

// allRunning waits until all chunks of a job run, and returns the node that runs most of them with their fences.
func (g *grid) allRunning(ctx context.Context, job protocol.JobID) (*worker, map[uint64]uint64, error) {
	for {
		sum := 0
		var most *worker
		var held []node.LeaseStatus
		for _, w := range g.nodes {
			st, err := g.status(ctx, w)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				return nil, nil, err
			}
			run := running(&st, job)
			sum += len(run)
			if len(run) > len(held) {
				most, held = w, run
			}
		}
		if sum == failoverChunks {
			lost := map[uint64]uint64{}
			for _, l := range held {
				lost[l.First] = l.Fence
			}
			return most, lost, nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return nil, nil, fmt.Errorf("%d of %d chunks run: %w", sum, failoverChunks, context.Cause(ctx))
		}
	}
}

// idle waits until no node holds a lease and the bridge counts on all of them again.
func (g *grid) idle(ctx context.Context) error {
	for {
		held := 0
		for _, w := range g.nodes {
			st, err := g.status(ctx, w)
			if err != nil && !errors.Is(err, node.ErrNotRunning) {
				return err
			}
			held += len(st.Leases)
		}
		if held == 0 {
			return g.awaitNodes(ctx)
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("the nodes still hold %d leases: %w", held, context.Cause(ctx))
		}
	}
}
