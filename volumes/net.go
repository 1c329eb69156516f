package volumes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/volumes/internal/fetch"
	"github.com/gridbeam/gridbeam/volumes/internal/ipfs"
	"github.com/gridbeam/gridbeam/volumes/internal/store"
	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Authorizer decides who may read what. It is asked with the roots of complete trees only.
type Authorizer interface {
	// MayRead reports whether the peer may read the tree now. It is called often and must not block.
	MayRead(p peer.ID, root cid.Cid) bool
}

// ContentRouter finds holders that nobody named.
type ContentRouter interface {
	// FindProviders returns at most limit peers that say they have the block.
	FindProviders(ctx context.Context, c cid.Cid, limit int) ([]peer.AddrInfo, error)
}

// Evidence is what is known of a peer that sent wrong bytes.
type Evidence struct {
	// Peer sent them.
	Peer peer.ID
	// Got is the CID that the bytes hash to; nobody had asked for it.
	Got cid.Cid
	// Bytes is their number.
	Bytes int
}

// PeerStats is what one peer delivered to a Fetch.
type PeerStats struct {
	// Blocks and Bytes count good blocks.
	Blocks uint64
	// Bytes is their size in bytes.
	Bytes uint64
}

// FetchStats is what a Fetch brought.
type FetchStats struct {
	// Blocks counts the blocks that came over the wire; what was here already is not among them.
	Blocks uint64
	// Bytes is their size in bytes.
	Bytes uint64
	// PerPeer says who delivered them.
	PerPeer map[peer.ID]PeerStats
	// Tree is the tree that is now complete.
	Tree Tree
}

// Net serves a Store's trees on a host and fetches trees into it.
type Net struct {
	s    *Store
	cfg  NetConfig
	host host.Host
	auth Authorizer
	x    *ipfs.Exchange
	lone atomic.Pointer[ipfs.Session] // for the blocks that readers miss; lives as long as Run
	now  func() time.Time

	mu    sync.Mutex
	since time.Time
	may   map[mayKey]bool // answers of the Authorizer since then
}

type mayKey struct {
	p peer.ID
	d store.Digest
}

// Serve returns a Net of the Store on a host; it does nothing until Run. auth nil admits everybody, router
// nil leaves finding holders to the caller. It returns ErrConfig.
func (s *Store) Serve(cfg NetConfig, h host.Host, auth Authorizer, router ContentRouter) (*Net, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Net{s: s, cfg: cfg, host: h, auth: auth, now: time.Now, may: map[mayKey]bool{}}
	var find routing.ContentDiscovery
	if router != nil {
		find = finder{router}
	}
	n.x = ipfs.New(ipfs.Config{
		Outstanding: cfg.Outstanding, Message: 1 << 20, Workers: cfg.Workers, StoreWorkers: 4 * cfg.Workers,
		HaveReplace: 4 << 10, ProviderDelay: 200 * time.Millisecond, Ban: cfg.Ban, Grace: cfg.Grace,
	}, h, served{s}, n.readable, find, func(e ipfs.Evidence) { n.accuse(Evidence(e)) })
	return n, nil
}

func (n *Net) accuse(e Evidence) {
	n.s.log.Warn("peer sent bytes that nobody asked for", "peer", e.Peer, "cid", e.Got)
	if n.cfg.Evidence != nil {
		n.cfg.Evidence(e)
	}
}

// Run serves until ctx ends; it may be called once, and a Store has one running Net at a time.
func (n *Net) Run(ctx context.Context) error {
	if !n.s.net.CompareAndSwap(nil, n) {
		return fmt.Errorf("%w: the store is being served already; end the other Run first", ErrConflict)
	}
	defer n.s.net.Store(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.x.Run(ctx) })
	if lone, err := n.x.Session(ctx); err == nil {
		n.lone.Store(lone)
	}
	return g.Wait()
}

// served is the store as bitswap reads it.
type served struct{ s *Store }

// Block implements ipfs.Blocks.
func (v served) Block(c cid.Cid) ([]byte, bool, error) {
	b, err := v.s.get(context.Background(), c)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, ErrUnsupported) {
		return nil, false, nil
	}
	return b, err == nil, err
}

// BlockSize implements ipfs.Blocks.
func (v served) BlockSize(c cid.Cid) (int, bool, error) {
	d, err := digest(c)
	if err != nil {
		return 0, false, nil
	}
	n, err := v.s.blocks.Size(d)
	if errors.Is(err, store.ErrNotFound) {
		return 0, false, nil
	}
	return n, err == nil, err
}

// finder shows a ContentRouter to bitswap.
type finder struct{ ContentRouter }

// maxProviders is how many holders are asked for when bitswap names no limit: 0 would mean everybody.
const maxProviders = 10

// FindProvidersAsync implements routing.ContentDiscovery.
func (f finder) FindProvidersAsync(ctx context.Context, c cid.Cid, limit int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, maxProviders) // so that a reader who left does not keep the goroutine
	go func() {
		defer close(out)
		if limit <= 0 || limit > maxProviders {
			limit = maxProviders
		}
		found, err := f.FindProviders(ctx, c, limit)
		if err != nil {
			return // nobody found: the fetch ends by its own deadline
		}
		for _, p := range found[:min(len(found), limit)] {
			out <- p
		}
	}()
	return out
}

// maxAncestors bounds the search for a readable tree above a block that many trees share.
const maxAncestors = 1 << 20

// readable reports whether a peer may have a block: whether some complete tree that holds it is readable.
func (n *Net) readable(p peer.ID, c cid.Cid) bool {
	if n.auth == nil {
		return true
	}
	d, err := digest(c)
	if err != nil {
		return false
	}
	k := mayKey{p, d}
	n.mu.Lock()
	if n.now().Sub(n.since) > n.cfg.AuthTTL || len(n.may) > 1<<16 {
		clear(n.may)
		n.since = n.now()
	}
	ok, known := n.may[k]
	n.mu.Unlock()
	if known {
		return ok
	}
	ok = n.search(p, d)
	n.mu.Lock()
	n.may[k] = ok
	n.mu.Unlock()
	return ok
}

func (n *Net) search(p peer.ID, d store.Digest) bool {
	seen := map[store.Digest]struct{}{d: {}}
	stack := []store.Digest{d}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if r, err := n.s.blocks.Root(at); err == nil && n.auth.MayRead(p, cidOf(r.Codec, at)) {
			return true
		}
		err := n.s.blocks.Parents(at, func(up store.Digest) bool {
			if _, ok := seen[up]; !ok {
				seen[up] = struct{}{}
				stack = append(stack, up)
			}
			return len(seen) < maxAncestors
		})
		if err != nil || len(seen) >= maxAncestors {
			return false
		}
	}
	return false
}

// Fetch brings a tree from holders, several at once, verifies each block and makes the tree durable. What
// is here already is not asked for, so an interrupted Fetch goes on where it stopped. Without holders it
// asks connected peers and the ContentRouter. It returns ErrUnavailable naming the holders tried and a
// missing block, ErrCorrupt for a root that is no tree, ErrTooLarge, ErrNoSpace, ErrClosed or ctx's error;
// the stats say what came even then. Run has to be running.
func (n *Net) Fetch(ctx context.Context, root cid.Cid, holders []peer.AddrInfo, progress func(blocks, bytes uint64)) (FetchStats, error) {
	l := &arrivals{n: n, progress: progress, stats: FetchStats{PerPeer: map[peer.ID]PeerStats{}}}
	if t, err := n.s.Stat(ctx, root); err == nil {
		l.stats.Tree = t
		return l.stats, nil
	} else if !errors.Is(err, ErrNotFound) {
		return l.stats, fmt.Errorf("fetching %s: %w", root, err)
	}
	n.s.gate.RLock()
	defer n.s.gate.RUnlock()
	ctx, cancel := context.WithCancel(ctx) // ends the session
	defer cancel()
	tried, reached, err := n.connect(ctx, holders)
	if err != nil {
		return l.stats, fmt.Errorf("fetching %s: %w", root, err)
	}
	session, err := n.x.Session(ctx, reached...)
	if err == nil {
		cfg := fetch.Config{Window: n.cfg.Window, WindowBytes: n.cfg.WindowBytes, Stall: n.cfg.Stall, MaxBlocks: n.s.cfg.MaxBlocks}
		err = fetch.Run(ctx, cfg, root, session, l)
	}
	if err == nil {
		l.stats.Tree, err = n.s.record(ctx, root)
	}
	serr := n.s.blocks.Sync(context.WithoutCancel(ctx)) // what came is kept even if the rest did not
	if stall, ok := errors.AsType[*fetch.StallError](err); ok {
		err = fmt.Errorf("%w: %w; tried %s; name other holders or try again", ErrUnavailable, stall, tried)
	}
	if many, ok := errors.AsType[*fetch.TooManyError](err); ok {
		err = fmt.Errorf("%w: %w", ErrTooLarge, many)
	}
	if err = errors.Join(translate(err), translate(serr)); err != nil {
		return l.done(), fmt.Errorf("fetching %s: %w", root, err)
	}
	return l.done(), nil
}

// connect reaches for all holders at once and returns who was tried, in words, and who was reached. It fails
// when holders were named and none can be reached.
func (n *Net) connect(ctx context.Context, holders []peer.AddrInfo) (tried string, reached []peer.ID, err error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Connect)
	defer cancel()
	results, good := make([]string, len(holders)), make([]bool, len(holders))
	var wg sync.WaitGroup
	for i, h := range holders {
		wg.Go(func() {
			results[i] = h.ID.String()
			if n.x.Banned(h.ID) {
				results[i] += " (sent wrong bytes before)"
			} else if err := n.host.Connect(ctx, h); err != nil {
				results[i] += " (" + err.Error() + ")"
			} else {
				good[i] = true
			}
		})
	}
	wg.Wait()
	for i, h := range holders {
		if good[i] {
			reached = append(reached, h.ID)
		}
	}
	tried = strings.Join(results, ", ")
	if tried == "" {
		tried = "connected peers"
	}
	if len(holders) > 0 && len(reached) == 0 {
		return tried, nil, fmt.Errorf("%w: none of the holders can be reached: %s", ErrUnavailable, tried)
	}
	return tried, reached, nil
}

// arrivals is the store as a fetch sees it.
type arrivals struct {
	n        *Net
	progress func(blocks, bytes uint64)

	mu    sync.Mutex
	stats FetchStats
}

func (l *arrivals) done() FetchStats { l.mu.Lock(); defer l.mu.Unlock(); return l.stats }

// Has implements fetch.Local.
func (l *arrivals) Has(c cid.Cid) (bool, error) {
	d, err := digest(c)
	if err != nil {
		return false, err
	}
	if d == emptyBlock {
		return true, l.n.s.putEmpty()
	}
	return l.n.s.blocks.Has(d)
}

// emptyBlock is the digest of no bytes, the leaf of every empty file. Bitswap servers say that they do not
// have a block of size 0, so it is never asked for: everybody can make it.
var emptyBlock = store.Digest(sha256.Sum256(nil))

func (s *Store) putEmpty() error { return s.blocks.Put(nil, store.Block{Digest: emptyBlock}) }

// Load implements fetch.Local.
func (l *arrivals) Load(ctx context.Context, c cid.Cid) ([]fetch.Want, error) {
	n, err := l.n.s.load(ctx, c)
	if errors.Is(err, store.ErrCorrupt) { // heals by the next Fetch
		if d, derr := digest(c); derr == nil {
			err = errors.Join(err, l.n.s.blocks.Drop(d))
		}
	}
	if err != nil {
		return nil, err
	}
	return wants(n), nil
}

func wants(n *tree.Node) []fetch.Want {
	out := make([]fetch.Want, len(n.Links))
	for i, ln := range n.Links {
		out[i] = fetch.Want{CID: ln.CID, Size: ln.Tsize}
	}
	return out
}

// Put implements fetch.Local.
func (l *arrivals) Put(ctx context.Context, c cid.Cid, data []byte, from peer.ID) ([]fetch.Want, error) {
	node, err := l.n.keep(ctx, c, data, from)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Blocks++
	l.stats.Bytes += uint64(len(data))
	if from != "" {
		p := l.stats.PerPeer[from]
		p.Blocks++
		p.Bytes += uint64(len(data))
		l.stats.PerPeer[from] = p
	}
	if l.progress != nil {
		l.progress(l.stats.Blocks, l.stats.Bytes)
	}
	return wants(node), nil
}

// keep verifies a block that came from a peer and stores it.
func (n *Net) keep(ctx context.Context, c cid.Cid, data []byte, from peer.ID) (*tree.Node, error) {
	b, node, err := verify(c, data)
	if err != nil {
		return nil, err
	}
	if err := n.s.blocks.Put(nil, b); err != nil {
		return nil, err
	}
	if err := n.x.Have(ctx, c, data); err != nil && ctx.Err() == nil && !errors.Is(err, ipfs.ErrClosed) {
		return nil, fmt.Errorf("telling waiting peers of %s: %w", c, err)
	}
	return node, nil
}

// one fetches a single block that a reader misses.
func (n *Net) one(ctx context.Context, c cid.Cid) error {
	lone := n.lone.Load()
	if lone == nil {
		return ErrClosed
	}
	var kept error
	err := lone.Get(ctx, []cid.Cid{c}, func(c cid.Cid, data []byte, from peer.ID) bool {
		_, kept = n.keep(ctx, c, data, from)
		return kept == nil
	})
	return errors.Join(err, kept)
}
