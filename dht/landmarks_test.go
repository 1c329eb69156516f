package dht

import (
	"context"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// landmarked makes a network of the sim's index peers as landmarks, standing in these places.
func landmarked(t *testing.T, places ...string) func(*simWorld) {
	t.Helper()
	root := identityOf(t, 77).key
	n, err := protocol.NewNetwork("sim", root, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return func(w *simWorld) {
		var list []protocol.Landmark
		for i, p := range places {
			l := protocol.Landmark{Peer: w.hosts[i].ID(), Addr: w.hosts[i].AddrInfo().Addrs[0]}
			if p != "" {
				if l.Place, err = protocol.ParsePlace(p); err != nil {
					t.Fatal(err)
				}
			}
			list = append(list, l)
		}
		if err := n.SetLandmarks(list); err != nil {
			t.Fatal(err)
		}
		if err := n.SignLandmarks(root); err != nil {
			t.Fatal(err)
		}
		file, err := protocol.ParseNetworkFile(n.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		w.network = &file
	}
}

func TestRecordsTellHowFarTheirNodesAreFromTheLandmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 3, 8, 0, landmarked(t, "", "", ""))
		w.net.Slow(6, 60*time.Millisecond) // each way: 130 ms to and fro
		w.net.Slow(7, 60*time.Millisecond)
		pass(5 * time.Minute)
		known := func(i int) (c *pb.Capability) {
			t.Helper()
			got, err := w.hosts[0].directory().Get(context.Background(), w.hosts[i].ID())
			if err != nil {
				t.Fatal(err)
			}
			return got.Capability
		}
		epoch := protocol.LandmarkEpoch(w.network.Landmarks)
		for i, want := range map[int]float64{3: 10, 5: 10, 6: 130, 7: 130} {
			l := known(i).GetLocation()
			if l.GetLandmarkEpoch() != epoch || len(l.GetLandmarkRtt()) != 3 {
				t.Fatalf("node %d says %v", i, l)
			}
			for _, b := range l.GetLandmarkRtt() {
				if ms := math.Exp2(float64(b)/16) - 1; ms < 0.95*want || ms > 1.3*want+3 {
					t.Errorf("node %d is %.0f ms from a landmark, want about %.0f", i, ms, want)
				}
			}
		}
		far := marksOf(known(7).GetLocation())
		near := marksOf(known(3).GetLocation())
		own := LandmarkRTTs{Epoch: near.epoch, RTT: near.rtt[:near.n]}
		if got := far.to(&own); got < 130 || got > 200 {
			t.Errorf("two nodes 140 ms apart are estimated at %.0f", got)
		}
		other := LandmarkRTTs{Epoch: epoch + 1, RTT: own.RTT}
		if got := far.to(&other); !math.IsNaN(got) {
			t.Errorf("round trips to other landmarks give an estimate of %.0f ms", got)
		}
		// Who has the list measures it for its first question, and rules the far ones out before it pings.
		client := w.client()
		client.SetNetwork(*w.network)
		pass(5 * time.Second)
		got, ex := w.ask(client, Query{Filter: parsed(t, `node.rtt_ms < 50 && gpus.count >= 1`), Via: ViaIndex})
		if len(got) != 3 || ex.PeersAsked != 3+3 {
			t.Errorf("%d nodes within 50 ms, %d peers asked; want 3, and 3 index peers and 3 pings", len(got), ex.PeersAsked)
		}
		if rtts := client.LandmarkRTTs(); rtts.Known() != 3 || rtts.Epoch != epoch {
			t.Errorf("the client knows %+v", rtts)
		}
		if _, ok := client.Network(); !ok {
			t.Error("the client does not know its network")
		}

		// Landmarks that are named later reach everybody by those of before.
		first := *w.network
		shorter := landmarkedAgain(t, &first, 2)
		if !w.hosts[0].directory().SetNetwork(shorter) {
			t.Fatal("a later list is not taken")
		}
		pass(25 * time.Minute)
		for _, i := range []int{1, 3, 7} {
			if n, _ := w.hosts[i].directory().Network(); n.LandmarkSeq != shorter.LandmarkSeq {
				t.Errorf("host %d has landmarks %d, want %d", i, n.LandmarkSeq, shorter.LandmarkSeq)
			}
		}
		if l := known(7).GetLocation(); l.GetLandmarkEpoch() == epoch || len(l.GetLandmarkRtt()) != 2 {
			t.Errorf("node 7 still says %v", l)
		}
		if w.hosts[3].directory().SetNetwork(first) {
			t.Error("an older list takes the place of a newer one")
		}
	})
}

// landmarkedAgain is a network file with only the first n of its landmarks.
func landmarkedAgain(t *testing.T, of *protocol.NetworkFile, n int) protocol.NetworkFile {
	t.Helper()
	next := *of
	if err := next.SetLandmarks(of.Landmarks[:n]); err != nil {
		t.Fatal(err)
	}
	if err := next.SignLandmarks(identityOf(t, 77).key); err != nil {
		t.Fatal(err)
	}
	file, err := protocol.ParseNetworkFile(next.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAListOfLandmarksNobodyAnswersIsTriedAgainAndUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 4, 5, 0, landmarked(t, "", "", ""), func(w *simWorld) { w.net.Cut(2) })
		pass(2 * time.Minute)
		rtts := w.hosts[4].directory().LandmarkRTTs()
		if len(rtts.RTT) != 3 || rtts.Known() != 2 || rtts.RTT[2] != protocol.UnknownRTT {
			t.Fatalf("measured %v", rtts)
		}
		w.net.Heal()
		pass(6 * time.Minute)
		if rtts := w.hosts[4].directory().LandmarkRTTs(); rtts.Known() != 3 {
			t.Errorf("a landmark that came back is not measured: %v", rtts)
		}
	})
}

func TestSamplesAreBoundedAndGrowOld(t *testing.T) {
	var s samples
	now := time.Unix(1e9, 0)
	for i := range maxSamples {
		s.put(peer.ID(string(rune(i))+"x"), time.Millisecond, now.Add(-2*time.Hour))
	}
	s.put("fresh", 7*time.Millisecond, now)
	if len(s.of) != 1 {
		t.Errorf("%d samples, of which one is fresh", len(s.of))
	}
	if x, ok := s.get("fresh", time.Minute, now.Add(time.Minute)); !ok || x.rtt != 7*time.Millisecond {
		t.Errorf("sample %v %v", x, ok)
	}
	if _, ok := s.get("fresh", time.Minute, now.Add(time.Minute+1)); ok {
		t.Error("an old sample counts as fresh")
	}
}

func TestFreshTrafficGoesBeforeLandmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 5, 5, 0, landmarked(t, ""))
		pass(4 * time.Minute)
		client := w.client()
		client.SetNetwork(*w.network)
		pass(5 * time.Second)
		client.knowWhere(context.Background())
		w.net.Slow(4, 100*time.Millisecond) // its record says 10 ms still
		id := w.hosts[4].ID()
		c, err := client.Get(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if rtts := client.Measure(context.Background(), []peer.ID{id}); len(rtts) != 1 {
			t.Fatal("not measured")
		}
		if got := client.Estimate(id, c.Capability); got < 30 {
			t.Errorf("estimate %.0f ms after pings of 210", got)
		}
		stranger := identityOf(t, 3).id
		if got := client.Estimate(stranger, c.Capability); got < 10 || got > 30 {
			t.Errorf("a peer that was never met is estimated at %.0f ms by landmarks that both are 10 ms from", got)
		}
		if got := client.Estimate(stranger, &pb.Capability{}); !math.IsNaN(got) {
			t.Errorf("a peer of which nothing is known is estimated at %.0f ms", got)
		}
		if !slices.Contains(c.Capability.GetRoles(), "node") {
			t.Errorf("roles %v", c.Capability.GetRoles())
		}
	})
}
