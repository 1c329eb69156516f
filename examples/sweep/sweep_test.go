package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const exampleConfig = `{"epochs":20,"hidden":32,"lr":0.05,"seed":1}`

func digits(t *testing.T) *dataset {
	t.Helper()
	data, err := loadDataset(os.DirFS("data"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSplitCoversEachRowOnce(t *testing.T) {
	all := make([]example, 1797)
	for i := range all {
		all[i].label = i
	}
	d := split(all)
	if len(d.train) != 1078 || len(d.validation) != 359 || len(d.test) != 360 {
		t.Errorf("split is %d/%d/%d, want 1078/359/360", len(d.train), len(d.validation), len(d.test))
	}
	var seen []int
	for _, part := range [][]example{d.train, d.validation, d.test} {
		for _, e := range part {
			seen = append(seen, e.label)
		}
	}
	if slices.IsSorted(seen) {
		t.Error("rows are in file order: the test part would be other writers only")
	}
	slices.Sort(seen)
	for i, label := range seen {
		if i != label {
			t.Fatalf("row %d is missing or repeated", i)
		}
	}
}

func TestDataHasAllDigits(t *testing.T) {
	d := digits(t)
	var count [classes]int
	for _, part := range [][]example{d.train, d.validation, d.test} {
		for _, e := range part {
			count[e.label]++
		}
	}
	// The counts that the data set's own description gives.
	if want := [classes]int{178, 182, 177, 183, 181, 182, 181, 179, 174, 180}; count != want {
		t.Errorf("digits are %v, want %v", count, want)
	}
}

func TestBackPropagationMatchesFiniteDifferences(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 0))
	n := newNetwork(5, random)
	var e example
	for i := range e.x {
		e.x[i] = random.Float64()
	}
	e.label = 3
	active := make([]float64, 5)
	loss := func() float64 {
		p := n.forward(&e.x, active)
		softmax(&p)
		return -math.Log(p[e.label])
	}
	parameters := func(n *network) (all []*float64) {
		for j := range n.hidden {
			u := &n.hidden[j]
			for i := range u.in {
				all = append(all, &u.in[i])
			}
			all = append(all, &u.bias)
			for i := range u.out {
				all = append(all, &u.out[i])
			}
		}
		for i := range n.bias {
			all = append(all, &n.bias[i])
		}
		return all
	}
	const h, lr = 1e-5, 1e-3
	var want []float64
	for _, p := range parameters(n) {
		old := *p
		*p = old + h
		up := loss()
		*p = old - h
		down := loss()
		*p = old
		want = append(want, (up-down)/(2*h))
	}
	var before []float64
	for _, p := range parameters(n) {
		before = append(before, *p)
	}
	n.step(&e, lr, active)
	for i, p := range parameters(n) {
		if got := (before[i] - *p) / lr; math.Abs(got-want[i]) > 1e-6 {
			t.Fatalf("slope of parameter %d is %g, want %g", i, got, want[i])
		}
	}
}

func TestExpIsRightToTheLastBits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	for range 100_000 {
		x := -random.ExpFloat64() * 20
		got, want := exp(x), math.Exp(x)
		if diff := math.Abs(got - want); diff > 4e-16*want && want > 1e-300 {
			t.Fatalf("exp(%v) is %v, want %v", x, got, want)
		}
	}
	if exp(0) != 1 || exp(-1000) != 0 {
		t.Errorf("exp(0) is %v, exp(-1000) is %v", exp(0), exp(-1000))
	}
	if e, _ := new(big.Float).SetFloat64(exp(-1)).Float64(); math.Abs(e*math.E-1) > 1e-15 {
		t.Errorf("exp(-1) is %v", e)
	}
}

func TestConfigurationLearnsToReadDigits(t *testing.T) {
	c, err := parseConfig(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	data := digits(t)
	res := evaluate(c, data)
	if accuracy, _ := res.Test.Accuracy.Float64(); accuracy < 0.95 {
		t.Errorf("test accuracy is %v, want at least 0.95", accuracy)
	}
	untrained := newNetwork(c.Hidden, rand.New(rand.NewPCG(c.Seed, 0)))
	if n := untrained.correct(data.test); n > len(data.test)/2 {
		t.Errorf("an untrained network already has %d right: the test part leaks", n)
	}
}

// The golden result was made by the module in WebAssembly; native code has to give the same bytes.
func TestResultIsTheSameOnEveryMachine(t *testing.T) {
	dir := t.TempDir()
	var stdout bytes.Buffer
	if err := run([]string{"--data", "data", "--out", dir, "--config", exampleConfig}, &stdout); err != nil {
		t.Fatal(err)
	}
	const name = "hidden-32_lr-0.05_epochs-20_seed-1.json"
	got, err := os.ReadFile(filepath.Join(dir, "results", name))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("result is\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(stdout.String(), "validation accuracy") {
		t.Errorf("it printed %q", stdout.String())
	}
}

func TestOneFlippedLabelChangesTheResult(t *testing.T) {
	c, err := parseConfig(`{"epochs":1,"hidden":4,"lr":0.05,"seed":1}`)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(filepath.Join("data", dataFile))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	rows := bytes.Split(bytes.TrimSpace(text), []byte{'\n'})
	before := evaluate(c, digits(t))
	for _, row := range []int{0, 700, len(rows) - 1} {
		flipped := slices.Clone(rows)
		last := len(rows[row]) - 1
		flipped[row] = append(bytes.Clone(rows[row][:last]), '0'+(rows[row][last]-'0'+1)%10)
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(append(bytes.Join(flipped, []byte{'\n'}), '\n'))
		_ = w.Close()
		data, err := loadDataset(fstest.MapFS{dataFile: {Data: b.Bytes()}})
		if err != nil {
			t.Fatal(err)
		}
		if evaluate(c, data) == before {
			t.Errorf("flipping the label of row %d changes nothing", row+1)
		}
	}
}

func TestNamesAreUniquePerConfiguration(t *testing.T) {
	names := map[string]config{}
	for _, lr := range []float64{0.01, 0.02, 0.05, 0.1, 1} {
		for _, hidden := range []int{1, 16, 32} {
			for _, epochs := range []int{1, 10, 20} {
				for _, seed := range []uint64{0, 1, 10} {
					c := config{Epochs: epochs, Hidden: hidden, LR: lr, Seed: seed}
					if old, ok := names[c.name()]; ok {
						t.Fatalf("%+v and %+v share the name %s", old, c, c.name())
					}
					names[c.name()] = c
				}
			}
		}
	}
}

func TestBadConfigurationsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          ``,
		"no object":      `7`,
		"unknown field":  `{"epochs":1,"hidden":4,"lr":0.1,"seed":1,"layers":2}`,
		"missing lr":     `{"epochs":1,"hidden":4,"seed":1}`,
		"no epochs":      `{"epochs":0,"hidden":4,"lr":0.1,"seed":1}`,
		"huge":           `{"epochs":1,"hidden":1000000,"lr":0.1,"seed":1}`,
		"negative seed":  `{"epochs":1,"hidden":4,"lr":0.1,"seed":-1}`,
		"something more": `{"epochs":1,"hidden":4,"lr":0.1,"seed":1}{}`,
	} {
		if err := run([]string{"--data", "data", "--out", t.TempDir(), "--config", text}, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: error is %v, want wrong use", name, err)
		}
	}
}

func TestBadDataIsRefused(t *testing.T) {
	good := strings.Repeat(strings.Repeat("1,", pixels)+"1\n", classes)
	for name, text := range map[string]string{
		"too few":         strings.Repeat("1,", pixels) + "1\n",
		"short row":       good + "1,2,3\n",
		"long row":        good + strings.Repeat("1,", pixels+1) + "1\n",
		"dark pixel":      good + "17," + strings.Repeat("1,", pixels-1) + "1\n",
		"no digit":        good + strings.Repeat("1,", pixels) + "10\n",
		"negative":        good + strings.Repeat("1,", pixels) + "-1\n",
		"not a number":    good + strings.Repeat("x,", pixels) + "1\n",
		"nothing at all":  "",
		"an empty line":   good + "\n",
		"a missing digit": good + strings.Repeat("1,", pixels) + "\n",
	} {
		if _, err := parseExamples([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := parseExamples([]byte(good)); err != nil {
		t.Errorf("good rows: %v", err)
	}
}

func BenchmarkConfiguration(b *testing.B) {
	data, err := loadDataset(os.DirFS("data"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		evaluate(config{Epochs: 20, Hidden: 32, LR: 0.05, Seed: 1}, data)
	}
}
