package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// row is a figure to beat.
type row struct {
	name, unit string
	baseline   string // what stands beside it, "" where nothing does
	target     float64
	atLeast    bool // the target is a least value, not a most
}

// rows are those of this version, as the project's table of targets names them.
var rows = []row{
	{"dispatch.p50_ms", "ms", "a bare libp2p request", 5, false},
	{"dispatch.p99_ms", "ms", "a bare libp2p request", 25, false},
	{"dispatch.chunks_per_s", "chunks/s", "", 5000, true},
	{"dispatch.go_wasm_ratio", "ratio", "wazero alone, chunks/s", 0.6, true},
	{"dispatch.failover_p99_s", "s", "", 10, false},
	{"dispatch.million_chunks_mib", "MiB", "", 500, false},
	{"select.138k_ms", "ms", "random choice of valid nodes", 10, false},
	{"directory.query_p99_ms", "ms", "the same question to each record in turn", 10, false},
	{"directory.mib", "MiB", "", 400, false},
	{"directory.recall", "ratio", "", 0.995, true},
	{"directory.idle_bytes_per_s", "B/s", "", 500, false},
	{"node.ready_ms", "ms", "bare libp2p host", 1000, false},
	{"node.rss_mib", "MiB", "bare libp2p host with the same protocols", 60, false},
	{"node.idle_cpu_pct", "% of a core", "bare libp2p host with the same protocols", 0.5, false},
	{"exec.wasm_warm_ms", "ms", "wazero alone", 0.5, false},
	{"beam.remote_p50_ms", "ms", "a fresh sandboxed Python", 15, false},
	{"beam.map_per_s", "inputs/s", "", 500, true},
	{"exec.sandbox_warm_ms", "ms", "a bare Python on a pipe", 3, false},
}

// result is a measured row, in the form of latest.json.
type result struct {
	Name          string   `json:"name"`
	Value         float64  `json:"value"`
	Unit          string   `json:"unit"`
	Baseline      string   `json:"baseline"`
	BaselineValue *float64 `json:"baseline_value"`
	Ratio         *float64 `json:"ratio"`
	Target        float64  `json:"target"`
	Met           bool     `json:"met"`

	how string // a sentence for people: counts and proofs
}

func find(name string) row {
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	if i < 0 {
		panic("bench: no row is named " + name)
	}
	return rows[i]
}

// measured makes the result of a row. A baseline of 0 is none. The ratio is value to baseline; of a row that is
// itself a ratio it is the value.
func measured(name string, value, baseline float64, how string, args ...any) result {
	r := find(name)
	out := result{Name: name, Value: round(value), Unit: r.unit, Target: r.target, Met: r.met(value), how: fmt.Sprintf(how, args...)}
	if baseline > 0 {
		ratio := value / baseline
		if r.unit == "ratio" {
			ratio = value
		}
		base := round(baseline)
		ratio = round(ratio)
		out.Baseline, out.BaselineValue, out.Ratio = r.baseline, &base, &ratio
	}
	return out
}

func (r row) met(v float64) bool {
	if math.IsNaN(v) {
		return false
	}
	if r.atLeast {
		return v >= r.target
	}
	return v <= r.target
}

// goal is the target as people write it.
func (r row) goal() string {
	if r.atLeast {
		return "≥ " + number(r.target)
	}
	return "≤ " + number(r.target)
}

// round keeps four digits that count.
func round(v float64) float64 {
	f, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	if err != nil {
		return v
	}
	return f
}

func number(v float64) string { return strconv.FormatFloat(round(v), 'f', -1, 64) }

func optional(v *float64) string {
	if v == nil {
		return "—"
	}
	return number(*v)
}

// median of samples, which it sorts; NaN of none.
func median(s []float64) float64 { return quantile(s, 0.5) }

// quantile by the nearest rank, of samples that it sorts.
func quantile(s []float64, q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	slices.Sort(s)
	return s[min(len(s)-1, max(0, int(math.Ceil(q*float64(len(s))))-1))]
}

// report is latest.json.
type report struct {
	Machine machine  `json:"machine"`
	Commit  string   `json:"commit"`
	Date    string   `json:"date"`
	Results []result `json:"results"`
}

// machine is where the figures are from.
type machine struct {
	CPU       string  `json:"cpu"`
	Cores     int     `json:"cores"`
	MemoryMiB uint64  `json:"memory_mib"`
	OS        string  `json:"os"`
	Kernel    string  `json:"kernel"`
	Disk      string  `json:"disk"`
	Go        string  `json:"go"`
	Load      float64 `json:"load_before"`
}

func newReport(ctx context.Context, root, dir string) report {
	m := machine{CPU: cpuName(), Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), Disk: fileSystem(dir)}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	m.MemoryMiB, m.Load = memory(), load()
	return report{Machine: m, Commit: commit(ctx, root), Date: time.Now().UTC().Format(time.DateOnly)}
}

func (m machine) String() string {
	return fmt.Sprintf("%d cores of %s, %d MiB, %s kernel %s, data on %s, %s, load before %.2f", m.Cores, m.CPU, m.MemoryMiB, m.OS, m.Kernel, m.Disk, m.Go, m.Load)
}

func cpuName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "model name"); ok {
			return strings.TrimLeft(name, "\t :")
		}
	}
	return runtime.GOARCH
}

func memory() uint64 {
	b, _ := os.ReadFile("/proc/meminfo")
	var kib uint64
	_, _ = fmt.Sscanf(string(b), "MemTotal: %d kB", &kib)
	return kib / 1024
}

func load() (v float64) {
	b, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(b), &v)
	return v
}

// fileSystem is the kind of the file system that a directory is on: on one in memory a durable write costs nothing.
func fileSystem(dir string) string {
	b, _ := os.ReadFile("/proc/mounts")
	kind, longest := "unknown", -1
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < longest {
			continue
		}
		if dir == f[1] || f[1] == "/" || strings.HasPrefix(dir, f[1]+"/") {
			kind, longest = f[2], len(f[1])
		}
	}
	return kind
}

// commit is what was measured; files that the benchmark itself writes do not make it dirty.
func commit(ctx context.Context, root string) string {
	git := func(args ...string) string {
		c := exec.CommandContext(ctx, "git", args...)
		c.Dir = root
		out, err := c.Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	c := git("rev-parse", "--short=12", "HEAD")
	if c == "" {
		return "unknown"
	}
	if git("status", "--porcelain", "--", ".", ":!bench/latest.json", ":!bench/README.md", ":!bench/profiles") != "" {
		c += "-dirty"
	}
	return c
}

// latestFile is where the newest figures are, below the root.
const latestFile = "bench/latest.json"

// write leaves latest.json and the README's tables. With part, rows that were not measured now stay if they are of
// the same commit and machine.
func (rep *report) write(root string, part bool) error {
	path := filepath.Join(root, latestFile)
	if part {
		rep.keep(path)
	}
	for _, r := range rep.Results { // a profile stays for as long as its row is missed
		if r.Met {
			_ = os.Remove(filepath.Join(root, "bench", "profiles", r.Name+".txt"))
		}
	}
	slices.SortStableFunc(rep.Results, func(a, b result) int { return place(a.Name) - place(b.Name) })
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(rep); err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return rep.writeReadme(filepath.Join(root, "bench", "README.md"))
}

func (rep *report) keep(path string) {
	var old report
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &old) != nil || old.Commit != rep.Commit || old.Machine.CPU != rep.Machine.CPU || old.Machine.Cores != rep.Machine.Cores {
		return
	}
	for _, r := range old.Results {
		if !slices.ContainsFunc(rep.Results, func(x result) bool { return x.Name == r.Name }) && place(r.Name) >= 0 {
			rep.Results = append(rep.Results, r)
		}
	}
}

func place(name string) int {
	return slices.IndexFunc(rows, func(r row) bool { return r.name == name })
}

// print writes the table that ends a run.
func (rep *report) print(w io.Writer) {
	_, _ = fmt.Fprintf(w, "\ncommit %s, %s\n\n", rep.Commit, rep.Machine)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ROW\tVALUE\tUNIT\tBASELINE\tRATIO\tTARGET\t\t")
	for _, r := range rep.Results {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, number(r.Value), r.Unit, optional(r.BaselineValue), optional(r.Ratio), find(r.Name).goal(), verdict(r.Met))
	}
	_ = t.Flush()
	_, _ = fmt.Fprintln(w)
	for _, r := range rep.Results {
		if r.how != "" {
			_, _ = fmt.Fprintf(w, "%s: %s\n", r.Name, r.how)
		}
	}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "MISSED"
}

var errProof = errors.New("a proof did not hold")
