package beambridge

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	mh "github.com/multiformats/go-multihash"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func idOf(t testing.TB, name string) protocol.PeerID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(testKey(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func someCID(t testing.TB, text string) cid.Cid {
	t.Helper()
	h, err := mh.Sum([]byte(text), mh.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.DagProtobuf, h)
}

func TestNetworkIsMadeOnceAndBelongsToItsRoot(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "network"), time.Now()
	first, made, err := loadNetwork(path, "home", testKey("bridge"), now)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := loadNetwork(path, "other", testKey("bridge"), now.Add(time.Hour))
	if err != nil || made || again.ID != first.ID || again.Name != "home" {
		t.Errorf("made %v, %v, name %q", made, err, again.Name)
	}
	if _, _, err := loadNetwork(path, "home", testKey("somebody else"), now); !errors.Is(err, ErrNotRoot) || !strings.Contains(err.Error(), "use the identity key that made the network") {
		t.Errorf("another key: %v", err)
	}
	if err := os.WriteFile(path, []byte("no network"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadNetwork(path, "home", testKey("bridge"), now); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged file: %v", err)
	}
	text := invitation(first, []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001/p2p/" + idOf(t, "bridge").String())}, true)
	if inv, err := protocol.ParseInvitation(text, now); err != nil || inv.Network.ID != first.ID {
		t.Errorf("invitation: %v", err)
	}
}

func TestGrantIsGoodForNodesAndRenewedBeforeItEnds(t *testing.T) {
	now := time.Now()
	key := testKey("bridge")
	n, err := protocol.NewNetwork("home", key, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	host, err := p2p.New(p2p.LoopbackConfig(), key, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	clock := now
	a := newAuthority(host, n, func() time.Time { return clock })
	var last protocol.GrantID
	for hour := range 48 {
		clock = now.Add(time.Duration(hour) * time.Hour)
		link, id, err := a.current()
		if err != nil {
			t.Fatal(err)
		}
		r, err := protocol.VerifyChain([][]byte{link}, protocol.GrantCheck{Network: n.ID, Audience: host.ID(), IsRoot: n.IsRoot, Now: clock})
		if err != nil || r.Grant != id {
			t.Fatalf("after %d h: %v", hour, err)
		}
		for _, ability := range []string{protocol.AbilityJobSubmit, protocol.AbilityJobControl, protocol.AbilityCounterSign} {
			if !r.Can(ability, clock) {
				t.Errorf("after %d h it cannot %s", hour, ability)
			}
		}
		if left := r.Expires.Sub(clock); left < grantRenew-time.Hour {
			t.Errorf("after %d h only %s are left", hour, left)
		}
		if hour == 1 && id != last {
			t.Error("the grant changes from hour to hour: nodes would have to be shown every one")
		}
		last = id
	}
}

func TestOnlyTheOwnersSignatureMakesAnAnchor(t *testing.T) {
	now := time.Now()
	node, named := idOf(t, "node"), idOf(t, "named")
	ops, err := newOperators(testKey("owner"), []protocol.PeerID{named})
	if err != nil {
		t.Fatal(err)
	}
	label := func(signer string, about protocol.PeerID, until time.Duration) *pb.Capability {
		l, err := protocol.SignLabel(testKey(signer), about, protocol.LabelOperator, "node", now.Add(until))
		if err != nil {
			t.Fatal(err)
		}
		return &pb.Capability{Labels: []*pb.Label{l}}
	}
	forged := label("owner", node, time.Hour)
	forged.Labels[0].Issuer = []byte(idOf(t, "owner"))
	forged.Labels[0].Value = "mine"
	for name, c := range map[string]struct {
		node   protocol.PeerID
		rec    *pb.Capability
		group  string
		anchor bool
	}{
		"signed by the owner":     {node, label("owner", node, time.Hour), idOf(t, "owner").String(), true},
		"signed by somebody else": {node, label("other", node, time.Hour), idOf(t, "other").String(), false},
		"about another node":      {node, label("owner", named, time.Hour), "", false},
		"expired":                 {node, label("owner", node, -time.Second), "", false},
		"altered":                 {node, forged, "", false},
		"none, but named":         {named, &pb.Capability{}, "", true},
		"none":                    {node, &pb.Capability{}, "", false},
	} {
		if group, anchor := ops.of(c.node, c.rec, now); group != c.group || anchor != c.anchor {
			t.Errorf("%s: group %q, anchor %v", name, group, anchor)
		}
	}
}

func TestMembersReadWhatTheirJobUsesAndNothingElse(t *testing.T) {
	r := newReaders()
	a, b := idOf(t, "a"), idOf(t, "b")
	module, data, inputs, foreign := someCID(t, "module"), someCID(t, "data"), someCID(t, "inputs"), someCID(t, "foreign")
	j := &job{row: store.Job{ID: protocol.NewJobID()}, terms: protocol.JobTerms{Run: protocol.Run{Module: module}, Volumes: []protocol.VolumeRef{{Root: data}}}}
	other := &job{row: store.Job{ID: protocol.NewJobID()}, terms: protocol.JobTerms{Run: protocol.Run{Module: module}, Volumes: []protocol.VolumeRef{{Root: foreign}}}}
	r.admit(j, a)
	r.admit(other, b)
	r.allow(j, inputs)
	want := func(when string, p protocol.PeerID, c cid.Cid, may bool) {
		t.Helper()
		if r.MayRead(p, c) != may {
			t.Errorf("%s: %v", when, !may)
		}
	}
	want("a member, its module", a, module, true)
	want("a member, its data", a, data, true)
	want("a member, its inputs", a, inputs, true)
	want("a member, another job's data", a, foreign, false)
	want("a stranger", idOf(t, "c"), module, false)
	r.forget(j.id())
	want("after the job", a, data, false)
	want("the other job's member after it", b, module, true)
	r.drop(other, b)
	want("who left", b, module, false)
}

func TestPresenceIsWhatThreeHeartbeatsBridge(t *testing.T) {
	n := &node{}
	at := func(s int) time.Time { return time.Unix(int64(1_000_000+s), 0) }
	for _, s := range []int{0, 30, 60, 200, 230} {
		n.alive(at(s))
	}
	for _, c := range []struct {
		from, to int
		is       bool
	}{{0, 60, true}, {10, 40, true}, {60, 140, true}, {60, 200, false}, {0, 230, false}, {200, 310, true}, {200, 330, false}, {-200, -100, false}} {
		if got := n.present(at(c.from), at(c.to)); got != c.is {
			t.Errorf("present in [%d,%d): %v", c.from, c.to, got)
		}
	}
	for i := range 1000 {
		n.alive(at(1000 * i))
	}
	if len(n.spans) > presences {
		t.Errorf("%d stretches are remembered", len(n.spans))
	}
}

func TestPredictorLearnsAndSurvivesItsRows(t *testing.T) {
	p, now := newPaces(), time.Now()
	if p.slowest("c") != 0 || p.seconds("c", noModel) != 0 {
		t.Error("something is known of nothing")
	}
	for i := range 40 {
		p.learn("c", noModel, string(rune('a'+i%3)), 2*time.Second, now)
		p.learn("c", "fast", "a", time.Second, now)
	}
	if s := p.seconds("c", noModel); s < 1.99 || s > 2.01 || p.slowest("c") != s || p.seconds("d", noModel) != 0 {
		t.Errorf("predicts %v, slowest %v", s, p.slowest("c"))
	}
	if m, n, g := p.median("c", noModel); m != 2*time.Second || n != 40 || g != 3 {
		t.Errorf("median %v of %d runs of %d groups", m, n, g)
	}
	rows := p.dirty()
	if len(rows) != 2 || p.changed() || len(p.dirty()) != 0 {
		t.Errorf("%d rows to write, changed %v", len(rows), p.changed())
	}
	q := newPaces()
	for _, r := range rows {
		q.restore(r)
	}
	if q.seconds("c", noModel) != p.seconds("c", noModel) {
		t.Error("a restored row predicts something else")
	}
	for range 30 {
		q.learn("c", noModel, "a", 4*time.Second, now)
	}
	if s := q.seconds("c", noModel); s < 3.9 {
		t.Errorf("after 30 runs of 4 s it still predicts %v", s)
	}
}

func TestSubnetIsTheGroupOfWhoeverSaysNothing(t *testing.T) {
	for text, want := range map[string]string{
		"/ip4/93.184.216.34/tcp/1":                             "93.184.216.0/24",
		"/ip4/93.184.216.99/udp/1/quic-v1":                     "93.184.216.0/24",
		"/ip6/2606:2800:220:1::1/tcp/1":                        "2606:2800:220::/48",
		"/ip4/127.0.0.1/tcp/1":                                 "",
		"/ip4/10.1.2.3/tcp/1":                                  "",
		"/ip6/::1/tcp/1":                                       "",
		"/dns4/example.org/tcp/1":                              "",
		"/ip4/192.168.1.1/tcp/1/p2p/" + idOf(t, "a").String():  "",
		"/ip4/198.41.0.4/tcp/443/p2p/" + idOf(t, "a").String(): "198.41.0.0/24",
	} {
		if got := subnetOf([]multiaddr.Multiaddr{multiaddr.StringCast(text)}); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestSlotsAreWhatCoresOrDevicesAllow(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		x     cluster.Candidate
		want  cluster.Job
		av    *pb.Availability
		slots int
		queue bool
	}{
		"a core each":       {cluster.Candidate{Cores: 8}, cluster.Job{Cores: 1}, nil, 8, false},
		"three cores each":  {cluster.Candidate{Cores: 8}, cluster.Job{Cores: 3}, nil, 2, false},
		"some run":          {cluster.Candidate{Cores: 8}, cluster.Job{Cores: 1}, &pb.Availability{Running: 5}, 3, false},
		"all run":           {cluster.Candidate{Cores: 2}, cluster.Job{Cores: 1}, &pb.Availability{Running: 2}, 0, true},
		"two devices each":  {cluster.Candidate{Cores: 64, GPUs: []cluster.GPU{{Count: 8}}}, cluster.Job{Cores: 1, GPUCount: 2}, nil, 4, false},
		"devices are taken": {cluster.Candidate{Cores: 64, GPUs: []cluster.GPU{{Count: 8}}}, cluster.Job{Cores: 1, GPUCount: 2}, &pb.Availability{Groups: []*pb.GroupLoad{{Free: 3}}}, 1, false},
	} {
		slots, queue := slotsOf(&c.x, c.want, c.av, now)
		if slots != c.slots || queue > 0 != c.queue {
			t.Errorf("%s: %d slots, %s until one is free", name, slots, queue)
		}
	}
}

func TestWhatIsNotOfferedSaysWhatToDo(t *testing.T) {
	for field, change := range map[string]func(j *protocol.Job){
		"kind":              func(j *protocol.Job) { j.Kind, j.Inputs, j.Chunk = protocol.JobGang, protocol.JobInputs{}, 0 },
		"run":               func(j *protocol.Job) { j.Run.Wasm, j.Run.Image = "", "docker.io/library/busybox" },
		"inputs.files":      func(j *protocol.Job) { j.Inputs = protocol.JobInputs{Files: "vol://d/**"} },
		"inputs.open":       func(j *protocol.Job) { j.Inputs = protocol.JobInputs{Open: true} },
		"resources.network": func(j *protocol.Job) { j.Resources.Network = "cluster" },
		"policy.compare":    func(j *protocol.Job) { j.Policy.Compare = "toploc" },
	} {
		j := count1(3, 1)
		change(&j)
		j = j.WithDefaults()
		if err := j.Validate(); err != nil {
			t.Errorf("%s: the case itself is wrong: %v", field, err)
		}
		var e *protocol.APIError
		if err := offered(&j); !errors.As(err, &e) || e.Code != protocol.CodeNotOffered || e.Field != field || e.Fix == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
	j := count1(3, 1).WithDefaults()
	if err := offered(&j); err != nil {
		t.Errorf("a plain map: %v", err)
	}
	j.Policy.Redundancy, *j.Policy.Retries = 2, 0
	if err := offered(&j); !errors.Is(err, protocol.ErrBadJob) {
		t.Errorf("copies of what runs at most once: %v", err)
	}
}

func TestSameJobHasTheSameSeed(t *testing.T) {
	module := someCID(t, "module")
	a, b, c := count1(3, 1), count1(3, 2), count1(4, 1)
	b.Name = "another name"
	if seedOf(module, &a) != seedOf(module, &b) {
		t.Error("name or cut change what a program draws")
	}
	if seedOf(module, &a) == seedOf(module, &c) || seedOf(module, &a) == seedOf(someCID(t, "another"), &a) {
		t.Error("another job draws the same")
	}
}

func TestConfigNamesTheFieldThatIsWrong(t *testing.T) {
	for field, change := range map[string]func(c *Config){
		"Data":                    func(c *Config) { c.Data = "here" },
		"Key":                     func(c *Config) { c.Key = "" },
		"NetworkName":             func(c *Config) { c.NetworkName = "" },
		"FeePPM":                  func(c *Config) { c.FeePPM = -1 },
		"Conns":                   func(c *Config) { c.Conns = 0 },
		"ConnsPerAddress is 0":    func(c *Config) { c.ConnsPerAddress = 0 },
		"ConnsPerAddress is 4097": func(c *Config) { c.ConnsPerAddress = c.Conns + 1 },
		"APIListen":               func(c *Config) { c.APIListen = "1994" },
		"BeamListen":              func(c *Config) { c.BeamListen = "1993" },
		"TLSCert":                 func(c *Config) { c.TLSCert, c.TLSKey = "cert.pem", "/key.pem" },
		"TLSKey":                  func(c *Config) { c.TLSCert = "/cert.pem" },
		"Buckets":                 func(c *Config) { c.Buckets = 0 },
		"Clock":                   func(c *Config) { c.Clock = nil },
		"Anchors[0]":              func(c *Config) { c.Anchors = []protocol.PeerID{""} },
		"Issuers[1]":              func(c *Config) { c.Issuers = []protocol.PeerID{idOf(t, "index"), ""} },
	} {
		c := DefaultConfig("/data")
		change(&c)
		if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	c := DefaultConfig("/data")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// realBridge runs a bridge on loopback in real time.
func realBridge(t testing.TB, data string, change func(*Config)) (b *Bridge, s Started, end func() error) {
	t.Helper()
	cfg := DefaultConfig(data)
	cfg.Local, cfg.MDNS, cfg.APIListen, cfg.BeamListen, cfg.Drain = true, false, "127.0.0.1:0", "", time.Second
	if change != nil {
		change(&cfg)
	}
	ready := make(chan Started, 1)
	cfg.Ready = func(s Started) { ready <- s }
	b, err := New(cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	end = func() error { cancel(); return <-done }
	select {
	case s = <-ready:
	case err := <-done:
		done <- err
	}
	return b, s, end
}

func TestBridgeAnswersHTTPToItsTokens(t *testing.T) {
	data := t.TempDir()
	made, err := CreateToken(data, protocol.TokenRequest{User: "carol", Name: "made before the first start", Scopes: []string{"read"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	early := made.Text
	b, s, end := realBridge(t, data, nil)
	ctx := context.Background()
	own, err := b.NewToken(ctx, "operator")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	get := func(token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.API+protocol.APIPrefix+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		token string
		want  int
	}{{own, 200}, {early, 200}, {early, 200}, {"gb_nonsense", 401}, {"", 401}} {
		if got := get(c.token); got != c.want {
			t.Errorf("token %.12q got %d, want %d", c.token, got, c.want)
		}
	}
	rows, err := b.Tokens(ctx, "carol")
	if err != nil || len(rows) != 1 || rows[0].Name != "made before the first start" {
		t.Fatalf("%+v, %v", rows, err)
	}
	if err := b.RevokeToken(ctx, rows[0].Hash); err != nil || b.TokenValid(ctx, early) {
		t.Errorf("a revoked token is good (%v)", err)
	}
	if who, err := b.Authorize(ctx, own); err != nil || who.User != "operator" || !who.Can(api.ScopeAdmin) {
		t.Errorf("%+v, %v", who, err)
	}

	// A second one on the directory, and one on the port, say what is in the way.
	_, _, end2 := realBridge(t, data, nil)
	if err := end2(); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second bridge on the directory: %v", err)
	}
	_, _, end3 := realBridge(t, t.TempDir(), func(c *Config) { c.APIListen = s.API })
	if err := end3(); !errors.Is(err, p2p.ErrListen) || !strings.Contains(err.Error(), s.API) {
		t.Errorf("a second bridge on the port: %v", err)
	}
	if err := end(); err != nil {
		t.Errorf("the orderly end: %v", err)
	}
	if _, err := b.Job(ctx, alice, protocol.NewJobID()); err == nil {
		t.Error("a bridge that has ended answers")
	}
}
