package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
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
	Reach    string   `json:"claimed_reachability,omitempty"`
	Price    *uint64  `json:"ask_uusd_per_hour,omitempty"`
	Agent    string   `json:"agent"`
	AgeS     float64  `json:"heard_s_ago"`
	Seq      uint64   `json:"seq"`
	Expires  string   `json:"expires"`
	Running  uint32   `json:"running"`
	Operator string   `json:"operator,omitempty"`
	Addrs    []string `json:"addresses"`
}

type gpuRow struct {
	Model  string `json:"model"`
	Count  uint32 `json:"count"`
	VRAMGB int    `json:"vram_gb,omitempty"`
}

func nodesCommand() *cobra.Command {
	var out output
	var where, via string
	var joins []string
	var limit int
	var explain, all bool
	var wait time.Duration
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the network, with or without a bridge",
		Long: `Lists the nodes of the network by asking its directory; no bridge has to run.

Filters are gb-filter/1, for example:
  --where 'cpu.cores >= 8 && node.ram_gb >= 32'
  --where 'gpu.model in ["H100", "A100-80"] && gpu.free >= 4 && node.region == "eu"'

It asks index peers (bridges are such) of different networks and operators, verifies what they give, and where there are fewer than three
asks the nodes themselves too; --via index and --via dht ask only the ones or the others.

Without --join it asks the peers of the network that this user's own bridge has made. Exit code 3 when nothing matches, 5 when nobody answers.`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error {
			filter, err := protocol.ParseFilter(where)
			if err != nil {
				return usagef("--where: %s", err)
			}
			ways := map[string]dht.Via{"auto": dht.ViaAuto, "index": dht.ViaIndex, "dht": dht.ViaDHT}
			way, ok := ways[via]
			if !ok {
				return usagef("--via is %q; write auto, index or dht", via)
			}
			seeds, err := seeds(c, joins)
			if err != nil {
				return err
			}
			log, err := logger(c, slog.LevelError)
			if err != nil {
				return err
			}
			var found []dht.Candidate
			var ex dht.Explanation
			err = withDirectory(c.Context(), seeds, log, wait, func(ctx context.Context, d *dht.Directory) error {
				var err error
				found, ex, err = d.Find(ctx, dht.Query{Filter: filter, Via: way, Limit: limit, Seed: rand.Uint64(), Explain: explain, Literal: all})
				return err
			})
			if err != nil {
				return err
			}
			rows := make([]nodeRow, 0, len(found))
			for i := range found {
				if !all && !offersWork(found[i].Capability) {
					continue
				}
				rows = append(rows, newNodeRow(&found[i], time.Now()))
			}
			slices.SortFunc(rows, func(a, b nodeRow) int { return strings.Compare(a.PeerID, b.PeerID) })
			if err := list(&out, c.OutOrStdout(), rows, nodeColumns()); err != nil {
				return err
			}
			if explain {
				explainFind(c.ErrOrStderr(), ex)
			}
			if len(rows) == 0 {
				return withCode(exitNoMatch, fmt.Errorf("no node matches (%d known, %d asked, %d did not answer)", ex.Population, ex.PeersAsked, ex.PeersFailed))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&where, "where", "", "only nodes that this filter matches")
	f.StringSliceVar(&joins, "join", nil, "address or invitation of a peer to ask; repeatable")
	f.StringVar(&via, "via", "auto", "who is asked: auto, index (index peers alone) or dht (the nodes themselves)")
	f.IntVar(&limit, "limit", 0, "at most so many nodes")
	f.BoolVar(&explain, "explain", false, "tell what each clause of the filter removed")
	f.BoolVar(&all, "all", false, "also nodes that are stale, paused, draining or not heard, and peers that are no nodes")
	f.DurationVar(&wait, "timeout", 10*time.Second, "give up after so long")
	out.flag(c, true)
	return c
}

// seeds are the peers to ask: --join, else those of the user's own network.
func seeds(c *cobra.Command, joins []string) ([]multiaddr.Multiaddr, error) {
	if len(joins) > 0 {
		j, err := parseJoin(joins, time.Now())
		return j.bootstrap, err
	}
	dir, err := configDir(c)
	if err != nil {
		return nil, err
	}
	inv, ok, err := knownNetwork(dir)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, usagef("no network is known here: say --join ADDRESS (a node or bridge prints its addresses when it starts)")
	}
	return inv.Bootstrap, nil
}

// withDirectory joins the network as a client that listens nowhere, and leaves it again.
func withDirectory(ctx context.Context, seeds []multiaddr.Multiaddr, log *slog.Logger, wait time.Duration, use func(context.Context, *dht.Directory) error) error {
	infos, err := peer.AddrInfosFromP2pAddrs(seeds...)
	if err != nil {
		return usagef("--join: %s", err)
	}
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	cfg := p2p.DefaultConfig()
	cfg.Listen, cfg.MDNS, cfg.Reach, cfg.Version, cfg.DialTimeout = nil, false, p2p.ReachClient, version, min(wait, cfg.DialTimeout)
	h, err := p2p.New(cfg, key, log)
	if err != nil {
		return err
	}
	if err := h.Open(ctx); err != nil {
		return err
	}
	dcfg := dht.DefaultConfig()
	dcfg.Mode, dcfg.Loopback, dcfg.ColdTimeout = dht.ModeClient, true, wait
	d, err := dht.New(dcfg, h.Host(), nil, time.Now, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), log)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	running, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return h.Run(running) })
	g.Go(func() error { return d.Run(running) })
	err = connectAny(ctx, h, infos, wait)
	if err == nil {
		err = use(ctx, d)
		if errors.Is(err, dht.ErrNoIndex) {
			err = withCode(exitNotConnected, errors.New("no index peer answers; --via dht asks the nodes themselves"))
		}
		if errors.Is(err, dht.ErrNoServers) {
			err = withCode(exitNotConnected, errors.New("connected, but no peer of the directory answered; try another --join address"))
		}
	}
	stop()
	return errors.Join(err, g.Wait())
}

// connectAny is content with one of the peers.
func connectAny(ctx context.Context, h *p2p.Host, infos []peer.AddrInfo, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	results := make(chan error, len(infos)) // one each
	for _, info := range infos {
		go func() { results <- h.Connect(ctx, info) }()
	}
	var errs []error
	for range infos {
		err := <-results
		if err == nil {
			return nil // the others come when they can
		}
		errs = append(errs, err)
	}
	return withCode(exitNotConnected, fmt.Errorf("nobody answers: %w; start it, or name another peer that runs with --join", errors.Join(errs...)))
}

func newNodeRow(c *dht.Candidate, now time.Time) nodeRow {
	rec := c.Capability
	host := rec.GetHost()
	r := nodeRow{
		PeerID: c.Peer.String(), State: strings.ToLower(c.State), CPU: host.GetCpuModel(), Cores: host.GetCores(), RAM: host.GetRamBytes(), GPUs: []gpuRow{},
		Runs: host.GetExecutors(), Region: regionOf(rec.GetLocation()), Reach: rec.GetNetwork().GetReachability(), Agent: rec.GetAgent(), AgeS: float64(c.Age.Milliseconds()) / 1000, Seq: rec.GetSeq(),
		Expires: time.UnixMilli(rec.GetExpires()).UTC().Format(time.RFC3339), Running: c.Availability.GetRunning(), Addrs: []string{},
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
	for _, g := range rec.GetGpus() {
		r.GPUs = append(r.GPUs, gpuRow{g.GetModel(), g.GetCount(), protocol.NominalGB(g.GetVramBytes())})
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

func nodeColumns() []column[nodeRow] {
	return []column[nodeRow]{
		{"PEER ID", func(r *nodeRow) string { return r.PeerID }},
		{"STATE", func(r *nodeRow) string { return r.State }},
		{"CORES", func(r *nodeRow) string { return strconv.FormatUint(uint64(r.Cores), 10) }},
		{"RAM", func(r *nodeRow) string { return humanize.IBytes(r.RAM) }},
		{"DISK", func(r *nodeRow) string { return humanize.IBytes(r.Disk) }},
		{"GPUS", func(r *nodeRow) string { return gpuText(r.GPUs) }},
		{"RUNS", func(r *nodeRow) string { return strings.Join(r.Runs, " ") }},
		{"ASK", func(r *nodeRow) string { return priceText(r.Price) }},
		{"HEARD", func(r *nodeRow) string { return fmt.Sprintf("%.0f s ago", r.AgeS) }},
	}
}

func gpuText(gpus []gpuRow) string {
	if len(gpus) == 0 {
		return "none"
	}
	var parts []string
	for _, g := range gpus {
		parts = append(parts, fmt.Sprintf("%d x %s", g.Count, g.Model))
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
		_, _ = fmt.Fprintf(w, "  only %d of %d index peers of different networks and operators answered: somebody may keep nodes back\n", ex.IndexHeard, ex.IndexWanted)
	}
	for _, a := range ex.Index {
		var note string
		switch {
		case a.Err != nil:
			note = "did not answer: " + printable(a.Err.Error())
		case a.Dropped:
			note = fmt.Sprintf("left out: of what two others gave it lacks %d", a.Lacks)
		default:
			note = fmt.Sprintf("gave %d of the %d that match among its %d", a.Given, a.Matched, a.Population)
			if a.Cut {
				note += "; time was up before its last page"
			}
		}
		_, _ = fmt.Fprintf(w, "  index peer %s %s\n", a.Peer, note)
	}
	if ex.OldestAge > 0 {
		_, _ = fmt.Fprintf(w, "  heartbeats are %.0f s old, half of them at most %.0f s\n", ex.OldestAge.Seconds(), ex.MedianAge.Seconds())
	}
	for _, c := range ex.Clauses {
		implied := ""
		if c.Implied {
			implied = " (implied)"
		}
		_, _ = fmt.Fprintf(w, "  %s%s: alone removes %d, leaves %d\n", printable(c.Text), implied, c.RemovedAlone, c.Left)
	}
}

// offersWork tells nodes from bridges and other peers that only serve the directory.
func offersWork(c *pb.Capability) bool {
	return len(c.GetRoles()) == 0 || slices.Contains(c.GetRoles(), "node")
}
