package settlement

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

var start = time.UnixMilli(1_767_484_800_000)

// TestSourceHasNoFloat keeps floating-point numbers out of every file that counts money.
func TestSourceHasNoFloat(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		src, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		looked++
		for _, where := range floats(t, f.Name(), string(src)) {
			t.Error(where)
		}
	}
	if looked < 5 {
		t.Fatalf("only %d files were looked at", looked)
	}
	for _, bad := range []string{"var x float64", "var x = 1.5", "var x = 1e3", "import \"math\"\nvar x = math.Pi", "var x *big.Float", "var x complex128"} {
		if len(floats(t, "bad.go", "package p\n"+bad)) == 0 {
			t.Errorf("%q was not found", bad)
		}
	}
}

func floats(t *testing.T, name, src string) (out []string) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			switch n.Name {
			case "float32", "float64", "complex64", "complex128", "Float", "Float32", "Float64", "SetFloat64", "NewFloat", "ParseFloat":
				out = append(out, fset.Position(n.Pos()).String()+": "+n.Name)
			}
		case *ast.BasicLit:
			if n.Kind == token.FLOAT || n.Kind == token.IMAG {
				out = append(out, fset.Position(n.Pos()).String()+": "+n.Value)
			}
		case *ast.ImportSpec:
			if n.Path.Value == `"math"` {
				out = append(out, fset.Position(n.Pos()).String()+": math")
			}
		}
		return true
	})
	return out
}

// TestSplitNeverMakesOrLosesAUnit draws pools and weights: the parts sum to the pool, none is negative or off by
// a unit or more from its exact value, order does not matter, and more weight never gives less.
func TestSplitNeverMakesOrLosesAUnit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		n := 1 + rng.IntN(12)
		w := make([]Weight, n)
		for i := range w {
			w[i] = Weight{protocol.PeerID(fmt.Sprintf("p%03d", rng.IntN(1<<30))), big.NewInt(rng.Int64N(1 << uint(rng.IntN(62))))}
			if rng.IntN(5) == 0 {
				w[i].W = big.NewInt(0)
			}
			if i > 0 && rng.IntN(3) == 0 {
				w[i].W = w[i-1].W // ties
			}
		}
		pool := rng.Int64N(1 << uint(1+rng.IntN(61)))
		parts, carry, err := Split(pool, w)
		if err != nil {
			t.Fatal(err)
		}
		total := new(big.Int)
		for i := range w {
			total.Add(total, w[i].W)
		}
		sum := carry
		for i, p := range parts {
			sum += p
			if p < 0 || w[i].W.Sign() == 0 && p != 0 {
				t.Fatalf("weight %s of %s gets %d of %d", w[i].W, total, p, pool)
			}
			if total.Sign() > 0 { // |p × Σw − pool × w| < Σw
				d := new(big.Int).Mul(big.NewInt(p), total)
				if d.Sub(d, new(big.Int).Mul(big.NewInt(pool), w[i].W)); d.CmpAbs(total) >= 0 {
					t.Fatalf("weight %s of %s gets %d of %d", w[i].W, total, p, pool)
				}
			}
		}
		if sum != pool || total.Sign() > 0 && carry != 0 {
			t.Fatalf("%d of %d were given out, carry %d", sum, pool, carry)
		}
		perm := rng.Perm(n)
		mixed := make([]Weight, n)
		for i, k := range perm {
			mixed[i] = w[k]
		}
		again, _, err := Split(pool, mixed)
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range perm {
			if again[i] != parts[k] {
				t.Fatalf("in another order %s gets %d instead of %d", w[k].Peer, again[i], parts[k])
			}
		}
		k := rng.IntN(n)
		more := slices.Clone(w)
		more[k].W = new(big.Int).Add(w[k].W, big.NewInt(rng.Int64N(1<<40)))
		if grown, _, err := Split(pool, more); err != nil || grown[k] < parts[k] {
			t.Fatalf("with more weight %d instead of %d, %v", grown[k], parts[k], err)
		}
	}
}

// TestRootsAreExact compares the integer root with its definition.
func TestRootsAreExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	one := big.NewInt(1)
	for range 2_000 {
		x := randBig(rng, new(big.Int).Lsh(one, uint(1+rng.IntN(900))))
		n := int64(1 + rng.IntN(10))
		r := root(x, n)
		if new(big.Int).Exp(r, big.NewInt(n), nil).Cmp(x) > 0 || new(big.Int).Exp(new(big.Int).Add(r, one), big.NewInt(n), nil).Cmp(x) <= 0 {
			t.Fatalf("the %d-th root of %s is not %s", n, x, r)
		}
	}
}

// TestProofsHold proves every leaf of every tree of up to 40 leaves, and nothing else.
func TestProofsHold(t *testing.T) {
	for n := 1; n <= 40; n++ {
		leaves := make([][]byte, n)
		for i := range leaves {
			leaves[i] = []byte{byte(i), byte(n)}
		}
		r := Root(leaves)
		for i := range leaves {
			p := Proof(leaves, i)
			if !VerifyProof(r, leaves[i], i, n, p) {
				t.Fatalf("leaf %d of %d is not proved", i, n)
			}
			if VerifyProof(r, []byte("other"), i, n, p) || VerifyProof(r, leaves[i], i+n, n, p) || VerifyProof(r, leaves[i], -1, n, p) {
				t.Fatalf("leaf %d of %d: something else is proved", i, n)
			}
			if len(p) > 0 && (VerifyProof(r, leaves[i], i, n, p[1:]) || VerifyProof(r, leaves[i], i, n, append(slices.Clone(p), r))) {
				t.Fatalf("leaf %d of %d: a path of another length proves it", i, n)
			}
			for k := range leaves {
				if k != i && VerifyProof(r, leaves[i], k, n, p) {
					t.Fatalf("leaf %d of %d passes for %d", i, n, k)
				}
			}
		}
	}
}

// books is a store's view: balances by account, transactions by ID.
type books struct {
	balance map[string]int64
	seen    map[string]bool
}

func (b *books) post(t *testing.T, tx protocol.Transaction) {
	t.Helper()
	if err := tx.Validate(); err != nil {
		t.Fatal(err)
	}
	if b.seen[tx.ID] {
		return
	}
	b.seen[tx.ID] = true
	for _, p := range tx.Postings {
		b.balance[p.Account] += p.Amount
	}
}

// TestJobsMoneyAddsUp runs random jobs through credit, reserve, charges in random steps and release: what the
// user lost is the bill up to the reservation, fee and burn are those of the bill, and posting twice is nothing.
func TestJobsMoneyAddsUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2_000 {
		p := Prices{OperatorPPM: rng.Int64N(300_000), FoundationPPM: rng.Int64N(100_000), ReservePPM: 1_100_000}
		b := books{map[string]int64{}, map[string]bool{}}
		job := protocol.NewJobID()
		deposit := 1 + rng.Int64N(1e9)
		tx, err := Grant("demo", "ada", deposit, "first", start)
		if err != nil {
			t.Fatal(err)
		}
		b.post(t, tx)
		b.post(t, tx)
		reserved := 1 + rng.Int64N(deposit)
		if tx, err = Reserve(job, "ada", 1, reserved, start); err != nil {
			t.Fatal(err)
		}
		b.post(t, tx)
		left, overrun, bills := reserved, int64(0), int64(0)
		var wantFee, wantBurn int64
		for node := range 1 + rng.IntN(4) {
			rate, err := p.Rate(rng.Int64N(5e6))
			if err != nil {
				t.Fatal(err)
			}
			l := Line{Job: job, Node: protocol.PeerID(fmt.Sprint(node)), RateUUSD: rate}
			for range rng.IntN(20) {
				l.BilledMS += rng.Int64N(1e7)
				c, err := p.Charge("ada", l, left, start)
				if err != nil {
					t.Fatal(err)
				}
				if c.Tx.ID == "" {
					continue
				}
				if again, err := p.Charge("ada", l, left, start); err != nil || again.Tx.ID != c.Tx.ID {
					t.Fatalf("the same charge has IDs %s and %s", c.Tx.ID, again.Tx.ID)
				}
				b.post(t, c.Tx)
				b.post(t, c.Tx)
				l.ChargedUUSD += c.DueUUSD
				left -= c.PaidUUSD
				overrun += c.OverrunUUSD
			}
			bill, err := Bill(l.RateUUSD, l.BilledMS)
			if err != nil {
				t.Fatal(err)
			}
			parts, err := p.Parts(bill)
			if err != nil {
				t.Fatal(err)
			}
			bills, wantFee, wantBurn = bills+bill, wantFee+parts.Fee(), wantBurn+parts.Burn
		}
		if left > 0 {
			if tx, err = Release(job, "ada", left, start); err != nil {
				t.Fatal(err)
			}
			b.post(t, tx)
		}
		switch {
		case b.balance[AccountReserved("ada")] != 0:
			t.Fatalf("%d stay reserved", b.balance[AccountReserved("ada")])
		case b.balance[AccountCredit("ada")] != deposit-bills+overrun:
			t.Fatalf("credit is %d after %d, bills %d, overrun %d", b.balance[AccountCredit("ada")], deposit, bills, overrun)
		case b.balance[AccountBurnPayable] != wantBurn || b.balance[AccountFeeOperator]+b.balance[AccountFeeFoundation] != wantFee:
			t.Fatalf("burn %d, fee %d, want %d, %d", b.balance[AccountBurnPayable], b.balance[AccountFeeOperator]+b.balance[AccountFeeFoundation], wantBurn, wantFee)
		case -b.balance[AccountSpeculation] != overrun || overrun > 0 && left > 0:
			t.Fatalf("overrun %d with %d left, account %d", overrun, left, b.balance[AccountSpeculation])
		case wantBurn+wantFee != bills:
			t.Fatalf("bill %d is burn %d and fee %d", bills, wantBurn, wantFee)
		}
		all := int64(0)
		for _, n := range b.balance {
			all += n
		}
		if all != 0 {
			t.Fatalf("the ledger holds %d", all)
		}
	}
}

func TestBuildersRefuseWhatCannotBePosted(t *testing.T) {
	job := protocol.NewJobID()
	for name, tt := range map[string]struct {
		f    func() (protocol.Transaction, error)
		want error
	}{
		"deposit of nothing": {func() (protocol.Transaction, error) { return Deposit("card", "ada", 0, "r", start) }, ErrAmount},
		"negative grant":     {func() (protocol.Transaction, error) { return Grant("p", "ada", -5, "r", start) }, ErrAmount},
		"unknown rail":       {func() (protocol.Transaction, error) { return Deposit("shells", "ada", 1, "r", start) }, ErrName},
		"user with a slash":  {func() (protocol.Transaction, error) { return Deposit("card", "ada/credit", 1, "r", start) }, ErrName},
		"empty reference":    {func() (protocol.Transaction, error) { return Grant("p", "ada", 1, "", start) }, ErrName},
		"reserve nothing":    {func() (protocol.Transaction, error) { return Reserve(job, "ada", 1, 0, start) }, ErrAmount},
		"release for nobody": {func() (protocol.Transaction, error) { return Release(job, "", 1, start) }, ErrName},
		"before time":        {func() (protocol.Transaction, error) { return Grant("p", "ada", 1, "r", time.UnixMilli(0)) }, protocol.ErrBadTransaction},
	} {
		if tx, err := tt.f(); !errors.Is(err, tt.want) || tx.ID != "" {
			t.Errorf("%s gives %+v, %v", name, tx, err)
		}
	}
}

func TestWorkThatNobodyAskedForIsTheBridgesExpense(t *testing.T) {
	p := DefaultPrices()
	l := Line{Job: protocol.NewJobID(), Node: "n", RateUUSD: 2_000_000, BilledMS: HourMS, ChargedUUSD: 500_000}
	c, err := p.Speculate(l, start)
	if err != nil || c.OverrunUUSD != 1_425_000 || c.DueUUSD != 1_500_000 || c.Tx.Kind != protocol.KindExpense {
		t.Fatalf("%+v, %v", c, err)
	}
	if l.ChargedUUSD = 2_000_000; true {
		if c, err := p.Speculate(l, start); err != nil || c.Tx.ID != "" {
			t.Fatalf("a line that has not grown posts %+v, %v", c, err)
		}
	}
}

// TestPayersAreThoseOfTheDesign checks the table of settlement.md 2.
func TestPayersAreThoseOfTheDesign(t *testing.T) {
	for name, tt := range map[string]struct {
		e    Ending
		want Payer
	}{
		"accounted":                    {Ending{Reason: protocol.ReasonDone, Accounted: true}, PayerUser},
		"a copy that was asked for":    {Ending{Reason: protocol.ReasonDone, Asked: true}, PayerUser},
		"a copy that came second":      {Ending{Reason: protocol.ReasonDone}, PayerBridge},
		"an audit":                     {Ending{Reason: protocol.ReasonDone, Audit: true}, PayerBridge},
		"failed by the job":            {Ending{Reason: protocol.ReasonExitNonzero, Blame: protocol.BlameJob}, PayerUser},
		"an audit failed by the job":   {Ending{Reason: protocol.ReasonExitNonzero, Blame: protocol.BlameJob, Audit: true}, PayerBridge},
		"failed, blamed on the node":   {Ending{Reason: protocol.ReasonExitNonzero, Blame: protocol.BlameNode}, PayerNobody},
		"cancelled by the user":        {Ending{Reason: protocol.ReasonCancelled}, PayerUser},
		"lost in silence":              {Ending{Reason: protocol.ReasonHeartbeatLost, Blame: protocol.BlameNode}, PayerNobody},
		"lost, the bridge was away":    {Ending{Reason: protocol.ReasonLeaseExpired}, PayerBridge},
		"the bridge failed":            {Ending{Reason: protocol.ReasonBridgeError}, PayerBridge},
		"the network":                  {Ending{Reason: protocol.ReasonUnreachable, Blame: protocol.BlameNetwork}, PayerBridge},
		"a straggler's losing copy":    {Ending{Reason: protocol.ReasonSuperseded}, PayerBridge},
		"preempted":                    {Ending{Reason: protocol.ReasonPreempted}, PayerBridge},
		"drained":                      {Ending{Reason: protocol.ReasonDrained}, PayerBridge},
		"a wrong result":               {Ending{Reason: protocol.ReasonResultWrong, Blame: protocol.BlameNode, Audit: true}, PayerNobody},
		"refused":                      {Ending{Reason: protocol.ReasonRefusedPolicy}, PayerNobody},
		"accounted although it blamed": {Ending{Reason: protocol.ReasonDone, Accounted: true, Blame: protocol.BlameNode}, PayerUser},
	} {
		if got := PaidBy(tt.e); got != tt.want {
			t.Errorf("%s is paid by %s, want %s", name, got, tt.want)
		}
	}
}

func TestStatementsAddUp(t *testing.T) {
	p := DefaultPrices()
	job := protocol.NewJobID()
	rng := rand.New(rand.NewPCG(7, 8))
	for range 1_000 {
		var usage []Usage
		for i := range rng.IntN(6) {
			rate, err := p.Rate(rng.Int64N(3) * rng.Int64N(5e6))
			if err != nil {
				t.Fatal(err)
			}
			ms := rng.Int64N(1e8)
			usage = append(usage, Usage{
				Node: protocol.PeerID(fmt.Sprint(9 - i)), RateUUSD: rate, Chunks: 1, Records: 2, WorkingMS: ms + 5, PreparingMS: 7, GPUMS: ms + 5, BilledMS: ms,
			})
		}
		pool := rng.Int64N(1e12)
		s, err := p.NewStatement(job, usage, pool, start)
		if err != nil {
			t.Fatal(err)
		}
		if s.Total.ShareUnits+s.CarryUnits != pool {
			t.Fatalf("%d and %d of a pool of %d", s.Total.ShareUnits, s.CarryUnits, pool)
		}
		if s.Total.BillUUSD != s.Total.FeeUUSD+s.Total.BurnUUSD || s.Total.Chunks != uint64(len(usage)) {
			t.Fatalf("total %+v", s.Total)
		}
		if want := int64(Million); s.Total.BurnUUSD > 0 && s.Total.SharePPM != want || s.Total.BurnUUSD == 0 && (s.Total.SharePPM != 0 || s.CarryUnits != pool) {
			t.Fatalf("shares sum to %d ppm, %d carried of %d", s.Total.SharePPM, s.CarryUnits, pool)
		}
		if !slices.IsSortedFunc(s.Lines, func(a, b protocol.StatementLine) int { return strings.Compare(string(a.Node), string(b.Node)) }) {
			t.Fatal("lines are not in order")
		}
		slices.Reverse(usage)
		if again, err := p.NewStatement(job, usage, pool, start); err != nil || fmt.Sprint(again) != fmt.Sprint(s) {
			t.Fatalf("in another order the statement is another one, %v", err)
		}
	}
}

// TestJobShareIsByCoupons checks rnp004's CR_i on the example of settlement.md 13 through a statement.
func TestJobShareIsByCoupons(t *testing.T) {
	p := Prices{ReservePPM: Million} // no fee: the burn is the bill
	var usage []Usage
	for i, usd := range []int64{120, 60, 15, 5} {
		usage = append(usage, Usage{Node: protocol.PeerID([]byte{byte(i)}), RateUUSD: Million, BilledMS: usd * HourMS})
	}
	s, err := p.NewStatement(protocol.NewJobID(), usage, 1000*RenderUnits, start)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{600, 300, 75, 25} {
		if got := s.Lines[i]; got.ShareUnits != want*RenderUnits || got.SharePPM != want*1000 {
			t.Errorf("node %d gets %d units, %d ppm, want %d RENDER", i, got.ShareUnits, got.SharePPM, want)
		}
	}
}

func FuzzParseWallet(f *testing.F) {
	f.Add("29d2S7vB453rNYFdR5Ycwt7y9haRT5fwVwL9zTmBhfV2")
	f.Add(strings.Repeat("1", 32))
	f.Add("1111111111111111111111111111111zzzzzz")
	f.Fuzz(func(t *testing.T, s string) {
		if w, err := ParseWallet(s); err == nil && w.String() != s {
			t.Errorf("%q is read as %q", s, w)
		}
	})
}

func randBig(rng *rand.Rand, below *big.Int) *big.Int {
	b := make([]byte, (below.BitLen()+7)/8+8)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return new(big.Int).Mod(new(big.Int).SetBytes(b), below)
}
