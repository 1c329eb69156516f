package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func echo(_ context.Context, _ peer.ID, b []byte) ([]byte, error) { return b, nil }

func call(from, to *p2p.Host, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	got, err := from.Call(ctx, to.ID(), protocol.ProtoClaim, []byte("x"))
	if err == nil && string(got) != "x" {
		return fmt.Errorf("answer %q", got)
	}
	return err
}

// hear joins the topic on every host and counts what arrives.
func hear(t *testing.T, hosts []*p2p.Host, name string) ([]*p2p.Topic[string], []*atomic.Int64) {
	t.Helper()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); wg.Wait() })
	topics := make([]*p2p.Topic[string], len(hosts))
	counts := make([]*atomic.Int64, len(hosts))
	for i, h := range hosts {
		topic, err := p2p.Join(h, name, p2p.TopicConfig[string]{Decode: func(b []byte, author peer.ID) (string, error) {
			text, ok := strings.CutPrefix(string(b), author.String()+" ")
			if !ok {
				return "", errors.New("not its author's")
			}
			return text, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		sub, err := topic.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		topics[i], counts[i] = topic, &atomic.Int64{}
		wg.Go(func() {
			for {
				if _, err := sub.Next(ctx); err != nil {
					return
				}
				counts[i].Add(1)
			}
		})
	}
	return topics, counts
}

func publish(t *testing.T, topic *p2p.Topic[string], h *p2p.Host, text string) {
	t.Helper()
	if err := topic.Publish(context.Background(), []byte(h.ID().String()+" "+text)); err != nil {
		t.Fatal(err)
	}
}

func reached(counts []*atomic.Int64, want int64) (n int) {
	for _, c := range counts {
		if c.Load() >= want {
			n++
		}
	}
	return n
}

func TestTwentyHostsTalkThroughPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := New(t, Options{Seed: 1})
		hosts := net.Hosts(20)
		for _, h := range hosts {
			if err := h.Handle(protocol.ProtoClaim, echo); err != nil {
				t.Fatal(err)
			}
		}
		for i, h := range hosts { // a ring with chords
			for _, d := range []int{1, 3, 7} {
				if err := h.Connect(context.Background(), hosts[(i+d)%20].AddrInfo()); err != nil {
					t.Fatal(err)
				}
			}
		}
		topics, counts := hear(t, hosts, protocol.TopicTrust)
		pass(3 * time.Second) // virtual: three heartbeats, the mesh stands

		publish(t, topics[0], hosts[0], "one")
		pass(2 * time.Second)
		if n := reached(counts[1:], 1); n != 19 {
			t.Errorf("whole network: %d of 19 heard", n)
		}
		if err := call(hosts[0], hosts[1], time.Second); err != nil {
			t.Errorf("call: %v", err)
		}

		left, right := make([]int, 10), make([]int, 10)
		for i := range 10 {
			left[i], right[i] = i, 10+i
		}
		net.Partition(left, right)
		publish(t, topics[0], hosts[0], "two")
		pass(5 * time.Second)
		if l, r := reached(counts[1:10], 2), reached(counts[10:], 2); l != 9 || r != 0 {
			t.Errorf("partition: %d of 9 on the own side heard, %d across", l, r)
		}
		// 9-10 are neighbours in the ring: their connection looks alive, deadlines decide.
		if err := call(hosts[9], hosts[10], 2*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call across the partition: %v, want deadline exceeded", err)
		}

		net.Heal()
		pass(time.Second)
		publish(t, topics[19], hosts[19], "three")
		pass(3 * time.Second)
		if n := reached(counts[:1], 1) + reached(counts[1:10], 3); n != 10 { // host 0 does not hear itself
			t.Errorf("healed: %d of 10 heard from the other side", n)
		}
		if err := call(hosts[9], hosts[10], 2*time.Second); err != nil {
			t.Errorf("call after healing: %v", err)
		}
	})
}

func TestKeptPeersReconnectAfterALongPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := New(t, Options{Seed: 2})
		hub := net.Hosts(1)[0]
		if err := hub.Handle(protocol.ProtoClaim, echo); err != nil {
			t.Fatal(err)
		}
		node := net.Hosts(1, func(c *p2p.Config) { c.Bootstrap = []peer.AddrInfo{hub.AddrInfo()} })[0]
		pass(time.Second)
		if !node.Connected(hub.ID()) {
			t.Fatal("not connected to the bootstrap peer within 1 s")
		}
		net.Cut(0)
		pass(2 * time.Minute)
		if node.Connected(hub.ID()) {
			t.Error("a peer cut off for 2 min still counts as connected")
		}
		net.Heal()
		pass(time.Minute)
		if !node.Connected(hub.ID()) {
			t.Error("not connected again 1 min after healing")
		}
		if err := call(node, hub, time.Second); err != nil {
			t.Error(err)
		}
	})
}

func TestCrashKeepsTheDiskAndLosesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := New(t, Options{Seed: 3})
		client := net.Hosts(1)[0]
		server := net.Process(func(ctx context.Context, env Env) error {
			file := filepath.Join(env.Dir, "counter")
			before, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			err = env.Host.Handle(protocol.ProtoClaim, func(context.Context, peer.ID, []byte) ([]byte, error) {
				before = append(before, '+')
				return before, os.WriteFile(file, before, 0o600)
			})
			if err != nil {
				return err
			}
			<-ctx.Done()
			// What a crashed process still does must not be seen.
			return os.WriteFile(file, []byte("orderly end"), 0o600)
		})
		server.Start()
		ask := func() (string, error) {
			if err := client.Connect(context.Background(), server.AddrInfo()); err != nil {
				return "", err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			got, err := client.Call(ctx, server.ID(), protocol.ProtoClaim, nil)
			return string(got), err
		}
		for _, want := range []string{"+", "++"} {
			if got, err := ask(); err != nil || got != want {
				t.Fatalf("%q, %v", got, err)
			}
		}
		id := server.Host().ID()
		server.Crash()
		if _, err := ask(); err == nil {
			t.Error("a crashed process answered")
		}
		server.Restart()
		if server.Host().ID() != id {
			t.Error("the process came back as somebody else")
		}
		// The client's old connection dies when the new process meets its packets.
		var got string
		var err error
		for range 20 {
			if got, err = ask(); err == nil {
				break
			}
		}
		if err != nil || got != "+++" {
			t.Errorf("after the crash: %q, %v; want +++", got, err)
		}
		st, err := os.Stat(filepath.Join(server.Dir(), "counter"))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("permissions after a crash: %v, %v", st.Mode(), err)
		}
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		server.Restart()
		if data, err := os.ReadFile(filepath.Join(server.Dir(), "counter")); err != nil || !strings.HasPrefix(string(data), "orderly end") {
			t.Errorf("after an orderly end: %q, %v", data, err)
		}
	})
}

func TestWhoCrashesAndIsBackAtOnceHearsGossipAndIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := New(t, Options{Seed: 6})
		hub := net.Hosts(1)[0]
		topics, heard := hear(t, []*p2p.Host{hub}, protocol.TopicTrust)
		topic := topics[0]
		var got atomic.Int64
		node := net.Process(func(ctx context.Context, env Env) error {
			topic, err := p2p.Join(env.Host, protocol.TopicTrust, p2p.TopicConfig[string]{Decode: func(b []byte, _ peer.ID) (string, error) { return string(b), nil }})
			if err != nil {
				return err
			}
			sub, err := topic.Subscribe()
			if err != nil {
				return err
			}
			for {
				m, err := sub.Next(ctx)
				if err != nil {
					return nil
				}
				if strings.Contains(m.Value, "news") {
					got.Add(1)
				}
			}
		}, func(c *p2p.Config) { c.Bootstrap = []peer.AddrInfo{hub.AddrInfo()} })
		speaks := net.Process(func(ctx context.Context, env Env) error { // without subscribing, as nodes send heartbeats
			topic, err := p2p.Join(env.Host, protocol.TopicTrust, p2p.TopicConfig[string]{Decode: func(b []byte, _ peer.ID) (string, error) { return string(b), nil }})
			if err != nil {
				return err
			}
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(time.Second):
					if err := topic.Publish(ctx, fmt.Append(nil, env.Host.ID(), " ", env.Run, n)); err != nil && ctx.Err() == nil {
						return err
					}
				}
			}
		}, func(c *p2p.Config) { c.Bootstrap = []peer.AddrInfo{hub.AddrInfo()} })
		node.Start()
		speaks.Start()
		for run := range 6 { // the router itself gives up on a peer after four
			pass(10 * time.Second) // virtual
			before, beforeHeard := got.Load(), heard[0].Load()
			for i := range 5 {
				publish(t, topic, hub, fmt.Sprint("news ", run, i))
				pass(time.Second) // virtual
			}
			if n := got.Load() - before; n != 5 {
				t.Errorf("run %d: %d of 5 messages reached who subscribes", run, n)
			}
			if n := heard[0].Load() - beforeHeard; n < 4 {
				t.Errorf("run %d: %d messages in 5 s from who only publishes, want 5", run, n)
			}
			for _, p := range []*Process{node, speaks} {
				p.Crash()
				p.Restart()
			}
		}
	})
}

func TestCallsSucceedOnALossySlowDuplicatingNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := New(t, Options{Seed: 4})
		hosts := net.Hosts(2)
		if err := hosts[1].Handle(protocol.ProtoClaim, echo); err != nil {
			t.Fatal(err)
		}
		net.ConnectAll(hosts)
		begin := time.Now()
		if err := call(hosts[0], hosts[1], time.Second); err != nil {
			t.Fatal(err)
		}
		fast := time.Since(begin)
		net.Slow(1, 300*time.Millisecond)
		begin = time.Now()
		if err := call(hosts[0], hosts[1], 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if slow := time.Since(begin); slow < fast+500*time.Millisecond {
			t.Errorf("call took %v on the slow link, %v before", slow, fast)
		}
		net.Heal()
		net.Drop(0.2)
		net.Duplicate(0.2)
		for i := range 50 {
			if err := call(hosts[0], hosts[1], 30*time.Second); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		if _, lost := net.Packets(); lost == 0 {
			t.Error("no packet was lost")
		}
	})
}

func TestAFarmBehindOneAddressGetsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const farm = 64
		net := New(t, Options{Seed: 5, Address: func(i int) netip.AddrPort {
			if i == 0 {
				return netip.MustParseAddrPort("1.1.1.1:4001")
			}
			return netip.AddrPortFrom(netip.MustParseAddr("2.2.2.2"), uint16(4000+i))
		}})
		bridge := net.Hosts(1)[0]
		nodes := net.Hosts(farm)
		var wg sync.WaitGroup
		var in atomic.Int64
		for _, h := range nodes { // all at once, as after a power cut
			wg.Go(func() {
				if err := h.Connect(context.Background(), bridge.AddrInfo()); err != nil {
					t.Error(err)
					return
				}
				in.Add(1)
			})
		}
		wg.Wait()
		pass(3 * time.Second)
		if n := len(bridge.Host().Network().Peers()); in.Load() != farm || n != farm {
			t.Errorf("%d of %d joined, the bridge sees %d", in.Load(), farm, n)
		}
		for _, h := range nodes {
			if s := bridge.Score(h.ID()); s < 0 {
				t.Fatalf("score %v for a node of the farm", s)
			}
		}
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }
