package beambridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// funcJob is a function as Beam's face would prepare it.
func (s *stage) funcJob() protocol.Job {
	s.Helper()
	tree, err := s.Bridge().vols.AddFiles([]volumes.File{{Path: "app.py", Data: []byte("def f(x): return x")}})
	if err != nil {
		s.Fatal(err)
	}
	j := funcJob()
	j.Run.Code = tree.Root.String()
	return j
}

// funcJob is a function's job without its code.
func funcJob() protocol.Job {
	return protocol.Job{
		Name: "f", Kind: protocol.JobMap, Inputs: protocol.JobInputs{Open: true}, Run: protocol.JobRun{Host: "python3", Handler: "app:f"},
		Policy: protocol.JobPolicy{AllowUnvetted: "single", Compare: "none", Start: protocol.Duration(time.Hour)},
	}
}

// calls answers each call of a lease with its own arguments, after a time.
func calls(after time.Duration, outcome func(in protocol.FunctionInput) (protocol.InputOutcome, []volumes.File)) func(protocol.Lease) deed {
	return func(l protocol.Lease) deed {
		d := deed{after: after, reason: protocol.ReasonDone}
		for i, text := range l.Inputs {
			in, err := protocol.ParseFunctionInput(text)
			if err != nil {
				return deed{reason: protocol.ReasonBridgeError}
			}
			o := protocol.InputOutcome{Reason: protocol.ReasonDone, Encoding: protocol.EncodingPickle, Log: []protocol.InputLog{{Stream: protocol.LogStdout, Line: "called " + in.Task}}}
			var files []volumes.File
			if in.Encoding == "" {
				o = protocol.InputOutcome{Reason: protocol.ReasonCancelled, Exit: 3}
			} else if outcome != nil {
				o, files = outcome(in)
			}
			dir := strconv.FormatUint(l.Chunk.First+uint64(i), 10) + "/"
			raw, _ := json.Marshal(o)
			d.files = append(d.files, volumes.File{Path: dir + protocol.OutcomeFile, Data: raw})
			if o.Reason == protocol.ReasonDone {
				d.files = append(d.files, volumes.File{Path: dir + protocol.ResultFile, Data: append([]byte("result of "), in.Args...)})
			}
			for _, f := range files {
				d.files = append(d.files, volumes.File{Path: dir + f.Path, Data: f.Data})
			}
		}
		return d
	}
}

// called is what a caller was told.
type called struct {
	output string
	end    *callEnd
	result string
	err    error
}

// call makes a call and waits for its end.
func (s *stage) call(ctx context.Context, o order) (c called) {
	w, err := s.Bridge().call(ctx, o)
	for err == nil && c.end == nil {
		var out string
		out, c.end, err = w.next(ctx)
		c.output += out
	}
	if err == nil {
		var raw []byte
		raw, err = s.Bridge().callResult(&c.end.row)
		c.result = string(raw)
	}
	c.err = err
	return c
}

func orderOf(id string, spec protocol.Job) order {
	return order{id: id, user: "alice", stub: "stub", spec: spec, encoding: protocol.EncodingPickle, args: []byte(id), wait: true}
}

// row reads a call's row.
func (s *stage) row(id string) (c store.Call) {
	s.Helper()
	if err := s.Bridge().store.View(s.Context(), func(tx *store.Tx) (err error) { c, err = tx.GetCall(id); return err }); err != nil {
		s.Fatal(err)
	}
	return c
}

func TestCallReturnsWhatItsNodeSays(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(2)
		var mu sync.Mutex
		given := map[string]protocol.FunctionInput{}
		p.act = func(l protocol.Lease) deed {
			mu.Lock()
			defer mu.Unlock()
			for _, text := range l.Inputs {
				if in, err := protocol.ParseFunctionInput(text); err == nil {
					given[in.Task] = in
				}
			}
			return calls(20*time.Millisecond, nil)(l)
		}
		s.enter(p)
		spec := s.funcJob()
		c := s.call(s.Context(), orderOf("one", spec))
		if c.err != nil || c.result != "result of one" || c.output != "called one\n" || c.end.row.State != callComplete || c.end.row.Exit != 0 {
			s.Fatalf("%+v, %v", c, c.err)
		}
		began := time.Now()
		large := orderOf("large", spec)
		large.args = []byte(strings.Repeat("x", protocol.ArgsInline+1))
		// A puppet fetches no arguments: it answers with those that came inside its lease.
		if c := s.call(s.Context(), large); c.err != nil || c.result != "result of " || c.end.row.State != callComplete {
			s.Errorf("a call with large arguments: %+v, %v", c, c.err)
		}
		mu.Lock()
		in := given["large"]
		mu.Unlock()
		if len(in.Args) > 0 || !in.Root.Defined() {
			s.Errorf("large arguments came inside a lease, %d bytes, or not at all", len(in.Args))
		} else if tree, err := s.Bridge().vols.FS(in.Root); err != nil {
			s.Error(err)
		} else if raw, err := fs.ReadFile(tree, protocol.ArgsFile); err != nil || !bytes.Equal(raw, large.args) {
			s.Errorf("the tree of large arguments holds %d bytes, %v", len(raw), err)
		}
		if took := time.Since(began); took > time.Second {
			s.Errorf("a warm call took %s", took)
		}
		if row := s.row("one"); row.State != callComplete || row.Args != "" || row.Node != p.host.ID() || row.Started.IsZero() || row.Ended.IsZero() {
			s.Errorf("the call is kept as %+v", row)
		}
		<-time.After(callIdle + 2*time.Second)
		j, err := s.Bridge().Job(s.Context(), alice, s.row("one").Job)
		if err != nil || j.State != protocol.JobState(cluster.JobDone) || j.InputsDone != 2 {
			s.Errorf("after a minute without a call its job is %+v, %v", j, err)
		}
	})
}

func TestCallsOutliveTheLossOfANode(t *testing.T) {
	onStage(t, func(s *stage) {
		var procs []interface{ Crash() }
		for range 2 {
			p := s.own(2)
			p.act = calls(50*time.Millisecond, nil)
			procs = append(procs, s.enter(p))
		}
		spec := s.funcJob()
		if c := s.call(s.Context(), orderOf("first", spec)); c.err != nil {
			s.Fatal(c.err)
		}
		var wg sync.WaitGroup
		got := make([]called, 100)
		for i := range got {
			wg.Go(func() { got[i] = s.call(s.Context(), orderOf(fmt.Sprint("call", i), spec)) })
		}
		<-time.After(200 * time.Millisecond)
		procs[0].Crash()
		wg.Wait()
		for i, c := range got {
			if c.err != nil || c.result != fmt.Sprint("result of call", i) || c.end.row.State != callComplete {
				s.Errorf("call %d: %q, %v", i, c.result, c.err)
			}
		}
	})
}

func TestFailedCallHarmsNoOther(t *testing.T) {
	onStage(t, func(s *stage) {
		tries := map[string]int{}
		p := s.own(1)
		p.act = calls(10*time.Millisecond, func(in protocol.FunctionInput) (protocol.InputOutcome, []volumes.File) {
			tries[in.Task]++
			switch {
			case in.Task == "raises":
				return protocol.InputOutcome{Reason: protocol.ReasonExitNonzero, Exit: 1, Text: "Traceback: no"}, nil
			case in.Task == "killed", in.Task == "killed_once" && tries[in.Task] == 1:
				return protocol.InputOutcome{Reason: protocol.ReasonSignal, Exit: -9, Text: "killed"}, nil
			}
			return protocol.InputOutcome{Reason: protocol.ReasonDone, Encoding: protocol.EncodingJSON}, nil
		})
		s.enter(p)
		spec := s.funcJob()
		for id, want := range map[string]struct {
			state string
			exit  int32
			tries int
		}{"well": {callComplete, 0, 1}, "raises": {callError, 1, 1}, "killed": {callError, -9, 2}, "killed_once": {callComplete, 0, 2}} {
			c := s.call(s.Context(), orderOf(id, spec))
			row := s.row(id)
			if c.err != nil || row.State != want.state || row.Exit != want.exit || tries[id] != want.tries || uint64(want.tries) != row.Tries {
				s.Errorf("%s: %s, exit %d, %d tries, %v", id, row.State, row.Exit, tries[id], c.err)
			}
		}
		job := s.row("killed").Job
		told := func(when string) {
			st := s.status(job)
			if st.CallsFailed != 2 || !strings.HasPrefix(st.Note, "2 calls failed; the last, ") || st.State == "failed" {
				s.Errorf("%s the job says %q, %d failed, %q", when, st.State, st.CallsFailed, st.Note)
			}
		}
		told("open,")
		<-time.After(callIdle + 2*time.Second)
		told("ended,")
	})
}

func TestAbandonedCallIsStoppedOnItsNode(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = calls(time.Hour, nil)
		s.enter(p)
		spec := s.funcJob()
		b := s.Bridge()
		if _, err := b.call(s.Context(), orderOf("runs", spec)); err != nil {
			s.Fatal(err)
		}
		<-time.After(2 * time.Second)
		held := p.holds()
		if len(held) != 1 {
			s.Fatalf("the node holds %v", held)
		}
		if _, err := b.call(s.Context(), orderOf("waits", spec)); err != nil {
			s.Fatal(err)
		}
		b.abandon("runs")
		b.abandon("waits")
		<-time.After(2 * time.Second)
		p.mu.Lock()
		why := p.stopped[held[0].ID]
		p.mu.Unlock()
		if why != protocol.ReasonCancelled {
			s.Errorf("its node was told to stop for %s", why)
		}
		for _, id := range []string{"runs", "waits"} {
			if row := s.row(id); row.State != callCancelled || row.Exit != 3 {
				s.Errorf("%s is %s, exit %d", id, row.State, row.Exit)
			}
		}
		for _, l := range p.holds() {
			for _, text := range l.Inputs {
				if l.ID != held[0].ID && text != withdrawn {
					s.Errorf("a call that was withdrawn was leased: %q", text)
				}
			}
		}
	})
}

func TestHeadlessCallsOutliveTheBridge(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(4)
		p.act = calls(20*time.Second, nil)
		s.enter(p)
		spec := s.funcJob()
		headless := orderOf("headless", spec)
		headless.headless, headless.wait = true, false
		if _, err := s.Bridge().call(s.Context(), headless); err != nil {
			s.Fatal(err)
		}
		if _, err := s.Bridge().call(s.Context(), orderOf("attended", spec)); err != nil {
			s.Fatal(err)
		}
		<-time.After(2 * time.Second)
		s.restart(3 * time.Second)
		<-time.After(10 * time.Second)
		if row := s.row("attended"); row.State != callCancelled {
			s.Errorf("ten seconds after the restart the attended call is %s", row.State)
		}
		p.mu.Lock()
		stopped := maps.Clone(p.stopped)
		p.mu.Unlock()
		if len(stopped) != 1 || !slices.Contains(slices.Collect(maps.Values(stopped)), protocol.ReasonCancelled) {
			s.Errorf("the node was told to stop %v, want the attended call's lease alone", stopped)
		}
		<-time.After(time.Minute)
		row := s.row("headless")
		if row.State != callComplete {
			s.Fatalf("the headless call is %+v", row)
		}
		if raw, err := s.Bridge().callResult(&row); err != nil || string(raw) != "result of headless" {
			s.Errorf("its result is %q, %v", raw, err)
		}
	})
}

func TestCallExpiresThatNobodyCanStart(t *testing.T) {
	onStage(t, func(s *stage) {
		spec := s.funcJob()
		spec.Policy.Start = protocol.Duration(30 * time.Second)
		c := s.call(s.Context(), orderOf("late", spec))
		if c.err != nil || c.end.row.State != callExpired || c.end.row.Exit == 0 || !strings.Contains(c.end.row.Text, "30s") {
			s.Errorf("%+v, %v", c.end, c.err)
		}
		<-time.After(callIdle + 3*time.Second)
		if j, err := s.Bridge().Job(s.Context(), alice, s.row("late").Job); err != nil || !j.State.Over() {
			s.Errorf("its job is %+v, %v", j, err)
		}
	})
}

func TestWhatACallWritesIsThereWhenItReturns(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = calls(10*time.Millisecond, func(in protocol.FunctionInput) (protocol.InputOutcome, []volumes.File) {
			return protocol.InputOutcome{Reason: protocol.ReasonDone, Encoding: protocol.EncodingPickle},
				[]volumes.File{{Path: protocol.WrittenDir + "/volumes/out/" + in.Task + ".txt", Data: []byte("by " + in.Task)}}
		})
		s.enter(p)
		b := s.Bridge()
		if _, err := b.PutVolume(s.Context(), alice, "out", fstest.MapFS{"old.txt": {Data: []byte("old")}}); err != nil {
			s.Fatal(err)
		}
		spec := s.funcJob()
		spec.Volumes = []protocol.JobVolume{{Name: "out", At: "/volumes/out", Mode: "rw-shared", Links: []string{"out"}}}
		jobs := map[protocol.JobID]bool{}
		want := "old.txt"
		for _, id := range []string{"a", "b", "c"} {
			if c := s.call(s.Context(), orderOf(id, spec)); c.err != nil {
				s.Fatal(c.err)
			}
			want += " " + id + ".txt"
			var row store.Volume
			if err := b.store.View(s.Context(), func(tx *store.Tx) (err error) { row, err = tx.GetVolume(volumeKey("alice", "out")); return err }); err != nil {
				s.Fatal(err)
			}
			have := map[string]bool{}
			for e, err := range b.vols.List(s.Context(), row.Root) {
				if err != nil {
					s.Fatal(err)
				}
				have[e.Name] = true
			}
			for name := range strings.FieldsSeq(want) {
				if !have[name] {
					s.Errorf("after call %s the volume lacks %s: %v", id, name, have)
				}
			}
			jobs[s.row(id).Job] = true
			if s.row(id).Written.Defined() {
				s.Errorf("call %s is still owed a merge", id)
			}
		}
		if len(jobs) != 3 {
			s.Errorf("calls that are made after others have written share jobs, so that they see the volume as it was: %d jobs", len(jobs))
		}
		<-time.After(2 * time.Second)
		for id := range jobs { // nothing is left open of those that see what is past
			if st := s.status(id); id != s.row("c").Job && st.State != "done" {
				s.Errorf("a job whose volume has moved on is %s", st.State)
			}
		}
		if _, err := b.PutVolume(s.Context(), alice, "out", fstest.MapFS{"new.txt": {Data: []byte("new")}}); err != nil {
			s.Fatal(err)
		}
		if c := s.call(s.Context(), orderOf("d", spec)); c.err != nil || s.row("d").Job == s.row("c").Job {
			s.Errorf("a call after somebody else has changed the volume goes to the same job (%v)", c.err)
		}
	})
}

func TestCallOfAFunctionThatCannotBeIsRefused(t *testing.T) {
	onStage(t, func(s *stage) {
		for field, spoil := range map[string]func(*protocol.Job){
			"run.code":          func(j *protocol.Job) { j.Run.Code = "bafybeigofgfcedqmjrpkkpaogluahhrlsr2exp2f7xsei2tfiurl433vym" },
			"volumes[0].name":   func(j *protocol.Job) { j.Volumes = []protocol.JobVolume{{Name: "none", At: "/v"}} },
			"resources.network": func(j *protocol.Job) { j.Resources.Network = "listed" },
			"policy.redundancy": func(j *protocol.Job) { j.Policy.Redundancy = 2 },
			"run.handler":       func(j *protocol.Job) { j.Inputs = protocol.JobInputs{Range: &protocol.IntRange{Last: 3}} },
		} {
			spec := s.funcJob()
			spoil(&spec)
			_, err := s.Bridge().call(s.Context(), orderOf("bad", spec))
			var api *protocol.APIError
			var all protocol.JobErrors
			if !(errors.As(err, &api) && api.Field == field || errors.As(err, &all) && all[0].Field == field) {
				s.Errorf("%s: %v", field, err)
			}
		}
	})
}

func TestChunkWithoutOutcomesDoesNotCount(t *testing.T) {
	onStage(t, func(s *stage) {
		liar, honest := s.own(1), s.own(1)
		liar.act = func(l protocol.Lease) deed {
			return deed{after: 10 * time.Millisecond, reason: protocol.ReasonDone, files: []volumes.File{{Path: strconv.FormatUint(l.Chunk.First, 10) + "/" + protocol.ResultFile, Data: []byte("forged")}}}
		}
		s.enter(liar)
		spec := s.funcJob()
		done := make(chan called, 1)
		go func() { done <- s.call(s.Context(), orderOf("one", spec)) }()
		<-time.After(5 * time.Second)
		select {
		case c := <-done:
			s.Fatalf("a result without an outcome was taken: %q, %+v", c.result, c.end)
		default:
		}
		honest.act = calls(10*time.Millisecond, nil)
		s.enter(honest)
		if c := <-done; c.err != nil || c.result != "result of one" {
			s.Errorf("then %q, %v", c.result, c.err)
		}
	})
}
