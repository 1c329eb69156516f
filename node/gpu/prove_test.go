//go:build linux && cgo

package gpu

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// bench tests GPUs as its verdicts say; one without a verdict passes.
type bench struct {
	mu       sync.Mutex
	verdicts map[string]Proof // by UUID
	took     time.Duration
	tests    map[string][]time.Time
	running  int
	most     int
}

func (b *bench) prove(ctx context.Context, uuid string) Proof {
	b.mu.Lock()
	b.running++
	b.most = max(b.most, b.running)
	if b.tests == nil {
		b.tests = map[string][]time.Time{}
	}
	b.tests[uuid] = append(b.tests[uuid], time.Now())
	took := b.took
	b.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running--
	p, ok := b.verdicts[uuid]
	if !ok {
		p = Proof{Verdict: Passed, Bytes: 64 << 20}
	}
	p.At = time.Now()
	return p
}

func (b *bench) set(uuid string, v Verdict, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.verdicts == nil {
		b.verdicts = map[string]Proof{}
	}
	b.verdicts[uuid] = Proof{Verdict: v, Why: why}
}

func (b *bench) count(uuid string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.tests[uuid])
}

func (b *bench) peak() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// benched watches a machine whose GPUs are tested.
func benched(t *testing.T, s *server.Server, b *bench, edit func(*Config), then func(r *rig, say func(nvml.EventData, nvml.Return))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		say := hears(s)
		r := newRig(t, s, func(c *Config) {
			c.Prove = b.prove
			if edit != nil {
				edit(c)
			}
		})
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		then(r, say)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestGPUsComputeBeforeTheyAreFirstOffered(t *testing.T) {
	s := a100s(5)
	b := &bench{took: time.Second}
	bad, odd := device(s, 3).UUID, device(s, 4).UUID
	b.set(bad, Failed, "its memory gives back other than was written")
	b.set(odd, Unable, "no libcuda.so.1")
	benched(t, s, b, nil, func(r *rig, _ func(nvml.EventData, nvml.Return)) {
		if inv := r.Inventory(); inv.Sellable() != 0 || !inv.Tested || len(inv.Unsold()) != 5 || !strings.Contains(inv.Unsold()[0].What, "untested: it has to compute") || inv.Unsold()[0].Fix == "" {
			t.Errorf("before any test: %v", inv.Unsold())
		}
		pass(1500 * time.Millisecond)
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Healthy, Untested, Untested, Untested}) {
			t.Errorf("after the first two tests: %v", got)
		}
		pass(3 * time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Healthy, Healthy, Healthy, Faulted, Healthy}) || b.peak() != provingMost {
			t.Errorf("after all tests: %v; %d at a time", got, b.peak())
		}
		if d := inv.Devices[3]; !strings.Contains(d.Reason, "its test failed: its memory gives back other") || d.Proof.Verdict != Failed || d.Proof.Again.IsZero() || inv.Faults["proof"] != 1 {
			t.Errorf("the bad one is %+v, %+v; faults %v", d, d.Proof, inv.Faults)
		}
		if p := inv.Devices[4].Proof; p.Verdict != Unable || p.Why == "" || inv.Devices[0].Proof.Verdict != Passed {
			t.Errorf("the one that cannot be tested: %+v", p)
		}
		pass(time.Hour)
		if n := b.count(device(s, 0).UUID); n != 1 {
			t.Errorf("a good GPU was tested %d times in an hour", n)
		}
		if n := b.count(bad); n < 6 || n > 10 || r.Inventory().Devices[3].Health != Faulted {
			t.Errorf("a bad GPU was tested %d times in an hour, and is %s", n, r.Inventory().Devices[3].Health)
		}
		b.set(bad, Passed, "")
		pass(17 * time.Minute)
		if got := r.Inventory(); got.Sellable() != 5 {
			t.Errorf("when it computes again: %v", got.Unsold())
		}
	})
}

func TestAFaultIsOverWhenTheGPUHasComputedAndIsQuiet(t *testing.T) {
	s := a100s(2)
	b := &bench{took: time.Second}
	uuid := device(s, 0).UUID
	benched(t, s, b, nil, func(r *rig, say func(nvml.EventData, nvml.Return)) {
		pass(3 * time.Second)
		if r.Inventory().Sellable() != 2 {
			t.Fatal(r.Inventory().Unsold())
		}
		b.set(uuid, Failed, "the test crashed (segmentation fault) at cuInit")
		say(xid(device(s, 0), 79), nvml.SUCCESS)
		pass(70 * time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Faulted, Healthy}) || !strings.Contains(inv.Devices[0].Reason, "segmentation fault") || b.count(uuid) < 3 {
			t.Errorf("it does not compute: %v, %s, %d tests", got, inv.Devices[0].Reason, b.count(uuid))
		}
		if want := map[string]uint64{"xid_79": 1, "proof": 1}; !maps.Equal(inv.Faults, want) {
			t.Errorf("faults are %v, want %v", inv.Faults, want)
		}
		b.set(uuid, Passed, "")
		await := time.Now()
		for r.Inventory().Devices[0].Health != Recovering && time.Since(await) < 10*time.Minute {
			pass(time.Second)
		}
		pass(58 * time.Second)
		if got := r.Inventory().Devices[0]; got.Health != Recovering || got.Proof.Verdict != Passed {
			t.Errorf("before a minute of quiet it is %s", got.Health)
		}
		pass(8 * time.Second)
		if r.Inventory().Sellable() != 2 {
			t.Errorf("after it: %v", r.Inventory().Unsold())
		}
	})
}

func TestATestWaitsForTheLeaseToEnd(t *testing.T) {
	s := a100s(1)
	b := &bench{took: time.Second}
	uuid := device(s, 0).UUID
	var mu sync.Mutex
	busy := false
	edit := func(c *Config) {
		c.Busy = func(string) bool { mu.Lock(); defer mu.Unlock(); return busy }
	}
	benched(t, s, b, edit, func(r *rig, say func(nvml.EventData, nvml.Return)) {
		pass(3 * time.Second)
		before := b.count(uuid)
		mu.Lock()
		busy = true
		mu.Unlock()
		say(xid(device(s, 0), 94), nvml.SUCCESS)
		pass(5 * time.Minute)
		if got := r.Inventory().Devices[0].Health; got != Suspect || b.count(uuid) != before {
			t.Errorf("while a chunk runs it is %s after %d tests more", got, b.count(uuid)-before)
		}
		mu.Lock()
		busy = false
		mu.Unlock()
		pass(10 * time.Second)
		if got := r.Inventory().Devices[0].Health; got != Healthy || b.count(uuid) != before+1 {
			t.Errorf("when it has ended it is %s after %d tests more", got, b.count(uuid)-before)
		}
	})
}

func TestATestThatAFaultOvertakesProvesNothing(t *testing.T) {
	s := a100s(1)
	b := &bench{took: 3 * time.Second}
	uuid := device(s, 0).UUID
	benched(t, s, b, nil, func(r *rig, say func(nvml.EventData, nvml.Return)) {
		pass(time.Second) // the first test is under way
		say(xid(device(s, 0), 94), nvml.SUCCESS)
		pass(2500 * time.Millisecond)
		if got := r.Inventory().Devices[0]; got.Health != Suspect || b.count(uuid) != 1 {
			t.Errorf("after the overtaken test it is %s, %d tests", got.Health, b.count(uuid))
		}
		pass(50 * time.Second)
		if got := r.Inventory().Devices[0]; got.Health != Suspect || b.count(uuid) != 2 {
			t.Errorf("before a minute of quiet it is %s, %d tests", got.Health, b.count(uuid))
		}
		pass(15 * time.Second)
		if got := r.Inventory().Devices[0]; got.Health != Healthy {
			t.Errorf("after it: %s, %s", got.Health, got.Reason)
		}
	})
}

func TestSlicesAreTestedAndTheirGPUIsNot(t *testing.T) {
	s := a100s(1)
	b := &bench{took: 100 * time.Millisecond}
	whole := device(s, 0)
	benched(t, s, b, func(c *Config) { cut(whole, 3, c.Procfs) }, func(r *rig, say func(nvml.EventData, nvml.Return)) {
		pass(time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Healthy, Healthy, Healthy, Healthy}) || b.count(whole.UUID) != 0 || b.count(inv.Devices[1].UUID) != 1 {
			t.Errorf("healths are %v, %d tests of the GPU", got, b.count(whole.UUID))
		}
		b.set(inv.Devices[2].UUID, Failed, "wrong")
		say(xid(whole, 94), nvml.SUCCESS) // of all
		pass(80 * time.Second)
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Healthy, Faulted, Healthy}) {
			t.Errorf("with one bad slice healths are %v", got)
		}
		_, _ = whole.SetMigMode(nvml.DEVICE_MIG_DISABLE)
		b.mu.Lock()
		b.took = time.Minute
		b.mu.Unlock()
		pass(9 * time.Minute) // over a reading of everything
		if inv := r.Inventory(); len(inv.Devices) != 1 || inv.Devices[0].Health != Untested || inv.Sellable() != 0 {
			t.Errorf("a GPU that was cut until now is %v", healths(inv))
		}
		pass(time.Minute)
		if inv := r.Inventory(); inv.Sellable() != 1 || b.count(whole.UUID) != 1 {
			t.Errorf("after its test: %v", inv.Unsold())
		}
	})
}

func TestAMonitorThatIsNotRunTestsOnRequest(t *testing.T) {
	s := a100s(3)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{took: time.Second}
		b.set(device(s, 1).UUID, Failed, "wrong")
		r := newRig(t, s, func(c *Config) { c.Prove = b.prove })
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.Prove(t.Context())
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Faulted, Healthy}) || b.peak() != provingMost {
			t.Errorf("healths are %v, %d at a time", got, b.peak())
		}
		r.Close()
	})
	inv := mustRead(t, s)
	if inv.Sellable() != 3 || inv.Tested {
		t.Errorf("without tests: %v", inv.Unsold())
	}
}

func TestTheTestIsNoStranger(t *testing.T) {
	s := a100s(1)
	b := &bench{took: 30 * time.Second}
	device(s, 0).GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		if b.mu.Lock(); b.running > 0 {
			b.mu.Unlock()
			return []nvml.ProcessInfo{{Pid: 999999}}, nvml.SUCCESS // its number outside of our container
		}
		b.mu.Unlock()
		return nil, nvml.SUCCESS
	}
	benched(t, s, b, nil, func(r *rig, _ func(nvml.EventData, nvml.Return)) {
		pass(25 * time.Second)
		if got := r.Inventory().Devices[0].Health; got != Untested {
			t.Errorf("while it is tested it is %s", got)
		}
		pass(10 * time.Second)
		if got := r.Inventory().Devices[0].Health; got != Healthy {
			t.Errorf("after its test it is %s", got)
		}
	})
}
