package protocol

import (
	"encoding/json"
	"time"
)

// Job is what a user submits: a job file (scheduling.md 1). The JSON names of its fields are those of the file,
// which may be YAML or JSON. A zero field was not written; WithDefaults says what then holds. ParseJob reads
// one and Validate judges one; neither starts or reads anything.
type Job struct {
	// Name is its owner's word for it: 1 to 128 bytes.
	Name string `json:"name"`
	// Kind is how its chunks relate to one another.
	Kind JobKind `json:"kind"`
	// Run is what it executes.
	Run JobRun `json:"run"`
	// Inputs are what a map is spread over; other kinds have none.
	Inputs JobInputs `json:"inputs,omitzero"`
	// Chunk is the number of inputs in a chunk, 1..10,000; 0 lets the bridge choose.
	Chunk uint64 `json:"chunk,omitempty"`
	// Resources are what one chunk needs.
	Resources JobResources `json:"resources,omitzero"`
	// Placement says which nodes may run it.
	Placement JobPlacement `json:"placement,omitzero"`
	// Volumes are what it reads and writes, at most 16.
	Volumes []JobVolume `json:"volumes,omitempty"`
	// Policy says how it is run, checked and paid.
	Policy JobPolicy `json:"policy,omitzero"`
}

// JobKind is how the chunks of a job relate to one another.
type JobKind string

// The kinds of job; there are no others (scheduling.md 1).
const (
	JobMap     JobKind = "map"     // JobMap: many independent chunks.
	JobGang    JobKind = "gang"    // JobGang: ranks that start together and see one another.
	JobService JobKind = "service" // JobService: replicas that answer requests or drain a queue.
	JobTask    JobKind = "task"    // JobTask: one chunk.
)

// JobRun is what a job executes: exactly one of Wasm, Image and Host.
type JobRun struct {
	// Wasm is the path of a WebAssembly module, from the job file's directory. The bridge is sent its bytes
	// and knows it by CID (SubmitRequest.ModuleCID); the path stays for people.
	Wasm string `json:"wasm,omitempty"`
	// Image is an OCI image.
	Image string `json:"image,omitempty"`
	// Host is a runtime of the node, such as python3.
	Host string `json:"host,omitempty"`
	// Command is the program's name and its arguments; {input} and {index} stand for the input at hand.
	Command []string `json:"command,omitempty"`
	// Env are environment variables.
	Env map[string]string `json:"env,omitempty"`
	// Handler is MODULE:FUNCTION or FILE.pkl:FUNCTION, called with each input; it goes with Host, without Command.
	Handler string `json:"handler,omitempty"`
	// OnStart is a handler that is called once in each process.
	OnStart string `json:"on_start,omitempty"`
	// Code is the CID of the tree of the user's files; the handler is below it.
	Code string `json:"code,omitempty"`
	// Workers is how many inputs a process runs at a time; 0 counts as 1.
	Workers uint32 `json:"workers,omitempty"`
	// KeepWarm is how long a process waits for more work; absent is the node's default.
	KeepWarm Duration `json:"keep_warm,omitzero"`
}

// JobInputs is the input sequence of a map: exactly one of its fields.
type JobInputs struct {
	// Range is integers, written 0..63: both ends belong to it, so that is 64 inputs.
	Range *IntRange `json:"range,omitempty"`
	// List is texts. A scalar of the file is taken as it is written, a list or map as canonical JSON.
	List []string `json:"list,omitempty"`
	// Lines is the path of a text file, from the job file's directory; each line is an input.
	Lines string `json:"lines,omitempty"`
	// Files is a pattern of files in a volume, such as vol://data/**/*.npz.
	Files string `json:"files,omitempty"`
	// Records are runs of lines of a file.
	Records *RecordInputs `json:"records,omitempty"`
	// Grid is every combination of the values of its axes; an input is a JSON object.
	Grid Grid `json:"grid,omitempty"`
	// Open inputs are appended through the API until they are closed.
	Open bool `json:"open,omitempty"`
}

// IntRange is the integers from First to Last, both included; its text is First..Last.
type IntRange struct {
	// First is the smallest, Last the largest.
	First, Last int64
}

// RecordInputs cut a file into runs of lines.
type RecordInputs struct {
	// File is the path of a text file, from the job file's directory.
	File string `json:"file"`
	// PerChunk is the number of lines of one input.
	PerChunk uint64 `json:"per_chunk,omitempty"`
}

// Grid is axes in the order of their names; its JSON is an object of lists.
type Grid []GridAxis

// GridAxis is one key of a grid with its values.
type GridAxis struct {
	// Name is the key.
	Name string
	// Values are JSON scalars as the file has them: 0.10 stays 0.10.
	Values []json.RawMessage
}

// JobResources are what one chunk needs of a node.
type JobResources struct {
	// GPU are accepted names (ResolveGPU); a single text is a list of one. Empty needs no GPU, or any model
	// when GPUCount is set.
	GPU GPUNames `json:"gpu,omitempty"`
	// GPUCount is the number of identical devices, at most 64; 0 counts as 1 when GPU or MinVRAM is there.
	GPUCount uint32 `json:"gpu_count,omitempty"`
	// MinVRAM is the memory of each device as cards are sold (NominalGB): an 80 GB H100 reports 79.65 GiB.
	MinVRAM VRAM `json:"min_vram,omitzero"`
	// CPU is cores; the default is 1.
	CPU Cores `json:"cpu,omitzero"`
	// Memory is bytes; the default is the node's, 2 GiB.
	Memory ByteSize `json:"memory,omitzero"`
	// Disk is bytes of scratch space; the default is the node's, 5 GiB.
	Disk ByteSize `json:"disk,omitzero"`
	// Network is none (the default), cluster or listed (execution.md 5).
	Network string `json:"network,omitempty"`
}

// JobPlacement says which nodes may run a job.
type JobPlacement struct {
	// Nodes is the size of the cluster; absent is as many as help.
	Nodes NodeRange `json:"nodes,omitzero"`
	// MinReputation is compared with the overall score O of trust.md 9: 0..1.
	MinReputation float64 `json:"min_reputation,omitempty"`
	// Regions are accepted places, as a list, or as a map with the share of each.
	Regions RegionShares `json:"regions,omitempty"`
	// MaxRTT is bridge to node, in a gang also between members.
	MaxRTT Duration `json:"max_rtt,omitzero"`
	// Bandwidth is the least tier: low, medium, high or ultra (discovery.md 9).
	Bandwidth string `json:"bandwidth,omitempty"`
	// HostType are accepted kinds of host: datacenter, miner, partner.
	HostType []string `json:"host_type,omitempty"`
	// Compliance are labels that an accepted issuer signed, all of them needed.
	Compliance []string `json:"compliance,omitempty"`
	// Where is a further filter (ParseFilter).
	Where string `json:"where,omitempty"`
}

// JobVolume is a volume and where the job finds it.
type JobVolume struct {
	// Name is the volume, NAME or NAME@REF.
	Name string `json:"name"`
	// At is an absolute path below /.
	At string `json:"at"`
	// Mode is ro (the default), rw or rw-shared (volumes.md 3).
	Mode string `json:"mode,omitempty"`
	// Links are further paths of the same files for a function, absolute or relative to its work directory.
	Links []string `json:"links,omitempty"`
}

// JobPolicy says how a job is run, checked and paid.
type JobPolicy struct {
	// Timeout bounds the run of one chunk, of a function that of one input; absent is the node's limit.
	Timeout Duration `json:"timeout,omitzero"`
	// Start bounds how long an input of a function waits to be begun; absent is for ever.
	Start Duration `json:"start,omitzero"`
	// Retries bounds re-runs of a chunk that the job is blamed for; 0 is at most once, with no copy of any
	// kind; nil is 2.
	Retries *uint32 `json:"retries,omitempty"`
	// Redundancy is on how many independent groups each chunk runs, 1..9; 0 counts as 1.
	Redundancy uint32 `json:"redundancy,omitempty"`
	// SpotCheck is the least part of chunks that is checked, 0..1; nil is 0.05.
	SpotCheck *float64 `json:"spot_check,omitempty"`
	// Compare is how results are compared: exact, tolerance, recheck, toploc or none (trust.md 8); the default
	// is exact for wasm, else none.
	Compare string `json:"compare,omitempty"`
	// AllowUnvetted is replicated (the default), single or never: what to do where no vetted node matches.
	AllowUnvetted string `json:"allow_unvetted,omitempty"`
	// Deadline ends the job, counted from its submission; absent is never.
	Deadline Duration `json:"deadline,omitzero"`
	// MaxSpend bounds what the job may cost; nil is the user's credit.
	MaxSpend *Money `json:"max_spend,omitempty"`
	// Prefer is fast, balanced (the default) or cheap.
	Prefer string `json:"prefer,omitempty"`
	// Priority is low, normal (the default) or high.
	Priority string `json:"priority,omitempty"`
	// KeepOutputs is success (the default) or always.
	KeepOutputs string `json:"keep_outputs,omitempty"`
	// MinIsolation is dev, shared, strong or confidential (execution.md 2); absent is the operator's.
	MinIsolation string `json:"min_isolation,omitempty"`
}

// Defaults of what a job file leaves out (scheduling.md 1, trust.md 8).
const (
	DefaultRetries   = 2    // DefaultRetries: a chunk that the job is blamed for may run three times.
	DefaultSpotCheck = 0.05 // DefaultSpotCheck: one chunk of 20 is checked.
)

// WithDefaults returns the job with every default filled in that does not depend on a node.
func (j Job) WithDefaults() Job {
	or := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	r, p := &j.Resources, &j.Policy
	if r.GPUCount == 0 && (len(r.GPU) > 0 || r.MinVRAM > 0) {
		r.GPUCount = 1
	}
	if r.CPU == 0 {
		r.CPU = 1000
	}
	or(&r.Network, "none")
	if p.Retries == nil {
		p.Retries = new(uint32)
		*p.Retries = DefaultRetries
	}
	if p.SpotCheck == nil {
		p.SpotCheck = new(float64)
		*p.SpotCheck = DefaultSpotCheck
	}
	p.Redundancy = max(p.Redundancy, 1)
	if j.Run.Wasm != "" {
		or(&p.Compare, "exact")
	}
	or(&p.Compare, "none")
	or(&p.AllowUnvetted, "replicated")
	or(&p.Prefer, "balanced")
	or(&p.Priority, "normal")
	or(&p.KeepOutputs, "success")
	if len(j.Volumes) > 0 {
		j.Volumes = append([]JobVolume(nil), j.Volumes...)
		for i := range j.Volumes {
			or(&j.Volumes[i].Mode, "ro")
		}
	}
	return j
}

// Len returns the number of integers, 0 for a reversed range.
func (r IntRange) Len() uint64 {
	if r.Last < r.First {
		return 0
	}
	return uint64(r.Last) - uint64(r.First) + 1 // 0 only for all 2^64 of them, which Validate refuses
}

// Std returns the duration as the standard library's.
func (d Duration) Std() time.Duration { return time.Duration(d) }
