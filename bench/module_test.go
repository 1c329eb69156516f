package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/wasm"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestModuleWritesTheHashOfItsInput(t *testing.T) {
	for _, rounds := range []int64{0, 1, 1_000_000} {
		runsAndHashes(t, workModule(rounds))
	}
}

func runsAndHashes(t *testing.T, binary []byte) {
	t.Helper()
	backend, err := wasm.New(wasm.DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = backend.Close() }()
	dir := t.TempDir()
	task := executor.Task{
		Lease: protocol.NewLeaseID(), Module: executor.Module{CID: "nonce", Load: func(context.Context) ([]byte, error) { return binary, nil }},
		Inputs: []executor.Input{{Index: 7, Value: "nonce-7"}}, Command: []string{"nonce", "{input}"}, OutDir: dir, Limits: executor.DefaultLimits(time.Minute),
	}
	p, err := backend.Prepare(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}
	h, err := backend.Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Wait(t.Context())
	if err != nil || out.Reason != protocol.ReasonDone {
		t.Fatalf("outcome is %+v, %v", out, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "7", noncePath))
	if err != nil || !bytes.Equal(got, nonceOutput("nonce-7")) {
		t.Fatalf("wrote %x, %v, want %x", got, err, nonceOutput("nonce-7"))
	}
}
