package node

import (
	"context"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// PlaceStatus is what the node's record says of where it is.
type PlaceStatus struct {
	// Region, Country and Subdivision are what its owner states, to the precision that the owner wants told; all empty
	// when nothing is.
	Region string `json:"region,omitempty"`
	// Country is the ISO 3166-1 code.
	Country string `json:"country,omitempty"`
	// Subdivision is the ISO 3166-2 code.
	Subdivision string `json:"subdivision,omitempty"`
	// Landmarks is how many landmarks its network has, Measured how many of them have answered.
	Landmarks int `json:"landmarks"`
	// Measured is how many landmarks have answered.
	Measured int `json:"landmarks_measured"`
	// Told says whether the record tells their round trips, by which others estimate how far they are.
	Told bool `json:"landmarks_told"`
}

// location is what a record says of where the node is; nil when it says nothing.
func (s *speaker) location() *pb.Location {
	l := &pb.Location{Macro: s.place.Macro, Country: s.place.Country, Subdivision: s.place.Subdivision}
	if s.landmarks != nil && !s.noLandmarks {
		if own := s.landmarks(); own.Known() > 0 {
			l.LandmarkEpoch, l.LandmarkRtt = &own.Epoch, own.RTT
		}
	}
	if s.place.IsZero() && l.LandmarkRtt == nil {
		return nil
	}
	return l
}

// locate measures how far the landmarks of the first joined network are.
func (s *site) locate(ctx context.Context) error {
	l := dht.DefaultLocate()
	if !s.cfg.NoLandmarks {
		l.Changed = s.announce.RecordChanged
	}
	return s.dir.Locate(ctx, l)
}

func (s *site) placeStatus() PlaceStatus {
	p, own := s.cfg.Place, s.dir.LandmarkRTTs()
	out := PlaceStatus{Region: p.Macro, Country: p.Country, Subdivision: p.Subdivision, Measured: own.Known(), Told: !s.cfg.NoLandmarks}
	if n, ok := s.dir.Network(); ok {
		out.Landmarks = len(n.LandmarkList())
	}
	return out
}

// checkPlace returns what is wrong with a place that was put together by hand.
func checkPlace(p protocol.Place) error {
	if p.IsZero() {
		return nil
	}
	q, err := protocol.ParsePlace(p.String())
	if err == nil && q != p {
		err = protocol.ErrUnknownPlace
	}
	return err
}
