package dht

import "math"

// Coverage says how much of the network a survey has seen, by capture and recapture: two passes over disjoint
// halves of the servers are two samples of the same peers, and how far they overlap tells how many neither
// of them caught (discovery.md 10).
//
// It is right when a peer's chance of being caught by one pass does not depend on having been caught by the
// other. Where records are withheld by the very servers that hold them it is too sure of itself; how much so
// is in docs/research.md.
type Coverage struct {
	// First, Second and Both are how many peers the first pass caught, the second, and both of them.
	First, Second, Both int
	// Seen is how many peers are known by any path.
	Seen int
	// Known says whether there is an estimate: both passes need an answer of a server.
	Known bool
	// Estimate is how many peers there are: (First+1)(Second+1)/(Both+1) - 1, at least Seen.
	Estimate float64
	// Low and High bound Estimate with 95 % confidence; High is +Inf when nothing was caught twice. High takes
	// none of those that both passes missed to be among those that were seen by other paths.
	Low, High float64
}

// Share is Seen by Estimate, 0 when there is no estimate.
func (c Coverage) Share() float64 { return share(c, c.Estimate) }

// ShareLow is the lower bound of Share with 95 % confidence.
func (c Coverage) ShareLow() float64 { return share(c, c.High) }

// ShareHigh is the upper bound of Share with 95 % confidence.
func (c Coverage) ShareHigh() float64 { return share(c, c.Low) }

func share(c Coverage, of float64) float64 {
	switch {
	case !c.Known:
		return 0
	case of <= 0: // nobody is there, and we have seen all of them
		return 1
	}
	return float64(c.Seen) / of
}

// EstimateCoverage computes Coverage of counts. answered says whether a server answered in each pass.
func EstimateCoverage(first, second, both, seen int, answered bool) Coverage {
	c := Coverage{First: first, Second: second, Both: both, Seen: seen, Known: answered}
	if !answered {
		return c
	}
	n1, n2, m, floor := float64(first), float64(second), float64(both), float64(seen)
	c.Estimate = max(floor, (n1+1)*(n2+1)/(m+1)-1)
	// Of the second pass's peers the first has caught m: that is how likely it catches a peer. Either pass
	// may judge the other; the wider bounds count.
	low1, high1 := wilson(m, n2)
	low2, high2 := wilson(m, n1)
	c.Low = max(floor, min(atLeast(n1, high1), atLeast(n2, high2)))
	missed := max(atLeast(n1, low1), atLeast(n2, low2)) - (n1 + n2 - m)
	c.High = max(c.Estimate, floor+missed)
	c.Low = min(c.Low, c.Estimate)
	return c
}

// atLeast is how many there are when n were caught with probability p.
func atLeast(n, p float64) float64 {
	if n == 0 {
		return 0
	}
	return n / p
}

// wilson bounds the probability behind k of n with 95 % confidence (E. B. Wilson, JASA 22 (1927) 209).
func wilson(k, n float64) (low, high float64) {
	if n == 0 {
		return 0, 1
	}
	const z2 = 1.959963984540054 * 1.959963984540054
	middle, p := (k+z2/2)/(n+z2), k/n
	half := math.Sqrt(z2*n*(p*(1-p)+z2/(4*n))) / (n + z2)
	low = max(0, middle-half)
	if k == 0 {
		low = 0
	}
	return low, min(1, middle+half)
}
