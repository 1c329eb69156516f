package beambridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrNotRoot means that the network file names other roots than this bridge, so it needs a grant of one of
// them.
var ErrNotRoot = errors.New("beambridge: bridge is no root of its network")

const (
	// grantLife is how long the bridge's own link holds, and grantRenew how much of it is left when a new one is
	// made (trust.md 2).
	grantLife  = 24 * time.Hour
	grantRenew = 8 * time.Hour
	// requestLife bounds a signed reservation or grant of leases in time: nodes remember nonces for as long.
	requestLife = 30 * time.Second
	// inviteAddrs is how many addresses an invitation carries.
	inviteAddrs = 4
)

// loadNetwork reads the network file, or makes a private network whose only root is key.
func loadNetwork(path, name string, key crypto.PrivKey, now time.Time) (n protocol.NetworkFile, made bool, err error) {
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if n, err = protocol.NewNetwork(name, key, nil, now); err != nil {
			return n, false, err
		}
		return n, true, writeFile(path, n.Bytes())
	case err != nil:
		return n, false, fmt.Errorf("reading the network file: %w", err)
	}
	if n, err = protocol.ParseNetworkFile(raw); err != nil {
		return n, false, fmt.Errorf("network file %s: %w", path, err)
	}
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return n, false, fmt.Errorf("deriving the bridge's peer ID: %w", err)
	}
	if !n.IsRoot(self) {
		return n, false, fmt.Errorf("%w: %s of %s names %v, this bridge is %s; use the identity key that made the network, or another network file", ErrNotRoot, path, n.Name, n.Roots, self)
	}
	return n, false, nil
}

// writeFile replaces a file by a whole one, durably.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already where it was renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// authority holds the bridge's right to use nodes, and which nodes know it.
type authority struct {
	host    *p2p.Host
	network protocol.NetworkFile
	clock   func() time.Time

	mu      sync.Mutex
	link    []byte
	grant   protocol.Grant
	shown   map[protocol.PeerID]protocol.GrantID // what a node has accepted
	refused map[protocol.PeerID]refusal
}

// refusal is a node's no to our chain; it is not asked again before until.
type refusal struct {
	until time.Time
	err   error
}

func newAuthority(host *p2p.Host, n protocol.NetworkFile, clock func() time.Time) *authority {
	return &authority{host: host, network: n, clock: clock, shown: map[protocol.PeerID]protocol.GrantID{}, refused: map[protocol.PeerID]refusal{}}
}

// current returns the bridge's link, renewed when it nears its end.
func (a *authority) current() (link []byte, id protocol.GrantID, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.clock()
	if a.link == nil || a.grant.NotAfter.Sub(now) < grantRenew {
		self := a.host.ID()
		g := protocol.Grant{
			Network: a.network.ID, Issuer: self, Audience: self, NotBefore: now.Add(-time.Minute).Truncate(time.Second), NotAfter: now.Add(grantLife).Truncate(time.Second),
			Abilities: []string{protocol.AbilityJobSubmit, protocol.AbilityJobControl, protocol.AbilityCounterSign, protocol.AbilityAttest},
		}
		raw, err := g.Seal(a.host.Key())
		if err != nil {
			return nil, id, fmt.Errorf("renewing the bridge's grant: %w", err)
		}
		a.link, a.grant = raw, g
	}
	return a.link, a.grant.ID, nil
}

// present makes sure that a node knows the bridge's chain and returns the grant to name. The error says why the
// node does not want us; it is remembered for a while.
func (a *authority) present(ctx context.Context, node protocol.PeerID) (protocol.GrantID, error) {
	link, id, err := a.current()
	if err != nil {
		return id, err
	}
	a.mu.Lock()
	known := a.shown[node] == id
	no, barred := a.refused[node]
	if barred && !a.clock().Before(no.until) {
		delete(a.refused, node)
		barred = false
	}
	a.mu.Unlock()
	switch {
	case known:
		return id, nil
	case barred:
		return id, no.err
	}
	reply := &pb.AuthReply{}
	if err := p2p.Call(ctx, a.host, node, protocol.ProtoAuth, &pb.AuthRequest{Network: a.network.ID[:], Links: [][]byte{link}}, reply); err != nil {
		return id, fmt.Errorf("presenting the grant to %s: %w", node, err)
	}
	if !reply.GetOk() {
		err := &protocol.AuthError{Code: protocol.AuthCode(reply.GetCode()), Link: -1, Text: reply.GetText()}
		a.mu.Lock()
		a.refused[node] = refusal{a.clock().Add(10 * time.Minute), err}
		a.mu.Unlock()
		return id, err
	}
	a.mu.Lock()
	a.shown[node] = id
	a.mu.Unlock()
	return id, nil
}

// forget makes the next present speak to the node again: it has restarted, or its connection was lost.
func (a *authority) forget(node protocol.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.shown, node)
}

// forgive lets a node that refused be asked again at once: it says something new of itself.
func (a *authority) forgive(node protocol.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.refused, node)
}

// wantsAgain says that a node answered that it does not know our grant.
func wantsAgain(err error) bool {
	var e *p2p.Error
	return errors.As(err, &e) && e.Code == p2p.CodeUnauthorized
}

// invitation is the text by which nodes elsewhere join this network.
func invitation(n protocol.NetworkFile, addrs []multiaddr.Multiaddr, local bool) string {
	inv := protocol.Invitation{Network: n, Local: local, Bootstrap: addrs[:min(len(addrs), inviteAddrs)]}
	return inv.String()
}

// operators says who vouches for nodes: the bridge's own operator, and single nodes by name.
type operators struct {
	own     protocol.PeerID // empty is nobody
	anchors []protocol.PeerID
	labels  *labels
}

func newOperators(key crypto.PrivKey, anchors []protocol.PeerID) (operators, error) {
	o := operators{anchors: anchors, labels: &labels{}}
	if key == nil {
		return o, nil
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return o, fmt.Errorf("deriving the operator's ID: %w", err)
	}
	o.own = id
	return o, nil
}

// of returns a node's operator by its labels, and whether it is an anchor.
func (o operators) of(node protocol.PeerID, c *pb.Capability, now time.Time) (group string, anchor bool) {
	for _, l := range c.GetLabels() {
		if l.GetKey() != protocol.LabelOperator {
			continue
		}
		if issuer, ok := o.labels.verify(l, node, now); ok {
			return issuer.String(), issuer == o.own || slices.Contains(o.anchors, node)
		}
	}
	return "", slices.Contains(o.anchors, node)
}
