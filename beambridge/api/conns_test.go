package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// from is an address as a connection has it.
func from(s string) net.Addr {
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		panic(err)
	}
	return a
}

func TestConnectionsAreBoundedByAddressAndInAll(t *testing.T) {
	cfg := testConfig(t)
	cfg.Conns, cfg.ConnsPerAddress = 6, 2
	var said bytes.Buffer
	now := time.Unix(1000, 0)
	c := newConns(cfg, slog.New(slog.NewTextHandler(&said, nil)), func() time.Time { return now })
	open := map[string][]func(){}
	try := func(addr string, want bool) {
		t.Helper()
		release, ok := c.take(from(addr))
		if ok != want {
			t.Errorf("%s: let in %v", addr, ok)
		}
		if ok {
			open[addr] = append(open[addr], release)
		}
	}
	try("192.0.2.1:1", true)
	try("192.0.2.1:2", true)
	try("192.0.2.1:3", false) // a third of one address
	try("[::ffff:192.0.2.1]:3", false)
	try("192.0.2.2:1", true)
	try("[2001:db8::1]:1", true)
	try("[2001:db8::2]:1", true)
	try("[2001:db8::3]:1", false) // of one /64
	try("[2001:db8:0:1::3]:1", true)
	try("192.0.2.3:1", false) // all places are taken
	for range 3 {
		try("127.0.0.1:1", true) // but for this machine, which has its own
		try("[::1]:1", true)
	}
	try("127.0.0.9:1", false) // as many
	if n := strings.Count(said.String(), "too many are open"); n != 1 {
		t.Errorf("refused connections are told %d times in a minute: %s", n, said.String())
	}
	now = now.Add(tellEvery)
	try("192.0.2.1:3", false)
	if !strings.Contains(said.String(), "refused=5") {
		t.Errorf("what was refused since is not told: %s", said.String())
	}
	open["192.0.2.1:1"][0]()
	open["192.0.2.1:1"][0]() // a connection may be closed twice
	try("192.0.2.1:3", true)
	try("192.0.2.1:4", false)
	for _, all := range open {
		for _, release := range all {
			release()
		}
	}
	if c.local != 0 || c.remote != 0 || len(c.by) != 0 {
		t.Errorf("when all have gone %d, %d and %v are left", c.local, c.remote, c.by)
	}
}

// elsewhere is a listener whose connections seem to come from another machine.
type elsewhere struct{ net.Listener }

type far struct{ net.Conn }

func (far) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func (l elsewhere) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return far{c}, nil
}

// Both addresses of a bridge share one account, which connections leave when they are closed.
func TestConnectionsBeyondTheBoundAreClosedAtOnce(t *testing.T) {
	cfg := testConfig(t)
	cfg.ConnsPerAddress = 2
	s := newServer(t, cfg, newFake())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	var addrs []string
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, ln.Addr().String())
		go func() { done <- s.Serve(ctx, elsewhere{ln}, s, nil) }()
	}
	defer func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	}()
	dial := func(addr string) net.Conn {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	answers := func(c net.Conn) bool {
		_, err := io.WriteString(c, "GET "+protocol.APIPrefix+"/status HTTP/1.1\r\nHost: x\r\n\r\n")
		got := make([]byte, len("HTTP/1.1"))
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		return err == nil && string(got) == "HTTP/1.1"
	}
	first, second := dial(addrs[0]), dial(addrs[1])
	if !answers(first) || !answers(second) {
		t.Fatal("two connections are not both answered")
	}
	for _, addr := range addrs {
		if answers(dial(addr)) {
			t.Errorf("a third is answered at %s", addr)
		}
	}
	_ = first.Close()
	for deadline := time.Now().Add(20 * time.Second); !answers(dial(addrs[1])); { // its server notices by and by
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is not given to another")
		}
	}
}

func TestConnectionBoundsNameTheirField(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"Conns is out": func(c *Config) { c.Conns = 0 }, "ConnsPerAddress is out": func(c *Config) { c.ConnsPerAddress = 0 },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if err := cfg.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	cfg := testConfig(t)
	cfg.ConnsPerAddress = cfg.Conns + 1
	if err := cfg.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "ConnsPerAddress") {
		t.Errorf("more by address than in all: %v", err)
	}
}
