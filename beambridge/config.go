package beambridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// ErrConfig means that a field of the configuration cannot be used; the text names it.
var ErrConfig = errors.New("beambridge: bad configuration")

// Config sets up a Bridge.
type Config struct {
	// Data is the directory of everything that the bridge keeps: identity.key, network, bridge.db, volumes. No
	// default. One process at a time uses it.
	Data string
	// Key is the identity key's file. Default Data/identity.key, made on first use with mode 0600.
	Key string
	// Network is the file of the network. Default Data/network; made on first use as a private network whose
	// only root is this bridge's key (trust.md 1).
	Network string
	// NetworkName is for people, when a network is made. Default "private".
	NetworkName string
	// OperatorKey, if not nil, is its operator's: nodes that carry a label signed by it are anchors.
	OperatorKey crypto.PrivKey
	// Anchors are further nodes whose word settles a dispute and whose work needs no copy. Default none.
	Anchors []protocol.PeerID
	// Issuers are further peers whose signed labels about nodes count, such as index peers that measure lines. Those
	// of this bridge, of its operator and of the roots of its network always do. Default none.
	Issuers []protocol.PeerID
	// Listen holds the multiaddrs to listen on. Default: any port, QUIC and TCP, all IPv4 interfaces; with Local
	// loopback only.
	Listen []multiaddr.Multiaddr
	// Announce are further addresses under which others reach the bridge, such as that of a forwarded port.
	Announce []multiaddr.Multiaddr
	// Join are peers to join by, each ending in /p2p/<peer ID>; the bootstrap peers of the network are added.
	Join []multiaddr.Multiaddr
	// Local is for one machine or LAN: loopback addresses are good addresses, nothing asks for reachability.
	// Default false.
	Local bool
	// MDNS finds peers in the local network. Default true; being found grants nothing.
	MDNS bool
	// APIListen is the TCP address of the HTTP API. Default 127.0.0.1:1994 (RNP-005); empty serves none.
	APIListen string
	// BeamListen is a second TCP address for the same, which Beam's clients take for their gRPC gateway. Default
	// 127.0.0.1:1993 (RNP-005); empty serves none. Either address speaks everything.
	BeamListen string
	// TLSCert and TLSKey are PEM files of a certificate chain and its key, read at each start: both addresses speak
	// TLS 1.3 then, and may be other than loopback (trust.md 4). Default none; one without the other is refused.
	TLSCert string
	// TLSKey is the key of TLSCert.
	TLSKey string
	// APIRate is requests per second of a principal, waits and streams apart. Default 50 (trust.md 4); 0 has no
	// bound, for benchmarks.
	APIRate float64
	// Conns is how many connections the two addresses take at once from other machines, and as many again from this one.
	// Default 4096.
	Conns int
	// ConnsPerAddress is how many of them may come from one address, IPv6 by /64; this machine has no such bound.
	// Default 256.
	ConnsPerAddress int
	// FeePPM is what the operator keeps of each bill, in millionths. Default 0; the network's own fee of
	// RNP-021 comes on top of it.
	FeePPM int64
	// Version goes into the user agent and the record as gridbeam/<version>. Default "dev".
	Version string
	// Commit is the program's source, for the status. Default empty.
	Commit string
	// Schedule says when the bridge's own record and heartbeats go out. Default dht.DefaultSchedule.
	Schedule dht.Schedule
	// Buckets is Kademlia's bucket size. Default 20; tests of many hosts on one machine use 8.
	Buckets int
	// Links is to how many ready nodes without work a lease stream is kept warm, so that the first chunk of a job
	// does not wait for it. Default 256.
	Links int
	// Drain is how long Run goes on after its context is done, so that answers under way arrive. Default 3 s.
	Drain time.Duration
	// Reserve is the free space in bytes that is left on the disk. Default 256 MiB.
	Reserve uint64
	// Clock tells the time, with its monotonic reading. Default time.Now.
	Clock func() time.Time
	// Host is an open host that somebody else runs, with the bridge's key; Key, Listen, Join and MDNS are then
	// not looked at. Default nil: Run makes one. It exists for internal/testnet.
	Host *p2p.Host
	// Ready is called once when the bridge answers. Default nil.
	Ready func(Started)
}

// Started tells how to reach a bridge that has just come up.
type Started struct {
	// PeerID is the bridge.
	PeerID protocol.PeerID
	// Addrs are its addresses, each ending in /p2p/<peer ID>.
	Addrs []multiaddr.Multiaddr
	// API is the HTTP address, host:port, empty when there is none.
	API string
	// Beam is the address of Beam's gateway, host:port, empty when there is none.
	Beam string
	// TLS is the SHA-256 of the certificate that both show, in hex; empty when they speak in clear.
	TLS string
	// Invitation is the text that lets nodes join its network.
	Invitation string
	// NetworkFile is the path of the network file; NetworkMade says that this start made it.
	NetworkFile string
	// NetworkMade says that this start made the network.
	NetworkMade bool
	// Restored is the number of unfinished jobs that were taken up again.
	Restored int
}

// DefaultConfig returns the defaults that the fields name, for a data directory.
func DefaultConfig(data string) Config {
	return Config{
		Data: data, Key: filepath.Join(data, "identity.key"), Network: filepath.Join(data, "network"), NetworkName: "private",
		MDNS: true, APIListen: "127.0.0.1:1994", BeamListen: "127.0.0.1:1993", APIRate: 50, Conns: 4096, ConnsPerAddress: 256, Version: "dev", Schedule: dht.DefaultSchedule(), Buckets: 20, Links: 256,
		Drain: 3 * time.Second, Reserve: 256 << 20, Clock: time.Now,
	}
}

// Validate returns ErrConfig naming the first field that cannot be used.
func (c *Config) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s %s", ErrConfig, field, fmt.Sprintf(format, args...))
	}
	switch {
	case !filepath.IsAbs(c.Data):
		return bad("Data", "is %q, want an absolute path", c.Data)
	case !filepath.IsAbs(c.Key):
		return bad("Key", "is %q, want an absolute path", c.Key)
	case !filepath.IsAbs(c.Network):
		return bad("Network", "is %q, want an absolute path", c.Network)
	case c.NetworkName == "" || len(c.NetworkName) > 64:
		return bad("NetworkName", "has %d bytes, want 1..64", len(c.NetworkName))
	case !(c.APIRate >= 0):
		return bad("APIRate", "is %g, want at least 0", c.APIRate)
	case c.Conns < 1:
		return bad("Conns", "is %d, want at least 1", c.Conns)
	case c.ConnsPerAddress < 1 || c.ConnsPerAddress > c.Conns:
		return bad("ConnsPerAddress", "is %d, want 1..%d, which is Conns", c.ConnsPerAddress, c.Conns)
	case c.FeePPM < 0 || c.FeePPM > 900_000:
		return bad("FeePPM", "is %d, want 0..900000 millionths", c.FeePPM)
	case c.Version == "" || len(c.Version) > 22:
		return bad("Version", "is %q, want 1..22 bytes", c.Version)
	case c.Buckets < 1:
		return bad("Buckets", "is %d, want at least 1", c.Buckets)
	case c.Links < 0:
		return bad("Links", "is %d, want at least 0", c.Links)
	case c.Drain < 0 || c.Drain > time.Hour:
		return bad("Drain", "is %s, want 0..1 h", c.Drain)
	case c.Clock == nil:
		return bad("Clock", "is nil")
	}
	for _, f := range []struct{ field, path, other string }{{"TLSCert", c.TLSCert, c.TLSKey}, {"TLSKey", c.TLSKey, c.TLSCert}} {
		if f.path == "" && f.other != "" || f.path != "" && !filepath.IsAbs(f.path) {
			return bad(f.field, "is %q, want the absolute path of a PEM file: a certificate and its key go together", f.path)
		}
	}
	for _, l := range []struct{ field, addr, like string }{{"APIListen", c.APIListen, "127.0.0.1:1994"}, {"BeamListen", c.BeamListen, "127.0.0.1:1993"}} {
		if _, _, err := net.SplitHostPort(l.addr); l.addr != "" && err != nil {
			return bad(l.field, "is %q, want host:port such as %s", l.addr, l.like)
		}
		if l.addr != "" && c.TLSCert == "" && beyondThisMachine(l.addr) {
			return bad(l.field, "is %q: tokens would cross the network readable; listen on 127.0.0.1, or give the bridge a certificate by TLSCert and TLSKey (--tls-cert, --tls-key)", l.addr)
		}
	}
	for i, id := range slices.Concat(c.Anchors, c.Issuers) {
		if id.Validate() != nil {
			if i < len(c.Anchors) {
				return bad(fmt.Sprintf("Anchors[%d]", i), "is no peer ID")
			}
			return bad(fmt.Sprintf("Issuers[%d]", i-len(c.Anchors)), "is no peer ID")
		}
	}
	if err := c.Schedule.Validate(); err != nil {
		return fmt.Errorf("%w: Schedule: %w", ErrConfig, err)
	}
	return nil
}

// beyondThisMachine says whether a host:port is certainly not loopback: a name is decided when it is listened on.
func beyondThisMachine(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || strings.EqualFold(host, "localhost") {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && !ip.IsLoopback()
}
