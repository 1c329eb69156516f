package p2p

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multiaddr"
)

// A peer that asks whether this machine can be dialled makes a second connection and ends it.
func TestAConnectionThatComesAndGoesTakesNothingWithIt(t *testing.T) {
	a, b := start(t), start(t)
	topic, sub := join(t, a, TopicConfig[string]{})
	connect(t, b, a)
	says, _ := join(t, b, TopicConfig[string]{})
	eventually(t, "each knows what the other hears", func() bool { return len(topic.Peers()) == 1 && len(says.Peers()) == 1 })
	first := a.libp2p.Network().ConnsToPeer(b.ID())
	if len(first) != 1 {
		t.Fatalf("%d connections at first", len(first))
	}

	for range 3 {
		came := make(chan struct{}, 1)
		gone := make(chan struct{}, 1)
		watch := &network.NotifyBundle{
			ConnectedF:    func(network.Network, network.Conn) { came <- struct{}{} },
			DisconnectedF: func(network.Network, network.Conn) { gone <- struct{}{} },
		}
		a.libp2p.Network().Notify(watch)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		addr := a.AddrInfo().Addrs[0]
		second, err := b.libp2p.Network().(interface {
			TransportForDialing(a multiaddr.Multiaddr) transport.Transport
		}).TransportForDialing(addr).Dial(ctx, addr, a.ID())
		if err != nil {
			t.Fatal(err)
		}
		<-came
		_ = second.Close()
		<-gone
		cancel()
		a.libp2p.Network().StopNotify(watch)
	}
	// What a would close it closes in the background: a message that goes there and back comes after it.
	if err := says.Publish(t.Context(), noteOf(b, "still here")); err != nil {
		t.Fatal(err)
	}
	if m, err := next(t, sub, 10*time.Second); err != nil || m.Value != "still here" {
		t.Errorf("%+v, %v", m, err)
	}
	if now := a.libp2p.Network().ConnsToPeer(b.ID()); len(now) != 1 || now[0].ID() != first[0].ID() {
		t.Errorf("the first connection is gone: %v, was %v", now, first)
	}
}
