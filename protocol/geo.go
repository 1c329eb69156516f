package protocol

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// MinKmPerRTTMs is the longest way in km that a round trip of a millisecond leaves to one side: light in glass
// makes about 200 km in a millisecond, there and back (discovery.md 7, rule 5).
const MinKmPerRTTMs = 100

const (
	earthKm = 6371
	// circleMargin is how much larger circles are than the table says, which was read off maps by eye.
	circleMargin = 1.1
)

// circle is a part of the globe, in degrees and km.
type circle struct{ lat, lon, radius float64 }

// circles are those of each country.
var circles = func() map[string][]circle {
	m := map[string][]circle{}
	for line := range strings.Lines(strings.TrimSpace(circlesText)) {
		var code string
		var c circle
		if _, err := fmt.Sscan(line, &code, &c.lat, &c.lon, &c.radius); err != nil {
			panic("protocol: circlesText: " + line) // a constant; a test reads it too
		}
		c.radius *= circleMargin
		m[code] = append(m[code], c)
	}
	return m
}()

// gap is the least distance in km between points of two circles, 0 where they touch.
func (c circle) gap(o circle) float64 {
	const rad = math.Pi / 180
	sinLat, sinLon := math.Sin((o.lat-c.lat)*rad/2), math.Sin((o.lon-c.lon)*rad/2)
	h := sinLat*sinLat + math.Cos(c.lat*rad)*math.Cos(o.lat*rad)*sinLon*sinLon
	return max(0, 2*earthKm*math.Asin(math.Sqrt(min(1, h)))-c.radius-o.radius)
}

func (p Place) circles() (out []circle) {
	if p.Country != "" {
		return circles[p.Country]
	}
	for _, c := range RegionCountries(p.Macro) {
		out = append(out, circles[c]...)
	}
	return out
}

// GapKm returns the least distance in km that can be between a machine in p and one in q: that between circles
// around them, which are coarse and never too small, a subdivision's being its country's. It is 0 where a place is
// empty or unknown.
func (p Place) GapKm(q Place) float64 {
	least := math.Inf(1)
	theirs := q.circles()
	for _, a := range p.circles() {
		for _, b := range theirs {
			least = min(least, a.gap(b))
		}
	}
	if math.IsInf(least, 1) {
		return 0
	}
	return least
}

// Precision is how much of its place a node tells (discovery.md 2).
type Precision string

// The precisions, from nothing to all.
const (
	// PrecisionNone tells nothing.
	PrecisionNone Precision = "none"
	// PrecisionMacro tells the region, such as eu.
	PrecisionMacro Precision = "macro"
	// PrecisionCountry tells region and country.
	PrecisionCountry Precision = "country"
	// PrecisionSubdivision tells region, country and subdivision.
	PrecisionSubdivision Precision = "subdivision"
)

var precisions = []Precision{PrecisionNone, PrecisionMacro, PrecisionCountry, PrecisionSubdivision}

// ParsePrecision reads none, macro, country or subdivision; it returns ErrBounds.
func ParsePrecision(s string) (Precision, error) {
	if p := Precision(strings.ToLower(s)); slices.Contains(precisions, p) {
		return p, nil
	}
	return "", fmt.Errorf("%w: precision is %.40q, want none, macro, country or subdivision", ErrBounds, s)
}

// Cut returns the place with no more than the precision tells.
func (p Place) Cut(to Precision) Place {
	switch to {
	case PrecisionNone:
		return Place{}
	case PrecisionMacro:
		return Place{Macro: p.Macro}
	case PrecisionCountry:
		return Place{Macro: p.Macro, Country: p.Country}
	default:
		return p
	}
}

// IsZero says whether the place is none.
func (p Place) IsZero() bool { return p == Place{} }
