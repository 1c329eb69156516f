package beamapi

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// What the bridge may answer with, wrapped or not. Every other error that is no *Refusal is logged, and its caller
// only learns that the bridge failed.
var (
	// ErrNotFound means that there is no such thing in the caller's workspace.
	ErrNotFound = errors.New("beamapi: not found")
	// ErrUnauthenticated means a token that is not known, or was revoked.
	ErrUnauthenticated = errors.New("beamapi: unknown token")
	// ErrBusy means that a bound of the workspace is reached, such as that of waiting calls.
	ErrBusy = errors.New("beamapi: busy")
	// ErrInactive means a deployment that was stopped.
	ErrInactive = errors.New("beamapi: deployment is not active")
	// ErrUnavailable means that the bridge is going down and takes nothing new.
	ErrUnavailable = errors.New("beamapi: unavailable")
)

// Refusal is an error whose text is for the user: what is wrong and what to do about it. It is the err_msg of an answer
// with ok = false.
type Refusal struct {
	// Text is one or two sentences.
	Text string
}

// Error returns the text.
func (r *Refusal) Error() string { return r.Text }

// Role is what a token may do.
type Role string

// The roles of beam-interface.md 2.
const (
	RoleFull   Role = "full"   // RoleFull does everything in its workspace.
	RoleInvoke Role = "invoke" // RoleInvoke calls what is there and reads.
	RoleRead   Role = "read"   // RoleRead only looks.
	RoleTask   Role = "task"   // RoleTask is one task's own, for a runner.
)

// Principal is who a token stands for.
type Principal struct {
	// Workspace owns functions, volumes and calls; its id and its name are the same.
	Workspace string
	// TokenID tells tokens of a workspace apart; it is no secret.
	TokenID string
	// Role is the token's.
	Role Role
}

// Tokens are known to the bridge.
type Tokens interface {
	// Authenticate returns who a token stands for, or ErrUnauthenticated.
	Authenticate(ctx context.Context, token string) (Principal, error)
	// StillGood returns ErrUnauthenticated when the token that a principal came by was revoked, or may not do
	// everything in its workspace any more.
	StillGood(ctx context.Context, who Principal) error
}

// Object is an archive of a user's code.
type Object struct {
	// ID is Hash.
	ID string
	// Hash is the SHA-256 of the archive, 64 hex digits in lower case.
	Hash string
	// Name is the client's, often Hash again.
	Name string
	// Size is that of the archive in bytes.
	Size int64
}

// Objects keep archives.
type Objects interface {
	// Object returns an archive's entry, or ErrNotFound.
	Object(ctx context.Context, who Principal, hash string) (Object, error)
	// PutObject keeps an archive durably. size is that of r, -1 where it is not known. r ends with an error when its
	// bytes do not have the hash, and nothing is kept then. An archive that cannot be unpacked is a *Refusal.
	PutObject(ctx context.Context, who Principal, hash string, size int64, name string, r io.Reader) (Object, error)
}

// Stub is a function as its client has prepared it: GetOrCreateStub, translated.
type Stub struct {
	// ID is the bridge's; empty on the way in.
	ID string `json:"id,omitempty"`
	// Digest is the SHA-256 of the request: an equal one is the same stub, unless the client forces a new one.
	Digest [32]byte `json:"digest"`
	// Name is its name for people.
	Name string `json:"name"`
	// Type is Beam's word, such as function or function/deployment.
	Type string `json:"type"`
	// App is what the client groups stubs by; may be empty.
	App string `json:"app,omitempty"`
	// Object is the hash of the code's archive; the bridge makes Job.Run.Code of it.
	Object string `json:"object"`
	// Image is the client's image id; the host runtime is in Job.Run.Host.
	Image string `json:"image,omitempty"`
	// Job is what a call runs: kind map with open inputs, valid but for Run.Code. Policy.Timeout bounds one input,
	// Policy.Start its wait, Placement and Resources are never weaker than the client asked.
	Job protocol.Job `json:"job"`
	// Pool names a policy of the operator that the bridge has to merge, the stricter of each; empty is none. One that is
	// not known is a *Refusal that lists the known.
	Pool string `json:"pool,omitempty"`
	// Life ends the cluster that works for it, counted from its first call; 0 is without end. Job.Policy.Deadline is
	// the same.
	Life time.Duration `json:"life,omitempty"`
	// MaxPending bounds its waiting calls, 0 is the workspace's bound; beyond it Invoke is ErrBusy.
	MaxPending uint32 `json:"max_pending,omitempty"`
	// MaxReplicas bounds the processes that serve it at one time, 0 is no bound but the workspace's.
	MaxReplicas uint32 `json:"max_replicas,omitempty"`
	// ResultAny says that its caller takes any pickle as a result (GRIDBEAM_RESULT_PICKLE=any).
	ResultAny bool `json:"result_any,omitempty"`
	// ResultAllow are further names, module.Name, that a result may have (GRIDBEAM_RESULT_ALLOW).
	ResultAllow []string `json:"result_allow,omitempty"`
	// Warnings are what the client is told of what it does not get, in the order of the request.
	Warnings []string `json:"warnings,omitempty"`
	// Created is the bridge's; zero on the way in.
	Created time.Time `json:"created,omitzero"`
}

// StubReply is what became of a stub.
type StubReply struct {
	// ID is the stub's, the same for an equal request unless a new one was forced.
	ID string
	// Warning is for people: why it may wait. Empty where nothing is to be said.
	Warning string
	// Capacity is empty, available or low; never none.
	Capacity string
	// UnsupportedGPUs are names of the request that no known node has.
	UnsupportedGPUs []string
	// Pool is the operator's policy that was applied.
	Pool string
}

// Deployment is a stub under a name and a version.
type Deployment struct {
	// ID is the bridge's.
	ID string
	// Name is the user's.
	Name string
	// Version counts from 1 within workspace, name and type.
	Version uint32
	// Active says that it can be called.
	Active bool
	// StubID, StubType and StubName are those of the stub that it runs.
	StubID, StubType, StubName string
	// App is the stub's.
	App string
	// Created is when it was deployed, Updated when it last changed.
	Created, Updated time.Time
}

// DeploymentKey finds one deployment: by ID, or by all of the others.
type DeploymentKey struct {
	// ID is the bridge's; with it the rest is empty.
	ID string
	// Type is a stub type with its suffix, such as function/deployment.
	Type string
	// Name is the user's.
	Name string
	// Version counts from 1; 0 is the newest that is not deleted.
	Version uint32
}

// DeploymentFilter asks for deployments; an empty field does not choose.
type DeploymentFilter struct {
	// Types, Names, StubIDs and Apps are each a choice.
	Types, Names, StubIDs, Apps []string
	// Active, where it is set, asks for those that answer, or for those that do not.
	Active *bool
	// Limit is the most that is answered, 1..1,000.
	Limit int
}

// Stubs keep what can be called.
type Stubs interface {
	// PutStub keeps a stub durably. An object that is not there, or a need that no node can ever meet, is a *Refusal;
	// one that no node meets now is a Warning. force makes a new stub of an equal request.
	PutStub(ctx context.Context, who Principal, s Stub, force bool) (StubReply, error)
	// Stub returns a stub, or ErrNotFound.
	Stub(ctx context.Context, who Principal, id string) (Stub, error)
	// Deploy gives a stub the next version of a name.
	Deploy(ctx context.Context, who Principal, stubID, name string) (Deployment, error)
	// Deployment returns one that is not deleted, active or not, or ErrNotFound.
	Deployment(ctx context.Context, who Principal, key DeploymentKey) (Deployment, error)
	// Deployments returns the newest first.
	Deployments(ctx context.Context, who Principal, f DeploymentFilter) ([]Deployment, error)
}

// Lifecycle changes deployments.
type Lifecycle interface {
	// SetActive starts or stops a deployment; calls under way go on.
	SetActive(ctx context.Context, who Principal, id string, active bool) error
	// DeleteDeployment ends it for good; its version is not given again.
	DeleteDeployment(ctx context.Context, who Principal, id string) error
}

// Call is one call of a function.
type Call struct {
	// StubID is what is called.
	StubID string
	// Deployment is the id of the deployment that was called by name; else empty.
	Deployment string
	// Args are args and kwargs, as Encoding says; at most 15 MiB.
	Args []byte
	// Encoding is that of Args, and the wished one of the result.
	Encoding protocol.Encoding
	// Headless says that the call goes on when its caller goes away.
	Headless bool
}

// Status is where a call stands, in Beam's words.
type Status string

// The statuses of beam-interface.md 6.8.
const (
	StatusPending   Status = "PENDING"   // StatusPending waits for a node.
	StatusRunning   Status = "RUNNING"   // StatusRunning is at a node.
	StatusRetry     Status = "RETRY"     // StatusRetry waits to be run again.
	StatusComplete  Status = "COMPLETE"  // StatusComplete has a result.
	StatusError     Status = "ERROR"     // StatusError has failed for good.
	StatusCancelled Status = "CANCELLED" // StatusCancelled was withdrawn.
	StatusTimeout   Status = "TIMEOUT"   // StatusTimeout ran for too long.
	StatusExpired   Status = "EXPIRED"   // StatusExpired waited for too long.
)

// Final says that a status does not change any more.
func (s Status) Final() bool {
	switch s {
	case StatusComplete, StatusError, StatusCancelled, StatusTimeout, StatusExpired:
		return true
	}
	return false
}

// Task is a call as it stands.
type Task struct {
	// ID is the task id that Invoke gave.
	ID string
	// Status is where it stands.
	Status Status
	// StubID, StubName and StubType are those of what was called.
	StubID, StubName, StubType string
	// DeploymentID, DeploymentName and DeploymentVersion are set when it was called by name.
	DeploymentID, DeploymentName string
	// DeploymentVersion counts from 1.
	DeploymentVersion uint32
	// Node is the peer id of the node that has it or had it last.
	Node string
	// Created is when it came, Started when a node began it, Ended when it was over; zero is not yet.
	Created, Started, Ended time.Time
	// Result is what it returned; only Calls.Task fills it, and only for a complete one.
	Result []byte
	// Encoding is that of Result.
	Encoding protocol.Encoding
	// Exit is 0 or as beam-interface.md 6.7 has it.
	Exit int32
	// Text says why it failed: a traceback, or the reason for people.
	Text string
}

// TaskFilter asks for calls; an empty field does not choose.
type TaskFilter struct {
	// Statuses are Beam's words.
	Statuses []Status
	// IDs, StubIDs, StubNames and Nodes are each a choice.
	IDs, StubIDs, StubNames, Nodes []string
	// Limit is the most that is answered, 1..1,000.
	Limit int
}

// Calls run functions.
type Calls interface {
	// Invoke takes a call durably and returns at once. What only this call cannot have is told by its last Event; an
	// error is for what cannot be served at all: ErrNotFound, ErrBusy, ErrUnavailable, a *Refusal.
	Invoke(ctx context.Context, who Principal, c Call) (Running, error)
	// Task returns a call with its result, or ErrNotFound.
	Task(ctx context.Context, who Principal, id string) (Task, error)
	// Await is Task as soon as its status is another one than not; what is final is returned at once. It returns ctx's
	// error when ctx ends before.
	Await(ctx context.Context, who Principal, id string, not Status) (Task, error)
	// Tasks returns the newest first without results, and how many there are in all.
	Tasks(ctx context.Context, who Principal, f TaskFilter) ([]Task, int, error)
	// StopTasks cancels calls; those that are over stay as they are. ErrNotFound names one that is not there.
	StopTasks(ctx context.Context, who Principal, ids []string) error
}

// Event is something that a call tells its caller.
type Event struct {
	// Output is text that it printed, or the reason of its end; may be empty.
	Output string
	// Done says that this is the last event.
	Done bool
	// Exit is, with Done, 0, 1 error, 2 cannot load, 3 cancelled, 4 timeout or -9 killed.
	Exit int32
	// Result is, with Done and Exit 0, what it returned.
	Result []byte
	// Encoding is that of Result.
	Encoding protocol.Encoding
}

// Running is a call whose caller waits. It belongs to one goroutine.
type Running interface {
	// TaskID is the call's id.
	TaskID() string
	// Next waits for the next event; there is none after one with Done. An error is ctx's, or a failure of the bridge.
	Next(ctx context.Context) (Event, error)
	// Abandon says that the caller has gone: the call is withdrawn or stopped unless it is headless. After the last
	// event it does nothing.
	Abandon()
}

// Volume is a volume's name and size.
type Volume struct {
	// ID is the bridge's, Name the user's.
	ID, Name string
	// Size is that of its files in bytes.
	Size uint64
	// Created is when it was made, Updated when it last changed.
	Created, Updated time.Time
}

// Volumes keep files.
type Volumes interface {
	// GetOrCreateVolume returns the volume of a name, empty if it is new. The name is valid.
	GetOrCreateVolume(ctx context.Context, who Principal, name string) (Volume, error)
	// Volumes returns all of a workspace's, by name.
	Volumes(ctx context.Context, who Principal) ([]Volume, error)
}

// Bridge is everything that the face speaks to.
type Bridge struct {
	// Tokens knows who calls.
	Tokens Tokens
	// Objects keep code.
	Objects Objects
	// Stubs keep what can be called.
	Stubs Stubs
	// Lifecycle changes deployments.
	Lifecycle Lifecycle
	// Calls run functions.
	Calls Calls
	// Volumes keep files.
	Volumes Volumes
}

// Gate judges a pickle before a client that would unpickle it gets it: allow are further names, module.Name, and all
// takes everything. The error's text is for the user.
type Gate func(result []byte, allow []string, all bool) error
