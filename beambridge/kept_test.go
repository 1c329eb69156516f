package beambridge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// write changes the store as a turn does.
func (s *stage) write(f func(tx *store.Tx) error) {
	s.Helper()
	if _, err := ask(s.Context(), s.Bridge().engine, func(t *turn) (struct{}, error) { t.also(f); return struct{}{}, nil }); err != nil {
		s.Fatal(err)
	}
}

// look forgets what is old now, as it does every hour.
func (s *stage) look() {
	s.Helper()
	if _, err := ask(s.Context(), s.Bridge().engine, func(t *turn) (struct{}, error) { t.e.forgot = time.Time{}; return struct{}{}, nil }); err != nil {
		s.Fatal(err)
	}
}

func TestCallsAreForgottenAsFastAsTheyComeAndNoneThatIsAttended(t *testing.T) {
	onStage(t, func(s *stage) {
		b, spec := s.Bridge(), s.funcJob()
		spec.Policy.Start = 0 // it waits for ever
		w, err := b.call(s.Context(), orderOf("attended", spec))
		if err != nil {
			s.Fatal(err)
		}
		job := s.row("attended").Job
		week := time.Now().Add(-callsKept)
		s.write(func(tx *store.Tx) error {
			c, err := tx.GetCall("attended")
			if err != nil {
				return err
			}
			c.Created = week.Add(-time.Hour) // it waits for longer than ended ones are kept
			rows := []store.Call{c}
			for i := range 5 * forgetAtOnce {
				rows = append(rows, store.Call{ID: fmt.Sprint("old", i), User: "alice", Stub: "stub", Job: protocol.NewJobID(), State: callComplete, Created: week.Add(-time.Hour), Ended: week.Add(-time.Minute)})
			}
			rows = append(rows,
				store.Call{ID: "owed", User: "alice", Job: job, Input: 7, State: callComplete, Created: week.Add(-time.Hour), Ended: week.Add(-time.Minute), Written: b.nothing},
				store.Call{ID: "young", User: "alice", Job: job, Input: 8, State: callComplete, Created: week.Add(-time.Hour), Ended: week.Add(time.Hour)})
			return tx.PutCalls(rows)
		})
		s.look()
		<-time.After(6 * tick) // 500 ms a thousand: twice what a bridge on two cores takes in
		var left []string
		s.write(func(tx *store.Tx) error {
			list, err := tx.CallsOfUser("alice", mostListed)
			for _, c := range list {
				left = append(left, c.ID)
			}
			return err
		})
		if want := []string{"attended", "owed", "young"}; len(left) != len(want) {
			s.Fatalf("%d calls are left, want those of %v; the first is %s", len(left), want, left[0])
		}
		if fresh, err := b.call(s.Context(), orderOf("fresh", spec)); err != nil || fresh == nil {
			s.Fatal(err)
		}
		p := s.own(1)
		p.act = calls(10*time.Millisecond, nil)
		s.enter(p)
		var end *callEnd
		for err == nil && end == nil {
			_, end, err = w.next(s.Context())
		}
		if err != nil || end.row.State != callComplete {
			s.Errorf("the attended call ended as %+v, %v", end, err)
		}
	})
}

// kept says which of stubs are still there, by asking the store.
func (s *stage) kept(ids ...string) (out []bool) {
	s.Helper()
	s.write(func(tx *store.Tx) error {
		for _, id := range ids {
			_, err := tx.GetStub(id)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			out = append(out, err == nil)
		}
		return nil
	})
	return out
}

// age makes everything of Beam's clients look as if it had been used that long ago.
func (s *stage) age(d time.Duration) {
	s.Helper()
	at := time.Now().Add(-d)
	s.write(func(tx *store.Tx) error {
		stubs, err := tx.UnusedStubs("", time.Now().Add(time.Hour), mostListed)
		for i := range stubs {
			stubs[i].Used = at
			err = errors.Join(err, tx.PutStub(stubs[i]))
		}
		objects, oerr := tx.UnusedObjects("", time.Now().Add(time.Hour), mostListed)
		for i := range objects {
			objects[i].Used = at
			err = errors.Join(err, tx.PutObject(objects[i]))
		}
		return errors.Join(err, oerr)
	})
	s.Bridge().stubs.Clear()
}

func TestFunctionsAndCodeThatNobodyUsesAreForgotten(t *testing.T) {
	onStage(t, func(s *stage) {
		ctx, own, face := s.Context(), workspace("alice"), s.Bridge().Beam()
		named := func(name string) func(*beamapi.Stub) {
			return func(x *beamapi.Stub) { x.Name, x.Digest = name, sha256.Sum256([]byte(name)) }
		}
		unused, object := s.stub(own, named("unused"))
		deployed, _ := s.stub(own, named("deployed"))
		dropped, _ := s.stub(own, named("dropped"))
		open, _ := s.stub(own, named("open"))
		called, _ := s.stub(own, named("called"))
		again, _ := s.stub(own, named("again"))
		if _, err := face.Stubs.Deploy(ctx, own, deployed, "d"); err != nil {
			s.Fatal(err)
		}
		d, err := face.Stubs.Deploy(ctx, own, dropped, "e")
		if err == nil {
			err = face.Lifecycle.DeleteDeployment(ctx, own, d.ID)
		}
		if err != nil {
			s.Fatal(err)
		}
		call := func(stub string) beamapi.Running {
			r, err := face.Calls.Invoke(ctx, own, beamapi.Call{StubID: stub, Args: []byte("x"), Encoding: protocol.EncodingPickle})
			if err != nil {
				s.Fatal(err)
			}
			return r
		}
		waits := call(open)
		s.age(unusedKept + time.Hour)
		call(called).Abandon()
		raw, hash := zipped(s, map[string]string{"app.py": "def f(x): return x"})
		x := beamapi.Stub{Name: "again", Type: "function/deployment", Object: hash, Digest: sha256.Sum256([]byte("again")), Job: funcJob()}
		if r, err := face.Stubs.PutStub(ctx, own, x, false); err != nil || r.ID != again {
			s.Fatalf("an equal request got %s, %v", r.ID, err)
		}
		if _, err := face.Stubs.Stub(ctx, own, unused); err != nil { // who only looks at it does not use it
			s.Fatal(err)
		}
		s.look()
		<-time.After(2 * time.Second)
		if got, want := fmt.Sprint(s.kept(unused, dropped, deployed, open, called, again)), "[false false true true true true]"; got != want {
			s.Errorf("of unused, undeployed, deployed, with an open call, called and prepared again there are %s, want %s", got, want)
		}
		if _, err := face.Calls.Invoke(ctx, own, beamapi.Call{StubID: unused}); !errors.Is(err, beamapi.ErrNotFound) {
			s.Errorf("a call of what was forgotten: %v", err)
		}
		if _, err := face.Objects.Object(ctx, own, object); err != nil {
			s.Errorf("code of which a function was prepared a moment ago: %v", err)
		}
		s.age(unusedKept + time.Hour)
		s.look()
		<-time.After(2 * time.Second)
		if _, err := face.Objects.Object(ctx, own, object); !errors.Is(err, beamapi.ErrNotFound) {
			s.Errorf("code that nobody has used: %v", err)
		}
		p := s.own(1)
		p.act = calls(10*time.Millisecond, nil)
		s.enter(p)
		if last, err := finish(ctx, waits); err != nil || string(last.Result) != "result of x" {
			s.Errorf("a call whose function's code was forgotten: %+v, %v", last, err)
		}
		if last, err := finish(ctx, call(deployed)); err != nil || string(last.Result) != "result of x" {
			s.Errorf("a deployed function whose archive was forgotten: %+v, %v", last, err)
		}
		s.age(unusedKept + time.Hour)
		s.look()
		<-time.After(2 * time.Second)
		if got := fmt.Sprint(s.kept(open, deployed)); got != "[false true]" {
			s.Errorf("when its call has ended, of the function and the deployed one there are %s", got)
		}
		if x, err := face.Calls.Task(ctx, own, waits.TaskID()); err != nil || string(x.Result) != "result of x" {
			s.Errorf("a call whose function was forgotten is %+v, %v", x, err)
		}
		if _, n, err := face.Calls.Tasks(ctx, own, beamapi.TaskFilter{Limit: 10}); err != nil || n != 3 {
			s.Errorf("%d calls are listed, %v", n, err)
		}
		if _, err := face.Objects.PutObject(ctx, own, hash, int64(len(raw)), "", bytes.NewReader(raw)); err != nil {
			s.Error(err)
		}
	})
}

func TestAWorkspaceHasABoundedNumberOfFunctionsAndArchives(t *testing.T) {
	onStage(t, func(s *stage) {
		own, face, now := workspace("alice"), s.Bridge().Beam(), time.Now()
		s.stub(own, nil)
		fill := func(user string, used time.Time) {
			s.write(func(tx *store.Tx) error {
				for i := range mostKept {
					id := fmt.Sprintf("%s%05d", user, i)
					at := used.Add(time.Duration(i) * time.Millisecond)
					if err := errors.Join(tx.PutStub(store.Stub{ID: id, User: user, Used: at}), tx.PutObject(store.Object{User: user, Hash: id, Root: s.Bridge().nothing, Used: at})); err != nil {
						return err
					}
				}
				return nil
			})
		}
		fill("alice", now.Add(-roomAfter-time.Hour))
		id, _ := s.stub(own, nil)
		if got := fmt.Sprint(s.kept("alice00000", "alice00001", "alice00002", id)); got != "[false false true true]" {
			s.Errorf("of the two oldest, the third and the new one there are %s", got)
		}
		if _, err := face.Objects.Object(s.Context(), own, "alice00000"); !errors.Is(err, beamapi.ErrNotFound) {
			s.Errorf("the oldest archive: %v", err)
		}
		fill("bob", now.Add(-roomAfter+time.Hour))
		raw, hash := zipped(s, map[string]string{"app.py": "def f(x): return x"})
		_, err := face.Objects.PutObject(s.Context(), workspace("bob"), hash, int64(len(raw)), "", bytes.NewReader(raw))
		if no, ok := errors.AsType[*beamapi.Refusal](err); !ok || !strings.Contains(no.Text, "10000 archives") {
			s.Errorf("one archive too many: %v", err)
		}
		s.write(func(tx *store.Tx) error {
			return tx.PutObject(store.Object{User: "bob", Hash: hash, Root: s.Bridge().nothing, Used: now})
		})
		_, err = face.Stubs.PutStub(s.Context(), workspace("bob"), beamapi.Stub{Name: "f", Type: "function", Object: hash, Job: funcJob()}, true)
		if no, ok := errors.AsType[*beamapi.Refusal](err); !ok || !strings.Contains(no.Text, "10000 functions") {
			s.Errorf("one function too many: %v", err)
		}
	})
}

func TestWaitingCallsAreBoundedForAFunctionAndForAWorkspace(t *testing.T) {
	onStage(t, func(s *stage) {
		ctx, own, face := s.Context(), workspace("alice"), s.Bridge().Beam().Calls
		small, _ := s.stub(own, func(x *beamapi.Stub) { x.MaxPending = 3 })
		other, _ := s.stub(own, nil)
		invoke := func(who beamapi.Principal, stub string) (beamapi.Running, error) {
			return face.Invoke(ctx, who, beamapi.Call{StubID: stub, Args: []byte("x"), Encoding: protocol.EncodingPickle})
		}
		var last beamapi.Running
		for i := range 3 {
			var err error
			if last, err = invoke(own, small); err != nil {
				s.Fatalf("call %d of 3: %v", i+1, err)
			}
			if i == 0 { // the bound is the function's, not that of one of its jobs
				if _, err := ask(ctx, s.Bridge().engine, func(t *turn) (struct{}, error) { t.seal(t.e.calls.get(last.TaskID()).job); return struct{}{}, nil }); err != nil {
					s.Fatal(err)
				}
			}
		}
		if _, err := invoke(own, small); !errors.Is(err, beamapi.ErrBusy) {
			s.Errorf("call 4 of 3: %v", err)
		}
		if _, err := invoke(own, other); err != nil {
			s.Errorf("another function: %v", err)
		}
		last.Abandon()
		s.await(time.Minute, "the call has ended", func() bool { return !s.row(last.TaskID()).Ended.IsZero() })
		if last, err := invoke(own, small); err != nil {
			s.Errorf("after one has ended: %v", err)
		} else {
			last.Abandon()
		}
		// As if more calls of alice's other functions waited, which takes too long to make one by one.
		mine := s.row(last.TaskID()).User
		pad := func(n int) {
			if _, err := ask(ctx, s.Bridge().engine, func(t *turn) (struct{}, error) { t.e.calls.users[mine] += n; return struct{}{}, nil }); err != nil {
				s.Fatal(err)
			}
		}
		pad(mostPending)
		if _, err := invoke(own, other); !errors.Is(err, beamapi.ErrBusy) {
			s.Errorf("the workspace's bound is not held: %v", err)
		}
		bobs, _ := s.stub(workspace("bob"), nil)
		if _, err := invoke(workspace("bob"), bobs); err != nil {
			s.Errorf("another workspace suffers: %v", err)
		}
		pad(-mostPending)
		s.restart(time.Second)
		if n, err := ask(ctx, s.Bridge().engine, func(t *turn) (int, error) { return t.e.calls.users[mine], nil }); err != nil || n > 3 {
			s.Errorf("after a restart %d calls are counted, %v", n, err)
		}
	})
}

func TestCallsAreCountedOnceHoweverOftenTheyAreMade(t *testing.T) {
	x, c := newCallIndex(), &call{row: store.Call{ID: "a", User: "alice", Stub: "s"}}
	x.add(c)
	x.add(c) // its process was killed: it is made once more
	if x.users["alice"] != 1 || x.get("a") != c {
		t.Errorf("counted %+v", x)
	}
	other := &call{row: store.Call{ID: "b", User: "alice", Stub: "s"}}
	x.add(other)
	x.remove(c)
	x.remove(c)
	if x.users["alice"] != 1 {
		t.Errorf("of one call is counted %+v", x)
	}
	x.remove(other)
	if len(x.users)+len(x.stubs)+len(x.byID) != 0 {
		t.Errorf("after its end there are %+v", x)
	}
}

func TestAnOpenJobIsSealedWhenItIsFull(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(4)
		p.act = calls(20*time.Second, nil)
		s.enter(p)
		spec, b := s.funcJob(), s.Bridge()
		start := func(id string) (protocol.JobID, <-chan called) {
			done := make(chan called, 1)
			go func() { done <- s.call(s.Context(), orderOf(id, spec)) }()
			s.await(time.Minute, id+" is taken", func() bool {
				_, err := view(s.Context(), b, func(tx *store.Tx) (store.Call, error) { return tx.GetCall(id) })
				return err == nil
			})
			return s.row(id).Job, done
		}
		first, one := start("one")
		most, err := ask(s.Context(), b.engine, func(t *turn) (uint64, error) {
			most := t.e.jobs[first].calls.most
			t.e.jobs[first].calls.most = 3
			return most, nil
		})
		if err != nil || most != 100_000 {
			s.Errorf("an open job takes %d inputs, %v", most, err)
		}
		ends := []<-chan called{one}
		for _, id := range []string{"two", "three"} {
			job, done := start(id)
			if ends = append(ends, done); job != first {
				s.Errorf("call %s went to another job before the first was full", id)
			}
		}
		<-time.After(2 * tick)
		second, four := start("four")
		if second == first {
			s.Error("a call went to a full job")
		}
		for i, c := range append(ends, four) {
			if c := <-c; c.err != nil || c.end.row.State != callComplete || c.result != "result of "+c.end.row.ID {
				s.Errorf("call %d: %q, %+v, %v", i+1, c.result, c.end, c.err)
			}
		}
		<-time.After(5 * time.Second)
		if st := s.status(first); st.State != "done" || st.InputsDone != 3 {
			s.Errorf("the full job is %s with %d inputs done", st.State, st.InputsDone)
		}
		if st := s.status(second); st.State.Over() {
			s.Errorf("the next job is %s", st.State)
		}
	})
}

func TestAWriteThatWasNotMergedBeforeACrashIsMergedAfterIt(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = calls(10*time.Millisecond, func(in protocol.FunctionInput) (protocol.InputOutcome, []volumes.File) {
			return protocol.InputOutcome{Reason: protocol.ReasonDone, Encoding: protocol.EncodingPickle},
				[]volumes.File{{Path: protocol.WrittenDir + "/volumes/out/" + in.Task + ".txt", Data: []byte("by " + in.Task)}}
		})
		s.enter(p)
		own := workspace("alice")
		for _, name := range []string{"out", "gone"} {
			if _, err := s.Bridge().Beam().Volumes.GetOrCreateVolume(s.Context(), own, name); err != nil {
				s.Fatal(err)
			}
		}
		key := volumeKey("alice", "out")
		volume := func() (v store.Volume) {
			s.write(func(tx *store.Tx) (err error) { v, err = tx.GetVolume(key); return err })
			return v
		}
		before := volume()
		spec := s.funcJob()
		spec.Volumes = []protocol.JobVolume{{Name: "out", At: "/volumes/out", Mode: "rw-shared"}}
		if c := s.call(s.Context(), orderOf("a", spec)); c.err != nil {
			s.Fatal(c.err)
		}
		after, row := volume(), s.row("a")
		if after.Root == before.Root || row.Written.Defined() {
			s.Fatalf("the write was not merged: %+v, %+v", after, row)
		}
		// What is on disk between the two commits: the call has ended, its volume is as it was. A second one is owed to a
		// job that is not there, which must keep nobody from the first.
		if err := s.process.Stop(); err != nil {
			s.Fatal(err)
		}
		db, err := store.Open(filepath.Join(s.process.Dir(), "bridge.db"), testLog(s))
		if err != nil {
			s.Fatal(err)
		}
		row.Written = row.Result
		broken := row
		broken.ID, broken.Job, broken.Ended = "broken", protocol.NewJobID(), row.Ended.Add(-time.Second)
		err = errors.Join(db.Update(s.Context(), func(tx *store.Tx) error {
			return errors.Join(tx.PutVolume(before), tx.PutCalls([]store.Call{row, broken}))
		}), db.Close())
		if err != nil {
			s.Fatal(err)
		}
		s.ready = make(chan struct{})
		s.process.Restart()
		s.awaitBridge()
		s.await(time.Minute, "the write is merged", func() bool { return !s.row("a").Written.Defined() })
		if now := volume(); now.Root != after.Root || now.Files != 1 {
			s.Errorf("the volume holds %+v, want %+v", now, after)
		}
	})
}

func TestACallWhoseEndCouldNotBeKeptIsStillToldOfItsEnd(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = calls(5*time.Second, nil)
		s.enter(p)
		done := make(chan called, 1)
		go func() { done <- s.call(s.Context(), orderOf("one", s.funcJob())) }()
		<-time.After(2 * time.Second)
		failed := errors.New("the disk is full")
		if _, err := ask(s.Context(), s.Bridge().engine, func(tn *turn) (struct{}, error) {
			tn.endCall(tn.e.calls.get("one"), protocol.InputOutcome{Reason: protocol.ReasonExitNonzero, Exit: 1})
			tn.also(func(*store.Tx) error { return failed })
			return struct{}{}, nil
		}); !errors.Is(err, failed) {
			s.Fatalf("the commit gave %v", err)
		}
		select {
		case c := <-done:
			if c.err != nil || c.end.row.State != callComplete || c.result != "result of one" {
				s.Errorf("the call ended as %+v with %q, %v", c.end, c.result, c.err)
			}
		case <-time.After(time.Minute):
			s.Errorf("its caller hears nothing; the call is %s", s.row("one").State)
		}
	})
}

func TestACallThatIsDoneHasAResult(t *testing.T) {
	good := calls(10*time.Millisecond, nil)
	for name, spoil := range map[string]func(f []volumes.File) []volumes.File{
		"no result": func(f []volumes.File) []volumes.File { return f[:1] },
		"a directory for a result": func(f []volumes.File) []volumes.File {
			f[1].Path += "/x"
			return f
		},
		"no outcome": func(f []volumes.File) []volumes.File { return f[1:] },
		"an outcome that is none": func(f []volumes.File) []volumes.File {
			f[0].Data = []byte("{")
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(s *stage) {
				liar, honest := s.own(1), s.own(1)
				liar.act = func(l protocol.Lease) deed {
					d := good(l)
					d.files = spoil(d.files)
					return d
				}
				s.enter(liar)
				done := make(chan called, 1)
				go func() { done <- s.call(s.Context(), orderOf("one", s.funcJob())) }()
				<-time.After(5 * time.Second)
				select {
				case c := <-done:
					s.Fatalf("it was taken: %q, %+v", c.result, c.end)
				default:
				}
				honest.act = good
				s.enter(honest)
				if c := <-done; c.err != nil || c.result != "result of one" {
					s.Errorf("then %q, %v", c.result, c.err)
				}
			})
		})
	}
}
