package metering

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of a Meter.
var (
	// ErrSlot means a slot that the node does not have, or one that is not free for what is asked of it.
	ErrSlot = errors.New("metering: slot cannot do that")
	// ErrLease means a lease that the meter does not know, or knows already.
	ErrLease = errors.New("metering: no such lease")
	// ErrConfig means a configuration that cannot work; what wraps it names the field.
	ErrConfig = errors.New("metering: bad configuration")
)

// MaxAhead is how far a bridge's word may be ahead of a node's clock before that counts as a sleep of the
// machine. Slewing over it at MaxSlew would take hours, in which nothing that the node reports fits what the
// bridge saw.
const MaxAhead = 5 * time.Second

// minuteCells is how many cells an aligned idle minute has, which may travel as one record.
const minuteCells = 12

// Config is what a Meter is set up with.
type Config struct {
	// Node is the peer that is metered; no default.
	Node protocol.PeerID
	// Slots is how many slots it has: its GPUs, or what a node without GPU offers; default 1.
	Slots int
	// MaxPending bounds the idle cells that are kept per slot while nobody asks for them; default 1,024, which
	// is 85 minutes. What is older goes unpaid: the node was not heard of anyway.
	MaxPending int
}

// DefaultConfig returns the defaults for a node.
func DefaultConfig(node protocol.PeerID) Config {
	return Config{Node: node, Slots: 1, MaxPending: 1024}
}

// Validate returns ErrConfig naming the field.
func (c *Config) Validate() error {
	switch {
	case c.Node == "":
		return fmt.Errorf("%w: Node is missing", ErrConfig)
	case c.Slots < 1 || c.Slots > 1<<12:
		return fmt.Errorf("%w: Slots is %d, want 1..4096", ErrConfig, c.Slots)
	case c.MaxPending < minuteCells:
		return fmt.Errorf("%w: MaxPending is %d, want at least %d", ErrConfig, c.MaxPending, minuteCells)
	}
	return nil
}

// Attempt is what a slot works for.
type Attempt struct {
	// Lease names the attempt.
	Lease protocol.LeaseID
	// Job is the lease's job.
	Job protocol.JobID
	// Chunk is the lease's chunk.
	Chunk protocol.ChunkID
	// Fence is the lease's fence.
	Fence uint64
}

// Claimed is what only the node can know of an attempt so far; nobody is paid for it (settlement.md 2).
type Claimed struct {
	// CPUMS is processor time in milliseconds.
	CPUMS int64
	// MemMiBS is memory × time in MiB·s.
	MemMiBS int64
	// PairRX and PairTX are bytes from and to peers for the attempt.
	PairRX, PairTX int64
}

// Totals are the three integrals of a slot since it first came up; their sum is its uptime exactly.
type Totals struct {
	// IdleMS is assignable time, milliseconds of the bridge's clock.
	IdleMS int64
	// PreparingMS is time from an accepted lease until its program runs.
	PreparingMS int64
	// WorkingMS is time until the lease ended.
	WorkingMS int64
}

// UptimeMS is the sum of the three.
func (t Totals) UptimeMS() int64 { return t.IdleMS + t.PreparingMS + t.WorkingMS }

// Meter keeps the timelines of a node's slots for one bridge and cuts them into usage records. It is safe for
// concurrent use; the now of its methods is a time.Now with its monotonic reading and should not go back (one
// that does counts as the latest).
type Meter struct {
	cfg Config

	mu       sync.Mutex // guards everything below
	clock    Clock
	last     int64 // the latest bridge time that was acted upon, Unix ms; 0 before the first
	slots    []slot
	attempts map[protocol.LeaseID]*attempt
}

// slot is the open end of a slot's timeline.
type slot struct {
	n       uint16
	up      bool
	state   protocol.UsageState // while up
	lease   protocol.LeaseID    // while preparing or working
	since   int64               // start of the open interval, Unix ms of the bridge; 0 while the clock is unknown
	idle    []idleCell          // closed and open idle cells that were not emitted, ascending
	emitted int64               // cells up to this one are gone: what comes late for them is unpaid
	totals  Totals
}

// idleCell is the idle time of a slot in one cell.
type idleCell struct {
	cell, first, last, ms int64
}

// attempt is the closed part of a lease's timeline.
type attempt struct {
	Attempt
	slots   []uint16
	spans   []span
	told    bool    // some of it was emitted
	claimed Claimed // what was put on emitted records
}

type span struct {
	slot     uint16
	state    protocol.UsageState
	from, to int64
}

// NewMeter returns a meter whose slots are all down and whose clock is unknown. It returns ErrConfig.
func NewMeter(cfg Config) (*Meter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Meter{cfg: cfg, slots: make([]slot, cfg.Slots), attempts: map[protocol.LeaseID]*attempt{}}
	for i := range m.slots {
		m.slots[i].n, m.slots[i].emitted = uint16(i), -1
	}
	return m, nil
}

// Hear takes the bridge's clock from a grant, a lease set or a counter-signature. Time before the first word
// is not metered: nobody could say when it was. A word may be late, never early: one that is further ahead than
// MaxAhead tells of a sleep that nobody noticed, and counts as a Suspend.
func (m *Meter) Hear(now, bridge time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.clock.Known()
	if gap := bridge.Sub(m.clock.At(now)); known && gap > MaxAhead {
		m.suspend(now, gap)
	}
	m.clock.Hear(now, bridge)
	if !known && m.clock.Known() {
		t := m.at(now)
		for i := range m.slots {
			m.slots[i].since = t
		}
	}
}

// BridgeTime is the bridge's clock as the node has it, zero before the first Hear.
func (m *Meter) BridgeTime(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock.At(now)
}

// at is the bridge's time in Unix ms, never going back; 0 while unknown.
func (m *Meter) at(now time.Time) int64 {
	if !m.clock.Known() {
		return 0
	}
	m.last = max(m.last, m.clock.At(now).UnixMilli())
	return m.last
}

// Slots returns the numbers of all slots.
func (m *Meter) Slots() []uint16 {
	out := make([]uint16, m.cfg.Slots)
	for i := range out {
		out[i] = uint16(i)
	}
	return out
}

// Up makes slots assignable: their idle time counts from now. A slot that is up stays as it is. It returns
// ErrSlot and then changes nothing.
func (m *Meter) Up(now time.Time, slots ...uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.at(now)
	return m.each(slots, func(s *slot) {
		if !s.up {
			s.up, s.state, s.since = true, protocol.UsageIdle, t
		}
	})
}

// Down ends the paid time of idle slots: paused, drained, given to somebody else, or off. A slot that
// has a lease stays as it is until the lease ends; then it is idle. It returns ErrSlot and then changes nothing.
func (m *Meter) Down(now time.Time, slots ...uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.at(now)
	return m.each(slots, func(s *slot) {
		if s.up && s.state == protocol.UsageIdle {
			m.close(s, t)
			s.up = false
		}
	})
}

// Suspend says that the machine slept for gap, which the monotonic clock did not count: every open interval
// ends where the sleep began, and the gap is down for all.
func (m *Meter) Suspend(now time.Time, gap time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.suspend(now, gap)
}

func (m *Meter) suspend(now time.Time, gap time.Duration) {
	t := m.at(now)
	for i := range m.slots {
		m.close(&m.slots[i], t)
	}
	m.clock.Skip(now, gap)
	t = m.at(now)
	for i := range m.slots {
		m.slots[i].since = t
	}
}

func (m *Meter) each(slots []uint16, f func(*slot)) error {
	for _, i := range slots {
		if int(i) >= len(m.slots) {
			return fmt.Errorf("%w: slot %d of %d", ErrSlot, i, len(m.slots))
		}
	}
	for _, i := range slots {
		f(&m.slots[i])
	}
	return nil
}

// Prepare says that a lease was accepted for idle slots, slot 0 if none is named: from now on they prepare.
// It returns ErrSlot for one that is not idle and ErrLease for a lease that has slots already.
func (m *Meter) Prepare(a Attempt, now time.Time, slots ...uint16) error {
	if len(slots) == 0 {
		slots = []uint16{0}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.attempts[a.Lease] != nil {
		return fmt.Errorf("%w: %s has slots already", ErrLease, a.Lease)
	}
	for k, i := range slots {
		if int(i) >= len(m.slots) || !m.slots[i].up || m.slots[i].state != protocol.UsageIdle || slices.Contains(slots[:k], i) {
			return fmt.Errorf("%w: slot %d is not idle", ErrSlot, i)
		}
	}
	t := m.at(now)
	m.attempts[a.Lease] = &attempt{Attempt: a, slots: slices.Clone(slots)}
	for _, i := range slots {
		s := &m.slots[i]
		m.close(s, t)
		s.state, s.lease = protocol.UsagePreparing, a.Lease
	}
	return nil
}

// Work says that the lease's program runs from now on. It returns ErrLease.
func (m *Meter) Work(lease protocol.LeaseID, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.attempts[lease]
	if a == nil {
		return fmt.Errorf("%w: %s", ErrLease, lease)
	}
	m.move(a, protocol.UsageWorking, m.at(now))
	return nil
}

// move closes the open intervals of a lease's slots and lets them go on in another state.
func (m *Meter) move(a *attempt, to protocol.UsageState, t int64) {
	for _, i := range a.slots {
		m.close(&m.slots[i], t)
		m.slots[i].state = to
	}
}

// Finish ends a lease: its slots are idle again, and what was not reported of it yet is returned as records,
// at least one, at most 2 per slot and cell. A slot that it leaves can be taken down before the next Prepare.
// It returns ErrLease.
func (m *Meter) Finish(lease protocol.LeaseID, now time.Time, c Claimed) ([]protocol.UsageRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.attempts[lease]
	if a == nil {
		return nil, fmt.Errorf("%w: %s", ErrLease, lease)
	}
	t := m.at(now)
	m.move(a, protocol.UsageIdle, t)
	delete(m.attempts, lease)
	if len(a.spans) == 0 && !a.told && t > 0 { // shorter than a millisecond: it still leaves its trace
		a.spans = []span{{a.slots[0], protocol.UsageWorking, t, t}}
	}
	return m.records(a, t, c), nil
}

// Interim returns the closed cells of a lease that runs on; call it once a minute, so that a crash costs
// little. It returns ErrLease.
func (m *Meter) Interim(lease protocol.LeaseID, now time.Time, c Claimed) ([]protocol.UsageRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.attempts[lease]
	if a == nil {
		return nil, fmt.Errorf("%w: %s", ErrLease, lease)
	}
	t := m.at(now)
	for _, i := range a.slots {
		m.close(&m.slots[i], t)
	}
	return m.records(a, t-t%protocol.CellMillis, c), nil
}

// close ends a slot's open interval at t and begins the next one there.
func (m *Meter) close(s *slot, t int64) {
	from := s.since
	s.since = t
	if !s.up || from == 0 || t <= from {
		return
	}
	switch s.state {
	case protocol.UsageIdle:
		s.totals.IdleMS += t - from
		m.addIdle(s, from, t)
		return
	case protocol.UsagePreparing:
		s.totals.PreparingMS += t - from
	case protocol.UsageWorking:
		s.totals.WorkingMS += t - from
	}
	if a := m.attempts[s.lease]; a != nil {
		if k := len(a.spans) - 1; k >= 0 && a.spans[k].slot == s.n && a.spans[k].state == s.state && a.spans[k].to == from {
			a.spans[k].to = t // an Interim has only cut it
			return
		}
		a.spans = append(a.spans, span{s.n, s.state, from, t})
	}
}

// records cuts a lease's closed spans up to until into records, one per slot, state and cell, and keeps the
// rest. Claimed quantities are spread over the records by their duration and sum exactly.
func (m *Meter) records(a *attempt, until int64, c Claimed) []protocol.UsageRecord {
	var out []protocol.UsageRecord
	var rest []span
	for _, s := range a.spans {
		for from := s.from; from < min(s.to, until) || from == s.to && from == s.from; {
			to := min(s.to, until, from-from%protocol.CellMillis+protocol.CellMillis)
			out = m.add(out, a, s, from, to)
			if from == to {
				break
			}
			from = to
		}
		if s.to > until {
			s.from = max(s.from, until)
			rest = append(rest, s)
		}
	}
	a.spans = rest
	a.told = a.told || len(out) > 0
	a.claim(out, c)
	return out
}

// add puts a piece of a span, which lies in one cell, into the record of its cell.
func (m *Meter) add(out []protocol.UsageRecord, a *attempt, s span, from, to int64) []protocol.UsageRecord {
	id := protocol.NewRecordID(m.cfg.Node, a.Lease[:], s.slot, s.state, uint64(from/protocol.CellMillis))
	for i := len(out) - 1; i >= 0 && i >= len(out)-4; i-- {
		if r := &out[i]; r.ID == id { // the machine slept in between
			r.EndMS, r.DurationMS, r.GPUMS = to, r.DurationMS+to-from, r.GPUMS+to-from
			return out
		}
	}
	return append(out, protocol.UsageRecord{
		ID: id, Lease: a.Lease, Job: a.Job, Chunk: a.Chunk, Fence: a.Fence, Slot: s.slot, State: s.state,
		StartMS: from, EndMS: to, DurationMS: to - from, GPUMS: to - from,
	})
}

// claim spreads what was claimed since the last records over new ones.
func (a *attempt) claim(out []protocol.UsageRecord, c Claimed) {
	var all int64
	for i := range out {
		all += max(1, out[i].DurationMS)
	}
	if all == 0 {
		return
	}
	spread := func(total int64, done *int64, field func(*protocol.UsageRecord) *int64) {
		left, ms := total-*done, all
		if left <= 0 {
			return
		}
		*done = total
		for i := range out {
			d := max(1, out[i].DurationMS)
			part := int64(float64(left) * (float64(d) / float64(ms)))
			if d == ms {
				part = left
			}
			*field(&out[i]) = part
			left, ms = left-part, ms-d
		}
	}
	spread(c.CPUMS, &a.claimed.CPUMS, func(r *protocol.UsageRecord) *int64 { return &r.CPUMS })
	spread(c.MemMiBS, &a.claimed.MemMiBS, func(r *protocol.UsageRecord) *int64 { return &r.MemMiBS })
	spread(c.PairRX, &a.claimed.PairRX, func(r *protocol.UsageRecord) *int64 { return &r.PairRX })
	spread(c.PairTX, &a.claimed.PairTX, func(r *protocol.UsageRecord) *int64 { return &r.PairTX })
}

// addIdle puts [from, to) into the idle cells of a slot.
func (m *Meter) addIdle(s *slot, from, to int64) {
	for from < to {
		cell := from / protocol.CellMillis
		end := min(to, (cell+1)*protocol.CellMillis)
		switch k := len(s.idle) - 1; {
		case cell <= s.emitted:
		case k >= 0 && s.idle[k].cell == cell:
			s.idle[k].last, s.idle[k].ms = end, s.idle[k].ms+end-from
		default:
			s.idle = append(s.idle, idleCell{cell, from, end, end - from})
		}
		from = end
	}
	if n := len(s.idle) - m.cfg.MaxPending; n > 0 {
		s.idle = slices.Delete(s.idle, 0, n)
	}
}

// Idle returns the idle time of all slots that was not reported yet, apart from the minute that has not ended:
// whole aligned minutes are one record each. Of a slot that is down everything is returned.
func (m *Meter) Idle(now time.Time) []protocol.UsageRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.at(now)
	var out []protocol.UsageRecord
	for i := range m.slots {
		s := &m.slots[i]
		if s.up && s.state == protocol.UsageIdle {
			m.close(s, t)
		}
		until := t - t%(minuteCells*protocol.CellMillis)
		if !s.up {
			until = t + protocol.CellMillis
		}
		n := 0
		for n < len(s.idle) && s.idle[n].cell*protocol.CellMillis < until {
			n++
		}
		out = m.idleRecords(out, uint16(i), s.idle[:n])
		if n > 0 {
			s.emitted = s.idle[n-1].cell
			s.idle = slices.Clone(s.idle[n:])
		}
	}
	return out
}

func (m *Meter) idleRecords(out []protocol.UsageRecord, n uint16, cells []idleCell) []protocol.UsageRecord {
	for k := 0; k < len(cells); {
		c := cells[k]
		k++
		if whole(cells[k-1:]) {
			k += minuteCells - 1
			c.last, c.ms = cells[k-1].last, minuteCells*protocol.CellMillis
		}
		out = append(out, protocol.UsageRecord{
			ID: protocol.NewRecordID(m.cfg.Node, nil, n, protocol.UsageIdle, uint64(c.cell)), Slot: n, State: protocol.UsageIdle,
			StartMS: c.first, EndMS: c.last, DurationMS: c.ms,
		})
	}
	return out
}

// whole says whether cells begin with an aligned minute without a gap.
func whole(cells []idleCell) bool {
	if len(cells) < minuteCells || cells[0].cell%minuteCells != 0 {
		return false
	}
	for i, c := range cells[:minuteCells] {
		if c.cell != cells[0].cell+int64(i) || c.ms != protocol.CellMillis {
			return false
		}
	}
	return true
}

// Totals returns the integrals of a slot up to now; zero for a slot that the node does not have.
func (m *Meter) Totals(n uint16, now time.Time) Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int(n) >= len(m.slots) {
		return Totals{}
	}
	s := m.slots[n]
	t, tot := m.at(now), s.totals
	if !s.up || s.since == 0 || t <= s.since {
		return tot
	}
	switch s.state {
	case protocol.UsageIdle:
		tot.IdleMS += t - s.since
	case protocol.UsagePreparing:
		tot.PreparingMS += t - s.since
	case protocol.UsageWorking:
		tot.WorkingMS += t - s.since
	}
	return tot
}
