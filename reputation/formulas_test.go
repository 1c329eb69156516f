package reputation

import (
	"go/parser"
	"go/token"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func near(t *testing.T, what string, got, want, eps float64) {
	t.Helper()
	if !(math.Abs(got-want) <= eps) {
		t.Errorf("%s = %.14f, want %.14f", what, got, want)
	}
}

// TestScoresAreThoseOfTheDesign checks the golden numbers of trust.md 13.
func TestScoresAreThoseOfTheDesign(t *testing.T) {
	for _, tt := range []struct{ r, s, want float64 }{
		{0, 0, .05},
		{10, 0, .761595809619},
		{10, 1, .661319331566},
		{37.5, 2.25, .845044317136},
		{100, 0, .970774846},
		{125, 0, .976504761},
		{100, 25, .734045516},
		{200, 3, .9624326873},
		{120, 0, .9755458505},
		{300, 6, .9617917383},
		{150, 20, .8345967617},
		{180, 9, .9187980861},
	} {
		near(t, "L", Lower(tt.r, tt.s), tt.want, 1e-9)
	}
	near(t, "O", Overall([5]float64{Lower(200, 3), Lower(120, 0), Lower(300, 6), Lower(150, 20), Lower(180, 9)}), .9414366124, 1e-9)
	near(t, "O of a newcomer", Overall([5]float64{.05, .05, .05, .05, .05}), .05, 1e-12)
	near(t, "w of a minute", Weight(60), 2, 1e-12)
	near(t, "w of an hour", Weight(3600), 6.930737338, 1e-9)
	near(t, "w of a month", Weight(2592000), 8, 0)
	near(t, "w of nothing", Weight(0), 1, 0)
	near(t, "w of what is no number", Weight(math.NaN()), 1, 0)
	near(t, "w of 480 processor seconds", Weight(WorkSeconds(0, 480)), 2, 1e-12)
	near(t, "w of a GPU", Weight(WorkSeconds(60, 1e9)), 2, 1e-12)
	near(t, "half a life", Decay(14*day, 14*day), .5, 1e-15)
	near(t, "from the future", Decay(-day, 14*day), 1, 0)
}

// TestLowerBoundHoldsForMuchEvidence compares with sums of exact binomial terms in 60 decimal digits, where
// differences of lgamma would be off in the 9th.
func TestLowerBoundHoldsForMuchEvidence(t *testing.T) {
	for _, tt := range []struct{ r, s, want float64 }{
		{3, 2, .27133837251975249059},
		{40, 3000, .01023084043957677921},
		{100_000, 700, .99260241987963524455},
		{1_000_000, 50, .99993671657379069785},
		{2_000_000, 300, .99983497895273152136},
		{5_000_000, 3, .99999844927067216022},
	} {
		near(t, "L", Lower(tt.r, tt.s), tt.want, 1e-12)
	}
	for _, a := range []float64{1.5, 10, 1e3, 1e6, 1e8} { // by symmetry
		if got, _ := incomplete(.5, a, a); math.Abs(got-.5) > 1e-11 {
			t.Errorf("I_½(%g, %g) = %.15f", a, a, got)
		}
	}
	for _, tt := range [][2]float64{{math.NaN(), -1}, {math.Inf(1), 0}, {0, math.Inf(1)}, {math.Inf(1), math.Inf(1)}, {1e300, 1e300}, {1e18, 1}} {
		if l := Lower(tt[0], tt[1]); !(l >= 0 && l <= 1) {
			t.Errorf("L of %v is %v", tt, l)
		}
	}
}

// TestLowerBoundSolvesItsEquation draws evidence over ten orders of magnitude: I_L(r+1, s+1) is 5 %, L grows with
// good and falls with bad evidence.
func TestLowerBoundSolvesItsEquation(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5_000 {
		r, s := math.Exp2(rng.Float64()*40-14), math.Exp2(rng.Float64()*34-14)
		l := Lower(r, s)
		if p, _ := incomplete(l, r+1, s+1); math.Abs(p-risk) > 1e-9 {
			t.Fatalf("I_L(%g, %g) = %.12f at L = %.15f", r+1, s+1, p, l)
		}
		if more := Lower(r*1.01, s); more < l {
			t.Fatalf("more good evidence than (%g, %g) lowers L to %g", r, s, more)
		}
		if less := Lower(r, s*1.01); less > l {
			t.Fatalf("more bad evidence than (%g, %g) raises L to %g", r, s, less)
		}
	}
}

// TestMemoriesAreThoseOfTheDesign: Storj's published parameters, our gate, and Jøsang's forgetting.
func TestMemoriesAreThoseOfTheDesign(t *testing.T) {
	a, b := 1000.0, 0.0
	for n := 1; n <= 41; n++ {
		a, b = gateUpdate(a, b, .999, 1, 1, false)
		switch n {
		case 40:
			near(t, "40 failures", a/(a+b), .960770210736, 1e-9)
		case 41:
			near(t, "41 failures", a/(a+b), .959809440525, 1e-9)
		}
	}
	a, b = gateUpdate(20, 0, .95, 1, 10, false)
	near(t, "alpha", a, 11.974738784768, 1e-9)
	near(t, "beta", b, 8.025261215232, 1e-9)
	near(t, "value", a/(a+b), .598736939238, 1e-9)
	g := NewGate().After(0, 3)
	near(t, "our gate after 3 failures", g.Value(), .941192, 1e-9)
	if g.Suspends() {
		t.Error("3 failures suspend")
	}
	if g = g.After(0, 1); !g.Suspends() {
		t.Error("4 failures do not suspend")
	}
	near(t, "after 4", g.Value(), .92236816, 1e-9)
	if NewGate().After(1, 1).Value() <= NewGate().After(0, 1).After(0, 0).Value() {
		t.Error("a good check after a bad one does not help")
	}

	forget := func(lambda float64, good, bad int) float64 {
		var r, s float64
		for range good {
			r, s = lambda*r+1, lambda*s
		}
		for range bad {
			r, s = lambda*r, lambda*s+1
		}
		return Expectation(r, s)
	}
	near(t, "E(7, 1)", Expectation(7, 1), .8, 1e-12)
	near(t, "50 good", forget(1, 50, 0), .980769231, 1e-9)
	near(t, "50 good at .9", forget(.9, 50, 0), .916307222, 1e-9)
	near(t, "25 good, 25 bad at .9", forget(.9, 25, 25), .139462317, 1e-9)
}

func TestOthersWordsAreDiscountedAndClamped(t *testing.T) {
	r, s := Discount(8, 0, 20, 0)
	near(t, "r'", r, 5.333333333, 1e-9)
	near(t, "s'", s, 0, 0)
	r, s = Discount(8, 2, 20, 5)
	near(t, "r'", r, 2.580645161, 1e-9)
	near(t, "s'", s, .645161290, 1e-9)
	if r, s = Discount(0, 0, 1e9, 1e9); r != 0 || s != 0 {
		t.Errorf("a stranger's word is worth %g, %g", r, s)
	}
	if r, s = Discount(8, 0, 1e12, 1e12); r+s >= 8 {
		t.Errorf("all the evidence of the world is worth %g, at most 2 rY/(sY+2)", r+s)
	}
	own := Lower(100, 0)
	near(t, "25 good", ClampOthers(own, 100, Lower(125, 0)), .976504761, 1e-9)
	near(t, "25 bad", ClampOthers(own, 100, Lower(100, 25)), .920774846, 1e-9)
	near(t, "a stranger is lifted", ClampOthers(.05, 0, .99), .55, 1e-12)
	near(t, "a stranger is slandered", ClampOthers(.05, 0, 0), 0, 1e-12)
	near(t, "MostOthers", MostOthers(100), 25, 0)
	near(t, "MostOthers of little", MostOthers(3), 4, 0)
}

func TestCredibilitiesAreThoseOfTheDesign(t *testing.T) {
	near(t, "Cr(0)", Credibility(0, .2), .8, 1e-12)
	near(t, "Cr(10)", Credibility(10, .2), .990803014, 1e-9)
	cr := Credibility(10, .2)
	for _, tt := range []struct {
		groups [][]float64
		want   float64
	}{
		{[][]float64{{.9, .9}}, .987804878}, {[][]float64{{.95}, {.8}}, .791666667}, {[][]float64{{cr, cr}}, .999913845}, {[][]float64{{.8}}, .8},
	} {
		near(t, "credibility", GroupCredibility(tt.groups)[0], tt.want, 1e-9)
	}
	// A majority of 3 with a fifth of liars, and what a spot check of 10 % leaves at most.
	near(t, "majority of 3", 3*.2*.2*.8+.2*.2*.2, .104, 1e-12)
	var worst float64
	for x := 0.0; x <= 1; x += 1e-5 {
		pass := math.Pow(1-x, 10)
		worst = max(worst, x*.2*pass/(.8+.2*pass))
	}
	near(t, "spot check", worst, 8.0196e-3, 1e-7)
	runs := 10.0
	for k := 10; k < 1000; k++ {
		runs += AuditProbability(k, .02)
	}
	near(t, "extra runs", runs, 30.650237, 1e-6)
	near(t, "a newcomer's audit", AuditProbability(9, .02), 1, 0)
}

// TestSequentialTestNeedsWhatTheDesignSays: 112 passes bring a contained node back, 5 failures put it out.
func TestSequentialTestNeedsWhatTheDesignSays(t *testing.T) {
	passes, failures := 0, 0
	for s := 0.0; s > testBack; s += testPass {
		passes++
	}
	for s := 0.0; s < testOut; s += testFailure {
		failures++
	}
	if passes != 112 || failures != 5 {
		t.Errorf("%d passes, %d failures", passes, failures)
	}
	near(t, "failure", testFailure, math.Log(.05/.01), 1e-9)
	near(t, "pass", testPass, math.Log(.95/.99), 1e-9)
	near(t, "out", testOut, math.Log(.99/.001), 1e-9)
	near(t, "back", testBack, math.Log(.01/.999), 1e-9)
}

func TestSpeedAndAnswers(t *testing.T) {
	for _, tt := range []struct {
		median, own time.Duration
		want        float64
	}{{10, 10, 1}, {10, 5, 1}, {10, 20, 0}, {30, 40, .5}, {10, 100, 0}, {0, 1, 0}, {1, 0, 0}} {
		near(t, "Speed", Speed(tt.median, tt.own), tt.want, 1e-12)
	}
	for _, tt := range []struct {
		t    time.Duration
		want float64
	}{{0, 1}, {time.Second, 1}, {1500 * time.Millisecond, .5}, {2 * time.Second, 0}, {time.Hour, 0}} {
		near(t, "Answer", Answer(tt.t), tt.want, 1e-12)
	}
	near(t, "Exposure of nothing", Exposure(0), 1e6, 0)
	near(t, "Exposure", Exposure(40e6), 10e6, 0)
}

// TestFormulasImportMathAndTimeAlone keeps them readable by themselves.
func TestFormulasImportMathAndTimeAlone(t *testing.T) {
	for _, name := range []string{"formulas.go", "quantile.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if i.Path.Value != `"math"` && i.Path.Value != `"time"` {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}

func BenchmarkLower(b *testing.B) {
	i := 0
	for b.Loop() {
		i++
		Lower(50+float64(i&1023), float64(i&15)+.5)
	}
}
