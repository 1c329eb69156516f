package beambridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
	"github.com/gridbeam/gridbeam/volumes"
)

// Bridge is the demand side of a network. It is made by New and does everything in Run; its methods answer
// between Config.Ready and the end of Run, and may be called by several goroutines.
type Bridge struct {
	cfg       Config
	log       *slog.Logger
	operators operators
	started   time.Time
	up        chan struct{} // closed when the fields below are set and the bridge answers
	rtts      sync.Map      // protocol.PeerID to time.Duration, by the lease stream
	regions   sync.Map      // protocol.PeerID to regionCheck

	// set by Run before up is closed
	root    context.Context // of everything that Run starts
	host    *p2p.Host
	self    protocol.PeerID
	network protocol.NetworkFile
	auth    *authority
	store   *store.Store
	vols    *volumes.Store
	net     *volumes.Net
	nothing cid.Cid // the empty directory
	dir     *dht.Directory
	engine  *engine
	reads   *readers
	news    chan struct{} // capacity 1: the directory has heard something
	gossip  *gossip
	guests  chan protocol.PeerID // peers that have just connected; more than fit are heard by their heartbeats
	// partners are the nodes that have a link: what others hand in is not even looked at.
	partners sync.Map
	notices  chan notice
	calling  sync.Map     // protocol.JobID of every job in memory whose inputs are calls
	stubs    sync.Map     // string to *stubOf
	beamAt   atomic.Value // string: where Beam's gateway listens
	merging  sync.Mutex   // volumes are changed one call after the other

	mu      sync.Mutex
	ending  bool
	workers sync.WaitGroup // short goroutines of spawn
}

// New checks the configuration and returns a bridge that is not running. It returns ErrConfig.
func New(cfg Config, log *slog.Logger) (*Bridge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ops, err := newOperators(cfg.OperatorKey, cfg.Anchors)
	if err != nil {
		return nil, err
	}
	return &Bridge{
		cfg: cfg, log: log, operators: ops, up: make(chan struct{}), reads: newReaders(), news: make(chan struct{}, 1), notices: make(chan notice, notices),
		guests: make(chan protocol.PeerID, 256),
	}, nil
}

func (b *Bridge) key() crypto.PrivKey { return b.host.Key() }

// ctx is the context of everything that Run has started.
func (b *Bridge) ctx() context.Context { return b.root }

// spawn runs f beside the engine until its end, which Run waits for. It returns false when the bridge is going
// down.
func (b *Bridge) spawn(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return false
	}
	b.workers.Go(f)
	return true
}

// running returns ErrStopped, as an error for the API, unless the bridge answers.
func (b *Bridge) running() error {
	select {
	case <-b.up:
		return nil
	default:
		return &protocol.APIError{Code: protocol.CodeUnavailable, Text: "the bridge is starting", Fix: "try again", RetryMS: 1000}
	}
}

// Run is the bridge: it opens its stores and its host, takes up unfinished jobs, answers nodes and the API, and
// returns nil when ctx is done and everything is in order. Errors are those of opening, such as store.ErrLocked,
// p2p.ErrListen and ErrNotRoot, and of a disk that keeps nothing any more.
func (b *Bridge) Run(ctx context.Context) (err error) {
	b.started = b.cfg.Clock()
	if err := os.MkdirAll(b.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	root, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	b.root = root
	// The store's lock is the data directory's: it comes first.
	if b.store, err = store.Open(filepath.Join(b.cfg.Data, "bridge.db"), b.log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.store.Close()) }()
	vcfg := volumes.DefaultConfig(filepath.Join(b.cfg.Data, "volumes"))
	vcfg.Reserve = b.cfg.Reserve
	if b.vols, err = volumes.Open(vcfg, b.log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.vols.Close()) }()
	made, closeHost, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeHost()) }()
	if err := b.assemble(ctx); err != nil {
		return err
	}
	return b.serveAll(ctx, stop, made)
}

// open brings the host up and reads or makes the network.
func (b *Bridge) open(ctx context.Context) (made bool, closeHost func() error, err error) {
	closeHost = func() error { return nil }
	if b.host = b.cfg.Host; b.host == nil {
		key, err := p2p.LoadOrCreateIdentity(b.cfg.Key)
		if err != nil {
			return false, closeHost, err
		}
		if b.network, made, err = loadNetwork(b.cfg.Network, b.cfg.NetworkName, key, b.started); err != nil {
			return false, closeHost, err
		}
		if b.host, err = b.newHost(key); err != nil {
			return false, closeHost, err
		}
		if err := b.host.Open(ctx); err != nil {
			return false, closeHost, err
		}
		running, end := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan error, 1)
		go func() { done <- b.host.Run(running) }()
		closeHost = func() error { end(); return <-done }
	} else if b.network, made, err = loadNetwork(b.cfg.Network, b.cfg.NetworkName, b.host.Key(), b.started); err != nil {
		return false, closeHost, err
	}
	b.self = b.host.ID()
	return made, closeHost, nil
}

func (b *Bridge) newHost(key crypto.PrivKey) (*p2p.Host, error) {
	cfg := p2p.DefaultConfig()
	if b.cfg.Local {
		cfg = p2p.LoopbackConfig()
	} else {
		cfg.Reach = p2p.ReachPublic
	}
	if len(b.cfg.Listen) > 0 {
		cfg.Listen = b.cfg.Listen
	}
	cfg.Announce, cfg.MDNS = b.cfg.Announce, b.cfg.MDNS
	cfg.Version = b.cfg.Version
	cfg.Drain = max(b.cfg.Drain, time.Millisecond) // the host wants more than none
	cfg.Connections = 4096                         // trust.md 6
	boot, err := peer.AddrInfosFromP2pAddrs(append(append([]multiaddr.Multiaddr(nil), b.cfg.Join...), b.network.Bootstrap...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: Join or the network's bootstrap: %w", ErrConfig, err)
	}
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("deriving the bridge's peer ID: %w", err)
	}
	for _, info := range boot {
		if info.ID != self {
			cfg.Bootstrap = append(cfg.Bootstrap, info)
		}
	}
	return p2p.New(cfg, key, b.log)
}

// assemble makes what needs the host, and takes up what the store has.
func (b *Bridge) assemble(ctx context.Context) error {
	b.auth = newAuthority(b.host, b.network, b.cfg.Clock)
	empty, err := b.vols.AddFiles(nil)
	if err != nil {
		return fmt.Errorf("opening the volumes: %w", err)
	}
	b.nothing = empty.Root
	if err := b.vols.Pin(b.nothing); err != nil {
		return fmt.Errorf("opening the volumes: %w", err)
	}
	if b.net, err = b.vols.Serve(volumes.DefaultNetConfig(), b.host.Host(), b.reads, nil); err != nil {
		return err
	}
	cfg := dht.DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.Shards, cfg.Index, cfg.K = dht.ModeServer, b.cfg.Local, dht.AllShards(), true, b.cfg.Buckets
	cfg.Network = b.network.ID[:]
	b.gossip = newGossip(b.host, b.stirred)
	if b.dir, err = dht.New(cfg, b.host.Host(), b.gossip, b.cfg.Clock, newRand(), b.log); err != nil {
		return err
	}
	b.dir.SetNetwork(b.network)
	judge, err := reputation.NewBook(reputation.DefaultConfig())
	if err != nil {
		return err
	}
	prices := settlement.DefaultPrices()
	prices.OperatorPPM = b.cfg.FeePPM
	if err := prices.Validate(); err != nil {
		return fmt.Errorf("%w: FeePPM: %w", ErrConfig, err)
	}
	start := uint64(b.cfg.Clock().UnixMicro()) // grows over restarts
	b.engine = &engine{
		bridge: b, log: b.log, now: b.cfg.Clock, store: b.store, mail: make(chan event, mailbox), gone: make(chan struct{}), prices: prices,
		opens: map[callKey]*job{}, calls: newCallIndex(), nodes: map[protocol.PeerID]*node{}, judge: judge, paces: newPaces(), setSeq: start, version: start,
	}
	if err := b.engine.restore(ctx); err != nil {
		return fmt.Errorf("taking up the bridge's state: %w", err)
	}
	return b.releaseOld(ctx)
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }

// releaseOld gives back what jobs had set aside that ended while nobody could: before a crash.
func (b *Bridge) releaseOld(ctx context.Context) error {
	now := b.cfg.Clock()
	return b.store.Update(ctx, func(tx *store.Tx) error {
		for _, state := range ended {
			before := time.Time{}
			for range 20 { // pages
				list, err := tx.ListJobs(store.JobFilter{State: state, Before: before, Limit: 1000})
				if err != nil {
					return err
				}
				for _, j := range list {
					if _, loaded := b.engine.jobs[j.ID]; loaded || j.Reserved <= j.Spent {
						continue
					}
					if err := releaseStored(tx, j.ID, now); err != nil {
						return err
					}
				}
				if len(list) < 1000 {
					break
				}
				before = list[len(list)-1].Created
			}
		}
		return nil
	})
}

func releaseStored(tx *store.Tx, id protocol.JobID, now time.Time) error {
	j, err := tx.GetJob(id)
	if err != nil {
		return err
	}
	x, err := settlement.Release(id, j.User, j.Reserved-j.Spent, now)
	if err != nil {
		return err
	}
	if _, err := tx.LedgerPost(x); err != nil {
		return err
	}
	j.Reserved = j.Spent
	return tx.PutJob(j)
}

// serveAll runs everything until ctx is done, then takes it down from the outside in: the API first, then what
// talks to nodes, the engine last, so that whatever it was told is still committed.
func (b *Bridge) serveAll(ctx context.Context, stop func(), made bool) error {
	lns, err := b.listenAPI(ctx)
	if err != nil {
		return err
	}
	inner, halt := context.WithCancel(b.root)
	defer halt()
	engineEnd := make(chan error, 1)
	engineCtx, endEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer endEngine()
	go func() { engineEnd <- b.engine.run(engineCtx) }()

	restored := 0
	for _, j := range b.engine.jobs {
		if j.over == "" {
			restored++
		}
	}
	g, gctx := errgroup.WithContext(inner)
	g.Go(func() error { return b.net.Run(gctx) })
	g.Go(func() error { return b.dir.Run(gctx) })
	g.Go(func() error { return b.watch(gctx) })
	g.Go(func() error { return b.greet(gctx) })
	g.Go(func() error { return b.crier(gctx) })
	g.Go(func() error { return b.announceSelf(gctx) })
	g.Go(func() error { return b.dir.Locate(gctx, dht.DefaultLocate()) })
	g.Go(func() error { return b.checkRegions(gctx) })
	if err = b.serve(); err == nil {
		err = b.engine.post(ctx, func(t *turn) { t.then(func(error) { b.engine.resume() }) })
	}
	close(b.up)
	apiEnd := make(chan error, 1)
	apiCtx, endAPI := context.WithCancel(context.WithoutCancel(ctx))
	defer endAPI()
	go func() { apiEnd <- b.serveAPI(apiCtx, lns) }()
	if err == nil {
		b.spawn(func() {
			if err := b.oweMerges(b.ctx()); err != nil && b.ctx().Err() == nil {
				b.log.Error("what calls wrote before the restart could not be merged", "err", err)
			}
		})
		b.ready(made, lns, restored)
		select {
		case <-ctx.Done():
		case <-gctx.Done():
		case err = <-engineEnd:
			engineEnd <- nil
		case err = <-apiEnd:
			apiEnd <- nil
		}
	}
	endAPI()
	err = errors.Join(err, <-apiEnd)
	b.mu.Lock()
	b.ending = true
	b.mu.Unlock()
	halt()
	err = errors.Join(err, g.Wait(), b.gossip.close())
	stop()
	b.workers.Wait()
	endEngine()
	return errors.Join(err, <-engineEnd)
}

func (b *Bridge) ready(made bool, lns faces, restored int) {
	addrs := b.host.JoinAddrs()
	s := Started{
		PeerID: b.self, Addrs: addrs, Invitation: invitation(b.network, addrs, b.cfg.Local), NetworkFile: b.cfg.Network, NetworkMade: made, Restored: restored,
	}
	if lns.api != nil {
		s.API = lns.api.Addr().String()
	}
	s.Beam, s.TLS = b.beamAddr(), lns.pin
	b.log.Info("bridge is ready", "peer", b.self, "api", s.API, "beam", s.Beam, "network", b.network.Name, "jobs", restored)
	if b.cfg.Ready != nil {
		b.cfg.Ready(s)
	}
}

// announceSelf puts the bridge into the directory.
func (b *Bridge) announceSelf(ctx context.Context) error {
	src := &herald{key: b.key(), self: b.self, host: b.host, agent: "gridbeam/" + b.cfg.Version}
	a, err := dht.NewAnnouncer(b.dir, b.cfg.Schedule, src, seqFile(filepath.Join(b.cfg.Data, "record.seq")), newRand())
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// origin is where nodes get module, volumes and inputs: this bridge.
func (b *Bridge) origin() peer.AddrInfo { return b.host.AddrInfo() }

// Face is the bridge as its API speaks to it.
func (b *Bridge) Face() api.Bridge {
	return api.Bridge{Auth: b, Jobs: b, Outcomes: b, Volumes: b, Nodes: b, Money: b, System: b, Tokens: b}
}
