package cluster

import (
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// open is the tracker of a job whose inputs are calls of their own, with one node.
func open(t *testing.T) (*Tracker, protocol.PeerID) {
	t.Helper()
	cfg := DefaultConfig(protocol.JobID{1}, 0)
	cfg.Open, cfg.Apart, cfg.Chunk = true, true, 1
	next := byte(0)
	tr, err := NewTracker(cfg, func() protocol.LeaseID { next++; return protocol.LeaseID{next} })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Advance(JobSelect); err != nil {
		t.Fatal(err)
	}
	node := protocol.PeerID("node")
	tr.Join(Worker{Peer: node, Slots: 4}, time.Unix(0, 0))
	return tr, node
}

func TestOpenJobOutlivesItsFailedChunks(t *testing.T) {
	tr, node := open(t)
	now := time.Unix(1, 0)
	for n := uint64(1); n <= 5; n++ {
		if fx := tr.Extend(n); !fx.Pending {
			t.Fatalf("input %d is not ready", n-1)
		}
		ls, _, err := tr.Grant(node, 1, 1, now)
		if err != nil || len(ls) != 1 {
			t.Fatalf("granted %v, %v", ls, err)
		}
		v, fx := tr.Result(End{Lease: ls[0].ID, Node: node, Range: ls[0].Range, Fence: ls[0].Fence, Reason: protocol.ReasonOOM}, now)
		if v != VerdictChunkFailed || fx.State != "" || len(fx.Chunks) != 1 || fx.Chunks[0].Reason != protocol.ReasonOOM {
			t.Fatalf("verdict %s, effects %+v", v, fx)
		}
	}
	if fx := tr.Seal(); fx.State != JobDone {
		t.Errorf("sealed, the job is %q", fx.State)
	}
}

func TestAbandonedChunkStopsForItsReason(t *testing.T) {
	tr, node := open(t)
	now := time.Unix(1, 0)
	tr.Extend(2)
	if fx := tr.Abandon(0, protocol.ReasonCancelled, "nobody waits"); len(fx.Chunks)+len(fx.Stops) != 0 {
		t.Errorf("a chunk that nobody has was abandoned: %+v", fx)
	}
	ls, _, _ := tr.Grant(node, 1, 1, now)
	fx := tr.Abandon(ls[0].Range.First, protocol.ReasonCancelled, "nobody waits")
	if len(fx.Stops) != 1 || fx.Stops[0].Reason != protocol.ReasonCancelled || fx.Stops[0].Lease != ls[0].ID {
		t.Errorf("stops are %+v", fx.Stops)
	}
	if len(fx.Chunks) != 1 || fx.Chunks[0].State != ChunkFailed || fx.Chunks[0].Reason != protocol.ReasonCancelled {
		t.Errorf("chunks are %+v", fx.Chunks)
	}
	if v, _ := tr.Result(End{Lease: ls[0].ID, Node: node, Range: ls[0].Range, Fence: 1, Reason: protocol.ReasonDone, Digest: "x"}, now); v != VerdictFenced {
		t.Errorf("the result of an abandoned chunk is %s", v)
	}
	if more, _, _ := tr.Grant(node, 4, 2, now); len(more) != 1 || more[0].Range.First != 1 {
		t.Errorf("then granted %+v", more)
	}
}

func TestFunctionGoesWhereItsRuntimeIs(t *testing.T) {
	node := func(id string, hosts ...string) Candidate {
		c := Candidate{Peer: protocol.PeerID(id), Ready: true, Fresh: true, Where: true, Cores: 4, Memory: 1 << 33, Disk: 1 << 33, Slots: 2, Standing: StandingVetted, P: 1, O: 1, Hosts: hosts}
		if len(hosts) > 0 {
			c.Runs[BackendHost] = IsolationShared
		}
		return c
	}
	all := []Candidate{node("a"), node("b", "python3.11"), node("c", "python3.9", "python3.12"), node("d", "python2.7")}
	for host, want := range map[string]string{"python3": "bc", "python3.11": "b", "python3.1": "", "python3.12": "c"} {
		plan, why, err := Select(Job{Kind: KindMap, Backend: BackendHost, Host: host, Chunks: 100}, all, time.Unix(0, 0), 1)
		got := map[protocol.PeerID]bool{}
		for _, m := range plan.Members {
			got[m.Peer] = true
		}
		if len(got) != len(want) || (err == nil) != (want != "") {
			t.Errorf("%s: chose %v, %v (%s)", host, got, err, why.Summary())
		}
		for _, id := range want {
			if !got[protocol.PeerID(string(id))] {
				t.Errorf("%s: %c was not chosen: %v", host, id, got)
			}
		}
	}
}
