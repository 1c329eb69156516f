package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
)

// nodeSpecsCommand says what this machine is, and compares it with the profiles of reward policies.
func nodeSpecsCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "specs", Short: "This machine's hardware, and how it stands to the minimum specifications of reward policies", Args: exactArgs(),
		Long: `Says what this machine is, how many of its GPUs can be sold and why the others cannot, and compares it with the minimum specifications
of RNP-006 and RNP-019, with what is missing and what to do. They limit rewards only: a node that misses them joins and works all the same.
A node that runs is asked; without one the hardware is read. With --output json it is an object that names nobody: no UUIDs, serial numbers,
addresses or peer IDs, fit to be published. Exit code 4 when no profile is met.`,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := readSpecs(c)
			if err != nil {
				return err
			}
			if err := out.object(c.OutOrStdout(), s, func(w io.Writer) { writeSpecs(w, &s) }); err != nil {
				return err
			}
			for _, p := range s.Profiles {
				if p.Met {
					return nil
				}
			}
			return withCode(exitGoalMissed, errors.New("the node meets none of the profiles"))
		},
	}
	c.Flags().String("data", "", "data directory of the node")
	out.flag(c, false)
	return c
}

// readSpecs asks the node of a data directory, or reads the hardware when none runs there.
func readSpecs(c *cobra.Command) (node.Specs, error) {
	control, err := dialNode(c)
	if errors.Is(err, node.ErrNotRunning) {
		dir, err := dataDir(c, "node")
		if err != nil {
			return node.Specs{}, err
		}
		log, err := logger(c, slog.LevelError)
		if err != nil {
			return node.Specs{}, err
		}
		cfg := node.DefaultConfig(dir)
		cfg.Version = version
		file, err := readNodeFile(filepath.Join(dir, nodeFileName))
		if err != nil {
			return node.Specs{}, err
		}
		cfg.OfferCPU = file.offersCPU()
		return node.ReadSpecs(c.Context(), cfg, log)
	}
	if err != nil {
		return node.Specs{}, err
	}
	defer control.Close()
	s, err := control.Status(c.Context())
	if err != nil {
		return node.Specs{}, notRunning(err)
	}
	return node.SpecsOf(&s, time.Now()), nil
}

func writeSpecs(w io.Writer, s *node.Specs) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	if !s.Running {
		p("no node runs here; this is what one would say of the machine")
	}
	writeMachine(p, &s.Machine)
	writeGPUs(p, &s.Machine.GPUs, &s.Selling)
	for i := range s.Machine.GPUs.Devices {
		writeDevice(p, &s.Machine.GPUs, &s.Machine.GPUs.Devices[i])
	}
	p("")
	writeProfiles(w, s.Profiles)
}

// writeMachine says what is around the GPUs, and what was measured of it.
func writeMachine(p func(string, ...any), inv *node.Inventory) {
	p("machine    %d threads of %s, %s memory, %s disk free", inv.Threads, printable(inv.CPUModel), humanize.IBytes(inv.Memory), humanize.IBytes(inv.DiskFree))
	writeMeasured(p, inv.Measured)
}

func writeMeasured(p func(string, ...any), m *node.Measured) {
	if m == nil {
		p("measured   not yet; when idle, or now: gridbeam node measure")
		return
	}
	p("measured   disk reads %.0f MB/s and writes %.0f MB/s (%s, %s), memory %g GB/s, processors %g GFLOP/s; %s",
		m.DiskReadMBs, m.DiskWriteMBs, humanize.IBytes(m.DiskBytes), m.DiskHow, m.MemoryGBs, m.CPUGflops, m.At.Local().Format(time.DateTime))
	for _, problem := range m.Problems {
		p("  not measured: %s", printable(problem))
	}
}

// writeGPUs says which GPUs can be sold, and of the others why not and what to do.
func writeGPUs(p func(string, ...any), inv *gpu.Inventory, s *node.Selling) {
	switch {
	case s.Units == 0 && len(s.Unsold) == 0 && len(inv.Others) == 0:
		p("gpus       none: this node offers its processors")
		return
	case s.Units == 0 && len(s.Unsold) == 0:
		p("gpus       none of NVIDIA's: this node offers its processors")
	case s.Withheld != "":
		p("gpus       %d of %d GPUs can be sold, and its processors are not offered: %s", s.Sellable, s.Units, printable(s.Withheld))
	default:
		p("gpus       %d of %d GPUs can be sold", s.Sellable, s.Units)
	}
	for _, g := range inv.Groups {
		slice := ""
		if g.GetMigProfile() != "" {
			slice = ", MIG " + g.GetMigProfile()
		}
		p("  %d x %s%s", g.GetCount(), printable(g.GetModel()), printable(slice))
	}
	for _, problem := range s.Unsold {
		p("  not sold: %s", printable(problem.What))
		p("    fix: %s", printable(problem.Fix))
	}
	for i := range inv.Devices {
		if d := &inv.Devices[i]; d.Proof != nil && d.Proof.Verdict == gpu.Unable {
			p("  not tested: %s: %s", printable(d.String()), printable(d.Proof.Why))
		}
	}
	for _, other := range inv.Others {
		p("  not offered, only NVIDIA's are: %s", printable(other))
	}
}

// writeDevice says what is particular about one device.
func writeDevice(p func(string, ...any), inv *gpu.Inventory, d *gpu.Device) {
	var facts []string
	if d.Group >= 0 {
		g := inv.Groups[d.Group]
		facts = append(facts, humanize.IBytes(g.GetVramBytes()))
		if major, minor, ok := protocol.CUDAVersion(g.GetCuda()); ok {
			facts = append(facts, fmt.Sprintf("driver %s, CUDA %d.%d", g.GetDriver(), major, minor))
		}
	}
	if now := d.Now; now != nil {
		for _, f := range []struct {
			value *uint32
			text  string
		}{{now.TemperatureC, "%d °C"}, {now.PowerW, "%d W"}, {now.UtilPct, "%d %% busy"}} {
			if f.value != nil {
				facts = append(facts, fmt.Sprintf(f.text, *f.value))
			}
		}
		facts = append(facts, now.Throttle...)
	}
	if d.Proof != nil {
		facts = append(facts, proofText(d.Proof))
	}
	p("  %s: %s; %s", printable(d.String()), d.Health, printable(strings.Join(append(facts, d.Notes...), ", ")))
}

// proofText says what came of having a GPU compute.
func proofText(p *gpu.Proof) string {
	text := map[gpu.Verdict]string{gpu.Passed: "passed its test", gpu.Failed: "failed its test", gpu.Unable: "cannot be tested"}[p.Verdict]
	if p.Verdict != gpu.Passed && p.Why != "" {
		text += " (" + p.Why + ")"
	}
	if !p.Again.IsZero() {
		text += ", again at " + p.Again.Local().Format(time.TimeOnly)
	}
	return text
}

func writeProfiles(w io.Writer, all []node.ProfileStatus) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "PROFILE\tREQUIREMENT\tMET\tHAVE\tNEED\tWHAT TO DO")
	for _, p := range all {
		for _, r := range p.Requirements {
			met := "no"
			if r.Met {
				met = "yes"
			}
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, r.Name, met, printable(r.Have), r.Need, r.Fix)
		}
	}
	_ = t.Flush()
}

// nodeMeasureCommand measures disk, memory and processors now.
func nodeMeasureCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "measure", Short: "Measure disk, memory and processors now, in a dozen seconds at most", Args: exactArgs(),
		Long: `Measures how fast the disk of the data directory reads and writes past the system's cache (a file of 256 MiB, removed again), the
bandwidth of the memory and the speed of the processors. The figures are kept in the data directory and go into the node's record. A node that
runs does so by itself while it is idle, once a day; while chunks are in hand it refuses.`,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := measureNode(c)
			if err != nil {
				return err
			}
			return out.object(c.OutOrStdout(), m, func(w io.Writer) {
				writeMeasured(func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }, &m)
			})
		},
	}
	c.Flags().String("data", "", "data directory of the node")
	out.flag(c, false)
	return c
}

func measureNode(c *cobra.Command) (node.Measured, error) {
	control, err := dialNode(c)
	if err == nil {
		defer control.Close()
		m, err := control.Measure(c.Context())
		return m, notRunning(err)
	}
	if !errors.Is(err, node.ErrNotRunning) {
		return node.Measured{}, err
	}
	dir, err := dataDir(c, "node")
	if err != nil {
		return node.Measured{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return node.Measured{}, fmt.Errorf("making the data directory: %w", err)
	}
	m, err := node.Measure(c.Context(), dir, node.DefaultConfig(dir).Reserve, time.Now)
	if err != nil {
		return m, err
	}
	return m, node.SaveMeasured(dir, m)
}

// nodeGPUCommand is the owner's word about GPUs.
func nodeGPUCommand() *cobra.Command {
	forget := &cobra.Command{
		Use: "clear GPU", Short: "A GPU that faulted three times in a day is good again", Args: exactArgs("GPU"),
		Long: `Forgets the faults of a GPU, by its UUID or its number in gridbeam node specs: after a minute without a new one, and a test that it passes, it is offered again.
By its UUID also one that is not there now.`,
		RunE: func(c *cobra.Command, args []string) error {
			control, err := dialNode(c)
			if err != nil {
				return err
			}
			defer control.Close()
			uuid, err := gpuByName(c.Context(), control, args[0])
			if err != nil {
				return err
			}
			if err := control.ClearGPU(c.Context(), uuid); err != nil {
				return notRunning(err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is offered again after a minute without faults and a test that it passes\n", uuid)
			return err
		},
	}
	forget.Flags().String("data", "", "data directory of the node")
	return group("gpu", "The owner's word about GPUs", forget)
}

// gpuByName turns a number into a UUID.
func gpuByName(ctx context.Context, control *node.Control, name string) (string, error) {
	s, err := control.Status(ctx)
	if err != nil {
		return "", notRunning(err)
	}
	number, bad := strconv.Atoi(name)
	for _, d := range s.Inventory.GPUs.Devices {
		if d.UUID != "" && (d.UUID == name || bad == nil && d.Index == number && d.Slice == nil) {
			return d.UUID, nil
		}
	}
	if strings.HasPrefix(name, "GPU-") || strings.HasPrefix(name, "MIG-") { // the node remembers those that have gone
		return name, nil
	}
	return "", usagef("%q is no GPU of this node: gridbeam node specs lists them by number", name)
}
