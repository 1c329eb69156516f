package p2p

import (
	"math"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// resourceManager builds the process's limits: system and peer as configured, one scope per protocol, and
// subnet limits that a farm behind one NAT survives (trust.md 6).
func (c Config) resourceManager() (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	base := scaling.Scale(c.Memory, 4*c.Connections)

	conns, streams := rcmgr.LimitVal(c.Connections), rcmgr.LimitVal(min(c.Connections*64, math.MaxInt32))
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns,
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
			FD: conns, Memory: rcmgr.LimitVal64(c.Memory),
		},
		// A burst of a whole subnet has to fit while its handshakes are under way.
		Transient: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns,
			Streams: 2 * conns, StreamsInbound: conns, StreamsOutbound: conns,
			FD: conns, Memory: rcmgr.LimitVal64(max(c.Memory/4, 16<<20)),
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(c.PeerConnections), ConnsInbound: rcmgr.LimitVal(c.PeerConnections),
			ConnsOutbound: rcmgr.LimitVal(c.PeerConnections), FD: rcmgr.LimitVal(c.PeerConnections),
			Streams: rcmgr.LimitVal(2 * c.PeerStreams), StreamsInbound: rcmgr.LimitVal(c.PeerStreams),
			StreamsOutbound: rcmgr.LimitVal(c.PeerStreams), Memory: rcmgr.LimitVal64(c.PeerMemory),
		},
		Protocol:     make(map[libprotocol.ID]rcmgr.ResourceLimits),
		ProtocolPeer: make(map[libprotocol.ID]rcmgr.ResourceLimits),
	}
	for id, l := range c.Protocols {
		perPeer := rcmgr.LimitVal(l.StreamsPerPeer)
		limits.ProtocolPeer[id] = rcmgr.ResourceLimits{
			Streams: 2 * perPeer, StreamsInbound: perPeer, StreamsOutbound: perPeer,
			Memory: rcmgr.LimitVal64(c.PeerMemory),
		}
		limits.Protocol[id] = rcmgr.ResourceLimits{
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
			Memory: rcmgr.LimitVal64(c.Memory / 2),
		}
	}

	prefix4 := []rcmgr.NetworkPrefixLimit{{Network: loopback4, ConnCount: math.MaxInt}}
	prefix6 := []rcmgr.NetworkPrefixLimit{{Network: loopback6, ConnCount: math.MaxInt}}
	rates := []rate.PrefixLimit{{Prefix: loopback4}, {Prefix: loopback6}}
	for _, f := range c.Farms {
		l := rcmgr.NetworkPrefixLimit{Network: f.Prefix.Masked(), ConnCount: f.Connections}
		if f.Prefix.Addr().Is4() {
			prefix4 = append(prefix4, l)
		} else {
			prefix6 = append(prefix6, l)
		}
		rates = append(rates, rate.PrefixLimit{
			Prefix: f.Prefix.Masked(), Limit: rate.Limit{RPS: float64(f.Connections) / 4, Burst: f.Connections},
		})
	}
	one := rate.Limit{RPS: c.SubnetRate, Burst: c.SubnetConnections}
	two := rate.Limit{RPS: 2 * c.SubnetRate, Burst: 2 * c.SubnetConnections}
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.Build(base)),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: c.SubnetConnections}},
			[]rcmgr.ConnLimitPerSubnet{
				{PrefixLength: 64, ConnCount: c.SubnetConnections},
				{PrefixLength: 48, ConnCount: 2 * c.SubnetConnections},
			}),
		rcmgr.WithNetworkPrefixLimit(prefix4, prefix6),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: rates,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: one}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: one}, {PrefixLength: 48, Limit: two}},
				GracePeriod:      time.Minute,
			},
		}),
	)
}

// gater lets only Ed25519 peers finish a handshake: an Ed25519 peer ID carries its key, so the ID tells
// before anything is spent on the peer (GO-2023-2000: huge RSA keys burn CPU).
type gater struct{}

var _ connmgr.ConnectionGater = gater{}

func isEd25519(p peer.ID) bool {
	key, err := p.ExtractPublicKey()
	return err == nil && key.Type() == pb.KeyType_Ed25519
}

func (gater) InterceptPeerDial(p peer.ID) bool                        { return isEd25519(p) }
func (gater) InterceptAddrDial(p peer.ID, _ multiaddr.Multiaddr) bool { return isEd25519(p) }
func (gater) InterceptAccept(network.ConnMultiaddrs) bool             { return true }
func (gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return isEd25519(p)
}
func (gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// rank dials TCP first where no NAT can stand between the two, on loopback and private addresses: it moves
// bytes 2.5 times as fast as QUIC there (targets.md). Elsewhere libp2p's own order, QUIC first, holds.
func rank(addrs []multiaddr.Multiaddr) []network.AddrDelay {
	var near []network.AddrDelay
	var rest []multiaddr.Multiaddr
	for _, a := range addrs {
		if _, err := a.ValueForProtocol(multiaddr.P_TCP); err == nil && (manet.IsIPLoopback(a) || manet.IsPrivateAddr(a)) {
			near = append(near, network.AddrDelay{Addr: a})
		} else {
			rest = append(rest, a)
		}
	}
	out := near
	for _, d := range swarm.DefaultDialRanker(rest) {
		if len(near) > 0 {
			d.Delay += swarm.PrivateTCPDelay
		}
		out = append(out, d)
	}
	return out
}
