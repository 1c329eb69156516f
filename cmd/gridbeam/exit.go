package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
)

// Exit codes (architecture.md 4.13).
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNoMatch      = 3
	exitGoalMissed   = 4
	exitNotConnected = 5
)

// exitError is an error with the exit code that it means.
type exitError struct {
	code int
	err  error
}

// Error returns the cause's text.
func (e *exitError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return withCode(exitUsage, fmt.Errorf(format, args...))
}

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if errors.Is(err, context.Canceled) {
		return exitFailed
	}
	return exitFailed
}

func goVersion() string { return runtime.Version() }

// commit is the revision that the binary was built from, as far as Go recorded it.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
