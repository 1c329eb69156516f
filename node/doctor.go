package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/p2p"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"    // OK: as it should be.
	Warning Level = "warn"  // Warning: the node works, less well or for fewer than it could.
	Failure Level = "error" // Failure: the node gets no work, or part of it cannot be used.
)

// Finding is one thing that was looked at.
type Finding struct {
	// Level says how bad it is.
	Level Level `json:"level"`
	// Check is what was looked at, a word.
	Check string `json:"check"`
	// What was found.
	What string `json:"what"`
	// Fix says what to do; empty for what is as it should be.
	Fix string `json:"fix,omitempty"`
}

// Bounds of Findings.
const (
	littleDisk   = 5 << 30 // what a job gets that does not say what it needs
	littleMemory = 2 << 30
	clockWarns   = 5 * time.Second  // discovery.md 2
	clockFails   = 60 * time.Second // discovery.md 2
)

// findings collects.
type findings []Finding

func (f *findings) add(l Level, check, fix, format string, args ...any) {
	*f = append(*f, Finding{l, check, fmt.Sprintf(format, args...), fix})
}

// Findings looks at a node's status: each part is as it should be, or the fix is named (discovery.md 1). It is a pure
// function of the status; one without a start (Started is zero) is that of a node that does not run, as Examine gives it.
func (s *Status) Findings() []Finding {
	var f findings
	running := !s.Started.IsZero()
	switch {
	case !running:
		f.add(Warning, "daemon", "gridbeam node run", "it does not run, so nothing is known of the network's side")
	case s.State == StateReady || s.State == StateBusy:
		f.add(OK, "daemon", "", "it is %s", s.State)
	default:
		f.add(Warning, "daemon", "gridbeam node resume takes work again", "it is %s: %s", s.State, strings.Join(s.Why, "; "))
	}
	f.machine(s)
	f.executors(s)
	if len(s.Networks) == 0 {
		f.add(Failure, "network", "join one with gridbeam node run --join gridbeam:... (its bridge prints the invitation)", "no network is joined, so all work is refused")
	} else {
		for _, n := range s.Networks {
			f.add(OK, "network", "", "%q is joined", n.Name)
		}
	}
	if running {
		f.directory(s)
		f.bridges(s)
	}
	return f
}

func (f *findings) machine(s *Status) {
	inv := &s.Inventory
	if inv.Memory > 0 && inv.Memory < littleMemory {
		f.add(Warning, "memory", "few jobs ask for so little", "the machine has %s", humanize.IBytes(inv.Memory))
	}
	switch free := inv.DiskFree; {
	case inv.Disk == 0:
		f.add(Warning, "disk", "see that the data directory exists and can be read", "nothing is known of the disk of the data directory")
	case free < littleDisk:
		f.add(Warning, "disk", "free some, or put --data elsewhere", "%s are free; a job that does not say what it needs gets %s", humanize.IBytes(free), humanize.IBytes(littleDisk))
	default:
		f.add(OK, "disk", "", "%s are free", humanize.IBytes(free))
	}
	for _, p := range s.Selling.Unsold {
		f.add(Failure, "gpu", p.Fix, "%s", p.What)
	}
	switch {
	case s.Selling.Sellable > 0:
		f.add(OK, "gpu", "", "%d of %d can be sold, driver %s", s.Selling.Sellable, s.Selling.Units, inv.GPUs.Driver)
	case s.Selling.Units == 0 && len(s.Selling.Unsold) == 0:
		f.add(OK, "gpu", "", "there is none: the node sells CPU")
	}
	if s.Selling.Withheld != "" {
		f.add(Failure, "cpu", "mend the GPUs; or "+offerSwitch, "the processors are not offered: none of the machine's %d GPUs is in order", s.Selling.Units)
	}
	f.tests(&inv.GPUs)
}

// tests says whether the GPUs have computed before they were offered. One that failed is a finding of its own.
func (f *findings) tests(inv *gpu.Inventory) {
	const quiet = "a minute of quiet alone brings it back after a fault"
	passed, units := 0, 0
	for i := range inv.Devices {
		d := &inv.Devices[i]
		if d.Slices > 0 || d.UUID == "" {
			continue
		}
		units++
		switch {
		case d.Proof == nil:
		case d.Proof.Verdict == gpu.Passed:
			passed++
		case d.Proof.Verdict == gpu.Unable:
			f.add(Warning, "gpu-test", "make CUDA's driver library, libcuda.so.1, visible here; in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility does so",
				"%s cannot be tested: %s; %s", d, d.Proof.Why, quiet)
		}
	}
	switch {
	case units > 0 && !inv.Tested:
		f.add(Warning, "gpu-test", "use gridbeam's own binary for Linux", "no GPU is tested before it is offered; %s", quiet)
	case passed > 0:
		f.add(OK, "gpu-test", "", "%d of %d have computed what they should", passed, units)
	}
}

func (f *findings) executors(s *Status) {
	if len(s.Executors) == 0 {
		f.add(Failure, "executor", "the log of the start says which test failed", "no executor has passed its self-test, so nothing can run")
		return
	}
	f.add(OK, "executor", "", "%s", strings.Join(s.Executors, ", "))
	if !strings.Contains(strings.Join(s.Executors, " "), "python") {
		f.add(Warning, "functions", "allow them with --min-isolation shared; they need bubblewrap, python3 and python3-cloudpickle", "Python functions are not run here")
	}
}

func (f *findings) directory(s *Status) {
	st := &s.Standing
	switch {
	case st.Problem != "":
		f.add(Failure, "directory", "see that the peers of --join run and that this machine may open connections to them", "%s", strings.ReplaceAll(strings.TrimSpace(st.Problem), "\n", "; "))
	case s.Directory == 0:
		f.add(Failure, "directory", "see that the peers of --join run and that this machine may open connections to them", "no server of the directory is known, so nobody learns of this node")
	case st.Asked > 0 && 2*st.Found < st.Asked:
		f.add(Warning, "directory", "wait for the next record; if it stays so, name other peers with --join", "only %d of %d peers find its record", st.Found, st.Asked)
	case st.Asked > 0:
		f.add(OK, "directory", "", "%d of %d peers find its record", st.Found, st.Asked)
	default:
		f.add(OK, "directory", "", "%d servers are known; nobody has been asked yet how they see this node", s.Directory)
	}
	f.clock(st)
	const forward = "forward a port of the router to this machine and name it with --announce"
	switch s.Reachability {
	case p2p.ReachableDirectly:
		f.add(OK, "reach", "", "others dial it directly")
	case p2p.ReachableByHolePunch:
		f.add(OK, "reach", "", "it is behind a NAT; relays introduce others to it")
	case p2p.ReachableByRelay:
		f.add(Warning, "reach", forward, "it is behind a NAT and reached by a relay alone: bridges have work for it all the same, other nodes fetch nothing from it")
	case p2p.Unreachable:
		f.add(Warning, "reach", forward, "it is behind a NAT and has no relay: only those that it dials itself reach it")
	}
}

// clock judges this machine's clock by others'; one or two of them may be wrong themselves.
func (f *findings) clock(st *StandingStatus) {
	const fix = "timedatectl set-ntp true"
	ahead := time.Duration(st.ClockMs) * time.Millisecond
	what := fmt.Sprintf("others' clocks are %s ahead of this machine's (behind if below 0)", ahead.Round(time.Second))
	switch {
	case st.ClockOff:
		f.add(Failure, "clock", fix, "this machine's clock differs by more than a minute from others': the node advertises nothing until it is set")
	case ahead.Abs() > clockFails && st.Clocks >= dht.ClocksTell:
		f.add(Failure, "clock", fix, "%s: %s", what, refusedFor(ahead))
	case ahead.Abs() > clockWarns && st.Clocks < dht.ClocksTell:
		f.add(Warning, "clock", fix+", if it is this clock that is wrong", "%s, as %d of them tell", what, st.Clocks)
	case ahead.Abs() > clockWarns:
		f.add(Warning, "clock", fix, "%s", what)
	case st.Clocks > 0:
		f.add(OK, "clock", "", "within 5 s of others'")
	}
}

// How far a clock may be off for others (dht: what they verify).
const (
	signsAhead = 2 * time.Minute // of theirs
	beatBehind = 5 * time.Minute
)

// refusedFor says what others do when their clocks are so far ahead of ours.
func refusedFor(ahead time.Duration) string {
	switch {
	case ahead < -signsAhead:
		return "they refuse what it signs"
	case ahead > beatBehind:
		return "they refuse its heartbeats"
	}
	return "they take what it signs as yet, up to 2 min before its time, and heartbeats up to 5 min after"
}

func (f *findings) bridges(s *Status) {
	connected, open := 0, 0
	for _, b := range s.Bridges {
		if b.Connected {
			connected++
		}
		open += b.Open
	}
	switch {
	case len(s.Bridges) == 0:
		f.add(Warning, "bridge", "see that the network's bridge runs; it comes to nodes that it finds in the directory", "no bridge has shown a right to use this node yet")
	case connected == 0:
		f.add(Warning, "bridge", "see that it runs and that this machine may open connections to it", "none of %d bridges is connected", len(s.Bridges))
	default:
		f.add(OK, "bridge", "", "%d of %d bridges are connected, %d receipts wait for a counter-signature", connected, len(s.Bridges), open)
	}
}

// Examine looks at the machine as a node with this configuration would at its start, and touches neither the network nor
// a node that runs: the self-tests of the backends, the hardware, the networks. It returns ErrConfig.
func Examine(ctx context.Context, cfg Config, backends []Backend, log *slog.Logger) (Status, error) {
	n, err := New(cfg, backends, log)
	if err != nil {
		return Status{}, err
	}
	s := Status{Version: cfg.Version, Inventory: readHost(os.DirFS("/"), cfg.Data)}
	proven := n.prove(ctx)
	for _, o := range proven {
		s.Executors = append(s.Executors, o.names()...)
	}
	for i := range cfg.Networks {
		s.Networks = append(s.Networks, NetworkStatus{cfg.Networks[i].ID, cfg.Networks[i].Name})
	}
	open := cfg.GPUs
	if open == nil {
		open = gpu.New
	}
	c := gpu.DefaultConfig()
	c.Clock = cfg.Clock
	if len(cfg.GPUProof) > 0 {
		c.Prove = gpu.NewProver(cfg.GPUProof, "").Prove
	}
	m, err := open(c, log)
	if err != nil {
		return s, fmt.Errorf("looking at the GPUs: %w", err)
	}
	defer m.Close()
	if _, err = m.Read(ctx); err != nil && !errors.Is(err, gpu.ErrNoNVML) {
		return s, fmt.Errorf("looking at the GPUs: %w", err)
	}
	m.Prove(ctx)
	s.Inventory.GPUs = m.Inventory()
	s.Selling = sellingOf(&s.Inventory.GPUs, barsGPUs(proven), cfg.OfferCPU)
	return s, nil
}
