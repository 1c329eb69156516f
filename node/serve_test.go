package node

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/volumes"
)

// TestLargeResultsAreFetchedFromTheNode: what does not fit into a message is served to the bridge, and small
// results do not wait for it.
func TestLargeResultsAreFetchedFromTheNode(t *testing.T) {
	inWorld(t, 1, 6, func(w *world) {
		t := w.T
		b := w.bridge
		large := bytes.Repeat([]byte("large"), 60_000)
		w.backends[0].write = false
		w.backends[0].output = func(task executor.Task) []byte {
			if task.Inputs[0].Index == 0 {
				return large
			}
			return []byte("small")
		}
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(20*time.Second, "all chunks are accounted", func() bool { return b.accounted() == 6 })
		b.mu.Lock()
		root := b.done[0]
		b.mu.Unlock()
		want, _, err := volumes.MakeTree([]volumes.File{{Path: "0/out", Data: large}})
		if err != nil || root != want.Root {
			t.Fatalf("the large result is %s, %v, want %s", root, err, want.Root)
		}
		if here, err := b.store.Has(w.Context(), root); err != nil || here {
			t.Fatalf("the large tree travelled along: %t, %v", here, err)
		}
		stats, err := b.net.Fetch(w.Context(), root, []peer.AddrInfo{w.process[0].AddrInfo()}, nil)
		if err != nil || stats.Tree.Bytes != uint64(len(large)) {
			t.Errorf("fetching it gives %+v, %v", stats, err)
		}
	})
}

func TestOutputsAreReadByTheirBridgeAlone(t *testing.T) {
	self, bridge, holder, stranger := idOf(t, newKey(t)), idOf(t, newKey(t)), idOf(t, newKey(t)), idOf(t, newKey(t))
	now := time.Now()
	g := newGate(nil, func() time.Time { return now })
	g.remember(bridge, right{Rights: protocol.Rights{Abilities: []string{protocol.AbilityJobSubmit}, Expires: now.Add(time.Hour)}})
	b := newBook(self, 1, time.Now, testLog())
	volume, output := someCID(t, "volume"), someCID(t, "output")
	job := protocol.NewJobID()
	b.members[job] = &member{memberFacts: memberFacts{terms: protocol.JobTerms{Job: job, Volumes: []protocol.VolumeRef{{Root: volume, Holders: []peer.AddrInfo{{ID: holder}}}}}}}
	r := reader{g, b}
	for _, c := range []struct {
		who  protocol.PeerID
		what cid.Cid
		want bool
	}{
		{bridge, output, true}, {bridge, volume, true}, {holder, volume, true}, {holder, output, false}, {stranger, volume, false}, {stranger, output, false},
	} {
		if got := r.MayRead(c.who, c.what); got != c.want {
			t.Errorf("%s may read %s: %t, want %t", c.who, c.what, got, c.want)
		}
	}
	now = now.Add(2 * time.Hour)
	if r.MayRead(bridge, output) {
		t.Error("a right that has run out still reads")
	}
}

func TestLogsAreFollowedByTheirBridge(t *testing.T) {
	inWorld(t, 2, 1, func(w *world) {
		t := w.T
		b := w.bridge
		more := make(chan struct{})
		w.backends[0].behave = func(task executor.Task, _ <-chan protocol.Reason) executor.Outcome {
			task.Log.Append(executor.Stdout, []byte("one"))
			<-more
			task.Log.Append(executor.Stderr, []byte("two"))
			return executor.Outcome{Reason: protocol.ReasonDone}
		}
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(5*time.Second, "the chunk runs", func() bool { return w.backends[0].runs() == 1 })
		b.mu.Lock()
		var id protocol.LeaseID
		for l := range b.leases {
			id = l
		}
		b.mu.Unlock()
		ask := func(h *p2p.Host, offset uint64, follow bool) *p2p.Frames {
			f, err := h.OpenDuplex(w.Context(), w.id(0), protocol.ProtoLogs)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Write(&pb.LogRequest{LeaseId: id[:], Offset: offset, Follow: follow}); err != nil {
				t.Fatal(err)
			}
			return f
		}
		f := ask(b.host, 0, true)
		defer f.Reset()
		var text strings.Builder
		read := func() *pb.LogChunk {
			c := &pb.LogChunk{}
			if err := f.Read(c); err != nil {
				t.Fatal(err)
			}
			if c.GetOffset() != uint64(text.Len()) {
				t.Errorf("a piece at %d, want %d", c.GetOffset(), text.Len())
			}
			text.Write(c.GetData())
			return c
		}
		if read(); text.String() != "one\n" {
			t.Errorf("the log begins with %q", text.String())
		}
		close(more)
		for c := read(); !c.GetEnd(); c = read() {
		}
		if text.String() != "one\ntwo\n" {
			t.Errorf("the log is %q", text.String())
		}
		w.within(5*time.Second, "the tail came with the result", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.logs[id] == "one\ntwo\n" })

		// Afterwards from an offset, and by nobody else.
		late := ask(b.host, 4, false)
		defer late.Reset()
		c := &pb.LogChunk{}
		if err := late.Read(c); err != nil || string(c.GetData()) != "two\n" || c.GetOffset() != 4 {
			t.Errorf("from offset 4: %v, %v", c, err)
		}
		if err := w.process[1].Host().Connect(w.Context(), w.process[0].AddrInfo()); err != nil {
			t.Fatal(err)
		}
		other := ask(w.process[1].Host(), 0, false)
		defer other.Reset()
		refused(t, other.Read(&pb.LogChunk{}), p2p.CodeNotFound, "no log")
	})
}

func TestANodeIsFoundInTheDirectory(t *testing.T) {
	inWorld(t, 2, 0, func(w *world) {
		t := w.T
		if err := w.process[1].Host().Connect(w.Context(), w.process[0].AddrInfo()); err != nil {
			t.Fatal(err)
		}
		w.within(time.Minute, "another node knows it", func() bool {
			found, err := w.node(1).at().dir.Get(w.Context(), w.id(0))
			return err == nil && found.State == "READY" && slices.Contains(found.Capability.GetHost().GetExecutors(), "wasm:strong") &&
				found.Capability.GetPolicy().GetPriceUusdPerHour() == 7
		})
		if err := w.node(0).Pause(); err != nil {
			t.Fatal(err)
		}
		w.within(10*time.Second, "the pause is known", func() bool {
			found, err := w.node(1).at().dir.Get(w.Context(), w.id(0))
			return err == nil && found.State == "PAUSED"
		})
		if st := w.node(0).Status(); st.Directory == 0 || st.Slots != 2 || len(st.Addresses) == 0 {
			t.Errorf("status is %+v", st)
		}
	}, func(c *Config) { c.Ask = 7 })
}

// TestATreeOfInputsIsFetched: inputs that are too large for a lease come as a tree from the bridge.
func TestATreeOfInputsIsFetched(t *testing.T) {
	inWorld(t, 1, 2, func(w *world) {
		t := w.T
		b := w.bridge
		tree, err := b.store.AddFiles([]volumes.File{{Path: inputsFile, Data: []byte("\"from a tree\"\n")}})
		if err != nil {
			t.Fatal(err)
		}
		b.tamper = func(g *protocol.LeaseGrants) {
			for i := range g.Leases {
				g.Leases[i].Inputs, g.Leases[i].InputsCID = nil, tree.Root
			}
		}
		values := make(chan string, 2)
		w.backends[0].behave = func(task executor.Task, _ <-chan protocol.Reason) executor.Outcome {
			values <- task.Inputs[0].Value
			return executor.Outcome{Reason: protocol.ReasonDone}
		}
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(10*time.Second, "all chunks are accounted", func() bool { return b.accounted() == 2 })
		if v := <-values; v != "from a tree" {
			t.Errorf("the input is %q", v)
		}
		fetched := uint64(0)
		for _, rs := range b.results {
			fetched += rs[0].BlocksFetched
		}
		if fetched < 2 {
			t.Errorf("%d blocks are counted as fetched", fetched)
		}
	})
}

func TestWhatIsHeldIsNotCollected(t *testing.T) {
	b := newBook(idOf(t, newKey(t)), 1, time.Now, testLog())
	job := protocol.NewJobID()
	m := &member{memberFacts: memberFacts{terms: protocol.JobTerms{
		Job: job, Run: protocol.Run{Module: someCID(t, "module")}, Volumes: []protocol.VolumeRef{{Root: someCID(t, "volume")}},
	}}}
	b.members[job] = m
	l := &lease{leaseFacts: leaseFacts{Lease: protocol.Lease{InputsCID: someCID(t, "inputs")}}, member: m, end: &ending{result: protocol.Result{Root: someCID(t, "output")}}}
	b.leases[l.ID] = l
	b.offers[protocol.NewJobID()] = offer{memberFacts: memberFacts{terms: protocol.JobTerms{Run: protocol.Run{Module: someCID(t, "offered")}}}}
	got := b.needed()
	for _, what := range []string{"module", "volume", "inputs", "output", "offered"} {
		if !slices.Contains(got, someCID(t, what)) {
			t.Errorf("the %s may be collected", what)
		}
	}
	if len(got) != 5 {
		t.Errorf("%d trees are kept, want 5", len(got))
	}
}
