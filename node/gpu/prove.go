//go:build linux && cgo

package gpu

import (
	"context"
	"sync"
	"time"
)

// provingMost is how many devices are tested at a time: each start of CUDA looks at all of a machine, and holds the others up.
const provingMost = 2

// tested is what came of a test.
type tested struct {
	key   string
	began time.Time
	proof Proof
}

// testable says whether a device is offered only when it has computed. A GPU that is cut into slices is not offered, and one
// that is barred is tested when that is undone.
func (m *Monitor) testable(d *Device) bool {
	return m.cfg.Prove != nil && d.UUID != "" && d.Slices == 0 && d.Barred == ""
}

// due are the devices that should be tested now.
func (m *Monitor) due() (keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Clock()
	for i := range m.inv.Devices {
		d := &m.inv.Devices[i]
		key := keyOf(d)
		t := m.tracks[key]
		if _, runs := m.proving[key]; !runs && m.testable(d) && t.due(now) && m.seen[key] == 0 { // or somebody else may compute on it
			keys = append(keys, key)
		}
	}
	return keys
}

// claim takes one of the places for tests; false when there is none.
func (m *Monitor) claim(key string) (began time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.proving) >= provingMost {
		return began, false
	}
	began = m.cfg.Clock()
	m.proving[key] = began
	return began, true
}

// prove begins the tests that are due. A device that a lease still has is tested when it is given back: the chunk may end,
// and what it does must not be taken for a fault.
func (w *watching) prove() {
	m := w.m
	if m.cfg.Prove == nil {
		return
	}
	for _, key := range m.due() {
		if m.cfg.Busy != nil && m.cfg.Busy(key) {
			continue
		}
		began, ok := m.claim(key)
		if !ok {
			return
		}
		w.provers.Go(func() {
			proof := m.cfg.Prove(w.ctx, key)
			select {
			case w.proofs <- tested{key, began, proof}:
			case <-w.ctx.Done():
			}
		})
	}
}

// Prove tests the devices that wait for it, once, and returns when that is done: some 12 s for every two of them at the
// worst. It is for a Monitor that is not run, after Read.
func (m *Monitor) Prove(ctx context.Context) {
	if m.cfg.Prove == nil {
		return
	}
	places := make(chan struct{}, provingMost)
	var all sync.WaitGroup
	for _, key := range m.due() {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			began := m.cfg.Clock()
			if proof := m.cfg.Prove(ctx, key); ctx.Err() == nil {
				m.proved(tested{key, began, proof})
			}
		})
	}
	all.Wait()
}

// proved lets a device move by what came of its test. A test is worth nothing when something was wrong since it began.
func (m *Monitor) proved(p tested) {
	m.mu.Lock()
	delete(m.proving, p.key)
	t, ok := m.tracks[p.key]
	if !ok {
		m.mu.Unlock()
		return
	}
	now := m.cfg.Clock()
	switch {
	case p.proof.Verdict == Failed:
		m.log.Warn("a GPU does not compute what it should", "gpu", p.key, "why", p.proof.Why)
		m.tellOf(p.key, flunk, "proof", "its test failed: "+p.proof.Why, now)
	case t.bad.After(p.began):
	case p.proof.Verdict == Passed:
		m.tell(p.key, passed, "", now)
	default:
		m.log.Warn("a GPU cannot be tested; a time of quiet alone brings it back", "gpu", p.key, "why", p.proof.Why)
		m.tellOf(p.key, waived, "proof", "its test says nothing: "+p.proof.Why, now)
	}
	p.proof.Again = m.tracks[p.key].retryAt
	m.proofs[p.key] = &p.proof
	m.mu.Unlock()
	m.publish()
}
