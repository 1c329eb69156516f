// Command guest is the Go module of the benchmark: like the small one it writes the FNV-1a hash of its first
// argument, 8 bytes little-endian, to /out/h. It is built for wasip1.
package main

import (
	"encoding/binary"
	"hash/fnv"
	"os"
)

func main() {
	h := fnv.New64a()
	_, _ = h.Write([]byte(os.Args[1]))
	if err := os.WriteFile("/out/h", binary.LittleEndian.AppendUint64(nil, h.Sum64()), 0o644); err != nil {
		println(err.Error())
		os.Exit(1)
	}
}
