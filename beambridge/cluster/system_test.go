//go:build system

package cluster

func init() { simSeeds = 100_000 }
