package volumes

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/gridbeam/gridbeam/volumes/internal/fetch"
	"github.com/gridbeam/gridbeam/volumes/internal/ipfs"
	"github.com/gridbeam/gridbeam/volumes/internal/store"
	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// Errors (volumes.md 15). What wraps them says what to do next.
var (
	// ErrNotFound means that a tree, path or block is not here.
	ErrNotFound = errors.New("volumes: not found")
	// ErrDenied means that a path leads out of its tree or directory.
	ErrDenied = errors.New("volumes: denied")
	// ErrUnavailable means that no holder delivered a block in time.
	ErrUnavailable = errors.New("volumes: unavailable")
	// ErrCorrupt means that bytes do not match their CID or checksum, or are no valid tree.
	ErrCorrupt = errors.New("volumes: corrupt")
	// ErrNoSpace means that the disk is full.
	ErrNoSpace = errors.New("volumes: no space left")
	// ErrTooLarge means that a block or tree is beyond its limit.
	ErrTooLarge = errors.New("volumes: too large")
	// ErrConflict means that one path has different contents.
	ErrConflict = errors.New("volumes: conflict")
	// ErrUnsupported means that a tree cannot hold what was asked of it.
	ErrUnsupported = errors.New("volumes: not supported")
	// ErrLocked means that another process has the directory open; the text names its pid.
	ErrLocked = errors.New("volumes: locked")
	// ErrFormat means that the directory was written by another version.
	ErrFormat = errors.New("volumes: unknown format")
	// ErrClosed means that the Store has been closed or its Net has stopped.
	ErrClosed = errors.New("volumes: closed")
	// ErrConfig means that a configuration field is out of range; the text names it.
	ErrConfig = errors.New("volumes: invalid configuration")
)

var translation = []struct{ inner, outer error }{
	{store.ErrNotFound, ErrNotFound},
	{store.ErrCorrupt, ErrCorrupt},
	{store.ErrNoSpace, ErrNoSpace},
	{store.ErrTooLarge, ErrTooLarge},
	{store.ErrLocked, ErrLocked},
	{store.ErrFormat, ErrFormat},
	{store.ErrClosed, ErrClosed},
	{tree.ErrMalformed, ErrCorrupt},
	{tree.ErrNoEntry, ErrNotFound},
	{tree.ErrBadName, ErrUnsupported},
	{fetch.ErrWrong, ErrCorrupt},
	{ipfs.ErrClosed, ErrClosed},
}

// noSpace puts the operating system's full disk under ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// translate puts the errors of the inner rooms under the sentinels above.
func translate(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	for _, t := range translation {
		if errors.Is(err, t.inner) && !errors.Is(err, t.outer) {
			return fmt.Errorf("%w: %w", t.outer, err)
		}
	}
	return err
}
