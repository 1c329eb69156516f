package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/dht/archive"
)

// crawlStale is how old the journal of a crawl may be that is gone on with: records live that long.
const crawlStale = 90 * time.Minute

type crawlFlags struct {
	dir       string
	joins     []string
	goal      float64
	listen    time.Duration
	wait      time.Duration
	parallel  int
	pace      int
	anonymise bool
	out       output
}

// crawlResult is what `gridbeam network crawl --output json` prints.
type crawlResult struct {
	Directory string           `json:"directory"`
	Seconds   float64          `json:"seconds"`
	Manifest  archive.Manifest `json:"manifest"`
}

func crawlCommand() *cobra.Command {
	var f crawlFlags
	c := &cobra.Command{
		Use:   "crawl --out DIR",
		Short: "Read the whole network into a directory of files",
		Long: `Asks every peer of the network for what it has, without a bridge: it walks the routing tables, scans every server of the directory for the
signed records that it holds, also of nodes that cannot be reached, and listens to heartbeats. The files are described in docs/research.md;
records and heartbeats keep their nodes' signatures, so that "gridbeam network verify DIR" can check them anywhere, offline.

A crawl that was cut off goes on when it is started again with the same --out. What nodes say of themselves is a claim and named so.

Exit code 3 when no peer has a record, 4 when less of the network was seen than --coverage asks for (the files are there all the same), 5
when nobody answers.`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error { return runCrawl(c, &f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.dir, "out", "", "directory for the files; it is made")
	fl.StringSliceVar(&f.joins, "join", nil, "address or invitation of a peer to begin with; repeatable")
	fl.Float64Var(&f.goal, "coverage", 0.99, "share of the network to see, above 0 to 1, as estimated")
	fl.DurationVar(&f.listen, "listen", 2*time.Minute, "listen to heartbeats for at least so long; 0 is not at all")
	fl.BoolVar(&f.anonymise, "anonymise", false, "leave out what points at a machine: IDs become pseudonyms, addresses networks, no signatures")
	fl.IntVar(&f.parallel, "parallel", 200, "ask so many peers at once")
	fl.IntVar(&f.pace, "pace", 50, "dial so many new peers a second")
	fl.DurationVar(&f.wait, "timeout", 10*time.Second, "give up reaching a first peer after so long")
	f.out.flag(c, false)
	return c
}

func (f *crawlFlags) plan() (dht.SurveyPlan, error) {
	p := dht.DefaultSurveyPlan()
	p.Goal, p.Listen, p.Parallel, p.Pace = f.goal, f.listen, f.parallel, f.pace
	switch {
	case f.dir == "":
		return p, usagef("say --out DIR, where the files go")
	case !(f.goal > 0 && f.goal <= 1):
		return p, usagef("--coverage is %v, want above 0 and at most 1, such as 0.99", f.goal)
	case f.listen < 0:
		return p, usagef("--listen is %s, want 0 or more", f.listen)
	case f.parallel < 1 || f.parallel > 5000:
		return p, usagef("--parallel is %d, want 1..5000", f.parallel)
	case f.pace < 1 || f.pace > 10000:
		return p, usagef("--pace is %d, want 1..10000", f.pace)
	case f.wait <= 0:
		return p, usagef("--timeout is %s, want above 0", f.wait)
	}
	return p, nil
}

// room says whether a crawl may use the directory: a finished one is not written over.
func (f *crawlFlags) room(now time.Time) error {
	info, err := os.Stat(filepath.Join(f.dir, archive.JournalFile))
	switch {
	case err == nil && now.Sub(info.ModTime()) > crawlStale:
		return usagef("the crawl in %s was cut off %s ago, and its records have expired since; name another directory or delete it", f.dir, now.Sub(info.ModTime()).Round(time.Minute))
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("looking into --out: %w", err)
	}
	if entries, err := os.ReadDir(f.dir); err == nil && len(entries) > 0 {
		return usagef("%s is not empty; a crawl wants a directory of its own, such as %s-%s", f.dir, filepath.Clean(f.dir), now.UTC().Format("20060102T1504"))
	}
	return nil
}

func runCrawl(c *cobra.Command, f *crawlFlags) error {
	plan, err := f.plan()
	if err != nil {
		return err
	}
	addrs, err := seeds(c, f.joins)
	if err != nil {
		return err
	}
	if err := f.room(time.Now()); err != nil {
		return err
	}
	key, err := crawlerKey(c)
	if err != nil {
		return err
	}
	log, err := logger(c, slog.LevelError)
	if err != nil {
		return err
	}
	observer, err := peerOf(key)
	if err != nil {
		return err
	}
	o := &archive.Outcome{
		Findings: dht.NewFindings(), Listen: f.listen, Goal: f.goal, Observer: observer, Software: "gridbeam " + version,
		Command: commandLine(os.Args[1:]), Anonymise: f.anonymise,
	}
	for _, a := range addrs {
		o.Seeds = append(o.Seeds, a.String())
	}
	s := &surveyor{seeds: addrs, log: log, wait: f.wait, links: 4 * f.parallel}
	began := time.Now()
	err = s.run(c.Context(), func(ctx context.Context, d *dht.Directory, infos []peer.AddrInfo) error {
		return f.survey(ctx, d, infos, plan, o, terminalProgress(c))
	})
	if o.Finished.IsZero() { // nothing was begun
		return err
	}
	m, werr := archive.Write(f.dir, o, key)
	if err := errors.Join(err, werr); err != nil {
		return err
	}
	res := crawlResult{Directory: f.dir, Seconds: time.Since(began).Seconds(), Manifest: m}
	if err := f.out.object(c.OutOrStdout(), &res, res.print); err != nil {
		return err
	}
	return res.judge(f.goal)
}

// commandLine is what the manifest says was run; where this user keeps files is nobody's business.
func commandLine(args []string) []string {
	out := []string{"gridbeam"}
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--config-dir":
			i++
		case strings.HasPrefix(args[i], "--config-dir="):
		default:
			out = append(out, args[i])
		}
	}
	return out
}

// survey runs the survey with its journal. When it is cut off, what it has seen is written all the same.
func (f *crawlFlags) survey(ctx context.Context, d *dht.Directory, infos []peer.AddrInfo, plan dht.SurveyPlan, o *archive.Outcome, say *progress) (err error) {
	journal, started, past, err := archive.OpenJournal(f.dir, time.Now())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	for _, e := range past {
		o.Findings.Take(e)
	}
	if len(past) > 0 {
		say.line("going on with the crawl that began at %s", started.Format(time.RFC3339))
	}
	stop := showing(say, func() string {
		n := o.Findings.Counts()
		text := fmt.Sprintf("%d peers visited, %d answered; %d of %d servers scanned; %d peers with a record, %d alive", n.Visited, n.Reached, n.Swept, n.Servers, n.Records, n.Alive)
		if left := plan.Listen - time.Since(started); left > 0 && n.Swept > 0 {
			text += fmt.Sprintf("; listening for %s more", left.Round(time.Second))
		}
		return text
	})
	err = d.Survey(ctx, plan, infos, o.Findings, journal.Take)
	stop()
	if errors.Is(err, dht.ErrNoServers) {
		return errors.Join(err, os.Remove(filepath.Join(f.dir, archive.JournalFile)))
	}
	o.Started, o.Finished, o.Complete = started, time.Now(), err == nil
	if ctx.Err() != nil {
		return fmt.Errorf("cut off after %d peers; the same command goes on from there", o.Findings.Counts().Visited)
	}
	return err
}

func (r *crawlResult) print(w io.Writer) {
	m := &r.Manifest
	n := m.Counts
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("visited   %d peers in %.1f s: %d answered", n["visited"], r.Seconds, n["reached"])
	p("scanned   %d servers of the directory, %d did not answer", n["scanned"], n["scans_failed"])
	p("records   %d peers have one, %d peers gave signs of life", n["peers_with_record"], n["present"])
	for _, k := range slices.Sorted(maps.Keys(m.Errors)) {
		p("refused   %d %s", m.Errors[k], inner.ReplaceAllString(k, ""))
	}
	p("coverage  %s", coverageText(m.Coverage))
	p("files     %s; check them anywhere: gridbeam network verify %s", r.Directory, r.Directory)
}

func coverageText(c archive.ManifestCoverage) string {
	if c.Share == nil {
		return "cannot be estimated: it needs an answer of two servers"
	}
	return fmt.Sprintf("%.1f %% of an estimated %.0f peers (95 %% confidence: %.1f to %.1f %%)", 100**c.Share, *c.Estimate, 100**c.ShareLow, 100**c.ShareHigh)
}

// judge turns what was seen into the exit code.
func (r *crawlResult) judge(goal float64) error {
	c := r.Manifest.Coverage
	switch {
	case r.Manifest.Counts["records"] == 0:
		return withCode(exitNoMatch, errors.New("no peer has a record"))
	case c.Share == nil:
		return withCode(exitGoalMissed, errors.New("how much of the network was seen cannot be estimated: it needs an answer of two servers"))
	case *c.Share < goal:
		return withCode(exitGoalMissed, fmt.Errorf("%.2f %% of the network was seen, --coverage asks for %.2f %%", 100**c.Share, 100*goal))
	}
	return nil
}

// surveyCommands are the researcher's part of `gridbeam network`.
func surveyCommands() []*cobra.Command {
	return []*cobra.Command{crawlCommand(), watchCommand(), statsCommand(), exportCommand(), verifyCommand()}
}
