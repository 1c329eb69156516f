package dht

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Limits of hello and probe.
const (
	maxClassCounts = 32
	maxHelloText   = 128 // bytes of a network's ID, of an address and of a model
	probeDials     = 4   // addresses of the asker that are tried
	probeTimeout   = 5 * time.Second
)

// hello tells an asker who we are and how we see it.
func (d *Directory) hello(who asker) *pb.HelloReply {
	r := &pb.HelloReply{Now: d.now().UnixMilli(), Network: d.cfg.Network, Population: uint32(d.index.size()), ClassCounts: d.index.models()}
	if who.addr != nil && len(who.addr.Bytes()) <= maxHelloText {
		r.YourAddress = who.addr.Bytes()
	}
	return r
}

// models counts the nodes of the most common GPU models.
func (x *replica) models() []*pb.ClassPopulation {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []*pb.ClassPopulation
	for k, m := range x.classes.of {
		if k.dim == dimModel {
			out = append(out, &pb.ClassPopulation{Model: k.name.Value(), Nodes: uint32(m.count)})
		}
	}
	slices.SortFunc(out, func(a, b *pb.ClassPopulation) int {
		return cmp.Or(cmp.Compare(b.GetNodes(), a.GetNodes()), cmp.Compare(a.GetModel(), b.GetModel()))
	})
	return out[:min(len(out), maxClassCounts)]
}

// probe tells an asker whether it is seen: its record as a stranger would find it, its heartbeats, and whether
// a new connection to where it asks from comes about.
func (d *Directory) probe(ctx context.Context, who asker) *pb.ProbeReply {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r := &pb.ProbeReply{}
	var addrs []multiaddr.Multiaddr
	if h, ok := d.index.get(who.peer, d.now()); ok {
		c := d.index.opened.record(h.record)
		r.Seq, addrs = c.GetSeq(), addrsOf(c)
		if h.beat != nil {
			r.BeatAgeMs = new(uint32(max(0, min(h.age.Milliseconds(), math.MaxUint32))))
		}
	} else if !d.isUp() {
		return r
	} else if rec, err := d.fromDHT(ctx, who.peer, 1); err == nil {
		r.Seq, addrs = rec.cap.GetSeq(), addrsOf(rec.cap)
	}
	r.Dialable = d.dialable(ctx, who, append(d.host.Peerstore().Addrs(who.peer), addrs...))
	return r
}

// dialable opens a new connection beside the one that is there, to the observed IP alone, and none where that is a
// relay's: so nobody can make us dial somebody else.
func (d *Directory) dialable(ctx context.Context, who asker, addrs []multiaddr.Multiaddr) bool {
	dialer, ok := d.host.Network().(interface {
		TransportForDialing(a multiaddr.Multiaddr) transport.Transport
	})
	if !ok || who.relayed() {
		return false
	}
	from, err := manet.ToIP(who.addr)
	if err != nil {
		return false
	}
	tried := map[string]bool{}
	for _, a := range addrs {
		a, _ = peer.SplitAddr(a)
		ip, err := manet.ToIP(a)
		if err != nil || !ip.Equal(from) || tried[a.String()] || len(tried) == probeDials {
			continue
		}
		tried[a.String()] = true
		t := dialer.TransportForDialing(a)
		if t == nil || t.Proxy() {
			continue
		}
		if c, err := t.Dial(ctx, a, who.peer); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

// Hello is how a peer introduces itself.
type Hello struct {
	// Clock is the peer's clock less ours, as far as the way there and back lets it be known.
	Clock time.Duration
	// Network is its network's ID, empty when it does not tell.
	Network []byte
	// Population is how many nodes its replica holds, 0 for a peer without one.
	Population int
	// Models are the most common GPU models of its replica with the number of nodes that have them.
	Models map[string]int
	// YourAddress is where it sees us, nil when it does not tell.
	YourAddress multiaddr.Multiaddr
}

// Hello asks a peer to introduce itself. It returns ErrQuery or ErrRate, or what kept us from asking.
func (d *Directory) Hello(ctx context.Context, of peer.ID) (Hello, error) {
	begun := d.now()
	end, err := d.exchange(ctx, of, &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_Hello{Hello: &pb.HelloRequest{}}}, 0, func(*pb.QueryRow) {})
	if err != nil {
		return Hello{}, err
	}
	return readHello(end.GetHello(), begun, d.now())
}

func readHello(r *pb.HelloReply, begun, now time.Time) (Hello, error) {
	if r == nil || len(r.GetNetwork()) > maxHelloText || len(r.GetYourAddress()) > maxHelloText || len(r.GetClassCounts()) > maxClassCounts {
		return Hello{}, fmt.Errorf("%w: not a hello", ErrQuery)
	}
	h := Hello{
		Clock: millis(r.GetNow()).Sub(begun.Add(now.Sub(begun) / 2)), Network: r.GetNetwork(),
		Population: int(r.GetPopulation()), Models: map[string]int{},
	}
	for _, c := range r.GetClassCounts() {
		if len(c.GetModel()) > maxHelloText {
			return Hello{}, fmt.Errorf("%w: not a hello", ErrQuery)
		}
		h.Models[c.GetModel()] = int(c.GetNodes())
	}
	if a, err := multiaddr.NewMultiaddrBytes(r.GetYourAddress()); err == nil {
		h.YourAddress = a
	}
	return h, nil
}

// Probed is how another peer sees us.
type Probed struct {
	// Peer is who says so.
	Peer peer.ID
	// Seq is the sequence number of our record as it finds it, 0 when it finds none.
	Seq uint64
	// BeatAge is the time since it heard our last heartbeat; Heard says whether it heard one.
	BeatAge time.Duration
	// Heard says whether it heard a heartbeat of ours: only peers with a replica listen.
	Heard bool
	// Dialable says whether it could open a new connection to where we ask from.
	Dialable bool
}

// Probe asks a peer how it sees us. It returns ErrQuery or ErrRate, or what kept us from asking.
func (d *Directory) Probe(ctx context.Context, of peer.ID) (Probed, error) {
	end, err := d.exchange(ctx, of, &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_Probe{Probe: &pb.ProbeRequest{}}}, 0, func(*pb.QueryRow) {})
	if err != nil {
		return Probed{}, err
	}
	r := end.GetProbe()
	if r == nil {
		return Probed{}, fmt.Errorf("%w: not how we are seen", ErrQuery)
	}
	return Probed{
		Peer: of, Seq: r.GetSeq(), BeatAge: time.Duration(r.GetBeatAgeMs()) * time.Millisecond, Heard: r.BeatAgeMs != nil, Dialable: r.GetDialable(),
	}, nil
}
