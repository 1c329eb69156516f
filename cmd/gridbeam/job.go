package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/protocol"
)

func jobCommand() *cobra.Command {
	return group("job", "Submit jobs and follow them", jobSubmitCommand(), jobValidateCommand(), jobListCommand(), jobStatusCommand(), jobWaitCommand(),
		jobLogsCommand(), jobCancelCommand(), jobResultsCommand(), jobExplainCommand())
}

// apiFlags are those of every command that speaks to a bridge.
func apiFlags(c *cobra.Command) *cobra.Command {
	c.Flags().String("api", "", "address of the bridge's API (default: what this user's bridge has left in the configuration directory)")
	c.Flags().String("token", "", "token for it; better in the environment as GRIDBEAM_TOKEN")
	return c
}

// openClient returns a client of the bridge that the flags, the environment or the configuration directory name.
func openClient(c *cobra.Command) (*client.Client, error) {
	dir, err := configDir(c)
	if err != nil {
		return nil, err
	}
	s, err := readClient(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	own := s.API
	for _, o := range []struct {
		to        *string
		flag, env string
	}{{&s.API, "api", "GRIDBEAM_API"}, {&s.Token, "token", "GRIDBEAM_TOKEN"}} {
		if v := os.Getenv(o.env); v != "" {
			*o.to = v
		}
		if v, _ := c.Flags().GetString(o.flag); v != "" {
			*o.to = v
		}
	}
	if s.API == "" {
		return nil, withCode(exitNotConnected, errors.New("no bridge is known here; start one with gridbeam bridge run, or say --api and --token"))
	}
	if s.API != own { // another bridge's certificate is the system's roots' business
		s.TLS = ""
	}
	return newClient(s)
}

// withClient runs f with a client and gives its errors their exit codes.
func withClient(c *cobra.Command, f func(ctx context.Context, api *client.Client) error) error {
	api, err := openClient(c)
	if err != nil {
		return err
	}
	defer api.Close()
	return apiError(f(c.Context(), api))
}

// apiError gives the errors of the API their exit codes.
func apiError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*exitError](err); ok {
		return err
	}
	if errors.Is(err, client.ErrNotConnected) {
		return withCode(exitNotConnected, err)
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		switch e.Code {
		case protocol.CodeBadJob, protocol.CodeBadModule, protocol.CodeBadRequest, protocol.CodeBadTree, protocol.CodeNotOffered, protocol.CodeTooLarge:
			return withCode(exitUsage, err)
		case protocol.CodeNotFound:
			return withCode(exitNoMatch, err)
		}
	}
	return err
}

func jobSubmitCommand() *cobra.Command {
	var out output
	var wait bool
	c := &cobra.Command{
		Use: "submit FILE", Short: "Submit a job file", Args: exactArgs("FILE"),
		Long: "Submits a job file. What is wrong in it is refused before anything starts, naming the field. With --wait it stays until the job has ended, with exit code 1 when it failed.",
		RunE: func(c *cobra.Command, args []string) error {
			file, err := client.LoadJob(args[0])
			if err != nil {
				return withCode(exitUsage, err)
			}
			return withClient(c, func(ctx context.Context, api *client.Client) error {
				say := newProgress(c.ErrOrStderr(), out.json() && !wait)
				defer say.done()
				req, err := api.Prepare(ctx, file, say.transfer("of the module"))
				if err != nil {
					return err
				}
				s, err := api.Submit(ctx, req)
				if err != nil {
					return err
				}
				if !wait {
					return out.object(c.OutOrStdout(), s, func(w io.Writer) {
						_, _ = fmt.Fprintf(w, "%s\n", s.ID)
						_, _ = fmt.Fprintf(c.ErrOrStderr(), "submitted %s with %d inputs; follow it with: gridbeam job wait %s\n", printable(s.Name), s.Inputs, s.ID)
					})
				}
				say.line("job %s, %d inputs", s.ID, s.Inputs)
				return follow(ctx, c, api, &out, say, s)
			})
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until the job has ended")
	out.flag(c, false)
	return apiFlags(c)
}

// follow shows progress until the job is over, then its status; a job that is not done is an error.
func follow(ctx context.Context, c *cobra.Command, api *client.Client, out *output, say *progress, s protocol.JobStatus) error {
	id := s.ID
	s, err := api.Wait(ctx, id, func(now protocol.JobStatus) { say.bar(now.InputsDone, now.Inputs, jobLine(&now)) })
	if err != nil && ctx.Err() != nil {
		return withCode(exitFailed, fmt.Errorf("stopped waiting; the job goes on: gridbeam job wait %s, or gridbeam job cancel %s", id, id))
	}
	if err != nil {
		return err
	}
	say.done()
	if err := out.object(c.OutOrStdout(), s, func(w io.Writer) { writeStatus(w, &s, time.Now()) }); err != nil {
		return err
	}
	switch s.State {
	case "done":
		if s.CallsFailed > 0 {
			return withCode(exitFailed, fmt.Errorf("job %s: %s", s.ID, firstLine(s.Note)))
		}
		if !out.json() && s.ResultCID != "" {
			say.line("fetch the results with: gridbeam job results %s --out DIR", s.ID)
		}
		return nil
	case "cancelled":
		return withCode(exitFailed, fmt.Errorf("job %s was cancelled", s.ID))
	}
	return withCode(exitFailed, fmt.Errorf("job %s failed: %s (%s)", s.ID, firstLine(s.Text), reasonText(s.Reason)))
}

func jobValidateCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "validate FILE", Short: "Check a job file and start nothing", Args: exactArgs("FILE"), RunE: func(c *cobra.Command, args []string) error {
		file, err := client.LoadJob(args[0])
		if err != nil {
			return withCode(exitUsage, err)
		}
		api, err := openClient(c)
		if exitCode(err) == exitNotConnected && err != nil {
			return out.object(c.OutOrStdout(), protocol.ValidateReply{Notes: []string{"no bridge was asked"}}, func(w io.Writer) {
				_, _ = fmt.Fprintln(w, "the file is valid; no bridge is known here to ask whether nodes match")
			})
		}
		if err != nil {
			return err
		}
		defer api.Close()
		r, err := api.Validate(c.Context(), protocol.SubmitRequest{Job: file.Job, Lines: file.Lines})
		if err != nil {
			return apiError(err)
		}
		return out.object(c.OutOrStdout(), r, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "valid: %d inputs; %s\n", r.Inputs, printable(r.Summary))
			for _, n := range r.Notes {
				_, _ = fmt.Fprintln(w, printable(n))
			}
		})
	}}
	out.flag(c, false)
	return apiFlags(c)
}

func jobListCommand() *cobra.Command {
	var out output
	var limit int
	c := &cobra.Command{Use: "list", Short: "List jobs, the newest first", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		if limit < 1 {
			return usagef("--limit is %d, want at least 1", limit)
		}
		return withClient(c, func(ctx context.Context, api *client.Client) error {
			l, err := api.Jobs(ctx, client.JobQuery{Limit: limit})
			if err != nil {
				return err
			}
			return list(&out, c.OutOrStdout(), l.Jobs, jobColumns(time.Now()))
		})
	}}
	c.Flags().IntVar(&limit, "limit", 50, "at most so many")
	out.flag(c, true)
	return apiFlags(c)
}

// jobVerb is a command about one job.
func jobVerb(use, short string, out *output, run func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error) *cobra.Command {
	c := &cobra.Command{Use: use + " JOB", Short: short, Args: exactArgs("JOB"), RunE: func(c *cobra.Command, args []string) error {
		id, err := protocol.ParseJobID(args[0])
		if err != nil {
			return usagef("%q is no job; its ID has 26 letters and digits, see gridbeam job list", args[0])
		}
		return withClient(c, func(ctx context.Context, api *client.Client) error { return run(ctx, c, api, id) })
	}}
	if out != nil {
		out.flag(c, false)
	}
	return apiFlags(c)
}

func jobStatusCommand() *cobra.Command {
	var out output
	return jobVerb("status", "How a job stands", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		s, err := api.Job(ctx, id)
		if err != nil {
			return err
		}
		return out.object(c.OutOrStdout(), s, func(w io.Writer) { writeStatus(w, &s, time.Now()) })
	})
}

func jobWaitCommand() *cobra.Command {
	var out output
	return jobVerb("wait", "Wait until a job has ended; exit code 1 when it failed", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		s, err := api.Job(ctx, id)
		if err != nil {
			return err
		}
		say := newProgress(c.ErrOrStderr(), false)
		defer say.done()
		return follow(ctx, c, api, &out, say, s)
	})
}

func jobCancelCommand() *cobra.Command {
	var out output
	return jobVerb("cancel", "End a job", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		s, err := api.Cancel(ctx, id)
		if err != nil {
			return err
		}
		return out.object(c.OutOrStdout(), s, func(w io.Writer) { _, _ = fmt.Fprintf(w, "job %s is %s\n", s.ID, s.State) })
	})
}

func jobLogsCommand() *cobra.Command {
	var out output
	var follow bool
	c := jobVerb("logs", "What the job's chunks have printed", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		return api.Logs(ctx, id, follow, func(l protocol.LogLine) error {
			if out.json() {
				return writeJSON(c.OutOrStdout(), l, false)
			}
			if l.Dropped > 0 {
				_, _ = fmt.Fprintf(c.OutOrStdout(), "[%d,%d) %d bytes dropped\n", l.First, l.End, l.Dropped)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "[%d,%d) %s\n", l.First, l.End, printable(l.Text))
			return err
		})
	})
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	return c
}

func jobResultsCommand() *cobra.Command {
	var out output
	var dir string
	c := jobVerb("results", "Fetch a job's outputs", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		if dir == "" {
			return usagef("say where to: --out DIR")
		}
		say := newProgress(c.ErrOrStderr(), out.json())
		defer say.done()
		root, err := api.Results(ctx, id, dir, say.transfer("of the results"))
		if err != nil {
			return err
		}
		say.done()
		v := struct {
			Job       protocol.JobID `json:"job_id"`
			ResultCID string         `json:"result_cid"`
			Out       string         `json:"out"`
		}{id, root, dir}
		return out.object(c.OutOrStdout(), v, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s is in %s\n", v.ResultCID, dir) })
	})
	c.Flags().StringVar(&dir, "out", "", "directory to write to; made if absent")
	return c
}

func jobExplainCommand() *cobra.Command {
	var out output
	return jobVerb("explain", "Why these nodes, predicted and actual", &out, func(ctx context.Context, c *cobra.Command, api *client.Client, id protocol.JobID) error {
		x, err := api.Explain(ctx, id)
		if err != nil {
			return err
		}
		return out.object(c.OutOrStdout(), x, func(w io.Writer) { writeExplain(w, &x) })
	})
}

// newClient makes a client of the API that the settings name.
func newClient(s clientSettings) (*client.Client, error) {
	cfg := client.DefaultConfig(s.API, s.Token)
	if s.TLS != "" {
		cfg.TLS = pinned(s.TLS)
	}
	api, err := client.New(cfg)
	return api, withCode(exitUsage, err)
}

// pinned trusts the one certificate with a SHA-256: names and issuers are for those who do not know it already.
func pinned(sum string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the check is below
		VerifyConnection: func(c tls.ConnectionState) error {
			if got := sha256.Sum256(c.PeerCertificates[0].Raw); hex.EncodeToString(got[:]) != sum {
				return errors.New("the certificate is not that of this user's bridge; was the bridge started again by another user?")
			}
			return nil
		},
	}
}

// reasonText is the text of a Reason by its name, with what to do.
func reasonText(name string) string {
	for _, r := range protocol.Reasons() {
		if r.String() == name {
			return r.Text()
		}
	}
	return name
}
