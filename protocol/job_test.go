package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// wholeJob is the example of scheduling.md 1 with every field.
const wholeJob = `name: digits-sweep
kind: map
run:                                  # exactly one of wasm | image | host
  wasm: sweep.wasm
  command: [sweep, --data, /data, --config, "{input}"]
  env: {LEVEL: 3, DEBUG: no}
inputs:
  range: 0..63
chunk: 4
resources: {gpu: [H100, A100-40], gpu_count: 1, min_vram: 40GB,
             cpu: 2, memory: 4GiB, disk: 10GiB, network: none}
placement:
  nodes: 4..16
  min_reputation: 0.9
  regions: {us: 90, eu: 10}
  max_rtt: 40ms
  bandwidth: high
  host_type: [datacenter, miner]
  compliance: [gdpr]
  where: 'gpu.compute >= 8.0'
volumes: [{name: digits, at: /data, mode: ro}, {name: results, at: /out, mode: rw-shared}]
policy: {timeout: 2m, retries: 2, redundancy: 1, spot_check: 0.05, compare: exact, allow_unvetted: replicated, deadline: 1h,
         max_spend: "5.00", prefer: balanced, priority: normal, keep_outputs: success, min_isolation: shared}
`

func ptr[T any](v T) *T { return &v }

func wholeJobValue() Job {
	return Job{
		Name: "digits-sweep", Kind: JobMap,
		Run: JobRun{
			Wasm: "sweep.wasm", Command: []string{"sweep", "--data", "/data", "--config", "{input}"},
			Env: map[string]string{"LEVEL": "3", "DEBUG": "no"},
		},
		Inputs: JobInputs{Range: &IntRange{0, 63}}, Chunk: 4,
		Resources: JobResources{
			GPU: GPUNames{"H100", "A100-40"}, GPUCount: 1, MinVRAM: 40, CPU: 2000, Memory: 4 << 30, Disk: 10 << 30, Network: "none",
		},
		Placement: JobPlacement{
			Nodes: NodeRange{4, 16}, MinReputation: 0.9, Regions: RegionShares{{"eu", 10}, {"us", 90}}, MaxRTT: Duration(40 * time.Millisecond),
			Bandwidth: "high", HostType: []string{"datacenter", "miner"}, Compliance: []string{"gdpr"}, Where: "gpu.compute >= 8.0",
		},
		Volumes: []JobVolume{{Name: "digits", At: "/data", Mode: "ro"}, {Name: "results", At: "/out", Mode: "rw-shared"}},
		Policy: JobPolicy{
			Timeout: Duration(2 * time.Minute), Retries: ptr[uint32](2), Redundancy: 1, SpotCheck: ptr(0.05), Compare: "exact", AllowUnvetted: "replicated",
			Deadline: Duration(time.Hour), MaxSpend: ptr(Money(5_000_000)), Prefer: "balanced", Priority: "normal", KeepOutputs: "success",
			MinIsolation: "shared",
		},
	}
}

func TestJobFileOfTheDesignIsReadWhole(t *testing.T) {
	got, err := ParseJob([]byte(wholeJob), "job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if want := wholeJobValue(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestJobFileOfTheExampleIsRead(t *testing.T) {
	text, err := os.ReadFile("../examples/sweep/job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	j, err := ParseJob(text, "job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"epochs":[10,20],"hidden":[16,32],"lr":[0.01,0.02,0.05,0.1],"seed":[1,2,3,4]}`
	if got, _ := json.Marshal(j.Inputs.Grid); string(got) != want {
		t.Errorf("grid %s, want %s", got, want)
	}
}

// smallJob is a job with one line replaced or added.
func smallJob(edit string) string {
	lines := []string{"name: n", "kind: map", "run: {wasm: p.wasm, command: [p]}", "inputs: {range: 0..9}"}
	key, _, _ := strings.Cut(edit, ":")
	for i, l := range lines {
		if strings.HasPrefix(l, key+":") {
			lines[i] = edit
			return strings.Join(lines, "\n")
		}
	}
	return strings.Join(append(lines, edit), "\n")
}

func TestEachWrongFieldIsNamedWithWhatIsAccepted(t *testing.T) {
	deep := strings.Repeat("[", 70) + strings.Repeat("]", 70)
	for _, c := range []struct{ edit, field, says string }{
		{`name: ""`, "name", "is empty"},
		{"name: " + strings.Repeat("x", 129), "name", "at most 128"},
		{`name: "a\nb"`, "name", "control character"},
		{"name: [a]", "name", "is a list"},
		{"name:", "name", "has no value"},
		{"kind: mapp", "kind", "nearest: map"},
		{"kind: task", "inputs", "only a job of kind map has inputs"},
		{"nmae: n", "nmae", "unknown field; nearest: name"},
		{"run: sweep.wasm", "run", "has to be a map of: wasm, image, host, command, env"},
		{"run: {command: [p]}", "run", "give one of wasm, image or host"},
		{"run: {wasm: a.wasm, image: b, command: [p]}", "run", "wasm and image"},
		{"run: {wasm: a.wasm}", "run.command", "is missing"},
		{"run: {wasm: a.wasm, command: p --x}", "run.command", "such as [a, b]"},
		{"run: {wasm: a.wasm, command: []}", "run.command", "empty list"},
		{"run: {wasm: a.wasm, command: [p, {a: b}]}", "run.command[1]", "single value"},
		{`run: {wasm: a.wasm, command: [p, "\0"]}`, "run.command[1]", "zero byte"},
		{"run: {wasm: a.wasm, command: [p" + strings.Repeat(", a", 256) + "]}", "run.command", "at most 256"},
		{"run: {wasm: a.wasm, command: [p, " + strings.Repeat("a", 70_000) + "]}", "run.command", "at most 65536"},
		{"run: {wasm: a.wasm, command: [p], env: [A]}", "run.env", "a map of names"},
		{"run: {wasm: a.wasm, command: [p], env: {1A: x}}", "run.env.1A", "no name of a variable"},
		{"run: {wasm: a.wasm, command: [p], env: {A: [x]}}", "run.env.A", "single value"},
		{"run: {wasm: a.wasm, comand: [p]}", "run.comand", "nearest: command"},
		{"inputs:", "inputs", "needs one of range"},
		{"inputs: {range: 0..9, list: [a]}", "inputs", "range and list"},
		{"inputs: {range: 0-9}", "inputs.range", "0..63"},
		{"inputs: {range: 9..0}", "inputs.range", "is empty"},
		{"inputs: {range: -9223372036854775808..9223372036854775807}", "inputs.range", "2^63"},
		{"inputs: {list: a}", "inputs.list", "has to be a list"},
		{"inputs: {list: []}", "inputs.list", "empty list"},
		{"inputs: {list: [~]}", "inputs.list[0]", "no value"},
		{"inputs: {list: [{a: 0x10}]}", "inputs.list[0]", "no number in decimal"},
		{"inputs: {lines: [a]}", "inputs.lines", "single value"},
		{"inputs: {files: data/*}", "inputs.files", "vol://"},
		{"inputs: {records: {file: f}}", "inputs.records.per_chunk", "is missing"},
		{"inputs: {records: {per_chunk: 2}}", "inputs.records.file", "is missing"},
		{"inputs: {records: {file: f, per_chunk: 0}}", "inputs.records.per_chunk", "whole number of 1"},
		{"inputs: {grid: [1]}", "inputs.grid", "a map of lists"},
		{"inputs: {grid: {}}", "inputs.grid", "a map of lists"},
		{"inputs: {grid: {lr: 0.1}}", "inputs.grid.lr", "has to be a list"},
		{"inputs: {grid: {lr: []}}", "inputs.grid.lr", "at least one value"},
		{"inputs: {grid: {lr: [[1]]}}", "inputs.grid.lr[0]", "a number, a text"},
		{"inputs: {grid: {lr: [.5]}}", "inputs.grid.lr[0]", "no number in decimal"},
		{"inputs: {open: yes}", "inputs.open", "neither true nor false"},
		{"chunk: 0", "chunk", "1 to 10000"},
		{"chunk: 10001", "chunk", "1 to 10000"},
		{"chunk: 1.5", "chunk", "whole number"},
		{"resources: 4", "resources", "has to be a map of: gpu"},
		{"resources: {gpu: [H1000]}", "resources.gpu[0]", "nearest: H100"},
		{"resources: {gpu: XYZ}", "resources.gpu[0]", "nearest"},
		{"resources: {gpu: []}", "resources.gpu", "empty list"},
		{"resources: {gpu: RTX4090, min_vram: 40GB}", "resources.gpu[0]", "no RTX4090 has the 40GB"},
		{"resources: {gpu_count: 65}", "resources.gpu_count", "1 to 64"},
		{"resources: {min_vram: 40}", "resources.min_vram", "24GB or 80GB"},
		{"resources: {min_vram: 0.5GB}", "resources.min_vram", "whole GB"},
		{"resources: {cpu: -1}", "resources.cpu", "0.001 to 4096"},
		{"resources: {cpu: 2.0001}", "resources.cpu", "0.001 to 4096"},
		{"resources: {memory: 4 potatoes}", "resources.memory", "512MiB"},
		{"resources: {memory: 4}", "resources.memory", "within 1MiB"},
		{"resources: {disk: 99999PB}", "resources.disk", "8 EiB"},
		{"resources: {network: host}", "resources.network", "none, cluster, listed"},
		{"placement: {nodes: 0}", "placement.nodes", "4..16"},
		{"placement: {nodes: 16..4}", "placement.nodes", "4..16"},
		{"placement: {min_reputation: 1.1}", "placement.min_reputation", "0 to 1"},
		{"placement: {min_reputation: .nan}", "placement.min_reputation", "0 to 1"},
		{"placement: {regions: atlantis}", "placement.regions[0]", "ISO country"},
		{"placement: {regions: {us: 90, atlantis: 10}}", "placement.regions.atlantis", "ISO country"},
		{"placement: {regions: {us: 0}}", "placement.regions.us", "positive number"},
		{"placement: {regions: [us, US]}", "placement.regions[1]", "there twice"},
		{"placement: {max_rtt: 40}", "placement.max_rtt", "40ms"},
		{"placement: {max_rtt: -40ms}", "placement.max_rtt", "40ms"},
		{"placement: {bandwidth: fast}", "placement.bandwidth", "low, medium, high, ultra"},
		{"placement: {host_type: [laptop]}", "placement.host_type[0]", "datacenter, miner, partner"},
		{"placement: {compliance: [iso]}", "placement.compliance[0]", "gdpr"},
		{"placement: {where: 'gpu.compute >>= 8'}", "placement.where", "column"},
		{"volumes: {name: a}", "volumes", "has to be a list"},
		{"volumes: [{at: /data}]", "volumes[0].name", "is missing"},
		{"volumes: [{name: a b, at: /data}]", "volumes[0].name", "NAME@REF"},
		{"volumes: [{name: a}]", "volumes[0].at", "is missing"},
		{"volumes: [{name: a, at: data}]", "volumes[0].at", "absolute path"},
		{"volumes: [{name: a, at: /data/..}]", "volumes[0].at", "absolute path"},
		{"volumes: [{name: a, at: /out/x}]", "volumes[0].at", "belongs to the outputs"},
		{"volumes: [{name: a, at: /d}, {name: b, at: /d/e}]", "volumes[1].at", "lie in one another"},
		{"volumes: [{name: a, at: /data, mode: rx}]", "volumes[0].mode", "ro, rw, rw-shared"},
		{"volumes: [{name: a, at: /data, size: 3}]", "volumes[0].size", "unknown field"},
		{"volumes: [a]", "volumes[0]", "has to be a map of: name, at, mode"},
		{"policy: {timeout: 2}", "policy.timeout", "90s"},
		{"policy: {timeout: 400d}", "policy.timeout", "365d"},
		{"policy: {retries: -1}", "policy.retries", "0 to 100"},
		{"policy: {redundancy: 0}", "policy.redundancy", "1 to 9"},
		{"policy: {retries: 0, redundancy: 2}", "policy.redundancy", "at most once"},
		{"policy: {spot_check: 5%}", "policy.spot_check", "0 to 1"},
		{"policy: {compare: same}", "policy.compare", "exact, tolerance"},
		{"policy: {allow_unvetted: yes}", "policy.allow_unvetted", "replicated, single, never"},
		{"policy: {deadline: tomorrow}", "policy.deadline", "no duration"},
		{"policy: {max_spend: a lot}", "policy.max_spend", `"5.00"`},
		{"policy: {max_spend: -5}", "policy.max_spend", `"5.00"`},
		{"policy: {max_spend: 0}", "policy.max_spend", "leave it out"},
		{"policy: {prefer: best}", "policy.prefer", "fast, balanced, cheap"},
		{"policy: {priority: urgent}", "policy.priority", "low, normal, high"},
		{"policy: {keep_outputs: never}", "policy.keep_outputs", "success, always"},
		{"policy: {min_isolation: weak}", "policy.min_isolation", "dev, shared, strong"},
		{"policy: {timeout: 2m, timeout: 3m}", "", "already defined"},
		{"inputs: {list: [" + deep + "]}", "", "nested more than 64 deep"},
		{"name: &a n", "", "anchors"},
		{"name: !!str n", "", "tags"},
		{"run: [", "", "no valid YAML"},
	} {
		_, err := ParseJob([]byte(smallJob(c.edit)), "job.yaml")
		var errs JobErrors
		if !errors.As(err, &errs) || !errors.Is(err, ErrBadJob) {
			t.Errorf("%.80s: %v is no list of job errors", c.edit, err)
			continue
		}
		if len(errs) != 1 {
			t.Errorf("%.80s: %d errors, want one:\n%v", c.edit, len(errs), err)
		}
		if errs[0].Field != c.field || !strings.Contains(errs[0].Problem, c.says) {
			t.Errorf("%.80s: says %q of %q, want %q of %q", c.edit, errs[0].Problem, errs[0].Field, c.says, c.field)
		}
		if errs[0].Line == 0 || errs[0].Column == 0 || errs[0].File != "job.yaml" {
			t.Errorf("%.80s: at %s:%d:%d", c.edit, errs[0].File, errs[0].Line, errs[0].Column)
		}
		if line := errs[0].Error(); !strings.HasPrefix(line, "job.yaml:") || strings.ContainsRune(line, '\n') {
			t.Errorf("%.80s: %q is no one line with its place", c.edit, line)
		}
	}
}

func TestMissingFieldsAreNamed(t *testing.T) {
	_, err := ParseJob([]byte("policy: {}\n"), "job.yaml")
	for _, field := range []string{"name: is missing", "kind: is missing", "run: does not say", "run.command: is missing"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not say %q", err, field)
		}
	}
}

func TestEverythingWrongIsSaidAtOnceInTheOrderOfTheFile(t *testing.T) {
	_, err := ParseJob([]byte(`name: n
kindd: map
run: {wasm: p.wasm, command: [p]}
inputs: {range: 0..9, range2: 1}
resources:
  memory: lots
  cpu: none
policy:
  prefer: best
`), "job.yaml")
	var got []string
	var errs JobErrors
	errors.As(err, &errs)
	for _, e := range errs {
		got = append(got, fmt.Sprintf("%d:%d %s", e.Line, e.Column, e.Field))
	}
	want := []string{"2:1 kindd", "4:23 inputs.range2", "6:11 resources.memory", "7:8 resources.cpu", "9:3 policy.prefer"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%v\nwant\n%v\n%v", strings.Join(got, "\n"), strings.Join(want, "\n"), err)
	}
}

func TestPositionsInJSONAreThoseOfTheText(t *testing.T) {
	_, err := ParseJob([]byte("{\"name\": \"n\",\n \"kind\": \"map\", \"ä\": [1,\n  {\"b\": 2}]}"), "job.json")
	if err == nil || !strings.Contains(err.Error(), `job.json:2:17: ä: unknown field`) {
		t.Errorf("%v", err)
	}
	for text, says := range map[string]string{
		`{"name": "n"`:            "job.json:1:13: no valid JSON: the file ends too early",
		`{"name": "n"} {}`:        "job.json:1:15: no valid JSON: something follows",
		`{"name": "n", name: 1}`:  "no valid JSON",
		`{"name":"n","name":"m"}`: `job.json:1:13: "name" is there twice; the first is in line 1`,
		`[]`:                      "not a list",
		``:                        "job.json: the file is empty",
		strings.Repeat("[", 100):  "nested more than 64 deep",
		`{"policy": null, "kind": "task", "name": "n", "run": {"host": "python3", "command": ["a"]}}`: "",
	} {
		_, err := ParseJob([]byte(text), "job.json")
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}

func TestHostileTextIsRefusedNotParsed(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("[", 1<<20), strings.Repeat("{a: ", 1<<17), strings.Repeat("- ", 1<<19), strings.Repeat("? ", 1<<19),
		"a: " + strings.Repeat("x", 1<<20), "\xff\xfe", "a: 1\n---\nb: 2\n", "", "# nothing\n", "- a\n", "just words", "%YAML 9.9\n---\n",
	} {
		start := time.Now()
		if _, err := ParseJob([]byte(text), "job.yaml"); !errors.Is(err, ErrBadJob) {
			t.Errorf("%.20q: %v", text, err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%.20q took %s", text, d)
		}
	}
}

// TestScalarsStayAsTheyAreWritten guards against YAML's guesses: no is no boolean, 1e-3 is a number, 010 is not 8.
func TestScalarsStayAsTheyAreWritten(t *testing.T) {
	j, err := ParseJob([]byte(smallJob(`inputs: {list: [no, 010, 0x1F, 1.10, 1e-3, true, "a b", {b: 1, a: [1e-3, "<&>"]}, [x], 2024-01-01, ""]}`)), "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"no", "010", "0x1F", "1.10", "1e-3", "true", "a b", `{"a":[1e-3,"<&>"],"b":1}`, `["x"]`, "2024-01-01", ""}
	if !reflect.DeepEqual(j.Inputs.List, want) {
		t.Errorf("got %q\nwant %q", j.Inputs.List, want)
	}
	j, err = ParseJob([]byte(smallJob(`inputs: {grid: {lr: [1e-3, 0.10, 2], on: [no, "1e-3", true, ~]}}`)), "")
	if err != nil {
		t.Fatal(err)
	}
	want2 := `{"lr":[1e-3,0.10,2],"on":["no","1e-3",true,null]}`
	if got, _ := json.Marshal(j.Inputs.Grid); string(got) != want2 {
		t.Errorf("got %s, want %s", got, want2)
	}
}

func TestValuesReadAndWriteTheirText(t *testing.T) {
	check := func(in, want string, v fmt.Stringer, err error) {
		t.Helper()
		if err != nil || v.String() != want {
			t.Errorf("%q became %v (%v), want %s", in, v, err, want)
		}
	}
	for in, want := range map[string]string{"4GiB": "4GiB", "40GB": "40GB", "1.5 GB": "1500MB", "512m": "512MiB", "4096": "4KiB", "1000": "1KB", "7": "7B", "0": "0B", "1.5KiB": "1536B"} {
		v, err := ParseByteSize(in)
		check(in, want, v, err)
	}
	for in, want := range map[string]string{"2m": "2m", "40ms": "40ms", "1h30m": "1h30m", "90s": "1m30s", "7d": "168h", "1d12h": "36h", "1h0m5s": "1h0m5s", "0s": "0s"} {
		v, err := ParseDuration(in)
		check(in, want, v, err)
	}
	for in, want := range map[string]string{"5": "5.00", "5.00": "5.00", "$0.5": "0.50", "0.000125": "0.000125", "12.340": "12.34", "0": "0.00", "3 USD": "3.00"} {
		v, err := ParseMoney(in)
		check(in, want, v, err)
	}
	for in, want := range map[string]string{"40GB": "40GB", "80 GiB": "80GB", "24g": "24GB"} {
		v, err := ParseVRAM(in)
		check(in, want, v, err)
	}
	for in, want := range map[string]string{"2": "2", "0.5": "0.5", "1.125": "1.125"} {
		v, err := ParseCores(in)
		check(in, want, v, err)
	}
	for in, want := range map[string]string{"4": "4", "4..16": "4..16", " 4 .. 4 ": "4"} {
		v, err := ParseNodeRange(in)
		check(in, want, v, err)
	}
	for _, bad := range []string{"", " ", ".", "1.", ".5GB", "1e3", "-1GB", "+1", "1GBit", "1..2", "99999999999999999999999999", "0x10"} {
		_, e1 := ParseByteSize(bad)
		_, e2 := ParseMoney(bad)
		if e1 == nil || e2 == nil {
			t.Errorf("%q is taken: %v %v", bad, e1, e2)
		}
	}
	for _, bad := range []string{"", "d", "1", "-1s", "+1s", "99999d9999999h", "1d-1h", "5dd"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%q is the duration %s", bad, d)
		}
	}
	if s := Money(-1_500_000).String(); s != "-1.50" {
		t.Errorf("minus one and a half dollars is %s", s)
	}
}

func TestRangeHoldsBothItsEnds(t *testing.T) {
	r, err := ParseIntRange("0..63")
	if err != nil || r.Len() != 64 {
		t.Errorf("0..63 has %d integers (%v), want 64", r.Len(), err)
	}
	if r, err = ParseIntRange("-5..-5"); err != nil || r.Len() != 1 {
		t.Errorf("-5..-5 has %d integers (%v), want 1", r.Len(), err)
	}
}

func TestDefaultsFillWhatWasLeftOutAndNothingElse(t *testing.T) {
	j, err := ParseJob([]byte(smallJob("volumes: [{name: d, at: /d}]")), "")
	if err != nil {
		t.Fatal(err)
	}
	d := j.WithDefaults()
	if *d.Policy.Retries != 2 || *d.Policy.SpotCheck != 0.05 || d.Policy.Redundancy != 1 || d.Policy.Compare != "exact" || d.Volumes[0].Mode != "ro" || d.Resources.CPU != 1000 || d.Resources.GPUCount != 0 {
		t.Errorf("defaults are %+v", d)
	}
	if j.Volumes[0].Mode != "" || j.Policy.Retries != nil {
		t.Error("the job itself was changed")
	}
	if w := wholeJobValue(); !reflect.DeepEqual(w.WithDefaults(), w) {
		t.Error("a job that says everything was changed")
	}
	if d := (Job{Run: JobRun{Host: "python3"}, Resources: JobResources{MinVRAM: 8}, Policy: JobPolicy{Retries: ptr[uint32](0)}}).WithDefaults(); d.Resources.GPUCount != 1 || *d.Policy.Retries != 0 || d.Policy.Compare != "none" {
		t.Errorf("defaults are %+v", d)
	}
}

func TestUnknownFieldsOfJSONAreRefused(t *testing.T) {
	var r SubmitRequest
	err := json.Unmarshal([]byte(`{"job": {"name": "n", "polcy": {}}}`), &r)
	if !errors.Is(err, ErrBadJob) || !strings.Contains(err.Error(), "polcy: unknown field; nearest: policy") {
		t.Errorf("%v", err)
	}
	// A stored job of other rules stays readable.
	if err := json.Unmarshal([]byte(`{"job": {"name": "", "kind": "swarm"}}`), &r); err != nil || r.Job.Kind != "swarm" {
		t.Errorf("%v, kind %q", err, r.Job.Kind)
	}
}

// randomJob makes a valid job.
func randomJob(r *rand.Rand) Job {
	pick := func(words []string) string { return append(words, "")[r.IntN(len(words)+1)] }
	some := func(words []string) (out []string) {
		for _, w := range words {
			if r.IntN(3) == 0 {
				out = append(out, w)
			}
		}
		return out
	}
	alphabet := []rune("ab0 .:\"'\\{}[]#&*!|>%@`,\t\n<ü\u2028😀-~?")
	text := func(n int) string {
		b := make([]rune, 1+r.IntN(n))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(b)
	}
	j := Job{Name: strings.Map(func(c rune) rune { return max(c, ' ') }, text(20)), Kind: JobKind(jobKinds[r.IntN(4)])}
	j.Run = JobRun{Command: []string{text(5), text(9), "{input}"}}
	switch r.IntN(3) {
	case 0:
		j.Run.Wasm = text(12)
	case 1:
		j.Run.Image = text(12)
	case 2:
		j.Run.Host = text(12)
	}
	if r.IntN(2) == 0 {
		j.Run.Env = map[string]string{"A_1": text(9), "B": ""}
	}
	if j.Kind == JobMap {
		j.Chunk = uint64(r.IntN(MaxChunkInputs))
		switch r.IntN(7) {
		case 0:
			a := r.Int64() / 2
			j.Inputs.Range = &IntRange{-a, a}
		case 1:
			j.Inputs.List = []string{text(9), "", "1", "null", "true", "0.10"}
		case 2:
			j.Inputs.Lines = text(9)
		case 3:
			j.Inputs.Files = "vol://" + text(9)
		case 4:
			j.Inputs.Records = &RecordInputs{text(9), 1 + uint64(r.IntN(99))}
		case 5:
			quoted, _ := plainJSON(text(5))
			j.Inputs.Grid = Grid{{"a" + text(3), []json.RawMessage{[]byte("0.10"), []byte("1e-3"), quoted}}, {"b", []json.RawMessage{[]byte("true"), []byte("null")}}}
		case 6:
			j.Inputs.Open = true
		}
	}
	j.Resources = JobResources{
		GPU: some([]string{"H100", "A100-80", "any"}), GPUCount: uint32(r.IntN(3)), MinVRAM: VRAM(r.IntN(3)), CPU: Cores(r.IntN(5000)), Memory: ByteSize(r.Int64N(1<<40) + 1<<20),
		Disk: ByteSize(1+r.IntN(99)) * 1e9, Network: pick(jobNetworks),
	}
	p := &j.Placement
	if r.IntN(2) == 0 {
		p.Nodes = NodeRange{1 + uint32(r.IntN(3)), 3 + uint32(r.IntN(3))}
	}
	p.MinReputation, p.MaxRTT, p.Bandwidth = float64(r.IntN(2))*r.Float64(), Duration(r.Int64N(1e12)), pick(jobBandwidths)
	p.HostType, p.Compliance, p.Where = some(jobHostTypes), some(jobCompliance), pick([]string{"cpu.cores >= 1", `node.region == "eu"`})
	for _, place := range some([]string{"DE", "US-CA", "eu", "us"}) {
		p.Regions = append(p.Regions, RegionShare{Place: place})
	}
	if r.IntN(2) == 0 {
		for i := range p.Regions {
			p.Regions[i].Share = float64(1+r.IntN(1000)) / 8
		}
	}
	for i := range r.IntN(4) {
		j.Volumes = append(j.Volumes, JobVolume{Name: fmt.Sprintf("v.%d@tag:x", i), At: fmt.Sprintf("/d%d", i), Mode: pick(jobModes)})
	}
	q := &j.Policy
	q.Timeout, q.Deadline, q.Compare, q.AllowUnvetted, q.Prefer = Duration(r.Int64N(1e15)), Duration(r.IntN(3)), pick(jobCompares), pick(jobUnvetted), pick(jobPrefers)
	q.Priority, q.KeepOutputs, q.MinIsolation = pick(jobPriorities), pick(jobKeeps), pick(jobIsolations)
	if r.IntN(2) == 0 {
		q.Retries, q.SpotCheck, q.MaxSpend = ptr(uint32(1+r.IntN(maxRetries))), ptr(r.Float64()), ptr(Money(r.Int64N(maxMoney)))
		q.Redundancy = uint32(r.IntN(maxRedundancy + 1))
	}
	return j
}

// TestJobsReadBackFromTheirJSON is the property that the client relies on: what it sends is what it read. As
// YAML holds JSON, both readers have to agree.
func TestJobsReadBackFromTheirJSON(t *testing.T) {
	for seed := range uint64(500) {
		j := randomJob(rand.New(rand.NewPCG(seed, 1)))
		if err := j.Validate(); err != nil {
			t.Fatalf("seed %d: made a bad job: %v\n%+v", seed, err, j)
		}
		text, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseJob(text, "job.json")
		if err != nil || !reflect.DeepEqual(back, j) {
			t.Fatalf("seed %d: %v\n%s\n%+v\n%+v", seed, err, text, j, back)
		}
		var again Job
		if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, j) {
			t.Fatalf("seed %d: %v\n%+v\n%+v", seed, err, j, again)
		}
	}
}

func FuzzParseJob(f *testing.F) {
	f.Add([]byte(wholeJob), false)
	f.Add([]byte(smallJob("inputs: {grid: {lr: [1e-3], s: [a]}}")), false)
	whole, err := json.Marshal(wholeJobValue())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, true)
	f.Add([]byte("{\"name\":\"n\",\"kind\":[[{}]]}"), true)
	f.Add([]byte("a: &a [*a, *a]\n<<: {}"), false)
	f.Fuzz(func(t *testing.T, text []byte, isJSON bool) {
		name := "job.yaml"
		if isJSON {
			name = "job.json"
		}
		j, err := ParseJob(text, name)
		if err != nil {
			if !errors.Is(err, ErrBadJob) || err.Error() == "" {
				t.Fatalf("%v is no job error", err)
			}
			return
		}
		if err := j.Validate(); err != nil {
			t.Fatalf("read a job that is not valid: %v", err)
		}
		out, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseJob(out, "job.json")
		if err != nil || !reflect.DeepEqual(back, j) {
			t.Fatalf("%v\n%s\n%+v\n%+v", err, out, j, back)
		}
	})
}
