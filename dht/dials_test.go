package dht

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// trap is a TCP service that tells who connects to it.
type trap struct {
	addr multiaddr.Multiaddr

	mu   sync.Mutex
	hits int
}

func newTrap(t *testing.T, ip string) *trap {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	w := &trap{addr: multiaddr.StringCast(fmt.Sprintf("/ip4/%s/tcp/%d", ip, l.Addr().(*net.TCPAddr).Port))}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.hits++
			w.mu.Unlock()
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return w
}

func (w *trap) seen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hits
}

// namedLandmarks is a network file that names peers as landmarks, all in one place, or in none.
func namedLandmarks(t *testing.T, place string, ids ...peer.ID) protocol.NetworkFile {
	t.Helper()
	root := identityOf(t, 77).key
	n, err := protocol.NewNetwork("test", root, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var list []protocol.Landmark
	for _, id := range ids {
		list = append(list, protocol.Landmark{Peer: id, Place: placed(t, place)})
	}
	if err = errors.Join(n.SetLandmarks(list), n.SignLandmarks(root)); err != nil {
		t.Fatal(err)
	}
	file, err := protocol.ParseNetworkFile(n.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// stranger puts a peer into a replica that says that it is at some addresses.
func stranger(t *testing.T, d *Directory, n int, addrs ...multiaddr.Multiaddr) identity {
	t.Helper()
	who, now := identityOf(t, n), time.Now()
	c := machine(who.id, 1, now)
	for _, a := range addrs {
		c.Addrs = append(c.Addrs, a.Bytes())
	}
	r, err := openCapability(sign(t, who.key, capabilitySeal(), c), who.id, now)
	if err != nil {
		t.Fatal(err)
	}
	d.index.putRecord(r, now)
	return who
}

// askedFor are the frames that answer a question for round trips.
func askedFor(t *testing.T, d *Directory, who peer.ID, ids ...peer.ID) *pb.QueryReply {
	t.Helper()
	req := &pb.RoundTripsRequest{}
	for _, id := range ids {
		req.PeerIds = append(req.PeerIds, []byte(id))
	}
	raw, err := proto.Marshal(&pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_RoundTrips{RoundTrips: req}})
	if err != nil {
		t.Fatal(err)
	}
	var out *pb.QueryReply
	for reply := range d.replies(t.Context(), asker{peer: who}, raw) {
		out = reply
	}
	return out
}

func TestOnlyLandmarksOfKnownPlaceTellRoundTrips(t *testing.T) {
	for what, c := range map[string]struct {
		place string
		us    bool
		want  bool
	}{
		"no network file":      {},
		"another landmark":     {"DE", false, false},
		"a landmark nowhere":   {"", true, false},
		"a landmark somewhere": {"DE", true, true},
	} {
		d := loneDirectory(t)
		if of := (map[bool]peer.ID{true: d.host.ID(), false: identityOf(t, 3).id})[c.us]; what != "no network file" {
			d.SetNetwork(namedLandmarks(t, c.place, of))
		}
		d.sampled.put(identityOf(t, 4).id, time.Millisecond, d.now())
		reply := askedFor(t, d, "somebody", identityOf(t, 4).id)
		if got := len(reply.GetRoundTrips().GetRoundTrips()) == 1; got != c.want || got == (reply.GetError() != nil) {
			t.Errorf("%s: answers %v, want %v", what, reply, c.want)
		}
		_ = d.host.Close()
	}
}

func TestWhoIsAskedLooksWhetherItHasBecomeALandmark(t *testing.T) {
	root, named, asking := startPeer(t, 0, nil), startPeer(t, 1, nil), startPeer(t, 2, nil)
	connect(t, named.host, root.host)
	connect(t, asking.host, named.host)
	old := namedLandmarks(t, "", root.id)
	named.dir.SetNetwork(old)
	ask := func() error {
		_, err := asking.dir.askRoundTrips(within(t, 10*time.Second), named.id, []peer.ID{root.id})
		return err
	}
	root.dir.SetNetwork(old)
	if err := ask(); !errors.Is(err, ErrQuery) {
		t.Fatalf("before it is named: %v", err)
	}
	list := []protocol.Landmark{{Peer: root.id}, {Peer: named.id, Place: placed(t, "FR")}}
	if err := errors.Join(old.SetLandmarks(list), old.SignLandmarks(identityOf(t, 77).key)); err != nil {
		t.Fatal(err)
	}
	newer, err := protocol.ParseNetworkFile(old.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !root.dir.SetNetwork(newer) {
		t.Fatal("the newer file is not newer")
	}
	if err := ask(); err != nil {
		t.Errorf("after it is named: %v", err)
	}
	if len(named.dir.renewed) != 1 {
		t.Error("the new landmarks are not measured")
	}
}

func TestStrangersCannotHaveUsDialOurOwnNetwork(t *testing.T) {
	for _, local := range []bool{false, true} {
		observer := startPeer(t, 0, func(c *Config) { c.Shards, c.Index, c.Loopback = AllShards(), true, local })
		asking := startPeer(t, 1, func(c *Config) { c.Mode = ModeClient })
		connect(t, asking.host, observer.host)
		observer.dir.SetNetwork(namedLandmarks(t, "DE", observer.id))
		inside := newTrap(t, "127.0.0.1")
		bad := stranger(t, observer.dir, 1000, inside.addr)
		if _, err := asking.dir.askRoundTrips(within(t, 20*time.Second), observer.id, []peer.ID{bad.id}); err != nil {
			t.Fatal(err)
		}
		if hit := inside.seen() > 0; hit != local {
			t.Errorf("Loopback %v: a service of the observer's own machine was dialled: %v", local, hit)
		}
		named := observer.dir.publicOf([]peer.AddrInfo{{ID: bad.id, Addrs: []multiaddr.Multiaddr{inside.addr}}})
		if kept := len(named[0].Addrs) == 1; kept != local {
			t.Errorf("Loopback %v: a provider's private address is kept: %v", local, kept)
		}
		observer.stop()
		asking.stop()
	}
}

func TestAddressesThatMayBeDialled(t *testing.T) {
	d := loneDirectory(t)
	for text, want := range map[string]bool{
		"/ip4/8.8.8.8/tcp/4001":              true,
		"/ip6/2606:4700::1/udp/4001/quic-v1": true,
		"/dns4/node.example.org/tcp/4001":    true,
		"/ip4/127.0.0.1/tcp/22":              false,
		"/ip4/10.1.2.3/tcp/22":               false,
		"/ip4/192.168.1.1/tcp/80":            false,
		"/ip4/169.254.169.254/tcp/80":        false,
		"/ip4/100.64.1.1/tcp/80":             false,
		"/ip6/::1/tcp/22":                    false,
		"/ip6/fe80::1/tcp/22":                false,
		"/ip6/fd00::1/tcp/22":                false,
		"/dns4/localhost/tcp/22":             false,
		"/ip4/8.8.8.8/tcp/1/p2p/" + d.host.ID().String() + "/p2p-circuit":   true,
		"/ip4/127.0.0.1/tcp/1/p2p/" + d.host.ID().String() + "/p2p-circuit": false,
	} {
		a := multiaddr.StringCast(text)
		d.cfg.Loopback = false
		if got := len(d.public([]multiaddr.Multiaddr{a})) == 1; got != want {
			t.Errorf("%s on the internet: %v, want %v", text, got, want)
		}
		d.cfg.Loopback = true
		if len(d.public([]multiaddr.Multiaddr{a})) != 1 {
			t.Errorf("%s on a network of one's own is left out", text)
		}
	}
}

func TestANodeWithoutPublicAddressesIsAnnouncedAllTheSame(t *testing.T) {
	d := loneDirectory(t)
	d.cfg.Loopback = false
	own, public, other := d.host.Addrs(), multiaddr.StringCast("/ip4/8.8.8.8/tcp/4001"), multiaddr.StringCast("/ip4/127.0.0.1/tcp/1")
	if got := d.publicOrOwn(own); len(own) == 0 || len(got) != len(own) {
		t.Errorf("of our own addresses %v are announced %v", own, got)
	}
	if got := d.publicOrOwn(append([]multiaddr.Multiaddr{public}, own...)); len(got) != 1 || !got[0].Equal(public) {
		t.Errorf("beside a public address %v are announced", got)
	}
	if got := d.publicOrOwn([]multiaddr.Multiaddr{own[0], other}); len(got) != 0 {
		t.Errorf("a stranger's private addresses are kept: %v", got)
	}
}

func TestWhatOthersCanHaveUsDialIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	at := func(format string, i int) []multiaddr.Multiaddr {
		return []multiaddr.Multiaddr{multiaddr.StringCast(fmt.Sprintf(format, i))}
	}
	for what, c := range map[string]struct {
		format string
		local  bool
		want   int // of 256 at once
	}{
		"one IPv4 address":         {"/ip4/8.8.8.8/tcp/%d", false, addrsAtOnce},
		"one IPv4 address, local":  {"/ip4/8.8.8.8/tcp/%d", true, addrsAtOnce},
		"many IPv4 addresses":      {"/ip4/8.8.8.%d/tcp/1", false, 256},
		"one IPv6 /48":             {"/ip6/2606:4700:1:%x::1/tcp/1", false, addrsAtOnce},
		"many IPv6 /48":            {"/ip6/2606:4700:%x::1/tcp/1", false, 256},
		"names":                    {"/dns4/n%d.example.org/tcp/1", false, 0},
		"our own machine":          {"/ip4/127.0.0.1/tcp/%d", false, 0},
		"our own machine, local":   {"/ip4/127.0.0.1/tcp/%d", true, 256},
		"our own network, local":   {"/ip4/10.0.0.%d/tcp/1", true, 256},
		"one machine of it, local": {"/ip4/10.0.0.1/tcp/%d", true, addrsAtOnce},
	} {
		b, got := newDials(), 0
		for i := range 256 {
			if b.all(at(c.format, i), c.local, now) {
				got++
			}
		}
		if got != c.want {
			t.Errorf("%s: %d are dialled, want %d", what, got, c.want)
		}
	}
	b, got := newDials(), 0
	for range 2 * observedAtOnce {
		got += btoi(b.peer(now))
	}
	if got != observedAtOnce || !b.peer(now.Add(time.Second)) {
		t.Errorf("%d peers are looked for at once, want %d", got, observedAtOnce)
	}
	if b.all(nil, false, now) {
		t.Error("a peer without an address is dialled")
	}
	if both := append(at("/ip4/8.8.4.4/tcp/%d", 1), at("/ip4/192.168.0.1/tcp/%d", 1)...); newDials().all(both, false, now) {
		t.Error("a peer is dialled of which a private address is known")
	}
}

func TestAConnectedPeerIsMeasuredForOthersWithoutDialling(t *testing.T) {
	observer := startPeer(t, 0, nil)
	near := startPeer(t, 1, nil)
	connect(t, observer.host, near.host)
	none := newDials()
	for none.peer(observer.dir.now()) {
	}
	silent := newTrap(t, "127.0.0.1")
	far := stranger(t, observer.dir, 1000, silent.addr)
	reply := observer.dir.roundTrips(t.Context(), sortedIDs([]peer.ID{near.id, far.id}), true, none)
	if len(reply.GetRoundTrips()) != 1 || peer.ID(reply.GetRoundTrips()[0].GetPeerId()) != near.id || silent.seen() != 0 {
		t.Errorf("with no dials left: %v, and %d connections", reply, silent.seen())
	}
	_ = observer.host.Network().ClosePeer(near.id)
	ctx := network.WithNoDial(t.Context(), "a test")
	if got := observer.dir.Measure(ctx, []peer.ID{near.id}); len(got) != 0 {
		t.Errorf("without dialling a peer that is not connected is measured: %v", got)
	}
}

// emptyKad counts what is looked up in it.
type emptyKad struct {
	kademlia
	mu   sync.Mutex
	keys map[string]bool
}

func (k *emptyKad) nearest(string, int) []peer.ID { return nil }

func (k *emptyKad) GetValue(_ context.Context, key string, _ ...routing.Option) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[key] = true
	return nil, errors.New("nothing here")
}

func (k *emptyKad) looked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.keys)
}

func TestAQuestionForRoundTripsHasFewLookupsAndAnAskerFewQuestions(t *testing.T) {
	d := loneDirectory(t)
	now := time.Now()
	d.clock = func() time.Time { return now }
	d.SetNetwork(namedLandmarks(t, "DE", d.host.ID()))
	kad := &emptyKad{keys: map[string]bool{}}
	d.kad = kad
	close(d.ready)
	unknown := func(n int) (ids []peer.ID) {
		for i := range maxQueryGet {
			ids = append(ids, identityOf(t, 10_000+100*n+i).id)
		}
		return ids
	}
	askedFor(t, d, "a", unknown(0)...)
	if got := kad.looked(); got != observeLookups {
		t.Errorf("a question looked up %d records, want %d", got, observeLookups)
	}
	d.observed = newDials()
	for range 20 { // one peer each: what all may have together is left
		askedFor(t, d, "b", unknown(1)[:1]...)
		askedFor(t, d, "b", unknown(1)[:1]...)
	}
	if d.watches.take(asker{peer: "b"}, now) == 0 {
		t.Error("an asker may have 41 questions at once that need pings")
	}
	before := kad.looked()
	askedFor(t, d, "b", unknown(2)[:1]...)
	if kad.looked() != before {
		t.Error("a question beyond the asker's rate has a record looked up")
	}
	askedFor(t, d, "c", unknown(2)[:1]...)
	if kad.looked() != before+1 {
		t.Error("another asker's question is not looked into")
	}
}

// fromConn is a connection of which only what an asker is known by is told.
type fromConn struct {
	network.Conn
	id      peer.ID
	addr    multiaddr.Multiaddr
	limited bool
}

func (c fromConn) RemotePeer() peer.ID                  { return c.id }
func (c fromConn) RemoteMultiaddr() multiaddr.Multiaddr { return c.addr }
func (c fromConn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Limited: c.limited}}
}

func TestAProbeDialsTheObservedAddressAlone(t *testing.T) {
	d := startPeer(t, 0, func(c *Config) { c.Shards, c.Index = AllShards(), true }).dir
	from := func(text string) multiaddr.Multiaddr { return multiaddr.StringCast(text) }
	count := 7
	relay := "/ip4/127.0.0.1/tcp/4001/p2p/" + identityOf(t, 9).id.String() + "/p2p-circuit"
	for what, c := range map[string]struct {
		conn        fromConn
		here, there bool // which of 127.0.0.1 and 127.0.0.2 is dialled
	}{
		"from here":                  {fromConn{addr: from("/ip4/127.0.0.1/tcp/5")}, true, false},
		"from there":                 {fromConn{addr: from("/ip4/127.0.0.2/udp/5/quic-v1")}, false, true},
		"from elsewhere":             {fromConn{addr: from("/ip4/127.0.0.3/tcp/5")}, false, false},
		"over a relay that is here":  {fromConn{addr: from(relay)}, false, false},
		"over a relay that is known": {fromConn{addr: from("/ip4/127.0.0.1/tcp/5"), limited: true}, false, false},
		"from nowhere":               {fromConn{}, false, false},
	} {
		here, there := newTrap(t, "127.0.0.1"), newTrap(t, "127.0.0.2")
		c.conn.id = stranger(t, d, count, here.addr, there.addr).id
		count++
		if d.probe(t.Context(), askerOf(c.conn)).GetDialable() {
			t.Errorf("%s: what is no peer counts as dialable", what)
		}
		if here.seen() > 0 != c.here || there.seen() > 0 != c.there {
			t.Errorf("%s: 127.0.0.1 is dialled: %v, want %v; 127.0.0.2: %v, want %v", what, here.seen() > 0, c.here, there.seen() > 0, c.there)
		}
	}
}
