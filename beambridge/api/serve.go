package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// ErrPlain means an address beyond this machine without TLS: tokens would cross the network readable.
var ErrPlain = errors.New("api: no TLS on an address beyond this machine")

// Bounds of an HTTP server that many strangers may reach.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 3 * time.Minute // longer than clients keep connections, so that they close first
	headerBytes   = 32 << 10
	shutdownGrace = 10 * time.Second
)

// HTTPServer returns a server with deadlines for headers and idle connections for h, which may hold more faces
// than this one; with Shutdown it ends this API's waits first.
func (s *Server) HTTPServer(h http.Handler) *http.Server {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytes,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	srv.RegisterOnShutdown(s.EndWaits)
	return srv
}

// Serve answers on ln until ctx ends, and then lets requests that are under way end. Without TLS it takes
// loopback addresses only (ErrPlain). Connections beyond Config.Conns and ConnsPerAddress, of all listeners together, are
// closed at once. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener, h http.Handler, tlsConfig *tls.Config) error {
	if tlsConfig == nil && !loopback(ln.Addr()) {
		_ = ln.Close()
		return fmt.Errorf("%w: %s; listen on 127.0.0.1, or give the bridge a certificate", ErrPlain, ln.Addr())
	}
	ln = bounded{ln, s.conns}
	if tlsConfig != nil {
		c := tlsConfig.Clone()
		c.MinVersion, c.NextProtos = tls.VersionTLS13, []string{"h2", "http/1.1"}
		ln = tls.NewListener(ln, c)
	}
	srv := s.HTTPServer(h)
	if s.cfg.Configure != nil {
		s.cfg.Configure(srv)
	}
	done := make(chan error, 1) // one word from the one goroutine
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving the API on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // what did not end in time is cut off
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the API on %s: %w", ln.Addr(), err)
	}
	return nil
}

func loopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}
