package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Sentinel errors.
var (
	// ErrBadTask means that a Task breaks a rule; the text names the field.
	ErrBadTask = errors.New("executor: task refused")
	// ErrGone means that a Token names nothing that runs here: the process that ran it has ended. Whether
	// the work is repeated is the lease machine's decision (execution.md 8).
	ErrGone = errors.New("executor: no such run")
	// ErrClosed means that the backend was closed.
	ErrClosed = errors.New("executor: backend is closed")
)

// Level is how far a backend keeps a job from the host (execution.md 2). Higher is safer.
type Level uint8

// Levels.
const (
	// LevelDev isolates nothing.
	LevelDev Level = iota + 1
	// LevelShared shares the host's kernel.
	LevelShared
	// LevelStrong has a kernel surface of its own.
	LevelStrong
)

// String returns the level as policies and job files spell it.
func (l Level) String() string {
	switch l {
	case LevelDev:
		return "dev"
	case LevelShared:
		return "shared"
	case LevelStrong:
		return "strong"
	default:
		return fmt.Sprintf("level %d", uint8(l))
	}
}

// Backend runs tasks in one way. All methods may be called from many goroutines.
type Backend interface {
	// Probe proves that the backend works on this machine by running code of its own. What it cannot
	// enforce here is an error, and the node does not advertise the backend.
	Probe(ctx context.Context) (Report, error)
	// Prepare does whatever comes before the first instruction of the job: fetch, check, compile. It is
	// idempotent and cached. Errors wrap a *Failure.
	Prepare(ctx context.Context, task Task) (*Prepared, error)
	// Start begins to run what was prepared and returns at once. ctx bounds the start, not the run: a run
	// ends by itself, by its limits, by Handle.Stop or when the backend closes. Errors wrap a *Failure.
	Start(ctx context.Context, p *Prepared) (Handle, error)
	// Reattach finds a run again after the caller lost its Handle; ErrGone if there is none. log takes what the run
	// prints and has printed, as far as it is still there; nil drops it.
	Reattach(ctx context.Context, token Token, log *Log) (Handle, error)
}

// Handle is one run.
type Handle interface {
	// Token names the run for Reattach.
	Token() Token
	// Wait returns the outcome when the run has ended and everything it held is released. It fails only
	// with ctx's error, and may be called any number of times.
	Wait(ctx context.Context) (Outcome, error)
	// Stop ends the run for the given reason, after at most grace where the backend can give notice. Only
	// the first cause of an end counts. It does not wait.
	Stop(why protocol.Reason, grace time.Duration)
	// Usage is what was used so far.
	Usage() Usage
}

// Token names a run across a restart of the node: the backend's name, a colon, the backend's own text.
type Token string

// Report is what Probe found.
type Report struct {
	// Backend is the backend's name, such as "wasm".
	Backend string
	// Version names the engine, such as "wazero 1.12.0".
	Version string
	// Level is the isolation that was proven.
	Level Level
	// Checks are the names of the self-tests that passed.
	Checks []string
	// Runtimes are the host runtimes that a Function may name, such as python3.11; empty for other backends.
	Runtimes []string
}

// Prepared is a task that is ready to start.
type Prepared struct {
	// Task is what was prepared.
	Task Task
	// State belongs to the backend that prepared it.
	State any
}

// Failure is an end before the start, or a fault of something that a run was given (a file system may
// return one to say whose fault a failed read is).
type Failure struct {
	// Reason is the end's reason.
	Reason protocol.Reason
	// Err is the cause.
	Err error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Fail makes a Failure of a reason and a text like fmt.Errorf's.
func Fail(why protocol.Reason, format string, args ...any) error {
	return &Failure{Reason: why, Err: fmt.Errorf(format, args...)}
}

// ReasonOf is the Reason that an error of Prepare or Start carries, or fallback if it carries none.
func ReasonOf(err error, fallback protocol.Reason) protocol.Reason {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Reason
	}
	return fallback
}

// MaxFirstCause bounds Outcome.FirstCause, in bytes.
const MaxFirstCause = 4 << 10

// Outcome is how a run ended.
type Outcome struct {
	// ExitCode is what the job's code returned; -1 if it did not come to return one.
	ExitCode int32
	// Signal is the POSIX number of the signal or trap that ended the job's code, else 0.
	Signal int32
	// Reason is the one reason of the end.
	Reason protocol.Reason
	// FirstCause is the text of what went wrong first, valid UTF-8 of at most MaxFirstCause bytes; empty
	// after ReasonDone.
	FirstCause string
	// InputsDone is the number of inputs, from the first, whose outputs are complete.
	InputsDone int
	// Started is when the first instruction could run; with Ended it carries a monotonic reading, so that
	// their difference is a duration whatever the wall clock did.
	Started time.Time
	// Ended is when everything was released.
	Ended time.Time
	// Usage is what was used in all.
	Usage Usage
	// LogKept is the number of log bytes that can still be read.
	LogKept int64
	// LogDropped is the number of log bytes that the ring lost.
	LogDropped int64
}

// Usage is what a run used.
type Usage struct {
	// CPUMillis is processor time in milliseconds.
	CPUMillis int64
	// MaxMemoryBytes is the largest memory of any input's instance.
	MaxMemoryBytes int64
	// OutputBytes is the sum of the sizes of all output files.
	OutputBytes int64
	// OutputFiles is the number of output files and directories.
	OutputFiles int64
}
