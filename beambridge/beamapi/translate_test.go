package beamapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

// asked is stubRequest with changes.
func asked(change func(*beamwire.GetOrCreateStubRequest)) *beamwire.GetOrCreateStubRequest {
	r := stubRequest()
	r.TaskPolicy = &beamwire.TaskPolicy{Timeout: 3600, MaxRetries: 3}
	r.BlockNetwork = true
	change(r)
	return r
}

func withEnv(env ...string) *beamwire.GetOrCreateStubRequest {
	return asked(func(r *beamwire.GetOrCreateStubRequest) { r.Env = env })
}

var testVolumes = map[string]string{"v-1": "weights", "v-2": "data"}

func TestRequestsThatAreNotServedSayWhy(t *testing.T) {
	type req = beamwire.GetOrCreateStubRequest
	for _, c := range []struct {
		change func(*req)
		want   string
	}{
		{func(r *req) { r.StubType = "schedule/deployment" }, "not offered yet"},
		{func(r *req) { r.StubType = "sandbox" }, "not offered yet"},
		{func(r *req) { r.StubType = "function/serve" }, "not offered yet"},
		{func(r *req) { r.StubType = "lambda" }, "none of Beam's"},
		{func(r *req) { r.StubType = "" }, "none of Beam's"},
		{func(r *req) { r.ObjectId = "" }, "upload the code"},
		{func(r *req) { r.ObjectId = strings.Repeat("A", 64) }, "upload the code"},
		{func(r *req) { r.Secrets = []*beamwire.SecretVar{{Name: "KEY"}} }, "secrets"},
		{func(r *req) { r.CallbackUrl = "http://127.0.0.1" }, "callback_url"},
		{func(r *req) { r.AllowList = []string{"10.0.0.0/8"} }, "allow_list"},
		{func(r *req) { r.Tcp = true }, "tcp"},
		{func(r *req) { r.Ports = []uint32{80} }, "ports"},
		{func(r *req) { r.Disks = []*beamwire.DurableDisk{{}} }, "disks"},
		{func(r *req) { r.DockerEnabled = true }, "docker_enabled"},
		{func(r *req) { r.Autoscaler = &beamwire.Autoscaler{MinContainers: 3, MaxContainers: 2} }, "min_containers 3"},
		{func(r *req) { r.ImageId = "0123456789abcdef" }, "without packages"},
		{func(r *req) { r.ImageId, r.PythonVersion = plainImage("python3.11"), "python3.12" }, "python3.11"},
		{func(r *req) { r.ImageId, r.PythonVersion = "", "micromamba3.11" }, "python_version"},
		{func(r *req) { r.ImageId, r.PythonVersion = "", "python3.011" }, "python_version"},
		{func(r *req) { r.Handler = "" }, "handler"},
		{func(r *req) { r.Handler = "app.py" }, "run.handler"},
		{func(r *req) { r.OnStart = "nothing" }, "run.on_start"},
		{func(r *req) { r.Cpu = -1 }, "cpu"},
		{func(r *req) { r.Memory = 1 << 50 }, "memory"},
		{func(r *req) { r.Gpu = "A100,Voodoo2" }, "nearest"},
		{func(r *req) { r.GpuCount = 65 }, "gpu_count"},
		{func(r *req) { r.Workers = 1 << 30 }, "workers"},
		{func(r *req) { r.TaskPolicy.Ttl = 86401 }, "ttl"},
		{func(r *req) { r.TaskPolicy.Timeout = 1 << 40 }, "timeout"},
		{func(r *req) { r.KeepWarmSeconds = 1e30 }, "keep_warm_seconds"},
		{func(r *req) { r.Volumes = []*beamwire.Volume{{Id: "v-9", MountPath: "x"}} }, "v-9"},
		{func(r *req) { r.Volumes = []*beamwire.Volume{{Id: "v-1", MountPath: "../x"}} }, "mount_path"},
		{func(r *req) {
			r.Volumes = []*beamwire.Volume{{Id: "v-1", MountPath: "x", Config: &beamwire.MountPointConfig{BucketName: "b"}}}
		}, "buckets"},
		{func(r *req) {
			r.Volumes = []*beamwire.Volume{{Id: "v-1", MountPath: "x"}, {Id: "v-2", MountPath: "./x/y"}}
		}, "lie in one another"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{Nodes: 4, Ttl: "soon", MaxSpend: 1} }, "pool.ttl"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{MaxSpend: -1} }, "pool.max_spend"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{MaxSpend: 1e-9} }, "pool.max_spend"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{MinReliability: 95} }, "pool.min_reliability"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{Regions: []string{"us-east-1b"}} }, "pool.regions"},
		{func(r *req) { r.Pool = &beamwire.PoolConfig{Providers: []string{"acme"}} }, "host_type"},
		{func(r *req) { r.Gpu, r.Pool = "T4", &beamwire.PoolConfig{Gpu: []string{"H100"}} }, "no GPU in common"},
		{func(r *req) {
			r.Pool, r.Env = &beamwire.PoolConfig{Regions: []string{"eu"}}, []string{"GRIDBEAM_REGIONS=US"}
		}, "no place in common"},
		{func(r *req) { r.Pool, r.Env = &beamwire.PoolConfig{Nodes: 2}, []string{"GRIDBEAM_NODES=3..9"} }, "no size in common"},
		{func(r *req) {
			r.Pool, r.Env = &beamwire.PoolConfig{Name: "a", Selector: "a"}, []string{"GRIDBEAM_POOL=b"}
		}, "two policies"},
		{func(r *req) { r.Env = []string{"NOVALUE"} }, "NAME=VALUE"},
		{func(r *req) { r.Env = []string{"1X=2"} }, "run.env"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_GPUS=T4"} }, "GRIDBEAM_GPUS is not known"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_GPU="} }, "is empty"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_MIN_REPUTATION=2"} }, "GRIDBEAM_MIN_REPUTATION"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_MIN_REPUTATION=NaN"} }, "GRIDBEAM_MIN_REPUTATION"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_MIN_VRAM=lots"} }, "GRIDBEAM_MIN_VRAM"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_WHERE=cpu.coers > 2"} }, "GRIDBEAM_WHERE"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_REDUNDANCY=0"} }, "GRIDBEAM_REDUNDANCY"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_PREFER=best"} }, "GRIDBEAM_PREFER"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_MAX_SPEND=0"} }, "GRIDBEAM_MAX_SPEND"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_DEADLINE=0s"} }, "GRIDBEAM_DEADLINE"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_MAX_RTT=-1ms"} }, "GRIDBEAM_MAX_RTT"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_RESULT_PICKLE=yes"} }, "GRIDBEAM_RESULT_PICKLE"},
		{func(r *req) { r.Env = []string{"GRIDBEAM_RESULT_ALLOW=os.*"} }, "GRIDBEAM_RESULT_ALLOW"},
		{func(r *req) { r.TaskPolicy.MaxRetries, r.Env = 0, []string{"GRIDBEAM_REDUNDANCY=3"} }, "at most once"},
	} {
		r := asked(c.change)
		_, err := translate(r, testVolumes)
		var refusal *Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Text, c.want) {
			t.Errorf("%v\n\tgives %v, want it to say %q", r, err, c.want)
		}
	}
}

// view is what of a stub a test names: everything that is set, as JSON.
func viewOf(t *testing.T, s Stub) map[string]any {
	t.Helper()
	raw, err := json.Marshal(s.Job)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// at follows a path such as policy.timeout.
func at(m map[string]any, where string) any {
	var v any = m
	for part := range strings.SplitSeq(where, ".") {
		inner, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = inner[part]
	}
	return v
}

func TestRequestsBecomeJobs(t *testing.T) {
	type req = beamwire.GetOrCreateStubRequest
	type want = map[string]string // the JSON at a path; "null" is absent
	for name, c := range map[string]struct {
		change func(*req)
		want   want
	}{
		"a plain function": {func(*req) {}, want{
			"name": `"f"`, "kind": `"map"`, "inputs.open": `true`, "run.host": `"python3"`, "run.handler": `"app:f"`, "run.code": `null`, "run.env": `null`, "run.workers": `1`,
			"run.keep_warm": `null`, "resources.cpu": `1`, "resources.memory": `"256MiB"`, "resources.gpu": `null`, "resources.gpu_count": `null`, "policy.timeout": `"1h"`,
			"policy.retries": `3`, "policy.start": `"12h"`, "policy.deadline": `null`, "placement": `null`, "volumes": `null`,
		}},
		"no name":             {func(r *req) { r.Name = "\n" }, want{"name": `"app:f"`}},
		"a Python":            {func(r *req) { r.ImageId, r.PythonVersion = plainImage("python3.11"), "python3.11" }, want{"run.host": `"python3.11"`}},
		"the image's Python":  {func(r *req) { r.ImageId, r.PythonVersion = plainImage("python3.11"), "" }, want{"run.host": `"python3.11"`}},
		"any image":           {func(r *req) { r.PythonVersion = "python3.12" }, want{"run.host": `"python3.12"`}},
		"a notebook":          {func(r *req) { r.Handler, r.OnStart = "tmp.pkl:f", "app:load" }, want{"run.handler": `"tmp.pkl:f"`, "run.on_start": `"app:load"`}},
		"little memory":       {func(r *req) { r.Memory, r.Cpu = 128, 125 }, want{"resources.memory": `"256MiB"`, "resources.cpu": `0.125`}},
		"no sizes":            {func(r *req) { r.Memory, r.Cpu = 0, 0 }, want{"resources.memory": `null`, "resources.cpu": `null`}},
		"GPUs in order":       {func(r *req) { r.Gpu = "RTX 4090, A100-80 ,T4,T4" }, want{"resources.gpu": `["RTX4090","A100-80","T4"]`, "resources.gpu_count": `1`}},
		"a count is any":      {func(r *req) { r.GpuCount = 2 }, want{"resources.gpu": `null`, "resources.gpu_count": `2`}},
		"no timeout":          {func(r *req) { r.TaskPolicy.Timeout = -1 }, want{"policy.timeout": `null`}},
		"many retries":        {func(r *req) { r.TaskPolicy.MaxRetries = 50 }, want{"policy.retries": `5`}},
		"no retries":          {func(r *req) { r.TaskPolicy.MaxRetries = 0 }, want{"policy.retries": `0`}},
		"older fields":        {func(r *req) { r.TaskPolicy, r.Retries, r.Timeout = nil, 2, 60 }, want{"policy.retries": `2`, "policy.timeout": `"1m"`}},
		"older fields idle":   {func(r *req) { r.Retries, r.Timeout = 2, 60 }, want{"policy.retries": `3`, "policy.timeout": `"1h"`}},
		"a ttl":               {func(r *req) { r.TaskPolicy.Ttl = 90 }, want{"policy.start": `"1m30s"`}},
		"short warmth":        {func(r *req) { r.KeepWarmSeconds = 0.5 }, want{"run.keep_warm": `"10s"`}},
		"warmth":              {func(r *req) { r.KeepWarmSeconds = 90 }, want{"run.keep_warm": `"1m30s"`}},
		"warm for ever":       {func(r *req) { r.KeepWarmSeconds = -1 }, want{"run.keep_warm": `null`}},
		"workers":             {func(r *req) { r.Workers = 4 }, want{"run.workers": `4`}},
		"a variable":          {func(r *req) { r.Env = []string{"A=1", "A=b=c"} }, want{"run.env": `{"A":"b=c"}`}},
		"pending and scaling": {func(r *req) { r.MaxPendingTasks, r.Autoscaler = 1, &beamwire.Autoscaler{MaxContainers: 1} }, want{"chunk": `null`, "placement": `null`}},
		"volumes": {func(r *req) {
			r.Volumes = []*beamwire.Volume{{Id: "v-1", MountPath: "./weights"}, {Id: "v-2", MountPath: "/data/in"}}
		}, want{"volumes": `[{"name":"weights","at":"/volumes/weights","mode":"rw-shared","links":["weights"]},{"name":"data","at":"/volumes/data/in","mode":"rw-shared","links":["data/in","/data/in"]}]`}},
		"a reserved pool": {func(r *req) {
			r.Pool = &beamwire.PoolConfig{
				Name: "mine", Selector: "mine", Gpu: []string{"H100"}, Nodes: 8, Ttl: "2h", MaxSpend: 12.5, Providers: []string{"datacenter"}, Regions: []string{"us", "DE", "de"}, MinReliability: 0.8,
			}
		}, want{
			"resources.gpu": `["H100"]`, "placement.nodes": `"1..8"`, "policy.deadline": `"2h"`, "policy.max_spend": `"12.50"`, "placement.host_type": `["datacenter"]`,
			"placement.regions": `["DE","US"]`, "placement.min_reputation": `0.8`,
		}},
		"pool and environment": {func(r *req) {
			r.Gpu = "H100,A100"
			r.Pool = &beamwire.PoolConfig{Gpu: []string{"A100", "H100"}, Nodes: 8, Ttl: "2h", MaxSpend: 12.5, Regions: []string{"eu"}, MinReliability: 0.8}
			r.Env = []string{"GRIDBEAM_GPU=A100-80,H100", "GRIDBEAM_NODES=4..20", "GRIDBEAM_DEADLINE=3h", "GRIDBEAM_MAX_SPEND=2", "GRIDBEAM_REGIONS=FR,noram", "GRIDBEAM_MIN_REPUTATION=0.5", "X=1"}
		}, want{
			"resources.gpu": `["A100-80","H100"]`, "placement.nodes": `"4..8"`, "policy.deadline": `"2h"`, "policy.max_spend": `"2.00"`, "placement.regions": `["FR"]`,
			"placement.min_reputation": `0.8`, "run.env": `{"X":"1"}`,
		}},
		"all of the environment": {func(r *req) {
			r.Env = []string{
				"GRIDBEAM_MIN_VRAM=40GB", "GRIDBEAM_MAX_RTT=80ms", "GRIDBEAM_WHERE=cpu.cores >= 8", "GRIDBEAM_REDUNDANCY=3", "GRIDBEAM_PREFER=cheap", "GRIDBEAM_POOL=lab",
				"GRIDBEAM_RESULT_PICKLE=any", "GRIDBEAM_RESULT_ALLOW=main.Point, main.Line",
			}
		}, want{
			"resources.min_vram": `"40GB"`, "resources.gpu_count": `1`, "placement.max_rtt": `"80ms"`, "placement.where": `"cpu.cores \u003e= 8"`, "policy.redundancy": `3`, "policy.prefer": `"cheap"`, "run.env": `null`,
		}},
	} {
		s, err := translate(asked(c.change), testVolumes)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := viewOf(t, s)
		for where, want := range c.want {
			if where == "volumes" {
				raw, _ := json.Marshal(s.Job.Volumes)
				if string(raw) != want {
					t.Errorf("%s: volumes are %s, want %s", name, raw, want)
				}
				continue
			}
			raw, _ := json.Marshal(at(got, where))
			if string(raw) != want {
				t.Errorf("%s: %s is %s, want %s", name, where, raw, want)
			}
		}
	}
}

func TestStubKnowsPoolLifeAndResults(t *testing.T) {
	s, err := translate(asked(func(r *beamwire.GetOrCreateStubRequest) {
		r.Pool = &beamwire.PoolConfig{Name: "lab", Selector: "lab"}
		r.Env = []string{"GRIDBEAM_RESULT_PICKLE=any", "GRIDBEAM_RESULT_ALLOW=main.Point, main.Line", "GRIDBEAM_DEADLINE=1h", "GRIDBEAM_POOL=lab"}
		r.BlockNetwork, r.CheckpointEnabled, r.TaskPolicy.MaxRetries = false, true, 9
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Pool != "lab" || s.Life != time.Hour || !s.ResultAny || !slices.Equal(s.ResultAllow, []string{"main.Point", "main.Line"}) {
		t.Errorf("%+v", s)
	}
	text := strings.Join(s.Warnings, "\n")
	for _, want := range []string{"at most 5", "no network", "checkpoint"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not warn of %q", text, want)
		}
	}
	// The options of a Pool are no operator's policy, although the client gives them a name.
	s, err = translate(asked(func(r *beamwire.GetOrCreateStubRequest) {
		r.Pool = &beamwire.PoolConfig{Name: "mine", Selector: "mine", Nodes: 2, Ttl: "1h", MaxSpend: 1}
	}), nil)
	if err != nil || s.Pool != "" || len(s.Warnings) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestEqualRequestsAreOneStub(t *testing.T) {
	digestOf := func(change func(*beamwire.GetOrCreateStubRequest)) [32]byte {
		s, err := translate(asked(change), testVolumes)
		if err != nil {
			t.Fatal(err)
		}
		return s.Digest
	}
	same := digestOf(func(*beamwire.GetOrCreateStubRequest) {})
	if digestOf(func(r *beamwire.GetOrCreateStubRequest) { r.ForceCreate = true }) != same {
		t.Error("to force a new stub is no other request")
	}
	for i, change := range []func(*beamwire.GetOrCreateStubRequest){
		func(r *beamwire.GetOrCreateStubRequest) { r.Handler = "app:g" },
		func(r *beamwire.GetOrCreateStubRequest) { r.Env = []string{"A=1"} },
		func(r *beamwire.GetOrCreateStubRequest) { r.Extra = "{}" },
		func(r *beamwire.GetOrCreateStubRequest) { r.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) },
	} {
		if digestOf(change) == same {
			t.Errorf("change %d is not seen", i)
		}
	}
}

func TestImagesArePlainOrNamedWhy(t *testing.T) {
	seen := map[string]string{}
	for _, c := range []struct {
		req  *beamwire.VerifyImageBuildRequest
		want string
	}{
		{&beamwire.VerifyImageBuildRequest{}, ""},
		{&beamwire.VerifyImageBuildRequest{PythonVersion: "python3.10"}, ""},
		{&beamwire.VerifyImageBuildRequest{PythonVersion: "python3.12", ForceRebuild: true, Gpu: "T4", IgnorePython: true}, ""},
		{&beamwire.VerifyImageBuildRequest{PythonVersion: "micromamba3.12"}, "python_version"},
		{&beamwire.VerifyImageBuildRequest{PythonPackages: []string{"numpy", "scipy"}}, "python_packages"},
		{&beamwire.VerifyImageBuildRequest{PythonPackages: []string{"numpyscipy"}}, "python_packages"},
		{&beamwire.VerifyImageBuildRequest{Commands: []string{"numpy", "scipy"}}, "commands"},
		{&beamwire.VerifyImageBuildRequest{BuildSteps: []*beamwire.BuildStep{{Type: "shell", Command: "true"}}}, "commands"},
		{&beamwire.VerifyImageBuildRequest{ExistingImageUri: "docker://x"}, "base_image"},
		{&beamwire.VerifyImageBuildRequest{Dockerfile: "FROM x"}, "dockerfile"},
		{&beamwire.VerifyImageBuildRequest{EnvVars: []string{"A=1"}}, "env_vars"},
		{&beamwire.VerifyImageBuildRequest{Secrets: []string{"A"}}, "secrets"},
	} {
		id, why := identify(c.req), strings.Join(extras(c.req), ", ")
		if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%v has %q beyond a Python, want %q", c.req, why, c.want)
		}
		if _, plain := plainImages[id]; plain != (c.want == "") {
			t.Errorf("%v: its id is plain: %v", c.req, plain)
		}
		if other := seen[id]; other != "" {
			t.Errorf("%v and %s have one id", c.req, other)
		}
		seen[id] = c.req.String()
	}
}

// weaker says what a job asks less than a source wished; the GPU of the source and of the job are compared by model.
func weaker(j *protocol.Job, w *wishes) (what []string) {
	complain := func(bad bool, name string) {
		if bad {
			what = append(what, name)
		}
	}
	r, p, pol := &j.Resources, &j.Placement, &j.Policy
	if len(w.gpu) > 0 {
		complain(len(r.GPU) == 0 || r.GPUCount == 0, "gpu")
		for _, name := range r.GPU {
			got, _ := protocol.ResolveGPU(name)
			in := slices.ContainsFunc(w.gpu, func(want string) bool {
				set, _ := protocol.ResolveGPU(want)
				return set.Any || !got.Any && within(got, set)
			})
			complain(!in, "gpu "+name)
		}
	}
	complain(r.MinVRAM < w.minVRAM, "min_vram")
	complain(p.MinReputation < w.minReputation, "min_reputation")
	if len(w.regions) > 0 {
		complain(len(p.Regions) == 0, "regions")
		for _, x := range p.Regions {
			place, _ := protocol.ParsePlace(x.Place)
			in := slices.ContainsFunc(w.regions, func(want string) bool {
				of, _ := protocol.ParsePlace(want)
				return lies(place, of)
			})
			complain(!in, "region "+x.Place)
		}
	}
	complain(w.nodes != (protocol.NodeRange{}) && (p.Nodes.Min < w.nodes.Min || p.Nodes.Max > w.nodes.Max || p.Nodes.Max == 0), "nodes")
	complain(w.maxRTT > 0 && (p.MaxRTT == 0 || p.MaxRTT > w.maxRTT), "max_rtt")
	complain(w.life > 0 && (pol.Deadline == 0 || pol.Deadline > w.life), "deadline")
	complain(w.maxSpend != nil && (pol.MaxSpend == nil || *pol.MaxSpend > *w.maxSpend), "max_spend")
	complain(pol.Redundancy < w.redundancy, "redundancy")
	complain(!strings.Contains(p.Where, w.where), "where")
	for _, h := range p.HostType {
		complain(len(w.hosts) > 0 && !slices.Contains(w.hosts, h), "host "+h)
	}
	complain(len(w.hosts) > 0 && len(p.HostType) == 0, "hosts")
	return what
}

// some takes a few of a list, often none.
func some(rng *rand.Rand, list ...string) (out []string) {
	for range rng.IntN(4) {
		out = append(out, list[rng.IntN(len(list))])
	}
	return out
}

func TestRequirementsAreNeverWeakerThanAsked(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	gpus := []string{"any", "T4", "A100", "A100-40", "A100-80", "H100", "V100", "V100-32", "RTX4090", "nvidia-a100-80gb-sxm", "NVIDIA H100 PCIe"}
	regions := []string{"eu", "noram", "DE", "FR", "US", "US-CA", "JP"}
	hosts := []string{"datacenter", "miner", "partner"}
	taken := 0
	for range 20_000 {
		r := asked(func(r *beamwire.GetOrCreateStubRequest) {
			r.Gpu, r.GpuCount, r.Cpu, r.Memory = strings.Join(some(rng, gpus...), ","), uint32(rng.IntN(3)), rng.Int64N(9000), rng.Int64N(1<<16)
			r.TaskPolicy = &beamwire.TaskPolicy{Timeout: rng.Int64N(1000) - 10, MaxRetries: uint32(rng.IntN(9)), Ttl: uint32(rng.IntN(90_000))}
			if rng.IntN(2) == 0 {
				r.Pool = &beamwire.PoolConfig{
					Gpu: some(rng, gpus...), Nodes: uint32(rng.IntN(6)), Ttl: []string{"", "1h", "30m"}[rng.IntN(3)], MaxSpend: float64(rng.IntN(3)) * 1.25, Regions: some(rng, regions...),
					Providers: some(rng, hosts...), MinReliability: float64(rng.IntN(3)) / 4,
				}
			}
			if rng.IntN(2) == 0 {
				for key, value := range map[string]string{
					"GPU": strings.Join(some(rng, gpus...), ","), "MIN_VRAM": fmt.Sprint(8*rng.IntN(8), "GB"), "MIN_REPUTATION": fmt.Sprint(float64(rng.IntN(4)) / 4),
					"REGIONS": strings.Join(some(rng, regions...), ","), "NODES": []string{"1", "2..9", "3"}[rng.IntN(3)], "MAX_RTT": "20ms", "MAX_SPEND": "1.5", "DEADLINE": "45m",
					"REDUNDANCY": fmt.Sprint(1 + rng.IntN(3)), "WHERE": "cpu.cores >= 4",
				} {
					if value != "" && rng.IntN(3) == 0 {
						r.Env = append(r.Env, ourPrefix+key+"="+value)
					}
				}
			}
		})
		s, err := translate(r, nil)
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Fatalf("%v: %v is no refusal", r, err)
			}
			continue
		}
		taken++
		plain, err := gpuNames("", strings.Split(r.GetGpu(), ","))
		if err != nil {
			t.Fatal(err)
		}
		pool, err := poolWishes(r.GetPool())
		if err != nil {
			t.Fatal(err)
		}
		env, own, err := environ(r.GetEnv())
		if err != nil || len(env) > 0 {
			t.Fatal(env, err)
		}
		for source, w := range map[string]wishes{"request": {gpu: plain}, "pool": pool, "environment": own} {
			if what := weaker(&s.Job, &w); what != nil {
				t.Fatalf("%v\n\tgives %+v, which is weaker than its %s in %v", r, s.Job, source, what)
			}
		}
		j, pol := &s.Job, &s.Job.Policy
		if int64(j.Resources.CPU) < r.GetCpu() || int64(j.Resources.Memory) < r.GetMemory()<<20 || j.Resources.GPUCount < r.GetGpuCount() {
			t.Fatalf("%v\n\tgives %+v", r, j.Resources)
		}
		if n := r.GetTaskPolicy().GetTimeout(); n > 0 && pol.Timeout.Std() > time.Duration(n)*time.Second || *pol.Retries > r.GetTaskPolicy().GetMaxRetries() || pol.Start.Std() > maxStart || pol.Start == 0 {
			t.Fatalf("%v\n\tgives %+v", r, pol)
		}
	}
	if taken < 2000 {
		t.Errorf("only %d of 20000 requests were taken: the test shows little", taken)
	}
}

func TestPlacesOfAVolumeStayWhereTheyBelong(t *testing.T) {
	for mount, want := range map[string]string{
		"./w": "/volumes/w w", "w/": "/volumes/w w", "a/b": "/volumes/a/b a/b", "/data": "/volumes/data data /data", "/volumes/x": "/volumes/x x", "a/../b": "/volumes/b b",
		"": "", ".": "", "/": "", "..": "", "../a": "", "a/../../b": "", "a\x00b": "", "/../data": "/volumes/data data /data", "/etc": "", "/../etc/x": "", "/usr/share": "", "/etcetera": "/volumes/etcetera etcetera /etcetera", "\xff": "",
	} {
		at, links, err := place(mount)
		got := strings.TrimSpace(at + " " + strings.Join(links, " "))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is at %q, %v; want %q", mount, got, err, want)
		}
	}
}

func TestPythonVersions(t *testing.T) {
	for name, want := range map[string]bool{
		"python3": true, "python3.9": true, "python3.12": true, "python3.": false, "python3.012": false, "python3.100": false, "python3.+9": false, "python2": false, "python3.9.1": false, "": false,
	} {
		if isPython(name) != want {
			t.Errorf("%q is a Python: %v", name, !want)
		}
	}
}

func TestStubsSurviveTheirStorage(t *testing.T) {
	s, err := translate(withEnv("GRIDBEAM_GPU=A100-80,T4", "GRIDBEAM_NODES=2..4", "GRIDBEAM_REGIONS=DE,eu", "GRIDBEAM_MAX_SPEND=0.000125", "GRIDBEAM_DEADLINE=90m", "GRIDBEAM_WHERE=cpu.cores >= 2", "A=1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Stub
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(s, back) {
		t.Errorf("%v\n%+v\n%+v", err, s, back)
	}
}

func FuzzEnviron(f *testing.F) {
	f.Add("A=1\nGRIDBEAM_GPU=T4,A100\nGRIDBEAM_REGIONS=eu,DE")
	f.Add("GRIDBEAM_WHERE=gpu.count > 1 && region in [\"eu\"]\nGRIDBEAM_NODES=2..4\nGRIDBEAM_MAX_SPEND=5")
	f.Add("GRIDBEAM_RESULT_ALLOW=a.b\nGRIDBEAM_MIN_REPUTATION=1e-300\n=\nX")
	f.Fuzz(func(t *testing.T, text string) {
		r := withEnv(strings.Split(text, "\n")...)
		s, err := translate(r, nil)
		if err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Errorf("%q: %v is no refusal", text, err)
			}
			return
		}
		for name := range s.Job.Run.Env {
			if strings.HasPrefix(name, ourPrefix) {
				t.Errorf("%q reaches the function", name)
			}
		}
	})
}

func FuzzPlace(f *testing.F) {
	for _, s := range []string{"./w", "/data", "a/../../b", "/volumes/x/..", "//x", "a//b/."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, mount string) {
		at, links, err := place(mount)
		if err != nil {
			return
		}
		if !strings.HasPrefix(at, "/volumes/") || path.Clean(at) != at || at == "/volumes/" {
			t.Errorf("%q is at %q", mount, at)
		}
		for _, l := range links {
			if path.Clean(l) != l || l == "/" || l == "." || l == ".." || strings.HasPrefix(l, "../") || l == "" {
				t.Errorf("%q has the link %q", mount, l)
			}
		}
	})
}

func FuzzTranslate(f *testing.F) {
	raw, err := proto.Marshal(stubRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(_ *testing.T, raw []byte) {
		req := &beamwire.GetOrCreateStubRequest{}
		if proto.Unmarshal(raw, req) == nil {
			_, _ = translate(req, testVolumes)
		}
	})
}
