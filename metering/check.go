package metering

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Book is a bridge's memory of its nodes' chains and of what was settled lately in each slot. It is not safe
// for concurrent use: one owner calls it. What Check changes has to become durable with the receipt; when it
// cannot, Forget the node and Remember its stored receipts again.
type Book struct {
	cfg   BookConfig
	nodes map[protocol.PeerID]*nodeBook
}

type nodeBook struct {
	pos   Position
	slots map[uint16]*slotBook
}

// slotBook remembers the cells of a slot between floor and newest.
type slotBook struct {
	cells  map[int64]*cellBook
	leases map[protocol.LeaseID]*tally // of the IDs in cells
	newest int64
	floor  int64 // cells below it are forgotten
	idsAt  int64 // cells below it have forgotten their record IDs
	ids    int
}

type cellBook struct {
	ms   int64 // settled so far, of all states
	idle bool
	ids  map[protocol.RecordID]protocol.LeaseID
}

// tally is what was settled of a lease in one slot.
type tally struct {
	all, working int64 // milliseconds
	last         int64 // its newest cell
}

func (c *cellBook) has(id protocol.RecordID) bool { _, ok := c.ids[id]; return ok }

// NewBook returns an empty book. It returns ErrConfig.
func NewBook(cfg BookConfig) (*Book, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Book{cfg: cfg, nodes: map[protocol.PeerID]*nodeBook{}}, nil
}

// Position is where a node's chain stands.
func (b *Book) Position(node protocol.PeerID) Position {
	if n := b.nodes[node]; n != nil {
		return n.pos
	}
	return Position{}
}

// Forget drops what the book knows of a node, after a commit that failed.
func (b *Book) Forget(node protocol.PeerID) { delete(b.nodes, node) }

// Remember takes up a stored receipt with its verdicts, oldest first: after a restart, for each node the
// receipts of the last Window are enough, and of a quiet node the last one.
func (b *Book) Remember(r *protocol.Receipt, hash [32]byte, verdicts []protocol.RecordVerdict) {
	n := b.node(r.Node)
	if r.Seq <= n.pos.Seq {
		return
	}
	n.pos = Position{r.Seq, hash}
	for i := range r.Records {
		u := &r.Records[i]
		if i < len(verdicts) && verdicts[i].ID == u.ID && counts(verdicts[i].Verdict) {
			n.slot(u.Slot).settle(u, verdicts[i].DurationMS, &b.cfg)
		}
	}
}

func (b *Book) node(id protocol.PeerID) *nodeBook {
	n := b.nodes[id]
	if n == nil {
		n = &nodeBook{slots: map[uint16]*slotBook{}}
		b.nodes[id] = n
	}
	return n
}

func (n *nodeBook) slot(i uint16) *slotBook {
	s := n.slots[i]
	if s == nil {
		s = &slotBook{cells: map[int64]*cellBook{}, leases: map[protocol.LeaseID]*tally{}}
		n.slots[i] = s
	}
	return s
}

// counts says whether a verdict settles anything.
func counts(verdict string) bool {
	return verdict == protocol.VerdictOK || verdict == protocol.VerdictLowered
}

// Check holds an opened receipt against everything that the bridge knows and settles what stands. It returns
// ErrKnown, ErrEquivocation, ErrStranger, or a ChainError; then nothing has changed.
func (b *Book) Check(r *protocol.Receipt, hash [32]byte, w Witness, now time.Time) (Checked, error) {
	if r.Bridge != b.cfg.Bridge {
		return Checked{}, fmt.Errorf("%w: %s", ErrStranger, r.Bridge)
	}
	pos := b.Position(r.Node)
	if r.Seq <= pos.Seq {
		return Checked{}, again(r, hash, pos, w)
	}
	if r.Seq != pos.Seq+1 || r.Prev != pos.Hash {
		return Checked{}, &ChainError{Got: r.Seq, Want: pos.Seq + 1, Prev: pos.Hash}
	}
	n := b.node(r.Node)
	n.pos = Position{r.Seq, hash}
	c := Checked{Position: n.pos, Verdicts: make([]protocol.RecordVerdict, len(r.Records))}
	k := check{
		cfg: &b.cfg, node: n, peer: r.Node, w: w, now: now, slots: b.cfg.MaxSlots, leases: map[protocol.LeaseID]*leaseView{},
	}
	if b.cfg.Machine != nil {
		slots, cores := b.cfg.Machine(r.Node)
		k.cores = int64(cores)
		if slots > 0 {
			k.slots = slots
		}
	}
	for i := range r.Records {
		c.Verdicts[i] = k.record(&r.Records[i])
		c.count(&r.Records[i], &c.Verdicts[i])
	}
	slices.SortFunc(c.Days, func(a, b DayUse) int { return strings.Compare(a.Day, b.Day) })
	return c, nil
}

// again answers a receipt whose number was used: the same one again, or a fraud.
func again(r *protocol.Receipt, hash [32]byte, pos Position, w Witness) error {
	known, ok := pos.Hash, r.Seq == pos.Seq
	if !ok {
		known, ok = w.ReceiptHash(r.Node, r.Seq)
	}
	switch {
	case !ok || r.Seq == 0:
		return &ChainError{Got: r.Seq, Want: pos.Seq + 1, Prev: pos.Hash}
	case known == hash:
		return fmt.Errorf("%w: %s number %d", ErrKnown, r.Node, r.Seq)
	}
	return fmt.Errorf("%w: %s number %d is %x and %x", ErrEquivocation, r.Node, r.Seq, known[:8], hash[:8])
}

// check is the work on one receipt.
type check struct {
	cfg    *BookConfig
	node   *nodeBook
	peer   protocol.PeerID
	w      Witness
	now    time.Time
	slots  int
	cores  int64
	leases map[protocol.LeaseID]*leaseView
}

type leaseView struct {
	Lease
	ok    bool
	slots []uint16 // in which it was settled, or is claimed in this receipt
}

// lease is the bridge's view of a lease, with the slots that have it.
func (k *check) lease(id protocol.LeaseID) *leaseView {
	l := k.leases[id]
	if l == nil {
		l = &leaseView{}
		l.Lease, l.ok = k.w.Lease(id)
		for n, s := range k.node.slots {
			if s.leases[id] != nil {
				l.slots = append(l.slots, n)
			}
		}
		k.leases[id] = l
	}
	return l
}

func refuse(u *protocol.UsageRecord, verdict, format string, args ...any) protocol.RecordVerdict {
	return protocol.RecordVerdict{ID: u.ID, Verdict: verdict, Reason: fmt.Sprintf(format, args...)}
}

// record gives the verdict on a record, cheap tests first, and settles it.
func (k *check) record(u *protocol.UsageRecord) protocol.RecordVerdict {
	if v, ok := k.plain(u); !ok {
		return v
	}
	s := k.node.slot(u.Slot)
	if v, ok := s.fits(u, k.cfg); !ok {
		return v
	}
	seen, v, ok := k.witnessed(u)
	if !ok {
		return v
	}
	v = protocol.RecordVerdict{ID: u.ID, Verdict: protocol.VerdictOK, DurationMS: min(u.DurationMS, seen)}
	if diff := u.DurationMS - v.DurationMS; diff > max(k.cfg.Noise.Milliseconds(), u.DurationMS*k.cfg.NoisePPM/1_000_000) {
		v.Verdict, v.Reason = protocol.VerdictLowered, fmt.Sprintf("%d ms claimed, %d ms witnessed", u.DurationMS, seen)
	}
	if u.State != protocol.UsageIdle {
		v.GPUMS = min(u.GPUMS, v.DurationMS)
	}
	s.settle(u, v.DurationMS, k.cfg)
	return v
}

// plain are the tests that need no memory.
func (k *check) plain(u *protocol.UsageRecord) (protocol.RecordVerdict, bool) {
	nowMS := k.now.UnixMilli()
	switch err := u.Validate(k.peer); {
	case err != nil:
		return refuse(u, protocol.VerdictBounds, "%v", err), false
	case u.DurationMS > u.EndMS-u.StartMS:
		return refuse(u, protocol.VerdictBounds, "%d ms in an interval of %d", u.DurationMS, u.EndMS-u.StartMS), false
	case u.State == protocol.UsageIdle && u.EndMS-u.StartMS > protocol.CellMillis && !minute(u):
		return refuse(u, protocol.VerdictBounds, "idle over several cells that are no aligned minute"), false
	case u.GPUMS > u.DurationMS:
		return refuse(u, protocol.VerdictBounds, "%d GPU ms in %d ms of one slot", u.GPUMS, u.DurationMS), false
	case int(u.Slot) >= k.slots:
		return refuse(u, protocol.VerdictBounds, "slot %d of a node with %d", u.Slot, k.slots), false
	case k.cores > 0 && u.CPUMS > k.cores*(u.EndMS-u.StartMS+k.cfg.Noise.Milliseconds()):
		return refuse(u, protocol.VerdictBounds, "%d ms of processor time on %d cores in %d ms", u.CPUMS, k.cores, u.EndMS-u.StartMS), false
	case u.EndMS > nowMS+k.cfg.Future.Milliseconds():
		return refuse(u, protocol.VerdictFuture, "ends %d ms ahead of the bridge's clock", u.EndMS-nowMS), false
	case u.StartMS < nowMS-k.cfg.MaxAge.Milliseconds():
		return refuse(u, protocol.VerdictTooOld, "older than %s", k.cfg.MaxAge), false
	}
	return protocol.RecordVerdict{}, true
}

// minute says whether an idle record is a whole aligned minute.
func minute(u *protocol.UsageRecord) bool {
	const m = minuteCells * protocol.CellMillis
	return u.StartMS%m == 0 && u.EndMS == u.StartMS+m && u.DurationMS == m
}

// witnessed is the bridge's own value for a record, milliseconds.
func (k *check) witnessed(u *protocol.UsageRecord) (int64, protocol.RecordVerdict, bool) {
	if u.State == protocol.UsageIdle {
		if !k.w.Heard(k.peer, time.UnixMilli(u.StartMS), time.UnixMilli(u.EndMS)) {
			return 0, refuse(u, protocol.VerdictUnwitnessed, "the bridge did not hear of the node then"), false
		}
		return u.DurationMS, protocol.RecordVerdict{}, true
	}
	l := k.lease(u.Lease)
	if !slices.Contains(l.slots, u.Slot) {
		l.slots = append(l.slots, u.Slot)
	}
	switch {
	case !l.ok:
		return 0, refuse(u, protocol.VerdictNotLeased, "the bridge granted no lease %s", u.Lease), false
	case l.Node != k.peer:
		return 0, refuse(u, protocol.VerdictNotLeased, "lease %s is another node's", u.Lease), false
	case l.Job != u.Job || l.Chunk != u.Chunk || l.Fence != u.Fence:
		return 0, refuse(u, protocol.VerdictNotLeased, "lease %s is of another job, chunk or fence", u.Lease), false
	case len(l.slots) > max(1, l.Slots):
		return 0, refuse(u, protocol.VerdictNotLeased, "lease %s has %d slots", u.Lease, max(1, l.Slots)), false
	}
	end := l.Ended
	if end.IsZero() {
		end = k.now
	}
	skew := k.cfg.Skew.Milliseconds()
	seen := min(u.EndMS, end.UnixMilli()+skew) - max(u.StartMS, l.Granted.UnixMilli()-skew)
	if seen < 0 || seen == 0 && u.DurationMS > 0 {
		return 0, refuse(u, protocol.VerdictUnwitnessed, "lease %s was held from %d to %d", u.Lease, l.Granted.UnixMilli(), end.UnixMilli()), false
	}
	all := max(0, end.Sub(l.Granted).Milliseconds())
	working := all
	if l.Ran > 0 {
		working = min(all, l.Ran.Milliseconds())
	}
	if t := k.node.slot(u.Slot).leases[u.Lease]; t != nil {
		all, working = max(0, all-t.all), max(0, working-t.working)
	}
	seen = min(seen, all)
	if u.State == protocol.UsageWorking {
		seen = min(seen, working)
	}
	return seen, protocol.RecordVerdict{}, true
}

// fits says whether a record is new and its cell has room for it.
func (s *slotBook) fits(u *protocol.UsageRecord, cfg *BookConfig) (protocol.RecordVerdict, bool) {
	first, last := u.StartMS/protocol.CellMillis, max(u.StartMS, u.EndMS-1)/protocol.CellMillis
	switch {
	case first < s.floor:
		return refuse(u, protocol.VerdictTooOld, "more than %s behind what this slot has reported", cfg.Window), false
	case u.State != protocol.UsageIdle && first < s.idsAt:
		return refuse(u, protocol.VerdictTooOld, "too many records came after it to tell whether it is new"), false
	}
	for cell := first; cell <= last; cell++ {
		c := s.cells[cell]
		if c == nil {
			continue
		}
		ms := u.DurationMS
		if first != last {
			ms = protocol.CellMillis
		}
		switch {
		case u.State == protocol.UsageIdle && c.idle || c.has(u.ID):
			return refuse(u, protocol.VerdictOverlap, "this record was settled before"), false
		case c.ms+ms > protocol.CellMillis:
			return refuse(u, protocol.VerdictOverlap, "slot %d would be used for %d ms in cell %d", u.Slot, c.ms+ms, cell), false
		}
	}
	return protocol.RecordVerdict{}, true
}

// settle notes a record that counts with ms, and forgets what lies behind the window.
func (s *slotBook) settle(u *protocol.UsageRecord, ms int64, cfg *BookConfig) {
	first, last := u.StartMS/protocol.CellMillis, max(u.StartMS, u.EndMS-1)/protocol.CellMillis
	for cell := first; cell <= last; cell++ {
		c := s.cells[cell]
		if c == nil {
			c = &cellBook{}
			s.cells[cell] = c
		}
		if first == last {
			c.ms += ms
		} else {
			c.ms += protocol.CellMillis
		}
		if u.State == protocol.UsageIdle {
			c.idle = true
			continue
		}
		if c.ids == nil {
			c.ids = map[protocol.RecordID]protocol.LeaseID{}
		}
		c.ids[u.ID] = u.Lease
		s.ids++
		s.tally(u, ms, cell)
	}
	if last > s.newest {
		if s.newest == 0 {
			s.floor = last - cfg.Window.Milliseconds()/protocol.CellMillis
			s.idsAt = s.floor
		}
		s.newest = last
	}
	for old := s.newest - cfg.Window.Milliseconds()/protocol.CellMillis; s.floor < old; s.floor++ {
		s.forgetIDs(s.floor)
		delete(s.cells, s.floor)
	}
	s.idsAt = max(s.idsAt, s.floor)
	for ; s.ids > cfg.MaxIDs && s.idsAt < s.newest; s.idsAt++ {
		s.forgetIDs(s.idsAt)
	}
}

// tally adds to what is settled of a lease.
func (s *slotBook) tally(u *protocol.UsageRecord, ms, cell int64) {
	t := s.leases[u.Lease]
	if t == nil {
		t = &tally{}
		s.leases[u.Lease] = t
	}
	t.all, t.last = t.all+ms, max(t.last, cell)
	if u.State == protocol.UsageWorking {
		t.working += ms
	}
}

// forgetIDs drops the record IDs of a cell, and the leases that have none in a later one.
func (s *slotBook) forgetIDs(cell int64) {
	c := s.cells[cell]
	if c == nil {
		return
	}
	for _, lease := range c.ids {
		if t := s.leases[lease]; t != nil && t.last <= cell {
			delete(s.leases, lease)
		}
	}
	s.ids -= len(c.ids)
	c.ids = nil
}

// count adds a record to the sums.
func (c *Checked) count(u *protocol.UsageRecord, v *protocol.RecordVerdict) {
	ok := counts(v.Verdict)
	switch {
	case !ok:
		c.Refused++
	case v.Verdict == protocol.VerdictLowered:
		c.Lowered++
	}
	if u.State != protocol.UsageIdle {
		i := slices.IndexFunc(c.Leases, func(l LeaseUse) bool { return l.Lease == u.Lease })
		if i < 0 {
			c.Leases = append(c.Leases, LeaseUse{Lease: u.Lease, Job: u.Job})
			i = len(c.Leases) - 1
		}
		c.Leases[i].add(u, v, ok)
	}
	if !ok {
		return
	}
	day := time.UnixMilli(u.StartMS).UTC().Format(time.DateOnly)
	i := slices.IndexFunc(c.Days, func(d DayUse) bool { return d.Day == day })
	if i < 0 {
		c.Days = append(c.Days, DayUse{Day: day})
		i = len(c.Days) - 1
	}
	switch u.State {
	case protocol.UsageIdle:
		c.Days[i].IdleMS += v.DurationMS
	case protocol.UsagePreparing:
		c.Days[i].PreparingMS += v.DurationMS
	case protocol.UsageWorking:
		c.Days[i].WorkingMS += v.DurationMS
	}
}

func (l *LeaseUse) add(u *protocol.UsageRecord, v *protocol.RecordVerdict, ok bool) {
	if v.Verdict != protocol.VerdictOK {
		l.Lowered++
	}
	if !ok {
		return
	}
	l.Records++
	l.CPUMS += u.CPUMS
	switch u.State {
	case protocol.UsagePreparing:
		l.PreparingMS += v.DurationMS
	case protocol.UsageWorking:
		l.WorkingMS += v.DurationMS
		l.GPUMS += v.GPUMS
	}
}
