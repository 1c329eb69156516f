//go:build linux && cgo

package gpu

import (
	"context"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Timing of the reader of events. It waits for less than discovery.md's 5 s, so that it ends soon after it is told to.
const (
	eventWait   = 500 * time.Millisecond
	eventPause  = time.Second // after a failure
	failWindow  = time.Minute
	failsMost   = 3 // failures in failWindow that make all devices suspect
	eventBuffer = 64
)

// event is what the reader of events has to say.
type event struct {
	session *session
	index   int    // of the card; -1 is all
	xid     uint64 // 0: the reader itself has failed
	gi, ci  uint32
	reason  string
}

// hear reads Xids until ctx ends. One device that cannot be listened to does not keep the others from being heard: after
// each failure the set is made anew of those that answer.
func (s *session) hear(ctx context.Context, cards []*card, now func() time.Time, out chan<- event) {
	var fails []time.Time
	for ctx.Err() == nil {
		reason := s.hearSet(ctx, cards, out)
		if ctx.Err() != nil {
			return
		}
		at := now()
		fails = slices.DeleteFunc(append(fails, at), func(t time.Time) bool { return at.Sub(t) >= failWindow })
		if len(fails) >= failsMost && !send(ctx, out, event{session: s, index: -1, reason: "errors of the driver cannot be heard: " + reason}) {
			return
		}
		if len(fails) > failsMost {
			fails = fails[len(fails)-failsMost:]
		}
		timer := time.NewTimer(eventPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func send(ctx context.Context, out chan<- event, e event) bool {
	select {
	case out <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// hearSet reads one set of events until it fails or ctx ends.
func (s *session) hearSet(ctx context.Context, cards []*card, out chan<- event) (failure string) {
	set, r := s.lib.EventSetCreate()
	switch classOf(r) {
	case good:
	case absent: // in WSL, and with some virtual GPUs: looks alone find what is wrong
		<-ctx.Done()
		return ""
	default:
		return "making an event set: " + text(r)
	}
	defer func() { _ = set.Free() }()
	registered := 0
	for _, c := range cards {
		if c.handle == nil {
			continue
		}
		if can, r := c.handle.GetSupportedEventTypes(); r == nvml.SUCCESS && can&nvml.EventTypeXidCriticalError == 0 {
			continue
		}
		if c.handle.RegisterEvents(nvml.EventTypeXidCriticalError, set) == nvml.SUCCESS {
			registered++
		}
	}
	if registered == 0 { // what no device has, such as a virtual one, is no failure
		<-ctx.Done()
		return ""
	}
	for ctx.Err() == nil {
		data, r := set.Wait(uint32(eventWait / time.Millisecond))
		switch {
		case r == nvml.ERROR_TIMEOUT:
		case r != nvml.SUCCESS:
			return "waiting for events: " + text(r)
		case data.EventType&nvml.EventTypeXidCriticalError != 0:
			if !send(ctx, out, event{session: s, index: indexOf(cards, data.Device), xid: data.EventData, gi: data.GpuInstanceId, ci: data.ComputeInstanceId}) {
				return ""
			}
		}
	}
	return ""
}

// indexOf finds the card of an event, -1 when it is not known.
func indexOf(cards []*card, d nvml.Device) int {
	if d == nil {
		return -1
	}
	for i, c := range cards {
		if c.handle == d {
			return i
		}
	}
	if uuid, r := d.GetUUID(); r == nvml.SUCCESS {
		return slices.IndexFunc(cards, func(c *card) bool { return c.uuid == uuid })
	}
	return -1
}

// heard lets devices move by an event.
func (m *Monitor) heard(e event) {
	m.mu.Lock()
	s := m.session
	m.mu.Unlock()
	if s == nil || s.generation != e.session.generation {
		return
	}
	cards := s.cards
	if e.index >= 0 && e.index < len(cards) {
		cards = cards[e.index : e.index+1]
	}
	if e.xid == 0 {
		for _, c := range cards {
			m.cardSignal(c, warn, "nvml", e.reason)
		}
		return
	}
	say, ofDevice := signalOf(e.xid)
	if !ofDevice {
		m.blameJob(cards, e)
		return
	}
	if e.index < 0 { // it cannot be said whose it is: none gets new work until all have been quiet
		say = warn
	}
	for _, c := range cards {
		hit := partsHit(c, e)
		if hit == nil {
			m.cardSignal(c, say, xidWord(e.xid), describeXid(e.xid))
			continue
		}
		m.mu.Lock()
		for _, uuid := range hit {
			m.tellOf(uuid, say, xidWord(e.xid), describeXid(e.xid), m.cfg.Clock())
		}
		m.mu.Unlock()
	}
	m.publish()
}

// partsHit are the slices that an event is about; nil is the whole card.
func partsHit(c *card, e event) (uuids []string) {
	if e.gi == anyInstance && e.ci == anyInstance {
		return nil
	}
	for _, h := range c.slices {
		if h.instance == e.gi && (e.ci == anyInstance || h.compute == e.ci) {
			uuids = append(uuids, h.uuid)
		}
	}
	return uuids
}

func (m *Monitor) blameJob(cards []*card, e event) {
	if m.cfg.JobFault == nil {
		return
	}
	for _, c := range cards {
		hit := partsHit(c, e)
		if hit == nil {
			hit = []string{c.uuid}
			for _, h := range c.slices {
				hit = append(hit, h.uuid)
			}
		}
		for _, uuid := range hit {
			m.cfg.JobFault(uuid, e.xid)
		}
	}
}
