package store

import (
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors of this package.
var (
	// ErrLocked means that another process has the database open; the text names its process ID.
	ErrLocked = errors.New("store: database is open in another process")
	// ErrNewer means that a newer version of this program wrote the database.
	ErrNewer = errors.New("store: database was written by a newer version")
	// ErrCorrupt means that the file is no database of this program or is damaged.
	ErrCorrupt = errors.New("store: database is damaged")
	// ErrNotFound means that there is no row under the asked key.
	ErrNotFound = errors.New("store: no such row")
	// ErrConflict means that a row would break a unique key: it would be counted twice.
	ErrConflict = errors.New("store: row contradicts one that is there")
	// ErrNoSpace means that the disk is full; nothing of the Update is kept.
	ErrNoSpace = errors.New("store: disk is full")
	// ErrBadRow means that a row holds a value that cannot be kept; the text names the field.
	ErrBadRow = errors.New("store: row holds a value that cannot be kept")
	// ErrReadOnly means that a View tried to write.
	ErrReadOnly = errors.New("store: a view cannot write")
	// ErrClosed means that the Store is closed, or a Tx was used after its function returned.
	ErrClosed = errors.New("store: closed")
	// ErrIO means that the disk failed otherwise. After a failed sync nothing can be promised any more, so
	// every later Update is refused with it until the database is opened again.
	ErrIO = errors.New("store: disk failed")
	// ErrFunds means that a transaction would make a user's credit negative.
	ErrFunds = errors.New("store: not enough credit")
)

// translate gives an error of SQLite one of the names above.
func translate(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch code := e.Code(); code & 0xff {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case sqlite3.SQLITE_CONSTRAINT:
		if code == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY || code == sqlite3.SQLITE_CONSTRAINT_ROWID {
			return fmt.Errorf("%w: %w", ErrConflict, err)
		}
		return fmt.Errorf("%w: %w", ErrBadRow, err)
	case sqlite3.SQLITE_TOOBIG:
		return fmt.Errorf("%w: %w", ErrBadRow, err)
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE { // the shared index cannot grow: seen only on a full disk
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return fmt.Errorf("%w: %w", ErrIO, err)
	}
	return err
}

// syncFailed says that the kernel may have dropped what was written: a second sync that succeeds proves nothing.
func syncFailed(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code() == sqlite3.SQLITE_IOERR_FSYNC || e.Code() == sqlite3.SQLITE_IOERR_DIR_FSYNC)
}
