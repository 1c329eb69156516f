package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// nodeRow is a node as `gridbeam nodes` shows it. Hardware is what the node claims.
type nodeRow struct {
	PeerID   string   `json:"peer_id"`
	State    string   `json:"state"`
	CPU      string   `json:"cpu_model,omitempty"`
	Cores    uint32   `json:"cpu_cores"`
	RAM      uint64   `json:"ram_bytes"`
	Disk     uint64   `json:"disk_usable_bytes"`
	GPUs     []gpuRow `json:"gpus"`
	Runs     []string `json:"executors"`
	Region   string   `json:"claimed_region,omitempty"`
	Check    string   `json:"region_check,omitempty"` // consistent, contradicted, unverified; empty where nobody looked
	Reach    string   `json:"claimed_reachability,omitempty"`
	Price    *uint64  `json:"ask_uusd_per_hour,omitempty"`
	Agent    string   `json:"agent"`
	AgeS     float64  `json:"heard_s_ago"`
	Seq      uint64   `json:"seq"`
	Expires  string   `json:"expires"`
	Running  uint32   `json:"running"`
	RTT      *float64 `json:"rtt_ms,omitempty"`
	Operator string   `json:"operator,omitempty"`
	Addrs    []string `json:"addresses"`

	heard bool // there is a heartbeat
}

type gpuRow struct {
	Model  string  `json:"model"`
	Count  uint32  `json:"count"`
	Free   *uint32 `json:"free,omitempty"`
	VRAMGB int     `json:"vram_gb,omitempty"`
}

// nodesFlags are what `gridbeam nodes` is asked.
type nodesFlags struct {
	out          output
	where, via   string
	gpu, region  []string
	sort         string
	joins        []string
	limit        int
	explain, all bool
	watch        bool
	every, wait  time.Duration

	issuers map[string]bool // whose labels verified(..) believes
}

func nodesCommand() *cobra.Command {
	var f nodesFlags
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the network, with or without a bridge",
		Long: `Lists the nodes of the network by asking its directory; no bridge has to run.

Filters are gb-filter/1, for example:
  --where 'cpu.cores >= 8 && node.ram_gb >= 32'
  --where 'gpu.model in ["H100", "A100-80"] && gpu.free >= 4 && node.region == "eu"'

It asks index peers (bridges are such) of different networks and operators, verifies what they give, and where there are fewer than three
asks the nodes themselves too. --via index and --via dht ask only the ones or the others; --via scan reads what the directory's servers hold
and asks no node, so that it also sees those that nobody can dial.

REGION is where a node says that it is: claimed, or verified where the round trips of the network's observers agree, or contradicted where
they cannot be (gridbeam network landmarks); a contradicted claim matches no filter.

Without --join it asks the peers of the network that this user's own bridge has made. Exit code 3 when nothing matches, 5 when nobody answers.`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	fl := c.Flags()
	fl.StringVar(&f.where, "where", "", "only nodes that this filter matches")
	fl.StringSliceVar(&f.gpu, "gpu", nil, "only nodes with one of these GPU models, as in gpu.model; repeatable")
	fl.StringSliceVar(&f.region, "region", nil, "only nodes that say they are in one of these regions, countries or subdivisions; repeatable")
	fl.StringVar(&f.sort, "sort", "id", "order: id, rtt (pings them), free (most free GPUs first) or price")
	f.seedFlags(c)
	fl.StringVar(&f.via, "via", "auto", "who is asked: auto, index (index peers alone), dht (the nodes themselves) or scan (servers of the directory)")
	fl.IntVar(&f.limit, "limit", 0, "at most so many nodes")
	fl.BoolVar(&f.explain, "explain", false, "tell what each clause of the filter removed")
	fl.BoolVar(&f.all, "all", false, "also nodes that are stale, paused, draining or not heard, and peers that are no nodes")
	fl.BoolVar(&f.watch, "watch", false, "go on asking, and print who comes, goes and changes, until Ctrl-C")
	fl.DurationVar(&f.every, "every", 5*time.Second, "time between two questions of --watch")
	f.out.flag(c, true)
	c.AddCommand(nodesShowCommand())
	return c
}

// seedFlags adds the flags that say whom to ask and for how long.
func (f *nodesFlags) seedFlags(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.joins, "join", nil, "address or invitation of a peer to ask; repeatable")
	c.Flags().DurationVar(&f.wait, "timeout", 10*time.Second, "give up after so long")
}

// filter puts --where, --gpu and --region together.
func (f *nodesFlags) filter() (*protocol.Filter, error) {
	filter, err := protocol.ParseFilter(f.where)
	if err != nil {
		return nil, usagef("--where: %s", err)
	}
	var clauses []string
	if f.where != "" {
		clauses = append(clauses, "("+f.where+")")
	}
	for _, more := range []struct {
		flag, field string
		values      []string
	}{{"--gpu", "gpu.model", f.gpu}, {"--region", "node.region", f.region}} {
		if slices.Contains(more.values, "") {
			return nil, usagef("%s is empty; leave it out for all", more.flag)
		}
		if len(more.values) == 0 {
			continue
		}
		var quoted []string
		for _, v := range more.values {
			quoted = append(quoted, strconv.Quote(v))
		}
		clause := more.field + " in [" + strings.Join(quoted, ", ") + "]"
		if _, err := protocol.ParseFilter(clause); err != nil {
			if bad, ok := errors.AsType[*protocol.FilterError](err); ok { // its column is in a text that nobody wrote
				err = errors.New(strings.TrimSuffix(bad.Problem+"; nearest: "+strings.Join(bad.Nearest, ", "), "; nearest: "))
			}
			return nil, usagef("%s %s: %s", more.flag, strings.Join(more.values, ","), err)
		}
		clauses = append(clauses, clause)
	}
	if len(clauses) == 0 || len(clauses) == 1 && f.where != "" {
		return filter, nil
	}
	if filter, err = protocol.ParseFilter(strings.Join(clauses, " && ")); err != nil {
		return nil, usagef("--where with --gpu and --region: %s", err)
	}
	return filter, nil
}

func (f *nodesFlags) query() (q dht.Query, err error) {
	q = dht.Query{Limit: f.limit, Seed: rand.Uint64(), Explain: f.explain, Literal: f.all}
	if q.Filter, err = f.filter(); err != nil {
		return q, err
	}
	ways := map[string]dht.Via{"auto": dht.ViaAuto, "index": dht.ViaIndex, "dht": dht.ViaDHT, "scan": dht.ViaServers}
	var ok bool
	if q.Via, ok = ways[f.via]; !ok {
		return q, usagef("--via is %q; write auto, index, dht or scan", f.via)
	}
	if orders[f.sort] == nil {
		return q, usagef("--sort is %q; write id, rtt, free or price", f.sort)
	}
	switch {
	case f.limit < 0:
		return q, usagef("--limit is %d; 0 is no limit", f.limit)
	case f.watch && f.every < time.Second:
		return q, usagef("--every is %s; at least 1s", f.every)
	case f.watch && f.out.format == "csv":
		return q, usagef("--watch prints changes; --output csv cannot tell them: write table, json or ndjson")
	}
	return q, nil
}

func (f *nodesFlags) run(c *cobra.Command) error {
	for flag, values := range map[string][]string{"gpu": f.gpu, "region": f.region} {
		if c.Flags().Changed(flag) && len(values) == 0 {
			return usagef("--%s is empty; leave it out for all", flag)
		}
	}
	query, err := f.query()
	if err != nil {
		return err
	}
	return f.ask(c, func(ctx context.Context, d *dht.Directory) error {
		if f.watch {
			return f.follow(ctx, c.OutOrStdout(), d, query)
		}
		rows, ex, err := f.find(ctx, d, query)
		if err != nil {
			return err
		}
		if err := list(&f.out, c.OutOrStdout(), rows, nodeColumns(f.sort == "rtt")); err != nil {
			return err
		}
		if f.explain {
			explainFind(c.ErrOrStderr(), ex.Explanation)
			if ex.idle > 0 {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "  %s of those that match, such as bridges, offer no work: --all lists them\n", counted(ex.idle, "peer"))
			}
			explainRegions(c.ErrOrStderr(), ex.checks)
		}
		if len(rows) == 0 {
			return withCode(exitNoMatch, fmt.Errorf("no node matches (%d known, %d asked, %d did not answer)", ex.Population, ex.PeersAsked, ex.PeersFailed))
		}
		return nil
	})
}

// ask joins the directory as the flags say.
func (f *nodesFlags) ask(c *cobra.Command, use func(context.Context, *dht.Directory) error) error {
	if f.wait <= 0 {
		return usagef("--timeout is %s, want above 0", f.wait)
	}
	seeds, network, err := seedsAndNetwork(c, f.joins)
	if err != nil {
		return err
	}
	issuers, err := issuersOf(c, network)
	if err != nil {
		return err
	}
	log, err := logger(c, slog.LevelError)
	if err != nil {
		return err
	}
	return withDirectory(c.Context(), seeds, log, f.wait, func(ctx context.Context, d *dht.Directory) error {
		f.issuers = issuers
		if network != nil {
			d.SetNetwork(*network)
			d.RenewNetwork(ctx)
		}
		return use(ctx, d)
	})
}

// issuersOf are those whose labels this user believes: the user's own operator key, and the roots of the network.
func issuersOf(c *cobra.Command, network *protocol.NetworkFile) (map[string]bool, error) {
	out := map[string]bool{}
	own, err := operatorKey(c, false)
	if err != nil {
		return nil, err
	}
	if own != nil {
		id, err := peer.IDFromPrivateKey(own)
		if err != nil {
			return nil, fmt.Errorf("the operator key: %w", err)
		}
		out[id.String()] = true
	}
	if network != nil {
		for _, root := range network.Roots {
			out[root.String()] = true
		}
	}
	return out, nil
}

// verified says whether somebody whom this user believes has signed a label of a node.
func (f *nodesFlags) verified(id peer.ID, l *pb.Label) bool {
	issuer, ok := protocol.VerifyLabel(l, id, time.Now())
	return ok && f.issuers[issuer.String()]
}

// find asks once; the rows are in the order of --sort.
func (f *nodesFlags) find(ctx context.Context, d *dht.Directory, query dht.Query) ([]nodeRow, found, error) {
	query.Verify = f.verified
	nodes, idle, ex, err := f.workers(ctx, d, query)
	if err != nil {
		return nil, found{Explanation: ex}, err
	}
	nodes, checks := checkedRegions(ctx, d, query, nodes, f.wait)
	rows := make([]nodeRow, 0, len(nodes))
	var ids []peer.ID
	for i := range nodes {
		row := newNodeRow(&nodes[i], time.Now())
		if check, ok := checks[nodes[i].Peer]; ok {
			row.Check = string(check.Verdict)
		}
		rows = append(rows, row)
		ids = append(ids, nodes[i].Peer)
	}
	if f.sort == "rtt" {
		for i := range nodes {
			d.Placed(&nodes[i])
		}
		for id, rtt := range d.Measure(ctx, ids) {
			i := slices.Index(ids, id)
			rows[i].RTT = new(float64(rtt.Microseconds()) / 1000)
		}
	}
	slices.SortFunc(rows, func(a, b nodeRow) int {
		return cmp.Or(orders[f.sort](&a, &b), strings.Compare(a.PeerID, b.PeerID))
	})
	return rows, found{ex, checks, idle}, nil
}

// found is how an answer came about.
type found struct {
	dht.Explanation
	checks map[protocol.PeerID]dht.RegionCheck
	idle   int // peers that match and offer no work
}

// workers asks for nodes, and for more while bridges and other peers that only serve the directory stand among those that
// the limit let through; idle is how many of these it has left out.
func (f *nodesFlags) workers(ctx context.Context, d *dht.Directory, query dht.Query) (out []dht.Candidate, idle int, ex dht.Explanation, err error) {
	if !f.all && f.limit > 0 {
		query.Limit = f.limit + 3
	}
	for ; ; query.Limit *= 2 {
		out, ex, err = d.Find(ctx, query)
		if f.all {
			return out, 0, ex, err
		}
		all := len(out)
		out = slices.DeleteFunc(out, func(c dht.Candidate) bool { return !offersWork(c.Capability) })
		idle = all - len(out)
		switch {
		case f.limit == 0:
			return out, idle, ex, err
		case err != nil || all < query.Limit || len(out) >= f.limit:
			return out[:min(len(out), f.limit)], idle, ex, err
		}
	}
}

// orders are those of --sort; what is unknown comes last.
var orders = map[string]func(a, b *nodeRow) int{
	"id":    func(_, _ *nodeRow) int { return 0 },
	"rtt":   func(a, b *nodeRow) int { return cmp.Compare(orLast(a.RTT), orLast(b.RTT)) },
	"free":  func(a, b *nodeRow) int { return cmp.Compare(b.freeGPUs(), a.freeGPUs()) },
	"price": func(a, b *nodeRow) int { return cmp.Compare(orLast(a.Price), orLast(b.Price)) },
}

func orLast[T uint64 | float64](v *T) float64 {
	if v == nil {
		return math.Inf(1)
	}
	return float64(*v)
}

func (r *nodeRow) freeGPUs() (n uint32) {
	for _, g := range r.GPUs {
		if g.Free != nil {
			n += *g.Free
		}
	}
	return n
}

func newNodeRow(c *dht.Candidate, now time.Time) nodeRow {
	rec := c.Capability
	host := rec.GetHost()
	r := nodeRow{
		PeerID: c.Peer.String(), State: strings.ToLower(c.State), CPU: host.GetCpuModel(), Cores: host.GetCores(), RAM: host.GetRamBytes(), GPUs: []gpuRow{},
		Runs: host.GetExecutors(), Region: regionOf(rec.GetLocation()), Reach: rec.GetNetwork().GetReachability(), Agent: rec.GetAgent(), AgeS: float64(c.Age.Milliseconds()) / 1000, Seq: rec.GetSeq(),
		Expires: time.UnixMilli(rec.GetExpires()).UTC().Format(time.RFC3339), Running: c.Availability.GetRunning(), Addrs: []string{}, heard: c.Availability != nil,
	}
	if r.State == "" {
		r.State = "unknown"
	}
	if !offersWork(rec) {
		r.State = strings.Join(rec.GetRoles(), ",")
	}
	for _, s := range host.GetStorage() {
		r.Disk += s.GetUsable()
	}
	for i, g := range rec.GetGpus() {
		row := gpuRow{Model: g.GetModel(), Count: g.GetCount(), VRAMGB: protocol.NominalGB(g.GetVramBytes())}
		for _, l := range c.Availability.GetGroups() {
			if l.GetIndex() == uint32(i) {
				row.Free = new(l.GetFree())
			}
		}
		r.GPUs = append(r.GPUs, row)
	}
	if p := rec.GetPolicy(); p != nil && p.PriceUusdPerHour != nil {
		r.Price = p.PriceUusdPerHour
	}
	for _, l := range rec.GetLabels() {
		if l.GetKey() == protocol.LabelOperator {
			if id, ok := protocol.VerifyLabel(l, c.Peer, now); ok {
				r.Operator = id.String()
			}
		}
	}
	for _, b := range rec.GetAddrs() {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			r.Addrs = append(r.Addrs, a.String())
		}
	}
	return r
}

func regionOf(l *pb.Location) string {
	switch {
	case l.GetSubdivision() != "":
		return l.GetSubdivision()
	case l.GetCountry() != "":
		return l.GetCountry()
	}
	return l.GetMacro()
}

func nodeColumns(rtt bool) []column[nodeRow] {
	columns := []column[nodeRow]{
		{"PEER ID", func(r *nodeRow) string { return r.PeerID }},
		{"STATE", func(r *nodeRow) string { return r.State }},
		{"CORES", func(r *nodeRow) string { return strconv.FormatUint(uint64(r.Cores), 10) }},
		{"RAM", func(r *nodeRow) string { return humanize.IBytes(r.RAM) }},
		{"DISK", func(r *nodeRow) string { return humanize.IBytes(r.Disk) }},
		{"GPUS", func(r *nodeRow) string { return gpuText(r.GPUs) }},
		{"REGION", func(r *nodeRow) string { return regionText(r.Region, r.Check) }},
		{"RUNS", func(r *nodeRow) string { return strings.Join(r.Runs, " ") }},
		{"ASK", func(r *nodeRow) string { return priceText(r.Price) }},
		{"HEARD", func(r *nodeRow) string {
			if !r.heard {
				return "-"
			}
			return fmt.Sprintf("%.0f s ago", r.AgeS)
		}},
	}
	if rtt {
		columns = append(columns, column[nodeRow]{"RTT", func(r *nodeRow) string {
			if r.RTT == nil {
				return "-"
			}
			if *r.RTT < 0.1 {
				return "<0.1 ms"
			}
			return fmt.Sprintf("%.1f ms", *r.RTT)
		}})
	}
	return columns
}

func gpuText(gpus []gpuRow) string {
	if len(gpus) == 0 {
		return "none"
	}
	var parts []string
	for _, g := range gpus {
		text := fmt.Sprintf("%d x %s", g.Count, g.Model)
		if g.Free != nil && *g.Free != g.Count {
			text += fmt.Sprintf(" (%d free)", *g.Free)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func priceText(p *uint64) string {
	switch {
	case p == nil:
		return "-"
	case *p == 0:
		return "free"
	}
	return fmt.Sprintf("$%.4f/h", float64(*p)/1e6)
}

func explainFind(w io.Writer, ex dht.Explanation) {
	_, _ = fmt.Fprintf(w, "%d of %d known nodes match (%s; asked %d, %d did not answer)\n", ex.Matched, ex.Population, ex.Tier, ex.PeersAsked, ex.PeersFailed)
	if ex.IndexHeard < ex.IndexWanted {
		_, _ = fmt.Fprintf(w, "  only %d of %d index peers of different networks and operators gave a whole answer: somebody may keep nodes back\n", ex.IndexHeard, ex.IndexWanted)
	}
	for _, a := range ex.Index {
		var note string
		switch {
		case a.Err != nil:
			note = "did not answer: " + printable(a.Err.Error())
		case a.Lacking:
			note = fmt.Sprintf("gave %d, but lacks %d that two others gave: it does not count", a.Given, a.Lacks)
		default:
			note = fmt.Sprintf("gave %d of the %d that match among its %d", a.Given, a.Matched, a.Population)
			if a.Cut {
				note += "; time was up before its last page"
			}
		}
		_, _ = fmt.Fprintf(w, "  index peer %s %s\n", a.Peer, note)
	}
	if ex.Equivocated > 0 {
		_, _ = fmt.Fprintf(w, "  %d peers signed two records of one number: two machines may share a key\n", ex.Equivocated)
	}
	if ex.OldestAge > 0 {
		_, _ = fmt.Fprintf(w, "  heartbeats are %.0f s old, half of them at most %.0f s\n", ex.OldestAge.Seconds(), ex.MedianAge.Seconds())
	}
	for _, c := range ex.Clauses {
		implied := ""
		if c.Implied {
			implied = " (implied)"
		}
		_, _ = fmt.Fprintf(w, "  %s%s: removes %d (%d of them match all else), leaves %d\n", printable(c.Text), implied, c.Removed, c.RemovedAlone, c.Left)
	}
}

// offersWork tells nodes from bridges and other peers that only serve the directory.
func offersWork(c *pb.Capability) bool {
	return len(c.GetRoles()) == 0 || slices.Contains(c.GetRoles(), "node")
}
