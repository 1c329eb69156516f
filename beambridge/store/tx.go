package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
)

// Tx reads and writes rows inside an Update or View. It is valid only inside the function that it was given
// to and not for concurrent use; afterwards its methods return ErrClosed. A write that fails fails the whole
// Update, also when its error is not handed on.
type Tx struct {
	c         *conn
	store     *Store // nil in a View
	cancelled func() error
	err       error // the first failed write
}

// write runs a statement with what fill puts into its parameters and returns how many rows it changed.
func (t *Tx) write(q *query, fill func(*args)) (int64, error) {
	n, err := t.tryWrite(q, fill)
	if err != nil && t.err == nil {
		t.err = err
	}
	return n, err
}

func (t *Tx) tryWrite(q *query, fill func(*args)) (int64, error) {
	switch {
	case t.c == nil:
		return 0, ErrClosed
	case t.store == nil:
		return 0, ErrReadOnly
	}
	a := &t.c.args
	a.reset()
	fill(a)
	if a.err != nil {
		return 0, a.err
	}
	return t.c.exec(q, a.v)
}

// putAll writes each row with the same statement.
func putAll[T any](t *Tx, q *query, rows []T, fill func(*args, *T)) error {
	for i := range rows {
		if _, err := t.write(q, func(a *args) { fill(a, &rows[i]) }); err != nil {
			return err
		}
	}
	return nil
}

// refuse fails the Update with an error that is not SQLite's.
func (t *Tx) refuse(err error) error {
	if t.err == nil {
		t.err = err
	}
	return err
}

// rows reads what a query yields for the values of its parameters.
func (t *Tx) rows(q *query, v ...driver.Value) iter.Seq2[*row, error] {
	return func(yield func(*row, error) bool) {
		if t.c == nil {
			yield(nil, ErrClosed)
			return
		}
		named := make([]driver.NamedValue, len(v))
		for i := range v {
			named[i] = driver.NamedValue{Ordinal: i + 1, Value: v[i]}
		}
		n := 0
		for r, err := range t.c.rows(q, named) {
			if n++; err == nil && n%256 == 0 {
				err = t.cancelled()
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// list reads rows as they are walked.
func list[T any](t *Tx, q *query, scan func(*row) T, v ...driver.Value) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for r, err := range t.rows(q, v...) {
			if err != nil {
				yield(zero, err)
				return
			}
			x := scan(r)
			if r.err != nil {
				yield(zero, r.err)
				return
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

// collect reads a list that is known to be short.
func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var out []T
	for x, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// one reads a single row, or ErrNotFound naming what was looked for.
func one[T any](t *Tx, q *query, scan func(*row) T, what string, key any, v ...driver.Value) (T, error) {
	var zero T
	for x, err := range list(t, q, scan, v...) {
		return x, err
	}
	return zero, notFound(what, key)
}

func notFound(what string, key any) error { return fmt.Errorf("%w: %s %v", ErrNotFound, what, key) }

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
