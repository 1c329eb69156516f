package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"iter"

	"modernc.org/sqlite"
)

// query is an SQL statement that each connection prepares once. The driver is used without database/sql:
// one owner has a connection at a time, and the pool's locks, conversions and watching goroutines would cost
// as much as the statement.
type query struct{ sql string }

// statement is a prepared query of one connection.
type statement struct {
	exec  driver.StmtExecContext
	query driver.StmtQueryContext
	close func() error
	busy  bool // rows of it are being read
}

// conn is one connection, used by one goroutine at a time.
type conn struct {
	raw   driver.Conn
	stmts map[*query]*statement
	args  args // reused by every write
}

func dial(path string) (*conn, error) {
	raw, err := new(sqlite.Driver).Open(path)
	if err != nil {
		return nil, translate(err)
	}
	return &conn{raw: raw, stmts: map[*query]*statement{}}, nil
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.close())
	}
	return errors.Join(append(errs, c.raw.Close())...)
}

func (c *conn) prepare(sql string) (*statement, error) {
	s, err := c.raw.Prepare(sql)
	if err != nil {
		return nil, fmt.Errorf("preparing %q: %w", sql, translate(err))
	}
	return &statement{exec: s.(driver.StmtExecContext), query: s.(driver.StmtQueryContext), close: s.Close}, nil
}

func (c *conn) statement(q *query) (*statement, error) {
	if s := c.stmts[q]; s != nil {
		return s, nil
	}
	s, err := c.prepare(q.sql)
	if err == nil {
		c.stmts[q] = s
	}
	return s, err
}

// run executes SQL that is not worth keeping prepared; it may hold several statements.
func (c *conn) run(sql string) error {
	_, err := c.raw.(driver.ExecerContext).ExecContext(context.Background(), sql, nil)
	return translate(err)
}

// exec runs a statement and returns how many rows it changed.
func (c *conn) exec(q *query, v []driver.NamedValue) (int64, error) {
	s, err := c.statement(q)
	if err != nil {
		return 0, err
	}
	res, err := s.exec.ExecContext(context.Background(), v)
	if err != nil {
		return 0, translate(err)
	}
	n, err := res.RowsAffected()
	return n, translate(err)
}

// rows reads what a query yields. A query whose rows are being read already gets a statement of its own, so
// that a walk inside a walk does not restart the outer one.
func (c *conn) rows(q *query, v []driver.NamedValue) iter.Seq2[*row, error] {
	return func(yield func(*row, error) bool) {
		s, err := c.statement(q)
		if err == nil && s.busy {
			if s, err = c.prepare(q.sql); err == nil {
				defer func() { _ = s.close() }() // what it read is read
			}
		}
		if err != nil {
			yield(nil, err)
			return
		}
		s.busy = true
		defer func() { s.busy = false }()
		rows, err := s.query.QueryContext(context.Background(), v)
		if err != nil {
			yield(nil, translate(err))
			return
		}
		defer rows.Close()
		r := &row{v: make([]driver.Value, len(rows.Columns()))}
		for {
			switch err := rows.Next(r.v); {
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(nil, translate(err))
				return
			}
			r.i, r.err = 0, nil
			if !yield(r, nil) {
				return
			}
		}
	}
}

// integer reads the one number that a pragma or a count yields.
func (c *conn) integer(sql string) (n int64, err error) {
	q := &query{sql}
	defer func() {
		if s := c.stmts[q]; s != nil {
			delete(c.stmts, q)
			err = errors.Join(err, translate(s.close()))
		}
	}()
	for r, err := range c.rows(q, nil) {
		if err != nil {
			return 0, err
		}
		n = r.int()
		return n, r.err
	}
	return 0, fmt.Errorf("%w: %s yields nothing", ErrCorrupt, sql)
}
