//go:build linux

package sandbox

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/gridbeam/gridbeam/node/executor"
)

// Bounds of a frame: u32 header length, u32 payload length, both big-endian, a JSON header, a payload.
const (
	maxHeader  = 64 << 10
	maxPayload = 16 << 20
)

// errFrame means that a frame breaks the bounds, or that its header is no JSON.
var errFrame = errors.New("sandbox: broken frame")

// writeFrame writes one frame.
func writeFrame(w io.Writer, header any, payload []byte) error {
	h, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	if len(h) > maxHeader || len(payload) > maxPayload {
		return fmt.Errorf("%w: header of %d bytes and payload of %d", errFrame, len(h), len(payload))
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(h)), uint32(len(h)))
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(payload))), h...)
	if len(payload) <= 64<<10 { // one system call
		_, err = w.Write(append(b, payload...))
		return err
	}
	if _, err = w.Write(b); err == nil {
		_, err = w.Write(payload)
	}
	return err
}

// readFrame reads one frame into header. At the stream's orderly end it returns io.EOF.
func readFrame(r *bufio.Reader, header any) ([]byte, error) {
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	h, p := binary.BigEndian.Uint32(size[:4]), binary.BigEndian.Uint32(size[4:])
	if h > maxHeader || p > maxPayload {
		return nil, fmt.Errorf("%w: header of %d bytes and payload of %d", errFrame, h, p)
	}
	b := make([]byte, h)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	if err := json.Unmarshal(b, header); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	payload := make([]byte, p)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	return payload, nil
}

// runnerFrame is the header of a frame between shim and runner, in either direction.
type runnerFrame struct {
	Op string `json:"op"`

	// load
	Handler string            `json:"handler,omitempty"`
	OnStart string            `json:"on_start,omitempty"`
	Code    string            `json:"code,omitempty"`
	Workers int               `json:"workers,omitempty"`
	Fork    bool              `json:"fork,omitempty"`
	Env     map[string]string `json:"env,omitempty"`

	// run, cancel; log, result
	Input     uint64 `json:"input"`
	Task      string `json:"task,omitempty"`
	Encoding  string `json:"encoding,omitempty"`
	TimeoutMS int64  `json:"timeout_ms,omitempty"`
	Attempt   int    `json:"attempt,omitempty"`
	GraceMS   int64  `json:"grace_ms,omitempty"`

	// ready
	Python      string      `json:"python,omitempty"`
	Cloudpickle string      `json:"cloudpickle,omitempty"`
	ImportMS    int64       `json:"import_ms,omitempty"`
	Error       *runnerFail `json:"error,omitempty"`

	// log
	Stream uint8 `json:"stream,omitempty"`

	// result
	Reason      string `json:"reason,omitempty"`
	Exit        int32  `json:"exit,omitempty"`
	Text        string `json:"text,omitempty"`
	RunMicros   int64  `json:"run_us,omitempty"`
	CPUMillis   int64  `json:"cpu_ms,omitempty"`
	MemoryBytes int64  `json:"memory_bytes,omitempty"`
}

// runnerFail says why the code could not be loaded.
type runnerFail struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// message is the header of a frame between daemon and shim.
//
// To the shim: lease, then an input for each of its inputs (payload: arguments), then begin · attach · stop · end.
// From the shim: hello first; refused or accepted; log (payload: the line), done, usage; outcome last.
type message struct {
	Op    string `json:"op"`
	Lease string `json:"lease,omitempty"`

	// lease
	Out    string           `json:"out,omitempty"`
	Limits *executor.Limits `json:"limits,omitempty"`
	Count  int              `json:"count,omitempty"`

	// input, log, done
	Input    uint64 `json:"input"`
	Task     string `json:"task,omitempty"`
	Encoding string `json:"encoding,omitempty"`
	Stream   uint8  `json:"stream,omitempty"`

	// stop
	Reason  uint16 `json:"reason,omitempty"`
	GraceMS int64  `json:"grace_ms,omitempty"`

	// hello
	Running bool `json:"running,omitempty"`

	// refused
	Text string `json:"text,omitempty"`

	// usage, outcome; Ending says that the sandbox takes no further lease
	Ending  bool            `json:"ending,omitempty"`
	Usage   *executor.Usage `json:"usage,omitempty"`
	Outcome *exitFile       `json:"outcome,omitempty"`
}
