package protocol

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ParseJob reads a job file in YAML or JSON and judges it. The error is JobErrors with everything that is
// wrong, in the order of the file, each with field, line and column; name is the file's for messages, and a
// name that ends in .json is read as JSON only. It reads nothing that the file refers to.
func ParseJob(text []byte, name string) (Job, error) {
	d := &jobDecoder{file: name, where: make(map[string]jobPos)}
	j := d.job(text)
	c := jobChecker{errs: d.errs}
	if !d.unreadable {
		j.check(&c)
	}
	return j, d.located(c.errs)
}

// UnmarshalJSON implements json.Unmarshaler with the rules of a job file: an unknown field is an error. What
// only Validate knows is not judged, so that a stored job stays readable.
func (j *Job) UnmarshalJSON(text []byte) error {
	d := &jobDecoder{where: make(map[string]jobPos), stored: true}
	read := d.job(text)
	if len(d.errs) > 0 {
		for i := range d.errs {
			d.errs[i].Line, d.errs[i].Column = 0, 0 // of a text that nobody has at hand
		}
		return d.errs
	}
	*j = read
	return nil
}

// jobDecoder turns a tree into a Job and gathers what does not fit.
type jobDecoder struct {
	file       string
	errs       JobErrors
	where      map[string]jobPos // of every field that was written
	meant      []string          // fields that an unknown one was probably meant to be
	unreadable bool              // there is no tree
	stored     bool              // written by a program: what only Validate minds is let through
}

// jobSetter takes the value of a field.
type jobSetter func(d *jobDecoder, n *jobNode, path string)

// jobField is a field that a map may have.
type jobField struct {
	name string
	set  jobSetter
}

func (d *jobDecoder) bad(n *jobNode, path, format string, args ...any) {
	d.errs = append(d.errs, JobError{Line: n.pos.line, Column: n.pos.col, Field: path, Value: n.shown(), Problem: fmt.Sprintf(format, args...)})
}

// located fills in files and positions, leaves out what only follows from an error at the same place and puts
// the rest in the order of the file.
func (d *jobDecoder) located(all JobErrors) error {
	if len(all) == 0 {
		return nil
	}
	out, read := all[:0:0], len(d.errs)
	for i, e := range all {
		follows := func(field string) bool { return touches(field, e.Field) }
		if i >= read && (slices.ContainsFunc(all[:read], func(r JobError) bool { return follows(r.Field) }) || slices.ContainsFunc(d.meant, follows)) {
			continue
		}
		e.File = d.file
		for p := e.Field; e.Line == 0 && p != ""; p = parentField(p) {
			e.Line, e.Column = d.where[p].line, d.where[p].col
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b JobError) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
	if more := len(out) - maxJobErrors; more > 0 {
		out = append(out[:maxJobErrors], JobError{File: d.file, Problem: fmt.Sprintf("%d more errors are not shown", more)})
	}
	return out
}

// maxJobErrors bounds what is told of one file.
const maxJobErrors = 100

// touches says that one field is the other or lies in it.
func touches(a, b string) bool {
	in := func(a, b string) bool {
		return strings.HasPrefix(b, a) && (len(a) == len(b) || a == "" || b[len(a)] == '.' || b[len(a)] == '[')
	}
	return in(a, b) || in(b, a)
}

// parentField is the field around a field, "" for none.
func parentField(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

func (d *jobDecoder) job(text []byte) (j Job) {
	root, err := parseTree(text, d.file)
	var bad *treeError
	switch {
	case errors.As(err, &bad):
		d.unreadable = true
		d.errs = append(d.errs, JobError{Line: bad.pos.line, Column: bad.pos.col, Problem: bad.problem})
		return j
	case err != nil || root.kind != nodeMap:
		d.unreadable = true
		d.bad(cmp.Or(root, &jobNode{}), "", "a job file is a map of fields such as name, kind and run, not %s", nodeNames[root.kind])
		return j
	}
	d.fields(root, "", []jobField{
		{"name", setText(&j.Name)},
		{"kind", setText(&j.Kind)},
		{"run", setMap(j.Run.fields)},
		{"inputs", setMap(j.Inputs.fields)},
		{"chunk", setUint(&j.Chunk, 1, MaxChunkInputs)},
		{"resources", setMap(j.Resources.fields)},
		{"placement", setMap(j.Placement.fields)},
		{"volumes", func(d *jobDecoder, n *jobNode, path string) { j.Volumes = d.volumes(n, path) }},
		{"policy", setMap(j.Policy.fields)},
	})
	return j
}

func (r *JobRun) fields() []jobField {
	return []jobField{
		{"wasm", setText(&r.Wasm)},
		{"image", setText(&r.Image)},
		{"host", setText(&r.Host)},
		{"command", setTexts(&r.Command, false)},
		{"env", func(d *jobDecoder, n *jobNode, path string) { r.Env = d.env(n, path) }},
		{"handler", setText(&r.Handler)},
		{"on_start", setText(&r.OnStart)},
		{"code", setText(&r.Code)},
		{"workers", setUint(&r.Workers, 1, maxWorkers)},
		{"keep_warm", setParsed(&r.KeepWarm, ParseDuration)},
	}
}

func (in *JobInputs) fields() []jobField {
	return []jobField{
		{"range", func(d *jobDecoder, n *jobNode, path string) {
			setParsed(&in.Range, func(s string) (*IntRange, error) {
				r, err := ParseIntRange(s)
				return &r, err
			})(d, n, path)
		}},
		{"list", func(d *jobDecoder, n *jobNode, path string) { in.List = d.inputList(n, path) }},
		{"lines", setText(&in.Lines)},
		{"files", setText(&in.Files)},
		{"records", func(d *jobDecoder, n *jobNode, path string) {
			r := &RecordInputs{}
			setMap(func() []jobField {
				return []jobField{{"file", setText(&r.File)}, {"per_chunk", setUint(&r.PerChunk, 1, math.MaxInt32)}}
			})(d, n, path)
			in.Records = r
		}},
		{"grid", func(d *jobDecoder, n *jobNode, path string) { in.Grid = d.grid(n, path) }},
		{"open", setBool(&in.Open)},
	}
}

func (r *JobResources) fields() []jobField {
	return []jobField{
		{"gpu", setTexts((*[]string)(&r.GPU), true)},
		{"gpu_count", setUint(&r.GPUCount, 1, 64)},
		{"min_vram", setParsed(&r.MinVRAM, ParseVRAM)},
		{"cpu", setParsed(&r.CPU, ParseCores)},
		{"memory", setParsed(&r.Memory, ParseByteSize)},
		{"disk", setParsed(&r.Disk, ParseByteSize)},
		{"network", setText(&r.Network)},
	}
}

func (p *JobPlacement) fields() []jobField {
	return []jobField{
		{"nodes", setParsed(&p.Nodes, ParseNodeRange)},
		{"min_reputation", setParsed(&p.MinReputation, parseShare)},
		{"regions", func(d *jobDecoder, n *jobNode, path string) { p.Regions = d.regions(n, path) }},
		{"max_rtt", setParsed(&p.MaxRTT, ParseDuration)},
		{"bandwidth", setText(&p.Bandwidth)},
		{"host_type", setTexts(&p.HostType, true)},
		{"compliance", setTexts(&p.Compliance, true)},
		{"where", setText(&p.Where)},
	}
}

func (p *JobPolicy) fields() []jobField {
	return []jobField{
		{"timeout", setParsed(&p.Timeout, ParseDuration)},
		{"start", setParsed(&p.Start, ParseDuration)},
		{"retries", func(d *jobDecoder, n *jobNode, path string) {
			p.Retries = new(uint32)
			setUint(p.Retries, 0, maxRetries)(d, n, path)
		}},
		{"redundancy", setUint(&p.Redundancy, 1, maxRedundancy)},
		{"spot_check", func(d *jobDecoder, n *jobNode, path string) {
			p.SpotCheck = new(float64)
			setParsed(p.SpotCheck, parseShare)(d, n, path)
		}},
		{"compare", setText(&p.Compare)},
		{"allow_unvetted", setText(&p.AllowUnvetted)},
		{"deadline", setParsed(&p.Deadline, ParseDuration)},
		{"max_spend", func(d *jobDecoder, n *jobNode, path string) {
			p.MaxSpend = new(Money)
			setParsed(p.MaxSpend, ParseMoney)(d, n, path)
		}},
		{"prefer", setText(&p.Prefer)},
		{"priority", setText(&p.Priority)},
		{"keep_outputs", setText(&p.KeepOutputs)},
		{"min_isolation", setText(&p.MinIsolation)},
	}
}

// fields hands each key of a map to its field and names those that there are when it is unknown.
func (d *jobDecoder) fields(n *jobNode, path string, fields []jobField) {
	for _, p := range n.pairs {
		at := joinField(path, p.key)
		i := slices.IndexFunc(fields, func(f jobField) bool { return f.name == p.key })
		if i < 0 {
			names := make([]string, len(fields))
			for k, f := range fields {
				names[k] = f.name
			}
			near := nearest(p.key, names, 3)
			if editDistance(clip(p.key, 64), near[0]) <= 2 {
				d.meant = append(d.meant, joinField(path, near[0]))
			}
			d.bad(&jobNode{kind: nodeText, text: p.key, pos: p.pos}, at, "unknown field; nearest: %s", strings.Join(near, ", "))
			continue
		}
		d.where[at] = p.pos
		fields[i].set(d, p.value, at)
	}
}

func joinField(path, key string) string {
	if path == "" {
		return clip(key, 64)
	}
	return path + "." + clip(key, 64)
}

func item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// setMap reads a map with these fields; an empty one, as all its lines are comments, is none.
func setMap(fields func() []jobField) jobSetter {
	return func(d *jobDecoder, n *jobNode, path string) {
		switch n.kind {
		case nodeMap:
			d.fields(n, path, fields())
		case nodeNull:
		default:
			names := make([]string, 0, 8)
			for _, f := range fields() {
				names = append(names, f.name)
			}
			d.bad(n, path, "is %s, has to be a map of: %s", nodeNames[n.kind], strings.Join(names, ", "))
		}
	}
}

// scalarOf is the text of a scalar as written; it complains about anything else.
func (d *jobDecoder) scalarOf(n *jobNode, path string) (string, bool) {
	switch {
	case n.scalar():
		return n.text, true
	case n.kind == nodeNull:
		d.bad(n, path, "has no value: give one, or remove the line")
	default:
		d.bad(n, path, "is %s, has to be a single value", nodeNames[n.kind])
	}
	return "", false
}

// setText takes any scalar as it is written: no, 010 and 1.10 stay what they look like.
func setText[T ~string](dst *T) jobSetter {
	return func(d *jobDecoder, n *jobNode, path string) {
		s, ok := d.scalarOf(n, path)
		if ok && s == "" && !d.stored {
			d.bad(n, path, "is empty: give a value, or remove the line")
		}
		*dst = T(s)
	}
}

func setParsed[T any](dst *T, parse func(string) (T, error)) jobSetter {
	return func(d *jobDecoder, n *jobNode, path string) {
		s, ok := d.scalarOf(n, path)
		if !ok {
			return
		}
		v, err := parse(s)
		if err != nil {
			d.bad(n, path, "%s", err)
			return
		}
		*dst = v
	}
}

func setUint[T ~uint32 | ~uint64](dst *T, least, most uint64) jobSetter {
	return setParsed(dst, func(s string) (T, error) {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil || v < least || v > most {
			return 0, fmt.Errorf("%.64q is no whole number of %d to %d", s, least, most)
		}
		return T(v), nil
	})
}

func setBool(dst *bool) jobSetter {
	return func(d *jobDecoder, n *jobNode, path string) {
		if n.kind != nodeBool {
			d.bad(n, path, "%q is neither true nor false", n.shown())
			return
		}
		*dst = strings.EqualFold(n.text, "true")
	}
}

// setTexts reads a list of scalars; where single is set, one scalar is a list of one.
func setTexts(dst *[]string, single bool) jobSetter {
	return func(d *jobDecoder, n *jobNode, path string) {
		if single && n.scalar() {
			n = &jobNode{kind: nodeList, pos: n.pos, items: []*jobNode{n}}
		}
		switch {
		case n.kind != nodeList:
			d.bad(n, path, "is %s, has to be a list such as [a, b]", nodeNames[n.kind])
		case len(n.items) == 0:
			d.bad(n, path, "is an empty list: name something, or remove the line")
		}
		for i, it := range n.items {
			if s, ok := d.scalarOf(it, item(path, i)); ok {
				d.where[item(path, i)] = it.pos
				*dst = append(*dst, s)
			}
		}
	}
}

// parseShare reads a number of 0 to 1.
func parseShare(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !json.Valid([]byte(s)) || !(v >= 0 && v <= 1) {
		return 0, fmt.Errorf("%.64q is no number of 0 to 1, such as 0.9", s)
	}
	return v, nil
}

func (d *jobDecoder) env(n *jobNode, path string) map[string]string {
	if n.kind != nodeMap {
		if n.kind != nodeNull {
			d.bad(n, path, "is %s, has to be a map of names and values", nodeNames[n.kind])
		}
		return nil
	}
	env := make(map[string]string, len(n.pairs))
	for _, p := range n.pairs {
		at := joinField(path, p.key)
		d.where[at] = p.pos
		if s, ok := d.scalarOf(p.value, at); ok {
			env[p.key] = s
		}
	}
	if len(env) == 0 {
		return nil
	}
	return env
}

// inputList reads inputs: scalars as they are written, anything else as canonical JSON.
func (d *jobDecoder) inputList(n *jobNode, path string) []string {
	if n.kind != nodeList {
		d.bad(n, path, "is %s, has to be a list such as [a, b]", nodeNames[n.kind])
		return nil
	}
	if len(n.items) == 0 {
		d.bad(n, path, "is an empty list: a job without inputs has nothing to do")
		return nil
	}
	list := make([]string, 0, len(n.items))
	for i, it := range n.items {
		at := item(path, i)
		d.where[at] = it.pos
		switch {
		case it.scalar():
			list = append(list, it.text)
		case it.kind == nodeNull:
			d.bad(it, at, `has no value: write "" for an empty input`)
		default:
			text, err := it.canonical()
			if err != nil {
				d.bad(it, at, "%s", err)
				continue
			}
			list = append(list, string(text))
		}
	}
	return list
}

func (d *jobDecoder) grid(n *jobNode, path string) Grid {
	if n.kind != nodeMap || len(n.pairs) == 0 {
		d.bad(n, path, "is %s, has to be a map of lists such as {lr: [0.1, 0.01], hidden: [16, 32]}", cmp.Or(nodeNames[n.kind], "empty"))
		return nil
	}
	g := make(Grid, 0, len(n.pairs))
	for _, p := range n.pairs {
		at := joinField(path, p.key)
		d.where[at] = p.pos
		if p.value.kind != nodeList || len(p.value.items) == 0 {
			d.bad(p.value, at, "is %s, has to be a list of at least one value, such as [0.1, 0.01]", nodeNames[p.value.kind])
			continue
		}
		axis := GridAxis{Name: p.key}
		for i, v := range p.value.items {
			d.where[item(at, i)] = v.pos
			raw, err := v.canonical()
			switch {
			case v.kind == nodeList || v.kind == nodeMap:
				d.bad(v, item(at, i), "is %s, has to be a number, a text, true, false or null", nodeNames[v.kind])
			case err != nil:
				d.bad(v, item(at, i), "%s", err)
			default:
				axis.Values = append(axis.Values, raw)
			}
		}
		g = append(g, axis)
	}
	slices.SortStableFunc(g, func(a, b GridAxis) int { return strings.Compare(a.Name, b.Name) })
	return g
}

func (d *jobDecoder) regions(n *jobNode, path string) (out RegionShares) {
	if n.kind != nodeMap {
		var places []string
		setTexts(&places, true)(d, n, path)
		for _, p := range places {
			out = append(out, RegionShare{Place: p})
		}
	}
	for _, p := range n.pairs {
		at := joinField(path, p.key)
		d.where[at] = p.pos
		s, ok := d.scalarOf(p.value, at)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !(v > 0 && v <= 1e6) {
			d.bad(p.value, at, "%.64q is no share: write a positive number, such as {us: 90, eu: 10}", s)
			continue
		}
		out = append(out, RegionShare{p.key, v})
	}
	slices.SortStableFunc(out, func(a, b RegionShare) int { return strings.Compare(a.Place, b.Place) })
	return out
}

func (d *jobDecoder) volumes(n *jobNode, path string) (out []JobVolume) {
	if n.kind == nodeNull {
		return nil
	}
	if n.kind != nodeList {
		d.bad(n, path, "is %s, has to be a list such as [{name: digits, at: /data, mode: ro}]", nodeNames[n.kind])
		return nil
	}
	for i, it := range n.items {
		v, at := JobVolume{}, item(path, i)
		d.where[at] = it.pos
		if it.kind == nodeNull {
			d.bad(it, at, "is nothing, has to be a map of: name, at, mode")
		}
		setMap(func() []jobField {
			return []jobField{{"name", setText(&v.Name)}, {"at", setText(&v.At)}, {"mode", setText(&v.Mode)}, {"links", setTexts(&v.Links, true)}}
		})(d, it, at)
		out = append(out, v)
	}
	return out
}
