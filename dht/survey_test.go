package dht

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func quickPlan() SurveyPlan {
	p := DefaultSurveyPlan()
	p.Listen, p.VisitTimeout, p.Pace = 0, 5*time.Second, 500
	return p
}

// surveyed runs a survey from one seed and returns what it found and the events.
func surveyed(t *testing.T, d *Directory, plan SurveyPlan, seed *testPeer, past ...SurveyEvent) (*Findings, []SurveyEvent) {
	t.Helper()
	f := NewFindings()
	for _, e := range past {
		f.Take(e)
	}
	var events []SurveyEvent
	seeds := []peer.AddrInfo{{ID: seed.id, Addrs: seed.host.Addrs()}}
	if err := d.Survey(within(t, 60*time.Second), plan, seeds, f, func(e SurveyEvent) { events = append(events, e) }); err != nil {
		t.Fatal(err)
	}
	return f, events
}

func recordPeers(f *Findings) []peer.ID {
	var ids []peer.ID
	for _, r := range f.Records() {
		if !r.Record.GetTombstone() {
			ids = append(ids, r.Peer)
		}
	}
	return sortedIDs(ids)
}

func crawler(t *testing.T, n int) *testPeer {
	t.Helper()
	return startPeer(t, n, func(c *Config) { c.Mode, c.Shards = ModeClient, AllShards() })
}

func TestASurveyFindsEverybodyFromOneSeedAlsoWhoCannotBeReached(t *testing.T) {
	peers := neighbourhood(t, 8)
	for _, p := range peers {
		p.advertise(t, gpu("nvidia-t4-16gb", 1, 15))
	}
	hidden := startPeer(t, 60, func(c *Config) { c.Mode = ModeClient }) // behind a NAT: in nobody's table
	connect(t, hidden.host, peers[3].host)
	eventually(t, "it has a server", func() bool { return hidden.dir.Servers() > 0 })
	raw := hidden.advertise(t, gpu("nvidia-h100-80gb-sxm", 4, 79.65))
	hidden.stop()
	if err := hidden.host.Close(); err != nil { // its record says no address, and it cannot be dialled
		t.Fatal(err)
	}
	closed := time.Now()
	gone := startPeer(t, 61, nil)
	connect(t, gone.host, peers[1].host)
	eventually(t, "it has a server", func() bool { return gone.dir.Servers() > 0 })
	gone.advertise(t)
	if got, err := gone.dir.Advertise(within(t, 10*time.Second), tombstone(t, gone)); err != nil {
		t.Fatal(got, err)
	}

	f, events := surveyed(t, crawler(t, 100).dir, quickPlan(), peers[5])
	want := idsOf(append(slices.Clone(peers), hidden)...)
	if got := recordPeers(f); !slices.Equal(got, want) {
		t.Errorf("found %d peers, want %d", len(got), len(want))
	}
	for _, r := range f.Records() {
		switch {
		case r.Peer == hidden.id:
			if !slices.Equal(r.Via, []string{ViaScan}) || string(r.Raw) != string(raw) || r.Holders < 4 {
				t.Errorf("the hidden node came by %v from %d holders", r.Via, r.Holders)
			}
		case r.Peer != gone.id:
			if !slices.Contains(r.Via, ViaSelf) || r.Beat.GetState() != ready || r.Holders < 4 {
				t.Errorf("%s: via %v, beat %v, %d holders", r.Peer, r.Via, r.Beat, r.Holders)
			}
		}
	}
	if c := f.Coverage(); !c.Known || c.Seen != len(want) || c.Share() < 0.999 || c.ShareLow() < 0.5 || c.ShareLow() > 0.99 {
		t.Errorf("coverage %+v, %v at least %v", c, c.Share(), c.ShareLow())
	}
	for _, v := range f.Visits() {
		if v.Peer == hidden.id {
			if v.ConnectErr == "" {
				t.Error("a closed host was reached")
			}
		} else if v.Agent == "" || !v.Server || !v.Scans || len(v.Neighbors) < 7 || v.RTT <= 0 || v.Connected == nil || v.ErrorBits != 0 {
			t.Errorf("visit %+v", v)
		}
	}
	var halves [2]int
	passes := map[peer.ID]map[int]bool{}
	for _, e := range events {
		if e.Sweep != nil {
			if passes[e.Sweep.Server] == nil {
				passes[e.Sweep.Server] = map[int]bool{}
				halves[e.Sweep.Pass]++
			}
			passes[e.Sweep.Server][e.Sweep.Pass] = true
		}
	}
	for id, p := range passes {
		if len(p) != 1 {
			t.Errorf("%s is in both halves: the passes are no two samples", id)
		}
	}
	if halves[0]+halves[1] != 9 || halves[0]-halves[1] > 1 || halves[1]-halves[0] > 1 { // gone serves, too
		t.Errorf("halves of %v servers", halves)
	}
	lives := map[peer.ID]Life{}
	for _, l := range f.Lives() {
		lives[l.Peer] = l
	}
	// The peer that listens has heard the hidden one while it lived, and not later.
	if l := lives[hidden.id]; l.Last.After(closed) {
		t.Errorf("%+v gave signs of life after %s", l, closed)
	}
	if l, ok := lives[peers[7].id]; !ok || l.Left || !l.Last.After(closed) {
		t.Errorf("who answers lives: %+v", l)
	}

	t.Run("the events make the findings anew", func(t *testing.T) {
		again := NewFindings()
		for _, e := range events {
			again.Take(e)
		}
		if again.Counts() != f.Counts() || again.Coverage() != f.Coverage() {
			t.Errorf("%+v %+v, want %+v %+v", again.Counts(), again.Coverage(), f.Counts(), f.Coverage())
		}
	})
	t.Run("an interrupted survey goes on", func(t *testing.T) {
		past := events[:len(events)/2]
		f2, more := surveyed(t, crawler(t, 101).dir, quickPlan(), peers[5], past...)
		if !slices.Equal(recordPeers(f2), recordPeers(f)) {
			t.Errorf("%d peers, want %d", len(recordPeers(f2)), len(recordPeers(f)))
		}
		for _, e := range more {
			for _, p := range past {
				if e.Visit != nil && p.Visit != nil && e.Visit.Peer == p.Visit.Peer {
					t.Errorf("%s was visited again", e.Visit.Peer)
				}
			}
		}
	})
}

func tombstone(t *testing.T, p *testPeer) []byte {
	t.Helper()
	now := time.Now()
	return sign(t, p.key, capabilitySeal(), &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(p.id), Seq: uint64(now.UnixMicro()), Issued: now.UnixMilli(),
		Expires: now.Add(10 * time.Minute).UnixMilli(), Tombstone: true,
	})
}

func TestASurveyHearsTheHeartbeatsOfWhomItIsConnectedTo(t *testing.T) {
	peers := neighbourhood(t, 4)
	var raws [][]byte
	for _, p := range peers[1:] {
		raws = append(raws, p.advertise(t, gpu("nvidia-t4-16gb", 1, 15)))
	}
	plan := quickPlan()
	plan.Listen = 3 * time.Second
	c := crawler(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var talk sync.WaitGroup
	defer talk.Wait()
	defer cancel()
	talk.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				peers[1].beat(t, raws[0], pb.NodeState_NODE_STATE_BUSY)
				peers[2].beat(t, raws[1], pb.NodeState_NODE_STATE_LEAVING)
			}
		}
	})
	f, _ := surveyed(t, c.dir, plan, peers[0])
	for _, r := range f.Records() {
		if r.Peer == peers[1].id && (r.Beat.GetState() != pb.NodeState_NODE_STATE_BUSY || !slices.Contains(r.Via, ViaGossip)) {
			t.Errorf("heard %v via %v", r.Beat, r.Via)
		}
	}
	for _, l := range f.Lives() {
		if l.Peer == peers[2].id && !l.Left {
			t.Error("a goodbye was not heard")
		}
	}
}

// holdsNothing answers every scan as a server does that has no records.
func holdsNothing(s network.Stream) {
	defer s.Close()
	_, _ = s.Read(make([]byte, maxScanRequest))
	_ = writeScan(scanWriter(s), &pb.ScanReply{Part: &pb.ScanReply_End{End: &pb.ScanEnd{}}})
}

func TestServersThatWithholdHideNobodyWhomOthersHold(t *testing.T) {
	peers := neighbourhood(t, 10)
	for _, p := range peers {
		p.advertise(t)
	}
	for _, liar := range peers[3:5] { // 20 %
		liar.host.SetStreamHandler(protocol.ProtoScan, holdsNothing)
	}
	f, _ := surveyed(t, crawler(t, 100).dir, quickPlan(), peers[9])
	if got := recordPeers(f); !slices.Equal(got, idsOf(peers...)) {
		t.Errorf("found %d of %d", len(got), len(peers))
	}
	if c := f.Coverage(); c.Share() < 0.99 {
		t.Errorf("coverage %+v", c)
	}
}

func TestWhatAServerOnlySaysThatItHoldsDoesNotCount(t *testing.T) {
	peers := neighbourhood(t, 6)
	raws := map[peer.ID][]byte{}
	for _, p := range peers {
		raws[p.id] = p.advertise(t)
	}
	liar := peers[2]
	ghost := identityOf(t, 77)
	var rows []*pb.ScanRow
	for _, id := range append(idsOf(peers...), ghost.id) {
		seq, _ := seqOf(raws[id])
		rows = append(rows, &pb.ScanRow{PeerId: []byte(id), Kind: pb.ScanKind_SCAN_KIND_CAPABILITY, Digest: make([]byte, digestSize), Seq: max(seq, 1)})
	}
	slices.SortFunc(rows, func(a, b *pb.ScanRow) int {
		x, y := keyOf(peer.ID(a.GetPeerId())), keyOf(peer.ID(b.GetPeerId()))
		return bytes.Compare(x[:], y[:])
	})
	liar.host.SetStreamHandler(protocol.ProtoScan, func(s network.Stream) {
		_, _ = io.Copy(io.Discard, s)
		_ = writeScan(scanWriter(s), &pb.ScanReply{Part: &pb.ScanReply_Rows{Rows: &pb.ScanRows{Rows: rows}}})
		_ = writeScan(scanWriter(s), &pb.ScanReply{Part: &pb.ScanReply_End{End: &pb.ScanEnd{}}})
		_ = s.Close()
	})
	f, _ := surveyed(t, crawler(t, 100).dir, quickPlan(), peers[5])
	if got := recordPeers(f); !slices.Equal(got, idsOf(peers...)) {
		t.Errorf("found %d, want %d", len(got), len(peers))
	}
	for _, sw := range f.Sweeps() {
		if sw.Server == liar.id && len(sw.Held) > 0 {
			t.Errorf("the liar is taken for a holder of %d records", len(sw.Held))
		}
		if sw.Server != liar.id && len(sw.Held) == 0 {
			t.Errorf("%s holds nothing: this proves little", sw.Server)
		}
	}
}

func TestAConnectionThatAnswersNothingIsNoSignOfLife(t *testing.T) {
	f, who, now := NewFindings(), identityOf(t, 1), time.Now()
	f.Take(SurveyEvent{Visit: &Visit{Peer: who.id, Ended: now, CrawlErr: "deadline exceeded"}})
	if len(f.Lives()) != 0 {
		t.Errorf("it lives: %+v", f.Lives())
	}
	f.Take(SurveyEvent{Visit: &Visit{Peer: who.id, Ended: now, CrawlErr: "deadline exceeded", RTT: time.Millisecond}})
	if len(f.Lives()) != 1 {
		t.Error("who has answered once lives")
	}
}

func TestASurveyOfNobodySaysSo(t *testing.T) {
	c, mute := crawler(t, 100), startPeer(t, 1, func(c *Config) { c.Mode = ModeClient })
	err := c.dir.Survey(within(t, 20*time.Second), quickPlan(), []peer.AddrInfo{{ID: mute.id, Addrs: mute.host.Addrs()}}, NewFindings(), func(SurveyEvent) {})
	if !errors.Is(err, ErrNoServers) {
		t.Errorf("%v, want ErrNoServers", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.dir.Survey(ctx, quickPlan(), nil, NewFindings(), func(SurveyEvent) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
	bad := quickPlan()
	bad.Pace = 0
	if err := c.dir.Survey(t.Context(), bad, nil, NewFindings(), nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "Pace") {
		t.Errorf("%v, want Pace named", err)
	}
}

func TestFindingsVerifyWhatTheyAreGiven(t *testing.T) {
	f, who, now := NewFindings(), identityOf(t, 1), time.Now()
	raw := sign(t, who.key, capabilitySeal(), machine(who.id, 5, now))
	raw[len(raw)-1] ^= 1
	f.Take(SurveyEvent{Sighting: &Sighting{Peer: who.id, Record: raw, Via: ViaScan, At: now}})
	good := sign(t, who.key, capabilitySeal(), machine(who.id, 6, now))
	f.Take(SurveyEvent{Sighting: &Sighting{Peer: who.id, Record: good, Via: ViaScan, At: now.Add(3 * time.Hour)}})
	f.Take(SurveyEvent{Sweep: &Sweep{Server: who.id, Held: []Holding{{who.id, 5}, {who.id, 6}}}})
	if len(f.Records()) != 0 || f.Refused()[ErrNotOwner.Error()] != 1 || f.Refused()[ErrExpired.Error()] != 1 || f.Coverage().First != 0 {
		t.Errorf("%+v, refused %v", f.Records(), f.Refused())
	}
}

func TestCoverageIsWhatTheFormulaSays(t *testing.T) {
	for _, c := range []struct {
		first, second, both, seen int
		answered                  bool
		estimate, low, high       float64 // shares: 0 is not looked at
	}{
		{100, 100, 100, 100, true, 100, 100, 103.85},
		{90, 90, 81, 99, true, 91*91/82. - 1, 99, 0}, // 99.99: nine of ten by each pass
		{0, 0, 0, 0, true, 0, 0, 0},
		{53, 53, 53, 57, true, 57, 57, 60.84}, // four were heard and are on no server yet
		{10, 10, 0, 20, true, 120, 0, math.Inf(1)},
		{5, 0, 0, 5, false, 0, 0, 0},
	} {
		got := EstimateCoverage(c.first, c.second, c.both, c.seen, c.answered)
		if math.Abs(got.Estimate-c.estimate) > 0.01 || c.low > 0 && math.Abs(got.Low-c.low) > 0.01 || c.high > 0 && got.High != c.high && math.Abs(got.High-c.high) > 0.1 {
			t.Errorf("%+v gives %+v", c, got)
		}
		if got.Known != c.answered || got.ShareLow() > got.Share() || got.Share() > got.ShareHigh() || got.ShareHigh() > 1 {
			t.Errorf("%+v gives shares %v..%v..%v", c, got.ShareLow(), got.Share(), got.ShareHigh())
		}
	}
}

func TestASurveyWithoutTimeForAllSaysSo(t *testing.T) {
	c := crawler(t, 100)
	var seeds []peer.AddrInfo
	for i := range int64(9) {
		seeds = append(seeds, peer.AddrInfo{ID: made(i), Addrs: []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/9")}})
	}
	plan := quickPlan()
	plan.Pace = 2
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	f := NewFindings()
	if err := c.dir.Survey(ctx, plan, seeds, f, func(SurveyEvent) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with %d of %d peers visited it ends with %v", f.Counts().Visited, len(seeds), err)
	}
}

func TestAWalkThatIsCutOffLeavesNobodyUnderWay(t *testing.T) {
	c := crawler(t, 100)
	s := &survey{
		d: c.dir, plan: quickPlan(), f: NewFindings(), take: func(SurveyEvent) {}, pace: rate.NewLimiter(2, 1),
		known: map[peer.ID][]multiaddr.Multiaddr{}, missed: map[peer.ID]bool{},
	}
	s.changed = sync.NewCond(&s.mu)
	for i := range int64(9) {
		s.want(made(i), []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/9")})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s.walk(ctx)
	if s.active != 0 || len(s.todo) != 8 || ctx.Err() == nil {
		t.Errorf("%d are under way, %d are left, want 0 and 8; %v", s.active, len(s.todo), ctx.Err())
	}
}
