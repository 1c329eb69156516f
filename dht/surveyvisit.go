package dht

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/gridbeam/gridbeam/protocol"
)

// maxPrefix is the longest common prefix of keys that is asked for: 2^15 × K servers fill the tables so far.
const maxPrefix = 15

// visit connects to a peer, asks it for itself and reads its routing table.
func (s *survey) visit(ctx context.Context, id peer.ID, addrs []multiaddr.Multiaddr) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, s.plan.VisitTimeout)
	defer cancel()
	v := Visit{Peer: id, Began: s.d.now()}
	v.Addrs, v.Filtered = s.dialable(addrs)
	began := time.Now()
	err := s.connect(ctx, &v)
	v.Dialling = time.Since(began)
	if err != nil {
		if outer.Err() != nil {
			return // we stopped, it is not the peer's fault
		}
		v.ConnectErr, v.Ended = err.Error(), s.d.now()
		s.mu.Lock()
		if _, again := s.missed[id]; !again {
			s.missed[id] = true
		}
		s.mu.Unlock()
		s.event(SurveyEvent{Visit: &v})
		return
	}
	began = time.Now()
	var seen *Sighting
	if slices.Contains(v.Protocols, string(protocol.ProtoQuery)) {
		seen = s.askSelf(ctx, &v)
	}
	if v.Server {
		s.readTable(ctx, &v)
	}
	if outer.Err() != nil {
		return // it is visited again when the survey goes on
	}
	v.Crawling, v.Ended = time.Since(began), s.d.now()
	if seen != nil { // first, so that who takes the visit knows whether the peer wants to be kept
		s.event(SurveyEvent{Sighting: seen})
	}
	s.event(SurveyEvent{Visit: &v})
}

// connect reaches a peer and waits for what it says of itself. Where TCP and QUIC answer at once, either side may
// close the connection that the other one keeps: then there is one that says nothing, and dialling again helps.
func (s *survey) connect(ctx context.Context, v *Visit) error {
	const tries = 3
	for range tries {
		if err := s.d.host.Connect(ctx, peer.AddrInfo{ID: v.Peer, Addrs: v.Addrs}); err != nil {
			return err
		}
		if s.identify(ctx, v); len(v.Protocols) > 0 {
			return nil
		}
	}
	v.CrawlErr = "connected, but it does not say what it speaks"
	return nil
}

// dialable parts addresses that can be dialled from here from those that cannot.
func (s *survey) dialable(addrs []multiaddr.Multiaddr) (dial, filtered []multiaddr.Multiaddr) {
	for _, a := range addrs {
		if s.d.cfg.Loopback || manet.IsPublicAddr(a) {
			dial = append(dial, a)
		} else {
			filtered = append(filtered, a)
		}
	}
	return dial, filtered
}

// identifier is a libp2p host that says when a peer has told what it speaks: connecting does not wait for it
// when there was a connection already.
type identifier interface{ IDService() identify.IDService }

// identify waits for what the peer says of itself when it is connected, and notes it.
func (s *survey) identify(ctx context.Context, v *Visit) {
	store := s.d.host.Peerstore()
	if h, ok := s.d.host.(identifier); ok {
		for _, c := range s.d.host.Network().ConnsToPeer(v.Peer) {
			select {
			case <-h.IDService().IdentifyWait(c):
			case <-ctx.Done():
			}
		}
	}
	if protos, err := store.GetProtocols(v.Peer); err == nil {
		for _, p := range protos {
			v.Protocols = append(v.Protocols, string(p))
			v.Server = v.Server || p == protocol.ProtoKad
			v.Scans = v.Scans || p == protocol.ProtoScan
		}
		slices.Sort(v.Protocols)
	}
	if agent, err := store.Get(v.Peer, "AgentVersion"); err == nil {
		v.Agent, _ = agent.(string)
	}
	v.Listen = store.Addrs(v.Peer)
	slices.SortFunc(v.Listen, func(a, b multiaddr.Multiaddr) int { return a.Compare(b) })
	if conns := s.d.host.Network().ConnsToPeer(v.Peer); len(conns) > 0 {
		v.Connected = conns[0].RemoteMultiaddr()
	}
}

// askSelf asks a peer for its own record and heartbeat.
func (s *survey) askSelf(ctx context.Context, v *Visit) *Sighting {
	began := time.Now()
	found, err := s.d.ask(ctx, v.Peer, []peer.ID{v.Peer})
	if err != nil {
		v.CrawlErr = err.Error()
		return nil
	}
	v.fastest(time.Since(began))
	if len(found) == 0 {
		return nil
	}
	seen := &Sighting{Peer: v.Peer, Record: found[0].record.raw, Via: ViaSelf, From: v.Peer, At: s.d.now()}
	if found[0].beat != nil {
		seen.Beat = found[0].beat.raw
	}
	return seen
}

func (v *Visit) fastest(d time.Duration) {
	if v.RTT == 0 || d < v.RTT {
		v.RTT = d
	}
}

// readTable asks for the peers nearest to keys that share ever more bits with the server's own: each bucket
// of its table. Two answers in a row without anybody new, or two failures, end it. What one server can add is bounded by what
// a table holds, so that a liar costs no more than a server.
func (s *survey) readTable(ctx context.Context, v *Visit) {
	seen := map[peer.ID]bool{v.Peer: true}
	most := (maxPrefix + 1) * s.d.cfg.K
	empty, failed := 0, 0
	for length := 0; length <= maxPrefix && empty < 2 && failed < 2; length++ {
		began := time.Now()
		infos, err := s.d.wire.GetClosestPeers(ctx, v.Peer, keyNear(v.Peer, length))
		if err != nil {
			v.ErrorBits |= 1 << length
			failed++
			v.CrawlErr = errors.Join(err, ctx.Err()).Error()
			continue
		}
		v.fastest(time.Since(began))
		fresh, sized := 0, min(len(infos), 2*s.d.cfg.K)
		v.Surplus += len(infos) - sized
		for _, info := range infos[:sized] {
			if seen[info.ID] || info.ID == s.d.host.ID() {
				continue
			}
			seen[info.ID] = true
			if len(v.Neighbors) >= most {
				v.Surplus++
				continue
			}
			fresh++
			v.Neighbors = append(v.Neighbors, *info)
			s.want(info.ID, info.Addrs)
		}
		if fresh == 0 {
			empty++
		} else {
			empty = 0
		}
	}
	if v.Surplus > 0 {
		v.CrawlErr = fmt.Sprintf("it told of %d peers too many: a table holds %d, an answer %d", v.Surplus, most, s.d.cfg.K)
	}
	v.Neighbors = sortedBy(slices.Values(v.Neighbors), func(p peer.AddrInfo) string { return p.ID.String() })
}

// keyNear finds bytes whose Kademlia key shares exactly length bits with a peer's: about 2^length tries.
func keyNear(id peer.ID, length int) peer.ID {
	own := sha256.Sum256([]byte(id))
	var try [16]byte
	_, _ = rand.Read(try[:8]) // it never fails
	for n := uint64(0); ; n++ {
		for i := range 8 {
			try[8+i] = byte(n >> (8 * i))
		}
		key := sha256.Sum256(try[:])
		if commonBits(own, key) == length {
			return peer.ID(try[:])
		}
	}
}

func commonBits(a, b [32]byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 8 * len(a)
}
