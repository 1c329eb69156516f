package protocol

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Bounds of results.
const (
	// MaxResults bounds the results of one message.
	MaxResults = 256
	// MaxCause bounds Outcome.FirstCause, in bytes.
	MaxCause = 4 << 10
	// MaxInlineBlocks bounds the bytes of output blocks that travel with their results; larger outputs are
	// fetched.
	MaxInlineBlocks = 256 << 10
	// MaxLogTail bounds the end of a lease's log that travels with its result, in bytes.
	MaxLogTail = 4 << 10
)

// Outcome is how an attempt ended (execution.md 1).
type Outcome struct {
	// Reason is the one reason of the end.
	Reason Reason
	// ExitCode is the program's, -1 if it did not come to return one.
	ExitCode int32
	// Signal is the POSIX number of the signal or trap that ended it, else 0.
	Signal int32
	// FirstCause is what went wrong first, for people.
	FirstCause string
	// Stage and Run are how long staging and running took; Run has microseconds.
	Stage, Run time.Duration
	// CPU is processor time.
	CPU time.Duration
	// MemoryBytes is the largest memory, OutputBytes the size of all outputs.
	MemoryBytes, OutputBytes uint64
	// OutputFiles is their number.
	OutputFiles uint32
	// LogKept and LogDropped count bytes of the log.
	LogKept, LogDropped uint64
}

// Result says how one attempt at one chunk ended and where its outputs are.
type Result struct {
	// Job, Chunk, Lease and Fence are the lease's.
	Job JobID
	// Chunk is what ran.
	Chunk Chunk
	// Lease is the attempt.
	Lease LeaseID
	// Fence is what it ran under.
	Fence uint64
	// Outcome is how it ended.
	Outcome Outcome
	// Root is the tree of its outputs: a directory named by index for each input that wrote something.
	Root cid.Cid
	// BlocksFetched counts blocks that came over the wire for it.
	BlocksFetched uint64
}

// Results is what a node signs: the ends of up to 256 attempts.
type Results struct {
	// Node speaks to Bridge.
	Node, Bridge PeerID
	// Results are the ends.
	Results []Result
}

func (o *Outcome) validate() error {
	switch {
	case o.Reason == ReasonNone:
		return bounds("outcome", "reason", "is missing")
	case o.Stage < 0 || o.Run < 0 || o.CPU < 0 || o.Stage > maxWall || o.Run > maxWall:
		return bounds("outcome", "run", "staging %s, running %s, processor %s: want 0..%s", o.Stage, o.Run, o.CPU, maxWall)
	}
	return nil
}

func (o *Outcome) toPB() *pb.Outcome {
	m := &pb.Outcome{
		Reason: uint32(o.Reason), ExitCode: o.ExitCode, FirstCause: strings.ToValidUTF8(clip(o.FirstCause, MaxCause), "?"),
		CpuMs: uint64(o.CPU.Milliseconds()), MemoryBytes: o.MemoryBytes, OutputBytes: o.OutputBytes, OutputFiles: o.OutputFiles,
		LogKept: o.LogKept, LogDropped: o.LogDropped, RunUs: uint64(o.Run.Microseconds()),
		RunMs: uint32(min(o.Run.Milliseconds(), math.MaxUint32)), StageMs: uint32(min(o.Stage.Milliseconds(), math.MaxUint32)),
	}
	if o.Signal != 0 {
		m.Signal = strconv.Itoa(int(o.Signal))
	}
	return m
}

func outcomeFromPB(m *pb.Outcome) (o Outcome, err error) {
	o = Outcome{
		Reason: Reason(m.GetReason()), ExitCode: m.GetExitCode(), FirstCause: m.GetFirstCause(), CPU: millis(m.GetCpuMs()), MemoryBytes: m.GetMemoryBytes(),
		OutputBytes: m.GetOutputBytes(), OutputFiles: m.GetOutputFiles(), LogKept: m.GetLogKept(), LogDropped: m.GetLogDropped(),
		Run: time.Duration(min(m.GetRunUs(), 366*24*3600*1000_000)) * time.Microsecond, Stage: millis(uint64(m.GetStageMs())),
	}
	if len(o.FirstCause) > MaxCause {
		return o, bounds("outcome", "first_cause", "has %d bytes, at most %d", len(o.FirstCause), MaxCause)
	}
	if s := m.GetSignal(); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n == 0 || strconv.FormatInt(n, 10) != s {
			return o, bounds("outcome", "signal", "%.20q is no number", s)
		}
		o.Signal = int32(n)
	}
	return o, nil
}

// Validate names the first field out of bounds, with ErrBounds.
func (r *Result) Validate() error {
	if err := r.Chunk.validate(r.Job); err != nil {
		return err
	}
	if err := r.Outcome.validate(); err != nil {
		return err
	}
	switch {
	case r.Fence == 0:
		return bounds("result", "fence", "is 0")
	case r.Outcome.Reason == ReasonDone && !r.Root.Defined():
		return bounds("result", "root", "is missing although the chunk is done")
	}
	return nil
}

func (r *Result) toPB() *pb.Result {
	return &pb.Result{
		JobId: r.Job[:], Chunk: r.Chunk.toPB(), LeaseId: r.Lease[:], Fence: r.Fence, Outcome: r.Outcome.toPB(), Root: cidBytes(r.Root), BlocksFetched: r.BlocksFetched,
	}
}

func resultFromPB(m *pb.Result) (r Result, err error) {
	r = Result{Fence: m.GetFence(), BlocksFetched: m.GetBlocksFetched()}
	if r.Job, err = id16("job", m.GetJobId()); err != nil {
		return r, err
	}
	if r.Lease, err = id16("lease", m.GetLeaseId()); err != nil {
		return r, err
	}
	if r.Chunk, err = chunkFromPB(m.GetChunk()); err != nil {
		return r, err
	}
	if r.Outcome, err = outcomeFromPB(m.GetOutcome()); err != nil {
		return r, err
	}
	r.Root, err = cidFrom("result root", m.GetRoot())
	return r, err
}

// Encode returns the protobuf bytes of a result, for a journal. A first cause that is too long is cut.
func (r *Result) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return marshal(r.toPB())
}

// DecodeResult reads what Encode wrote.
func DecodeResult(b []byte) (Result, error) {
	m := &pb.Result{}
	if err := decodeOwn("result", maxOneResult, shapeResult, b, m); err != nil {
		return Result{}, err
	}
	r, err := resultFromPB(m)
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return Result{}, err
	}
	return r, nil
}

// maxOneResult bounds the bytes of one encoded result: its first cause and the rest.
const maxOneResult = MaxCause + 4<<10

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (r *Results) Validate() error {
	if err := validPeers("results", r.Node, r.Bridge); err != nil {
		return err
	}
	if len(r.Results) > MaxResults {
		return bounds("results", "results", "has %d entries, at most %d", len(r.Results), MaxResults)
	}
	for i := range r.Results {
		if err := r.Results[i].Validate(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Results) toPB() *pb.Results {
	m := &pb.Results{Node: []byte(r.Node), Bridge: []byte(r.Bridge), Results: make([]*pb.Result, 0, len(r.Results))}
	for i := range r.Results {
		m.Results = append(m.Results, r.Results[i].toPB())
	}
	return m
}

// Seal validates the results and signs them with the node's key. First causes that are too long are cut. It
// returns ErrTooLarge when they do not fit into 512 KiB: send fewer at a time.
func (r *Results) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return nounResult.seal(key, r.Node, r.toPB())
}

// OpenResults verifies signed results: their author is their Node.
func OpenResults(raw []byte) (Results, error) {
	m := &pb.Results{}
	signer, _, err := nounResult.open(raw, m)
	if err != nil {
		return Results{}, err
	}
	if err := nounResult.author(signer, PeerID(m.GetNode())); err != nil {
		return Results{}, err
	}
	r, err := resultsFromPB(m)
	if err != nil {
		return Results{}, err
	}
	return r, nil
}

func resultsFromPB(m *pb.Results) (Results, error) {
	r := Results{Node: PeerID(m.GetNode()), Bridge: PeerID(m.GetBridge()), Results: make([]Result, 0, len(m.GetResults()))}
	for _, x := range m.GetResults() {
		one, err := resultFromPB(x)
		if err != nil {
			return r, err
		}
		r.Results = append(r.Results, one)
	}
	return r, r.Validate()
}
