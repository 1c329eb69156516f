package main

import (
	"cmp"
	"strings"

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
