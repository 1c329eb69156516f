package dht

import (
	"sync"
	"sync/atomic"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// maxOpened is how many records, and as many heartbeats, stay decoded, about 2.5 KB for both: a network of this
// size is decoded once, and of a larger one only what is asked for.
const maxOpened = 16384

// content is what an envelope says once somebody has looked at it, nil before.
type content[T any] struct{ atomic.Pointer[T] }

// ring bounds how many envelopes stay decoded; what was opened first is closed first.
type ring[T any] struct {
	mu   sync.Mutex
	held []*content[T]
	next int
}

// open returns what was decoded before, else decodes; nil when that fails, which it cannot after verification.
func (r *ring[T]) open(c *content[T], raw []byte, decode func([]byte) (*T, error)) *T {
	if v := c.Load(); v != nil {
		return v
	}
	v, err := decode(raw)
	if err != nil {
		return nil
	}
	if !c.CompareAndSwap(nil, v) {
		return v
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.held) < maxOpened {
		r.held = append(r.held, c)
		return v
	}
	r.held[r.next].Store(nil)
	r.held[r.next] = c
	r.next = (r.next + 1) % maxOpened
	return v
}

// openings decodes what a query has found.
type openings struct {
	records ring[pb.Capability]
	beats   ring[pb.Availability]
}

func (o *openings) record(r *heldRecord) *pb.Capability {
	return o.records.open(&r.content, r.raw, protocol.PeekCapability)
}

func (o *openings) beat(b *heldBeat) *pb.Availability {
	return o.beats.open(&b.content, b.raw, protocol.PeekAvailability)
}
