package beamapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/picklescan"
)

// ErrConfig means that a field of the configuration cannot be used; the text names it.
var ErrConfig = errors.New("beamapi: bad configuration")

// Bounds of the wire (beam-interface.md 2).
const (
	maxMessage   = 16 << 20 // the SDK's own limit, each way
	maxArgs      = 15 << 20
	maxResult    = 15 << 20
	maxStreams   = 16384 // a map opens a stream for each input
	maxHealth    = 4 << 10
	maxHeader    = 64 << 10
	headerWithin = 10 * time.Second
	pingAfter    = 20 * time.Second
	pingWithin   = 10 * time.Second
	maxJSON      = maxMessage * 3 / 2 // base64 of a message
)

// Config says how the face is reached.
type Config struct {
	// URL is what clients are told to call, such as http://127.0.0.1:1994, without a slash at its end. Default empty:
	// each caller is told the address that it called.
	URL string
	// BadTokens is how many bad tokens an address may show in a minute. Default 10 (trust.md 4).
	BadTokens int
	// Draining, if not nil, says that nothing new is taken any more.
	Draining func() bool
	// Gate judges results before clients unpickle them. Default picklescan.Check.
	Gate Gate
	// Now tells the time. Default time.Now.
	Now func() time.Time
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{BadTokens: 10, Now: time.Now, Gate: func(result []byte, allow []string, all bool) error {
		return picklescan.Check(result, picklescan.Options{Allow: allow, Any: all})
	}}
}

// Server answers Beam's clients: gRPC and JSON. It is an http.Handler for every path that is Beam's.
type Server struct {
	cfg    Config
	bridge Bridge
	log    *slog.Logger
	mux    *http.ServeMux
	secret [32]byte // signs the addresses of uploads
	judges judges

	mu    sync.Mutex
	bads  map[netip.Prefix]*failures
	goods map[[sha256.Size]byte]time.Time // tokens that were good lately, by hash
}

// failures counts the bad tokens of an address in the minute since.
type failures struct {
	since time.Time
	count int
}

// New makes a Server. It returns ErrConfig naming what is missing.
func New(cfg Config, bridge Bridge, log *slog.Logger) (*Server, error) {
	for name, there := range map[string]bool{
		"Config.Gate": cfg.Gate != nil, "Config.Now": cfg.Now != nil, "Config.BadTokens": cfg.BadTokens > 0, "Bridge.Tokens": bridge.Tokens != nil, "Bridge.Objects": bridge.Objects != nil,
		"Bridge.Stubs": bridge.Stubs != nil, "Bridge.Lifecycle": bridge.Lifecycle != nil, "Bridge.Calls": bridge.Calls != nil, "Bridge.Volumes": bridge.Volumes != nil,
	} {
		if !there {
			return nil, fmt.Errorf("%w: %s is missing", ErrConfig, name)
		}
	}
	s := &Server{cfg: cfg, bridge: bridge, log: log, judges: newJudges(runtime.GOMAXPROCS(0)), mux: http.NewServeMux(), bads: map[netip.Prefix]*failures{}, goods: map[[sha256.Size]byte]time.Time{}}
	_, _ = rand.Read(s.secret[:]) // never fails
	s.routes()
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// ConfigureServer gives a server the protocols and bounds that Beam's clients need: HTTP/1.1 and HTTP/2, in clear too,
// thousands of streams on one connection, and windows that a whole message fits.
func ConfigureServer(srv *http.Server) {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	srv.Protocols = &p
	srv.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingWithin, MaxReceiveBufferPerConnection: 4<<20 - 1, MaxReceiveBufferPerStream: 4<<20 - 1,
	}
	srv.MaxHeaderBytes = max(srv.MaxHeaderBytes, maxHeader)
	srv.ReadHeaderTimeout = cmp.Or(srv.ReadHeaderTimeout, headerWithin)
}

// origin is what failures are counted by: an IPv4 address, or the /64 that one IPv6 host has to itself.
func origin(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the bits fit the address
	return p
}

const (
	// maxBads bounds the addresses that are remembered, and the tokens.
	maxBads = 10_000
	// goodFor is how long a good token is looked at although its address is barred.
	goodFor = 10 * time.Minute
)

// barred says that an address has shown too many bad tokens within a minute. A token that was good lately is looked at all
// the same, so that nobody on the same address locks its owner out.
func (s *Server) barred(from netip.Prefix, token [sha256.Size]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, now := s.bads[from], s.cfg.Now()
	if f == nil || now.Sub(f.since) >= time.Minute || f.count <= s.cfg.BadTokens {
		return false
	}
	at, ok := s.goods[token]
	return !ok || now.Sub(at) >= goodFor
}

// noteGood remembers a good token by its hash.
func (s *Server) noteGood(token [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.goods) >= maxBads {
		clear(s.goods)
	}
	s.goods[token] = s.cfg.Now()
}

// noteBad counts a bad token of an address; one that was good before has been revoked.
func (s *Server) noteBad(from netip.Prefix, token [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.goods, token)
	now := s.cfg.Now()
	f := s.bads[from]
	if f == nil || now.Sub(f.since) >= time.Minute {
		if len(s.bads) >= maxBads {
			clear(s.bads)
		}
		f = &failures{since: now}
		s.bads[from] = f
	}
	f.count++
}

// roleRank orders the roles by what they may do.
var roleRank = map[Role]int{RoleRead: 1, RoleInvoke: 2, RoleFull: 3}

var roleText = map[Role]string{RoleRead: "only looks", RoleInvoke: "may call and read, not change what is there"}

// authenticate finds out who calls; query says that the token may stand in the address.
func (s *Server) authenticate(ctx context.Context, h http.Header, remote, query string, least Role) (Principal, *connect.Error) {
	from := origin(remote)
	token, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	if !ok {
		token = query
	}
	hash := sha256.Sum256([]byte(token))
	if s.barred(from, hash) {
		return Principal{}, connect.NewError(connect.CodeResourceExhausted, errors.New("too many bad tokens from this address; wait a minute"))
	}
	if token == "" {
		return Principal{}, connect.NewError(connect.CodeUnauthenticated, errors.New("no token: set BETA9_TOKEN to one that `gridbeam bridge token create` makes"))
	}
	who, err := s.bridge.Tokens.Authenticate(ctx, token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		s.noteBad(from, hash)
		return Principal{}, connect.NewError(connect.CodeUnauthenticated, errors.New("the token is not known here; `gridbeam bridge token create` makes one"))
	case err != nil:
		return Principal{}, s.failure(err)
	}
	s.noteGood(hash)
	switch {
	case who.Role == RoleTask:
		return Principal{}, connect.NewError(connect.CodePermissionDenied, errors.New("this token is one task's own: it reports that task and does nothing else"))
	case roleRank[who.Role] < roleRank[least]:
		return Principal{}, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("this token %s; `gridbeam bridge token create` makes one that may do more", roleText[who.Role]))
	}
	return who, nil
}

// failure is an error as a status: what the bridge's inside says in an unexpected one is logged and not sent.
func (s *Server) failure(err error) *connect.Error {
	var refusal *Refusal
	var known *connect.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &refusal):
		return connect.NewError(connect.CodeUnknown, refusal) // the only status whose text the SDK prints
	case errors.Is(err, ErrNotFound):
		return connect.NewError(connect.CodeNotFound, errors.New("not found"))
	case errors.Is(err, ErrBusy):
		return connect.NewError(connect.CodeResourceExhausted, errors.New("too many calls wait already"))
	case errors.Is(err, ErrInactive):
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("the deployment is not active"))
	case errors.Is(err, ErrUnavailable):
		return connect.NewError(connect.CodeUnavailable, errors.New("the bridge is going down or coming up; try again"))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	s.log.Error("a call of a Beam client failed", "err", err)
	return connect.NewError(connect.CodeUnknown, errors.New("the bridge failed; its log says why"))
}

// said is the text of an error for an answer with ok = false, empty for none; what cannot be told so is returned.
func (s *Server) said(err error, what string) (string, error) {
	var refusal *Refusal
	switch {
	case err == nil:
		return "", nil
	case errors.As(err, &refusal):
		return refusal.Text, nil
	case errors.Is(err, ErrNotFound):
		return what + " is not found", nil
	case errors.Is(err, ErrInactive):
		return what + " is not active", nil
	}
	return "", s.failure(err)
}

// draining is the status of a bridge that takes nothing new.
func (s *Server) draining() error {
	if s.cfg.Draining != nil && s.cfg.Draining() {
		return ErrUnavailable
	}
	return nil
}

// base is the address that a caller is told.
func (s *Server) base(r *http.Request) string {
	if s.cfg.URL != "" {
		return s.cfg.URL
	}
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	host := r.Host
	if host == "" {
		host = net.JoinHostPort("127.0.0.1", "1994")
	}
	return scheme + host
}
