package beambridge

import (
	"fmt"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
)

// callIndex are the calls that have not ended, found by ID and counted by who made them. The engine owns it.
type callIndex struct {
	byID  map[string]*call
	users map[string]int
	stubs map[userStub]int
}

type userStub struct{ user, stub string }

func newCallIndex() *callIndex {
	return &callIndex{byID: map[string]*call{}, users: map[string]int{}, stubs: map[userStub]int{}}
}

// get returns a call, nil for one that has ended or never was.
func (x *callIndex) get(id string) *call { return x.byID[id] }

// add takes a call in; one that is in already is the same.
func (x *callIndex) add(c *call) {
	if x.byID[c.row.ID] == nil {
		x.users[c.row.User]++
		x.stubs[userStub{c.row.User, c.row.Stub}]++
	}
	x.byID[c.row.ID] = c
}

// remove takes a call out.
func (x *callIndex) remove(c *call) {
	if x.byID[c.row.ID] == nil {
		return
	}
	delete(x.byID, c.row.ID)
	fewer(x.users, c.row.User)
	fewer(x.stubs, userStub{c.row.User, c.row.Stub})
}

// fewer counts one down and keeps no zeros: users and stubs come and go.
func fewer[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] <= 0 {
		delete(m, k)
	}
}

// full says which bound keeps another call out, as an error that is beamapi.ErrBusy; nil where there is room. most is
// the function's own bound, 0 for none.
func (x *callIndex) full(user, stub string, most int) error {
	mine, theirs := x.stubs[userStub{user, stub}], x.users[user]
	switch {
	case most > 0 && mine >= most:
		return busy(mine, "this function")
	case theirs >= mostPending:
		return busy(theirs, "this workspace")
	case len(x.byID) >= mostCalls:
		return busy(len(x.byID), "all workspaces")
	}
	return nil
}

func busy(n int, whose string) error {
	return fmt.Errorf("%w: %d calls of %s wait already", beamapi.ErrBusy, n, whose)
}
