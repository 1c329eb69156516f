package node

import (
	"cmp"
	"slices"

	"github.com/gridbeam/gridbeam/node/gpu"
)

// seat is where a GPU is in its machine.
type seat struct {
	bus    string
	links  map[string]int // NVLinks to GPUs that they join directly, by PCI address
	island int            // of GPUs that NVSwitches join, -1 for none
	width  int            // NVLinks in all
	numa   int            // memory node, -1 when it is not known
}

// seatOf reads it from what the driver tells of a device.
func seatOf(d *gpu.Device, links uint32) seat {
	s := seat{bus: d.Bus, links: d.Board.PeerLinks, island: -1, width: int(links), numa: -1}
	if d.Board.Switches && d.Board.Island != nil {
		s.island = *d.Board.Island
	}
	if d.NUMA != nil {
		s.numa = *d.NUMA
	}
	return s
}

// linksTo is how many NVLinks two GPUs can talk over: those between them, or all that end at the switches that both are at.
func (s *seat) linksTo(o *seat) int {
	if s.island >= 0 && s.island == o.island {
		return min(s.width, o.width)
	}
	return max(s.links[o.bus], o.links[s.bus])
}

// fit is how good a choice of GPUs is; the first field that differs decides.
type fit struct {
	links     int // NVLinks within it: more is better
	near      int // pairs within it that share a memory node: more is better
	torn      int // NVLinks from it to GPUs that stay free: less is better, so that islands stay whole for others
	neighbour int // pairs of one in it and one that stays free on the same memory node: less is better
}

func (f fit) compare(o fit) int {
	return cmp.Or(cmp.Compare(f.links, o.links), cmp.Compare(f.near, o.near), cmp.Compare(o.torn, f.torn), cmp.Compare(o.neighbour, f.neighbour))
}

// choosing is one search among free GPUs.
type choosing struct {
	links, near       [][]int // between each two
	linkSum, nearSum  []int   // of each to all others
	best              []int
	bestFit           fit
	picked            []int
	linksIn, nearIn   int // within picked
	linksOut, nearOut int // sums of picked
}

// searchMost is how many choices are looked at one by one; beyond that GPUs are added one at a time.
const searchMost = 20_000

// tightest picks n of the free GPUs of a machine: those that the most NVLinks join, then those on one memory node, then those
// whose absence does the least harm to who comes next. Among equals the first win. It returns their places in seats, in
// order; nil when there are fewer. It is a function of its arguments.
func tightest(seats []seat, n int) []int {
	if n < 1 || n > len(seats) {
		return nil
	}
	c := &choosing{}
	c.measure(seats)
	if combinations(len(seats), n) <= searchMost {
		c.try(0, n)
	} else {
		c.grow(n)
	}
	slices.Sort(c.best)
	return c.best
}

// combinations counts the choices of n among m, as far as that matters.
func combinations(m, n int) int {
	all := 1
	for i := range min(n, m-n) {
		if all = all * (m - i) / (i + 1); all > searchMost {
			return all
		}
	}
	return all
}

func (c *choosing) measure(seats []seat) {
	m := len(seats)
	c.linkSum, c.nearSum = make([]int, m), make([]int, m)
	for i := range m {
		c.links, c.near = append(c.links, make([]int, m)), append(c.near, make([]int, m))
		for j := range m {
			if i == j {
				continue
			}
			c.links[i][j] = seats[i].linksTo(&seats[j])
			if seats[i].numa >= 0 && seats[i].numa == seats[j].numa {
				c.near[i][j] = 1
			}
			c.linkSum[i] += c.links[i][j]
			c.nearSum[i] += c.near[i][j]
		}
	}
}

// add puts a GPU into the choice, and times 1 or -1 takes it out again.
func (c *choosing) add(i, times int) {
	if times < 0 {
		c.picked = c.picked[:len(c.picked)-1]
	}
	for _, j := range c.picked {
		c.linksIn += times * c.links[i][j]
		c.nearIn += times * c.near[i][j]
	}
	c.linksOut += times * c.linkSum[i]
	c.nearOut += times * c.nearSum[i]
	if times > 0 {
		c.picked = append(c.picked, i)
	}
}

func (c *choosing) fit() fit {
	return fit{c.linksIn, c.nearIn, c.linksOut - 2*c.linksIn, c.nearOut - 2*c.nearIn}
}

func (c *choosing) keep() {
	if f := c.fit(); c.best == nil || f.compare(c.bestFit) > 0 {
		c.best, c.bestFit = slices.Clone(c.picked), f
	}
}

// try looks at all choices that go on with GPUs from first on.
func (c *choosing) try(first, n int) {
	if len(c.picked) == n {
		c.keep()
		return
	}
	for i := first; i <= len(c.links)-(n-len(c.picked)); i++ {
		c.add(i, 1)
		c.try(i+1, n)
		c.add(i, -1)
	}
}

// grow begins with each GPU and adds the best next one until there are enough.
func (c *choosing) grow(n int) {
	for start := range c.links {
		c.add(start, 1)
		for len(c.picked) < n {
			next, nextFit := -1, fit{}
			for i := range c.links {
				if slices.Contains(c.picked, i) {
					continue
				}
				c.add(i, 1)
				if f := c.fit(); next < 0 || f.compare(nextFit) > 0 {
					next, nextFit = i, f
				}
				c.add(i, -1)
			}
			c.add(next, 1)
		}
		c.keep()
		for len(c.picked) > 0 {
			c.add(c.picked[len(c.picked)-1], -1)
		}
	}
}
