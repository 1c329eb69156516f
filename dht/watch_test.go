package dht

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// watch runs Watch, quickly, until the test ends.
func (p *testPeer) watch(t *testing.T, mutate func(*WatchConfig)) {
	t.Helper()
	cfg := DefaultWatch()
	cfg.Look, cfg.Joined, cfg.Seen, cfg.Alone = 20*time.Millisecond, nil, time.Hour, 200*time.Millisecond
	mutate(&cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	ran.Go(func() {
		if err := p.dir.Watch(ctx, cfg); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); ran.Wait() })
}

func infoOf(p *testPeer) peer.AddrInfo { return peer.AddrInfo{ID: p.id, Addrs: p.host.Addrs()} }

// island starts peers that know one another alone.
func island(t *testing.T, first, n int) []*testPeer {
	t.Helper()
	var peers []*testPeer
	for i := range n {
		peers = append(peers, startPeer(t, first+i, nil))
		for _, p := range peers[:i] {
			connect(t, peers[i].host, p.host)
		}
	}
	eventually(t, "the island knows itself", func() bool {
		return !slices.ContainsFunc(peers, func(p *testPeer) bool { return p.dir.Servers() < n-1 })
	})
	return peers
}

func TestTwoNetworksAreFoundAndJoinedAtTheirAnchor(t *testing.T) {
	here, there := island(t, 0, 5), island(t, 10, 5)
	there[1].advertise(t)
	if _, err := here[2].dir.Get(within(t, 5*time.Second), there[1].id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the networks are not apart: %v", err)
	}
	d := here[0].dir
	w := &watcher{d: d, cfg: DefaultWatch(), known: map[peer.ID]int{}}
	w.remember(infoOf(there[0]))
	w.remember(infoOf(here[1]))
	share, apart := w.compare(within(t, 20*time.Second), 0)
	if share != 0 || len(apart) < 4 {
		t.Fatalf("overlap with another network: %g, %d peers", share, len(apart))
	}
	// Each of the two is in one network with its own.
	if share, apart := w.compare(within(t, 20*time.Second), 1); share < splitOverlap || len(apart) > 0 {
		t.Errorf("overlap with our own network: %g", share)
	}
	here[3].watch(t, func(c *WatchConfig) {
		c.Anchors, c.Joined = []peer.AddrInfo{infoOf(there[3])}, []time.Duration{time.Millisecond, 500 * time.Millisecond}
	})
	eventually(t, "the networks are one", func() bool {
		s := here[3].dir.Standing()
		return len(s.Anchors) == 1 && s.Anchors[0].Overlap >= splitOverlap && !s.Split && s.Problem() == nil
	})
	eventually(t, "a record of the other network is found", func() bool {
		c, err := here[3].dir.Get(within(t, 5*time.Second), there[1].id)
		return err == nil && c.Peer == there[1].id
	})
}

// watcherOf is a watcher that checks when it is told to; the first so many anchors are given.
func watcherOf(d *Directory, given int, anchors ...peer.AddrInfo) *watcher {
	w := &watcher{d: d, cfg: DefaultWatch(), known: map[peer.ID]int{}}
	for i, a := range anchors {
		if i == given {
			w.trust()
		}
		w.remember(a)
	}
	if given == len(anchors) {
		w.trust()
	}
	return w
}

func TestOneAnchorThatWasMetCannotSayThatWeAreInAnotherNetwork(t *testing.T) {
	all := island(t, 0, 3)
	us, good := all[0], all[1]
	var liars []host.Host
	anchors := []peer.AddrInfo{infoOf(good)}
	for i := range 2 {
		h, _ := newHost(t, identityOf(t, 50+i))
		tellsOf(h, invented(20, multiaddr.StringCast("/ip4/127.0.0.1/tcp/9")))
		liars, anchors = append(liars, h), append(anchors, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
	}
	w := watcherOf(us.dir, 0, anchors...)
	state := func(check int) (s Standing) {
		w.check(t.Context(), check)
		return us.dir.Standing()
	}
	if s := state(1); s.Split || !s.Anchors[1].Split || s.Anchors[1].Overlap != 0 || s.Problem() != nil {
		t.Errorf("one that was met says it: %+v", s)
	}
	if s := state(0); s.Split || !s.Anchors[1].Split {
		t.Errorf("a good one clears another: %+v", s)
	}
	if s := state(2); !s.Split || s.Problem() == nil || !strings.Contains(s.Problem().Error(), anchors[2].ID.String()) {
		t.Errorf("two independent ones say it: %+v", s)
	}
	if s := state(0); !s.Split {
		t.Error("a good one clears what two others say")
	}
	for i, h := range liars { // they are joined
		tellsOf(h, func() []peer.AddrInfo { return []peer.AddrInfo{infoOf(good), infoOf(all[2])} })
		if s := state(1 + i); s.Split || s.Anchors[1+i].Split || s.Problem() != nil {
			t.Errorf("one that has healed: %+v", s)
		}
	}
}

func TestJoiningAnotherNetworkDialsFewOfThoseThatAnAnchorNames(t *testing.T) {
	us := startPeer(t, 0, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			dials.Add(1)
			_ = c.Close()
		}
	})
	defer accepting.Wait()
	defer l.Close()
	victim, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	w := watcherOf(us.dir, 0)
	w.join(t.Context(), invented(40, victim)())
	if n := dials.Load(); n == 0 || n > joinTried {
		t.Errorf("it made us dial %d times, want 1..%d", n, joinTried)
	}
	us.dir.cfg.Loopback = false
	dials.Store(0)
	if w.join(t.Context(), invented(40, victim)()); dials.Load() != 0 {
		t.Error("on the internet private addresses are dialled")
	}
}

func TestAGivenAnchorOfAnotherNetworkIsBelieved(t *testing.T) {
	all := island(t, 0, 3)
	liar, _ := newHost(t, identityOf(t, 50))
	tellsOf(liar, invented(20, multiaddr.StringCast("/ip4/127.0.0.1/tcp/9")))
	w := watcherOf(all[0].dir, 1, peer.AddrInfo{ID: liar.ID(), Addrs: liar.Addrs()}, infoOf(all[1]))
	w.check(t.Context(), 0)
	w.check(t.Context(), 1)
	if s := all[0].dir.Standing(); !s.Split || !s.Anchors[0].Given || s.Anchors[1].Given || s.Anchors[1].Split {
		t.Errorf("%+v", s)
	}
	if w.next = 1; !slices.Equal(w.apart(), []int{0}) {
		t.Error("it is not looked at again")
	}
}

func TestAnchorsOfOneNetworkAreOneVoice(t *testing.T) {
	of := func(network string) Anchor { return Anchor{Split: true, network: network} }
	for _, c := range []struct {
		anchors []Anchor
		want    bool
	}{
		{nil, false},
		{[]Anchor{of("a")}, false},
		{[]Anchor{of("a"), of("a"), of("a")}, false},
		{[]Anchor{of("a"), {network: "b"}}, false},
		{[]Anchor{of("a"), {network: "b"}, of("c")}, true},
		{[]Anchor{{network: "b"}, {Split: true, Given: true, network: "a"}}, true},
	} {
		if got := split(c.anchors); got != c.want {
			t.Errorf("%+v: %t", c.anchors, got)
		}
	}
	client := startPeer(t, 0, func(c *Config) { c.Loopback = false })
	w := &watcher{d: client.dir, cfg: DefaultWatch(), known: map[peer.ID]int{}}
	a, b := w.anchor(peer.AddrInfo{ID: "a", Addrs: []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/203.1.2.3/tcp/1")}}), w.anchor(peer.AddrInfo{ID: "b", Addrs: []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/203.1.9.9/tcp/1")}})
	if a.network != b.network {
		t.Error("two addresses of one /16 are two networks")
	}
}

func TestAPeerThatIsAloneSaysSoWithTheErrorOfEachAnchor(t *testing.T) {
	lonely := startPeer(t, 0, nil)
	gone := identityOf(t, 99)
	lonely.watch(t, func(c *WatchConfig) {
		c.Anchors = []peer.AddrInfo{{ID: gone.id, Addrs: []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/1")}}}
	})
	eventually(t, "it calls itself isolated", func() bool { s := lonely.dir.Standing(); return s.Isolated })
	s := lonely.dir.Standing()
	problem := s.Problem()
	if problem == nil || !strings.Contains(problem.Error(), gone.id.String()) || !strings.Contains(problem.Error(), "refused") {
		t.Errorf("what is said: %v", problem)
	}
	friend := startPeer(t, 1, nil)
	connect(t, friend.host, lonely.host)
	eventually(t, "it is alone no more", func() bool { s := lonely.dir.Standing(); return !s.Isolated && s.Problem() == nil })
}

func TestOthersAreAskedHowTheySeeUsAndABlindNetworkIsToldAgain(t *testing.T) {
	peers := neighbourhood(t, 4)
	for _, p := range peers[1:] {
		connect(t, p.host, peers[(slices.Index(peers, p)+1)%4].host)
	}
	eventually(t, "three servers are known", func() bool { return peers[1].dir.Servers() == 3 })
	peers[1].advertise(t)
	var again atomic.Int32
	peers[1].watch(t, func(c *WatchConfig) { c.Seen = 50 * time.Millisecond; c.Unseen = func() { again.Add(1) } })
	eventually(t, "three of three find it", func() bool {
		s := peers[1].dir.Standing()
		return s.Seen.Asked == 3 && s.Seen.Found == 3 && s.Seen.Dialable == 3 && s.Clocks == 3 && s.Problem() == nil
	})
	if again.Load() != 0 {
		t.Error("a record that is seen is published again")
	}
	// Another says what nobody has heard of.
	now := time.Now()
	raw := sign(t, peers[2].key, capabilitySeal(), machine(peers[2].id, uint64(now.UnixMicro()), now))
	rec, err := openCapability(raw, peers[2].id, now)
	if err != nil {
		t.Fatal(err)
	}
	peers[2].dir.mu.Lock()
	peers[2].dir.own = rec
	peers[2].dir.mu.Unlock()
	peers[2].watch(t, func(c *WatchConfig) { c.Seen = 50 * time.Millisecond; c.Unseen = func() { again.Add(1) } })
	eventually(t, "after two rounds it is published again", func() bool { return again.Load() == 1 })
}

func TestOverlapIsOfTheSmallerSet(t *testing.T) {
	set := func(ids ...string) (out []peer.AddrInfo) {
		for _, id := range ids {
			out = append(out, peer.AddrInfo{ID: peer.ID(id)})
		}
		return out
	}
	for _, c := range []struct {
		ours    []peer.ID
		theirs  []peer.AddrInfo
		share   float64
		missing int
	}{
		{[]peer.ID{"a", "b", "c"}, set("a", "b", "c"), 1, 0},
		{[]peer.ID{"a", "b", "c", "d"}, set("a", "x"), 0.5, 1},
		{[]peer.ID{"a"}, set("x", "y"), 0, 2},
		{nil, set("x"), 0, 1},
	} {
		share, missing := overlap(c.ours, c.theirs)
		if share != c.share || len(missing) != c.missing {
			t.Errorf("%v and %v: %g, %d missing", c.ours, c.theirs, share, len(missing))
		}
	}
}

func TestAWatchConfigSaysWhatIsWrong(t *testing.T) {
	for name, mutate := range map[string]func(*WatchConfig){
		"Every": func(c *WatchConfig) { c.Every = 0 }, "Probes": func(c *WatchConfig) { c.Probes = -1 },
		"Joined": func(c *WatchConfig) { c.Joined = []time.Duration{2, 1} },
	} {
		cfg := DefaultWatch()
		mutate(&cfg)
		if err := cfg.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
