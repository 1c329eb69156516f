package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/internal/corpus"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestLabelsOfALiarAreDropped(t *testing.T) {
	server, self, other := identityOf(t, 970), identityOf(t, 971), identityOf(t, 972)
	now := time.Now()
	const up, down = 700 * mbit, 900 * mbit // high, and 100 MB/s
	sign := func(by identity, about peer.ID, key, value string, life time.Duration) *pb.Label {
		l, err := protocol.SignLabel(by.key, about, key, value, now.Add(life))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	good := sign(server, self.id, protocol.LabelTier, "high", time.Hour)
	forged := proto.CloneOf(good)
	forged.Value = "ultra"
	var long []*pb.Label
	for range maxMeasureLabels {
		long = append(long, forged)
	}
	for name, c := range map[string]struct {
		labels []*pb.Label
		want   int
	}{
		"good ones":                   {[]*pb.Label{good, sign(server, self.id, protocol.LabelPriceTier, "100", time.Hour)}, 2},
		"about somebody else":         {[]*pb.Label{sign(server, other.id, protocol.LabelTier, "high", time.Hour)}, 0},
		"by another key":              {[]*pb.Label{sign(other, self.id, protocol.LabelTier, "high", time.Hour)}, 0},
		"by ourselves":                {[]*pb.Label{sign(self, self.id, protocol.LabelTier, "high", time.Hour)}, 0},
		"not what the figures say":    {[]*pb.Label{sign(server, self.id, protocol.LabelTier, "ultra", time.Hour)}, 0},
		"forged":                      {[]*pb.Label{forged}, 0},
		"expired":                     {[]*pb.Label{sign(server, self.id, protocol.LabelTier, "high", -time.Second)}, 0},
		"of something else":           {[]*pb.Label{sign(server, self.id, "host.type", "datacenter", time.Hour)}, 0},
		"twice":                       {[]*pb.Label{good, good}, 1},
		"behind many that are no use": {append(long, good), 0},
	} {
		if got := goodLabels(&pb.MeasureResult{UpBps: up, DownBps: down, Labels: c.labels}, server.id, self.id, now); len(got) != c.want {
			t.Errorf("%s: %d are taken, want %d", name, len(got), c.want)
		}
	}
}

// fakeMeasurer answers the control stream by hand; data streams are read and forgotten.
func fakeMeasurer(t *testing.T, n int, answer func(control network.Stream, data <-chan network.Stream)) *testPeer {
	t.Helper()
	p := startPeer(t, n, nil)
	data := make(chan network.Stream, 2*maxMeasureStreams) // as many as a client opens
	p.host.SetStreamHandler(protocol.ProtoMeasure, func(s network.Stream) {
		raw, err := msgio.NewVarintReaderSize(s, maxMeasureFrame).ReadMsg()
		if err != nil {
			_ = s.Reset()
			return
		}
		if ask, err := readMeasureRequest(raw); err != nil || ask.GetJoin() != nil {
			data <- s
			return
		}
		answer(s, data)
	})
	t.Cleanup(func() { p.host.RemoveStreamHandler(protocol.ProtoMeasure) })
	return p
}

func reply(t *testing.T, s network.Stream, m *pb.MeasureReply) {
	if err := writeMeasure(s, m, false); err != nil {
		t.Log(err) // the other end has left
	}
}

func TestAServerThatLiesOrIsSilentIsNotBelieved(t *testing.T) {
	t.Parallel()
	granted := &pb.MeasureReply{Part: &pb.MeasureReply_Granted{Granted: &pb.MeasureGranted{Token: make([]byte, measureToken), Streams: 2, DurationMs: 50, MaxBytes: 1 << 30}}}
	turn := &pb.MeasureReply{Part: &pb.MeasureReply_Turn{Turn: &pb.MeasureTurn{Direction: pb.MeasureDirection_MEASURE_DIRECTION_UP}}}
	result := func(up, down uint64) *pb.MeasureReply {
		return &pb.MeasureReply{Part: &pb.MeasureReply_Result{Result: &pb.MeasureResult{UpBps: up, DownBps: down}}}
	}
	for i, c := range []struct {
		name, want string
		answer     func(control network.Stream, data <-chan network.Stream)
	}{
		{"says more down than it has sent", "more than what has flowed", func(s network.Stream, _ <-chan network.Stream) {
			reply(t, s, granted)
			reply(t, s, turn)
			reply(t, s, result(0, 1000*mbit))
		}},
		{"says more up than it has got", "more than what has flowed", func(s network.Stream, _ <-chan network.Stream) {
			reply(t, s, granted)
			reply(t, s, turn)
			reply(t, s, result(1<<62, 0))
		}},
		{"gives a result at once", "another question", func(s network.Stream, _ <-chan network.Stream) { reply(t, s, result(5, 5)) }},
		{"turns to nowhere", "nowhere", func(s network.Stream, _ <-chan network.Stream) {
			reply(t, s, granted)
			reply(t, s, &pb.MeasureReply{Part: &pb.MeasureReply_Turn{Turn: &pb.MeasureTurn{}}})
		}},
		{"wants a thousand streams", "1000 streams", func(s network.Stream, _ <-chan network.Stream) {
			reply(t, s, &pb.MeasureReply{Part: &pb.MeasureReply_Granted{Granted: &pb.MeasureGranted{Token: make([]byte, measureToken), Streams: 1000, DurationMs: 50, MaxBytes: 1}}})
		}},
		{"says nothing", "deadline", func(network.Stream, <-chan network.Stream) {}},
		{"says nothing any more", "deadline", func(s network.Stream, _ <-chan network.Stream) { reply(t, s, granted) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := fakeMeasurer(t, 980+2*i, c.answer)
			client := startPeer(t, 981+2*i, func(c *Config) { c.QueryTimeout = 300 * time.Millisecond })
			connect(t, client.host, server.host)
			got, err := client.dir.Bandwidth(within(t, 20*time.Second), server.id)
			if !errors.Is(err, ErrMeasure) || !strings.Contains(err.Error(), c.want) || got.Up != 0 {
				t.Errorf("measured %+v, %v", got, err)
			}
		})
	}
}

func TestNoLineIsMeasuredThroughARelay(t *testing.T) {
	t.Parallel()
	relay, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.EnableRelayService(), libp2p.ForceReachabilityPublic())
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := libp2p.New(libp2p.ListenAddrStrings("/p2p-circuit"), libp2p.EnableRelay(), libp2p.ForceReachabilityPrivate())
	if err != nil {
		t.Fatal(err)
	}
	asking, err := libp2p.New(libp2p.NoListenAddrs, libp2p.EnableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(asking.Close(), hidden.Close(), relay.Close()); err != nil {
			t.Error(err)
		}
	})
	connect(t, hidden, relay)
	if _, err := client.Reserve(within(t, 10*time.Second), hidden, peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()}); err != nil {
		t.Fatal(err)
	}
	server := func(h interface{ ID() peer.ID }) multiaddr.Multiaddr {
		return multiaddr.StringCast(fmt.Sprintf("%s/p2p/%s/p2p-circuit/p2p/%s", relay.Addrs()[0], relay.ID(), h.ID()))
	}
	cfg := DefaultConfig()
	cfg.Loopback, cfg.Index = true, true
	d, err := New(cfg, hidden, nil, time.Now, newRand(1), quiet)
	if err != nil {
		t.Fatal(err)
	}
	stop := d.serveMeasures(t.Context())
	defer stop()
	if err := asking.Connect(within(t, 10*time.Second), peer.AddrInfo{ID: hidden.ID(), Addrs: []multiaddr.Multiaddr{server(hidden)}}); err != nil {
		t.Fatal(err)
	}
	s, err := asking.NewStream(network.WithAllowLimitedConn(within(t, 10*time.Second), "test"), hidden.ID(), protocol.ProtoMeasure)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&pb.MeasureRequest{Ask: &pb.MeasureRequest_Begin{Begin: &pb.MeasureBegin{Format: measureFormat}}})
	if err == nil {
		err = msgio.NewVarintWriter(s).WriteMsg(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = readMeasureReply(s, func(m *pb.MeasureReply) *pb.MeasureGranted { return m.GetGranted() })
	if r := refusalOf(t, err); r.Busy || !strings.Contains(r.Text, "relay") {
		t.Errorf("the answer is %+v", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	m := &measuring{host: asking, of: hidden.ID(), most: 1 << 20, answer: time.Second}
	defer m.close()
	if _, err := m.run(network.WithNoDial(ctx, "only the relay is there")); !errors.Is(err, ErrMeasure) {
		t.Errorf("a client behind a relay: %v", err)
	}
}

func FuzzMeasureRequest(f *testing.F) {
	corpus.Add(f)
	for _, m := range []*pb.MeasureRequest{
		{},
		{Ask: &pb.MeasureRequest_Begin{Begin: &pb.MeasureBegin{Format: measureFormat, MaxBytes: 1 << 30}}},
		{Ask: &pb.MeasureRequest_Begin{Begin: &pb.MeasureBegin{Format: 9, MaxBytes: 1}}},
		{Ask: &pb.MeasureRequest_Join{Join: &pb.MeasureJoin{Token: make([]byte, measureToken), Direction: 2}}},
		{Ask: &pb.MeasureRequest_Join{Join: &pb.MeasureJoin{Token: make([]byte, 3), Direction: 7}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := readMeasureRequest(raw)
		if (err == nil) == (m == nil) {
			t.Fatalf("%v and %v", m, err)
		}
		if err != nil {
			return
		}
		begin, join := m.GetBegin(), m.GetJoin()
		switch {
		case begin != nil && join != nil, begin == nil && join == nil:
			t.Fatal("neither one nor the other")
		case begin != nil && (begin.GetFormat() != measureFormat || begin.GetMaxBytes() > 0 && begin.GetMaxBytes() < minMeasureBytes):
			t.Fatalf("began %v", begin)
		case join != nil && (len(join.GetToken()) != measureToken || join.GetDirection() < 1 || join.GetDirection() > 2):
			t.Fatalf("joined %v", join)
		}
	})
}

func FuzzMeasureReply(f *testing.F) {
	corpus.Add(f)
	label, err := protocol.SignLabel(identityOf(f, 990).key, identityOf(f, 991).id, protocol.LabelTier, "low", time.Unix(1<<33, 0))
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []*pb.MeasureReply{
		{},
		{Part: &pb.MeasureReply_Granted{Granted: &pb.MeasureGranted{Token: make([]byte, measureToken), Streams: 4, DurationMs: 8000, MaxBytes: 1 << 32}}},
		{Part: &pb.MeasureReply_Granted{Granted: &pb.MeasureGranted{Token: make([]byte, 2), Streams: 400, DurationMs: 1 << 30}}},
		{Part: &pb.MeasureReply_Turn{Turn: &pb.MeasureTurn{Direction: 2}}},
		{Part: &pb.MeasureReply_Result{Result: &pb.MeasureResult{UpBps: 80 * mbit, DownBps: 200 * mbit, Labels: []*pb.Label{label, {}}}}},
		{Part: &pb.MeasureReply_Refused{Refused: refusedFor(pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_BUSY, "busy", time.Hour)}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		var b bytes.Buffer
		if err := msgio.NewVarintWriter(struct{ io.Writer }{&b}).WriteMsg(raw); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		granted, err := readMeasureReply(bytes.NewReader(raw), func(m *pb.MeasureReply) *pb.MeasureGranted { return m.GetGranted() })
		if (err == nil) == (granted == nil) || err != nil && !errors.Is(err, ErrMeasure) {
			t.Fatalf("%v and %v", granted, err)
		}
		if granted != nil && (granted.GetStreams() < 1 || granted.GetStreams() > maxMeasureStreams || granted.GetDurationMs() > 60_000 || len(granted.GetToken()) != measureToken) {
			t.Fatalf("granted %v", granted)
		}
		if r, ok := errors.AsType[*MeasureRefusal](err); ok && (r.After < 0 || r.After > maxMeasureWait || len(r.Text) > 800) {
			t.Fatalf("refused %+v", r)
		}
		result, err := readMeasureReply(bytes.NewReader(raw), func(m *pb.MeasureReply) *pb.MeasureResult { return m.GetResult() })
		if err != nil {
			return
		}
		for _, l := range goodLabels(result, identityOf(t, 990).id, identityOf(t, 991).id, time.Unix(1<<32, 0)) {
			if !bytes.Equal(l.GetSignature(), label.GetSignature()) {
				t.Fatalf("a label that was never signed: %v", l)
			}
		}
	})
}
