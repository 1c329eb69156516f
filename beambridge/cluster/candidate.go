package cluster

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of Select; the Explanation that comes with them says which requirement did it.
var (
	// ErrNoMatch means that no candidate satisfies every requirement.
	ErrNoMatch = errors.New("cluster: no node matches")
	// ErrTooFew means that some match, but fewer than the job's least cluster size or a region's share of it.
	ErrTooFew = errors.New("cluster: too few nodes match")
	// ErrDomains means that copies of a chunk cannot be kept on different operators, sites and wallets.
	ErrDomains = errors.New("cluster: too few independent operators match")
	// ErrUnvetted means that only newcomers match and the job's allow_unvetted is never.
	ErrUnvetted = errors.New("cluster: only unvetted nodes match")
	// ErrBadJob means that a Job holds a value that selection cannot use.
	ErrBadJob = errors.New("cluster: job cannot be selected for")
)

// Kind is how the chunks of a job relate to one another (scheduling.md 1).
type Kind string

// Kinds of job; there are no others.
const (
	KindMap     Kind = "map"     // KindMap: independent chunks.
	KindGang    Kind = "gang"    // KindGang: ranks that start together and see one another.
	KindService Kind = "service" // KindService: replicas that answer requests.
	KindTask    Kind = "task"    // KindTask: one chunk.
)

// Backend is what a job runs as; a node offers each at the isolation level that its self-test passed.
type Backend uint8

// Backends of a run.
const (
	BackendWasm  Backend = iota // BackendWasm runs a WebAssembly module.
	BackendImage                // BackendImage runs a container image.
	BackendHost                 // BackendHost runs a host program in a sandbox.
	backends
)

// String returns the job file's word for the backend.
func (b Backend) String() string {
	if b < backends {
		return [...]string{"wasm", "image", "host"}[b]
	}
	return fmt.Sprintf("backend %d", uint8(b))
}

// Isolation is how strongly a chunk is kept apart from its host (execution.md 2), weakest first.
type Isolation uint8

// Levels of isolation.
const (
	IsolationNone         Isolation = iota // IsolationNone: the backend is not offered.
	IsolationDev                           // IsolationDev: nothing; for development only.
	IsolationShared                        // IsolationShared: one kernel.
	IsolationStrong                        // IsolationStrong: a kernel surface of its own.
	IsolationConfidential                  // IsolationConfidential: hardware-backed; reserved.
)

// String returns the job file's word for the level.
func (i Isolation) String() string {
	if i <= IsolationConfidential {
		return [...]string{"none", "dev", "shared", "strong", "confidential"}[i]
	}
	return fmt.Sprintf("isolation %d", uint8(i))
}

// ParseIsolation reads a job file's min_isolation; the empty text asks for nothing and gives IsolationDev.
func ParseIsolation(s string) (Isolation, error) {
	switch s {
	case "", "dev":
		return IsolationDev, nil
	case "shared":
		return IsolationShared, nil
	case "strong":
		return IsolationStrong, nil
	case "confidential":
		return IsolationConfidential, nil
	}
	return 0, fmt.Errorf("%w: min_isolation %q: say dev, shared, strong or confidential", ErrBadJob, s)
}

// Standing is what the rater thinks a node may do (trust.md 9), least first.
type Standing uint8

// Standings of a node.
const (
	StandingBarred    Standing = iota // StandingBarred: suspended, contained or disqualified; never selected.
	StandingProbation                 // StandingProbation: a newcomer; its work is replicated.
	StandingVetted                    // StandingVetted: enough checks passed.
	StandingAnchor                    // StandingAnchor: named by the bridge's operator; counts as vetted.
)

// Tier is a measured bandwidth tier, net.tier of discovery.md 9.
type Tier uint8

// Tiers, each strictly above Mbit/s down/up: low 100/75, medium 400/300, high 800/600, ultra 1600/1200.
const (
	TierUnknown Tier = iota // TierUnknown: not measured, or below low.
	TierLow                 // TierLow: above 100/75.
	TierMedium              // TierMedium: above 400/300.
	TierHigh                // TierHigh: above 800/600.
	TierUltra               // TierUltra: above 1600/1200.
)

var tierNames = [...]string{"", "low", "medium", "high", "ultra"}

// String returns the job file's word for the tier.
func (t Tier) String() string {
	if int(t) < len(tierNames) {
		return tierNames[t]
	}
	return fmt.Sprintf("tier %d", uint8(t))
}

// Down returns the bound above which the tier's downlink lies, in bytes/s; 0 for an unknown tier.
func (t Tier) Down() float64 {
	return [...]float64{0, 12.5e6, 50e6, 100e6, 200e6}[min(t, TierUltra)]
}

// ParseTier reads a job file's bandwidth; the empty text asks for nothing.
func ParseTier(s string) (Tier, error) {
	for i, n := range tierNames {
		if n == s {
			return Tier(i), nil
		}
	}
	return 0, fmt.Errorf("%w: bandwidth %q: say low, medium, high or ultra", ErrBadJob, s)
}

// GPU is a set of identical devices of a candidate.
type GPU struct {
	Model  string // Model is the slug of protocol's GPU names, e.g. nvidia-h100-80gb-sxm.
	Count  int    // Count is the number of healthy devices.
	VRAMGB int    // VRAMGB is the nominal memory of one device, as cards are sold.
}

// Candidate is one node as values: its verified capability, availability, score, position and price.
type Candidate struct {
	Peer   protocol.PeerID // Peer is the node.
	Group  string          // Group is its operator, or its subnet where the operator is unknown.
	Site   string          // Site is where it stands, as far as known; empty is unknown.
	Wallet string          // Wallet is where its rewards go; empty is unknown.

	Ready bool // Ready says that its last heartbeat was READY or BUSY.
	Fresh bool // Fresh says that record and heartbeat are recent enough to be believed.
	Where bool // Where is the outcome of the job's where filter; true when it has none.

	GPUs   []GPU               // GPUs are its device sets.
	Runs   [backends]Isolation // Runs is the level at which each Backend is offered.
	Hosts  []string            // Hosts are the runtimes of BackendHost that it offers, such as python3.11.
	Cores  float64             // Cores is the number of CPU cores free for work.
	Memory uint64              // Memory is free bytes.
	Disk   uint64              // Disk is free bytes.
	Slots  int                 // Slots is how many chunks of this job it could start now.

	Region      string   // Region is the macro region, e.g. eu; empty is unknown, as where a claim was contradicted.
	Country     string   // Country is the ISO code, e.g. DE.
	Subdivision string   // Subdivision is the ISO code, e.g. DE-BE.
	Tier        Tier     // Tier is the measured bandwidth tier.
	Labels      []string // Labels are the verified labels key=value; claimed ones do not belong here.

	O        float64  // O is the overall score, the lower bound of trust.md 9.
	P        float64  // P is Lcomp × Lcorr, the lower bound of its success probability.
	Standing Standing // Standing is what it may be used for.
	Checks   int      // Checks is the number of passed checks: the least evidence is explored first.
	Work     uint64   // Work is what it did in this epoch of the reward policy, in any one unit.

	RTT             time.Duration // RTT is bridge to node; 0 is unknown, which no max_rtt lets pass.
	Price           uint64        // Price is micro-USD per slot-hour.
	ImageMissing    uint64        // ImageMissing is bytes of module or image still to fetch.
	DataMissing     uint64        // DataMissing is bytes of the job's volumes still to fetch.
	Bandwidth       float64       // Bandwidth is measured bytes/s from the holders; 0 is unknown.
	Start           time.Duration // Start is the executor's start time.
	Queue           time.Duration // Queue is how long until its devices are free.
	SecondsPerInput float64       // SecondsPerInput is the predictor's word; 0 is unknown.
}

// Prefer is the user's exchange rate between time and money.
type Prefer string

// Preferences: seconds per US cent.
const (
	PreferFast     Prefer = "fast"     // PreferFast ignores the price: 0 s per cent.
	PreferBalanced Prefer = "balanced" // PreferBalanced gives 1 s for a cent.
	PreferCheap    Prefer = "cheap"    // PreferCheap orders by price, time breaks ties.
)

// Unvetted says what to do where no vetted node matches.
type Unvetted string

// Answers of allow_unvetted.
const (
	UnvettedReplicated Unvetted = "replicated" // UnvettedReplicated: each chunk on two groups.
	UnvettedSingle     Unvetted = "single"     // UnvettedSingle: as if vetted.
	UnvettedNever      Unvetted = "never"      // UnvettedNever: wait.
)

// Share is a region's part of a cluster.
type Share struct {
	Region string  // Region is a macro region, a country code or a subdivision.
	Weight float64 // Weight is its share; all zero means anywhere among the regions.
}

// Job is what selection has to know of a job, in units of machines.
type Job struct {
	Kind      Kind      // Kind decides how the set is chosen.
	Backend   Backend   // Backend is what it runs as.
	Host      string    // Host is the runtime of a BackendHost job: python3, or python3.11 for that version only.
	Isolation Isolation // Isolation is the least level; IsolationNone and IsolationDev ask for any.

	GPUModels []string // GPUModels are the accepted names as the job file says them, or slugs; empty accepts any model.
	GPUCount  int      // GPUCount is the number of identical devices of one chunk; 0 needs none.
	MinVRAMGB int      // MinVRAMGB is the nominal memory of each.
	Cores     float64  // Cores is per chunk.
	Memory    uint64   // Memory is bytes per chunk.
	Disk      uint64   // Disk is bytes per node, besides what the node has to fetch.

	MinNodes int // MinNodes is the least cluster size; 0 counts as 1.
	MaxNodes int // MaxNodes is the largest; 0 is as many as help.

	MinReputation float64       // MinReputation is compared with O.
	Regions       []Share       // Regions are the accepted places, with shares or without.
	MaxRTT        time.Duration // MaxRTT is bridge to node, in gangs also between members; 0 asks nothing.
	Bandwidth     Tier          // Bandwidth is the least tier.
	HostTypes     []string      // HostTypes are accepted values of the verified label host.type.
	Compliance    []string      // Compliance are verified labels compliance=…, all of them needed.
	Where         string        // Where is the text of the further filter, for the explanation only.
	MaxPrice      uint64        // MaxPrice is micro-USD per slot-hour; 0 asks nothing.

	Prefer        Prefer   // Prefer is empty for balanced.
	AllowUnvetted Unvetted // AllowUnvetted is empty for replicated.
	Copies        int      // Copies is on how many independent groups each chunk runs; 0 counts as 1.
	MaxShare      float64  // MaxShare bounds one operator's part of more than 4 nodes; 0 is 0.5.
	Explore       float64  // Explore is the part of chunks for newcomers; 0 is 0.03, negative none.

	Chunks      uint64 // Chunks is the number of chunks, as far as foreseen; 0 counts as 1.
	ChunkInputs uint64 // ChunkInputs is the inputs of a typical chunk; 0 counts as 1.

	// Link tells or estimates the path between two candidates; gangs only, nil ignores paths. It has to be a
	// function of the candidates alone.
	Link func(a, b *Candidate) Link

	gpus []protocol.GPUSet // what GPUModels stand for
}

// Defaults of the fields of Job that may be absent.
const (
	DefaultMaxShare = 0.5  // DefaultMaxShare: no operator holds the majority of a cluster.
	DefaultExplore  = 0.03 // DefaultExplore: 25 checks in a working day at 1,000 chunks/h and 10 newcomers.
	// UnknownRunSeconds is the run time of a chunk nobody has seen run: what the splitter aims at.
	UnknownRunSeconds = AimSeconds
	// UnknownBandwidth is bytes/s where nothing was measured: 100 Mbit/s, the least that RNP-006 admits.
	UnknownBandwidth = 12.5e6
)

// normal returns the job with its defaults filled in, or ErrBadJob with the field's name.
func (j Job) normal() (Job, error) {
	bad := func(field string, v any, want string) (Job, error) {
		return Job{}, fmt.Errorf("%w: %s is %v, want %s", ErrBadJob, field, v, want)
	}
	switch j.Kind {
	case KindMap, KindGang, KindService, KindTask:
	default:
		return bad("kind", j.Kind, "map, gang, service or task")
	}
	if j.Backend >= backends {
		return bad("backend", uint8(j.Backend), "wasm, image or host")
	}
	if j.MinNodes < 0 || j.MaxNodes < 0 || (j.MaxNodes > 0 && j.MaxNodes < j.MinNodes) {
		return bad("nodes", fmt.Sprintf("%d..%d", j.MinNodes, j.MaxNodes), "min <= max, both >= 0")
	}
	if !(j.MinReputation >= 0 && j.MinReputation <= 1) {
		return bad("min_reputation", j.MinReputation, "0..1")
	}
	if j.GPUCount < 0 {
		return bad("gpu_count", j.GPUCount, ">= 0")
	}
	for _, r := range j.Regions {
		if !(r.Weight >= 0) || math.IsInf(r.Weight, 0) {
			return bad("regions", r.Weight, "shares >= 0")
		}
	}
	if !(j.MaxShare >= 0 && j.MaxShare <= 1) {
		return bad("max_share", j.MaxShare, "0..1")
	}
	j.gpus = nil
	for _, name := range j.GPUModels {
		set, err := protocol.ResolveGPU(name)
		if err != nil {
			return Job{}, fmt.Errorf("%w: gpu: %w", ErrBadJob, err)
		}
		j.gpus = append(j.gpus, set)
	}
	if (len(j.GPUModels) > 0 || j.MinVRAMGB > 0) && j.GPUCount == 0 {
		j.GPUCount = 1
	}
	j.MinNodes, j.Copies = max(j.MinNodes, 1), max(j.Copies, 1)
	j.Chunks, j.ChunkInputs = max(j.Chunks, 1), max(j.ChunkInputs, 1)
	if j.MaxShare == 0 {
		j.MaxShare = DefaultMaxShare
	}
	if j.Explore == 0 {
		j.Explore = DefaultExplore
	}
	switch j.Prefer {
	case "":
		j.Prefer = PreferBalanced
	case PreferFast, PreferBalanced, PreferCheap:
	default:
		return bad("prefer", j.Prefer, "fast, balanced or cheap")
	}
	switch j.AllowUnvetted {
	case "":
		j.AllowUnvetted = UnvettedReplicated
	case UnvettedReplicated, UnvettedSingle, UnvettedNever:
	default:
		return bad("allow_unvetted", j.AllowUnvetted, "replicated, single or never")
	}
	switch j.Kind {
	case KindTask:
		j.Chunks = 1
	case KindGang:
		j.Copies, j.Explore = 1, -1 // ranks work together, they are no copies of one another
	}
	return j, nil
}
