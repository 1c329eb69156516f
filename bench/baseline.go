package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// bareTest builds the test binary of bench/bare once and returns its path.
func (b *bench) bareTest(ctx context.Context) (string, error) { return b.testBinary(ctx, "bench/bare") }

// bareHost starts a host of libp2p alone as a process and returns its address and how long it took to be ready.
func (b *bench) bareHost(ctx context.Context, name string, args ...string) (*child, string, time.Duration, error) {
	exe, err := b.bareTest(ctx)
	if err != nil {
		return nil, "", 0, err
	}
	p, err := spawn(name, b.dir, exe, append([]string{"-test.run", "^TestHost$", "-test.timeout", "0", "-serve"}, args...)...)
	if err != nil {
		return nil, "", 0, err
	}
	var ready struct{ Address string }
	took, err := p.awaitReady(ctx, &ready)
	if err != nil {
		p.kill()
		return nil, "", 0, err
	}
	return p, ready.Address, took, nil
}

// echo is a warm stream to a host in another process.
type echo struct {
	child  *child
	host   host.Host
	stream network.Stream
}

func (b *bench) newEcho(ctx context.Context) (e *echo, err error) {
	e = &echo{}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	var address string
	if e.child, address, _, err = b.bareHost(ctx, "echo"); err != nil {
		return nil, err
	}
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		return nil, fmt.Errorf("the address of the echo: %w", err)
	}
	if e.host, err = libp2p.New(libp2p.NoListenAddrs, libp2p.DisableIdentifyAddressDiscovery()); err != nil {
		return nil, fmt.Errorf("opening a bare host: %w", err)
	}
	if err := e.host.Connect(ctx, *info); err != nil {
		return nil, fmt.Errorf("dialling the echo: %w", err)
	}
	e.stream, err = e.host.NewStream(ctx, info.ID, "/echo/1.0.0")
	return e, err
}

// ask sends 256 bytes and waits until they are back.
func (e *echo) ask() (time.Duration, error) {
	var sent, got [256]byte
	began := time.Now()
	sent[0] = byte(began.UnixNano())
	if _, err := e.stream.Write(sent[:]); err != nil {
		return 0, fmt.Errorf("asking the echo: %w", err)
	}
	if _, err := io.ReadFull(e.stream, got[:]); err != nil {
		return 0, fmt.Errorf("hearing the echo: %w", err)
	}
	if sent != got {
		return 0, fmt.Errorf("%w: the echo says something else", errProof)
	}
	return time.Since(began), nil
}

func (e *echo) close() {
	if e.host != nil {
		_ = e.host.Close()
	}
	if e.child != nil {
		e.child.stop()
	}
}

// testBinary builds the test binary of a package once.
func (b *bench) testBinary(ctx context.Context, pkg string) (string, error) {
	path := filepath.Join(b.dir, filepath.Base(pkg)+".test")
	if b.built[path] {
		return path, nil
	}
	if err := b.goTool(ctx, nil, "test", "-c", "-o", path, "./"+pkg); err != nil {
		return "", err
	}
	b.built[path] = true
	return path, nil
}
