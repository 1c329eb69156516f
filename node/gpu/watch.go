//go:build linux && cgo

package gpu

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// idleSample is the time between two looks for a driver on a machine that has none.
const idleSample = time.Minute

// rereadSoon is the least time between two readings when one has failed in part.
const rereadSoon = 30 * time.Second

// endPatience is how long the end waits for calls that have not come back.
const endPatience = 2 * time.Second

// watching is what one Run has at work beside itself.
type watching struct {
	m         *Monitor
	ctx       context.Context
	looks     chan sampled   // capacity: a burst of all cards of a large machine
	events    chan event     // capacity eventBuffer: more than a machine says at once
	refreshes chan refreshed // capacity 1: one at a time
	proofs    chan tested    // capacity 1: who is tested can wait to tell
	provers   sync.WaitGroup
	refresh   bool // one is under way
	again     bool // NVML has to be started again
	soon      bool // something could not be read that answers now
	readAt    time.Time
	stamp     string
	deaf      func() // ends the reader of events and waits for it
	heard     uint64 // the start of NVML whose events are read
}

// Run follows the health of the devices until ctx ends: it looks at each, hears Xids, and reads all again now and then, and
// when the driver has come or gone. A call into the driver that never returns holds one goroutine, and a card whose call has
// not returned is asked nothing more. It returns ErrRan the second time, else nil.
func (m *Monitor) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.ran {
		m.mu.Unlock()
		return ErrRan
	}
	m.ran = true
	read := m.read
	m.mu.Unlock()
	m.recall()
	w := &watching{
		m: m, ctx: ctx, looks: make(chan sampled, 64), events: make(chan event, eventBuffer), refreshes: make(chan refreshed, 1),
		proofs: make(chan tested, 1), deaf: func() {},
		readAt: m.cfg.Clock(), stamp: stamp(m.cfg.Sysfs),
	}
	if s := m.current(); s != nil {
		w.stamp = s.stamp
	}
	if !read {
		w.reread(true)
	}
	w.listen()
	w.tick()
	timer := time.NewTimer(w.pause())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.end()
			return nil
		case <-timer.C:
			w.tick()
			timer.Reset(w.pause())
		case r := <-w.looks:
			again, reread := m.looked(r)
			w.again, w.soon = w.again || again, w.soon || reread
			w.prove()
		case e := <-w.events:
			m.heard(e)
		case p := <-w.proofs:
			m.proved(p)
			w.prove()
		case f := <-w.refreshes:
			w.refresh = false
			m.adopt(f)
			w.listen()
			timer.Reset(0) // look at what is there now
		}
	}
}

// pause is the time to the next tick.
func (w *watching) pause() time.Duration {
	if w.m.current() == nil && !w.refresh {
		return max(w.m.cfg.Sample, min(idleSample, w.m.cfg.Reread))
	}
	return w.m.cfg.Sample
}

// tick looks at what is due.
func (w *watching) tick() {
	now := w.m.cfg.Clock()
	if s := stamp(w.m.cfg.Sysfs); s != w.stamp {
		w.m.log.Info("the GPU driver has come, gone or changed; reading the GPUs again")
		w.stamp, w.again = s, true
	}
	switch {
	case w.again:
		w.reread(true)
	case now.Sub(w.readAt) >= w.m.cfg.Reread || w.soon && now.Sub(w.readAt) >= min(rereadSoon, w.m.cfg.Reread):
		w.reread(w.m.current() == nil)
	}
	w.look(now)
	w.prove()
}

// look asks each card how it is, one goroutine each, and at most one at a time.
func (w *watching) look(now time.Time) {
	m := w.m
	s := m.current()
	if s == nil {
		return
	}
	for _, c := range s.cards {
		if c.handle == nil {
			continue
		}
		key := flight{s.generation, c.index, false}
		leave, ok := m.enter(key)
		if !ok {
			m.mu.Lock()
			asked, flies := m.flying[key]
			m.mu.Unlock()
			if silence := now.Sub(asked); flies && silence >= m.cfg.Patience {
				m.cardSignal(c, warn, "nvml", fmt.Sprintf("it has not answered for %s", silence.Round(time.Second)))
			}
			continue
		}
		go func() {
			defer leave()
			r := s.sample(w.ctx, c, m.cfg.HotC, m.cfg.Clock())
			select {
			case w.looks <- r:
			case <-w.ctx.Done():
			}
		}()
	}
}

// reread reads all devices beside the loop; again starts NVML anew, for which nothing may use it.
func (w *watching) reread(again bool) {
	if w.refresh {
		return
	}
	m := w.m
	w.refresh, w.again, w.soon, w.readAt = true, false, false, m.cfg.Clock()
	s := m.current()
	if again {
		w.deaf()
		w.deaf = func() {}
		m.mu.Lock()
		m.session = nil // nothing new is asked
		m.mu.Unlock()
	}
	go func() {
		busy := again && !m.quiet(w.ctx, endPatience)
		f := m.refresh(w.ctx, s, again || s == nil, busy)
		select {
		case w.refreshes <- f:
		case <-w.ctx.Done():
			m.mu.Lock()
			defer m.mu.Unlock()
			if again && f.session != nil && len(m.flying) == 0 {
				_ = m.lib.Shutdown()
			}
		}
	}()
}

// quiet waits until no look is under way; false when one does not end.
func (m *Monitor) quiet(ctx context.Context, patience time.Duration) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		m.mu.Lock()
		n := len(m.flying)
		m.mu.Unlock()
		if n == 0 {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		}
	}
}

// listen begins to hear Xids of what was started anew; who is heard goes on being heard.
func (w *watching) listen() {
	s := w.m.current()
	if s == nil || s.generation == w.heard {
		return
	}
	w.heard = s.generation
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.hear(ctx, s.cards, w.m.cfg.Clock, w.events)
	}()
	w.deaf = func() {
		cancel()
		<-done
	}
}

// end waits for what is at work, as far as that ends, and closes NVML.
func (w *watching) end() {
	w.deaf()
	w.provers.Wait() // a test ends soon after ctx
	m := w.m
	free := m.quiet(context.Background(), endPatience)
	m.mu.Lock()
	s := m.session
	m.session = nil
	m.mu.Unlock()
	if s != nil && free {
		_ = m.lib.Shutdown()
	}
}
