package dht

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// indexed starts n index peers that all know the same crowd of nodes, and a client; operators are the identities
// by which the index peers say they are run, -1 for none.
func indexed(t *testing.T, c *crowd, operators ...int) (client *testPeer, indexes []*testPeer) {
	t.Helper()
	for i, op := range operators {
		p := startPeer(t, i, func(c *Config) { c.Shards, c.Index = AllShards(), true })
		for k, r := range c.records {
			full, err := openCapability(r.raw, r.peer, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			b, err := openBeat(c.beats[k], r.peer)
			if err != nil {
				t.Fatal(err)
			}
			p.dir.index.putRecord(full, time.Now())
			p.dir.index.putBeat(b, 0, time.Now())
		}
		indexes = append(indexes, p)
		if i > 0 {
			connect(t, p.host, indexes[0].host)
		}
		defer p.beIndex(t, op)
	}
	client = startPeer(t, 100, func(c *Config) {
		c.Mode = ModeClient
		c.ColdTimeout, c.QueryTimeout = time.Minute, time.Minute // thousands of signatures, and the race detector
	})
	for _, p := range indexes {
		connect(t, client.host, p.host)
	}
	eventually(t, "the index peers know one another", func() bool {
		return !slices.ContainsFunc(indexes, func(p *testPeer) bool { return p.dir.Servers() < min(1, len(indexes)-1) })
	})
	return client, indexes
}

// beIndex advertises the role index.
func (p *testPeer) beIndex(t *testing.T, operator int) {
	t.Helper()
	now := time.Now()
	rec := machine(p.id, uint64(now.UnixMicro()), now)
	rec.Roles = []string{"index"}
	if operator >= 0 {
		l, err := protocol.SignLabel(identityOf(t, operator).key, p.id, protocol.LabelOperator, "index", now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		rec.Labels = append(rec.Labels, l)
	}
	ctx := within(t, 20*time.Second)
	if _, err := p.dir.Advertise(ctx, sign(t, p.key, capabilitySeal(), rec)); err != nil && !errors.Is(err, ErrNoServers) {
		t.Fatal(err)
	}
	if err := p.dir.Provide(ctx, []string{attrIndex}); err != nil && !errors.Is(err, ErrNoServers) {
		t.Fatal(err)
	}
}

func TestAClientUnitesThreeIndexPeersPageByPage(t *testing.T) {
	c := newCrowd(t, 2300, 0, time.Now())
	client, _ := indexed(t, c, -1, -1, -1)
	f := parsed(t, `gpu.count >= 1`)
	want, _ := newAsking(Query{Filter: f}, time.Now(), false).match(c.x)
	var got []Candidate
	var ex Explanation
	eventually(t, "three index peers answer", func() bool {
		var err error
		got, ex, err = client.dir.Find(within(t, time.Minute), Query{Filter: f, Seed: 3, Explain: true, Via: ViaIndex})
		return err == nil && ex.IndexHeard == 3
	})
	if len(got) != len(want) || len(want) < maxQueryRows+50 || ex.Tier != "index" || ex.PeersAsked != 3 || ex.PeersFailed != 0 {
		t.Errorf("%d of %d nodes; %+v", len(got), len(want), ex)
	}
	if ex.Population < 2300 || len(ex.Clauses) != 3 || ex.Clauses[2].RemovedAlone != 2300-len(want) || !ex.Clauses[2].Implied {
		t.Errorf("what clauses did among all nodes: %d, %+v", ex.Population, ex.Clauses)
	}
	some, _, err := client.dir.Find(within(t, 30*time.Second), Query{Filter: f, Seed: 3, Limit: 10, Via: ViaIndex})
	if err != nil || !slices.EqualFunc(some, got[:10], func(a, b Candidate) bool { return a.Peer == b.Peer }) {
		t.Errorf("with a limit: %d nodes, %v", len(some), err)
	}
	if _, _, err := client.dir.Find(within(t, time.Second), Query{Via: "pigeon"}); !errors.Is(err, ErrConfig) {
		t.Errorf("by pigeon: %v", err)
	}
}

func TestWhatOnlyTheAskerKnowsIsJudgedByTheAsker(t *testing.T) {
	c := newCrowd(t, 60, 1, time.Now())
	client, _ := indexed(t, c, -1, -1, -1)
	near := func(id peer.ID) (float64, float64) { return float64(id[len(id)-1]), 1 }
	f := parsed(t, `node.rtt_ms < 100 && gpu.count == 1`)
	hits, _ := newAsking(Query{Filter: f, Local: near}, time.Now(), false).match(c.x)
	if len(hits) == 0 || len(hits) == 60 {
		t.Fatal("the filter selects none or all")
	}
	eventually(t, "near nodes are found", func() bool {
		got, ex, err := client.dir.Find(within(t, 10*time.Second), Query{Filter: f, Local: near, Via: ViaIndex})
		return err == nil && ex.IndexHeard == 3 && len(got) == len(hits)
	})
}

func TestTooFewIndependentIndexPeersAreSaidAndTheNodesAreAskedToo(t *testing.T) {
	c := newCrowd(t, 50, 1, time.Now())
	client, indexes := indexed(t, c, 900, 900, 900) // all of one operator
	node := startPeer(t, 50, nil)
	connect(t, node.host, indexes[0].host)
	connect(t, client.host, node.host)
	eventually(t, "the node knows a server", func() bool { return node.dir.Servers() > 0 })
	now := time.Now()
	rec := machine(node.id, uint64(now.UnixMicro()), now, gpu("nvidia-l4-24gb", 1, 22.5)) // without a heartbeat no index peer hears of it
	if _, err := node.dir.Advertise(within(t, 20*time.Second), sign(t, node.key, capabilitySeal(), rec)); err != nil {
		t.Fatal(err)
	}
	if err := node.dir.Provide(within(t, 20*time.Second), Attributes(rec)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the index peers and the node are found", func() bool {
		got, ex, err := client.dir.Find(within(t, 10*time.Second), Query{Filter: parsed(t, "gpu.count >= 1"), Literal: true})
		return err == nil && len(got) == 51 && ex.Tier == "index+cold" && ex.IndexHeard == 1 && ex.IndexWanted == 3 && len(ex.Index) == 3
	})
	alone, ex, err := client.dir.Find(within(t, 10*time.Second), Query{Filter: parsed(t, `gpu.model == "L4"`), Literal: true, Via: ViaIndex})
	if err != nil || len(alone) != 0 || ex.IndexHeard != 1 {
		t.Errorf("by index peers alone: %d, %+v, %v", len(alone), ex, err)
	}
	stranger := startPeer(t, 101, func(c *Config) { c.Mode = ModeClient })
	connect(t, stranger.host, node.host)
	for _, p := range indexes {
		p.stop()
		if err := p.host.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := stranger.dir.Find(within(t, 10*time.Second), Query{Via: ViaIndex}); !errors.Is(err, ErrNoIndex) {
		t.Errorf("without index peers: %v", err)
	}
}

// answerWith makes a host answer queries in a way of its own.
func (p *testPeer) answerWith(rows func() []*pb.QueryRow) {
	p.host.SetStreamHandler(protocol.ProtoQuery, func(s network.Stream) {
		defer s.Close()
		raw, err := msgio.NewVarintReaderSize(struct{ io.Reader }{s}, maxQueryRequest).ReadMsg()
		req := &pb.QueryRequest{}
		if err != nil || proto.Unmarshal(raw, req) != nil {
			return
		}
		w := msgio.NewVarintWriter(struct{ io.Writer }{s})
		if req.GetFind() == nil {
			_ = writeReply(w, errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_NO_INDEX, "no", 0, 0))
			return
		}
		sendRows(rows(), func(r *pb.QueryReply) bool { return writeReply(w, r) == nil })
		_ = writeReply(w, &pb.QueryReply{Part: &pb.QueryReply_End{End: &pb.QueryEnd{Matched: 1 << 30, Population: 1 << 30}}})
	})
}

func TestAnIndexPeerThatWithholdsDoesNotCountAndOneThatForgesIsNotBelieved(t *testing.T) {
	c := newCrowd(t, 100, 1, time.Now())
	client, indexes := indexed(t, c, -1, -1, -1)
	row := func(i int) *pb.QueryRow {
		return &pb.QueryRow{Capability: c.records[i].raw, Availability: c.beats[i]}
	}
	now, mallory := time.Now(), identityOf(t, 666)
	var wrong []*pb.QueryRow
	forged := sign(t, mallory.key, capabilitySeal(), machine(identityOf(t, 667).id, 1, now, gpu("nvidia-h100-80gb-sxm", 8, 79.65)))
	bent := slices.Clone(c.records[0].raw)
	bent[len(bent)/2] ^= 1
	expired := sign(t, mallory.key, capabilitySeal(), machine(mallory.id, 1, now.Add(-3*time.Hour), gpu("nvidia-h100-80gb-sxm", 8, 79.65)))
	for _, raw := range [][]byte{forged, bent, expired, nil, c.beats[0]} {
		wrong = append(wrong, &pb.QueryRow{Capability: raw, Availability: c.beats[1]})
	}
	wrong = append(wrong, &pb.QueryRow{Capability: c.records[2].raw, Availability: c.beats[3]}) // another's heartbeat
	indexes[2].answerWith(func() []*pb.QueryRow {
		out := wrong
		for i := range 70 {
			out = append(out, row(i))
		}
		return out
	})
	eventually(t, "all nodes are found, and the one that withholds is named", func() bool {
		got, ex, err := client.dir.Find(within(t, 10*time.Second), Query{Filter: parsed(t, "gpu.count >= 1"), Literal: true, Via: ViaIndex})
		if err != nil {
			return false
		}
		for _, g := range got {
			if g.Peer == mallory.id || g.Peer == identityOf(t, 667).id {
				t.Fatal("a forged node is listed")
			}
		}
		bad := slices.IndexFunc(ex.Index, func(a IndexAnswer) bool { return a.Peer == indexes[2].id })
		return len(got) == 100 && bad >= 0 && ex.Index[bad].Lacking && ex.Index[bad].Lacks == 30 && ex.IndexHeard == 2
	})
	indexes[2].answerWith(func() []*pb.QueryRow { // it keeps a tenth back: that may be its age
		var out []*pb.QueryRow
		for i := range 90 {
			out = append(out, row(i))
		}
		return out
	})
	got, ex, err := client.dir.Find(within(t, 10*time.Second), Query{Filter: parsed(t, "gpu.count >= 1"), Literal: true, Via: ViaIndex})
	if err != nil || len(got) != 100 || ex.IndexHeard != 3 {
		t.Errorf("%d, %+v, %v", len(got), ex, err)
	}
}

func TestHelloAndProbeTellAPeerHowItIsSeen(t *testing.T) {
	peers := neighbourhood(t, 3)
	hub, node := peers[0], peers[1]
	connect(t, node.host, peers[2].host)
	before, err := node.dir.Probe(within(t, 10*time.Second), hub.id)
	if err != nil || before.Seq != 0 || before.Heard || !before.Dialable {
		t.Errorf("before it advertises: %+v, %v", before, err)
	}
	raw := node.advertise(t, gpu("nvidia-l4-24gb", 2, 22.5))
	eventually(t, "the hub has heard it", func() bool {
		if _, ok := hub.dir.index.get(node.id, time.Now()); ok {
			return true
		}
		node.beat(t, raw, ready)
		return false
	})
	rec, err := openCapability(raw, node.id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	seen, err := node.dir.Probe(within(t, 10*time.Second), hub.id)
	if err != nil || seen.Seq != rec.cap.GetSeq() || !seen.Heard || seen.BeatAge > 20*time.Second || !seen.Dialable {
		t.Errorf("by the hub: %+v, %v", seen, err)
	}
	other, err := node.dir.Probe(within(t, 10*time.Second), peers[2].id) // it keeps no replica: it asks the DHT
	if err != nil || other.Seq != rec.cap.GetSeq() || other.Heard || !other.Dialable {
		t.Errorf("by a peer without a replica: %+v, %v", other, err)
	}
	hello, err := node.dir.Hello(within(t, 10*time.Second), hub.id)
	if err != nil || hello.Population != hub.dir.Size() || hello.Models["nvidia-l4-24gb"] != 1 || hello.YourAddress == nil || hello.Clock.Abs() > 5*time.Second {
		t.Errorf("hello: %+v, %v", hello, err)
	}
	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, hub.host)
	client.host.Peerstore().ClearAddrs(client.id)
	var rate *RateError
	for range 10 {
		if _, err = client.dir.Probe(within(t, 10*time.Second), hub.id); err != nil {
			break
		}
	}
	if !errors.As(err, &rate) || !errors.Is(err, ErrRate) || rate.After <= 0 {
		t.Errorf("a flood of probes: %v", err)
	}
}

func TestAQueryHasItsLimits(t *testing.T) {
	peers := neighbourhood(t, 2)
	ask := func(req *pb.QueryRequest) error {
		_, err := peers[1].dir.exchange(within(t, 10*time.Second), peers[0].id, req, maxQueryRows, func(*pb.QueryRow) {})
		return err
	}
	for name, req := range map[string]*pb.QueryRequest{
		"format":   {Format: 9, Ask: &pb.QueryRequest_Hello{Hello: &pb.HelloRequest{}}},
		"nothing":  {Format: 1},
		"filter":   {Format: 1, Ask: &pb.QueryRequest_Find{Find: &pb.FindRequest{Filter: "gpu.modle == 1"}}},
		"cursor":   {Format: 1, Ask: &pb.QueryRequest_Find{Find: &pb.FindRequest{Cursor: []byte{1}}}},
		"65 peers": {Format: 1, Ask: &pb.QueryRequest_Get{Get: &pb.GetRequest{PeerIds: make([][]byte, 65)}}},
	} {
		if err := ask(req); !errors.Is(err, ErrQuery) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var err error
	for range 40 {
		if err = ask(&pb.QueryRequest{Format: 1, Ask: &pb.QueryRequest_Hello{Hello: &pb.HelloRequest{}}}); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrRate) {
		t.Errorf("a flood: %v", err)
	}
}

func FuzzReplies(f *testing.F) {
	me := identityOf(f, 1)
	h, gossip := newHost(f, me)
	cfg := DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.Index, cfg.Shards = ModeServer, true, true, AllShards()
	d, err := New(cfg, h, gossip, func() time.Time { return epoch }, newRand(1), quiet)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 20 {
		d.index.putRecord(unsigned(identityOf(f, i).id, 1, epoch, gpu("nvidia-l4-24gb", 2, 22.5)), epoch)
	}
	for _, req := range []*pb.QueryRequest{
		{Format: 1, Ask: &pb.QueryRequest_Hello{Hello: &pb.HelloRequest{}}},
		{Format: 1, Ask: &pb.QueryRequest_Probe{Probe: &pb.ProbeRequest{}}},
		{Format: 1, Ask: &pb.QueryRequest_RoundTrips{RoundTrips: &pb.RoundTripsRequest{PeerIds: [][]byte{[]byte("x"), []byte(identityOf(f, 1).id)}}}},
		{Format: 1, Ask: &pb.QueryRequest_NetworkFile{NetworkFile: &pb.NetworkFileRequest{}}},
		{Format: 1, Ask: &pb.QueryRequest_Find{Find: &pb.FindRequest{Filter: `gpu.free >= 4 && node.rtt_ms < 3`, Limit: 7, Explain: true, MaxAgeS: 9, Cursor: make([]byte, 16)}}},
		{Format: 1, Ask: &pb.QueryRequest_Get{Get: &pb.GetRequest{PeerIds: [][]byte{[]byte(me.id)}}}},
	} {
		raw, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rows, ended := 0, false
		for reply := range d.replies(context.Background(), asker{peer: "somebody"}, raw) {
			if ended || proto.Size(reply) > maxQueryFrame {
				t.Fatal("a frame after the end, or a large one")
			}
			rows += len(reply.GetRows().GetRows())
			ended = reply.GetRows() == nil
		}
		if !ended || rows > maxQueryRows {
			t.Fatalf("an answer without an end, or with %d rows", rows)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	me := identityOf(f, 1)
	raw := sign(f, me.key, capabilitySeal(), machine(me.id, 5, time.Now()))
	for _, reply := range []*pb.QueryReply{
		{Part: &pb.QueryReply_Rows{Rows: &pb.QueryRows{Rows: []*pb.QueryRow{{Capability: raw}}}}},
		{Part: &pb.QueryReply_End{End: &pb.QueryEnd{Matched: 3, Cursor: make([]byte, 16)}}},
		{Part: &pb.QueryReply_Hello{Hello: &pb.HelloReply{Now: 5, YourAddress: []byte{4, 1, 2, 3, 4}, ClassCounts: []*pb.ClassPopulation{{Model: "x", Nodes: 3}}}}},
		{Part: &pb.QueryReply_Probe{Probe: &pb.ProbeReply{Seq: 3, BeatAgeMs: p32(4)}}},
		{Part: &pb.QueryReply_RoundTrips{RoundTrips: &pb.RoundTripsReply{RoundTrips: []*pb.RoundTrip{{PeerId: []byte("x"), RttUs: 5}}}}},
		{Part: &pb.QueryReply_NetworkFile{NetworkFile: &pb.NetworkFileReply{Signed: []byte("x")}}},
		errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_RATE, "slow", 0, time.Second),
	} {
		frame := &frames{}
		if err := writeReply(msgio.NewVarintWriter(frame), reply); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(*frame))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rows, opened := 0, newOpener()
		end, err := readAnswer(&frames{}, 10, func(*pb.QueryRow) {})
		if err == nil || end != nil {
			t.Fatal("nothing is an answer")
		}
		in := frames(raw)
		end, err = readAnswer(&in, 10, func(row *pb.QueryRow) {
			rows++
			if a, ok := opened.row(row, nil, time.Now()); ok && a.record.peer != me.id {
				t.Fatal("a record that nobody signed")
			}
		})
		if rows > 10 || (err == nil) == (end == nil) {
			t.Fatalf("%d rows, %v, %v", rows, end, err)
		}
		if err == nil && end.GetHello() != nil {
			_, _ = readHello(end.GetHello(), epoch, epoch)
		}
	})
}

// frames is a stream in memory.
type frames []byte

func (f *frames) Write(b []byte) (int, error) { *f = append(*f, b...); return len(b), nil }

func (f *frames) Read(b []byte) (int, error) {
	if len(*f) == 0 {
		return 0, io.EOF
	}
	n := copy(b, *f)
	*f = (*f)[n:]
	return n, nil
}
