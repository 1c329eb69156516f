package settlement

import (
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrName means a user, program or reference that cannot stand in an account or an ID.
var ErrName = errors.New("settlement: bad name")

// Accounts that are not a user's (settlement.md 3).
const (
	// AccountBurnPayable is what has to be burned.
	AccountBurnPayable = "burn/payable"
	// AccountFeeOperator is the fee of whoever runs the bridge.
	AccountFeeOperator = "fee/operator"
	// AccountFeeFoundation is the network's fee.
	AccountFeeFoundation = "fee/foundation"
	// AccountSpeculation is what the bridge itself pays for: copies and audits that no user asked for, and
	// overruns of a limit.
	AccountSpeculation = "expense/speculation"
)

// AccountCredit is what a user can still spend.
func AccountCredit(user string) string { return "user/" + user + "/credit" }

// AccountReserved is what a user's running jobs have set aside.
func AccountReserved(user string) string { return "user/" + user + "/reserved" }

// Deposit is cash that came in over a rail (render, card, ach) and becomes a user's credit; ref names the
// payment, so that one payment counts once. It returns ErrAmount or ErrName.
func Deposit(rail, user string, uusd int64, ref string, at time.Time) (protocol.Transaction, error) {
	switch rail {
	case "render", "card", "ach":
	default:
		return protocol.Transaction{}, fmt.Errorf("%w: rail %.40q: say render, card or ach", ErrName, rail)
	}
	return credit(protocol.KindDeposit, "cash/"+rail, "deposit/"+rail+"/"+ref, user, uusd, ref, at)
}

// Grant is credit that a program gives a user; ref names the act, so that it counts once. It returns ErrAmount
// or ErrName.
func Grant(program, user string, uusd int64, ref string, at time.Time) (protocol.Transaction, error) {
	if !plain(program) {
		return protocol.Transaction{}, fmt.Errorf("%w: program %.40q", ErrName, program)
	}
	return credit(protocol.KindGrant, "grant/"+program, "grant/"+program+"/"+ref, user, uusd, ref, at)
}

func credit(kind protocol.TransactionKind, from, id, user string, uusd int64, ref string, at time.Time) (protocol.Transaction, error) {
	if !plain(user) || !plain(ref) {
		return protocol.Transaction{}, fmt.Errorf("%w: user %.40q, reference %.40q", ErrName, user, ref)
	}
	return move(kind, id, from, AccountCredit(user), uusd, ref, at)
}

// move takes an amount from one account to another.
func move(kind protocol.TransactionKind, id, from, to string, uusd int64, ref string, at time.Time) (protocol.Transaction, error) {
	if uusd <= 0 {
		return protocol.Transaction{}, fmt.Errorf("%w: %s of %d micro-USD, want more than 0", ErrAmount, kind, uusd)
	}
	return build(kind, id, ref, at, post(from, -uusd), post(to, uusd))
}

func post(account string, uusd int64) protocol.Posting {
	return protocol.Posting{Account: account, Currency: protocol.USD, Amount: uusd}
}

// build makes a valid transaction of the postings that are not 0.
func build(kind protocol.TransactionKind, id, ref string, at time.Time, postings ...protocol.Posting) (protocol.Transaction, error) {
	t := protocol.Transaction{ID: id, Kind: kind, AtMS: at.UnixMilli(), Ref: ref}
	for _, p := range postings {
		if p.Amount != 0 {
			t.Postings = append(t.Postings, p)
		}
	}
	if err := t.Validate(); err != nil {
		return protocol.Transaction{}, fmt.Errorf("building %s: %w", id, err)
	}
	return t, nil
}

// Quote is what predicted usage would cost, by the same calculation as a bill. It returns ErrAmount.
func Quote(lines []Line) (int64, error) {
	bills := make([]int64, len(lines))
	for i, l := range lines {
		var err error
		if bills[i], err = Bill(l.RateUUSD, l.BilledMS); err != nil {
			return 0, err
		}
	}
	return sum("quote", bills...)
}

// ReserveAmount is what a quote sets aside: maxSpend if the user gave one, else the quote and a margin. It
// returns ErrAmount or ErrPrices.
func (p Prices) ReserveAmount(quote, maxSpend int64) (int64, error) {
	if err := p.Validate(); err != nil {
		return 0, err
	}
	if maxSpend > 0 {
		return maxSpend, nil
	}
	return mulDiv("quote", quote, p.ReservePPM, Million, true)
}

// Reserve sets a user's credit aside for a job. n counts the reservations of the job, from 1. It returns
// ErrAmount or ErrName.
func Reserve(job protocol.JobID, user string, n int, uusd int64, at time.Time) (protocol.Transaction, error) {
	if !plain(user) {
		return protocol.Transaction{}, fmt.Errorf("%w: user %.40q", ErrName, user)
	}
	return move(protocol.KindReserve, fmt.Sprintf("reserve/%s/%d", job, n), AccountCredit(user), AccountReserved(user), uusd, "job/"+job.String(), at)
}

// Release gives a user back what an ended job had set aside and did not use. It returns ErrAmount or ErrName.
func Release(job protocol.JobID, user string, uusd int64, at time.Time) (protocol.Transaction, error) {
	if !plain(user) {
		return protocol.Transaction{}, fmt.Errorf("%w: user %.40q", ErrName, user)
	}
	return move(protocol.KindRelease, "release/"+job.String(), AccountReserved(user), AccountCredit(user), uusd, "job/"+job.String(), at)
}

// Line is a bill line: what one node did for one job at one rate.
type Line struct {
	// Job and Node name the line.
	Job protocol.JobID
	// Node did the work.
	Node protocol.PeerID
	// RateUUSD is the user's rate, micro-USD per slot-hour.
	RateUUSD int64
	// BilledMS is settled slot time that the user pays, milliseconds, so far.
	BilledMS int64
	// ChargedUUSD is what was posted for the line so far, micro-USD.
	ChargedUUSD int64
}

// Charge is what the growth of a line posts.
type Charge struct {
	// Tx is to be posted; its ID is empty when nothing is due.
	Tx protocol.Transaction
	// DueUUSD is what the line grew by; add it to its ChargedUUSD.
	DueUUSD int64
	// PaidUUSD is what of it comes out of the reservation.
	PaidUUSD int64
	// OverrunUUSD is the rest, which the bridge pays: the job has to stop (ReasonBudgetExhausted).
	OverrunUUSD int64
}

// Charge posts the growth of a line: from the user's reservation, of which left is there for this job, to burn
// and fees. Fees and burn of all charges of a line sum to those of its bill, however often it was charged. A
// line that has shrunk posts nothing. It returns ErrAmount, ErrName or ErrPrices.
func (p Prices) Charge(user string, l Line, left int64, at time.Time) (Charge, error) {
	if !plain(user) {
		return Charge{}, fmt.Errorf("%w: user %.40q", ErrName, user)
	}
	bill, err := Bill(l.RateUUSD, l.BilledMS)
	if err != nil {
		return Charge{}, err
	}
	if l.ChargedUUSD < 0 || left < 0 {
		return Charge{}, fmt.Errorf("%w: charged %d, left %d", ErrAmount, l.ChargedUUSD, left)
	}
	if bill <= l.ChargedUUSD {
		return Charge{}, nil
	}
	was, err := p.Parts(l.ChargedUUSD)
	if err != nil {
		return Charge{}, err
	}
	is, err := p.Parts(bill)
	if err != nil {
		return Charge{}, err
	}
	c := Charge{DueUUSD: bill - l.ChargedUUSD}
	c.PaidUUSD = min(c.DueUUSD, left)
	c.OverrunUUSD = c.DueUUSD - c.PaidUUSD
	c.Tx, err = build(protocol.KindCharge, fmt.Sprintf("charge/%s/%s/%d", l.Job, l.Node, bill), "job/"+l.Job.String(), at,
		post(AccountReserved(user), -c.PaidUUSD), post(AccountSpeculation, -c.OverrunUUSD),
		post(AccountBurnPayable, is.Burn-was.Burn), post(AccountFeeOperator, is.Operator-was.Operator), post(AccountFeeFoundation, is.Foundation-was.Foundation))
	return c, err
}

// Speculate posts the growth of a line of work that no user pays and the node earns all the same: the bridge
// pays the burn, and no fee to itself. Its ID differs from a user's charge of the same line.
func (p Prices) Speculate(l Line, at time.Time) (Charge, error) {
	bill, err := Bill(l.RateUUSD, l.BilledMS)
	if err != nil || bill <= l.ChargedUUSD {
		return Charge{}, err
	}
	was, err := p.Parts(l.ChargedUUSD)
	if err != nil {
		return Charge{}, err
	}
	is, err := p.Parts(bill)
	if err != nil {
		return Charge{}, err
	}
	c := Charge{DueUUSD: bill - l.ChargedUUSD, OverrunUUSD: is.Burn - was.Burn}
	if c.OverrunUUSD == 0 {
		return c, nil
	}
	c.Tx, err = build(protocol.KindExpense, fmt.Sprintf("expense/%s/%s/%d", l.Job, l.Node, bill), "job/"+l.Job.String(), at,
		post(AccountSpeculation, -c.OverrunUUSD), post(AccountBurnPayable, c.OverrunUUSD))
	return c, err
}

// plain says whether a text may be a part of an account's path.
func plain(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '@', c == ':', c == '+', c == '-':
		default:
			return false
		}
	}
	return true
}
