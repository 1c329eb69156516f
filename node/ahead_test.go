package node

import (
	"testing"
	"time"
)

func TestASlotHasInHandWhatIsOverInATenthOfASecond(t *testing.T) {
	b := &book{}
	for _, c := range []struct {
		took time.Duration
		want int
	}{{0, 2}, {time.Hour, 2}, {51 * time.Millisecond, 2}, {20 * time.Millisecond, 5}, {2 * time.Millisecond, 50}, {time.Microsecond, 64}} {
		m := &member{}
		for range 3 {
			b.paced(m, c.took)
		}
		if got := m.ahead(); got != c.want {
			t.Errorf("%d leases a slot when a chunk takes %s, want %d", got, c.took, c.want)
		}
	}
	m := &member{}
	b.paced(m, time.Millisecond)
	for range 40 {
		b.paced(m, time.Second)
	}
	if got := m.ahead(); got != 2 {
		t.Errorf("%d leases a slot although chunks have become long, want 2", got)
	}
}
