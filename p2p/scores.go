package p2p

import (
	"maps"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// scores keeps the router's last published peer scores.
type scores struct {
	last atomic.Pointer[map[peer.ID]float64]
}

func (s *scores) set(m map[peer.ID]float64) {
	m = maps.Clone(m)
	s.last.Store(&m)
}

func (s *scores) of(p peer.ID) float64 {
	if m := s.last.Load(); m != nil {
		return (*m)[p]
	}
	return 0
}
