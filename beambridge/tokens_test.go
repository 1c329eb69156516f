package beambridge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// tokenBridge runs a bridge that serves nothing, for its tokens.
func tokenBridge(t *testing.T) (b *Bridge, data string) {
	t.Helper()
	data = t.TempDir()
	b, _, end := realBridge(t, data, func(c *Config) { c.APIListen = "" })
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return b, data
}

func codeOf(err error) protocol.ErrorCode {
	if e, ok := errors.AsType[*protocol.APIError](err); ok {
		return e.Code
	}
	return ""
}

var carol, carolsBoss = api.Principal{User: "carol", Scopes: []api.Scope{api.ScopeJobs}}, api.Principal{User: "root", Scopes: []api.Scope{api.ScopeAdmin}}

// made makes a token of carol's.
func made(t *testing.T, b *Bridge, scope string) protocol.NewToken {
	t.Helper()
	token, err := b.MakeToken(t.Context(), carolsBoss, protocol.TokenRequest{User: "carol", Scopes: []string{scope}})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokensAreSeenAndRevokedByTheirUserAndAdminsOnly(t *testing.T) {
	b, _ := tokenBridge(t)
	ctx := t.Context()
	one, two := made(t, b, "jobs"), made(t, b, "admin")
	eve := api.Principal{User: "eve", Scopes: []api.Scope{api.ScopeJobs}}
	for who, want := range map[*api.Principal][]string{&carol: {one.ID, two.ID}, &carolsBoss: {one.ID, two.ID}, &eve: nil} {
		l, err := b.ListTokens(ctx, *who)
		if err != nil || l.Tokens == nil {
			t.Fatalf("%+v, %v", l, err)
		}
		var got []string
		for _, x := range l.Tokens {
			got = append(got, x.ID)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s sees %v, want %v", who.User, got, want)
		}
	}
	for _, c := range []struct {
		what string
		who  api.Principal
		id   string
		want protocol.ErrorCode
	}{
		{"somebody else's", eve, one.ID, protocol.CodeNotFound},
		{"one that may more", carol, two.ID, protocol.CodeForbidden},
		{"a part of an ID", carol, one.ID[:6], protocol.CodeNotFound},
		{"the user's own", carol, one.ID, ""},
		{"the same again", carol, one.ID, protocol.CodeConflict},
		{"an admin takes any", carolsBoss, two.ID, ""},
	} {
		if err := b.DropToken(ctx, c.who, c.id); codeOf(err) != c.want || (c.want == "") != (err == nil) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	if _, err := b.Authorize(ctx, one.Text); !errors.Is(err, api.ErrBadToken) {
		t.Errorf("the API takes a revoked token: %v", err)
	}
	if _, err := b.Beam().Tokens.Authenticate(ctx, one.Text); !errors.Is(err, beamapi.ErrUnauthenticated) {
		t.Errorf("Beam's face takes a revoked token: %v", err)
	}
	l, err := b.ListTokens(ctx, carol)
	if err != nil || len(l.Tokens) != 2 || l.Tokens[0].Revoked.IsZero() || l.Tokens[1].Revoked.IsZero() {
		t.Errorf("revoked tokens are listed as %+v, %v", l, err)
	}
}

func TestTheIDOfATokenIsTheBeginningOfItsHash(t *testing.T) {
	b, _ := tokenBridge(t)
	token := made(t, b, "invoke")
	sum := sha256.Sum256([]byte(token.Text))
	if want := hex.EncodeToString(sum[:])[:12]; token.ID != want {
		t.Errorf("the ID is %s, want %s", token.ID, want)
	}
	who, err := b.Beam().Tokens.Authenticate(t.Context(), token.Text)
	if err != nil || who.Role != beamapi.RoleInvoke || who.Workspace != "carol" || who.TokenID != token.ID {
		t.Errorf("Beam's face sees %+v, %v", who, err)
	}
	if who, err := b.Authorize(t.Context(), token.Text); err != nil || who.Can(api.ScopeJobs) || !who.Can(api.ScopeRead) {
		t.Errorf("the API sees %+v, %v", who, err)
	}
}

func TestTokensMadeBesideTheBridgeAreListedAndRevokedBeforeTheirFirstUse(t *testing.T) {
	b, data := tokenBridge(t)
	ctx := t.Context()
	token, err := CreateToken(data, protocol.TokenRequest{User: "carol", Name: "beside", Scopes: []string{"jobs"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, noise := range []string{"half", strings.Repeat("a", 64), strings.Repeat("b", 64) + ".1"} {
		if err := os.WriteFile(filepath.Join(data, inbox, noise), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := b.ListTokens(ctx, carol)
	if err != nil || len(l.Tokens) != 1 || l.Tokens[0].ID != token.ID || l.Tokens[0].Name != "beside" {
		t.Fatalf("listed %+v, %v", l, err)
	}
	if err := b.DropToken(ctx, carol, token.ID); err != nil {
		t.Fatal(err)
	}
	if b.TokenValid(ctx, token.Text) {
		t.Error("a token that was revoked before its first use is good")
	}
}

// TestALateTakerRevivesNoRevokedToken has the file of a token that is in the store already, as a crash leaves it or
// two first uses at one time do.
func TestALateTakerRevivesNoRevokedToken(t *testing.T) {
	b, data := tokenBridge(t)
	ctx := t.Context()
	token, err := CreateToken(data, protocol.TokenRequest{User: "carol", Scopes: []string{"jobs"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(token.Text))
	path := filepath.Join(data, inbox, hex.EncodeToString(hash[:]))
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.DropToken(ctx, carol, token.ID); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	row, err := b.takeToken(ctx, hash)
	if err != nil || row.Revoked.IsZero() {
		t.Errorf("taken as %+v, %v", row, err)
	}
	if b.TokenValid(ctx, token.Text) {
		t.Error("the revoked token is good again")
	}
}

func TestManyFirstUsesOfATokenAtOnceAreAllGood(t *testing.T) {
	b, data := tokenBridge(t)
	for range 10 {
		token, err := CreateToken(data, protocol.TokenRequest{User: "carol", Scopes: []string{"jobs"}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if _, err := b.Authorize(context.Background(), token.Text); err != nil {
					t.Errorf("a first use: %v", err)
				}
			})
		}
		group.Wait()
	}
}

// TestRevokingWhatIsGoneUndoesNothing has the revocation fail in the middle of a turn: the engine would undo what
// else the turn holds.
func TestRevokingWhatIsGoneUndoesNothing(t *testing.T) {
	b, _ := tokenBridge(t)
	if err := b.RevokeToken(t.Context(), [32]byte{1}); !errors.Is(err, store.ErrNotFound) || errors.Is(err, errNotNow) {
		t.Errorf("%v", err)
	}
}

func TestCreateTokenRefusesWhatNobodyCouldUse(t *testing.T) {
	data := t.TempDir()
	for want, c := range map[string]struct {
		data string
		req  protocol.TokenRequest
	}{
		"user":         {data, protocol.TokenRequest{User: "a b", Scopes: []string{"jobs"}}},
		"scope":        {data, protocol.TokenRequest{User: "ann", Scopes: []string{"all"}}},
		"1 to 4":       {data, protocol.TokenRequest{User: "ann"}},
		"no name":      {data, protocol.TokenRequest{User: "ann", Name: "a\nb", Scopes: []string{"jobs"}}},
		"no data dire": {filepath.Join(data, "typo"), protocol.TokenRequest{User: "ann", Scopes: []string{"jobs"}}},
	} {
		if _, err := CreateToken(c.data, c.req, time.Now()); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if left, err := os.ReadDir(data); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// certificate writes a certificate for 127.0.0.1 and its key.
func certificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool, sum string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile, roots = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots.AppendCertsFromPEM(text)
	for path, b := range map[string][]byte{certFile: text, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hash := sha256.Sum256(der)
	return certFile, keyFile, roots, hex.EncodeToString(hash[:])
}

func TestBothAddressesSpeakEverythingAndTLSWhereThereIsACertificate(t *testing.T) {
	certFile, keyFile, roots, sum := certificate(t)
	for scheme, change := range map[string]func(*Config){
		"http":  func(c *Config) { c.BeamListen = "127.0.0.1:0" },
		"https": func(c *Config) { c.BeamListen, c.TLSCert, c.TLSKey = "127.0.0.1:0", certFile, keyFile },
	} {
		b, s, end := realBridge(t, t.TempDir(), change)
		if (scheme == "https") != (s.TLS == sum) || scheme == "http" && s.TLS != "" {
			t.Errorf("%s: the certificate is told as %q", scheme, s.TLS)
		}
		if st, err := b.Status(t.Context()); err != nil || st.Beam != s.Beam || s.Beam == "" {
			t.Errorf("%s: the status says %q of %q, %v", scheme, st.Beam, s.Beam, err)
		}
		token := made(t, b, "read")
		for _, addr := range []string{s.API, s.Beam} {
			for _, path := range []string{protocol.APIPrefix + "/status", "/api/v1/health"} {
				transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+token.Text)
				resp, err := (&http.Client{Transport: transport}).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK || scheme == "https" && resp.ProtoMajor != 2 {
					t.Errorf("%s://%s%s: %s by %s", scheme, addr, path, resp.Status, resp.Proto)
				}
				transport.CloseIdleConnections()
			}
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	_, _, end := realBridge(t, t.TempDir(), func(c *Config) { c.TLSCert, c.TLSKey = certFile, certFile })
	if err := end(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), certFile) {
		t.Errorf("a certificate for its key: %v", err)
	}
}

// The address of an upload is good without its token, and only as long as that is.
func TestWhatATokenHasGivenOutEndsWithIt(t *testing.T) {
	b, _ := tokenBridge(t)
	face := b.Beam().Tokens
	full, invoke := made(t, b, "jobs"), made(t, b, "invoke")
	who, err := face.Authenticate(t.Context(), full.Text)
	if err != nil || face.StillGood(t.Context(), who) != nil {
		t.Fatalf("%+v, %v, still good: %v", who, err, face.StillGood(t.Context(), who))
	}
	less, elsewhere, nobody := who, who, who
	less.TokenID, elsewhere.Workspace, nobody.TokenID = invoke.ID, "dave", ""
	for what, p := range map[string]beamapi.Principal{"a token that may less": less, "a token of another workspace": elsewhere, "no token": nobody} {
		if err := face.StillGood(t.Context(), p); !errors.Is(err, beamapi.ErrUnauthenticated) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.RevokeToken(t.Context(), sha256.Sum256([]byte(full.Text))); err != nil {
		t.Fatal(err)
	}
	if err := face.StillGood(t.Context(), who); !errors.Is(err, beamapi.ErrUnauthenticated) {
		t.Errorf("after it was revoked: %v", err)
	}
}

// Who can be given credit can be given a token, and is found by both and by Beam's face.
func TestWhoeverHasCreditCanHaveAToken(t *testing.T) {
	b, data := tokenBridge(t)
	ctx := t.Context()
	for i, user := range []string{"ann@example.com", "team:ann", "a.b_c+d-e", strings.Repeat("x", protocol.MaxUser)} {
		a, err := b.Credit(ctx, carolsBoss, protocol.CreditRequest{User: user, AmountUUSD: 5, Source: "card", Ref: fmt.Sprint(i)})
		if err != nil || a.User != user || a.CreditUUSD != 5 {
			t.Errorf("credit of %q: %+v, %v", user, a, err)
		}
		req := protocol.TokenRequest{User: user, Scopes: []string{"jobs"}}
		made, err := b.MakeToken(ctx, carolsBoss, req)
		if err != nil {
			t.Fatalf("a token of %q: %v", user, err)
		}
		beside, err := CreateToken(data, req, time.Now())
		if err != nil {
			t.Fatalf("a token of %q beside the bridge: %v", user, err)
		}
		own, err := b.NewToken(ctx, user)
		if err != nil {
			t.Fatalf("a token of %q by the bridge: %v", user, err)
		}
		for _, text := range []string{made.Text, beside.Text, own} {
			who, err := b.Authorize(ctx, text)
			if err != nil || who.User != user {
				t.Errorf("a token of %q is %+v's, %v", user, who, err)
			}
			if a, err := b.Account(ctx, who); err != nil || a.CreditUUSD != 5 {
				t.Errorf("the account of %q: %+v, %v", user, a, err)
			}
			if p, err := b.Beam().Tokens.Authenticate(ctx, text); err != nil || p.Workspace != user {
				t.Errorf("the workspace of %q: %+v, %v", user, p, err)
			}
		}
	}
	for _, user := range []string{"", "..", "a b", "a/b", strings.Repeat("x", protocol.MaxUser+1)} {
		_, credit := b.Credit(ctx, carolsBoss, protocol.CreditRequest{User: user, AmountUUSD: 5, Source: "card", Ref: "bad"})
		_, token := b.MakeToken(ctx, carolsBoss, protocol.TokenRequest{User: user, Scopes: []string{"jobs"}})
		_, beside := CreateToken(data, protocol.TokenRequest{User: user, Scopes: []string{"jobs"}}, time.Now())
		_, own := b.NewToken(ctx, user)
		for what, err := range map[string]error{"credit": credit, "token": token, "token beside the bridge": beside, "token by the bridge": own} {
			var said *protocol.APIError
			if !errors.As(err, &said) || said.Field != "user" || !strings.Contains(err.Error(), "ann@example.com") {
				t.Errorf("%s of %q: %v", what, user, err)
			}
		}
	}
}
