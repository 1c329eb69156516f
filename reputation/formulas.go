package reputation

import (
	"math"
	"time"
)

// Weight is what one outcome weighs by the GPU-seconds behind it: min(8, 1 + log2(1 + s/60)) (trust.md 9).
// Processor seconds count an eighth; see WorkSeconds.
func Weight(gpuSeconds float64) float64 {
	if !(gpuSeconds > 0) {
		return 1
	}
	return min(8, 1+math.Log2(1+gpuSeconds/60))
}

// WorkSeconds are the seconds that Weight takes: GPU-seconds, or an eighth of the processor seconds where no
// GPU worked.
func WorkSeconds(gpuSeconds, cpuSeconds float64) float64 {
	if gpuSeconds > 0 {
		return gpuSeconds
	}
	return cpuSeconds / 8
}

// Decay is what is left of evidence after an age: 2^(-age/half). A negative age counts as 0.
func Decay(age, half time.Duration) float64 {
	if age <= 0 || half <= 0 {
		return 1
	}
	return math.Exp2(-float64(age) / float64(half))
}

// exponents of O, in the order of the criteria: completion, correctness, uptime, performance, responsiveness.
var exponents = [5]float64{.30, .30, .15, .15, .10}

// Overall is O = Lcomp^.30 Lcorr^.30 Lup^.15 Lperf^.15 Lresp^.10 of the criteria's lower bounds, in that order.
func Overall(l [5]float64) float64 {
	var s float64
	for i, x := range l {
		s += exponents[i] * math.Log(x)
	}
	return math.Exp(s)
}

// Speed is the share of good evidence in a run that took own where its class takes median:
// clamp((median/own − 0.5)/0.5, 0, 1).
func Speed(median, own time.Duration) float64 {
	if median <= 0 || own <= 0 {
		return 0
	}
	return clamp((float64(median)/float64(own)-0.5)/0.5, 0, 1)
}

// Answer is the share of good evidence in an answer after t: clamp(2 s − t, 0, 1).
func Answer(t time.Duration) float64 { return clamp(2-t.Seconds(), 0, 1) }

func clamp(x, lo, hi float64) float64 { return max(lo, min(hi, x)) }

// AuditProbability is p(k) after k checks passed in a row: 1 for k < 10, else max(1/k, q).
func AuditProbability(k int, q float64) float64 {
	if k < 10 {
		return 1
	}
	return max(1/float64(k), q)
}

// Credibility is Cr(k) = 1 − f/((1−f) k e), the chance that a node with k passed checks in a row is right when
// at most a share f of nodes cheats; Cr(0) = 1 − f (Sarmenta 2001).
func Credibility(k int, f float64) float64 {
	if k <= 0 {
		return 1 - f
	}
	return 1 - f/((1-f)*float64(k)*math.E)
}

// GroupCredibility is the chance that a result is right, for each group of nodes that returned the same result:
// groups[a] holds the credibilities of those who returned a (Sarmenta 2001).
func GroupCredibility(groups [][]float64) []float64 {
	p, q := make([]float64, len(groups)), make([]float64, len(groups))
	allQ := 1.0
	for a, g := range groups {
		p[a], q[a] = 1, 1
		for _, cr := range g {
			p[a] *= cr
			q[a] *= 1 - cr
		}
		allQ *= q[a]
	}
	won := make([]float64, len(groups)) // P_a × Q of all others
	sum := allQ
	for a := range groups {
		won[a] = p[a]
		for j := range groups {
			if j != a {
				won[a] *= q[j]
			}
		}
		sum += won[a]
	}
	for a := range won {
		if sum > 0 {
			won[a] /= sum
		}
	}
	return won
}

// Gate is the two-sided memory of graded checks (tolerance, recheck, challenges) in Storj's form.
type Gate struct {
	// Alpha is good, Beta bad memory; Alpha + Beta stays at 50.
	Alpha, Beta float64
}

// Parameters of the gate (trust.md 9).
const (
	gateLambda  = 0.98
	gateWeight  = 1
	gateStart   = 50
	gateSuspend = 0.94
)

// NewGate is the gate of a newcomer.
func NewGate() Gate { return Gate{Alpha: gateStart} }

// After is the gate after bad and then good checks of one batch.
func (g Gate) After(good, bad int) Gate {
	return g.step(bad, false).step(good, true)
}

func (g Gate) step(n int, good bool) Gate {
	if n <= 0 {
		return g
	}
	g.Alpha, g.Beta = gateUpdate(g.Alpha, g.Beta, gateLambda, gateWeight, n, good)
	return g
}

// gateUpdate is n checks of one kind: beta' = l^n beta + w(1−l^n)/(1−l), alpha' = l^n alpha for bad ones.
func gateUpdate(alpha, beta, lambda, w float64, n int, good bool) (float64, float64) {
	ln := math.Pow(lambda, float64(n))
	add := w * (1 - ln) / (1 - lambda)
	if good {
		return ln*alpha + add, ln * beta
	}
	return ln * alpha, ln*beta + add
}

// Value is alpha/(alpha+beta).
func (g Gate) Value() float64 { return g.Alpha / (g.Alpha + g.Beta) }

// Suspends says whether the gate bars its node.
func (g Gate) Suspends() bool { return g.Value() <= gateSuspend }

// Steps and bounds of the sequential test of a contained node: 1 % against 5 % failures (trust.md 9).
const (
	testFailure = 1.609437912  // ln(.05/.01)
	testPass    = -0.041242959 // ln(.95/.99)
	testOut     = 6.897704943  // ln(.99/.001)
	testBack    = -4.604169686 // ln(.01/.999)
)

// Discount is what evidence (r, s) by an issuer is worth to a rater that has (trustGood, trustBad) on the issuer:
// D = (sY+2)(r+s+2) + 2rY; r' = 2 rY r/D, s' = 2 rY s/D (Jøsang, Ismail 2002).
func Discount(trustGood, trustBad, r, s float64) (float64, float64) {
	d := (trustBad+2)*(r+s+2) + 2*trustGood
	return 2 * trustGood * r / d, 2 * trustGood * s / d
}

// Expectation is E = (r+1)/(r+s+2).
func Expectation(r, s float64) float64 { return (r + 1) / (r + s + 2) }

// ClampOthers bounds what others may make of a rater's own lower bound, which rests on n of its own evidence:
// within 0.05 of it if n ≥ 20, else within [own − 0.05, max(own + 0.05, 0.55)] (trust.md 10).
func ClampOthers(own, n, merged float64) float64 {
	if n >= 20 {
		return clamp(merged, own-0.05, own+0.05)
	}
	return clamp(merged, own-0.05, max(own+0.05, 0.55))
}

// MostOthers bounds the evidence of all others together: max(4, n/4).
func MostOthers(n float64) float64 { return max(4, n/4) }

// Exposure is the unverified value that may be entrusted to a node whose verified value (decayed) is known, both
// in micro-USD: max($1, a quarter).
func Exposure(verified float64) float64 { return max(1e6, verified/4) }
