package protocol

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func someLandmarks(t testing.TB) (out []Landmark) {
	t.Helper()
	for i, a := range []actor{nodeActor, bridgeActor, stranger} {
		l, err := ParseLandmark("/ip4/192.0.2." + strconv.Itoa(1+i) + "/udp/4001/quic-v1/p2p/" + a.id.String() + []string{"=DE", "=us-ca", ""}[i])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestLandmarksAreSignedByTheThresholdAndKeepOldReaders(t *testing.T) {
	n := labFile(t, rootActor, otherRoot)
	before := n.Bytes()
	wantErr(t, "landmarks that are not set", n.SignLandmarks(rootActor.key), ErrBounds)
	if err := n.SetLandmarks(someLandmarks(t)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a stranger's signature", n.SignLandmarks(stranger.key), ErrAuthor)
	if err := n.SignLandmarks(rootActor.key); err != nil {
		t.Fatal(err)
	}
	_, err := ParseNetworkFile(n.Bytes())
	wantErr(t, "one of two roots", err, ErrNetwork)
	partly, err := ReadNetworkFile(n.Bytes()) // as the second root gets it
	if err != nil {
		t.Fatal(err)
	}
	if err := partly.SignLandmarks(operator.key); err != nil {
		t.Fatal(err)
	}
	got, err := ParseNetworkFile(partly.Bytes())
	if err != nil || got.LandmarkSeq != 1 || !sameLandmarks(got.Landmarks, n.Landmarks) || got.ID != n.ID || got.Landmarks[1].Place.String() != "US-CA" {
		t.Fatalf("%v: %+v", err, got)
	}
	// A reader of before skips the fields behind those that it knows.
	if !bytes.HasPrefix(got.Bytes(), before) {
		t.Error("what an older reader knows has changed")
	}
	old, err := ParseNetworkFile(before)
	if err != nil || !got.Supersedes(&old) || old.Supersedes(&got) || !got.Same(&old) {
		t.Errorf("%v: landmarks that were named later do not take the place of none", err)
	}
	if again := got; again.SetLandmarks(nil) != nil || again.LandmarkSeq != 2 {
		t.Error("landmarks cannot be taken back")
	}
	next := got // a new version keeps them
	next.Version++
	for _, r := range []actor{rootActor, otherRoot} {
		if err := next.Sign(r.key); err != nil {
			t.Fatal(err)
		}
	}
	if back, err := ParseNetworkFile(next.Bytes()); err != nil || len(back.Landmarks) != 3 || !back.Supersedes(&got) {
		t.Errorf("version 2: %v, %+v", err, back)
	}
}

func TestLandmarksThatWereTamperedWithAreRefused(t *testing.T) {
	signed := func(change func(*pb.NetworkExtra, *pb.SignedNetworkFile)) error {
		n := labFile(t, rootActor, otherRoot)
		if err := n.SetLandmarks(someLandmarks(t)); err != nil {
			t.Fatal(err)
		}
		x, s := n.extra(), &pb.SignedNetworkFile{}
		if err := proto.Unmarshal(n.Bytes(), s); err != nil {
			t.Fatal(err)
		}
		change(x, s)
		if s.Extra == nil {
			s.Extra = encodeMessage(t, x)
		}
		for _, r := range []actor{rootActor, otherRoot} {
			sig, err := r.key.Sign(extraSigned(encodeMessage(t, x)))
			if err != nil {
				t.Fatal(err)
			}
			s.ExtraSignatures = append(s.ExtraSignatures, &pb.RootSignature{Root: []byte(r.id), Signature: sig})
		}
		_, err := ParseNetworkFile(encodeMessage(t, s))
		return err
	}
	for what, c := range map[string]struct {
		change func(*pb.NetworkExtra, *pb.SignedNetworkFile)
		want   error
	}{
		"nothing": {func(*pb.NetworkExtra, *pb.SignedNetworkFile) {}, nil},
		"a later field": {func(x *pb.NetworkExtra, s *pb.SignedNetworkFile) {
			x.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 9, 0), 7))
		}, nil},
		"another network": {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Network = make([]byte, 16) }, ErrNetwork},
		"format 2":        {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Format = 2 }, ErrBounds},
		"seq 0":           {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Seq = 0 }, ErrBounds},
		"no peer":         {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Landmarks[0].Addr = "/ip4/192.0.2.1/tcp/1" }, ErrBounds},
		"no address":      {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Landmarks[0].Addr = "somewhere" }, ErrBounds},
		"no place":        {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Landmarks[0].Place = "Atlantis" }, ErrBounds},
		"a whole region":  {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Landmarks[0].Place = "eu" }, ErrBounds},
		"one twice":       {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) { x.Landmarks[1] = x.Landmarks[0] }, ErrBounds},
		"an endless text": {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) {
			x.Landmarks[0].Addr = "/dns4/" + strings.Repeat("a", 600)
		}, ErrBounds},
		"33": {func(x *pb.NetworkExtra, _ *pb.SignedNetworkFile) {
			x.Landmarks = make([]*pb.Landmark, 33)
			for i := range x.Landmarks {
				x.Landmarks[i] = &pb.Landmark{}
			}
		}, ErrBounds},
		"other than signed": {func(x *pb.NetworkExtra, s *pb.SignedNetworkFile) {
			y := proto.CloneOf(x)
			y.Landmarks[0].Place = "FR"
			s.Extra = encodeMessage(t, y)
		}, ErrNetwork},
	} {
		wantErr(t, what, signed(c.change), c.want)
	}
}

func TestWithoutLandmarksTheRootsAreThem(t *testing.T) {
	n := labFile(t, rootActor, otherRoot)
	list := n.LandmarkList()
	if len(list) != 3 || !n.IsRoot(list[0].Peer) || list[0].Peer > list[1].Peer || list[1].Peer > list[2].Peer {
		t.Errorf("landmarks %v", list)
	}
	turned := []Landmark{list[1], list[0], list[2]}
	if LandmarkEpoch(list) != LandmarkEpoch(n.LandmarkList()) || LandmarkEpoch(list) == LandmarkEpoch(turned) || LandmarkEpoch(list) == LandmarkEpoch(list[:2]) {
		t.Error("the epoch does not follow the list")
	}
}

func TestRoundTripsSurviveTheirByte(t *testing.T) {
	for ms, want := range map[float64]byte{0: 0, 0.04: 1, 1: 16, 50: 91, 150: 116, 60_000: 254, 1e7: 254} {
		if got := RTTByte(time.Duration(ms * float64(time.Millisecond))); got != want {
			t.Errorf("%g ms: byte %d, want %d", ms, got, want)
		}
	}
	r := rand.New(rand.NewPCG(7, 7))
	for range 20_000 {
		ms := math.Expm1(r.Float64() * 11) // up to 60 s
		back := rttMs[RTTByte(time.Duration(ms*float64(time.Millisecond)))]
		if math.Abs(back-ms) > 0.022*ms+0.025 {
			t.Fatalf("%g ms came back as %g", ms, back)
		}
	}
}

// An estimate is symmetric, never further below the true round trip than rounding, not hurt by more landmarks, and
// unknown exactly where no landmark answered both.
func TestEstimatesAreUpperBoundsWhateverTheLandmarks(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	type point struct{ x, y, tail float64 }
	place := func() point { return point{r.Float64() * 200, r.Float64() * 200, r.Float64() * 10} }
	rtt := func(a, b point) float64 { return math.Hypot(a.x-b.x, a.y-b.y) + a.tail + b.tail }
	for range 2000 {
		a, b := place(), place()
		n := r.IntN(MaxLandmarks + 1)
		va, vb, shared := make([]byte, n), make([]byte, n), false
		for i := range n {
			l := place()
			va[i], vb[i] = RTTByte(time.Duration(rtt(a, l)*1e6)), RTTByte(time.Duration(rtt(b, l)*1e6))
			if r.IntN(4) == 0 {
				va[i] = UnknownRTT
			}
			if r.IntN(4) == 0 {
				vb[i] = UnknownRTT
			}
			shared = shared || va[i] != UnknownRTT && vb[i] != UnknownRTT
		}
		got, back := LandmarkRTT(va, vb), LandmarkRTT(vb, va)
		switch {
		case !shared:
			if !math.IsNaN(got) || !math.IsNaN(back) {
				t.Fatalf("an estimate of %g, %g without a landmark in common", got, back)
			}
			continue
		case got != back:
			t.Fatalf("%g one way, %g the other", got, back)
		case got < 0.978*rtt(a, b)-0.05:
			t.Fatalf("an estimate of %g for a round trip of %g", got, rtt(a, b))
		}
		if fewer := LandmarkRTT(va[:n/2], vb[:n/2]); fewer < got {
			t.Fatalf("%g by half of the landmarks, %g by all", fewer, got)
		}
		if longer := LandmarkRTT(slices.Concat(va, []byte{1}), vb); longer != got {
			t.Fatal("a landmark that only one has counts")
		}
	}
	if !math.IsNaN(LandmarkRTT(nil, nil)) {
		t.Error("nothing gives an estimate")
	}
}
