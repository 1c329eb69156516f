package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuantileIsTheNearestRank(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		of   []float64
		q    float64
		want float64
	}{
		{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}, {[]float64{3, 1, 2}, 0.5, 2}, {[]float64{7}, 0.99, 7},
	} {
		if got := quantile(c.of, c.q); got != c.want {
			t.Errorf("quantile %g of %v is %g, want %g", c.q, c.of, got, c.want)
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("nothing has a median")
	}
}

func TestTargetsAreMetFromTheRightSide(t *testing.T) {
	for _, c := range []struct {
		name  string
		value float64
		met   bool
	}{
		{"dispatch.p50_ms", 5, true},
		{"dispatch.p50_ms", 5.01, false},
		{"dispatch.chunks_per_s", 5000, true},
		{"dispatch.chunks_per_s", 4999, false},
		{"dispatch.go_wasm_ratio", 0.59, false},
		{"dispatch.p50_ms", math.NaN(), false},
	} {
		if got := measured(c.name, c.value, 0, "").Met; got != c.met {
			t.Errorf("%s of %g: met is %v", c.name, c.value, got)
		}
	}
	r := measured("dispatch.p50_ms", 4, 0.1, "")
	if *r.Ratio != 40 || *r.BaselineValue != 0.1 || r.Baseline == "" {
		t.Errorf("ratio is %+v", r)
	}
	if r := measured("dispatch.go_wasm_ratio", 0.7, 900, ""); *r.Ratio != 0.7 {
		t.Errorf("ratio of a ratio is %g", *r.Ratio)
	}
	if r := measured("dispatch.failover_p99_s", 7, 0, ""); r.Ratio != nil || r.BaselineValue != nil || r.Baseline != "" {
		t.Errorf("a row without baseline has one: %+v", r)
	}
}

func TestEveryMeasuredRowHasATarget(t *testing.T) {
	for _, name := range names(measures) {
		if find(name).target == 0 {
			t.Errorf("%s has no target", name)
		}
	}
	if len(names(measures)) != len(rows) {
		t.Error("a row is not measured")
	}
}

func TestHistoryKeepsOtherCommitsAndReplacesItsOwn(t *testing.T) {
	text := "before\n" + latestBegin + "\nold\n" + latestEnd + "\nbetween\n" + historyBegin + "\n" + historyEnd + "\nafter\n"
	step := func(commit string, value float64) {
		t.Helper()
		rep := report{Commit: commit, Date: "2026-01-02", Results: []result{measured("node.rss_mib", 50, 25, ""), measured("dispatch.p50_ms", value, 0.1, "")}}
		var err error
		if text, err = rep.readme(text); err != nil {
			t.Fatal(err)
		}
	}
	step("aaa", 9)
	step("bbb", 8)
	step("bbb", 4)
	history, err := between(text, historyBegin, historyEnd)
	if err != nil {
		t.Fatal(err)
	}
	want := "\n" + historyHead +
		"| `dispatch.p50_ms` | `aaa` | 2026-01-02 | 9 ms | 0.1 | 90 | ≤ 5 | MISSED |\n" +
		"| `dispatch.p50_ms` | `bbb` | 2026-01-02 | 4 ms | 0.1 | 40 | ≤ 5 | met |\n" +
		"| `node.rss_mib` | `aaa` | 2026-01-02 | 50 MiB | 25 | 2 | ≤ 60 | met |\n" +
		"| `node.rss_mib` | `bbb` | 2026-01-02 | 50 MiB | 25 | 2 | ≤ 60 | met |\n"
	if history != want {
		t.Errorf("history is %s\nwant %s", history, want)
	}
	if !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "\nafter\n") || strings.Contains(text, "old") || strings.Count(text, "between") != 1 {
		t.Errorf("the rest of the file is not as before:\n%s", text)
	}
	if _, err := (&report{}).readme("no marks"); err == nil {
		t.Error("a file without marks is taken")
	}
}

func TestGoBenchmarksAreRead(t *testing.T) {
	got := parseGoBench("goos: linux\nBenchmarkWarm/wazero_alone-2 \t 100 \t 12345.5 ns/op\t 3 B/op\nBenchmarkGuest-16 2000 7000 ns/op\nBenchmarkGang/n-8x 1 1 ns/op\nPASS\n")
	for name, want := range map[string]float64{"BenchmarkWarm/wazero_alone": 12345.5, "BenchmarkGuest": 7000, "BenchmarkGang/n-8x": 1} {
		if got[name] != want {
			t.Errorf("%s is %g, want %g (%v)", name, got[name], want, got)
		}
	}
}

func TestOutputsAreComparedOneByOne(t *testing.T) {
	inputs := []string{"a-0", "a-1", "a-2"}
	pack := func(files map[string][]byte) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range []string{"0/h", "1/h", "2/h", "3/h", "2/x", "h"} {
			if body, ok := files[name]; ok {
				if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}), func() error { _, err := w.Write(body); return err }()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	good := func() map[string][]byte {
		m := map[string][]byte{}
		for i, in := range inputs {
			m[fmt.Sprintf("%d/h", i)] = nonceOutput(in)
		}
		return m
	}
	if err := compare(pack(good()), inputs); err != nil {
		t.Error(err)
	}
	if err := compare(pack(map[string][]byte{"h": nonceOutput("x")}), []string{"x"}); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(map[string][]byte){
		"one is missing":         func(m map[string][]byte) { delete(m, "1/h") },
		"one is another's":       func(m map[string][]byte) { m["1/h"] = nonceOutput("a-0") },
		"one too many":           func(m map[string][]byte) { m["3/h"] = nonceOutput("a-0") },
		"a file nobody wrote":    func(m map[string][]byte) { m["2/x"] = nil },
		"nothing is there":       func(m map[string][]byte) { clear(m) },
		"one is cut":             func(m map[string][]byte) { m["0/h"] = m["0/h"][:7] },
		"one has something more": func(m map[string][]byte) { m["0/h"] = append(m["0/h"], 0) },
	} {
		m := good()
		spoil(m)
		if err := compare(pack(m), inputs); !errors.Is(err, errProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
