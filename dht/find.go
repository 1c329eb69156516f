package dht

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Query asks the directory for nodes.
type Query struct {
	// Filter says which nodes fit; nil means all. What it leaves unsaid is added (protocol.Filter.WithImplied).
	Filter *protocol.Filter
	// Literal leaves the implied clauses out: stale, paused and unheard nodes and MIG slices count too.
	Literal bool
	// Limit bounds the candidates, 0 means no bound.
	Limit int
	// Seed shuffles the candidates: equal seeds give equal orders, whatever the order of arrival.
	Seed uint64
	// MaxAge leaves out nodes whose last heartbeat is older; 0 means no bound.
	MaxAge time.Duration
	// Explain counts what each clause did; it costs a full evaluation of each row.
	Explain bool
	// Local knows what only the asker can know of a peer: round trip in ms and reputation, NaN = unknown.
	// nil knows nothing.
	Local func(peer.ID) (rttMs, reputation float64)
	// Verify says whether an issuer that the asker accepts has signed this label of the peer's, and the
	// label still holds. nil accepts no issuer, so that verified(..) is unknown.
	Verify func(peer.ID, *pb.Label) bool
}

// Candidate is a node that matches.
type Candidate struct {
	// Peer is the node.
	Peer peer.ID
	// Capability is what its record says. Read only.
	Capability *pb.Capability
	// Availability is its last heartbeat, nil when none was heard. Read only.
	Availability *pb.Availability
	// Record and Beat are the signed envelopes as received.
	Record, Beat []byte
	// Groups are the indices of the GPU groups for which all gpu.* clauses hold; nil when the filter has none.
	Groups []int
	// State is the word of node.state, empty when unknown.
	State string
	// Age is the time since the heartbeat arrived, 0 when none did.
	Age time.Duration
}

// ClauseCount tells what one clause did.
type ClauseCount struct {
	// Text of the clause.
	Text string
	// Implied clauses were added, not written.
	Implied bool
	// RemovedAlone counts the nodes that would match but for this clause.
	RemovedAlone int
	// Left counts the nodes that this clause and all before it leave.
	Left int
}

// Explanation tells how an answer came about.
type Explanation struct {
	// Tier that answered: replica (memory) or cold (asked just now).
	Tier string
	// Population counts the nodes that were looked at.
	Population int
	// Matched counts those that match, before Limit.
	Matched int
	// Clauses in order, when the query asked for them.
	Clauses []ClauseCount
	// PeersAsked and PeersFailed count the peers that a cold search spoke to.
	PeersAsked, PeersFailed int
	// OldestAge and MedianAge of the heartbeats of the candidates.
	OldestAge, MedianAge time.Duration
}

// asking is a query under evaluation.
type asking struct {
	Query
	now     time.Time
	clauses []predicate
	texts   []ClauseCount
	byGroup bool
	keep    truth // the least truth that selects: yes, or unknown at an index peer for local fields
}

func (q *asking) local(id peer.ID, f protocol.FilterField) float64 {
	if q.Local == nil {
		return math.NaN()
	}
	rtt, rep := q.Local(id)
	if f == protocol.FieldNodeRTTMs {
		return rtt
	}
	return rep
}

func (q *asking) verifies(id peer.ID, l *pb.Label) bool { return q.Verify != nil && q.Verify(id, l) }

func newAsking(query Query, now time.Time) *asking {
	q := &asking{Query: query, now: now, keep: yes}
	f := query.Filter
	if f == nil {
		f, _ = protocol.ParseFilter("")
	}
	q.byGroup = f.MentionsGPU()
	written := len(f.Clauses())
	if !query.Literal {
		f, _ = f.WithImplied()
	}
	for i, c := range f.Clauses() {
		q.clauses = append(q.clauses, compile(c))
		q.texts = append(q.texts, ClauseCount{Text: c.String(), Implied: i >= written})
	}
	return q
}

// verdict is what the clauses say of one node.
type verdict struct {
	groups  []int // that match
	matched bool
	reached int // clauses passed by the row that came furthest
	alone   []int
}

func (q *asking) judge(e *entry) verdict {
	var v verdict
	rows := e.rows
	if !q.byGroup && len(rows) > 1 {
		rows = rows[:1] // no clause looks at a group
	}
	for i := range rows {
		failed, first, last := 0, len(q.clauses), 0
		for k, clause := range q.clauses {
			if clause(e, &rows[i], q) >= q.keep {
				continue
			}
			failed, first, last = failed+1, min(first, k), k
			if !q.Explain {
				break
			}
		}
		v.reached = max(v.reached, first)
		switch {
		case failed == 0:
			v.matched = true
			if q.byGroup && rows[i].group >= 0 {
				v.groups = append(v.groups, rows[i].group)
			}
		case failed == 1 && q.Explain:
			v.alone = append(v.alone, last)
		}
	}
	return v
}

// run evaluates the query over entries. It is a function of values.
func (q *asking) run(entries []*entry) ([]Candidate, Explanation) {
	ex := Explanation{Population: len(entries)}
	var out []Candidate
	for _, e := range entries {
		v := q.judge(e)
		if q.MaxAge > 0 && (e.beat == nil || q.now.Sub(e.arrived) > q.MaxAge) {
			v.matched = false
		}
		if q.Explain {
			for k := range v.reached {
				q.texts[k].Left++
			}
			if !v.matched {
				slices.Sort(v.alone)
				for _, k := range slices.Compact(v.alone) {
					q.texts[k].RemovedAlone++
				}
			}
		}
		if v.matched {
			out = append(out, candidateOf(e, v.groups, q.now))
		}
	}
	ex.Matched = len(out)
	if q.Explain {
		ex.Clauses = q.texts
	}
	shuffle(out, q.Seed)
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	ex.OldestAge, ex.MedianAge = ages(out)
	return out, ex
}

func ages(cs []Candidate) (oldest, median time.Duration) {
	var all []time.Duration
	for _, c := range cs {
		if c.Availability != nil {
			all = append(all, c.Age)
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)-1], all[len(all)/2]
}

func candidateOf(e *entry, groups []int, now time.Time) Candidate {
	c := Candidate{Peer: e.peer, Capability: e.record.cap, Record: e.record.raw, Groups: groups, State: e.state(now)}
	if e.beat != nil && !e.pending() {
		c.Availability, c.Beat, c.Age = e.beat.av, e.beat.raw, now.Sub(e.arrived)
	}
	return c
}

// shuffle sorts by a hash of seed and peer, so that no node stands first in every answer.
func shuffle(cs []Candidate, seed uint64) {
	type keyed struct {
		key [8]byte
		c   Candidate
	}
	ks := make([]keyed, len(cs))
	for i, c := range cs {
		ks[i] = keyed{hashOrder(seed, c.Peer), c}
	}
	slices.SortFunc(ks, func(a, b keyed) int {
		return cmp.Or(bytes.Compare(a.key[:], b.key[:]), cmp.Compare(a.c.Peer, b.c.Peer))
	})
	for i, k := range ks {
		cs[i] = k.c
	}
}

func hashOrder(seed uint64, id peer.ID) (key [8]byte) {
	b := binary.BigEndian.AppendUint64(nil, seed)
	sum := sha256.Sum256(append(b, id...))
	copy(key[:], sum[:])
	return key
}

// Find returns the nodes that match, in an order that the query's seed fixes. With a replica (Config.Shards)
// it answers from memory without a message; otherwise it searches cold: it samples provider records, asks each
// node for its own record and heartbeat and falls back to the DHT's copy. It returns ErrNoServers when a cold
// search finds no DHT server to ask.
func (d *Directory) Find(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	if len(d.cfg.Shards) > 0 {
		out, ex := newAsking(query, d.now()).run(d.index.live(d.now()))
		ex.Tier = "replica"
		return out, ex, nil
	}
	return d.findCold(ctx, query)
}
