package beambridge

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// pingFor bounds the pinging of all finalists of a placement, dialling included (discovery.md 7, rule 4).
	pingFor = time.Second
	// pingFresh is for how long pings decide a bound on round trips, so that a job that is placed again and again does
	// not ping again and again; rttFresh for how long one is good enough to rank by.
	pingFresh = 30 * time.Second
	rttFresh  = 10 * time.Minute
)

// asksRTT says whether a job has a bound on round trips, as max_rtt or in its where: then pings decide.
func (s *placing) asksRTT() bool { return s.want.MaxRTT > 0 || s.whereAsksRTT() }

func (s *placing) whereAsksRTT() bool {
	return s.where != nil && s.where.Mentions(protocol.FieldNodeRTTMs)
}

// rtt is the best that is known of a node's round trip without asking: pings, else the lease stream, else an estimate;
// 0 is nothing.
func (b *Bridge) rtt(id protocol.PeerID, c *pb.Capability) time.Duration {
	if d, ok := b.dir.Measured(id, rttFresh); ok {
		return d
	}
	if d, ok := b.rtts.Load(id); ok {
		return d.(time.Duration)
	}
	if ms := b.dir.Estimate(id, c); ms == ms {
		return max(1, time.Duration(ms*float64(time.Millisecond)))
	}
	return 0
}

// measure pings the finalists among the candidates whose round trips are not known well enough, and puts what came into
// the list: Select decides by that. Where the job has a bound, who was not pinged or did not answer is of unknown
// distance, which no bound lets pass. Who does not answer counts as a second away elsewhere: it is asked last.
func (b *Bridge) measure(ctx context.Context, s *placing, list []cluster.Candidate, from []dht.Candidate) {
	rows, err := cluster.Finalists(s.want, list, binary.BigEndian.Uint64(s.id[:8]), dht.MaxMeasured)
	if err != nil {
		return // Select says so
	}
	bound := s.asksRTT()
	var ids []protocol.PeerID
	asked := map[protocol.PeerID]bool{}
	for _, i := range rows {
		id := list[i].Peer
		_, lately := b.dir.Measured(id, pingFresh)
		_, linked := b.rtts.Load(id)
		if !lately && (bound || !linked) {
			ids, asked[id] = append(ids, id), true
		}
	}
	if len(ids) > 0 {
		pinging, cancel := context.WithTimeout(ctx, pingFor)
		b.dir.Measure(pinging, ids)
		cancel()
	}
	for i := range list {
		x := &list[i]
		rtt, ok := b.dir.Measured(x.Peer, pingFresh)
		switch {
		case ok:
			x.RTT = rtt
		case s.want.MaxRTT > 0:
			x.RTT = 0
		case asked[x.Peer]:
			x.RTT = pingFor
		}
	}
	if !s.whereAsksRTT() {
		return
	}
	fits := b.fitting(s, from)
	for i := range list {
		list[i].Where = fits[list[i].Peer]
	}
}

// fitting returns the nodes for which the job's own filter holds, by pings alone where it asks for round trips.
func (b *Bridge) fitting(s *placing, from []dht.Candidate) map[protocol.PeerID]bool {
	found, _ := b.dir.Again(b.whereOf(s, pingFresh), from)
	fits := make(map[protocol.PeerID]bool, len(found))
	for i := range found {
		fits[found[i].Peer] = true
	}
	return fits
}

// whereOf is the question for the nodes of a job's where.
func (b *Bridge) whereOf(s *placing, fresh time.Duration) dht.Query {
	now := b.cfg.Clock()
	return dht.Query{
		Filter: s.where, Literal: true,
		Local: func(id protocol.PeerID) (float64, float64) {
			rtt := math.NaN()
			if d, ok := b.dir.Measured(id, fresh); ok {
				rtt = float64(d) / float64(time.Millisecond)
			}
			return rtt, b.engine.judge.Score(id, now).O
		},
		Verify:  func(id protocol.PeerID, l *pb.Label) bool { return b.believes(id, l, now) },
		Refuted: b.refuted,
	}
}
