package beambridge

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestWhoAwaitsACallHearsEachChangeAtOnce(t *testing.T) {
	onStage(t, func(s *stage) {
		own, face := workspace("alice"), s.Bridge().Beam().Calls
		id, _ := s.stub(own, nil)
		r, err := face.Invoke(s.Context(), own, beamapi.Call{StubID: id, Args: []byte("x"), Encoding: protocol.EncodingPickle})
		if err != nil {
			s.Fatal(err)
		}
		type heard struct {
			t  beamapi.Task
			at time.Time
		}
		changes := make(chan heard, 16)
		go func() {
			defer close(changes)
			for status := beamapi.Status(""); !status.Final(); {
				x, err := face.Await(context.Background(), own, r.TaskID(), status)
				if err != nil {
					return
				}
				status = x.Status
				changes <- heard{x, time.Now()}
			}
		}()
		if h := <-changes; h.t.Status != beamapi.StatusPending {
			s.Errorf("at first it is %s", h.t.Status)
		}
		short, stop := context.WithTimeout(s.Context(), 10*time.Second)
		defer stop()
		if x, err := face.Await(short, own, r.TaskID(), beamapi.StatusPending); !errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("nothing changed, and %+v was told, %v", x, err)
		}
		if _, err := face.Await(s.Context(), workspace("bob"), r.TaskID(), beamapi.StatusPending); !errors.Is(err, beamapi.ErrNotFound) {
			s.Errorf("a stranger hears %v", err)
		}
		p := s.own(1)
		p.act = calls(5*time.Second, nil)
		s.enter(p)
		runs, ends := <-changes, <-changes
		if runs.t.Status != beamapi.StatusRunning || runs.t.Node != p.host.ID().String() || runs.at.Sub(runs.t.Started) > 10*time.Millisecond {
			s.Errorf("then %+v, heard at %s", runs.t, runs.at)
		}
		if ends.t.Status != beamapi.StatusComplete || string(ends.t.Result) != "result of x" || ends.at.Sub(ends.t.Ended) > 10*time.Millisecond {
			s.Errorf("at last %+v, heard at %s", ends.t, ends.at)
		}
		if x, err := face.Await(s.Context(), own, r.TaskID(), beamapi.StatusComplete); err != nil || x.Status != beamapi.StatusComplete {
			s.Errorf("what is over is %+v, %v", x, err)
		}
	})
}

func TestWhoAwaitsACallIsNotForgottenByAFailedCommit(t *testing.T) {
	onStage(t, func(s *stage) {
		own, face := workspace("alice"), s.Bridge().Beam().Calls
		id, _ := s.stub(own, nil)
		invoke := func() string {
			r, err := face.Invoke(s.Context(), own, beamapi.Call{StubID: id, Args: []byte("x"), Encoding: protocol.EncodingPickle})
			if err != nil {
				s.Fatal(err)
			}
			return r.TaskID()
		}
		quiet, ended := invoke(), invoke()
		got := make(chan beamapi.Task, 2)
		for _, id := range []string{quiet, ended} {
			go func() {
				x, _ := face.Await(context.Background(), own, id, beamapi.StatusPending)
				got <- x
			}()
		}
		<-time.After(time.Second)
		failed := errors.New("the disk is full")
		if _, err := ask(s.Context(), s.Bridge().engine, func(tn *turn) (struct{}, error) {
			tn.cancelCall(tn.e.calls.get(ended), protocol.ReasonCancelled, "in vain")
			tn.also(func(*store.Tx) error { return failed })
			return struct{}{}, nil
		}); !errors.Is(err, failed) {
			s.Fatalf("the commit gave %v", err)
		}
		<-time.After(time.Second)
		if err := face.StopTasks(s.Context(), own, []string{quiet, ended}); err != nil {
			s.Fatal(err)
		}
		for range 2 {
			select {
			case x := <-got:
				if x.Status != beamapi.StatusCancelled || x.Text != "stopped by its owner" {
					s.Errorf("heard %+v", x)
				}
			case <-time.After(10 * time.Second):
				s.Fatal("nothing is heard of the end")
			}
		}
	})
}

func TestListsHoldWhereCallsAreNow(t *testing.T) {
	onStage(t, func(s *stage) {
		own, face := workspace("alice"), s.Bridge().Beam().Calls
		id, _ := s.stub(own, nil)
		p := s.own(1)
		p.act = calls(time.Hour, nil)
		s.enter(p)
		var ids []string
		for range 4 { // the first runs; no other is given out before it is known how long one takes
			r, err := face.Invoke(s.Context(), own, beamapi.Call{StubID: id, Args: []byte("x"), Encoding: protocol.EncodingPickle})
			if err != nil {
				s.Fatal(err)
			}
			ids = append(ids, r.TaskID())
			<-time.After(time.Second) // so that none is older than the one before by less than the store tells
		}
		if err := face.StopTasks(s.Context(), own, ids[3:]); err != nil {
			s.Fatal(err)
		}
		node := p.host.ID().String()
		for what, c := range map[string]struct {
			q     beamapi.TaskFilter
			total int
			first string
		}{
			"all":              {beamapi.TaskFilter{Limit: 2}, 4, ids[3]},
			"running":          {beamapi.TaskFilter{Statuses: []beamapi.Status{beamapi.StatusRunning}, Limit: 10}, 1, ids[0]},
			"pending":          {beamapi.TaskFilter{Statuses: []beamapi.Status{beamapi.StatusPending}, Limit: 10}, 2, ids[2]},
			"cancelled":        {beamapi.TaskFilter{Statuses: []beamapi.Status{beamapi.StatusCancelled}, Limit: 10}, 1, ids[3]},
			"at the node":      {beamapi.TaskFilter{Nodes: []string{node}, Limit: 10}, 1, ids[0]},
			"by id":            {beamapi.TaskFilter{IDs: ids[:1], Limit: 10}, 1, ids[0]},
			"by name":          {beamapi.TaskFilter{StubNames: []string{"f"}, Limit: 10}, 4, ids[3]},
			"by another name":  {beamapi.TaskFilter{StubNames: []string{"g"}, Limit: 10}, 0, ""},
			"of another stub":  {beamapi.TaskFilter{StubIDs: []string{"none"}, Limit: 10}, 0, ""},
			"of stub, running": {beamapi.TaskFilter{StubIDs: []string{id}, Statuses: []beamapi.Status{beamapi.StatusRunning}, Limit: 1}, 1, ids[0]},
		} {
			l, total, err := face.Tasks(s.Context(), own, c.q)
			if err != nil || total != c.total || len(l) != min(c.total, c.q.Limit) || len(l) > 0 && l[0].ID != c.first {
				s.Errorf("%s: %d of %d, %v: %+v", what, len(l), total, err, l)
			}
			for _, x := range l {
				if want := map[string]beamapi.Status{ids[0]: "RUNNING", ids[1]: "PENDING", ids[2]: "PENDING", ids[3]: "CANCELLED"}[x.ID]; x.Status != want || (want == "RUNNING") != (x.Node == node) {
					s.Errorf("%s: call %s is %s at %q, want %s", what, x.ID, x.Status, x.Node, want)
				}
			}
		}
	})
}
