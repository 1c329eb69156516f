package protocol

import (
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
)

func goodTransaction() Transaction {
	return Transaction{
		Seq: 3, ID: "charge/a/b/5", Kind: KindCharge, AtMS: 1_767_484_800_000, Ref: "job/a",
		Postings: []Posting{{"user/ada/reserved", USD, -5}, {"burn/payable", USD, 4}, {"fee/foundation", USD, 1}},
	}
}

func TestTransactionsBalanceInEachCurrency(t *testing.T) {
	if x := goodTransaction(); x.Validate() != nil {
		t.Fatal(x.Validate())
	}
	for name, tt := range map[string]struct {
		spoil func(*Transaction)
		want  error
	}{
		"a unit from nowhere": {func(x *Transaction) { x.Postings[1].Amount++ }, ErrImbalance},
		"across currencies":   {func(x *Transaction) { x.Postings[1].Currency = RENDER }, ErrImbalance},
		"sum wraps around": {func(x *Transaction) {
			x.Postings[0].Amount, x.Postings[1].Amount, x.Postings[2].Amount = math.MaxInt64, math.MaxInt64, 2
		}, ErrImbalance},
		"one posting":          {func(x *Transaction) { x.Postings = x.Postings[:1] }, ErrBadTransaction},
		"too many postings":    {func(x *Transaction) { x.Postings = make([]Posting, MaxPostings+1) }, ErrBadTransaction},
		"no ID":                {func(x *Transaction) { x.ID = "" }, ErrBadTransaction},
		"ID too long":          {func(x *Transaction) { x.ID = strings.Repeat("x", 513) }, ErrBadTransaction},
		"no kind":              {func(x *Transaction) { x.Kind = "" }, ErrBadTransaction},
		"no time":              {func(x *Transaction) { x.AtMS = 0 }, ErrBadTransaction},
		"reference too long":   {func(x *Transaction) { x.Ref = strings.Repeat("x", 513) }, ErrBadTransaction},
		"amount 0":             {func(x *Transaction) { x.Postings[1].Amount = 0 }, ErrBadTransaction},
		"amount without minus": {func(x *Transaction) { x.Postings[0].Amount = math.MinInt64 }, ErrBadTransaction},
		"unknown currency":     {func(x *Transaction) { x.Postings[1].Currency = "EUR" }, ErrBadTransaction},
		"no account":           {func(x *Transaction) { x.Postings[1].Account = "" }, ErrBadTransaction},
		"account of one word":  {func(x *Transaction) { x.Postings[1].Account = "burn" }, ErrBadTransaction},
		"account with a space": {func(x *Transaction) { x.Postings[1].Account = "burn/pay able" }, ErrBadTransaction},
		"account with a gap":   {func(x *Transaction) { x.Postings[1].Account = "user//credit" }, ErrBadTransaction},
		"account too deep":     {func(x *Transaction) { x.Postings[1].Account = "user/a/b/c/d" }, ErrBadTransaction},
	} {
		x := goodTransaction()
		tt.spoil(&x)
		if err := x.Validate(); !errors.Is(err, tt.want) {
			t.Errorf("%s gives %v, want %v", name, err, tt.want)
		}
	}
}

// TestTransactionHashIsFrozen keeps the chain of every ledger that was written readable; each field matters.
func TestTransactionHashIsFrozen(t *testing.T) {
	x := goodTransaction()
	h := x.Hash()
	if got := hex.EncodeToString(h[:]); got != "3aa872683662ce38cc392c8257d87a34ed85f9053b542693bac2c6c86e7ed909" {
		t.Errorf("hash is %s", got)
	}
	for name, spoil := range map[string]func(*Transaction){
		"seq": func(x *Transaction) { x.Seq++ }, "prev": func(x *Transaction) { x.Prev[31]++ }, "at": func(x *Transaction) { x.AtMS++ },
		"id": func(x *Transaction) { x.ID += "0" }, "kind": func(x *Transaction) { x.Kind = KindGrant }, "epoch": func(x *Transaction) { x.Epoch = "e" },
		"ref": func(x *Transaction) { x.Ref = "" }, "account": func(x *Transaction) { x.Postings[0].Account = "user/bob/reserved" },
		"currency": func(x *Transaction) { x.Postings[0].Currency = RENDER }, "amount": func(x *Transaction) { x.Postings[0].Amount = -6 },
		"postings": func(x *Transaction) { x.Postings = x.Postings[:2] },
		"bounds":   func(x *Transaction) { x.ID, x.Kind = x.ID+"c", x.Kind[1:] },
	} {
		y := goodTransaction()
		spoil(&y)
		if y.Hash() == h {
			t.Errorf("another %s gives the same hash", name)
		}
	}
}
