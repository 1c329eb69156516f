package store

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/gridbeam/gridbeam/protocol"
)

var (
	putTransaction    = &query{"INSERT INTO transactions (seq, id, kind, epoch, at, ref, prev_hash, hash) VALUES (?,?,?,?,?,?,?,?)"}
	putPosting        = &query{"INSERT INTO postings (seq, line, account, currency, amount) VALUES (?,?,?,?,?)"}
	putBalance        = &query{"INSERT INTO balances (account, currency, amount) VALUES (?,?,?) ON CONFLICT (account, currency) DO UPDATE SET amount=excluded.amount"}
	getTransaction    = &query{"SELECT seq, id, kind, epoch, at, ref, prev_hash, hash FROM transactions WHERE id=?"}
	lastTransaction   = &query{"SELECT seq, hash FROM transactions ORDER BY seq DESC LIMIT 1"}
	listTransactions  = &query{"SELECT seq, id, kind, epoch, at, ref, prev_hash, hash FROM transactions WHERE seq>? ORDER BY seq"}
	accountStatements = &query{`SELECT seq, id, kind, epoch, at, ref, prev_hash, hash FROM transactions
WHERE seq IN (SELECT seq FROM postings WHERE account=? AND currency=? AND seq>?) ORDER BY seq`}
	listPostings = &query{"SELECT account, currency, amount FROM postings WHERE seq=? ORDER BY line"}
	getBalance   = &query{"SELECT amount FROM balances WHERE account=? AND currency=?"}
	listBalances = &query{"SELECT account, currency, amount FROM balances WHERE account>=?1 AND substr(account, 1, length(?1))=?1 ORDER BY account, currency"}
	ledgerDrift  = &query{`SELECT account, currency, sum(a) FROM (
  SELECT account, currency, amount AS a FROM postings UNION ALL SELECT account, currency, -amount FROM balances)
GROUP BY account, currency HAVING sum(a)<>0 ORDER BY account, currency LIMIT 1`}
)

// LedgerPost appends a transaction and moves the balances that it touches; Seq and Prev are set here. A
// transaction whose ID is there already with the same kind and postings changes nothing, and posted is false.
// It returns protocol.ErrImbalance and protocol.ErrBadTransaction for what may not be posted, ErrConflict for
// another transaction under the ID, and ErrFunds when a user's credit would become negative by it. These come
// before anything is written: an Update that takes them for an answer may go on.
func (t *Tx) LedgerPost(x protocol.Transaction) (posted bool, err error) { return t.post(x, true) }

// LedgerForce is LedgerPost for what has happened whatever the credit: a deposit that its bank took back.
func (t *Tx) LedgerForce(x protocol.Transaction) (posted bool, err error) { return t.post(x, false) }

func (t *Tx) post(x protocol.Transaction, funds bool) (posted bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("posting %s: %w", x.ID, err)
		}
	}()
	if err := x.Validate(); err != nil {
		return false, err
	}
	switch old, err := t.LedgerGet(x.ID); {
	case err == nil && (old.Kind != x.Kind || !slices.Equal(old.Postings, x.Postings)):
		return false, fmt.Errorf("%w: transaction %d has this ID and moves other amounts", ErrConflict, old.Seq)
	case err == nil:
		return false, nil
	case !isNotFound(err):
		return false, err
	}
	after, err := t.balancesAfter(x.Postings, funds)
	if err != nil {
		return false, err
	}
	if x.Seq, x.Prev, err = t.LedgerHead(); err != nil {
		return false, err
	}
	x.Seq++
	return true, t.append(x, after)
}

// balancesAfter returns the balances that postings lead to, as postings, or ErrFunds. Credit is looked at
// after all of them: a transaction may pass money through an account.
func (t *Tx) balancesAfter(postings []protocol.Posting, funds bool) ([]protocol.Posting, error) {
	type key struct {
		account  string
		currency protocol.Currency
	}
	var out []protocol.Posting
	at, spends := map[key]int{}, map[int]bool{}
	for _, p := range postings {
		k := key{p.Account, p.Currency}
		i, ok := at[k]
		if !ok {
			old, err := t.Balance(p.Account, p.Currency)
			if err != nil {
				return nil, err
			}
			i, at[k] = len(out), len(out)
			out = append(out, protocol.Posting{Account: p.Account, Currency: p.Currency, Amount: old})
		}
		b := &out[i]
		if p.Amount > 0 && b.Amount > math.MaxInt64-p.Amount || p.Amount < 0 && b.Amount < math.MinInt64-p.Amount {
			return nil, fmt.Errorf("%w: balance of %s leaves 64 bits", ErrBadRow, p.Account)
		}
		b.Amount += p.Amount
		spends[i] = spends[i] || p.Amount < 0
	}
	for i, b := range out {
		if funds && spends[i] && b.Amount < 0 && strings.HasPrefix(b.Account, "user/") && strings.HasSuffix(b.Account, "/credit") {
			return nil, fmt.Errorf("%w: %s lacks %d in the smallest unit of %s", ErrFunds, b.Account, -b.Amount, b.Currency)
		}
	}
	return out, nil
}

// append writes a transaction, its postings and the balances after it.
func (t *Tx) append(x protocol.Transaction, after []protocol.Posting) error {
	hash := x.Hash()
	if _, err := t.write(putTransaction, func(a *args) {
		a.uint("Transaction.Seq", x.Seq)
		a.text(x.ID)
		a.text(string(x.Kind))
		a.text(x.Epoch)
		a.int(x.AtMS)
		a.text(x.Ref)
		a.hash(x.Prev)
		a.hash(hash)
	}); err != nil {
		return err
	}
	for i, p := range x.Postings {
		if _, err := t.write(putPosting, func(a *args) {
			a.uint("Transaction.Seq", x.Seq)
			a.int(int64(i))
			a.text(p.Account)
			a.text(string(p.Currency))
			a.int(p.Amount)
		}); err != nil {
			return err
		}
	}
	return putAll(t, putBalance, after, func(a *args, b *protocol.Posting) {
		a.text(b.Account)
		a.text(string(b.Currency))
		a.int(b.Amount)
	})
}

// LedgerHead returns the number and hash of the last transaction, zeros when there is none.
func (t *Tx) LedgerHead() (seq uint64, hash [32]byte, err error) {
	type head struct {
		seq  uint64
		hash [32]byte
	}
	h, err := one(t, lastTransaction, func(r *row) head { return head{r.uint(), r.hash()} }, "last transaction of", "the ledger")
	if isNotFound(err) {
		err = nil
	}
	return h.seq, h.hash, err
}

// ledgerRow is a stored transaction before its postings are read.
type ledgerRow struct {
	protocol.Transaction
	hash [32]byte
}

func scanTransaction(r *row) ledgerRow {
	return ledgerRow{protocol.Transaction{
		Seq: r.uint(), ID: r.text(), Kind: protocol.TransactionKind(r.text()), Epoch: r.text(), AtMS: r.int(), Ref: r.text(), Prev: r.hash(),
	}, r.hash()}
}

func scanPosting(r *row) protocol.Posting {
	return protocol.Posting{Account: r.text(), Currency: protocol.Currency(r.text()), Amount: r.int()}
}

func (t *Tx) withPostings(x ledgerRow) (_ protocol.Transaction, err error) {
	x.Postings, err = collect(list(t, listPostings, scanPosting, int64(x.Seq)))
	if err == nil && x.Hash() != x.hash {
		err = fmt.Errorf("%w: transaction %d of the ledger does not have its hash", ErrCorrupt, x.Seq)
	}
	return x.Transaction, err
}

// LedgerGet returns a transaction by its ID, or ErrNotFound; ErrCorrupt when it is not what was posted.
func (t *Tx) LedgerGet(id string) (protocol.Transaction, error) {
	x, err := one(t, getTransaction, scanTransaction, "transaction", id, id)
	if err != nil {
		return protocol.Transaction{}, err
	}
	return t.withPostings(x)
}

// Transactions yields the ledger after a number, in order; 0 is all of it.
func (t *Tx) Transactions(after uint64) iter.Seq2[protocol.Transaction, error] {
	return t.transactions(list(t, listTransactions, scanTransaction, int64(after)))
}

// AccountTransactions yields the transactions after a number that touch an account, in order.
func (t *Tx) AccountTransactions(account string, c protocol.Currency, after uint64) iter.Seq2[protocol.Transaction, error] {
	return t.transactions(list(t, accountStatements, scanTransaction, account, string(c), int64(after)))
}

func (t *Tx) transactions(rows iter.Seq2[ledgerRow, error]) iter.Seq2[protocol.Transaction, error] {
	return func(yield func(protocol.Transaction, error) bool) {
		for x, err := range rows {
			full := x.Transaction
			if err == nil {
				full, err = t.withPostings(x)
			}
			if !yield(full, err) || err != nil {
				return
			}
		}
	}
}

// Balance returns what is on an account, 0 when nothing ever was.
func (t *Tx) Balance(account string, c protocol.Currency) (int64, error) {
	n, err := one(t, getBalance, (*row).int, "balance of", account, account, string(c))
	if isNotFound(err) {
		return 0, nil
	}
	return n, err
}

// Balances returns the accounts whose names begin with prefix, as postings of their balances, by name and
// currency.
func (t *Tx) Balances(prefix string) ([]protocol.Posting, error) {
	return collect(list(t, listBalances, scanPosting, prefix))
}

// LedgerVerify reads the whole ledger: every transaction is valid and chained to the one before it, and every
// balance is the sum of its postings. It returns ErrCorrupt or protocol.ErrImbalance.
func (t *Tx) LedgerVerify() error {
	var seq uint64
	var hash [32]byte
	for x, err := range t.Transactions(0) {
		switch {
		case err != nil:
			return err
		case x.Seq != seq+1 || x.Prev != hash:
			return fmt.Errorf("%w: transaction %d does not follow transaction %d", ErrCorrupt, x.Seq, seq)
		}
		if err := x.Validate(); err != nil {
			return fmt.Errorf("transaction %d: %w", x.Seq, err)
		}
		seq, hash = x.Seq, x.Hash()
	}
	for p, err := range list(t, ledgerDrift, scanPosting) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: balance of %s differs from its postings by %d %s", ErrCorrupt, p.Account, p.Amount, p.Currency)
	}
	return nil
}
