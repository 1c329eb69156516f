package picklescan

import (
	"errors"
	"fmt"
	"strings"
)

// MaxSize is the largest pickle that is looked at, in bytes. A result is at most 15 MiB.
const MaxSize = 16 << 20

// Remedy is the last part of each refusal's text.
const Remedy = "return plain data or numpy arrays; or name a class of your own in the function's env, as in GRIDBEAM_RESULT_ALLOW=main.Point; " +
	"or, if you trust the nodes with your machine, GRIDBEAM_RESULT_PICKLE=any"

// ErrRefused means that the pickle holds something that is not known to be data.
var ErrRefused = errors.New("picklescan: result refused")

// ErrMalformed means that the bytes are no pickle that CPython writes.
var ErrMalformed = errors.New("picklescan: result is no pickle")

// Options widen what passes.
type Options struct {
	// Allow holds further classes, as module.Name. They may be called with anything and given any state: who names one
	// trusts its code with any arguments.
	Allow []string
	// Any lets every pickle pass unread.
	Any bool
}

// Check returns nil if loading b with pickle or cloudpickle makes data and does nothing else. It returns
// ErrRefused, naming the global and what can be done, or ErrMalformed, both with the place in b.
func Check(b []byte, o Options) error {
	if o.Any {
		return nil
	}
	if len(b) > MaxSize {
		return fmt.Errorf("%w: it has %d bytes, at most %d are looked at", ErrRefused, len(b), MaxSize)
	}
	m := &machine{in: b, allow: o.Allow}
	return m.run()
}

// refuse says why an opcode at m.at is not passed.
func (m *machine) refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s (at byte %d): %s", ErrRefused, fmt.Sprintf(format, args...), m.at, Remedy)
}

// malformed says what is wrong with the bytes at m.at.
func (m *machine) malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s (at byte %d)", ErrMalformed, fmt.Sprintf(format, args...), m.at)
}

// name shows a module and a name that come from foreign bytes.
func name(module, attr string) string {
	full := module + "." + attr
	if len(full) > 120 {
		full = full[:117] + "..."
	}
	for _, r := range full {
		if r < ' ' || r > '~' {
			return fmt.Sprintf("%q", full)
		}
	}
	return full
}

// allowed says whether the options name this global.
func (m *machine) allowed(module, attr string) bool {
	if module == "" || attr == "" || strings.Contains(attr, ".") {
		return false
	}
	for _, a := range m.allow {
		if len(a) == len(module)+1+len(attr) && strings.HasPrefix(a, module) && a[len(module)] == '.' && strings.HasSuffix(a, attr) {
			return true
		}
	}
	return false
}
