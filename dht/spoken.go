package dht

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// spoken is a heartbeat that the replica holds.
type spoken struct {
	peer    peer.ID
	raw     []byte
	av      *pb.Availability // nil until it is opened
	held    *heldBeat
	arrived time.Time
	record  *heldRecord // that it speaks of; nil while that one is not held
}

// spoken returns the last heartbeat of each node, in no particular order.
func (x *replica) spoken() []spoken {
	out := x.unopened(func([scanKey]byte) bool { return true })
	kept := out[:0]
	for i := range out { // decoded while nobody has to wait for it
		if out[i].open(x) {
			kept = append(kept, out[i])
		}
	}
	return kept
}

// unopened returns the last heartbeat of each node whose key is let through, in no particular order and as it came: who
// looks for few need not decode all.
func (x *replica) unopened(through func(key [scanKey]byte) bool) []spoken {
	var out []spoken
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, i := range x.slots {
		n := x.at(i)
		if n.beat == nil || !through(n.beat.key) {
			continue
		}
		s := spoken{peer: n.id, raw: n.beat.raw, held: n.beat, arrived: x.base.Add(n.arrived)}
		if !n.pending {
			s.record = n.record
		}
		out = append(out, s)
	}
	return out
}

// open decodes a heartbeat; it says whether it could.
func (s *spoken) open(x *replica) bool {
	if s.av == nil {
		s.av = x.opened.beat(s.held)
	}
	return s.av != nil
}

// beats says whether a heartbeat of a peer is held.
func (x *replica) beats(id peer.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, ok := x.slots[id]
	return ok && x.at(i).beat != nil
}
