package protocol

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Run says what a job executes; exactly one of Module, Image and Host is set.
type Run struct {
	// Module is a WebAssembly module by content; ModuleBytes is its size.
	Module cid.Cid
	// ModuleBytes is the size of the module in bytes.
	ModuleBytes uint64
	// Image is an OCI image by digest.
	Image string
	// Host is a runtime of the node.
	Host string
	// Command is the program's name and arguments.
	Command []string
	// Env are environment variables.
	Env map[string]string
	// Function, if set, is called once with each input; Host names its runtime and there is no Command.
	Function *Function
}

// Function is a function of a host runtime (beam-interface.md 9).
type Function struct {
	// Handler is MODULE:FUNCTION or FILE.pkl:FUNCTION below Code.
	Handler string
	// OnStart is a handler that is called once in each process; it may be empty.
	OnStart string
	// Code is the tree of the user's files, CodeBytes the sum of their sizes.
	Code cid.Cid
	// CodeBytes is the sum of the sizes of the files in bytes.
	CodeBytes uint64
	// Workers is how many inputs one process runs at a time, at least 1.
	Workers uint32
	// Timeout bounds one input; 0 leaves it to Limits.Wall.
	Timeout time.Duration
	// KeepWarm is how long a process waits for more work; 0 is the node's default.
	KeepWarm time.Duration
	// Tenant names whose work it is; a process never serves two tenants.
	Tenant string
}

// Limits bound what one chunk may use on a node; 0 leaves a limit to the node's default (execution.md 3).
type Limits struct {
	// MemoryBytes, DiskBytes and OutputBytes are bytes.
	MemoryBytes, DiskBytes, OutputBytes uint64
	// Wall is the longest run of a chunk.
	Wall time.Duration
	// OutputFiles bounds the number of files.
	OutputFiles uint32
	// LogBytes bounds the log that is kept.
	LogBytes uint64
	// CPUMilli is thousandths of a core.
	CPUMilli uint32
	// Network is "none".
	Network string
}

// JobTerms is what a node has to know of a job to run its chunks.
type JobTerms struct {
	// Job names it.
	Job JobID
	// Name is its owner's word for it, for people.
	Name string
	// Kind is map, gang, service or task.
	Kind string
	// Run is what it executes.
	Run Run
	// Limits bound each chunk.
	Limits Limits
	// Volumes are what it reads, at most 16.
	Volumes []VolumeRef
	// MinIsolation is the least level: dev, shared, strong or empty.
	MinIsolation string
	// KeepOutputs is "success" or "always".
	KeepOutputs string
	// Seed fixes the job's randomness.
	Seed [32]byte
	// GPUModels and GPUCount are the devices of one chunk.
	GPUModels []string
	// GPUCount is the number of devices of one chunk, 0 for none.
	GPUCount uint32
	// Origin holds module, volumes and large inputs: the bridge.
	Origin peer.AddrInfo
}

// Reservation asks one node for an Offer; the bridge signs it.
type Reservation struct {
	// Call is the nonce of the request.
	Call CallID
	// Network and Grant say by what right.
	Network NetworkID
	// Grant is the last link of the chain that the bridge has presented.
	Grant GrantID
	// Bridge asks, Node is asked.
	Bridge, Node PeerID
	// NotAfter bounds the life of the request.
	NotAfter time.Time
	// Terms are the job's.
	Terms JobTerms
	// Slots are wanted.
	Slots uint32
	// Rate is the most that is paid, in micro-USD per slot-hour; 0 pays any ask.
	Rate uint64
}

// Offer is a node's answer to a Reservation; the node signs it.
type Offer struct {
	// Call and Job are the reservation's.
	Call CallID
	// Job is the job.
	Job JobID
	// Node offers to Bridge.
	Node, Bridge PeerID
	// Slots are how many chunks it runs at once for this job.
	Slots uint32
	// Ask is its price in micro-USD per slot-hour.
	Ask uint64
	// Expires is when the offer lapses unless taken up.
	Expires time.Time
	// DataHeld is how many bytes of the job's volumes it holds already.
	DataHeld uint64
}

const (
	maxName    = 128
	maxArgs    = 256
	maxEnv     = 256
	maxSlots   = 4096
	maxCommand = 64 << 10
	maxHandler = 512
	maxModels  = 64
	maxWall    = 365 * 24 * time.Hour
	maxTerms   = 256 << 10
	maxWorkers = 64

	// maxAsk bounds a price, in micro-USD per slot-hour: ten thousand dollars.
	maxAsk = 10_000_000_000
)

// Validate names the first field out of bounds, with ErrBounds.
func (t *JobTerms) Validate() error {
	if len(t.Name) > maxName || !utf8.ValidString(t.Name) {
		return bounds("job", "name", "has %d bytes or is no UTF-8, at most %d", len(t.Name), maxName)
	}
	switch t.Kind {
	case "map", "gang", "service", "task":
	default:
		return bounds("job", "kind", "is %.20q, want map, gang, service or task", t.Kind)
	}
	switch t.MinIsolation {
	case "", "dev", "shared", "strong", "confidential":
	default: // a level that an old node does not know must not read as none
		return bounds("job", "min_isolation", "is %.20q, want dev, shared, strong or confidential", t.MinIsolation)
	}
	if err := t.Run.validate(); err != nil {
		return err
	}
	switch {
	case t.KeepOutputs != "" && t.KeepOutputs != "success" && t.KeepOutputs != "always":
		return bounds("job", "keep_outputs", "is %.20q, want success or always", t.KeepOutputs)
	case t.Limits.Wall < 0 || t.Limits.Wall > maxWall:
		return bounds("job", "limits.wall", "is %s, want 0..%s", t.Limits.Wall, maxWall)
	case t.Limits.Network != "" && t.Limits.Network != "none":
		return bounds("job", "limits.network", "is %.20q, only none is offered", t.Limits.Network)
	case len(t.Volumes) > maxVolumes:
		return bounds("job", "volumes", "has %d entries, at most %d", len(t.Volumes), maxVolumes)
	case len(t.GPUModels) > maxModels || t.GPUCount > 64:
		return bounds("job", "gpus", "%d models, %d devices, at most %d and 64", len(t.GPUModels), t.GPUCount, maxModels)
	}
	for _, m := range t.GPUModels {
		if m == "" || len(m) > maxName {
			return bounds("job", "gpu_models", "%.40q has %d bytes, want 1..%d", m, len(m), maxName)
		}
	}
	for i := range t.Volumes {
		if err := t.Volumes[i].validate("job"); err != nil {
			return err
		}
		for j := range i {
			if t.Volumes[j].At == t.Volumes[i].At {
				return bounds("job", "volume.at", "%.80q is taken by two volumes", t.Volumes[i].At)
			}
		}
	}
	if t.Origin.ID == "" && len(t.Origin.Addrs) == 0 {
		return nil
	}
	return validHolder("job", "origin", &t.Origin)
}

func (r *Run) validate() error {
	set, size := 0, 0
	for _, is := range []bool{r.Module.Defined(), r.Image != "", r.Host != ""} {
		if is {
			set++
		}
	}
	for _, a := range r.Command {
		size += len(a)
		if strings.ContainsRune(a, 0) {
			return bounds("job", "run.command", "has a zero byte in %.40q", a)
		}
	}
	for k, v := range r.Env {
		size += len(k) + len(v)
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return bounds("job", "run.env", "%.40q is no name and value of a variable", k)
		}
	}
	switch {
	case set != 1:
		return bounds("job", "run", "has %d of module, image and host, want one", set)
	case r.Function != nil && (r.Host == "" || len(r.Command) > 0):
		return bounds("job", "run.function", "needs host and no command")
	case r.Function != nil && (len(r.Env) > maxEnv || size > maxCommand):
		return bounds("job", "run.env", "%d variables, %d bytes; at most %d and %d", len(r.Env), size, maxEnv, maxCommand)
	case r.Function != nil:
		return r.Function.validate()
	case len(r.Command) == 0 || len(r.Command) > maxArgs || len(r.Env) > maxEnv || size > maxCommand:
		return bounds("job", "run.command", "%d arguments, %d variables, %d bytes; want 1..%d, at most %d and %d", len(r.Command), len(r.Env), size, maxArgs, maxEnv, maxCommand)
	case len(r.Image) > 512 || len(r.Host) > 128:
		return bounds("job", "run", "image or host is too long")
	}
	return nil
}

func (f *Function) validate() error {
	for _, h := range []struct{ field, text string }{{"handler", f.Handler}, {"on_start", f.OnStart}} {
		if h.field == "on_start" && h.text == "" {
			continue
		}
		if !validHandler(h.text) {
			return bounds("job", "run.function."+h.field, "%.80q is no MODULE:FUNCTION", h.text)
		}
	}
	switch {
	case !f.Code.Defined():
		return bounds("job", "run.function.code", "is missing")
	case f.Workers == 0 || f.Workers > maxWorkers:
		return bounds("job", "run.function.workers", "is %d, want 1..%d", f.Workers, maxWorkers)
	case f.Timeout < 0 || f.Timeout > maxWall || f.KeepWarm < 0 || f.KeepWarm > maxWall:
		return bounds("job", "run.function.timeout", "timeout %s, keep_warm %s: want 0..%s", f.Timeout, f.KeepWarm, maxWall)
	case f.Tenant == "" || len(f.Tenant) > maxName:
		return bounds("job", "run.function.tenant", "has %d bytes, want 1..%d", len(f.Tenant), maxName)
	}
	return nil
}

// validHandler says that a text names a function in a module or a pickle: PART:NAME, both without anything that
// leaves the code's directory.
func validHandler(s string) bool {
	module, name, ok := strings.Cut(s, ":")
	return ok && len(s) <= maxHandler && utf8.ValidString(s) && module != "" && name != "" && !strings.ContainsAny(s, "\x00\n\\") &&
		!strings.HasPrefix(module, "/") && !strings.Contains(module, "..") && !strings.ContainsAny(name, ":/")
}

func (f *Function) toPB() *pb.Function {
	if f == nil {
		return nil
	}
	return &pb.Function{
		Handler: f.Handler, OnStart: f.OnStart, Code: cidBytes(f.Code), CodeBytes: f.CodeBytes, Workers: f.Workers, TimeoutMs: uint64(f.Timeout.Milliseconds()),
		KeepWarmMs: uint64(f.KeepWarm.Milliseconds()), Tenant: f.Tenant,
	}
}

func functionFromPB(m *pb.Function) (*Function, error) {
	if m == nil {
		return nil, nil
	}
	code, err := cidFrom("code", m.GetCode())
	return &Function{
		Handler: m.GetHandler(), OnStart: m.GetOnStart(), Code: code, CodeBytes: m.GetCodeBytes(), Workers: m.GetWorkers(), Timeout: millis(m.GetTimeoutMs()),
		KeepWarm: millis(m.GetKeepWarmMs()), Tenant: m.GetTenant(),
	}, err
}

func (t *JobTerms) toPB() *pb.JobTerms {
	m := &pb.JobTerms{
		JobId: t.Job[:], Name: t.Name, Kind: t.Kind, MinIsolation: t.MinIsolation, KeepOutputs: t.KeepOutputs, Seed: t.Seed[:],
		GpuModels: t.GPUModels, GpuCount: t.GPUCount,
		Run: &pb.Run{
			ModuleCid: cidBytes(t.Run.Module), ModuleBytes: t.Run.ModuleBytes, Image: t.Run.Image, Host: t.Run.Host, Command: t.Run.Command, Env: t.Run.Env,
			Function: t.Run.Function.toPB(),
		},
		Limits: &pb.Limits{
			MemoryBytes: t.Limits.MemoryBytes, DiskBytes: t.Limits.DiskBytes, WallMs: uint64(max(0, t.Limits.Wall.Milliseconds())), OutputBytes: t.Limits.OutputBytes,
			OutputFiles: t.Limits.OutputFiles, LogBytes: t.Limits.LogBytes, CpuMilli: t.Limits.CPUMilli, Network: t.Limits.Network,
		},
	}
	for i := range t.Volumes {
		m.Volumes = append(m.Volumes, t.Volumes[i].toPB())
	}
	if t.Origin.ID != "" || len(t.Origin.Addrs) > 0 {
		m.Origin = holderToPB(t.Origin)
	}
	return m
}

func termsFromPB(m *pb.JobTerms) (t JobTerms, err error) {
	r, l := m.GetRun(), m.GetLimits()
	t = JobTerms{
		Name: m.GetName(), Kind: m.GetKind(), MinIsolation: m.GetMinIsolation(), KeepOutputs: m.GetKeepOutputs(), GPUModels: m.GetGpuModels(), GPUCount: m.GetGpuCount(),
		Run: Run{ModuleBytes: r.GetModuleBytes(), Image: r.GetImage(), Host: r.GetHost(), Command: r.GetCommand(), Env: r.GetEnv()},
		Limits: Limits{
			MemoryBytes: l.GetMemoryBytes(), DiskBytes: l.GetDiskBytes(), OutputBytes: l.GetOutputBytes(), Wall: millis(l.GetWallMs()),
			OutputFiles: l.GetOutputFiles(), LogBytes: l.GetLogBytes(), CPUMilli: l.GetCpuMilli(), Network: l.GetNetwork(),
		},
	}
	if t.Job, err = id16("job", m.GetJobId()); err != nil {
		return t, err
	}
	if t.Run.Module, err = cidFrom("module", r.GetModuleCid()); err != nil {
		return t, err
	}
	if t.Run.Function, err = functionFromPB(r.GetFunction()); err != nil {
		return t, err
	}
	if len(m.GetSeed()) != len(t.Seed) {
		return t, bounds("job", "seed", "has %d bytes, want 32", len(m.GetSeed()))
	}
	copy(t.Seed[:], m.GetSeed())
	for _, v := range m.GetVolumes() {
		ref, err := volumeFromPB(v)
		if err != nil {
			return t, err
		}
		t.Volumes = append(t.Volumes, ref)
	}
	if m.GetOrigin() != nil {
		if t.Origin, err = holderFromPB(m.GetOrigin()); err != nil {
			return t, err
		}
	}
	return t, nil
}

// Encode returns the protobuf bytes of the terms, for a journal or store.
func (t *JobTerms) Encode() ([]byte, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return marshal(t.toPB())
}

// DecodeJobTerms reads what Encode wrote.
func DecodeJobTerms(b []byte) (JobTerms, error) {
	m := &pb.JobTerms{}
	if err := decodeOwn("job terms", maxTerms, shapeTerms, b, m); err != nil {
		return JobTerms{}, err
	}
	t, err := termsFromPB(m)
	if err == nil {
		err = t.Validate()
	}
	if err != nil {
		return JobTerms{}, err
	}
	return t, nil
}

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (r *Reservation) Validate() error {
	if err := validPeers("reservation", r.Bridge, r.Node); err != nil {
		return err
	}
	if err := validMS("reservation", "not_after", r.NotAfter, true); err != nil {
		return err
	}
	switch {
	case r.Slots == 0 || r.Slots > maxSlots:
		return bounds("reservation", "slots", "is %d, want 1..%d", r.Slots, maxSlots)
	case r.Rate > maxAsk:
		return bounds("reservation", "rate", "is %d micro-USD an hour, at most %d", r.Rate, uint64(maxAsk))
	}
	return r.Terms.Validate()
}

func (r *Reservation) toPB() *pb.Reservation {
	return &pb.Reservation{
		CallId: r.Call[:], Network: r.Network[:], Grant: r.Grant[:], Bridge: []byte(r.Bridge), Node: []byte(r.Node), NotAfter: unixMS(r.NotAfter),
		Terms: r.Terms.toPB(), Slots: r.Slots, RateUusdPerHour: r.Rate,
	}
}

// Seal validates the reservation and signs it with the bridge's key.
func (r *Reservation) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return nounReservation.seal(key, r.Bridge, r.toPB())
}

// OpenReservation verifies a signed reservation: its author is its Bridge.
func OpenReservation(raw []byte) (Reservation, error) {
	m := &pb.Reservation{}
	signer, _, err := nounReservation.open(raw, m)
	if err != nil {
		return Reservation{}, err
	}
	if err := nounReservation.author(signer, PeerID(m.GetBridge())); err != nil {
		return Reservation{}, err
	}
	r, err := reservationFromPB(m)
	if err != nil {
		return Reservation{}, err
	}
	return r, nil
}

func reservationFromPB(m *pb.Reservation) (r Reservation, err error) {
	r = Reservation{
		Bridge: PeerID(m.GetBridge()), Node: PeerID(m.GetNode()), NotAfter: fromMS(m.GetNotAfter()), Slots: m.GetSlots(), Rate: m.GetRateUusdPerHour(),
	}
	if r.Call, err = id16("call", m.GetCallId()); err != nil {
		return r, err
	}
	if r.Network, err = id16("network", m.GetNetwork()); err != nil {
		return r, err
	}
	if r.Grant, err = grantID(m.GetGrant()); err != nil {
		return r, err
	}
	if r.Terms, err = termsFromPB(m.GetTerms()); err != nil {
		return r, err
	}
	return r, r.Validate()
}

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (o *Offer) Validate() error {
	if err := validPeers("offer", o.Node, o.Bridge); err != nil {
		return err
	}
	if err := validMS("offer", "expires", o.Expires, true); err != nil {
		return err
	}
	switch {
	case o.Slots == 0 || o.Slots > maxSlots:
		return bounds("offer", "slots", "is %d, want 1..%d", o.Slots, maxSlots)
	case o.Ask > maxAsk:
		return bounds("offer", "ask", "is %d micro-USD an hour, at most %d", o.Ask, uint64(maxAsk))
	}
	return nil
}

func (o *Offer) toPB() *pb.Offer {
	return &pb.Offer{
		CallId: o.Call[:], JobId: o.Job[:], Node: []byte(o.Node), Bridge: []byte(o.Bridge), Slots: o.Slots, AskUusdPerHour: o.Ask,
		Expires: unixMS(o.Expires), DataBytesHeld: o.DataHeld,
	}
}

// Seal validates the offer and signs it with the node's key.
func (o *Offer) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return nounOffer.seal(key, o.Node, o.toPB())
}

// OpenOffer verifies a signed offer: its author is its Node.
func OpenOffer(raw []byte) (Offer, error) {
	m := &pb.Offer{}
	signer, _, err := nounOffer.open(raw, m)
	if err != nil {
		return Offer{}, err
	}
	if err := nounOffer.author(signer, PeerID(m.GetNode())); err != nil {
		return Offer{}, err
	}
	o, err := offerFromPB(m)
	if err != nil {
		return Offer{}, err
	}
	return o, nil
}

func offerFromPB(m *pb.Offer) (o Offer, err error) {
	o = Offer{
		Node: PeerID(m.GetNode()), Bridge: PeerID(m.GetBridge()), Slots: m.GetSlots(), Ask: m.GetAskUusdPerHour(), Expires: fromMS(m.GetExpires()), DataHeld: m.GetDataBytesHeld(),
	}
	if o.Call, err = id16("call", m.GetCallId()); err != nil {
		return o, err
	}
	if o.Job, err = id16("job", m.GetJobId()); err != nil {
		return o, err
	}
	return o, o.Validate()
}

func grantID(b []byte) (GrantID, error) {
	if len(b) != 32 {
		return GrantID{}, fmt.Errorf("%w: grant ID has %d bytes, want 32", ErrBadID, len(b))
	}
	return GrantID(b), nil
}
