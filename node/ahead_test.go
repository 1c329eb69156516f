package node

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
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

func TestAResultClaimsAlsoWhenTheLastGrantWasShort(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBook("self", 2, func() time.Time { return now }, testLog())
	br := &bridge{}
	m := &member{memberFacts: memberFacts{terms: protocol.JobTerms{Job: protocol.NewJobID()}, slots: 2}, bridge: br, claim: true, retry: now.Add(time.Second)}
	other := &member{memberFacts: memberFacts{terms: protocol.JobTerms{Job: protocol.NewJobID()}, slots: 2}, bridge: br, claim: true, retry: now.Add(time.Second)}
	b.members[m.terms.Job], b.members[other.terms.Job] = m, other
	if got, _ := b.claims(br, nil, now); len(got) != 0 {
		t.Errorf("claims %v before it is time to ask again", got)
	}
	got, of := b.claims(br, []*lease{{member: m}}, now)
	if len(got) != 1 || of[0] != m || got[0].GetSlots() != 4 {
		t.Errorf("with a result it claims %v, want 4 of its job alone", got)
	}
	if got, _ := b.claims(br, nil, now.Add(time.Second)); len(got) == 0 {
		t.Error("nothing is claimed when it is time to ask again")
	}
}
