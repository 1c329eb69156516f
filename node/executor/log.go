package executor

import (
	"bytes"
	"context"
	"sort"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// DefaultLogBytes is the default capacity of a Log: 64 MiB (execution.md 3).
const DefaultLogBytes = 64 << 20

// MaxLogLine is the longest record of a Log, in bytes; longer lines are split.
const MaxLogLine = 16 << 10

// recordOverhead is counted per record, so that a flood of empty lines is bounded in memory too.
const recordOverhead = 64

// Streams, numbered like file descriptors.
const (
	// Stdout is the standard output.
	Stdout = protocol.LogStdout
	// Stderr is the standard error.
	Stderr = protocol.LogStderr
)

// LogRecord is one line, or a part of one that was longer than MaxLogLine.
type LogRecord struct {
	// Offset is the number of bytes before this record since the run began, line feeds and lost ones included.
	Offset int64
	// Time is when the line was complete.
	Time time.Time
	// Stream is where it was printed.
	Stream protocol.LogStream
	// Line is the text without its line feed.
	Line string
	// Input is the index of the input that printed it, where the backend knows; else 0.
	Input uint64
}

// Log is a ring of lines: it keeps the newest, counts what it lost and never makes a writer wait.
type Log struct {
	capacity int64
	now      func() time.Time

	mu      sync.Mutex
	records []LogRecord // records[head:] are kept
	head    int
	held    int64         // bytes of kept records with their overhead
	kept    int64         // log bytes of kept records
	end     int64         // offset behind the newest record
	changed chan struct{} // closed at the next change; nil while nobody waits
	closed  bool
}

// NewLog returns an empty log of the given capacity in bytes; now stamps its lines.
func NewLog(capacity int64, now func() time.Time) *Log {
	return &Log{capacity: capacity, now: now}
}

// Append adds a line of at most MaxLogLine bytes and drops the oldest until all fit.
func (l *Log) Append(stream protocol.LogStream, line []byte) { l.AppendOf(0, stream, line) }

// AppendOf adds a line that an input printed.
func (l *Log) AppendOf(input uint64, stream protocol.LogStream, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := LogRecord{Offset: l.end, Time: l.now(), Stream: stream, Line: string(line), Input: input}
	l.records = append(l.records, r)
	l.end += r.size()
	l.kept += r.size()
	l.held += r.size() + recordOverhead
	for l.held > l.capacity && l.head < len(l.records)-1 {
		old := l.records[l.head]
		l.kept -= old.size()
		l.held -= old.size() + recordOverhead
		l.records[l.head] = LogRecord{}
		l.head++
	}
	if l.head > len(l.records)/2 && l.head > 64 {
		n := copy(l.records, l.records[l.head:])
		clear(l.records[n:])
		l.records, l.head = l.records[:n], 0
	}
	l.signal()
}

// size is what a record adds to the offset: its text and its line feed, so that an empty line has a place.
func (r *LogRecord) size() int64 { return int64(len(r.Line)) + 1 }

func (l *Log) signal() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Close tells readers that no line will follow.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.signal()
}

// Read returns records from an offset on, up to limit bytes but at least one if there is any, the offset to
// go on from, and how many bytes between offset and the first record were lost. end says that nothing
// follows next and nothing will.
func (l *Log) Read(offset, limit int64) (records []LogRecord, next, lost int64, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.records[l.head:]
	first := sort.Search(len(kept), func(i int) bool { return kept[i].Offset >= offset })
	next = offset
	for i, r := range kept[first:] {
		if i == 0 {
			lost = r.Offset - offset
		} else if limit < r.size() {
			return records, next, lost, false
		}
		limit -= r.size()
		records = append(records, r)
		next = r.Offset + r.size()
	}
	return records, next, lost, l.closed
}

// Wait returns when something follows offset or the log is closed; it fails with ctx's error.
func (l *Log) Wait(ctx context.Context, offset int64) error {
	for {
		l.mu.Lock()
		if l.end > offset || l.closed {
			l.mu.Unlock()
			return nil
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Counts returns how many log bytes, line feeds included, can be read and how many were dropped.
func (l *Log) Counts() (kept, dropped int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept, l.end - l.kept
}

// LineWriter cuts what a program prints into the records of a log. It remembers the end of it, for the
// text of a failure. It is used by one goroutine.
type LineWriter struct {
	log     *Log
	stream  protocol.LogStream
	partial []byte
	tail    []byte
}

// maxTail is how much of the end a LineWriter remembers, in bytes.
const maxTail = 2 << 10

// NewLineWriter returns a writer into log, which may be nil.
func NewLineWriter(log *Log, stream protocol.LogStream) *LineWriter {
	return &LineWriter{log: log, stream: stream}
}

// Write takes printed bytes; it never fails.
func (w *LineWriter) Write(p []byte) (int, error) {
	n := len(p)
	w.remember(p)
	if w.log == nil {
		return n, nil
	}
	for len(p) > 0 {
		room := MaxLogLine - len(w.partial)
		cut := bytes.IndexByte(p[:min(len(p), room+1)], '\n')
		switch {
		case cut >= 0:
			w.emit(p[:cut])
			p = p[cut+1:]
		case len(p) > room:
			w.emit(p[:room])
			p = p[room:]
		default:
			w.partial = append(w.partial, p...)
			p = nil
		}
	}
	return n, nil
}

func (w *LineWriter) emit(p []byte) {
	if len(w.partial) > 0 {
		p = append(w.partial, p...)
	}
	w.log.Append(w.stream, p)
	w.partial = w.partial[:0]
}

// Flush appends a last line that had no line feed, and forgets the tail.
func (w *LineWriter) Flush() {
	if len(w.partial) > 0 {
		w.log.Append(w.stream, w.partial)
		w.partial = w.partial[:0]
	}
	w.tail = w.tail[:0]
}

func (w *LineWriter) remember(p []byte) {
	p = p[max(0, len(p)-maxTail):]
	if over := len(w.tail) + len(p) - maxTail; over > 0 {
		w.tail = w.tail[:copy(w.tail, w.tail[min(over, len(w.tail)):])]
	}
	w.tail = append(w.tail, p...)
}

// Tail is the end of what was printed since the last Flush, at most 2 KiB, in valid UTF-8.
func (w *LineWriter) Tail() string {
	return string(bytes.ToValidUTF8(bytes.TrimSpace(w.tail), []byte("\ufffd")))
}
