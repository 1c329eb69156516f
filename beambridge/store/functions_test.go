package store_test

import (
	"errors"
	"iter"
	"path/filepath"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
)

func TestWhatBeamsClientsKeepComesBackAsItWasPut(t *testing.T) {
	check(t, "objects", table[store.Object]{
		put:     func(tx *store.Tx, x store.Object) error { return tx.PutObject(x) },
		get:     func(tx *store.Tx, x store.Object) (store.Object, error) { return tx.GetObject(x.User, x.Hash) },
		all:     func(tx *store.Tx, x store.Object) iter.Seq2[store.Object, error] { return slice(tx.Objects(x.User)) },
		sibling: func(a store.Object, b *store.Object) { b.User = a.User },
		change:  func(a, b store.Object) store.Object { b.Hash = a.Hash; return b },
		minimal: func(a store.Object) store.Object { return store.Object{User: a.User, Hash: a.Hash, Root: a.Root} },
	})
	check(t, "stubs", table[store.Stub]{
		put: func(tx *store.Tx, x store.Stub) error { return tx.PutStub(x) },
		get: func(tx *store.Tx, x store.Stub) (store.Stub, error) { return tx.GetStub(x.ID) },
		all: func(tx *store.Tx, x store.Stub) iter.Seq2[store.Stub, error] {
			return slice(tx.FindStubs(x.User, x.Digest))
		},
		sibling: func(a store.Stub, b *store.Stub) { b.User, b.Digest = a.User, a.Digest },
		minimal: func(a store.Stub) store.Stub { return store.Stub{ID: a.ID} },
	})
	check(t, "deployments", table[store.Deployment]{
		put: func(tx *store.Tx, x store.Deployment) error { return tx.PutDeployment(x) },
		get: func(tx *store.Tx, x store.Deployment) (store.Deployment, error) { return tx.GetDeployment(x.ID) },
		all: func(tx *store.Tx, x store.Deployment) iter.Seq2[store.Deployment, error] {
			return slice(tx.Deployments(x.User))
		},
		sibling: func(a store.Deployment, b *store.Deployment) { b.User = a.User },
		change:  func(a, b store.Deployment) store.Deployment { b.ID, b.Type = a.ID, a.Type; return b },
		minimal: func(a store.Deployment) store.Deployment { return store.Deployment{ID: a.ID} },
	})
	check(t, "calls", table[store.Call]{
		put:     func(tx *store.Tx, x store.Call) error { return tx.PutCalls([]store.Call{x}) },
		get:     func(tx *store.Tx, x store.Call) (store.Call, error) { return tx.GetCall(x.ID) },
		all:     func(tx *store.Tx, x store.Call) iter.Seq2[store.Call, error] { return tx.CallsOfJob(x.Job) },
		sibling: func(a store.Call, b *store.Call) { b.Job = a.Job },
		change:  func(a, b store.Call) store.Call { b.ID, b.Input = a.ID, a.Input; return b },
		minimal: func(a store.Call) store.Call { return store.Call{ID: a.ID} },
	})
}

func TestDeployedVersionIsGivenOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	d := store.Deployment{ID: "a", User: "u", Type: "function", Name: "f", Version: 1}
	update(t, s, func(tx *store.Tx) error { return tx.PutDeployment(d) })
	d.ID = "b"
	err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutDeployment(d) })
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("the same version again: %v, want ErrConflict", err)
	}
}

func TestCallsAreForgottenOnlyWhenNothingIsOwed(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	open, old, owed, young := filled[store.Call](t, 1), filled[store.Call](t, 2), filled[store.Call](t, 3), filled[store.Call](t, 4)
	open.Ended, open.Written = time.Time{}, open.Result
	old.Ended, old.Written = when, store.Call{}.Written
	owed.Ended = when.Add(time.Second)
	young.Ended, young.Written = when.Add(time.Hour), store.Call{}.Written
	update(t, s, func(tx *store.Tx) error {
		if err := tx.PutCalls([]store.Call{open, old, owed, young}); err != nil {
			return err
		}
		n, err := tx.ForgetCalls(when.Add(time.Minute), 10)
		if n != 1 {
			t.Errorf("forgot %d calls, want the old one", n)
		}
		return err
	})
	view(t, s, func(tx *store.Tx) error {
		if _, err := tx.GetCall(old.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the old call: %v", err)
		}
		var written []string
		for c, err := range tx.CallsWritten() {
			if err != nil {
				return err
			}
			written = append(written, c.ID)
		}
		if len(written) != 2 || written[0] != open.ID || written[1] != owed.ID {
			t.Errorf("calls with writes that are owed: %q", written)
		}
		return nil
	})
}
