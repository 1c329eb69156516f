// Command guest is the Go module of the benchmark: it writes the SHA-256 of its first argument to /out/h. It is
// built for wasip1.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
)

func main() {
	sum := sha256.Sum256([]byte(os.Args[1]))
	if err := os.WriteFile("/out/h", sum[:], 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
