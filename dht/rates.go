package dht

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	// maxBuckets bounds how many peers or networks are counted at a time. Who is forgotten starts anew, so those go first
	// that have used least.
	maxBuckets = 4096
	// netShare is how many times as much as a peer all peers of one network may have: an IPv4 address, behind which some
	// dozens of honest nodes may be, or an IPv6 /48. Keys cost nothing.
	netShare = 8
	// scanNetShare is the same for an hour's bytes of scans, of which few peers of one network want many.
	scanNetShare = 4
)

// rates is a token bucket for each name: of a peer, a network.
type rates struct {
	perSecond, burst float64

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newRates(perSecond, burst float64) *rates {
	return &rates{perSecond: perSecond, burst: burst, buckets: map[string]bucket{}}
}

// take spends a token; it returns how long to wait when there is none.
func (r *rates) take(name string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.buckets[name]
	if !ok {
		if len(r.buckets) >= maxBuckets {
			r.sweepLocked(now)
		}
		b = bucket{tokens: r.burst, at: now}
	}
	b.tokens, b.at = r.tokens(b, now), now
	var wait time.Duration
	if b.tokens < 1 {
		wait = time.Duration((1 - b.tokens) / r.perSecond * float64(time.Second))
	} else {
		b.tokens--
	}
	r.buckets[name] = b
	return wait
}

// tokens is what a bucket has by now.
func (r *rates) tokens(b bucket, now time.Time) float64 {
	return min(r.burst, b.tokens+now.Sub(b.at).Seconds()*r.perSecond)
}

// sweepLocked forgets the buckets that are full again, which lose nothing, and at least the fullest quarter: so nobody
// who has spent his tokens gets new ones because strangers come.
func (r *rates) sweepLocked(now time.Time) {
	names := make([]string, 0, len(r.buckets))
	for name := range r.buckets {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(r.tokens(r.buckets[b], now), r.tokens(r.buckets[a], now)) })
	for i, name := range names {
		if i >= len(names)/4 && r.tokens(r.buckets[name], now) < r.burst {
			break
		}
		delete(r.buckets, name)
	}
}

// askRates are rates of askers, by peer, and by network where it is not our own machine.
type askRates struct{ peers, nets *rates }

func newAskRates(perSecond, burst float64) *askRates {
	return &askRates{peers: newRates(perSecond, burst), nets: newRates(netShare*perSecond, netShare*burst)}
}

// take spends a token of the peer and one of its network; it returns how long to wait when one has none.
func (r *askRates) take(who asker, now time.Time) time.Duration {
	if wait := r.peers.take(string(who.peer), now); wait > 0 {
		return wait
	}
	if net := who.net(4, 6); net != "" {
		return r.nets.take(net, now)
	}
	return 0
}

// usage is what peers and networks have used of something within a time.
type usage map[string]int

// spend usage what an asker uses, unless that is more than a peer, or share times as much, than all of a network may
// use; it says whether it was counted.
func (c usage) spend(who asker, n, ofPeer, share int) bool {
	id, net := "peer "+string(who.peer), who.net(4, 6)
	if c[id]+n > ofPeer || net != "" && c[net]+n > share*ofPeer {
		return false
	}
	c.thin(maxBuckets)
	c[id] += n
	if net != "" {
		c[net] += n
	}
	return true
}

// thin forgets the quarter that has used least when most are counted.
func (c usage) thin(most int) {
	if len(c) < most {
		return
	}
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(c[a], c[b]) })
	for _, name := range names[:len(names)/4] {
		delete(c, name)
	}
}
