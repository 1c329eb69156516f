package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/gridbeam/gridbeam/protocol"
)

// gate counts what addresses and principals do.
type gate struct {
	rate     rate.Limit
	burst    int
	failures int
	now      func() time.Time

	mu    sync.Mutex
	addrs map[netip.Prefix]*failed
	rates map[string]*rate.Limiter
	good  map[[sha256.Size]byte]time.Time // tokens that were good lately, by hash
}

// failed counts the bad tokens of an address in the minute since.
type failed struct {
	since time.Time
	count int
}

// Bounds of the gate's memory; beyond, what is oldest or idle is forgotten.
const (
	maxGateEntries = 10_000
	failureWindow  = time.Minute
	goodFor        = 10 * time.Minute
)

func newGate(cfg Config, now func() time.Time) *gate {
	limit := rate.Limit(cfg.Rate)
	if cfg.Rate == 0 {
		limit = rate.Inf
	}
	return &gate{
		rate: limit, burst: cfg.Burst, failures: cfg.AuthFailures, now: now,
		addrs: make(map[netip.Prefix]*failed), rates: make(map[string]*rate.Limiter), good: make(map[[sha256.Size]byte]time.Time),
	}
}

// origin is what failures are counted by: an IPv4 address, or the /64 that one IPv6 host has to itself.
func origin(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// admit turns the request's bearer token into a principal.
func (s *Server) admit(r *http.Request) (Principal, error) {
	from := origin(r.RemoteAddr)
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	hash := sha256.Sum256([]byte(token))
	if wait := s.gate.barred(from, hash); wait > 0 {
		return Principal{}, limited("too many bad tokens from this address", wait)
	}
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > 512 {
		s.gate.fail(from)
		return Principal{}, unauthorized("this request has no bearer token")
	}
	who, err := s.bridge.Auth.Authorize(r.Context(), token)
	switch {
	case errors.Is(err, ErrBadToken):
		s.gate.fail(from)
		s.gate.forgetToken(hash) // it may have been revoked by whatever way
		s.log.Warn("api refused a token", "addr", r.RemoteAddr)
		return Principal{}, unauthorized("the token is not known here, or was revoked")
	case err != nil:
		return Principal{}, err
	}
	s.gate.remember(hash)
	return who, nil
}

func unauthorized(text string) error {
	return &protocol.APIError{
		Code: protocol.CodeUnauthorized, Text: text,
		Fix: "make a token with `gridbeam bridge token create` on the bridge's machine and pass it as --token or GRIDBEAM_TOKEN",
	}
}

func limited(text string, wait time.Duration) error {
	return &protocol.APIError{Code: protocol.CodeLimited, Text: text, Fix: "wait and try again", RetryMS: max(1, wait.Milliseconds())}
}

// barred says how long an address with too many failures has to wait. A token that was good lately passes, so
// that nobody on the same address locks its owner out.
func (g *gate) barred(from netip.Prefix, token [sha256.Size]byte) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, now := g.addrs[from], g.now()
	if f == nil || f.count < g.failures {
		return 0
	}
	if at, ok := g.good[token]; ok && now.Sub(at) < goodFor {
		return 0
	}
	return max(0, failureWindow-now.Sub(f.since))
}

func (g *gate) fail(from netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	f := g.addrs[from]
	if f == nil || now.Sub(f.since) >= failureWindow {
		forget(g.addrs, func(f *failed) bool { return now.Sub(f.since) >= failureWindow })
		f = &failed{since: now}
		g.addrs[from] = f
	}
	f.count++
}

func (g *gate) remember(token [sha256.Size]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	forget(g.good, func(at time.Time) bool { return now.Sub(at) >= goodFor })
	g.good[token] = now
}

// forgetToken ends what a token had for having been good.
func (g *gate) forgetToken(token [sha256.Size]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.good, token)
}

// revoked forgets the tokens whose hash begins with these hex digits, so that none passes where its address is barred.
func (g *gate) revoked(id string) {
	begin, err := hex.DecodeString(id)
	if err != nil || len(begin) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for token := range g.good {
		if bytes.HasPrefix(token[:], begin) {
			delete(g.good, token)
		}
	}
}

// charge takes one request off a principal's allowance.
func (g *gate) charge(user string) error {
	if g.rate == rate.Inf {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	l := g.rates[user]
	if l == nil {
		forget(g.rates, func(l *rate.Limiter) bool { return l.TokensAt(now) >= float64(g.burst) })
		l = rate.NewLimiter(g.rate, g.burst)
		g.rates[user] = l
	}
	if l.AllowN(now, 1) {
		return nil
	}
	return limited("too many requests at once", time.Duration(float64(time.Second)/float64(g.rate)))
}

// forget makes room in a full map: first what is idle, then anything, so much at once that the next time is far.
func forget[K comparable, V any](m map[K]V, idle func(V) bool) {
	if len(m) < maxGateEntries {
		return
	}
	for k, v := range m {
		if idle(v) {
			delete(m, k)
		}
	}
	for k := range m {
		if len(m) <= maxGateEntries*9/10 {
			return
		}
		delete(m, k)
	}
}
