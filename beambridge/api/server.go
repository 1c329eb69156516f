package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Server answers the API. It is an http.Handler for paths under protocol.APIPrefix.
type Server struct {
	cfg     Config
	bridge  Bridge
	log     *slog.Logger
	mux     *http.ServeMux
	gate    *gate
	conns   *conns
	uploads chan struct{} // one token for each upload on its way in

	mu    sync.Mutex
	ended bool                             // EndWaits was called
	waits map[*context.CancelFunc]struct{} // of the waits and streams that are open
}

var _ http.Handler = (*Server)(nil)

// New makes a Server. It returns ErrConfig naming a field of cfg or bridge that is out of range or missing.
func New(cfg Config, bridge Bridge, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for name, part := range map[string]any{
		"Auth": bridge.Auth, "Jobs": bridge.Jobs, "Outcomes": bridge.Outcomes, "Volumes": bridge.Volumes, "Nodes": bridge.Nodes,
		"Money": bridge.Money, "System": bridge.System, "Tokens": bridge.Tokens,
	} {
		if part == nil {
			return nil, fmt.Errorf("%w: Bridge.%s is missing", ErrConfig, name)
		}
	}
	s := &Server{
		cfg: cfg, bridge: bridge, log: log, mux: http.NewServeMux(), gate: newGate(cfg, time.Now), conns: newConns(cfg, log, time.Now),
		uploads: make(chan struct{}, cfg.Uploads), waits: make(map[*context.CancelFunc]struct{}),
	}
	for _, r := range s.routes() {
		s.mux.Handle(r.method+" "+protocol.APIPrefix+r.path, s.serve(r))
	}
	s.mux.Handle("/", s.serve(route{handle: s.noSuchRoute}))
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// route is one method of one path.
type route struct {
	method, path string
	scope        Scope
	audit        string // what it does, where that changes something
	open         bool   // may stay open: not charged to the principal's rate
	handle       func(*call) error
}

func (s *Server) routes() []route {
	return []route{
		{"GET", "/status", ScopeRead, "", false, s.status},
		{"POST", "/modules", ScopeJobs, "put module", false, s.putModule},
		{"PUT", "/volumes/{name}", ScopeJobs, "put volume", false, s.putVolume},
		{"GET", "/volumes", ScopeRead, "", false, s.listVolumes},
		{"GET", "/volumes/{name}", ScopeRead, "", false, s.volume},
		{"POST", "/jobs", ScopeJobs, "submit job", false, s.submit},
		{"POST", "/jobs/validate", ScopeRead, "", false, s.validate},
		{"GET", "/jobs", ScopeRead, "", false, s.listJobs},
		{"GET", "/jobs/{id}", ScopeRead, "", false, s.job},
		{"GET", "/jobs/{id}/wait", ScopeRead, "", true, s.wait},
		{"GET", "/jobs/{id}/events", ScopeRead, "", true, s.events},
		{"POST", "/jobs/{id}/cancel", ScopeJobs, "cancel job", false, s.cancel},
		{"GET", "/jobs/{id}/logs", ScopeRead, "", true, s.logs},
		{"GET", "/jobs/{id}/explain", ScopeRead, "", false, s.explain},
		{"GET", "/jobs/{id}/results", ScopeRead, "", false, s.results},
		{"GET", "/jobs/{id}/statement", ScopeRead, "", false, s.statement},
		{"GET", "/nodes", ScopeRead, "", false, s.listNodes},
		{"GET", "/nodes/{peer}/reputation", ScopeRead, "", false, s.reputation},
		{"POST", "/tokens", ScopeJobs, "make token", false, s.makeToken},
		{"GET", "/tokens", ScopeRead, "", false, s.listTokens},
		{"DELETE", "/tokens/{id}", ScopeJobs, "revoke token", false, s.dropToken},
		{"GET", "/account", ScopeRead, "", false, s.account},
		{"POST", "/credit", ScopeAdmin, "post credit", false, s.credit},
	}
}

// call is one request on its way through a handler.
type call struct {
	r      *http.Request
	w      *answer
	who    Principal
	object string // what it is about, for the audit log
}

// answer is a ResponseWriter that knows what was sent and gives up on clients that do not read.
type answer struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	idle   time.Duration
	status int
}

// Unwrap is what http.ResponseController looks for.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer with a deadline of its own.
func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	_ = a.ctl.SetWriteDeadline(time.Now().Add(a.idle)) // a writer without deadlines has no network behind it
	return a.ResponseWriter.Write(b)
}

// flush sends what is buffered.
func (a *answer) flush() error { return a.ctl.Flush() }

// serve wraps a route: who may, how often, and what becomes of its error.
func (s *Server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		c := &call{r: r, w: &answer{ResponseWriter: w, ctl: http.NewResponseController(w), idle: s.cfg.WriteIdle}}
		_ = c.w.ctl.SetWriteDeadline(time.Time{}) // of the connection's last answer
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		err := s.run(rt, c)
		var sent *protocol.APIError
		if err != nil {
			sent = s.refuse(c, err)
		}
		if rt.audit != "" {
			verdict := "ok"
			if sent != nil {
				verdict = string(sent.Code)
			}
			s.log.Info("api call", "user", c.who.User, "action", rt.audit, "object", c.object, "verdict", verdict, "addr", r.RemoteAddr, "took", time.Since(started))
		}
		if sent != nil && c.w.status < 400 { // the failure came after the beginning of a success
			panic(http.ErrAbortHandler)
		}
	})
}

// run is the request itself; a panic becomes an error.
func (s *Server) run(rt route, c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("api handler panicked", "path", c.r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			err = &protocol.APIError{Code: protocol.CodeInternal, Text: "the bridge failed on this request", Fix: "its log says why"}
		}
	}()
	if c.who, err = s.admit(c.r); err != nil {
		return err
	}
	if rt.scope != "" && !c.who.Can(rt.scope) {
		return &protocol.APIError{
			Code: protocol.CodeForbidden, Text: fmt.Sprintf("this token may not %s %s: it lacks the scope %s", c.r.Method, c.r.URL.Path, rt.scope),
			Fix: "ask whoever runs the bridge for a token with it (`gridbeam bridge token create --scope " + string(rt.scope) + "`)",
		}
	}
	if !rt.open {
		if err := s.gate.charge(c.who.User); err != nil {
			return err
		}
	}
	return rt.handle(c)
}

// noSuchRoute tells a wrong path from a wrong method.
func (s *Server) noSuchRoute(c *call) error {
	for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
		probe := c.r.Clone(c.r.Context())
		probe.Method = m
		if _, pattern := s.mux.Handler(probe); pattern != "/" && m != c.r.Method {
			c.w.Header().Set("Allow", m)
			return &protocol.APIError{Code: protocol.CodeWrongMethod, Text: fmt.Sprintf("%s is not offered on %s", c.r.Method, c.r.URL.Path), Fix: "use " + m}
		}
	}
	return &protocol.APIError{
		Code: protocol.CodeNoSuchRoute, Text: fmt.Sprintf("%.200q is no path of this API", c.r.URL.Path),
		Fix: "the bridge may be older than the client: compare `gridbeam version` on both sides",
	}
}

// waiting returns the context of a wait or stream: it ends with the request or with EndWaits.
func (s *Server) waiting(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		cancel()
		return ctx, cancel
	}
	key := &cancel
	s.waits[key] = struct{}{}
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waits, key)
	}
}

// EndWaits ends every wait and stream, now and from now on, so that an http.Server can shut down: waits answer
// with the state as it is, and clients ask again when the bridge is back.
func (s *Server) EndWaits() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for cancel := range s.waits {
		(*cancel)()
	}
}
