package dht

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func askerAt(n int, format string, args ...any) asker {
	return asker{peer: peer.ID(fmt.Sprint("peer ", n)), addr: multiaddr.StringCast(fmt.Sprintf(format, args...))}
}

func TestNoPeerAndNoNetworkHasMoreThanItsShareOfTheSlots(t *testing.T) {
	for what, c := range map[string]struct {
		who  func(i int) asker
		want int // of 64
	}{
		"one peer":                        {func(i int) asker { return askerAt(1, "/ip4/8.8.%d.8/tcp/1", i) }, 4},
		"one peer, on our own machine":    {func(int) asker { return askerAt(1, "/ip4/127.0.0.1/tcp/1") }, 4},
		"many peers, on our own machine":  {func(i int) asker { return askerAt(i, "/ip4/127.0.0.1/tcp/1") }, 32},
		"many peers of an IPv4 /24":       {func(i int) asker { return askerAt(i, "/ip4/8.8.8.%d/udp/1/quic-v1", i) }, 8},
		"many peers of IPv4 /24s":         {func(i int) asker { return askerAt(i, "/ip4/8.8.%d.8/tcp/1", i) }, 32},
		"many peers of an IPv6 /48":       {func(i int) asker { return askerAt(i, "/ip6/2606:4700:1:%x::1/tcp/1", i) }, 8},
		"many peers of IPv6 /48s":         {func(i int) asker { return askerAt(i, "/ip6/2606:4700:%x::1/tcp/1", i) }, 32},
		"many peers without an address":   {func(i int) asker { return asker{peer: peer.ID(fmt.Sprint(i))} }, 32},
		"many peers over one relay's /24": {func(i int) asker { return askerAt(i, "/ip4/8.8.8.8/tcp/1/p2p/%s/p2p-circuit", identityOf(t, 1).id) }, 8},
	} {
		g := newGate(32, answersOfPeer, answersOfNet)
		var in []asker
		for i := range 64 {
			if who := c.who(i); g.enter(who) {
				in = append(in, who)
			}
		}
		if len(in) != c.want {
			t.Errorf("%s: %d of 64 streams are let in, want %d", what, len(in), c.want)
		}
		for _, who := range in {
			g.leave(who)
		}
		if g.all != 0 || len(g.held) != 0 {
			t.Errorf("%s: after all have left: %d, %v", what, g.all, g.held)
		}
	}
}

func TestWhoWaitsGetsTheSlotThatIsFreed(t *testing.T) {
	g := newGate(2, 1, 2)
	a, b, c := askerAt(1, "/ip4/127.0.0.1/tcp/1"), askerAt(2, "/ip4/127.0.0.1/tcp/1"), askerAt(3, "/ip4/127.0.0.1/tcp/1")
	if !g.enter(a) || !g.enter(b) {
		t.Fatal("an empty gate is shut")
	}
	got := make(chan error, 2)
	for _, who := range []asker{c, a} { // a has its own already
		go func() { got <- g.wait(within(t, 10*time.Second), who) }()
	}
	g.leave(b)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if g.leave(a); <-got != nil || g.all != 2 {
		t.Errorf("%d slots are taken, want 2", g.all)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.wait(ended, b); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for ever: %v", err)
	}
}

// mute opens streams that begin a frame and say no more; it returns those that the other end has not ended.
func mute(t *testing.T, from host.Host, to peer.ID, name libprotocol.ID, n int) (open []network.Stream) {
	t.Helper()
	for range n {
		s, err := from.NewStream(within(t, 10*time.Second), to, name)
		if err == nil {
			_, err = s.Write([]byte{5})
		}
		if err == nil {
			open = append(open, s)
		}
	}
	return open
}

func TestSilentPeersKeepNoAnswerFromOthers(t *testing.T) {
	hub := startPeer(t, 0, func(c *Config) { c.Shards, c.Index, c.QueryStreams, c.ScanStreams = AllShards(), true, 4, 2 })
	good := startPeer(t, 2, func(c *Config) { c.Mode, c.QueryTimeout, c.ScanTimeout = ModeClient, 2*time.Second, 2*time.Second })
	connect(t, good.host, hub.host)
	for i := range 3 {
		h, _ := newHost(t, identityOf(t, 50+i))
		connect(t, h, hub.host)
		for _, name := range []libprotocol.ID{protocol.ProtoQuery, protocol.ProtoScan, protocol.ProtoMeasure} {
			mute(t, h, hub.id, name, 8)
		}
	}
	if _, err := good.dir.Hello(within(t, 5*time.Second), hub.id); err != nil {
		t.Errorf("a hello beside silent peers: %v", err)
	}
	if _, err := good.dir.Scan(within(t, 5*time.Second), hub.id, ScanQuery{}, func(ScanRow) {}); err != nil {
		t.Errorf("a scan beside silent peers: %v", err)
	}
}

func TestAStreamWhoseFirstFrameDoesNotComeIsEnded(t *testing.T) {
	t.Parallel()
	hub := startPeer(t, 0, nil)
	h, _ := newHost(t, identityOf(t, 50))
	connect(t, h, hub.host)
	begun := time.Now()
	for _, s := range append(mute(t, h, hub.id, protocol.ProtoQuery, 1), mute(t, h, hub.id, protocol.ProtoScan, 1)...) {
		_ = s.SetReadDeadline(time.Now().Add(3 * firstFrame))
		if _, err := s.Read(make([]byte, 1)); err == nil || time.Since(begun) > 2*firstFrame || time.Since(begun) < firstFrame/2 {
			t.Errorf("%s: a silent stream was ended after %s (%v), want %s", s.Protocol(), time.Since(begun), err, firstFrame)
		}
		_ = s.Reset()
	}
}

// unread has a peer ask for more than the stream takes while nobody reads; it returns when the answer has begun.
func unread(t *testing.T, from host.Host, to *testPeer) network.Stream {
	t.Helper()
	s, err := from.NewStream(within(t, 10*time.Second), to.id, protocol.ProtoQuery)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_Find{Find: &pb.FindRequest{Limit: maxQueryRows}}})
	if err == nil {
		err = scanWriter(s).WriteMsg(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnswersAreBoundedInNumberAndTime(t *testing.T) {
	for what, c := range map[string]struct {
		timeout time.Duration
		open    bool // for somebody else, while an answer is not read
	}{
		"before its time is over": {time.Minute, false},
		"after it":                {500 * time.Millisecond, true},
	} {
		t.Run(what, func(t *testing.T) {
			hub := startPeer(t, 0, func(c2 *Config) {
				c2.Shards, c2.Index, c2.QueryStreams, c2.QueryTimeout = AllShards(), true, 1, c.timeout
			})
			now := time.Now()
			for i := range 2000 {
				who := identityFrom(fmt.Appendf(nil, "%032d", i))
				raw := sign(t, who.key, capabilitySeal(), machine(who.id, 1, now))
				r, err := openCapability(raw, who.id, now)
				if err != nil {
					t.Fatal(err)
				}
				hub.dir.index.putRecord(r, now)
				b, err := openBeat(sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, now, raw, ready)), who.id)
				if err != nil {
					t.Fatal(err)
				}
				hub.dir.index.putBeat(b, 0, now)
			}
			slow, _ := newHost(t, identityOf(t, 50))
			good := startPeer(t, 2, func(c *Config) { c.Mode = ModeClient })
			connect(t, slow, hub.host)
			connect(t, good.host, hub.host)
			held := unread(t, slow, hub)
			defer func() { _ = held.Reset() }()
			if _, err := good.dir.Hello(within(t, 8*time.Second), hub.id); (err == nil) != c.open {
				t.Errorf("a hello while one answer of one is not read: %v", err)
			}
		})
	}
}
