package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const mbit = 1_000_000

// measurer starts an index peer that measures for so long each way.
func measurer(t testing.TB, n int, long time.Duration, mutate func(*Config)) *testPeer {
	t.Helper()
	return startPeer(t, n, func(c *Config) {
		c.Index, c.Shards, c.MeasureTime = true, AllShards(), long
		if mutate != nil {
			mutate(c)
		}
	})
}

// caller starts a peer that wants to be measured.
func caller(t testing.TB, n int) *testPeer {
	t.Helper()
	return startPeer(t, n, func(c *Config) { c.QueryTimeout = 3 * time.Second })
}

func TestTiersOfALineBeginAtTheirBounds(t *testing.T) {
	const byt = 8 * mbit
	for _, c := range []struct {
		down, up    uint64
		tier, price string
	}{
		{100 * mbit, 75 * mbit, "", ""},
		{100*mbit + 1, 75 * mbit, "", ""},
		{100*mbit + 1, 75*mbit + 1, "low", ""},
		{400 * mbit, 300 * mbit, "low", "50"},
		{400*mbit + 1, 300*mbit + 1, "medium", "50"},
		{1600*mbit + 1, 1200*mbit + 1, "ultra", "200"},
		{25*byt - 1, 0, "", ""},
		{25 * byt, 0, "", "25"},
		{50*byt - 1, 0, "", "25"},
		{100 * byt, 0, "", "100"},
		{1000*byt - 1, 0, "", "500"},
		{1000 * byt, 0, "", "1000"},
		{1 << 62, 1 << 62, "ultra", "1000"},
	} {
		got := lineLabels(c.up, c.down)
		if got[protocol.LabelTier] != c.tier || got[protocol.LabelPriceTier] != c.price {
			t.Errorf("%d down and %d up are %v, want tier %q and %q", c.down, c.up, got, c.tier, c.price)
		}
	}
}

func TestOnlyWhatArrivesInTheWindowCounts(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	tl := newMeasuredWay(start, 8*time.Second, 1<<40)
	for ms := 0; ms < 9000; ms += 10 { // 1 MB/s; in the first second ten times as much
		n := 10_000
		if ms < 1000 {
			n *= 10
		}
		if more := tl.add(n, at(ms)); more != (ms <= 8000) {
			t.Fatalf("after %d ms more is wanted: %t", ms, more)
		}
	}
	if got := tl.rate(); got < 8*mbit || got > 8*mbit+20_000 {
		t.Errorf("1 MB/s is measured as %d bit/s", got)
	}
	stopped := 0
	for ms, want := range map[int]uint64{4000: 80 * mbit, 500: 80 * mbit, 1200: 80 * mbit} { // the bytes are used up then
		tl := newMeasuredWay(start, 8*time.Second, int64(ms)*10_000)
		tl.stop = func() { stopped++ }
		for i := 10; tl.add(100_000, at(i)); i += 10 {
			if i > 8000 {
				t.Fatal("it never ends")
			}
		}
		if got := tl.rate(); got < want*99/100 || got > want*101/100 || !tl.over(at(ms)) {
			t.Errorf("10 MB/s that end after %d ms are %d bit/s", ms, got)
		}
	}
	if stopped != 3 {
		t.Errorf("told %d of 3 times that the bytes are used up", stopped)
	}
}

func TestAStreamIsNeverMoreThanTwoSecondsAhead(t *testing.T) {
	for _, c := range []struct {
		echoed int
		since  time.Duration
		want   int
	}{{0, 0, 1}, {0, time.Hour, 1}, {1, time.Millisecond, 3}, {10, 5 * time.Second, 5}, {5000, time.Second, maxMeasureAhead}} {
		if got := ahead(c.echoed, c.since); got != c.want {
			t.Errorf("%d back in %s allow %d, want %d", c.echoed, c.since, got, c.want)
		}
	}
}

func TestTheMeasurementsOfADayAreCounted(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MeasureTotal = 1000
	var q dayQuota
	now := time.Unix(1_800_000_000, 0).UTC().Truncate(24 * time.Hour).Add(20 * time.Hour)
	take := func(who, net string, at time.Time) time.Duration { return q.take(&cfg, who, net, at) }
	for i, who := range []string{"a", "a", "b"} {
		if take(who, "x", now) != 0 {
			t.Fatalf("call %d, of %s, is refused", i, who)
		}
	}
	if got := take("a", "y", now); got != 4*time.Hour {
		t.Errorf("a third one has to wait for %s, want 4 h", got)
	}
	if take("a", "x", now.Add(4*time.Hour)) != 0 {
		t.Error("the next day does not count anew")
	}
	for i := range measurePerNetwork - 1 {
		if take(fmt.Sprint("many ", i), "x", now.Add(4*time.Hour)) != 0 {
			t.Fatalf("caller %d of one network is refused", i)
		}
	}
	if take("one more", "x", now.Add(4*time.Hour)) == 0 || take("one more", "z", now.Add(4*time.Hour)) != 0 {
		t.Error("callers of one network are not counted together")
	}
	q.moved = 1000
	if take("c", "", now.Add(4*time.Hour)) == 0 {
		t.Error("more bytes than a day has are moved")
	}
	cfg.MeasureTotal = 1 << 40
	for i := range 5 * maxBuckets {
		take(fmt.Sprint("stranger ", i), "", now.Add(4*time.Hour))
		if len(q.taken) > 2*maxBuckets+2 {
			t.Fatalf("%d callers are remembered", len(q.taken))
		}
	}
}

func TestALineIsMeasuredBothWaysAndSignedFor(t *testing.T) {
	t.Parallel()
	server, client := measurer(t, 900, 400*time.Millisecond, nil), caller(t, 901)
	connect(t, client.host, server.host)
	before := time.Now()
	got, err := client.dir.Bandwidth(within(t, 20*time.Second), server.id)
	if err != nil {
		t.Fatal(err)
	}
	if got.Peer != server.id || got.At.Before(before) || got.Up < mbit || got.Down < mbit {
		t.Errorf("measured %+v", got)
	}
	want := lineLabels(got.Up, got.Down)
	for _, l := range got.Labels {
		issuer, ok := protocol.VerifyLabel(l, client.id, time.Now().Add(measureLife-time.Minute))
		if !ok || issuer != server.id || want[l.GetKey()] != l.GetValue() {
			t.Errorf("label %v of %s", l, issuer)
		}
		if _, ok := protocol.VerifyLabel(l, client.id, time.Now().Add(measureLife)); ok {
			t.Error("it holds for longer than 36 h")
		}
	}
	if len(got.Labels) != len(want) {
		t.Errorf("%d labels of a line of %d/%d", len(got.Labels), got.Down, got.Up)
	}
	if _, err := server.dir.Bandwidth(within(t, 20*time.Second), client.id); !errors.Is(err, ErrMeasure) {
		t.Errorf("a peer without an index measures: %v", err)
	}
}

// rawSession speaks the protocol by hand.
type rawSession struct {
	t       testing.TB
	from    *testPeer
	to      peer.ID
	control network.Stream
	granted *pb.MeasureGranted
}

func (p *testPeer) begin(t testing.TB, to peer.ID) (*rawSession, error) {
	t.Helper()
	r := &rawSession{t: t, from: p, to: to}
	r.control = r.open(&pb.MeasureRequest{Ask: &pb.MeasureRequest_Begin{Begin: &pb.MeasureBegin{Format: measureFormat}}})
	var err error
	r.granted, err = readMeasureReply(r.control, func(m *pb.MeasureReply) *pb.MeasureGranted { return m.GetGranted() })
	if err != nil {
		_ = r.control.Reset()
	}
	return r, err
}

func (r *rawSession) open(first *pb.MeasureRequest) network.Stream {
	r.t.Helper()
	s, err := r.from.host.NewStream(within(r.t, 10*time.Second), r.to, protocol.ProtoMeasure)
	if err != nil {
		r.t.Fatal(err)
	}
	raw, err := proto.Marshal(first)
	if err == nil {
		err = msgio.NewVarintWriter(s).WriteMsg(raw)
	}
	if err == nil {
		err = s.SetDeadline(time.Now().Add(20 * time.Second))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Reset() })
	return s
}

func (r *rawSession) join(token []byte, way pb.MeasureDirection) network.Stream {
	r.t.Helper()
	return r.open(&pb.MeasureRequest{Ask: &pb.MeasureRequest_Join{Join: &pb.MeasureJoin{Token: token, Direction: way}}})
}

// sendUp gives the server its way up, which is the last one, and returns the result.
func (r *rawSession) sendUp() (*pb.MeasureResult, error) {
	r.t.Helper()
	var all sync.WaitGroup
	defer all.Wait()
	for range r.granted.GetStreams() {
		s := r.join(r.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_UP)
		all.Go(func() {
			for block := make([]byte, measureBlock); ; {
				if _, err := s.Write(block); err != nil {
					return
				}
			}
		})
	}
	return readMeasureReply(r.control, func(m *pb.MeasureReply) *pb.MeasureResult { return m.GetResult() })
}

// takeDown opens the streams of the way down and runs f on each, until it is the turn of the way up.
func (r *rawSession) takeDown(f func(network.Stream)) error {
	r.t.Helper()
	var all sync.WaitGroup
	defer all.Wait()
	for range r.granted.GetStreams() {
		s := r.join(r.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_DOWN)
		all.Go(func() { f(s) })
	}
	_, err := readMeasureReply(r.control, func(m *pb.MeasureReply) *pb.MeasureTurn { return m.GetTurn() })
	return err
}

// gone says whether the other end has ended a stream.
func gone(s network.Stream) bool {
	_, err := s.Read(make([]byte, 1))
	return errors.Is(err, network.ErrReset)
}

func refusalOf(t testing.TB, err error) *MeasureRefusal {
	t.Helper()
	r, ok := errors.AsType[*MeasureRefusal](err)
	if !ok || !errors.Is(err, ErrMeasure) {
		t.Fatalf("not refused but %v", err)
	}
	return r
}

func TestOneCallerIsMeasuredAtATimeAndTwiceADay(t *testing.T) {
	t.Parallel()
	server, a, b := measurer(t, 920, 200*time.Millisecond, nil), caller(t, 921), caller(t, 922)
	connect(t, a.host, server.host)
	connect(t, b.host, server.host)
	first, err := a.begin(t, server.id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.dir.Bandwidth(within(t, 10*time.Second), server.id)
	if r := refusalOf(t, err); !r.Busy || r.After < time.Second || r.After > time.Minute {
		t.Errorf("while another is measured: %+v", r)
	}
	_ = first.control.Close() // it goes; that was one of two
	eventually(t, "the next one is measured", func() bool {
		_, err := a.dir.Bandwidth(within(t, 10*time.Second), server.id)
		return err == nil
	})
	_, err = a.dir.Bandwidth(within(t, 10*time.Second), server.id)
	if r := refusalOf(t, err); r.Busy || r.After <= 0 || r.After > 24*time.Hour || !strings.Contains(r.Error(), "today") {
		t.Errorf("a third time on one day: %+v", r)
	}
	if _, err := b.dir.Bandwidth(within(t, 10*time.Second), server.id); err != nil {
		t.Errorf("another caller: %v", err)
	}
}

func TestATokenIsForOneSessionOfOnePeer(t *testing.T) {
	t.Parallel()
	server, owner, thief := measurer(t, 930, 200*time.Millisecond, nil), caller(t, 931), caller(t, 932)
	connect(t, owner.host, server.host)
	connect(t, thief.host, server.host)
	ses, err := owner.begin(t, server.id)
	if err != nil {
		t.Fatal(err)
	}
	stolen := &rawSession{t: t, from: thief, to: server.id}
	if !gone(stolen.join(ses.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_UP)) {
		t.Error("a stolen token opens a data stream")
	}
	if !gone(ses.join(bytes.Repeat([]byte{7}, measureToken), pb.MeasureDirection_MEASURE_DIRECTION_UP)) {
		t.Error("a wrong token opens a data stream")
	}
	m := &measuring{most: 1 << 40}
	if err := ses.takeDown(m.echo); err != nil {
		t.Fatal(err)
	}
	if !gone(ses.join(ses.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_DOWN)) {
		t.Error("there are more data streams than were granted")
	}
	result, err := ses.sendUp()
	if err != nil || result.GetDownBps() == 0 || result.GetUpBps() == 0 {
		t.Fatalf("what a thief does disturbs the session: %v, %v", result, err)
	}
	if !gone(ses.join(ses.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_DOWN)) {
		t.Error("a token outlives its session")
	}
}

func TestWhoEchoesWhatItHasNotReadIsNotMeasured(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]func(s network.Stream){
		"early": func(s network.Stream) { _, _ = s.Write(make([]byte, measureNonce)) },
		"another nonce": func(s network.Stream) {
			chunk := make([]byte, measureChunk)
			if _, err := io.ReadFull(s, chunk); err == nil {
				_, _ = s.Write(chunk[:measureNonce])
			}
		},
		"one nonce twice": func(s network.Stream) {
			chunk := make([]byte, measureChunk)
			if _, err := io.ReadFull(s, chunk); err == nil {
				_, _ = s.Write(append(chunk[measureChunk-measureNonce:], chunk[measureChunk-measureNonce:]...))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, client := measurer(t, 940, 300*time.Millisecond, nil), caller(t, 941)
			connect(t, client.host, server.host)
			ses, err := client.begin(t, server.id)
			if err != nil {
				t.Fatal(err)
			}
			if r := refusalOf(t, ses.takeDown(lie)); !strings.Contains(r.Text, "nonce") {
				t.Errorf("the answer is %+v", r)
			}
		})
	}
}

func TestWhoReadsWithoutEchoingIsSentOneChunkAStream(t *testing.T) {
	t.Parallel()
	server, client := measurer(t, 945, 500*time.Millisecond, nil), caller(t, 946)
	connect(t, client.host, server.host)
	ses, err := client.begin(t, server.id)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got int64
	err = ses.takeDown(func(s network.Stream) {
		n, _ := io.Copy(io.Discard, s)
		mu.Lock()
		defer mu.Unlock()
		got += n
	})
	if err != nil {
		t.Fatal(err)
	}
	result, err := ses.sendUp()
	if err != nil || result.GetDownBps() != 0 || len(result.GetLabels()) != 0 {
		t.Errorf("the result is %v, %v", result, err)
	}
	if most := int64(ses.granted.GetStreams()) * measureChunk; got > most {
		t.Errorf("%d bytes were sent, more than %d", got, most)
	}
}

func TestSilentCallersAreLetGo(t *testing.T) {
	t.Parallel()
	server, client := measurer(t, 950, 100*time.Millisecond, func(c *Config) { c.MeasureDaily = 9 }), caller(t, 951)
	connect(t, client.host, server.host)
	ses, err := client.begin(t, server.id)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_, err = readMeasureReply(ses.control, func(m *pb.MeasureReply) *pb.MeasureTurn { return m.GetTurn() })
	if r := refusalOf(t, err); !strings.Contains(r.Text, "0 of 4 data streams") || time.Since(begun) > 5*time.Second {
		t.Errorf("who opens no data stream hears %+v after %s", r, time.Since(begun))
	}
	eventually(t, "it begins again", func() bool { ses, err = client.begin(t, server.id); return err == nil })
	for range ses.granted.GetStreams() { // opened, and nothing read
		ses.join(ses.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_DOWN)
	}
	if _, err = readMeasureReply(ses.control, func(m *pb.MeasureReply) *pb.MeasureTurn { return m.GetTurn() }); err != nil {
		t.Errorf("who reads nothing has got nothing: %v", err)
	}
	_, err = readMeasureReply(ses.control, func(m *pb.MeasureReply) *pb.MeasureResult { return m.GetResult() })
	if r := refusalOf(t, err); !strings.Contains(r.Text, "0 of 4 data streams") {
		t.Errorf("who opens no stream up hears %+v", r)
	}
}

func TestAStreamThatBreaksOffIsNoSlowLine(t *testing.T) {
	t.Parallel()
	server, client := measurer(t, 955, time.Second, nil), caller(t, 956)
	connect(t, client.host, server.host)
	ses, err := client.begin(t, server.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.takeDown((&measuring{most: 1 << 40}).echo); err != nil {
		t.Fatal(err)
	}
	var last network.Stream
	for range ses.granted.GetStreams() {
		last = ses.join(ses.granted.GetToken(), pb.MeasureDirection_MEASURE_DIRECTION_UP)
	}
	if _, err := last.Write(make([]byte, 2<<20)); err != nil { // more than fits a stream that nobody reads
		t.Fatal(err)
	}
	_ = last.Reset()
	_, err = readMeasureReply(ses.control, func(m *pb.MeasureReply) *pb.MeasureResult { return m.GetResult() })
	if r := refusalOf(t, err); !strings.Contains(r.Text, "broke off") {
		t.Errorf("the answer is %+v", r)
	}
}

func TestAMeasurementStopsWithItsContext(t *testing.T) {
	t.Parallel()
	server, client, next := measurer(t, 960, 20*time.Second, nil), caller(t, 961), caller(t, 962)
	connect(t, client.host, server.host)
	connect(t, next.host, server.host)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := client.dir.Bandwidth(ctx, server.id); ended <- err }()
	eventually(t, "bytes flow", func() bool {
		open := 0
		for _, c := range client.host.Network().ConnsToPeer(server.id) {
			for _, s := range c.GetStreams() {
				open += btoi(s.Protocol() == protocol.ProtoMeasure)
			}
		}
		return open == 1+DefaultConfig().MeasureStreams
	})
	cancel()
	begun := time.Now()
	if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(begun) > 2*time.Second {
		t.Errorf("ended with %v after %s", err, time.Since(begun))
	}
	eventually(t, "the server measures the next one", func() bool {
		ses, err := next.begin(t, server.id)
		if err == nil {
			_ = ses.control.Close()
		}
		return err == nil
	})
}

func TestMeasurersOfOtherNetworksComeFirst(t *testing.T) {
	of := func(id, net string) Measurer { return Measurer{peer.ID(id), net} }
	got := spread([]Measurer{of("a", "1"), of("b", "1"), of("c", "2"), of("d", "1"), of("e", "3"), of("f", "2")})
	var order []peer.ID
	for _, m := range got {
		order = append(order, m.Peer)
	}
	if !slices.Equal(order, []peer.ID{"a", "c", "e", "b", "d", "f"}) {
		t.Errorf("the order is %q", order)
	}
}

func TestAMeasurementsBoundsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"MeasureTime":    func(c *Config) { c.MeasureTime = time.Hour },
		"MeasureStreams": func(c *Config) { c.MeasureStreams = 17 },
		"MeasureBytes":   func(c *Config) { c.MeasureBytes = 1 << 20 },
		"MeasureDaily":   func(c *Config) { c.MeasureDaily = 0 },
		"MeasureTotal":   func(c *Config) { c.MeasureTotal = -1 },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if err := cfg.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}
