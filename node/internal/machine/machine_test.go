package machine

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

var update = flag.Bool("update", false, "write testdata anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; if it is meant to, run the test with -update\ngot:\n%s", path, got)
	}
}

func effectNames(do []Effect) string {
	var names []string
	for _, e := range do {
		names = append(names, e.String())
	}
	return strings.Join(names, " ")
}

func TestTheTableIsTheGoldenOne(t *testing.T) {
	var b bytes.Buffer
	for s := protocol.LeaseLeased; s <= protocol.LeaseEnded; s++ {
		for _, old := range []bool{false, true} {
			for _, e := range Events() {
				l, do, err := Lease{s, old}.Next(e)
				if err != nil {
					continue
				}
				line := fmt.Sprintf("%-10s %-3s %-8s -> %-10s %-3s %s", s, mark(old), e, l.State, mark(l.Old), effectNames(do))
				fmt.Fprintln(&b, strings.TrimRight(line, " "))
			}
		}
	}
	golden(t, "table.txt", b.Bytes())
}

func mark(old bool) string {
	if old {
		return "old"
	}
	return ""
}

// TestHistoriesAreTheGoldenOnes replays the histories in testdata: lines "> event event ...", each followed by
// what comes of it.
func TestHistoriesAreTheGoldenOnes(t *testing.T) {
	text, err := os.ReadFile("testdata/histories.txt")
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Event{}
	for _, e := range Events() {
		byName[e.String()] = e
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		history, is := strings.CutPrefix(line, "> ")
		if !is {
			if strings.HasPrefix(line, "#") || line == "" {
				fmt.Fprintln(&b, line)
			}
			continue
		}
		fmt.Fprintln(&b, line)
		l := New()
		for name := range strings.FieldsSeq(history) {
			e, ok := byName[name]
			if !ok {
				t.Fatalf("no event %q", name)
			}
			next, do, err := l.Next(e)
			if err != nil {
				fmt.Fprintf(&b, "  %s: refused\n", e)
				continue
			}
			l = next
			fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  %s: %s %s", e, strings.TrimSpace(l.State.String()+" "+mark(l.Old)), effectNames(do)), " "))
		}
	}
	golden(t, "histories.txt", b.Bytes())
}

func TestEveryStateTakesWhatComesFromOutside(t *testing.T) {
	for s := protocol.LeaseLeased; s <= protocol.LeaseEnded; s++ {
		for _, e := range []Event{Renew, Stop, Return, Lapse} {
			if _, _, err := (Lease{State: s}).Next(e); err != nil {
				t.Errorf("%v", err)
			}
		}
	}
	if _, _, err := New().Next(Exited); !errors.Is(err, ErrNoTransition) {
		t.Errorf("an exit before the start gives %v", err)
	}
}

// world is what a lease's effects act upon.
type world struct {
	lease   Lease
	process bool // code of the job may run
	pending bool // an outcome is to be handed over
	staging bool
	killed  bool
}

func (w *world) apply(t *testing.T, e Event) {
	t.Helper()
	before := w.lease
	next, do, err := w.lease.Next(e)
	if err != nil {
		return
	}
	if before.Old && !next.Old {
		t.Fatalf("%v under %s: an old fence became new", before, e)
	}
	if before.State == protocol.LeaseEnded && next.State != protocol.LeaseEnded {
		t.Fatalf("%v under %s: came back as %v", before, e, next)
	}
	w.lease = next
	for _, d := range do {
		switch d {
		case Prepare:
			w.staging = true
		case Abort:
			w.staging = false
		case Start:
			if w.process {
				t.Fatalf("%v under %s: a second start", before, e)
			}
			w.process, w.staging = true, false
		case Kill:
			w.killed = true
		case Publish, Retry, Answer:
			if next.Old {
				t.Fatalf("%v under %s: published under an old fence", before, e)
			}
			w.pending = true
		case Release, Keep:
			if w.process {
				t.Fatalf("%v under %s: released while its process may run", before, e)
			}
			if w.staging && e != Acked {
				t.Fatalf("%v under %s: released while it is being prepared", before, e)
			}
			w.pending = false
		}
	}
}

// possible says whether the world can bring an event about.
func (w *world) possible(e Event) bool {
	switch e {
	case Begin:
		return w.lease.State == protocol.LeaseLeased
	case Prepared, Failed:
		return w.staging
	case Exited:
		return w.process
	case Alive:
		return w.process
	case Gone:
		return w.process && w.lease.State == protocol.LeaseUnknown
	case Acked, Later:
		return w.pending
	case Grace:
		return w.lease.State == protocol.LeaseStopping
	case Clings:
		return w.lease.State == protocol.LeaseStopping && w.killed
	}
	return true
}

func (w *world) do(t *testing.T, e Event) {
	if !w.possible(e) {
		return
	}
	if e == Exited || e == Gone {
		w.process = false
	}
	if e == Prepared || e == Failed {
		w.staging = false
	}
	w.apply(t, e)
}

// TestRandomHistoriesKeepTheirPromises lets everything happen in any order, with loss, repetition and delay: no
// double start, nothing published under an old fence, and time alone ends every lease.
func TestRandomHistoriesKeepTheirPromises(t *testing.T) {
	seeds := uint64(200_000)
	if testing.Short() {
		seeds = 20_000
	}
	reached := map[protocol.LeaseState]int{}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 8))
		w := &world{lease: New()}
		for range rnd.IntN(40) {
			all := Events()
			w.do(t, all[rnd.IntN(len(all))])
			reached[w.lease.State]++
		}
		// From here on nobody says a word and everything takes as long as it may.
		for range 8 {
			for _, e := range []Event{Lapse, Begin, Failed, Overdue, Linger, Grace, Exited, Overdue} {
				w.do(t, e)
			}
		}
		if w.lease.State != protocol.LeaseEnded || w.process {
			t.Fatalf("seed %d: %v with process %t after all time has passed", seed, w.lease, w.process)
		}
	}
	for s := protocol.LeaseLeased; s <= protocol.LeaseEnded; s++ {
		if reached[s] == 0 {
			t.Errorf("no history came to %s", s)
		}
	}
}

func TestTheTableNamesNoEffectTwiceInARow(t *testing.T) {
	for k, r := range table {
		if len(slices.Compact(slices.Clone(r.do))) != len(r.do) {
			t.Errorf("%v repeats an effect: %s", k, effectNames(r.do))
		}
	}
}
