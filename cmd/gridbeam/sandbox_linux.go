package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/sandbox"
	"github.com/gridbeam/gridbeam/node/gpu"
)

// The hidden commands: children of the daemon, never typed.
const (
	shimCommand  = "shim"
	initCommand  = "sandbox-init"
	proofCommand = "gpu-proof"
)

// asChild runs this process as a child of a daemon if its arguments say so: the shim of a sandbox, its first process, or
// what has a GPU compute, before anything else of the program has begun.
func asChild(ctx context.Context, args []string) (done bool, err error) {
	if len(args) < 2 {
		return false, nil
	}
	switch args[0] {
	case shimCommand:
		return true, sandbox.RunShim(ctx, args[1:])
	case initCommand:
		return true, sandbox.RunInit(args[1:])
	case proofCommand:
		return true, gpu.RunProof(args[1:])
	}
	return false, nil
}

// proofLine begins the command line by which a GPU is tested.
func proofLine() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	return []string{self, proofCommand}, nil
}

// sandboxBackend is how a node runs functions, where its owner lets code of others share the kernel.
func sandboxBackend(dir string, cfg *node.Config, log *slog.Logger) ([]node.Backend, io.Closer, error) {
	if cfg.Policy.MinIsolation == executor.LevelStrong.String() {
		return nil, nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("finding this program: %w", err)
	}
	sc := sandbox.DefaultConfig()
	sc.Dir, sc.Shim, sc.Init = filepath.Join(dir, "sandbox"), []string{self, shimCommand}, []string{self, initCommand}
	b, err := sandbox.New(sc, log)
	if err != nil {
		return nil, nil, err
	}
	return []node.Backend{{Executor: b}}, b, nil
}
