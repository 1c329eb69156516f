package metering

import "time"

// MaxSlew is how fast a Clock moves towards the bridge's time: 500 ppm of what has passed (settlement.md 2).
// Durations measured through it are never more than that off.
const MaxSlew = 500e-6

// Clock maps a node's monotonic time onto a bridge's UTC. Its first word from the bridge sets it; later ones
// are approached at MaxSlew, so it never steps, never goes back, and no cell repeats or vanishes.
//
// The now of its methods is a time.Now with its monotonic reading, or virtual time in tests. It is a value;
// it is not safe for concurrent use.
type Clock struct {
	anchor time.Time     // the node's time of the last word
	mapped time.Time     // the bridge's time at anchor, as this clock had it
	rest   time.Duration // what was missing at anchor; positive when the bridge is ahead
}

// Known says whether the clock has heard from the bridge at all.
func (c *Clock) Known() bool { return !c.anchor.IsZero() }

// Hear takes a bridge's time as it arrives in a grant, a lease set or a counter-signature. A word that is older
// than the last one in the node's time is ignored.
func (c *Clock) Hear(now, bridge time.Time) {
	if bridge.UnixMilli() <= 0 {
		return
	}
	bridge = bridge.UTC().Round(0)
	if !c.Known() {
		c.anchor, c.mapped = now, bridge
		return
	}
	if now.Before(c.anchor) {
		return
	}
	m := c.At(now)
	c.anchor, c.mapped, c.rest = now, m, bridge.Sub(m)
}

// At is the bridge's time at the node's now, UTC; the zero time before the first Hear. A now before the last
// Hear gives the time of that Hear.
func (c *Clock) At(now time.Time) time.Time {
	if !c.Known() {
		return time.Time{}
	}
	passed := max(0, now.Sub(c.anchor))
	most := time.Duration(float64(passed) * MaxSlew)
	return c.mapped.Add(passed + min(max(c.rest, -most), most))
}

// Skip moves the clock ahead by a time that the monotonic clock did not see, such as a suspend. The meter
// counts it as down; see Meter.Suspend.
func (c *Clock) Skip(now time.Time, gap time.Duration) {
	if !c.Known() || gap <= 0 {
		return
	}
	m := c.At(now)
	c.rest -= m.Sub(c.mapped) - max(0, now.Sub(c.anchor))
	c.anchor, c.mapped = now, m.Add(gap)
}
