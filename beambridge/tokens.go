package beambridge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

const (
	// tokenPrefix begins every token, so that one is recognised where it does not belong.
	tokenPrefix = "gb_"
	// inbox is the directory in which new tokens wait until they are used first: a token can be made beside a
	// running bridge, which alone may open its store.
	inbox = "tokens"
)

var (
	_ api.Authorizer = (*Bridge)(nil)
	_ api.Tokens     = (*Bridge)(nil)
)

// newToken is a token that waits in the inbox: never the token itself, only its hash in the file's name.
type newToken struct {
	User    string    `json:"user"`
	Name    string    `json:"name"`
	Scopes  []string  `json:"scopes"`
	Created time.Time `json:"created"`
}

// userName is what a user may be called: accounts and volumes are kept under it.
var userName = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,128}$`)

// CreateToken makes a bearer token of a bridge's API for a user, and returns its text, which is kept nowhere.
// It works on the bridge's data directory, whether the bridge runs or not.
func CreateToken(data, user, name string, scopes []api.Scope, now time.Time) (string, error) {
	if !userName.MatchString(user) {
		return "", fmt.Errorf("%w: user %.80q; use letters, digits and . _ @ : + -", ErrConfig, user)
	}
	text, row := freshToken(user, name, scopes, now)
	raw, err := json.Marshal(newToken{User: user, Name: name, Scopes: row.Scopes, Created: now.UTC()})
	if err != nil {
		return "", fmt.Errorf("encoding a token: %w", err)
	}
	dir := filepath.Join(data, inbox)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the directory for tokens: %w", err)
	}
	return text, writeFile(tokenPath(data, text), raw)
}

func tokenPath(data, text string) string {
	sum := sha256.Sum256([]byte(text))
	return filepath.Join(data, inbox, hex.EncodeToString(sum[:]))
}

// NewToken makes a token with every scope for a user, who is whoever runs the bridge, and returns its text.
func (b *Bridge) NewToken(ctx context.Context, user string) (string, error) {
	if !userName.MatchString(user) {
		return "", fmt.Errorf("%w: user %.80q; use letters, digits and . _ @ : + -", ErrConfig, user)
	}
	if err := b.running(); err != nil {
		return "", err
	}
	text, row := freshToken(user, "whoever runs the bridge", []api.Scope{api.ScopeAdmin}, b.cfg.Clock())
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutToken(row) })
		return struct{}{}, nil
	})
	return text, err
}

// TokenValid says whether a token is good.
func (b *Bridge) TokenValid(ctx context.Context, text string) bool {
	_, err := b.Authorize(ctx, text)
	return err == nil
}

// freshToken makes a token.
func freshToken(user, name string, scopes []api.Scope, now time.Time) (string, store.Token) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails (Go 1.24)
	text := tokenPrefix + base64.RawURLEncoding.EncodeToString(secret[:])
	row := store.Token{Hash: sha256.Sum256([]byte(text)), User: user, Name: name, Created: now}
	for _, s := range scopes {
		row.Scopes = append(row.Scopes, string(s))
	}
	return text, row
}

// Authorize implements api.Authorizer.
func (b *Bridge) Authorize(ctx context.Context, token string) (api.Principal, error) {
	if err := b.running(); err != nil {
		return api.Principal{}, err
	}
	if !strings.HasPrefix(token, tokenPrefix) {
		return api.Principal{}, api.ErrBadToken
	}
	hash := sha256.Sum256([]byte(token))
	var row store.Token
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.GetToken(hash)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		row, err = b.takeToken(ctx, token, hash)
	}
	switch {
	case err != nil:
		return api.Principal{}, err
	case !row.Revoked.IsZero():
		return api.Principal{}, api.ErrBadToken
	}
	who := api.Principal{User: row.User}
	for _, s := range row.Scopes {
		who.Scopes = append(who.Scopes, api.Scope(s))
	}
	return who, nil
}

// takeToken moves a token from the inbox into the store at its first use.
func (b *Bridge) takeToken(ctx context.Context, text string, hash [32]byte) (row store.Token, err error) {
	path := tokenPath(b.cfg.Data, text)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return row, api.ErrBadToken
	}
	if err != nil {
		return row, fmt.Errorf("reading a new token: %w", err)
	}
	var t newToken
	if err := json.Unmarshal(raw, &t); err != nil {
		return row, fmt.Errorf("reading a new token: %w", err)
	}
	row = store.Token{Hash: hash, User: t.User, Name: t.Name, Scopes: t.Scopes, Created: t.Created}
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutToken(row) })
		return struct{}{}, nil
	})
	if err != nil {
		return row, err
	}
	return row, os.Remove(path)
}

// Tokens returns a user's tokens, without their text; an empty user is everybody.
func (b *Bridge) Tokens(ctx context.Context, user string) (rows []store.Token, err error) {
	if err := b.running(); err != nil {
		return nil, err
	}
	err = b.store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Tokens(user)
		return err
	})
	return rows, err
}

// RevokeToken takes a token back; requests that are under way may end. It returns store.ErrNotFound.
func (b *Bridge) RevokeToken(ctx context.Context, hash [32]byte) error {
	if err := b.running(); err != nil {
		return err
	}
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.RevokeToken(hash, t.now) })
		return struct{}{}, nil
	})
	return err
}

// MakeToken implements api.Tokens.
func (b *Bridge) MakeToken(ctx context.Context, _ api.Principal, req protocol.TokenRequest) (protocol.NewToken, error) {
	if err := b.running(); err != nil {
		return protocol.NewToken{}, err
	}
	if !userName.MatchString(req.User) {
		return protocol.NewToken{}, &protocol.APIError{Code: protocol.CodeBadRequest, Field: "user", Text: fmt.Sprintf("%.80q is no user", req.User), Fix: "use letters, digits and . _ + -"}
	}
	scopes := make([]api.Scope, len(req.Scopes))
	for i, s := range req.Scopes {
		scopes[i] = api.Scope(s)
	}
	text, row := freshToken(req.User, req.Name, scopes, b.cfg.Clock())
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutToken(row) })
		return struct{}{}, nil
	})
	return protocol.NewToken{Token: publicToken(&row), Text: text}, err
}

// publicToken is a token without what could be used.
func publicToken(row *store.Token) protocol.Token {
	return protocol.Token{ID: hex.EncodeToString(row.Hash[:6]), User: row.User, Name: row.Name, Scopes: row.Scopes, Created: row.Created, Revoked: row.Revoked}
}

// ListTokens implements api.Tokens.
func (b *Bridge) ListTokens(ctx context.Context, who api.Principal) (out protocol.TokenList, err error) {
	user := who.User
	if who.Can(api.ScopeAdmin) {
		user = ""
	}
	rows, err := b.Tokens(ctx, user)
	out.Tokens = make([]protocol.Token, 0, len(rows))
	for i := range rows {
		out.Tokens = append(out.Tokens, publicToken(&rows[i]))
	}
	return out, err
}

// DropToken implements api.Tokens.
func (b *Bridge) DropToken(ctx context.Context, who api.Principal, id string) error {
	user := who.User
	if who.Can(api.ScopeAdmin) {
		user = ""
	}
	rows, err := b.Tokens(ctx, user)
	if err != nil {
		return err
	}
	for i := range rows {
		if rows[i].Revoked.IsZero() && hex.EncodeToString(rows[i].Hash[:6]) == id {
			return b.RevokeToken(ctx, rows[i].Hash)
		}
	}
	return &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("there is no good token %.40q", id), Fix: "`gridbeam bridge token list` shows yours"}
}
