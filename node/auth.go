package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

const (
	maxGrantsPerPeer = 8
	maxAuthPeers     = 1024
	// clockSkew is how far clocks of two machines may differ (trust.md 2).
	clockSkew = 60 * time.Second
)

// gate remembers who has shown a right to use this node. What it knows ends with the process: peers present
// their chains again.
type gate struct {
	networks []protocol.NetworkFile
	now      func() time.Time

	mu     sync.Mutex
	rights map[protocol.PeerID][]right // newest last
}

// right is what one verified chain allows.
type right struct {
	protocol.Rights
	network protocol.NetworkID
	issuers []protocol.PeerID
}

func newGate(networks []protocol.NetworkFile, now func() time.Time) *gate {
	return &gate{networks: networks, now: now, rights: map[protocol.PeerID][]right{}}
}

// network returns a joined network.
func (g *gate) network(id protocol.NetworkID) *protocol.NetworkFile {
	i := slices.IndexFunc(g.networks, func(n protocol.NetworkFile) bool { return n.ID == id })
	if i < 0 {
		return nil
	}
	return &g.networks[i]
}

// serve answers a presentation: the node checks the chain itself, against the roots of the network that its
// owner has joined (trust.md 2).
func (g *gate) serve(_ context.Context, from protocol.PeerID, req *pb.AuthRequest) (*pb.AuthReply, error) {
	r, err := g.check(from, req)
	if err != nil {
		return &pb.AuthReply{Code: string(protocol.CodeOfAuth(err)), Text: err.Error()}, nil
	}
	if !g.remember(from, r) {
		return nil, p2p.Errorf(p2p.CodeBusy, "this node knows too many bridges; come back later")
	}
	return &pb.AuthReply{Ok: true, Grant: r.Grant[:], Expires: r.Expires.UnixMilli()}, nil
}

func (g *gate) check(from protocol.PeerID, req *pb.AuthRequest) (right, error) {
	if len(req.GetNetwork()) != 16 {
		return right{}, &protocol.AuthError{Code: protocol.AuthMalformed, Link: -1, Text: "the network's ID has to have 16 bytes"}
	}
	id := protocol.NetworkID(req.GetNetwork())
	n := g.network(id)
	if n == nil {
		return right{}, &protocol.AuthError{Code: protocol.AuthNetwork, Link: -1, Text: "this node has not joined network " + id.String()}
	}
	rights, err := protocol.VerifyChain(req.GetLinks(), protocol.GrantCheck{Network: id, Audience: from, IsRoot: n.IsRoot, Now: g.now()})
	if err != nil {
		return right{}, err
	}
	r := right{Rights: rights, network: id, issuers: []protocol.PeerID{rights.Root}}
	for _, raw := range req.GetLinks() {
		link, err := protocol.ParseGrant(raw)
		if err != nil { // the chain was good a moment ago
			return right{}, err
		}
		r.issuers = append(r.issuers, link.Audience)
	}
	return r, nil
}

func (g *gate) remember(from protocol.PeerID, r right) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if _, known := g.rights[from]; !known && len(g.rights) >= maxAuthPeers {
		maps.DeleteFunc(g.rights, func(_ protocol.PeerID, rs []right) bool {
			return !slices.ContainsFunc(rs, func(r right) bool { return r.live(now) })
		})
		if len(g.rights) >= maxAuthPeers {
			return false
		}
	}
	kept := slices.DeleteFunc(g.rights[from], func(o right) bool { return o.Grant == r.Grant || !o.live(now) })
	if n := len(kept) + 1 - maxGrantsPerPeer; n > 0 {
		kept = slices.Delete(kept, 0, n)
	}
	g.rights[from] = append(kept, r)
	return true
}

func (r *right) live(now time.Time) bool { return now.Before(r.Expires.Add(clockSkew)) }

// errPresentAgain asks a bridge to present its chain: this node does not know it, or no more.
var errPresentAgain = p2p.Errorf(p2p.CodeUnauthorized, "%s: present the grant chain over %s", protocol.AuthAgain, protocol.ProtoAuth)

// byGrant returns the right of a peer under a grant; errPresentAgain when it is not known or has run out.
func (g *gate) byGrant(from protocol.PeerID, id protocol.GrantID) (right, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rights[from] {
		if r.Grant == id && r.live(g.now()) {
			return r, nil
		}
	}
	return right{}, errPresentAgain
}

// any returns the newest right of a peer that allows an ability; errPresentAgain when there is none.
func (g *gate) any(from protocol.PeerID, ability string) (right, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	for _, r := range slices.Backward(g.rights[from]) {
		if r.Can(ability, now) {
			return r, nil
		}
	}
	return right{}, errPresentAgain
}

// known lists the peers that have a right now, with its end.
func (g *gate) known() map[protocol.PeerID]time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	out, now := map[protocol.PeerID]time.Time{}, g.now()
	for id, rs := range g.rights {
		for _, r := range rs {
			if r.live(now) && r.Expires.After(out[id]) {
				out[id] = r.Expires
			}
		}
	}
	return out
}

// refusal turns a refused chain into the wire's error.
func refusal(err error) error {
	if e, ok := errors.AsType[*protocol.AuthError](err); ok {
		return p2p.Errorf(p2p.CodeUnauthorized, "%s", e)
	}
	return err
}

// reader says who may read which tree: a bridge with a right everything, since it has to fetch outputs; the
// holders that a bridge names for a job's volumes those volumes.
type reader struct {
	gate *gate
	book *book
}

var _ volumes.Authorizer = reader{}

// MayRead implements volumes.Authorizer.
func (r reader) MayRead(p peer.ID, root cid.Cid) bool {
	if _, err := r.gate.any(p, protocol.AbilityJobSubmit); err == nil {
		return true
	}
	r.book.mu.Lock()
	defer r.book.mu.Unlock()
	for _, m := range r.book.members {
		for i := range m.terms.Volumes {
			v := &m.terms.Volumes[i]
			if v.Root == root && slices.ContainsFunc(v.Holders, func(h peer.AddrInfo) bool { return h.ID == p }) {
				return true
			}
		}
	}
	return false
}
