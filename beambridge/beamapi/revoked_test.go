package beamapi

import (
	"crypto/sha256"
	"net/netip"
	"testing"
	"time"
)

func TestARevokedTokenIsBarredWithItsAddress(t *testing.T) {
	cfg := DefaultConfig()
	now := time.Unix(1000, 0)
	cfg.Now = func() time.Time { return now }
	s := &Server{cfg: cfg, bads: map[netip.Prefix]*failures{}, goods: map[[sha256.Size]byte]time.Time{}}
	from := origin("192.0.2.1:1")
	good, revoked, guess := sha256.Sum256([]byte("good")), sha256.Sum256([]byte("revoked")), sha256.Sum256([]byte("guess"))
	s.noteGood(good)
	s.noteGood(revoked)
	for range cfg.BadTokens + 1 {
		s.noteBad(from, guess)
	}
	if s.barred(from, good) || s.barred(from, revoked) || !s.barred(from, guess) {
		t.Fatal("a token that was good lately is barred, or one that was not passes")
	}
	s.noteBad(from, revoked) // the bridge does not know it any more
	if s.barred(from, good) || !s.barred(from, revoked) {
		t.Error("a revoked token passes, or its revocation barred another")
	}
}
