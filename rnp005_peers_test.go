package gridbeam_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/beambridge"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/node/executor/wasm"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// The rows of RNP-005 that are about peers themselves: who they are, what they say, what others hear.

// "A secure connection": on real sockets.
func TestA1_AWrongKeyGetsNoConnectionAndTheWireShowsNothing(t *testing.T) {
	const secret, control = "a secret that is worth reading", "what is sent in clear can be read"
	for _, transport := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		t.Run(transport, func(t *testing.T) {
			server, client := realHost(t, keyOf(1, "server"), transport), realHost(t, keyOf(2, "client"))
			if err := server.Handle(protocol.ProtoClaim, func(_ context.Context, _ peer.ID, b []byte) ([]byte, error) { return b, nil }); err != nil {
				t.Fatal(err)
			}
			wire := &tap{}
			network, address := socketOf(t, server)
			var at multiaddr.Multiaddr
			var err error
			if network[:3] == "tcp" {
				address = wire.tapTCP(t, address)
				tcp, rerr := net.ResolveTCPAddr("tcp", address)
				if rerr != nil {
					t.Fatal(rerr)
				}
				at, err = manet.FromNetAddr(tcp)
			} else {
				address = wire.tapUDP(t, address)
				udp, rerr := net.ResolveUDPAddr("udp", address)
				if rerr != nil {
					t.Fatal(rerr)
				}
				at, err = manet.FromNetAddr(udp)
				at = at.Encapsulate(multiaddr.StringCast("/quic-v1"))
			}
			if err != nil {
				t.Fatal(err)
			}
			stranger, err := peer.IDFromPrivateKey(keyOf(3, "stranger"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := client.Connect(ctx, peer.AddrInfo{ID: stranger, Addrs: []multiaddr.Multiaddr{at}}); err == nil {
				t.Error("a peer under another key was taken for the one that was asked for")
			}
			if err := client.Connect(ctx, peer.AddrInfo{ID: server.ID(), Addrs: []multiaddr.Multiaddr{at}}); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if got, err := client.Call(ctx, server.ID(), protocol.ProtoClaim, []byte(secret)); err != nil || string(got) != secret {
					t.Fatalf("%q, %v", got, err)
				}
			}
			// The tap does read: what somebody sends in clear is there.
			plain, err := net.Dial(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			if _, err := plain.Write([]byte(control)); err != nil {
				t.Fatal(err)
			}
			soon(t, 10*time.Second, "the tap sees what is sent in clear", func() bool { return bytes.Contains(wire.captured(), []byte(control)) })
			all := wire.captured()
			for _, word := range []string{secret, secret[:8], string(protocol.ProtoClaim), "gridbeam/claim"} {
				if bytes.Contains(all, []byte(word)) {
					t.Errorf("%q can be read on the wire", word)
				}
			}
			if len(all) < 5*2*len(secret) {
				t.Errorf("%d bytes were captured, less than what was said", len(all))
			}
		})
	}
	t.Run("gossip", func(t *testing.T) {
		victim := realHost(t, keyOf(4, "victim"), "/ip4/127.0.0.1/udp/0/quic-v1")
		topic, err := p2p.Join(victim, protocol.TopicTrust, p2p.TopicConfig[[]byte]{Decode: asBytes})
		if err != nil {
			t.Fatal(err)
		}
		sub, err := topic.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var heard []string
		ctx, stop := context.WithCancel(context.Background())
		var listener sync.WaitGroup
		listener.Go(func() {
			for {
				m, err := sub.Next(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				heard = append(heard, string(m.Value))
				mu.Unlock()
			}
		})
		t.Cleanup(func() { stop(); listener.Wait() })
		has := func(text string) bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Contains(heard, text)
		}
		for i, tamper := range []func(m *pubsubpb.Message){
			func(m *pubsubpb.Message) { m.Data = append(m.Data, " tampered"...) },
			func(m *pubsubpb.Message) { m.From = []byte(victim.ID()) },
			func(m *pubsubpb.Message) { m.Signature = nil },
			func(m *pubsubpb.Message) { m.Signature[7] ^= 1 },
			func(m *pubsubpb.Message) { m.Seqno[0] ^= 1 },
			func(m *pubsubpb.Message) { m.Topic = proto.String("/gridbeam/1/volume/x") },
		} {
			key := keyOf(uint64(10+i), "hostile")
			hostile := bareHost(t, key)
			if err := hostile.Connect(ctx, victim.AddrInfo()); err != nil {
				t.Fatal(err)
			}
			good, bad := fmt.Sprintf("good %d", i), fmt.Sprintf("bad %d", i)
			if err := whisper(hostile, victim.ID(), gossipOf(t, key, protocol.TopicTrust, []byte(good))); err != nil {
				t.Fatal(err)
			}
			soon(t, 10*time.Second, "a true message arrives", func() bool { return has(good) })
			m := gossipOf(t, key, protocol.TopicTrust, []byte(bad))
			tamper(m)
			last := gossipOf(t, key, protocol.TopicTrust, []byte(good+" again"))
			if err := whisper(hostile, victim.ID(), m, last); err != nil {
				t.Fatal(err)
			}
			// Either the true message behind it arrives, or its sender is not listened to any more.
			soon(t, 10*time.Second, "the tampered message was judged", func() bool { return has(good+" again") || victim.Score(hostile.ID()) < 0 })
			mu.Lock()
			for _, text := range heard {
				if bytes.Contains([]byte(text), []byte("bad")) {
					t.Errorf("tampered message %d was heard: %q", i, text)
				}
			}
			mu.Unlock()
		}
	})
}

// noop is a WebAssembly module whose _start does nothing.
var noop = []byte("\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x07\x0a\x01\x06_start\x00\x00\x0a\x04\x01\x02\x00\x0b")

// "An agent on participating nodes registers it as available": from an empty directory, on real sockets, with the
// real sandbox.
func TestC1_ANodeIsReadyFromACleanDirectoryAndAnImportedKeyKeepsItsPeerID(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	t.Cleanup(func() { stop(); ran.Wait() })
	ready := make(chan beambridge.Started, 1)
	bcfg := beambridge.DefaultConfig(filepath.Join(t.TempDir(), "bridge"))
	bcfg.Local, bcfg.MDNS, bcfg.APIListen, bcfg.BeamListen, bcfg.OperatorKey = true, false, "", "", keyOf(30, "operator")
	bcfg.Ready = func(s beambridge.Started) { ready <- s }
	bridge, err := beambridge.New(bcfg, farmLog(t))
	if err != nil {
		t.Fatal(err)
	}
	run := func(what string, f func(context.Context) error) {
		ran.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	run("bridge", bridge.Run)
	started := <-ready
	inv, err := protocol.ParseInvitation(started.Invitation, time.Now())
	if err != nil {
		t.Fatal(err)
	}

	old := filepath.Join(t.TempDir(), "old.key") // of a node that moves to another machine
	key, err := p2p.CreateIdentity(old)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	clean := filepath.Join(t.TempDir(), "clean")
	cfg := node.DefaultConfig(clean)
	cfg.Local, cfg.MDNS, cfg.Control, cfg.Networks, cfg.Join, cfg.OperatorKey, cfg.Key = true, false, false, []protocol.NetworkFile{inv.Network}, inv.Bootstrap, keyOf(30, "operator"), filepath.Join(t.TempDir(), "identity.key")
	if _, err := p2p.ImportIdentity(cfg.Key, old); err != nil {
		t.Fatal(err)
	}
	wcfg := wasm.DefaultConfig()
	wcfg.CacheDir = filepath.Join(t.TempDir(), "wasm")
	backend, err := wasm.New(wcfg, farmLog(t))
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.New(cfg, []node.Backend{{Executor: backend, InProcess: true}}, farmLog(t))
	if err != nil {
		t.Fatal(err)
	}
	run("node", func(ctx context.Context) error { defer backend.Close(); return n.Run(ctx) })
	<-n.Ready()
	if st := n.Status(); st.State != node.StateReady || st.PeerID != id || len(st.Executors) != 1 {
		t.Errorf("the node is %s (%v) as %s with %v; its key was imported from %s", st.State, st.Why, st.PeerID, st.Executors, id)
	}
	soon(t, 30*time.Second, "the bridge lists the node", func() bool {
		list, err := bridge.ListNodes(ctx, alice, nil)
		return err == nil && len(list.Nodes) == 1 && list.Nodes[0].PeerID == id && list.Nodes[0].State == "READY"
	})
	module, err := bridge.PutModule(ctx, alice, fstest.MapFS{"module.wasm": {Data: noop}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := bridge.SubmitJob(ctx, alice, protocol.SubmitRequest{Job: sweep(4), ModuleCID: module.CID})
	if err != nil {
		t.Fatal(err)
	}
	soon(t, 60*time.Second, "its first job is over", func() bool { s, err = bridge.Job(ctx, alice, s.ID); return err == nil && s.State.Over() })
	if s.State != "done" || s.ChunksDone != 4 || len(s.Nodes) != 1 || s.Nodes[0].PeerID != id {
		t.Errorf("job %s (%s): %+v", s.State, s.Text, s)
	}
}

// "Regularly reports refreshed specs": what is old is never selected.
func TestD2_AStaleOrReplayedRecordIsNeverSelected(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 14)
		c := f.claim(gpus("NVIDIA H100 80GB HBM3", 79.65, 4))
		f.start()
		c.Start()
		f.known(1)
		module := f.module()
		asked := func(gpu string) bool {
			j := sweep(1)
			j.Resources.GPU = protocol.GPUNames{gpu}
			s, err := f.Bridge().SubmitJob(context.Background(), alice, protocol.SubmitRequest{Job: j, ModuleCID: module})
			if err != nil {
				t.Fatal(err)
			}
			pass(5 * time.Second)
			if _, err := f.Bridge().CancelJob(context.Background(), alice, s.ID); err != nil {
				t.Fatal(err)
			}
			return c.wasAsked(s.ID)
		}
		if !asked("H100") || asked("T4") {
			t.Fatal("who has H100s is asked for H100s alone")
		}
		c.changeTo(gpus("Tesla T4", 15.36, 1)) // the cards were sold
		f.await(5*time.Minute, "the new record has arrived", func() bool {
			list, err := f.Bridge().ListNodes(context.Background(), alice, nil)
			return err == nil && len(list.Nodes) == 1 && len(list.Nodes[0].GPUs) == 1 && list.Nodes[0].GPUs[0].VRAMGB == 16
		})
		if asked("H100") || !asked("T4") {
			t.Error("the older record is still selected")
		}

		mallory := f.net.Hosts(1)[0]
		replay := func() {
			if err := mallory.Connect(context.Background(), f.bridge.AddrInfo()); err != nil {
				t.Fatal(err)
			}
			pass(time.Second) // its own router's stream to the bridge would replace the one that whispers
			c.mu.Lock()
			record, beats := c.records[0], slices.Clone(c.beats)
			c.mu.Unlock()
			if err := putRecord(mallory.Host(), f.bridge.ID(), c.ID(), record); err == nil {
				t.Error("the directory took an older record again")
			}
			for _, b := range beats {
				for _, topic := range []string{protocol.TopicAvail(protocol.NameGPU("NVIDIA H100 80GB HBM3", 79<<30).Slug), protocol.TopicAvail("none")} {
					if err := whisper(mallory.Host(), f.bridge.ID(), gossipOf(t, mallory.Key(), topic, b)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		replay()
		c.mu.Lock()
		present := c.records[len(c.records)-1]
		c.mu.Unlock()
		if err := putRecord(mallory.Host(), f.bridge.ID(), c.ID(), present); err != nil {
			t.Errorf("the directory refuses the present record, so what it refuses proves little: %v", err)
		}
		if asked("H100") || !asked("T4") {
			t.Error("a replayed record is selected")
		}

		c.Crash() // its last heartbeat grows old
		pass(3 * time.Minute)
		if asked("T4") || asked("H100") {
			t.Error("a node that has been silent for three heartbeats is selected")
		}
		replay()
		if asked("T4") || asked("H100") {
			t.Error("old heartbeats make a silent node selected")
		}
		pass(95 * time.Minute) // its record ends
		if list, err := f.Bridge().ListNodes(context.Background(), alice, nil); err != nil || len(list.Nodes) != 0 {
			t.Errorf("listed after its record has ended: %+v, %v", list, err)
		}
	})
}
