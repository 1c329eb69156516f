package protocol

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
)

// Errors of a transaction (settlement.md 3).
var (
	// ErrImbalance means that a transaction's postings do not sum to 0 in some currency: it would make money
	// out of nothing, and is refused.
	ErrImbalance = errors.New("protocol: postings do not sum to 0")
	// ErrBadTransaction means a transaction that nobody may post: a field of it is missing or out of bounds.
	ErrBadTransaction = errors.New("protocol: malformed transaction")
)

// MaxPostings bounds the postings of one transaction.
const MaxPostings = 4096

// Currency is what an amount counts. Amounts are integers of its smallest unit, int64 everywhere.
type Currency string

// The currencies of the money ledger (settlement.md 1).
const (
	USD    Currency = "USD"    // USD is counted in micro-dollars.
	RENDER Currency = "RENDER" // RENDER is counted in base units: 1 RENDER is 10^8.
)

// TransactionKind is why money moved.
type TransactionKind string

// The kinds of transaction (settlement.md 3).
const (
	KindDeposit  TransactionKind = "deposit"  // KindDeposit: cash comes in and becomes a user's credit.
	KindGrant    TransactionKind = "grant"    // KindGrant: a program gives a user credit.
	KindReserve  TransactionKind = "reserve"  // KindReserve: a submitted job sets credit aside.
	KindCharge   TransactionKind = "charge"   // KindCharge: a bill line grew; reserved money becomes burn and fee.
	KindRelease  TransactionKind = "release"  // KindRelease: an ended job gives back what it did not use.
	KindExpense  TransactionKind = "expense"  // KindExpense: the bridge itself pays for work that no user asked for.
	KindBurn     TransactionKind = "burn"     // KindBurn: payable burns were burned.
	KindEpoch    TransactionKind = "epoch"    // KindEpoch: rewards of a closed epoch accrue.
	KindPayout   TransactionKind = "payout"   // KindPayout: payable rewards were paid.
	KindReversal TransactionKind = "reversal" // KindReversal: takes an earlier transaction back.
)

// Posting moves an amount on one account: negative leaves it, positive comes in.
type Posting struct {
	// Account is a path such as user/<id>/credit.
	Account string `json:"account"`
	// Currency is what Amount counts.
	Currency Currency `json:"currency"`
	// Amount is signed, in the currency's smallest unit, never 0.
	Amount int64 `json:"amount"`
}

// Transaction is one entry of the double-entry money ledger. It is append-only and carries a deterministic ID,
// so posting it again is a no-op; a mistake is reversed, never edited.
type Transaction struct {
	// Seq is its place in the ledger, from 1; 0 until the store has posted it.
	Seq uint64 `json:"seq"`
	// ID is deterministic, such as charge/<job>/<node>/<total>.
	ID string `json:"id"`
	// Kind is why.
	Kind TransactionKind `json:"kind"`
	// Epoch is the reward epoch that it belongs to, if any.
	Epoch string `json:"epoch,omitempty"`
	// AtMS is when, Unix milliseconds.
	AtMS int64 `json:"at_ms"`
	// Postings sum to 0 in each currency.
	Postings []Posting `json:"postings"`
	// Ref is what it rests on, for people: a bank reference, a job.
	Ref string `json:"ref,omitempty"`
	// Prev is Hash of the transaction before it, zero for the first; set by the store, which keeps it beside.
	Prev [32]byte `json:"-"`
}

var accountName = regexp.MustCompile(`^[a-z]+(/[A-Za-z0-9._@:+-]{1,128}){1,3}$`)

// Validate checks that the transaction can be posted. It returns ErrImbalance, or ErrBadTransaction naming
// the field; Seq and Prev are the store's and not looked at.
func (t *Transaction) Validate() error {
	switch {
	case t.ID == "" || len(t.ID) > 512:
		return fmt.Errorf("%w: id of %d bytes, want 1..512", ErrBadTransaction, len(t.ID))
	case t.Kind == "" || len(t.Kind) > 32:
		return fmt.Errorf("%w: %s: kind %.40q", ErrBadTransaction, t.ID, t.Kind)
	case t.AtMS <= 0:
		return fmt.Errorf("%w: %s: at_ms is %d", ErrBadTransaction, t.ID, t.AtMS)
	case len(t.Epoch) > 128 || len(t.Ref) > 512:
		return fmt.Errorf("%w: %s: epoch or ref is too long", ErrBadTransaction, t.ID)
	case len(t.Postings) < 2 || len(t.Postings) > MaxPostings:
		return fmt.Errorf("%w: %s: %d postings, want 2..%d", ErrBadTransaction, t.ID, len(t.Postings), MaxPostings)
	}
	sums := map[Currency]*big.Int{} // sums of int64 may leave int64 on the way
	for _, p := range t.Postings {
		switch {
		case !accountName.MatchString(p.Account):
			return fmt.Errorf("%w: %s: account %.80q", ErrBadTransaction, t.ID, p.Account)
		case p.Currency != USD && p.Currency != RENDER:
			return fmt.Errorf("%w: %s: currency %.20q", ErrBadTransaction, t.ID, p.Currency)
		case p.Amount == 0 || p.Amount == math.MinInt64:
			return fmt.Errorf("%w: %s: amount %d on %s", ErrBadTransaction, t.ID, p.Amount, p.Account)
		}
		if sums[p.Currency] == nil {
			sums[p.Currency] = new(big.Int)
		}
		sums[p.Currency].Add(sums[p.Currency], big.NewInt(p.Amount))
	}
	for _, c := range []Currency{USD, RENDER} {
		if s := sums[c]; s != nil && s.Sign() != 0 {
			return fmt.Errorf("%w: %s: %s %s left over", ErrImbalance, t.ID, s, c)
		}
	}
	return nil
}

// Hash chains the ledger: SHA-256("gridbeam/transaction/1" 0x00 ‖ u64 seq ‖ prev ‖ u64 at_ms ‖ id, kind, epoch,
// ref each as u32 length and bytes ‖ u32 count ‖ per posting account, currency as before ‖ i64 amount),
// big-endian.
func (t *Transaction) Hash() [32]byte {
	b := append(make([]byte, 0, 512), "gridbeam/transaction/1\x00"...)
	text := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	b = binary.BigEndian.AppendUint64(b, t.Seq)
	b = append(b, t.Prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.AtMS))
	text(t.ID)
	text(string(t.Kind))
	text(t.Epoch)
	text(t.Ref)
	b = binary.BigEndian.AppendUint32(b, uint32(len(t.Postings)))
	for _, p := range t.Postings {
		text(p.Account)
		text(string(p.Currency))
		b = binary.BigEndian.AppendUint64(b, uint64(p.Amount))
	}
	return sha256.Sum256(b)
}

// Statement says what a job used, node by node, what it cost and how rewards for it are shared; every number
// is an integer of a named unit (settlement.md 4, 5, 11).
type Statement struct {
	// Job is what it is about.
	Job JobID `json:"job_id"`
	// AtMS is when it was drawn up, Unix milliseconds.
	AtMS int64 `json:"at_ms"`
	// FeePPM is the part of each bill that is a fee, in millionths.
	FeePPM int64 `json:"fee_ppm"`
	// Lines are the nodes, in the order of their peer IDs' bytes.
	Lines []StatementLine `json:"lines"`
	// Total sums the lines; its Node is empty and its Rate and Ask are 0.
	Total StatementLine `json:"total"`
	// PoolUnits is what was shared among the nodes, RENDER base units.
	PoolUnits int64 `json:"pool_units"`
	// CarryUnits is what of it nobody earned, since nobody was paid by the user: it stays in the pool.
	CarryUnits int64 `json:"carry_units"`
}

// StatementLine is one node's part of a Statement.
type StatementLine struct {
	// Node did the work.
	Node PeerID `json:"node,omitempty"`
	// AskUUSD is the node's price and RateUUSD the user's, micro-USD per slot-hour.
	AskUUSD int64 `json:"ask_uusd,omitempty"`
	// RateUUSD is what the user pays: the ask and the fee on it.
	RateUUSD int64 `json:"rate_uusd,omitempty"`
	// Chunks counts accounted chunks, Records counter-signed usage records.
	Chunks uint64 `json:"chunks"`
	// Records counts counter-signed usage records.
	Records uint64 `json:"records"`
	// PreparingMS and WorkingMS are slot time in these states, milliseconds.
	PreparingMS int64 `json:"preparing_ms"`
	// WorkingMS is slot time in which the job's code ran.
	WorkingMS int64 `json:"working_ms"`
	// GPUMS is slots × working time; BilledMS is what of it the user pays.
	GPUMS int64 `json:"gpu_ms"`
	// BilledMS is the part of GPUMS that the user pays.
	BilledMS int64 `json:"billed_ms"`
	// BillUUSD is floor(rate × billed_ms / 3,600,000); FeeUUSD + BurnUUSD make it up.
	BillUUSD int64 `json:"bill_uusd"`
	// FeeUUSD goes to whoever runs the bridge and the network.
	FeeUUSD int64 `json:"fee_uusd"`
	// BurnUUSD is burned in the node's name: its coupons (RNP-001).
	BurnUUSD int64 `json:"burn_uusd"`
	// SharePPM is the node's part of all coupons of the job in millionths; the lines sum to 1,000,000 or to 0.
	SharePPM int64 `json:"share_ppm"`
	// ShareUnits is its part of the pool by rnp004, CR_i = N_i/ΣN × C_t, RENDER base units.
	ShareUnits int64 `json:"share_units"`
}
