package p2p

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Reachability is how others reach this host, as far as they have told it (discovery.md 6).
type Reachability string

// The ways.
const (
	// ReachableUnknown: nobody has tried yet.
	ReachableUnknown Reachability = ""
	// ReachableDirectly: others dial it.
	ReachableDirectly Reachability = "public"
	// ReachableByHolePunch: it is behind a NAT that gives it one port whoever it talks to, and a relay introduces
	// those who want to reach it.
	ReachableByHolePunch Reachability = "holepunch"
	// ReachableByRelay: it is behind a NAT or firewall of another or unknown kind, and a relay holds a place for it.
	ReachableByRelay Reachability = "relay"
	// Unreachable: it is behind a NAT or firewall and has no relay; who it dials itself reaches it.
	Unreachable Reachability = "none"
)

// Relays: how long a host behind a NAT waits before it looks for one (libp2p's own 3 min would leave it unseen for as
// long), how many it wants, how often it asks for candidates at most, and how long one search may take.
const (
	relayBoot     = 10 * time.Second
	relayCount    = 2
	relayInterval = 30 * time.Second
	relayPatience = 20 * time.Second
)

// RelaysFrom says where this host finds peers that may relay, should it turn out to be behind a NAT: source returns
// up to n; those that do not relay are passed over. It matters with ReachAuto alone, and may be called at any time.
func (h *Host) RelaysFrom(source func(ctx context.Context, n int) []peer.AddrInfo) {
	h.relays.Store(&source)
}

// autoRelay is the option by which a host behind a NAT keeps a place at relays.
func (h *Host) autoRelay() libp2p.Option {
	return libp2p.EnableAutoRelayWithPeerSource(h.relayCandidates, autorelay.WithBootDelay(relayBoot), autorelay.WithMinCandidates(1),
		autorelay.WithNumRelays(relayCount), autorelay.WithMinInterval(relayInterval))
}

// Relays says whether this host holds places for others that are behind a NAT.
func (h *Host) Relays() bool { return h.cfg.Reach == ReachPublic }

// Told returns the addresses that strangers may be told: public ones and those of relays, as a LAN's own are nobody
// else's business (discovery.md 2). A host that is on one machine or LAN, or that has no public one, tells all.
func (h *Host) Told() []multiaddr.Multiaddr { return told(h.AddrInfo().Addrs, h.cfg.Reach) }

func told(all []multiaddr.Multiaddr, reach Reach) []multiaddr.Multiaddr {
	if reach == ReachLocal {
		return all
	}
	public := slices.DeleteFunc(slices.Clone(all), func(a multiaddr.Multiaddr) bool { return !manet.IsPublicAddr(a) })
	if len(public) == 0 && reach == ReachPublic {
		return all // said to be reached, it must be by one of these
	}
	return public
}

// JoinAddrs are the addresses of Told, each ending in /p2p/<peer ID>: what others join by.
func (h *Host) JoinAddrs() []multiaddr.Multiaddr {
	out, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: h.id, Addrs: h.Told()})
	if err != nil { // cannot be: the ID is our own
		return nil
	}
	return out
}

// relayCandidates implements autorelay.PeerSource.
func (h *Host) relayCandidates(ctx context.Context, n int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, max(n, 0)) // all of them fit
	defer close(out)
	source := h.relays.Load()
	if source == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, relayPatience)
	defer cancel()
	for _, info := range (*source)(ctx, n) {
		if info.ID != h.id && len(out) < cap(out) {
			out <- info
		}
	}
	return out
}

// Reachability is how others reach this host, as far as it knows.
func (h *Host) Reachability() Reachability {
	if h.libp2p == nil {
		return ReachableUnknown
	}
	return h.found.Load().reachability(h.libp2p.Addrs())
}

func relayed(addrs []multiaddr.Multiaddr) bool {
	for _, a := range addrs {
		if _, err := a.ValueForProtocol(multiaddr.P_CIRCUIT); err == nil {
			return true
		}
	}
	return false
}

// standing is what others have found out about this host; a value is never changed, but replaced.
type standing struct {
	dialled network.Reachability
	onePort bool // its NAT maps a port of ours to one of its own, whoever we talk to
}

// reachability is how a host with these addresses is reached.
func (s standing) reachability(addrs []multiaddr.Multiaddr) Reachability {
	switch {
	case s.dialled == network.ReachabilityPublic:
		return ReachableDirectly
	case s.dialled != network.ReachabilityPrivate:
		return ReachableUnknown
	case !relayed(addrs):
		return Unreachable
	case s.onePort:
		return ReachableByHolePunch
	default:
		return ReachableByRelay
	}
}

// learn returns what an event adds to what is known.
func (s standing) learn(e any) standing {
	switch e := e.(type) {
	case event.EvtLocalReachabilityChanged:
		s.dialled = e.Reachability
	case event.EvtNATDeviceTypeChanged:
		if e.TransportProtocol == network.NATTransportUDP { // holes are punched by QUIC first
			s.onePort = e.NatDeviceType == network.NATDeviceTypeEndpointIndependent
		}
	}
	return s
}

// Moved has call called, from one goroutine, each time that the host's addresses or its reachability may have changed,
// until ctx ends. It returns nil then.
func (h *Host) Moved(ctx context.Context, call func()) error {
	if h.libp2p == nil {
		return ErrClosed
	}
	return h.follow(ctx, "gridbeam/moved", func(e any) {
		h.learn(e) // watchReach may hear of it after us, and call looks at what it knows
		call()
	}, new(event.EvtLocalAddressesUpdated), new(event.EvtLocalReachabilityChanged),
		new(event.EvtNATDeviceTypeChanged), new(event.EvtAutoRelayAddrsUpdated))
}

// watchReach keeps what others find out about this host.
func (h *Host) watchReach(ctx context.Context) error {
	return h.follow(ctx, "gridbeam/reach", h.learn, new(event.EvtLocalReachabilityChanged), new(event.EvtNATDeviceTypeChanged))
}

// learn takes over what an event says of how this host is reached.
func (h *Host) learn(e any) {
	for {
		old := h.found.Load()
		if s := old.learn(e); h.found.CompareAndSwap(old, &s) {
			return
		}
	}
}

// follow hands events to call until ctx ends.
func (h *Host) follow(ctx context.Context, name string, call func(e any), events ...any) error {
	sub, err := h.libp2p.EventBus().Subscribe(events, eventbus.Name(name))
	if err != nil {
		return fmt.Errorf("watching how the host is reached: %w", err)
	}
	defer func() { _ = sub.Close() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			call(e)
		}
	}
}
