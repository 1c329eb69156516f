package gridbeam_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// The network of the simulation: its size, and what befalls it.
const (
	wholeNodes     = 20
	wholeSlots     = 8
	wholeChunks    = 2000
	wholeCrashes   = 5 // of nodes; the bridge crashes once as well
	wholeDeposit   = 100_000_000
	wholeStrangers = 4 // nodes that are not the bridge's operator's
)

// wholeSeeds is how many seeds one run tries; the system build tries 50.
var wholeSeeds = 5

// TestNothingIsLostOrCountedTwiceInAWholeNetwork runs real nodes and a real bridge, with their disks, streams,
// gossip, journals, tables and money, on a simulated network in virtual time: nodes crash and come back, the
// bridge does, and part of the network is cut off for a while. Only the executor is a fake.
func TestNothingIsLostOrCountedTwiceInAWholeNetwork(t *testing.T) {
	seeds := wholeSeeds
	if testing.Short() {
		seeds = 1
	}
	var sum simulated
	for seed := range seeds {
		t.Run("seed "+strconv.Itoa(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWhole(t, uint64(seed))
				w.run()
				t.Logf("%s", w.saw)
				sum.add(w.saw)
			})
		})
	}
	if !t.Failed() && seeds > 1 && (sum.lost == 0 || sum.again == 0 || sum.resumed == 0 || sum.copies == 0) {
		t.Errorf("the seeds never met some fault: %s", sum)
	}
}

// simulated counts what a seed met.
type simulated struct {
	leases, lost, again, copies, held, resumed, strangers int
	took                                                  time.Duration // virtual
}

func (a *simulated) add(b simulated) {
	a.leases, a.lost, a.again, a.copies = a.leases+b.leases, a.lost+b.lost, a.again+b.again, a.copies+b.copies
	a.held, a.resumed, a.took = a.held+b.held, a.resumed+b.resumed, a.took+b.took
	a.strangers += b.strangers
}

func (a simulated) String() string {
	return fmt.Sprintf("%d leases, %d lost, %d chunks leased again, %d copies; of %d leases held in crashes %d were finished under the same fence; %d chunks of strangers; %s",
		a.leases, a.lost, a.again, a.copies, a.held, a.resumed, a.strangers, a.took)
}

// whole is one seed of the simulation.
type whole struct {
	*audit
	seed uint64
	r    *rand.Rand
}

// act is something that befalls the network.
type act struct {
	at   time.Duration // since the job was submitted
	what string
	do   func()
}

func newWhole(t *testing.T, seed uint64) *whole {
	w := &whole{seed: seed, r: rand.New(rand.NewPCG(seed, 20))}
	w.audit = &audit{farm: newFarm(t, seed), texts: numbers(wholeChunks), deposit: wholeDeposit, held: map[protocol.LeaseID]protocol.PeerID{}}
	for i := range wholeNodes {
		stranger := i >= wholeNodes-wholeStrangers
		w.place(machineKind{slots: wholeSlots, ask: uint64(1_000_000 + 100_000*(i%5)), anchor: !stranger, stranger: stranger, pace: w.pace(i)})
	}
	w.start()
	return w
}

// pace says how long a node takes for an input, from the seed alone: 0.5 to 6 s, now and then 15 s. Most runs end with
// an even second of the network's time, a hundred at once: the worst for whoever has to keep them apart, and what
// travels and is committed together makes the simulation four times faster.
func (w *whole) pace(i int) func(executor.Input, uint64) time.Duration {
	return func(in executor.Input, fence uint64) time.Duration {
		h := fnv.New64a()
		_, _ = fmt.Fprint(h, w.seed, i, in.Index, fence)
		r := rand.New(rand.NewPCG(h.Sum64(), w.seed))
		long := time.Duration((0.5 + 3.5*r.Float64()) * float64(time.Second))
		if r.IntN(200) == 0 {
			long = 15 * time.Second
		}
		if r.IntN(20) > 0 {
			now := time.Now()
			long = now.Add(long).Truncate(2 * time.Second).Add(2 * time.Second).Sub(now)
		}
		return long
	}
}

func (w *whole) run() {
	w.credit(wholeDeposit)
	w.await(2*time.Minute, "every node is known to the bridge", func() bool {
		list, err := w.Bridge().ListNodes(context.Background(), alice, nil)
		return err == nil && len(list.Nodes) >= wholeNodes
	})
	began := time.Now()
	w.job = w.submit(sweep(wholeChunks))
	for _, a := range w.plan() {
		pass(a.at - time.Since(began))
		if s, ok := w.status(w.job); ok && s.State.Over() {
			w.Fatalf("the job was %s before %s at %s: this seed proves nothing", s.State, a.what, a.at)
		}
		w.Logf("%8s  %s", a.at.Round(time.Millisecond), a.what)
		a.do()
	}
	last := w.over(10*time.Minute, func(s protocol.JobStatus) { w.progress(began, s) })
	w.saw.took = time.Since(began)
	if last.ChunksTotal != wholeChunks {
		w.Errorf("%d chunks, want %d", last.ChunksTotal, wholeChunks)
	}
	w.close(last)
}

// progress is for a reader of -v.
func (w *whole) progress(began time.Time, s protocol.JobStatus) {
	if time.Since(began)%(5*time.Second) >= time.Second {
		return
	}
	members := 0
	for _, n := range s.Nodes {
		if n.State == "member" {
			members++
		}
	}
	w.Logf("%8s  %d chunks done, %d leases live of %d, %d members %s", time.Since(began).Round(time.Millisecond), s.ChunksDone, s.ChunksRunning, s.Leases, members, s.Text)
}

// plan draws what befalls the network, in order of time: the job takes longer than all of it.
func (w *whole) plan() (acts []act) {
	seconds := func(from, to float64) time.Duration {
		return time.Duration((from + w.r.Float64()*(to-from)) * float64(time.Second))
	}
	add := func(at time.Duration, what string, do func()) { acts = append(acts, act{at, what, do}) }
	order := w.r.Perm(wholeNodes)
	for k := range wholeCrashes {
		m := w.machines[order[k]]
		at, down := seconds(4, 30), seconds(0.2, 3)
		if k >= 2 { // longer than a lease lives without renewal
			down = seconds(0.2, 14)
		}
		add(at, fmt.Sprintf("node %d crashes", order[k]), func() { w.crash(m) })
		add(at+down, fmt.Sprintf("node %d is back", order[k]), m.Restart)
	}
	var cutAt, healed, bridgeAt, back time.Duration
	for {
		cutAt, bridgeAt = seconds(5, 24), seconds(6, 30)
		healed, back = cutAt+seconds(7, 12), bridgeAt+seconds(0.2, 6)
		// A bridge that has restarted waits for nodes longer than a lease lives, so both at once loses less.
		if apart := bridgeAt > healed+time.Second || back < cutAt; apart || w.r.IntN(4) == 0 {
			break
		}
	}
	add(bridgeAt, "the bridge crashes", w.crashBridge)
	add(back, "the bridge is back", w.startBridge)
	cut := order[wholeCrashes-1 : wholeCrashes-1+4+w.r.IntN(6)]
	side := make([]int, len(cut))
	for i, n := range cut {
		side[i] = w.machines[n].Index()
	}
	add(cutAt, fmt.Sprintf("nodes %v are cut off", cut), func() { w.net.Partition(side) })
	add(healed, "the network is whole again", w.net.Heal)
	slices.SortStableFunc(acts, func(a, b act) int { return int(a.at - b.at) })
	return acts
}

// crash takes a node down and notes what its journal has.
func (w *whole) crash(m *machine) {
	synctest.Wait() // everybody is at rest: no lease is between memory and disk
	for _, l := range m.Node().Status().Leases {
		w.held[l.Lease] = m.ID()
	}
	m.Crash()
}
