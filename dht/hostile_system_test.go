//go:build system

package dht

func init() {
	if !raceEnabled {
		simSize = 200
	}
}
