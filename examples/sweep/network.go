package main

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// network is a perceptron with one hidden layer of rectifiers and a softmax output.
type network struct {
	hidden []unit
	bias   [classes]float64
}

// unit is a hidden neuron: what it reads and what the outputs take from it.
type unit struct {
	in   [pixels]float64
	bias float64
	out  [classes]float64
}

// newNetwork draws He-initialised weights (He et al. 2015): variance 2/fan-in keeps the scale of a
// rectifier's output through the layer.
func newNetwork(hidden int, random *rand.Rand) *network {
	n := &network{hidden: make([]unit, hidden)}
	first, second := math.Sqrt(6.0/pixels), math.Sqrt(6.0/float64(hidden))
	for i := range n.hidden {
		u := &n.hidden[i]
		for j := range u.in {
			u.in[j] = uniform(random, first)
		}
		for j := range u.out {
			u.out[j] = uniform(random, second)
		}
	}
	return n
}

// uniform draws from [-bound, bound), whose variance is bound²/3.
func uniform(random *rand.Rand, bound float64) float64 {
	return (float64(2*random.Float64()) - 1) * bound
}

// train runs epochs of stochastic gradient descent on the cross-entropy, one example a step, each epoch in
// a new order.
func (n *network) train(examples []example, lr float64, epochs int, random *rand.Rand) {
	active := make([]float64, len(n.hidden))
	order := make([]int, len(examples))
	for i := range order {
		order[i] = i
	}
	for range epochs {
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, i := range order {
			n.step(&examples[i], lr, active)
		}
	}
}

// step learns from one example; active is scratch space, one value per hidden unit. A unit at rest passes
// nothing on and learns nothing.
func (n *network) step(e *example, lr float64, active []float64) {
	p := n.forward(&e.x, active)
	softmax(&p)
	p[e.label]--
	var rate [classes]float64
	for c := range rate {
		rate[c] = float64(lr * p[c])
		n.bias[c] -= rate[c]
	}
	for j, a := range active {
		if a <= 0 {
			continue
		}
		u := &n.hidden[j]
		slope := float64(lr * dotClasses(&p, &u.out))
		subtractClasses(&u.out, &rate, a)
		subtractPixels(&u.in, &e.x, slope)
		u.bias -= slope
	}
}

// forward returns the outputs before the softmax and leaves the hidden activities in active.
func (n *network) forward(x *[pixels]float64, active []float64) [classes]float64 {
	z := n.bias
	for j := range n.hidden {
		u := &n.hidden[j]
		a := max(0, dotPixels(&u.in, x)+u.bias)
		active[j] = a
		if a > 0 {
			subtractClasses(&z, &u.out, -a)
		}
	}
	return z
}

// correct counts the examples whose largest output is their label.
func (n *network) correct(examples []example) (count int) {
	active := make([]float64, len(n.hidden))
	for i := range examples {
		z := n.forward(&examples[i].x, active)
		best := 0
		for c := range z {
			if z[c] > z[best] {
				best = c
			}
		}
		if best == examples[i].label {
			count++
		}
	}
	return count
}

// sum is the SHA-256 of all parameters: two networks with the same sum are the same to the last bit.
func (n *network) sum() (sum [sha256.Size]byte) {
	h := sha256.New()
	var b []byte
	put := func(values ...float64) {
		b = b[:0]
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		}
		h.Write(b)
	}
	for i := range n.hidden {
		u := &n.hidden[i]
		put(u.in[:]...)
		put(u.bias)
		put(u.out[:]...)
	}
	put(n.bias[:]...)
	h.Sum(sum[:0])
	return sum
}

// dotPixels is unrolled: a node's runtime checks for cancellation once per round of a loop, and in a round
// of one product the check would cost more than the product. The conversions forbid fused multiply-add,
// which rounds once instead of twice and exists on some processors only.
func dotPixels(a, b *[pixels]float64) float64 {
	var s0, s1, s2, s3 float64
	for i := 0; i < pixels; i += 16 {
		a, b := (*[16]float64)(a[i:]), (*[16]float64)(b[i:])
		s0 += (float64(a[0]*b[0]) + float64(a[1]*b[1])) + (float64(a[2]*b[2]) + float64(a[3]*b[3]))
		s1 += (float64(a[4]*b[4]) + float64(a[5]*b[5])) + (float64(a[6]*b[6]) + float64(a[7]*b[7]))
		s2 += (float64(a[8]*b[8]) + float64(a[9]*b[9])) + (float64(a[10]*b[10]) + float64(a[11]*b[11]))
		s3 += (float64(a[12]*b[12]) + float64(a[13]*b[13])) + (float64(a[14]*b[14]) + float64(a[15]*b[15]))
	}
	return (s0 + s1) + (s2 + s3)
}

// subtractPixels does a -= rate·b.
func subtractPixels(a, b *[pixels]float64, rate float64) {
	for i := 0; i < pixels; i += 16 {
		a, b := (*[16]float64)(a[i:]), (*[16]float64)(b[i:])
		a[0] -= float64(rate * b[0])
		a[1] -= float64(rate * b[1])
		a[2] -= float64(rate * b[2])
		a[3] -= float64(rate * b[3])
		a[4] -= float64(rate * b[4])
		a[5] -= float64(rate * b[5])
		a[6] -= float64(rate * b[6])
		a[7] -= float64(rate * b[7])
		a[8] -= float64(rate * b[8])
		a[9] -= float64(rate * b[9])
		a[10] -= float64(rate * b[10])
		a[11] -= float64(rate * b[11])
		a[12] -= float64(rate * b[12])
		a[13] -= float64(rate * b[13])
		a[14] -= float64(rate * b[14])
		a[15] -= float64(rate * b[15])
	}
}

// dotClasses is the inner product over the outputs.
func dotClasses(a, b *[classes]float64) float64 {
	return ((float64(a[0]*b[0]) + float64(a[1]*b[1])) + (float64(a[2]*b[2]) + float64(a[3]*b[3]))) +
		((float64(a[4]*b[4]) + float64(a[5]*b[5])) + (float64(a[6]*b[6]) + float64(a[7]*b[7]))) +
		(float64(a[8]*b[8]) + float64(a[9]*b[9]))
}

// subtractClasses does a -= rate·b over the outputs.
func subtractClasses(a, b *[classes]float64, rate float64) {
	a[0] -= float64(rate * b[0])
	a[1] -= float64(rate * b[1])
	a[2] -= float64(rate * b[2])
	a[3] -= float64(rate * b[3])
	a[4] -= float64(rate * b[4])
	a[5] -= float64(rate * b[5])
	a[6] -= float64(rate * b[6])
	a[7] -= float64(rate * b[7])
	a[8] -= float64(rate * b[8])
	a[9] -= float64(rate * b[9])
}

// softmax turns outputs into probabilities, shifted by the largest so that nothing overflows.
func softmax(z *[classes]float64) {
	top := z[0]
	for _, v := range z {
		top = max(top, v)
	}
	var sum float64
	for i := range z {
		z[i] = exp(z[i] - top)
		sum += z[i]
	}
	for i := range z {
		z[i] /= sum
	}
}

// exp is e^x for x ≤ 0, in plain arithmetic: the standard library's has an assembly version on some
// processors, whose last bit differs. x = k·ln 2 + r with |r| ≤ ln 2 / 2, e^x = 2^k · e^r, and e^r by its
// Taylor series to r^13 / 13!, whose error is below 2^-56.
func exp(x float64) float64 {
	const (
		ln2Hi = 0x1.62e42fee00000p-1 // ln 2 with the last bits in ln2Lo, so that k·ln2Hi is exact
		ln2Lo = 0x1.a39ef35793c76p-33
		least = -700 // below it e^x is 0 to any sum of probabilities
	)
	if x < least {
		return 0
	}
	k := math.Floor(float64(x*math.Log2E) + 0.5)
	r := (x - float64(k*ln2Hi)) - float64(k*ln2Lo)
	e := 1 + float64(r/13)
	e = 1 + float64(float64(e*r)/12)
	e = 1 + float64(float64(e*r)/11)
	e = 1 + float64(float64(e*r)/10)
	e = 1 + float64(float64(e*r)/9)
	e = 1 + float64(float64(e*r)/8)
	e = 1 + float64(float64(e*r)/7)
	e = 1 + float64(float64(e*r)/6)
	e = 1 + float64(float64(e*r)/5)
	e = 1 + float64(float64(e*r)/4)
	e = 1 + float64(float64(e*r)/3)
	e = 1 + float64(float64(e*r)/2)
	e = 1 + float64(e*r)
	return e * math.Float64frombits(uint64(int64(k)+1023)<<52)
}
