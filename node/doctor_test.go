package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// well is the status of a node that lacks nothing.
func well() Status {
	return Status{
		Started: time.Now(), State: StateReady, Executors: []string{"wasm:strong", "python3.11:shared"}, Directory: 3, Reachability: p2p.ReachableDirectly,
		Networks: []NetworkStatus{{Name: "private"}}, Inventory: Inventory{Memory: 64 << 30, Disk: 1 << 40, DiskFree: 1 << 39, GPUs: testedGPUs()},
		Selling: Selling{Sellable: 2, Units: 2}, Standing: StandingStatus{Asked: 3, Found: 3, Dialable: 3, Clocks: 3},
		Bridges: []BridgeStatus{{Peer: protocol.PeerID("b"), Connected: true}},
	}
}

func testedGPUs() gpu.Inventory {
	passed := &gpu.Proof{Verdict: gpu.Passed, Bytes: 64 << 20}
	return gpu.Inventory{Tested: true, Devices: []gpu.Device{{UUID: "a", Health: gpu.Healthy, Proof: passed}, {UUID: "b", Health: gpu.Healthy, Proof: passed}}}
}

func TestEachFaultOfANodeIsFoundWithItsFix(t *testing.T) {
	s := well()
	for _, x := range s.Findings() {
		if x.Level != OK || x.Fix != "" {
			t.Errorf("a node that lacks nothing: %+v", x)
		}
	}
	for _, c := range []struct {
		name   string
		break_ func(*Status)
		check  string
		level  Level
		what   string
	}{
		{"not running", func(s *Status) { s.Started = time.Time{} }, "daemon", Warning, "does not run"},
		{"paused", func(s *Status) { s.State, s.Why = StatePaused, []string{"by its owner"} }, "daemon", Warning, "PAUSED: by its owner"},
		{"little disk", func(s *Status) { s.Inventory.DiskFree = 1 << 30 }, "disk", Warning, "1.0 GiB are free"},
		{"no disk known", func(s *Status) { s.Inventory.Disk = 0 }, "disk", Warning, "nothing is known"},
		{"little memory", func(s *Status) { s.Inventory.Memory = 1 << 30 }, "memory", Warning, "1.0 GiB"},
		{"broken GPU", func(s *Status) {
			s.Selling = Selling{Sellable: 1, Units: 2, Unsold: []gpu.Problem{{What: "GPU 1 fell off the bus", Fix: "reboot"}}}
		}, "gpu", Failure, "GPU 1 fell off the bus"},
		{"broken GPUs alone", func(s *Status) { s.Selling = Selling{Units: 2, Withheld: "x"} }, "cpu", Failure, "processors are not offered: none of the machine's 2 GPUs"},
		{"untested GPU", func(s *Status) {
			s.Inventory.GPUs.Devices[1].Proof = &gpu.Proof{Verdict: gpu.Unable, Why: "no libcuda.so.1"}
		}, "gpu-test", Warning, "cannot be tested: no libcuda.so.1; a minute of quiet alone"},
		{"no tests", func(s *Status) { s.Inventory.GPUs.Tested = false }, "gpu-test", Warning, "no GPU is tested"},
		{"nothing runs", func(s *Status) { s.Executors = nil }, "executor", Failure, "nothing can run"},
		{"no functions", func(s *Status) { s.Executors = s.Executors[:1] }, "functions", Warning, "not run here"},
		{"no network", func(s *Status) { s.Networks = nil }, "network", Failure, "no network"},
		{"alone", func(s *Status) { s.Standing.Problem = "isolated\n/ip4/1.2.3.4 refuses\n" }, "directory", Failure, "isolated; /ip4/1.2.3.4 refuses"},
		{"no server", func(s *Status) { s.Directory, s.Standing = 0, StandingStatus{} }, "directory", Failure, "no server"},
		{"not seen", func(s *Status) { s.Standing.Found = 1 }, "directory", Warning, "1 of 3"},
		{"clock off", func(s *Status) { s.Standing.ClockMs = -6_000 }, "clock", Warning, "-6s"},
		{"clock off for two rounds", func(s *Status) { s.Standing.ClockOff = true }, "clock", Failure, "advertises nothing"},
		{"clock behind", func(s *Status) { s.Standing.ClockMs = 61_000 }, "clock", Failure, " 1m1s ahead of this machine's (behind if below 0): they take what it signs as yet"},
		{"clock ahead", func(s *Status) { s.Standing.ClockMs = -61_000 }, "clock", Failure, "-1m1s ahead of this machine's (behind if below 0): they take what it signs as yet"},
		{"clock far ahead", func(s *Status) { s.Standing.ClockMs = -121_000 }, "clock", Failure, "they refuse what it signs"},
		{"clock behind by less than others mind", func(s *Status) { s.Standing.ClockMs = 299_000 }, "clock", Failure, "as yet"},
		{"clock far behind", func(s *Status) { s.Standing.ClockMs = 301_000 }, "clock", Failure, "they refuse its heartbeats"},
		{"clock off for one peer", func(s *Status) { s.Standing.ClockMs, s.Standing.Clocks = -3_600_000, 1 }, "clock", Warning, "as 1 of them tell"},
		{"relay", func(s *Status) { s.Reachability = p2p.ReachableByRelay }, "reach", Warning, "relay alone"},
		{"no relay", func(s *Status) { s.Reachability = p2p.Unreachable }, "reach", Warning, "no relay"},
		{"no bridge", func(s *Status) { s.Bridges = nil }, "bridge", Warning, "no bridge"},
		{"bridge away", func(s *Status) { s.Bridges[0].Connected = false }, "bridge", Warning, "none of 1"},
	} {
		s := well()
		c.break_(&s)
		found := s.Findings()
		i := slices.IndexFunc(found, func(x Finding) bool { return x.Check == c.check && x.Level != OK })
		if i < 0 || found[i].Level != c.level || !strings.Contains(found[i].What, c.what) || found[i].Fix == "" {
			t.Errorf("%s: %+v", c.name, found)
			continue
		}
		if j := slices.IndexFunc(found[i+1:], func(x Finding) bool { return x.Level != OK }); j >= 0 {
			t.Errorf("%s: one fault gives another finding: %+v", c.name, found[i+1+j])
		}
	}
}

func TestExamineLooksAtTheMachineWithoutARunningNode(t *testing.T) {
	cfg := DefaultConfig(t.TempDir())
	s, err := Examine(t.Context(), cfg, nil, testLog())
	if err != nil {
		t.Fatal(err)
	}
	found := s.Findings()
	for _, want := range []string{"daemon", "executor", "network", "disk"} {
		if !slices.ContainsFunc(found, func(x Finding) bool { return x.Check == want }) {
			t.Errorf("nothing is said of %s: %+v", want, found)
		}
	}
	if slices.ContainsFunc(found, func(x Finding) bool { return x.Check == "bridge" || x.Check == "directory" }) {
		t.Errorf("it speaks of a network that nobody has asked: %+v", found)
	}
	cfg.Slots = -1
	if _, err := Examine(t.Context(), cfg, nil, testLog()); err == nil {
		t.Error("a bad configuration is examined")
	}
}
