package p2p

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
)

// hostile returns a plain libp2p host that is connected to h and bound by no manners.
func hostile(t *testing.T, h *Host) host.Host {
	t.Helper()
	bad, err := libp2p.New(libp2p.NoListenAddrs, libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bad.Close() })
	if err := bad.Connect(context.Background(), h.AddrInfo()); err != nil {
		t.Fatal(err)
	}
	return bad
}

func rawStream(t *testing.T, from host.Host, to *Host, send []byte) network.Stream {
	t.Helper()
	s, err := from.NewStream(context.Background(), to.ID(), protocol.ProtoClaim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(send); err != nil {
		t.Fatal(err)
	}
	return s
}

func impatient(c *Config) {
	c.HeaderTimeout = 100 * time.Millisecond
	c.MinRate = 64 << 10
}

func serving(t *testing.T, change ...func(*Config)) *Host {
	t.Helper()
	h := start(t, change...)
	if err := h.Handle(protocol.ProtoClaim, echo); err != nil {
		t.Fatal(err)
	}
	return h
}

// answerTo reads all that comes back until the stream ends, within 5 s.
func answerTo(t *testing.T, s network.Stream) []byte {
	t.Helper()
	if err := s.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		t.Fatal("the stream was not ended within 5 s")
	}
	return got
}

func frame(k kind, n uint32, body []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, n), byte(k)), body...)
}

func TestAnOversizedFrameIsRefusedBeforeItsBody(t *testing.T) {
	h := serving(t)
	bad := hostile(t, h)
	for _, n := range []uint32{protocol.MaxFrame + 1, 1 << 31, 1<<32 - 1} {
		got := answerTo(t, rawStream(t, bad, h, frame(kindMessage, n, nil)))
		if len(got) < headerSize+2 || kind(got[4]) != kindError || Code(binary.BigEndian.Uint16(got[headerSize:])) != CodeTooLarge {
			t.Errorf("frame of %d bytes: answered %q", n, got)
		}
	}
}

func TestAPeerThatStopsInsideAFrameIsDropped(t *testing.T) {
	cases := map[string][]byte{
		"no frame at all":   {},
		"half a header":     {0, 0},
		"no body":           frame(kindMessage, 100, nil),
		"a body cut short":  frame(kindMessage, 100_000, bytes.Repeat([]byte{1}, 9000)),
		"an unknown kind":   frame(9, 0, nil),
		"a goodbye with us": frame(kindGoodbye, 3, []byte("bye")),
	}
	for name, send := range cases {
		t.Run(name, func(t *testing.T) {
			h := serving(t, impatient)
			bad := hostile(t, h)
			s := rawStream(t, bad, h, send)
			answerTo(t, s)
			eventually(t, "the handler has ended", func() bool {
				h.mu.Lock()
				defer h.mu.Unlock()
				return len(h.open) == 0
			})
		})
	}
}

func TestASlowBodyIsDroppedThoughItNeverStops(t *testing.T) {
	h := serving(t, impatient)
	bad := hostile(t, h)
	s := rawStream(t, bad, h, frame(kindMessage, 1<<20, nil))
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = io.Copy(io.Discard, s) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for { // 100 bytes a second; 64 KiB are asked for
		select {
		case <-ended:
			return
		case <-tick.C:
			if _, err := s.Write([]byte{1}); err != nil {
				return
			}
		case <-deadline:
			t.Fatal("a body below the minimum rate was waited for")
		}
	}
}

func TestStreamsOfOnePeerAreBounded(t *testing.T) {
	h := serving(t)
	bad := hostile(t, h)
	limit := h.cfg.Protocols[protocol.ProtoClaim].StreamsPerPeer
	served := 0
	for range 4 * limit {
		s, err := bad.NewStream(context.Background(), h.ID(), protocol.ProtoClaim)
		if err != nil {
			continue
		}
		_, _ = s.Write(frame(kindMessage, 1, []byte{7}))
		_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(s, make([]byte, headerSize+1)); err == nil {
			served++
		}
	}
	if served == 0 || served > limit {
		t.Errorf("%d streams served at once, limit %d", served, limit)
	}
	other := start(t)
	connect(t, other, h)
	if _, err := other.Call(context.Background(), h.ID(), protocol.ProtoClaim, []byte("x")); err != nil {
		t.Errorf("an honest peer meanwhile: %v", err)
	}
}

func TestMemoryOfOnePeerIsBounded(t *testing.T) {
	h := serving(t, func(c *Config) { c.PeerMemory = 4 << 20 })
	bad := hostile(t, h)
	refused := 0
	for range 16 { // each announces 1 MiB and sends half of it
		s := rawStream(t, bad, h, frame(kindMessage, 1<<20, nil))
		go func() { _, _ = s.Write(make([]byte, 1<<19)) }()
		_ = s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		head := make([]byte, headerSize+2)
		if _, err := io.ReadFull(s, head); err == nil && Code(binary.BigEndian.Uint16(head[headerSize:])) == CodeBusy {
			refused++
		}
	}
	if refused < 10 {
		t.Errorf("%d of 16 frames refused, 4 MiB hold at most 4", refused)
	}
	other := start(t)
	connect(t, other, h)
	if _, err := other.Call(context.Background(), h.ID(), protocol.ProtoClaim, make([]byte, 1<<19)); err != nil {
		t.Errorf("an honest peer meanwhile: %v", err)
	}
}

func TestOnlyEd25519PeersCompleteTheHandshake(t *testing.T) {
	h := serving(t)
	other := map[string]func() (crypto.PrivKey, crypto.PubKey, error){
		"RSA":       func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateRSAKeyPair(2048, rand.Reader) },
		"secp256k1": func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateSecp256k1Key(rand.Reader) },
		"ECDSA":     func() (crypto.PrivKey, crypto.PubKey, error) { return crypto.GenerateECDSAKeyPair(rand.Reader) },
	}
	for name, make := range other {
		key, _, err := make()
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range h.Host().Addrs() { // QUIC and TCP
			bad, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err = bad.Connect(ctx, peer.AddrInfo{ID: h.ID(), Addrs: []multiaddr.Multiaddr{addr}})
			if err == nil { // over QUIC the dialler can be ahead of the refusal
				_, err = bad.NewStream(ctx, h.ID(), protocol.ProtoClaim)
			}
			if err == nil || h.Connected(bad.ID()) {
				t.Errorf("%s over %s: connected", name, addr)
			}
			if err := h.Connect(ctx, peer.AddrInfo{ID: bad.ID(), Addrs: bad.Addrs()}); !errors.Is(err, ErrKeyType) {
				t.Errorf("dialling %s: %v, want ErrKeyType", name, err)
			}
			cancel()
			_ = bad.Close()
		}
	}
}

func TestAPeerUnderAnotherKeyThanExpectedIsRefused(t *testing.T) {
	a, b := start(t), start(t)
	wrong, err := peer.IDFromPrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Connect(context.Background(), peer.AddrInfo{ID: wrong, Addrs: b.Host().Addrs()}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("connecting to an address under a wrong ID: %v", err)
	}
	if a.Connected(wrong) || a.Connected(b.ID()) {
		t.Error("connected all the same")
	}
}

func TestAnAddressInUseIsSaidInOneSentence(t *testing.T) {
	h := start(t)
	for _, addr := range h.Host().Addrs() {
		cfg := LoopbackConfig()
		cfg.Listen = append(cfg.Listen, addr)
		second, err := New(cfg, newKey(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = second.Open(context.Background())
		if !errors.Is(err, ErrListen) || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), addr.String()) {
			t.Errorf("%s: %v", addr, err)
		}
		if second.Host() != nil {
			t.Error("the host stayed open")
		}
	}
	cfg := LoopbackConfig()
	cfg.Listen = []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/203.0.113.7/tcp/4001")}
	second, err := New(cfg, newKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Open(context.Background()); !errors.Is(err, ErrListen) {
		t.Errorf("a foreign address: %v", err)
	}
}

func TestConfigValidateNamesTheField(t *testing.T) {
	for field, spoil := range map[string]func(*Config){
		"Reach": func(c *Config) { c.Reach = 9 }, "MDNSService": func(c *Config) { c.MDNS, c.MDNSService = true, "" },
		"Connections": func(c *Config) { c.Connections = 0 }, "Memory": func(c *Config) { c.Memory = 1 },
		"PeerConnections": func(c *Config) { c.PeerConnections = 0 }, "PeerStreams": func(c *Config) { c.PeerStreams = 1 },
		"PeerMemory": func(c *Config) { c.PeerMemory = 0 }, "SubnetConnections": func(c *Config) { c.SubnetConnections = 0 },
		"SubnetRate": func(c *Config) { c.SubnetRate = 0 }, "MinRate": func(c *Config) { c.MinRate = 0 },
		"HeaderTimeout": func(c *Config) { c.HeaderTimeout = 0 }, "CallTimeout": func(c *Config) { c.CallTimeout = 0 },
		"DialTimeout": func(c *Config) { c.DialTimeout = -1 }, "Drain": func(c *Config) { c.Drain = 0 },
		"Farms[0]":  func(c *Config) { c.Farms = []Farm{{netip.MustParsePrefix("10.0.0.0/8"), 0}} },
		"Protocols": func(c *Config) { c.Protocols[protocol.ProtoClaim] = ProtocolLimits{} },
	} {
		cfg := DefaultConfig()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "field "+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestFarmLimitsReplaceTheSubnetLimits(t *testing.T) {
	count := func(cfg Config) int {
		rm, err := cfg.resourceManager()
		if err != nil {
			t.Fatal(err)
		}
		defer rm.Close()
		n := 0
		for i := range 400 {
			addr := multiaddr.StringCast(fmt.Sprintf("/ip4/198.51.100.7/tcp/%d", 1000+i))
			if c, err := rm.OpenConnection(network.DirInbound, false, addr); err == nil {
				n++
				defer c.Done()
			}
		}
		return n
	}
	cfg := DefaultConfig()
	cfg.Connections = 4096
	if n := count(cfg); n != 128 {
		t.Errorf("%d connections from one address, want 128", n)
	}
	cfg.Farms = []Farm{{netip.MustParsePrefix("198.51.100.0/24"), 300}}
	if n := count(cfg); n != 300 {
		t.Errorf("%d connections from a farm of 300", n)
	}
}
