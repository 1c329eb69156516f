package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gridbeam/gridbeam/protocol"
)

// maxTokenName bounds a token's name, in bytes.
const maxTokenName = 128

// scopes are all there are, each holding the ones before it.
var scopes = []Scope{ScopeRead, ScopeInvoke, ScopeJobs, ScopeAdmin}

// CheckToken says what is wrong with the name or the scopes of a request for a token, as *protocol.APIError.
func CheckToken(req protocol.TokenRequest) error {
	switch {
	case len(req.Name) > maxTokenName:
		return badRequest("name", "use a shorter one", "the name has %d bytes, at most %d", len(req.Name), maxTokenName)
	case !utf8.ValidString(req.Name) || strings.IndexFunc(req.Name, unicode.IsControl) >= 0:
		return badRequest("name", "use letters, digits and signs", "%.80q is no name", req.Name)
	case len(req.Scopes) < 1 || len(req.Scopes) > len(scopes):
		return badRequest("scopes", "use read, invoke, jobs or admin", "a token has 1 to %d scopes, not %d", len(scopes), len(req.Scopes))
	}
	for _, text := range req.Scopes {
		if !slices.Contains(scopes, Scope(text)) {
			return badRequest("scopes", "use read, invoke, jobs or admin", "%.80q is no scope", text)
		}
	}
	return nil
}

// mayGive says whether a principal may give a token away: to itself, and none that may more than its own.
func mayGive(who Principal, req protocol.TokenRequest) error {
	if req.User != who.User && !who.Can(ScopeAdmin) {
		return &protocol.APIError{Code: protocol.CodeForbidden, Field: "user", Text: fmt.Sprintf("this token may not make one for the user %s: it lacks the scope %s", req.User, ScopeAdmin), Fix: "leave the user out to make one for yourself, or ask an admin"}
	}
	for _, text := range req.Scopes {
		if !who.Can(Scope(text)) {
			return &protocol.APIError{Code: protocol.CodeForbidden, Field: "scopes", Text: fmt.Sprintf("this token may not give away the scope %s, which it does not have", text), Fix: "give less, or ask an admin"}
		}
	}
	return nil
}

func (s *Server) makeToken(c *call) error {
	var req protocol.TokenRequest
	if err := s.decode(c, s.cfg.JSONBytes, &req); err != nil {
		return err
	}
	if req.User == "" {
		req.User = c.who.User
	}
	if len(req.Scopes) == 0 {
		req.Scopes = []string{string(ScopeJobs)}
	}
	if err := protocol.CheckUser(req.User); err != nil {
		return err
	}
	if err := CheckToken(req); err != nil {
		return err
	}
	c.object = req.User + " " + strings.Join(req.Scopes, ",")
	if err := mayGive(c.who, req); err != nil {
		return err
	}
	t, err := s.bridge.Tokens.MakeToken(c.r.Context(), c.who, req)
	if err != nil {
		return err
	}
	c.object += " " + t.ID
	return c.json(http.StatusCreated, t)
}

func (s *Server) listTokens(c *call) error {
	l, err := s.bridge.Tokens.ListTokens(c.r.Context(), c.who)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, l)
}

func (s *Server) dropToken(c *call) error {
	c.object = c.r.PathValue("id")
	if err := s.bridge.Tokens.DropToken(c.r.Context(), c.who, c.object); err != nil {
		return err
	}
	s.gate.revoked(c.object)
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
