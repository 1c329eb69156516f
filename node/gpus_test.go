//go:build linux && cgo

package node

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/internal/stub"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// fakeGPUs are the cards of a machine, and a way to say that one has an error.
type fakeGPUs struct {
	*server.Server
	mu  sync.Mutex
	say func(i int, xid uint64)
}

// fakeMachine has n H100s that answer what a node asks of healthy ones.
func fakeMachine(n int) *fakeGPUs {
	f := &fakeGPUs{Server: dgxh100.NewWithGPUs(gpus.Multiple(n, gpus.H100_SXM5_80GB)...)}
	stub.Answer(&f.Interface, nvml.ERROR_NOT_SUPPORTED)
	for i := range n {
		d := f.Devices[i].(*server.Device)
		stub.Answer(&d.Device, nvml.ERROR_NOT_SUPPORTED)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i + 1)}, nvml.SUCCESS }
		d.GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypeXidCriticalError, nvml.SUCCESS }
		d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 50}, nvml.SUCCESS }
	}
	f.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		events := make(chan nvml.EventData)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.say = func(i int, xid uint64) {
			events <- nvml.EventData{Device: f.Devices[i], EventType: nvml.EventTypeXidCriticalError, EventData: xid, GpuInstanceId: 0xFFFFFFFF, ComputeInstanceId: 0xFFFFFFFF}
		}
		return &mock.EventSet{
			WaitFunc: func(ms uint32) (nvml.EventData, nvml.Return) {
				timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
				defer timer.Stop()
				select {
				case e := <-events:
					return e, nvml.SUCCESS
				case <-timer.C:
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
			},
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		}, nvml.SUCCESS
	}
	return f
}

func (f *fakeGPUs) fault(i int, xid uint64) {
	f.mu.Lock()
	say := f.say
	f.mu.Unlock()
	say(i, xid)
	synctest.Wait()
}

func (f *fakeGPUs) into(t *testing.T) func(*Config) {
	return func(c *Config) {
		c.GPUs = func(g gpu.Config, log *slog.Logger) (*gpu.Monitor, error) {
			g.Sysfs, g.Procfs = t.TempDir(), t.TempDir()
			return gpu.NewWith(f, g, log)
		}
	}
}

// beatOf is the heartbeat that a node would send about a record that it makes now.
func beatOf(t *testing.T, n *Node, seq uint64) (*pb.Capability, *pb.Availability) {
	t.Helper()
	s := n.at()
	now := time.Now()
	raw, err := s.speaker.Record(seq, now, now.Add(time.Hour), false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dht.OpenCapability(raw, s.host.ID(), now)
	if err != nil {
		t.Fatal(err)
	}
	return c, heartbeatOf(t, n, seq)
}

func heartbeatOf(t *testing.T, n *Node, seq uint64) *pb.Availability {
	t.Helper()
	raw, err := n.at().speaker.Beat(dht.BeatHeader{Seq: seq, At: time.Now(), Period: 30 * time.Second, CapSeq: seq}, false)
	if err != nil {
		t.Fatal(err)
	}
	a, err := protocol.OpenAvailability(raw, n.at().host.ID())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestHeartbeatsFollowTheHealthOfGPUsAndTheRecordLater(t *testing.T) {
	f := fakeMachine(4)
	functions := func() *fakeBackend { return &fakeBackend{runtimes: []string{"python3.11"}} }
	inWorldOf(t, 1, 0, functions, func(w *world) {
		c, a := beatOf(t, w.node(0), 1)
		if s := w.node(0).Status().Selling; s.Sellable != 4 || s.Units != 4 {
			t.Fatalf("at the start %+v", s)
		}
		if len(c.GetGpus()) != 1 || c.GetGpus()[0].GetCount() != 4 || c.GetGpus()[0].Faulted != nil || c.GetGpus()[0].GetCuda() != 12040 || len(c.GetGpus()[0].GetDeviceTags()) != 4 {
			t.Errorf("the record's groups are %v", c.GetGpus())
		}
		if g := a.GetGroups(); len(g) != 1 || g[0].GetFree() != 4 || g[0].GetFaulted() != 0 || g[0].GetUtilPct() != 50 {
			t.Errorf("the heartbeat's groups are %v", g)
		}
		<-time.After(20 * time.Second) // what is broken at the start is in the record at once
		f.fault(1, 79)
		w.within(time.Second, "the heartbeat has a GPU less", func() bool {
			a = heartbeatOf(t, w.node(0), 1)
			return a.GetGroups()[0].GetFree() == 3 && a.GetGroups()[0].GetFaulted() == 1
		})
		if s := w.node(0).Status().Selling; s.Sellable != 3 || len(s.Unsold) != 1 || !strings.Contains(s.Unsold[0].What, "Xid 79") {
			t.Errorf("%+v", s)
		}
		if c, _ := beatOf(t, w.node(0), 2); c.GetGpus()[0].GetFaulted() != 0 {
			t.Error("the record speaks of a fault of a moment ago")
		}
		for range 12 { // it goes on
			f.fault(1, 79)
			<-time.After(10 * time.Second)
		}
		if c, _ := beatOf(t, w.node(0), 3); c.GetGpus()[0].GetFaulted() != 1 || c.GetGpus()[0].GetCount() != 4 {
			t.Errorf("after a minute the record's groups are %v", c.GetGpus())
		}
		<-time.After(2 * time.Minute)
		if s := w.node(0).Status().Selling; s.Sellable != 3 || !strings.Contains(s.Unsold[0].Fix, "node gpu clear") {
			t.Errorf("after so many faults %+v", s)
		}
	}, f.into(t))
}

func TestANodeWhoseGPUsAreAllBrokenIsNoCPUNode(t *testing.T) {
	f := fakeMachine(2)
	inWorld(t, 1, 0, func(w *world) {
		s := w.node(0).at()
		if why, text := s.accepts(); w.node(0).Status().State != StateReady || why != protocol.ReasonNone {
			t.Fatalf("with good GPUs it is %s: %s", w.node(0).Status().State, text)
		}
		beatOf(t, w.node(0), 1)
		<-time.After(20 * time.Second)
		f.fault(0, 79)
		w.within(time.Second, "one is broken", func() bool { return w.node(0).Status().Selling.Unsold != nil })
		if st := w.node(0).Status(); st.State != StateReady || st.Selling.Withheld != "" {
			t.Errorf("with one good GPU it is %s: %v", st.State, st.Why)
		}
		f.fault(1, 79)
		w.within(time.Second, "it is paused", func() bool { return w.node(0).Status().State == StatePaused })
		st := w.node(0).Status()
		if !strings.Contains(strings.Join(st.Why, " "), "offer: {cpu: true} in node.yaml") || st.Selling.Withheld == "" {
			t.Errorf("it says %v, %+v", st.Why, st.Selling)
		}
		if why, text := s.accepts(); why != protocol.ReasonBusy || !strings.Contains(text, "none of its 2 GPUs") {
			t.Errorf("a reservation is answered with %v, %s", why, text)
		}
		if a := heartbeatOf(t, w.node(0), 1); a.GetState() != pb.NodeState_NODE_STATE_PAUSED || a.GetGroups()[0].GetFaulted() != 2 || a.GetGroups()[0].GetFree() != 0 {
			t.Errorf("the heartbeat is %v", a)
		}
		for range 12 { // it goes on
			f.fault(0, 79)
			f.fault(1, 79)
			<-time.After(10 * time.Second)
		}
		// It stays with its model's nodes, so that nobody takes it for one without GPUs.
		if c, _ := beatOf(t, w.node(0), 2); len(c.GetGpus()) != 1 || c.GetGpus()[0].GetFaulted() != 2 || c.GetGpus()[0].GetModel() == "" {
			t.Errorf("the record's groups are %v", c.GetGpus())
		}
		for _, d := range st.Inventory.GPUs.Devices {
			if err := w.node(0).ClearGPU(d.UUID); err != nil {
				t.Fatal(err)
			}
		}
		w.within(2*time.Minute, "it takes work again with a good GPU", func() bool { return w.node(0).Status().State == StateReady })
	}, f.into(t), func(c *Config) { c.OfferCPU = false })
}

func TestTheOwnerMayOfferProcessorsBesideBrokenGPUs(t *testing.T) {
	f := fakeMachine(1)
	inWorld(t, 1, 0, func(w *world) {
		f.fault(0, 79)
		w.within(time.Second, "it is broken", func() bool {
			return w.node(0).Status().Selling.Sellable == 0 && w.node(0).Status().Selling.Unsold != nil
		})
		if st := w.node(0).Status(); st.State != StateReady || st.Selling.Withheld != "" {
			t.Errorf("it is %s: %v", st.State, st.Why)
		}
	}, f.into(t)) // the configuration of tests offers them
}

func TestAGPUThatIsBeingTestedIsInTheRecordAndNotFree(t *testing.T) {
	f := fakeMachine(1)
	functions := func() *fakeBackend { return &fakeBackend{runtimes: []string{"python3.11"}} }
	inWorldOf(t, 1, 0, functions, func(w *world) {
		c, a := beatOf(t, w.node(0), 1)
		st := w.node(0).Status()
		if c.GetGpus()[0].Faulted != nil || a.GetGroups()[0].GetFree() != 0 || a.GetGroups()[0].GetFaulted() != 1 || st.State != StateReady {
			t.Errorf("while it is tested: %v, %v, %s %v", c.GetGpus(), a.GetGroups(), st.State, st.Why)
		}
		w.within(time.Minute, "its test is over", func() bool { return w.node(0).Status().Selling.Sellable == 1 })
		if a := heartbeatOf(t, w.node(0), 1); a.GetGroups()[0].GetFree() != 1 || a.GetGroups()[0].GetFaulted() != 0 {
			t.Errorf("after its test: %v", a.GetGroups())
		}
	}, func(c *Config) {
		c.OfferCPU = false
		c.GPUs = func(g gpu.Config, log *slog.Logger) (*gpu.Monitor, error) {
			g.Sysfs, g.Procfs = t.TempDir(), t.TempDir()
			g.Prove = func(ctx context.Context, _ string) gpu.Proof {
				select {
				case <-time.After(30 * time.Second):
				case <-ctx.Done():
				}
				return gpu.Proof{Verdict: gpu.Passed, Bytes: 1}
			}
			return gpu.NewWith(f, g, log)
		}
	})
}

func TestALeaseEndsWithItsGPUAndTheNodeIsToBlame(t *testing.T) {
	f := fakeMachine(2)
	inWorld(t, 1, 2, func(w *world) {
		w.backends[0].behave = untilStopped
		w.joinAll()
		w.within(10*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		b := w.node(0).at().book
		b.mu.Lock()
		at := 0
		for id := range b.leases { // as if the job had asked for a GPU a chunk
			b.gpus.all[at].taken, b.gpus.all[at].lease = true, id
			at++
		}
		victim := b.leases[b.gpus.all[0].lease].Chunk
		b.mu.Unlock()
		f.fault(1, 31) // the program's own mistake
		f.fault(0, 79)
		w.within(5*time.Second, "the result says so", func() bool {
			w.bridge.mu.Lock()
			defer w.bridge.mu.Unlock()
			for _, all := range w.bridge.results {
				for _, r := range all {
					if r.Chunk == victim && r.Outcome.Reason == protocol.ReasonGPUFaulted {
						return true
					}
				}
			}
			return false
		})
		b.mu.Lock()
		l := b.leases[b.gpus.all[1].lease]
		if l == nil || l.xid != 31 {
			t.Errorf("the other lease is %+v", l)
		} else {
			b.mu.Unlock()
			o := protocol.Outcome{Reason: protocol.ReasonExitNonzero, FirstCause: "exit status 1"}
			b.gpuCause(l, &o)
			done := protocol.Outcome{Reason: protocol.ReasonDone}
			b.gpuCause(l, &done)
			if o.Reason != protocol.ReasonGPUApplication || !strings.Contains(o.FirstCause, "Xid 31") || done.Reason != protocol.ReasonDone {
				t.Errorf("outcomes are %+v and %+v", o, done)
			}
			b.mu.Lock()
		}
		b.mu.Unlock()
	}, f.into(t))
}
