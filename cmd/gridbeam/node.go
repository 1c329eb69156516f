package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/executor/wasm"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// nodeFile is node.yaml in the data directory; flags go before it.
type nodeFile struct {
	Join         []string `yaml:"join"`
	Listen       []string `yaml:"listen"`
	Announce     []string `yaml:"announce"`
	Price        string   `yaml:"price"`
	Slots        int      `yaml:"slots"`
	MDNS         *bool    `yaml:"mdns"`
	AcceptFrom   string   `yaml:"accept_from"`
	Deny         []string `yaml:"deny"`
	MemoryPct    int      `yaml:"memory_percent"`
	Disk         string   `yaml:"disk"`
	MinIsolation string   `yaml:"min_isolation"`
	Offer        offer    `yaml:"offer"`
	Labels       []string `yaml:"labels"`
	Research     *bool    `yaml:"research"`
	MeasureLine  *bool    `yaml:"measure_line"`
	Location     location `yaml:"location"`
	Metrics      string   `yaml:"metrics"`
}

// offer is node.yaml's word for what of the machine is offered.
type offer struct {
	CPU *bool `yaml:"cpu"`
}

// location is node.yaml's word for where the machine is.
type location struct {
	Region      string `yaml:"region"`
	Country     string `yaml:"country"`
	Subdivision string `yaml:"subdivision"`
	Precision   string `yaml:"precision"`
	Landmarks   *bool  `yaml:"landmarks"`
}

const nodeFileName = "node.yaml"

const nodeFileText = `# How this machine is offered. Each line shows its default; remove the # to change it. Flags of
# "gridbeam node run" go before this file.

# Invitations of networks, or addresses of peers. Only an invitation says whom the node works for.
#join: []
# Addresses to listen on.
#listen: [/ip4/0.0.0.0/udp/0/quic-v1, /ip4/0.0.0.0/tcp/0]
# Further addresses under which others reach this machine, such as that of a port which a router forwards to it.
#announce: []
# Dollars per slot and hour; 0 is free.
#price: "0"
# How many chunks run at once; 0 is one per core.
#slots: 0
# Find peers in the local network; finding grants nothing.
#mdns: true
# Whom to work for: chained (whoever has a grant chain from a root of a joined network) or nobody.
#accept_from: chained
# Peer IDs of bridges or issuers that get nothing.
#deny: []
# Share of the machine's memory that jobs may use, and what they may write to its disk.
#memory_percent: 80
#disk: 50GiB
# The least isolation for other people's code: strong, shared or dev. Python functions run with shared: in sandboxes
# of their own, but on this machine's kernel.
#min_isolation: strong
# cpu: true offers the processors of a machine whose GPUs are all broken; else it takes no work until one is in order. A machine
# without GPUs always offers its processors.
#offer: {cpu: false}
# What the record says besides: key=value is this node's own claim, which can be searched for and earns nothing; the text that
# "gridbeam network label" prints is the word of its issuer.
#labels: []
# Where this machine is: region (eu, noram, latam, apac, mea), country (DE), subdivision (DE-BE). Nothing is said unless you state
# it. precision (none, macro, country or subdivision) says how much of it the record tells; all of it unless you say less.
# landmarks: false keeps the measured round trips to the network's landmarks out of the record, too: they say roughly where it is.
#location: {country: DE, subdivision: BE, precision: macro, landmarks: true}
# false asks researchers to leave this node out of what they keep and publish.
#research: true
# Whether peers measure how fast this machine's line is, after the start and daily, while there is no work: 8 seconds each way
# with each of two peers, at most 4 GiB each. Jobs that ask for bandwidth, and rewards, need it. Where all known peers are local: no.
#measure_line: true
# A loopback address on which Prometheus may ask for /metrics, such as 127.0.0.1:9464.
#metrics: ""
`

type nodeFlags struct {
	join, listen []string
	announce     []string
	network      string
	yes, local   bool
	price        string
	isolation    string
	region       string
	labels       []string
	slots        int
	mdns         bool
	measureLine  bool
	offerCPU     bool
	metrics      string
	drain        time.Duration
	measure      time.Duration
	out          output
}

func nodeCommand() *cobra.Command {
	return group("node", "Offer this machine", nodeInitCommand(), nodeRunCommand(), nodeStatusCommand(), nodeSpecsCommand(), nodeDoctorCommand(), nodeMeasureCommand(), nodeGPUCommand(),
		nodeControl("pause", "Take no new work; what runs goes on", func(ctx context.Context, c *node.Control, _ time.Duration) error { return c.Pause(ctx) }),
		nodeControl("resume", "Take work again", func(ctx context.Context, c *node.Control, _ time.Duration) error { return c.Resume(ctx) }),
		nodeControl("drain", "Take no new work, let what runs end or hand it back, then stay idle", func(ctx context.Context, c *node.Control, d time.Duration) error { return c.Drain(ctx, d) }),
		nodeControl("stop", "Drain, then end the daemon", func(ctx context.Context, c *node.Control, d time.Duration) error { return c.Stop(ctx, d) }))
}

func nodeInitCommand() *cobra.Command {
	var importKey string
	c := &cobra.Command{Use: "init", Short: "Make key and configuration of a node", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		dir, err := dataDir(c, "node")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
		path := filepath.Join(dir, "identity.key")
		if importKey != "" {
			if _, err := p2p.ImportIdentity(path, importKey); err != nil {
				return err
			}
		} else if _, err := p2p.LoadOrCreateIdentity(path); err != nil {
			return err
		}
		id, err := identityOf(path)
		if err != nil {
			return err
		}
		conf := filepath.Join(dir, nodeFileName)
		if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
			if err := writePrivate(conf, []byte(nodeFileText)); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "node %s\nkey            %s\nconfiguration  %s\n\nNext: gridbeam node run --data %s\n", id, path, conf, dir)
		return err
	}}
	c.Flags().String("data", "", "data directory (default: gridbeam/node in the user's data directory)")
	c.Flags().StringVar(&importKey, "import-key", "", "take over the Ed25519 key in this file, so that the peer ID stays")
	return c
}

func identityOf(path string) (protocol.PeerID, error) {
	key, err := p2p.LoadIdentity(path)
	if err != nil {
		return "", err
	}
	return peerOf(key)
}

func nodeRunCommand() *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon; Ctrl-C drains, a second one kills",
		Long: `Runs the daemon that offers this machine to the bridges of the networks that it has joined.

On the machine and for the user of "gridbeam bridge run" nothing has to be said: the bridge's network is found. Elsewhere join by the
invitation that the bridge prints: gridbeam node run --join gridbeam:... A bare address or mDNS finds peers but grants nothing.

A machine without GPUs offers its processors, one with GPUs both. When none of its GPUs is in order it takes no work until one is, unless
its owner offers the processors even so: offer: {cpu: true} in node.yaml, or --offer-cpu.`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error { return runNode(c, &f) },
	}
	fl := c.Flags()
	fl.String("data", "", "data directory (default: gridbeam/node in the user's data directory)")
	fl.StringSliceVar(&f.join, "join", nil, "invitation of a network, or address of a peer; repeatable")
	fl.StringVar(&f.network, "network", "", "file with a network, as its owner signed it")
	fl.BoolVar(&f.yes, "yes", false, "join without asking")
	fl.StringSliceVar(&f.listen, "listen", nil, "multiaddr to listen on; repeatable (default: any port, QUIC and TCP)")
	fl.StringSliceVar(&f.announce, "announce", nil, "further multiaddr under which others reach this machine, such as that of a forwarded port; repeatable")
	fl.StringVar(&f.price, "price", "", "dollars per slot and hour (default 0: free)")
	fl.IntVar(&f.slots, "slots", 0, "chunks that run at once (default: one per core)")
	fl.StringVar(&f.isolation, "min-isolation", "", "least isolation for code of others: strong (default) runs WebAssembly only; shared also runs Python functions, in namespaces of this kernel")
	fl.StringArrayVar(&f.labels, "label", nil, "key=value that the record claims, or a signed label that gridbeam network label has printed; repeatable")
	fl.StringVar(&f.region, "region", "", "where this machine is, for all to see: a region (eu), country (DE) or subdivision (DE-BE); none says nothing (default: location in "+nodeFileName+", else nothing)")
	fl.BoolVar(&f.mdns, "mdns", true, "find peers in the local network")
	fl.BoolVar(&f.measureLine, "measure-line", true, "let two peers measure how fast this machine's line is, daily and while there is no work: 8 s each way, at most 4 GiB each; not where all known peers are local unless said")
	fl.StringVar(&f.metrics, "metrics", "", "answer Prometheus at /metrics on this loopback address, such as 127.0.0.1:9464 (default: nowhere)")
	fl.BoolVar(&f.offerCPU, "offer-cpu", false, "offer the processors although the machine has GPUs and all of them are broken; without it such a node takes no work (default: offer in "+nodeFileName+", else no)")
	fl.BoolVar(&f.local, "local", false, "one machine or LAN: do not ask others whether this machine can be reached (default: when all known peers are local)")
	fl.DurationVar(&f.drain, "drain", 5*time.Second, "how long running chunks may go on after Ctrl-C")
	fl.DurationVar(&f.measure, "measure", 24*time.Hour, "measure disk, memory and processors while idle when the figures are older than this; 0 is never")
	f.out.flag(c, false)
	return c
}

func runNode(c *cobra.Command, f *nodeFlags) error {
	dir, err := dataDir(c, "node")
	if err != nil {
		return err
	}
	log, err := logger(c, slog.LevelInfo)
	if err != nil {
		return err
	}
	cfg, err := nodeConfig(c, f, dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	backends, shut, err := nodeBackends(dir, &cfg, log)
	if err != nil {
		return err
	}
	n, err := node.New(cfg, backends, log)
	if err != nil {
		_ = shut() // nothing has run
		return explainStart(err)
	}
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	done := make(chan error, 1) // the one result of Run
	go func() { done <- n.Run(ctx) }()
	select {
	case <-n.Ready():
		err = announceNode(c, f, n.Status(), dir)
		if err != nil {
			cancel()
		}
		err = errors.Join(err, <-done)
	case err = <-done:
	}
	return errors.Join(explainStart(err), shut())
}

// nodeBackends are what a node runs tasks with; shut ends them.
func nodeBackends(dir string, cfg *node.Config, log *slog.Logger) (all []node.Backend, shut func() error, err error) {
	wcfg := wasm.DefaultConfig()
	wcfg.CacheDir = filepath.Join(dir, "cache", "wasm")
	wcfg.CompileTimeout = 2 * time.Minute // a large module on a busy machine with one slow core
	backend, err := wasm.New(wcfg, log)
	if err != nil {
		return nil, nil, err
	}
	functions, sandboxes, err := sandboxBackend(dir, cfg, log)
	if err != nil {
		return nil, nil, errors.Join(err, backend.Close())
	}
	shut = backend.Close
	if sandboxes != nil {
		shut = func() error { return errors.Join(backend.Close(), sandboxes.Close()) }
	}
	return append([]node.Backend{{Executor: backend, InProcess: true}}, functions...), shut, nil
}

// asFlags names the fields of a node's configuration as its user has set them.
var asFlags = strings.NewReplacer("node: bad configuration: ", "", "Metrics ", "--metrics ", "Slots ", "--slots ", "Policy.MinIsolation ", "--min-isolation ", "Measure ", "--measure ", "Drain ", "--drain ")

// explainStart gives the errors of a start their exit code.
func explainStart(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, node.ErrConfig):
		return usagef("%s", asFlags.Replace(err.Error()))
	case errors.Is(err, p2p.ErrKeyMode), errors.Is(err, p2p.ErrKeyType), errors.Is(err, p2p.ErrKeyFormat):
		return withCode(exitUsage, err)
	}
	return err
}

// nodeReady is the line that a daemon writes with --output json when it is ready.
type nodeReady struct {
	Event  string      `json:"event"`
	Data   string      `json:"data"`
	Status node.Status `json:"status"`
}

func announceNode(c *cobra.Command, f *nodeFlags, s node.Status, dir string) error {
	if f.out.json() {
		return writeJSON(c.OutOrStdout(), nodeReady{"ready", dir, s}, false)
	}
	w := c.OutOrStdout()
	writeNode(w, &s)
	_, err := fmt.Fprintf(w, "stop with Ctrl-C, or: gridbeam node stop --data %s\n", dir)
	return err
}

// writeNode is the block that ends a start and that status prints.
func writeNode(w io.Writer, s *node.Status) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("node %s is %s", s.PeerID, s.State)
	for _, why := range s.Why {
		p("  %s", printable(why))
	}
	p("offers     %d slots, %d busy, %s", s.Slots, s.Busy, priceText(&s.Ask))
	p("runs       %s", strings.Join(s.Executors, ", "))
	writeMachine(p, &s.Inventory)
	writeGPUs(p, &s.Inventory.GPUs, &s.Selling)
	for _, l := range s.Labels {
		if l.Key != protocol.LabelOperator {
			p("label      %s", labelText(&l))
		}
	}
	writePlace(p, &s.Place)
	writeLine(p, &s.Line)
	for _, n := range s.Networks {
		p("network    %s %q", n.ID, printable(n.Name))
	}
	p("directory  %s", directoryText(s))
	writeStanding(p, &s.Standing)
	for _, b := range s.Bridges {
		state := "away"
		if b.Connected {
			state = "connected"
		}
		p("bridge     %s %s, %d receipts, %d not counter-signed yet", b.Peer, state, b.Receipts, b.Open)
	}
	p("done       %d chunks, %d failed", s.Done, s.Failed)
	if s.Metrics != "" {
		p("metrics    http://%s/metrics", s.Metrics)
	}
	if s.Reachability != "" {
		p("reached    %s", reachText[s.Reachability])
	}
	for _, a := range s.Addresses {
		p("address    %s", a)
	}
	if len(s.Leases) > 0 {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "LEASE\tJOB\tINPUTS\tFENCE\tSTATE\tSINCE")
		for _, l := range s.Leases {
			_, _ = fmt.Fprintf(t, "%s\t%s\t[%d,%d)\t%d\t%s\t%s\n", l.Lease, l.Job, l.First, l.End, l.Fence, l.State, l.Since.Local().Format(time.TimeOnly))
		}
		_ = t.Flush()
	}
}

// writeLine says how fast the line is, and who says so.
func writeLine(p func(string, ...any), l *node.LineStatus) {
	switch {
	case l.Off:
		p("line       not measured: gridbeam node run --measure-line")
		return
	case len(l.Peers) == 0:
		p("line       not measured yet")
	default:
		p("line       %s down, %s up, by the figures of %s", bits(l.Down), bits(l.Up), counted(len(l.Peers), "peer"))
		for _, x := range l.Peers {
			p("  %s down, %s up, says %s, %s ago", bits(x.Down), bits(x.Up), x.Peer, time.Since(x.At).Round(time.Minute))
		}
	}
	if l.Problem != "" {
		p("  %s", printable(l.Problem))
	}
}

func bits(n uint64) string { return fmt.Sprintf("%.4g Mbit/s", float64(n)/1e6) }

// reachText says how others reach a node.
var reachText = map[p2p.Reachability]string{
	p2p.ReachableDirectly:    "directly",
	p2p.ReachableByHolePunch: "through its NAT, by holes that a relay helps to punch",
	p2p.ReachableByRelay:     "by a relay alone, which is slow: forward a port of the router to this machine and name it with --announce",
	p2p.Unreachable:          "by nobody that it has not dialled itself: no relay was found; forward a port of the router and name it with --announce",
}

// writeStanding says how the node stands in the network.
// directoryText says what is known of the directory, and who took the node's record last.
func directoryText(s *node.Status) string {
	text := counted(s.Directory, "server") + " of the directory"
	if s.Directory == 1 {
		text += " is known"
	} else {
		text += " are known"
	}
	if s.Stored == nil {
		return text + "; its record is not stored yet"
	}
	return fmt.Sprintf("%s; %d of the %d nearest took its record %s ago", text, s.Stored.Took, s.Stored.Asked, time.Since(s.Stored.At).Round(time.Second))
}

func writeStanding(p func(string, ...any), s *node.StandingStatus) {
	if s.Asked > 0 {
		p("seen       its record by %d of %d, heartbeats by %d, dialable by %d, %s ago", s.Found, s.Asked, s.Heard, s.Dialable, time.Since(s.Checked).Round(time.Second))
	}
	if ahead := time.Duration(s.ClockMs) * time.Millisecond; ahead.Abs() > 5*time.Second && s.Clocks >= dht.ClocksTell {
		p("clock      %s behind others' (ahead if below 0): set this machine's clock", ahead.Round(time.Second))
	}
	if s.ClockOff {
		p("problem    its clock differs by more than a minute from others': it advertises nothing until that is set right")
	}
	for line := range strings.Lines(s.Problem) {
		p("problem    %s", printable(strings.TrimSuffix(line, "\n")))
	}
}

func nodeStatusCommand() *cobra.Command {
	var out output
	c := &cobra.Command{Use: "status", Short: "State, leases and who uses this node", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		control, err := dialNode(c)
		if err != nil {
			return err
		}
		defer control.Close()
		s, err := control.Status(c.Context())
		if err != nil {
			return notRunning(err)
		}
		return out.object(c.OutOrStdout(), s, func(w io.Writer) { writeNode(w, &s) })
	}}
	c.Flags().String("data", "", "data directory of the node")
	out.flag(c, false)
	return c
}

func nodeControl(verb, short string, do func(context.Context, *node.Control, time.Duration) error) *cobra.Command {
	var deadline time.Duration
	c := &cobra.Command{Use: verb, Short: short, Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		control, err := dialNode(c)
		if err != nil {
			return err
		}
		defer control.Close()
		before, err := control.Status(c.Context())
		if err != nil {
			return notRunning(err)
		}
		if n := len(before.Leases); n > 0 && deadline > 0 {
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "waiting for %d chunks to end or be handed over, at most %s (--deadline)\n", n, deadline)
		}
		if err := do(c.Context(), control, deadline); err != nil {
			return notRunning(err)
		}
		if verb == "stop" {
			if err := awaitExit(c.Context(), before.PID); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "node stopped")
			return err
		}
		s, err := control.Status(c.Context())
		if err != nil {
			return notRunning(err)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "node is %s, %d chunks in hand\n", s.State, len(s.Leases))
		return err
	}}
	c.Flags().String("data", "", "data directory of the node")
	if verb == "drain" || verb == "stop" {
		c.Flags().DurationVar(&deadline, "deadline", 10*time.Minute, "hand back what has not ended by then")
	}
	return c
}

func dialNode(c *cobra.Command) (*node.Control, error) {
	dir, err := dataDir(c, "node")
	if err != nil {
		return nil, err
	}
	control, err := node.Dial(c.Context(), dir)
	return control, notRunning(err)
}

func notRunning(err error) error {
	if errors.Is(err, node.ErrNotRunning) {
		return withCode(exitNotConnected, err)
	}
	return err
}

// awaitExit waits until a daemon's process is gone and its data directory free.
func awaitExit(ctx context.Context, pid int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) || zombie(pid) {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return fmt.Errorf("the node's work has ended, but its process %d is still there after 30 s", pid)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// zombie says whether a process has ended and only its parent has not noticed.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	return ok && strings.HasPrefix(rest, "Z")
}
