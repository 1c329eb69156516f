package api

import (
	"net/http"
	"slices"

	"github.com/gridbeam/gridbeam/protocol"
)

// maxTokenName bounds a token's name, in bytes.
const maxTokenName = 128

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
	c.object = req.User
	switch {
	case !creditUser.MatchString(req.User):
		return badRequest("user", "use letters, digits and . _ @ : + -", "%.80q is no user", req.User)
	case len(req.Name) > maxTokenName:
		return badRequest("name", "use a shorter one", "it has %d bytes, at most %d", len(req.Name), maxTokenName)
	case req.User != c.who.User && !c.who.Can(ScopeAdmin):
		return &protocol.APIError{Code: protocol.CodeForbidden, Field: "user", Text: "only an admin makes tokens for others", Fix: "leave user out"}
	}
	for _, text := range req.Scopes {
		scope := Scope(text)
		if !slices.Contains([]Scope{ScopeRead, ScopeInvoke, ScopeJobs, ScopeAdmin}, scope) {
			return badRequest("scopes", "use read, invoke, jobs or admin", "%.80q is no scope", text)
		}
		if !c.who.Can(scope) {
			return &protocol.APIError{Code: protocol.CodeForbidden, Field: "scopes", Text: "nobody gives away more than its own token may: " + text, Fix: "ask an admin"}
		}
	}
	t, err := s.bridge.Tokens.MakeToken(c.r.Context(), c.who, req)
	if err != nil {
		return err
	}
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
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
