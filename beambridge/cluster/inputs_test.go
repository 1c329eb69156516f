package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func raws(vs ...string) (out []json.RawMessage) {
	for _, v := range vs {
		out = append(out, json.RawMessage(v))
	}
	return out
}

func TestGridIsRowMajorOverSortedKeysAndKeepsNumbersAsWritten(t *testing.T) {
	g, err := GridInputs([]Axis{{"lr", raws("0.10", "1e-3")}, {"a<b", raws(`"x"`)}, {"hidden", raws("32", "64")}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"a<b":"x","hidden":32,"lr":0.10}`, `{"a<b":"x","hidden":32,"lr":1e-3}`, `{"a<b":"x","hidden":64,"lr":0.10}`, `{"a<b":"x","hidden":64,"lr":1e-3}`}
	if got := g.Slice(Range{0, g.Len()}); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestGridVisitsEveryCombinationOnce compares with nested loops on random grids.
func TestGridVisitsEveryCombinationOnce(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 5))
		var axes []Axis
		want := 1
		for k := range 1 + r.IntN(4) {
			a := Axis{Name: fmt.Sprint(r.IntN(1000), "-", k)}
			for v := range r.IntN(5) {
				a.Values = append(a.Values, raws(fmt.Sprint(v))...)
			}
			want *= len(a.Values)
			axes = append(axes, a)
		}
		g, err := GridInputs(axes)
		if err != nil || g.Len() != uint64(want) {
			t.Fatalf("seed %d: %d points, %v; want %d", seed, g.Len(), err, want)
		}
		seen := map[string]bool{}
		for c := range Split(g.Len(), Pace{Nodes: 2, SecondsPerInput: 1}) {
			for _, x := range g.Slice(c) {
				var m map[string]int
				if err := json.Unmarshal([]byte(x), &m); err != nil || len(m) != len(axes) || seen[x] {
					t.Fatalf("seed %d: point %s is no new combination: %v", seed, x, err)
				}
				seen[x] = true
			}
		}
		if len(seen) != want {
			t.Fatalf("seed %d: %d points, want %d", seed, len(seen), want)
		}
	}
}

func TestIntegersAndLists(t *testing.T) {
	in, err := IntegerInputs(-2, 5)
	if got := in.Slice(Range{0, 5}); err != nil || !slices.Equal(got, []string{"-2", "-1", "0", "1", "2"}) {
		t.Errorf("%q, %v", got, err)
	}
	in, err = IntegerInputs(math.MaxInt64-1, 2)
	if err != nil || in.At(1) != "9223372036854775807" {
		t.Errorf("%v %v", in, err)
	}
	for _, c := range []struct {
		first int64
		n     uint64
	}{{math.MaxInt64, 2}, {0, math.MaxUint64}, {1, 1 << 63}} {
		if _, err := IntegerInputs(c.first, c.n); !errors.Is(err, ErrBadInputs) {
			t.Errorf("%d integers from %d: %v", c.n, c.first, err)
		}
	}
	l := ListInputs([]string{"a", "", "b"})
	if l.Len() != 3 || l.At(2) != "b" || l.At(1) != "" {
		t.Errorf("%+v", l)
	}
}

func TestLargeGridsCostNothing(t *testing.T) {
	var axes []Axis
	for k := range 10 {
		axes = append(axes, Axis{fmt.Sprint("k", k), raws("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")})
	}
	g, err := GridInputs(axes)
	if err != nil || g.Len() != 10_000_000_000 {
		t.Fatalf("%d points, %v", g.Len(), err)
	}
	if got := g.At(1_234_567_890); got != `{"k0":1,"k1":2,"k2":3,"k3":4,"k4":5,"k5":6,"k6":7,"k7":8,"k8":9,"k9":0}` {
		t.Error(got)
	}
}

func TestBadGridsSayWhatIsWrong(t *testing.T) {
	big := make([]json.RawMessage, 1<<16)
	for i := range big {
		big[i] = json.RawMessage("0")
	}
	for _, axes := range [][]Axis{
		{{"", raws("1")}},
		{{"a", raws("1")}, {"a", raws("2")}},
		{{"a", raws("{}")}},
		{{"a", raws("[1]")}},
		{{"a", raws("x")}},
		{{"a", raws("")}},
		{{"a", big}, {"b", big}, {"c", big}, {"d", big}},
	} {
		if _, err := GridInputs(axes); !errors.Is(err, ErrBadInputs) {
			t.Errorf("%d axes, first %q: %v", len(axes), axes[0].Name, err)
		}
	}
	if g, err := GridInputs(nil); err != nil || g.Len() != 0 {
		t.Errorf("no axes: %d points, %v", g.Len(), err)
	}
}
