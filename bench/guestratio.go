package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"
)

// measureGuest runs the Go guest on the network, in turn with wazero alone on the same cores.
func measureGuest(ctx context.Context, b *bench) ([]result, error) {
	module, err := os.ReadFile(b.guest)
	if err != nil {
		return nil, fmt.Errorf("reading the guest: %w", err)
	}
	g, err := b.newGrid(ctx, 3, module)
	if err != nil {
		return nil, err
	}
	defer g.close()
	n := 2_000
	if b.quick {
		n = 500
	}
	if _, _, err := g.complete(ctx, "warm", nonces(120)); err != nil { // compiles on every node
		return nil, err
	}
	var ours, alone, ratios []float64
	workers := workers{}
	for range b.rounds {
		bare, err := b.guestAlone(ctx, n)
		if err != nil {
			return nil, err
		}
		inputs := nonces(n)
		s, took, err := g.complete(ctx, "guest", inputs)
		if err != nil {
			return nil, err
		}
		if err := g.proveOutputs(ctx, s.ID, inputs); err != nil {
			return nil, err
		}
		workers.add(&s)
		rate := float64(n) / took.Seconds()
		ours, alone, ratios = append(ours, rate), append(alone, bare), append(ratios, rate/bare)
		b.say("  %d chunks of the Go guest: %.0f/s, wazero alone %.0f/s, ratio %.2f", n, rate, bare, rate/bare)
	}
	if err := workers.shared(len(g.nodes)); err != nil {
		return nil, err
	}
	out := measured("dispatch.go_wasm_ratio", median(ratios), median(alone), "median of %d pairs of %d chunks of a %.1f MB Go module, ours %s chunks/s, every output compared on both sides; ratios %s", b.rounds, n, float64(len(module))/1e6,
		number(median(ours)), list(ratios))
	return []result{out}, g.profileIfMissed(ctx, out, 8*time.Second, func(ctx context.Context) error {
		_, _, err := g.complete(ctx, "profile", nonces(n))
		return err
	})
}

// guestAlone returns the chunks per second of wazero alone. It has as many threads as the three nodes have slots in
// all: where other programs run, the share of the processor goes by threads.
func (b *bench) guestAlone(ctx context.Context, n int) (float64, error) {
	v, err := b.goBench(ctx, "bench/bare", "^BenchmarkGuest$", fmt.Sprintf("-test.benchtime=%dx", n), fmt.Sprintf("-test.cpu=%d", 3*runtime.NumCPU()), "-guest", b.guest)
	if err != nil {
		return 0, err
	}
	ns := v["BenchmarkGuest"]
	if ns == 0 {
		return 0, fmt.Errorf("wazero alone gave no figure: %v", v)
	}
	return 1e9 / ns, nil
}
