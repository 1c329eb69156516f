package gridbeam_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/beambridge"
	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// alice pays for the jobs of these tests and may do everything.
var alice = api.Principal{User: "alice", Scopes: []api.Scope{api.ScopeAdmin}}

// farm is one bridge and nodes on a simulated network, everything real but the network, the time and the
// executor (see makeBelieve). It lives in a bubble of testing/synctest.
type farm struct {
	*testing.T
	net      *testnet.Net
	operator crypto.PrivKey
	bridge   *testnet.Process
	machines []*machine

	mu      sync.Mutex
	ready   chan struct{} // closed when the bridge of this run answers
	running *beambridge.Bridge
	network protocol.NetworkFile
}

// machine is one node of a farm.
type machine struct {
	*testnet.Process
	farm *farm
	kind machineKind

	mu      sync.Mutex
	node    *node.Node // of the present run
	backend *makeBelieve
	past    []*makeBelieve // of the runs before it
}

// machineKind says what a farm's node is like.
type machineKind struct {
	slots    int
	ask      uint64 // micro-USD per slot-hour
	anchor   bool   // named by the bridge as one whose work needs no copy, with an operator of its own
	stranger bool   // nobody's; else it carries the label of the bridge's operator
	pace     func(in executor.Input, fence uint64) time.Duration
	verdict  func(in executor.Input, fence uint64) protocol.Reason // how a run ends; nil is always well
	change   func(*node.Config)
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// inMemory keeps what the test writes in memory where there is room: in virtual time nothing is slower than a disk.
// What a crash keeps does not depend on it: testnet's crashes fall between writes.
func inMemory(t *testing.T) {
	const dir, room = "/dev/shm", 2 << 30
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) == nil && st.Bavail*uint64(st.Bsize) >= room {
		t.Setenv("TMPDIR", dir)
	}
}

// newFarm is a farm whose bridge, and whose nodes that are placed, wait for start.
func newFarm(t *testing.T, seed uint64, change ...func(*beambridge.Config)) *farm {
	t.Helper()
	inMemory(t)
	// Two nodes at each site, for copies that are compared have to stand apart; all in one /16, so that the directory
	// keeps a table of few of them (no one's machines may fill it) and does not connect everybody with everybody.
	address := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{5, 5, byte(i / 2), byte(1 + i%2)}), 4001)
	}
	f := &farm{T: t, net: testnet.New(t, testnet.Options{Seed: seed, Log: farmLog(t), Address: address}), operator: keyOf(seed, "operator"), ready: make(chan struct{})}
	f.bridge = f.net.Process(func(ctx context.Context, env testnet.Env) error { return f.runBridge(ctx, env, change) }, func(c *p2p.Config) {
		c.Connections = 4096
	})
	return f
}

// start starts the bridge and then all nodes at once.
func (f *farm) start() {
	f.Helper()
	f.bridge.Start()
	f.awaitBridge()
	for _, m := range f.machines {
		m.Start()
	}
	for _, m := range f.machines {
		m.awaitNode()
	}
}

// add starts one more node.
func (f *farm) add(k machineKind) *machine {
	f.Helper()
	m := f.place(k)
	m.Start()
	m.awaitNode()
	return m
}

// farmLog hears what goes wrong when tests are verbose.
func farmLog(t *testing.T) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(os.Getenv("GRIDBEAM_TEST_LOG"))); err != nil {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// keyOf makes a key of a seed and a name.
func keyOf(seed uint64, name string) crypto.PrivKey {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(name), seed))
	std := ed25519.NewKeyFromSeed(sum[:])
	key, _, err := crypto.KeyPairFromStdKey(&std)
	if err != nil {
		panic(err)
	}
	return key
}

func (f *farm) runBridge(ctx context.Context, env testnet.Env, change []func(*beambridge.Config)) error {
	cfg := beambridge.DefaultConfig(env.Dir)
	cfg.Host, cfg.OperatorKey, cfg.Local, cfg.MDNS, cfg.APIListen, cfg.BeamListen, cfg.Buckets = env.Host, f.operator, true, false, "", "", 8
	for _, m := range f.machines {
		if m.kind.anchor {
			cfg.Anchors = append(cfg.Anchors, m.ID())
		}
	}
	ready := f.ready
	cfg.Ready = func(beambridge.Started) { close(ready) }
	for _, g := range change {
		g(&cfg)
	}
	b, err := beambridge.New(cfg, env.Log)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.running = b
	f.mu.Unlock()
	return b.Run(ctx)
}

// awaitBridge waits until the bridge answers, and reads the network that it has made.
func (f *farm) awaitBridge() {
	f.Helper()
	select {
	case <-f.ready:
	case <-time.After(time.Minute): // virtual
		f.Fatal("the bridge does not come up")
	}
	raw, err := os.ReadFile(filepath.Join(f.bridge.Dir(), "network"))
	if err == nil {
		f.network, err = protocol.ParseNetworkFile(raw)
	}
	if err != nil {
		f.Fatal(err)
	}
}

// Bridge is the bridge of the present run.
func (f *farm) Bridge() *beambridge.Bridge {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

// crashBridge takes the bridge down as a power cut does; startBridge brings it back on its disk.
func (f *farm) crashBridge() { f.bridge.Crash() }

func (f *farm) startBridge() {
	f.Helper()
	f.ready = make(chan struct{})
	f.bridge.Restart()
	f.awaitBridge()
}

// place adds a node that is not started.
func (f *farm) place(k machineKind) *machine {
	f.Helper()
	m := &machine{farm: f, kind: k}
	if m.kind.slots == 0 {
		m.kind.slots = 1
	}
	if m.kind.pace == nil {
		m.kind.pace = func(executor.Input, uint64) time.Duration { return 100 * time.Millisecond }
	}
	m.Process = f.net.Process(func(ctx context.Context, env testnet.Env) error { return m.run(ctx, env) }, func(c *p2p.Config) {
		c.Bootstrap = []peer.AddrInfo{f.bridge.AddrInfo()}
	})
	f.machines = append(f.machines, m)
	return m
}

func (m *machine) run(ctx context.Context, env testnet.Env) error {
	k := &m.kind
	cfg := node.DefaultConfig(env.Dir)
	cfg.Networks, cfg.Slots, cfg.Ask, cfg.Local, cfg.MDNS, cfg.Control, cfg.Buckets = []protocol.NetworkFile{m.farm.network}, k.slots, k.ask, false, false, false, 8
	cfg.OfferCPU = true          // whatever GPUs are where tests run
	cfg.MeasureLine = new(false) // in virtual time each packet of it costs real time
	if !k.stranger && !k.anchor {
		cfg.OperatorKey = m.farm.operator
	}
	if k.change != nil {
		k.change(&cfg)
	}
	backend := newMakeBelieve(k.pace, k.verdict)
	n, err := node.New(cfg, []node.Backend{{Executor: backend, InProcess: true}}, env.Log)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if m.backend != nil {
		m.past = append(m.past, m.backend)
	}
	m.node, m.backend = n, backend
	m.mu.Unlock()
	return n.RunOn(ctx, env.Host)
}

// Start starts the machine; Node is nil until the run has made it.
func (m *machine) Start() {
	m.farm.Helper()
	m.mu.Lock()
	m.node = nil
	m.mu.Unlock()
	m.Process.Start()
}

// Restart starts the machine again after a crash.
func (m *machine) Restart() { m.Start() }

// Node is the node of the present run, nil until it is made.
func (m *machine) Node() *node.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// awaitNode waits until the node answers bridges.
func (m *machine) awaitNode() {
	m.farm.Helper()
	for range 600 {
		if n := m.Node(); n != nil {
			select {
			case <-n.Ready():
				return
			default:
			}
		}
		pass(100 * time.Millisecond)
	}
	m.farm.Fatalf("node %d does not come up", m.Index())
}

// runs are all runs that the machine's executor ever began, over its crashes.
func (m *machine) runs() (out []madeUp) {
	m.mu.Lock()
	all := append(append([]*makeBelieve(nil), m.past...), m.backend)
	m.mu.Unlock()
	for _, b := range all {
		if b != nil {
			out = append(out, b.history()...)
		}
	}
	return out
}

// await polls in virtual time until ok, or fails with what says.
func (f *farm) await(within time.Duration, what string, ok func() bool) {
	f.Helper()
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			f.Fatalf("not within %s: %s", within, what)
		}
		pass(time.Second)
	}
}

// known waits until the bridge knows so many nodes.
func (f *farm) known(n int) {
	f.Helper()
	f.await(3*time.Minute, fmt.Sprintf("the bridge knows %d nodes", n), func() bool {
		list, err := f.Bridge().ListNodes(context.Background(), alice, nil)
		return err == nil && len(list.Nodes) >= n && !slices.ContainsFunc(list.Nodes, func(x protocol.NodeInfo) bool { return x.State != "READY" })
	})
}

// check asks how many nodes match a job.
func (f *farm) check(j protocol.Job) protocol.ValidateReply {
	f.Helper()
	r, err := f.Bridge().CheckJob(context.Background(), alice, protocol.SubmitRequest{Job: j})
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// module gives the bridge the module of makeBelieve's jobs and returns its CID.
func (f *farm) module() string {
	f.Helper()
	info, err := f.Bridge().PutModule(context.Background(), alice, fstest.MapFS{"module.wasm": {Data: pretence}})
	if err != nil {
		f.Fatal(err)
	}
	return info.CID
}

// credit gives alice money.
func (f *farm) credit(uusd int64) {
	f.Helper()
	if _, err := f.Bridge().Credit(context.Background(), alice, protocol.CreditRequest{User: alice.User, AmountUUSD: uusd, Source: "card", Ref: "1"}); err != nil {
		f.Fatal(err)
	}
}

// sweep is a map over 0..n-1 in chunks of one input.
func sweep(n int64) protocol.Job {
	return protocol.Job{
		Name: "sweep", Kind: protocol.JobMap, Run: protocol.JobRun{Wasm: "module.wasm", Command: []string{"sweep", "{input}"}},
		Inputs: protocol.JobInputs{Range: &protocol.IntRange{First: 0, Last: n - 1}}, Chunk: 1,
		// Little, so that the machine that the tests run on has room for it on every slot of every node.
		Resources: protocol.JobResources{Memory: 16 << 20, Disk: 4 << 20},
	}
}

// submit hands a job in.
func (f *farm) submit(j protocol.Job) protocol.JobID {
	f.Helper()
	s, err := f.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: j, ModuleCID: f.module()})
	if err != nil {
		f.Fatal(err)
	}
	return s.ID
}

// status returns how a job stands; the second result is false while the bridge is down or starting.
func (f *farm) status(id protocol.JobID) (protocol.JobStatus, bool) {
	if f.bridge.Host() == nil {
		return protocol.JobStatus{}, false
	}
	s, err := f.Bridge().Job(context.Background(), alice, id)
	return s, err == nil
}

// pretence are the bytes of the module: its head is WebAssembly's, what follows is nothing that could be run.
var pretence = []byte("\x00asm\x01\x00\x00\x00 make believe: no engine ever runs this")

// outputOf is what makeBelieve writes for an input: path below /out and content.
func outputOf(value string) (path, content string) {
	sum := sha256.Sum256([]byte("make believe " + value))
	text := hex.EncodeToString(sum[:])
	return text[:20] + ".txt", value + " " + text + "\n"
}

// makeBelieve is a FAKE EXECUTOR, FOR TESTS ONLY: it runs no code. It says of itself that it is the wasm backend
// of the highest level, sleeps for as long as pace says, and writes for each input a file that is a function of
// the input's value. Everything around it is real.
type makeBelieve struct {
	pace    func(in executor.Input, fence uint64) time.Duration
	verdict func(in executor.Input, fence uint64) protocol.Reason

	mu    sync.Mutex
	now   map[protocol.LeaseID]bool // what runs
	twice []protocol.LeaseID        // leases that were begun while they ran
	past  []madeUp
}

// madeUp is one run of makeBelieve.
type madeUp struct {
	lease        protocol.LeaseID
	fence        uint64
	first        uint64
	began, ended time.Time // ended is zero while it runs
	reason       protocol.Reason
}

var _ executor.Backend = (*makeBelieve)(nil)

func newMakeBelieve(pace func(executor.Input, uint64) time.Duration, verdict func(executor.Input, uint64) protocol.Reason) *makeBelieve {
	if verdict == nil {
		verdict = func(executor.Input, uint64) protocol.Reason { return protocol.ReasonDone }
	}
	return &makeBelieve{pace: pace, verdict: verdict, now: map[protocol.LeaseID]bool{}}
}

func (m *makeBelieve) history() []madeUp {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]madeUp(nil), m.past...)
}

// Probe implements executor.Backend.
func (m *makeBelieve) Probe(context.Context) (executor.Report, error) {
	return executor.Report{Backend: "wasm", Version: "make believe", Level: executor.LevelStrong, Checks: []string{"none: this is a fake of tests"}}, nil
}

// Prepare implements executor.Backend: the module has to have come whole over the wire.
func (m *makeBelieve) Prepare(ctx context.Context, t executor.Task) (*executor.Prepared, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	module, err := t.Module.Load(ctx)
	if err != nil {
		return nil, err
	}
	if string(module) != string(pretence) {
		return nil, executor.Fail(protocol.ReasonBadModule, "%d bytes that are not the test's module", len(module))
	}
	return &executor.Prepared{Task: t}, nil
}

// Start implements executor.Backend.
func (m *makeBelieve) Start(_ context.Context, p *executor.Prepared) (executor.Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := p.Task.Lease
	if m.now[id] {
		m.twice = append(m.twice, id)
	}
	m.now[id] = true
	m.past = append(m.past, madeUp{lease: id, fence: p.Task.Fence, first: p.Task.Inputs[0].Index, began: time.Now()})
	h := &pretendRun{stop: make(chan protocol.Reason, 1), done: make(chan struct{})}
	go m.play(p.Task, len(m.past)-1, h)
	return h, nil
}

// play sleeps and writes.
func (m *makeBelieve) play(t executor.Task, index int, h *pretendRun) {
	out := executor.Outcome{Reason: protocol.ReasonDone, Started: time.Now()}
	for _, in := range t.Inputs {
		timer := time.NewTimer(m.pace(in, t.Fence))
		select {
		case why := <-h.stop:
			out.Reason, out.ExitCode, out.FirstCause = why, -1, "it was stopped"
		case <-timer.C:
			if why := m.verdict(in, t.Fence); why != protocol.ReasonDone {
				out.Reason, out.ExitCode, out.FirstCause = why, 1, "the test wants it to end so"
			} else if err := writeOutput(&t, in, &out.Usage); err != nil {
				out.Reason, out.ExitCode, out.FirstCause = protocol.ReasonBackendFailed, -1, err.Error()
			}
		}
		timer.Stop()
		if out.Reason != protocol.ReasonDone {
			break
		}
		out.InputsDone++
	}
	out.Ended = time.Now()
	m.mu.Lock()
	delete(m.now, t.Lease)
	m.past[index].ended, m.past[index].reason = out.Ended, out.Reason
	m.mu.Unlock()
	h.out = out
	close(h.done)
}

func writeOutput(t *executor.Task, in executor.Input, u *executor.Usage) error {
	name, content := outputOf(in.Value)
	path := filepath.Join(t.OutputDir(in.Index), filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	u.OutputFiles += 2
	u.OutputBytes += int64(len(content))
	return os.WriteFile(path, []byte(content), 0o600)
}

// Reattach implements executor.Backend: what ran in a process that has ended is gone.
func (m *makeBelieve) Reattach(context.Context, executor.Token, *executor.Log) (executor.Handle, error) {
	return nil, executor.ErrGone
}

// pretendRun is a run of makeBelieve.
type pretendRun struct {
	stop chan protocol.Reason // capacity 1: the first word counts
	done chan struct{}
	out  executor.Outcome // valid after done
}

// Token implements executor.Handle.
func (h *pretendRun) Token() executor.Token { return "wasm:make-believe" }

// Wait implements executor.Handle.
func (h *pretendRun) Wait(ctx context.Context) (executor.Outcome, error) {
	select {
	case <-h.done:
		return h.out, nil
	case <-ctx.Done():
		return executor.Outcome{}, ctx.Err()
	}
}

// Stop implements executor.Handle.
func (h *pretendRun) Stop(why protocol.Reason, _ time.Duration) {
	select {
	case h.stop <- why:
	default:
	}
}

// Usage implements executor.Handle.
func (h *pretendRun) Usage() executor.Usage {
	select {
	case <-h.done:
		return h.out.Usage
	default:
		return executor.Usage{}
	}
}
