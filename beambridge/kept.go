package beambridge

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/store"
)

// What Beam's clients leave at a bridge is kept for as long (docs/adr/0007-calls.md).
const (
	// callsKept is how long an ended call and its result are remembered.
	callsKept = 7 * 24 * time.Hour
	// unusedKept is how long a function that is not deployed is kept after its last call, and code after the last
	// function that was made of it: a program that runs again prepares both anew.
	unusedKept = 30 * 24 * time.Hour
	// mostKept bounds the functions of a user, and the archives. Beyond it those make room that were not used for
	// longest, but for what roomAfter has used.
	mostKept  = 10_000
	roomAfter = 24 * time.Hour
	// touchEvery is how exactly the last use is known.
	touchEvery = 24 * time.Hour
	// forgetEvery is how often what is old is looked for, forgetAtOnce bounds what one turn forgets of a kind.
	forgetEvery  = time.Hour
	forgetAtOnce = 1000
)

// forget looks for what is old once in a while. While there is more than one turn takes, each tick takes as much.
func (t *turn) forget() {
	e := t.e
	if t.now.Sub(e.forgot) < forgetEvery {
		return
	}
	e.forgot = t.now
	t.forgetCalls()
	t.then(func(err error) {
		if err == nil {
			e.bridge.spawn(e.bridge.forgetUnused)
		}
	})
}

// forgetCalls drops calls that ended long ago.
func (t *turn) forgetCalls() {
	before, e, gone := t.now.Add(-callsKept), t.e, int64(0)
	t.also(func(tx *store.Tx) (err error) {
		gone, err = tx.ForgetCalls(before, forgetAtOnce)
		return err
	})
	t.then(func(err error) {
		if err == nil && gone >= forgetAtOnce {
			e.forgot = time.Time{} // there are more: they go with the next tick
		}
	})
}

// forgetUnused drops functions and code that nobody has used for long.
func (b *Bridge) forgetUnused() {
	ctx, before := b.ctx(), b.cfg.Clock().Add(-unusedKept)
	for {
		stubs, err := b.dropStubs(ctx, "", before, forgetAtOnce)
		if err != nil || stubs == 0 {
			b.unforgotten(err)
			break
		}
	}
	for {
		objects, err := b.dropObjects(ctx, "", before, forgetAtOnce)
		if err != nil || objects == 0 {
			b.unforgotten(err)
			return
		}
	}
}

func (b *Bridge) unforgotten(err error) {
	if err != nil && b.ctx().Err() == nil {
		b.log.Warn("what nobody uses could not be forgotten; it is tried again", "err", err)
	}
}

// dropStubs drops stubs that were not used since before, and returns how many. One that has open calls stays.
func (b *Bridge) dropStubs(ctx context.Context, user string, before time.Time, most int) (n int, err error) {
	rows, err := view(ctx, b, func(tx *store.Tx) ([]store.Stub, error) { return tx.UnusedStubs(user, before, most) })
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	var gone []string // to be read only after a commit
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			for i := range rows {
				if t.e.calls.stubs[userStub{rows[i].User, rows[i].ID}] > 0 {
					continue
				}
				dropped, err := tx.DropStub(rows[i].ID, before)
				if err != nil {
					return err
				}
				if dropped {
					gone = append(gone, rows[i].ID)
				}
			}
			return nil
		})
		return struct{}{}, nil
	})
	if err != nil {
		return 0, err
	}
	for _, id := range gone {
		b.stubs.Delete(id)
	}
	return len(gone), nil
}

// dropObjects drops archives that were not used since before, and returns how many. Functions made of them keep their
// files.
func (b *Bridge) dropObjects(ctx context.Context, user string, before time.Time, most int) (n int, err error) {
	rows, err := view(ctx, b, func(tx *store.Tx) ([]store.Object, error) { return tx.UnusedObjects(user, before, most) })
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	gone := 0 // to be read only after a commit
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			for i := range rows {
				dropped, err := tx.DropObject(rows[i].User, rows[i].Hash, before)
				if err != nil {
					return err
				}
				if dropped {
					gone++
				}
			}
			return nil
		})
		return struct{}{}, nil
	})
	return gone, err
}

// kind is what a user has a bounded number of.
type kind struct {
	name  string
	count func(tx *store.Tx, user string) (int64, error)
	drop  func(b *Bridge, ctx context.Context, user string, before time.Time, most int) (int, error)
}

var (
	functionsKept = kind{"functions", (*store.Tx).CountStubs, (*Bridge).dropStubs}
	archivesKept  = kind{"archives of code", (*store.Tx).CountObjects, (*Bridge).dropObjects}
)

// room sees to it that a user may have one more of a kind; what was not used for longest goes for it. A full workspace
// of which everything was used lately is a *beamapi.Refusal.
func (b *Bridge) room(ctx context.Context, user string, k kind) error {
	n, err := view(ctx, b, func(tx *store.Tx) (int64, error) { return k.count(tx, user) })
	if err != nil || n < mostKept {
		return err
	}
	dropped, err := k.drop(b, ctx, user, b.cfg.Clock().Add(-roomAfter), int(n-mostKept)+1)
	if err == nil && int64(dropped) <= n-mostKept {
		return refuse("the workspace has %d %s, at most %d are kept; delete deployments, or wait: what nobody has used for a day makes room", n, k.name, mostKept)
	}
	return err
}

// stubOf is a stub with its owner and when it was used last.
type stubOf struct {
	user string
	stub beamapi.Stub
	used atomic.Int64 // milliseconds, as far as the store knows
}

// touch notes that a stub is in use, at most once in touchEvery.
func (b *Bridge) touch(ctx context.Context, id string) error {
	s, ok := b.stubs.Load(id)
	if !ok {
		return nil // who has just read it has put it there, unless it has just been forgotten
	}
	x, now := s.(*stubOf), b.cfg.Clock()
	if now.Sub(time.UnixMilli(x.used.Load())) < touchEvery {
		return nil
	}
	_, err := ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.TouchStub(id, now) })
		return struct{}{}, nil
	})
	if err != nil {
		return fmt.Errorf("noting the use of stub %s: %w", id, err)
	}
	x.used.Store(now.UnixMilli())
	return nil
}
