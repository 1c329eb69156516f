package main

import (
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestTokensAreMadeListedAndRevoked(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	var token protocol.NewToken
	g.run(exitOK, &token, "bridge", "token", "create", "--name", "laptop", "--output", "json")
	if !strings.HasPrefix(token.Text, "gb_") || token.User != operatorUser || token.Name != "laptop" {
		t.Fatalf("made %+v", token)
	}
	_, text, _ := gridbeam(t, "bridge", "token", "create", "--config-dir", g.config())
	if !strings.Contains(text, "export BETA9_TOKEN=gb_") || !strings.Contains(text, "export BETA9_GATEWAY_PORT=") {
		t.Errorf("a user of Beam is told:\n%s", text)
	}
	_, list, _ := gridbeam(t, "bridge", "token", "list", "--config-dir", g.config())
	if !strings.Contains(list, token.ID) || !strings.Contains(list, "laptop") || strings.Contains(list, token.Text) {
		t.Errorf("the list is:\n%s", list)
	}
	revoke := []string{"bridge", "token", "revoke", token.ID, "--config-dir", g.config()}
	if code, _, errs := gridbeam(t, revoke...); code != exitOK {
		t.Errorf("revoking: %d %s", code, errs)
	}
	if code, _, errs := gridbeam(t, revoke...); code == exitOK || !strings.Contains(errs, token.ID) {
		t.Errorf("revoked twice: %d %s", code, errs)
	}
}
