package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

type demoFlags struct {
	nodes    int
	killNode bool
	keep     bool
	wasm     string
	data     string
	price    string
	timeout  time.Duration
	out      output

	churn      bool
	churnEvery time.Duration
	truth      string
}

// jobNodes is how many nodes a demo with a job may have.
const jobNodes = 8

// demoResult is what `gridbeam demo --output json` prints.
type demoResult struct {
	JobID       string      `json:"job_id"`
	State       string      `json:"state"`
	ChunksTotal uint64      `json:"chunks_total"`
	ChunksDone  uint64      `json:"chunks_done"`
	WallSeconds float64     `json:"wall_seconds"`
	JobSeconds  float64     `json:"job_seconds"`
	Best        demoBest    `json:"best"`
	Nodes       []demoNode  `json:"nodes"`
	Receipts    uint64      `json:"receipts"`
	Volume      demoVolume  `json:"volume"`
	ResultCID   string      `json:"result_cid"`
	Killed      *demoKilled `json:"killed,omitempty"`
	CostUUSD    int64       `json:"cost_uusd"`
	CreditUUSD  int64       `json:"credit_left_uusd"`
	Directory   string      `json:"directory,omitempty"`
}

type demoBest struct {
	Config             json.RawMessage `json:"config"`
	Accuracy           float64         `json:"accuracy"`
	ValidationAccuracy float64         `json:"validation_accuracy"`
	File               string          `json:"file"`
}

type demoNode struct {
	PeerID        string                    `json:"peer_id"`
	PID           int                       `json:"pid"`
	Chunks        uint64                    `json:"chunks"`
	CPUSeconds    float64                   `json:"cpu_seconds"`
	BlocksFetched uint64                    `json:"blocks_fetched"`
	ScoreBefore   float64                   `json:"score_before"`
	ScoreAfter    float64                   `json:"score_after"`
	EarnedUUSD    int64                     `json:"charged_uusd"`
	Before        []protocol.CriterionScore `json:"criteria_before"`
	After         []protocol.CriterionScore `json:"criteria_after"`
}

type demoVolume struct {
	CID    string `json:"cid"`
	Bytes  uint64 `json:"bytes"`
	Blocks uint64 `json:"blocks"`
}

type demoKilled struct {
	PeerID string      `json:"peer_id"`
	PID    int         `json:"pid"`
	Leases int         `json:"leases_held"`
	Chunks []demoChunk `json:"chunks_leased_again"`
}

type demoChunk struct {
	First uint64 `json:"first"`
	End   uint64 `json:"end"`
	Fence uint64 `json:"fence"`
}

func demoCommand() *cobra.Command {
	var f demoFlags
	c := &cobra.Command{
		Use:   "demo",
		Short: "A whole network of processes on loopback and one real job",
		Long: `Starts one bridge and several nodes as processes on loopback, imports the UCI optical digits as a volume, trains 64 small neural networks
on the nodes, and prints the best one, who did what, what it cost and how the scores moved. Everything lives in a temporary directory.

With --churn, --truth or more than 8 nodes it is something to crawl instead: no job is run, nodes come and go, and the file --truth says who was
there when, for example: gridbeam demo --keep --nodes 50 --churn --truth truth.ndjson`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.nodes < 1 || f.nodes > jobNodes && !f.keep {
				return usagef("--nodes is %d, want 1..%d (with --keep: 1..%d, and no job)", f.nodes, jobNodes, crowdNodes)
			}
			if f.crowd() {
				if err := f.checkCrowd(); err != nil {
					return err
				}
			}
			if ask, err := protocol.ParseMoney(f.price); err != nil || ask < 0 {
				return usagef("--price is %q, want dollars per slot and hour such as 0.36", f.price)
			}
			if f.killNode && f.nodes < 2 {
				return usagef("--kill-node needs a second node to go on: say --nodes 2 or more")
			}
			return runDemo(c, &f)
		},
	}
	fl := c.Flags()
	fl.IntVar(&f.nodes, "nodes", 3, "number of nodes, 1..8; with --keep more, and no job")
	fl.BoolVar(&f.killNode, "kill-node", false, "kill a node with SIGKILL while it holds leases")
	fl.BoolVar(&f.keep, "keep", false, "stay up after the job, until Ctrl-C")
	fl.BoolVar(&f.churn, "churn", false, "nodes join, leave and are killed; no job is run")
	fl.DurationVar(&f.churnEvery, "churn-every", 0, "one node is replaced so often on average (default: a tenth of them a minute)")
	fl.StringVar(&f.truth, "truth", "", "write a line of JSON to this file when a node has joined, left or been killed; no job is run")
	fl.StringVar(&f.wasm, "wasm", "", "the job's module (default: sweep.wasm beside this program, as make demo builds it)")
	fl.StringVar(&f.data, "dataset", "", "directory to import (default: examples/sweep/data of the source)")
	fl.StringVar(&f.price, "price", "0.36", "what the nodes ask, dollars per slot and hour")
	fl.DurationVar(&f.timeout, "timeout", 5*time.Minute, "give up after so long")
	f.out.flag(c, false)
	return c
}

// demo is a running demonstration.
type demo struct {
	f     *demoFlags
	say   *progress
	dir   string
	start time.Time
	l     *launcher

	bridge   *child
	bridgeID string
	nodes    []*demoPeer
	held     []node.LeaseStatus // by the killed node
	api      *client.Client
	res      demoResult
}

type demoPeer struct {
	*child
	id     string
	before []protocol.CriterionScore
}

// runDemo is the whole of it; whatever happens, no process is left.
func runDemo(c *cobra.Command, f *demoFlags) (err error) {
	ctx, cancel := context.WithTimeoutCause(c.Context(), f.timeout, fmt.Errorf("the demo took longer than %s", f.timeout))
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	if !f.crowd() {
		if err := f.find(exe); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "gridbeam-demo-")
	if err != nil {
		return fmt.Errorf("making a temporary directory: %w", err)
	}
	level, _ := c.Flags().GetString("log-level")
	if level == "" {
		level = slog.LevelInfo.String()
	}
	d := &demo{
		f: f, say: newProgress(c.ErrOrStderr(), false), dir: dir, start: time.Now(),
		l: &launcher{exe: exe, dir: dir, common: []string{"--config-dir", filepath.Join(dir, "config"), "--log-level", level, "--output", "json"}},
	}
	defer func() {
		d.say.done()
		err = errors.Join(err, d.end())
		if err != nil && c.Context().Err() == nil {
			d.say.line("logs and data are kept in %s", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	steps := []func(context.Context) error{d.startBridge, d.importData, d.startNodes, d.runJob, d.collect}
	if f.crowd() {
		steps = []func(context.Context) error{d.startBridge, func(ctx context.Context) error { return d.runCrowd(c.Context(), ctx, c.OutOrStdout()) }}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
				return errors.Join(cause, err)
			}
			return err
		}
	}
	if f.crowd() {
		return nil
	}
	d.say.done()
	if err := f.out.object(c.OutOrStdout(), &d.res, d.print); err != nil {
		return err
	}
	if f.keep {
		d.say.line("staying up until Ctrl-C; try: %s --config-dir %s job list", exe, filepath.Join(dir, "config"))
		<-c.Context().Done()
	}
	return nil
}

// find fills in where the job's module and data are.
func (f *demoFlags) find(exe string) error {
	near := filepath.Dir(exe)
	if f.wasm == "" {
		f.wasm = filepath.Join(near, "sweep.wasm")
	}
	if f.data == "" {
		f.data = firstDir(filepath.Join(near, "..", "examples", "sweep", "data"), filepath.Join("examples", "sweep", "data"))
	}
	if _, err := os.Stat(f.data); err != nil {
		return usagef("--dataset: %s; run it from the source tree or name the directory", err)
	}
	if _, err := os.Stat(f.wasm); err != nil {
		return usagef("--wasm: %s; build it with: make sweep", err)
	}
	return nil
}

func firstDir(dirs ...string) string {
	for _, d := range dirs {
		if _, err := os.Stat(d); err == nil {
			return d
		}
	}
	return dirs[0]
}

func (d *demo) startBridge(ctx context.Context) error {
	d.say.show("starting the bridge")
	var err error
	d.bridge, err = d.l.start("bridge", "bridge", "run", "--data", filepath.Join(d.dir, "bridge"), "--listen", "/ip4/127.0.0.1/tcp/0", "--listen",
		"/ip4/127.0.0.1/udp/0/quic-v1", "--api", "127.0.0.1:0", "--beam", "127.0.0.1:0", "--mdns=false", "--local")
	if err != nil {
		return err
	}
	var r bridgeReady
	if err := d.bridge.ready(ctx, &r); err != nil {
		return err
	}
	settings, err := readClient(filepath.Join(d.dir, "config"))
	if err != nil {
		return fmt.Errorf("reading how to reach the bridge: %w", err)
	}
	d.api, err = newClient(settings)
	if err != nil {
		return err
	}
	_, err = d.api.Credit(ctx, protocol.CreditRequest{User: operatorUser, AmountUUSD: 5_000_000, Source: "grant/demo", Ref: "demo"})
	d.bridgeID = r.PeerID
	d.say.line("bridge   %s, pid %d", r.PeerID, d.bridge.pid())
	return err
}

// importData imports a copy of the data set and deletes it, so that whatever the nodes read came over the wire.
func (d *demo) importData(ctx context.Context) error {
	d.say.show("importing the data")
	data := filepath.Join(d.dir, "data")
	if err := os.CopyFS(data, os.DirFS(d.f.data)); err != nil {
		return fmt.Errorf("copying the data: %w", err)
	}
	v, err := d.api.PutVolume(ctx, "digits", data, nil)
	if err != nil {
		return fmt.Errorf("importing the data: %w", err)
	}
	if err := os.RemoveAll(data); err != nil {
		return fmt.Errorf("deleting the imported directory: %w", err)
	}
	d.res.Volume = demoVolume{v.CID, v.Bytes, v.Blocks}
	d.say.line("volume   %s, %d bytes in %d blocks; the directory is deleted", v.CID, v.Bytes, v.Blocks)
	return nil
}

func (d *demo) startNodes(ctx context.Context) error {
	d.say.show(fmt.Sprintf("starting %d nodes", d.f.nodes))
	for i := range d.f.nodes {
		name := fmt.Sprintf("node-%d", i+1)
		p, err := d.l.start(name, "node", "run", "--data", filepath.Join(d.dir, name), "--mdns=false", "--local", "--offer-cpu", "--measure", "0", "--price", d.f.price, "--drain", "1s")
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, &demoPeer{child: p})
	}
	for _, n := range d.nodes {
		var r nodeReady
		if err := n.ready(ctx, &r); err != nil {
			return err
		}
		n.id = r.Status.PeerID.String()
		d.say.line("%s   %s, pid %d, %d slots at %s", n.name, n.id, n.pid(), r.Status.Slots, priceText(&r.Status.Ask))
	}
	return d.awaitNodes(ctx)
}

// awaitNodes waits until the bridge has heard every node, and notes their scores.
func (d *demo) awaitNodes(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		nodes, err := d.api.Nodes(ctx, "")
		if err != nil {
			return fmt.Errorf("asking the bridge for its nodes: %w", err)
		}
		ready := 0
		for _, n := range nodes.Nodes {
			if n.State == "READY" && d.peer(n.PeerID.String()) != nil {
				ready++
			}
		}
		if ready == len(d.nodes) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the bridge has heard %d of %d nodes: %w", ready, len(d.nodes), context.Cause(ctx))
		}
	}
	for _, n := range d.nodes {
		r, err := d.reputation(ctx, n.id)
		if err != nil {
			return err
		}
		n.before = r.Criteria
	}
	return nil
}

func (d *demo) reputation(ctx context.Context, id string) (protocol.Reputation, error) {
	p, err := decodePeer(id)
	if err != nil {
		return protocol.Reputation{}, err
	}
	r, err := d.api.Reputation(ctx, p)
	if err != nil {
		return r, fmt.Errorf("asking for the score of %s: %w", id, err)
	}
	return r, nil
}

func (d *demo) peer(id string) *demoPeer {
	for _, n := range d.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// sweepJob is the grid of examples/sweep/job.yaml.
const sweepJob = `
name: digits-sweep
kind: map
run: {wasm: sweep.wasm, command: [sweep, --data, /data, --config, "{input}"]}
inputs:
  grid: {lr: [0.01, 0.02, 0.05, 0.1], hidden: [16, 32], epochs: [10, 20], seed: [1, 2, 3, 4]}
chunk: 1
volumes: [{name: digits, at: /data, mode: ro}]
policy: {timeout: 2m, retries: 2, compare: exact}
`

func (d *demo) runJob(ctx context.Context) error {
	d.say.show("submitting the job")
	job, err := protocol.ParseJob([]byte(sweepJob), "demo")
	if err != nil {
		return fmt.Errorf("reading the demo's job: %w", err)
	}
	m, err := d.api.PutModule(ctx, d.f.wasm, nil)
	if err != nil {
		return fmt.Errorf("uploading the module: %w", err)
	}
	s, err := d.api.Submit(ctx, protocol.SubmitRequest{Job: job, ModuleCID: m.CID})
	if err != nil {
		return fmt.Errorf("submitting the job: %w", err)
	}
	d.say.line("job      %s, %d inputs", s.ID, s.Inputs)
	var failed error
	s, err = d.api.Wait(ctx, s.ID, func(now protocol.JobStatus) {
		d.say.bar(now.InputsDone, now.Inputs, jobLine(&now))
		if d.f.killNode && d.res.Killed == nil && failed == nil && now.InputsDone >= 4 && !now.State.Over() {
			failed = d.killOne(ctx, &now)
		}
	})
	if err = errors.Join(failed, err); err != nil {
		return fmt.Errorf("waiting for the job: %w", err)
	}
	d.say.done()
	return d.judge(&s)
}

// killOne kills the node that holds most leases.
func (d *demo) killOne(ctx context.Context, s *protocol.JobStatus) error {
	var victim *demoPeer
	var held []node.LeaseStatus
	for _, n := range d.nodes {
		control, err := node.Dial(ctx, filepath.Join(d.dir, n.name))
		if err != nil {
			return err
		}
		status, err := control.Status(ctx)
		control.Close()
		if err != nil {
			return err
		}
		if len(status.Leases) > len(held) {
			victim, held = n, status.Leases
		}
	}
	if victim == nil {
		return nil // between two grants; the next progress tries again
	}
	if err := victim.kill(); err != nil {
		return err
	}
	d.held = held
	d.res.Killed = &demoKilled{PeerID: victim.id, PID: victim.pid(), Leases: len(held), Chunks: []demoChunk{}}
	d.say.line("killed   %s (pid %d) with SIGKILL while it held %d leases, after %d of %d inputs", victim.name, victim.pid(), len(held), s.InputsDone, s.Inputs)
	return nil
}

func (d *demo) judge(s *protocol.JobStatus) error {
	d.res.JobID, d.res.State, d.res.ChunksTotal, d.res.ChunksDone = s.ID.String(), string(s.State), s.ChunksTotal, s.ChunksDone
	d.res.Receipts, d.res.ResultCID, d.res.CostUUSD, d.res.JobSeconds = s.Receipts, s.ResultCID, s.SpentUUSD, seconds(s, time.Now())
	if k := d.res.Killed; k != nil {
		for _, r := range s.Retried {
			if slices.ContainsFunc(d.held, func(l node.LeaseStatus) bool { return l.First == r.First && l.End == r.End }) {
				k.Chunks = append(k.Chunks, demoChunk{r.First, r.End, r.Fence})
			}
		}
	}
	switch {
	case s.State != "done":
		return fmt.Errorf("the job ended %s: %s", s.State, s.Text)
	case s.ChunksDone != s.ChunksTotal || s.InputsDone != s.Inputs:
		return fmt.Errorf("%d of %d chunks, %d of %d inputs are done", s.ChunksDone, s.ChunksTotal, s.InputsDone, s.Inputs)
	case d.f.killNode && d.res.Killed == nil:
		return errors.New("the job was over before a node could be killed")
	}
	total := uint64(0)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		total += n.Chunks
		row := demoNode{PeerID: n.PeerID.String(), Chunks: n.Chunks, CPUSeconds: n.CPUSeconds, BlocksFetched: n.BlocksFetched, EarnedUUSD: n.SpentUUSD}
		if p := d.peer(row.PeerID); p != nil {
			row.PID, row.Before = p.pid(), p.before
		}
		d.res.Nodes = append(d.res.Nodes, row)
	}
	if total != s.ChunksDone {
		return fmt.Errorf("nodes account for %d chunks, the job for %d", total, s.ChunksDone)
	}
	return nil
}

// collect fetches the outputs, finds the best model and the scores after the job.
func (d *demo) collect(ctx context.Context) error {
	d.say.show("fetching the results")
	id, err := protocol.ParseJobID(d.res.JobID)
	if err != nil {
		return err
	}
	out := filepath.Join(d.dir, "results")
	if _, err := d.api.Results(ctx, id, out, nil); err != nil {
		return fmt.Errorf("fetching the results: %w", err)
	}
	if d.res.Best, err = bestOf(filepath.Join(out, "results"), int(d.res.ChunksTotal)); err != nil {
		return err
	}
	for i := range d.res.Nodes {
		n := &d.res.Nodes[i]
		r, err := d.reputation(ctx, n.PeerID)
		if err != nil {
			return err
		}
		n.After, n.ScoreAfter = r.Criteria, r.Score
		n.ScoreBefore = overall(n.Before)
	}
	slices.SortFunc(d.res.Nodes, func(a, b demoNode) int { return strings.Compare(d.nameOf(a.PeerID), d.nameOf(b.PeerID)) })
	account, err := d.api.Account(ctx)
	if err != nil {
		return fmt.Errorf("asking for the account: %w", err)
	}
	// What the job had set aside comes back when the last late receipt is in.
	d.res.CreditUUSD, d.res.WallSeconds = account.CreditUUSD+account.ReservedUUSD, time.Since(d.start).Seconds()
	return nil
}

func (d *demo) nameOf(id string) string {
	if n := d.peer(id); n != nil {
		return n.name
	}
	return id
}

// bestOf picks the configuration with the most correct validation rows, of equals the first by file name; its
// accuracy on the test part is what counts.
func bestOf(dir string, want int) (best demoBest, err error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return best, fmt.Errorf("reading the results: %w", err)
	}
	if len(entries) != want {
		return best, fmt.Errorf("%d result files for %d configurations", len(entries), want)
	}
	type score struct {
		Correct  int         `json:"correct"`
		Accuracy json.Number `json:"accuracy"`
	}
	most := -1
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return best, fmt.Errorf("reading a result: %w", err)
		}
		var r struct {
			Config     json.RawMessage `json:"config"`
			Validation score           `json:"validation"`
			Test       score           `json:"test"`
		}
		if err := json.Unmarshal(b, &r); err != nil {
			return best, fmt.Errorf("reading %s: %w", e.Name(), err)
		}
		if r.Validation.Correct > most {
			most = r.Validation.Correct
			test, err1 := strconv.ParseFloat(r.Test.Accuracy.String(), 64)
			val, err2 := strconv.ParseFloat(r.Validation.Accuracy.String(), 64)
			if err := errors.Join(err1, err2); err != nil {
				return best, fmt.Errorf("reading %s: %w", e.Name(), err)
			}
			best = demoBest{Config: r.Config, Accuracy: test, ValidationAccuracy: val, File: e.Name()}
		}
	}
	return best, nil
}

// end stops every process: nodes first, so that they can say goodbye.
func (d *demo) end() error {
	errs := make(chan error, len(d.nodes)) // one each
	for _, n := range d.nodes {
		go func() {
			if n.wasKilled() {
				errs <- nil
				return
			}
			errs <- n.stop(15 * time.Second)
		}()
	}
	var all []error
	for range d.nodes {
		all = append(all, <-errs)
	}
	if d.bridge != nil {
		all = append(all, d.bridge.stop(15*time.Second))
	}
	if d.api != nil {
		d.api.Close()
	}
	return errors.Join(all...)
}

// overall is the score O that criteria make: the product of their lower bounds, each to its weight (trust.md 9).
func overall(criteria []protocol.CriterionScore) float64 {
	o := 1.0
	for _, c := range criteria {
		o *= math.Pow(c.Lower, c.Weight)
	}
	return o
}
