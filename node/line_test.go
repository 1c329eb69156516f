package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const mbit = 1_000_000

// fakeLine is a line whose peers are functions.
func fakeLine(t *testing.T, now func() time.Time, peers map[protocol.PeerID]func() (dht.Bandwidth, error)) (l *line, asked *[]protocol.PeerID) {
	t.Helper()
	asked = &[]protocol.PeerID{}
	return &line{
		self: idOf(t, newKey(t)), path: filepath.Join(t.TempDir(), "line.json"), now: now, log: testLog(), roll: func() float64 { return 0.5 }, changed: func() {},
		measurers: func(context.Context) (out []dht.Measurer, err error) {
			for _, id := range []protocol.PeerID{"a", "b", "c", "d"} {
				if peers[id] != nil {
					out = append(out, dht.Measurer{Peer: id, Network: string(id)})
				}
			}
			return out, nil
		},
		ask: func(_ context.Context, of protocol.PeerID) (dht.Bandwidth, error) {
			*asked = append(*asked, of)
			b, err := peers[of]()
			b.Peer, b.At = of, now()
			return b, err
		},
	}, asked
}

func finds(up, down uint64) func() (dht.Bandwidth, error) {
	return func() (dht.Bandwidth, error) { return dht.Bandwidth{Up: up, Down: down}, nil }
}

func TestTwoPeersMeasureALineAndTheSecondHighestFigureCounts(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	clock := func() time.Time { return now }
	broken := func() (dht.Bandwidth, error) { return dht.Bandwidth{}, dht.ErrMeasure }
	l, asked := fakeLine(t, clock, map[protocol.PeerID]func() (dht.Bandwidth, error){"a": finds(90*mbit, 500*mbit), "b": broken, "c": finds(80*mbit, 900*mbit), "d": finds(1, 1)})
	never := make(chan struct{})
	l.measure(t.Context(), never)
	if got := fmt.Sprint(*asked); got != fmt.Sprint([]protocol.PeerID{"a", "b", "c"}) {
		t.Errorf("asked were %s", got)
	}
	if f := l.facts(now); f.Up != 80*mbit || f.Down != 500*mbit || !f.At.Equal(now) {
		t.Errorf("the record says %+v", f)
	}
	if !l.next.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("measured again in %s", l.next.Sub(now))
	}
	now = now.Add(37 * time.Hour)
	if f := l.facts(now); f.Up != 0 || !f.At.IsZero() {
		t.Errorf("after 37 h the record says %+v", f)
	}
	for name, c := range map[string]struct {
		all  []uint64
		want uint64
	}{"none": {nil, 0}, "one": {[]uint64{7}, 7}, "a liar": {[]uint64{1 << 60, 5, 9}, 9}} {
		if got := secondHighest(c.all); got != c.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}

func TestWhatCameOfARoundDecidesTheNext(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		r      roundOf
		failed int
		want   time.Duration
	}{
		"two":                    {roundOf{have: 2}, 3, 24 * time.Hour},
		"one, and no other":      {roundOf{have: 1}, 0, 24 * time.Hour},
		"one, another is busy":   {roundOf{have: 1, busy: true, after: 3 * time.Minute}, 0, 3*time.Minute + 30*time.Second},
		"two, another was busy":  {roundOf{have: 2, busy: true, after: 3 * time.Minute}, 0, 24 * time.Hour},
		"all busy for a moment":  {roundOf{busy: true, after: time.Second}, 0, 90 * time.Second},
		"nobody":                 {roundOf{}, 0, 10 * time.Minute},
		"nobody for the third":   {roundOf{}, 2, 40 * time.Minute},
		"nobody for long":        {roundOf{}, 60, 2 * time.Hour},
		"a lease came":           {roundOf{cut: true}, 0, 0},
		"a lease came after one": {roundOf{cut: true, have: 1}, 0, 0},
	} {
		next, failed := c.r.next(now, c.failed, 0.5)
		if got := next.Sub(now); got != c.want {
			t.Errorf("%s: in %s, want %s", name, got, c.want)
		}
		if c.r.have > 0 && !c.r.busy && !c.r.cut && failed != 0 || c.r.have == 0 && !c.r.busy && !c.r.cut && failed != c.failed+1 {
			t.Errorf("%s: %d have failed", name, failed)
		}
	}
	if lo, hi := spread(lineEvery, 0), spread(lineEvery, 1); lo < 21*time.Hour || lo > 22*time.Hour || hi < 26*time.Hour || hi > 27*time.Hour {
		t.Errorf("daily is %s to %s", lo, hi)
	}
}

func TestABusyPeerIsAskedAgainAndTheOtherIsNot(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	busy := true
	l, asked := fakeLine(t, func() time.Time { return now }, map[protocol.PeerID]func() (dht.Bandwidth, error){
		"a": finds(5, 5),
		"b": func() (dht.Bandwidth, error) {
			if busy {
				return dht.Bandwidth{}, &dht.MeasureRefusal{Busy: true, After: 20 * time.Second}
			}
			return dht.Bandwidth{Up: 7, Down: 7}, nil
		},
	})
	l.measure(t.Context(), nil)
	if wait := l.next.Sub(now); wait > 2*time.Minute || !strings.Contains(l.status(now).Problem, "dht") {
		t.Errorf("asked again in %s, and it says %q", wait, l.status(now).Problem)
	}
	busy, *asked, now = false, nil, l.next
	l.measure(t.Context(), nil)
	if len(*asked) != 1 || (*asked)[0] != "b" || len(l.peers) != 2 || l.status(now).Problem != "" {
		t.Errorf("asked were %s: %+v", *asked, l.status(now))
	}
}

func TestARestartKnowsWhatWasMeasured(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l, _ := fakeLine(t, func() time.Time { return now }, nil)
	sign := func(by crypto.PrivKey, about protocol.PeerID) *pb.Label {
		x, err := protocol.SignLabel(by, about, protocol.LabelTier, "low", now.Add(36*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	key := newKey(t)
	l.next = now.Add(20 * time.Hour)
	l.peers = []dht.Bandwidth{
		{Peer: idOf(t, key), At: now, Up: 80, Down: 120, Labels: []*pb.Label{sign(key, l.self), sign(newKey(t), l.self), sign(key, "somebody")}},
		{Peer: idOf(t, newKey(t)), At: now.Add(-37 * time.Hour), Up: 1, Down: 1},
		{Peer: idOf(t, newKey(t)), At: now.Add(time.Hour), Up: 1, Down: 1},
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	again := &line{self: l.self, path: l.path, now: l.now}
	if err := again.load(); err != nil || !again.next.Equal(l.next) || len(again.peers) != 1 || again.peers[0].Up != 80 || len(again.peers[0].Labels) != 1 {
		t.Errorf("read %+v next %s, %v", again.peers, again.next, err)
	}
	other := &line{self: "somebody else", path: l.path, now: l.now}
	if err := other.load(); err != nil || len(other.peers) != 0 || !other.next.IsZero() {
		t.Errorf("another identity has %+v next %s, %v", other.peers, other.next, err)
	}
	now = now.Add(-40 * time.Hour) // the clock was ahead
	if err := again.load(); err != nil || len(again.peers) != 0 || !again.next.IsZero() {
		t.Errorf("before it was measured it has %+v next %s, %v", again.peers, again.next, err)
	}
	for name, text := range map[string]string{"damaged": "{", "of another format": `{"format":2}`, "huge": strings.Repeat(" ", maxLineFile+1)} {
		if err := os.WriteFile(l.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again.load(); err == nil || !strings.Contains(err.Error(), "line.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARecordSaysWhatPeersMeasuredAndOwnClaimsMakeRoom(t *testing.T) {
	s := newTestSpeaker(t)
	now := time.Now()
	var f lineFacts
	for range linePeers {
		key := newKey(t)
		for name, value := range map[string]string{protocol.LabelTier: "low", protocol.LabelPriceTier: "25"} {
			x, err := protocol.SignLabel(key, s.self, name, value, now.Add(36*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			f.Labels = append(f.Labels, x)
		}
	}
	f.Up, f.Down, f.At = 80*mbit, 200*mbit, now
	s.line = func(time.Time) lineFacts { return f }
	s.operator, s.noResearch = newKey(t), true
	for i := range maxLabels {
		s.labels = append(s.labels, &pb.Label{Key: fmt.Sprint("claim ", i), Value: "x"})
	}
	raw, err := s.Record(1, now, now.Add(time.Hour), false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dht.OpenCapability(raw, s.self, now)
	if err != nil {
		t.Fatal(err)
	}
	n := c.GetNetwork()
	if n.GetUp() != 80*mbit || n.GetDown() != 200*mbit || n.GetMeasuredBy() != protocol.MeasuredByPeers || n.GetMeasuredAt() != now.UnixMilli() {
		t.Errorf("the record says %v", n)
	}
	signed, claims := 0, 0
	for _, l := range c.GetLabels() {
		if _, ok := protocol.VerifyLabel(l, s.self, now); ok {
			signed++
		} else if ownClaim(l) {
			claims++
		}
	}
	if len(c.GetLabels()) != 16 || signed != 5 || claims != 10 {
		t.Errorf("%d labels, %d signed, %d own claims", len(c.GetLabels()), signed, claims)
	}
	for i := range 8 { // too many bytes besides
		s.labels[i].Value = strings.Repeat("x", 64)
	}
	s.inv.GPUs.Groups = nil
	for range 8 {
		s.inv.GPUs.Groups = append(s.inv.GPUs.Groups, &pb.GpuGroup{Vendor: "nvidia", Model: strings.Repeat("m", 48), RawName: strings.Repeat("r", 64), Driver: strings.Repeat("d", 24), MigProfile: strings.Repeat("p", 16), Count: 64, FabricTag: make([]byte, 8)})
	}
	if raw, err = s.Record(2, now, now.Add(time.Hour), false); err != nil || len(raw) > protocol.MaxCapability {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	f = lineFacts{}
	var st Status
	if s.compare(&st, now); st.Profiles[0].Requirements[1].Have != "not measured by peers" || !strings.Contains(st.Profiles[0].Requirements[1].Fix, "stay connected") {
		t.Errorf("before a measurement the owner reads %+v", st.Profiles[0].Requirements[1])
	}
	s.line = nil
	st = Status{}
	if s.compare(&st, now); !strings.Contains(st.Profiles[0].Requirements[1].Fix, "--measure-line") {
		t.Errorf("whom nobody measures reads %+v", st.Profiles[0].Requirements[1])
	}
}

// directoryOn runs a directory that measures on the bridge's host.
func (w *world) directoryOn(change func(*dht.Config)) {
	w.Helper()
	cfg := dht.DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.Index, cfg.K = dht.ModeServer, true, true, 8
	change(&cfg)
	d, err := dht.New(cfg, w.bridge.host.Host(), nil, time.Now, rand.New(rand.NewPCG(1, 1)), testLog())
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(func() { cancel(); running.Wait() })
}

func TestALineIsMeasuredAfterTheStartAndNotAgainByARestart(t *testing.T) {
	on := true
	inWorld(t, 1, 0, func(w *world) {
		w.directoryOn(func(c *dht.Config) { c.MeasureBytes = 8 << 20 })
		w.joinAll()
		if l := w.node(0).Status().Line; l.Off || len(l.Peers) != 0 {
			w.Errorf("at its start it says %+v", l)
		}
		// After half a minute the first connection of this world is found dead, and the live one closed with it: that ends
		// the first measurement.
		w.within(20*time.Minute, "the line is measured", func() bool { return len(w.node(0).Status().Line.Peers) == 1 })
		first := w.node(0).Status()
		l := first.Line
		if l.Peers[0].Peer != w.bridge.host.ID() || l.Up < mbit || l.Down < mbit || l.Up != l.Peers[0].Up || l.Problem != "" || time.Until(l.Next) < 21*time.Hour {
			w.Errorf("the status says %+v", l)
		}
		if age := l.Peers[0].At.Sub(first.Started); age < lineQuiet {
			w.Errorf("measured %s after the start", age)
		}
		if r := first.Profiles[0].Requirements[1]; !strings.Contains(r.Have, "Mbit/s down") {
			w.Errorf("its line is %+v", r)
		}
		for _, x := range first.Labels {
			if x.Issuer != w.bridge.host.ID() || x.Key != protocol.LabelTier && x.Key != protocol.LabelPriceTier {
				w.Errorf("a label %+v", x)
			}
		}
		w.process[0].Stop()
		w.start(0)
		<-time.After(10 * time.Minute)
		if again := w.node(0).Status().Line; len(again.Peers) != 1 || !again.Peers[0].At.Equal(l.Peers[0].At) || again.Up != l.Up {
			w.Errorf("after a restart it says %+v, before %+v", again, l)
		}
	}, func(c *Config) { c.MeasureLine = &on })
}

func TestAMeasurementStopsWhenALeaseComes(t *testing.T) {
	on := true
	inWorld(t, 1, 2, func(w *world) {
		w.backends[0].behave = slowly(time.Second)
		ended := make(chan time.Time, 100) // of the sessions
		begun := make(chan struct{}, 100)
		w.bridge.host.Host().SetStreamHandler(protocol.ProtoMeasure, func(s network.Stream) {
			// It grants a minute and measures nothing.
			raw, err := msgio.NewVarintReaderSize(s, 4096).ReadMsg()
			ask := &pb.MeasureRequest{}
			if err == nil {
				err = proto.Unmarshal(raw, ask)
			}
			if err != nil || ask.GetBegin() == nil {
				return // a data stream, which ends with its connection or its opener
			}
			grant := &pb.MeasureGranted{Token: make([]byte, 16), Streams: 1, DurationMs: 60_000, MaxBytes: 1 << 30}
			raw, err = proto.Marshal(&pb.MeasureReply{Part: &pb.MeasureReply_Granted{Granted: grant}})
			if err == nil {
				err = msgio.NewVarintWriter(s).WriteMsg(raw)
			}
			if err != nil {
				w.Error(err)
			}
			begun <- struct{}{}
			_, err = s.Read(make([]byte, 1))
			if !errors.Is(err, network.ErrReset) {
				w.Errorf("the session ends with %v", err)
			}
			ended <- time.Now()
		})
		w.within(5*time.Minute, "a measurement is under way", func() bool { return len(begun) == 1 })
		if len(ended) != 0 {
			w.Fatal("it has ended already")
		}
		w.joinAll()
		w.within(30*time.Second, "a lease is in hand", func() bool { return len(w.node(0).Status().Leases) > 0 })
		came := time.Now()
		w.within(time.Second, "the measurement has ended", func() bool { return len(ended) == 1 })
		if late := time.Since(came); late > 500*time.Millisecond {
			w.Errorf("it went on for %s", late)
		}
		w.within(30*time.Second, "the chunks are accounted", func() bool { return w.bridge.accounted() == 2 })
		done := time.Now()
		w.within(5*time.Minute, "it is tried again", func() bool { return len(begun) == 2 })
		if quiet := time.Since(done); quiet < lineQuiet-5*time.Second {
			w.Errorf("it is tried again %s after the last lease", quiet)
		}
	}, func(c *Config) { c.MeasureLine = &on })
}
