//go:build linux && cgo

package gpu

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"google.golang.org/protobuf/proto"
)

// Monitor reads the GPUs of this machine and follows their health. Its methods may be called at any time.
type Monitor struct {
	cfg Config
	lib nvml.Interface
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	ran     bool
	read    bool
	session *session
	starts  uint64               // of NVML
	flying  map[flight]time.Time // calls that have not come back, since when
	tracks  map[string]track     // by UUID; without one by place
	known   map[string]reading   // the last good one
	sensors map[string]*Sensors
	seen    map[string]int       // looks in a row that found somebody else's process
	old     map[string]past      // of before, and of devices that are not followed any more; nil before recall
	proving map[string]time.Time // tests that are under way, since when
	proofs  map[string]*Proof    // the last of each device; replaced, never changed
	faults  map[string]uint64    // by reason
	inv     Inventory
	digest  string // of what Changed tells
}

// flight is a call into the driver about one card, by the start of NVML that it belongs to.
type flight struct {
	generation uint64
	index      int
	reading    bool // of everything; else a look at its health
}

// New returns a Monitor of this machine's GPUs; it reads nothing yet. It returns ErrConfig.
func New(cfg Config, log *slog.Logger) (*Monitor, error) { return NewWith(nvml.New(), cfg, log) }

// NewWith is New with another NVML, such as a mock server.
func NewWith(lib nvml.Interface, cfg Config, log *slog.Logger) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Monitor{
		cfg: cfg, lib: lib, log: log, flying: map[flight]time.Time{}, tracks: map[string]track{}, known: map[string]reading{},
		sensors: map[string]*Sensors{}, seen: map[string]int{}, proving: map[string]time.Time{}, proofs: map[string]*Proof{}, faults: map[string]uint64{},
	}, nil
}

// Read reads the GPUs. A machine without a driver or GPUs gives an empty Inventory; what stands between a GPU and its offer
// is in it. The error is ctx's.
func (m *Monitor) Read(ctx context.Context) (Inventory, error) {
	m.recall()
	m.mu.Lock()
	was := m.session
	m.mu.Unlock()
	f := m.refresh(ctx, was, was == nil, false)
	if ctx.Err() != nil {
		return Inventory{}, ctx.Err()
	}
	m.adopt(f)
	m.lookOnce(ctx)
	return m.Inventory(), ctx.Err()
}

// recall takes up what was kept of the devices, the first time.
func (m *Monitor) recall() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.old != nil {
		return
	}
	var err error
	if m.old, err = recall(m.cfg.History); err != nil {
		m.log.Error("what GPUs did before is not known: none is offered until it is cleared (gridbeam node gpu clear)", "err", err)
	}
}

// lookOnce asks each card once how it is, and waits for the answers for as long as Patience.
func (m *Monitor) lookOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Patience)
	defer cancel()
	s := m.current()
	if s == nil {
		return
	}
	looks := make(chan sampled, len(s.cards)) // one each
	asked := 0
	for _, c := range s.cards {
		if leave, ok := m.enter(flight{s.generation, c.index, false}); ok && c.handle != nil {
			asked++
			go func() {
				defer leave()
				looks <- s.sample(ctx, c, m.cfg.HotC, m.cfg.Clock())
			}()
		} else if ok {
			leave()
		}
	}
	for range asked {
		select {
		case r := <-looks:
			m.looked(r)
		case <-ctx.Done():
			return // who is silent is told of by Run
		}
	}
}

func (m *Monitor) current() *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

// enter begins a call into the driver, unless one like it has not come back; leave ends it.
func (m *Monitor) enter(f flight) (leave func(), ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, flies := m.flying[f]; flies {
		return nil, false
	}
	m.flying[f] = m.cfg.Clock()
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.flying, f)
	}, true
}

// Close ends a Monitor that was not run.
func (m *Monitor) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session != nil && len(m.flying) == 0 {
		_ = m.lib.Shutdown()
	}
	m.session = nil
}

// Inventory returns what is known now. It is the caller's own.
func (m *Monitor) Inventory() Inventory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inv.clone()
}

// Clear is the owner's word that a device is good again, also one that is not there now: its faults are forgotten, and after a
// time of quiet it is offered. It returns ErrNoDevice.
func (m *Monitor) Clear(uuid string) error {
	m.recall()
	m.mu.Lock()
	t, ok := m.tracks[uuid]
	if known := uuid != anyDevice && forgive(m.old, uuid); !ok && !known {
		m.mu.Unlock()
		return fmt.Errorf("%w: %q; gridbeam node specs lists them", ErrNoDevice, uuid)
	}
	if ok {
		m.tracks[uuid] = t.next(cleared, "", m.cfg.Clock())
	}
	err := m.keep()
	m.mu.Unlock()
	m.publish()
	return err
}

// refreshed is a new reading of everything.
type refreshed struct {
	session  *session // nil when NVML does not start
	problems []Problem
}

// refresh reads all devices; again starts NVML anew. busy says that a call of the old session has not come back: NVML is not
// shut down under it.
func (m *Monitor) refresh(ctx context.Context, s *session, again, busy bool) refreshed {
	if again {
		if s != nil && !busy {
			_ = m.lib.Shutdown()
		}
		var problems []Problem
		if s, problems = open(m.lib, m.cfg.Sysfs, m.cfg.Procfs); s == nil {
			return refreshed{problems: problems}
		}
		m.mu.Lock()
		m.starts++
		s.generation = m.starts
		m.mu.Unlock()
	} else { // the old one is in use while this one is made
		s = s.next()
	}
	s.read(ctx, m.cfg.Patience, func(i int) (func(), bool) { return m.enter(flight{s.generation, i, true}) })
	return refreshed{session: s, problems: s.problems}
}

// next is the same NVML, to be read again.
func (s *session) next() *session {
	return &session{
		lib: s.lib, sysfs: s.sysfs, procfs: s.procfs, driver: s.driver, cuda: s.cuda, confidential: s.confidential, cards: s.cards, stamp: s.stamp,
		generation: s.generation,
	}
}

// adopt takes over what was read.
func (m *Monitor) adopt(f refreshed) {
	m.mu.Lock()
	now := m.cfg.Clock()
	m.session, m.read = f.session, true
	listed := map[string]bool{}
	inv := Inventory{Problems: f.problems, Tested: m.cfg.Prove != nil}
	inv.OnBus, inv.Others = onBus(m.cfg.Sysfs)
	var all []reading
	if s := f.session; s != nil {
		inv.Driver, inv.CUDA = s.driver, s.cuda
		for _, r := range s.readings() {
			key := keyOf(&r.device)
			before, again := m.known[key]
			listed[key] = true
			m.meet(&r.device, now)
			switch r.device.Health {
			case Faulted:
				m.tell(key, fault, r.device.Reason, now)
			case Suspect:
				m.tell(key, warn, r.device.Reason, now)
			default:
				if m.testable(&r.device) && !m.testable(&before.device) && again {
					m.tell(key, doubt, "", now) // what barred it is undone
				}
				m.known[key] = r
			}
			all = append(all, m.lastGood(key, r))
		}
	}
	all = append(all, m.missing(listed, now)...)
	inv.assemble(all)
	m.inv = inv
	m.mu.Unlock()
	m.publish()
}

// lastGood is a reading, or for a device that could not be read wholly the last one that could: its group stays what it was.
func (m *Monitor) lastGood(key string, r reading) reading {
	last, ok := m.known[key]
	if !ok || r.device.Health != Faulted && r.device.Health != Suspect {
		return r
	}
	last.device.Index = r.device.Index
	return last
}

// missing are the devices that were there and are not listed any more; m.mu is held. Slices are gone for good: another
// partition has other UUIDs.
func (m *Monitor) missing(listed map[string]bool, now time.Time) (out []reading) {
	for _, key := range slices.Sorted(maps.Keys(m.tracks)) {
		t := m.tracks[key]
		last, ok := m.known[key]
		if listed[key] {
			continue
		}
		if !ok || last.device.Slice != nil || t.state == Absent && now.Sub(t.since) >= faultWindow {
			m.old[key] = t.past() // it may come back
			delete(m.known, key)
			delete(m.tracks, key)
			delete(m.sensors, key)
			delete(m.seen, key)
			delete(m.proofs, key)
			continue
		}
		m.tell(key, gone, "it is not listed any more: its driver is unloaded, or it has fallen off the bus", now)
		last.device.Index, last.device.Slices = -1, 0
		out = append(out, last)
	}
	return out
}

// meet begins to follow a device; m.mu is held.
func (m *Monitor) meet(d *Device, now time.Time) {
	key := keyOf(d)
	if _, ok := m.tracks[key]; ok {
		return
	}
	t := pastOf(m.old, d).restored(now)
	if m.testable(d) {
		t = t.next(doubt, "", now)
	}
	m.tracks[key] = t
}

// tell lets a device move; m.mu is held.
func (m *Monitor) tell(key string, s signal, reason string, now time.Time) {
	m.tellOf(key, s, "nvml", reason, now)
}

// tellOf is tell, with the short word for the reason that faults are counted by.
func (m *Monitor) tellOf(key string, s signal, word, reason string, now time.Time) {
	t, ok := m.tracks[key]
	if !ok {
		return
	}
	if last, known := m.known[key]; s == fine && known && !m.testable(&last.device) {
		s = waived // time alone brings it back
	}
	next := t.next(s, reason, now)
	m.tracks[key] = next
	if out := next.state == Faulted || next.state == Locked; out && t.state != Faulted && t.state != Locked {
		m.faults[word]++
	}
	if next.state != t.state {
		m.log.Info("a GPU's health has changed", "gpu", key, "from", string(t.state), "to", string(next.state), "reason", next.reason)
	}
	if len(next.faults) != len(t.faults) || (next.state == Locked) != (t.state == Locked) {
		if err := m.keep(); err != nil {
			m.log.Warn("faults of GPUs are not kept", "err", err)
		}
	}
}

// keep writes the history; m.mu is held.
func (m *Monitor) keep() error {
	if m.cfg.History == "" {
		return nil
	}
	return writeHistory(m.cfg.History, remembered(m.old, m.tracks, m.cfg.Clock()))
}

// publish brings the inventory up to date and tells when something about selling has changed.
func (m *Monitor) publish() {
	m.mu.Lock()
	var digest strings.Builder
	for i := range m.inv.Devices {
		d := &m.inv.Devices[i]
		key := keyOf(d)
		if t, ok := m.tracks[key]; ok {
			d.Health, d.Reason, d.Since = t.state, t.reason, t.since
		}
		d.Now, d.Proof = m.sensors[key], m.proofs[key]
		fmt.Fprintf(&digest, "%s %s %d %t %t\n", key, d.Health, d.Group, d.Sellable(), d.Now != nil && len(d.Now.Throttle) > 0)
	}
	for _, g := range m.inv.Groups {
		text, _ := proto.MarshalOptions{Deterministic: true}.Marshal(g)
		digest.Write(text)
	}
	m.inv.Faults = maps.Clone(m.faults)
	changed := digest.String() != m.digest
	m.digest = digest.String()
	m.mu.Unlock()
	if changed && m.cfg.Changed != nil {
		m.cfg.Changed()
	}
}

// clone copies what callers may keep.
func (inv Inventory) clone() Inventory {
	inv.Devices = slices.Clone(inv.Devices)
	groups := inv.Groups
	inv.Groups = nil
	for _, g := range groups {
		inv.Groups = append(inv.Groups, proto.CloneOf(g))
	}
	inv.Problems, inv.Others, inv.Faults = slices.Clone(inv.Problems), slices.Clone(inv.Others), maps.Clone(inv.Faults)
	return inv
}

// looked takes over what a look at a card has found. It says whether NVML has to be started again, and whether the card should
// be read again: one that could not be read wholly is not good because it answers a look.
func (m *Monitor) looked(r sampled) (again, reread bool) {
	type verdict struct {
		key    string
		signal signal
		reason string
	}
	m.mu.Lock()
	if m.session == nil || m.session.generation != r.session.generation || r.index >= len(m.session.cards) {
		m.mu.Unlock()
		return false, false // of a session that is over
	}
	c := m.session.cards[r.index]
	m.mu.Unlock()
	signalOf := map[Health]signal{Healthy: fine, Suspect: warn, Faulted: fault}
	var all []verdict
	strangers := map[string]string{} // by UUID
	look := func(uuid string, pids []int) {
		if m.cfg.Busy != nil && m.cfg.Busy(uuid) {
			return
		}
		for _, pid := range pids {
			if !descends(m.cfg.Procfs, pid, os.Getpid()) {
				strangers[uuid] = fmt.Sprintf("process %d (%s) computes on it", pid, firstLine(fmt.Sprintf("%s/%d/comm", m.cfg.Procfs, pid)))
				return
			}
		}
	}
	all = append(all, verdict{c.uuid, signalOf[r.health], r.reason})
	look(c.uuid, r.whole)
	for _, part := range r.slices {
		v := verdict{part.uuid, signalOf[part.health], part.reason}
		if r.health != Healthy { // what is wrong with the GPU is wrong with its slices
			v.signal, v.reason = signalOf[r.health], r.reason
		}
		all = append(all, v)
		look(part.uuid, part.processes)
	}
	m.mu.Lock()
	now := m.cfg.Clock()
	m.sensors[c.uuid] = &r.now
	for uuid := range m.proving { // it is ours, though a container may hide that
		delete(strangers, uuid)
	}
	unread := map[string]bool{}
	for i := range c.readings {
		unread[keyOf(&c.readings[i].device)] = c.readings[i].device.Health != Healthy
	}
	for i, part := range r.slices {
		m.sensors[part.uuid] = &Sensors{At: r.now.At, TemperatureC: r.now.TemperatureC, Throttle: r.now.Throttle, MemoryUsed: r.slices[i].used, Processes: part.processes}
	}
	for _, v := range all {
		if why := strangers[v.key]; why == "" {
			delete(m.seen, v.key)
		} else if m.seen[v.key]++; m.seen[v.key] > 1 && v.signal == fine { // one that ends just now is gone at the next look
			v.signal, v.reason = foreign, why
		}
		if unread[v.key] && v.signal == fine {
			reread = true
			continue
		}
		m.tell(v.key, v.signal, v.reason, now)
	}
	m.mu.Unlock()
	m.publish()
	return r.stale, reread
}

// cardSignal signals something to a whole card and its slices; word is what a fault is counted by.
func (m *Monitor) cardSignal(c *card, s signal, word, reason string) {
	m.mu.Lock()
	now := m.cfg.Clock()
	keys := []string{c.uuid}
	if c.uuid == "" && len(c.readings) > 0 {
		keys[0] = keyOf(&c.readings[0].device)
	}
	for _, h := range c.slices {
		keys = append(keys, h.uuid)
	}
	for _, key := range keys {
		m.tellOf(key, s, word, reason, now)
	}
	m.mu.Unlock()
	m.publish()
}
