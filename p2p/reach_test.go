package p2p

import (
	"context"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

func TestALANsAddressesStayInIt(t *testing.T) {
	const (
		lan     = "/ip4/192.168.1.2/tcp/4001"
		self    = "/ip4/127.0.0.1/udp/4001/quic-v1"
		public  = "/ip4/8.8.8.8/udp/4001/quic-v1"
		name    = "/dns4/bridge.example.com/tcp/4001"
		circuit = "/ip4/8.8.4.4/tcp/4001/p2p/12D3KooWGRUvXgMcQj1dbhHqcYcWJPTrjiVGEDZ1vW9Uh3uGuh6v/p2p-circuit"
	)
	for _, c := range []struct {
		reach     Reach
		all, want []string
	}{
		{ReachLocal, []string{lan, self}, []string{lan, self}},
		{ReachAuto, []string{lan, self, public, circuit}, []string{public, circuit}},
		{ReachAuto, []string{lan, self}, nil},
		{ReachPublic, []string{lan, public, name}, []string{public, name}},
		{ReachPublic, []string{lan, self}, []string{lan, self}},
	} {
		var all []multiaddr.Multiaddr
		for _, text := range c.all {
			all = append(all, multiaddr.StringCast(text))
		}
		var got []string
		for _, a := range told(all, c.reach) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("reach %d tells %v of %v, want %v", c.reach, got, c.all, c.want)
		}
	}
}

func TestWhatOthersFindOutSaysHowAHostIsReached(t *testing.T) {
	private := event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}
	one := event.EvtNATDeviceTypeChanged{TransportProtocol: network.NATTransportUDP, NatDeviceType: network.NATDeviceTypeEndpointIndependent}
	many := event.EvtNATDeviceTypeChanged{TransportProtocol: network.NATTransportUDP, NatDeviceType: network.NATDeviceTypeEndpointDependent}
	tcp := event.EvtNATDeviceTypeChanged{TransportProtocol: network.NATTransportTCP, NatDeviceType: network.NATDeviceTypeEndpointDependent}
	none := []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/192.168.1.2/tcp/4001")}
	held := []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/8.8.4.4/tcp/1/p2p/12D3KooWGRUvXgMcQj1dbhHqcYcWJPTrjiVGEDZ1vW9Uh3uGuh6v/p2p-circuit")}
	for _, c := range []struct {
		events []any
		addrs  []multiaddr.Multiaddr
		want   Reachability
	}{
		{nil, held, ReachableUnknown},
		{[]any{event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPublic}}, none, ReachableDirectly},
		{[]any{private}, none, Unreachable},
		{[]any{private}, held, ReachableByRelay},
		{[]any{one, private, tcp}, held, ReachableByHolePunch},
		{[]any{one, private, many}, held, ReachableByRelay},
		{[]any{private, event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPublic}}, held, ReachableDirectly},
	} {
		var s standing
		for _, e := range c.events {
			s = s.learn(e)
		}
		if got := s.reachability(c.addrs); got != c.want {
			t.Errorf("after %v with %v it is reached %q, want %q", c.events, c.addrs, got, c.want)
		}
	}
}

func TestAnAnnouncedAddressIsToldBesideThoseThatAreFound(t *testing.T) {
	forwarded := multiaddr.StringCast("/ip4/8.8.8.8/tcp/4001")
	h := start(t, func(c *Config) { c.Announce = []multiaddr.Multiaddr{forwarded} })
	if got := h.AddrInfo().Addrs; len(got) != 3 || !got[0].Equal(forwarded) {
		t.Errorf("it tells %v, want %s and its own two", got, forwarded)
	}
	if got := h.JoinAddrs(); len(got) != 3 || got[0].String() != forwarded.String()+"/p2p/"+h.ID().String() {
		t.Errorf("others join by %v", got)
	}
}

func TestRelayCandidatesAreBoundedAndNeverTheHostItself(t *testing.T) {
	h := start(t)
	if got := len(h.relayCandidates(t.Context(), 4)); got != 0 {
		t.Errorf("%d candidates of nobody", got)
	}
	h.RelaysFrom(func(ctx context.Context, n int) []peer.AddrInfo {
		if _, ok := ctx.Deadline(); !ok || n != 2 {
			t.Errorf("the search for %d has no end", n)
		}
		return []peer.AddrInfo{{ID: h.ID()}, {ID: "a"}, {ID: "b"}, {ID: "c"}}
	})
	var got []peer.ID
	for info := range h.relayCandidates(t.Context(), 2) {
		got = append(got, info.ID)
	}
	if !slices.Equal(got, []peer.ID{"a", "b"}) {
		t.Errorf("candidates are %v", got)
	}
}
