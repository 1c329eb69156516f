package dht

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// RegionVerdict is what round trips say of a claimed place (discovery.md 7, rule 5; docs/adr/0014).
type RegionVerdict string

// The verdicts.
const (
	// RegionUnverified means that too few observers measured it: the claim counts as a claim.
	RegionUnverified RegionVerdict = "unverified"
	// RegionConsistent means that enough observers measured it, one of them near and inside, and none against it.
	RegionConsistent RegionVerdict = "consistent"
	// RegionContradicted means that an answer came sooner than light could have brought it: the claim counts as
	// unknown.
	RegionContradicted RegionVerdict = "contradicted"
)

const (
	regionObservers = 3                     // that make a claim consistent
	regionNear      = 60 * time.Millisecond // within which one of them, inside the place, has to be
	// observeFor bounds the measuring that an observer does for one question, observeLookups the records that it looks
	// up for it.
	observeFor     = 4 * time.Second
	observeLookups = 16
)

// Observation is a round trip that an observer of known place has measured to the claimant.
type Observation struct {
	// Observer measured it.
	Observer peer.ID
	// Place is where the observer stands, by the word of the network's roots.
	Place protocol.Place
	// RTT is the shortest ping.
	RTT time.Duration
}

// RegionCheck is a claimed place with what round trips say of it.
type RegionCheck struct {
	// Claim is what the record says.
	Claim protocol.Place
	// Verdict on it.
	Verdict RegionVerdict
	// Observers is how many measured it.
	Observers int
	// Against is the observation that contradicts it most, the zero value when none does.
	Against Observation
	// LeastKm is how far Against's observer is from the claimed place at least.
	LeastKm float64
}

// String says what was found, for people.
func (c *RegionCheck) String() string {
	switch c.Verdict {
	case RegionContradicted:
		return fmt.Sprintf("claims %s, but answered %s in %s within %s: it would be at least %.0f km away, %.0f ms",
			c.Claim, c.Against.Observer, c.Against.Place, c.Against.RTT.Round(100*time.Microsecond), c.LeastKm, c.LeastKm/protocol.MinKmPerRTTMs)
	case RegionConsistent:
		return fmt.Sprintf("claims %s, and the round trips of %d observers agree", c.Claim, c.Observers)
	default:
		return fmt.Sprintf("claims %s, measured by %d observers", c.Claim, c.Observers)
	}
}

// CheckRegion judges a claimed place by round trips. One that is shorter than light takes contradicts it, since a peer
// can delay an answer and never hurry it. Three or more that do not, one of them within 60 ms from inside the place's
// country, or region where no country is claimed, make it consistent. Observations without a place, without a round
// trip, and all but the shortest of one observer do not count.
func CheckRegion(claim protocol.Place, seen []Observation) RegionCheck {
	c := RegionCheck{Claim: claim, Verdict: RegionUnverified}
	country := claim.Cut(protocol.PrecisionCountry)
	if claim.IsZero() {
		return c
	}
	shortest := map[peer.ID]Observation{}
	for _, o := range seen {
		if old, ok := shortest[o.Observer]; o.RTT > 0 && !o.Place.IsZero() && (!ok || o.RTT < old.RTT) {
			shortest[o.Observer] = o
		}
	}
	near, most := false, 0.0
	for _, o := range shortest {
		in, known := country.Contains(o.Place)
		near = near || in && known && o.RTT <= regionNear
		km, ms := country.GapKm(o.Place), float64(o.RTT)/float64(time.Millisecond)
		// By how much too near it is; the lower ID where several are equally.
		if short := km/protocol.MinKmPerRTTMs - ms; short > most || short == most && short > 0 && o.Observer < c.Against.Observer {
			most, c.Against, c.LeastKm = short, o, km
		}
	}
	c.Observers = len(shortest)
	switch {
	case most > 0:
		c.Verdict = RegionContradicted
	case c.Observers >= regionObservers && near:
		c.Verdict = RegionConsistent
	}
	return c
}

// ClaimedPlace is where a node says that it is, the zero value where it does not say so or nobody knows the name.
func ClaimedPlace(c *pb.Capability) protocol.Place { return placeOf(c.GetLocation()) }

// CanCheckRegions says whether the network names observers: landmarks of known place.
func (d *Directory) CanCheckRegions() bool {
	list, _ := d.landmarks()
	return slices.ContainsFunc(list, func(l protocol.Landmark) bool { return !l.Place.IsZero() })
}

// CheckRegions asks the network's observers for their round trips to those candidates that claim a place, and judges
// the claims. Candidates without a claim are left out. Observers that do not answer do not count.
func (d *Directory) CheckRegions(ctx context.Context, found []Candidate) map[peer.ID]RegionCheck {
	out := map[peer.ID]RegionCheck{}
	var ids []peer.ID
	claims := map[peer.ID]protocol.Place{}
	for i := range found {
		if p := ClaimedPlace(found[i].Capability); !p.IsZero() {
			ids, claims[found[i].Peer] = append(ids, found[i].Peer), p
		}
	}
	if len(ids) == 0 {
		return out
	}
	seen := d.observations(ctx, sortedIDs(ids))
	for id, claim := range claims {
		out[id] = CheckRegion(claim, seen[id])
	}
	return out
}

// observations brings what all observers have measured; an observer does not judge itself.
func (d *Directory) observations(ctx context.Context, ids []peer.ID) map[peer.ID][]Observation {
	list, _ := d.landmarks()
	var observers []protocol.Landmark
	for _, l := range list {
		if !l.Place.IsZero() {
			observers = append(observers, l)
		}
	}
	d.reachable(ctx, observers)
	seen := map[peer.ID][]Observation{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, l := range observers {
		all.Go(func() {
			for batch := range slices.Chunk(ids, maxQueryGet) {
				rtts, err := d.askRoundTrips(ctx, l.Peer, batch)
				if err != nil {
					d.log.Debug("an observer does not answer", "peer", l.Peer, "err", err)
					return
				}
				mu.Lock()
				for id, rtt := range rtts {
					if id != l.Peer {
						seen[id] = append(seen[id], Observation{Observer: l.Peer, Place: l.Place, RTT: rtt})
					}
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return seen
}

// askRoundTrips brings what one observer, which may be us, has measured to some peers, maxQueryGet at most.
func (d *Directory) askRoundTrips(ctx context.Context, of peer.ID, ids []peer.ID) (map[peer.ID]time.Duration, error) {
	var reply *pb.RoundTripsReply
	if of == d.host.ID() {
		reply = d.roundTrips(ctx, ids, true, nil) // nobody else can bring that about
	} else {
		req := &pb.RoundTripsRequest{}
		for _, id := range ids {
			req.PeerIds = append(req.PeerIds, []byte(id))
		}
		end, err := d.exchange(ctx, of, &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_RoundTrips{RoundTrips: req}}, 0, func(*pb.QueryRow) {})
		if err != nil {
			return nil, err
		}
		reply = end.GetRoundTrips()
	}
	return readRoundTrips(reply, ids)
}

// readRoundTrips takes what was asked for; who says that an answer took no time has not measured it.
func readRoundTrips(reply *pb.RoundTripsReply, ids []peer.ID) (map[peer.ID]time.Duration, error) {
	if reply == nil || len(reply.GetRoundTrips()) > maxQueryGet {
		return nil, fmt.Errorf("%w: not round trips", ErrQuery)
	}
	out := map[peer.ID]time.Duration{}
	for _, r := range reply.GetRoundTrips() {
		id := peer.ID(r.GetPeerId())
		if r.GetRttUs() > 0 && time.Duration(r.GetAgeS())*time.Second <= 2*sampleKept && slices.Contains(ids, id) {
			out[id] = time.Duration(r.GetRttUs()) * time.Microsecond
		}
	}
	return out, nil
}

// observes says whether the network file names this peer as an observer of places: a landmark of known place. Who is asked
// and not named may have been named lately: then a newer file is asked for, now and then.
func (d *Directory) observes(ctx context.Context) bool {
	named := func() bool {
		list, _ := d.landmarks()
		return slices.ContainsFunc(list, func(l protocol.Landmark) bool { return l.Peer == d.host.ID() && !l.Place.IsZero() })
	}
	if named() {
		return true
	}
	if d.renewals.take("", d.now()) == 0 && d.RenewNetwork(ctx) {
		select {
		case d.renewed <- struct{}{}:
		default: // Locate has been told already
		}
	}
	return named()
}

// replyRoundTrips answers askRoundTrips, if this peer is an observer: nobody else is asked. What has to be measured first
// is measured for an asker now and then.
func (d *Directory) replyRoundTrips(ctx context.Context, who asker, req *pb.RoundTripsRequest, yield func(*pb.QueryReply) bool) {
	switch {
	case !d.observes(ctx):
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_NO_INDEX, "this peer is no landmark of known place", 0, 0))
		return
	case len(req.GetPeerIds()) > maxQueryGet:
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FORMAT, fmt.Sprintf("at most %d peers", maxQueryGet), 0, 0))
		return
	}
	var ids []peer.ID
	for _, raw := range req.GetPeerIds() {
		if id, err := peer.IDFromBytes(raw); err == nil {
			ids = append(ids, id)
		}
	}
	measure := d.isUp() && d.watches.take(who, d.now()) == 0
	yield(&pb.QueryReply{Part: &pb.QueryReply_RoundTrips{RoundTrips: d.roundTrips(ctx, sortedIDs(ids), measure, d.observed)}})
}

// roundTrips tells what was measured to peers in the last hour; measure pings the others, within a budget.
func (d *Directory) roundTrips(ctx context.Context, ids []peer.ID, measure bool, budget *dials) *pb.RoundTripsReply {
	reply := &pb.RoundTripsReply{}
	var here, away []peer.ID
	for _, id := range ids {
		if _, ok := d.sampled.get(id, sampleKept, d.now()); ok || id == d.host.ID() {
			continue
		}
		if len(d.host.Network().ConnsToPeer(id)) > 0 {
			here = append(here, id)
		} else {
			away = append(away, id)
		}
	}
	if measure {
		ctx, cancel := context.WithTimeout(ctx, observeFor)
		var all sync.WaitGroup
		all.Go(func() { d.Measure(network.WithNoDial(ctx, "it is connected"), here) })
		d.Measure(ctx, d.findable(ctx, away, budget))
		all.Wait()
		cancel()
	}
	for _, id := range ids {
		if s, ok := d.sampled.get(id, sampleKept, d.now()); ok {
			reply.RoundTrips = append(reply.RoundTrips, &pb.RoundTrip{
				PeerId: []byte(id), RttUs: uint32(max(1, min(s.rtt.Microseconds(), 1<<31))), AgeS: uint32(max(0, d.now().Sub(s.at).Seconds())),
			})
		}
	}
	return reply
}

// findable returns the peers of which an address is known, after looking up a few records, as far as a budget goes.
func (d *Directory) findable(ctx context.Context, ids []peer.ID, budget *dials) (out []peer.ID) {
	var mu sync.Mutex
	var looking sync.WaitGroup
	found := func(id peer.ID) {
		if addrs := d.host.Peerstore().Addrs(id); len(addrs) > 0 && budget.all(addrs, d.cfg.Loopback, d.now()) {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, id)
		}
	}
	lookups := 0
	for _, id := range ids {
		if !budget.peer(d.now()) {
			break
		}
		h, known := d.index.get(id, d.now())
		if known {
			d.placed(id, d.index.opened.record(h.record))
		}
		switch {
		case len(d.host.Peerstore().Addrs(id)) > 0:
			found(id)
		case !known && lookups < observeLookups && d.isUp():
			lookups++
			looking.Go(func() {
				if rec, err := d.fromDHT(ctx, id, 1); err == nil {
					d.placed(id, rec.cap)
					found(id)
				}
			})
		}
	}
	looking.Wait()
	return out
}
