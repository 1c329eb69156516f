package executor

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Task is one chunk as a backend gets it.
type Task struct {
	// Lease names the attempt; it names the run in the backend too.
	Lease protocol.LeaseID
	// Fence is the lease's fencing token; a backend only carries it.
	Fence uint64
	// Module is the code of a WebAssembly task; it has none when Function is set.
	Module Module
	// Function is the code of a task that calls a function of a host runtime, else nil.
	Function *Function
	// Tenant names whose work it is. What serves one tenant never serves another.
	Tenant string
	// Inputs are the chunk's inputs, run in this order, each in a fresh instance.
	Inputs []Input
	// Command is the program's name and its arguments; "{input}" and "{index}" in any of them stand for
	// the input's value and index.
	Command []string
	// Env holds environment variables.
	Env map[string]string
	// Mounts are what the code can read.
	Mounts []Mount
	// Devices are the device files that it may open, apart from the harmless ones that every run has.
	Devices []Device
	// OutDir is an empty directory of the host, absolute. An input's /out is OutDir/<index>, which exists
	// after the run only if the input wrote something.
	OutDir string
	// Limits bound the run.
	Limits Limits
	// Seed is the job's: InputSeed makes each input's randomness of it.
	Seed [32]byte
	// Log takes what the code prints; nil drops it, uncounted.
	Log *Log
	// OnInput, if set, is called after each input whose outputs are complete, from the run's goroutine.
	OnInput func(Input)
}

// Module is code by content.
type Module struct {
	// CID is the content's name and the key of caches: who hands it over has verified that Load returns
	// the bytes of this CID.
	CID string
	// Load fetches the bytes. It is called only if no cache has the compiled code.
	Load func(ctx context.Context) ([]byte, error)
}

// Function is a function of a host runtime that is called once with each input (beam-interface.md 9).
type Function struct {
	// Runtime is python3, or python3.N for that minor version only.
	Runtime string
	// Handler is MODULE:FUNCTION, or FILE.pkl:FUNCTION, below Code.
	Handler string
	// OnStart is a handler that is called once in each process before anything else; it may be empty.
	OnStart string
	// Code is a host directory, absolute, with the user's files. The run sees a private copy that it may write.
	Code string
	// Spec names everything that a warm process depends on: code, handler, volumes, environment, limits. Tasks of
	// one tenant with equal specs may share one, one after another or, up to Workers, at a time.
	Spec string
	// Workers is how many inputs run at a time, at least 1.
	Workers int
	// Timeout bounds one input; 0 leaves it to Limits.Wall.
	Timeout time.Duration
	// KeepWarm is how long a process waits for more work; 0 is the backend's default.
	KeepWarm time.Duration
}

// EncodingSkip is the encoding of an input that was withdrawn before it began: nothing runs and its outcome is
// cancelled.
const EncodingSkip protocol.Encoding = "skip"

// Input is one element of the job's input sequence.
type Input struct {
	// Index is its place in the whole sequence, not in the chunk.
	Index uint64
	// Value is its text.
	Value string
	// Args are the arguments of a function's input, written as Encoding says.
	Args []byte
	// Encoding goes with Args.
	Encoding protocol.Encoding
}

// Mount is a file system at a path.
type Mount struct {
	// FS holds the files. It has to keep within itself: os.Root.FS does, os.DirFS follows links out.
	FS fs.FS
	// Dir is a host directory with the files, absolute, for a Function; FS is nil then.
	Dir string
	// Target is an absolute, clean path such as /data, outside /out.
	Target string
	// Links are further paths at which the same files are found, absolute, or relative to the work directory.
	Links []string
	// ReadOnly says that nothing can be written. What a Function writes into another mount lands in a private copy
	// and is reported in WrittenDir; other tasks have read-only mounts only.
	ReadOnly bool
}

// Device is a device file of the host.
type Device struct {
	// Path is the same outside and inside, such as /dev/nvidia0.
	Path string
}

// Limits bound one run, all its inputs together but for Memory, which bounds each instance.
type Limits struct {
	// Memory in bytes; default 2 GiB.
	Memory int64
	// Wall is the longest run by the monotonic clock; no default: it is the job's timeout.
	Wall time.Duration
	// OutputBytes bounds the sum of the sizes of output files; default 1 GiB.
	OutputBytes int64
	// OutputFiles bounds the number of output files and directories; default 100,000.
	OutputFiles int64
	// OpenFiles bounds descriptors at one time; default 4,096.
	OpenFiles int
	// Processes bounds processes and threads of a Function; default 512.
	Processes int64
	// Disk bounds what a Function writes outside of its outputs, in bytes; default 5 GiB.
	Disk int64
	// CPUMillis is a Function's share of processors, in thousandths of one; 0 is no bound.
	CPUMillis int64
}

// DefaultLimits returns the defaults of execution.md 3 with the given longest run.
func DefaultLimits(wall time.Duration) Limits {
	return Limits{
		Memory:      2 << 30,
		Wall:        wall,
		OutputBytes: 1 << 30,
		OutputFiles: 100_000,
		OpenFiles:   4096,
		Processes:   512,
		Disk:        5 << 30,
	}
}

const (
	maxCommandBytes = 1 << 20 // ARG_MAX of common systems is 2 MiB
	outTarget       = "/out"
)

// Validate returns ErrBadTask, wrapped in a *Failure, naming the first field that breaks a rule. What comes
// from the job file is ReasonBadCommand, what the node itself has to get right ReasonStartFailed.
func (t *Task) Validate() error {
	switch {
	case t.Function != nil && t.Module.CID != "":
		return refuse(protocol.ReasonStartFailed, "Module and Function are both set")
	case t.Function == nil && t.Module.CID == "":
		return refuse(protocol.ReasonStartFailed, "Module.CID is empty")
	case t.Function == nil && t.Module.Load == nil:
		return refuse(protocol.ReasonStartFailed, "Module.Load is nil")
	case len(t.Inputs) == 0:
		return refuse(protocol.ReasonStartFailed, "Inputs is empty")
	case !filepath.IsAbs(t.OutDir):
		return refuse(protocol.ReasonStartFailed, "OutDir %q is not absolute", t.OutDir)
	}
	if t.Function != nil {
		if err := t.Function.validate(); err != nil {
			return err
		}
	} else if len(t.Command) == 0 || t.Command[0] == "" {
		return refuse(protocol.ReasonBadCommand, "Command is empty: give at least the program's name")
	}
	if err := t.validateCommand(); err != nil {
		return err
	}
	if err := t.validateMounts(); err != nil {
		return err
	}
	return t.Limits.validate()
}

func (f *Function) validate() error {
	switch {
	case f.Runtime == "":
		return refuse(protocol.ReasonStartFailed, "Function.Runtime is empty")
	case !strings.Contains(f.Handler, ":"):
		return refuse(protocol.ReasonBadCommand, "Function.Handler %q is no MODULE:FUNCTION", f.Handler)
	case f.OnStart != "" && !strings.Contains(f.OnStart, ":"):
		return refuse(protocol.ReasonBadCommand, "Function.OnStart %q is no MODULE:FUNCTION", f.OnStart)
	case !filepath.IsAbs(f.Code):
		return refuse(protocol.ReasonStartFailed, "Function.Code %q is not absolute", f.Code)
	case f.Spec == "":
		return refuse(protocol.ReasonStartFailed, "Function.Spec is empty")
	case f.Workers < 1:
		return refuse(protocol.ReasonBadCommand, "Function.Workers is %d, want at least 1", f.Workers)
	case f.Timeout < 0 || f.KeepWarm < 0:
		return refuse(protocol.ReasonBadCommand, "Function.Timeout and KeepWarm are %s and %s, want 0 or more", f.Timeout, f.KeepWarm)
	}
	return nil
}

func (t *Task) validateCommand() error {
	seen := make(map[uint64]bool, len(t.Inputs))
	for _, in := range t.Inputs {
		if strings.ContainsRune(in.Value, 0) {
			return refuse(protocol.ReasonBadCommand, "Inputs: the value of input %d has a zero byte", in.Index)
		}
		if seen[in.Index] {
			return refuse(protocol.ReasonStartFailed, "Inputs: index %d comes twice", in.Index)
		}
		seen[in.Index] = true
	}
	size := 0
	for i, arg := range t.Command {
		size += len(arg)
		if strings.ContainsRune(arg, 0) {
			return refuse(protocol.ReasonBadCommand, "Command[%d] has a zero byte", i)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Env)) {
		size += len(name) + len(t.Env[name])
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(t.Env[name], 0) {
			return refuse(protocol.ReasonBadCommand, "Env: %q is no name and value of a variable", name)
		}
	}
	if size > maxCommandBytes {
		return refuse(protocol.ReasonBadCommand, "Command and Env have %d bytes, at most %d are passed", size, maxCommandBytes)
	}
	return nil
}

func (t *Task) validateMounts() error {
	targets := make(map[string]bool, len(t.Mounts))
	for i, m := range t.Mounts {
		switch {
		case t.Function == nil && m.FS == nil:
			return refuse(protocol.ReasonStartFailed, "Mounts[%d].FS is nil", i)
		case t.Function != nil && !filepath.IsAbs(m.Dir):
			return refuse(protocol.ReasonStartFailed, "Mounts[%d].Dir %q is not absolute", i, m.Dir)
		case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" || strings.ContainsRune(m.Target, 0):
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q is no clean absolute path below /", i, m.Target)
		case m.Target == outTarget || strings.HasPrefix(m.Target, outTarget+"/"):
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q lies in /out, which belongs to the outputs", i, m.Target)
		case targets[m.Target]:
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q is taken by an earlier mount", i, m.Target)
		case t.Function == nil && !m.ReadOnly:
			return refuse(protocol.ReasonStartFailed, "Mounts[%d].ReadOnly is false: writable mounts are not offered", i)
		}
		targets[m.Target] = true
	}
	return nil
}

func (l *Limits) validate() error {
	for name, v := range map[string]int64{
		"Memory": l.Memory, "Wall": int64(l.Wall), "OutputBytes": l.OutputBytes,
		"OutputFiles": l.OutputFiles, "OpenFiles": int64(l.OpenFiles),
	} {
		if v <= 0 {
			return refuse(protocol.ReasonStartFailed, "Limits.%s is %d, want more than 0", name, v)
		}
	}
	return nil
}

func refuse(why protocol.Reason, format string, args ...any) error {
	return &Failure{Reason: why, Err: fmt.Errorf("%w: %s", ErrBadTask, fmt.Sprintf(format, args...))}
}

// Args is the command for one input.
func (t *Task) Args(in Input) []string {
	// One pass over each argument: an input whose value has "{index}" in it stays as it is.
	replace := strings.NewReplacer("{input}", in.Value, "{index}", strconv.FormatUint(in.Index, 10))
	args := make([]string, len(t.Command))
	for i, arg := range t.Command {
		args[i] = replace.Replace(arg)
	}
	return args
}

// OutputDir is the host directory that an input's /out is.
func (t *Task) OutputDir(index uint64) string {
	return filepath.Join(t.OutDir, strconv.FormatUint(index, 10))
}

// InputSeed is the seed of an input's random numbers: SHA-256("gridbeam/random/1" 0x00 ‖ job seed ‖ u64
// index), big-endian. It depends on the job and the input alone, so a re-split chunk gives the same bytes.
func InputSeed(job [32]byte, index uint64) [32]byte {
	b := append([]byte("gridbeam/random/1\x00"), job[:]...)
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, index))
}
