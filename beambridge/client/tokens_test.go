package client

import (
	"context"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/protocol"
)

// noTokens makes tokens that nobody knows.
type noTokens struct{}

func (noTokens) MakeToken(_ context.Context, who api.Principal, req protocol.TokenRequest) (protocol.NewToken, error) {
	return protocol.NewToken{Token: protocol.Token{ID: "0123456789ab", User: who.User, Name: req.Name, Scopes: req.Scopes}, Text: "gb_x"}, nil
}

func (noTokens) ListTokens(context.Context, api.Principal) (protocol.TokenList, error) {
	return protocol.TokenList{Tokens: []protocol.Token{{ID: "0123456789ab"}}}, nil
}

func (noTokens) DropToken(_ context.Context, _ api.Principal, id string) error {
	if id != "a/b" {
		return &protocol.APIError{Code: protocol.CodeNotFound, Text: "there is no token " + id}
	}
	return nil
}

var _ api.Tokens = noTokens{}

func TestTokensGoOverTheWire(t *testing.T) {
	addr, _ := serve(t, newMemory(), "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	made, err := c.MakeToken(t.Context(), protocol.TokenRequest{Name: "ci"})
	if err != nil || made.Text != "gb_x" || made.Name != "ci" || len(made.Scopes) != 1 || made.Scopes[0] != "jobs" {
		t.Errorf("made %+v, %v", made, err)
	}
	if l, err := c.Tokens(t.Context()); err != nil || len(l.Tokens) != 1 {
		t.Errorf("listed %+v, %v", l, err)
	}
	if err := c.RevokeToken(t.Context(), "a/b"); err != nil { // an ID is one segment of the path
		t.Error(err)
	}
	if err := c.RevokeToken(t.Context(), "none"); err == nil || !strings.Contains(err.Error(), "there is no token none") {
		t.Errorf("a token that is not there: %v", err)
	}
}
