package node

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// testNode is a node under test and what it needs to be started again.
type testNode struct {
	*Node
	cfg Config
	end func() error
}

// nodeConfig is for a node of a bridge's network in a directory.
func nodeConfig(dir string, b *testBridge) Config {
	cfg := DefaultConfig(dir)
	cfg.Networks, cfg.Local, cfg.MDNS, cfg.Slots, cfg.Reserve = []protocol.NetworkFile{b.network}, true, false, 2, 0
	cfg.Buckets, cfg.Drain, cfg.Scratch, cfg.OfferCPU = 8, time.Second, "", true
	return cfg
}

// runNode runs a node on a host of its own.
func runNode(t testing.TB, cfg Config, backend *fakeBackend) *testNode {
	t.Helper()
	return runBackends(t, cfg, []Backend{{Executor: backend, InProcess: true}})
}

func runBackends(t testing.TB, cfg Config, backends []Backend) *testNode {
	t.Helper()
	n, err := New(cfg, backends, testLog())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	var ended error
	end := func() error {
		once.Do(func() { cancel(); ended = <-done })
		return ended
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Errorf("node: %v", err)
		}
	})
	select {
	case <-n.Ready():
	case err := <-done:
		t.Fatalf("the node did not start: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the node is not ready after 20 s")
	}
	return &testNode{Node: n, cfg: cfg, end: end}
}

// session is what a test of a bridge and its streams needs.
type session struct {
	ctx context.Context
	wg  *sync.WaitGroup
}

func newSession(t testing.TB) session {
	ctx, cancel := context.WithCancel(context.Background())
	s := session{ctx, &sync.WaitGroup{}}
	t.Cleanup(func() { cancel(); s.wg.Wait() })
	return s
}

// giveModule makes the bridge hold the module's tree and serve it.
func giveModule(t testing.TB, b *testBridge, binary []byte) {
	t.Helper()
	cfg := volumes.DefaultConfig(filepath.Join(t.TempDir(), "volumes"))
	cfg.Reserve = 0
	store, err := volumes.Open(cfg, testLog())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := store.Import(t.Context(), fstest.MapFS{moduleFile: {Data: binary}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	net, err := store.Serve(volumes.DefaultNetConfig(), b.host.Host(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- net.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	b.store, b.net = store, net
	b.terms.Run.Module = tree.Root
}

func TestANodeJoinsClaimsRunsAndPublishes(t *testing.T) {
	b := newTestBridge(t, startHost(t), 40)
	giveModule(t, b, []byte("module"))
	backend := &fakeBackend{write: true}
	n := runNode(t, nodeConfig(t.TempDir(), b), backend)
	s := newSession(t)
	b.join(s.ctx, s.wg, n.Status().PeerID, 2)
	eventually(t, "40 chunks are accounted", func() bool { return b.accounted() == 40 })

	want, err := b.store.AddFiles([]volumes.File{{Path: "7/out", Data: []byte("result of 7")}})
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done[7] != want.Root {
		t.Errorf("the result of chunk 7 is %s, want %s", b.done[7], want.Root)
	}
	if here, err := b.store.Has(t.Context(), b.done[12]); err != nil || !here {
		t.Errorf("the tree of a small result did not travel with it: %t, %v", here, err)
	}
	for first, rs := range b.results {
		if len(rs) != 1 {
			t.Errorf("chunk %d has %d results", first, len(rs))
		}
	}
	if backend.most > 2 {
		t.Errorf("%d runs at once on 2 slots", backend.most)
	}
	records := map[protocol.LeaseID]bool{}
	for _, r := range b.receipts[n.Status().PeerID] {
		for _, u := range r.Records {
			records[u.Lease] = true
		}
	}
	if len(records) < 40 {
		t.Errorf("receipts speak of %d leases, want 40", len(records))
	}
}
