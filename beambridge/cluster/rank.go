package cluster

import (
	"cmp"
	"math"
	"slices"
)

// Terms are the parts of a candidate's expected time to a good result of one chunk, in seconds
// (scheduling.md 3.2): E = (Queue + Start + Data + Run + RTT) / P.
type Terms struct {
	Queue float64 `json:"queue_s"` // Queue is until its devices are free.
	Start float64 `json:"start_s"` // Start is the image's transfer and the executor's start.
	Data  float64 `json:"data_s"`  // Data is the transfer of the volumes' missing bytes.
	Run   float64 `json:"run_s"`   // Run is the predicted run time of the chunk.
	RTT   float64 `json:"rtt_s"`   // RTT is bridge to node.
	P     float64 `json:"p"`       // P is the lower bound of its success probability.
	E     float64 `json:"e_s"`     // E is the expected time.
	Cents float64 `json:"cents"`   // Cents is the chunk's price in US cents.
	Key   float64 `json:"key_s"`   // Key is what candidates are ordered by: E and the price at the user's rate.
}

// minP keeps E finite: a node of which nothing is known still has an order among its like.
const minP = 1e-6

// tie is the part of E within which candidates count as equal and the one with the least work goes first.
const tie = 0.05

func (c *Candidate) terms(j *Job) Terms {
	bw := c.Bandwidth
	if !(bw > 0) {
		bw = UnknownBandwidth
	}
	t := Terms{
		Queue: max(0, c.Queue.Seconds()),
		Start: float64(c.ImageMissing)/bw + max(0, c.Start.Seconds()),
		Data:  float64(c.DataMissing) / bw,
		Run:   UnknownRunSeconds,
		RTT:   max(0, c.RTT.Seconds()),
		P:     min(max(c.P, minP), 1),
	}
	if c.SecondsPerInput > 0 {
		t.Run = c.SecondsPerInput * float64(j.ChunkInputs)
	}
	busy := t.Start + t.Data + t.Run
	t.E = (t.Queue + busy + t.RTT) / t.P
	t.Cents = float64(c.Price) / 1e4 * busy / 3600
	return t
}

// ranked is a matching candidate with its terms.
type ranked struct {
	row   int32
	place int32 // index of the job's share, 0 without shares
	work  uint64
	hash  uint64
	Terms
}

// rank orders rows by key, ties within 5 % of E by least work in this epoch, further ties by key, price
// and then a seeded hash of the peer ID, so that the order of the candidates never matters.
func (f *Fleet) rank(j *Job, rows []int32, seed uint64) []ranked {
	out := make([]ranked, len(rows))
	for k, i := range rows {
		c := &f.rows[i]
		out[k] = ranked{row: i, work: c.Work, hash: mix(f.hash[i] ^ seed), Terms: c.terms(j)}
		if len(j.Regions) > 0 {
			out[k].place = int32(max(0, regionOf(j.Regions, c.Region, c.Country, c.Subdivision)))
		}
	}
	order(j.Prefer, out)
	return out
}

func order(prefer Prefer, out []ranked) {
	med := 0.0
	if prefer == PreferBalanced {
		med = medianCents(out)
	}
	for k := range out {
		r := &out[k]
		switch prefer {
		case PreferFast, PreferCheap:
			r.Key = r.E
		default:
			r.Key = r.E + (r.Cents - med)
		}
	}
	cheap := prefer == PreferCheap
	slices.SortFunc(out, func(a, b ranked) int {
		if cheap && a.Cents != b.Cents {
			return cmp.Compare(a.Cents, b.Cents)
		}
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.work, b.work), cmp.Compare(a.Cents, b.Cents), cmp.Compare(a.hash, b.hash))
	})
	for i := 0; i < len(out); {
		limit, k := out[i].Key+tie*out[i].E, i+1
		for k < len(out) && out[k].Key <= limit && (!cheap || out[k].Cents == out[i].Cents) {
			k++
		}
		if k-i > 1 {
			slices.SortFunc(out[i:k], func(a, b ranked) int {
				return cmp.Or(cmp.Compare(a.work, b.work), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Cents, b.Cents), cmp.Compare(a.hash, b.hash))
			})
		}
		i = k
	}
}

func medianCents(rs []ranked) float64 {
	if len(rs) == 0 {
		return 0
	}
	c := make([]float64, len(rs))
	for i := range rs {
		c[i] = rs[i].Cents
	}
	slices.Sort(c)
	return c[len(c)/2]
}

// makespan predicts in seconds when the chunks are done on a set: each node begins its first chunk after
// queue, start and data and then returns one per slot every Run/P, as a fluid; no set is faster than the
// best E among it.
func makespan(j *Job, rs []ranked, f *Fleet) float64 {
	chunks := float64(j.Chunks) * float64(j.Copies)
	var rate, late, slots float64
	best := math.Inf(1)
	for i := range rs {
		r := &rs[i]
		s := float64(max(1, f.rows[r.row].Slots))
		s = min(s, max(1, chunks-slots))
		slots += s
		per := max(r.Run, 1e-3) / r.P
		rate += s / per
		late += s * (r.E - per) / per
		best = min(best, r.E)
		if slots >= chunks {
			break // whoever comes after would find nothing to do
		}
	}
	if rate == 0 {
		return math.Inf(1)
	}
	return max(best, (chunks+late)/rate)
}
