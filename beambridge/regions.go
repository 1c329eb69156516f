package beambridge

import (
	"context"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// regionsEvery is how often nodes are looked for whose claimed place nobody has checked yet, regionsAtOnce how many of
	// them are checked then.
	regionsEvery  = 30 * time.Second
	regionsAtOnce = 256
	// regionGood is for how long a verdict holds, regionRetry for how long the first time that too few observers have
	// answered; twice as long each time after.
	regionGood  = 6 * time.Hour
	regionRetry = time.Minute
)

// regionCheck is a verdict on a node's claimed place, and when it was found.
type regionCheck struct {
	dht.RegionCheck
	at    time.Time
	tries int // in a row without a verdict
}

// due says whether it is time to look again.
func (c *regionCheck) due(now time.Time) bool {
	wait := regionGood
	if c.Verdict == dht.RegionUnverified {
		wait = min(wait, regionRetry<<min(c.tries, 10))
	}
	return now.Sub(c.at) >= wait
}

// checkRegions has the network's observers check where nodes say that they are, as long as it names any.
func (b *Bridge) checkRegions(ctx context.Context) error {
	t := time.NewTicker(regionsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if !b.dir.CanCheckRegions() {
			continue
		}
		found, _, err := b.dir.Find(ctx, dht.Query{Literal: true})
		if err != nil {
			continue // watch tells
		}
		b.forgetRegions(found)
		due := b.unchecked(found)
		now := b.cfg.Clock()
		for id, c := range b.dir.CheckRegions(ctx, due) {
			if c.Verdict == dht.RegionContradicted {
				b.log.Warn("a node's claimed place is contradicted and counts as unknown", "peer", id, "why", c.String())
			}
			next := regionCheck{c, now, 0}
			if last, ok := b.regionOf(id, c.Claim); ok && c.Verdict == dht.RegionUnverified {
				next.tries = last.tries + 1
			}
			b.regions.Store(id, next)
		}
	}
}

// unchecked are the nodes whose claim was not checked, or too long ago; those longest known first, as found is.
func (b *Bridge) unchecked(found []dht.Candidate) (due []dht.Candidate) {
	now := b.cfg.Clock()
	for i := range found {
		claim := dht.ClaimedPlace(found[i].Capability)
		if claim.IsZero() || !isWorker(found[i].Capability) || len(due) == regionsAtOnce {
			continue
		}
		last, ok := b.regionOf(found[i].Peer, claim)
		if !ok || last.due(now) {
			due = append(due, found[i])
		}
	}
	return due
}

// forgetRegions drops verdicts on nodes that are gone.
func (b *Bridge) forgetRegions(found []dht.Candidate) {
	here := make(map[protocol.PeerID]bool, len(found))
	for i := range found {
		here[found[i].Peer] = true
	}
	b.regions.Range(func(id, _ any) bool {
		if !here[id.(protocol.PeerID)] {
			b.regions.Delete(id)
		}
		return true
	})
}

// regionOf returns the verdict on a claim; false when there is none on this one.
func (b *Bridge) regionOf(id protocol.PeerID, claim protocol.Place) (regionCheck, bool) {
	v, ok := b.regions.Load(id)
	if !ok {
		return regionCheck{}, false
	}
	c := v.(regionCheck)
	return c, c.Claim == claim
}

// refuted says whether what a node claims of its place is known to be false.
func (b *Bridge) refuted(id protocol.PeerID) bool {
	v, ok := b.regions.Load(id)
	return ok && v.(regionCheck).Verdict == dht.RegionContradicted
}

// placeOf is where a node is for a job's regions: what an issuer that the bridge believes has signed, else what the node
// claims, unless round trips contradict it (docs/adr/0014).
func (b *Bridge) placeOf(id protocol.PeerID, rec *pb.Capability, now time.Time) protocol.Place {
	for _, l := range rec.GetLabels() {
		if l.GetKey() != protocol.LabelLocation || !b.believes(id, l, now) {
			continue
		}
		if p, err := protocol.ParsePlace(l.GetValue()); err == nil {
			return p
		}
	}
	claim := dht.ClaimedPlace(rec)
	if c, ok := b.regionOf(id, claim); ok && c.Verdict == dht.RegionContradicted {
		return protocol.Place{}
	}
	return claim
}

// regionNotes says which claims do not count, for a job that asks for places.
func (b *Bridge) regionNotes(s *placing, list []cluster.Candidate) (notes []string) {
	asks := len(s.want.Regions) > 0
	if s.where != nil {
		for _, f := range []protocol.FilterField{protocol.FieldNodeRegion, protocol.FieldNodeCountry} {
			asks = asks || s.where.Mentions(f)
		}
	}
	if !asks {
		return nil
	}
	more := 0
	for i := range list {
		v, ok := b.regions.Load(list[i].Peer)
		if !ok || v.(regionCheck).Verdict != dht.RegionContradicted {
			continue
		}
		if c := v.(regionCheck); len(notes) < mostNotes {
			notes = append(notes, fmt.Sprintf("where %s is counts as unknown: it %s", list[i].Peer, c.String()))
		} else {
			more++
		}
	}
	if more > 0 {
		notes = append(notes, fmt.Sprintf("the same holds for %s more", count(more, "node")))
	}
	return notes
}
