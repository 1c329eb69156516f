package store

import (
	"database/sql/driver"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
)

// args are the values of a statement in the order of its parameters. The first value that cannot be kept is
// remembered in err.
type args struct {
	v   []driver.NamedValue
	err error
}

func (a *args) reset() { a.v, a.err = a.v[:0], nil }

func (a *args) add(v driver.Value) {
	a.v = append(a.v, driver.NamedValue{Ordinal: len(a.v) + 1, Value: v})
}

func (a *args) int(n int64) { a.add(n) }

// uint is for numbers that the file keeps signed.
func (a *args) uint(field string, n uint64) {
	if n > math.MaxInt64 && a.err == nil {
		a.err = fmt.Errorf("%w: %s is %d, at most %d", ErrBadRow, field, n, int64(math.MaxInt64))
	}
	a.add(int64(n))
}

func (a *args) bool(b bool) {
	if b {
		a.add(int64(1))
		return
	}
	a.add(int64(0))
}

// real refuses what is no number: SQLite would keep it as NULL.
func (a *args) real(field string, f float64) {
	if math.IsNaN(f) && a.err == nil {
		a.err = fmt.Errorf("%w: %s is no number", ErrBadRow, field)
	}
	a.add(f)
}

func (a *args) text(s string)   { a.add(s) }
func (a *args) id(b [16]byte)   { a.add(b[:]) }
func (a *args) hash(b [32]byte) { a.add(b[:]) }

// blob keeps an empty byte string as NULL.
func (a *args) blob(b []byte) {
	if len(b) == 0 {
		a.add(nil)
		return
	}
	a.add(b)
}

// texts keeps a short list in one column, a text a line.
func (a *args) texts(field string, list []string) {
	for _, s := range list {
		if strings.Contains(s, "\n") && a.err == nil {
			a.err = fmt.Errorf("%w: %s has %q, which holds a line break", ErrBadRow, field, s)
		}
	}
	a.add(strings.Join(list, "\n"))
}

// opt keeps the zero ID as NULL.
func (a *args) opt(b [16]byte) {
	if b == [16]byte{} {
		a.add(nil)
		return
	}
	a.add(b[:])
}

func (a *args) cid(c cid.Cid) { a.blob(c.Bytes()) }

// root is a CID that has to be there.
func (a *args) root(field string, c cid.Cid) {
	if !c.Defined() && a.err == nil {
		a.err = fmt.Errorf("%w: %s is undefined", ErrBadRow, field)
	}
	a.cid(c)
}

// peer is a key or names who has to be there, so it may not be empty.
func (a *args) peer(field string, p protocol.PeerID) {
	if p == "" && a.err == nil {
		a.err = fmt.Errorf("%w: %s is empty", ErrBadRow, field)
	}
	a.add([]byte(p))
}

func (a *args) time(t time.Time) { a.add(millis(t)) }

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// row is one row being read, column by column; the first column of a wrong type is remembered in err.
type row struct {
	v   []driver.Value
	i   int
	err error
}

func read[T any](r *row, want string) (x T) {
	if r.i >= len(r.v) {
		r.fail("is missing, want %s", want)
		return x
	}
	v := r.v[r.i]
	x, ok := v.(T)
	if !ok {
		r.fail("is a %T, want %s", v, want)
	}
	r.i++
	return x
}

func (r *row) fail(format string, a ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: column %d "+format, append([]any{ErrCorrupt, r.i + 1}, a...)...)
	}
}

func (r *row) int() int64    { return read[int64](r, "a number") }
func (r *row) bool() bool    { return r.int() != 0 }
func (r *row) text() string  { return read[string](r, "text") }
func (r *row) real() float64 { return read[float64](r, "a real number") }

func (r *row) texts() []string {
	s := r.text()
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

func (r *row) uint() uint64 {
	n := r.int()
	if n < 0 {
		r.fail("before this one is negative: %d", n)
	}
	return uint64(n)
}

func (r *row) blob() []byte {
	if r.i < len(r.v) && r.v[r.i] == nil {
		r.i++
		return nil
	}
	return read[[]byte](r, "bytes")
}

func (r *row) id() (id [16]byte) {
	r.fixed(id[:], r.blob())
	return id
}

func (r *row) hash() (h [32]byte) {
	r.fixed(h[:], r.blob())
	return h
}

// opt reads an ID that may be NULL.
func (r *row) opt() (id [16]byte) {
	if b := r.blob(); b != nil {
		r.fixed(id[:], b)
	}
	return id
}

func (r *row) fixed(dst, b []byte) {
	if len(b) != len(dst) {
		r.fail("before this one has %d bytes, want %d", len(b), len(dst))
		return
	}
	copy(dst, b)
}

func (r *row) peer() protocol.PeerID { return protocol.PeerID(r.blob()) }

func (r *row) cid() cid.Cid {
	b := r.blob()
	if b == nil {
		return cid.Undef
	}
	c, err := cid.Cast(b)
	if err != nil {
		r.fail("before this one is no CID: %v", err)
	}
	return c
}

func (r *row) time() time.Time {
	ms := r.int()
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
