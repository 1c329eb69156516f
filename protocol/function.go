package protocol

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// Files of the directory that an input of a function leaves behind (the directory's name is the input's index).
const (
	// OutcomeFile is the JSON of an InputOutcome. It is there for every input that has ended.
	OutcomeFile = "outcome.json"
	// ResultFile is what the function returned, there when the outcome is ReasonDone.
	ResultFile = "result"
	// WrittenDir holds files that were written into volumes: below the volume's path without its first slash.
	WrittenDir = "written"
)

// ArgsFile is the one file of a tree of arguments that are too large to travel inside a lease.
const ArgsFile = "args"

// ArgsInline bounds the arguments of one input that travel inside a lease, in bytes; larger ones are a tree.
const ArgsInline = 32 << 10

// Encoding is how a function's arguments and results are written.
type Encoding string

// Encodings.
const (
	EncodingPickle Encoding = "pickle" // EncodingPickle is Python's pickle of {"args": (…), "kwargs": {…}}, or of a result.
	EncodingJSON   Encoding = "json"   // EncodingJSON is JSON of the same.
)

// FunctionInput is one input of a function, as its text in a lease says it. The zero value is an input that was
// withdrawn: nothing is called.
type FunctionInput struct {
	// Encoding is EncodingPickle or EncodingJSON, empty for a withdrawn input.
	Encoding Encoding
	// Args are the arguments, unless Root is set.
	Args []byte
	// Root is a tree whose file ArgsFile holds them.
	Root cid.Cid
	// Task names the call, for the code that is called: at most 64 bytes.
	Task string
}

// maxTask bounds FunctionInput.Task, in bytes.
const maxTask = 64

// String is the input's text: task, encoding, where the arguments are, and they or their CID.
func (f FunctionInput) String() string {
	switch {
	case f.Encoding == "":
		return "-"
	case f.Root.Defined():
		return f.Task + " " + string(f.Encoding) + " tree " + f.Root.String()
	case f.Encoding == EncodingJSON && utf8.Valid(f.Args):
		return f.Task + " json text " + string(f.Args)
	default:
		return f.Task + " " + string(f.Encoding) + " base64 " + base64.StdEncoding.EncodeToString(f.Args)
	}
}

// ParseFunctionInput reads what String has written. It returns ErrMalformed.
func ParseFunctionInput(text string) (f FunctionInput, err error) {
	if text == "-" {
		return f, nil
	}
	part := strings.SplitN(text, " ", 4)
	if len(part) != 4 || len(part[0]) > maxTask || Encoding(part[1]) != EncodingPickle && Encoding(part[1]) != EncodingJSON {
		return f, fmt.Errorf("%w: a function's input is TASK ENCODING KIND ARGUMENTS, not %.40q", ErrMalformed, text)
	}
	f.Task, f.Encoding = part[0], Encoding(part[1])
	switch part[2] {
	case "tree":
		f.Root, err = cid.Decode(part[3])
	case "text":
		f.Args = []byte(part[3])
	case "base64":
		f.Args, err = base64.StdEncoding.Strict().DecodeString(part[3])
	default:
		err = fmt.Errorf("%.20q is no kind of arguments", part[2])
	}
	if err != nil {
		return FunctionInput{}, fmt.Errorf("%w: the arguments of a function's input: %w", ErrMalformed, err)
	}
	return f, nil
}

// MaxResultFile bounds what a function returns, in bytes: the largest message of Beam's clients has 16 MiB.
const MaxResultFile = 15 << 20

// LogStream tells which of a program's two outputs a line came from, numbered like file descriptors.
type LogStream uint8

// The streams.
const (
	LogStdout LogStream = 1 // LogStdout is the standard output.
	LogStderr LogStream = 2 // LogStderr is the standard error.
)

// MaxInputLog bounds the bytes of InputOutcome.Log, MaxInputText those of InputOutcome.Text.
const (
	MaxInputLog  = 64 << 10
	MaxInputText = 64 << 10
	maxOutcome   = 1 << 20 // a JSON text may be several times as long as what it says
)

// InputOutcome is how one input of a function ended, as OutcomeFile says it. That a function fails is a result like
// any other: the chunk is done all the same.
type InputOutcome struct {
	// Reason is done, exit_nonzero for an exception, bad_command for code that cannot be loaded, signal for a
	// process that was killed, oom, timeout or cancelled.
	Reason Reason `json:"reason"`
	// Exit is what Beam's clients are told: 0, 1 error, 2 cannot load, 3 cancelled, 4 timeout, -9 killed.
	Exit int32 `json:"exit"`
	// Text is the user's traceback or the cause, valid UTF-8.
	Text string `json:"text,omitempty"`
	// Encoding is that of the result file.
	Encoding Encoding `json:"encoding,omitempty"`
	// RunMicros is how long it ran, CPUMillis its processor time, MemoryBytes its largest memory.
	RunMicros int64 `json:"run_us"`
	// CPUMillis is processor time in milliseconds.
	CPUMillis int64 `json:"cpu_ms"`
	// MemoryBytes is the largest memory.
	MemoryBytes int64 `json:"memory_bytes"`
	// Log is what it printed, in order; LogDropped counts the bytes that are only in the lease's log.
	Log []InputLog `json:"log,omitempty"`
	// LogDropped counts bytes that did not fit.
	LogDropped int64 `json:"log_dropped,omitempty"`
}

// InputLog is one line that an input printed.
type InputLog struct {
	// Stream is where it was printed.
	Stream LogStream `json:"s"`
	// Line is its text without the line feed.
	Line string `json:"l"`
}

// ParseInputOutcome reads and judges what a node wrote into OutcomeFile. It returns ErrMalformed or ErrBounds.
func ParseInputOutcome(b []byte) (o InputOutcome, err error) {
	if len(b) > maxOutcome {
		return o, bounds("input outcome", "size", "is %d bytes, at most %d", len(b), maxOutcome)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return o, fmt.Errorf("%w: input outcome: %w", ErrMalformed, err)
	}
	size := 0
	for _, l := range o.Log {
		size += len(l.Line) + 1
	}
	switch {
	case o.Reason == ReasonNone:
		return o, bounds("input outcome", "reason", "is missing")
	case (o.Reason == ReasonDone) != (o.Exit == 0):
		return o, bounds("input outcome", "exit", "is %d with reason %s", o.Exit, o.Reason)
	case o.Reason == ReasonDone && o.Encoding != EncodingPickle && o.Encoding != EncodingJSON:
		return o, bounds("input outcome", "encoding", "is %.20q, want pickle or json", o.Encoding)
	case len(o.Text) > MaxInputText:
		return o, bounds("input outcome", "text", "has %d bytes, at most %d", len(o.Text), MaxInputText)
	case size > 2*MaxInputLog:
		return o, bounds("input outcome", "log", "has %d bytes, at most %d", size, MaxInputLog)
	case o.RunMicros < 0 || o.CPUMillis < 0 || o.MemoryBytes < 0 || o.LogDropped < 0:
		return o, bounds("input outcome", "run_us", "a figure is negative")
	}
	return o, nil
}
