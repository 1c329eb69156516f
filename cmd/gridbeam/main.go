package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	if done, err := asChild(context.Background(), os.Args[1:]); done {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
		return
	}
	ctx, stop := interruptible()
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// interruptible returns a context that the first SIGINT or SIGTERM ends; a second one kills the process.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan os.Signal, 2) // one to end, one to kill
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-c
		cancel()
		<-c
		os.Exit(exitFailed)
	}()
	return ctx, cancel
}

// inner are the names of packages that begin an error: of no use to who reads it.
var inner = regexp.MustCompile(`(?m)^(client|protocol|store|node|p2p|beambridge|volumes|dht|archive|executor): `)

// run is main with its surroundings as values; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if text := strings.TrimSpace(err.Error()); text != "" {
		_, _ = fmt.Fprintln(stderr, "gridbeam: "+inner.ReplaceAllString(text, ""))
	}
	return code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "gridbeam",
		Short: "Joins GPU machines into clusters and runs ML jobs on them, peer to peer",
		Long: `gridbeam joins GPU machines, wherever they stand, into clusters on demand and runs ML jobs on them.

  gridbeam demo            see it work: a whole network and a job, on this machine
  gridbeam bridge run      take jobs and find nodes for them
  gridbeam node run        offer this machine
  gridbeam job submit F    run a job
  gridbeam nodes           who is there

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 nothing matched, 4 goal missed, 5 not connected.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			_, err := logger(c, slog.LevelError)
			return err
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().String("config-dir", "", "directory of the user's gridbeam files (default: gridbeam in the user's configuration directory)")
	root.PersistentFlags().String("log-level", "", "log to standard error from this level: debug, info, warn, error (default: info for daemons, error else)")
	pprofFlag(root)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%s; see %s --help", err, c.CommandPath())
	})
	root.AddCommand(demoCommand(), nodeCommand(), bridgeCommand(), jobCommand(), nodesCommand(), volumeCommand(), networkCommand(),
		reputationCommand(), settlementCommand(), versionCommand())
	return root
}

// noCommand refuses words that are no command, naming the nearest.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
	}
	return usagef("%s has no command %q%s; see %s --help", c.CommandPath(), args[0], hint, c.CommandPath())
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noCommand, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(children...)
	return c
}

// exactArgs wants the named arguments, no more and no less.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want := "no argument"
		if len(names) > 0 {
			want = strings.Join(names, " ")
		}
		return usagef("%s wants %s, got %d arguments; see %s --help", c.CommandPath(), want, len(args), c.CommandPath())
	}
}

func versionCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "version", Short: "Version and what it speaks", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		v := struct {
			Version string `json:"version"`
			Go      string `json:"go"`
			Commit  string `json:"commit,omitempty"`
			Wire    string `json:"wire"`
		}{version, goVersion(), commit(), "1.0.0"}
		return out.object(c.OutOrStdout(), v, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "gridbeam %s (%s, wire %s)\n", v.Version, v.Go, v.Wire)
		})
	}}
	out.flag(c, false)
	return c
}

// logger logs to standard error from the level of --log-level, or fallback.
func logger(c *cobra.Command, fallback slog.Level) (*slog.Logger, error) {
	level := fallback
	if text, _ := c.Flags().GetString("log-level"); text != "" {
		if err := level.UnmarshalText([]byte(text)); err != nil {
			return nil, usagef("--log-level is %q, want debug, info, warn or error", text)
		}
	}
	return slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level})), nil
}
