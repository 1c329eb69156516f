package metering

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestAHonestReceiptIsSettledAsItStands(t *testing.T) {
	b := newBench(t)
	a := b.grant(1, 1, 8)
	c := b.check(t, 8, b.rec(a, 0, protocol.UsagePreparing, 1, 2), b.rec(a, 0, protocol.UsageWorking, 2, 5), b.rec(a, 0, protocol.UsageWorking, 5, 7.9))
	for _, v := range c.Verdicts {
		if v.Verdict != protocol.VerdictOK || v.Reason != "" {
			t.Errorf("verdict %+v", v)
		}
	}
	want := LeaseUse{Lease: a.Lease, Job: a.Job, Records: 3, PreparingMS: 1000, WorkingMS: 5900, GPUMS: 5900}
	if len(c.Leases) != 1 || c.Leases[0] != want {
		t.Errorf("use %+v, want %+v", c.Leases, want)
	}
	if len(c.Days) != 1 || c.Days[0] != (DayUse{"2026-01-04", 0, 1000, 5900}) || c.Lowered+c.Refused != 0 {
		t.Errorf("days %+v", c.Days)
	}
	cs := c.CounterSign(b.node, at(8))
	raw, err := cs.Seal(b.bridgeKey)
	ok(t, err)
	back, err := protocol.OpenCounterSign(raw, b.bridge)
	ok(t, err)
	ok(t, b.chain.Countersigned(&back))
	if len(b.chain.Pending()) != 0 || b.book.Position(b.node) != b.chain.Position() {
		t.Error("node and bridge stand at different places")
	}
}

// TestRecordsAreRefusedByCode spoils a good record in each way; every verdict of settlement.md 2 appears.
func TestRecordsAreRefusedByCode(t *testing.T) {
	type u = protocol.UsageRecord
	for name, tt := range map[string]struct {
		spoil   func(*bench, *u)
		verdict string
		ms      int64
		text    string
	}{
		"untouched":              {func(*bench, *u) {}, protocol.VerdictOK, 2000, ""},
		"a little too long":      {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 2, 4.04) }, protocol.VerdictOK, 2040, ""},
		"longer than witnessed":  {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 0.5, 4.5) }, protocol.VerdictLowered, 3000, "4000 ms claimed"},
		"a clock that is off":    {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 0, 1) }, protocol.VerdictOK, 1000, ""},
		"before its lease":       {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, -2, -1) }, protocol.VerdictUnwitnessed, 0, "was held from"},
		"after its lease":        {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 6, 7) }, protocol.VerdictUnwitnessed, 0, "was held from"},
		"no such lease":          {func(b *bench, r *u) { *r = b.rec(lease(9), 0, r.State, 2, 4) }, protocol.VerdictNotLeased, 0, "no lease"},
		"another node's lease":   {func(b *bench, r *u) { l := b.w.leases[r.Lease]; l.Node = b.bridge; b.w.leases[r.Lease] = l }, protocol.VerdictNotLeased, 0, "another node"},
		"another job":            {func(_ *bench, r *u) { r.Job[0]++ }, protocol.VerdictNotLeased, 0, "another job"},
		"another fence":          {func(_ *bench, r *u) { r.Fence++ }, protocol.VerdictNotLeased, 0, "fence"},
		"another chunk":          {func(_ *bench, r *u) { r.Chunk[0]++ }, protocol.VerdictNotLeased, 0, "chunk"},
		"more than the interval": {func(_ *bench, r *u) { r.DurationMS, r.GPUMS = 2001, 2001 }, protocol.VerdictBounds, 0, "2001 ms in an interval of 2000"},
		"more GPU than time":     {func(_ *bench, r *u) { r.GPUMS++ }, protocol.VerdictBounds, 0, "GPU"},
		"less GPU than time":     {func(_ *bench, r *u) { r.GPUMS = 0 }, protocol.VerdictOK, 2000, ""},
		"too much processor":     {func(_ *bench, r *u) { r.CPUMS = 4*2050 + 1 }, protocol.VerdictBounds, 0, "4 cores"},
		"much processor":         {func(_ *bench, r *u) { r.CPUMS = 4 * 2050 }, protocol.VerdictOK, 2000, ""},
		"a slot too many":        {func(b *bench, r *u) { *r = b.rec(lease(1), 2, r.State, 2, 4) }, protocol.VerdictBounds, 0, "slot 2 of a node with 2"},
		"the future":             {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 65.5, 66) }, protocol.VerdictFuture, 0, "ahead"},
		"nearly the future":      {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, 64, 65) }, protocol.VerdictUnwitnessed, 0, ""},
		"too old":                {func(b *bench, r *u) { *r = b.rec(lease(1), 0, r.State, -36*86400, -36*86400+1) }, protocol.VerdictTooOld, 0, "older than"},
	} {
		b := newBench(t)
		b.book.cfg.Machine = func(protocol.PeerID) (int, int) { return 2, 4 }
		a := b.grant(1, 1, 4)
		r := b.rec(a, 0, protocol.UsageWorking, 2, 4)
		tt.spoil(b, &r)
		c := b.check(t, 5, r)
		v := c.Verdicts[0]
		if v.Verdict != tt.verdict || v.DurationMS > tt.ms || v.DurationMS < tt.ms-150 || v.ID != r.ID || !strings.Contains(v.Reason, tt.text) {
			t.Errorf("%s: %+v, want %s of %d ms about %q", name, v, tt.verdict, tt.ms, tt.text)
		}
		if counts(v.Verdict) != (c.Refused == 0) || v.GPUMS > v.DurationMS || (v.Verdict == protocol.VerdictLowered) != (c.Lowered == 1) {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestRecordsThatAreNotOfTheirContentAreOutOfBounds: protocol opens no receipt of them, so Check meets them in a
// program's mistake only; it still gives a verdict.
func TestRecordsThatAreNotOfTheirContentAreOutOfBounds(t *testing.T) {
	b := newBench(t)
	a := b.grant(1, 1, 4)
	r := b.rec(a, 0, protocol.UsageWorking, 2, 4)
	r.ID[0]++
	receipt := protocol.Receipt{Format: 1, Node: b.node, Bridge: b.bridge, Seq: 1, Records: []protocol.UsageRecord{r}}
	c, err := b.book.Check(&receipt, [32]byte{1}, b.w, at(5))
	ok(t, err)
	if c.Verdicts[0].Verdict != protocol.VerdictBounds {
		t.Errorf("verdict %+v", c.Verdicts[0])
	}
}

func TestOneLeaseIsNotPaidTwiceForItsTime(t *testing.T) {
	b := newBench(t)
	a := b.grant(1, 1, 3) // 2 s, claimed in both states
	c := b.check(t, 5, b.rec(a, 0, protocol.UsagePreparing, 1, 3), b.rec(a, 0, protocol.UsageWorking, 1, 3))
	if got := c.Leases[0]; got.PreparingMS+got.WorkingMS > 2000 || c.Lowered != 1 {
		t.Errorf("%+v of a lease of 2 s", got)
	}
	// A slot that the lease does not have.
	a = b.grant(2, 6, 9)
	c = b.check(t, 9, b.rec(a, 0, protocol.UsageWorking, 6, 9), b.rec(a, 1, protocol.UsageWorking, 6, 9))
	if c.Verdicts[0].Verdict != protocol.VerdictOK || c.Verdicts[1].Verdict != protocol.VerdictNotLeased {
		t.Errorf("verdicts %+v", c.Verdicts)
	}
	// The same time over again in other cells, within the clocks' skew and in receipts of their own.
	for _, from := range []float64{4.1, 10} {
		if v := b.verdict(t, 12, b.rec(a, 0, protocol.UsageWorking, from, from+.5)); v.DurationMS != 0 || v.Verdict != protocol.VerdictLowered {
			t.Errorf("after all of its 3 s: %+v", v)
		}
	}
	if v := b.verdict(t, 12, b.rec(a, 1, protocol.UsageWorking, 6, 9)); v.Verdict != protocol.VerdictNotLeased {
		t.Errorf("another slot in another receipt: %+v", v)
	}
	// Two slots, of which the bridge knows that they worked 1.5 s at most.
	a = b.grant(3, 11, 14)
	l := b.w.leases[a.Lease]
	l.Slots, l.Ran = 2, 1500*time.Millisecond
	b.w.leases[a.Lease] = l
	c = b.check(t, 14, b.rec(a, 0, protocol.UsageWorking, 11, 14), b.rec(a, 1, protocol.UsageWorking, 11, 14))
	if got := c.Leases[0]; got.WorkingMS != 3000 || c.Lowered != 2 {
		t.Errorf("2 slots that ran 1.5 s are %+v", got)
	}
}

func TestOverlapsWithinASlotAndCellAreRefused(t *testing.T) {
	b := newBench(t)
	a, c2 := b.grant(1, 0, 5), b.grant(2, 0, 5)
	short := b.rec(a, 1, protocol.UsageWorking, 0, 1)
	if v := b.verdict(t, 10, short); v.Verdict != protocol.VerdictOK {
		t.Errorf("%+v", v)
	}
	if v := b.verdict(t, 10, short); v.Verdict != protocol.VerdictOverlap || !strings.Contains(v.Reason, "before") {
		t.Errorf("the same record where there is room for it: %+v", v)
	}
	a = b.grant(3, 0, 5)
	first := b.rec(a, 0, protocol.UsageWorking, 0, 3)
	for _, tt := range []struct {
		u    protocol.UsageRecord
		want string
	}{
		{first, protocol.VerdictOK},
		{first, protocol.VerdictOverlap}, // the same record in another receipt
		{b.rec(c2, 0, protocol.UsageWorking, 2, 5), protocol.VerdictOverlap},
		{b.rec(c2, 0, protocol.UsageWorking, 3, 5), protocol.VerdictOK},
		{b.idle(0, cell0, 1)[0], protocol.VerdictOverlap},
		{b.idle(2, cell0, 1)[0], protocol.VerdictOK},
		{b.idle(2, cell0, 1)[0], protocol.VerdictOverlap},
	} {
		if v := b.verdict(t, 10, tt.u); v.Verdict != tt.want {
			t.Errorf("%+v: %+v, want %s", tt.u, v, tt.want)
		}
	}
}

func TestIdleTimeHasToBeHeardOf(t *testing.T) {
	b := newBench(t)
	b.w.deaf = true
	if v := b.verdict(t, 10, b.idle(0, cell0, 1)[0]); v.Verdict != protocol.VerdictUnwitnessed || v.DurationMS != 0 {
		t.Errorf("verdict %+v", v)
	}
	b.w.deaf = false
	if v := b.verdict(t, 10, b.idle(0, cell0, 1)[0]); v.Verdict != protocol.VerdictOK || v.DurationMS != 5000 || v.GPUMS != 0 {
		t.Errorf("a record that was refused before gives %+v", v)
	}
	// A minute is one record only where it is aligned and whole.
	minute := func(cell, ms int64) protocol.UsageRecord {
		u := b.idle(0, cell, 1)[0]
		u.EndMS, u.DurationMS = u.StartMS+60_000, ms
		return u
	}
	for _, tt := range []struct {
		u    protocol.UsageRecord
		want string
	}{
		{minute(cell0+12, 60_000), protocol.VerdictOK},
		{minute(cell0+12, 60_000), protocol.VerdictOverlap},
		{b.idle(0, cell0+17, 1)[0], protocol.VerdictOverlap},
		{minute(cell0, 60_000), protocol.VerdictOverlap},
	} {
		if v := b.verdict(t, 200, tt.u); v.Verdict != tt.want {
			t.Errorf("%d ms from cell +%d: %+v, want %s", tt.u.DurationMS, tt.u.StartMS/5000-cell0, v, tt.want)
		}
	}
	pos := b.book.Position(b.node)
	r := protocol.Receipt{Format: 1, Node: b.node, Bridge: b.bridge, Seq: pos.Seq + 1, Prev: pos.Hash, Records: []protocol.UsageRecord{minute(cell0+37, 60_000), minute(cell0+36, 59_000)}}
	c, err := b.book.Check(&r, [32]byte{1}, b.w, at(300)) // nobody can seal it
	ok(t, err)
	for _, v := range c.Verdicts {
		if v.Verdict != protocol.VerdictBounds {
			t.Errorf("a minute that is none: %+v", v)
		}
	}
}

func TestWhatTheBookHasForgottenIsTooOld(t *testing.T) {
	b := newBench(t)
	b.book.cfg.MaxIDs = 2*protocol.MaxRecordsPerReceipt + 8
	a := b.grant(0, 0, 0.5)
	ok2 := func(now float64, u protocol.UsageRecord, want string) {
		t.Helper()
		if v := b.verdict(t, now, u); v.Verdict != want {
			t.Errorf("%+v: %+v, want %s", u, v, want)
		}
	}
	ok2(1, b.rec(a, 0, protocol.UsageWorking, 0, 0.5), protocol.VerdictOK)
	long := b.grant(77, 1, 2)
	b.w.leases[long.Lease] = Lease{Node: b.node, Job: long.Job, Chunk: long.Chunk, Fence: long.Fence, Granted: at(9.5), Ended: at(10.5)}
	ok2(11, b.rec(long, 0, protocol.UsageWorking, 9, 9.4), protocol.VerdictOK) // by a clock that is off
	ok2(11, b.rec(long, 0, protocol.UsageWorking, 10, 10.5), protocol.VerdictOK)
	// Many short leases in later cells push the record's ID out; its cell stays known.
	for i := 1; i <= 3; i++ {
		var records []protocol.UsageRecord
		for k := range protocol.MaxRecordsPerReceipt {
			from := float64(5*i) + float64(k)*0.01
			records = append(records, b.rec(b.grant(1000*i+k, from, from+.01), 0, protocol.UsageWorking, from, from+.01))
		}
		if c := b.check(t, 30, records...); c.Refused != 0 {
			t.Fatalf("%d of %d short leases are refused: %+v", c.Refused, len(records), c.Verdicts[0])
		}
	}
	ok2(30, b.rec(a, 0, protocol.UsageWorking, 0, 0.5), protocol.VerdictTooOld)
	if v := b.verdict(t, 30, b.rec(long, 0, protocol.UsagePreparing, 10.5, 11)); v.Verdict != protocol.VerdictLowered || v.DurationMS != 100 {
		t.Errorf("a lease that was settled in forgotten cells and in one that is not: %+v", v)
	}
	u := b.idle(0, cell0, 1)[0]
	u.DurationMS = 4500
	ok2(30, u, protocol.VerdictOK)
	// An hour later the cell is gone.
	ok2(4000, b.idle(0, cell0+790, 1)[0], protocol.VerdictOK)
	ok2(4000, b.idle(0, cell0+1, 1)[0], protocol.VerdictTooOld)
	if s := b.book.nodes[b.node].slots[0]; len(s.cells) > 720 || s.ids > b.book.cfg.MaxIDs || len(s.leases) > s.ids {
		t.Errorf("the book remembers %d cells, %d IDs, %d leases", len(s.cells), s.ids, len(s.leases))
	}
}

// TestChainsAreHeldTogether replays, reorders and forges receipts: each is answered by its own error.
func TestChainsAreHeldTogether(t *testing.T) {
	b := newBench(t)
	open := func(x Issued) (*protocol.Receipt, [32]byte) {
		r, hash, err := protocol.OpenReceipt(x.Raw)
		ok(t, err)
		return &r, hash
	}
	var all []Issued
	for i := range 4 {
		all = append(all, b.issue(t, b.idle(0, cell0+int64(i), 1))...)
	}
	check := func(x Issued) error {
		r, hash := open(x)
		c, err := b.book.Check(r, hash, b.w, at(100))
		if err == nil {
			b.w.receipts[r.Seq] = hash
			if c.Refused != 0 {
				t.Errorf("receipt %d: %+v", r.Seq, c.Verdicts)
			}
		}
		return err
	}
	var ce *ChainError
	if err := check(all[1]); !errors.As(err, &ce) || !errors.Is(err, ErrBadChain) || *ce != (ChainError{2, 1, [32]byte{}}) {
		t.Errorf("starting with the second gives %v", err)
	}
	ok(t, check(all[0]))
	ok(t, check(all[1]))
	if err := check(all[3]); !errors.As(err, &ce) || *ce != (ChainError{4, 3, all[1].Hash}) {
		t.Errorf("a gap gives %v", err)
	}
	for _, x := range all[:2] {
		if err := check(x); !errors.Is(err, ErrKnown) {
			t.Errorf("receipt %d again gives %v", x.Seq, err)
		}
	}
	// A second history from the same key: the same numbers, other hashes.
	liar := NewChain(b.network, b.node, b.bridge)
	other, err := liar.Issue(b.idle(1, cell0, 600), protocol.GrantID{}, sunday, b.nodeKey)
	ok(t, err)
	for _, x := range other[:2] {
		if err := check(x); !errors.Is(err, ErrEquivocation) {
			t.Errorf("a second receipt %d gives %v", x.Seq, err)
		}
	}
	if err := check(other[2]); !errors.Is(err, ErrBadChain) {
		t.Errorf("going on with the other history gives %v", err)
	}
	delete(b.w.receipts, 1) // the bridge has no proof any more
	if err := check(other[0]); !errors.Is(err, ErrBadChain) {
		t.Errorf("without the stored receipt it gives %v", err)
	}
	r, hash := open(all[2])
	r.Bridge = b.node
	if _, err := b.book.Check(r, hash, b.w, at(100)); !errors.Is(err, ErrStranger) {
		t.Errorf("a receipt for another bridge gives %v", err)
	}
	if got := b.book.Position(b.node); got != (Position{2, all[1].Hash}) {
		t.Errorf("position %+v", got)
	}
	ok(t, check(all[2]))
	ok(t, check(all[3]))
}

// TestABookIsRebuiltFromStoredReceipts compares a book that was rebuilt with the one that was not.
func TestABookIsRebuiltFromStoredReceipts(t *testing.T) {
	b := newBench(t)
	type stored struct {
		r        protocol.Receipt
		hash     [32]byte
		verdicts []protocol.RecordVerdict
	}
	var all []stored
	for i := range 5 {
		a := b.grant(i, float64(i), float64(i)+1)
		x := b.issue(t, []protocol.UsageRecord{b.rec(a, 0, protocol.UsageWorking, float64(i), float64(i)+1), b.rec(lease(77), 0, protocol.UsageWorking, float64(i), float64(i)+1)})[0]
		r, hash, err := protocol.OpenReceipt(x.Raw)
		ok(t, err)
		c, err := b.book.Check(&r, hash, b.w, at(10))
		ok(t, err)
		all = append(all, stored{r, hash, c.Verdicts})
	}
	b.book.Forget(b.node)
	if b.book.Position(b.node) != (Position{}) {
		t.Fatal("it has not forgotten")
	}
	for range 2 {
		for _, s := range all {
			b.book.Remember(&s.r, s.hash, s.verdicts)
		}
	}
	if b.book.Position(b.node) != b.chain.Position() {
		t.Errorf("position %+v", b.book.Position(b.node))
	}
	a := b.grant(50, 0, 5)
	if v := b.verdict(t, 10, b.rec(a, 0, protocol.UsageWorking, 0, 0.5)); v.Verdict != protocol.VerdictOverlap {
		t.Errorf("the cell is full: %+v", v)
	}
}

// TestHonestNodesAreNeverCorrected runs whole random histories through Meter, Chain and Book with clocks that
// differ by some milliseconds: no record is refused or lowered, and what is settled is what was metered up to
// the clocks' difference.
func TestHonestNodesAreNeverCorrected(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 4))
		b := newBench(t)
		cfg := DefaultConfig(b.node)
		m, err := NewMeter(cfg)
		ok(t, err)
		delay := func() time.Duration { return time.Duration(rng.Int64N(int64(20 * time.Millisecond))) }
		first := time.Duration(rng.Int64N(int64(time.Second))) // a busy machine hears of the time late
		now := time.Duration(0)                                // true time since sunday
		mono := func() time.Time { return local.Add(now + time.Duration(float64(now)*100e-6)) }
		m.Hear(mono(), sunday.Add(now-first))
		ok(t, m.Up(mono(), m.Slots()...))
		send := func(records []protocol.UsageRecord) {
			for _, x := range b.issue(t, records) {
				r, hash, err := protocol.OpenReceipt(x.Raw)
				ok(t, err)
				c, err := b.book.Check(&r, hash, b.w, sunday.Add(now))
				ok(t, err)
				if c.Refused+c.Lowered > 0 {
					t.Fatalf("seed %d: %+v of %+v", seed, c.Verdicts, r.Records)
				}
				for i := range c.Verdicts {
					if d := r.Records[i].DurationMS - c.Verdicts[i].DurationMS; d < 0 || d > 50 {
						t.Fatalf("seed %d: %+v of %+v", seed, c.Verdicts[i], r.Records[i])
					}
				}
			}
		}
		for i := range 40 {
			a := lease(i)
			granted := sunday.Add(now)
			now += delay()
			m.Hear(mono(), granted)
			b.w.leases[a.Lease] = Lease{Node: b.node, Job: a.Job, Chunk: a.Chunk, Fence: a.Fence, Granted: granted}
			ok(t, m.Prepare(a, mono()))
			now += time.Duration(rng.Int64N(int64(2 * time.Second)))
			ok(t, m.Work(a.Lease, mono()))
			now += time.Duration(rng.Int64N(int64(15 * time.Second)))
			if rng.IntN(4) == 0 {
				records, err := m.Interim(a.Lease, mono(), Claimed{})
				ok(t, err)
				now += delay()
				send(records)
				now += time.Duration(rng.Int64N(int64(time.Second)))
			}
			records, err := m.Finish(a.Lease, mono(), Claimed{})
			ok(t, err)
			now += delay()
			l := b.w.leases[a.Lease]
			l.Ended = sunday.Add(now)
			b.w.leases[a.Lease] = l
			send(records)
			if rng.IntN(5) == 0 {
				now += time.Duration(rng.Int64N(int64(3 * time.Minute)))
				send(m.Idle(mono()))
			}
		}
	}
}

// TestInflatedTimeIsNeverPaid lets a node claim a tenth more than it did: what is settled stays within what the
// bridge saw, and it is noticed within 20 records.
func TestInflatedTimeIsNeverPaid(t *testing.T) {
	b := newBench(t)
	noticed := -1
	for i := range 20 {
		from := float64(10 * i)
		a := b.grant(i, from, from+4)
		c := b.check(t, from+10, b.rec(a, 0, protocol.UsageWorking, from, from+4.4))
		if got := c.Leases[0].WorkingMS; got > 4000 {
			t.Fatalf("%d ms of a lease of 4 s were settled", got)
		}
		if c.Lowered > 0 && noticed < 0 {
			noticed = i
		}
	}
	if noticed < 0 {
		t.Error("it was not noticed")
	}
}

// BenchmarkCheck is the bridge's work on receipts of 256 records of short leases: targets ask for 5,000 records a
// second with their storage.
func BenchmarkCheck(b *testing.B) {
	x := newBench(b)
	n := 0
	for b.Loop() {
		b.StopTimer()
		var records []protocol.UsageRecord
		for range protocol.MaxRecordsPerReceipt {
			from := float64(n) * .01
			n++
			records = append(records, x.rec(x.grant(n, from, from+.01), 0, protocol.UsageWorking, from, from+.01))
		}
		raw := x.issue(b, records)[0].Raw
		b.StartTimer()
		r, hash, err := protocol.OpenReceipt(raw)
		ok(b, err)
		c, err := x.book.Check(&r, hash, x.w, at(float64(n)*.01))
		ok(b, err)
		cs := c.CounterSign(x.node, sunday)
		_, err = cs.Seal(x.bridgeKey)
		ok(b, err)
		if c.Refused+c.Lowered > 0 {
			b.Fatalf("%+v", c.Verdicts)
		}
	}
	b.ReportMetric(float64(protocol.MaxRecordsPerReceipt)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func TestBookConfigsAreChecked(t *testing.T) {
	for field, spoil := range map[string]func(*BookConfig){
		"Bridge": func(c *BookConfig) { c.Bridge = "" }, "MaxAge": func(c *BookConfig) { c.MaxAge = 0 }, "NoisePPM": func(c *BookConfig) { c.NoisePPM = -1 },
		"Skew": func(c *BookConfig) { c.Skew = -1 }, "Window": func(c *BookConfig) { c.Window = 0 }, "MaxSlots": func(c *BookConfig) { c.MaxSlots = 0 },
	} {
		cfg := DefaultBookConfig("bridge")
		spoil(&cfg)
		if _, err := NewBook(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("a wrong %s gives %v", field, err)
		}
	}
}

// FuzzCheck decodes records of arbitrary numbers: no panic, no slot that is paid for more than its cell, nothing
// settled that the bridge has not witnessed.
func FuzzCheck(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Add(slices.Repeat([]byte{0, 1, 200, 30}, 40))
	b := newBench(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		book, err := NewBook(DefaultBookConfig(b.bridge))
		ok(t, err)
		next := func() int64 {
			if len(in) == 0 {
				return 0
			}
			v := int64(in[0])
			in = in[1:]
			return v
		}
		a := b.grant(1, 3, 20)
		cells := map[[2]int64]int64{}
		var leased int64
		for seq := uint64(1); len(in) > 0; seq++ {
			r := protocol.Receipt{Format: 1, Node: b.node, Bridge: b.bridge, Seq: seq, Prev: book.Position(b.node).Hash}
			for range 1 + next()%4 {
				from := float64(next()) / 8
				u := b.rec(a, uint16(next()%2), protocol.UsageState(next()%5), from, from+float64(next())/40)
				if u.State == protocol.UsageIdle {
					u.Lease, u.ID = protocol.LeaseID{}, protocol.NewRecordID(b.node, nil, u.Slot, u.State, uint64(u.StartMS/protocol.CellMillis))
					u.GPUMS = 0
				}
				if next()%8 == 0 {
					u.DurationMS = (next() - 10) << uint(next()%56)
				}
				r.Records = append(r.Records, u)
			}
			c, err := book.Check(&r, [32]byte{byte(seq), 1}, b.w, at(60))
			ok(t, err)
			for i, v := range c.Verdicts {
				u := &r.Records[i]
				if !counts(v.Verdict) {
					if v.DurationMS != 0 || v.GPUMS != 0 {
						t.Fatalf("refused, and settled: %+v", v)
					}
					continue
				}
				if u.EndMS-u.StartMS <= protocol.CellMillis {
					cells[[2]int64{int64(u.Slot), u.StartMS / protocol.CellMillis}] += v.DurationMS
				}
				if v.DurationMS < 0 || v.DurationMS > u.DurationMS || v.GPUMS > v.DurationMS {
					t.Fatalf("%+v of %+v", v, u)
				}
				if u.State != protocol.UsageIdle {
					leased += v.DurationMS
				}
			}
		}
		for cell, ms := range cells {
			if ms > protocol.CellMillis {
				t.Fatalf("%d ms in %v", ms, cell)
			}
		}
		if leased > 17_000 { // one slot, the lease's 17 s
			t.Fatalf("%d ms of a lease of 17 s", leased)
		}
	})
}
