package node

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// labelLife is how long the operator's label holds; a record is made anew long before.
const labelLife = 24 * time.Hour

// speaker makes and signs what the node says of itself (discovery.md 2 and 3).
type speaker struct {
	self       protocol.PeerID
	key        crypto.PrivKey
	operator   crypto.PrivKey
	labels     []*pb.Label
	noResearch bool
	// place is where the owner says that the machine is; landmarks are its round trips to them, told unless noLandmarks.
	place       protocol.Place
	noLandmarks bool
	landmarks   func() dht.LandmarkRTTs

	version  string
	started  time.Time
	ask      uint64
	kinds    []string
	wall     time.Duration
	networks []protocol.NetworkFile
	backends []*offered
	// addrs are where the node can be reached, reach is how, empty while it is not known.
	addrs func() []multiaddr.Multiaddr
	reach func() p2p.Reachability
	// line is what peers have measured, nil when they do not.
	line func(now time.Time) lineFacts
	// load is what changes from one heartbeat to the next.
	load func() load

	mu     sync.Mutex
	inv    Inventory
	said   []said // the latest records
	digest string // of the GPU groups when they were looked at last
}

var _ dht.Source = (*speaker)(nil)

// load is how busy the node is.
type load struct {
	state           State
	running, queued int
	inventory       Inventory                   // with what is free now
	free            func(uuids []string) uint32 // those of some GPUs that a lease could get
}

// Record implements dht.Source.
func (s *speaker) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	c := &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(s.self), Seq: seq, Issued: issued.UnixMilli(), Expires: expires.UnixMilli(),
		Agent: clip("gridbeam/"+s.version, 32), Roles: []string{"node"}, Tombstone: leaving,
	}
	if leaving {
		return protocol.SealCapability(s.key, c)
	}
	uuids, err := s.describe(c, issued)
	if err != nil {
		return nil, err
	}
	s.remember(seq, uuids)
	return s.fit(c)
}

// describe fills in what the node is, and returns which GPUs its groups are.
func (s *speaker) describe(c *pb.Capability, issued time.Time) (uuids [][]string, err error) {
	for _, a := range s.public() {
		c.Addrs = append(c.Addrs, a.Bytes())
	}
	s.mu.Lock()
	inv := s.inv
	s.mu.Unlock()
	m := s.machine(&inv, issued)
	c.Host, c.Gpus, c.Benchmark = m.Host, m.Gpus, m.Benchmark
	_, uuids = s.groups(&inv.GPUs, issued)
	c.Network = &pb.Network{Transports: transports(s.addrs())}
	if how := s.reach(); how != p2p.ReachableUnknown && how != p2p.Unreachable {
		c.Network.Reachability = string(how)
	}
	c.Location = s.location()
	c.Policy = &pb.PolicyHint{PriceUusdPerHour: &s.ask, Kinds: s.kinds, Egress: "none", NeedsGrant: proto.Bool(true), MaxJobS: proto.Uint32(uint32(min(s.wall/time.Second, 1<<31)))}
	if s.operator != nil {
		l, err := protocol.SignLabel(s.operator, s.self, protocol.LabelOperator, "node", issued.Add(labelLife))
		if err != nil {
			return nil, fmt.Errorf("signing the operator's label: %w", err)
		}
		c.Labels = append(c.Labels, l)
	}
	for _, l := range s.labels {
		if len(l.GetIssuer()) == 0 || l.GetExpires() > issued.UnixMilli() { // one that has run out says nothing
			c.Labels = append(c.Labels, l)
		}
	}
	if s.noResearch {
		c.Labels = append(c.Labels, &pb.Label{Key: protocol.LabelResearch, Value: protocol.ResearchNo, Expires: c.GetExpires()})
	}
	if s.line != nil {
		s.measured(c, s.line(issued))
	}
	return uuids, nil
}

// machine is the part of a record that the hardware fills.
func (s *speaker) machine(inv *Inventory, now time.Time) *pb.Capability {
	c := &pb.Capability{Host: s.host(inv)}
	c.Gpus, _ = s.groups(&inv.GPUs, now)
	if inv.Measured != nil {
		inv.Measured.into(c)
	}
	return c
}

// measured fills in what peers have found of the line. Where a record has too many labels, own claims go first, then
// what was measured.
func (s *speaker) measured(c *pb.Capability, f lineFacts) {
	if f.At.IsZero() {
		return
	}
	n := c.GetNetwork()
	n.Up, n.Down, n.MeasuredAt, n.MeasuredBy = &f.Up, &f.Down, proto.Int64(f.At.UnixMilli()), protocol.MeasuredByPeers
	c.Labels = append(c.Labels, f.Labels...)
	for len(c.Labels) > recordLabels {
		i := slices.IndexFunc(c.Labels, ownClaim)
		if i < 0 {
			i = len(c.Labels) - 1
		}
		c.Labels = slices.Delete(c.Labels, i, i+1)
	}
}

// recordLabels is how many labels a record has room for (discovery.md 2).
const recordLabels = 16

// ownClaim is a label that says nothing but what the node says of itself.
func ownClaim(l *pb.Label) bool {
	return len(l.GetIssuer()) == 0 && l.GetKey() != protocol.LabelResearch
}

// ofLine is a label that somebody has signed who has measured the line.
func ofLine(l *pb.Label) bool {
	return len(l.GetIssuer()) > 0 && (l.GetKey() == protocol.LabelTier || l.GetKey() == protocol.LabelPriceTier)
}

// compare tells what the record says beyond hardware, and how the node stands to the profiles of reward policies.
func (s *speaker) compare(st *Status, now time.Time) {
	c := &pb.Capability{}
	if _, err := s.describe(c, now); err != nil {
		return // the announcer meets the same error, and reports it
	}
	for _, l := range c.GetLabels() {
		x := LabelStatus{Key: l.GetKey(), Value: l.GetValue(), Issuer: protocol.PeerID(l.GetIssuer())}
		if l.GetExpires() != 0 {
			x.Expires = new(time.UnixMilli(l.GetExpires()))
		}
		st.Labels = append(st.Labels, x)
	}
	for _, p := range protocol.Profiles() {
		all := p.Check(c)
		for i := range all {
			if s.line == nil && all[i].Name == "bandwidth" && !all[i].Met {
				all[i].Fix = "let peers measure the line: gridbeam node run --measure-line"
			}
		}
		st.Profiles = append(st.Profiles, ProfileStatus{Name: p.Name, Met: protocol.Meets(all), Requirements: all})
	}
}

// fit leaves out what may be left out until the record has its size: the benchmark, own claims, addresses past three,
// device tags, labels of the line.
func (s *speaker) fit(c *pb.Capability) ([]byte, error) {
	for {
		raw, err := protocol.SealCapability(s.key, c)
		if !errors.Is(err, protocol.ErrTooLarge) {
			return raw, err
		}
		claimed, line := slices.IndexFunc(c.Labels, ownClaim), slices.IndexFunc(c.Labels, ofLine)
		tagged := slices.IndexFunc(c.Gpus, func(g *pb.GpuGroup) bool { return len(g.DeviceTags) > 0 })
		switch {
		case c.Benchmark != nil:
			c.Benchmark = nil
		case claimed >= 0:
			c.Labels = slices.Delete(c.Labels, claimed, claimed+1)
		case len(c.Addrs) > 3:
			c.Addrs = c.Addrs[:3]
		case tagged >= 0:
			c.Gpus[tagged].DeviceTags = nil
		case line >= 0:
			c.Labels = slices.Delete(c.Labels, line, line+1)
		default:
			return nil, err
		}
	}
}

func (s *speaker) host(inv *Inventory) *pb.Host {
	h := &pb.Host{
		Os: inv.OS, Arch: inv.Arch, Kernel: inv.Kernel, CpuModel: inv.CPUModel, Threads: known32(inv.Threads), Cores: known32(inv.Cores),
		Sockets: known32(inv.Sockets), Mhz: known32(inv.MHz), RamBytes: known64(inv.Memory),
	}
	if h.Cores == nil { // a virtual machine may not tell
		h.Cores = h.Threads
	}
	if inv.Disk > 0 {
		h.Storage = []*pb.Storage{{Class: cmp.Or(inv.DiskClass, "data"), Total: inv.Disk, Usable: inv.DiskFree}}
	}
	for _, b := range s.backends {
		h.Executors = append(h.Executors, b.names()...)
	}
	return h
}

func known32(n int) *uint32 {
	if n <= 0 {
		return nil
	}
	return proto.Uint32(uint32(n))
}

func known64(n uint64) *uint64 {
	if n == 0 {
		return nil
	}
	return &n
}

// tags are what lets one GPU under two names be noticed, without telling its UUID (discovery.md 2).
func (s *speaker) tags(uuids []string) (out [][]byte) {
	for _, uuid := range uuids {
		if tag := s.tag("gridbeam/gpu/1", uuid); tag != nil {
			out = append(out, tag)
		}
	}
	return out
}

// tag stands for something that stays home, within one network; nil in none.
func (s *speaker) tag(domain, secret string) []byte {
	if len(s.networks) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, s.networks[0].ID[:])
	mac.Write([]byte(domain))
	mac.Write([]byte(secret))
	return mac.Sum(nil)[:8]
}

// public are the addresses that a record tells.
func (s *speaker) public() []multiaddr.Multiaddr {
	out := slices.DeleteFunc(slices.Clone(s.addrs()), func(a multiaddr.Multiaddr) bool { return len(a.Bytes()) > 128 })
	return out[:min(len(out), 6)]
}

func transports(addrs []multiaddr.Multiaddr) (out []string) {
	for _, a := range addrs {
		var kind string
		if _, err := a.ValueForProtocol(multiaddr.P_QUIC_V1); err == nil {
			kind = "quic"
		} else if _, err := a.ValueForProtocol(multiaddr.P_TCP); err == nil {
			kind = "tcp"
		} else {
			continue
		}
		if _, err := a.ValueForProtocol(multiaddr.P_IP6); err == nil {
			kind += "6"
		} else {
			kind += "4"
		}
		if !slices.Contains(out, kind) {
			out = append(out, kind)
		}
	}
	slices.Sort(out)
	return out
}

var heartbeatStates = map[State]pb.NodeState{
	StateReady: pb.NodeState_NODE_STATE_READY, StateBusy: pb.NodeState_NODE_STATE_BUSY, StateDraining: pb.NodeState_NODE_STATE_DRAINING,
	StatePaused: pb.NodeState_NODE_STATE_PAUSED, StateLeaving: pb.NodeState_NODE_STATE_LEAVING, StateStarting: pb.NodeState_NODE_STATE_PAUSED,
}

// Beat implements dht.Source.
func (s *speaker) Beat(h dht.BeatHeader, leaving bool) ([]byte, error) {
	l := s.load()
	if leaving {
		l.state = StateLeaving
	}
	a := &pb.Availability{
		Format: 1, PeerId: []byte(s.self), Seq: h.Seq, At: h.At.UnixMilli(), PeriodS: uint32(h.Period / time.Second), State: heartbeatStates[l.state],
		CapSeq: h.CapSeq, CapDigest: h.CapDigest[:], Queued: uint32(l.queued), Running: uint32(l.running), UpSince: s.started.UnixMilli(),
		RamFreeMib: uint32(l.inventory.MemoryFree >> 20), DiskFreeGib: uint32(l.inventory.DiskFree >> 30),
	}
	a.Groups = s.loads(h.CapSeq, &l.inventory.GPUs, l.free)
	return protocol.SealAvailability(s.key, a)
}
