package protocol

import (
	"math"
	"math/rand/v2"
	"testing"
)

// towns are real places, many of them at the edges of their countries, to a tenth of a degree.
var towns = []struct {
	country  string
	name     string
	lat, lon float64
}{
	{"DE", "Flensburg", 54.8, 9.4},
	{"DE", "Berchtesgaden", 47.6, 13.0},
	{"DE", "Aachen", 50.8, 6.1},
	{"DE", "Görlitz", 51.2, 15.0},
	{"FR", "Brest", 48.4, -4.5},
	{"FR", "Bonifacio", 41.4, 9.2},
	{"FR", "Dunkerque", 51.0, 2.4},
	{"FR", "Perpignan", 42.7, 2.9},
	{"GB", "Lerwick", 60.2, -1.1},
	{"GB", "Penzance", 50.1, -5.5},
	{"GB", "Lowestoft", 52.5, 1.8},
	{"GB", "Belfast", 54.6, -5.9},
	{"ES", "Mahón", 39.9, 4.3},
	{"ES", "Cádiz", 36.5, -6.3},
	{"ES", "Las Palmas", 28.1, -15.4},
	{"ES", "A Coruña", 43.4, -8.4},
	{"PT", "Ponta Delgada", 37.7, -25.7},
	{"PT", "Funchal", 32.7, -16.9},
	{"PT", "Faro", 37.0, -7.9},
	{"IT", "Lampedusa", 35.5, 12.6},
	{"IT", "Bolzano", 46.5, 11.4},
	{"IT", "Lecce", 40.4, 18.2},
	{"GR", "Rhodos", 36.4, 28.2},
	{"GR", "Kerkyra", 39.6, 19.9},
	{"NO", "Kristiansand", 58.1, 8.0},
	{"NO", "Vardø", 70.4, 31.1},
	{"SE", "Malmö", 55.6, 13.0},
	{"SE", "Kiruna", 67.9, 20.2},
	{"FI", "Helsinki", 60.2, 24.9},
	{"FI", "Utsjoki", 69.9, 27.0},
	{"DK", "Rønne", 55.1, 14.7},
	{"PL", "Ustrzyki", 49.4, 22.6},
	{"UA", "Uzhhorod", 48.6, 22.3},
	{"UA", "Luhansk", 48.6, 39.3},
	{"HR", "Dubrovnik", 42.6, 18.1},
	{"RO", "Sulina", 45.2, 29.7},
	{"RU", "Kaliningrad", 54.7, 20.5},
	{"RU", "Moscow", 55.8, 37.6},
	{"RU", "Derbent", 42.1, 48.3},
	{"RU", "Novosibirsk", 55.0, 82.9},
	{"RU", "Norilsk", 69.3, 88.2},
	{"RU", "Irkutsk", 52.3, 104.3},
	{"RU", "Vladivostok", 43.1, 131.9},
	{"RU", "Anadyr", 64.7, 177.5},
	{"RU", "Yakutsk", 62.0, 129.7},
	{"RU", "Petropavlovsk", 53.0, 158.7},
	{"RU", "Murmansk", 69.0, 33.1},
	{"RU", "Kyzyl", 51.7, 94.5},
	{"US", "Miami", 25.8, -80.2},
	{"US", "Eastport", 44.9, -67.0},
	{"US", "Seattle", 47.6, -122.3},
	{"US", "San Diego", 32.7, -117.2},
	{"US", "Key West", 24.6, -81.8},
	{"US", "Honolulu", 21.3, -157.9},
	{"US", "Hilo", 19.7, -155.1},
	{"US", "Utqiagvik", 71.3, -156.8},
	{"US", "Ketchikan", 55.3, -131.6},
	{"US", "Adak", 51.9, -176.7},
	{"CA", "Victoria", 48.4, -123.4},
	{"CA", "Whitehorse", 60.7, -135.1},
	{"CA", "Winnipeg", 49.9, -97.1},
	{"CA", "Toronto", 43.7, -79.4},
	{"CA", "Halifax", 44.6, -63.6},
	{"CA", "St. John's", 47.6, -52.7},
	{"CA", "Iqaluit", 63.7, -68.5},
	{"CA", "Alert", 82.5, -62.3},
	{"CA", "Inuvik", 68.4, -133.7},
	{"GL", "Nuuk", 64.2, -51.7},
	{"GL", "Qaanaaq", 77.5, -69.2},
	{"MX", "Tijuana", 32.5, -117.0},
	{"MX", "Cancún", 21.2, -86.8},
	{"MX", "Tapachula", 14.9, -92.3},
	{"BR", "Recife", -8.1, -34.9},
	{"BR", "Boa Vista", 2.8, -60.7},
	{"BR", "Chuí", -33.7, -53.5},
	{"BR", "Cruzeiro do Sul", -7.6, -72.7},
	{"AR", "Ushuaia", -54.8, -68.3},
	{"AR", "La Quiaca", -22.1, -65.6},
	{"CL", "Arica", -18.5, -70.3},
	{"CL", "Punta Arenas", -53.2, -70.9},
	{"CL", "Hanga Roa", -27.2, -109.4},
	{"CO", "Leticia", -4.2, -69.9},
	{"CO", "Riohacha", 11.5, -72.9},
	{"PE", "Tacna", -18.0, -70.2},
	{"PE", "Tumbes", -3.6, -80.5},
	{"EC", "Puerto Ayora", -0.7, -90.3},
	{"VE", "Maracaibo", 10.6, -71.6},
	{"CU", "Baracoa", 20.3, -74.5},
	{"CN", "Kashgar", 39.5, 76.0},
	{"CN", "Mohe", 53.5, 122.4},
	{"CN", "Fuyuan", 48.4, 134.3},
	{"CN", "Sanya", 18.3, 109.5},
	{"CN", "Shanghai", 31.2, 121.5},
	{"IN", "Leh", 34.2, 77.6},
	{"IN", "Kanyakumari", 8.1, 77.5},
	{"IN", "Dibrugarh", 27.5, 94.9},
	{"IN", "Port Blair", 11.7, 92.7},
	{"IN", "Bhuj", 23.2, 69.7},
	{"JP", "Wakkanai", 45.4, 141.7},
	{"JP", "Kagoshima", 31.6, 130.6},
	{"JP", "Naha", 26.2, 127.7},
	{"JP", "Ishigaki", 24.3, 124.2},
	{"JP", "Nemuro", 43.3, 145.6},
	{"ID", "Sabang", 5.9, 95.3},
	{"ID", "Merauke", -8.5, 140.4},
	{"ID", "Jakarta", -6.2, 106.8},
	{"AU", "Perth", -32.0, 115.9},
	{"AU", "Hobart", -42.9, 147.3},
	{"AU", "Cairns", -16.9, 145.8},
	{"AU", "Brisbane", -27.5, 153.0},
	{"NZ", "Invercargill", -46.4, 168.4},
	{"NZ", "Kaitaia", -35.1, 173.3},
	{"KR", "Jeju", 33.5, 126.5},
	{"MY", "Kuching", 1.6, 110.3},
	{"MY", "Tawau", 4.2, 117.9},
	{"MY", "Penang", 5.4, 100.3},
	{"PH", "Basco", 20.4, 122.0},
	{"PH", "General Santos", 6.1, 125.2},
	{"TH", "Chiang Rai", 19.9, 99.8},
	{"TH", "Narathiwat", 6.4, 101.8},
	{"VN", "Cà Mau", 9.2, 105.2},
	{"VN", "Hà Giang", 22.8, 105.0},
	{"KZ", "Aktau", 43.7, 51.2},
	{"KZ", "Oskemen", 49.9, 82.6},
	{"MN", "Ölgii", 49.0, 90.0},
	{"PK", "Gwadar", 25.1, 62.3},
	{"PK", "Gilgit", 35.9, 74.3},
	{"IR", "Maku", 39.3, 44.5},
	{"IR", "Chabahar", 25.3, 60.6},
	{"SA", "Jizan", 16.9, 42.6},
	{"SA", "Tabuk", 28.4, 36.6},
	{"TR", "Edirne", 41.7, 26.6},
	{"TR", "Hakkari", 37.6, 43.7},
	{"EG", "Salloum", 31.6, 25.2},
	{"EG", "Aswan", 24.1, 32.9},
	{"ZA", "Cape Town", -33.9, 18.4},
	{"ZA", "Musina", -22.3, 30.0},
	{"NG", "Lagos", 6.5, 3.4},
	{"NG", "Maiduguri", 11.8, 13.2},
	{"KE", "Mombasa", -4.0, 39.7},
	{"CD", "Moanda", -5.9, 12.4},
	{"CD", "Lubumbashi", -11.7, 27.5},
	{"AO", "Cabinda", -5.6, 12.2},
	{"MA", "Laâyoune", 27.2, -13.2},
	{"DZ", "Tindouf", 27.7, -8.1},
	{"ET", "Moyale", 3.5, 39.1},
	{"SO", "Kismayo", -0.4, 42.5},
	{"MG", "Antsiranana", -12.3, 49.3},
	{"YE", "Hadibo", 12.6, 54.0},
	{"FJ", "Suva", -18.1, 178.4},
	{"KI", "Tarawa", 1.4, 173.0},
	{"KI", "London", 2.0, -157.5},
	{"SG", "Singapore", 1.3, 103.8},
}

func TestEveryCountryHasCirclesThatHoldItsTowns(t *testing.T) {
	for c := range macroOfCountry {
		if len(circles[c]) == 0 {
			t.Errorf("%s has no circle", c)
		}
	}
	for c, all := range circles {
		if macroOfCountry[c] == "" {
			t.Errorf("%s is of no region", c)
		}
		for _, x := range all {
			if math.Abs(x.lat) > 90 || math.Abs(x.lon) > 180 || x.radius <= 0 || x.radius > 3700 {
				t.Errorf("%s has the circle %+v", c, x)
			}
		}
	}
	for _, town := range towns {
		least := math.Inf(1)
		for _, c := range circles[town.country] {
			least = min(least, c.gap(circle{town.lat, town.lon, 0}))
		}
		if least > 0 {
			t.Errorf("%s is %.0f km outside of %s", town.name, least, town.country)
		}
	}
}

func TestGapsAreThoseOfTheMapAndNeverTooLarge(t *testing.T) {
	for _, c := range []struct {
		a, b     string
		from, to float64
	}{
		{"DE", "DE", 0, 0},
		{"DE", "FR", 0, 0},
		{"DE", "US", 3500, 5300},
		{"DE-BE", "US-CA", 3500, 5300},
		{"SG", "BR", 13000, 15900},
		{"eu", "DE", 0, 0},
		{"SG", "ZA", 6500, 9000},
		{"JP", "DE", 6500, 8500},
		{"NZ", "PT", 16000, 19000},
		{"apac", "latam", 0, 9000},
	} {
		a, err := ParsePlace(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParsePlace(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.GapKm(b); got < c.from || got > c.to || got != b.GapKm(a) {
			t.Errorf("%s to %s: %.0f km, want %.0f..%.0f both ways (back %.0f)", c.a, c.b, got, c.from, c.to, b.GapKm(a))
		}
	}
	if got := (Place{}).GapKm(Place{Macro: "eu", Country: "DE"}); got != 0 {
		t.Errorf("nowhere is %.0f km away", got)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 { // two towns are never nearer to one another than their countries
		a, b := towns[r.IntN(len(towns))], towns[r.IntN(len(towns))]
		way := circle{a.lat, a.lon, 0}.gap(circle{b.lat, b.lon, 0})
		if gap := (Place{macroOfCountry[a.country], a.country, ""}).GapKm(Place{macroOfCountry[b.country], b.country, ""}); gap > way {
			t.Errorf("%s to %s is %.0f km, their countries are said to be %.0f apart", a.name, b.name, way, gap)
		}
	}
}

func TestPlacesAreToldNoMorePreciselyThanAsked(t *testing.T) {
	full := Place{"eu", "DE", "DE-BE"}
	for text, want := range map[string]Place{
		"none": {}, "macro": {Macro: "eu"}, "Country": {Macro: "eu", Country: "DE"}, "subdivision": full,
	} {
		p, err := ParsePrecision(text)
		if err != nil || full.Cut(p) != want {
			t.Errorf("%s: %v, %v", text, full.Cut(p), err)
		}
	}
	if _, err := ParsePrecision("street"); err == nil {
		t.Error("a precision that is none is accepted")
	}
}
