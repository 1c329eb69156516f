package dht

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
)

// errStoreFull refuses what lies farther away than everything that is held.
var errStoreFull = errors.New("dht: the store for others is full of nearer keys")

var noPadding = base32.StdEncoding.WithPadding(base32.NoPadding)

// entryOverhead is what an item costs beside its key and value, in bytes: map cells, heap item, distance.
const entryOverhead = 200

// boundedStore keeps what Kademlia stores for others in memory, up to a number of bytes; when it is full the
// key farthest from us (XOR) goes first, as others hold it with more right (discovery.md 4, rule 5).
type boundedStore struct {
	self  [32]byte
	limit int

	mu   sync.Mutex
	m    *ds.MapDatastore
	used int
	meta map[ds.Key]*held
	far  farthest
}

// held is the bookkeeping of one item.
type held struct {
	key      ds.Key
	distance [32]byte
	size     int
	at       int // position in the heap
}

// farthest is a heap with the largest distance on top.
type farthest []*held

func (f farthest) Len() int           { return len(f) }
func (f farthest) Less(i, j int) bool { return bytes.Compare(f[i].distance[:], f[j].distance[:]) > 0 }
func (f farthest) Swap(i, j int)      { f[i], f[j] = f[j], f[i]; f[i].at, f[j].at = i, j }

// Push implements heap.Interface.
func (f *farthest) Push(x any) { h := x.(*held); h.at = len(*f); *f = append(*f, h) }

// Pop implements heap.Interface.
func (f *farthest) Pop() any {
	old := *f
	h := old[len(old)-1]
	old[len(old)-1] = nil
	*f = old[:len(old)-1]
	return h
}

var _ ds.Batching = (*boundedStore)(nil)

func newBoundedStore(self peer.ID, limit int) *boundedStore {
	return &boundedStore{self: sha256.Sum256([]byte(self)), limit: limit, m: ds.NewMapDatastore(), meta: map[ds.Key]*held{}}
}

// distance of a datastore key: the second segment is base32 of the Kademlia key, for values and providers.
func (b *boundedStore) distance(k ds.Key) (d [32]byte) {
	parts := strings.Split(k.String(), "/")
	raw := []byte(k.String())
	if len(parts) > 2 {
		if dec, err := noPadding.DecodeString(parts[2]); err == nil {
			raw = dec
		}
	}
	d = sha256.Sum256(raw)
	for i := range d {
		d[i] ^= b.self[i]
	}
	return d
}

// Put implements datastore.Datastore; it returns an error when nothing farther can make room.
func (b *boundedStore) Put(ctx context.Context, k ds.Key, v []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := len(k.String()) + len(v) + entryOverhead
	old, replaces := b.meta[k]
	grow := size
	if replaces {
		grow -= old.size
	}
	d := b.distance(k)
	for b.used+grow > b.limit && len(b.far) > 0 {
		top := b.far[0]
		if top.key == k || bytes.Compare(top.distance[:], d[:]) <= 0 {
			return errStoreFull
		}
		b.removeLocked(ctx, top)
	}
	if b.used+grow > b.limit {
		return errStoreFull
	}
	if replaces {
		old.size = size
	} else {
		h := &held{key: k, distance: d, size: size}
		b.meta[k] = h
		heap.Push(&b.far, h)
	}
	b.used += grow
	return b.m.Put(ctx, k, v)
}

func (b *boundedStore) removeLocked(ctx context.Context, h *held) {
	heap.Remove(&b.far, h.at)
	delete(b.meta, h.key)
	b.used -= h.size
	_ = b.m.Delete(ctx, h.key) // a map does not fail
}

// Delete implements datastore.Datastore.
func (b *boundedStore) Delete(ctx context.Context, k ds.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h, ok := b.meta[k]; ok {
		b.removeLocked(ctx, h)
	}
	return nil
}

// Get implements datastore.Datastore.
func (b *boundedStore) Get(ctx context.Context, k ds.Key) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m.Get(ctx, k)
}

// Has implements datastore.Datastore.
func (b *boundedStore) Has(ctx context.Context, k ds.Key) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m.Has(ctx, k)
}

// GetSize implements datastore.Datastore.
func (b *boundedStore) GetSize(ctx context.Context, k ds.Key) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m.GetSize(ctx, k)
}

// item is a value with its Kademlia key.
type item struct {
	key   [32]byte
	value []byte
}

// within returns the values under a datastore namespace ("/name/") whose Kademlia keys are let through, in no
// particular order.
func (b *boundedStore) within(ctx context.Context, namespace string, through func(key [32]byte) bool) []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []item
	for name, h := range b.meta {
		if !strings.HasPrefix(name.String(), namespace) {
			continue
		}
		key := h.distance
		for i := range key {
			key[i] ^= b.self[i]
		}
		if !through(key) {
			continue
		}
		v, err := b.m.Get(ctx, name)
		if err != nil { // a map does not fail
			continue
		}
		out = append(out, item{key, v})
	}
	return out
}

// Query implements datastore.Datastore.
func (b *boundedStore) Query(ctx context.Context, q dsq.Query) (dsq.Results, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m.Query(ctx, q)
}

// Sync implements datastore.Datastore.
func (b *boundedStore) Sync(context.Context, ds.Key) error { return nil }

// Batch implements datastore.Batching.
func (b *boundedStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(b), nil }

// Close implements datastore.Datastore.
func (b *boundedStore) Close() error { return nil }
