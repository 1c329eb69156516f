package gpu

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

var signalByName = func() map[string]signal {
	all := map[string]signal{}
	for i, name := range signals {
		all[name] = signal(i)
	}
	return all
}()

// histories are what happens to a device, by second; the golden file says where it stands after each.
var histories = []struct{ name, script string }{
	{"a contained memory error", "0 fine, 5 warn, 10 fine, 12 pass, 60 fine, 64 fine, 65 fine, 70 fine"},
	{"it is quiet and has not computed", "0 fine, 5 warn, 10 fine, 65 fine, 600 fine, 601 pass, 605 fine"},
	{"it has computed and is not quiet", "0 fine, 5 warn, 10 fine, 12 pass, 30 warn, 35 fine, 90 fine, 95 fine, 96 pass"},
	{"it is tested before it is offered first", "0 doubt, 0 fine, 5 fine, 6 pass, 10 fine"},
	{"it fails its first test", "0 doubt, 0 fine, 4 flunk, 5 fine, 34 flunk, 94 pass, 95 fine, 153 fine, 154 fine"},
	{"it fails the test after a fault", "0 fault, 5 fine, 15 flunk, 20 fine, 600 fine, 605 pass, 610 fine, 664 fine, 665 fine"},
	{"tests that it fails do not lock it", "0 warn, 5 fine, 6 flunk, 40 flunk, 110 flunk, 240 flunk, 500 pass, 560 fine"},
	{"a fault while its tests fail", "0 fault, 5 fine, 6 flunk, 10 fault, 15 fine, 20 pass, 85 fine"},
	{"faults while its tests fail count", "0 fault, 5 fine, 6 flunk, 10 fault, 15 fine, 20 fault, 25 fault"},
	{"nothing can have it compute", "0 warn, 5 fine, 6 waive, 59 fine, 60 fine, 100 doubt, 101 waive"},
	{"what has failed is not let off", "0 warn, 5 fine, 6 flunk, 40 waive, 200 fine, 201 pass, 261 fine"},
	{"a fault that is over", "0 fault, 5 fault, 10 fine, 11 pass, 65 fine, 69 fine, 70 fine"},
	{"a fault that comes back while it recovers", "0 fault, 5 fine, 6 pass, 30 fault, 35 fine, 36 pass, 94 fine, 95 fine"},
	{"three faults in a day need the owner", "0 fault, 5 fine, 6 pass, 65 fine, 3600 fault, 3605 fine, 3606 pass, 3665 fine, 86399 fault, 90000 fine, 99999 fine, 100000 clear, 100030 fine, 100031 pass, 100060 fine"},
	{"three faults in two days do not", "0 fault, 5 fine, 6 pass, 65 fine, 3600 fault, 3605 fine, 3606 pass, 3665 fine, 86401 fault, 86405 fine, 86406 pass, 86500 fine"},
	{"one fault told of many times is one", "0 fault, 5 fault, 10 fault, 15 fault, 20 fault, 25 fine, 26 pass, 90 fine"},
	{"somebody else computes on it", "0 fine, 5 foreign, 10 foreign, 15 fine, 69 fine, 70 fine"},
	{"somebody else computes on one that owes a test", "0 warn, 5 foreign, 10 fine, 65 fine, 66 fine, 67 pass, 130 fine"},
	{"it goes and comes back", "0 fine, 5 gone, 600 gone, 605 fine, 606 pass, 660 fine, 665 fine"},
	{"it fails its test, goes and comes back", "0 warn, 5 fine, 6 flunk, 10 gone, 20 fine, 21 pass, 80 fine"},
	{"it is lost, gone, and back", "0 fault, 5 gone, 10 fine, 11 pass, 65 fine, 70 fine"},
	{"a locked device stays so while it is away", "0 fault, 1 fine, 2 fault, 3 fine, 4 fault, 10 gone, 20 fine, 200 warn, 300 clear, 305 fine, 306 pass, 400 fine"},
	{"warnings do not heal a fault", "0 fault, 5 warn, 10 foreign, 15 fine, 16 pass, 20 warn, 25 fine, 26 pass, 79 fine, 80 fine"},
	{"a clear word cannot make a faulted device good at once", "0 fault, 5 clear, 10 fine, 11 pass, 64 fine, 65 fine"},
	{"a clear word lets a test be tried again", "0 warn, 5 fine, 6 flunk, 40 clear, 45 fine, 46 pass, 105 fine"},
}

func TestHealthFollowsItsGoldenTrace(t *testing.T) {
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var b strings.Builder
	for _, h := range histories {
		fmt.Fprintf(&b, "# %s\n", h.name)
		now := begin(epoch)
		for step := range strings.SplitSeq(h.script, ", ") {
			var at int
			var name string
			if _, err := fmt.Sscanf(step, "%d %s", &at, &name); err != nil {
				t.Fatal(step, err)
			}
			s, ok := signalByName[name]
			if !ok {
				t.Fatalf("no signal %q", name)
			}
			now = now.next(s, name+" at "+fmt.Sprint(at), epoch.Add(time.Duration(at)*time.Second))
			fmt.Fprintf(&b, "%6d %-8s %-10s since %-6.0f %s\n", at, name, now.state, now.since.Sub(epoch).Seconds(), now.reason)
		}
		b.WriteString("\n")
	}
	path := filepath.Join("testdata", "health.trace")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the trace has changed; with -update it is written anew:\n%s", b.String())
	}
}

// TestNoStateIsATrap: from every state the passing of time and the owner's word lead back, and only a healthy device is sold.
func TestNoStateIsATrap(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for state, row := range table {
		for s, to := range row {
			if _, ok := table[to]; !ok {
				t.Errorf("%s + %s leads to %q, which has no row", state, signal(s), to)
			}
			if to == Healthy && state != Healthy && signal(s) != proven {
				t.Errorf("%s becomes healthy by %s, without a time of quiet and a test", state, signal(s))
			}
		}
		x := track{state: state, bad: now, since: now, reason: "x", owes: state != Healthy}
		for i := range 4 {
			at := now.Add(time.Duration(i) * quietTime)
			if i == 0 {
				x = x.next(cleared, "", at)
			}
			if x = x.next(fine, "", at); x.state == Healthy && state != Healthy && x.owes {
				t.Errorf("%s becomes healthy and owes a test", state)
			}
			if x.due(at) {
				x = x.next(passed, "", at)
			}
		}
		if x.state != Healthy || x.reason != "" {
			t.Errorf("%s stays %s (%s) although all is well", state, x.state, x.reason)
		}
		d := Device{Health: state, Group: 0}
		if d.Sellable() != (state == Healthy) {
			t.Errorf("%s: sellable is %t", state, d.Sellable())
		}
	}
}

// TestOnlyWhoHasComputedIsSold tries all orders of signals: after anything bad no device is healthy before it was tested, but
// where nothing can test it.
func TestOnlyWhoHasComputedIsSold(t *testing.T) {
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	all := []signal{fine, warn, fault, foreign, gone, cleared, doubt, flunk, passed, waived}
	var try func(x track, tested bool, depth int, path string)
	tried := 0
	try = func(x track, tested bool, depth int, path string) {
		if tried++; x.state == Healthy && !tested {
			t.Fatalf("healthy and not tested: %s", path)
		}
		if x.state != Healthy && x.reason == "" {
			t.Fatalf("%s without a reason: %s", x.state, path)
		}
		if depth == 0 {
			return
		}
		for _, s := range all {
			now := epoch.Add(time.Duration(6-depth) * quietTime)
			after := tested
			switch s {
			case warn, fault, gone, doubt, flunk:
				after = false
			case passed:
				after = true
			case waived:
				after = tested || x.flunks == 0
			}
			try(x.next(s, s.String(), now), after, depth-1, path+" "+s.String())
		}
	}
	x := begin(epoch).next(doubt, "", epoch)
	try(x, false, 6, "begin")
	if tried < 1_000_000 {
		t.Errorf("only %d histories", tried)
	}
}

func TestTestsThatFailAreRepeatedEverMoreRarely(t *testing.T) {
	for flunks, want := range map[int]time.Duration{0: 30 * time.Second, 1: 30 * time.Second, 2: time.Minute, 3: 2 * time.Minute, 5: 8 * time.Minute, 6: 16 * time.Minute, 1000: 16 * time.Minute} {
		if got := retryAfter(flunks); got != want {
			t.Errorf("after %d failures it waits %s, want %s", flunks, got, want)
		}
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	x := begin(now)
	if x = x.next(fine, "", now); x.due(now) {
		t.Error("a good device is tested")
	}
	if x = x.next(fault, "broken", now); x.due(now) {
		t.Error("a device is tested while its fault lasts")
	}
	if x = x.next(fine, "", now); !x.due(now) {
		t.Error("a device whose fault is over is not tested")
	}
	if x = x.next(flunk, "wrong", now).next(fine, "", now.Add(5*time.Second)); x.due(now.Add(29*time.Second)) || !x.due(now.Add(30*time.Second)) {
		t.Error("the next test is not 30 s after a failed one")
	}
	if x = x.next(warn, "hot", now.Add(40*time.Second)); x.due(now.Add(time.Hour)) {
		t.Error("a hot device is tested")
	}
	if x = x.next(fine, "", now.Add(50*time.Second)).next(foreign, "mine", now.Add(55*time.Second)); x.due(now.Add(time.Hour)) {
		t.Error("a device is tested while somebody else computes on it")
	}
}

func TestXidsAreJudgedAsTheDesignSays(t *testing.T) {
	for xid, want := range map[uint64]signal{63: warn, 92: warn, 94: warn, 48: fault, 64: fault, 74: fault, 79: fault, 95: fault, 119: fault, 120: fault, 140: fault, 999: fault, 0: fault} {
		if got, ok := signalOf(xid); !ok || got != want {
			t.Errorf("Xid %d is %s, %t, want %s", xid, got, ok, want)
		}
	}
	for _, xid := range []uint64{13, 31, 43, 45, 68, 109} {
		if _, ok := signalOf(xid); ok {
			t.Errorf("Xid %d is the program's, not the device's", xid)
		}
	}
}

func TestFaultsAreKeptOverRestarts(t *testing.T) {
	now := time.Now()
	path := filepath.Join(t.TempDir(), "gpus.json")
	if old, err := readHistory(path); err != nil || old != nil {
		t.Errorf("before anything was written: %v, %v", old, err)
	}
	locked := begin(now.Add(-time.Hour))
	for i := range 3 {
		locked = locked.next(fault, "broken", now.Add(-time.Hour+time.Duration(i)*time.Minute)).next(fine, "", now.Add(-time.Hour+time.Duration(i)*time.Minute))
	}
	once := begin(now).next(fault, "broken", now.Add(-time.Minute))
	if err := writeHistory(path, remembered(nil, map[string]track{"GPU-1": locked, "GPU-2": once, "GPU-3": begin(now)}, now)); err != nil {
		t.Fatal(err)
	}
	old, err := readHistory(path)
	if err != nil || len(old) != 2 {
		t.Fatalf("%v, %v", old, err)
	}
	if x := old["GPU-1"].restored(now); x.state != Locked || !strings.Contains(x.reason, "broken") {
		t.Errorf("the locked one is %+v", x)
	}
	x := old["GPU-2"].restored(now)
	if x.state != Healthy || len(x.faults) != 1 {
		t.Errorf("the other is %+v", x)
	}
	if x.next(fault, "", now).next(fine, "", now).next(fault, "", now).state != Locked {
		t.Error("a fault of before the restart does not count")
	}
	if x := old["GPU-2"].restored(now.Add(25 * time.Hour)); len(x.faults) != 0 {
		t.Errorf("a day later it still has %v", x.faults)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
}

func FuzzHistory(f *testing.F) {
	for _, seed := range []string{`{}`, `{"GPU-1":{"faults":["2026-01-01T00:00:00Z"],"locked":"x"}}`, `{"":{}}`, `[]`, `{"a":{"faults":[1]}}`, `null`, `{"*":{"locked":"x"}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := parseHistory(raw)
		if err != nil {
			return
		}
		for _, p := range all {
			x := p.restored(time.Now())
			if len(x.faults) > faultsMost || x.state != Healthy && x.state != Locked {
				t.Errorf("%+v", x)
			}
		}
	})
}
