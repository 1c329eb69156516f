package beambridge

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// alice submits the jobs of these tests.
var alice = api.Principal{User: "alice", Scopes: []api.Scope{api.ScopeAdmin}}

// stage is a bridge and puppets on a simulated network in virtual time.
type stage struct {
	*testing.T
	net      *testnet.Net
	process  *testnet.Process
	operator crypto.PrivKey
	network  protocol.NetworkFile
	puppets  []*testnet.Process
	ready    chan struct{}

	mu     sync.Mutex
	bridge *Bridge
}

func testKey(name string) crypto.PrivKey {
	sum := sha256.Sum256([]byte(name))
	std := ed25519.NewKeyFromSeed(sum[:])
	key, _, err := crypto.KeyPairFromStdKey(&std)
	if err != nil {
		panic(err)
	}
	return key
}

// onStage runs a test in virtual time with a bridge that has come up.
func onStage(t *testing.T, test func(s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{T: t, net: testnet.New(t, testnet.Options{Seed: 1, Log: testLog(t)}), operator: testKey("operator"), ready: make(chan struct{})}
		s.process = s.net.Process(s.run, func(c *p2p.Config) { c.Connections = 1024 })
		s.process.Start()
		s.awaitBridge()
		test(s)
	})
}

func (s *stage) run(ctx context.Context, env testnet.Env) error {
	cfg := DefaultConfig(env.Dir)
	cfg.Host, cfg.OperatorKey, cfg.Local, cfg.MDNS, cfg.APIListen, cfg.BeamListen, cfg.Buckets = env.Host, s.operator, true, false, "", "", 8
	ready := s.ready
	cfg.Ready = func(Started) { close(ready) }
	b, err := New(cfg, env.Log)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.bridge = b
	s.mu.Unlock()
	return b.Run(ctx)
}

func (s *stage) Bridge() *Bridge {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bridge
}

func (s *stage) awaitBridge() {
	s.Helper()
	select {
	case <-s.ready:
	case <-time.After(time.Minute):
		s.Fatal("the bridge does not come up")
	}
	raw, err := os.ReadFile(filepath.Join(s.process.Dir(), "network"))
	if err == nil {
		s.network, err = protocol.ParseNetworkFile(raw)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// restart takes the bridge down as a power cut does and brings it back on its disk.
func (s *stage) restart(down time.Duration) {
	s.Helper()
	s.process.Crash()
	<-time.After(down)
	s.ready = make(chan struct{})
	s.process.Restart()
	s.awaitBridge()
}

// enter puts a puppet on stage and waits until the bridge knows it.
func (s *stage) enter(p *puppet) *testnet.Process {
	s.Helper()
	proc := s.net.Process(func(ctx context.Context, env testnet.Env) error {
		return p.run(ctx, env, s.process.AddrInfo(), s.network)
	})
	s.puppets = append(s.puppets, proc)
	proc.Start()
	s.await(time.Minute, "the bridge knows the puppet", func() bool {
		list, err := s.Bridge().ListNodes(context.Background(), alice, nil)
		return err == nil && len(list.Nodes) == len(s.puppets)
	})
	return proc
}

// own is a puppet of the bridge's operator.
func (s *stage) own(slots int) *puppet { return newPuppet(s, s.operator, slots) }

func (s *stage) await(within time.Duration, what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			s.Fatalf("not within %s: %s", within, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// count1 is a job over the integers 0..n-1.
func count1(n int64, chunk uint64) protocol.Job {
	return protocol.Job{
		Name: "count", Kind: protocol.JobMap, Run: protocol.JobRun{Wasm: "m.wasm", Command: []string{"count", "{input}"}},
		Inputs: protocol.JobInputs{Range: &protocol.IntRange{First: 0, Last: n - 1}}, Chunk: chunk,
	}
}

func (s *stage) module() string {
	s.Helper()
	info, err := s.Bridge().PutModule(context.Background(), alice, fstest.MapFS{moduleFile: {Data: []byte("\x00asm\x01\x00\x00\x00")}})
	if err != nil {
		s.Fatal(err)
	}
	return info.CID
}

func (s *stage) submit(j protocol.Job) protocol.JobID {
	s.Helper()
	st, err := s.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: j, ModuleCID: s.module()})
	if err != nil {
		s.Fatal(err)
	}
	return st.ID
}

func (s *stage) status(id protocol.JobID) protocol.JobStatus {
	s.Helper()
	st, err := s.Bridge().Job(context.Background(), alice, id)
	if err != nil {
		s.Fatal(err)
	}
	return st
}

// over waits for a job's end.
func (s *stage) over(id protocol.JobID, within time.Duration) (st protocol.JobStatus) {
	s.Helper()
	s.await(within, "job is over", func() bool { st = s.status(id); return st.State.Over() })
	return st
}

func (s *stage) credit(uusd int64) {
	s.Helper()
	if _, err := s.Bridge().Credit(context.Background(), alice, protocol.CreditRequest{User: "alice", AmountUUSD: uusd, Source: "card", Ref: "1"}); err != nil {
		s.Fatal(err)
	}
}

// books stops the bridge and holds its store against itself: every input counted once, every transaction
// balanced.
func (s *stage) books(id protocol.JobID, inputs uint64) {
	s.Helper()
	if err := s.process.Stop(); err != nil {
		s.Fatal(err)
	}
	db, err := store.Open(filepath.Join(s.process.Dir(), "bridge.db"), testLog(s))
	if err != nil {
		s.Fatal(err)
	}
	defer db.Close()
	err = db.View(context.Background(), func(tx *store.Tx) error {
		var next uint64
		for r, err := range tx.Results(id) {
			if err != nil {
				return err
			}
			if r.First != next {
				s.Errorf("results jump from %d to %d", next, r.First)
			}
			next = r.End
		}
		if next != inputs {
			s.Errorf("%d of %d inputs are accounted", next, inputs)
		}
		if left, err := tx.Balance(settlement.AccountReserved("alice"), protocol.USD); err != nil || left != 0 {
			s.Errorf("%d micro-USD are still set aside (%v)", left, err)
		}
		return tx.LedgerVerify()
	})
	if err != nil {
		s.Error(err)
	}
}
