package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// doubling is the function of the Beam rows.
const doubling = "def double(n):\n    return 2 * n\n"

// measureBeam calls a trivial Python function through Beam's gateway, warm: one call after the other beside a fresh
// sandboxed Python for each, as a container for each call would be, and then a map of 1,000 inputs.
func measureBeam(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 3, nil)
	if err != nil {
		return nil, err
	}
	defer g.close()
	c, err := beamclient.Dial(g.beam, g.token)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // the process ends
	stub, _, err := c.Prepare(ctx, beamclient.Function{Files: map[string]string{"app.py": doubling}, Handler: "app:double", Retries: 3})
	if err != nil {
		return nil, err
	}
	one := func(n int) (time.Duration, error) {
		began := time.Now()
		r, err := c.Invoke(ctx, stub, beamclient.PickleCall(n), false, nil)
		took := time.Since(began)
		if err == nil {
			var got int
			if got, err = beamclient.PickledInt(r.Result); err == nil && got != 2*n {
				err = fmt.Errorf("%w: double(%d) is %d", errProof, n, got)
			}
		}
		return took, err
	}
	calls, inputs := 100, 1000
	if b.quick {
		calls = 30
	}
	for n := range 50 { // every node has a warm process
		if _, err := one(n); err != nil {
			return nil, err
		}
	}
	var ours, fresh, rates []float64
	for range b.rounds {
		var a, f []float64
		for n := range calls {
			d, err := one(n)
			if err != nil {
				return nil, err
			}
			a = append(a, milliseconds(d))
		}
		for range 10 {
			d, err := freshPython(ctx)
			if err != nil {
				return nil, err
			}
			f = append(f, milliseconds(d))
		}
		began := time.Now()
		if err := mapAll(inputs, one); err != nil {
			return nil, err
		}
		rates = append(rates, float64(inputs)/time.Since(began).Seconds())
		ours, fresh = append(ours, median(a)), append(fresh, median(f))
		b.say("  remote p50 %.2f ms, a fresh sandbox %.1f ms; %.0f inputs/s", median(a), median(f), rates[len(rates)-1])
	}
	out := []result{
		measured("beam.remote_p50_ms", median(ours), median(fresh), "median of the medians of %d rounds of %d calls, one at a time over gRPC, each result compared; rounds %s", b.rounds, calls, list(ours)),
		measured("beam.map_per_s", median(rates), 0, "median of %d rounds of %d inputs, a stream each on one connection, each result compared; rounds %s", b.rounds, inputs, list(rates)),
	}
	return out, g.profileIfMissed(ctx, out[1], 6*time.Second, func(context.Context) error { return mapAll(inputs, one) })
}

// mapAll calls a function with 0..n-1 at once.
func mapAll(n int, one func(int) (time.Duration, error)) error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { _, errs[i] = one(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// freshPython starts a sandboxed Python and waits for its end.
func freshPython(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	out, err := exec.CommandContext(ctx, "bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
		"--proc", "/proc", "--dev", "/dev", "/usr/bin/python3", "-c", "import pickle; print(len(pickle.dumps(2)))").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("a fresh sandbox: %w: %s", err, out)
	}
	return time.Since(began), nil
}
