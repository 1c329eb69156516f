package beambridge

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestAJobIsDesertedOnceEveryMemberIsSilentForALease(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		silent []time.Duration // of each member; -1 was restored and not heard of yet, -2 has left
		want   bool
	}{
		"no member":                  {nil, true},
		"one that speaks":            {[]time.Duration{leaseTTL - 1}, false},
		"one that is silent":         {[]time.Duration{leaseTTL}, true},
		"one of two speaks":          {[]time.Duration{leaseTTL, 0}, false},
		"both are silent":            {[]time.Duration{leaseTTL, time.Hour}, true},
		"restored, not heard of yet": {[]time.Duration{-1}, false},
		"who speaks has left":        {[]time.Duration{-2, leaseTTL}, true},
	} {
		e := &engine{nodes: map[protocol.PeerID]*node{}}
		j := &job{members: map[protocol.PeerID]*store.Member{}}
		for i, d := range c.silent {
			id := protocol.PeerID(rune('a' + i))
			e.nodes[id], j.members[id] = &node{heard: now.Add(-d)}, &store.Member{State: memberIs}
			switch d {
			case -1:
				e.nodes[id].heard = time.Time{}
			case -2:
				e.nodes[id].heard, j.members[id].State = now, memberWas
			}
		}
		if got := e.deserted(j, now); got != c.want {
			t.Errorf("%s: deserted is %v", name, got)
		}
	}
}
