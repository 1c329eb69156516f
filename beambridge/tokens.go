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
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
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

// CreateToken makes a bearer token of a bridge's API beside the bridge, for whoever may write its data directory:
// the bridge takes it over at its first use, and need not run now. The answer holds the token's text, which is kept
// nowhere. An empty user or scope of the request is refused: nobody asks here whose default it could be. It returns
// ErrConfig.
func CreateToken(data string, req protocol.TokenRequest, now time.Time) (protocol.NewToken, error) {
	if err := protocol.CheckUser(req.User); err != nil {
		return protocol.NewToken{}, fmt.Errorf("%w: token: %w", ErrConfig, err)
	}
	if err := api.CheckToken(req); err != nil {
		return protocol.NewToken{}, fmt.Errorf("%w: token: %w", ErrConfig, err)
	}
	if info, err := os.Stat(data); err != nil || !info.IsDir() {
		return protocol.NewToken{}, fmt.Errorf("%w: %s is no data directory of a bridge", ErrConfig, data)
	}
	text, row := freshToken(req.User, req.Name, req.Scopes, now.UTC())
	raw, err := json.Marshal(newToken{User: row.User, Name: row.Name, Scopes: row.Scopes, Created: row.Created})
	if err != nil {
		return protocol.NewToken{}, fmt.Errorf("encoding a token: %w", err)
	}
	dir := filepath.Join(data, inbox)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return protocol.NewToken{}, fmt.Errorf("making the directory for tokens: %w", err)
	}
	return protocol.NewToken{Token: publicToken(&row), Text: text}, writeFile(filepath.Join(dir, hex.EncodeToString(row.Hash[:])), raw)
}

// NewToken makes a token with every scope for a user, who is whoever runs the bridge, and returns its text.
func (b *Bridge) NewToken(ctx context.Context, user string) (string, error) {
	if err := protocol.CheckUser(user); err != nil {
		return "", fmt.Errorf("%w: token: %w", ErrConfig, err)
	}
	if err := b.running(); err != nil {
		return "", err
	}
	text, row := freshToken(user, "whoever runs the bridge", []string{string(api.ScopeAdmin)}, b.cfg.Clock())
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
func freshToken(user, name string, scopes []string, now time.Time) (string, store.Token) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails (Go 1.24)
	text := tokenPrefix + base64.RawURLEncoding.EncodeToString(secret[:])
	return text, store.Token{Hash: sha256.Sum256([]byte(text)), User: user, Name: name, Scopes: scopes, Created: now}
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
		row, err = b.takeToken(ctx, hash)
	}
	switch {
	case err != nil:
		return api.Principal{}, err
	case !row.Revoked.IsZero():
		return api.Principal{}, api.ErrBadToken
	}
	return principalOf(&row), nil
}

func principalOf(row *store.Token) api.Principal {
	who := api.Principal{User: row.User}
	for _, s := range row.Scopes {
		who.Scopes = append(who.Scopes, api.Scope(s))
	}
	return who
}

// takeToken moves a token from the inbox into the store, at its first use or when somebody looks for it. A row that
// is there already stays as it is: whoever was faster may have revoked the token since. It returns api.ErrBadToken.
func (b *Bridge) takeToken(ctx context.Context, hash [32]byte) (store.Token, error) {
	path := filepath.Join(b.cfg.Data, inbox, hex.EncodeToString(hash[:]))
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) { // never there, or taken a moment ago
		row, err := view(ctx, b, func(tx *store.Tx) (store.Token, error) { return tx.GetToken(hash) })
		if errors.Is(err, store.ErrNotFound) {
			err = api.ErrBadToken
		}
		return row, err
	}
	if err != nil {
		return store.Token{}, fmt.Errorf("reading a new token: %w", err)
	}
	var n newToken
	if err := json.Unmarshal(raw, &n); err != nil {
		return store.Token{}, fmt.Errorf("reading a new token: %w", err)
	}
	var row store.Token // what the store has, to be read only after a commit
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) (err error) {
			if row, err = tx.GetToken(hash); errors.Is(err, store.ErrNotFound) {
				row = store.Token{Hash: hash, User: n.User, Name: n.Name, Scopes: n.Scopes, Created: n.Created}
				err = tx.PutToken(row)
			}
			return err
		})
		return struct{}{}, nil
	})
	if err != nil {
		return store.Token{}, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return row, fmt.Errorf("taking a new token: %w", err)
	}
	return row, nil
}

// takeInbox moves every token of the inbox into the store. One that cannot be read is told in the log, and keeps
// nobody from the others.
func (b *Bridge) takeInbox(ctx context.Context) error {
	files, err := os.ReadDir(filepath.Join(b.cfg.Data, inbox))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading new tokens: %w", err)
	}
	for _, f := range files {
		var hash [32]byte
		raw, err := hex.DecodeString(f.Name())
		if err != nil || copy(hash[:], raw) != len(raw) || len(raw) != len(hash) {
			continue // one that is being written
		}
		switch _, err := b.takeToken(ctx, hash); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, api.ErrBadToken):
			b.log.Warn("a new token cannot be taken", "file", f.Name(), "err", err)
		}
	}
	return nil
}

// Tokens returns a user's tokens, also revoked and never used ones, without their text; an empty user is everybody.
func (b *Bridge) Tokens(ctx context.Context, user string) ([]store.Token, error) {
	if err := b.running(); err != nil {
		return nil, err
	}
	if err := b.takeInbox(ctx); err != nil {
		return nil, err
	}
	return view(ctx, b, func(tx *store.Tx) ([]store.Token, error) { return tx.Tokens(user) })
}

// RevokeToken takes a token back; requests that are under way may end. It returns store.ErrNotFound when there is no
// good token with the hash.
func (b *Bridge) RevokeToken(ctx context.Context, hash [32]byte) error {
	if err := b.running(); err != nil {
		return err
	}
	var missing error // to be read only after a commit
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			err := tx.RevokeToken(hash, t.now)
			if errors.Is(err, store.ErrNotFound) { // nothing was written: what else the turn holds goes on
				missing, err = err, nil
			}
			return err
		})
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	return missing
}

// MakeToken implements api.Tokens.
func (b *Bridge) MakeToken(ctx context.Context, _ api.Principal, req protocol.TokenRequest) (protocol.NewToken, error) {
	if err := b.running(); err != nil {
		return protocol.NewToken{}, err
	}
	if err := protocol.CheckUser(req.User); err != nil {
		return protocol.NewToken{}, err
	}
	text, row := freshToken(req.User, req.Name, req.Scopes, b.cfg.Clock())
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutToken(row) })
		return struct{}{}, nil
	})
	if err != nil {
		return protocol.NewToken{}, err
	}
	return protocol.NewToken{Token: publicToken(&row), Text: text}, nil
}

// StillGood implements beamapi.Tokens.
func (f beamFace) StillGood(ctx context.Context, who beamapi.Principal) error {
	if err := f.b.running(); err != nil {
		return beamError(err)
	}
	rows, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Token, error) { return tx.Tokens(who.Workspace) })
	if err != nil {
		return beamError(err)
	}
	for i := range rows {
		if rows[i].Revoked.IsZero() && rows[i].User == who.Workspace && tokenName(rows[i].Hash) == who.TokenID && principalOf(&rows[i]).Can(api.ScopeJobs) {
			return nil
		}
	}
	return beamapi.ErrUnauthenticated
}

// publicToken is a token without what could be used.
func publicToken(row *store.Token) protocol.Token {
	return protocol.Token{ID: tokenName(row.Hash), User: row.User, Name: row.Name, Scopes: row.Scopes, Created: row.Created, Revoked: row.Revoked}
}

// tokenName is what a token is called where its text may not be: the first 12 hex digits of its hash.
func tokenName(hash [32]byte) string { return hex.EncodeToString(hash[:6]) }

// tokensOf returns what a principal sees: its own tokens, an admin everybody's.
func (b *Bridge) tokensOf(ctx context.Context, who api.Principal) ([]store.Token, error) {
	if who.Can(api.ScopeAdmin) {
		return b.Tokens(ctx, "")
	}
	return b.Tokens(ctx, who.User)
}

// ListTokens implements api.Tokens.
func (b *Bridge) ListTokens(ctx context.Context, who api.Principal) (out protocol.TokenList, err error) {
	rows, err := b.tokensOf(ctx, who)
	out.Tokens = make([]protocol.Token, 0, len(rows))
	for i := range rows {
		out.Tokens = append(out.Tokens, publicToken(&rows[i]))
	}
	return out, err
}

// DropToken implements api.Tokens.
func (b *Bridge) DropToken(ctx context.Context, who api.Principal, id string) error {
	rows, err := b.tokensOf(ctx, who)
	if err != nil {
		return err
	}
	refused := &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("there is no token %.40q", id), Fix: "`gridbeam bridge token list` shows yours"}
	for i := range rows {
		row := &rows[i]
		switch {
		case tokenName(row.Hash) != id:
			continue
		case !row.Revoked.IsZero():
			refused = revokedAlready(id, row.Revoked)
			continue
		case slices.ContainsFunc(row.Scopes, func(s string) bool { return !who.Can(api.Scope(s)) }):
			return &protocol.APIError{Code: protocol.CodeForbidden, Text: "token " + id + " may more than the one that would revoke it", Fix: "ask an admin"}
		}
		err := b.RevokeToken(ctx, row.Hash)
		if errors.Is(err, store.ErrNotFound) { // somebody else was faster
			return revokedAlready(id, b.cfg.Clock())
		}
		return err
	}
	return refused
}

func revokedAlready(id string, at time.Time) *protocol.APIError {
	return &protocol.APIError{Code: protocol.CodeConflict, Text: fmt.Sprintf("token %s was revoked already, at %s", id, at.UTC().Format(time.RFC3339))}
}
