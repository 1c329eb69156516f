package api

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrBadToken is what an Authorizer returns for a token that is unknown, revoked or expired.
var ErrBadToken = errors.New("api: bad token")

// Scope is what a token may be used for.
type Scope string

// The scopes. Each holds the one before it.
const (
	ScopeRead   Scope = "read"   // ScopeRead looks at jobs, volumes, nodes and the account.
	ScopeInvoke Scope = "invoke" // ScopeInvoke also calls functions that are there, by Beam's API.
	ScopeJobs   Scope = "jobs"   // ScopeJobs also submits and cancels jobs, prepares functions and makes volumes.
	ScopeAdmin  Scope = "admin"  // ScopeAdmin also posts credit and sees what belongs to others.
)

// Principal is who a token stands for.
type Principal struct {
	// User owns jobs, volumes and an account.
	User string
	// Scopes are the token's.
	Scopes []Scope
}

// Can says whether the principal has a scope, or one that holds it.
func (p Principal) Can(s Scope) bool {
	need := slices.Index(scopes, s)
	if need < 0 { // one that this version does not know is nobody's
		return false
	}
	for _, has := range p.Scopes {
		if slices.Index(scopes, has) >= need {
			return true
		}
	}
	return false
}

// Authorizer knows tokens.
type Authorizer interface {
	// Authorize returns who a token stands for, or ErrBadToken; another error is a failure of its own.
	Authorize(ctx context.Context, token string) (Principal, error)
}

// The interfaces below are the bridge as the API needs it. Every method may return a *protocol.APIError, which
// is sent as it is, or an error that wraps protocol.ErrBadJob; any other error is logged and sent as
// CodeInternal. What belongs to another user is CodeNotFound.

// JobQuery asks for jobs.
type JobQuery struct {
	// States are wanted; none is all.
	States []protocol.JobState
	// Limit is the most that is answered, 1..1,000.
	Limit int
	// All asks for every user's jobs; only an admin's query has it.
	All bool
}

// Jobs take jobs and tell how they stand.
type Jobs interface {
	// SubmitJob stores a job durably and begins to look for nodes. The request's job is valid.
	SubmitJob(ctx context.Context, who Principal, req protocol.SubmitRequest) (protocol.JobStatus, error)
	// CheckJob answers what SubmitJob would say, and starts nothing; ModuleCID is empty.
	CheckJob(ctx context.Context, who Principal, req protocol.SubmitRequest) (protocol.ValidateReply, error)
	// Job returns how a job stands.
	Job(ctx context.Context, who Principal, id protocol.JobID) (protocol.JobStatus, error)
	// ListJobs returns the newest first.
	ListJobs(ctx context.Context, who Principal, q JobQuery) (protocol.JobList, error)
	// WaitJob returns how a job stands as soon as it is over, its Seq is above since, or ctx ends; the end of
	// ctx is no error.
	WaitJob(ctx context.Context, who Principal, id protocol.JobID, since uint64) (protocol.JobStatus, error)
}

// Outcomes tell what came of a job, and end it.
type Outcomes interface {
	// CancelJob ends a job for good; one that is over stays as it is.
	CancelJob(ctx context.Context, who Principal, id protocol.JobID) (protocol.JobStatus, error)
	// JobLogs hands over the job's log line by line, with follow until it is over or ctx ends. It stops with
	// the error of line.
	JobLogs(ctx context.Context, who Principal, id protocol.JobID, follow bool, line func(protocol.LogLine) error) error
	// ExplainJob returns why these nodes.
	ExplainJob(ctx context.Context, who Principal, id protocol.JobID) (protocol.Explain, error)
	// JobResults returns the outputs as files and their root CID; CodeNotYet before the job is over. Files that
	// can be closed are closed after use (io.Closer).
	JobResults(ctx context.Context, who Principal, id protocol.JobID) (fs.FS, string, error)
	// JobStatement returns what it used and cost.
	JobStatement(ctx context.Context, who Principal, id protocol.JobID) (protocol.Statement, error)
}

// Volumes keep trees of files.
type Volumes interface {
	// PutModule keeps a WebAssembly module durably: fsys holds one file, module.wasm.
	PutModule(ctx context.Context, who Principal, fsys fs.FS) (protocol.ModuleInfo, error)
	// PutVolume keeps a tree durably under a name; the name moves from the tree that it had.
	PutVolume(ctx context.Context, who Principal, name string, fsys fs.FS) (protocol.VolumeInfo, error)
	// Volume returns what a name stands for.
	Volume(ctx context.Context, who Principal, name string) (protocol.VolumeInfo, error)
	// ListVolumes returns all of a user's, by name.
	ListVolumes(ctx context.Context, who Principal) (protocol.VolumeList, error)
}

// Nodes are known to the bridge.
type Nodes interface {
	// ListNodes returns those that match; nil is all, whatever their state.
	ListNodes(ctx context.Context, who Principal, where *protocol.Filter) (protocol.NodeList, error)
	// Reputation returns the bridge's view of a node.
	Reputation(ctx context.Context, who Principal, node protocol.PeerID) (protocol.Reputation, error)
}

// Money is the users' accounts.
type Money interface {
	// Account returns the principal's own.
	Account(ctx context.Context, who Principal) (protocol.Account, error)
	// Credit posts money that came in, once for each source and ref. The request is within bounds.
	Credit(ctx context.Context, who Principal, req protocol.CreditRequest) (protocol.Account, error)
}

// Tokens are made, listed and taken back.
type Tokens interface {
	// MakeToken makes a token; the request is complete, and its user and scopes are within what who may give.
	MakeToken(ctx context.Context, who Principal, req protocol.TokenRequest) (protocol.NewToken, error)
	// ListTokens returns who's tokens, revoked ones too; an admin's answer has everybody's.
	ListTokens(ctx context.Context, who Principal) (protocol.TokenList, error)
	// DropToken takes back the token with an ID, from this moment on. One of another user is CodeNotFound, but for an
	// admin; one with a scope that who lacks is CodeForbidden, one that was taken back CodeConflict.
	DropToken(ctx context.Context, who Principal, id string) error
}

// System tells how the bridge itself stands.
type System interface {
	// Status must answer at once, whatever else is going on.
	Status(ctx context.Context) (protocol.BridgeStatus, error)
}

// Bridge is everything that the API speaks to.
type Bridge struct {
	// Auth knows tokens.
	Auth Authorizer
	// Jobs take jobs.
	Jobs Jobs
	// Outcomes tell what came of them.
	Outcomes Outcomes
	// Volumes keep files.
	Volumes Volumes
	// Nodes are the directory.
	Nodes Nodes
	// Money is the accounts.
	Money Money
	// System is the bridge itself.
	System System
	// Tokens are who may call.
	Tokens Tokens
}
