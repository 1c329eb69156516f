package dht

import (
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// seqMemory is for how long the highest sequence numbers of a peer that has left are kept against rollback.
const seqMemory = 24 * time.Hour

// replica is the verified picture of the network in memory, bounded.
type replica struct {
	limit int

	mu      sync.RWMutex
	entries map[peer.ID]*entry
	seen    map[peer.ID]seqs
}

// seqs are the highest sequence numbers that were seen of a peer.
type seqs struct {
	record, beat uint64
	due          time.Time // when its heartbeats, evenly spread, would be used up
	at           time.Time
}

func newReplica(limit int) *replica {
	return &replica{limit: limit, entries: map[peer.ID]*entry{}, seen: map[peer.ID]seqs{}}
}

// live returns what is neither expired nor long gone, in no particular order.
func (x *replica) live(now time.Time) []*entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]*entry, 0, len(x.entries))
	for _, e := range x.entries {
		if e.record != nil && !e.record.cap.GetTombstone() && !e.dead(now) {
			out = append(out, e)
		}
	}
	return out
}

// heard is a heartbeat and when it came.
type heard struct {
	*beat
	arrived time.Time
}

// beats returns the heartbeats that are fresh, in no particular order.
func (x *replica) beats(now time.Time) []heard {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []heard
	for _, e := range x.entries {
		if e.beat != nil && e.beat.fresh(now) {
			out = append(out, heard{e.beat, e.arrived})
		}
	}
	return out
}

// all returns every entry, in no particular order.
func (x *replica) all() []*entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]*entry, 0, len(x.entries))
	for _, e := range x.entries {
		out = append(out, e)
	}
	return out
}

// get returns one live entry.
func (x *replica) get(id peer.ID, now time.Time) (*entry, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.entries[id]
	if !ok || e.record == nil || e.dead(now) {
		return nil, false
	}
	return e, true
}

// putRecord takes a verified record unless a newer one is known. It says whether the record is now held.
func (x *replica) putRecord(r *record, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.seen[r.peer]
	if r.cap.GetSeq() < s.record {
		return false
	}
	old := x.entries[r.peer]
	if old != nil && old.record != nil && old.record.digest == r.digest {
		return true
	}
	if r.cap.GetSeq() == s.record && old != nil && old.record != nil {
		return false // equal seq, other bytes: the first one stays
	}
	if old == nil && !x.roomLocked(now) {
		return false
	}
	s.record, s.at = r.cap.GetSeq(), now
	x.seen[r.peer] = s
	n := newEntry(r.peer, r, nil, time.Time{})
	if old != nil {
		n = n.withBeat(old.beat, old.arrived)
	}
	x.entries[r.peer] = n
	return true
}

// beatFate is what became of a heartbeat.
type beatFate uint8

const (
	beatOld   beatFate = iota // not newer than what is known
	beatEarly                 // too soon after the last one
	beatFull                  // no room
	beatTaken                 // held
	beatNews                  // held, and it speaks of a record that is not
)

// beatBurst is how many heartbeats of a node may come at once, as long as on average there is a gap between them.
const beatBurst = 4

// putBeat takes a verified heartbeat unless a newer one is known.
func (x *replica) putBeat(b *beat, gap time.Duration, now time.Time) beatFate {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.seen[b.peer]
	if b.av.GetSeq() <= s.beat {
		return beatOld
	}
	// A burst is let through: a node that goes and comes back within a gap must not be taken for gone.
	if s.due.Sub(now) > (beatBurst-1)*gap {
		return beatEarly
	}
	e := x.entries[b.peer]
	if e == nil {
		if !x.roomLocked(now) {
			return beatFull
		}
		e = newEntry(b.peer, nil, nil, time.Time{})
	}
	if s.due.Before(now) {
		s.due = now
	}
	s.beat, s.due, s.at = b.av.GetSeq(), s.due.Add(gap), now
	x.seen[b.peer] = s
	n := e.withBeat(b, now)
	x.entries[b.peer] = n
	if n.pending() {
		return beatNews
	}
	return beatTaken
}

// roomLocked makes sure that one more node fits, by forgetting those that are dead; it never forgets a live
// one for a stranger. The caller holds mu.
func (x *replica) roomLocked(now time.Time) bool {
	if len(x.entries) < x.limit {
		return true
	}
	x.sweepLocked(now)
	return len(x.entries) < x.limit
}

// sweep forgets dead nodes, and sequence numbers after a day.
func (x *replica) sweep(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepLocked(now)
}

func (x *replica) sweepLocked(now time.Time) {
	for id, e := range x.entries {
		if e.dead(now) {
			delete(x.entries, id)
		}
	}
	for id, s := range x.seen {
		if _, held := x.entries[id]; !held && now.Sub(s.at) > seqMemory {
			delete(x.seen, id)
		}
	}
	// A flood of fresh keys must not grow the memory of sequence numbers without bound.
	if over := len(x.seen) - 4*x.limit; over > 0 {
		x.forgetOldestLocked(over)
	}
}

func (x *replica) forgetOldestLocked(n int) {
	ids := make([]peer.ID, 0, len(x.seen))
	for id := range x.seen {
		if _, held := x.entries[id]; !held {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b peer.ID) int { return x.seen[a].at.Compare(x.seen[b].at) })
	for _, id := range ids[:min(n, len(ids))] {
		delete(x.seen, id)
	}
}
