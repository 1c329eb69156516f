package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/beambridge"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// operatorUser is the user whose token a bridge leaves in the configuration directory.
const operatorUser = "operator"

// Default addresses of a bridge: a fixed port, so that nodes find it again after a restart.
var bridgeListen = []string{"/ip4/0.0.0.0/udp/1995/quic-v1", "/ip4/0.0.0.0/tcp/1995"}

type bridgeFlags struct {
	listen, announce    []string
	join, anchors       []string
	issuers             []string
	api, beam, name     string
	cert, key           string
	apiRate             float64
	local, public, mdns bool
	out                 output
}

// bridgeReady is the line that a bridge writes with --output json when it is ready.
type bridgeReady struct {
	Event      string   `json:"event"`
	Data       string   `json:"data"`
	PID        int      `json:"pid"`
	PeerID     string   `json:"peer_id"`
	Addresses  []string `json:"addresses"`
	API        string   `json:"api"`
	Beam       string   `json:"beam"`
	Network    string   `json:"network_file"`
	Invitation string   `json:"invitation"`
	Restored   int      `json:"restored_jobs"`
}

func bridgeCommand() *cobra.Command {
	return group("bridge", "Take jobs and find nodes for them", bridgeRunCommand(), tokenCommand())
}

func bridgeRunCommand() *cobra.Command {
	var f bridgeFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the bridge; Ctrl-C ends it, running chunks go on",
		Long: `Runs the bridge: it takes jobs over its API, selects nodes, dispatches, meters and bills.

Its first start makes a private network whose only root is the bridge's own key, and leaves in the user's configuration directory what this
user's nodes and "gridbeam job" need to find it. For other machines it prints an invitation: gridbeam node run --join gridbeam:...`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error { return runBridge(c, &f) },
	}
	fl := c.Flags()
	fl.String("data", "", "data directory (default: gridbeam/bridge in the user's data directory)")
	fl.StringSliceVar(&f.listen, "listen", bridgeListen, "multiaddr to listen on; repeatable")
	fl.StringSliceVar(&f.announce, "announce", nil, "further multiaddr under which others reach this machine, such as that of a forwarded port; repeatable")
	fl.StringSliceVar(&f.join, "join", nil, "address of a peer of the network; repeatable")
	fl.StringSliceVar(&f.anchors, "anchor", nil, "peer ID of a node whose work needs no copy; repeatable (this user's own nodes are)")
	fl.StringSliceVar(&f.issuers, "label-issuer", nil, "peer ID whose signed labels about nodes count, such as a bridge that measures lines; repeatable (this bridge's, this user's and the network's roots' do)")
	fl.StringVar(&f.api, "api", "127.0.0.1:1994", "address of the HTTP API")
	fl.StringVar(&f.beam, "beam", "127.0.0.1:1993", "address of the gateway for Beam's clients; empty for none")
	fl.StringVar(&f.cert, "tls-cert", "", "PEM file of the certificate for --api and --beam, which then may be other than loopback; Beam's Python client speaks TLS to ports that end in 443")
	fl.StringVar(&f.key, "tls-key", "", "PEM file of its key")
	fl.Float64Var(&f.apiRate, "api-rate", 50, "requests per second that a user may make; 0 is without bound")
	fl.StringVar(&f.name, "name", "private", "name of the network that a first start makes")
	fl.BoolVar(&f.local, "local", true, "one machine or LAN: do not ask others whether this machine can be reached")
	fl.BoolVar(&f.public, "public", false, "this machine is dialled from the open internet: the opposite of --local")
	fl.BoolVar(&f.mdns, "mdns", true, "be found in the local network; that grants nothing")
	f.out.flag(c, false)
	return c
}

func runBridge(c *cobra.Command, f *bridgeFlags) error {
	dir, err := dataDir(c, "bridge")
	if err != nil {
		return err
	}
	config, err := configDir(c)
	if err != nil {
		return err
	}
	log, err := logger(c, slog.LevelInfo)
	if err != nil {
		return err
	}
	cfg, err := bridgeConfig(c, f, dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	started := make(chan beambridge.Started, 1) // Ready is called once
	cfg.Ready = func(s beambridge.Started) { started <- s }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	b, err := beambridge.New(cfg, log)
	if err != nil {
		return withCode(exitUsage, err)
	}
	done := make(chan error, 1) // the one result of Run
	go func() { done <- b.Run(ctx) }()
	select {
	case s := <-started:
		if err := announceBridge(ctx, c, f, b, s, config, dir); err != nil {
			cancel()
			return errors.Join(err, <-done)
		}
		err = <-done
	case err = <-done:
	}
	if errors.Is(err, beambridge.ErrConfig) || errors.Is(err, p2p.ErrKeyMode) || errors.Is(err, p2p.ErrKeyFormat) || errors.Is(err, p2p.ErrKeyType) {
		return withCode(exitUsage, err)
	}
	return err
}

func bridgeConfig(c *cobra.Command, f *bridgeFlags, dir string) (beambridge.Config, error) {
	cfg := beambridge.DefaultConfig(dir)
	cfg.NetworkName, cfg.APIListen, cfg.MDNS, cfg.Version, cfg.Commit = f.name, f.api, f.mdns, version, commit()
	cfg.BeamListen = f.beam
	if (f.cert == "") != (f.key == "") {
		return cfg, usagef("--tls-cert and --tls-key go together")
	}
	for _, file := range []struct {
		from string
		to   *string
	}{{f.cert, &cfg.TLSCert}, {f.key, &cfg.TLSKey}} {
		if file.from == "" {
			continue
		}
		path, err := filepath.Abs(file.from)
		if err != nil {
			return cfg, usagef("%s: %s", file.from, err)
		}
		*file.to = path
	}
	cfg.Local, cfg.APIRate = f.local && !f.public, f.apiRate
	var err error
	if cfg.Listen, err = parseAddrs("--listen", f.listen, "/ip4/0.0.0.0/tcp/1995"); err != nil {
		return cfg, err
	}
	if cfg.Announce, err = parseAddrs("--announce", f.announce, "/ip4/203.0.113.7/tcp/1995"); err != nil {
		return cfg, err
	}
	j, err := parseJoin(f.join, time.Now())
	if err != nil {
		return cfg, err
	}
	cfg.Join = j.bootstrap
	for _, text := range f.anchors {
		id, err := decodePeer(text)
		if err != nil {
			return cfg, usagef("--anchor: %s", err)
		}
		cfg.Anchors = append(cfg.Anchors, id)
	}
	for _, text := range f.issuers {
		id, err := decodePeer(text)
		if err != nil {
			return cfg, usagef("--label-issuer: %s", err)
		}
		cfg.Issuers = append(cfg.Issuers, id)
	}
	cfg.OperatorKey, err = operatorKey(c, true)
	return cfg, err
}

// announceBridge leaves what this user's other commands need, and says how others join.
func announceBridge(ctx context.Context, c *cobra.Command, f *bridgeFlags, b *beambridge.Bridge, s beambridge.Started, config, dir string) error {
	settings := clientSettings{API: apiURL(s), TLS: s.TLS}
	if old, err := readClient(config); err == nil && old.Token != "" && b.TokenValid(ctx, old.Token) {
		settings.Token = old.Token
	} else if settings.Token, err = b.NewToken(ctx, operatorUser); err != nil {
		return fmt.Errorf("making a token for the API: %w", err)
	}
	body, err := jsonBytes(settings)
	if err != nil {
		return err
	}
	if err := writePrivate(filepath.Join(config, clientFile), body); err != nil {
		return err
	}
	if err := writePrivate(filepath.Join(config, networkFile), []byte(s.Invitation+"\n")); err != nil {
		return err
	}
	r := bridgeReady{"ready", dir, os.Getpid(), s.PeerID.String(), nil, settings.API, s.Beam, s.NetworkFile, s.Invitation, s.Restored}
	for _, a := range s.Addrs {
		r.Addresses = append(r.Addresses, a.String())
	}
	if f.out.json() {
		return writeJSON(c.OutOrStdout(), r, false)
	}
	w := c.OutOrStdout()
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("bridge %s is ready", r.PeerID)
	p("api      %s, token in %s", r.API, filepath.Join(config, clientFile))
	if r.Beam != "" {
		p("beam     %s, for Beam's own clients; gridbeam bridge token create says how", r.Beam)
	}
	for _, a := range r.Addresses {
		p("address  %s", a)
	}
	if s.NetworkMade {
		p("network  %q, made by this start", f.name)
	}
	if s.Restored > 0 {
		p("jobs     %s", goesOn(s.Restored))
	}
	p("\nOffer this machine:     gridbeam node run")
	p("Offer another machine:  gridbeam node run --join %s\n", r.Invitation)
	return nil
}

// apiURL is where this user's commands reach the API: Beam's gateway speaks it, too.
func apiURL(s beambridge.Started) string {
	addr, scheme := cmp.Or(s.API, s.Beam), "http"
	if s.TLS != "" {
		scheme = "https"
	}
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() { // every address: this machine's own is one
			addr = net.JoinHostPort("127.0.0.1", port)
		}
	}
	return scheme + "://" + addr
}

func networkCommand() *cobra.Command {
	var out output
	invite := &cobra.Command{Use: "invite", Short: "Print the invitation to this user's own network", Args: exactArgs(), RunE: func(c *cobra.Command, _ []string) error {
		dir, err := configDir(c)
		if err != nil {
			return err
		}
		inv, ok, err := knownNetwork(dir)
		if err != nil {
			return err
		}
		if !ok {
			return withCode(exitNoMatch, errors.New("no network here yet; start one with gridbeam bridge run"))
		}
		v := struct {
			Network    protocol.NetworkID `json:"network"`
			Name       string             `json:"name"`
			Invitation string             `json:"invitation"`
		}{inv.Network.ID, inv.Network.Name, inv.String()}
		return out.object(c.OutOrStdout(), v, func(w io.Writer) { _, _ = fmt.Fprintln(w, v.Invitation) })
	}}
	out.flag(invite, false)
	return group("network", "Networks: who may join them, who is in them, and what is said of their nodes", append([]*cobra.Command{invite, labelCommand(), landmarksCommand()}, surveyCommands()...)...)
}

func goesOn(jobs int) string {
	if jobs == 1 {
		return "1 unfinished job goes on"
	}
	return fmt.Sprintf("%d unfinished jobs go on", jobs)
}
