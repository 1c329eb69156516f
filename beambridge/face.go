package beambridge

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// faces are the sockets that people's programs connect to; nil for none. Each speaks everything.
type faces struct {
	api, beam net.Listener
	tls       *tls.Config // nil is plain
	pin       string      // SHA-256 of the certificate, in hex
}

func (b *Bridge) listenAPI(ctx context.Context) (l faces, err error) {
	if b.cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(b.cfg.TLSCert, b.cfg.TLSKey)
		if err != nil {
			return l, fmt.Errorf("%w: TLSCert %s and TLSKey %s are no certificate with its key: %w", ErrConfig, b.cfg.TLSCert, b.cfg.TLSKey, err)
		}
		sum := sha256.Sum256(cert.Certificate[0])
		l.tls, l.pin = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, hex.EncodeToString(sum[:])
	}
	for _, f := range []struct {
		what, addr string
		to         *net.Listener
	}{{"the API", b.cfg.APIListen, &l.api}, {"Beam's gateway", b.cfg.BeamListen, &l.beam}} {
		if f.addr == "" {
			continue
		}
		if *f.to, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.addr); err != nil {
			if l.api != nil {
				err = errors.Join(err, l.api.Close())
			}
			return faces{}, fmt.Errorf("%w: %s cannot listen on %s: %w; another bridge may be running, or give another address with --api and --beam", p2p.ErrListen, f.what, f.addr, err)
		}
	}
	if l.beam != nil {
		b.beamAt.Store(l.beam.Addr().String())
	}
	return l, nil
}

// beamAddr is where Beam's gateway listens, empty for nowhere.
func (b *Bridge) beamAddr() string {
	if a, ok := b.beamAt.Load().(string); ok {
		return a
	}
	return ""
}

// serveAPI answers HTTP and gRPC until ctx is done.
func (b *Bridge) serveAPI(ctx context.Context, l faces) error {
	if l.api == nil && l.beam == nil {
		<-ctx.Done()
		return nil
	}
	srv, mux, err := b.handlers(ctx)
	if err != nil {
		for _, ln := range []net.Listener{l.api, l.beam} {
			if ln != nil {
				err = errors.Join(err, ln.Close())
			}
		}
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, ln := range []net.Listener{l.api, l.beam} {
		if ln != nil {
			g.Go(func() error { return srv.Serve(gctx, ln, mux, l.tls) })
		}
	}
	return g.Wait()
}

// handlers are the bridge's own API and Beam's, under one roof.
func (b *Bridge) handlers(ctx context.Context) (*api.Server, http.Handler, error) {
	spool := filepath.Join(b.cfg.Data, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the directory for uploads: %w", err)
	}
	cfg := api.DefaultConfig(spool)
	cfg.Rate, cfg.Configure = b.cfg.APIRate, beamapi.ConfigureServer
	cfg.Conns, cfg.ConnsPerAddress = b.cfg.Conns, b.cfg.ConnsPerAddress
	own, err := api.New(cfg, b.Face(), b.log)
	if err != nil {
		return nil, nil, err
	}
	bc := beamapi.DefaultConfig()
	bc.Now = b.cfg.Clock
	bc.Draining = func() bool { return ctx.Err() != nil }
	beam, err := beamapi.New(bc, b.Beam(), b.log)
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(protocol.APIPrefix+"/", own)
	mux.Handle("/", beam)
	return own, mux, nil
}
