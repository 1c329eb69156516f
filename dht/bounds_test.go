package dht

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestTheStoreForOthersKeepsItsBoundAndTheNearestKeys(t *testing.T) {
	const items, size = 20, 1000
	name := func(i int) ds.Key { return storeKey(fmt.Sprint("key ", i)) }
	each := len(name(10).String()) + size + entryOverhead
	b := newBoundedStore("us", items*each)
	byDistance := make([]int, 100)
	for i := range byDistance {
		byDistance[i] = i
	}
	slices.SortFunc(byDistance, func(i, k int) int {
		x, y := b.distance(name(i)), b.distance(name(k))
		return slices.Compare(x[:], y[:])
	})
	refused := 0
	for i := range 100 {
		if err := b.Put(t.Context(), name(i), make([]byte, size)); err != nil {
			refused++
		}
		if b.used > b.limit {
			t.Fatalf("%d bytes of %d after %d items", b.used, b.limit, i+1)
		}
	}
	var kept []int
	for _, i := range byDistance {
		if has, _ := b.Has(t.Context(), name(i)); has {
			kept = append(kept, i)
		}
	}
	if len(kept) < items-1 || !slices.Equal(kept, byDistance[:len(kept)]) || refused == 0 || len(b.far) != len(kept) || len(b.meta) != len(kept) {
		t.Errorf("kept %v of the nearest %v, refused %d", kept, byDistance[:items], refused)
	}
	for _, i := range kept {
		if err := b.Put(t.Context(), name(i), nil); err != nil { // smaller ones in their place
			t.Fatal(err)
		}
	}
	if used := b.used; used >= len(kept)*(each-size+1) {
		t.Errorf("%d bytes for %d empty values", used, len(kept))
	}
	for _, i := range kept {
		if err := b.Delete(t.Context(), name(i)); err != nil {
			t.Fatal(err)
		}
	}
	if b.used != 0 || len(b.meta) != 0 || len(b.far) != 0 {
		t.Errorf("%d bytes of nothing", b.used)
	}
}

// farConn is a connection to a peer at some address.
type farConn struct {
	network.Conn
	peer peer.ID
	addr multiaddr.Multiaddr
}

func (c *farConn) RemotePeer() peer.ID                  { return c.peer }
func (c *farConn) RemoteMultiaddr() multiaddr.Multiaddr { return c.addr }
func (c *farConn) Stat() network.ConnStats              { return network.ConnStats{} }

type farStream struct {
	network.Stream
	conn *farConn
}

func (s *farStream) Conn() network.Conn { return s.conn }

func TestAPeerMayHaveUsStoreSoMuchAMinute(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	q := newQuota(func() time.Time { return now })
	send := func(from peer.ID, kind kadpb.Message_MessageType, n int) (through int) {
		for range n {
			m := &kadpb.Message{Type: kind, Key: []byte("k")}
			q.hook(context.Background(), &farStream{conn: &farConn{peer: from}}, m)
			through += btoi(len(m.Key) > 0)
		}
		return through
	}
	for _, c := range []struct {
		name  string
		from  peer.ID
		kind  kadpb.Message_MessageType
		after time.Duration
		want  int
	}{
		{"values", "a", kadpb.Message_PUT_VALUE, 0, 60},
		{"providers, which count by themselves", "a", kadpb.Message_ADD_PROVIDER, 0, 120},
		{"values of another peer", "b", kadpb.Message_PUT_VALUE, 0, 60},
		{"more in the same minute", "a", kadpb.Message_PUT_VALUE, time.Second, 0},
		{"questions", "a", kadpb.Message_FIND_NODE, 0, 300},
		{"a minute later", "a", kadpb.Message_PUT_VALUE, time.Minute, 60},
	} {
		now = now.Add(c.after)
		if got := send(c.from, c.kind, 300); got != c.want {
			t.Errorf("%s: %d of 300 let through, want %d", c.name, got, c.want)
		}
	}
}

func TestSequenceNumbersOfManyThatHaveLeftAreBounded(t *testing.T) {
	x := newReplica(50)
	now := epoch
	for round := range 10 {
		for i := range 50 {
			x.putRecord(unsigned(peer.ID(fmt.Sprint(round, " ", i)), 1, now), now)
		}
		now = now.Add(2 * time.Hour) // all have ended
		x.sweep(now)
		if len(x.seen) > 150 {
			t.Fatalf("round %d: %d numbers for a replica of 50", round, len(x.seen))
		}
	}
	if _, ok := x.seen["9 0"]; !ok || len(x.seen) != 150 {
		t.Errorf("%d numbers, those heard last among them %t", len(x.seen), ok)
	}
}

func TestASecondRecordOfOneNumberIsKeptAndReportedAndDoesNotCount(t *testing.T) {
	d := still(t)
	first, second := unsigned("a", 5, epoch, gpu("nvidia-l4-24gb", 1, 22.5)), unsigned("a", 5, epoch, gpu("nvidia-h100-80gb-sxm", 8, 79.65))
	second.raw = []byte("other bytes")
	second.digest = digestOf(second.raw)
	d.index.putRecord(first, epoch)
	for range 2 {
		if d.index.putRecord(second, epoch) {
			t.Error("the second record is taken")
		}
	}
	if !d.index.putRecord(first, epoch) {
		t.Error("the first record is no longer held")
	}
	if hits, _ := newAsking(Query{Filter: parsed(t, `gpu.model == "L4"`), Literal: true}, epoch, false).match(d.index); len(hits) != 1 {
		t.Error("the first record is not the one that counts")
	}
	got := d.Equivocations()
	if len(got) != 1 || got[0].Peer != "a" || got[0].Seq != 5 || !slices.Equal(got[0].First, first.raw) || !slices.Equal(got[0].Second, second.raw) {
		t.Errorf("reported: %+v", got)
	}
	if _, ex := newAsking(Query{}, epoch, false).match(d.index); ex.Equivocated != 1 {
		t.Errorf("an explanation counts %d", ex.Equivocated)
	}
	for i := range 3 * maxEquivocations {
		id := peer.ID(fmt.Sprint("made up ", i))
		r := unsigned(id, 1, epoch)
		other := *r
		other.raw, other.digest = second.raw, second.digest
		d.index.putRecord(r, epoch)
		d.index.putRecord(&other, epoch)
	}
	if got = d.Equivocations(); len(got) != maxEquivocations || got[len(got)-1].Peer != peer.ID(fmt.Sprint("made up ", 3*maxEquivocations-1)) || len(d.index.twice.of) != maxEquivocations {
		t.Errorf("%d kept", len(got))
	}
}

func TestATombstoneIsNeverListed(t *testing.T) {
	x := newReplica(10)
	r := unsigned("a", 1, epoch)
	x.putRecord(r, epoch)
	if len(matches(t, x, "", epoch)) != 0 { // nothing was heard of it: its state is unknown
		t.Fatal("listed without a heartbeat")
	}
	all := func() int {
		out, ex := newAsking(Query{Literal: true}, epoch, false).match(x)
		if ex.Population != len(out) {
			t.Errorf("population %d, %d listed", ex.Population, len(out))
		}
		return len(out)
	}
	if all() != 1 {
		t.Fatal("the node is not listed")
	}
	gone := unsigned("a", 2, epoch)
	gone.cap.Tombstone = true
	if x.putRecord(gone, epoch); all() != 0 {
		t.Error("a node that has left is listed")
	}
	x.putBeat(&beat{raw: []byte{0}, peer: "a", av: heartbeat("a", 9, epoch, gone.raw, ready)}, 0, epoch)
	if all() != 0 {
		t.Error("a node that has left is listed after a heartbeat that speaks of its tombstone")
	}
	if x.putRecord(unsigned("a", 3, epoch), epoch); all() != 1 {
		t.Error("a node that has come back is not listed")
	}
}

// farHost is connected to peers at addresses that a test names.
type farHost struct {
	host.Host
	conns map[peer.ID]multiaddr.Multiaddr
}

type farNetwork struct {
	network.Network
	of *farHost
}

func (h *farHost) Network() network.Network { return &farNetwork{h.Host.Network(), h} }

func (n *farNetwork) ConnsToPeer(id peer.ID) []network.Conn {
	if a := n.of.conns[id]; a != nil {
		return []network.Conn{&farConn{peer: id, addr: a}}
	}
	return nil
}

func TestPeersOfOneNetworkAreNotIndependentAndShareFetchWorkers(t *testing.T) {
	h, _ := newHost(t, identityOf(t, 1))
	far := &farHost{h, map[peer.ID]multiaddr.Multiaddr{}}
	cfg := DefaultConfig()
	cfg.Mode = ModeClient
	d, err := New(cfg, far, nil, func() time.Time { return epoch }, newRand(1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	operator := func(id peer.ID, by int) []byte {
		rec := machine(id, 1, epoch)
		l, err := protocol.SignLabel(identityOf(t, by).key, id, protocol.LabelOperator, "index", epoch.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		rec.Labels = []*pb.Label{l}
		for n := range 100 {
			if identityOf(t, n).id == id {
				return sign(t, identityOf(t, n).key, capabilitySeal(), rec)
			}
		}
		t.Fatal("no such identity")
		return nil
	}
	for _, c := range []struct {
		name, a, b   string
		byA, byB     int
		independent  int
		onePartOfNet bool
	}{
		{"one /16", "/ip4/198.51.1.1/tcp/1", "/ip4/198.51.200.1/tcp/1", 20, 21, 1, false},
		{"one /24", "/ip4/198.51.1.1/tcp/1", "/ip4/198.51.1.200/udp/1/quic-v1", 20, 21, 1, true},
		{"different /16", "/ip4/198.51.1.1/tcp/1", "/ip4/198.52.1.1/tcp/1", 20, 21, 2, false},
		{"one operator", "/ip4/198.51.1.1/tcp/1", "/ip4/203.0.113.1/tcp/1", 20, 20, 1, false},
		{"one IPv6 /32", "/ip6/2001:db8:1::1/tcp/1", "/ip6/2001:db8:2::1/tcp/1", 20, 21, 1, false},
		{"one IPv6 /48", "/ip6/2001:db8:1::1/tcp/1", "/ip6/2001:db8:1:2::1/tcp/1", 20, 21, 1, true},
		{"different IPv6 /32", "/ip6/2001:db8::1/tcp/1", "/ip6/2001:db9::1/tcp/1", 20, 21, 2, false},
	} {
		a, b := identityOf(t, 10).id, identityOf(t, 11).id
		far.conns[a], far.conns[b] = multiaddr.StringCast(c.a), multiaddr.StringCast(c.b)
		answers := []*polled{
			{groups: d.groupsOf(t.Context(), a, operator(a, c.byA))},
			{groups: d.groupsOf(t.Context(), b, operator(b, c.byB))},
		}
		if got := independent(answers); got != c.independent {
			t.Errorf("%s: %d independent, want %d", c.name, got, c.independent)
		}
		if same := d.shareOf(a) == d.shareOf(b); same != c.onePartOfNet || d.shareOf(a) == "" {
			t.Errorf("%s: one share of the workers %t, want %t", c.name, same, c.onePartOfNet)
		}
	}
	far.conns["local"] = multiaddr.StringCast("/ip4/127.0.0.1/tcp/1")
	if d.shareOf("local") != "" || d.shareOf("not connected") != "" {
		t.Error("loopback counts as a network")
	}
}

func TestHeartbeatsOfAnotherTimeAreIgnored(t *testing.T) {
	for age, want := range map[time.Duration]Verdict{
		0: Accept, 5 * time.Minute: Accept, 5*time.Minute + time.Millisecond: Ignore, -2 * time.Minute: Accept, -2*time.Minute - time.Millisecond: Ignore,
	} {
		d := still(t)
		who := identityOf(t, 7)
		if got := d.hear(who.id, sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, epoch.Add(-age), nil, ready))); got != want {
			t.Errorf("%s old: verdict %d, want %d", age, got, want)
		}
	}
}

func TestARecordIsStoredWhenHalfOfItsHoldersHaveIt(t *testing.T) {
	for p, want := range map[Published]bool{
		{Holders: 20, Acks: 10}: true, {Holders: 20, Acks: 9}: false, {Holders: 3, Acks: 2}: true, {Holders: 3, Acks: 1}: false,
		{Holders: 2, Acks: 1}: true, {Holders: 1, Acks: 1}: true, {Holders: 1}: false, {}: false,
	} {
		if p.Enough() != want {
			t.Errorf("%d of %d holders: enough %t", p.Acks, p.Holders, p.Enough())
		}
	}
}
