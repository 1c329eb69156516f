package dht

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// synthetic is a machine of the latency model: a place on the globe, and the way from its home to the backbone.
type synthetic struct{ lat, lon, home float64 }

// modelTowns are where the model's machines are, with how many per hundred, and how far around in degrees.
var modelTowns = []struct{ lat, lon, share, spread float64 }{
	{50, 8, 18, 5}, {52, -1, 6, 3}, {41, 2, 5, 4}, {60, 20, 4, 5}, {48, 25, 4, 5}, // Europe
	{40, -75, 14, 4}, {41, -88, 8, 5}, {33, -97, 6, 5}, {37, -121, 9, 4}, {47, -122, 3, 2}, // North America
	{-23, -46, 4, 4}, {19, -99, 2, 3}, // Latin America
	{36, 139, 5, 3}, {31, 121, 4, 5}, {1, 104, 3, 2}, {19, 73, 2, 5}, {-34, 151, 2, 3}, // Asia and Pacific
	{25, 55, 1, 2},
}

// rtt is ms: twice the way at 200 km/ms along cables that are 1.6 times as long as the globe's arc, and both homes.
func (a synthetic) rtt(b synthetic) float64 {
	const rad = math.Pi / 180
	sinLat, sinLon := math.Sin((b.lat-a.lat)*rad/2), math.Sin((b.lon-a.lon)*rad/2)
	km := 2 * 6371 * math.Asin(math.Sqrt(min(1, sinLat*sinLat+math.Cos(a.lat*rad)*math.Cos(b.lat*rad)*sinLon*sinLon)))
	return 1.6*km/protocol.MinKmPerRTTMs + a.home + b.home
}

// modelNetwork draws n machines at homes, their ways to the backbone 2 to about 15 ms, and landmarks at data centres,
// half a millisecond from it, each in a town by chance.
func modelNetwork(r *rand.Rand, n, landmarks int) (nodes, marks []synthetic) {
	draw := func(town int, home float64) synthetic {
		t := modelTowns[town]
		return synthetic{t.lat + r.NormFloat64()*t.spread/2, t.lon + r.NormFloat64()*t.spread/2, home}
	}
	for range n {
		pick, town := r.Float64()*100, 0
		for town < len(modelTowns)-1 && pick > modelTowns[town].share {
			pick -= modelTowns[town].share
			town++
		}
		nodes = append(nodes, draw(town, 2+r.ExpFloat64()*3))
	}
	for range landmarks {
		marks = append(marks, draw(r.IntN(len(modelTowns)), 0.5))
	}
	return nodes, marks
}

// modelRecall is, among all pairs less than 50 ms apart, the share whose estimate is below a bound, and how many pairs
// that are further apart are below it too, for each that is not.
func modelRecall(nodes, landmarks []synthetic, bound float64) (recall, extra float64) {
	own := make([]marks, len(nodes))
	for i, n := range nodes {
		own[i] = marks{epoch: 1, n: uint8(len(landmarks))}
		for k, l := range landmarks {
			own[i].rtt[k] = protocol.RTTByte(time.Duration(n.rtt(l) * float64(time.Millisecond)))
		}
	}
	near, kept, far := 0, 0, 0
	for i, a := range nodes {
		mine := LandmarkRTTs{Epoch: 1, RTT: own[i].rtt[:len(landmarks)]}
		for j, b := range nodes[:i] {
			below := own[j].to(&mine) <= bound
			switch {
			case a.rtt(b) < 50:
				near++
				kept += btoi(below)
			case below:
				far++
			}
		}
	}
	return float64(kept) / float64(near), float64(far) / float64(near)
}

// The numbers of this test are published in docs/locality.md.
func TestLandmarksFindTheNodesWithin50Milliseconds(t *testing.T) {
	const seeds = 5
	var plain, slack, extra [2]float64
	for seed := range uint64(seeds) {
		for i, n := range []int{8, 32} {
			nodes, landmarks := modelNetwork(rand.New(rand.NewPCG(seed, 50)), 1000, n)
			p, _ := modelRecall(nodes, landmarks, 50)
			s, e := modelRecall(nodes, landmarks, 50*estimateSlack)
			plain[i], slack[i], extra[i] = plain[i]+p/seeds, slack[i]+s/seeds, extra[i]+e/seeds
		}
	}
	t.Logf("8 landmarks: recall %.2f with estimates as they are, %.2f with the slack of 1.5, %.2f pinged in vain for each; 32: %.2f, %.2f, %.2f",
		plain[0], slack[0], extra[0], plain[1], slack[1], extra[1])
	if slack[1] < 0.97 || plain[1] >= slack[1] || slack[0] >= slack[1] {
		t.Errorf("recall with 32 landmarks %.3f, want at least 0.97, and more than with 8 (%.3f)", slack[1], slack[0])
	}
}
