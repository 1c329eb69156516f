package dht

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// What others say decides whether and how often this peer advertises (discovery.md 2 and 4).
const (
	clockOff        = time.Minute // a clock that differs by more makes others refuse what we sign, sooner or later
	clockAnswers    = 3           // below, nothing is concluded
	crowded         = 20_000      // nodes, above which heartbeats come half as often
	crowdedBack     = 18_000      // and below which they come as often again
	crowdedBeat     = time.Minute
	conditionsFirst = time.Minute      // after the start, when others are connected
	conditionsEvery = 30 * time.Minute // three hellos
	conditionsSoon  = time.Minute      // while the clock is off, or seems to be
)

// conditions are what others' answers say of our clock and of how many nodes there are. The zero value is that nothing is
// known. It is guarded by the announcer's mutex.
type conditions struct {
	off      bool          // our clock is: nothing is advertised
	doubtful bool          // it was in the last round: a second one, of other peers, decides
	ahead    time.Duration // of others' clocks
	crowded  bool
}

// judged returns the conditions after a round of hellos: others' clocks less ours, and the populations of index peers. Two
// rounds in a row, each of three answers at least, stop advertising, so that three peers that lie once do not; one that is good resumes it.
func (c conditions) judged(clocks []time.Duration, populations []int) conditions {
	if len(clocks) >= clockAnswers {
		c.ahead = middle(clocks)
		wrong := c.ahead.Abs() > clockOff
		c.off, c.doubtful = wrong && (c.off || c.doubtful), wrong
	}
	if len(populations) >= clockAnswers {
		n := middle(populations)
		c.crowded = n > crowded || c.crowded && n > crowdedBack
	}
	return c
}

// middle is the median, the lower one of two.
func middle[T int | time.Duration](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[(len(sorted)-1)/2]
}

// wait is until the next round.
func (c conditions) wait() time.Duration {
	if c.doubtful {
		return conditionsSoon
	}
	return conditionsEvery
}

// watchConditions asks others now and then until ctx ends, and tells the loop what has changed.
func (a *Announcer) watchConditions(ctx context.Context, rnd *rand.Rand) {
	for wait := conditionsFirst; pauseFor(ctx, varied(wait, rnd)) == nil; {
		before := a.present()
		clocks, populations := a.d.askConditions(ctx, before.doubtful)
		a.mu.Lock()
		a.conditions = before.judged(clocks, populations)
		now := a.conditions
		a.mu.Unlock()
		wait = now.wait()
		if now.off != before.off {
			a.d.setClockOff(now.off)
			if now.off {
				a.d.log.Warn("this machine's clock is wrong, so nothing is advertised until it is set", "others_ahead_by", now.ahead)
			} else {
				a.d.log.Info("this machine's clock is right again; advertising goes on")
			}
		}
		if now.off != before.off || now.crowded != before.crowded {
			poke(a.changed)
		}
	}
}

// askConditions asks three index peers of different networks. When there are fewer, or others are wanted, three random servers of
// the directory are asked too.
func (d *Directory) askConditions(ctx context.Context, others bool) (clocks []time.Duration, populations []int) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	groups, asked := map[string]bool{}, map[peer.ID]bool{d.host.ID(): true}
	ask := func(ids []peer.ID, take func(Hello)) {
		for n := 0; len(ids) > 0 && n < clockAnswers; ids = ids[1:] {
			if asked[ids[0]] {
				continue
			}
			asked[ids[0]] = true
			h, err := d.Hello(ctx, ids[0])
			if err != nil || !fresh(groups, d.wideNetworkOf(ids[0])) {
				continue
			}
			n++
			clocks = append(clocks, h.Clock)
			take(h)
		}
	}
	ask(d.otherReplicas(ctx, "conditions"), func(h Hello) { populations = append(populations, h.Population) })
	if len(clocks) >= clockAnswers && !others {
		return clocks, populations
	}
	servers := sortedIDs(d.kad.RoutingTable().ListPeers())
	d.chance("conditions").Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	ask(servers, func(Hello) {})
	return clocks, populations
}

// wideNetworkOf names the /16 (IPv6: /32) from which a peer is connected, where that counts.
func (d *Directory) wideNetworkOf(id peer.ID) []string {
	if d.cfg.Loopback {
		return nil
	}
	for _, c := range d.host.Network().ConnsToPeer(id) {
		if net := netOf(c.RemoteMultiaddr(), 2, 4); net != "" {
			return []string{net}
		}
	}
	return nil
}

// ClockOff says that this machine's clock differs by more than a minute from others', so that it advertises nothing
// until a round of questions, one a minute, finds it right again. Standing.Clock tells by how much.
func (d *Directory) ClockOff() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clockOff
}

func (d *Directory) setClockOff(off bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clockOff = off
}

// present returns what was found last.
func (a *Announcer) present() conditions {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conditions
}

// every is the time between two heartbeats without a change.
func (a *Announcer) every() time.Duration {
	if a.present().crowded {
		return max(a.plan.Beat, crowdedBeat)
	}
	return a.plan.Beat
}
