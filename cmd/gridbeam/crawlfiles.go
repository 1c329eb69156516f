package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht/archive"
)

// openCrawl reads a crawl directory; a wrong one is bad input.
func openCrawl(ctx context.Context, dir string) (*archive.Archive, error) {
	a, err := archive.Open(ctx, dir)
	if errors.Is(err, archive.ErrNoCrawl) {
		return nil, usagef("%s holds no crawl; gridbeam network crawl --out DIR makes one", dir)
	}
	return a, err
}

func statsCommand() *cobra.Command {
	var out output
	var by []string
	c := &cobra.Command{
		Use:   "stats [DIR]",
		Short: "Count a crawl's peers and GPUs by what they claim",
		Long: `Counts the current records of a crawl, for example:
  gridbeam network stats crawl-1 --by model,region

NODES are those of the PEERS that offer work; ALIVE gave a sign of life. A peer with several kinds of GPUs counts
as a peer in each line that one of them falls into. DIR is the present directory unless said.
What the files say is counted as it stands: gridbeam network verify tells whether it is what was signed.
Exit code 3 when there is nothing to count.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s wants one DIR, got %d arguments; see %s --help", c.CommandPath(), len(args), c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			a, err := openCrawl(c.Context(), append(args, ".")[0])
			if err != nil {
				return err
			}
			stats, err := a.Stats(by)
			if errors.Is(err, archive.ErrKey) {
				return usagef("--by: %s", inner.ReplaceAllString(err.Error(), ""))
			} else if err != nil {
				return err
			}
			var columns []column[archive.Stat]
			for i, k := range by {
				columns = append(columns, column[archive.Stat]{strings.ToUpper(k), func(s *archive.Stat) string { return s.By[i] }})
			}
			number := func(head string, of func(*archive.Stat) uint64) column[archive.Stat] {
				return column[archive.Stat]{head, func(s *archive.Stat) string { return strconv.FormatUint(of(s), 10) }}
			}
			columns = append(columns,
				number("PEERS", func(s *archive.Stat) uint64 { return uint64(s.Peers) }),
				number("NODES", func(s *archive.Stat) uint64 { return uint64(s.Nodes) }),
				number("ALIVE", func(s *archive.Stat) uint64 { return uint64(s.Alive) }),
				number("GPUS", func(s *archive.Stat) uint64 { return s.GPUs }),
				number("FREE", func(s *archive.Stat) uint64 { return s.Free }),
				number("VRAM GB", func(s *archive.Stat) uint64 { return s.VRAMGB }),
				number("CORES", func(s *archive.Stat) uint64 { return s.Cores }))
			if err := list(&out, c.OutOrStdout(), stats, columns); err != nil {
				return err
			}
			if len(stats) == 0 {
				return withCode(exitNoMatch, errors.New("the crawl has no current record"))
			}
			return nil
		},
	}
	c.Flags().StringSliceVar(&by, "by", []string{"model"}, "count by these, one or more of: "+strings.Join(archive.Keys(), ", "))
	out.flag(c, true)
	return c
}

func exportCommand() *cobra.Command {
	var format, path string
	var older bool
	c := &cobra.Command{
		Use:   "export DIR --format csv|parquet|ndjson|html",
		Short: "Write a crawl as one table, or as a page of plots",
		Long: `Writes one row for each group of identical GPUs of each node (one row for a node without), sorted by peer; the columns are described in
docs/research.md. Absent is empty, and what nodes claim of themselves is named claimed_. The same crawl gives the same bytes. The format
html is one self-contained page of plots. Only the manifest's signature is checked: gridbeam network verify checks the rows.

Exit code 3 when the crawl has no record.`,
		Args: exactArgs("DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains([]string{archive.FormatCSV, archive.FormatParquet, archive.FormatNDJSON, archive.FormatHTML}, format) {
				return usagef("--format is %q, want csv, parquet, ndjson or html", format)
			}
			a, err := openCrawl(c.Context(), args[0])
			if err != nil {
				return err
			}
			if len(a.Records) == 0 {
				return withCode(exitNoMatch, errors.New("the crawl has no record"))
			}
			if path == "" {
				if f, ok := c.OutOrStdout().(*os.File); ok && format == archive.FormatParquet && isatty.IsTerminal(f.Fd()) {
					return usagef("Parquet is not for terminals; say --out FILE")
				}
				return exportTo(c.OutOrStdout(), a, format, older)
			}
			f, err := os.Create(path)
			if err != nil {
				return fmt.Errorf("writing --out: %w", err)
			}
			return errors.Join(exportTo(f, a, format, older), f.Close())
		},
	}
	fl := c.Flags()
	fl.StringVar(&format, "format", "csv", "csv, parquet, ndjson or html")
	fl.StringVar(&path, "out", "", "file to write (default: standard output)")
	fl.BoolVar(&older, "all", false, "also records that a newer one has replaced, and of peers that have left: column current tells")
	return c
}

func exportTo(w io.Writer, a *archive.Archive, format string, older bool) error {
	b := bufio.NewWriterSize(w, 1<<16)
	return errors.Join(a.Export(b, format, older), b.Flush())
}

// holdsCrawl says whether a directory has a file of a crawl. One of which some are missing is a crawl that does not hold.
func holdsCrawl(dir string) bool {
	for _, name := range []string{archive.ManifestFile, archive.RecordsFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

func verifyCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "verify PATH",
		Short: "Check a crawl, or a file of its records, offline",
		Long: `Checks that each record and heartbeat was signed by the node that its row names and was valid when it was seen, that every column says
what the node signed, that rows are in order, that no file has changed, and that the crawler has signed the manifest. PATH is a crawl
directory, one _records.ndjson, or what gridbeam nodes show --raw prints. The first row that does not hold is named, with exit code 1.`,
		Args: exactArgs("PATH"),
		RunE: func(c *cobra.Command, args []string) error {
			st, err := os.Stat(args[0])
			if err != nil {
				return usagef("%s", err)
			}
			if st.IsDir() && !holdsCrawl(args[0]) {
				return usagef("%s holds no crawl; gridbeam network crawl --out DIR makes one (what network watch writes is not signed)", args[0])
			}
			v, err := archive.Verify(c.Context(), args[0])
			if err != nil {
				return fmt.Errorf("%s does not hold: %w", args[0], err)
			}
			return out.object(c.OutOrStdout(), v, func(w io.Writer) {
				p := func(format string, a ...any) { _, _ = fmt.Fprintf(w, format+"\n", a...) }
				switch {
				case v.Anonymised:
					p("%d rows, anonymised: only that no file has changed can be checked, and none has", v.Records)
				default:
					p("%d records and %d heartbeats are what their nodes signed", v.Records, v.Heartbeats)
				}
				if v.Signer != "" {
					p("%d files are those of the manifest, signed by %s", v.Files, v.Signer)
				} else {
					p("records alone: what the crawler observed is not signed here")
				}
			})
		},
	}
	out.flag(c, false)
	return c
}
