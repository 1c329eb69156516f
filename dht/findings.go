package dht

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// How a survey came by a record or heartbeat.
const (
	// ViaSelf is the node itself, asked directly: it is alive.
	ViaSelf = "self"
	// ViaScan is a server of the directory that holds it.
	ViaScan = "scan"
	// ViaGossip is a heartbeat that was heard, or the record that it speaks of.
	ViaGossip = "gossip"
)

// Visit is one attempt to reach a peer and read its routing table.
type Visit struct {
	// Peer is who was visited.
	Peer peer.ID
	// Addrs are the addresses that were dialled, Filtered those that were known and not dialled.
	Addrs, Filtered []multiaddr.Multiaddr
	// Listen are the addresses that the peer itself names.
	Listen []multiaddr.Multiaddr
	// Connected is the address that answered, nil when none did.
	Connected multiaddr.Multiaddr
	// Protocols and Agent are what the peer says of itself.
	Protocols []string
	// Agent is the peer's software and version.
	Agent string
	// Began and Ended are when, by our clock.
	Began, Ended time.Time
	// Dialling and Crawling are how long connecting and the rest took.
	Dialling, Crawling time.Duration
	// RTT is the shortest exchange with it, an upper bound of the round trip; 0 is unknown.
	RTT time.Duration
	// ConnectErr and CrawlErr say what went wrong, empty for nothing.
	ConnectErr, CrawlErr string
	// Neighbors are the peers in its routing table, sorted by ID, with the addresses that it knows.
	Neighbors []peer.AddrInfo
	// Surplus is how many peers it told of beyond what a routing table holds: they are left out.
	Surplus int
	// ErrorBits has bit n set when the question for common prefix length n failed.
	ErrorBits uint32
	// Server says that it serves the directory, Scans that it can be scanned.
	Server, Scans bool
}

// Answered says whether the peer gave a sign of life: an old connection to one that has died looks well until
// something is asked.
func (v *Visit) Answered() bool { return v.ConnectErr == "" && (v.CrawlErr == "" || v.RTT > 0) }

// Sighting is a signed record or heartbeat that came to us.
type Sighting struct {
	// Peer has signed it.
	Peer peer.ID
	// Record is a capability record, Beat a heartbeat; either may be nil.
	Record, Beat []byte
	// Via is how it came: one of ViaSelf, ViaScan, ViaGossip.
	Via string
	// From is who handed it to us, empty for gossip.
	From peer.ID
	// At is when, by our clock.
	At time.Time
}

// Holding is a record that a server says it holds.
type Holding struct {
	// Peer is whose record, Seq its number.
	Peer peer.ID
	// Seq is the record's sequence number.
	Seq uint64
}

// Sweep is one scan of a server.
type Sweep struct {
	// Server was scanned, in pass 0 or 1.
	Server peer.ID
	// Pass is which half of the servers it belongs to.
	Pass int
	// At is when it ended, by our clock.
	At time.Time
	// Held is what it listed and we could verify.
	Held []Holding
	// Totals counts rows and bytes.
	Totals ScanTotals
	// Err says why it did not answer, empty when it did.
	Err string
}

// SurveyEvent is one thing that a survey has learnt; exactly one field is set. Whoever keeps the events can
// make the Findings anew with Take.
type SurveyEvent struct {
	// Visit is an attempt to reach a peer.
	Visit *Visit
	// Sighting is a record or heartbeat.
	Sighting *Sighting
	// Sweep is a scan of a server.
	Sweep *Sweep
}

// Found is a record as the survey knows it.
type Found struct {
	// Peer and Seq name it.
	Peer peer.ID
	// Seq is its sequence number.
	Seq uint64
	// Raw is the envelope, Record its verified content.
	Raw []byte
	// Record is what it says.
	Record *pb.Capability
	// RawBeat is the last heartbeat that speaks of this record, nil for none; Beat its content.
	RawBeat []byte
	// Beat is what the heartbeat says.
	Beat *pb.Availability
	// Via are the ways on which it came, sorted.
	Via []string
	// FirstSeen and LastSeen are when, by our clock.
	FirstSeen, LastSeen time.Time
	// Holders is how many servers listed it.
	Holders int
}

// Life is the time in which a peer gave signs of life: it answered, or its heartbeat was heard.
type Life struct {
	// Peer is who lived.
	Peer peer.ID
	// First and Last sign, by our clock.
	First, Last time.Time
	// Left says that it said goodbye; Last is then when.
	Left bool
}

type recordID struct {
	peer   peer.ID
	seq    uint64
	digest [digestSize]byte
}

type foundRecord struct {
	*record
	beat        *beat
	via         map[string]bool
	first, last time.Time
	holders     map[peer.ID]bool
}

// Findings are what a survey has learnt so far. They are safe for concurrent use.
type Findings struct {
	mu      sync.Mutex
	visits  map[peer.ID]Visit
	records map[recordID]*foundRecord
	byPeer  map[peer.ID][]*foundRecord // a few each, the newest last
	beats   map[peer.ID]*beat          // the last one of each
	lives   map[peer.ID]*Life
	sweeps  map[peer.ID]Sweep // the last good one of each server, else the last
	passes  [2]map[peer.ID]bool
	refused map[string]int // sightings that did not verify, by reason
}

// NewFindings returns empty findings.
func NewFindings() *Findings {
	return &Findings{
		visits: map[peer.ID]Visit{}, records: map[recordID]*foundRecord{}, byPeer: map[peer.ID][]*foundRecord{}, beats: map[peer.ID]*beat{},
		lives: map[peer.ID]*Life{}, sweeps: map[peer.ID]Sweep{}, passes: [2]map[peer.ID]bool{{}, {}}, refused: map[string]int{},
	}
}

// Take adds an event. Envelopes are verified as of the time of the sighting; what does not verify is counted
// and left out, so that kept events may come from anywhere.
func (f *Findings) Take(e SurveyEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.Visit != nil:
		f.takeVisit(*e.Visit)
	case e.Sighting != nil:
		f.takeRecord(e.Sighting)
		f.takeBeat(e.Sighting)
	case e.Sweep != nil && e.Sweep.Pass >= 0 && e.Sweep.Pass < len(f.passes):
		f.takeSweep(*e.Sweep)
	}
}

// surplusPeers is the reason by which peers are counted that a server told of beyond what its table can hold.
const surplusPeers = "told of by a server beyond what its table holds"

func (f *Findings) takeVisit(v Visit) {
	if old, ok := f.visits[v.Peer]; !ok || v.ConnectErr == "" || old.ConnectErr != "" {
		f.visits[v.Peer] = v
	}
	if v.Surplus > 0 {
		f.refused[surplusPeers] += v.Surplus
	}
	if v.Answered() {
		f.alive(v.Peer, v.Ended, false)
	}
}

func (f *Findings) takeRecord(s *Sighting) {
	if s.Record == nil {
		return
	}
	rec, err := openCapability(s.Record, s.Peer, s.At)
	if err != nil {
		f.refuse(err)
		return
	}
	id := recordID{rec.peer, rec.cap.GetSeq(), rec.digest}
	r := f.records[id]
	if r == nil {
		r = &foundRecord{record: rec, via: map[string]bool{}, first: s.At, holders: map[peer.ID]bool{}}
		f.records[id] = r
		f.byPeer[rec.peer] = append(f.byPeer[rec.peer], r)
		slices.SortStableFunc(f.byPeer[rec.peer], func(a, b *foundRecord) int { return cmp.Compare(a.cap.GetSeq(), b.cap.GetSeq()) })
		if b := f.beats[rec.peer]; b != nil && b.speaksOf(rec) {
			r.beat = b
		}
	}
	r.via[s.Via] = true
	r.last = s.At
	if s.Via == ViaScan {
		r.holders[s.From] = true
	}
	if s.Via == ViaSelf {
		f.alive(s.Peer, s.At, rec.cap.GetTombstone())
	}
}

func (f *Findings) takeBeat(s *Sighting) {
	if s.Beat == nil {
		return
	}
	b, err := openBeat(s.Beat, s.Peer)
	if err == nil && !b.fresh(s.At) {
		err = ErrExpired
	}
	if err != nil {
		f.refuse(err)
		return
	}
	if old := f.beats[s.Peer]; old != nil && old.av.GetSeq() >= b.av.GetSeq() {
		return
	}
	f.beats[s.Peer] = b
	at := s.At
	if s.Via == ViaScan { // somebody else has heard it, when it says
		if said := millis(b.av.GetAt()); said.Before(at) {
			at = said
		}
	}
	f.alive(s.Peer, at, b.av.GetState() == pb.NodeState_NODE_STATE_LEAVING)
	for _, r := range f.byPeer[s.Peer] {
		if b.speaksOf(r.record) {
			r.beat = b
			r.via[s.Via] = true
			r.last = s.At
		}
	}
}

func (f *Findings) takeSweep(s Sweep) {
	if old, ok := f.sweeps[s.Server]; !ok || s.Err == "" || old.Err != "" {
		f.sweeps[s.Server] = s
	}
	for _, h := range s.Held {
		r := f.bySeq(h)
		if r == nil {
			continue
		}
		r.holders[s.Server], r.via[ViaScan] = true, true
		if s.At.After(r.last) {
			r.last = s.At
		}
		f.passes[s.Pass][h.Peer] = true
	}
}

func (f *Findings) bySeq(h Holding) *foundRecord {
	for _, r := range f.byPeer[h.Peer] {
		if r.cap.GetSeq() == h.Seq {
			return r
		}
	}
	return nil
}

// listed says whether the newest record of a peer is no tombstone: it is one of those that are counted.
func (f *Findings) listed(id peer.ID) bool {
	all := f.byPeer[id]
	return len(all) > 0 && !all[len(all)-1].cap.GetTombstone()
}

// alive notes a sign of life; leaving one is the last, unless the peer comes back.
func (f *Findings) alive(id peer.ID, at time.Time, leaving bool) {
	l := f.lives[id]
	if l == nil {
		l = &Life{Peer: id, First: at, Last: at}
		f.lives[id] = l
	}
	if at.Before(l.First) {
		l.First = at
	}
	if !at.Before(l.Last) {
		l.Last, l.Left = at, leaving
	}
}

// refuse counts what did not verify by the error's first sentence.
func (f *Findings) refuse(err error) {
	for _, known := range []error{ErrTooLarge, ErrNotOwner, ErrExpired, ErrFormat, ErrBounds} {
		if errors.Is(err, known) {
			f.refused[known.Error()]++
			return
		}
	}
	f.refused["dht: other"]++
}

// Visits returns the visits, sorted by peer.
func (f *Findings) Visits() []Visit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sortedBy(maps.Values(f.visits), func(v Visit) string { return v.Peer.String() })
}

// Sweeps returns the scans of servers, sorted by server.
func (f *Findings) Sweeps() []Sweep {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sortedBy(maps.Values(f.sweeps), func(s Sweep) string { return s.Server.String() })
}

// Lives returns who gave signs of life, sorted by peer.
func (f *Findings) Lives() []Life {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Life
	for _, l := range f.lives {
		out = append(out, *l)
	}
	return sortedBy(slices.Values(out), func(l Life) string { return l.Peer.String() })
}

// Refused counts records and heartbeats that did not verify, and peers that servers told of in excess, by reason.
func (f *Findings) Refused() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.refused)
}

// Newest returns the newest record of a peer, nil when none is known. It is not to be changed.
func (f *Findings) Newest(id peer.ID) *pb.Capability {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all := f.byPeer[id]; len(all) > 0 {
		return all[len(all)-1].cap
	}
	return nil
}

// Records returns every record, sorted by peer, sequence number and bytes.
func (f *Findings) Records() []Found {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Found, 0, len(f.records))
	for _, r := range f.records {
		x := Found{
			Peer: r.peer, Seq: r.cap.GetSeq(), Raw: r.raw, Record: r.cap, Via: slices.Sorted(maps.Keys(r.via)),
			FirstSeen: r.first, LastSeen: r.last, Holders: len(r.holders),
		}
		if r.beat != nil {
			x.RawBeat, x.Beat = r.beat.raw, r.beat.av
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Found) int {
		return cmp.Or(cmp.Compare(a.Peer.String(), b.Peer.String()), cmp.Compare(a.Seq, b.Seq), bytes.Compare(a.Raw, b.Raw))
	})
	return out
}

// sortedBy sorts by keys that cost something to make.
func sortedBy[T any](all func(func(T) bool), key func(T) string) []T {
	type keyed struct {
		key string
		v   T
	}
	var list []keyed
	for v := range all {
		list = append(list, keyed{key(v), v})
	}
	slices.SortFunc(list, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	out := make([]T, len(list))
	for i := range list {
		out[i] = list[i].v
	}
	return out
}

// SurveyCounts tell how far a survey has come.
type SurveyCounts struct {
	// Visited peers, Reached ones among them, Servers that serve the directory.
	Visited, Reached, Servers int
	// Swept servers and those of them that Failed.
	Swept, Failed int
	// Records that are live and no tombstones, by peers; Alive peers among all.
	Records, Alive int
}

// Counts returns how far the survey has come.
func (f *Findings) Counts() SurveyCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := SurveyCounts{Visited: len(f.visits), Swept: len(f.sweeps), Records: f.seenLocked()}
	for _, v := range f.visits {
		if v.ConnectErr == "" {
			c.Reached++
		}
		if v.Server {
			c.Servers++
		}
	}
	for _, s := range f.sweeps {
		if s.Err != "" {
			c.Failed++
		}
	}
	for _, l := range f.lives {
		if !l.Left {
			c.Alive++
		}
	}
	return c
}

func (f *Findings) seenLocked() int {
	n := 0
	for id := range f.byPeer {
		if f.listed(id) {
			n++
		}
	}
	return n
}

// Coverage estimates how much of the network was seen.
func (f *Findings) Coverage() Coverage {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first, second, both int
	for id := range f.byPeer {
		if !f.listed(id) { // it has left: it may be listed still, and is not counted
			continue
		}
		switch in0, in1 := f.passes[0][id], f.passes[1][id]; {
		case in0 && in1:
			first, second, both = first+1, second+1, both+1
		case in0:
			first++
		case in1:
			second++
		}
	}
	var answered [2]bool
	for _, s := range f.sweeps {
		answered[s.Pass] = answered[s.Pass] || s.Err == ""
	}
	return EstimateCoverage(first, second, both, f.seenLocked(), answered[0] && answered[1])
}

// scannable are the servers that can be scanned, in no particular order.
func (f *Findings) scannable() []peer.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []peer.ID
	for id := range f.visits {
		if f.visits[id].Scans {
			out = append(out, id)
		}
	}
	return out
}

func (f *Findings) visited(id peer.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.visits[id]
	return ok
}

// holds says whether a record or heartbeat of this digest is known.
func (f *Findings) holds(r ScanRow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.IsBeat {
		b := f.beats[r.Peer]
		return b != nil && b.av.GetSeq() >= r.Seq
	}
	_, ok := f.records[recordID{r.Peer, r.Seq, r.Digest}]
	return ok
}
