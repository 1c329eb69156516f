package bare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

var (
	serve = flag.Bool("serve", false, "TestHost: stay up until standard input ends")
	join  = flag.String("join", "", "TestHost: address of a peer to connect to before being ready")
	full  = flag.Bool("full", false, "TestHost: with Kademlia, gossipsub and bitswap")
)

// echoProtocol answers every byte with itself.
const echoProtocol = "/echo/1.0.0"

// TestHost is a host that echoes; with -serve a process of its own.
func TestHost(t *testing.T) {
	h, err := open(t.Context(), t.Cleanup, *full || !*serve)
	if err != nil {
		t.Fatal(err)
	}
	if *join != "" {
		info, err := peer.AddrInfoFromString(*join)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Connect(t.Context(), *info); err != nil {
			t.Fatal(err)
		}
	}
	if !*serve {
		if err := echoes(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		return
	}
	ready := struct {
		Event   string `json:"event"`
		Address string `json:"address"`
	}{"ready", fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID())}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// open starts a host on loopback; it ends with the test.
func open(ctx context.Context, cleanup func(func()), full bool) (host.Host, error) {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		return nil, fmt.Errorf("opening a host: %w", err)
	}
	cleanup(func() { _ = h.Close() })
	h.SetStreamHandler(echoProtocol, func(s network.Stream) {
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	if !full {
		return h, nil
	}
	d, err := dht.New(h, dht.Mode(dht.ModeServer), dht.ProtocolPrefix("/bare"))
	if err != nil {
		return nil, fmt.Errorf("starting Kademlia: %w", err)
	}
	cleanup(func() { _ = d.Close() })
	ctx, stop := context.WithCancel(ctx)
	cleanup(stop)
	if _, err := pubsub.NewGossipSub(ctx, h); err != nil {
		return nil, fmt.Errorf("starting gossipsub: %w", err)
	}
	b := bitswap.New(ctx, bsnet.NewFromIpfsHost(h), nil, blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore())))
	cleanup(func() { _ = b.Close() })
	return h, nil
}

// echoes sends a message to a host from another one.
func echoes(ctx context.Context, h host.Host) error {
	c, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.Connect(ctx, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		return err
	}
	s, err := c.NewStream(ctx, h.ID(), echoProtocol)
	if err != nil {
		return err
	}
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	sent, got := []byte("are you there"), make([]byte, 13)
	if _, err := s.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("the echo says something else")
	}
	return s.Close()
}
