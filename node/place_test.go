package node

import (
	"errors"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestTheRecordTellsNoMoreOfThePlaceThanTheOwnerWants(t *testing.T) {
	now := time.Now()
	rtts := dht.LandmarkRTTs{Epoch: 9, RTT: []byte{3, protocol.UnknownRTT}}
	full := protocol.Place{Macro: "eu", Country: "DE", Subdivision: "DE-BE"}
	for name, c := range map[string]struct {
		place       protocol.Place
		noLandmarks bool
		rtts        dht.LandmarkRTTs
		want        string
		marks       int
	}{
		"nothing stated":              {rtts: rtts, marks: 2},
		"nothing stated, none known":  {},
		"nothing at all":              {noLandmarks: true, rtts: rtts},
		"no landmark answers":         {rtts: dht.LandmarkRTTs{Epoch: 9, RTT: []byte{protocol.UnknownRTT}}},
		"region":                      {place: full.Cut(protocol.PrecisionMacro), rtts: rtts, want: "eu", marks: 2},
		"country, landmarks withheld": {place: full.Cut(protocol.PrecisionCountry), noLandmarks: true, rtts: rtts, want: "DE"},
		"all":                         {place: full, rtts: rtts, want: "DE-BE", marks: 2},
	} {
		s := newTestSpeaker(t)
		s.place, s.noLandmarks, s.landmarks = c.place, c.noLandmarks, func() dht.LandmarkRTTs { return c.rtts }
		raw, err := s.Record(7, now, now.Add(time.Hour), false)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := dht.OpenCapability(raw, s.self, now)
		if err != nil {
			t.Fatal(err)
		}
		l := rec.GetLocation()
		if got := dht.ClaimedPlace(rec).String(); got != c.want || len(l.GetLandmarkRtt()) != c.marks || (l != nil && l.LandmarkEpoch != nil) != (c.marks > 0) {
			t.Errorf("%s: %v", name, l)
		}
		if (l == nil) != (c.want == "" && c.marks == 0) {
			t.Errorf("%s: location %v", name, l)
		}
	}
}

func TestAPlaceThatContradictsItselfIsRefused(t *testing.T) {
	cfg := DefaultConfig(t.TempDir())
	for _, p := range []protocol.Place{{Macro: "eu", Country: "US"}, {Macro: "atlantis"}, {Country: "DE"}, {Macro: "eu", Country: "DE", Subdivision: "US-CA"}} {
		cfg.Place = p
		if err := cfg.Validate(); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	cfg.Place = protocol.Place{Macro: "eu", Country: "DE"}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}
