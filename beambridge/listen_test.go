package beambridge

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

// lines is a message of lines, each input:text.
func lines(input uint64, texts ...string) *pb.LogChunk {
	c := &pb.LogChunk{}
	for _, s := range texts {
		c.Lines = append(c.Lines, &pb.LogLine{Input: input, Text: []byte(s)})
	}
	return c
}

// silent is an outcome without output of its own: what the caller is told is what was listened to.
func silent(protocol.FunctionInput) (protocol.InputOutcome, []volumes.File) {
	return protocol.InputOutcome{Reason: protocol.ReasonDone, Encoding: protocol.EncodingPickle}, nil
}

// TestLinesOfOtherInputsNeitherForgeNorSilence has a node that names in its log the inputs of a call that another node
// runs, and inputs that are nobody's.
func TestLinesOfOtherInputsNeitherForgeNorSilence(t *testing.T) {
	onStage(t, func(s *stage) {
		honest, liar := s.own(1), s.own(1)
		for _, p := range []*puppet{honest, liar} {
			p.act = calls(20*time.Second, silent)
		}
		honest.tell = func(f *p2p.Frames, req *pb.LogRequest) error {
			return errors.Join(f.Write(lines(0, "mine")), f.Write(&pb.LogChunk{End: true}))
		}
		s.enter(honest)
		done := make([]chan called, 2)
		spec := s.funcJob()
		start := func(i int, id string) {
			done[i] = make(chan called, 1)
			go func() { done[i] <- s.call(s.Context(), orderOf(id, spec)) }()
			s.await(time.Minute, id+" runs", func() bool {
				c, err := ask(s.Context(), s.Bridge().engine, func(t *turn) (bool, error) {
					c := t.e.calls.get(id)
					return c != nil && c.row.State == callRunning, nil
				})
				return c && err == nil
			})
		}
		start(0, "victim")
		honest.mu.Lock()
		honest.slots = 0
		honest.mu.Unlock()
		<-time.After(3 * time.Second) // what it has asked for already is answered
		liar.tell = func(f *p2p.Frames, req *pb.LogRequest) error {
			err := errors.Join(f.Write(lines(0, "forged")), f.Write(lines(1<<40, "nobody's")), f.Write(lines(2, "not made yet")), f.Write(lines(1, "true")))
			return errors.Join(err, f.Write(lines(0, "forged again")), f.Write(lines(1, "true to the end")), f.Write(&pb.LogChunk{End: true}))
		}
		s.enter(liar)
		start(1, "other")
		if held := liar.holds(); len(held) == 0 {
			s.Fatal("the liar runs nothing")
		}
		if c := <-done[0]; c.err != nil || c.output != "mine\n" || c.end.row.State != callComplete {
			s.Errorf("the victim is told %q, %v", c.output, c.err)
		}
		if c := <-done[1]; c.err != nil || c.output != "true\ntrue to the end\n" || c.end.row.State != callComplete {
			s.Errorf("the caller of the liar's own is told %q, %v", c.output, c.err)
		}
	})
}

// TestANodeThatLostACallPrintsNothingMoreIntoIt has a node whose lease lapses and whose log goes on.
func TestANodeThatLostACallPrintsNothingMoreIntoIt(t *testing.T) {
	onStage(t, func(s *stage) {
		first, second := s.own(1), s.own(1)
		first.act = func(protocol.Lease) deed { return deed{silent: true} }
		second.act = calls(20*time.Second, silent)
		lost, over := make(chan struct{}), make(chan struct{})
		first.tell = func(f *p2p.Frames, req *pb.LogRequest) error {
			defer close(over)
			if err := f.Write(lines(0, "before")); err != nil {
				return err
			}
			<-lost
			for f.Write(lines(0, "forged")) == nil { // for ever, as far as it is up to the node
				<-time.After(100 * time.Millisecond)
			}
			return nil
		}
		second.tell = func(f *p2p.Frames, req *pb.LogRequest) error {
			return errors.Join(f.Write(lines(0, "after")), f.Write(&pb.LogChunk{End: true}))
		}
		s.enter(first)
		done := make(chan called, 1)
		go func() { done <- s.call(s.Context(), orderOf("one", s.funcJob())) }()
		s.await(time.Minute, "the first node has it", func() bool { return len(first.holds()) == 1 })
		<-time.After(time.Second)
		s.enter(second)
		first.mu.Lock()
		first.deaf, first.slots = true, 0 // its lease lapses, and it asks for none
		first.mu.Unlock()
		s.await(time.Minute, "the second node has it", func() bool { return len(second.holds()) == 1 })
		close(lost)
		if c := <-done; c.err != nil || c.output != "before\nafter\n" || c.result != "result of one" {
			s.Errorf("%q, %q, %v", c.output, c.result, c.err)
		}
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			s.Error("the bridge still listens to a node that has lost the call")
		}
	})
}

// TestNobodyIsListenedToAfterTheLastCall has a node that never ends the log of a chunk of two calls.
func TestNobodyIsListenedToAfterTheLastCall(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = calls(5*time.Second, silent)
		var mu sync.Mutex
		opened, ended := 0, 0
		p.tell = func(f *p2p.Frames, req *pb.LogRequest) error {
			mu.Lock()
			opened++
			mu.Unlock()
			for f.Write(lines(0, "x")) == nil {
				<-time.After(100 * time.Millisecond)
			}
			mu.Lock()
			ended++
			mu.Unlock()
			return nil
		}
		spec := s.funcJob()
		spec.Chunk = 2
		done := make([]chan called, 2)
		for i, id := range []string{"a", "b"} { // before there is a node, so that they go into one chunk
			done[i] = make(chan called, 1)
			go func() { done[i] <- s.call(s.Context(), orderOf(id, spec)) }()
		}
		<-time.After(time.Second)
		s.enter(p)
		for i := range done {
			if c := <-done[i]; c.err != nil || c.end.row.State != callComplete {
				s.Errorf("%+v, %v", c.end, c.err)
			}
		}
		if held := p.seen; len(held) != 1 || held[0].Chunk.Len() != 2 {
			s.Fatalf("the calls were leased as %v", held)
		}
		<-time.After(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if opened == 0 || opened != ended {
			s.Errorf("of %d logs that were listened to, %d are over", opened, ended)
		}
	})
}

func TestACallByAUserWithoutCreditIsRefusedOrWaits(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.ask = 3_600_000
		p.act = calls(100*time.Millisecond, nil)
		own, face := workspace("alice"), s.Bridge().Beam()
		early, _ := s.stub(own, nil)
		call := beamapi.Call{StubID: early, Args: []byte("x"), Encoding: protocol.EncodingPickle}
		waits, err := face.Calls.Invoke(s.Context(), own, call) // nobody is there yet, so nobody asks a price
		if err != nil {
			s.Fatal(err)
		}
		s.enter(p)
		<-time.After(5 * time.Second)
		if x, err := face.Calls.Task(s.Context(), own, waits.TaskID()); err != nil || x.Status != beamapi.StatusPending || len(p.holds()) != 0 {
			s.Errorf("without credit the call is %s on %v, %v", x.Status, p.holds(), err)
		}
		other, _ := s.stub(own, nil)
		_, err = face.Calls.Invoke(s.Context(), own, beamapi.Call{StubID: other, Args: []byte("x"), Encoding: protocol.EncodingPickle})
		if no, ok := errors.AsType[*beamapi.Refusal](err); !ok || !strings.Contains(no.Text, "alice has no credit") || !strings.Contains(no.Text, "settlement credit") {
			s.Errorf("a call that nobody would run for nothing: %v", err)
		}
		if n, err := ask(s.Context(), s.Bridge().engine, func(t *turn) (int, error) { return len(t.e.calls.byID), nil }); err != nil || n != 1 {
			s.Errorf("%d calls wait, %v", n, err)
		}
		s.credit(1_000_000)
		if last, err := finish(s.Context(), waits); err != nil || string(last.Result) != "result of x" {
			s.Errorf("with credit it ended as %+v, %v", last, err)
		}
		if a, err := s.Bridge().Account(s.Context(), alice); err != nil || a.CreditUUSD >= 1_000_000 {
			s.Errorf("the call cost nothing: %+v, %v", a, err)
		}
	})
}

func TestABridgeThatIsKilledLeavesNoAttendedCallRunning(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(3)
		p.act = calls(time.Hour, nil)
		s.enter(p)
		spec := s.funcJob()
		for _, id := range []string{"a", "b", "c"} { // the third has no node
			if _, err := s.Bridge().call(s.Context(), orderOf(id, spec)); err != nil {
				s.Fatal(err)
			}
			<-time.After(time.Second)
		}
		held := p.holds()
		job := s.row("a").Job
		s.restart(2 * time.Second)
		<-time.After(10 * time.Second) // beam-interface.md 6.9
		for _, id := range []string{"a", "b", "c"} {
			if row := s.row(id); row.State != callCancelled || row.Exit != 3 || !strings.Contains(row.Text, "restarted") || row.Ended.IsZero() {
				s.Errorf("%s is %s with exit %d, %q", id, row.State, row.Exit, row.Text)
			}
		}
		p.mu.Lock()
		for _, l := range held {
			if p.stopped[l.ID] != protocol.ReasonCancelled {
				s.Errorf("the lease of input %d was told to stop for %q", l.Chunk.First, p.stopped[l.ID])
			}
		}
		p.mu.Unlock()
		if len(held) == 0 {
			s.Error("nothing ran")
		}
		s.await(2*time.Minute, "their job is over", func() bool { return s.status(job).State.Over() })
		if n, err := ask(s.Context(), s.Bridge().engine, func(t *turn) (int, error) { return len(t.e.calls.byID) + len(t.e.calls.users), nil }); err != nil || n != 0 {
			s.Errorf("%d calls are open, %v", n, err)
		}
	})
}

func TestOnlyTheLinesOfWhoHasTheCallCount(t *testing.T) {
	w, first, second := newWaiter(), &listening{}, &listening{}
	if w.printFrom(first, "nobody's") {
		t.Error("lines count before anybody is listened to")
	}
	w.hear(first)
	w.printFrom(first, "1")
	w.hear(second)
	if w.printFrom(first, "late") || !w.printFrom(second, "2") {
		t.Error("lines of who has lost the call count, or those of who has it do not")
	}
	if out, _, err := w.next(t.Context()); err != nil || out != "12" {
		t.Errorf("told %q, %v", out, err)
	}
}
