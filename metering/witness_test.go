package metering

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// witness is a bridge's memory in maps.
type witness struct {
	leases   map[protocol.LeaseID]Lease
	deaf     bool
	receipts map[uint64][32]byte
}

func (w *witness) Lease(id protocol.LeaseID) (Lease, bool) { l, ok := w.leases[id]; return l, ok }

func (w *witness) Heard(protocol.PeerID, time.Time, time.Time) bool { return !w.deaf }

func (w *witness) ReceiptHash(_ protocol.PeerID, seq uint64) ([32]byte, bool) {
	h, ok := w.receipts[seq]
	return h, ok
}

// bench is a pair with a book, and time in seconds after sunday.
type bench struct {
	*pair
	book *Book
	w    *witness
}

func newBench(t testing.TB) *bench {
	t.Helper()
	p := newPair(t)
	book, err := NewBook(DefaultBookConfig(p.bridge))
	ok(t, err)
	return &bench{pair: p, book: book, w: &witness{leases: map[protocol.LeaseID]Lease{}, receipts: map[uint64][32]byte{}}}
}

func at(s float64) time.Time { return sunday.Add(time.Duration(s * float64(time.Second))) }

// grant lets the bridge remember a lease.
func (b *bench) grant(i int, from, to float64) Attempt {
	a := lease(i)
	b.w.leases[a.Lease] = Lease{Node: b.node, Job: a.Job, Chunk: a.Chunk, Fence: a.Fence, Granted: at(from), Ended: at(to)}
	return a
}

// rec is a record of an attempt for [from, to) seconds, which lie in one cell.
func (b *bench) rec(a Attempt, slot uint16, state protocol.UsageState, from, to float64) protocol.UsageRecord {
	start, end := at(from).UnixMilli(), at(to).UnixMilli()
	return protocol.UsageRecord{
		ID: protocol.NewRecordID(b.node, a.Lease[:], slot, state, uint64(start/protocol.CellMillis)), Lease: a.Lease, Job: a.Job, Chunk: a.Chunk, Fence: a.Fence, Slot: slot,
		State: state, StartMS: start, EndMS: end, DurationMS: end - start, GPUMS: end - start,
	}
}

func (b *bench) check(t testing.TB, now float64, records ...protocol.UsageRecord) Checked {
	t.Helper()
	out := b.issue(t, records)
	if len(out) != 1 {
		t.Fatalf("%d receipts", len(out))
	}
	r, hash, err := protocol.OpenReceipt(out[0].Raw)
	ok(t, err)
	c, err := b.book.Check(&r, hash, b.w, at(now))
	ok(t, err)
	b.w.receipts[r.Seq] = hash
	return c
}

func (b *bench) verdict(t testing.TB, now float64, u protocol.UsageRecord) protocol.RecordVerdict {
	t.Helper()
	return b.check(t, now, u).Verdicts[0]
}
