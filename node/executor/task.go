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
	// Module is the code.
	Module Module
	// Inputs are the chunk's inputs, run in this order, each in a fresh instance.
	Inputs []Input
	// Command is the program's name and its arguments; "{input}" and "{index}" in any of them stand for
	// the input's value and index.
	Command []string
	// Env holds environment variables.
	Env map[string]string
	// Mounts are what the code can read.
	Mounts []Mount
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

// Input is one element of the job's input sequence.
type Input struct {
	// Index is its place in the whole sequence, not in the chunk.
	Index uint64
	// Value is its text.
	Value string
}

// Mount is a file system at a path.
type Mount struct {
	// FS holds the files. It has to keep within itself: os.Root.FS does, os.DirFS follows links out.
	FS fs.FS
	// Target is an absolute, clean path such as /data, outside /out.
	Target string
	// ReadOnly has to be true: writable mounts come with writable volumes.
	ReadOnly bool
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
}

// DefaultLimits returns the defaults of execution.md 3 with the given longest run.
func DefaultLimits(wall time.Duration) Limits {
	return Limits{
		Memory:      2 << 30,
		Wall:        wall,
		OutputBytes: 1 << 30,
		OutputFiles: 100_000,
		OpenFiles:   4096,
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
	case t.Module.CID == "":
		return refuse(protocol.ReasonStartFailed, "Module.CID is empty")
	case t.Module.Load == nil:
		return refuse(protocol.ReasonStartFailed, "Module.Load is nil")
	case len(t.Inputs) == 0:
		return refuse(protocol.ReasonStartFailed, "Inputs is empty")
	case !filepath.IsAbs(t.OutDir):
		return refuse(protocol.ReasonStartFailed, "OutDir %q is not absolute", t.OutDir)
	}
	if err := t.validateCommand(); err != nil {
		return err
	}
	if err := t.validateMounts(); err != nil {
		return err
	}
	return t.Limits.validate()
}

func (t *Task) validateCommand() error {
	if len(t.Command) == 0 || t.Command[0] == "" {
		return refuse(protocol.ReasonBadCommand, "Command is empty: give at least the program's name")
	}
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
		case m.FS == nil:
			return refuse(protocol.ReasonStartFailed, "Mounts[%d].FS is nil", i)
		case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" || strings.ContainsRune(m.Target, 0):
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q is no clean absolute path below /", i, m.Target)
		case m.Target == outTarget || strings.HasPrefix(m.Target, outTarget+"/"):
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q lies in /out, which belongs to the outputs", i, m.Target)
		case targets[m.Target]:
			return refuse(protocol.ReasonBadCommand, "Mounts[%d].Target %q is taken by an earlier mount", i, m.Target)
		case !m.ReadOnly:
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
