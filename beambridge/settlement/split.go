package settlement

import (
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/gridbeam/gridbeam/protocol"
)

// Weight is a peer's claim on a pool.
type Weight struct {
	// Peer has it; each peer once.
	Peer protocol.PeerID
	// W is not negative; nil counts as 0.
	W *big.Int
}

// Split shares a pool by weights: floor(pool × w/Σw) each, and the units left over one each to the largest
// remainders, ties to the smaller peer ID (settlement.md 6). parts are in the order of weights and sum to the
// pool; when all weights are 0 they are 0 and all of the pool is carry. It returns ErrAmount for a negative
// number, or for a peer that is named twice.
func Split(pool int64, weights []Weight) (parts []int64, carry int64, err error) {
	if pool < 0 {
		return nil, 0, fmt.Errorf("%w: pool is %d", ErrAmount, pool)
	}
	total := new(big.Int)
	order := make([]int, len(weights))
	for i, w := range weights {
		order[i] = i
		if w.W == nil {
			continue
		}
		if w.W.Sign() < 0 {
			return nil, 0, fmt.Errorf("%w: weight of %s is %s", ErrAmount, w.Peer, w.W)
		}
		total.Add(total, w.W)
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(string(weights[a].Peer), string(weights[b].Peer)) })
	for k := 1; k < len(order); k++ {
		if weights[order[k]].Peer == weights[order[k-1]].Peer {
			return nil, 0, fmt.Errorf("%w: weight of %s comes twice", ErrAmount, weights[order[k]].Peer)
		}
	}
	parts = make([]int64, len(weights))
	if total.Sign() == 0 {
		return parts, pool, nil
	}
	rest := pool
	rem := make([]*big.Int, len(weights))
	for i, w := range weights {
		rem[i] = new(big.Int)
		if w.W == nil {
			continue
		}
		q := new(big.Int).Mul(big.NewInt(pool), w.W)
		q.QuoRem(q, total, rem[i])
		parts[i] = q.Int64() // at most pool
		rest -= parts[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return rem[b].Cmp(rem[a]) })
	for _, i := range order[:rest] { // rest is Σ remainders / Σw: fewer than have a remainder
		parts[i]++
	}
	return parts, 0, nil
}

// ComputePool is the part of an emission that compute work shares, by the USD of both workloads (RNP-004 C_t):
// floor(emission × compute / (compute + octane)); 0 when there was neither. It returns ErrAmount.
func ComputePool(emission, computeUUSD, octaneUUSD int64) (int64, error) {
	all, err := sum("usd", computeUUSD, octaneUUSD)
	if err != nil {
		return 0, err
	}
	if all == 0 {
		return 0, nil
	}
	return mulDiv("emission", emission, computeUUSD, all, false)
}

// Ratio is an exact quotient to the reference node's value.
type Ratio struct {
	// Num is the node's value, Den the reference node's.
	Num, Den int64
}

// AvailabilityWeight is rnp004's q = floor(P^(1/10) × 10^12), P = b^4 t^3 m^2 c, of bandwidth, throughput,
// memory and cores as exact ratios to a reference node; 0 if any of them is 0 (settlement.md 5). A node's weight
// is the challenges that it passed × q. It returns ErrAmount.
func AvailabilityWeight(b, t, m, c Ratio) (int64, error) {
	num, den := big.NewInt(1), big.NewInt(1)
	for _, f := range []struct {
		name string
		r    Ratio
		exp  int64
	}{{"bandwidth", b, 4}, {"throughput", t, 3}, {"memory", m, 2}, {"cores", c, 1}} {
		if f.r.Num < 0 || f.r.Den <= 0 {
			return 0, fmt.Errorf("%w: %s is %d/%d", ErrAmount, f.name, f.r.Num, f.r.Den)
		}
		num.Mul(num, new(big.Int).Exp(big.NewInt(f.r.Num), big.NewInt(f.exp), nil))
		den.Mul(den, new(big.Int).Exp(big.NewInt(f.r.Den), big.NewInt(f.exp), nil))
	}
	// floor((num/den)^(1/10) × 10^12) = floor of the 10th root of floor(num × 10^120 / den).
	num.Mul(num, new(big.Int).Exp(big.NewInt(10), big.NewInt(120), nil))
	return fit("availability weight", root(num.Quo(num, den), 10))
}

// root is the integer n-th root of x ≥ 0, rounded down, by Newton's method from above.
func root(x *big.Int, n int64) *big.Int {
	if x.Sign() == 0 {
		return new(big.Int)
	}
	r := new(big.Int).Lsh(big.NewInt(1), uint((int64(x.BitLen())+n-1)/n)) // ≥ the root
	for {
		p := new(big.Int).Exp(r, big.NewInt(n-1), nil)
		next := new(big.Int).Quo(x, p)
		next.Add(next, new(big.Int).Mul(r, big.NewInt(n-1)))
		next.Quo(next, big.NewInt(n))
		if next.Cmp(r) >= 0 {
			return r
		}
		r = next
	}
}
