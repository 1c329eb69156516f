package p2p

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/pbnjay/memory"

	"github.com/gridbeam/gridbeam/protocol"
)

// Reach says where a host stands and so how others can reach it (discovery.md 6).
type Reach uint8

// The places.
const (
	// ReachAuto is a machine on the open internet or behind a NAT: it asks others whether it can be
	// dialled, maps a port and punches holes.
	ReachAuto Reach = iota
	// ReachPublic is a machine that is known to be dialled directly (bootstrap, bridge, index): it serves
	// others' reachability questions and relays for them.
	ReachPublic
	// ReachLocal is a LAN, the demo or a test: no address is thought unreachable, nothing asks or relays.
	ReachLocal
	// ReachClient is a program that only asks, such as the command line: nobody has to reach it, and it reaches
	// others also through relays.
	ReachClient
)

// Farm raises the limits of one address range behind which many nodes are known to stand (trust.md 6).
type Farm struct {
	// Prefix is the address range.
	Prefix netip.Prefix
	// Connections allowed from it; a quarter of it may be opened a second.
	Connections int
}

// ProtocolLimits bound one stream protocol, on both of its sides.
type ProtocolLimits struct {
	// StreamsPerPeer a remote peer may hold open to us, and we to it.
	StreamsPerPeer int
	// CallStreams is how many warm streams Call keeps to one peer: so many requests are under way at once,
	// further ones wait. Default a quarter of StreamsPerPeer.
	CallStreams int
	// MaxFrame bounds one frame's body, in bytes.
	MaxFrame int
	// Idle ends a stream on which no frame begins for so long. Default 60 s (trust.md 6).
	Idle time.Duration
}

// Config says how a host joins the network.
type Config struct {
	// Listen holds the multiaddrs to listen on. Default: any port, QUIC and TCP, all IPv4 interfaces.
	// Empty: a client that dials only.
	Listen []multiaddr.Multiaddr
	// Announce are further addresses under which others reach this host, which it cannot find out itself: of a
	// forwarded port or a load balancer. Default none.
	Announce []multiaddr.Multiaddr
	// Reach is where the host stands. Default ReachAuto.
	Reach Reach
	// MDNS finds peers in the local network, and is found. Default true; off in demo and tests, where
	// strangers' machines must not join.
	MDNS bool
	// MDNSService is the DNS-SD service name. Default "_gridbeam._udp".
	MDNSService string
	// Bootstrap peers are kept connected: redialled with growing pauses for as long as Run runs.
	Bootstrap []peer.AddrInfo
	// Version goes into the user agent as gridbeam/<version>. Default "dev".
	Version string

	// Connections bounds all connections of the process. Default 256; a bridge takes 4,096 (trust.md 6).
	Connections int
	// Memory bounds what all peers together may make us reserve, in bytes. Default a quarter of the
	// machine's memory, at most 4 GiB.
	Memory int64
	// PeerConnections, PeerStreams and PeerMemory (bytes) bound one peer. Defaults 8, 256, 64 MiB.
	PeerConnections, PeerStreams int
	// PeerMemory bounds what one peer may make us reserve, in bytes. Default 64 MiB.
	PeerMemory int64
	// SubnetConnections bounds the connections of one IPv4 address or IPv6 /64; an IPv6 /48 may hold twice
	// as many. Default 128, so that a farm behind one NAT gets in (libp2p's own 8 would refuse it).
	SubnetConnections int
	// SubnetRate bounds new connections per second of the same subnets, with a burst of
	// SubnetConnections. Default 8.
	SubnetRate float64
	// Farms lists address ranges with limits of their own.
	Farms []Farm

	// Protocols holds the limits of each stream protocol of ours; only listed ones can be served and
	// called. Default: trust.md 6.
	Protocols map[libprotocol.ID]ProtocolLimits
	// HeaderTimeout bounds the wait for a new stream's first frame, and for the rest of a frame's header
	// once it began. Default 5 s.
	HeaderTimeout time.Duration
	// MinRate is the slowest pace at which a frame's body may come or be taken, bytes per second. Default
	// 1,024.
	MinRate int
	// CallTimeout bounds a Call whose context has no deadline. Default 10 s: a connection that was cut
	// looks alive for 30 s.
	CallTimeout time.Duration
	// DialTimeout bounds one attempt to reach a peer. Default 10 s.
	DialTimeout time.Duration
	// Drain is how long handlers may take to end once Run's context is done. Default 3 s.
	Drain time.Duration

	// AppScore adds the role's own opinion of a peer to its gossip score (trust.md 5: vetted up to +200,
	// suspended -200, revoked -2,000). It must be quick and safe for concurrent use. Default nil: 0.
	AppScore func(peer.ID) float64
	// PeerExchange lets a bootstrap host tell pruned mesh peers of others. Default false.
	PeerExchange bool

	// Transport replaces QUIC and TCP. Default nil. It exists so that a whole network can be simulated in
	// one process (internal/testnet); a real host has no use for it.
	Transport func() []libp2p.Option
}

// DefaultConfig returns the defaults that the fields name.
func DefaultConfig() Config {
	return Config{
		Listen: []multiaddr.Multiaddr{
			multiaddr.StringCast("/ip4/0.0.0.0/udp/0/quic-v1"),
			multiaddr.StringCast("/ip4/0.0.0.0/tcp/0"),
		},
		MDNS:              true,
		MDNSService:       "_gridbeam._udp",
		Version:           "dev",
		Connections:       256,
		Memory:            min(int64(memory.TotalMemory()/4), 4<<30),
		PeerConnections:   8,
		PeerStreams:       256,
		PeerMemory:        64 << 20,
		SubnetConnections: 128,
		SubnetRate:        8,
		Protocols:         defaultProtocols(),
		HeaderTimeout:     5 * time.Second,
		MinRate:           1 << 10,
		CallTimeout:       10 * time.Second,
		DialTimeout:       10 * time.Second,
		Drain:             3 * time.Second,
	}
}

// LoopbackConfig returns DefaultConfig for demo and tests: listening on loopback only, no mDNS, nothing
// that looks beyond the machine.
func LoopbackConfig() Config {
	cfg := DefaultConfig()
	cfg.Listen = []multiaddr.Multiaddr{
		multiaddr.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"),
		multiaddr.StringCast("/ip4/127.0.0.1/tcp/0"),
	}
	cfg.Reach = ReachLocal
	cfg.MDNS = false
	return cfg
}

func defaultProtocols() map[libprotocol.ID]ProtocolLimits {
	m := make(map[libprotocol.ID]ProtocolLimits)
	set := func(streams, maxFrame int, ids ...libprotocol.ID) {
		for _, id := range ids {
			m[id] = ProtocolLimits{
				StreamsPerPeer: streams, CallStreams: max(1, streams/4), MaxFrame: maxFrame, Idle: time.Minute,
			}
		}
	}
	set(2, 64<<10, protocol.ProtoAuth, protocol.ProtoAttest)
	set(2, 256<<10, protocol.ProtoScan) // one is served; the next may open while it closes
	set(2, protocol.MaxFrame, protocol.ProtoLease, protocol.ProtoReceipt)
	set(32, protocol.MaxFrame, protocol.ProtoReserve, protocol.ProtoClaim, protocol.ProtoResult)
	set(32, 256<<10, protocol.ProtoQuery)
	set(8, 256<<10, protocol.ProtoLogs)
	return m
}

// Validate returns nil, or an error that names the first field out of range.
func (c Config) Validate() error {
	bad := func(field string, v any, want string) error {
		return fmt.Errorf("p2p: config field %s is %v, want %s", field, v, want)
	}
	switch {
	case c.Reach > ReachClient:
		return bad("Reach", c.Reach, "ReachAuto, ReachPublic, ReachLocal or ReachClient")
	case c.MDNS && c.MDNSService == "":
		return bad("MDNSService", `""`, "a service name such as _gridbeam._udp")
	case c.Connections < 1:
		return bad("Connections", c.Connections, "at least 1")
	case c.Memory < 32<<20:
		return bad("Memory", c.Memory, "at least 32 MiB")
	case c.PeerConnections < 1:
		return bad("PeerConnections", c.PeerConnections, "at least 1")
	case c.PeerStreams < 8:
		return bad("PeerStreams", c.PeerStreams, "at least 8")
	case c.PeerMemory < 1<<20:
		return bad("PeerMemory", c.PeerMemory, "at least 1 MiB")
	case c.SubnetConnections < 1:
		return bad("SubnetConnections", c.SubnetConnections, "at least 1")
	case !(c.SubnetRate > 0):
		return bad("SubnetRate", c.SubnetRate, "more than 0")
	case c.MinRate < 1:
		return bad("MinRate", c.MinRate, "at least 1 byte per second")
	}
	for name, d := range map[string]time.Duration{
		"HeaderTimeout": c.HeaderTimeout, "CallTimeout": c.CallTimeout, "DialTimeout": c.DialTimeout, "Drain": c.Drain,
	} {
		if d <= 0 {
			return bad(name, d, "more than 0")
		}
	}
	for i, f := range c.Farms {
		if !f.Prefix.IsValid() || f.Connections < 1 {
			return bad(fmt.Sprintf("Farms[%d]", i), f, "a prefix and at least 1 connection")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Protocols)) {
		l := c.Protocols[id]
		if l.StreamsPerPeer < 1 || l.CallStreams < 1 || l.CallStreams > l.StreamsPerPeer || l.MaxFrame < 1 || l.Idle <= 0 {
			return bad(fmt.Sprintf("Protocols[%s]", id), l, "streams, frame size and idle time above 0, CallStreams within StreamsPerPeer")
		}
	}
	return nil
}
