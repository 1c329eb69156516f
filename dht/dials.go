package dht

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// public keeps those addresses out of strangers' words that may be dialled: public ones, so that nobody has us connect
// to machines of our own network, and all where Config.Loopback says that this is such a network.
func (d *Directory) public(addrs []multiaddr.Multiaddr) []multiaddr.Multiaddr {
	if d.cfg.Loopback {
		return addrs
	}
	return multiaddr.FilterAddrs(addrs, manet.IsPublicAddr)
}

// publicOrOwn is public for kad-dht, which hands us our own addresses too when it announces us, and announces nobody
// without one: a node that only a relay reaches, or nobody, says all the same that it is there.
func (d *Directory) publicOrOwn(addrs []multiaddr.Multiaddr) []multiaddr.Multiaddr {
	out := d.public(addrs)
	if len(out) > 0 || len(addrs) == 0 {
		return out
	}
	own := d.host.Addrs()
	for _, a := range addrs {
		if !multiaddr.Contains(own, a) {
			return nil
		}
	}
	return addrs
}

// publicOf is public for peers.
func (d *Directory) publicOf(infos []peer.AddrInfo) []peer.AddrInfo {
	for i := range infos {
		infos[i].Addrs = d.public(infos[i].Addrs)
	}
	return infos
}

// addrsOf are the addresses that a record names.
func addrsOf(c *pb.Capability) (out []multiaddr.Multiaddr) {
	for _, raw := range c.GetAddrs() {
		if a, err := multiaddr.NewMultiaddrBytes(raw); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// What is dialled on behalf of others: peers a second and at once, for all who ask together, and addresses at one IPv4
// address or one IPv6 /48. Behind one address may be some dozens of honest nodes, each with up to six.
const (
	observedPerSecond = 4
	observedAtOnce    = 256
	addrsPerSecond    = 0.5
	addrsAtOnce       = 32
)

// dials bounds the dialling that others can bring about; nil bounds nothing.
type dials struct{ peers, addrs *rates }

func newDials() *dials {
	return &dials{peers: newRates(observedPerSecond, observedAtOnce), addrs: newRates(addrsPerSecond, addrsAtOnce)}
}

// peer spends what looking for one peer, and reaching it, costs; it says whether there is that much.
func (b *dials) peer(now time.Time) bool { return b == nil || b.peers.take("", now) == 0 }

// all says whether a peer may be dialled at all of these addresses: swarms try each that they know. Names may stand for
// any machine, so they are not dialled for others. Loopback addresses, which local lets through, are not counted.
func (b *dials) all(addrs []multiaddr.Multiaddr, local bool, now time.Time) bool {
	if b == nil {
		return true
	}
	for _, a := range addrs {
		net := netOf(a, 4, 6)
		switch {
		case local && (net == "" || manet.IsIPLoopback(a)):
		case net == "", !local && !manet.IsPublicAddr(a), b.addrs.take(net, now) > 0:
			return false
		}
	}
	return len(addrs) > 0
}
