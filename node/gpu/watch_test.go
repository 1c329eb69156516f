//go:build linux && cgo

package gpu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// watched runs a monitor of a machine in virtual time.
func watched(t *testing.T, lib nvml.Interface, edit func(*Config), then func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, lib, edit)
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		then(r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// pass lets virtual time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func a100s(n int) *server.Server {
	return fill(dgxa100.NewWithGPUs(gpus.Multiple(n, gpus.A100_SXM4_40GB)...))
}

func TestXidsMoveTheDeviceThatTheyAreAbout(t *testing.T) {
	var s *server.Server
	var say func(nvml.EventData, nvml.Return)
	s = a100s(4)
	var blamed sync.Map
	synctest.Test(t, func(t *testing.T) {
		say = hears(s)
		r := newRig(t, s, func(c *Config) { c.JobFault = func(uuid string, xid uint64) { blamed.Store(uuid, xid) } })
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()

		before := r.changed()
		began := time.Now()
		say(xid(device(s, 0), 79), nvml.SUCCESS)
		say(xid(device(s, 1), 94), nvml.SUCCESS)
		say(xid(device(s, 2), 31), nvml.SUCCESS)
		synctest.Wait()
		if took := time.Since(began); took > time.Second || r.changed() == before {
			t.Errorf("after %s the node was told %d times", took, r.changed()-before)
		}
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Faulted, Suspect, Healthy, Healthy}) || inv.Sellable() != 2 || !strings.Contains(inv.Devices[0].Reason, "79") {
			t.Errorf("healths are %v: %v", got, inv.Unsold())
		}
		if x, ok := blamed.Load(device(s, 2).UUID); !ok || x != uint64(31) {
			t.Errorf("blamed is %v, %t", x, ok)
		}
		if _, ok := blamed.Load(device(s, 0).UUID); ok {
			t.Error("a job is blamed for what the device did")
		}
		pass(59 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 2 {
			t.Errorf("before a minute of quiet %d can be sold", inv.Sellable())
		}
		pass(15 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 4 {
			t.Errorf("after a minute of quiet: %v", inv.Unsold())
		}
		say(nvml.EventData{EventType: nvml.EventTypeXidCriticalError, EventData: 79}, nvml.SUCCESS) // nobody knows whose
		synctest.Wait()
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Suspect, Suspect, Suspect, Suspect}) {
			t.Errorf("after an error of an unknown device healths are %v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAnXidOfASliceLeavesItsNeighbours(t *testing.T) {
	s := a100s(2)
	synctest.Test(t, func(t *testing.T) {
		say := hears(s)
		r := newRig(t, s, func(c *Config) { cut(device(s, 0), 3, c.Procfs) })
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		e := xid(device(s, 0), 94)
		e.GpuInstanceId, e.ComputeInstanceId = 8, 0
		say(e, nvml.SUCCESS)
		synctest.Wait()
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Healthy, Suspect, Healthy, Healthy}) {
			t.Errorf("one slice's error makes %v", got)
		}
		say(xid(device(s, 0), 79), nvml.SUCCESS) // without instances: all of the GPU
		synctest.Wait()
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Faulted, Faulted, Faulted, Faulted, Healthy}) {
			t.Errorf("the GPU's error makes %v", got)
		}
		cancel()
		<-done
	})
}

func TestWhoCannotHearErrorsSellsNothing(t *testing.T) {
	s := a100s(2)
	synctest.Test(t, func(t *testing.T) {
		say := hears(s)
		r := newRig(t, s, nil)
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		for i := range 3 {
			if got := r.Inventory().Sellable(); got != 2 {
				t.Fatalf("after %d failures %d can be sold", i, got)
			}
			say(nvml.EventData{}, nvml.ERROR_UNKNOWN)
			pass(2 * time.Second)
		}
		if inv := r.Inventory(); inv.Sellable() != 0 || !strings.Contains(inv.Devices[1].Reason, "cannot be heard") {
			t.Errorf("after three failures: %v", inv.Unsold())
		}
		pass(90 * time.Second) // it hears again
		if inv := r.Inventory(); inv.Sellable() != 2 {
			t.Errorf("when it hears again: %v", inv.Unsold())
		}
		cancel()
		<-done
	})
}

func TestADeviceThatFallsOffTheBusGoesAlone(t *testing.T) {
	s := a100s(4)
	var lost atomic.Bool
	d := device(s, 1)
	d.GetUUIDFunc = func() (string, nvml.Return) {
		if lost.Load() {
			return "", nvml.ERROR_GPU_IS_LOST
		}
		return d.UUID, nvml.SUCCESS
	}
	watched(t, s, nil, func(r *rig) {
		lost.Store(true)
		pass(6 * time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Healthy, Faulted, Healthy, Healthy}) || inv.Groups[0].GetCount() != 4 || inv.Devices[1].Group != 0 {
			t.Errorf("healths are %v, the group %v", got, inv.Groups)
		}
		pass(11 * time.Minute) // over a reading of everything
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Faulted, Healthy, Healthy}) {
			t.Errorf("after a reading healths are %v", got)
		}
		lost.Store(false)
		pass(40 * time.Second)
		if got := r.Inventory().Devices[1].Health; got != Recovering {
			t.Errorf("when it is back it is %s", got)
		}
		pass(70 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 4 {
			t.Errorf("a minute later: %v", inv.Unsold())
		}
	})
}

func TestACallThatHangsIsNotRepeated(t *testing.T) {
	s := a100s(2)
	var hangs atomic.Bool
	var calls atomic.Int32
	var release chan struct{}
	d := device(s, 0)
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) {
		if hangs.Load() {
			calls.Add(1)
			<-release
		}
		return 0, nvml.ERROR_NOT_SUPPORTED
	}
	synctest.Test(t, func(t *testing.T) {
		release = make(chan struct{})
		r := newRig(t, s, nil)
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		hangs.Store(true)
		pass(6 * time.Second)
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Healthy, Healthy}) {
			t.Errorf("before its time was up healths are %v", got)
		}
		pass(40 * time.Minute)
		if got := healths(r.Inventory()); !slices.Equal(got, []Health{Suspect, Healthy}) || calls.Load() != 1 {
			t.Errorf("healths are %v after %d calls", got, calls.Load())
		}
		hangs.Store(false)
		close(release)
		pass(70 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 2 {
			t.Errorf("when it answers again: %v", inv.Unsold())
		}
		cancel()
		<-done
	})
}

func TestADriverThatComesAndGoesIsNoticed(t *testing.T) {
	s := a100s(2)
	var start atomic.Int32 // what Init returns
	var open atomic.Int32
	s.InitFunc = func() nvml.Return {
		if r := nvml.Return(start.Load()); r != nvml.SUCCESS {
			return r
		}
		open.Add(1)
		return nvml.SUCCESS
	}
	s.ShutdownFunc = func() nvml.Return { open.Add(-1); return nvml.SUCCESS }
	var listed atomic.Pointer[[]nvml.Device]
	listed.Store(&s.Devices)
	s.DeviceGetCountFunc = func() (int, nvml.Return) { return len(*listed.Load()), nvml.SUCCESS }
	s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) { return (*listed.Load())[i], nvml.SUCCESS }
	watched(t, s, nil, func(r *rig) {
		uuids := []string{r.Inventory().Devices[0].UUID, r.Inventory().Devices[1].UUID}
		bus := func(files map[string]string) { write(t, r.cfg.Sysfs, files) }
		// Unloaded.
		bus(map[string]string{"bus/pci/devices/0000:01:00.0/vendor": "0x10de", "bus/pci/devices/0000:01:00.0/class": "0x030200", "module/nvidia/version": "1"})
		start.Store(int32(nvml.ERROR_DRIVER_NOT_LOADED))
		pass(6 * time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Absent, Absent}) || inv.Sellable() != 0 || inv.Units() != 2 || len(inv.Problems) != 1 || open.Load() != 0 {
			t.Errorf("without a driver: %v, %v, open %d", got, inv.Unsold(), open.Load())
		}
		// Loaded again, with its devices the other way round and a third one.
		listed.Store(&[]nvml.Device{s.Devices[1], s.Devices[0], a100s(1).Devices[0]})
		start.Store(int32(nvml.SUCCESS))
		bus(map[string]string{"module/nvidia/version": "2"})
		pass(65 * time.Second) // looks are rarer without a driver
		inv = r.Inventory()
		if len(inv.Devices) != 3 || inv.Devices[0].UUID != uuids[1] || inv.Devices[1].UUID != uuids[0] || inv.Devices[2].Health != Healthy || inv.Devices[0].Health != Recovering || open.Load() != 1 {
			t.Errorf("with a driver again: %v, open %d", healths(inv), open.Load())
		}
		pass(65 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 3 || len(inv.Problems) != 0 {
			t.Errorf("a minute later: %v", inv.Unsold())
		}
		// One is taken away.
		fewer := (*listed.Load())[:2]
		listed.Store(&fewer)
		bus(map[string]string{"bus/pci/drivers/nvidia/0000:01:00.0": ""})
		pass(6 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 0 && healths(inv)[2] != Absent || inv.Groups[inv.Devices[2].Group].GetCount() != 3 {
			t.Errorf("with one less: %v", healths(inv))
		}
	})
	if open.Load() != 0 {
		t.Errorf("NVML is open %d times at the end", open.Load())
	}
}

func TestNVMLThatWantsANewStartGetsOne(t *testing.T) {
	s := a100s(1)
	var inits atomic.Int32
	s.InitFunc = func() nvml.Return { inits.Add(1); return nvml.SUCCESS }
	d := device(s, 0)
	d.GetUUIDFunc = func() (string, nvml.Return) {
		if inits.Load() == 2 {
			return "", nvml.ERROR_UNINITIALIZED
		}
		return d.UUID, nvml.SUCCESS
	}
	watched(t, s, nil, func(r *rig) {
		inits.Store(2)
		pass(16 * time.Second)
		if inits.Load() != 3 {
			t.Errorf("NVML was started %d times", inits.Load()-1)
		}
		pass(70 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 1 || inits.Load() != 3 {
			t.Errorf("%v after %d starts", inv.Unsold(), inits.Load()-1)
		}
	})
}

func TestARepartitionedGPUHasNewSlices(t *testing.T) {
	s := a100s(1)
	watched(t, s, func(c *Config) { cut(device(s, 0), 3, c.Procfs) }, func(r *rig) {
		if inv := r.Inventory(); inv.Sellable() != 3 {
			t.Fatal(inv.Unsold())
		}
		_, _ = device(s, 0).SetMigMode(nvml.DEVICE_MIG_DISABLE)
		pass(11 * time.Minute)
		inv := r.Inventory()
		if len(inv.Devices) != 1 || inv.Sellable() != 1 || inv.Devices[0].Slices != 0 || inv.Groups[0].GetMigProfile() != "" {
			t.Errorf("without MIG: %+v", inv.Devices)
		}
	})
}

func TestWhoeverElseComputesHasTheDevice(t *testing.T) {
	s := a100s(3)
	var pids [3]atomic.Int32
	for i := range 3 {
		device(s, i).GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
			if pid := pids[i].Load(); pid != 0 {
				return []nvml.ProcessInfo{{Pid: uint32(pid)}}, nvml.SUCCESS
			}
			return nil, nvml.SUCCESS
		}
	}
	var leased string
	watched(t, s, func(c *Config) {
		c.Busy = func(uuid string) bool { return uuid == leased }
		leased = device(s, 2).UUID
		write(t, c.Procfs, map[string]string{
			"4711/stat": "4711 (some (odd) name) S 1 1 1", "4711/comm": "blender\n",
			"4712/stat": fmt.Sprintf("4712 (python) S %d 1 1", os.Getpid()),
		})
	}, func(r *rig) {
		pids[0].Store(4711) // a stranger
		pids[1].Store(4712) // a child of ours
		pids[2].Store(4711) // on a leased device nobody can tell
		pass(6 * time.Second)
		if got := r.Inventory().Sellable(); got != 3 {
			t.Errorf("one look is no proof, but %d can be sold", got)
		}
		pass(5 * time.Second)
		inv := r.Inventory()
		if got := healths(inv); !slices.Equal(got, []Health{Foreign, Healthy, Healthy}) || !strings.Contains(inv.Devices[0].Reason, "4711 (blender)") {
			t.Errorf("healths are %v: %v", got, inv.Unsold())
		}
		pids[0].Store(0)
		pass(70 * time.Second)
		if inv := r.Inventory(); inv.Sellable() != 3 {
			t.Errorf("when the stranger is gone: %v", inv.Unsold())
		}
	})
}

func TestThreeFaultsADayNeedTheOwner(t *testing.T) {
	s := a100s(1)
	history := filepath.Join(t.TempDir(), "gpus.json")
	synctest.Test(t, func(t *testing.T) {
		say := hears(s)
		r := newRig(t, s, func(c *Config) { c.History = history })
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		for range 3 {
			say(xid(device(s, 0), 79), nvml.SUCCESS)
			pass(2 * time.Minute)
		}
		if inv := r.Inventory(); inv.Devices[0].Health != Locked || !strings.Contains(inv.Unsold()[0].Fix, "gridbeam node gpu clear") {
			t.Errorf("after three faults: %v", inv.Unsold())
		}
		cancel()
		<-done
		again := newRig(t, s, func(c *Config) { c.History = history })
		if inv, err := again.Read(t.Context()); err != nil || inv.Devices[0].Health != Locked {
			t.Errorf("after a restart it is %v, %v", healths(inv), err)
		}
		if err := again.Clear("GPU-nobody"); err == nil {
			t.Error("a GPU that is not there was cleared")
		}
		if err := again.Clear(device(s, 0).UUID); err != nil || again.Inventory().Devices[0].Health != Recovering {
			t.Errorf("the owner's word makes it %v, %v", healths(again.Inventory()), err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- again.Run(ctx) }()
		pass(70 * time.Second)
		if inv := again.Inventory(); inv.Sellable() != 1 {
			t.Errorf("a minute after the owner's word: %v", inv.Unsold())
		}
		cancel()
		<-done
		if err := again.Run(t.Context()); err == nil {
			t.Error("it runs twice")
		}
	})
}

func TestAMachineWithoutGPUsStaysQuiet(t *testing.T) {
	var inits atomic.Int32
	s := a100s(0)
	s.InitFunc = func() nvml.Return { inits.Add(1); return nvml.ERROR_LIBRARY_NOT_FOUND }
	watched(t, s, nil, func(r *rig) {
		pass(time.Hour)
		inv := r.Inventory()
		if inv.Units() != 0 || len(inv.Unsold()) != 0 || r.changed() != 0 {
			t.Errorf("%d units, %v, %d changes", inv.Units(), inv.Unsold(), r.changed())
		}
		if n := inits.Load(); n < 2 || n > 8 {
			t.Errorf("in an hour NVML was tried %d times", n)
		}
	})
}

// restarted is a node that starts on a machine, and what it finds; faulty makes the first GPU fault while it runs.
func restarted(t *testing.T, s *server.Server, history string, faulty bool) Inventory {
	t.Helper()
	say := hears(s)
	r := newRig(t, s, func(c *Config) { c.History = history })
	if _, err := r.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	synctest.Wait()
	if faulty {
		say(xid(device(s, 0), 79), nvml.SUCCESS)
	}
	pass(2 * time.Minute)
	cancel()
	<-done
	return r.Inventory()
}

func TestALockOutlastsRestartsWithoutItsGPU(t *testing.T) {
	history := filepath.Join(t.TempDir(), "gpus.json")
	synctest.Test(t, func(t *testing.T) {
		both, one := a100s(2), a100s(1)
		bad, good := device(both, 0).UUID, device(both, 1).UUID
		device(one, 0).UUID = good
		if err := writeHistory(history, map[string]past{bad: {Locked: "3 faults"}, "GPU-once": {Faults: []time.Time{time.Now()}}}); err != nil {
			t.Fatal(err)
		}
		restarted(t, one, history, true) // the locked one has fallen off the bus, and the other faults
		kept, err := readHistory(history)
		if err != nil || len(kept) != 3 || kept[bad].Locked == "" || len(kept["GPU-once"].Faults) != 1 {
			t.Errorf("kept is %v, %v", kept, err)
		}
		if inv := restarted(t, both, history, false); !slices.Equal(healths(inv), []Health{Locked, Healthy}) {
			t.Errorf("back again they are %v", healths(inv))
		}
		pass(25 * time.Hour)
		restarted(t, one, history, true)
		if kept, err := readHistory(history); err != nil || len(kept) != 2 || kept[bad].Locked == "" {
			t.Errorf("a day later kept is %v, %v", kept, err)
		}
		r := newRig(t, one, func(c *Config) { c.History = history })
		if err := r.Clear(bad); err != nil {
			t.Errorf("a GPU that is not there is not cleared: %v", err)
		}
		if inv := restarted(t, both, history, false); !slices.Equal(healths(inv), []Health{Healthy, Healthy}) {
			t.Errorf("cleared they are %v", healths(inv))
		}
	})
}

func TestALockOutlastsTheUnlistingOfAGPUThatWasNeverReadWell(t *testing.T) {
	history := filepath.Join(t.TempDir(), "gpus.json")
	synctest.Test(t, func(t *testing.T) {
		s := a100s(2)
		bad := device(s, 1).UUID
		if err := writeHistory(history, map[string]past{bad: {Locked: "3 faults"}}); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, s, func(c *Config) { c.History = history })
		if _, err := r.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		func() {
			r.Monitor.mu.Lock()
			defer r.Monitor.mu.Unlock()
			delete(r.known, bad) // as if it had never been read well
			r.missing(map[string]bool{device(s, 0).UUID: true}, time.Now())
			r.meet(&Device{UUID: bad}, time.Now())
			if got := r.tracks[bad].state; got != Locked {
				t.Errorf("listed again it is %s", got)
			}
		}()
	})
}

func TestADamagedHistoryLocksEveryGPUUntilItIsCleared(t *testing.T) {
	for name, text := range map[string]string{"cut off": `{"GPU-1":{"faul`, "empty": "", "null": "null", "too many faults": `{"GPU-1":{"faults":[` + strings.Repeat(`"2026-01-01T00:00:00Z",`, 9) + `"2026-01-01T00:00:00Z"]}}`} {
		t.Run(name, func(t *testing.T) {
			history := filepath.Join(t.TempDir(), "gpus.json")
			if err := os.WriteFile(history, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				s := a100s(3)
				inv := restarted(t, s, history, false)
				if !slices.Equal(healths(inv), []Health{Locked, Locked, Locked}) || !strings.Contains(inv.Unsold()[0].Fix, "gridbeam node gpu clear") ||
					!strings.Contains(inv.Unsold()[0].What, "gpus.json.damaged") {
					t.Errorf("they are %v: %v", healths(inv), inv.Unsold())
				}
				if kept, err := os.ReadFile(history + ".damaged"); err != nil || string(kept) != text {
					t.Errorf("kept aside is %q, %v", kept, err)
				}
				r := newRig(t, s, func(c *Config) { c.History = history })
				if _, err := r.Read(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := r.Clear(device(s, 1).UUID); err != nil {
					t.Fatal(err)
				}
				more := a100s(4)
				for i := range s.Devices {
					device(more, i).UUID = device(s, i).UUID
				}
				if inv := restarted(t, more, history, false); !slices.Equal(healths(inv), []Health{Locked, Healthy, Locked, Locked}) {
					t.Errorf("one cleared, and another built in, they are %v", healths(inv))
				}
			})
		})
	}
}
