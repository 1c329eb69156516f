package main

import (
	"context"
	"fmt"
	"os/exec"
)

// measureDirectory reads the index's own benchmark: the example query among 100,000 nodes whose heartbeats come
// in, verified, 1,667 a second. The baseline asks each decoded record in turn.
func measureDirectory(ctx context.Context, b *bench) ([]result, error) {
	const pkg = "dht"
	if err := b.goTool(ctx, nil, "test", "-count=1", "-run", "^TestFindEqualsBruteForceForAnyFilter$", "./"+pkg); err != nil {
		return nil, fmt.Errorf("%w: %w", errProof, err)
	}
	var ours, half, bare []float64
	for range b.rounds { // each round has a population of its own
		v, err := b.goBench(ctx, pkg, "^BenchmarkFind100k$/^(issue|linear)$", "-test.benchtime=2s")
		if err != nil {
			return nil, err
		}
		p99, ok := v["BenchmarkFind100k/issue p99-ms"]
		if !ok || v["BenchmarkFind100k/issue found"] < 1000 {
			return nil, fmt.Errorf("%w: BenchmarkFind100k found too little: %v", errProof, v)
		}
		ours, half, bare = append(ours, p99), append(half, v["BenchmarkFind100k/issue p50-ms"]), append(bare, v["BenchmarkFind100k/linear"]/1e6)
	}
	how := "example query, for 2 s in each of %d populations of 100,000 nodes, about 1,450 of which match, beside their heartbeats; p99 of the median round, p50 %s ms; that results equal brute force for any filter was proved before; rounds %s"
	out := []result{measured("directory.query_p99_ms", median(ours), median(bare), how, b.rounds, number(median(half)), list(ours))}
	v, err := b.goBench(ctx, pkg, "^BenchmarkMemory138k$", "-test.benchtime=1x")
	if err != nil {
		return out, err
	}
	mib, ok := v["BenchmarkMemory138k MiB"]
	if !ok {
		return out, fmt.Errorf("BenchmarkMemory138k gave no figure: %v", v)
	}
	out = append(out, measured("directory.mib", mib, 0, "heap of the index with RNP-004's 138,400 GPUs, a node each, with signed envelopes, 16,384 of them decoded"))
	return out, b.benchProfileIfMissed(ctx, out[0], pkg, "^BenchmarkFind100k$/^issue$")
}

// measureModel runs the model of 1,000 nodes (docs/directory.md), whose test fails when it misses a goal: its figures
// count all the same.
func measureModel(ctx context.Context, b *bench) ([]result, error) {
	c := exec.CommandContext(ctx, "go", "test", "-count=1", "-tags", "system", "-timeout", "30m", "-v", "-run", "^TestAModelOf1000NodesHoldsItsGoals$", "./dht")
	c.Dir = b.root
	out, failed := c.CombinedOutput()
	v := parseGoBench(string(out))
	recall, ok := v["BenchmarkModel1k recall"]
	if !ok {
		return nil, fmt.Errorf("the model gave no figures: %w\n%s", failed, out)
	}
	const how = "model of 1,000 nodes with the product's code for 2 h of virtual time, 5 %% an hour of them replaced; "
	return []result{
		measured("directory.recall", recall, 0, how+"mean of 24 moments, the worse of a replica and of index peers"),
		measured("directory.idle_bytes_per_s", v["BenchmarkModel1k idle-B/s"], 0, how+"mean of all nodes, the dearer way, on streams of Kademlia, queries and gossip"),
	}, nil
}
