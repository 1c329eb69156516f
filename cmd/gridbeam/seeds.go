package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// seeds are the peers to ask: --join, else those of the user's own network.
func seeds(c *cobra.Command, joins []string) ([]multiaddr.Multiaddr, error) {
	addrs, _, err := seedsAndNetwork(c, joins)
	return addrs, err
}

// seedsAndNetwork are the peers to ask and the network that an invitation names; nil where there are addresses alone.
func seedsAndNetwork(c *cobra.Command, joins []string) ([]multiaddr.Multiaddr, *protocol.NetworkFile, error) {
	if len(joins) > 0 {
		j, err := parseJoin(joins, time.Now())
		if err != nil || len(j.networks) == 0 {
			return j.bootstrap, nil, err
		}
		return j.bootstrap, &j.networks[0], nil
	}
	dir, err := configDir(c)
	if err != nil {
		return nil, nil, err
	}
	inv, ok, err := knownNetwork(dir)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, usagef("no network is known here: say --join ADDRESS (a node or bridge prints its addresses when it starts)")
	}
	return inv.Bootstrap, &inv.Network, nil
}

// localSeeds says whether the peers to begin with are all of one machine or LAN. Only there are private addresses of any use,
// and may index peers be of one network.
func localSeeds(seeds []multiaddr.Multiaddr) bool {
	return len(seeds) > 0 && all(seeds, manet.IsPrivateAddr)
}

// clientConfig is of a directory that asks and answers nobody.
func clientConfig(seeds []multiaddr.Multiaddr) dht.Config {
	cfg := dht.DefaultConfig()
	cfg.Mode, cfg.Loopback = dht.ModeClient, localSeeds(seeds)
	return cfg
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
	dcfg := clientConfig(seeds)
	dcfg.ColdTimeout = wait
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
