package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/node"
)

// measureReady starts nodes, in turn with bare hosts, until they are READY beside a bootstrap peer.
func measureReady(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 0, nil)
	if err != nil {
		return nil, err
	}
	defer g.close()
	first, address, _, err := b.bareHost(ctx, "bare-bootstrap")
	if err != nil {
		return nil, err
	}
	defer first.stop()
	var ours, bare []float64
	for i := range 2 * b.rounds {
		p, _, took, err := b.bareHost(ctx, fmt.Sprintf("bare-%d", i), "-join", address)
		if err != nil {
			return nil, err
		}
		p.stop()
		bare = append(bare, milliseconds(took))
		w := &worker{name: fmt.Sprintf("start-%d", i)}
		began := time.Now()
		if err := g.startNode(ctx, w); err != nil {
			return nil, err
		}
		err = g.untilReady(ctx, w)
		took = time.Since(began)
		w.stop()
		if err != nil {
			return nil, err
		}
		ours = append(ours, milliseconds(took))
	}
	how := "median of %d starts on an empty data directory, key and self-test of the executor included, in turn; slowest %s ms"
	return []result{measured("node.ready_ms", median(ours), median(bare), how, len(ours), number(quantile(ours, 1)))}, nil
}

// untilReady waits until a node says READY and knows a server of the directory, which its bootstrap peer is.
func (g *grid) untilReady(ctx context.Context, w *worker) error {
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	for {
		st, err := g.status(ctx, w)
		if err != nil {
			return err
		}
		if st.State == node.StateReady && st.Directory > 0 {
			return nil
		}
		if !pause(ctx, 2*time.Millisecond) {
			return fmt.Errorf("a node is %s (%v) and knows %d servers of the directory: %w", st.State, st.Why, st.Directory, context.Cause(ctx))
		}
	}
}

// measureIdle lets a node that has nothing to do stand beside a bare host with the same protocols, each connected
// to one peer, and looks at both over the same windows of time.
func measureIdle(ctx context.Context, b *bench) ([]result, error) {
	g, err := b.newGrid(ctx, 1, nil)
	if err != nil {
		return nil, err
	}
	defer g.close()
	first, address, _, err := b.bareHost(ctx, "bare-first", "-full")
	if err != nil {
		return nil, err
	}
	defer first.stop()
	second, _, _, err := b.bareHost(ctx, "bare-second", "-full", "-join", address)
	if err != nil {
		return nil, err
	}
	defer second.stop()
	settle, window := 15*time.Second, 12*time.Second
	if b.quick {
		settle, window = 3*time.Second, 5*time.Second
	}
	if !pause(ctx, settle) {
		return nil, context.Cause(ctx)
	}
	looks := []*look{{pid: g.nodes[0].pid()}, {pid: second.pid()}}
	for range b.rounds {
		if err := watch(ctx, looks, window); err != nil {
			return nil, err
		}
	}
	ours, bare := looks[0], looks[1]
	how := "median of %d windows of %s, %s after the start; a node with its bridge, and a bare host with its peer"
	out := []result{
		measured("node.rss_mib", median(ours.mib), median(bare.mib), how, b.rounds, window, settle),
		measured("node.idle_cpu_pct", median(ours.pct), median(bare.pct), how+"; windows %s, bare %s", b.rounds, window, settle, list(ours.pct), list(bare.pct)),
	}
	if err := b.heapIfMissed(ctx, out[0], "the idle node", g.nodes[0].pprof); err != nil {
		return out, err
	}
	return out, g.profileIfMissed(ctx, out[1], 20*time.Second, func(ctx context.Context) error {
		pause(ctx, time.Second)
		return nil
	})
}

// look is what was seen of one process.
type look struct {
	pid      int
	mib, pct []float64
}

// watch takes one window of every process.
func watch(ctx context.Context, looks []*look, window time.Duration) error {
	before := make([]time.Duration, len(looks))
	began := time.Now()
	for i, l := range looks {
		var err error
		if before[i], err = cpuTime(l.pid); err != nil {
			return err
		}
	}
	if !pause(ctx, window) {
		return context.Cause(ctx)
	}
	length := time.Since(began)
	for i, l := range looks {
		after, err := cpuTime(l.pid)
		if err != nil {
			return err
		}
		bytes, err := rss(l.pid)
		if err != nil {
			return err
		}
		l.pct = append(l.pct, max(0, 100*float64(after-before[i])/float64(length)))
		l.mib = append(l.mib, float64(bytes)/(1<<20))
	}
	return nil
}
