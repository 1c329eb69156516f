//go:build !linux

package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/gridbeam/gridbeam/node"
)

// asChild says that this system has no sandboxes, so that nothing starts as a part of one.
func asChild(context.Context, []string) (done bool, err error) { return false, nil }

// proofLine is empty: GPUs are tested on Linux alone.
func proofLine() ([]string, error) { return nil, nil }

// sandboxBackend is empty: functions run in namespaces of Linux.
func sandboxBackend(string, *node.Config, *slog.Logger) ([]node.Backend, io.Closer, error) {
	return nil, nil, nil
}
