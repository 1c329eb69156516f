package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/crypto/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"
)

// flush is how long last frames get to leave before their connection closes.
const flush = 100 * time.Millisecond

// ErrListen means that an address could not be listened on.
var ErrListen = errors.New("p2p: cannot listen")

// Host is this machine in the network: its libp2p host, its gossip and its streams. It is made by New,
// usable between Open and the end of Run, and safe for concurrent use.
type Host struct {
	cfg Config
	key crypto.PrivKey
	id  peer.ID
	log *slog.Logger

	libp2p host.Host
	pubsub *pubsub.PubSub
	subs   *subscriptions
	scores scores

	// base is done when handlers have to end. Handlers are started by libp2p, which hands them no
	// context, so the host has to keep the one that they get.
	base   context.Context
	cancel context.CancelFunc
	stop   context.CancelFunc // ends gossip, after the handlers

	handlers sync.WaitGroup
	pool     pool
	keep     keeper

	relays atomic.Pointer[func(context.Context, int) []peer.AddrInfo] // see RelaysFrom
	found  atomic.Pointer[standing]                                   // never nil

	mu      sync.Mutex
	open    map[*Frames]libprotocol.ID // every stream that a handler serves
	closing bool
}

// New checks cfg and key and returns a host that is not on the network yet. The key must be Ed25519
// (ErrKeyType).
func New(cfg Config, key crypto.PrivKey, log *slog.Logger) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if key == nil || key.Type() != pb.KeyType_Ed25519 {
		return nil, ErrKeyType
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("deriving the peer ID: %w", err)
	}
	h := &Host{cfg: cfg, key: key, id: id, log: log, subs: newSubscriptions(), open: make(map[*Frames]libprotocol.ID)}
	h.found.Store(&standing{})
	h.pool.init(h)
	h.keep.init(h)
	return h, nil
}

// Open listens and starts gossip; ctx bounds the opening alone. After it handlers can be set and peers
// called. An address that cannot be had gives ErrListen with what to do; then nothing stays open.
func (h *Host) Open(ctx context.Context) (err error) {
	if h.libp2p != nil {
		return errors.New("p2p: host is open already")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	opts, err := h.options()
	if err != nil {
		return err
	}
	h.base, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	gossip, stop := context.WithCancel(context.WithoutCancel(ctx))
	h.stop = stop
	defer func() {
		if err != nil {
			h.cancel()
			h.stop()
			if h.libp2p != nil {
				err = errors.Join(err, h.libp2p.Close())
				h.libp2p = nil
			}
		}
	}()
	if h.libp2p, err = libp2p.New(opts...); err != nil {
		return fmt.Errorf("opening the libp2p host: %w", err)
	}
	// One at a time: libp2p is content with any one address, whoever configured two expects both.
	for _, a := range h.cfg.Listen {
		if h.cfg.Transport == nil {
			err = portFree(ctx, a)
		}
		if err == nil {
			err = h.libp2p.Network().Listen(a)
		}
		if err != nil {
			return listenError(a, err)
		}
	}
	h.libp2p.Network().Notify(h.subs.notifiee())
	h.pubsub, err = h.newPubSub(gossip)
	return err
}

// portFree returns an error when another socket listens on a TCP address. libp2p listens with SO_REUSEPORT, so
// that it can punch holes from the port it listens on; a second program would get every other connection
// meant for the first, and neither would be told.
func portFree(ctx context.Context, a multiaddr.Multiaddr) error {
	network, address, err := manet.DialArgs(a)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return nil // libp2p says what it thinks of the address
	}
	var alone net.ListenConfig
	l, err := alone.Listen(ctx, network, address)
	if err != nil {
		return err
	}
	return l.Close()
}

func listenError(a multiaddr.Multiaddr, err error) error {
	why := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		why = "the port is in use; stop the program that holds it or choose another port"
	case errors.Is(err, syscall.EACCES):
		why = "ports below 1024 need privileges; choose a higher one"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		why = "this machine has no such address; use one of its own, or 0.0.0.0 for all"
	}
	return fmt.Errorf("%w on %s: %s", ErrListen, a, why)
}

func (h *Host) options() ([]libp2p.Option, error) {
	rm, err := h.cfg.resourceManager()
	if err != nil {
		return nil, fmt.Errorf("building resource limits: %w", err)
	}
	// Trimming begins below the hard limit, so that a newcomer is not refused for an idle peer's sake.
	cm, err := connmgr.NewConnManager(max(1, h.cfg.Connections*5/8), max(2, h.cfg.Connections*7/8))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("building the connection manager: %w", err), rm.Close())
	}
	opts := []libp2p.Option{
		libp2p.Identity(h.key),
		libp2p.NoListenAddrs,
		libp2p.UserAgent("gridbeam/" + h.cfg.Version),
		libp2p.ResourceManager(rm),
		libp2p.ConnectionManager(cm),
		libp2p.ConnectionGater(gater{}),
		libp2p.WithDialTimeout(h.cfg.DialTimeout),
		libp2p.SwarmOpts(swarm.WithDialRanker(rank)),
		libp2p.DisableMetrics(),
	}
	if h.cfg.Transport != nil || h.cfg.Reach == ReachLocal || h.cfg.Reach == ReachClient {
		// Where others see us matters behind a NAT alone, and finding out stalls virtual time.
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	}
	if h.cfg.Transport != nil {
		opts = append(opts, h.cfg.Transport()...)
	} else {
		opts = append(opts, libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(libp2pquic.NewTransport))
	}
	if len(h.cfg.Announce) > 0 {
		opts = append(opts, libp2p.AddrsFactory(func(found []multiaddr.Multiaddr) []multiaddr.Multiaddr {
			return multiaddr.Unique(slices.Concat(h.cfg.Announce, found))
		}))
	}
	switch h.cfg.Reach {
	case ReachPublic:
		opts = append(opts, libp2p.EnableRelay(), libp2p.ForceReachabilityPublic(), libp2p.EnableNATService(),
			libp2p.EnableAutoNATv2(), libp2p.EnableRelayService())
	case ReachAuto:
		opts = append(opts, libp2p.EnableRelay(), libp2p.EnableAutoNATv2(), libp2p.NATPortMap(), libp2p.EnableHolePunching(), h.autoRelay())
	case ReachLocal:
		opts = append(opts, libp2p.DisableRelay(), libp2p.ForceReachabilityPublic())
	case ReachClient:
		opts = append(opts, libp2p.EnableRelay(), libp2p.ForceReachabilityPublic())
	}
	return opts, nil
}

// ID returns the peer ID of this host's key; it is known before Open.
func (h *Host) ID() peer.ID { return h.id }

// Key returns the identity key, for signing.
func (h *Host) Key() crypto.PrivKey { return h.key }

// Host returns the libp2p host, for the mechanisms that take one as a value. Nil before Open.
func (h *Host) Host() host.Host { return h.libp2p }

// PubSub returns the gossip router. Join is the way to use it; this is for inspection. Nil before Open.
func (h *Host) PubSub() *pubsub.PubSub { return h.pubsub }

// Addrs returns the addresses under which others can join this host, each ending in /p2p/<peer ID>.
func (h *Host) Addrs() []multiaddr.Multiaddr {
	if h.libp2p == nil {
		return nil
	}
	out, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: h.id, Addrs: h.libp2p.Addrs()})
	if err != nil { // cannot be: the ID is our own
		return nil
	}
	return out
}

// AddrInfo returns the peer ID and addresses of this host.
func (h *Host) AddrInfo() peer.AddrInfo {
	info := peer.AddrInfo{ID: h.id}
	if h.libp2p != nil {
		info.Addrs = h.libp2p.Addrs()
	}
	return info
}

// Connect makes sure that there is a connection to the peer, within DialTimeout. It forgets libp2p's own
// pauses after failed attempts: the caller decides when to try. Errors are ErrUnreachable and ErrKeyType.
func (h *Host) Connect(ctx context.Context, info peer.AddrInfo) error {
	if h.libp2p == nil {
		return ErrClosed
	}
	if !isEd25519(info.ID) {
		return fmt.Errorf("connecting to %s: %w", info.ID, ErrKeyType)
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.DialTimeout)
	defer cancel()
	if sw, ok := h.libp2p.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(info.ID)
	}
	if err := h.libp2p.Connect(ctx, info); err != nil {
		return fmt.Errorf("%w: connecting to %s: %w", ErrUnreachable, info.ID, err)
	}
	return nil
}

// Connected tells whether there is a connection to the peer. A peer that was cut off without a goodbye
// counts as connected until the transport notices, for up to 30 s.
func (h *Host) Connected(p peer.ID) bool {
	return h.libp2p != nil && h.libp2p.Network().Connectedness(p) == network.Connected
}

// Run keeps bootstrap peers connected and neighbours found until ctx is done; then it stops taking
// requests, gives handlers Config.Drain to end, and closes the host. It returns nil after an orderly end,
// and an error when mDNS could not start or a handler would not end. The host must be open.
func (h *Host) Run(ctx context.Context) error {
	if h.libp2p == nil {
		return ErrClosed
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, info := range h.cfg.Bootstrap {
		h.Keep(info)
	}
	g.Go(func() error { return h.keep.run(gctx) })
	g.Go(func() error { return h.pool.run(gctx) })
	g.Go(func() error { return h.watchReach(gctx) })
	if h.cfg.MDNS {
		g.Go(func() error { return h.runMDNS(gctx) })
	}
	g.Go(func() error { <-gctx.Done(); return nil })
	err := g.Wait()
	return errors.Join(err, h.Close())
}

// Close ends everything: handlers' contexts are cancelled, streams get Config.Drain to end, the host leaves
// the network. Run calls it; only a host that never ran needs it. It may be called again.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.libp2p == nil || h.closing {
		h.mu.Unlock()
		return nil
	}
	h.closing = true
	open := make([]*Frames, 0, len(h.open))
	for f := range h.open {
		open = append(open, f)
	}
	h.mu.Unlock()

	for _, id := range h.libp2p.Mux().Protocols() {
		if _, ours := h.cfg.Protocols[id]; ours {
			h.libp2p.RemoveStreamHandler(id)
		}
	}
	h.cancel()
	for _, f := range open {
		f.stopReading() // one that waits for a request wakes up; one that answers finishes
	}
	late := !waitFor(&h.handlers, h.cfg.Drain)
	if len(open) > 0 { // closing a connection drops what it has not sent yet, and nothing tells when it has
		linger := time.NewTimer(flush)
		<-linger.C
	}
	h.pool.closeAll()
	h.mu.Lock()
	var stuck []libprotocol.ID
	for f, id := range h.open {
		stuck = append(stuck, id)
		f.Reset()
	}
	h.mu.Unlock()
	h.stop()
	err := h.libp2p.Close()
	if late && !waitFor(&h.handlers, h.cfg.Drain) {
		err = errors.Join(err, fmt.Errorf("p2p: handlers of %v did not end within %s", stuck, 2*h.cfg.Drain))
	}
	if err != nil {
		return fmt.Errorf("closing the host: %w", err)
	}
	return nil
}

// waitFor waits for wg, but not longer than d; it tells whether wg was done.
func waitFor(wg *sync.WaitGroup, d time.Duration) bool {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
