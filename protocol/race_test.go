//go:build race

package protocol

// randomChains is fewer under the race detector, which makes them ten times slower and finds nothing in them.
const randomChains = 5_000
