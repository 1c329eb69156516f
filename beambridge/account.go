package beambridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/protocol"
)

// receipt is a signed receipt as it came, opened and its signature checked.
type receipt struct {
	noun protocol.Receipt
	raw  []byte
	hash [32]byte
}

// errReceipt is a receipt that the bridge does not take up.
type errReceipt struct{ text string }

func (e errReceipt) Error() string { return e.text }

// account holds a receipt against what the bridge witnessed and puts what stands on the lines. It returns the
// counter-signature; a receipt that was known gives the stored one again.
func (t *turn) account(r *receipt) (counter []byte, err error) {
	e := t.e
	node := r.noun.Node
	checked, err := e.money.Check(&r.noun, r.hash, witness{t}, t.now)
	switch {
	case errors.Is(err, metering.ErrKnown):
		return t.countersigned(node, r.noun.Seq)
	case errors.Is(err, metering.ErrEquivocation):
		e.log.Error("a node signed two receipts under one number; it gets no work any more", "peer", node, "err", err)
		t.convict(node, protocol.ReasonResultWrong, fmt.Sprintf("receipt/%d", r.noun.Seq))
		return nil, errReceipt{err.Error()}
	case err != nil:
		return nil, errReceipt{err.Error()}
	}
	t.spoke[node] = struct{}{}
	t.must = true
	sign := checked.CounterSign(node, t.now)
	if counter, err = sign.Seal(e.bridge.key()); err != nil {
		return nil, fmt.Errorf("counter-signing receipt %d of %s: %w", r.noun.Seq, node, err)
	}
	t.receipts = append(t.receipts, store.Receipt{Node: node, Seq: r.noun.Seq, Hash: r.hash, Prev: r.noun.Prev, Raw: r.raw, CounterSign: counter, At: t.now})
	for _, d := range checked.Days {
		t.days = append(t.days, store.Idle{Node: node, Day: d.Day, IdleMS: d.IdleMS, PreparingMS: d.PreparingMS, WorkingMS: d.WorkingMS})
	}
	for _, u := range checked.Leases {
		t.use(u)
	}
	if checked.Refused > 0 {
		e.log.Warn("records of a receipt were refused", "peer", node, "refused", checked.Refused, "of", len(checked.Verdicts))
	}
	return counter, nil
}

// use puts what a receipt settles of a lease on its line.
func (t *turn) use(u metering.LeaseUse) {
	a := t.e.attempts[u.Lease]
	if a == nil {
		return // Check has asked for it, so it is there
	}
	l := a.job.line(a.row.Node)
	l.use.records += u.Records
	l.use.preparing += u.PreparingMS
	l.use.working += u.WorkingMS
	l.use.gpu += u.GPUMS
	t.lines[l] = struct{}{}
	a.unbilled += u.GPUMS
	if a.final {
		t.bill(a)
	}
}

// bill puts an attempt's slot time on whoever pays for it.
func (t *turn) bill(a *attempt) {
	if a.unbilled == 0 {
		return
	}
	l := a.job.line(a.row.Node)
	switch a.payer {
	case settlement.PayerUser:
		l.billed += a.unbilled
	case settlement.PayerBridge:
		l.bridge += a.unbilled
	}
	a.unbilled = 0
	t.lines[l] = struct{}{}
}

// chargeEvery is how often a line is charged while its job runs: with every receipt the ledger would be longer
// than the list of chunks. So much may be owed when a job's money runs out.
const chargeEvery = 2 * time.Second

// due says that a line is to be charged now: it is time, its job is over, or it owes much of what is left.
func (l *line) due(now time.Time) bool {
	if l.job.over != "" || now.Sub(l.chargedAt) >= chargeEvery {
		return true
	}
	bill, err := settlement.Bill(l.rate, l.billed)
	return err != nil || bill-l.charged > l.job.left()/4
}

// charge posts the growth of the lines that this turn has touched. A job whose money is used up ends at once.
func (t *turn) charge() error {
	for range 2 { // ending a job for its budget may touch lines again
		broke := map[*job]bool{}
		for l := range t.lines {
			if !l.due(t.now) {
				t.e.owing[l] = struct{}{}
				continue
			}
			over, err := t.chargeLine(l)
			if err != nil {
				return err
			}
			if over > 0 && l.job.over == "" {
				broke[l.job] = true
			}
		}
		if len(broke) == 0 {
			return nil
		}
		for j := range broke {
			t.exhausted(j)
		}
		t.settle()
	}
	return nil
}

// chargeLine posts a line's growth and returns what of it the reservation did not cover.
func (t *turn) chargeLine(l *line) (over int64, err error) {
	e, j := t.e, l.job
	l.chargedAt = t.now
	delete(e.owing, l)
	if l.rate == 0 {
		return 0, nil
	}
	if err := t.topUp(l); err != nil {
		return 0, err
	}
	c, err := e.prices.Charge(j.row.User, settlement.Line{Job: j.id(), Node: l.node, RateUUSD: l.rate, BilledMS: l.billed, ChargedUUSD: l.charged}, j.left(), t.now)
	if err != nil {
		return 0, fmt.Errorf("charging job %s: %w", j.id(), err)
	}
	if c.DueUUSD > 0 {
		l.charged += c.DueUUSD
		j.row.Spent += c.PaidUUSD
		t.save(j)
		t.pay(c.Tx)
	}
	x, err := e.prices.Speculate(settlement.Line{Job: j.id(), Node: l.node, RateUUSD: l.rate, BilledMS: l.bridge, ChargedUUSD: l.expense}, t.now)
	if err != nil {
		return 0, fmt.Errorf("paying for copies of job %s: %w", j.id(), err)
	}
	if x.DueUUSD > 0 {
		l.expense += x.DueUUSD
		t.pay(x.Tx)
	}
	return c.OverrunUUSD, nil
}

// topUp sets more of the user's credit aside for a job that has outgrown its reservation, up to its limit.
func (t *turn) topUp(l *line) error {
	j := l.job
	if j.released {
		return nil
	}
	bill, err := settlement.Bill(l.rate, l.billed)
	if err != nil {
		return fmt.Errorf("billing job %s: %w", j.id(), err)
	}
	need := bill - l.charged - j.left()
	if need <= 0 {
		return nil
	}
	credit, err := t.credit(j.row.User)
	if err != nil {
		return err
	}
	more := min(credit, max(2*need, j.row.Reserved/2))
	if j.row.MaxSpend > 0 {
		more = min(more, j.row.MaxSpend-j.row.Reserved)
	}
	return t.reserve(j, more)
}

// leastReserve is what is set aside for a job that nothing is known about, micro-USD: a cent.
const leastReserve = 10_000

// fund sets aside what a job is expected to cost, as far as the user's credit goes; nothing while no node asks
// a price.
func (t *turn) fund(j *job) error {
	ask := t.e.highestAsk()
	if ask == 0 || j.row.Reserved > 0 {
		return nil
	}
	rate, err := t.e.prices.Rate(ask)
	if err != nil {
		return fmt.Errorf("pricing job %s: %w", j.id(), err)
	}
	seconds := t.e.paces.slowest(j.class)
	if seconds == 0 {
		seconds = 1
	}
	quote, err := settlement.Bill(rate, int64(min(seconds*1000*float64(j.row.Inputs), 1e15)))
	if err != nil {
		return fmt.Errorf("pricing job %s: %w", j.id(), err)
	}
	amount, err := t.e.prices.ReserveAmount(max(quote, leastReserve), j.row.MaxSpend)
	if err != nil {
		return fmt.Errorf("pricing job %s: %w", j.id(), err)
	}
	credit, err := t.credit(j.row.User)
	if err != nil {
		return err
	}
	return t.reserve(j, min(amount, credit))
}

// highestAsk is the highest price that a node that is ready asks, micro-USD per slot-hour.
func (e *engine) highestAsk() (ask int64) {
	for _, n := range e.nodes {
		if n.ready {
			ask = max(ask, n.ask)
		}
	}
	return ask
}

// anyFree says whether a node that is ready works for nothing.
func (e *engine) anyFree() bool {
	for _, n := range e.nodes {
		if n.ready && n.ask == 0 {
			return true
		}
	}
	return false
}

// reserve sets an amount of the user's credit aside; the caller has seen that it is there.
func (t *turn) reserve(j *job, uusd int64) error {
	if uusd <= 0 {
		return nil
	}
	j.reserves++
	x, err := settlement.Reserve(j.id(), j.row.User, j.reserves, uusd, t.now)
	if err != nil {
		return fmt.Errorf("setting credit aside for job %s: %w", j.id(), err)
	}
	j.row.Reserved += uusd
	t.setAside[j.row.User] += uusd
	t.save(j)
	t.pay(x)
	return nil
}

// credit is what a user can still set aside: all such transactions go through the engine, so the committed
// balance less what this turn takes is exact.
func (t *turn) credit(user string) (uusd int64, err error) {
	err = t.e.store.View(t.e.bridge.ctx(), func(tx *store.Tx) error {
		uusd, err = tx.Balance(settlement.AccountCredit(user), protocol.USD)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the credit of %s: %w", user, err)
	}
	return max(0, uusd-t.setAside[user]), nil
}

// pay posts a transaction with this turn.
func (t *turn) pay(x protocol.Transaction) {
	if x.ID == "" {
		return
	}
	t.also(func(tx *store.Tx) error {
		if _, err := tx.LedgerPost(x); err != nil {
			return fmt.Errorf("posting %s: %w", x.ID, err)
		}
		return nil
	})
}

// exhausted ends a job that has used up what it may cost. Whatever still runs is stopped; the overrun is the
// bridge's (settlement.md 3).
func (t *turn) exhausted(j *job) {
	what := "its reservation of $" + protocol.Money(j.row.Reserved).String()
	if j.row.MaxSpend > 0 && j.row.Reserved >= j.row.MaxSpend {
		what = "policy.max_spend $" + protocol.Money(j.row.MaxSpend).String()
	}
	fx, err := j.tracker.Cancel(cluster.JobFail, protocol.ReasonBudgetExhausted, "the job used up "+what+"; raise it, or post credit with `gridbeam settlement credit`, and submit again")
	if err != nil {
		return // it has ended meanwhile
	}
	t.apply(j, fx)
}

// release gives a user back what an ended job had set aside and did not use.
func (t *turn) release(j *job) {
	if j.released {
		return
	}
	j.released = true
	rest := j.left()
	j.row.Reserved = min(j.row.Reserved, j.row.Spent)
	if rest == 0 {
		return
	}
	x, err := settlement.Release(j.id(), j.row.User, rest, t.now)
	if err != nil {
		t.e.log.Error("a reservation cannot be given back", "job", j.id(), "err", err)
		return
	}
	t.save(j)
	t.pay(x)
}

// usageRows are the sums of the lines that this turn has touched.
func (t *turn) usageRows() []store.UsageSum {
	rows := make([]store.UsageSum, 0, len(t.lines))
	for l := range t.lines {
		rows = append(rows, store.UsageSum{
			Job: l.job.id(), Node: l.node, WorkingMS: l.use.working, PreparingMS: l.use.preparing, GPUMS: l.use.gpu, BilledMS: l.billed,
			Records: l.use.records, Chunks: l.chunks, ChargedUUSD: l.charged, Rate: l.rate,
		})
	}
	return rows
}

// witness is what the bridge itself knows, for metering.
type witness struct{ t *turn }

var _ metering.Witness = witness{}

// Lease implements metering.Witness.
func (w witness) Lease(id protocol.LeaseID) (metering.Lease, bool) {
	a := w.t.e.attempts[id]
	if a == nil {
		return metering.Lease{}, false
	}
	return metering.Lease{
		Node: a.row.Node, Job: a.row.Job, Chunk: a.chunk, Fence: a.row.Fence, Slots: 1, Granted: a.row.Granted, Ended: a.row.Ended, Ran: a.ran(),
	}, true
}

// ran is the longest that an attempt can have worked: what its result says, with a second for what is around the
// run. 0 is unknown. A node that holds two leases of one slot cannot bill both for the whole time.
func (a *attempt) ran() time.Duration {
	if !a.told || a.row.RunUS <= 0 {
		return 0
	}
	run := time.Duration(a.row.RunUS) * time.Microsecond
	return run + run/10 + time.Second
}

// Heard implements metering.Witness.
func (w witness) Heard(id protocol.PeerID, from, to time.Time) bool {
	n := w.t.e.nodes[id]
	return n != nil && n.present(from, to)
}

// ReceiptHash implements metering.Witness.
func (w witness) ReceiptHash(id protocol.PeerID, seq uint64) (hash [32]byte, ok bool) {
	r, err := w.t.e.storedReceipt(id, seq)
	return r.Hash, err == nil
}

// storedReceipt reads a receipt; it is rare, a node asks for it that has missed an answer.
func (e *engine) storedReceipt(id protocol.PeerID, seq uint64) (r store.Receipt, err error) {
	err = e.store.View(e.bridge.ctx(), func(tx *store.Tx) error {
		r, err = tx.GetReceipt(id, seq)
		return err
	})
	return r, err
}

// countersigned returns the answer that was given to a receipt.
func (t *turn) countersigned(id protocol.PeerID, seq uint64) ([]byte, error) {
	for i := range t.receipts {
		if r := &t.receipts[i]; r.Node == id && r.Seq == seq {
			return r.CounterSign, nil
		}
	}
	r, err := t.e.storedReceipt(id, seq)
	if err != nil {
		return nil, fmt.Errorf("looking up the answer to receipt %d of %s: %w", seq, id, err)
	}
	return r.CounterSign, nil
}
