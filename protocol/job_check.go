package protocol

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// ErrBadJob is wrapped by every error of ParseJob and Job.Validate.
var ErrBadJob = errors.New("protocol: bad job")

// JobError is one thing wrong with a job.
type JobError struct {
	// File is the job file's name, Line and Column count from 1 in it; all zero when the job was no text.
	File string `json:"file,omitempty"`
	// Line counts from 1, 0 is not known.
	Line int `json:"line,omitempty"`
	// Column counts characters from 1, 0 is not known.
	Column int `json:"column,omitempty"`
	// Field is the path in the file, such as resources.memory or volumes[1].at; empty is the whole file.
	Field string `json:"field"`
	// Value is what stands there, as written, cut to 80 bytes; empty when it is missing.
	Value string `json:"value,omitempty"`
	// Problem says what is wrong and what is accepted.
	Problem string `json:"problem"`
}

// Error is one line: where, which field, what is accepted.
func (e *JobError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ":")
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", e.Line, e.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(cmp.Or(e.Problem, "is wrong"))
	return b.String()
}

// Unwrap returns ErrBadJob.
func (e *JobError) Unwrap() error { return ErrBadJob }

// JobErrors are all things wrong with a job, in the order of the file.
type JobErrors []JobError

// Error has a line for each.
func (e JobErrors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns ErrBadJob.
func (e JobErrors) Unwrap() error { return ErrBadJob }

// Bounds of a job that no other noun has.
const (
	maxRetries    = 100
	maxRedundancy = 9 // trust.md 8: at most 9 copies
	maxGPUNames   = 64
	maxFilePath   = 4096
)

// The words that fields of a job accept.
var (
	jobKinds      = []string{"map", "gang", "service", "task"}
	jobNetworks   = []string{"none", "cluster", "listed"}
	jobBandwidths = []string{"low", "medium", "high", "ultra"}
	jobHostTypes  = []string{"datacenter", "miner", "partner"}
	jobCompliance = []string{"soc2", "hipaa", "gdpr", "confidential", "homomorphic"}
	jobModes      = []string{"ro", "rw", "rw-shared"}
	jobCompares   = []string{"exact", "tolerance", "recheck", "toploc", "none"}
	jobUnvetted   = []string{"replicated", "single", "never"}
	jobPrefers    = []string{"fast", "balanced", "cheap"}
	jobPriorities = []string{"low", "normal", "high"}
	jobKeeps      = []string{"success", "always"}
	jobIsolations = []string{"dev", "shared", "strong", "confidential"}
)

var (
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	volumeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[A-Za-z0-9][A-Za-z0-9:._/-]{0,127})?$`)
	slugSize   = regexp.MustCompile(`-([0-9]{1,3})gb(-|$)`)
)

// ValidVolumeName says that a name may be given to a volume: 1 to 64 letters, digits, dots, dashes and
// underscores that begin with a letter or digit.
func ValidVolumeName(name string) bool {
	return !strings.Contains(name, "@") && volumeName.MatchString(name)
}

// Validate judges the job by itself: nil, or JobErrors with everything that is wrong. What a bridge of this
// version cannot run is well-formed all the same; the bridge says so.
func (j *Job) Validate() error {
	var c jobChecker
	j.check(&c)
	if len(c.errs) == 0 {
		return nil
	}
	return c.errs
}

// jobChecker gathers what is wrong.
type jobChecker struct{ errs JobErrors }

func (c *jobChecker) bad(field, value, format string, args ...any) {
	c.errs = append(c.errs, JobError{Field: field, Value: clip(value, 80), Problem: fmt.Sprintf(format, args...)})
}

// word complains about a text that is not one of a few; an empty one was not written.
func (c *jobChecker) word(field, value string, words []string) {
	if value == "" || slices.Contains(words, value) {
		return
	}
	c.bad(field, value, "%.64q is none of %s; nearest: %s", value, strings.Join(words, ", "), nearest(value, words, 1)[0])
}

// text complains about bytes that no field may have.
func (c *jobChecker) text(field, value string, most int) {
	switch {
	case len(value) > most:
		c.bad(field, value, "has %d bytes, at most %d fit", len(value), most)
	case !utf8.ValidString(value):
		c.bad(field, strings.ToValidUTF8(value, "?"), "is no UTF-8 text")
	case strings.ContainsRune(value, 0):
		c.bad(field, value, "has a zero byte")
	}
}

func (j *Job) check(c *jobChecker) {
	switch {
	case j.Name == "":
		c.bad("name", "", "is missing: say what to call the job")
	case strings.IndexFunc(j.Name, unicode.IsControl) >= 0:
		c.bad("name", j.Name, "%.64q has a control character", j.Name)
	default:
		c.text("name", j.Name, maxName)
	}
	if j.Kind == "" {
		c.bad("kind", "", "is missing: say map, gang, service or task")
	}
	c.word("kind", string(j.Kind), jobKinds)
	j.Run.check(c)
	j.checkInputs(c)
	j.Resources.check(c)
	j.Placement.check(c)
	j.checkVolumes(c)
	j.Policy.check(c)
}

func (r *JobRun) check(c *jobChecker) {
	var set []string
	for _, f := range []struct {
		name, value string
		most        int
	}{{"wasm", r.Wasm, maxFilePath}, {"image", r.Image, 512}, {"host", r.Host, 128}} {
		if f.value != "" {
			set = append(set, f.name)
			c.text("run."+f.name, f.value, f.most)
		}
	}
	switch len(set) {
	case 0:
		c.bad("run", "", "does not say what to run: give one of wasm, image or host, for example wasm: program.wasm")
	case 1:
	default:
		c.bad("run", strings.Join(set, ", "), "has %s, exactly one of wasm, image and host is accepted", strings.Join(set, " and "))
	}
	size := 0
	for i, a := range r.Command {
		size += len(a)
		c.text(item("run.command", i), a, math.MaxInt) // the sum is judged below
	}
	switch {
	case r.Handler != "":
		r.checkFunction(c)
	case r.OnStart != "" || r.Code != "" || r.Workers > 0 || r.KeepWarm != 0:
		c.bad("run.handler", "", "is missing: on_start, code, workers and keep_warm belong to a function; name it as MODULE:FUNCTION")
	case len(r.Command) == 0 || r.Command[0] == "":
		c.bad("run.command", "", "is missing: give the program's name and arguments, for example [sweep, --config, \"{input}\"]")
	case len(r.Command) > maxArgs:
		c.bad("run.command", strconv.Itoa(len(r.Command)), "has %d entries, at most %d fit", len(r.Command), maxArgs)
	}
	for k, v := range r.Env {
		size += len(k) + len(v)
		at := joinField("run.env", k)
		if !envName.MatchString(k) {
			c.bad(at, k, "%.64q is no name of a variable: letters, digits and _, not beginning with a digit", k)
		}
		c.text(at, v, math.MaxInt)
	}
	if len(r.Env) > maxEnv {
		c.bad("run.env", strconv.Itoa(len(r.Env)), "has %d variables, at most %d fit", len(r.Env), maxEnv)
	}
	if size > maxCommand {
		c.bad("run.command", strconv.Itoa(size), "has %d bytes together with run.env, at most %d fit; put long texts into a volume", size, maxCommand)
	}
}

// checkFunction judges what a function of a host runtime needs.
func (r *JobRun) checkFunction(c *jobChecker) {
	if r.Host == "" {
		c.bad("run.handler", r.Handler, "is called in a runtime of the node: say host: python3")
	}
	if len(r.Command) > 0 {
		c.bad("run.command", r.Command[0], "does not go with run.handler: a function is called, no program is started")
	}
	if !validHandler(r.Handler) {
		c.bad("run.handler", r.Handler, "%.80q is no MODULE:FUNCTION, such as app:square", r.Handler)
	}
	if r.OnStart != "" && !validHandler(r.OnStart) {
		c.bad("run.on_start", r.OnStart, "%.80q is no MODULE:FUNCTION, such as app:load", r.OnStart)
	}
	if _, err := cid.Decode(r.Code); err != nil {
		c.bad("run.code", r.Code, "%.80q is no CID of a tree of files", r.Code)
	}
	if r.Workers > maxWorkers {
		c.bad("run.workers", strconv.FormatUint(uint64(r.Workers), 10), "%d are too many, at most %d", r.Workers, maxWorkers)
	}
	if r.KeepWarm < 0 || r.KeepWarm.Std() > maxWall {
		c.bad("run.keep_warm", r.KeepWarm.String(), "%s is not within 0 and 365d", r.KeepWarm)
	}
}

func (j *Job) checkInputs(c *jobChecker) {
	in := &j.Inputs
	set := in.kinds()
	switch {
	case len(set) > 1:
		c.bad("inputs", strings.Join(set, ", "), "has %s, exactly one of them is accepted", strings.Join(set, " and "))
	case !slices.Contains(jobKinds, string(j.Kind)): // who knows whether it has inputs
	case j.Kind != JobMap && len(set) > 0:
		c.bad("inputs", set[0], "only a job of kind map has inputs; write kind: map, or remove them")
	case j.Kind != JobMap && j.Chunk > 0:
		c.bad("chunk", strconv.FormatUint(j.Chunk, 10), "only a job of kind map is cut into chunks; write kind: map, or remove it")
	case j.Kind == JobMap && len(set) == 0:
		c.bad("inputs", "", "is missing: a map needs one of range, list, lines, grid, files, records or open, for example range: 0..63")
	}
	if j.Chunk > MaxChunkInputs {
		c.bad("chunk", strconv.FormatUint(j.Chunk, 10), "%d is too many inputs for a chunk, at most %d fit", j.Chunk, MaxChunkInputs)
	}
	if r := in.Range; r != nil && (r.Len() == 0 || r.Len() > math.MaxInt64) {
		c.bad("inputs.range", r.String(), "%s is empty or has more than 2^63 inputs", r)
	}
	for i, s := range in.List {
		c.text(item("inputs.list", i), s, maxCommand)
	}
	c.text("inputs.lines", in.Lines, maxFilePath)
	c.text("inputs.files", in.Files, maxFilePath)
	if in.Files != "" && !strings.HasPrefix(in.Files, "vol://") {
		c.bad("inputs.files", in.Files, "%.64q is no pattern in a volume: write vol://NAME/PATTERN", in.Files)
	}
	if r := in.Records; r != nil {
		c.text("inputs.records.file", r.File, maxFilePath)
		if r.File == "" {
			c.bad("inputs.records.file", "", "is missing: name the file")
		}
		if r.PerChunk == 0 {
			c.bad("inputs.records.per_chunk", "", "is missing: say how many lines make an input")
		}
	}
	in.Grid.check(c)
}

// kinds are the names of the fields that are set.
func (in *JobInputs) kinds() (set []string) {
	for _, f := range []struct {
		name string
		is   bool
	}{
		{"range", in.Range != nil},
		{"list", in.List != nil},
		{"lines", in.Lines != ""},
		{"files", in.Files != ""},
		{"records", in.Records != nil},
		{"grid", in.Grid != nil},
		{"open", in.Open},
	} {
		if f.is {
			set = append(set, f.name)
		}
	}
	return set
}

func (g Grid) check(c *jobChecker) {
	points := uint64(1)
	for i, a := range g {
		at := joinField("inputs.grid", a.Name)
		c.text(at, a.Name, maxName)
		switch {
		case a.Name == "":
			c.bad("inputs.grid", "", "a key is empty")
		case i > 0 && g[i-1].Name >= a.Name:
			c.bad(at, a.Name, "is there twice or not in the order of names")
		case len(a.Values) == 0:
			c.bad(at, "", "has no values: give at least one")
		}
		for k, v := range a.Values {
			if len(v) == 0 || !json.Valid(v) || v[0] == '{' || v[0] == '[' {
				c.bad(item(at, k), string(v), "%.64q is no number, text, true, false or null", v)
			}
		}
		hi, lo := bits.Mul64(points, uint64(max(1, len(a.Values))))
		if hi > 0 || lo > math.MaxInt64 {
			c.bad("inputs.grid", "", "has more than 2^63 points")
			return
		}
		points = lo
	}
}

func (r *JobResources) check(c *jobChecker) {
	if len(r.GPU) > maxGPUNames {
		c.bad("resources.gpu", strconv.Itoa(len(r.GPU)), "has %d names, at most %d fit", len(r.GPU), maxGPUNames)
	}
	for i, name := range r.GPU[:min(len(r.GPU), maxGPUNames)] {
		set, err := ResolveGPU(name)
		switch {
		case err != nil:
			c.bad(item("resources.gpu", i), name, "%s", strings.TrimPrefix(err.Error(), "protocol: "))
		case r.MinVRAM > 0 && set.below(r.MinVRAM):
			c.bad(item("resources.gpu", i), name, "no %s has the %s of resources.min_vram: lower that, or name another GPU", set.Alias, r.MinVRAM)
		}
	}
	if r.GPUCount > 64 {
		c.bad("resources.gpu_count", strconv.FormatUint(uint64(r.GPUCount), 10), "%d is no whole number of 1 to 64", r.GPUCount)
	}
	if r.MinVRAM > maxVRAM {
		c.bad("resources.min_vram", r.MinVRAM.String(), "%s is more than %dGB", r.MinVRAM, maxVRAM)
	}
	if r.CPU > maxCores*1000 {
		c.bad("resources.cpu", r.CPU.String(), "%s is more than %d cores", r.CPU, maxCores)
	}
	const least = 1 << 20 // a WebAssembly page is 64 KiB, and nothing useful runs in a few of them
	for _, f := range []struct {
		field string
		size  ByteSize
	}{{"resources.memory", r.Memory}, {"resources.disk", r.Disk}} {
		if f.size > 0 && f.size < least || f.size > 1<<50 {
			c.bad(f.field, f.size.String(), "%s is not within 1MiB and 1PiB; write a unit, such as 4GiB", f.size)
		}
	}
	c.word("resources.network", r.Network, jobNetworks)
}

// below says that every model of the set is known to have less memory.
func (s GPUSet) below(least VRAM) bool {
	for _, slug := range s.Slugs {
		m := slugSize.FindStringSubmatch(slug)
		if m == nil {
			return false
		}
		if gb, _ := strconv.Atoi(m[1]); gb >= int(least) {
			return false
		}
	}
	return len(s.Slugs) > 0
}

func (p *JobPlacement) check(c *jobChecker) {
	if n := p.Nodes; n != (NodeRange{}) && (n.Min == 0 || n.Min > n.Max || n.Max > maxNodes) {
		c.bad("placement.nodes", n.String(), "%s is no cluster size: write a number or a range such as 4..16, 1 to %d", n, maxNodes)
	}
	if r := p.MinReputation; !(r >= 0 && r <= 1) {
		c.bad("placement.min_reputation", fmt.Sprint(r), "%v is no number of 0 to 1, such as 0.9", r)
	}
	p.Regions.check(c)
	if d := p.MaxRTT; d < 0 {
		c.bad("placement.max_rtt", d.String(), "%s is negative", d)
	}
	c.word("placement.bandwidth", p.Bandwidth, jobBandwidths)
	for i, h := range p.HostType {
		c.wordIn(item("placement.host_type", i), h, jobHostTypes)
	}
	for i, h := range p.Compliance {
		c.wordIn(item("placement.compliance", i), h, jobCompliance)
	}
	if p.Where != "" {
		if _, err := ParseFilter(p.Where); err != nil {
			c.bad("placement.where", p.Where, "%s", err)
		}
	}
}

// wordIn is word for an entry of a list, which may not be empty.
func (c *jobChecker) wordIn(field, value string, words []string) {
	if value == "" {
		c.bad(field, "", "is empty, has to be one of %s", strings.Join(words, ", "))
	}
	c.word(field, value, words)
}

func (r RegionShares) check(c *jobChecker) {
	shares, seen := 0, make(map[Place]string, len(r))
	for i, s := range r {
		at := item("placement.regions", i)
		if s.Share != 0 {
			at = joinField("placement.regions", s.Place)
			shares++
		}
		if !(s.Share >= 0 && s.Share <= 1e6) {
			c.bad(at, fmt.Sprint(s.Share), "%v is no share: write a positive number", s.Share)
		}
		p, err := ParsePlace(s.Place)
		switch {
		case err != nil:
			c.bad(at, s.Place, "%s", strings.TrimPrefix(err.Error(), "protocol: "))
		case seen[p] != "":
			c.bad(at, s.Place, "%.16q is there twice, first as %q", s.Place, seen[p])
		default:
			seen[p] = s.Place
		}
	}
	if shares > 0 && shares < len(r) {
		c.bad("placement.regions", "", "either every region has a share or none")
	}
}

func (j *Job) checkVolumes(c *jobChecker) {
	if len(j.Volumes) > maxVolumes {
		c.bad("volumes", strconv.Itoa(len(j.Volumes)), "has %d entries, at most %d fit", len(j.Volumes), maxVolumes)
		return
	}
	for i := range j.Volumes {
		v, at := &j.Volumes[i], item("volumes", i)
		switch {
		case v.Name == "":
			c.bad(at+".name", "", "is missing: name a volume of `gridbeam volume list`")
		case !volumeName.MatchString(v.Name):
			c.bad(at+".name", v.Name, "%.80q is no volume: write NAME or NAME@REF with letters, digits, dots, dashes and underscores", v.Name)
		}
		clean := path.IsAbs(v.At) && path.Clean(v.At) == v.At && v.At != "/"
		switch {
		case v.At == "":
			c.bad(at+".at", "", "is missing: say where the job finds it, for example /data")
		case !clean:
			c.bad(at+".at", v.At, "%.80q is no clean absolute path below /, for example /data", v.At)
		case under(v.At, "/out") && v.Mode != "rw-shared" && v.Mode != "rw":
			c.bad(at+".at", v.At, "%.80q lies in /out, which belongs to the outputs", v.At)
		}
		c.text(at+".at", v.At, maxTargetSize)
		for k := range j.Volumes[:i] {
			if o := &j.Volumes[k]; clean && o.At != "" && (under(v.At, o.At) || under(o.At, v.At)) {
				c.bad(at+".at", v.At, "%.80q and volumes[%d].at %.80q lie in one another", v.At, k, o.At)
				break
			}
		}
		c.word(at+".mode", v.Mode, jobModes)
		if len(v.Links) > maxPlaces || len(v.Links) > 0 && j.Run.Handler == "" {
			c.bad(at+".links", strings.Join(v.Links, ", "), "only a function has them, at most %d", maxPlaces)
		}
	}
}

// under says that a path is a directory or lies in it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func (p *JobPolicy) check(c *jobChecker) {
	for _, f := range []struct {
		field string
		d     Duration
	}{{"policy.timeout", p.Timeout}, {"policy.start", p.Start}, {"policy.deadline", p.Deadline}} {
		if f.d < 0 || f.d.Std().Hours() > 365*24 {
			c.bad(f.field, f.d.String(), "%s is not within 0 and 365d", f.d)
		}
	}
	if p.Retries != nil && *p.Retries > maxRetries {
		c.bad("policy.retries", strconv.FormatUint(uint64(*p.Retries), 10), "%d is no whole number of 0 to %d", *p.Retries, maxRetries)
	}
	if p.Redundancy > maxRedundancy {
		c.bad("policy.redundancy", strconv.FormatUint(uint64(p.Redundancy), 10), "%d is no whole number of 1 to %d", p.Redundancy, maxRedundancy)
	}
	if p.Retries != nil && *p.Retries == 0 && p.Redundancy > 1 {
		c.bad("policy.redundancy", strconv.FormatUint(uint64(p.Redundancy), 10), "retries: 0 means that a chunk runs at most once, so redundancy can only be 1")
	}
	if s := p.SpotCheck; s != nil && !(*s >= 0 && *s <= 1) {
		c.bad("policy.spot_check", fmt.Sprint(*s), "%v is no number of 0 to 1, such as 0.05", *s)
	}
	if m := p.MaxSpend; m != nil && (*m <= 0 || *m > maxMoney) {
		c.bad("policy.max_spend", m.String(), "%s is not above 0 and at most a billion US dollars; leave it out for no bound but the credit", *m)
	}
	for _, f := range []struct {
		field, value string
		words        []string
	}{
		{"compare", p.Compare, jobCompares},
		{"allow_unvetted", p.AllowUnvetted, jobUnvetted},
		{"prefer", p.Prefer, jobPrefers},
		{"priority", p.Priority, jobPriorities},
		{"keep_outputs", p.KeepOutputs, jobKeeps},
		{"min_isolation", p.MinIsolation, jobIsolations},
	} {
		c.word("policy."+f.field, f.value, f.words)
	}
}
