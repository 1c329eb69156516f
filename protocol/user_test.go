package protocol

import (
	"errors"
	"strings"
	"testing"
)

func TestUsersHaveOneRule(t *testing.T) {
	for _, good := range []string{"a", "operator", "ann@example.com", "team:ann", "A.b_c+d-e", "..a", strings.Repeat("x", MaxUser)} {
		if err := CheckUser(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, why := range map[string]string{
		"": "is empty", ".": "dots alone", "..": "dots alone", "a b": `has ' '`, "a/b": `has '/'`, "a\x00": `has '\x00'`, "\u00e4": `has 'ä'`, "\xff": "has", "a%2f": `has '%'`, "a\n": `has '\n'`,
		strings.Repeat("x", MaxUser+1): "has 129 bytes",
	} {
		err := CheckUser(bad)
		var said *APIError
		if !errors.As(err, &said) || said.Field != "user" || said.Code != CodeBadRequest || !strings.Contains(err.Error(), why) || !strings.Contains(said.Fix, "@ :") {
			t.Errorf("%q: %v, want %s and the fix", bad, err, why)
		}
	}
}
