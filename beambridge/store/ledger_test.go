package store_test

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

func deposit(id, user string, amount int64) protocol.Transaction {
	return protocol.Transaction{ID: id, Kind: protocol.KindDeposit, AtMS: when.UnixMilli(), Postings: []protocol.Posting{
		{Account: "cash/card", Currency: protocol.USD, Amount: -amount}, {Account: "user/" + user + "/credit", Currency: protocol.USD, Amount: amount},
	}}
}

func balance(t testing.TB, s *store.Store, account string) (n int64) {
	t.Helper()
	view(t, s, func(tx *store.Tx) (err error) { n, err = tx.Balance(account, protocol.USD); return err })
	return n
}

func TestWhatMayNotBePostedIsRefusedAndTheUpdateGoesOn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	update(t, s, func(tx *store.Tx) error { _, err := tx.LedgerPost(deposit("deposit/1", "u", 1000)); return err })
	uneven := charge("charge/1", "u", 100)
	uneven.Postings[1].Amount++
	other := deposit("deposit/1", "u", 1001)
	through := protocol.Transaction{ID: "through", Kind: protocol.KindRelease, AtMS: 1, Postings: []protocol.Posting{ // more than is there passes through
		{Account: "user/u/credit", Currency: protocol.USD, Amount: -5000},
		{Account: "user/u/reserved", Currency: protocol.USD, Amount: 5000},
		{Account: "user/u/reserved", Currency: protocol.USD, Amount: -4500},
		{Account: "user/u/credit", Currency: protocol.USD, Amount: 4500},
	}}
	huge, more := deposit("deposit/huge", "v", math.MaxInt64), deposit("deposit/more", "v", 1)
	huge.Postings[0].Account = "cash/ach"
	update(t, s, func(tx *store.Tx) error {
		for _, c := range []struct {
			name   string
			x      protocol.Transaction
			posted bool
			err    error
		}{
			{"an imbalance", uneven, false, protocol.ErrImbalance},
			{"no postings", protocol.Transaction{ID: "x", Kind: protocol.KindCharge, AtMS: 1}, false, protocol.ErrBadTransaction},
			{"more than the credit", charge("charge/2", "u", 1001), false, store.ErrFunds},
			{"a repeat", deposit("deposit/1", "u", 1000), false, nil},
			{"another one under the ID", other, false, store.ErrConflict},
			{"all of the credit", charge("charge/3", "u", 1000), true, nil},
			{"a few micro-dollars more", charge("charge/4", "u", 20), false, store.ErrFunds},
			{"credit again", deposit("deposit/2", "u", 700), true, nil},
			{"through the account", through, true, nil},
			{"the largest amount", huge, true, nil},
			{"beyond 64 bits", more, false, store.ErrBadRow},
		} {
			posted, err := tx.LedgerPost(c.x)
			if posted != c.posted || !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Errorf("%s: %v, %v, want %v, %v", c.name, posted, err, c.posted, c.err)
			}
		}
		return nil
	})
	if b := balance(t, s, "user/u/credit"); b != 200 {
		t.Errorf("credit is %d, want 1000 - 1000 + 700 - 500", b)
	}
	update(t, s, func(tx *store.Tx) error { _, err := tx.LedgerForce(charge("charge/5", "u", 300)); return err })
	if b := balance(t, s, "user/u/credit"); b != -100 {
		t.Errorf("credit is %d, want -100 by force", b)
	}
	update(t, s, func(tx *store.Tx) error { // who pays part of a debt is not told to have too little credit
		_, err := tx.LedgerPost(deposit("deposit/3", "u", 60))
		return err
	})
	view(t, s, func(tx *store.Tx) error { return tx.LedgerVerify() })
}

func TestTheLedgerIsReadBackInOrderAndByAccount(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	want := []protocol.Transaction{deposit("d1", "u", 1000), deposit("d2", "v", 500), charge("c1", "u", 100)}
	want[2].Epoch, want[2].Ref = "rnp004/2026-01-04T00:00:00Z", "job 1"
	update(t, s, func(tx *store.Tx) error {
		for i := range want {
			if _, err := tx.LedgerPost(want[i]); err != nil {
				return err
			}
			want[i].Seq = uint64(i + 1)
			if i > 0 {
				want[i].Prev = want[i-1].Hash()
			}
		}
		return nil
	})
	view(t, s, func(tx *store.Tx) error {
		for name, c := range map[string]struct {
			got  func(func(protocol.Transaction, error) bool)
			want []protocol.Transaction
		}{
			"all":     {tx.Transactions(0), want},
			"later":   {tx.Transactions(1), want[1:]},
			"account": {tx.AccountTransactions("user/u/credit", protocol.USD, 0), []protocol.Transaction{want[0], want[2]}},
		} {
			var got []protocol.Transaction
			for x, err := range c.got {
				if err != nil {
					return err
				}
				got = append(got, x)
			}
			t.Log(name)
			same(t, got, c.want, nil)
		}
		x, err := tx.LedgerGet("c1")
		same(t, x, want[2], err)
		if _, err := tx.LedgerGet("c2"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
		seq, hash, err := tx.LedgerHead()
		same(t, []any{seq, hash}, []any{uint64(3), want[2].Hash()}, err)
		b, err := tx.Balances("user/")
		same(t, b, []protocol.Posting{{Account: "user/u/credit", Currency: protocol.USD, Amount: 900}, {Account: "user/v/credit", Currency: protocol.USD, Amount: 500}}, err)
		return nil
	})
}

// TestLedgerSumsToZero posts random transactions, most of them valid, in Updates some of which are undone, and
// compares with a ledger of maps.
func TestLedgerSumsToZero(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			path := filepath.Join(t.TempDir(), "bridge.db")
			s := open(t, path)
			accounts := []string{"cash/card", "user/a/credit", "user/b/credit", "user/a/reserved", "burn/payable", "fee/operator", "node/x/accrued"}
			model, posted, undo := map[protocol.Posting]int64{}, map[string]bool{}, errors.New("undo")
			for range 60 {
				next, nextPosted := maps.Clone(model), maps.Clone(posted)
				keep := rng.IntN(4) > 0
				err := s.Update(t.Context(), func(tx *store.Tx) error {
					for range 1 + rng.IntN(10) {
						x := random(rng, accounts)
						done, err := tx.LedgerPost(x)
						if want := apply(next, nextPosted, x); done != (want == nil) && !nextPosted[x.ID] || err != nil && want == nil {
							t.Fatalf("%+v: %v, %v, the model says %v", x, done, err, want)
						}
					}
					if !keep {
						return undo
					}
					return nil
				})
				switch {
				case keep && err != nil, !keep && !errors.Is(err, undo):
					t.Fatal(err)
				case keep:
					model, posted = next, nextPosted
				}
			}
			view(t, s, func(tx *store.Tx) error {
				sum, all := map[protocol.Currency]int64{}, map[protocol.Posting]int64{}
				balances, err := tx.Balances("")
				for _, b := range balances {
					sum[b.Currency] += b.Amount
					all[protocol.Posting{Account: b.Account, Currency: b.Currency}] = b.Amount
				}
				same(t, all, model, err)
				for c, n := range sum {
					if n != 0 {
						t.Errorf("balances in %s sum to %d", c, n)
					}
				}
				return tx.LedgerVerify()
			})
		})
	}
}

// random is a transaction that is mostly valid, under one of few IDs so that some repeat.
func random(rng *rand.Rand, accounts []string) protocol.Transaction {
	x := protocol.Transaction{ID: fmt.Sprintf("x/%d", rng.IntN(400)), Kind: protocol.KindCharge, AtMS: 1}
	for _, c := range []protocol.Currency{protocol.USD, protocol.RENDER}[:1+rng.IntN(2)] {
		var sum int64
		for range 1 + rng.IntN(4) {
			n := 1 + rng.Int64N(1000)
			if rng.IntN(2) == 0 {
				n = -n
			}
			sum += n
			x.Postings = append(x.Postings, protocol.Posting{Account: accounts[rng.IntN(len(accounts))], Currency: c, Amount: n})
		}
		if rng.IntN(10) == 0 {
			sum++
		}
		if sum != 0 {
			x.Postings = append(x.Postings, protocol.Posting{Account: accounts[rng.IntN(len(accounts))], Currency: c, Amount: -sum})
		}
	}
	return x
}

// apply is the ledger as the design says it, without a database.
func apply(balances map[protocol.Posting]int64, posted map[string]bool, x protocol.Transaction) error {
	if err := x.Validate(); err != nil {
		return err
	}
	if posted[x.ID] {
		return store.ErrConflict
	}
	next, spends := maps.Clone(balances), map[protocol.Posting]bool{}
	for _, p := range x.Postings {
		k := protocol.Posting{Account: p.Account, Currency: p.Currency}
		next[k] += p.Amount
		spends[k] = spends[k] || p.Amount < 0
	}
	for k, n := range next {
		if spends[k] && n < 0 && (k.Account == "user/a/credit" || k.Account == "user/b/credit") {
			return store.ErrFunds
		}
	}
	posted[x.ID] = true
	maps.Copy(balances, next)
	return nil
}

func TestALedgerThatSomebodyEditedIsNoticed(t *testing.T) {
	for name, edit := range map[string]string{
		"an amount":              "DROP TRIGGER postings_keep; UPDATE postings SET amount=amount-1 WHERE seq=2 AND line=0",
		"a transaction is gone":  "DROP TRIGGER transactions_hold; DELETE FROM transactions WHERE seq=2",
		"the first one is gone":  "DROP TRIGGER transactions_hold; DELETE FROM transactions WHERE seq=1",
		"a reference":            "DROP TRIGGER transactions_keep; UPDATE transactions SET ref='x' WHERE seq=2",
		"a hash is made to fit":  "DROP TRIGGER transactions_keep; UPDATE transactions SET ref='x', hash=x'%x' WHERE seq=2",
		"a balance":              "UPDATE balances SET amount=amount+1 WHERE account='fee/operator'",
		"a balance out of hand":  "INSERT INTO balances VALUES ('user/mallory/credit', 'USD', 1000000)",
		"with the triggers, not": "UPDATE postings SET amount=0",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bridge.db")
			s := open(t, path)
			update(t, s, func(tx *store.Tx) error {
				for i := range 3 {
					if _, err := tx.LedgerForce(charge(fmt.Sprint("c/", i), "u", 1000)); err != nil {
						return err
					}
				}
				return nil
			})
			view(t, s, func(tx *store.Tx) error {
				x, err := tx.LedgerGet("c/1")
				x.Ref = "x"
				if strings.Contains(edit, "%x") {
					edit = fmt.Sprintf(edit, x.Hash())
				}
				return err
			})
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = db.ExecContext(t.Context(), edit)
			if cerr := db.Close(); cerr != nil {
				t.Fatal(cerr)
			}
			if name == "with the triggers, not" {
				if !contains(err, "append-only") {
					t.Errorf("%v, want a refusal", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := s.View(t.Context(), func(tx *store.Tx) error { return tx.LedgerVerify() }); !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
		})
	}
}
