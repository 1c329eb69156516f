package protocol

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
)

// marshal encodes a message with its fields ascending and its maps sorted.
func marshal(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", m, err)
	}
	return b, nil
}

// unmarshal decodes a message; fields that it does not know are left out.
func unmarshal(what string, b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	return nil
}

// decodeOwn reads what this process has encoded for its journal or store.
func decodeOwn(what string, limit int, s shape, b []byte, m proto.Message) error {
	if len(b) > limit {
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrTooLarge, what, len(b), limit)
	}
	if err := s.check(what, b); err != nil {
		return err
	}
	return unmarshal(what, b, m)
}

// clip cuts a text to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// printable says whether a text can be shown on a terminal as it is: no control bytes, no line ends, nothing
// that turns the direction of writing.
func printable(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// maxMS is the end of the year 9999 in Unix milliseconds: later times have no text.
const maxMS = 253_402_300_799_999

// unixMS is a time on the wire; the zero time is 0.
func unixMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMS is unixMS's inverse for what validMS lets through.
func fromMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// validMS refuses times before 1970 and after 9999, and the zero time where there has to be one.
func validMS(noun, field string, t time.Time, needed bool) error {
	switch {
	case t.IsZero() && needed:
		return bounds(noun, field, "is missing")
	case !t.IsZero() && (t.UnixMilli() <= 0 || t.Unix() > maxMS/1000):
		return bounds(noun, field, "is no time of the years 1970 to 9999")
	}
	return nil
}

// millis turns milliseconds from the wire into a duration, without overflow.
func millis(ms uint64) time.Duration {
	return time.Duration(min(ms, 366*24*3600*1000)) * time.Millisecond
}
