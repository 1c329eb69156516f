package dht

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// seqMemory is for how long the highest sequence numbers of a peer that has left are kept against rollback.
const seqMemory = 24 * time.Hour

// chunkSize is how many slots are allocated at once: the table grows without being copied.
const chunkSize = 1024

// replica is the verified picture of the network in memory, bounded: an index of rows (node, group of GPUs)
// with bitmaps of slots for what conjunctive clauses ask most.
type replica struct {
	limit  int
	opened openings

	mu     sync.RWMutex
	based  bool
	base   time.Time // that durations count from: the first moment that was heard of
	slots  map[peer.ID]uint32
	chunks []*[chunkSize]node
	free   []uint32 // slots that nobody holds
	// Columns by slot, read for every query: until when a node is listed. A slot that is empty, without a
	// record or left by a tombstone has expires 0.
	expires []int64         // Unix ms, of the record
	lapses  []time.Duration // since base, of the heartbeat
	classes *classes
	bare    bareSlots
	twice   equivocations
	report  func(Equivocation) // nil: nobody is told
	swept   time.Duration
	seen    map[peer.ID]seqs
}

// seqs are the highest sequence numbers that were seen of a peer.
type seqs struct {
	recordSeq, beatSeq uint64
	due                time.Duration // since base: when its heartbeats, evenly spread, would be used up
	at                 time.Duration // since base: when it was last heard
}

func newReplica(limit int) *replica {
	return &replica{limit: limit, slots: map[peer.ID]uint32{}, classes: newClasses(), seen: map[peer.ID]seqs{}, bare: newBareSlots()}
}

// since turns a moment into a duration on the receiver's monotonic clock.
func (x *replica) since(now time.Time) time.Duration {
	if !x.based {
		return 0
	}
	return now.Sub(x.base)
}

func (x *replica) sinceLocked(now time.Time) time.Duration {
	if !x.based {
		x.based, x.base = true, now
	}
	return now.Sub(x.base)
}

func (x *replica) at(i uint32) *node { return &x.chunks[i/chunkSize][i%chunkSize] }

// size returns how many nodes are held, dead ones included.
func (x *replica) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.slots)
}

// listed says whether a node is neither expired nor long gone, has a record and has not left.
func (x *replica) listed(i uint32, nowMs int64, now time.Duration) bool {
	return x.expires[i] > nowMs && x.lapses[i] >= now
}

// get returns what is known of one peer, a tombstone too.
func (x *replica) get(id peer.ID, now time.Time) (hit, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, ok := x.slots[id]
	if !ok {
		return hit{}, false
	}
	n, d := x.at(i), x.since(now)
	if n.record == nil || n.expires() <= now.UnixMilli() || n.lapse() < d {
		return hit{}, false
	}
	return n.hit(nil, d), true
}

// putRecord takes a verified record unless a newer one is known. It says whether the record is now held.
func (x *replica) putRecord(r *record, now time.Time) bool {
	held, other := x.placeRecord(r, now)
	if other != nil && x.report != nil {
		x.report(*other)
	}
	return held
}

// placeRecord also returns the proof when it is the second record of one number.
func (x *replica) placeRecord(r *record, now time.Time) (bool, *Equivocation) {
	x.mu.Lock()
	defer x.mu.Unlock()
	d := x.sinceLocked(now)
	i, held := x.slots[r.peer]
	s := x.seen[r.peer]
	if held {
		s = x.at(i).seqs
	}
	if r.cap.GetSeq() < s.recordSeq {
		return false, nil
	}
	if held && x.at(i).record != nil {
		switch first := x.at(i).record; {
		case first.digest == r.digest:
			return true, nil
		case r.cap.GetSeq() == s.recordSeq: // equal seq, other bytes: the first one stays
			if q := (Equivocation{r.peer, r.cap.GetSeq(), first.raw, r.raw, now}); x.twice.add(q) {
				return false, &q
			}
			return false, nil
		}
	}
	if !held {
		if !x.roomLocked(now) {
			return false, nil
		}
		i = x.allotLocked(r.peer, s, d)
	}
	n := x.at(i)
	x.unfileLocked(n, i)
	x.bare.remove(i)
	n.recordSeq, n.at = r.cap.GetSeq(), d
	n.record = &heldRecord{raw: r.raw, digest: r.digest, expires: r.cap.GetExpires()}
	n.tell(r.cap)
	if n.beat != nil {
		if av := x.opened.beat(n.beat); av != nil {
			n.hear(av)
		}
	}
	x.fileLocked(n, i)
	x.lapses[i] = n.lapse()
	return true, nil
}

// beatFate is what became of a heartbeat.
type beatFate uint8

const (
	beatOld   beatFate = iota // not newer than what is known
	beatEarly                 // too soon after the last one
	beatFull                  // no room
	beatTaken                 // held
	beatSame                  // held, and it tells what the one before it told a short while ago
	beatNews                  // held, and it speaks of a record that is not
)

// beatBurst is how many heartbeats of a node may come at once, as long as on average there is a gap between them.
const beatBurst = 4

// putBeat takes a verified heartbeat that is heard now unless a newer one is known.
func (x *replica) putBeat(b *beat, gap time.Duration, now time.Time) beatFate {
	return x.putBeatHeard(b, gap, now, now)
}

// putBeatHeard takes one that counts as heard at some moment before now.
func (x *replica) putBeatHeard(b *beat, gap time.Duration, now, heard time.Time) beatFate {
	x.mu.Lock()
	defer x.mu.Unlock()
	d := x.sinceLocked(now)
	i, held := x.slots[b.peer]
	s := x.seen[b.peer]
	if held {
		s = x.at(i).seqs
	}
	if b.av.GetSeq() <= s.beatSeq {
		return beatOld
	}
	// A burst is let through: a node that goes and comes back within a gap must not be taken for gone.
	if gap > 0 && s.beatSeq > 0 && s.due-d > (beatBurst-1)*gap {
		return beatEarly
	}
	if !held {
		for x.bare.len() >= x.bareLimit() { // who has waited longest for its record goes
			x.dropLocked(x.bare.oldest())
		}
		if !x.roomLocked(now) {
			return beatFull
		}
		i = x.allotLocked(b.peer, s, d)
	}
	n := x.at(i)
	before, told := n.movingClasses(), toldBy(b.av)
	same := gap > 0 && n.beat != nil && !n.pending && n.told == told && d-n.arrived < 2*time.Duration(n.period)*time.Second
	n.told = told
	n.beatSeq, n.due, n.at, n.arrived = b.av.GetSeq(), max(s.due, d)+gap, d, heard.Sub(x.base)
	if s.beatSeq == 0 {
		n.due = d + gap
	}
	n.beat = heldBeatOf(b)
	n.hear(b.av)
	for k, after := range n.movingClasses() {
		if after != before[k] {
			x.classes.remove(before[k], i)
			x.classes.add(after, i)
		}
	}
	x.lapses[i] = n.lapse()
	switch {
	case n.pending:
		return beatNews
	case same:
		return beatSame
	}
	return beatTaken
}

// allotLocked gives a peer a slot; the caller holds mu and has made sure that there is room.
func (x *replica) allotLocked(id peer.ID, s seqs, now time.Duration) uint32 {
	if len(x.free) == 0 {
		first := uint32(len(x.expires))
		x.chunks = append(x.chunks, new([chunkSize]node))
		x.expires = append(x.expires, make([]int64, chunkSize)...)
		x.lapses = append(x.lapses, make([]time.Duration, chunkSize)...)
		for i := uint32(chunkSize); i > 0; i-- {
			x.free = append(x.free, first+i-1)
		}
	}
	i := x.free[len(x.free)-1]
	x.free = x.free[:len(x.free)-1]
	x.slots[id] = i
	delete(x.seen, id)
	n := x.at(i)
	*n = node{id: id, order: orderOf(id), seqs: s}
	x.lapses[i] = math.MaxInt64
	x.fileLocked(n, i)
	x.bare.add(i, now)
	return i
}

// fileLocked enters a node into bitmaps and columns.
func (x *replica) fileLocked(n *node, i uint32) {
	x.expires[i] = 0
	if n.record != nil {
		for _, k := range n.staticClasses() {
			x.classes.add(k, i)
		}
		if !n.tombstone {
			x.expires[i] = n.expires()
		}
	}
	for _, k := range n.movingClasses() {
		x.classes.add(k, i)
	}
}

// unfileLocked takes it out again.
func (x *replica) unfileLocked(n *node, i uint32) {
	x.expires[i] = 0
	if n.record != nil {
		for _, k := range n.staticClasses() {
			x.classes.remove(k, i)
		}
	}
	for _, k := range n.movingClasses() {
		x.classes.remove(k, i)
	}
}

// dropLocked forgets a node but for its sequence numbers.
func (x *replica) dropLocked(i uint32) {
	n := x.at(i)
	x.unfileLocked(n, i)
	x.bare.remove(i)
	if n.recordSeq > 0 { // else nobody knows of it, and a flood of keys would push out those of nodes
		x.seen[n.id] = n.seqs
	}
	delete(x.slots, n.id)
	x.free = append(x.free, i)
	*n = node{}
}

// roomLocked makes sure that one more node fits, by forgetting those that are dead; it never forgets a live
// one for a stranger. The caller holds mu.
func (x *replica) roomLocked(now time.Time) bool {
	if len(x.slots) < x.limit {
		return true
	}
	// Strangers at a full table must not have it swept for each of them.
	if d := x.sinceLocked(now); d-x.swept >= time.Second || x.swept == 0 {
		x.sweepLocked(now)
	}
	return len(x.slots) < x.limit
}

// sweep forgets dead nodes, and sequence numbers after a day.
func (x *replica) sweep(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepLocked(now)
}

func (x *replica) sweepLocked(now time.Time) {
	d, ms := x.sinceLocked(now), now.UnixMilli()
	x.swept = d
	for x.bare.len() > 0 && d-x.bare.since() > bareLife {
		x.dropLocked(x.bare.oldest())
	}
	for _, i := range x.slots {
		// Dead: heartbeats stopped long ago, or the record has expired.
		if n := x.at(i); n.lapse() < d || n.record != nil && n.expires() <= ms {
			x.dropLocked(i)
		}
	}
	for id, s := range x.seen {
		if d-s.at > seqMemory {
			delete(x.seen, id)
		}
	}
	// A flood of fresh keys must not grow the memory of sequence numbers without bound.
	if over := len(x.seen) - 3*x.limit; over > 0 {
		x.forgetOldestLocked(over)
	}
}

func (x *replica) forgetOldestLocked(n int) {
	ids := make([]peer.ID, 0, len(x.seen))
	for id := range x.seen {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b peer.ID) int { return int(x.seen[a].at - x.seen[b].at) })
	for _, id := range ids[:min(n, len(ids))] {
		delete(x.seen, id)
	}
}
