package store

import (
	"time"
)

// Token is a bearer token of the bridge's API; only its hash is kept.
type Token struct {
	Hash    [32]byte  // Hash is the SHA-256 of the token, the key.
	User    string    // User is who acts by it.
	Name    string    // Name tells a user's tokens apart.
	Scopes  []string  // Scopes are what it may do.
	Created time.Time // Created is when it was made.
	Revoked time.Time // Revoked is when it was taken back; zero while it is good.
}

const tokenColumns = "hash, user, name, scopes, created, revoked"

var (
	putToken = &query{`INSERT INTO tokens (` + tokenColumns + `) VALUES (?,?,?,?,?,?)
ON CONFLICT (hash) DO UPDATE SET user=excluded.user, name=excluded.name, scopes=excluded.scopes, created=excluded.created, revoked=excluded.revoked`}
	getToken    = &query{"SELECT " + tokenColumns + " FROM tokens WHERE hash=?"}
	listTokens  = &query{"SELECT " + tokenColumns + " FROM tokens WHERE ?1='' OR user=?1 ORDER BY user, created, hash"}
	revokeToken = &query{"UPDATE tokens SET revoked=? WHERE hash=? AND revoked=0"}
)

// PutToken inserts a token or replaces it by hash.
func (t *Tx) PutToken(x Token) error {
	return putAll(t, putToken, []Token{x}, func(a *args, x *Token) {
		a.hash(x.Hash)
		a.text(x.User)
		a.text(x.Name)
		a.texts("Token.Scopes", x.Scopes)
		a.time(x.Created)
		a.time(x.Revoked)
	})
}

func scanToken(r *row) Token {
	return Token{Hash: r.hash(), User: r.text(), Name: r.text(), Scopes: r.texts(), Created: r.time(), Revoked: r.time()}
}

// GetToken returns the token with a hash, also a revoked one, or ErrNotFound.
func (t *Tx) GetToken(hash [32]byte) (Token, error) {
	return one(t, getToken, scanToken, "token", "with this hash", hash[:])
}

// Tokens returns a user's tokens, revoked ones too, oldest first; an empty user is everybody.
func (t *Tx) Tokens(user string) ([]Token, error) {
	return collect(list(t, listTokens, scanToken, user))
}

// RevokeToken takes a token back; it returns ErrNotFound when there is no good one with the hash.
func (t *Tx) RevokeToken(hash [32]byte, at time.Time) error {
	n, err := t.write(revokeToken, func(a *args) { a.time(at); a.hash(hash) })
	if err == nil && n == 0 {
		err = notFound("token", "with this hash")
	}
	return err
}
