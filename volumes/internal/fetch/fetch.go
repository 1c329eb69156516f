package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrWrong is what Local.Put returns for a block that does not match its CID.
var ErrWrong = errors.New("fetch: block does not match its CID")

// Source asks holders for blocks. Get returns when all wants have been handed to got and found good, or
// with an error. When got returns false the block was wrong and has to come from another holder. got may
// be called from several goroutines, and data belongs to it.
type Source interface {
	Get(ctx context.Context, wants []cid.Cid, got func(c cid.Cid, data []byte, from peer.ID) bool) error
}

// Local is where blocks are kept.
type Local interface {
	// Has reports whether a block is here.
	Has(c cid.Cid) (bool, error)
	// Load returns the links of a node that is here.
	Load(ctx context.Context, c cid.Cid) ([]Want, error)
	// Put verifies and keeps a block that came from a peer and returns its links, or ErrWrong.
	Put(ctx context.Context, c cid.Cid, data []byte, from peer.ID) ([]Want, error)
}

// Want is a block to look for.
type Want struct {
	// CID names it.
	CID cid.Cid
	// Size is its expected size in bytes, a claim of its parent; it only paces the window.
	Size uint64
}

// Config paces a fetch.
type Config struct {
	// Window is the most wants outstanding: a bitswap server drops what exceeds 1,024 (volumes.md 17).
	Window int
	// WindowBytes is the most expected bytes outstanding.
	WindowBytes uint64
	// Stall is how long nothing may arrive.
	Stall time.Duration
	// MaxBlocks bounds the blocks of a tree, so that a hostile root cannot fill the memory.
	MaxBlocks int
}

// StallError says that nothing arrived for too long.
type StallError struct {
	// Missing counts the wants outstanding, First is one of them.
	Missing int
	// First is one of the missing blocks.
	First cid.Cid
	// After is how long nothing arrived.
	After time.Duration
}

// Error says which block is missing and since when.
func (e *StallError) Error() string {
	return fmt.Sprintf("%d blocks did not arrive for %s, among them %s", e.Missing, e.After, e.First)
}

// TooManyError says that a tree has more blocks than allowed.
type TooManyError struct {
	// Limit is the number allowed.
	Limit int
}

// Error says the limit.
func (e *TooManyError) Error() string {
	return fmt.Sprintf("the tree has more than %d blocks", e.Limit)
}

// maxExpected caps what a claimed size takes of the window: no block is larger.
const maxExpected = 2 << 20

// arrival is what a batch tells the owner.
type arrival struct {
	cid   cid.Cid
	links []Want
	err   error
	ended bool // the batch is over
}

type run struct {
	cfg   Config
	src   Source
	local Local

	seen   map[string]struct{} // multihashes ever queued
	nodes  []Want              // to look at, last in first out: depth first keeps it short
	leaves []Want
	out    map[string]Want // asked for, not arrived
	bytes  uint64          // expected in out
	events chan arrival    // unbuffered: batches wait for the owner, who always listens
	wg     sync.WaitGroup
}

// Run fetches what is missing of the tree below root. It returns a *StallError, a *TooManyError, the error
// of the Source or of Local, or ctx's.
func Run(ctx context.Context, cfg Config, root cid.Cid, src Source, local Local) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{cfg: cfg, src: src, local: local, seen: map[string]struct{}{}, out: map[string]Want{}, events: make(chan arrival)}
	err := r.queue([]Want{{CID: root}})
	if err == nil {
		err = r.loop(ctx)
	}
	cancel()
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	for {
		select {
		case <-r.events: // let batches end
		case <-done:
			return err
		}
	}
}

func (r *run) loop(ctx context.Context) error {
	stall := time.NewTimer(r.cfg.Stall)
	defer stall.Stop()
	for {
		if err := r.ask(ctx); err != nil {
			return err
		}
		if len(r.out) == 0 {
			return nil // nothing asked, nothing left to ask
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stall.C:
			e := &StallError{Missing: len(r.out), After: r.cfg.Stall}
			for _, w := range r.out {
				e.First = w.CID
				break
			}
			return e
		case a := <-r.events:
			if a.err != nil {
				return a.err
			}
			if a.ended {
				continue
			}
			stall.Reset(r.cfg.Stall)
			if w, ok := r.out[string(a.cid.Hash())]; ok {
				delete(r.out, string(a.cid.Hash()))
				r.bytes -= expected(w)
			}
			if err := r.queue(a.links); err != nil {
				return err
			}
		}
	}
}

func expected(w Want) uint64 { return min(w.Size, maxExpected) }

func (r *run) queue(wants []Want) error {
	for _, w := range wants {
		k := string(w.CID.Hash())
		if _, ok := r.seen[k]; ok {
			continue
		}
		if len(r.seen) >= r.cfg.MaxBlocks {
			return &TooManyError{Limit: r.cfg.MaxBlocks}
		}
		r.seen[k] = struct{}{}
		if w.CID.Type() == cid.Raw {
			r.leaves = append(r.leaves, w)
		} else {
			r.nodes = append(r.nodes, w)
		}
	}
	return nil
}

// next takes a queued want, nodes first.
func (r *run) next() (Want, bool) {
	for _, q := range []*[]Want{&r.nodes, &r.leaves} {
		if n := len(*q); n > 0 {
			w := (*q)[n-1]
			*q = (*q)[:n-1]
			return w, true
		}
	}
	return Want{}, false
}

// ask tops the window up once a quarter of it is free, so that lists stay long.
func (r *run) ask(ctx context.Context) error {
	if len(r.out) > r.cfg.Window*3/4 || r.bytes > r.cfg.WindowBytes*3/4 {
		return nil
	}
	var batch []cid.Cid
	for len(r.out) < r.cfg.Window && (r.bytes < r.cfg.WindowBytes || len(r.out) == 0) {
		w, ok := r.next()
		if !ok {
			break
		}
		has, err := r.local.Has(w.CID)
		if err != nil {
			return err
		}
		if has {
			if w.CID.Type() == cid.Raw {
				continue
			}
			links, err := r.local.Load(ctx, w.CID)
			if err != nil {
				return err
			}
			if err := r.queue(links); err != nil {
				return err
			}
			continue
		}
		r.out[string(w.CID.Hash())] = w
		r.bytes += expected(w)
		batch = append(batch, w.CID)
	}
	if len(batch) > 0 {
		r.wg.Go(func() { r.batch(ctx, batch) })
	}
	return nil
}

func (r *run) batch(ctx context.Context, wants []cid.Cid) {
	tell := func(a arrival) {
		select {
		case r.events <- a:
		case <-ctx.Done():
		}
	}
	err := r.src.Get(ctx, wants, func(c cid.Cid, data []byte, from peer.ID) bool {
		links, err := r.local.Put(ctx, c, data, from)
		if errors.Is(err, ErrWrong) {
			return false
		}
		tell(arrival{cid: c, links: links, err: err})
		return true
	})
	tell(arrival{err: err, ended: true})
}
