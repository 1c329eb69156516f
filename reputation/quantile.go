package reputation

import "math"

// mostEvidence bounds what Lower counts with; more of it in the same proportion says nothing new.
const mostEvidence = 1e9

// risk is the chance that a node is worse than its lower bound says.
const risk = 0.05

// Lower is L, the 5 % quantile of Beta(r+1, s+1) for good evidence r and bad evidence s: the node is at least
// that good with 95 % confidence (trust.md 9). Negative or undefined evidence counts as none.
func Lower(r, s float64) float64 {
	if !(r > 0) {
		r = 0
	}
	if !(s > 0) {
		s = 0
	}
	switch {
	case math.IsInf(r, 1) && math.IsInf(s, 1):
		return 0
	case math.IsInf(r, 1):
		return 1
	case math.IsInf(s, 1):
		return 0
	case s == 0:
		return math.Exp(math.Log(risk) / (r + 1))
	case r == 0:
		return -math.Expm1(math.Log1p(-risk) / (s + 1))
	}
	if n := r + s; n > mostEvidence {
		r, s = r/n*mostEvidence, s/n*mostEvidence
	}
	return quantile(risk, r+1, s+1)
}

// quantile solves I_x(a, b) = p for a, b > 1 by Halley's method inside a bracket that shrinks with each step.
func quantile(p, a, b float64) float64 {
	lo, hi := 0.0, 1.0
	x := guess(p, a, b)
	for range 100 {
		f, density := incomplete(x, a, b)
		f -= p
		if f > 0 {
			hi = x
		} else {
			lo = x
		}
		step := math.Inf(1)
		if density > 0 {
			step = f / density
			if c := step * ((a-1)/x - (b-1)/(1-x)) / 2; math.Abs(c) < 0.5 { // near enough for the third order
				step /= 1 - c
			}
		}
		if math.Abs(step) <= 1e-9*min(x, 1-x) { // the next error is of the order of its square
			return x - step
		}
		next := x - step
		if !(next > lo && next < hi) {
			next = lo + (hi-lo)/2
		}
		if next == x {
			return x
		}
		x = next
	}
	return x
}

// guess starts near the quantile: Abramowitz and Stegun 26.5.22, kept inside (0, 1).
func guess(p, a, b float64) float64 {
	t := math.Sqrt(-2 * math.Log(p))
	y := t - (2.30753+0.27061*t)/(1+t*(0.99229+0.04481*t))
	al := (y*y - 3) / 6
	u, v := 1/(2*a-1), 1/(2*b-1)
	h := 2 / (u + v)
	w := y*math.Sqrt(al+h)/h - (v-u)*(al+5.0/6-2/(3*h))
	x := a / (a + b*math.Exp(2*w))
	if !(x > 1e-300) {
		return 1e-300
	}
	return min(x, 1-1e-16)
}

// incomplete is the regularised incomplete beta function I_x(a, b) and its derivative by x, for a, b ≥ 1.
//
// The factor x^a (1−x)^b / B(a, b) is taken in Loader's saddle-point form, since differences of lgamma lose all
// digits that matter above 10^6 evidence; the rest is the continued fraction DLMF 8.17.22 by Lentz's method.
func incomplete(x, a, b float64) (value, density float64) {
	if x <= 0 {
		return 0, 0
	}
	if x >= 1 {
		return 1, 0
	}
	front := kernel(x, a, b)
	density = front / (x * (1 - x))
	if x < (a+1)/(a+b+2) {
		return front * fraction(x, a, b) / a, density
	}
	return 1 - front*fraction(1-x, b, a)/b, density
}

// kernel is x^a (1−x)^b / B(a, b).
func kernel(x, a, b float64) float64 {
	n := a + b
	e := stirling(n) - stirling(a) - stirling(b) - deviance(a, n*x) - deviance(b, n*(1-x))
	return math.Sqrt(a*b/(2*math.Pi*n)) * math.Exp(e)
}

// deviance is z ln(z/m) + m − z without cancellation where z is near m (Loader 2000, bd0).
func deviance(z, m float64) float64 {
	if d := z - m; math.Abs(d) < 0.1*(z+m) {
		v := d / (z + m)
		s := d * v
		e := 2 * z * v
		v *= v
		for j := 1; j < 1000; j++ {
			e *= v
			if next := s + e/float64(2*j+1); next != s {
				s = next
				continue
			}
			break
		}
		return s
	}
	return z*math.Log(z/m) + m - z
}

// stirling is ln Γ(z+1) − (z + ½) ln z + z − ½ ln 2π, the error of Stirling's formula.
func stirling(z float64) float64 {
	if z < 16 {
		g, _ := math.Lgamma(z + 1)
		return g - (z+0.5)*math.Log(z) + z - 0.5*math.Log(2*math.Pi)
	}
	i := 1 / z
	q := i * i
	return i * (1.0/12 - q*(1.0/360-q*(1.0/1260-q*(1.0/1680-q*(1.0/1188-q*(691.0/360360))))))
}

// fraction is the continued fraction of I_x(a, b) for x below its mean.
func fraction(x, a, b float64) float64 {
	const tiny = 1e-300
	c, d := 1.0, 1-(a+b)*x/(a+1)
	if math.Abs(d) < tiny {
		d = tiny
	}
	d = 1 / d
	h := d
	for m := 1.0; m < 1e7; m++ {
		for _, t := range [2]float64{
			m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m)),
			-(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1)),
		} {
			if d = 1 + t*d; math.Abs(d) < tiny {
				d = tiny
			}
			if c = 1 + t/c; math.Abs(c) < tiny {
				c = tiny
			}
			d = 1 / d
			h *= d * c
		}
		if math.Abs(d*c-1) < 1e-15 {
			break
		}
	}
	return h
}
