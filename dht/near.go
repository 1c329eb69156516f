package dht

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Round trips: estimates filter, pings decide (discovery.md 7, rule 4).
const (
	// MaxMeasured bounds the peers that Measure pings.
	MaxMeasured   = 96
	estimateSlack = 1.5 // an estimate may be so many times what is asked for
	pingsEach     = 3   // of which the shortest counts
	pingTimeout   = time.Second
	pingParallel  = 32
)

// Measure pings peers, at most MaxMeasured of them, three times within a second each, and returns the shortest
// round trip of those that answered. Dialling is not counted; a context with network.WithNoDial does without.
func (d *Directory) Measure(ctx context.Context, ids []peer.ID) map[peer.ID]time.Duration {
	out := map[peer.ID]time.Duration{}
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, pingParallel) // one for each under way
	for _, id := range ids[:min(len(ids), MaxMeasured)] {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if rtt, ok := d.ping(ctx, id); ok {
				mu.Lock()
				defer mu.Unlock()
				out[id] = rtt
			}
		})
	}
	all.Wait()
	return out
}

// Placed remembers where a candidate says that it is, so that Measure can reach it.
func (d *Directory) Placed(c *Candidate) { d.placed(c.Peer, c.Capability) }

// placed remembers where a node says that it is, as far as that may be dialled.
func (d *Directory) placed(id peer.ID, c *pb.Capability) {
	d.host.Peerstore().AddAddrs(id, d.public(addrsOf(c)), peerstore.TempAddrTTL)
}

func (d *Directory) ping(ctx context.Context, id peer.ID) (best time.Duration, ok bool) {
	ctx = network.WithAllowLimitedConn(ctx, "ping") // a relay is a way too, and as long as it is measured
	if there, _ := network.GetNoDial(ctx); !there {
		dial, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
		defer cancel()
		if err := d.host.Connect(dial, peer.AddrInfo{ID: id}); err != nil {
			return 0, false
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	results := ping.Ping(ctx, d.host, id)
	for range pingsEach {
		r, more := <-results
		if !more || r.Error != nil {
			break
		}
		if !ok || r.RTT < best {
			best, ok = r.RTT, true
		}
	}
	if ok {
		d.sampled.put(id, best, d.now())
	}
	return best, ok
}

// Measured returns the shortest of the last pings to a peer, if they were at most so long ago.
func (d *Directory) Measured(id peer.ID, within time.Duration) (time.Duration, bool) {
	s, ok := d.sampled.get(id, within, d.now())
	return s.rtt, ok
}

// Estimate is what is known of a peer's round trip in ms without asking it: what traffic with it told while it is
// connected or lately was, else the way over the landmarks that its record and we have in common, else NaN.
func (d *Directory) Estimate(id peer.ID, c *pb.Capability) float64 {
	own, m := d.LandmarkRTTs(), marksOf(c.GetLocation())
	return d.estimate(id, &m, &own)
}

func (d *Directory) estimate(id peer.ID, m *marks, own *LandmarkRTTs) float64 {
	if l := d.host.Peerstore().LatencyEWMA(id); l > 0 {
		if _, lately := d.sampled.get(id, sampleFresh, d.now()); lately || d.connected(id) {
			return float64(l) / float64(time.Millisecond)
		}
	}
	return m.to(own)
}

// guesser estimates for a filter; nil where a short estimate rules nothing out.
func (d *Directory) guesser(f *protocol.Filter) func(peer.ID, *marks) float64 {
	if f == nil || slices.ContainsFunc(f.Clauses(), func(c protocol.FilterNode) bool { return wantsFar(c, false) }) {
		return nil
	}
	own := d.LandmarkRTTs()
	return func(id peer.ID, m *marks) float64 { return d.estimate(id, m, &own) }
}

// findNear answers a query about round trips for an asker who has measured none: candidates whose estimate is at
// most 1.5 times what is wanted, or unknown, are pinged, those with the best estimates first; then the filter is
// evaluated with what the pings gave.
func (d *Directory) findNear(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	d.knowWhere(ctx)
	wide := query
	wide.Maybe, wide.Limit = true, 0
	wide.Local = func(peer.ID) (float64, float64) { return math.NaN(), math.NaN() }
	found, ex, err := d.Find(ctx, wide)
	if err != nil {
		return nil, ex, err
	}
	own := d.LandmarkRTTs()
	ids, estimates := make([]peer.ID, len(found)), make(map[peer.ID]float64, len(found))
	for i := range found {
		id, m := found[i].Peer, marksOf(found[i].Capability.GetLocation())
		ids[i], estimates[id] = id, d.estimate(id, &m, &own)
		d.placed(id, found[i].Capability)
	}
	measured := d.Measure(ctx, nearestFirst(ids, func(id peer.ID) float64 { return estimates[id] }, 3*query.Limit))
	query.Local = func(id peer.ID) (float64, float64) {
		if rtt, ok := measured[id]; ok {
			return float64(rtt) / float64(time.Millisecond), math.NaN()
		}
		return math.NaN(), math.NaN()
	}
	out, matched := d.Again(query, found)
	ex.Matched, ex.PeersAsked, ex.PeersFailed = matched, ex.PeersAsked+min(len(ids), MaxMeasured), ex.PeersFailed+min(len(ids), MaxMeasured)-len(measured)
	return out, ex, nil
}

// Again holds candidates that Find gave against a query once more, for an asker who has learnt what only it can know;
// nobody is asked. It returns those that match, and how many do before Limit.
func (d *Directory) Again(query Query, found []Candidate) ([]Candidate, int) {
	x := newReplica(max(1, len(found)))
	now := d.now()
	for _, c := range found {
		// All of it was verified when it came.
		a := answered{record: &record{raw: c.Record, peer: c.Peer, cap: c.Capability, digest: digestOf(c.Record)}, heard: now.Add(-c.Age)}
		if c.Beat != nil {
			a.beat = &beat{raw: c.Beat, peer: c.Peer, av: c.Availability}
		}
		x.learn(a, now)
	}
	out, own := newAsking(query, now, false).run(x)
	return out, own.Matched
}

// wantsFar says whether an expression may hold because a round trip is long: then a short estimate rules nothing out.
func wantsFar(n protocol.FilterNode, negated bool) bool {
	far := func(k protocol.FilterNode) bool { return wantsFar(k, negated) }
	switch n := n.(type) {
	case *protocol.FilterAnd:
		return slices.ContainsFunc(n.Of, far)
	case *protocol.FilterOr:
		return slices.ContainsFunc(n.Of, far)
	case *protocol.FilterNot:
		return wantsFar(n.Of, !negated)
	case *protocol.FilterCompare:
		return n.Term.Field == protocol.FieldNodeRTTMs && (negated || n.Op != protocol.OpLT && n.Op != protocol.OpLE)
	default:
		return false
	}
}

// nearestFirst orders peers by their estimates, unknown ones last, and keeps most of them; 0 keeps all.
func nearestFirst(ids []peer.ID, estimate func(peer.ID) float64, most int) []peer.ID {
	ids = slices.Clone(ids)
	far := func(id peer.ID) float64 {
		if e := estimate(id); !math.IsNaN(e) {
			return e
		}
		return math.Inf(1)
	}
	slices.SortStableFunc(ids, func(a, b peer.ID) int { return cmp.Compare(far(a), far(b)) })
	if most > 0 {
		ids = ids[:min(most, len(ids))]
	}
	return ids
}

// asksRoundTrips says whether a query needs pings.
func asksRoundTrips(q *Query) bool {
	return q.Local == nil && !q.Maybe && q.Filter != nil && q.Filter.Mentions(protocol.FieldNodeRTTMs)
}
