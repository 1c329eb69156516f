package protocol

import (
	"errors"
	"fmt"
	"strings"
)

// ErrBadJob is wrapped by every error of ParseJob and Job.Validate.
var ErrBadJob = errors.New("protocol: bad job")

// JobError is one thing wrong with a job.
type JobError struct {
	// File is the job file's name, Line and Column count from 1 in it; all zero when the job was no text.
	File string `json:"file,omitempty"`
	// Line counts from 1, 0 is not known.
	Line int `json:"line,omitempty"`
	// Column counts characters from 1, 0 is not known.
	Column int `json:"column,omitempty"`
	// Field is the path in the file, such as resources.memory or volumes[1].at; empty is the whole file.
	Field string `json:"field"`
	// Value is what stands there, as written, cut to 80 bytes; empty when it is missing.
	Value string `json:"value,omitempty"`
	// Problem says what is wrong and what is accepted.
	Problem string `json:"problem"`
}

// Error is one line: where, which field, what is accepted.
func (e *JobError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ":")
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", e.Line, e.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

// Unwrap returns ErrBadJob.
func (e *JobError) Unwrap() error { return ErrBadJob }

// JobErrors are all things wrong with a job, in the order of the file.
type JobErrors []JobError

// Error has a line for each.
func (e JobErrors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns ErrBadJob.
func (e JobErrors) Unwrap() error { return ErrBadJob }
