package main

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func TestWhereANodeIsIsStatedByFlagOrFile(t *testing.T) {
	for _, c := range []struct {
		flag, file string
		want       string // the place, or what the error says
		bad        bool
	}{
		{"", "{}", "", false},
		{"de-be", "{}", "DE-BE", false},
		{"EU", "{}", "eu", false},
		{"none", "{country: DE}", "", false},
		{"FR", "{country: DE}", "FR", false},
		{"DE-BE", "{precision: macro}", "eu", false},
		{"", "{country: DE, subdivision: BE}", "DE-BE", false},
		{"", "{country: de, subdivision: DE-BE, precision: country}", "DE", false},
		{"", "{region: eu, country: DE, precision: none}", "", false},
		{"", "{subdivision: US-CA}", "US-CA", false},
		{"Atlantis", "{}", "--region: unknown place", true},
		{"", "{country: Atlantis}", "location.country: unknown place", true},
		{"", "{subdivision: BE}", "write DE-BE, or add country", true},
		{"", "{country: DE, subdivision: US-CA}", "does not lie in DE", true},
		{"", "{region: apac, country: DE}", "does not lie in apac", true},
		{"", "{country: eu}", "location.country is \"eu\", which is a region", true},
		{"", "{country: DE, precision: street}", "want none, macro, country or subdivision", true},
	} {
		var l location
		if err := yaml.Unmarshal([]byte(c.file), &l); err != nil {
			t.Fatal(err)
		}
		got, err := nodePlace(c.flag, &l)
		switch {
		case c.bad && (err == nil || exitCode(err) != exitUsage || !strings.Contains(strings.ReplaceAll(err.Error(), "protocol: ", ""), c.want)):
			t.Errorf("--region %q, %s: %v, want %q", c.flag, c.file, err, c.want)
		case !c.bad && (err != nil || got.String() != c.want):
			t.Errorf("--region %q, %s: %q, %v, want %q", c.flag, c.file, got, err, c.want)
		}
	}
}
