package protocol

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"
)

// APIPrefix is the path under which the bridge answers its own API; the messages of this file are its bodies.
// Amounts of money are integers of micro-USD (_uusd), CIDs are their text, times are RFC 3339. An ndjson stream
// that fails ends with StreamEnd; an empty line in one only says that it lives.
const APIPrefix = "/gridbeam/v1"

// ErrorCode is what went wrong, for programs; append-only.
type ErrorCode string

// The codes of an APIError.
const (
	CodeBadRequest    ErrorCode = "bad_request"    // CodeBadRequest: a request that cannot be read.
	CodeBadJob        ErrorCode = "bad_job"        // CodeBadJob: the job file is wrong; Fields say where.
	CodeNotOffered    ErrorCode = "not_offered"    // CodeNotOffered: well-formed, but this version or bridge cannot do it.
	CodeBadModule     ErrorCode = "bad_module"     // CodeBadModule: the bytes are no WebAssembly module.
	CodeBadTree       ErrorCode = "bad_tree"       // CodeBadTree: a tar stream that cannot become a volume.
	CodeUnauthorized  ErrorCode = "unauthorized"   // CodeUnauthorized: no token, or one that is not good.
	CodeForbidden     ErrorCode = "forbidden"      // CodeForbidden: the token does not allow this.
	CodeNotFound      ErrorCode = "not_found"      // CodeNotFound: no such thing, or not this user's.
	CodeConflict      ErrorCode = "conflict"       // CodeConflict: its state or name stands in the way.
	CodeTooLarge      ErrorCode = "too_large"      // CodeTooLarge: more bytes or entries than are accepted.
	CodeNoCredit      ErrorCode = "no_credit"      // CodeNoCredit: the user's credit does not cover it.
	CodeLimited       ErrorCode = "limited"        // CodeLimited: too many requests; try again later.
	CodeNoSpace       ErrorCode = "no_space"       // CodeNoSpace: the bridge's disk is full.
	CodeUnavailable   ErrorCode = "unavailable"    // CodeUnavailable: not now; the bridge starts, drains or waits.
	CodeInternal      ErrorCode = "internal"       // CodeInternal: the bridge failed.
	CodeNoSuchRoute   ErrorCode = "no_such_route"  // CodeNoSuchRoute: the path or method is not offered.
	CodeNotYet        ErrorCode = "not_yet"        // CodeNotYet: it will be there when the job has ended.
	CodeWrongMethod   ErrorCode = "wrong_method"   // CodeWrongMethod: the path is there, the method is not offered on it.
	CodeTooSlow       ErrorCode = "too_slow"       // CodeTooSlow: the body did not arrive in time.
	CodeLimitExceeded ErrorCode = "limit_exceeded" // CodeLimitExceeded: a quota of the user is used up.
)

// APIError is the body of every answer that is no success, and the error that a bridge returns to its API.
type APIError struct {
	// Code is for programs.
	Code ErrorCode `json:"code"`
	// Text is one sentence for people.
	Text string `json:"text"`
	// Field is the offending field of the request or job file, if there is one.
	Field string `json:"field,omitempty"`
	// Fix is what to do next.
	Fix string `json:"fix,omitempty"`
	// Fields are all offending fields of a job, each with what is accepted.
	Fields JobErrors `json:"fields,omitempty"`
	// RetryMS is how long to wait before trying again, milliseconds; 0 says nothing.
	RetryMS int64 `json:"retry_ms,omitempty"`
}

// Error is the text with its field and fix, in one line; of a job, a line for each field.
func (e *APIError) Error() string {
	if len(e.Fields) > 0 {
		return e.Fields.Error()
	}
	var b strings.Builder
	if e.Field != "" && !strings.Contains(e.Text, e.Field) {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(cmp.Or(e.Text, string(e.Code)))
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// StreamEnd is the last line of an ndjson stream that failed.
type StreamEnd struct {
	// Error is why.
	Error *APIError `json:"error"`
}

// BridgeStatus answers GET /status.
type BridgeStatus struct {
	// Version and Commit are the program's.
	Version string `json:"version"`
	// Commit is the program's source.
	Commit string `json:"commit,omitempty"`
	// PeerID is the bridge.
	PeerID PeerID `json:"peer_id,omitempty"`
	// Addrs are where nodes reach it.
	Addrs []string `json:"addrs,omitempty"`
	// Beam is the address of the gateway for Beam's clients, host:port; empty when there is none.
	Beam string `json:"beam,omitempty"`
	// Network names the network, NetworkID is its ID.
	Network string `json:"network,omitempty"`
	// NetworkID is the network's ID.
	NetworkID string `json:"network_id,omitempty"`
	// State is running, draining or read_only.
	State string `json:"state"`
	// Started is when this process began, Now the bridge's clock.
	Started time.Time `json:"started"`
	// Now is the bridge's clock.
	Now time.Time `json:"now"`
	// Nodes counts nodes by state: READY, BUSY and so on.
	Nodes map[string]int `json:"nodes"`
	// Jobs counts jobs by state.
	Jobs map[string]int `json:"jobs"`
	// ChunksRunning counts live leases.
	ChunksRunning int `json:"chunks_running"`
	// VolumeBytes is what the store holds, bytes.
	VolumeBytes uint64 `json:"volume_bytes"`
	// Problems are sentences for whoever runs the bridge; none is well.
	Problems []string `json:"problems,omitempty"`
}

// ModuleInfo answers POST /modules.
type ModuleInfo struct {
	// CID is the tree that holds the module as module.wasm.
	CID string `json:"cid"`
	// Bytes is the module's size.
	Bytes uint64 `json:"bytes"`
	// Known says that the bridge had it already.
	Known bool `json:"known,omitempty"`
}

// ModuleHead is how many bytes of a module ModuleProblem looks at.
const ModuleHead = 8

// ModuleProblem says in a sentence why bytes that begin so are no WebAssembly module that can be run; "" when
// nothing speaks against it yet.
func ModuleProblem(head []byte) string {
	begins := func(s string) bool { return strings.HasPrefix(string(head), s) }
	switch {
	case begins("\x00asm\x01\x00\x00\x00"):
		return ""
	case begins("\x00asm") && len(head) >= ModuleHead && head[6] != 0:
		return "it is a WebAssembly component; build a core module for wasip1 (preview 1)"
	case begins("\x00asm") && len(head) >= ModuleHead:
		return "it is WebAssembly of a version other than 1; build a core module for wasip1"
	case len(head) == 0:
		return "it is empty"
	case begins("\x7fELF") || begins("MZ") || begins("\xcf\xfa\xed\xfe"):
		return "it is a program for this machine; build it for WebAssembly, for example with GOOS=wasip1 GOARCH=wasm"
	case begins("\x1f\x8b") || begins("PK\x03\x04") || begins("\x28\xb5\x2f\xfd"):
		return "it is compressed; unpack it first"
	case begins("(module") || begins("(compon"):
		return "it is WebAssembly text; assemble it, for example with wat2wasm"
	}
	return "it does not begin with \\0asm; is it the compiled file?"
}

// SubmitRequest is the body of POST /jobs and POST /jobs/validate.
type SubmitRequest struct {
	// Job is the job file.
	Job Job `json:"job"`
	// ModuleCID is what POST /modules answered, when Job.Run.Wasm is set. Validate does without.
	ModuleCID string `json:"module_cid,omitempty"`
	// Lines are the inputs when Job.Inputs.Lines is set.
	Lines []string `json:"lines,omitempty"`
	// RequestID makes the submission idempotent: the same user and text, 1 to 64 bytes, give the same job
	// however often they are sent (SubmittedJobID). Empty is a new job each time.
	RequestID string `json:"request_id,omitempty"`
}

// SubmittedJobID derives the ID of a job with a RequestID: the first 16 bytes of SHA-256("gridbeam/submit/1"
// 0x00 ‖ u16 len, user ‖ u16 len, request ID), big-endian.
func SubmittedJobID(user, request string) JobID {
	b := append(make([]byte, 0, 128), "gridbeam/submit/1\x00"...)
	for _, s := range []string{user, request} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return JobID(sum[:16])
}

// ValidateReply answers POST /jobs/validate for a job that would be accepted.
type ValidateReply struct {
	// Inputs is the number of inputs; 0 is not known yet.
	Inputs uint64 `json:"inputs"`
	// Matching of Known nodes would do now.
	Matching int `json:"matching"`
	// Known is the number of nodes in the directory.
	Known int `json:"known"`
	// Summary says in a sentence which requirement leaves how many.
	Summary string `json:"summary,omitempty"`
	// Notes are warnings that do not stop a submission.
	Notes []string `json:"notes,omitempty"`
}

// JobState is where a job stands (scheduling.md 4).
type JobState string

// Over says that the state is final.
func (s JobState) Over() bool { return s == "done" || s == "failed" || s == "cancelled" }

// JobStatus answers GET /jobs/{id}, POST /jobs and the waits.
type JobStatus struct {
	// ID names the job.
	ID JobID `json:"job_id"`
	// Seq grows with each change of the job: what GET /jobs/{id}/wait?since= takes. It may jump.
	Seq uint64 `json:"seq"`
	// Name and Kind are the job file's.
	Name string `json:"name"`
	// Kind is the job file's.
	Kind JobKind `json:"kind"`
	// User owns it.
	User string `json:"user,omitempty"`
	// State is where it stands.
	State JobState `json:"state"`
	// Reason is the name of the Reason of its end, or of why it waits.
	Reason string `json:"reason,omitempty"`
	// Text says the same for people, with what to do.
	Text string `json:"text,omitempty"`
	// ChunksTotal is how many chunks are cut so far, and all of them once Cut is set.
	ChunksTotal uint64 `json:"chunks_total"`
	// ChunksDone are accounted.
	ChunksDone uint64 `json:"chunks_done"`
	// ChunksFailed ended for good.
	ChunksFailed uint64 `json:"chunks_failed"`
	// ChunksRunning have a live lease.
	ChunksRunning uint64 `json:"chunks_running"`
	// Cut says that all inputs are in chunks.
	Cut bool `json:"cut"`
	// Inputs is the length of the input sequence, InputsDone how many of it are accounted.
	Inputs uint64 `json:"inputs"`
	// InputsDone is how many inputs are accounted.
	InputsDone uint64 `json:"inputs_done"`
	// CallsFailed are the inputs of a function that ended with an exception, a timeout, a killed process or for want of a
	// node in time; those that were cancelled do not count. Note says how the last of them ended.
	CallsFailed uint64 `json:"calls_failed,omitempty"`
	// Leases counts attempts.
	Leases uint64 `json:"leases"`
	// Created, Started and Ended are the job's times.
	Created time.Time `json:"created"`
	// Started is when its first chunk was leased.
	Started time.Time `json:"started,omitzero"`
	// Ended is when it reached a final state.
	Ended time.Time `json:"ended,omitzero"`
	// Nodes are who works or worked for it.
	Nodes []JobNode `json:"nodes,omitempty"`
	// Retried are the chunks that needed a further lease, at most 1,000.
	Retried []RetriedChunk `json:"retried,omitempty"`
	// ResultCID is the UnixFS root of its outputs once it is done.
	ResultCID string `json:"result_cid,omitempty"`
	// Note says what is unusual about the result.
	Note string `json:"note,omitempty"`
	// SpentUUSD is what was charged, micro-USD; MaxSpendUUSD what may be, 0 is the user's credit.
	SpentUUSD int64 `json:"spent_uusd"`
	// MaxSpendUUSD is what may be charged, micro-USD; 0 is the user's credit.
	MaxSpendUUSD int64 `json:"max_spend_uusd,omitempty"`
	// Receipts counts the usage records that node and bridge signed for it.
	Receipts uint64 `json:"receipts,omitempty"`
	// Volumes are what it reads, as they were resolved.
	Volumes []VolumeInfo `json:"volumes,omitempty"`
}

// JobNode is one node's part of a job.
type JobNode struct {
	// PeerID is the node.
	PeerID PeerID `json:"peer_id,omitempty"`
	// State is member, left or lost.
	State string `json:"state"`
	// Slots is how many chunks it runs at once.
	Slots int `json:"slots"`
	// Chunks are accounted to it, Failed ended badly on it.
	Chunks uint64 `json:"chunks"`
	// Failed are attempts that ended badly on it.
	Failed uint64 `json:"failed,omitempty"`
	// CPUSeconds is processor time.
	CPUSeconds float64 `json:"cpu_seconds"`
	// WorkingMS is slot time in which the job's code ran, milliseconds.
	WorkingMS int64 `json:"working_ms"`
	// BlocksFetched counts blocks that came over the wire.
	BlocksFetched uint64 `json:"blocks_fetched"`
	// ScoreBefore is its overall score when it joined, ScoreAfter the present one or that of the job's end.
	ScoreBefore float64 `json:"score_before"`
	// ScoreAfter is its present overall score, or that of the job's end.
	ScoreAfter float64 `json:"score_after"`
	// SpentUUSD is what was charged for it, micro-USD.
	SpentUUSD int64 `json:"spent_uusd"`
}

// RetriedChunk is a chunk that was leased again.
type RetriedChunk struct {
	// First and End are its half-open range of inputs.
	First uint64 `json:"first"`
	// End is the input after its last.
	End uint64 `json:"end"`
	// Fence is the fence of its newest lease.
	Fence uint64 `json:"fence"`
	// LostNode held the lease before.
	LostNode PeerID `json:"lost_node,omitempty"`
	// Reason is how that lease ended.
	Reason string `json:"reason,omitempty"`
}

// JobList answers GET /jobs.
type JobList struct {
	// Jobs are the newest first, without nodes and retried chunks.
	Jobs []JobStatus `json:"jobs"`
	// More says that older ones were left out.
	More bool `json:"more,omitempty"`
}

// LogLine is one line of GET /jobs/{id}/logs, which is a stream of JSON objects, one a line.
type LogLine struct {
	// Node wrote it.
	Node PeerID `json:"node,omitempty"`
	// Lease is the attempt.
	Lease LeaseID `json:"lease"`
	// First and End are the chunk's inputs.
	First uint64 `json:"first"`
	// End is the input after the chunk's last.
	End uint64 `json:"end"`
	// Text is the line without its end, at most 64 KiB.
	Text string `json:"text"`
	// At is when the bridge had it, zero if it is not known.
	At time.Time `json:"at,omitzero"`
	// Dropped counts bytes that were lost before this line.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Explain answers GET /jobs/{id}/explain: why these nodes, predicted and actual.
type Explain struct {
	// Job is what it is about.
	Job JobID `json:"job_id"`
	// At is when the selection was made.
	At time.Time `json:"at"`
	// Total is the number of candidates, Matching how many met every requirement.
	Total int `json:"total"`
	// Matching is how many met every requirement.
	Matching int `json:"matching"`
	// Summary is one sentence.
	Summary string `json:"summary"`
	// Filters are the requirements in the order of evaluation.
	Filters []ExplainFilter `json:"filters"`
	// Chosen are the nodes with the parts of their expected time.
	Chosen []ExplainNode `json:"chosen"`
	// Notes are further sentences.
	Notes []string `json:"notes,omitempty"`
	// PredictedSeconds is the makespan as foreseen, ActualSeconds as it was; 0 is not known.
	PredictedSeconds float64 `json:"predicted_seconds,omitempty"`
	// ActualSeconds is the makespan as it was.
	ActualSeconds float64 `json:"actual_seconds,omitempty"`
}

// ExplainFilter is what one requirement did.
type ExplainFilter struct {
	// Name is the field of the job file.
	Name string `json:"name"`
	// Want is the requirement with its value.
	Want string `json:"want"`
	// Removed is how many candidates it alone rules out.
	Removed int `json:"removed"`
	// Left is how many were left after it and all before it.
	Left int `json:"left"`
	// Best is the best value that was there, where it left nobody.
	Best string `json:"best,omitempty"`
}

// ExplainNode is one chosen node: E = (queue + start + data + run + RTT) / P (scheduling.md 3).
type ExplainNode struct {
	// PeerID is the node.
	PeerID PeerID `json:"peer_id,omitempty"`
	// Rank is its place among all that match, from 1.
	Rank int `json:"rank"`
	// Region is the share of the job that it fills.
	Region string `json:"region,omitempty"`
	// Slots is how many chunks it can start.
	Slots int `json:"slots"`
	// Queue to RTT are seconds.
	Queue float64 `json:"queue_s"`
	// Start is the transfer of the module and the executor's start, seconds.
	Start float64 `json:"start_s"`
	// Data is the transfer of volumes, seconds.
	Data float64 `json:"data_s"`
	// Run is the predicted run of a chunk, seconds.
	Run float64 `json:"run_s"`
	// RTT is bridge to node, seconds.
	RTT float64 `json:"rtt_s"`
	// P is the lower bound of its success probability.
	P float64 `json:"p"`
	// E is the expected time to a good result, seconds.
	E float64 `json:"e_s"`
	// Cents is a chunk's price in US cents.
	Cents float64 `json:"cents"`
	// ActualRun is the mean run of its chunks as it was, seconds; 0 is not known.
	ActualRun float64 `json:"actual_run_s,omitempty"`
}

// NodeInfo is one node as the bridge knows it: an entry of GET /nodes.
type NodeInfo struct {
	// PeerID is the node.
	PeerID PeerID `json:"peer_id,omitempty"`
	// State is READY, BUSY, PAUSED, DRAINING, LEAVING or STALE.
	State string `json:"state"`
	// Standing is anchor, vetted, probation or barred.
	Standing string `json:"standing"`
	// Connected says that there is a connection now.
	Connected bool `json:"connected"`
	// Agent is its program and version.
	Agent string `json:"agent,omitempty"`
	// Cores, MemoryBytes and DiskBytes are what it has for work.
	Cores float64 `json:"cores"`
	// MemoryBytes is memory for work.
	MemoryBytes uint64 `json:"memory_bytes"`
	// DiskBytes is disk for work.
	DiskBytes uint64 `json:"disk_bytes"`
	// GPUs are its device sets.
	GPUs []NodeGPU `json:"gpus,omitempty"`
	// Region and Country are where it says it stands.
	Region string `json:"region,omitempty"`
	// Country is the ISO code.
	Country string `json:"country,omitempty"`
	// RegionCheck is what round trips say of it: consistent, contradicted, unverified; empty where nobody looked.
	RegionCheck string `json:"region_check,omitempty"`
	// Slots is how many chunks it runs at once, SlotsFree how many of them are free.
	Slots int `json:"slots"`
	// SlotsFree is how many slots are free.
	SlotsFree int `json:"slots_free"`
	// AskUUSD is its price, micro-USD per slot-hour.
	AskUUSD int64 `json:"ask_uusd"`
	// RTTMS is bridge to node in milliseconds; 0 is not known.
	RTTMS float64 `json:"rtt_ms,omitempty"`
	// Heard is when its last heartbeat came.
	Heard time.Time `json:"heard,omitzero"`
	// Score is its overall score O (trust.md 9).
	Score float64 `json:"score"`
}

// NodeGPU is a set of identical devices.
type NodeGPU struct {
	// Model is the slug.
	Model string `json:"model"`
	// Count is the number of devices.
	Count int `json:"count"`
	// VRAMGB is the nominal memory of each.
	VRAMGB int `json:"vram_gb"`
}

// NodeList answers GET /nodes.
type NodeList struct {
	// Nodes are in the order of their peer IDs.
	Nodes []NodeInfo `json:"nodes"`
}

// Reputation answers GET /nodes/{peer}/reputation: this rater's view of a node (trust.md 9).
type Reputation struct {
	// PeerID is the node, Group the operator or subnet that it is counted with.
	PeerID PeerID `json:"peer_id,omitempty"`
	// Group is the operator or subnet that it is counted with.
	Group string `json:"group,omitempty"`
	// Rater is the bridge.
	Rater PeerID `json:"rater,omitempty"`
	// At is when it was computed: evidence decays.
	At time.Time `json:"at"`
	// Standing is anchor, vetted, probation, suspended, contained or disqualified.
	Standing string `json:"standing"`
	// Score is O, the weighted product of the lower bounds.
	Score float64 `json:"score"`
	// P is Lcomp × Lcorr, the scheduler's success probability.
	P float64 `json:"p"`
	// Criteria are the parts of the score.
	Criteria []CriterionScore `json:"criteria"`
	// Checks is the number of passed checks.
	Checks uint64 `json:"checks"`
	// Incidents are the newest ends that spoke against it, at most 20.
	Incidents []Incident `json:"incidents,omitempty"`
	// Next says what it takes to the next standing.
	Next string `json:"next,omitempty"`
}

// CriterionScore is one part of a score.
type CriterionScore struct {
	// Criterion is completion, correctness, uptime, performance or responsiveness.
	Criterion Criterion `json:"criterion"`
	// Good and Bad are the decayed evidence.
	Good float64 `json:"good"`
	// Bad is the decayed evidence against it.
	Bad float64 `json:"bad"`
	// Lower is L, the 5 % quantile of Beta(good+1, bad+1).
	Lower float64 `json:"lower"`
	// Weight is its exponent in O.
	Weight float64 `json:"weight"`
}

// Incident is an end of an attempt that spoke against a node.
type Incident struct {
	// At is when.
	At time.Time `json:"at"`
	// Reason is the end's, Blame who it is put on.
	Reason string `json:"reason"`
	// Blame is who it is put on.
	Blame string `json:"blame"`
	// Job is where it happened.
	Job JobID `json:"job_id,omitzero"`
	// Without is what the score would be without it.
	Without float64 `json:"without,omitempty"`
}

// Account answers GET /account and POST /credit; amounts are micro-USD.
type Account struct {
	// User owns it.
	User string `json:"user"`
	// CreditUUSD may be spent.
	CreditUUSD int64 `json:"credit_uusd"`
	// ReservedUUSD is set aside for running jobs.
	ReservedUUSD int64 `json:"reserved_uusd"`
	// SpentUUSD was charged in all.
	SpentUUSD int64 `json:"spent_uusd"`
	// Recent are the newest transactions that touched it, at most 100.
	Recent []Transaction `json:"recent,omitempty"`
}

// CreditRequest is the body of POST /credit: money that came in, posted by whoever runs the bridge.
type CreditRequest struct {
	// User gets it.
	User string `json:"user"`
	// AmountUUSD is positive, micro-USD.
	AmountUUSD int64 `json:"amount_uusd"`
	// Source is where it comes from: render, card, ach, or grant/<program>.
	Source string `json:"source"`
	// Ref names the payment or grant; the same source and ref are posted once.
	Ref string `json:"ref"`
}

// VolumeInfo is a volume of the bridge: the answer to PUT and GET /volumes/{name}.
type VolumeInfo struct {
	// Name is the bridge's name for it.
	Name string `json:"name"`
	// CID is its UnixFS root.
	CID string `json:"cid"`
	// Bytes is the size of its files.
	Bytes uint64 `json:"bytes"`
	// Blocks is the number of its distinct blocks.
	Blocks uint64 `json:"blocks"`
	// Files is the number of its files.
	Files uint64 `json:"files"`
	// Created is when the name got this root.
	Created time.Time `json:"created,omitzero"`
}

// VolumeList answers GET /volumes.
type VolumeList struct {
	// Volumes are in the order of their names.
	Volumes []VolumeInfo `json:"volumes"`
}

// TokenRequest is the body of POST /tokens. An empty user is the caller; empty scopes are jobs.
type TokenRequest struct {
	// User will act by the token; only an admin names another than itself.
	User string `json:"user,omitempty"`
	// Name tells a user's tokens apart, for people.
	Name string `json:"name,omitempty"`
	// Scopes are read, invoke, jobs or admin; none may be above the caller's own.
	Scopes []string `json:"scopes,omitempty"`
}

// Token is a bearer token without its text.
type Token struct {
	// ID names it: the first 12 hex digits of its SHA-256.
	ID string `json:"id"`
	// User acts by it.
	User string `json:"user"`
	// Name is for people.
	Name string `json:"name"`
	// Scopes are what it may do.
	Scopes []string `json:"scopes"`
	// Created is when it was made.
	Created time.Time `json:"created"`
	// Revoked is when it was taken back; zero while it is good.
	Revoked time.Time `json:"revoked,omitzero"`
}

// NewToken answers POST /tokens: the only time that a token's text is told.
type NewToken struct {
	Token
	// Text is the token.
	Text string `json:"token"`
}

// TokenList answers GET /tokens.
type TokenList struct {
	// Tokens are the caller's, an admin's answer has everybody's; oldest first.
	Tokens []Token `json:"tokens"`
}
