package ipfs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/boxo/bitswap/client"
	"github.com/ipfs/boxo/bitswap/client/traceability"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

// ErrClosed means that the exchange does not run any more.
var ErrClosed = errors.New("ipfs: exchange is closed")

// Config tunes bitswap.
type Config struct {
	// Outstanding is how many bytes may be on their way to one peer.
	Outstanding int
	// Message is the size in bytes that messages aim at.
	Message int
	// Workers serve peers side by side; StoreWorkers read blocks for them.
	Workers int
	// StoreWorkers read blocks from the store for serving.
	StoreWorkers int
	// HaveReplace is the block size in bytes up to which a block is sent instead of "have it".
	HaveReplace int
	// ProviderDelay is how long a session waits before it asks the router.
	ProviderDelay time.Duration
	// Ban is how long a peer that sent wrong bytes is not asked.
	Ban time.Duration
	// Grace is the time after the start in which unasked blocks are dropped without blame: peers may still
	// answer wants of this host's last run.
	Grace time.Duration
}

// Filter reports whether a peer may have a block.
type Filter func(p peer.ID, c cid.Cid) bool

// Evidence is what is known of a peer that sent bytes nobody asked for.
type Evidence struct {
	// Peer sent them.
	Peer peer.ID
	// Got is the CID that the bytes hash to.
	Got cid.Cid
	// Bytes is their number.
	Bytes int
}

// Exchange is bitswap on one host.
type Exchange struct {
	cfg      Config
	host     host.Host
	blocks   Blocks
	filter   Filter
	router   routing.ContentDiscovery
	evidence func(Evidence)

	ready  chan struct{} // closed when client and server stand
	done   chan struct{} // closed when Run returns
	client *client.Client
	server *server.Server
	guard  *guard
}

// New returns an exchange that does nothing until Run. router may be nil: then only connected peers are
// asked. evidence is called on bitswap's goroutines and must not block.
func New(cfg Config, h host.Host, b Blocks, filter Filter, router routing.ContentDiscovery, evidence func(Evidence)) *Exchange {
	return &Exchange{
		cfg: cfg, host: h, blocks: b, filter: filter, router: router, evidence: evidence,
		ready: make(chan struct{}), done: make(chan struct{}),
	}
}

// Run serves and fetches until ctx ends; it may be called once.
func (x *Exchange) Run(ctx context.Context) error {
	defer close(x.done)
	net := bsnet.NewFromIpfsHost(x.host)
	store := blockstore{x.blocks}
	own := context.WithoutCancel(ctx) // ended by the Close calls below, in their order
	x.server = server.New(own, net, store,
		server.MaxOutstandingBytesPerPeer(x.cfg.Outstanding),
		server.WithTargetMessageSize(x.cfg.Message),
		server.TaskWorkerCount(x.cfg.Workers),
		server.EngineTaskWorkerCount(x.cfg.Workers),
		server.EngineBlockstoreWorkerCount(x.cfg.StoreWorkers),
		server.WithWantHaveReplaceSize(x.cfg.HaveReplace),
		server.WithPeerBlockRequestFilter(func(p peer.ID, c cid.Cid) bool { return x.filter == nil || x.filter(p, c) }),
	)
	x.client = client.New(own, net, x.router, store,
		client.WithBlockReceivedNotifier(x.server),
		client.ProviderSearchDelay(x.cfg.ProviderDelay),
		client.RebroadcastDelay(rebroadcast),
		client.WithoutDuplicatedBlockStats(),
		client.WithTraceBlock(true),
	)
	x.guard = newGuard(x.client, x.cfg, x.evidence)
	net.Start(x.guard, x.server)
	close(x.ready)
	<-ctx.Done()
	for _, p := range protocols {
		x.host.RemoveStreamHandler(p)
	}
	net.Stop()
	return errors.Join(x.client.Close(), closeServer(x.server))
}

func closeServer(s *server.Server) error { s.Close(); return nil }

// await blocks until Run has begun.
func (x *Exchange) await(ctx context.Context) error {
	select {
	case <-x.done:
		return ErrClosed
	default:
	}
	select {
	case <-x.ready:
		return nil
	case <-x.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rebroadcast is how often wants that nobody has answered are said again: a holder that got the block at the very
// moment of the question may have missed to tell. boxo's own minute is as long as a fetch waits at all.
const rebroadcast = 10 * time.Second

// Session asks for the blocks of one tree; peers that had some are asked first for the rest.
type Session struct {
	x       *Exchange
	fetcher exchange.Fetcher
	holders []peer.ID
}

// Session begins a session that ends with ctx; it waits until Run has begun. All holders share its wants.
func (x *Exchange) Session(ctx context.Context, holders ...peer.ID) (*Session, error) {
	if err := x.await(ctx); err != nil {
		return nil, err
	}
	return &Session{x: x, fetcher: x.client.NewSession(ctx), holders: holders}, nil
}

// Get asks for all wants at once and hands each block to got as it arrives, with the peer that sent it. It
// returns when all have come, with ctx's error, or with ErrClosed. What got reports is not needed: bytes
// that do not hash to a want are stopped by the guard.
func (s *Session) Get(ctx context.Context, wants []cid.Cid, got func(c cid.Cid, data []byte, from peer.ID) bool) error {
	s.x.guard.expect(wants)
	defer s.x.guard.introduce(wants, s.holders)()
	ch, err := s.fetcher.GetBlocks(ctx, wants)
	if err != nil {
		return fmt.Errorf("asking for %d blocks: %w", len(wants), err)
	}
	left := len(wants)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.x.done:
			return ErrClosed
		case b, ok := <-ch:
			if !ok {
				if left > 0 {
					return errors.Join(ErrClosed, ctx.Err())
				}
				return nil
			}
			left--
			var from peer.ID
			if t, ok := b.(traceability.Block); ok {
				from = t.From
			}
			got(b.Cid(), b.RawData(), from)
		}
	}
}

// Have tells peers that wait for a block that it is in the store now.
func (x *Exchange) Have(ctx context.Context, c cid.Cid, data []byte) error {
	if err := x.await(ctx); err != nil {
		return err
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		return err
	}
	return x.server.NotifyNewBlocks(ctx, b)
}

// Banned reports whether a peer is not asked because it sent wrong bytes.
func (x *Exchange) Banned(p peer.ID) bool {
	select {
	case <-x.ready:
		return x.guard.banned(p)
	default:
		return false
	}
}
