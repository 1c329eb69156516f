package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/node"
)

// nodeDoctorCommand looks for what keeps a node from work.
func nodeDoctorCommand() *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use: "doctor", Short: "Look for what keeps this machine from work, with the fix for each finding", Args: exactArgs(),
		Long: `Looks at a running node and its place in the network, or, where none runs, at the machine, the configuration and what could run on it. Each
finding is ok, warn or error, and says what to do. Exit code 1 when there is an error.`,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := doctorStatus(c, &f)
			if err != nil {
				return err
			}
			found := s.Findings()
			if err := f.out.object(c.OutOrStdout(), found, func(w io.Writer) { writeFindings(w, found) }); err != nil {
				return err
			}
			bad := 0
			for _, x := range found {
				if x.Level == node.Failure {
					bad++
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d findings keep work away", bad, len(found))
			}
			return nil
		},
	}
	c.Flags().String("data", "", "data directory of the node")
	c.Flags().StringVar(&f.isolation, "min-isolation", "", "as for node run, where no node runs")
	f.out.flag(c, false)
	return c
}

// doctorStatus is that of the node that runs, else of one that would.
func doctorStatus(c *cobra.Command, f *nodeFlags) (node.Status, error) {
	control, err := dialNode(c)
	if err == nil {
		defer control.Close()
		s, err := control.Status(c.Context())
		if err == nil || !errors.Is(err, node.ErrNotRunning) {
			return s, err
		}
	} else if !errors.Is(err, node.ErrNotRunning) {
		return node.Status{}, err
	}
	dir, err := dataDir(c, "node")
	if err != nil {
		return node.Status{}, err
	}
	log, err := logger(c, slog.LevelError)
	if err != nil {
		return node.Status{}, err
	}
	f.yes = true // nothing is joined here
	cfg, err := nodeConfig(c, f, dir)
	if err != nil {
		return node.Status{}, err
	}
	if _, err := os.Stat(dir); err != nil { // looking makes nothing
		if cfg.Data, err = os.MkdirTemp("", "gridbeam-doctor-"); err != nil {
			return node.Status{}, fmt.Errorf("making a directory for self-tests: %w", err)
		}
		defer os.RemoveAll(cfg.Data)
	}
	backends, shut, err := nodeBackends(cfg.Data, &cfg, log)
	if err != nil {
		return node.Status{}, err
	}
	s, err := node.Examine(c.Context(), cfg, backends, log)
	return s, errors.Join(err, shut())
}

func writeFindings(w io.Writer, all []node.Finding) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, x := range all {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", x.Level, x.Check, printable(x.What))
		if x.Fix != "" {
			_, _ = fmt.Fprintf(t, "\t\t→ %s\n", printable(x.Fix))
		}
	}
	_ = t.Flush()
}
