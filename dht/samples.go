package dht

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxSamples bounds the remembered round trips, 64 B each.
	maxSamples = 16384
	// sampleFresh is for how long a measured round trip goes before an estimate by landmarks, sampleKept for how long
	// it is told to those who check claims of regions.
	sampleFresh = 10 * time.Minute
	sampleKept  = time.Hour
)

// samples are the round trips that pings have measured, the shortest of the last pings of each peer.
type samples struct {
	mu sync.Mutex
	of map[peer.ID]sample
}

type sample struct {
	rtt time.Duration
	at  time.Time
}

func (s *samples) put(id peer.ID, rtt time.Duration, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.of[id]; !ok && len(s.of) >= maxSamples {
		for old, x := range s.of {
			if now.Sub(x.at) > sampleKept {
				delete(s.of, old)
			}
		}
		if len(s.of) >= maxSamples {
			clear(s.of)
		}
	}
	if s.of == nil {
		s.of = map[peer.ID]sample{}
	}
	s.of[id] = sample{rtt, now}
}

// get returns a round trip that was measured at most so long ago.
func (s *samples) get(id peer.ID, within time.Duration, now time.Time) (sample, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, ok := s.of[id]
	return x, ok && now.Sub(x.at) <= within
}
