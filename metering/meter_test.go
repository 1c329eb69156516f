package metering

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sunday is 2026-01-04T00:00Z, which begins a cell, a minute, a day and a week.
var sunday = time.UnixMilli(1_767_484_800_000).UTC()

// local is the node's own clock, far from the bridge's.
var local = time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)

var testNode = func() protocol.PeerID {
	b, err := hex.DecodeString("002408011220")
	if err != nil {
		panic(err)
	}
	return protocol.PeerID(append(b, bytes.Repeat([]byte{1}, 32)...))
}()

func lease(i int) Attempt {
	return Attempt{Lease: protocol.LeaseID{byte(i), byte(i >> 8), byte(i >> 16), 1}, Job: protocol.JobID{2}, Chunk: protocol.ChunkID{byte(i), 3}, Fence: uint64(i + 1)}
}

func newMeter(t testing.TB, slots int) *Meter {
	t.Helper()
	cfg := DefaultConfig(testNode)
	cfg.Slots = slots
	m, err := NewMeter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// after is the node's time some seconds after the start of its meter.
func after(s float64) time.Time { return local.Add(time.Duration(s * float64(time.Second))) }

func sums(records []protocol.UsageRecord) (n map[protocol.UsageState]int, ms map[protocol.UsageState]int64) {
	n, ms = map[protocol.UsageState]int{}, map[protocol.UsageState]int64{}
	for _, r := range records {
		n[r.State]++
		ms[r.State] += r.DurationMS
	}
	return n, ms
}

func valid(t testing.TB, records []protocol.UsageRecord) {
	t.Helper()
	for i := range records {
		if err := records[i].Validate(testNode); err != nil {
			t.Fatalf("record %+v: %v", records[i], err)
		}
	}
}

// TestTimelineOfTheDesign is the row of settlement.md 13: a slot is up [0, 60) s, preparing [12.3, 17.9), working
// [17.9, 48.25).
func TestTimelineOfTheDesign(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	ok(t, m.Prepare(lease(1), after(12.3)))
	ok(t, m.Work(lease(1).Lease, after(17.9)))
	records, err := m.Finish(lease(1).Lease, after(48.25), Claimed{CPUMS: 1001, MemMiBS: 7})
	ok(t, err)
	var cpu, mem int64
	for _, r := range records {
		cpu, mem = cpu+r.CPUMS, mem+r.MemMiBS
		if r.GPUMS != r.DurationMS || r.Fence != 2 || r.Job != lease(1).Job {
			t.Errorf("record %+v", r)
		}
	}
	if cpu != 1001 || mem != 7 {
		t.Errorf("claims sum to %d ms, %d MiB·s, want 1001, 7", cpu, mem)
	}
	records = append(records, m.Idle(after(60))...)
	valid(t, records)
	n, ms := sums(records)
	for state, want := range map[protocol.UsageState][2]int64{protocol.UsageIdle: {6, 24050}, protocol.UsagePreparing: {2, 5600}, protocol.UsageWorking: {7, 30350}} {
		if int64(n[state]) != want[0] || ms[state] != want[1] {
			t.Errorf("%s: %d ms in %d records, want %d in %d", state, ms[state], n[state], want[1], want[0])
		}
	}
	if got := m.Totals(0, after(60)); got != (Totals{24050, 5600, 30350}) || got.UptimeMS() != 60000 {
		t.Errorf("totals %+v", got)
	}
	if again := m.Idle(after(60)); len(again) != 0 {
		t.Errorf("the same idle time is reported twice: %+v", again)
	}
}

func TestRecordIDIsThatOfTheDesign(t *testing.T) {
	var l [16]byte
	for i := range l {
		l[i] = byte(i)
	}
	id := protocol.NewRecordID(testNode, l[:], 0, protocol.UsageWorking, 353496960)
	if got := hex.EncodeToString(id[:]); got != "f4cace60021e617064712392b68c7492" {
		t.Errorf("record ID is %s", got)
	}
	if cell := sunday.UnixMilli() / protocol.CellMillis; cell != 353496960 {
		t.Errorf("2026-01-04 is cell %d", cell)
	}
}

func TestWholeIdleMinutesAreOneRecord(t *testing.T) {
	m := newMeter(t, 2)
	m.Hear(local, sunday.Add(-7*time.Second))
	ok(t, m.Up(local, m.Slots()...))
	records := m.Idle(after(7 + 130))
	valid(t, records)
	// The minute before has 2 cells, the two whole ones are one record each, the last is not over.
	if n, ms := sums(records); n[protocol.UsageIdle] != 2*4 || ms[protocol.UsageIdle] != 2*127_000 {
		t.Errorf("%d records of %d ms, want 8 of 254000", n[protocol.UsageIdle], ms[protocol.UsageIdle])
	}
	ok(t, m.Down(after(7+130), 1))
	if records = m.Idle(after(7 + 130)); len(records) != 2 || records[0].Slot != 1 || records[1].DurationMS != 5000 {
		t.Errorf("of the slot that went down %+v came, want its last 2 cells", records)
	}
}

func TestTimeBeforeTheBridgesFirstWordIsNotMetered(t *testing.T) {
	m := newMeter(t, 1)
	ok(t, m.Up(local, m.Slots()...))
	ok(t, m.Prepare(lease(1), after(1)))
	ok(t, m.Work(lease(1).Lease, after(2)))
	m.Hear(after(5), sunday)
	records, err := m.Finish(lease(1).Lease, after(8), Claimed{})
	ok(t, err)
	if len(records) != 1 || records[0].StartMS != sunday.UnixMilli() || records[0].DurationMS != 3000 {
		t.Errorf("records %+v, want 3 s of work", records)
	}
	if got := m.Totals(0, after(8)).UptimeMS(); got != 3000 {
		t.Errorf("uptime %d, want 3000", got)
	}
}

func TestAttemptsShorterThanAMillisecondLeaveATrace(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	at := local.Add(1500 * time.Microsecond)
	ok(t, m.Prepare(lease(1), at))
	ok(t, m.Work(lease(1).Lease, at))
	records, err := m.Finish(lease(1).Lease, at, Claimed{CPUMS: 3})
	ok(t, err)
	valid(t, records)
	if len(records) != 1 || records[0].State != protocol.UsageWorking || records[0].DurationMS != 0 || records[0].CPUMS != 3 {
		t.Errorf("records %+v", records)
	}
}

func TestALeaseMayHaveSeveralSlots(t *testing.T) {
	m := newMeter(t, 3)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	ok(t, m.Prepare(lease(1), after(1), 0, 2))
	ok(t, m.Work(lease(1).Lease, after(2)))
	records, err := m.Finish(lease(1).Lease, after(7), Claimed{})
	ok(t, err)
	valid(t, records)
	if n, ms := sums(records); ms[protocol.UsageWorking] != 2*5000 || n[protocol.UsageWorking] != 4 || ms[protocol.UsagePreparing] != 2*1000 {
		t.Errorf("records %+v", records)
	}
	if got := m.Totals(1, after(7)); got != (Totals{IdleMS: 7000}) {
		t.Errorf("the third slot has %+v", got)
	}
}

func TestInterimReportsClosedCellsOnce(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	ok(t, m.Prepare(lease(1), after(3)))
	ok(t, m.Work(lease(1).Lease, after(4)))
	first, err := m.Interim(lease(1).Lease, after(12), Claimed{CPUMS: 100})
	ok(t, err)
	again, err := m.Interim(lease(1).Lease, after(14), Claimed{CPUMS: 110})
	ok(t, err)
	last, err := m.Finish(lease(1).Lease, after(17), Claimed{CPUMS: 150})
	ok(t, err)
	valid(t, append(append(first, again...), last...))
	if _, ms := sums(first); ms[protocol.UsagePreparing] != 1000 || ms[protocol.UsageWorking] != 6000 {
		t.Errorf("interim %+v", first)
	}
	if len(again) != 0 {
		t.Errorf("the open cell was reported: %+v", again)
	}
	var cpu int64
	ids := map[protocol.RecordID]bool{}
	for _, r := range append(first, last...) {
		cpu += r.CPUMS
		if ids[r.ID] {
			t.Errorf("record %+v comes twice", r)
		}
		ids[r.ID] = true
	}
	if _, ms := sums(last); ms[protocol.UsageWorking] != 7000 || cpu != 150 {
		t.Errorf("%d ms of processor time, last %+v", cpu, last)
	}
}

func TestSleepOfTheMachineIsDown(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	ok(t, m.Prepare(lease(1), after(1)))
	ok(t, m.Work(lease(1).Lease, after(1)))
	m.Suspend(after(2), 100*time.Second) // it slept at 2, the monotonic clock did not count it
	records, err := m.Finish(lease(1).Lease, after(4), Claimed{})
	ok(t, err)
	valid(t, records)
	if _, ms := sums(records); ms[protocol.UsageWorking] != 3000 || len(records) != 2 {
		t.Errorf("records %+v, want 1 s before and 2 s after", records)
	}
	if got := m.BridgeTime(after(4)); !got.Equal(sunday.Add(104 * time.Second)) {
		t.Errorf("the bridge's time is %s", got)
	}
	// A sleep inside one cell: the record has a hole.
	ok(t, m.Prepare(lease(2), after(6)))
	m.Suspend(after(6.5), time.Second)
	records, err = m.Finish(lease(2).Lease, after(7), Claimed{})
	ok(t, err)
	valid(t, records)
	if len(records) != 1 || records[0].DurationMS != 1000 || records[0].EndMS-records[0].StartMS != 2000 {
		t.Errorf("records %+v", records)
	}
}

func TestASleepThatNobodyNoticedIsFoundByTheBridgesWord(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	m.Hear(after(10), sunday.Add(14*time.Second)) // slewed
	if got := m.BridgeTime(after(10)); !got.Equal(sunday.Add(10 * time.Second)) {
		t.Errorf("4 s ahead made the clock step to %s", got)
	}
	m.Hear(after(20), sunday.Add(time.Hour))
	if got := m.BridgeTime(after(20)); !got.Equal(sunday.Add(time.Hour)) {
		t.Errorf("the bridge's time is %s", got)
	}
	if got := m.Totals(0, after(30)).UptimeMS(); got < 30_000 || got > 30_020 {
		t.Errorf("uptime %d ms, want that of the node's own clock", got)
	}
	m.Hear(after(30), sunday) // and it never goes back
	if got := m.BridgeTime(after(30)); got.Before(sunday.Add(time.Hour + 10*time.Second)) {
		t.Errorf("the bridge's time went back to %s", got)
	}
}

func TestACellIsReportedOnceAlthoughTheSlotComesUpAgain(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, 0))
	ok(t, m.Down(after(1), 0))
	records := m.Idle(after(1))
	ok(t, m.Up(after(2), 0))
	ok(t, m.Down(after(7), 0))
	records = append(records, m.Idle(after(7))...)
	valid(t, records)
	if len(records) != 2 || records[0].DurationMS != 1000 || records[1].StartMS != sunday.UnixMilli()+5000 || records[1].DurationMS != 2000 {
		t.Errorf("records %+v, want 1 s of the first cell and 2 s of the second", records)
	}
}

func TestWhatASlotCannotDoIsRefused(t *testing.T) {
	m := newMeter(t, 2)
	m.Hear(local, sunday)
	if err := m.Prepare(lease(1), local); !errors.Is(err, ErrSlot) {
		t.Errorf("preparing a slot that is down gives %v", err)
	}
	if err := m.Up(local, 2); !errors.Is(err, ErrSlot) {
		t.Errorf("a slot too many gives %v", err)
	}
	ok(t, m.Up(local, m.Slots()...))
	for _, slots := range [][]uint16{{7}, {0, 0}} {
		if err := m.Prepare(lease(1), local, slots...); !errors.Is(err, ErrSlot) {
			t.Errorf("slots %v give %v", slots, err)
		}
	}
	ok(t, m.Prepare(lease(1), local, 1))
	if err := m.Prepare(lease(2), local, 1); !errors.Is(err, ErrSlot) {
		t.Errorf("a busy slot gives %v", err)
	}
	if err := m.Prepare(lease(1), local, 0); !errors.Is(err, ErrLease) {
		t.Errorf("a lease with slots gives %v", err)
	}
	ok(t, m.Down(local, 1)) // it is busy: nothing happens
	_, err := m.Finish(lease(1).Lease, after(1), Claimed{})
	ok(t, err)
	if got := m.Totals(1, after(3)); got != (Totals{IdleMS: 2000, PreparingMS: 1000}) {
		t.Errorf("totals %+v", got)
	}
	for what, err := range map[string]error{
		"finishing twice": second(m.Finish(lease(1).Lease, after(1), Claimed{})), "work": m.Work(lease(1).Lease, local), "interim": second(m.Interim(lease(9).Lease, local, Claimed{})),
	} {
		if !errors.Is(err, ErrLease) {
			t.Errorf("%s gives %v", what, err)
		}
	}
	for _, cfg := range []Config{{Slots: 1, MaxPending: 99}, {Node: testNode, MaxPending: 99}, {Node: testNode, Slots: 1}} {
		if _, err := NewMeter(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v gives %v", cfg, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestIdleTimeOfALongSilenceIsBounded(t *testing.T) {
	m := newMeter(t, 1)
	m.Hear(local, sunday)
	ok(t, m.Up(local, m.Slots()...))
	for s := 0.0; s <= 24*3600; s += 60 {
		m.Totals(0, after(s))
		ok(t, m.Prepare(lease(1), after(s)))
		_, err := m.Finish(lease(1).Lease, after(s), Claimed{})
		ok(t, err)
	}
	if records := m.Idle(after(24 * 3600)); len(records) > 1024 || records[len(records)-1].EndMS != sunday.Add(24*time.Hour).UnixMilli() {
		t.Errorf("%d records, the last %+v", len(records), records[len(records)-1])
	}
}

// TestClockSlewsAndNeverSteps draws words of a bridge that jumps: the map is monotone, within 500 ppm of the
// node's own passing of time, and comes to the bridge's time when left alone.
func TestClockSlewsAndNeverSteps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var c Clock
		if !c.At(local).IsZero() || c.Known() {
			t.Fatal("a clock that nobody set knows the time")
		}
		now := local
		c.Hear(now, sunday)
		last := c.At(now)
		for range 100 {
			d := time.Duration(rng.Int64N(int64(10 * time.Second)))
			now = now.Add(d)
			at := c.At(now)
			if off := at.Sub(last) - d; off.Abs() > time.Duration(float64(d)*MaxSlew)+time.Nanosecond {
				t.Fatalf("in %s the clock moved %s", d, at.Sub(last))
			}
			last = at
			c.Hear(now, at.Add(time.Duration(rng.Int64N(int64(200*time.Millisecond)))-100*time.Millisecond))
			if got := c.At(now); !got.Equal(at) {
				t.Fatalf("a word made the clock step by %s", got.Sub(at))
			}
			c.Hear(now.Add(-time.Second), sunday.Add(time.Hour)) // old news
		}
		c.Hear(now, last.Add(80*time.Millisecond))
		later := now.Add(200 * time.Second)
		if got, want := c.At(later), last.Add(200*time.Second+80*time.Millisecond); !got.Equal(want) {
			t.Fatalf("left alone it comes to %s, want %s", got, want)
		}
	}
}

// TestTimelineIsExact is the model test of settlement.md 16: random histories of leases, pauses, suspends,
// words of the bridge and reports; the three integrals, and the records of everything, sum to the uptime of a
// model that only knows when a slot was up.
func TestTimelineIsExact(t *testing.T) {
	histories := 1500
	if testing.Short() {
		histories = 300
	}
	for seed := range histories {
		history(t, uint64(seed))
	}
}

type model struct {
	rng     *rand.Rand
	m       *Meter
	now     time.Time
	up      [2]bool
	busy    [2]int // lease number, 0 is none
	uptime  [2]int64
	at      int64 // bridge ms up to which uptime is counted
	records []protocol.UsageRecord
	leases  int
}

func history(t *testing.T, seed uint64) {
	h := &model{rng: rand.New(rand.NewPCG(seed, 9)), m: newMeter(t, 2), now: local}
	h.m.Hear(local, sunday.Add(time.Duration(h.rng.Int64N(int64(time.Hour)))))
	h.at = h.m.BridgeTime(h.now).UnixMilli()
	for range 5 + h.rng.IntN(60) {
		h.now = h.now.Add(time.Duration(h.rng.Int64N(int64(time.Duration(h.rng.IntN(12000)+1) * time.Millisecond))))
		h.pass()
		h.step(t, h.rng.IntN(2))
	}
	for s := range 2 {
		if h.busy[s] > 0 {
			h.finish(t, s)
		}
		ok(t, h.m.Down(h.now, uint16(s)))
	}
	h.records = append(h.records, h.m.Idle(h.now)...)
	valid(t, h.records)
	var got [2]int64
	ids := map[protocol.RecordID]bool{}
	cells := map[[2]int64]int64{}
	for _, r := range h.records {
		got[r.Slot] += r.DurationMS
		if ids[r.ID] {
			t.Fatalf("seed %d: record %+v comes twice", seed, r)
		}
		ids[r.ID] = true
		if r.DurationMS <= protocol.CellMillis {
			cells[[2]int64{int64(r.Slot), r.StartMS / protocol.CellMillis}] += r.DurationMS
		}
	}
	for cell, ms := range cells {
		if ms > protocol.CellMillis {
			t.Fatalf("seed %d: %d ms in cell %v", seed, ms, cell)
		}
	}
	for s := range 2 {
		tot := h.m.Totals(uint16(s), h.now)
		if tot.UptimeMS() != h.uptime[s] || got[s] != h.uptime[s] {
			t.Fatalf("seed %d, slot %d: totals %+v, records %d ms, uptime %d", seed, s, tot, got[s], h.uptime[s])
		}
	}
}

// pass counts uptime by the bridge's clock.
func (h *model) pass() {
	at := h.m.BridgeTime(h.now).UnixMilli()
	for s := range 2 {
		if h.up[s] {
			h.uptime[s] += at - h.at
		}
	}
	h.at = at
}

func (h *model) finish(t *testing.T, s int) {
	r, err := h.m.Finish(lease(h.busy[s]).Lease, h.now, Claimed{CPUMS: h.rng.Int64N(5000)})
	ok(t, err)
	h.records, h.busy[s] = append(h.records, r...), 0
}

func (h *model) step(t *testing.T, s int) {
	n := uint16(s)
	switch h.rng.IntN(8) {
	case 0: // going down and up within a cell would lose time on purpose: stay down over its end
		if h.busy[s] == 0 && h.up[s] {
			ok(t, h.m.Down(h.now, n))
			h.up[s] = false
			h.now = h.now.Add(6 * time.Second)
			h.pass()
		}
	case 1, 2:
		if h.busy[s] == 0 && h.up[s] {
			h.leases++
			h.busy[s] = h.leases
			ok(t, h.m.Prepare(lease(h.leases), h.now, n))
		}
	case 3:
		if h.busy[s] > 0 {
			ok(t, h.m.Work(lease(h.busy[s]).Lease, h.now))
		}
	case 4:
		if h.busy[s] > 0 {
			h.finish(t, s)
		}
	case 5:
		if h.busy[s] > 0 {
			r, err := h.m.Interim(lease(h.busy[s]).Lease, h.now, Claimed{})
			ok(t, err)
			h.records = append(h.records, r...)
		}
		h.m.Hear(h.now, h.m.BridgeTime(h.now).Add(time.Duration(h.rng.Int64N(int64(time.Second)))-500*time.Millisecond))
	case 6:
		h.records = append(h.records, h.m.Idle(h.now)...)
		if h.rng.IntN(4) == 0 {
			h.m.Suspend(h.now, time.Duration(h.rng.Int64N(int64(30*time.Second))))
			h.at = h.m.BridgeTime(h.now).UnixMilli()
		}
	case 7:
		if !h.up[s] {
			ok(t, h.m.Up(h.now, n))
			h.up[s] = true
		}
	}
}
