package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/spf13/cobra"
)

// pprofFlag adds --pprof to all commands, hidden: it serves Go's profiles of the process for as long as the command
// runs, on loopback alone, since they show what is in memory.
func pprofFlag(root *cobra.Command) {
	addr := root.PersistentFlags().String("pprof", "", "serve profiles of this process on a loopback address such as 127.0.0.1:6060")
	_ = root.PersistentFlags().MarkHidden("pprof") // fails only for a flag that is not there
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if *addr == "" {
			return nil
		}
		return servePprof(c.Context(), *addr)
	}
}

func servePprof(ctx context.Context, addr string) error {
	if host, _, err := net.SplitHostPort(addr); err != nil || !net.ParseIP(host).IsLoopback() {
		return usagef("--pprof is %q, want a loopback address such as 127.0.0.1:6060", addr)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("--pprof: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			panic(err) // nobody would profile what is broken
		}
	}()
	return nil
}
