package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestNobodyGivesAwayMoreThanItHas(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	for _, c := range []struct {
		token, body string
		status      int
		field       string
	}{
		{"jobs/ann", `{}`, 201, ""},
		{"jobs/ann", `{"user":"ann","scopes":["invoke","read"],"name":"ci"}`, 201, ""},
		{"admin/root", `{"user":"bob","scopes":["admin"]}`, 201, ""},
		{"jobs/ann", `{"user":"bob"}`, 403, "user"},
		{"jobs/ann", `{"scopes":["read","admin"]}`, 403, "scopes"},
		{"jobs/ann", `{"scopes":["everything"]}`, 400, "scopes"},
		{"jobs/ann", `{"scopes":["read","read","read","read","read"]}`, 400, "scopes"},
		{"jobs/ann", `{"user":"a b"}`, 400, "user"},
		{"admin/root", `{"user":"ann@example.com:dev"}`, 201, ""},
		{"admin/root", `{"user":".."}`, 400, "user"},
		{"jobs/ann", `{"name":"` + strings.Repeat("n", 129) + `"}`, 400, "name"},
		{"jobs/ann", `{"name":"a\u0007b"}`, 400, "name"},
		{"jobs/ann", `{"scope":"read"}`, 400, "scope"},
		{"read/ann", `{"scopes":["read"]}`, 403, ""},
	} {
		w := ask(s, c.token, "POST", "/tokens", strings.NewReader(c.body))
		if w.Code != c.status {
			t.Errorf("%s sends %.60s: %d %s, want %d", c.token, c.body, w.Code, w.Body, c.status)
			continue
		}
		if c.status == http.StatusCreated {
			var made protocol.NewToken
			if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || made.Text == "" || len(made.Scopes) == 0 || made.User == "" {
				t.Errorf("%s sends %s: made %+v, %v", c.token, c.body, made, err)
			}
			continue
		}
		var e protocol.APIError
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Field != c.field || e.Text == "" {
			t.Errorf("%s sends %.60s: %+v, want the field %q", c.token, c.body, e, c.field)
		}
	}
}

func TestAScopeNobodyKnowsIsNobodys(t *testing.T) {
	for _, has := range []Scope{"", "root", ScopeAdmin} {
		if (Principal{Scopes: []Scope{has}}).Can("other") {
			t.Errorf("%q can do what nobody knows", has)
		}
	}
}

// revocable knows one token until it is revoked.
type revocable struct {
	*fakeBridge
	token string
	gone  bool
}

func (r *revocable) Authorize(ctx context.Context, token string) (Principal, error) {
	if token == r.token {
		if r.gone {
			return Principal{}, ErrBadToken
		}
		return Principal{User: "ann", Scopes: []Scope{ScopeJobs}}, nil
	}
	return r.fakeBridge.Authorize(ctx, token)
}

func (r *revocable) DropToken(context.Context, Principal, string) error {
	r.gone = true
	return nil
}

// TestARevokedTokenIsForgottenAtOnce lets a token be good, revokes it, and bars its address: a token that was good
// lately would pass the bar and be asked for again and again.
func TestARevokedTokenIsForgottenAtOnce(t *testing.T) {
	hash := sha256.Sum256([]byte("gb_one"))
	for name, revoke := range map[string]func(s *Server, r *revocable){
		"by the API": func(s *Server, _ *revocable) {
			if w := ask(s, "admin", "DELETE", "/tokens/"+hex.EncodeToString(hash[:6]), nil); w.Code != http.StatusNoContent || w.Body.Len() > 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if _, known := s.gate.good[hash]; known {
				t.Error("after its revocation the token passes the bar of an address")
			}
		},
		"by another way": func(s *Server, r *revocable) {
			r.gone = true
			wantError(t, ask(s, "gb_one", "GET", "/status", nil), http.StatusUnauthorized, protocol.CodeUnauthorized)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &revocable{fakeBridge: newFake(), token: "gb_one"}
			b := r.bridge()
			b.Auth, b.Tokens = r, r
			s := newServer(t, testConfig(t), r.fakeBridge)
			s.bridge = b
			now := time.Unix(1000, 0)
			s.gate.now = func() time.Time { return now }
			for _, token := range []string{"gb_one", "read"} {
				if w := ask(s, token, "GET", "/status", nil); w.Code != http.StatusOK {
					t.Fatal(w.Body)
				}
			}
			revoke(s, r)
			for range 10 {
				ask(s, "guess", "GET", "/status", nil)
			}
			wantError(t, ask(s, "gb_one", "GET", "/status", nil), http.StatusTooManyRequests, protocol.CodeLimited)
			if w := ask(s, "read", "GET", "/status", nil); w.Code != http.StatusOK {
				t.Errorf("another token is forgotten, too: %s", w.Body)
			}
		})
	}
	s := newServer(t, testConfig(t), newFake())
	s.gate.remember(hash)
	s.gate.revoked("") // no ID
	s.gate.revoked("xyz")
	if len(s.gate.good) != 1 {
		t.Error("what is no ID made the gate forget")
	}
}

func TestMethodsOfTokensAreTold(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	w := ask(s, "jobs", "GET", "/tokens/0123456789ab", nil)
	wantError(t, w, http.StatusMethodNotAllowed, protocol.CodeWrongMethod)
	if w.Header().Get("Allow") != "DELETE" {
		t.Errorf("allowed is %q", w.Header().Get("Allow"))
	}
}
