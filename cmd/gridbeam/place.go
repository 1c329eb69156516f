package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

// nodePlace is where the owner says that the machine is, by --region or else by node.yaml, no more precisely than the
// file allows.
func nodePlace(flag string, file *location) (place protocol.Place, err error) {
	precision := protocol.PrecisionSubdivision
	if file.Precision != "" {
		if precision, err = protocol.ParsePrecision(file.Precision); err != nil {
			return place, usagef("%s: location.precision is %q, want none, macro, country or subdivision", nodeFileName, file.Precision)
		}
	}
	if strings.EqualFold(flag, string(protocol.PrecisionNone)) {
		return place, nil
	}
	if flag != "" {
		if place, err = protocol.ParsePlace(flag); err != nil {
			return place, usagef("--region: %s", err)
		}
		return place.Cut(precision), nil
	}
	if place, err = file.place(); err != nil {
		return place, err
	}
	return place.Cut(precision), nil
}

// place reads the parts, which have to lie in one another.
func (l *location) place() (place protocol.Place, err error) {
	for _, part := range []struct{ field, text string }{{"region", l.Region}, {"country", l.Country}, {"subdivision", l.Subdivision}} {
		if part.text == "" {
			continue
		}
		text := part.text
		if part.field == "subdivision" && !strings.Contains(text, "-") {
			if place.Country == "" {
				return place, usagef("%s: location.subdivision is %q without a country; write DE-BE, or add country", nodeFileName, part.text)
			}
			text = place.Country + "-" + text
		}
		next, err := protocol.ParsePlace(text)
		if err != nil {
			return place, usagef("%s: location.%s: %s", nodeFileName, part.field, err)
		}
		if is := (map[bool]string{next.Country == "": "region", next.Country != "" && next.Subdivision == "": "country", next.Subdivision != "": "subdivision"}[true]); is != part.field {
			return place, usagef("%s: location.%s is %q, which is a %s", nodeFileName, part.field, part.text, is)
		}
		if place.Macro != "" && place.Macro != next.Macro || place.Country != "" && place.Country != next.Country {
			return place, usagef("%s: location.%s is %s, which does not lie in %s", nodeFileName, part.field, next, place)
		}
		place = next
	}
	return place, nil
}

// writePlace says what the record tells of where the node is.
func writePlace(p func(string, ...any), s *node.PlaceStatus) {
	place := cmp.Or(s.Subdivision, s.Country, s.Region)
	if place == "" {
		place = "not told (--region says it)"
	}
	p("place      %s", place)
	switch {
	case s.Landmarks == 0:
	case s.Told:
		p("landmarks  round trips to %d of %d, told", s.Measured, s.Landmarks)
	default:
		p("landmarks  round trips to %d of %d, kept to itself", s.Measured, s.Landmarks)
	}
}

// checkedRegions has the claimed places checked, where the network has observers, and leaves out who matched only by a
// claim that is contradicted.
func checkedRegions(ctx context.Context, d *dht.Directory, query dht.Query, found []dht.Candidate, wait time.Duration) ([]dht.Candidate, map[protocol.PeerID]dht.RegionCheck) {
	if !d.CanCheckRegions() {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	checks := d.CheckRegions(ctx, found)
	f := query.Filter
	if f == nil || !f.Mentions(protocol.FieldNodeRegion) && !f.Mentions(protocol.FieldNodeCountry) {
		return found, checks
	}
	query.Explain = false
	query.Refuted = func(id protocol.PeerID) bool { return checks[id].Verdict == dht.RegionContradicted }
	query.Local = func(id protocol.PeerID) (float64, float64) {
		if rtt, ok := d.Measured(id, time.Minute); ok { // just now, for the same question
			return float64(rtt) / float64(time.Millisecond), math.NaN()
		}
		return math.NaN(), math.NaN()
	}
	found, _ = d.Again(query, found)
	return found, checks
}

// regionText is a claimed place with what is known of the claim.
func regionText(place, check string) string {
	switch {
	case place == "":
		return "-"
	case check == string(dht.RegionConsistent):
		return printable(place) + " verified"
	case check == string(dht.RegionContradicted):
		return printable(place) + " contradicted"
	}
	return printable(place) + " claimed"
}

// explainRegions says which claims were checked, and what speaks against those that do not count.
func explainRegions(w io.Writer, checks map[protocol.PeerID]dht.RegionCheck) {
	if len(checks) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(checks))
	count := map[dht.RegionVerdict]int{}
	for _, id := range ids {
		count[checks[id].Verdict]++
	}
	_, _ = fmt.Fprintf(w, "  of %d claimed places %d agree with round trips, %d are contradicted, %d could not be verified\n", len(ids),
		count[dht.RegionConsistent], count[dht.RegionContradicted], count[dht.RegionUnverified])
	for _, id := range ids {
		if c := checks[id]; c.Verdict == dht.RegionContradicted {
			_, _ = fmt.Fprintf(w, "  %s %s\n", id, printable(c.String()))
		}
	}
}
