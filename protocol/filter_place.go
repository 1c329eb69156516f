package protocol

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ErrUnknownPlace means that a name is neither a region, an ISO country nor a subdivision.
var ErrUnknownPlace = errors.New("protocol: unknown place")

// Place is a region, a country or a subdivision of one; exactly the narrowest known part counts.
type Place struct {
	// Macro is eu, noram, latam, apac or mea; for a country it is the region that the country lies in.
	Macro string
	// Country is the ISO 3166-1 alpha-2 code in upper case, empty for a whole region.
	Country string
	// Subdivision is the ISO 3166-2 code such as US-CA, empty for a whole country.
	Subdivision string
}

// String returns the narrowest name of the place.
func (p Place) String() string {
	switch {
	case p.Subdivision != "":
		return p.Subdivision
	case p.Country != "":
		return p.Country
	default:
		return p.Macro
	}
}

// macroCountries are the ISO 3166-1 countries and territories of each region. eu is the continent of Europe,
// not the Union; Turkey, Russia and the Caucasus are placed as most clouds do.
var macroCountries = map[string]string{
	"eu": "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV " +
		"MC MD ME MK MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA XK",
	"noram": "BM CA GL PM US",
	"latam": "AG AI AR AW BB BL BO BQ BR BS BZ CL CO CR CU CW DM DO EC FK GD GF GP GT GY HN HT JM KN KY LC MF MQ MS " +
		"MX NI PA PE PR PY SR SV SX TC TT UY VC VE VG VI GS BV",
	"apac": "AQ AS AU BD BN BT CC CK CN CX FJ FM GU HK HM ID IN IO JP KG KH KI KP KR KZ LA LK MH MM MN MO MP MV MY " +
		"NC NF NP NR NU NZ PF PG PH PK PN PW SB SG TF TH TJ TK TL TM TO TV TW UM UZ VN VU WF WS",
	"mea": "AE AF AM AO AZ BF BH BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GE GH GM GN GQ GW IL IQ IR JO KE KM " +
		"KW LB LR LS LY MA MG ML MR MU MW MZ NA NE NG OM PS QA RE RW SA SC SD SH SL SN SO SS ST SY SZ TD TG TN TR " +
		"TZ UG YE YT ZA ZM ZW",
}

var macroOfCountry = func() map[string]string {
	m := map[string]string{}
	for macro, list := range macroCountries {
		for c := range strings.FieldsSeq(list) {
			m[c] = macro
		}
	}
	return m
}()

// Regions returns the names of the regions, sorted.
func Regions() []string {
	out := make([]string, 0, len(macroCountries))
	for m := range macroCountries {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}

// RegionCountries returns the countries of a region, nil for an unknown one.
func RegionCountries(macro string) []string {
	out := strings.Fields(macroCountries[strings.ToLower(macro)])
	slices.Sort(out)
	return out
}

var subdivisionForm = regexp.MustCompile(`^([A-Z]{2})-[A-Z0-9]{1,3}$`)

// ParsePlace reads a region (eu), an ISO country (DE, case does not matter) or a subdivision (US-CA). It
// returns ErrUnknownPlace with the nearest three names.
func ParsePlace(s string) (Place, error) {
	if _, ok := macroCountries[strings.ToLower(s)]; ok {
		return Place{Macro: strings.ToLower(s)}, nil
	}
	up := strings.ToUpper(s)
	if up == "UK" {
		up = "GB"
	}
	if macro, ok := macroOfCountry[up]; ok {
		return Place{Macro: macro, Country: up}, nil
	}
	if m := subdivisionForm.FindStringSubmatch(up); m != nil {
		if macro, ok := macroOfCountry[m[1]]; ok {
			return Place{Macro: macro, Country: m[1], Subdivision: up}, nil
		}
	}
	return Place{}, fmt.Errorf("%w %.64q: write a region, an ISO country or a subdivision such as US-CA; nearest: %s",
		ErrUnknownPlace, s, strings.Join(nearest(s, placeNames(), 3), ", "))
}

// placeNames returns the regions and countries, sorted.
func placeNames() []string {
	names := Regions()
	for c := range macroOfCountry {
		names = append(names, c)
	}
	slices.Sort(names)
	return names
}

// Contains says whether a node that claims to stand at q stands in p: known is false when q is too coarse to
// tell. An empty q is never known.
func (p Place) Contains(q Place) (in, known bool) {
	switch {
	case q.Country == "" && q.Macro == "":
		return false, false
	case q.Country == "": // only the region is told
		if p.Macro != q.Macro {
			return false, true
		}
		return true, p.Country == ""
	case p.Country == "":
		return macroOfCountry[q.Country] == p.Macro, true
	case p.Country != q.Country:
		return false, true
	case p.Subdivision == "":
		return true, true
	case q.Subdivision == "":
		return false, false
	default:
		return p.Subdivision == q.Subdivision, true
	}
}
