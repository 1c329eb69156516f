package reputation

import (
	"math"
	"testing"
	"time"
)

func near(t *testing.T, what string, got, want, eps float64) {
	t.Helper()
	if !(math.Abs(got-want) <= eps) {
		t.Errorf("%s = %.12f, want %.12f", what, got, want)
	}
}

// TestLowerBoundsAreThoseOfTheDesign checks the golden numbers of trust.md 13.
func TestLowerBoundsAreThoseOfTheDesign(t *testing.T) {
	for _, tt := range []struct{ r, s, want float64 }{
		{0, 0, .05},
		{10, 0, .761595809619},
		{10, 1, .661319331566},
		{37.5, 2.25, .845044317136},
		{200, 3, .9624326873},
		{120, 0, .9755458505},
		{300, 6, .9617917383},
		{150, 20, .8345967617},
		{180, 9, .9187980861},
		{100, 0, .970774846},
		{125, 0, .976504761},
		{100, 25, .734045516},
	} {
		near(t, "L", Lower(tt.r, tt.s), tt.want, 1e-9)
	}
	near(t, "O", Overall([5]float64{Lower(200, 3), Lower(120, 0), Lower(300, 6), Lower(150, 20), Lower(180, 9)}), .9414366124, 1e-9)
	near(t, "O of a newcomer", Overall([5]float64{.05, .05, .05, .05, .05}), .05, 1e-12)
	near(t, "w of a minute", Weight(60), 2, 1e-12)
	near(t, "w of an hour", Weight(3600), 6.930737338, 1e-9)
	_ = time.Second
}
