package settlement

import (
	"errors"
	"fmt"
	"math/big"
)

// Errors of this package. What wraps them names the field.
var (
	// ErrAmount means a number that is negative, or out of int64 after a calculation.
	ErrAmount = errors.New("settlement: amount out of bounds")
	// ErrPrices means Prices that cannot be.
	ErrPrices = errors.New("settlement: bad prices")
)

const (
	// Million is the whole in millionths: 1,000,000 ppm.
	Million = 1_000_000
	// HourMS is an hour in milliseconds: rates are per slot-hour.
	HourMS = 3_600_000
)

// Prices are the parts of a bill that do not go to the node's work.
type Prices struct {
	// OperatorPPM is the fee of whoever runs the bridge, millionths of the bill; default 0.
	OperatorPPM int64
	// FoundationPPM is the network's fee, millionths of the bill; default 50,000 (RNP-021).
	FoundationPPM int64
	// ReservePPM is how much of a quote is set aside, millionths of it; default 1,100,000.
	ReservePPM int64
}

// DefaultPrices returns RNP-021's: 5 % fee, and a reserve of a tenth over the quote.
func DefaultPrices() Prices { return Prices{FoundationPPM: 50_000, ReservePPM: 1_100_000} }

// Validate returns ErrPrices naming the field.
func (p Prices) Validate() error {
	switch {
	case p.OperatorPPM < 0 || p.OperatorPPM >= Million:
		return fmt.Errorf("%w: OperatorPPM is %d, want 0..999999", ErrPrices, p.OperatorPPM)
	case p.FoundationPPM < 0 || p.FoundationPPM >= Million || p.FeePPM() >= Million:
		return fmt.Errorf("%w: FoundationPPM is %d beside OperatorPPM %d, want less than 1000000 together", ErrPrices, p.FoundationPPM, p.OperatorPPM)
	case p.ReservePPM < Million || p.ReservePPM > 100*Million:
		return fmt.Errorf("%w: ReservePPM is %d, want 1000000..100000000", ErrPrices, p.ReservePPM)
	}
	return nil
}

// FeePPM is the whole fee in millionths.
func (p Prices) FeePPM() int64 { return p.OperatorPPM + p.FoundationPPM }

// Rate is what a user pays for a node's ask, both micro-USD per slot-hour: ceil(ask × 10^6 / (10^6 − fee)). An
// ask of 0 is free work. It returns ErrAmount or ErrPrices.
func (p Prices) Rate(ask int64) (int64, error) {
	if err := p.Validate(); err != nil {
		return 0, err
	}
	return mulDiv("ask", ask, Million, Million-p.FeePPM(), true)
}

// Bill is a bill line: floor(rate × ms / 3,600,000) micro-USD for slot milliseconds at a rate per slot-hour.
// It returns ErrAmount.
func Bill(rate, ms int64) (int64, error) {
	if rate < 0 {
		return 0, fmt.Errorf("%w: rate is %d", ErrAmount, rate)
	}
	return mulDiv("gpu_ms", ms, rate, HourMS, false)
}

// Parts are what a bill is made of: fees floor, the burn is the rest.
type Parts struct {
	// Operator is the bridge operator's fee, micro-USD.
	Operator int64
	// Foundation is the network's fee, micro-USD.
	Foundation int64
	// Burn is what is burned in the node's name, micro-USD.
	Burn int64
}

// Fee is the sum of both fees.
func (p Parts) Fee() int64 { return p.Operator + p.Foundation }

// Parts takes a bill apart. It returns ErrAmount or ErrPrices.
func (p Prices) Parts(bill int64) (Parts, error) {
	if err := p.Validate(); err != nil {
		return Parts{}, err
	}
	op, err := mulDiv("bill", bill, p.OperatorPPM, Million, false)
	if err != nil {
		return Parts{}, err
	}
	fo, err := mulDiv("bill", bill, p.FoundationPPM, Million, false)
	if err != nil {
		return Parts{}, err
	}
	return Parts{Operator: op, Foundation: fo, Burn: bill - op - fo}, nil
}

// BurnUnits is how many RENDER base units a burn of micro-USD takes at a price in micro-USD per RENDER:
// rounded up, so that no burn falls short. It returns ErrAmount.
func BurnUnits(uusd, price int64) (int64, error) {
	if price <= 0 {
		return 0, fmt.Errorf("%w: price is %d micro-USD per RENDER", ErrAmount, price)
	}
	return mulDiv("burn", uusd, RenderUnits, price, true)
}

// RenderUnits is how many base units a RENDER has.
const RenderUnits = 100_000_000

// mulDiv is a × b / c, rounded down or up, for a ≥ 0, b ≥ 0, c > 0. The product may exceed int64, the result
// may not.
func mulDiv(field string, a, b, c int64, up bool) (int64, error) {
	if a < 0 || b < 0 || c <= 0 {
		return 0, fmt.Errorf("%w: %s is %d", ErrAmount, field, a)
	}
	n := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
	d := big.NewInt(c)
	q, r := n.QuoRem(n, d, new(big.Int))
	if up && r.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return fit(field, q)
}

func fit(field string, n *big.Int) (int64, error) {
	if !n.IsInt64() || n.Sign() < 0 {
		return 0, fmt.Errorf("%w: %s comes to %s", ErrAmount, field, n)
	}
	return n.Int64(), nil
}

// sum adds amounts that are not negative.
func sum(field string, amounts ...int64) (int64, error) {
	t := new(big.Int)
	for _, a := range amounts {
		if a < 0 {
			return 0, fmt.Errorf("%w: %s is %d", ErrAmount, field, a)
		}
		t.Add(t, big.NewInt(a))
	}
	return fit(field, t)
}
