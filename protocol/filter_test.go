package protocol

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/internal/corpus"
)

const someCID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

func TestFiltersParseToTheirCanonicalText(t *testing.T) {
	for _, c := range []struct{ text, canon string }{
		{"", ""},
		{"  ", ""},
		{"cpu.cores >= 1", "cpu.cores >= 1"},
		{"gpu.compute>=8.0&&gpu.vram_gb>40", "gpu.compute >= 8 && gpu.vram_gb > 40"},
		{`gpu.model == 'nvidia h100'`, `gpu.model == "H100"`},
		{`gpu.model in ["a100-40", 'l40s']`, `gpu.model in ["A100-40", "L40S"]`},
		{`gpu.mig || gpu.ecc == true && !gpu.mig`, `gpu.mig || (gpu.ecc && !gpu.mig)`},
		{`(gpu.mig || gpu.ecc) && gpu.free >= 1`, `(gpu.mig || gpu.ecc) && gpu.free >= 1`},
		{`gpu.mig && (gpu.ecc && gpu.free > 1)`, `gpu.mig && gpu.ecc && gpu.free > 1`},
		{`!(gpu.free < 2)`, `!(gpu.free < 2)`},
		{`!!gpu.mig`, `!!gpu.mig`},
		{`gpu.ecc == false`, `gpu.ecc == false`},
		{`node.region == "EU"`, `node.region == "eu"`},
		{`node.region in ["uk","us-ca"]`, `node.region in ["GB", "US-CA"]`},
		{`node.country == "de"`, `node.country == "DE"`},
		{`node.state == "paused"`, `node.state == "PAUSED"`},
		{`gpu.driver >= version("550.54")`, `gpu.driver >= version("550.54")`},
		{`gpu.cuda in [version("12.4"), version('12.6')]`, `gpu.cuda in [version("12.4"), version("12.6")]`},
		{`has_volume("` + someCID + `", 800)`, `has_volume("` + someCID + `", 800)`},
		{`label("net.tier") != "low"`, `label("net.tier") != "low"`},
		{`verified('host.type') in ["datacenter"]`, `verified("host.type") in ["datacenter"]`},
		{`node.agent == "a\"b\\c\'"`, `node.agent == "a\"b\\c'"`},
	} {
		f, err := ParseFilter(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if f.String() != c.canon {
			t.Errorf("%s reads as %s, want %s", c.text, f, c.canon)
		}
		again, err := ParseFilter(f.String())
		if err != nil || again.String() != f.String() {
			t.Errorf("%s: canonical text does not parse to itself: %v %v", c.text, again, err)
		}
	}
}

func TestFilterErrorsTellColumnTokenAndWhatFits(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
		token  string
		says   string
	}{
		{"gpu.modl == 'H100'", 1, "gpu.modl", "nearest: gpu.model"},
		{"cpu.cores = 1", 11, "=", "write =="},
		{"cpu.cores >= 'x'", 14, "'x'", "is a number"},
		{"cpu.cores >= 8GB", 14, "8GB", "no unit"},
		{"cpu.cores >= 0x10", 14, "0x10", "digits"},
		{"cpu.cores >= 1e3", 14, "1e3", "digits"},
		{"cpu.cores >= -1", 14, "-", "no arithmetic"},
		{"cpu.cores >= 1 cpu.cores", 16, "cpu.cores", "expected &&"},
		{"cpu.cores >= 1 &&", 18, "", "expected a field"},
		{"cpu.cores >= 1 & gpu.mig", 16, "&", "&& or ||"},
		{"8 <= cpu.cores", 1, "8", "begins with its field"},
		{"cpu.cores", 10, "", "expected a comparison"},
		{"gpu.model < 'H100'", 11, "<", "no order"},
		{"gpu.model == H100", 14, "H100", "in quotes"},
		{"gpu.model == 'H10'", 14, "'H10'", "H100"},
		{"node.region == 'europe'", 16, "'europe'", "eu"},
		{"node.region == 'ZZ'", 16, "'ZZ'", "ISO country"},
		{"node.country == 'eu'", 17, "'eu'", "node.region"},
		{"node.state == 'REDY'", 15, "'REDY'", "nearest: READY"},
		{"node.id == 'me'", 12, "'me'", "no peer ID"},
		{"gpu.driver >= 550.54", 15, "550.54", `version("550.54")`},
		{"gpu.driver >= version('a')", 23, "'a'", "1 to 4 numbers"},
		{"gpu.mig == 1", 12, "1", "true or false"},
		{"(gpu.mig", 9, "", "expected )"},
		{"gpu.model in ['H100'", 21, "", "expected ]"},
		{"gpu.model in 'H100'", 14, "'H100'", "expected ["},
		{"gpu.model in []", 15, "]", "in quotes"},
		{"has_volume('x', 5)", 12, "'x'", "no CID"},
		{"has_volume('" + someCID + "', 0)", 75, "0", "1 to 1000"},
		{"label('') == 'x'", 7, "''", "1 to 32"},
		{"label('k')", 11, "", "expected a comparison"},
		{"node.agent == 'x", 15, "'x", "does not end"},
		{`node.agent == '\n'`, 16, `\`, "only"},
		{"!cpu.cores >= 1", 16, "", "parentheses"},
		{"gpu.mig ; gpu.ecc", 9, ";", "no meaning"},
		{strings.Repeat("(", 17) + "gpu.mig", 17, "(", "16 deep"},
		{strings.TrimSuffix(strings.Repeat("gpu.mig||", 40), "||"), 0, "", "64 clauses"},
		{"cpu.cores in [" + strings.TrimSuffix(strings.Repeat("1,", 65), ",") + "]", 0, "1", "64 values"},
		{strings.Repeat(" ", 1025), 1025, "…", "1024 bytes"},
	} {
		_, err := ParseFilter(c.text)
		var fe *FilterError
		if !errors.As(err, &fe) || !errors.Is(err, ErrFilter) {
			t.Errorf("%.60s: got %v, want a FilterError", c.text, err)
			continue
		}
		if c.column != 0 && (fe.Column != c.column || fe.Token != c.token) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60s: %v; want column %d, token %q, ... %q", c.text, err, c.column, c.token, c.says)
		}
		if len(fe.Nearest) > 3 {
			t.Errorf("%.60s: %d suggestions", c.text, len(fe.Nearest))
		}
	}
}

func TestFilterTakesTheLongestThatIsAllowed(t *testing.T) {
	list := "cpu.cores in [" + strings.TrimSuffix(strings.Repeat("1,", 64), ",") + "]"
	deep := strings.Repeat("(", 15) + "gpu.mig" + strings.Repeat(")", 15)
	many := strings.TrimSuffix(strings.Repeat("gpu.mig||", 32), "||")
	for _, text := range []string{list, deep, many, many + strings.Repeat(" ", MaxFilter-len(many))} {
		if _, err := ParseFilter(text); err != nil {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}

func TestImpliedClausesFollowWhatIsMentioned(t *testing.T) {
	for _, c := range []struct {
		text    string
		implied []string
	}{
		{"", []string{`node.state in ["READY", "BUSY"]`}},
		{"cpu.cores > 1", []string{`node.state in ["READY", "BUSY"]`}},
		{"gpu.free > 1", []string{"!gpu.mig", `node.state in ["READY", "BUSY"]`}},
		{"gpu.free > 1 && !gpu.mig", []string{`node.state in ["READY", "BUSY"]`}},
		{`gpu.free > 1 || node.state == "STALE"`, []string{"!gpu.mig"}},
		{`gpu.mig && node.state == "PAUSED"`, nil},
	} {
		f, err := ParseFilter(c.text)
		if err != nil {
			t.Fatal(err)
		}
		g, implied := f.WithImplied()
		if !slices.Equal(implied, c.implied) {
			t.Errorf("%q implies %q, want %q", c.text, implied, c.implied)
		}
		if len(g.Clauses()) != len(f.Clauses())+len(implied) {
			t.Errorf("%q: %d clauses became %d", c.text, len(f.Clauses()), len(g.Clauses()))
		}
	}
}

func TestPlacesContainEachOtherOrDoNotTell(t *testing.T) {
	for _, c := range []struct {
		wanted    string
		at        Place
		in, known bool
	}{
		{"eu", Place{Country: "DE"}, true, true},
		{"eu", Place{Country: "US"}, false, true},
		{"eu", Place{Macro: "eu"}, true, true},
		{"eu", Place{Macro: "apac"}, false, true},
		{"eu", Place{}, false, false},
		{"DE", Place{Macro: "eu"}, false, false},
		{"DE", Place{Macro: "noram"}, false, true},
		{"US-CA", Place{Country: "US"}, false, false},
		{"US-CA", Place{Country: "US", Subdivision: "US-CA"}, true, true},
		{"US-CA", Place{Country: "US", Subdivision: "US-NY"}, false, true},
		{"US", Place{Country: "US", Subdivision: "US-NY"}, true, true},
		{"US-CA", Place{Country: "DE"}, false, true},
	} {
		p, err := ParsePlace(c.wanted)
		if err != nil {
			t.Fatal(err)
		}
		in, known := p.Contains(c.at)
		if known != c.known || known && in != c.in {
			t.Errorf("%s contains %+v: %t, known %t", c.wanted, c.at, in, known)
		}
	}
	seen := map[string]string{}
	for _, macro := range Regions() {
		for _, country := range RegionCountries(macro) {
			if other, twice := seen[country]; twice || len(country) != 2 {
				t.Errorf("%s lies in %s and %s", country, macro, other)
			}
			seen[country] = macro
		}
	}
	if len(seen) < 245 {
		t.Errorf("only %d countries", len(seen))
	}
}

func TestVersionsCompareNumberByNumber(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"550.54", "550.54.0", 0}, {"12.10", "12.4", 1}, {"550", "550.1", -1}, {"9", "10", -1}} {
		a, _ := ParseVersion(c.a)
		b, _ := ParseVersion(c.b)
		if got := CompareVersions(a, b); got != c.want {
			t.Errorf("%s vs %s = %d", c.a, c.b, got)
		}
	}
	for _, bad := range []string{"", ".", "1.", "a", "1.2.3.4.5", "9999999999", "+1", "-1", "1_0"} {
		if _, ok := ParseVersion(bad); ok {
			t.Errorf("version %q was read", bad)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	corpus.Add(f)
	for _, s := range []string{
		"", "cpu.cores >= 1", `gpu.model in ["A100-40", 'l40s'] && !(gpu.free < 2) || gpu.mig`, "((gpu.mig))", "!!gpu.ecc",
		`has_volume("` + someCID + `", 800)`, `gpu.driver >= version("550.54")`, `label("k") != "v\"\\"`, `node.region == "us-ca"`, "gpu.model == 'zz",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseFilter(text)
		if err != nil {
			var fe *FilterError
			if !errors.As(err, &fe) || fe.Column < 1 || fe.Column > MaxFilter+1 || fe.Problem == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		nodes := 0
		if got.Root() != nil {
			walkFilter(got.Root(), func(FilterNode) { nodes++ })
		}
		if nodes > 2*MaxFilterNodes {
			t.Fatalf("%q has %d nodes", text, nodes)
		}
		canon := got.String()
		if len(canon) > MaxFilter {
			return // quoting may lengthen a text
		}
		again, err := ParseFilter(canon)
		if err != nil {
			t.Fatalf("%q → %q: %v", text, canon, err)
		}
		if again.String() != canon {
			t.Fatalf("%q → %q → %q", text, canon, again)
		}
		strip(got.Root())
		strip(again.Root())
		if !reflect.DeepEqual(got.Root(), again.Root()) {
			t.Fatalf("%q and %q differ: %#v %#v", text, canon, got.Root(), again.Root())
		}
	})
}

// strip removes what only tells where something stood in the text.
func strip(n FilterNode) {
	if n == nil {
		return
	}
	walkFilter(n, func(n FilterNode) {
		switch n := n.(type) {
		case *FilterCompare:
			n.Column = 0
		case *FilterHasVolume:
			n.Column = 0
		}
	})
}
