package bare

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

var guest = flag.String("guest", "", "BenchmarkGuest: the module, which writes the FNV-1a hash of its argument to /out/h")

// BenchmarkGuest runs a module once for each input with wazero alone: one runtime, compiled once, as many instances
// at a time as -test.cpu says, outputs to real files that are checked when the clock stands.
func BenchmarkGuest(b *testing.B) {
	if *guest == "" {
		b.Skip("no -guest")
	}
	binary, err := os.ReadFile(*guest)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	r := wazero.NewRuntime(ctx)
	defer func() { _ = r.Close(ctx) }()
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	module, err := r.CompileModule(ctx, binary)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	run := func(input string) error {
		out := filepath.Join(dir, input)
		if err := os.Mkdir(out, 0o700); err != nil {
			return err
		}
		_, err := r.InstantiateModule(ctx, module, wazero.NewModuleConfig().WithName("").WithArgs("guest", input).
			WithFSConfig(wazero.NewFSConfig().WithDirMount(out, "/out")))
		return err // nil too for exit code 0
	}
	if err := run("warm"); err != nil {
		b.Fatal(err)
	}
	var next atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := run(strconv.FormatInt(next.Add(1), 10)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	for i := range next.Load() {
		if err := check(dir, strconv.FormatInt(i+1, 10)); err != nil {
			b.Fatal(err)
		}
	}
}

func check(dir, input string) error {
	got, err := os.ReadFile(filepath.Join(dir, input, "h"))
	if err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(input))
	if want := binary.LittleEndian.AppendUint64(nil, h.Sum64()); !bytes.Equal(got, want) {
		return fmt.Errorf("output of %s is %x, want %x", input, got, want)
	}
	return nil
}
