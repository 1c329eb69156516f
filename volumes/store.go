package volumes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/gridbeam/gridbeam/volumes/internal/store"
	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Tree is a complete tree.
type Tree struct {
	// Root is the CID of its root directory (or of a lone file).
	Root cid.Cid
	// Bytes is the content of all files in bytes.
	Bytes uint64
	// Blocks counts its distinct blocks.
	Blocks uint64
	// Files counts its files.
	Files uint64
}

// Block is one block of a tree, as it travels inside a message.
type Block struct {
	// CID names it.
	CID cid.Cid
	// Data is its bytes, at most 2 MiB.
	Data []byte
}

// Store keeps trees in one directory. Its methods may be called by several goroutines; two Stores of one
// process share nothing.
type Store struct {
	cfg    Config
	log    *slog.Logger
	blocks *store.Store
	net    atomic.Pointer[Net]
	gate   sync.RWMutex // read-held while a tree is being made, so that GC does not take its blocks
}

// Open opens the store in cfg.Dir, making it if absent and recovering what a crash left. It returns
// ErrConfig, ErrLocked, ErrFormat or ErrNoSpace.
func Open(cfg Config, log *slog.Logger) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	blocks, err := store.Open(store.Config{
		Dir: cfg.Dir, Reserve: cfg.Reserve, PackSize: cfg.PackSize, Inline: cfg.Inline, SyncBytes: cfg.SyncBytes,
		Cache: cfg.Cache,
	}, log)
	if err != nil {
		return nil, translate(err)
	}
	return &Store{cfg: cfg, log: log, blocks: blocks}, nil
}

// Close makes everything durable and closes the store; a Net of it has to be ended before.
func (s *Store) Close() error { return translate(s.blocks.Close()) }

// Sync makes everything durable that was put before it; callers that come together share one sync.
func (s *Store) Sync(ctx context.Context) error { return translate(s.blocks.Sync(ctx)) }

func digest(c cid.Cid) (store.Digest, error) {
	if !c.Defined() {
		return store.Digest{}, fmt.Errorf("%w: empty CID", ErrUnsupported)
	}
	h := c.Hash()
	if len(h) != 34 || h[0] != mh.SHA2_256 || h[1] != sha256.Size {
		return store.Digest{}, fmt.Errorf("%w: CID %s is not of SHA-256; import the data with profile unixfs-v1-2025", ErrUnsupported, c)
	}
	return store.Digest(h[2:]), nil
}

func cidOf(codec uint64, d store.Digest) cid.Cid {
	h := make([]byte, 0, 34)
	h = append(h, mh.SHA2_256, sha256.Size)
	return cid.NewCidV1(codec, append(h, d[:]...))
}

// toBlock makes a store block of a tree block whose CID is known to be right.
func toBlock(c cid.Cid, data []byte, children []tree.Link) (store.Block, error) {
	d, err := digest(c)
	if err != nil {
		return store.Block{}, err
	}
	b := store.Block{Digest: d, Data: data, Node: c.Type() == cid.DagProtobuf}
	for _, l := range children {
		ch, err := digest(l.CID)
		if err != nil {
			return store.Block{}, err
		}
		b.Children = append(b.Children, ch)
	}
	return b, nil
}

// verify checks a foreign block against its CID and returns it with its links.
func verify(c cid.Cid, data []byte) (store.Block, *tree.Node, error) {
	d, err := digest(c)
	if err != nil {
		return store.Block{}, nil, err
	}
	if sha256.Sum256(data) != d {
		return store.Block{}, nil, fmt.Errorf("%w: %d bytes that do not match %s", ErrCorrupt, len(data), c)
	}
	n, err := tree.Decode(c, data)
	if err != nil {
		return store.Block{}, nil, translate(err)
	}
	b, err := toBlock(c, data, n.Links)
	return b, n, err
}

// PutBlocks verifies each block against its CID and keeps them all, or none if one is wrong (ErrCorrupt).
// They are durable after the next Sync. It returns also ErrTooLarge and ErrNoSpace.
func (s *Store) PutBlocks(ctx context.Context, blocks []Block) error {
	_, err := s.PutTrees(ctx, blocks, nil)
	return err
}

// PutTrees is PutBlocks for blocks that carry whole trees, and reports which of the roots are wholly here now:
// what came in blocks is not looked up again. Errors are those of PutBlocks; a tree that is not whole is none.
func (s *Store) PutTrees(ctx context.Context, blocks []Block, roots []cid.Cid) (whole []bool, err error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	out, came := make([]store.Block, len(blocks)), make(map[cid.Cid]arrival, len(blocks))
	for i, b := range blocks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var n *tree.Node
		if out[i], n, err = verify(b.CID, b.Data); err != nil {
			return nil, err
		}
		came[b.CID] = arrival{n, len(b.Data)}
	}
	if err := s.blocks.Put(nil, out...); err != nil {
		return nil, translate(err)
	}
	whole = make([]bool, len(roots))
	for i, root := range roots {
		w := walk{s: s, seen: map[store.Digest]count{}, came: came}
		_, err := w.visit(ctx, root, 0)
		if err = translate(err); err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		whole[i] = err == nil
	}
	return whole, nil
}

// arrival is a block that has just been verified.
type arrival struct {
	node *tree.Node
	size int
}

// get reads a local block.
func (s *Store) get(_ context.Context, c cid.Cid) ([]byte, error) {
	d, err := digest(c)
	if err != nil {
		return nil, err
	}
	b, err := s.blocks.Get(d)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	return b, nil
}

func (s *Store) load(ctx context.Context, c cid.Cid) (*tree.Node, error) {
	return tree.Load(ctx, s.get, c)
}

// Blocks iterates the distinct blocks of a tree that is here, parents before children; it ends with
// ErrNotFound at a block that is missing. For small trees: it remembers every CID.
func (s *Store) Blocks(root cid.Cid) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		seen := map[string]struct{}{}
		stack := []cid.Cid{root}
		for len(stack) > 0 {
			c := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if _, ok := seen[string(c.Hash())]; ok {
				continue
			}
			seen[string(c.Hash())] = struct{}{}
			data, err := s.get(context.Background(), c)
			if err != nil {
				yield(Block{}, translate(err))
				return
			}
			if !yield(Block{CID: c, Data: data}, nil) {
				return
			}
			n, err := tree.Decode(c, data)
			if err != nil {
				yield(Block{}, translate(err))
				return
			}
			for _, l := range slices.Backward(n.Links) {
				stack = append(stack, l.CID)
			}
		}
	}
}

// Has reports whether a tree is wholly here.
func (s *Store) Has(ctx context.Context, root cid.Cid) (bool, error) {
	_, err := s.Stat(ctx, root)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Stat returns a tree's figures; it returns ErrNotFound naming the first block that is missing. The first
// Stat of a tree reads all its nodes, later ones a record.
func (s *Store) Stat(ctx context.Context, root cid.Cid) (Tree, error) {
	d, err := digest(root)
	if err != nil {
		return Tree{}, err
	}
	r, err := s.blocks.Root(d)
	if err == nil {
		return Tree{Root: root, Bytes: r.Bytes, Blocks: r.Blocks, Files: r.Files}, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return Tree{}, translate(err)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.record(ctx, root)
}

// record walks a tree and records that it is complete.
func (s *Store) record(ctx context.Context, root cid.Cid) (Tree, error) {
	w := walk{s: s, seen: map[store.Digest]count{}}
	total, err := w.visit(ctx, root, 0)
	if err != nil {
		return Tree{}, translate(err)
	}
	t := Tree{Root: root, Bytes: total.bytes, Blocks: uint64(len(w.seen)), Files: total.files}
	return t, translate(s.blocks.Put(rootRecord(t)))
}

func rootRecord(t Tree) *store.Root {
	d, _ := digest(t.Root) // made or checked by us
	return &store.Root{
		Digest: d, Codec: t.Root.Type(), Bytes: t.Bytes, Blocks: t.Blocks, Files: t.Files, Added: uint64(time.Now().Unix()),
	}
}

// maxDepth bounds the nodes above a leaf: paths of 4,096 bytes have at most 2,048 directories, each at most
// a few shards deep.
const maxDepth = 4096

type count struct{ bytes, files uint64 }

// walk counts a tree; only nodes are read, leaves are looked up.
type walk struct {
	s    *Store
	seen map[store.Digest]count // distinct blocks, with what a directory or file below them counts
	came map[cid.Cid]arrival    // blocks that need no lookup; may be nil
}

func (w *walk) visit(ctx context.Context, c cid.Cid, depth int) (count, error) {
	d, err := digest(c)
	if err != nil {
		return count{}, err
	}
	if n, ok := w.seen[d]; ok {
		return n, nil
	}
	if depth > maxDepth || len(w.seen) >= w.s.cfg.MaxBlocks {
		return count{}, fmt.Errorf("%w: tree deeper than %d or of more than %d blocks", ErrTooLarge, maxDepth, w.s.cfg.MaxBlocks)
	}
	have, here := w.came[c]
	if c.Type() == cid.Raw {
		size := have.size
		if !here {
			if size, err = w.s.blocks.Size(d); err != nil {
				return count{}, fmt.Errorf("block %s: %w", c, err)
			}
		}
		w.seen[d] = count{bytes: uint64(size), files: 1}
		return w.seen[d], nil
	}
	if err := ctx.Err(); err != nil {
		return count{}, err
	}
	n := have.node
	if !here {
		if n, err = w.s.load(ctx, c); err != nil {
			return count{}, err
		}
	}
	var total count
	for _, l := range n.Links {
		sub, err := w.visit(ctx, l.CID, depth+1)
		if err != nil {
			return count{}, err
		}
		total.bytes += sub.bytes
		total.files += sub.files
	}
	if n.Kind.IsFile() { // its parts counted as files of their own
		total = count{bytes: n.Size, files: 1}
	}
	w.seen[d] = total
	return total, nil
}

// Pin keeps a tree from GC, durably. It need not be complete.
func (s *Store) Pin(root cid.Cid) error {
	d, err := digest(root)
	if err != nil {
		return err
	}
	return translate(s.blocks.Pin(d))
}

// Unpin lets GC take a tree that nothing else holds.
func (s *Store) Unpin(root cid.Cid) error {
	d, err := digest(root)
	if err != nil {
		return err
	}
	return translate(s.blocks.Unpin(d))
}

// GC deletes what no pin and none of keep reaches, and pack files that hold nothing any more; packs that
// hold a little are not rewritten yet. It waits until no tree is being made and holds new ones up. It
// returns the number of blocks and bytes freed.
func (s *Store) GC(ctx context.Context, keep ...cid.Cid) (blocks, bytes uint64, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	live := map[store.Digest]struct{}{}
	mark := func(d store.Digest) error { return s.mark(ctx, live, d) }
	for _, c := range keep {
		d, err := digest(c)
		if err != nil {
			return 0, 0, err
		}
		if err := mark(d); err != nil {
			return 0, 0, translate(err)
		}
	}
	if err := s.blocks.Pins(mark); err != nil {
		return 0, 0, translate(err)
	}
	freed, err := s.blocks.Sweep(ctx, func(d store.Digest) bool { _, ok := live[d]; return ok })
	if err == nil {
		s.log.Info("collected unpinned blocks", "blocks", freed.Blocks, "bytes", freed.Bytes)
	}
	return freed.Blocks, freed.Bytes, translate(err)
}

// mark adds what is here of the tree below d to live.
func (s *Store) mark(ctx context.Context, live map[store.Digest]struct{}, d store.Digest) error {
	type item struct {
		d   store.Digest
		raw bool
	}
	stack := []item{{d: d}}
	for len(stack) > 0 {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := live[it.d]; ok {
			continue
		}
		live[it.d] = struct{}{}
		if it.raw {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := s.blocks.Get(it.d)
		if errors.Is(err, store.ErrNotFound) {
			continue // a pinned tree that has not been fetched wholly
		}
		if err != nil {
			return err
		}
		n, err := tree.Decode(cidOf(cid.DagProtobuf, it.d), data)
		if err != nil {
			continue // a lone raw leaf was pinned
		}
		for _, l := range n.Links {
			ch, err := digest(l.CID)
			if err != nil {
				return err
			}
			stack = append(stack, item{d: ch, raw: l.CID.Type() == cid.Raw})
		}
	}
	return nil
}
