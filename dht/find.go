package dht

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Via is a way to an answer.
type Via string

// The ways.
const (
	// ViaAuto asks the own replica where there is one, else index peers, and the DHT too while fewer than
	// Config.IndexPeers of them answer.
	ViaAuto Via = ""
	// ViaIndex asks index peers alone.
	ViaIndex Via = "index"
	// ViaDHT samples provider keys and asks the nodes themselves.
	ViaDHT Via = "dht"
	// ViaServers reads what servers hold and asks no node: it also sees nodes that nobody can dial.
	ViaServers Via = "scan"
)

// Query asks the directory for nodes.
type Query struct {
	// Filter says which nodes fit; nil means all. What it leaves unsaid is added (protocol.Filter.WithImplied).
	Filter *protocol.Filter
	// Literal leaves the implied clauses out: stale, paused and unheard nodes and MIG slices count too.
	Literal bool
	// Via says who is asked; the zero value is ViaAuto.
	Via Via
	// Limit bounds the candidates, 0 means no bound.
	Limit int
	// Seed shuffles the candidates: equal seeds give equal orders, whatever the order of arrival.
	Seed uint64
	// MaxAge leaves out nodes whose last heartbeat is older; 0 means no bound.
	MaxAge time.Duration
	// Explain counts what each clause did; it costs a full evaluation of each row.
	Explain bool
	// Local knows what only the asker can know of a peer: round trip in ms and reputation, NaN = unknown.
	// nil knows nothing. None of these functions may call the Directory, which waits for them.
	// Without it, and without Maybe, peers are pinged where a filter asks for round trips.
	Local func(peer.ID) (rttMs, reputation float64)
	// Maybe keeps nodes too for which only what Local and Verify do not know could tell, and lets an estimate stand for
	// a round trip that Local does not know: one above 1.5 times what the filter asks for rules out. The asker pings who
	// is left, and asks Again.
	Maybe bool
	// Refuted says whether what a node claims of its place is known to be false (CheckRegions): its place is unknown
	// then. nil takes every claim.
	Refuted func(peer.ID) bool
	// Verify says whether an issuer that the asker accepts has signed this label of the peer's, and the
	// label still holds. nil accepts no issuer, so that verified(..) is unknown.
	Verify func(peer.ID, *pb.Label) bool

	guess func(peer.ID, *marks) float64 // estimates a round trip in ms, NaN unknown
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
	// Removed counts the nodes that this clause rejects, whatever the others say: of the population it leaves the rest.
	Removed int
	// RemovedAlone counts the nodes among them that would match but for this clause.
	RemovedAlone int
	// Left counts the nodes that this clause and all before it leave.
	Left int
}

// Explanation tells how an answer came about.
type Explanation struct {
	// Tier that answered: replica (memory), index (index peers), cold (the nodes themselves, asked just now) or
	// index+cold.
	Tier string
	// Population counts the nodes that were looked at.
	Population int
	// Matched counts those that match, before Limit.
	Matched int
	// Clauses in order, when the query asked for them.
	Clauses []ClauseCount
	// PeersAsked and PeersFailed count the peers that were spoken to.
	PeersAsked, PeersFailed int
	// Index are the index peers that were asked, in that order.
	Index []IndexAnswer
	// IndexWanted is how many of different networks and operators a client wants to hear (Config.IndexPeers),
	// IndexHeard how many it did.
	IndexWanted, IndexHeard int
	// Equivocated counts the peers that were seen to sign two records of one number; the first is shown.
	Equivocated int
	// OldestAge and MedianAge of the heartbeats of the candidates.
	OldestAge, MedianAge time.Duration
}

// asking is a query under evaluation.
type asking struct {
	Query
	now     time.Time
	clauses []predicate
	keeps   []truth // the least truth by which a clause selects
	parts   []protocol.FilterNode
	texts   []ClauseCount
	byGroup bool
	blunt   bool // leave the bitmaps alone
}

func (q *asking) verifies(id peer.ID, l *pb.Label) bool { return q.Verify != nil && q.Verify(id, l) }

// newAsking prepares a query. For somebody else (an index peer's asker) what only that peer can know is
// unknown here, and unknown is kept: it evaluates again.
func newAsking(query Query, now time.Time, forAnother bool) *asking {
	q := &asking{Query: query, now: now}
	f := query.Filter
	if f == nil {
		f, _ = protocol.ParseFilter("")
	}
	q.byGroup = f.MentionsGPU()
	written := len(f.Clauses())
	if !query.Literal {
		f, _ = f.WithImplied()
	}
	type part struct {
		of      protocol.FilterNode
		implied bool
	}
	var all []part
	for i, c := range f.Clauses() {
		all = append(all, part{c, i >= written})
	}
	if !query.Explain { // what calls the asker back comes last
		slices.SortStableFunc(all, func(a, b part) int { return cmp.Compare(btoi(askersOwn(a.of)), btoi(askersOwn(b.of))) })
	}
	for _, c := range all {
		keep := yes
		switch {
		case (forAnother || query.Maybe) && askersOwn(c.of):
			keep = unknown
		case c.implied && isMIG(c.of): // a node without GPUs has no slices: what was written decides about it
			keep = unknown
		}
		q.parts, q.clauses, q.keeps = append(q.parts, c.of), append(q.clauses, compile(c.of)), append(q.keeps, keep)
		q.texts = append(q.texts, ClauseCount{Text: c.of.String(), Implied: c.implied})
	}
	return q
}

// isMIG says whether a clause is about MIG slices alone.
func isMIG(n protocol.FilterNode) bool {
	switch n := n.(type) {
	case *protocol.FilterNot:
		return isMIG(n.Of)
	case *protocol.FilterCompare:
		return n.Term.Field == protocol.FieldGPUMIG
	default:
		return false
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// askersOwn says whether a clause has a part that only the asker can judge: its round trips, its scores, the
// issuers that it accepts.
func askersOwn(n protocol.FilterNode) bool {
	switch n := n.(type) {
	case *protocol.FilterAnd:
		return slices.ContainsFunc(n.Of, askersOwn)
	case *protocol.FilterOr:
		return slices.ContainsFunc(n.Of, askersOwn)
	case *protocol.FilterNot:
		return askersOwn(n.Of)
	case *protocol.FilterCompare:
		return n.Term.Field.Scope() == protocol.ScopeLocal || n.Term.Field == protocol.FieldVerified
	default:
		return false
	}
}

// look is the moment of an evaluation and the query that is evaluated.
type look struct {
	*asking
	x     *replica
	since time.Duration // now, on the replica's clock
	ms    int64
}

// verdict is what the clauses say of one node.
type verdict struct {
	groups  []int // that match
	matched bool
	reached int // clauses passed by the row that came furthest
	alone   []int
	passed  []bool // by clause: some row passes it; only for an explanation
}

func (l *look) judge(n *node) verdict {
	var v verdict
	groups := n.groups
	switch {
	case len(groups) == 0:
		groups = noGroups
	case !l.byGroup:
		groups = groups[:1] // no clause looks at a group
	}
	if l.Explain {
		v.passed = make([]bool, len(l.clauses))
	}
	for i := range groups {
		failed, first, last := 0, len(l.clauses), 0
		for k, clause := range l.clauses {
			if clause(n, &groups[i], l) >= l.keeps[k] {
				if l.Explain {
					v.passed[k] = true
				}
				continue
			}
			failed, first, last = failed+1, min(first, k), k
			if !l.Explain {
				break
			}
		}
		v.reached = max(v.reached, first)
		switch {
		case failed == 0:
			v.matched = true
			if l.byGroup && groups[i].index >= 0 {
				v.groups = append(v.groups, int(groups[i].index))
			}
		case failed == 1 && l.Explain:
			v.alone = append(v.alone, last)
		}
	}
	return v
}

var noGroups = []group{noGPU}

// hit is a node that matches, as it was at that moment.
type hit struct {
	peer   peer.ID
	order  uint64
	record *heldRecord
	beat   *heldBeat // nil when none was heard, or one of another record
	age    time.Duration
	state  string
	groups []int
	left   bool // it has said goodbye for good
	waits  bool // its heartbeat speaks of another record
}

func (n *node) hit(groups []int, now time.Duration) hit {
	h := hit{peer: n.id, order: n.order, record: n.record, groups: groups, state: n.stateAt(now), left: n.tombstone, waits: n.beat != nil && n.pending}
	if n.beat != nil && !n.pending {
		h.beat, h.age = n.beat, now-n.arrived
	}
	return h
}

// hints is the set of slots that conjunctive clauses leave, nil for all. An explanation needs every row.
func (l *look) hints() bitmap {
	if l.Explain || l.blunt {
		return nil
	}
	var left bitmap
	for k, clause := range l.parts {
		if l.keeps[k] != yes {
			continue
		}
		if ks, ok := hintsOf(clause); ok {
			if u := l.x.classes.union(ks); left == nil {
				left = append(bitmap{}, u...)
			} else {
				left.and(u)
			}
		}
	}
	return left
}

// match evaluates the query over the replica, without a message.
func (q *asking) match(x *replica) ([]hit, Explanation) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	l := &look{asking: q, x: x, since: x.since(q.now), ms: q.now.UnixMilli()}
	ex := Explanation{Equivocated: len(x.twice.order)}
	var out []hit
	judge := func(i uint32) {
		n := x.at(i)
		v := l.judge(n)
		if q.MaxAge > 0 && (n.beat == nil || l.since-n.arrived > q.MaxAge) {
			v.matched = false
		}
		if q.Explain {
			l.count(v)
		}
		if v.matched {
			out = append(out, n.hit(v.groups, l.since))
		}
	}
	left := l.hints()
	for i := range uint32(len(x.expires)) {
		if !x.listed(i, l.ms, l.since) {
			continue
		}
		ex.Population++
		if left == nil {
			judge(i)
		}
	}
	if left != nil {
		left.each(func(i uint32) {
			if x.listed(i, l.ms, l.since) {
				judge(i)
			}
		})
	}
	ex.Matched = len(out)
	if q.Explain {
		ex.Clauses = q.texts
	}
	return out, ex
}

func (l *look) count(v verdict) {
	for k := range v.reached {
		l.texts[k].Left++
	}
	for k, passed := range v.passed {
		if !passed {
			l.texts[k].Removed++
		}
	}
	if v.matched {
		return
	}
	slices.Sort(v.alone)
	for _, k := range slices.Compact(v.alone) {
		l.texts[k].RemovedAlone++
	}
}

// run evaluates the query and opens what it found.
func (q *asking) run(x *replica) ([]Candidate, Explanation) {
	hits, ex := q.match(x)
	hits = arrange(hits, q.Seed, q.Limit)
	out := make([]Candidate, len(hits))
	for i := range hits {
		out[i] = x.opened.candidate(&hits[i])
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

func (o *openings) candidate(h *hit) Candidate {
	c := Candidate{Peer: h.peer, Capability: o.record(h.record), Record: h.record.raw, Groups: h.groups, State: h.state}
	if h.beat != nil {
		c.Availability, c.Beat, c.Age = o.beat(h.beat), h.beat.raw, h.age
	}
	return c
}

// arrange sorts by a hash of seed and peer, so that no node stands first in every answer, and keeps the first
// limit of them; 0 keeps all.
func arrange(hits []hit, seed uint64, limit int) []hit {
	type keyed struct {
		key uint64
		at  int
	}
	keys := make([]keyed, 0, len(hits))
	// Keys are spread evenly, so a few more than the limit lie below this one.
	below := uint64(math.MaxUint64)
	if limit > 0 && limit < len(hits)/4 {
		below = uint64(math.MaxUint64 * (float64(limit)*1.2 + 32) / float64(len(hits)))
	}
	for i := range hits {
		if key := shuffled(hits[i].order, seed); key <= below {
			keys = append(keys, keyed{key, i})
		}
	}
	if below < math.MaxUint64 && len(keys) < limit { // bad luck
		keys = keys[:0]
		for i := range hits {
			keys = append(keys, keyed{shuffled(hits[i].order, seed), i})
		}
	}
	slices.SortFunc(keys, func(a, b keyed) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(hits[a.at].peer, hits[b.at].peer))
	})
	if limit > 0 && len(keys) > limit {
		keys = keys[:limit]
	}
	out := make([]hit, len(keys))
	for i, k := range keys {
		out[i] = hits[k.at]
	}
	return out
}

// shuffled mixes a peer's order with a seed; for each seed it is a permutation, and unforeseeable without it.
func shuffled(order, seed uint64) uint64 { return mix(order ^ mix(seed+0x9e3779b97f4a7c15)) }

// mix is the finaliser of MurmurHash3.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Find returns the nodes that match, in an order that the query's seed fixes. With a replica (Config.Shards)
// it answers from memory without a message; otherwise it asks index peers, or searches cold: it samples provider
// records, asks each node for its own record and heartbeat and falls back to the DHT's copy. It returns
// ErrNoServers when no DHT server can be asked, ErrNoIndex when ViaIndex finds no index peer that answers.
func (d *Directory) Find(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	if query.Maybe {
		query.guess = d.guesser(query.Filter)
	}
	switch {
	case asksRoundTrips(&query):
		return d.findNear(ctx, query)
	case query.Via == ViaAuto && len(d.cfg.Shards) > 0:
		out, ex := newAsking(query, d.now(), false).run(d.index)
		ex.Tier = "replica"
		return out, ex, nil
	case query.Via == ViaDHT:
		return d.findCold(ctx, query)
	case query.Via == ViaServers:
		return d.findScan(ctx, query)
	case query.Via == ViaIndex, query.Via == ViaAuto:
		return d.findIndex(ctx, query)
	default:
		return nil, Explanation{}, fmt.Errorf("%w: Via is %q, want index, dht, scan or nothing", ErrConfig, query.Via)
	}
}
