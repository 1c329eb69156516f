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
	av      *pb.Availability
	arrived time.Time
	record  *heldRecord // that it speaks of; nil while that one is not held
}

// spoken returns the last heartbeat of each node, in no particular order.
func (x *replica) spoken() []spoken {
	var out []spoken
	var beats []*heldBeat
	x.mu.RLock()
	for _, i := range x.slots {
		n := x.at(i)
		if n.beat == nil {
			continue
		}
		s := spoken{peer: n.id, raw: n.beat.raw, arrived: x.base.Add(n.arrived)}
		if !n.pending {
			s.record = n.record
		}
		out, beats = append(out, s), append(beats, n.beat)
	}
	x.mu.RUnlock()
	kept := out[:0]
	for i := range out { // decoded while nobody has to wait for it
		if out[i].av = x.opened.beat(beats[i]); out[i].av != nil {
			kept = append(kept, out[i])
		}
	}
	return kept
}

// beats says whether a heartbeat of a peer is held.
func (x *replica) beats(id peer.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, ok := x.slots[id]
	return ok && x.at(i).beat != nil
}
