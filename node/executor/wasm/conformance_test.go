package wasm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/executortest"
)

// guest builds the suite's program once for all tests of this package; its compiled code is kept on disk in
// the same directory, which main removes.
var guest struct {
	once   sync.Once
	dir    string
	binary []byte
	err    error
}

func guestModule(t testing.TB) executor.Module {
	t.Helper()
	guest.once.Do(func() {
		if guest.dir, guest.err = os.MkdirTemp("", "gridbeam-wasm-test-"); guest.err != nil {
			return
		}
		name := filepath.Join(guest.dir, "guest.wasm")
		cmd := exec.Command("go", "build", "-trimpath", "-o", name, "../executortest/guest")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			guest.err = fmt.Errorf("building the guest: %w\n%s", err, out)
			return
		}
		guest.binary, guest.err = os.ReadFile(name)
	})
	if guest.err != nil {
		t.Fatal(guest.err)
	}
	return executor.Module{CID: "guest", Load: func(context.Context) ([]byte, error) { return guest.binary, nil }}
}

func guestCache() string { return filepath.Join(guest.dir, "cache") }

func TestConformance(t *testing.T) {
	module := guestModule(t)
	executortest.Run(t, executortest.Harness{
		New: func(t *testing.T) executor.Backend {
			return newBackend(t, func(c *Config) { c.CacheDir = guestCache() })
		},
		Guest:  module,
		Memory: 64 << 20,
	})
}
