package node

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestACrashedNodeRunsItsLeasesAgainUnderTheSameFence(t *testing.T) {
	inWorld(t, 1, 30, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = slowly(500 * time.Millisecond)
		b.join(w.ctx, w.wg, w.id(0), 2)
		for range 3 {
			had := b.accounted()
			w.within(20*time.Second, "work goes on", func() bool { return b.accounted() >= had+4 })
			w.process[0].Crash()
			<-time.After(time.Second)
			w.backends[0].mu.Lock()
			w.backends[0].running = map[protocol.LeaseID]*fakeRun{} // they died with the process
			w.backends[0].mu.Unlock()
			w.start(0)
		}
		w.within(time.Minute, "all chunks are accounted", func() bool { return b.accounted() == 30 })
		b.mu.Lock()
		defer b.mu.Unlock()
		for first, fence := range b.fences {
			if fence != 1 {
				t.Errorf("chunk %d needed fence %d: its lease did not survive the crash", first, fence)
			}
		}
		again := 0
		for _, n := range w.backends[0].starts {
			if n > 1 {
				again++
			}
		}
		if again == 0 {
			t.Error("no lease ran again although the node crashed while some ran")
		}
		if w.backends[0].twice {
			t.Error("a lease ran twice at a time")
		}
	})
}

func TestABridgeThatIsAwayFindsItsResultsWhenItIsBack(t *testing.T) {
	inWorld(t, 1, 4, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = slowly(20 * time.Second)
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		b.mu.Lock()
		b.away = true
		b.mu.Unlock()
		b.poke(w.id(0))
		w.within(20*time.Second, "the leases are orphans", func() bool { return w.states(0)["orphaned"] == 2 })
		w.within(30*time.Second, "their results wait", func() bool { return w.states(0)["publishing"] == 2 })
		if n := w.states(0)["leased"]; n != 0 {
			t.Errorf("%d leases that had not begun outlived their TTL", n)
		}
		<-time.After(2 * time.Minute)
		b.mu.Lock()
		b.away, b.reconc = false, true
		b.mu.Unlock()
		w.within(5*time.Second, "the results are taken", func() bool { return b.accounted() >= 2 })
		b.mu.Lock()
		defer b.mu.Unlock()
		for first := range b.done {
			if b.fences[first] != 1 {
				t.Errorf("chunk %d has fence %d", first, b.fences[first])
			}
		}
	})
}

func TestAnOrphanEndsWhenItsBridgeStaysAway(t *testing.T) {
	inWorld(t, 1, 2, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = untilStopped
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		b.mu.Lock()
		b.away = true
		b.mu.Unlock()
		b.poke(w.id(0))
		<-time.After(minOrphan / 2)
		if n := w.backends[0].runs(); n != 2 {
			t.Fatalf("%d chunks run within the orphans' grace, want 2", n)
		}
		w.within(2*minOrphan, "the orphans end", func() bool { return w.backends[0].runs() == 0 })
		// Nobody takes the results: they are kept, and given to a bridge that comes back late.
		w.within(publishLimit+time.Minute, "the outcomes are kept", func() bool { return w.states(0)["ended"] == 2 })
		b.mu.Lock()
		b.away = false
		b.mu.Unlock()
		w.within(10*time.Second, "the kept outcomes are taken", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.results) == 2 })
		for _, rs := range b.results {
			if rs[0].Outcome.Reason != protocol.ReasonLeaseExpired {
				t.Errorf("the outcome is %s, want lease_expired", rs[0].Outcome.Reason)
			}
		}
	})
}

func TestStopsEndRunsAndPublishNothing(t *testing.T) {
	for name, stop := range map[string]func(w *world){
		"told to stop": func(w *world) {
			b := w.bridge
			b.mu.Lock()
			for id := range b.leases {
				b.stops[id] = protocol.ReasonSuperseded
			}
			b.next = b.total
			b.mu.Unlock()
			b.poke(w.id(0))
		},
		"not named any more": func(w *world) {
			b := w.bridge
			b.mu.Lock()
			for id := range b.leases {
				b.gone[id] = true
			}
			b.next = b.total
			b.mu.Unlock()
			b.poke(w.id(0))
		},
		"the job is cancelled": func(w *world) {
			w.bridge.mu.Lock()
			w.bridge.next = w.bridge.total
			w.bridge.mu.Unlock()
			w.bridge.announce(w.topic, 7, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 8, func(w *world) {
				t := w.T
				b := w.bridge
				w.backends[0].behave = untilStopped
				b.join(w.ctx, w.wg, w.id(0), 2)
				w.within(5*time.Second, "two chunks run, two wait", func() bool { s := w.states(0); return s["running"] == 2 && s["leased"] == 2 })
				stop(w)
				w.within(2*time.Second, "nothing is held", func() bool { return len(w.node(0).Status().Leases) == 0 && w.backends[0].runs() == 0 })
				<-time.After(5 * time.Second)
				b.mu.Lock()
				defer b.mu.Unlock()
				if len(b.results) != 0 {
					t.Errorf("%d results were published under fences known to be old", len(b.results))
				}
				// What it ran is reported all the same.
				leases := map[protocol.LeaseID]bool{}
				for _, r := range b.receipts[w.id(0)] {
					for _, u := range r.Records {
						if u.State != protocol.UsageIdle {
							leases[u.Lease] = true
						}
					}
				}
				if len(leases) != 2 {
					t.Errorf("receipts speak of %d leases, want the 2 that ran", len(leases))
				}
			})
		})
	}
}

func TestAnOlderSetChangesNothing(t *testing.T) {
	inWorld(t, 1, 4, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = untilStopped
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		f, err := b.host.OpenDuplex(w.Context(), w.id(0), protocol.ProtoLease)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Reset()
		if err := f.Write(&pb.LeaseSet{Seq: 1, BridgeMs: time.Now().UnixMilli()}); err != nil {
			t.Fatal(err)
		}
		report := &pb.LeaseReport{}
		if err := f.Read(report); err != nil {
			t.Fatal(err)
		}
		if len(report.GetLeases()) != 4 || report.GetState() != string(StateBusy) || len(report.GetBoot()) == 0 {
			t.Errorf("the report is %v", report)
		}
		if n := w.backends[0].runs(); n != 2 {
			t.Errorf("%d chunks run after an old, empty set", n)
		}
	})
}

func TestResultsAreOfferedUntilTheyAreTaken(t *testing.T) {
	inWorld(t, 1, 4, func(w *world) {
		b := w.bridge
		refusals := 0
		b.verdict = func(protocol.Result) pb.Verdict {
			if refusals++; refusals <= 6 {
				return pb.Verdict_VERDICT_LATER
			}
			return pb.Verdict_VERDICT_ACCOUNTED
		}
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(30*time.Second, "all chunks are accounted", func() bool { return b.accounted() == 4 })
	})
}

func TestFailuresAreResultsToo(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(f *fakeBackend)
		want protocol.Reason
	}{
		"the program": {func(f *fakeBackend) {
			f.behave = func(executor.Task, <-chan protocol.Reason) executor.Outcome {
				return executor.Outcome{Reason: protocol.ReasonExitNonzero, ExitCode: 3, FirstCause: "exit code 3"}
			}
		}, protocol.ReasonExitNonzero},
		"staging": {func(f *fakeBackend) {
			f.prepare = func(executor.Task) error { return executor.Fail(protocol.ReasonBadModule, "no module: %w", errBroken) }
		}, protocol.ReasonBadModule},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 3, func(w *world) {
				t := w.T
				c.set(w.backends[0])
				b := w.bridge
				b.join(w.ctx, w.wg, w.id(0), 2)
				w.within(10*time.Second, "3 results came", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.results) == 3 })
				for first, rs := range b.results {
					if o := rs[0].Outcome; o.Reason != c.want || o.FirstCause == "" {
						t.Errorf("chunk %d ended with %s, %q", first, o.Reason, o.FirstCause)
					}
				}
				w.within(10*time.Second, "the status counts 3 failed", func() bool { return w.node(0).Status().Failed == 3 })
			})
		})
	}
}

func TestDrainHandsBackWhatHasNotBegunAndWaitsForTheRest(t *testing.T) {
	inWorld(t, 1, 8, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = slowly(10 * time.Second)
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run, two wait", func() bool { s := w.states(0); return s["running"] == 2 && s["leased"] == 2 })
		if err := w.node(0).Drain(w.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		done, drained := len(b.done), 0
		for _, rs := range b.results {
			if rs[0].Outcome.Reason == protocol.ReasonDrained {
				drained++
			}
		}
		b.mu.Unlock()
		if done != 2 || drained != 2 {
			t.Errorf("%d chunks are done and %d drained, want 2 and 2", done, drained)
		}
		if st := w.node(0).Status(); st.State != StateDraining || len(st.Leases) != 0 || len(st.Why) == 0 {
			t.Errorf("status is %s, %v with %d leases", st.State, st.Why, len(st.Leases))
		}
		if reply, err := b.reserve(b.reservation(w.id(0), 1)); err != nil || protocol.Reason(reply.GetReason()) != protocol.ReasonDrained {
			t.Errorf("a drained node answers %v, %v", reply, err)
		}
		if err := w.node(0).Resume(); err != nil {
			t.Fatal(err)
		}
		w.within(15*time.Second, "work goes on after resume", func() bool { return b.accounted() > 2 })
	})
}

func TestDrainEndsWhatDoesNotEndInTime(t *testing.T) {
	inWorld(t, 1, 8, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = untilStopped
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		if err := w.node(0).Drain(w.Context(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
		if n := w.backends[0].runs(); n != 0 {
			t.Errorf("%d chunks run after the drain", n)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.results) != 4 {
			t.Errorf("%d leases were handed back, want 4", len(b.results))
		}
	})
}

func TestPauseSurvivesACrash(t *testing.T) {
	inWorld(t, 1, 8, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = slowly(2 * time.Second)
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "two chunks run", func() bool { return w.states(0)["running"] == 2 })
		if err := w.node(0).Pause(); err != nil {
			t.Fatal(err)
		}
		w.within(10*time.Second, "what was held has ended", func() bool { return len(w.node(0).Status().Leases) == 0 })
		if n := b.accounted(); n != 4 {
			t.Errorf("%d chunks are accounted, want the 4 that were held", n)
		}
		w.process[0].Crash()
		w.start(0)
		if st := w.node(0).Status(); st.State != StatePaused || len(st.Why) == 0 {
			t.Errorf("after the crash the node is %s, %v", st.State, st.Why)
		}
		<-time.After(10 * time.Second)
		if n := b.accounted(); n != 4 {
			t.Errorf("%d chunks are accounted while paused", n)
		}
		if err := w.node(0).Resume(); err != nil {
			t.Fatal(err)
		}
		w.within(20*time.Second, "the rest is accounted", func() bool { return b.accounted() == 8 })
	})
}

func TestReceiptsWaitForABridgeThatDoesNotSign(t *testing.T) {
	inWorld(t, 1, 12, func(w *world) {
		t := w.T
		b := w.bridge
		w.backends[0].behave = slowly(time.Second)
		b.noSign = true
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(30*time.Second, "results do not wait for signatures", func() bool { return b.accounted() == 12 })
		b.mu.Lock()
		b.noSign = false
		b.mu.Unlock()
		w.within(2*time.Minute, "every receipt is signed", func() bool {
			st := w.node(0).Status()
			return len(st.Bridges) == 1 && st.Bridges[0].Open == 0 && st.Bridges[0].Receipts > 0
		})
		leases := map[protocol.LeaseID]bool{}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range b.receipts[w.id(0)] {
			for _, u := range r.Records {
				leases[u.Lease] = true
			}
		}
		if len(leases) < 12 {
			t.Errorf("receipts speak of %d leases, want 12", len(leases))
		}
	})
}

func TestIdleTimeIsReportedEveryMinute(t *testing.T) {
	inWorld(t, 1, 0, func(w *world) {
		t := w.T
		b := w.bridge
		b.join(w.ctx, w.wg, w.id(0), 2)
		<-time.After(5 * time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		var ms int64
		for _, r := range b.receipts[w.id(0)] {
			for _, u := range r.Records {
				if u.State == protocol.UsageIdle {
					ms += u.DurationMS
				}
			}
		}
		if ms < 2*3*60_000 || ms > 2*5*60_000 {
			t.Errorf("%d ms of idle time were reported in 5 minutes of 2 slots", ms)
		}
	})
}

func TestANodeThatLeftAJobForgetsIt(t *testing.T) {
	inWorld(t, 1, 4, func(w *world) {
		t := w.T
		b := w.bridge
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(10*time.Second, "all chunks are accounted", func() bool { return b.accounted() == 4 })
		b.mu.Lock()
		b.member[w.id(0)] = false
		b.mu.Unlock()
		b.poke(w.id(0))
		w.within(2*time.Second, "the node has left", func() bool { return len(w.node(0).Status().Jobs) == 0 })
		// Named again without an offer, it says that it does not know the job.
		b.mu.Lock()
		b.member[w.id(0)] = true
		b.mu.Unlock()
		b.poke(w.id(0))
		w.within(2*time.Second, "the job is unknown", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.reports[w.id(0)].GetUnknownJobs()) == 1 })
		if reply, err := b.reserve(b.reservation(w.id(0), 2)); err != nil || len(reply.GetOffer()) == 0 {
			t.Fatalf("reserving again: %v, %v", reply, err)
		}
		b.mu.Lock()
		b.total = 8
		b.mu.Unlock()
		b.poke(w.id(0))
		w.within(10*time.Second, "it works again", func() bool { return b.accounted() == 8 })
	})
}

func TestARunThatClingsTakesItsSlotAndNothingElse(t *testing.T) {
	inWorld(t, 1, 6, func(w *world) {
		b := w.bridge
		clings := make(chan struct{})
		w.backends[0].behave = func(task executor.Task, stop <-chan protocol.Reason) executor.Outcome {
			if task.Inputs[0].Index == 0 { // it does not listen
				<-clings
			}
			return executor.Outcome{Reason: protocol.ReasonDone}
		}
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(10*time.Second, "the others are accounted", func() bool { return b.accounted() == 5 })
		b.mu.Lock()
		for id, l := range b.leases {
			if l.Chunk.First == 0 {
				b.stops[id] = protocol.ReasonSuperseded
			}
		}
		b.mu.Unlock()
		b.poke(w.id(0))
		w.within(time.Minute, "it is stuck", func() bool { return w.states(0)["stuck"] == 1 })
		b.mu.Lock()
		b.total = 10
		b.mu.Unlock()
		b.announce(w.topic, 3, false)
		w.within(20*time.Second, "the other slot works on", func() bool { return b.accounted() == 9 })
		close(clings)
		w.within(5*time.Second, "it is over", func() bool { return len(w.node(0).Status().Leases) == 0 })
	})
}
