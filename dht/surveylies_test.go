package dht

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
)

// made is the ID of a peer that nobody is.
func made(n int64) peer.ID {
	h := sha256.Sum256(fmt.Appendf(nil, "made %d", n))
	return peer.ID(append([]byte{0, 36, 8, 1, 18, 32}, h[:]...))
}

// tellsOf makes a host answer each FIND_NODE with these peers, whoever they are.
func tellsOf(h host.Host, tell func() []peer.AddrInfo) {
	h.SetStreamHandler(protocol.ProtoKad, func(s network.Stream) {
		defer s.Close()
		r := msgio.NewVarintReaderSize(s, 1<<20)
		for {
			raw, err := r.ReadMsg()
			if err != nil {
				return
			}
			m := &kadpb.Message{}
			if err := proto.Unmarshal(raw, m); err != nil {
				return
			}
			for _, info := range tell() {
				p := &kadpb.Message_Peer{Id: []byte(info.ID)}
				for _, a := range info.Addrs {
					p.Addrs = append(p.Addrs, a.Bytes())
				}
				m.CloserPeers = append(m.CloserPeers, p)
			}
			out, err := proto.Marshal(m)
			if err != nil || msgio.NewVarintWriter(s).WriteMsg(out) != nil {
				return
			}
		}
	})
}

// invented tells of so many peers each time that nobody is and that have not been told of before.
func invented(each int, addr multiaddr.Multiaddr) func() []peer.AddrInfo {
	var told atomic.Int64
	return func() (out []peer.AddrInfo) {
		for range each {
			out = append(out, peer.AddrInfo{ID: made(told.Add(1)), Addrs: []multiaddr.Multiaddr{addr}})
		}
		return out
	}
}

func TestOneServerCannotAddMorePeersToASurveyThanATableHolds(t *testing.T) {
	for _, each := range []int{200, 12} { // one answer is too long; all together are
		liar, _ := newHost(t, identityOf(t, 3))
		tellsOf(liar, invented(each, multiaddr.StringCast("/ip4/127.0.0.1/tcp/9")))
		c := startPeer(t, 9, func(c *Config) { c.Mode, c.K = ModeClient, 8 })
		connect(t, c.host, liar)
		f, _ := surveyed(t, c.dir, quickPlan(), &testPeer{identity: identityOf(t, 3), host: liar})
		most, surplus := 16*8, 0
		for _, v := range f.Visits() {
			if len(v.Neighbors) > most {
				t.Errorf("%d a time: %d neighbours are kept of one server, at most %d can be true", each, len(v.Neighbors), most)
			}
			if v.Peer == liar.ID() {
				if surplus = v.Surplus; v.CrawlErr == "" || !v.Answered() {
					t.Errorf("its visit says %q", v.CrawlErr)
				}
			} else if v.Surplus != 0 {
				t.Errorf("%s has a surplus of %d", v.Peer, v.Surplus)
			}
		}
		if n := f.Counts().Visited; n > most+8 {
			t.Errorf("%d a time: %d peers were dialled", each, n)
		}
		if n := f.Refused()[surplusPeers]; each == 200 && n == 0 || n != surplus {
			t.Errorf("%d a time: the surplus of %d is counted as %d", each, surplus, n)
		}
		c.stop()
		if err := errors.Join(c.host.Close(), liar.Close()); err != nil {
			t.Error(err)
		}
	}
}
