package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// crawlerFile holds the key that signs a researcher's manifests, in the user's configuration directory.
const crawlerFile = "crawler.key"

// crawlerKey loads or makes that key. Crawlers themselves appear in the network under a new key each time.
func crawlerKey(c *cobra.Command) (crypto.PrivKey, error) {
	dir, err := configDir(c)
	if err != nil {
		return nil, err
	}
	return p2p.LoadOrCreateIdentity(filepath.Join(dir, crawlerFile))
}

// listener is a dht.Gossip that hears all heartbeats and says nothing.
type listener struct{ host *p2p.Host }

var _ dht.Gossip = listener{}

// Publish implements dht.Gossip; a researcher has nothing to say.
func (l listener) Publish(context.Context, string, []byte) (int, error) { return 0, nil }

// Subscribe implements dht.Gossip.
func (l listener) Subscribe(ctx context.Context, name string, take func(peer.ID, []byte) dht.Verdict) error {
	topic, err := p2p.Join(l.host, name, p2p.TopicConfig[[]byte]{
		MaxSize: protocol.MaxAvailability,
		Decode:  func(data []byte, _ peer.ID) ([]byte, error) { return data, nil }, // the directory judges
		Validate: func(_ context.Context, m p2p.Received[[]byte]) p2p.Verdict {
			switch take(m.Author, m.Data) {
			case dht.Accept:
				return p2p.Accept
			case dht.Reject:
				return p2p.Reject
			default:
				return p2p.Ignore
			}
		},
	})
	if err != nil {
		return err
	}
	sub, err := topic.Subscribe()
	if err != nil {
		return errors.Join(err, topic.Close())
	}
	defer sub.Close()
	for { // the directory has it already; the queue only has to be emptied
		if _, err := sub.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// surveyor is a peer that listens nowhere, asks everybody and hears all heartbeats.
type surveyor struct {
	seeds []multiaddr.Multiaddr
	log   *slog.Logger
	wait  time.Duration // for one of the seeds
	links int           // connections at once
}

// run joins the network, lets use ask, and leaves again.
func (s *surveyor) run(ctx context.Context, use func(context.Context, *dht.Directory, []peer.AddrInfo) error) error {
	infos, err := peer.AddrInfosFromP2pAddrs(s.seeds...)
	if err != nil {
		return usagef("--join: %s", err)
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	cfg := p2p.DefaultConfig()
	cfg.Listen, cfg.MDNS, cfg.Version, cfg.Connections = nil, false, version, s.links
	cfg.DialTimeout = min(s.wait, cfg.DialTimeout)
	cfg.Reach = p2p.ReachClient
	h, err := p2p.New(cfg, key, s.log)
	if err != nil {
		return err
	}
	if err := h.Open(ctx); err != nil {
		return err
	}
	dcfg := clientConfig(s.seeds)
	dcfg.Shards = dht.AllShards()
	d, err := dht.New(dcfg, h.Host(), listener{h}, time.Now, mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())), s.log)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return h.Run(running) })
	g.Go(func() error { return d.Run(running) })
	if err = connectAny(ctx, h, infos, s.wait); err == nil {
		err = use(ctx, d, infos)
		if errors.Is(err, dht.ErrNoServers) {
			err = withCode(exitNotConnected, errors.New("connected, but no peer of the directory answered; try another --join address"))
		}
	}
	stop()
	return errors.Join(err, g.Wait())
}

// terminalProgress shows progress on a terminal, and nothing elsewhere.
func terminalProgress(c *cobra.Command) *progress {
	p := newProgress(c.ErrOrStderr(), false)
	p.quiet = !p.tty
	return p
}

// showing repeats a line of progress until the returned function is called.
func showing(p *progress, line func() string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				p.show(line())
			}
		}
	})
	return func() { close(done); wg.Wait(); p.done() }
}
