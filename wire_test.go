package gridbeam_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	kadrecord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// The hostile side of the tests: who listens on a wire, replays and tampers.

// realHost is a host on the loopback's real sockets.
func realHost(t *testing.T, key crypto.PrivKey, listen ...string) *p2p.Host {
	t.Helper()
	cfg := p2p.LoopbackConfig()
	cfg.Listen = nil
	for _, a := range listen {
		cfg.Listen = append(cfg.Listen, multiaddr.StringCast(a))
	}
	h, err := p2p.New(cfg, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

// bareHost is a host of the library without a router of ours, so that all that it says is what a test says.
func bareHost(t *testing.T, key crypto.PrivKey) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(key), libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// tap is a wire in the middle: it passes everything on and keeps a copy.
type tap struct {
	mu   sync.Mutex
	seen bytes.Buffer
}

// Write keeps what passes.
func (w *tap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.Write(b)
}

func (w *tap) captured() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.seen.Bytes())
}

// tapTCP puts a tap before a TCP address and returns the address to dial instead.
func (w *tap) tapTCP(t *testing.T, to string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); _ = ln.Close(); all.Wait() })
	all.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				_ = a.Close()
				return
			}
			end := func() { _, _ = a.Close(), b.Close() }
			context.AfterFunc(ctx, end)
			all.Go(func() { _, _ = io.Copy(b, io.TeeReader(a, w)); end() })
			all.Go(func() { _, _ = io.Copy(a, io.TeeReader(b, w)); end() })
		}
	})
	return ln.Addr().String()
}

// tapUDP is tapTCP for datagrams of one client.
func (w *tap) tapUDP(t *testing.T, to string) string {
	t.Helper()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { _, _ = front.Close(), back.Close(); all.Wait() })
	clients := make(chan net.Addr, 1) // the newest one
	all.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := front.ReadFrom(b)
			if err != nil {
				return
			}
			select {
			case <-clients:
			default:
			}
			clients <- from
			_, _ = w.Write(b[:n])
			_, _ = back.Write(b[:n])
		}
	})
	all.Go(func() {
		b := make([]byte, 64<<10)
		var client net.Addr
		for {
			n, err := back.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case client = <-clients:
			default:
			}
			if err == nil && client != nil {
				_, _ = w.Write(b[:n])
				_, _ = front.WriteTo(b[:n], client)
			}
		}
	})
	return front.LocalAddr().String()
}

// socketOf is the socket address of a host's one address.
func socketOf(t *testing.T, h *p2p.Host) (network, address string) {
	t.Helper()
	network, address, err := manet.DialArgs(h.AddrInfo().Addrs[0])
	if err != nil { // QUIC is a layer above
		udp, _ := multiaddr.SplitFunc(h.AddrInfo().Addrs[0], func(c multiaddr.Component) bool { return c.Protocol().Code == multiaddr.P_QUIC_V1 })
		if network, address, err = manet.DialArgs(udp); err != nil {
			t.Fatal(err)
		}
	}
	return network, address
}

// gossipOf is a message of an author on a topic, signed as the router signs.
func gossipOf(t *testing.T, key crypto.PrivKey, topic string, data []byte) *pubsubpb.Message {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m := &pubsubpb.Message{From: []byte(id), Data: data, Seqno: binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano())), Topic: &topic}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if m.Signature, err = key.Sign(append([]byte("libp2p-pubsub:"), raw...)); err != nil {
		t.Fatal(err)
	}
	return m
}

// whisper sends gossip to one peer, past this host's own router.
func whisper(h host.Host, to peer.ID, messages ...*pubsubpb.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := h.NewStream(ctx, to, "/meshsub/1.1.0")
	if err != nil {
		return fmt.Errorf("opening a gossip stream: %w", err)
	}
	raw, err := proto.Marshal(&pubsubpb.RPC{Publish: messages})
	if err != nil {
		return err
	}
	return errors.Join(msgio.NewVarintWriter(s).WriteMsg(raw), s.CloseWrite())
}

// putRecord asks a server of the directory to keep somebody's record.
func putRecord(h host.Host, server, owner peer.ID, record []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := h.NewStream(ctx, server, protocol.ProtoKad)
	if err != nil {
		return fmt.Errorf("opening a stream of the directory: %w", err)
	}
	defer s.Reset()
	key := "/" + protocol.NamespaceCapability + "/" + owner.String()
	raw, err := proto.Marshal(&kadpb.Message{Type: kadpb.Message_PUT_VALUE, Key: []byte(key), Record: kadrecord.MakePutRecord(key, record)})
	if err != nil {
		return err
	}
	if err := msgio.NewVarintWriter(s).WriteMsg(raw); err != nil {
		return err
	}
	answer, err := msgio.NewVarintReaderSize(s, 64<<10).ReadMsg()
	if err == nil && len(answer) == 0 {
		err = errors.New("no answer")
	}
	return err
}

// soon polls in real time.
func soon(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}
