//go:build !race

package protocol

// randomChains is what trust.md 13 asks for.
const randomChains = 100_000
