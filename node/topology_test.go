package node

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gridbeam/gridbeam/node/gpu"
)

// bare are GPUs on some memory nodes, without NVLink.
func bare(numa ...int) (out []seat) {
	for i, n := range numa {
		out = append(out, seat{bus: fmt.Sprint(i), island: -1, numa: n, links: map[string]int{}})
	}
	return out
}

// join puts NVLinks between two GPUs; the second end may be silent about them.
func join(seats []seat, i, j, links int) {
	seats[i].links[seats[j].bus] = links
}

// bridges are pairs of GPUs that NVLink joins, in two memory nodes.
func bridges(numa ...int) []seat {
	out := bare(numa...)
	for i := 0; i+1 < len(out); i += 2 {
		join(out, i, i+1, 4)
		join(out, i+1, i, 4)
	}
	return out
}

// cubeMesh is a DGX-1V: 8 GPUs with 6 links each, doubled where nvidia-smi topo -m says NV2.
func cubeMesh() []seat {
	out := bare(0, 0, 0, 0, 1, 1, 1, 1)
	for _, x := range [][3]int{
		{0, 1, 1},
		{0, 2, 1},
		{0, 3, 2},
		{0, 4, 2},
		{1, 2, 2},
		{1, 3, 1},
		{1, 5, 2},
		{2, 3, 2},
		{2, 6, 1},
		{3, 7, 1},
		{4, 5, 1},
		{4, 6, 1},
		{4, 7, 2},
		{5, 6, 2},
		{5, 7, 1},
		{6, 7, 2},
	} {
		join(out, x[0], x[1], x[2])
	}
	return out
}

// switched are GPUs at NVSwitches, by island.
func switched(width int, islands ...int) []seat {
	out := bare(make([]int, len(islands))...)
	for i := range out {
		out[i].island, out[i].width, out[i].numa = islands[i], width, i*2/len(islands)
	}
	return out
}

func TestGPUsOfALeaseAreTheTightestSet(t *testing.T) {
	three := bridges(0, 0, 0, 0, 1, 1)[1:] // one of the first pair is taken
	odd := bare(-1, 0, -1, 0, 1)
	uneven := bare(0, 0, 0, 0)
	join(uneven, 0, 1, 1)
	join(uneven, 2, 3, 2)
	for name, c := range map[string]struct {
		seats []seat
		n     int
		want  []int
	}{
		"nothing asked":                         {bare(0, 0), 0, nil},
		"too few":                               {bare(0, 0), 3, nil},
		"all":                                   {bare(0, 1, 0), 3, []int{0, 1, 2}},
		"no topology is told":                   {bare(-1, -1, -1, -1), 2, []int{0, 1}},
		"one memory node":                       {bare(0, 1, 0, 1, 1), 2, []int{0, 2}},
		"one memory node has enough":            {bare(0, 1, 0, 1, 1), 3, []int{1, 3, 4}},
		"an unknown memory node is none":        {odd, 2, []int{1, 3}},
		"one GPU from the smaller memory node":  {bare(0, 0, 0, 1, 1), 1, []int{3}},
		"a pair, of the node with fewer":        {three, 2, []int{3, 4}},
		"one GPU whose partner is taken":        {three, 1, []int{0}},
		"three are a pair and one beside it":    {three, 3, []int{0, 1, 2}},
		"four are two pairs":                    {three, 4, []int{1, 2, 3, 4}},
		"links count before memory nodes":       {bridges(0, 1, 0, 1), 2, []int{0, 1}},
		"more links are better":                 {uneven, 2, []int{2, 3}},
		"one GPU leaves the better pair":        {uneven, 1, []int{0}},
		"DGX-1V: two with double links":         {cubeMesh(), 2, []int{0, 3}},
		"DGX-1V: four of one side":              {cubeMesh(), 4, []int{0, 1, 2, 3}},
		"NVSwitch: four of eight, one node":     {switched(18, 0, 0, 0, 0, 0, 0, 0, 0), 4, []int{0, 1, 2, 3}},
		"two islands of switches, the whole":    {switched(12, 0, 1, 0, 1, 0, 1, 0, 1), 4, []int{0, 2, 4, 6}},
		"two islands, one GPU from the smaller": {switched(12, 0, 0, 0, 0, 1, 1, 1), 1, []int{4}},
		"two islands, two from the smaller":     {switched(12, 0, 0, 0, 0, 1, 1, 1), 2, []int{4, 5}},
	} {
		if got := tightest(c.seats, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestLargeMachinesAreSearchedInSteps compares the search in steps with the one by one: it finds whole islands too.
func TestLargeMachinesAreSearchedInSteps(t *testing.T) {
	if combinations(8, 4) != 70 || combinations(16, 8) != 12870 || combinations(64, 32) <= searchMost || combinations(5, 5) != 1 {
		t.Errorf("8 over 4 is %d, 16 over 8 %d, 64 over 32 %d", combinations(8, 4), combinations(16, 8), combinations(64, 32))
	}
	islands := make([]int, 64)
	for i := range islands {
		islands[i] = i % 8
	}
	if got := tightest(switched(18, islands...), 8); !slices.Equal(got, []int{0, 8, 16, 24, 32, 40, 48, 56}) {
		t.Errorf("8 of 64 are %v", got)
	}
	if got := tightest(switched(18, islands...), 16); len(got) != 16 || got[0]%8 == got[15]%8 {
		t.Errorf("16 of 64 are %v", got)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	same := 0
	for range 200 {
		seats := bare(make([]int, 8)...)
		for i := range seats {
			seats[i].numa = rnd.IntN(3) - 1
			for j := range i {
				if rnd.IntN(3) == 0 {
					join(seats, i, j, 1+rnd.IntN(4))
				}
			}
		}
		n := 1 + rnd.IntN(8)
		all, steps := &choosing{}, &choosing{}
		all.measure(seats)
		steps.measure(seats)
		all.try(0, n)
		steps.grow(n)
		if steps.bestFit.compare(all.bestFit) > 0 || len(steps.best) != n || len(steps.picked) != 0 || steps.linksIn != 0 || steps.nearOut != 0 {
			t.Fatalf("%d of %v: in steps %+v, one by one %+v", n, seats, steps, all)
		}
		if steps.bestFit == all.bestFit {
			same++
		}
		slices.Sort(steps.best)
		if len(slices.Compact(steps.best)) != n {
			t.Fatalf("a GPU is picked twice: %v", steps.best)
		}
	}
	if same < 160 {
		t.Errorf("only %d of 200 searches in steps find the best", same)
	}
}

func TestLeasesKeepNVLinkIslandsWhole(t *testing.T) {
	island := func(n int) *int { return &n }
	inv := kitInventory()
	inv.Devices = nil
	for i := range 8 { // pairs that are far apart in the driver's numbering
		d := good(fmt.Sprint(i), 0, fmt.Sprintf("/dev/nvidia%d", i))
		d.Bus = fmt.Sprint("bus ", i)
		partner := fmt.Sprint("bus ", (i+4)%8)
		d.Board = gpu.Board{Peers: []string{partner}, PeerLinks: map[string]int{partner: 4}, Island: island(i % 4)}
		inv.Devices = append(inv.Devices, d)
	}
	d := newDevices(inv)
	for i, want := range []string{"0,4", "1,5"} {
		l := gpuLease(byte(i+1), 2, "H100")
		if !d.take(l) {
			t.Fatal("two free H100 are not given away")
		}
		if _, uuids := d.of(l.ID); uuids != want {
			t.Errorf("lease %d has %s, want %s", i, uuids, want)
		}
	}
	one, two, pair := gpuLease(3, 1, "H100"), gpuLease(4, 1, "H100"), gpuLease(5, 2, "H100")
	if !d.take(one) || !d.take(two) || !d.take(pair) {
		t.Fatal("free H100 are not given away")
	}
	if _, uuids := d.of(one.ID); uuids != "2" {
		t.Errorf("the single one has %s", uuids)
	}
	if _, uuids := d.of(two.ID); uuids != "6" {
		t.Errorf("the second single one breaks another pair: it has %s", uuids)
	}
	if _, uuids := d.of(pair.ID); uuids != "3,7" {
		t.Errorf("the pair has %s", uuids)
	}
}

func BenchmarkTightest(b *testing.B) {
	seats := switched(18, make([]int, 16)...)
	for b.Loop() {
		tightest(seats, 8)
	}
}
