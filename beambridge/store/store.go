package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"modernc.org/sqlite"
)

// readers is how many Views run at once; more wait. A view holds a connection of about 2 MiB.
const readers = 4

// Settings of the connections. A commit writes every page that it touches into the log, so pages are small;
// the log is folded into the file once it has 2,000 of them, by the commit that finds it so, and its blocks
// are used again, so that a sync need not grow it. Measured on a memory disk the statements of a small commit
// take 12 microseconds: the rest is the disk's sync. cache_size is in KiB when negative.
const (
	writerSettings = `
PRAGMA busy_timeout=10000;
PRAGMA page_size=4096;
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA wal_autocheckpoint=2000;
PRAGMA journal_size_limit=67108864;
PRAGMA cache_size=-32768;
PRAGMA temp_store=MEMORY;
PRAGMA trusted_schema=OFF;`
	readerSettings = `
PRAGMA busy_timeout=10000;
PRAGMA query_only=ON;
PRAGMA cache_size=-2048;
PRAGMA temp_store=MEMORY;
PRAGMA trusted_schema=OFF;`
)

// Store is an open database. Its methods may be called by several goroutines.
type Store struct {
	path   string
	log    *slog.Logger
	lock   *os.File
	writer chan *conn // capacity 1: whoever holds the connection writes
	pool   chan *conn // capacity readers: nil stands for a connection that was not needed yet
	closed chan struct{}
	ending atomic.Bool
	failed atomic.Pointer[error] // set once a sync failed
	staff  map[staffKey]int64    // numbers of staff rows that are committed or written by the running Update; owned by whoever writes
}

// Open opens the database at path, making it if absent, and brings its schema to this version. It returns
// ErrLocked, ErrNewer, ErrCorrupt, ErrNoSpace and ErrIO.
func Open(path string, log *slog.Logger) (*Store, error) {
	dir, err := fs.Sub(migrations, "schema")
	if err != nil {
		return nil, err
	}
	return open(path, log, dir)
}

func open(path string, log *slog.Logger, schema fs.FS) (*Store, error) {
	l, err := lock(path)
	if err != nil {
		return nil, err
	}
	w, err := openWriter(path, log, schema)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), l.Close())
	}
	s := &Store{
		path: path, log: log, lock: l, writer: make(chan *conn, 1), pool: make(chan *conn, readers), closed: make(chan struct{}),
		staff: map[staffKey]int64{},
	}
	s.writer <- w
	for range readers {
		s.pool <- nil
	}
	return s, nil
}

func openWriter(path string, log *slog.Logger, schema fs.FS) (*conn, error) {
	if err := touch(path); err != nil {
		return nil, err
	}
	// The times of a file are not what a commit promises: fdatasync is half as long as SQLite's fsync here.
	if _, err := sqlite.Fdatasync(true); err != nil {
		log.Debug("syncing with fsync", "err", err)
	}
	c, err := dial(path)
	if err != nil {
		return nil, err
	}
	from, to, err := c.setUp(schema)
	if err == nil {
		err = osError(syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	if from != to {
		log.Info("database schema migrated", "from", from, "to", to)
	}
	return c, nil
}

func (c *conn) setUp(schema fs.FS) (from, to int, err error) {
	if err := c.run(writerSettings); err != nil {
		return 0, 0, err
	}
	return c.migrate(schema)
}

// Close waits for running Updates and Views, folds the log into the file and lets go of it. Calls after it
// get ErrClosed.
func (s *Store) Close() error {
	if !s.ending.CompareAndSwap(false, true) {
		return nil
	}
	close(s.closed)
	var errs []error
	for range readers {
		if c := <-s.pool; c != nil {
			errs = append(errs, c.close())
		}
	}
	errs = append(errs, (<-s.writer).close(), s.lock.Close())
	return errors.Join(errs...)
}

// take gets a connection out of a channel unless the caller or the Store ends first.
func (s *Store) take(ctx context.Context, from chan *conn) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.ending.Load() {
		return nil, ErrClosed
	}
	select {
	case c := <-from:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.closed:
		return nil, ErrClosed
	}
}

// Update runs f and commits what it wrote as one durable transaction; when it returns nil the rows survive a
// power cut. When f returns an error or panics, or the commit fails, nothing of it is kept and the error is
// returned as it is. Callers are served one at a time, so f should only write; an Update within f waits for
// itself for ever. ctx ends the wait for others, not a commit that has begun. It returns ErrNoSpace, ErrIO,
// ErrCorrupt, ErrClosed and what f returns.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	c, err := s.take(ctx, s.writer)
	if err != nil {
		return err
	}
	defer func() { s.writer <- c }()
	if err := s.failed.Load(); err != nil {
		return *err
	}
	done := false
	defer func() {
		if !done { // also when f panics: holders that it made are undone
			clear(s.staff)
		}
	}()
	if err := c.transact(beginWrite, &Tx{c: c, store: s, cancelled: ctx.Err}, f); err != nil {
		if syncFailed(err) {
			s.log.Error("a sync of the database failed; restart the bridge on a sound disk", "err", err)
			s.failed.CompareAndSwap(nil, &err)
		}
		return err
	}
	done = true
	return nil
}

// View runs f on a consistent state of the database: what was committed when f first read. It goes on beside
// Updates. f gets ErrReadOnly when it writes. It returns ErrCorrupt, ErrIO, ErrClosed and what f returns.
func (s *Store) View(ctx context.Context, f func(*Tx) error) (err error) {
	c, err := s.take(ctx, s.pool)
	if err != nil {
		return err
	}
	defer func() { s.pool <- c }()
	if c == nil {
		fresh, err := dial(s.path)
		if err != nil {
			return err
		}
		if err := fresh.run(readerSettings); err != nil {
			return errors.Join(err, fresh.close())
		}
		c = fresh
	}
	return c.transact(beginRead, &Tx{c: c, cancelled: ctx.Err}, f)
}

// Check reads the whole file and returns ErrCorrupt when it contradicts itself; it costs a pass over it.
func (s *Store) Check(ctx context.Context) error {
	return s.View(ctx, func(t *Tx) error {
		for r, err := range t.rows(integrity) {
			if err != nil {
				return err
			}
			if s := r.text(); s != "ok" {
				return fmt.Errorf("%w: %s", ErrCorrupt, s)
			}
		}
		return nil
	})
}

var (
	beginWrite = &query{"BEGIN IMMEDIATE"}
	beginRead  = &query{"BEGIN"}
	commit     = &query{"COMMIT"}
	rollback   = &query{"ROLLBACK"}
	integrity  = &query{"PRAGMA integrity_check(1)"}
)

// transact runs f between BEGIN and COMMIT.
func (c *conn) transact(begin *query, tx *Tx, f func(*Tx) error) (err error) {
	if _, err := c.exec(begin, nil); err != nil {
		return err
	}
	done := false
	defer func() {
		tx.c = nil
		if !done { // f failed, panicked or left its goroutine, or the commit failed
			_, _ = c.exec(rollback, nil) // after some errors SQLite has rolled back itself and refuses this
		}
	}()
	if err := f(tx); err != nil {
		return err
	}
	if tx.err != nil { // f went on after a write had failed
		return tx.err
	}
	if _, err := c.exec(commit, nil); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	done = true
	return nil
}
