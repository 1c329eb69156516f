package node

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// world is a network of one bridge and nodes in virtual time.
type world struct {
	*testing.T
	net      *testnet.Net
	bridge   *testBridge
	topic    *p2p.Topic[[]byte]
	process  []*testnet.Process
	backends []*fakeBackend
	mu       sync.Mutex
	nodes    []*Node
	session
}

// inWorld runs a test in virtual time: a bridge with so many chunks, and nodes with two slots each.
func inWorld(t *testing.T, nodes int, chunks uint64, test func(w *world), change ...func(*Config)) {
	t.Helper()
	inWorldOf(t, nodes, chunks, func() *fakeBackend { return &fakeBackend{write: true} }, test, change...)
}

// inWorldOf is inWorld with other backends.
func inWorldOf(t *testing.T, nodes int, chunks uint64, backend func() *fakeBackend, test func(w *world), change ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: testnet.New(t, testnet.Options{Seed: 1, Log: testLog()}), nodes: make([]*Node, nodes)}
		hub := w.net.Hosts(1)[0]
		w.bridge = newTestBridge(t, hub, chunks)
		giveModule(t, w.bridge, []byte("module"))
		w.session = newSession(t)
		topic, err := p2p.Join(hub, protocol.TopicJob(w.bridge.job), p2p.TopicConfig[[]byte]{Decode: func(b []byte, _ protocol.PeerID) ([]byte, error) { return b, nil }})
		if err != nil {
			t.Fatal(err)
		}
		w.topic = topic
		for i := range nodes {
			w.backends = append(w.backends, backend())
			w.process = append(w.process, w.net.Process(func(ctx context.Context, env testnet.Env) error {
				cfg := nodeConfig(env.Dir, w.bridge)
				cfg.Control = false
				for _, f := range change {
					f(&cfg)
				}
				n, err := New(cfg, []Backend{{Executor: w.backends[i], InProcess: true}}, env.Log)
				if err != nil {
					return err
				}
				w.mu.Lock()
				w.nodes[i] = n
				w.mu.Unlock()
				return n.RunOn(ctx, env.Host)
			}))
		}
		for i := range nodes {
			w.start(i)
		}
		test(w)
	})
}

// start starts a node and connects it to the bridge.
func (w *world) start(i int) {
	w.Helper()
	w.process[i].Start()
	w.up(i)
}

func (w *world) up(i int) {
	w.Helper()
	synctest.Wait()
	// A connection to a crashed process looks alive for a while; its next run is reached over a new one.
	_ = w.bridge.host.Host().Network().ClosePeer(w.id(i))
	if err := w.process[i].Host().Connect(w.Context(), w.bridge.host.AddrInfo()); err != nil {
		w.Fatal(err)
	}
	<-w.node(i).Ready()
}

func (w *world) node(i int) *Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[i]
}

func (w *world) id(i int) protocol.PeerID { return w.process[i].ID() }

func (w *world) joinAll() {
	for i := range w.process {
		w.bridge.join(w.ctx, w.wg, w.id(i), 2)
	}
}

// within fails unless ok comes true in so much virtual time.
func (w *world) within(d time.Duration, what string, ok func() bool) {
	w.Helper()
	step := max(10*time.Millisecond, d/500)
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			w.Fatalf("not within %s: %s", d, what)
		}
		<-time.After(step)
	}
}

// slowly runs for d of virtual time, or until stopped.
func slowly(d time.Duration) func(executor.Task, <-chan protocol.Reason) executor.Outcome {
	return func(_ executor.Task, stop <-chan protocol.Reason) executor.Outcome {
		select {
		case <-time.After(d):
			return executor.Outcome{Reason: protocol.ReasonDone}
		case why := <-stop:
			return executor.Outcome{Reason: why, ExitCode: -1, FirstCause: "stopped"}
		}
	}
}

func (w *world) states(i int) map[string]int {
	out := map[string]int{}
	for _, l := range w.node(i).Status().Leases {
		out[l.State]++
	}
	return out
}

func TestThreeNodesShareAJob(t *testing.T) {
	inWorld(t, 3, 60, func(w *world) {
		for _, b := range w.backends {
			b.behave = slowly(200 * time.Millisecond)
		}
		w.joinAll()
		w.within(30*time.Second, "60 chunks are accounted", func() bool { return w.bridge.accounted() == 60 })
		for i, b := range w.backends {
			if len(b.starts) < 10 {
				w.Errorf("node %d ran %d chunks", i, len(b.starts))
			}
		}
	})
}
