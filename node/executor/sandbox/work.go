//go:build linux

package sandbox

import (
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// exitFile is how a lease ended, as it lies on the disk and travels.
type exitFile struct {
	// Lease is the lease's ID.
	Lease string `json:"lease"`
	// Boot is the boot in which it ended: the outputs of another are not to be trusted.
	Boot string `json:"boot"`
	// Reason to Ended are an executor.Outcome's.
	Reason     uint32         `json:"reason"`
	ExitCode   int32          `json:"exit_code"`
	Signal     int32          `json:"signal,omitempty"`
	FirstCause string         `json:"first_cause,omitempty"`
	InputsDone int            `json:"inputs_done"`
	Started    time.Time      `json:"started"`
	Ended      time.Time      `json:"ended"`
	Usage      executor.Usage `json:"usage"`
	LogKept    int64          `json:"log_kept"`
	LogDropped int64          `json:"log_dropped"`
}

// outcome is the same in the words of executor.
func (e *exitFile) outcome() executor.Outcome {
	return executor.Outcome{
		ExitCode: e.ExitCode, Signal: e.Signal, Reason: protocol.Reason(e.Reason), FirstCause: e.FirstCause, InputsDone: e.InputsDone,
		Started: e.Started, Ended: e.Ended, Usage: e.Usage, LogKept: e.LogKept, LogDropped: e.LogDropped,
	}
}

// unit is one input of a lease in the shim.
type unit struct {
	index    uint64
	task     string
	encoding string
	args     []byte // nil once they are sent
	sent     bool
	done     bool
	cut      [3]partial // by stream
	printed  []protocol.InputLog
	bytes    int // of printed
	dropped  int64
}

// work is one lease in the shim. The fields above mu belong to the shim's loop; those below are also read by the
// goroutines that tell daemons about it.
type work struct {
	lease   string
	out     string
	limits  executor.Limits
	units   []*unit
	byIndex map[uint64]*unit
	next    int // units before it were sent
	open    int // sent and not done
	left    int // not done
	cause   *cause
	cpu0    time.Duration
	started time.Time
	wall    *time.Timer
	peak    int64

	mu       sync.Mutex
	changed  chan struct{} // closed at the next change
	log      *executor.Log
	finished []uint64 // inputs whose outputs are complete, in the order of their ends
	usage    executor.Usage
	end      *exitFile
	final    bool // with end: the sandbox takes no further lease
}

// cause is why a lease ends before its time. The first one counts.
type cause struct {
	reason protocol.Reason
	text   string
}

func newWork(lease, out string, limits executor.Limits) *work {
	return &work{
		lease: lease, out: out, limits: limits, byIndex: map[uint64]*unit{},
		changed: make(chan struct{}), log: executor.NewLog(executor.DefaultLogBytes, time.Now),
	}
}

// add appends an input.
func (w *work) add(u *unit) {
	w.units = append(w.units, u)
	w.byIndex[u.index] = u
	w.left++
}

// tell changes what daemons see.
func (w *work) tell(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.changed)
	w.changed = make(chan struct{})
}

// prefix is how many inputs are done from the first on.
func (w *work) prefix() (n int) {
	for n < len(w.units) && w.units[n].done {
		n++
	}
	return n
}

// partial is a line that has not ended.
type partial struct{ text []byte }

// print appends what an input has printed to the lease's log, line by line, and remembers it for its outcome.
func (w *work) print(u *unit, stream protocol.LogStream, b []byte) {
	p := &u.cut[stream]
	start := 0
	for i, c := range b {
		if c != '\n' && len(p.text)+i-start < executor.MaxLogLine {
			continue
		}
		w.line(u, stream, append(p.text, b[start:i]...))
		p.text = p.text[:0]
		if start = i; c == '\n' {
			start++
		}
	}
	p.text = append(p.text, b[start:]...)
}

// lineOverhead is what a line takes in an outcome beside its text: empty ones must not make it too long to be read.
const lineOverhead = 16

// line appends one line.
func (w *work) line(u *unit, stream protocol.LogStream, text []byte) {
	w.log.AppendOf(u.index, stream, text)
	if u.bytes+len(text)+lineOverhead > protocol.MaxInputLog {
		u.dropped += int64(len(text)) + 1
		return
	}
	u.bytes += len(text) + lineOverhead
	u.printed = append(u.printed, protocol.InputLog{Stream: stream, Line: valid(text)})
}

// flush ends the lines of an input that has ended.
func (w *work) flush(u *unit) {
	for stream := range u.cut {
		if p := &u.cut[stream]; len(p.text) > 0 {
			w.line(u, protocol.LogStream(stream), p.text)
			p.text = nil
		}
	}
}
