package beambridge

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

func TestJobEndsWithOneTreeHoweverItWasCut(t *testing.T) {
	onStage(t, func(s *stage) {
		s.enter(s.own(2))
		s.enter(s.own(1))
		want := expected(t, 24).String()
		for _, chunk := range []uint64{1, 5, 24, 0} {
			st := s.over(s.submit(count1(24, chunk)), time.Minute)
			if st.State != "done" || st.ResultCID != want || st.InputsDone != 24 || st.Note != "" || st.ChunksDone != st.ChunksTotal {
				t.Errorf("in chunks of %d: %s (%s), %d of 24 inputs, result %s, want %s; %s", chunk, st.State, st.Text, st.InputsDone, st.ResultCID, want, st.Note)
			}
		}
	})
}

func TestBothNodesWorkAndAreAccounted(t *testing.T) {
	onStage(t, func(s *stage) {
		a, b := s.own(2), s.own(2)
		a.ask, b.ask = 3_600_000, 3_600_000 // a micro-USD a millisecond
		s.enter(a)
		s.enter(b)
		s.credit(1_000_000)
		id := s.submit(count1(40, 1))
		st := s.over(id, time.Minute)
		if len(st.Nodes) != 2 || st.Nodes[0].Chunks < 10 || st.Nodes[1].Chunks < 10 {
			t.Fatalf("the work was spread as %+v", st.Nodes)
		}
		bill, err := s.Bridge().JobStatement(context.Background(), alice, id)
		if err != nil {
			t.Fatal(err)
		}
		// 40 chunks of 100 ms at 3.6 $/h and 5 % fee on top.
		if bill.Total.WorkingMS != 4000 || bill.Total.BilledMS != 4000 || bill.Total.BillUUSD < 4200 || bill.Total.BillUUSD > 4220 || st.SpentUUSD != bill.Total.BillUUSD {
			t.Errorf("statement %+v, the job says %d", bill.Total, st.SpentUUSD)
		}
		if st.Nodes[0].ScoreAfter <= st.Nodes[0].ScoreBefore {
			t.Errorf("good work left the score at %v, was %v", st.Nodes[0].ScoreAfter, st.Nodes[0].ScoreBefore)
		}
		acc, err := s.Bridge().Account(context.Background(), alice)
		if err != nil || acc.CreditUUSD != 1_000_000-st.SpentUUSD || acc.SpentUUSD != st.SpentUUSD {
			t.Errorf("account %+v, %v; spent %d", acc, err, st.SpentUUSD)
		}
		s.books(id, 40)
	})
}

func TestJobGoesOnOverRestartOfTheBridge(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(2)
		p.ask = 3_600_000
		p.act = func(l protocol.Lease) deed { return deed{after: 700 * time.Millisecond, reason: protocol.ReasonDone} }
		s.enter(p)
		s.credit(1_000_000)
		id := s.submit(count1(30, 1))
		for range 2 {
			before := s.status(id).ChunksDone
			s.await(time.Minute, "some chunks are done", func() bool { return s.status(id).ChunksDone >= before+5 })
			s.restart(3 * time.Second)
		}
		st := s.over(id, 2*time.Minute)
		if st.State != "done" || st.ResultCID != expected(t, 30).String() || st.Leases != 30 {
			t.Errorf("%s (%s) with %d leases, result %s", st.State, st.Text, st.Leases, st.ResultCID)
		}
		if len(st.Retried) != 0 {
			t.Errorf("chunks ran again although their node never stopped: %+v", st.Retried)
		}
		s.books(id, 30)
	})
}

func TestNodeThatDiesIsReplacedAndLosesItsFence(t *testing.T) {
	onStage(t, func(s *stage) {
		dead, good := s.own(1), s.own(1)
		dead.act = func(protocol.Lease) deed { return deed{silent: true} }
		proc := s.enter(dead)
		id := s.submit(count1(2, 1)) // no siblings, so no copies of slow chunks
		s.await(time.Minute, "the first node holds leases", func() bool { return len(dead.holds()) == 2 })
		s.enter(good)
		held := dead.holds()
		proc.Crash()
		s.puppets = s.puppets[1:]
		st := s.over(id, time.Minute)
		if st.State != "done" || len(st.Retried) != 2 {
			t.Fatalf("%s (%s), leased again %+v", st.State, st.Text, st.Retried)
		}
		for i, r := range st.Retried {
			if r.Fence != 2 || r.LostNode != proc.ID() || r.First != held[i].Chunk.First {
				t.Errorf("retried %+v, held %+v", r, held[i])
			}
		}
		proc.Restart() // it comes back and hands in what it held
		s.puppets = append(s.puppets, proc)
		s.await(time.Minute, "it is back", func() bool { dead.mu.Lock(); defer dead.mu.Unlock(); return dead.runs == 2 })
		for _, l := range held {
			req, err := dead.request(l, well(l), 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			dead.handIn(l, req)
			if v := dead.verdicts(l.ID); len(v) != 1 || v[0] != pb.Verdict_VERDICT_DUPLICATE {
				t.Errorf("a result under the old fence got %v", v)
			}
		}
		s.books(id, 2)
	})
}

func TestResultsThatAreRepeatedChangeNothing(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.ask, p.keep = 3_600_000, true
		s.enter(p)
		s.credit(1_000_000)
		id := s.submit(count1(2, 1))
		s.await(time.Minute, "two leases", func() bool { return len(p.holds()) == 2 })
		l := p.holds()[0]
		<-time.After(100 * time.Millisecond)
		req, err := p.request(l, well(l), 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		var first, again *pb.ResultReply
		for _, to := range []**pb.ResultReply{&first, &again} {
			if *to, err = p.send(req); err != nil {
				t.Fatal(err)
			}
		}
		if v := first.GetAcks()[0].GetVerdict(); v != pb.Verdict_VERDICT_ACCOUNTED {
			t.Errorf("first: %s", v)
		}
		if v := again.GetAcks()[0].GetVerdict(); v != pb.Verdict_VERDICT_DUPLICATE {
			t.Errorf("again: %s", v)
		}
		if string(first.GetCountersign()) == "" || string(first.GetCountersign()) != string(again.GetCountersign()) {
			t.Error("a receipt that is known gets another answer")
		}
		bill, err := s.Bridge().JobStatement(context.Background(), alice, id)
		if err != nil || bill.Total.WorkingMS != 100 || bill.Total.Chunks != 1 {
			t.Errorf("statement %+v, %v", bill.Total, err)
		}
		delete(p.leases, l.ID)
		p.do(p.holds()[0])
		s.over(id, time.Minute)
		s.books(id, 2)
	})
}

func TestReceiptsOfWorkThatNobodySawCountNothing(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(r *protocol.Receipt)
		ms     int64
	}{
		"ten times as long": {func(r *protocol.Receipt) {
			u := &r.Records[0]
			u.StartMS -= 900
			u.DurationMS, u.GPUMS = u.DurationMS+900, u.GPUMS+900
		}, 100},
		"another lease":  {func(r *protocol.Receipt) { r.Records[0].Lease[0]++ }, 0},
		"another fence":  {func(r *protocol.Receipt) { r.Records[0].Fence = 9 }, 0},
		"a gap in chain": {func(r *protocol.Receipt) { r.Seq, r.Prev = 6, [32]byte{1} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			onStage(t, func(s *stage) {
				p := s.own(1)
				p.ask, p.keep = 3_600_000, true
				s.enter(p)
				s.credit(1_000_000)
				<-time.After(5*time.Second - time.Duration(time.Now().UnixNano())%(5*time.Second) + 2*time.Second) // into a cell
				id := s.submit(count1(1, 1))
				s.await(time.Minute, "a lease", func() bool { return len(p.holds()) == 1 })
				l := p.holds()[0]
				p.tamper = func(r *protocol.Receipt) {
					c.tamper(r)
					u := &r.Records[0]
					u.ID = protocol.NewRecordID(p.host.ID(), u.Lease[:], u.Slot, u.State, uint64(u.StartMS/protocol.CellMillis))
				}
				p.do(l)
				st := s.over(id, time.Minute)
				bill, err := s.Bridge().JobStatement(context.Background(), alice, id)
				if err != nil || st.State != "done" {
					t.Fatal(st.State, err)
				}
				if got := bill.Total.WorkingMS; got > c.ms+150 || c.ms == 0 && got != 0 {
					t.Errorf("%d ms are settled, %d were worked", got, c.ms)
				}
			})
		})
	}
}

func TestTwoReceiptsUnderOneNumberEndANode(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.keep = true
		s.enter(p)
		id := s.submit(count1(2, 1))
		s.await(time.Minute, "two leases", func() bool { return len(p.holds()) == 2 })
		p.tamper = func(r *protocol.Receipt) { r.Seq, r.Prev = 1, [32]byte{} }
		for _, l := range p.holds() {
			p.do(l)
			<-time.After(10 * time.Millisecond)
		}
		s.over(id, time.Minute)
		r, err := s.Bridge().Reputation(context.Background(), alice, p.host.ID())
		if err != nil || r.Standing != "disqualified" || r.Score != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestHostileNodeGetsNothing(t *testing.T) {
	onStage(t, func(s *stage) {
		good, bad := s.own(1), newPuppet(s, nil, 1)
		good.keep = true
		s.enter(good)
		id := s.submit(count1(2, 1))
		s.await(time.Minute, "the good node holds leases", func() bool { return len(good.holds()) == 2 })
		bad.decline = protocol.ReasonRefusedPolicy
		s.enter(bad)
		l := good.holds()[0]

		reply := &pb.ClaimReply{}
		if err := p2p.Call(context.Background(), bad.host, bad.bridge, protocol.ProtoClaim, &pb.ClaimRequest{JobId: id[:], Slots: 1 << 30}, reply); err != nil || !reply.GetGone() {
			t.Errorf("a stranger's claim: %+v, %v", reply, err)
		}
		req, err := bad.request(l, well(l), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		var got *pb.ResultReply
		s.await(time.Minute, "the bridge knows the stranger", func() bool {
			got, err = bad.send(req)
			return p2p.CodeOf(err) != p2p.CodeBusy
		})
		if err != nil || got.GetAcks()[0].GetVerdict() != pb.Verdict_VERDICT_REFUSED {
			t.Errorf("a result for another's lease: %+v, %v", got, err)
		}
		lie, err := good.request(l, well(l), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bad.send(lie); p2p.CodeOf(err) != p2p.CodeUnauthorized {
			t.Errorf("another's signed result: %+v, %v", got, err)
		}
		lie.Results = lie.Results[:len(lie.Results)-1]
		if _, err := good.send(lie); p2p.CodeOf(err) != p2p.CodeMalformed {
			t.Errorf("a broken envelope: %v", err)
		}
		req.Blocks[0].Data = append([]byte("x"), req.Blocks[0].Data...)
		if _, err := bad.send(req); p2p.CodeOf(err) != p2p.CodeMalformed {
			t.Errorf("a block that is not what it says: %v", err)
		}
		if st := s.status(id); st.ChunksDone != 0 {
			t.Fatalf("%d chunks are done", st.ChunksDone)
		}
		for _, l := range good.holds() {
			good.do(l)
		}
		if st := s.over(id, time.Minute); st.ResultCID != expected(t, 2).String() || st.Nodes[0].Chunks+st.Nodes[len(st.Nodes)-1].Chunks < 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestCancelReachesEveryNode(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(2)
		p.keep, p.ask = true, 3_600_000
		s.enter(p)
		s.credit(1_000_000)
		id := s.submit(count1(50, 1))
		s.await(time.Minute, "leases", func() bool { return len(p.holds()) == 4 })
		st, err := s.Bridge().CancelJob(context.Background(), alice, id)
		if err != nil || st.State != "cancelled" || st.Reason != "cancelled" {
			t.Fatalf("%+v, %v", st, err)
		}
		s.await(2*time.Second, "every lease is stopped", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.stopped) == 4 && !p.member[id] })
		for _, l := range p.holds() { // what ran until then is paid
			p.do(l)
		}
		s.await(time.Minute, "the reservation is given back", func() bool {
			a, err := s.Bridge().Account(context.Background(), alice)
			return err == nil && a.ReservedUUSD == 0
		})
		if st = s.status(id); st.ChunksDone != 0 || st.SpentUUSD == 0 {
			t.Errorf("%+v", st)
		}
		if _, err := s.Bridge().CancelJob(context.Background(), alice, id); err != nil {
			t.Errorf("cancelling again: %v", err)
		}
	})
}

func TestJobEndsWhenItsMoneyDoes(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.ask = 3_600_000_000 // a dollar a second
		s.enter(p)
		s.credit(5_000_000)
		j := count1(1000, 1)
		limit := protocol.Money(500_000)
		j.Policy.MaxSpend = &limit
		id := s.submit(j)
		st := s.over(id, time.Minute)
		if st.State != "failed" || st.Reason != "budget_exhausted" || st.SpentUUSD > 500_000 || st.SpentUUSD < 400_000 {
			t.Fatalf("%s (%s: %s), spent %d", st.State, st.Reason, st.Text, st.SpentUUSD)
		}
		s.await(time.Minute, "the rest is given back", func() bool {
			a, err := s.Bridge().Account(context.Background(), alice)
			return err == nil && a.ReservedUUSD == 0 && a.CreditUUSD == 5_000_000-s.status(id).SpentUUSD
		})
	})
}

func TestJobWithoutCreditIsRefusedWhereNobodyWorksForNothing(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.ask = 1000
		s.enter(p)
		<-time.After(time.Second) // until the engine has heard of it, too
		_, err := s.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: count1(1, 1), ModuleCID: s.module()})
		var e *protocol.APIError
		if !errors.As(err, &e) || e.Code != protocol.CodeNoCredit || e.Fix == "" {
			t.Errorf("%v", err)
		}
	})
}

func TestJobGoesOnWhenCreditComes(t *testing.T) {
	onStage(t, func(s *stage) {
		id := s.submit(count1(4, 1))
		p := s.own(1)
		p.ask = 3_600_000
		s.enter(p)
		s.await(10*time.Second, "it waits and says what for", func() bool { return strings.Contains(s.status(id).Text, "no credit") })
		s.credit(1_000_000)
		if st := s.over(id, time.Minute); st.State != "done" || st.SpentUUSD == 0 {
			t.Errorf("%s (%s), spent %d", st.State, st.Text, st.SpentUUSD)
		}
		s.books(id, 4)
	})
}

func TestJobWaitsForNodesAndSaysWhy(t *testing.T) {
	onStage(t, func(s *stage) {
		j := count1(4, 1)
		j.Resources.CPU = 3000
		id := s.submit(j)
		s.await(10*time.Second, "it waits", func() bool { return s.status(id).State == "waiting" })
		if st := s.status(id); st.Text == "" {
			t.Error("no reason is shown")
		}
		s.enter(s.own(1)) // too small
		s.await(10*time.Second, "the reason names the requirement", func() bool {
			x, err := s.Bridge().ExplainJob(context.Background(), alice, id)
			return err == nil && x.Total == 1 && x.Matching == 0 && s.status(id).Text == "0 of 1 match: cpu 3 leaves 0 (best is 1)"
		})
		s.enter(s.own(4))
		if st := s.over(id, time.Minute); st.State != "done" {
			t.Errorf("%s: %s", st.State, st.Text)
		}
		x, err := s.Bridge().ExplainJob(context.Background(), alice, id)
		if err != nil || len(x.Chosen) != 1 || x.Chosen[0].ActualRun < 0.09 || x.Chosen[0].ActualRun > 0.2 {
			t.Errorf("%+v, %v", x, err)
		}
	})
}

func TestDeadlineEndsAWaitingJob(t *testing.T) {
	onStage(t, func(s *stage) {
		j := count1(4, 1)
		j.Policy.Deadline = protocol.Duration(30 * time.Second)
		st := s.over(s.submit(j), time.Minute)
		if st.State != "failed" || st.Reason != "deadline" {
			t.Errorf("%s (%s): %s", st.State, st.Reason, st.Text)
		}
	})
}

func TestJobThatFailsSaysItsFirstCause(t *testing.T) {
	onStage(t, func(s *stage) {
		for range 3 {
			p := newPuppet(s, nil, 1) // three groups
			p.act = func(l protocol.Lease) deed {
				if l.Chunk.First == 2 {
					return deed{after: 10 * time.Millisecond, reason: protocol.ReasonExitNonzero, exit: 3}
				}
				return well(l)
			}
			s.net.Heal()
			s.enter(p)
		}
		j := count1(6, 1)
		j.Policy.AllowUnvetted = "single"
		j.Policy.Retries = new(uint32)
		*j.Policy.Retries = 5
		st := s.over(s.submit(j), time.Minute)
		if st.State != "failed" || st.Reason != "exit_nonzero" || st.ChunksFailed != 1 || st.ChunksDone != 5 || st.Note != "partial: 5 of 6 inputs" {
			t.Fatalf("%s (%s: %s), done %d, failed %d, note %q", st.State, st.Reason, st.Text, st.ChunksDone, st.ChunksFailed, st.Note)
		}
		for _, n := range st.Nodes {
			r, err := s.Bridge().Reputation(context.Background(), alice, n.PeerID)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Incidents) != 0 {
				t.Errorf("a poisoned input is held against %s: %+v", n.PeerID, r.Incidents)
			}
		}
	})
}

func TestExitCodeIsTheFirstNodesFaultOnceAnotherGroupSucceeds(t *testing.T) {
	onStage(t, func(s *stage) {
		bad, good := newPuppet(s, nil, 1), newPuppet(s, testKey("another operator"), 1)
		bad.act = func(protocol.Lease) deed {
			return deed{after: 20 * time.Second, reason: protocol.ReasonExitNonzero, exit: 3}
		}
		s.enter(bad)
		j := count1(2, 1)
		j.Policy.AllowUnvetted = "single"
		id := s.submit(j)
		s.await(time.Minute, "the bad node has both", func() bool { return len(bad.holds()) == 2 })
		s.enter(good)
		if st := s.over(id, 2*time.Minute); st.State != "done" {
			t.Fatalf("%s: %s", st.State, st.Text)
		}
		r, err := s.Bridge().Reputation(context.Background(), alice, bad.host.ID())
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Incidents) == 0 || r.Incidents[0].Reason != "exit_nonzero" || r.Incidents[0].Blame != "node" {
			t.Errorf("incidents %+v", r.Incidents)
		}
	})
}

func TestOutputsThatCollideKeepADirectoryForEachInput(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(1)
		p.act = func(l protocol.Lease) deed {
			name := []byte{'0' + byte(l.Chunk.First)}
			return deed{after: time.Millisecond, reason: protocol.ReasonDone, files: []volumes.File{{Path: string(name) + "/same", Data: name}}}
		}
		s.enter(p)
		id := s.submit(count1(3, 1))
		st := s.over(id, time.Minute)
		if st.Note == "" {
			t.Error("no note says that paths collided")
		}
		files, _, err := s.Bridge().JobResults(context.Background(), alice, id)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"0", "1", "2"} {
			if got, err := fs.ReadFile(files, n+"/same"); err != nil || string(got) != n {
				t.Errorf("%s/same is %q, %v", n, got, err)
			}
		}
	})
}

func TestFailedCommitIsUndoneAndTheJobGoesOn(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(2)
		p.ask = 3_600_000
		s.enter(p)
		s.credit(1_000_000)
		id := s.submit(count1(30, 1))
		for range 3 {
			before := s.status(id).ChunksDone
			s.await(time.Minute, "some chunks are done", func() bool { return s.status(id).ChunksDone > before })
			e := s.Bridge().engine
			failed := errors.New("the disk is full")
			if _, err := ask(context.Background(), e, func(tn *turn) (struct{}, error) {
				for _, j := range tn.e.jobs { // whatever the turn has done besides is undone with it
					fx, err := j.tracker.Cancel(cluster.JobCancel, protocol.ReasonCancelled, "in vain")
					if err == nil {
						tn.apply(j, fx)
					}
				}
				tn.also(func(*store.Tx) error { return failed })
				return struct{}{}, nil
			}); !errors.Is(err, failed) || !errors.Is(err, errNotNow) {
				t.Fatalf("the commit gave %v", err)
			}
		}
		st := s.over(id, time.Minute)
		if st.State != "done" || st.ResultCID != expected(t, 30).String() {
			t.Fatalf("%s (%s) %s", st.State, st.Text, st.ResultCID)
		}
		s.books(id, 30)
	})
}

func TestWaitReturnsWithEachChange(t *testing.T) {
	onStage(t, func(s *stage) {
		s.enter(s.own(1))
		id := s.submit(count1(5, 1))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		var seq uint64
		changes := 0
		for {
			st, err := s.Bridge().WaitJob(ctx, alice, id, seq)
			if err != nil {
				t.Fatal(err)
			}
			if st.State.Over() {
				break
			}
			if st.Seq <= seq {
				t.Fatalf("woken at %d without a change since %d", st.Seq, seq)
			}
			seq, changes = st.Seq, changes+1
		}
		if changes < 5 {
			t.Errorf("%d changes for 5 chunks", changes)
		}
		bob := api.Principal{User: "bob", Scopes: []api.Scope{api.ScopeJobs}}
		var e *protocol.APIError
		if _, err := s.Bridge().Job(ctx, bob, id); !errors.As(err, &e) || e.Code != protocol.CodeNotFound {
			t.Errorf("a stranger sees the job: %v", err)
		}
		lines := 0
		if err := s.Bridge().JobLogs(ctx, alice, id, true, func(protocol.LogLine) error { lines++; return nil }); err != nil || lines != 10 {
			t.Errorf("%d lines of log, %v", lines, err)
		}
	})
}

func TestStrangersRunEverythingTwice(t *testing.T) {
	onStage(t, func(s *stage) {
		a, b := newPuppet(s, testKey("operator a"), 1), newPuppet(s, testKey("operator b"), 1)
		s.enter(a)
		id := s.submit(count1(4, 1))
		s.await(10*time.Second, "one operator is not enough", func() bool { return s.status(id).State == "waiting" })
		s.enter(b)
		st := s.over(id, time.Minute)
		if st.State != "done" || st.Leases != 8 || st.ChunksDone != 4 || st.ResultCID != expected(t, 4).String() {
			t.Fatalf("%s (%s), %d leases, %d chunks", st.State, st.Text, st.Leases, st.ChunksDone)
		}
		r, err := s.Bridge().Reputation(context.Background(), alice, a.host.ID())
		if err != nil || r.Checks != 4 {
			t.Errorf("%d checks passed, %v", r.Checks, err)
		}
		s.books(id, 4)
	})
}

// A node that adds the outputs of an input it was not given would alter what the job returns.
func TestOutputsOfOtherInputsDoNotCount(t *testing.T) {
	want := expected(t, 8).String()
	onStage(t, func(s *stage) {
		liar, honest := s.own(1), s.own(1)
		liar.act = func(l protocol.Lease) deed {
			return deed{after: time.Millisecond, reason: protocol.ReasonDone, files: append(outputs(l), volumes.File{Path: "77/out/77", Data: []byte("a lie")})}
		}
		s.enter(liar)
		s.enter(honest)
		id := s.submit(count1(8, 1))
		st := s.over(id, 10*time.Minute)
		if st.State != "done" || st.ResultCID != want {
			t.Fatalf("with a liar the job ended as %s with %s, want %s: %s", st.State, st.ResultCID, want, st.Text)
		}
		for _, n := range st.Nodes {
			if n.PeerID == liar.host.ID() && (n.Chunks > 0 || n.Failed == 0) {
				t.Errorf("the liar has %d chunks that count and %d that do not", n.Chunks, n.Failed)
			}
		}
	})
}
