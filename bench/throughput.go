package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// measureThroughput runs jobs of 10,000 chunks, then kills the bridge and counts in what is on the disk: once after
// a job was answered as done, once in the middle of one.
func measureThroughput(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 3, nonceModule())
	if err != nil {
		return nil, err
	}
	defer g.close()
	n := 10_000
	if b.quick {
		n = 2_000
	}
	if _, _, err := g.complete(ctx, "warm", nonces(600)); err != nil {
		return nil, err
	}
	var rates []float64
	var last protocol.JobStatus
	var inputs []string
	workers := workers{}
	for range b.rounds {
		inputs = nonces(n)
		var took time.Duration
		if last, took, err = g.complete(ctx, "throughput", inputs); err != nil {
			return nil, err
		}
		rates = append(rates, float64(n)/took.Seconds())
		b.say("  %d chunks in %.2f s: %.0f/s", n, took.Seconds(), rates[len(rates)-1])
		if err := g.proveOutputs(ctx, last.ID, inputs); err != nil {
			return nil, err
		}
		workers.add(&last)
	}
	if err := workers.shared(len(g.nodes)); err != nil {
		return nil, err
	}
	out := measured("dispatch.chunks_per_s", median(rates), 0, "median of %d jobs of %d chunks, submit to complete, every output compared and every node at work; rounds %s", b.rounds, n, list(rates))
	if err := g.profileIfMissed(ctx, out, 8*time.Second, func(ctx context.Context) error {
		_, _, err := g.complete(ctx, "profile", nonces(n))
		return err
	}); err != nil {
		return []result{out}, err
	}
	if err := g.proveKilledAfter(ctx, last.ID, inputs); err != nil {
		return []result{out}, err
	}
	before, err := g.proveKilledMidJob(ctx, n)
	if err != nil {
		return []result{out}, err
	}
	out.how += fmt.Sprintf("; after SIGKILL the store had all %d chunks counted once, and a job killed at %d of %d completed with each counted once", n, before, n)
	return []result{out}, nil
}

// workers counts chunks by the node that did them.
type workers map[protocol.PeerID]uint64

func (w workers) add(s *protocol.JobStatus) {
	for i := range s.Nodes {
		w[s.Nodes[i].PeerID] += s.Nodes[i].Chunks
	}
}

// shared checks that every node did a tenth of an even part at least.
func (w workers) shared(nodes int) error {
	sum, busy := uint64(0), 0
	for _, n := range w {
		sum += n
	}
	for _, n := range w {
		if n*uint64(nodes)*10 >= sum {
			busy++
		}
	}
	if busy != nodes {
		return fmt.Errorf("%w: %d of %d nodes did something: %v", errProof, busy, nodes, w)
	}
	return nil
}

// proveKilledAfter kills the bridge after a job is done and looks for the job in the store, then in the bridge that
// is started on it.
func (g *grid) proveKilledAfter(ctx context.Context, id protocol.JobID, inputs []string) error {
	g.bridge.kill()
	if got, err := g.counted(ctx, id); err != nil || got != len(inputs) {
		return fmt.Errorf("%w: after SIGKILL %d of %d chunks are in the store (%w)", errProof, got, len(inputs), err)
	}
	if err := g.startBridge(ctx); err != nil {
		return err
	}
	s, err := g.client.Job(ctx, id)
	if err != nil {
		return fmt.Errorf("asking for a job after a restart: %w", err)
	}
	if err := whole(&s, len(inputs)); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	return g.proveOutputs(ctx, id, inputs)
}

// proveKilledMidJob kills the bridge while a job runs and returns how many chunks were counted by then.
func (g *grid) proveKilledMidJob(ctx context.Context, n int) (before int, err error) {
	ctx, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	if err := g.awaitNodes(ctx); err != nil {
		return 0, err
	}
	inputs := nonces(n)
	s, err := g.client.Submit(ctx, g.request("killed", inputs))
	if err != nil {
		return 0, fmt.Errorf("submitting: %w", err)
	}
	for id := s.ID; s.InputsDone < uint64(n)/5; {
		if s, err = g.client.Job(ctx, id); err != nil {
			return 0, fmt.Errorf("watching a job: %w", err)
		}
		if s.State.Over() {
			return 0, fmt.Errorf("%w: the job was over before the bridge was killed", errProof)
		}
	}
	g.bridge.kill()
	if before, err = g.counted(ctx, s.ID); err != nil {
		return before, err
	}
	if uint64(before) < s.InputsDone || before >= n {
		return before, fmt.Errorf("%w: the bridge told of %d chunks, then %d of %d were in its store", errProof, s.InputsDone, before, n)
	}
	if err := g.startBridge(ctx); err != nil {
		return before, err
	}
	if s, err = g.client.Wait(ctx, s.ID, nil); err != nil {
		return before, fmt.Errorf("waiting after a restart: %w; the bridge's log ends:\n%s", err, g.bridge.tail())
	}
	if err := whole(&s, n); err != nil {
		return before, fmt.Errorf("a job over a restart: %w", err)
	}
	if err := g.proveOutputs(ctx, s.ID, inputs); err != nil {
		return before, err
	}
	g.bridge.kill()
	got, err := g.counted(ctx, s.ID)
	if err != nil || got != n {
		return before, fmt.Errorf("%w: after a second SIGKILL %d of %d chunks are counted (%w)", errProof, got, n, err)
	}
	if err := g.startBridge(ctx); err != nil {
		return before, err
	}
	return before, g.awaitNodes(ctx)
}

// counted opens the store of a bridge that was killed, and returns how many chunks of a job of single inputs have an
// accounted result. Each has to stand there once, as done, with the lease that won.
func (g *grid) counted(ctx context.Context, id protocol.JobID) (n int, err error) {
	st, err := store.Open(filepath.Join(g.dir, "bridge", "bridge.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, fmt.Errorf("opening the store of a killed bridge: %w", err)
	}
	defer func() { _ = st.Close() }() // only read
	winners := map[uint64]protocol.LeaseID{}
	err = st.View(ctx, func(tx *store.Tx) error {
		for c, err := range tx.Chunks(id) {
			if err != nil {
				return err
			}
			if c.State == "done" {
				winners[c.First] = c.Winner
			}
		}
		for r, err := range tx.Results(id) {
			if err != nil {
				return err
			}
			lease, done := winners[r.First]
			if !done || lease != r.Lease || r.End != r.First+1 {
				return fmt.Errorf("%w: the result of [%d,%d) is accounted twice, or for a chunk that is not done", errProof, r.First, r.End)
			}
			delete(winners, r.First)
			n++
		}
		return nil
	})
	if err == nil && len(winners) > 0 {
		err = fmt.Errorf("%w: %d chunks are done without a result", errProof, len(winners))
	}
	return n, err
}
