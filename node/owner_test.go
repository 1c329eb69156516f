package node

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/wasm"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

func newWasm(t testing.TB) *wasm.Backend {
	t.Helper()
	backend, err := wasm.New(wasm.DefaultConfig(), testLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	return backend
}

func TestModulesRunAndTheirOutputsComeBack(t *testing.T) {
	b := newTestBridge(t, startHost(t), 50)
	giveModule(t, b, writerModule())
	cfg := nodeConfig(t.TempDir(), b)
	cfg.Scratch = "/dev/shm"
	n := runBackends(t, cfg, []Backend{{Executor: newWasm(t), InProcess: true}})
	s := newSession(t)
	b.join(s.ctx, s.wg, n.Status().PeerID, 2)
	eventually(t, "50 chunks are accounted", func() bool { return b.accounted() == 50 })
	want, err := b.store.AddFiles([]volumes.File{{Path: "23/r", Data: []byte("23")}})
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done[23] != want.Root {
		t.Errorf("the result of chunk 23 is %s, want %s", b.done[23], want.Root)
	}
	fetched := uint64(0)
	for _, rs := range b.results {
		fetched += rs[0].BlocksFetched
	}
	if fetched == 0 {
		t.Error("no block was counted although the module came over the wire")
	}
}

func TestAModuleThatIsNoneEndsItsChunksForThatReason(t *testing.T) {
	b := newTestBridge(t, startHost(t), 2)
	giveModule(t, b, []byte("this is no module"))
	n := runBackends(t, nodeConfig(t.TempDir(), b), []Backend{{Executor: newWasm(t), InProcess: true}})
	s := newSession(t)
	b.join(s.ctx, s.wg, n.Status().PeerID, 2)
	eventually(t, "2 results came", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.results) == 2 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.results[0][0].Outcome; o.Reason != protocol.ReasonBadModule || o.FirstCause == "" {
		t.Errorf("the outcome is %s, %q", o.Reason, o.FirstCause)
	}
}

func TestTheOwnerSpeaksOverASocket(t *testing.T) {
	b := newTestBridge(t, startHost(t), 100)
	giveModule(t, b, []byte("module"))
	// A path that is longer than a socket's address.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-directory-name-", 6))
	backend := &fakeBackend{behave: slowly(10 * time.Millisecond)}
	cfg := nodeConfig(dir, b)
	n := runNode(t, cfg, backend)
	if _, err := Dial(t.Context(), t.TempDir()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("an empty directory gives %v", err)
	}
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := os.Stat(filepath.Join(dir, socketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.PeerID != n.Status().PeerID || st.State != StateReady || len(st.Addresses) == 0 || len(st.Executors) != 1 || st.Networks[0].ID != b.network.ID {
		t.Errorf("status is %+v, %v", st, err)
	}
	s := newSession(t)
	b.join(s.ctx, s.wg, st.PeerID, 2)
	eventually(t, "some chunks are accounted", func() bool { return b.accounted() > 5 })
	if st, err = c.Status(t.Context()); err != nil || len(st.Jobs) != 1 || st.Jobs[0].Slots != 2 || len(st.Bridges) != 1 || !st.Bridges[0].Connected {
		t.Errorf("status is %+v, %v", st, err)
	}
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is held", func() bool { st, err := c.Status(t.Context()); return err == nil && len(st.Leases) == 0 })
	if st, err = c.Status(t.Context()); err != nil || st.State != StatePaused || len(st.Why) == 0 {
		t.Errorf("paused: %s, %v, %v", st.State, st.Why, err)
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := b.accounted()
	eventually(t, "work goes on", func() bool { return b.accounted() > at+5 })
	if err := c.Drain(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if st, err = c.Status(t.Context()); err != nil || st.State != StateDraining || len(st.Leases) != 0 {
		t.Errorf("drained: %s with %d leases, %v", st.State, len(st.Leases), err)
	}
	if err := c.Stop(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := n.end(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after stop: %v", err)
	}
	// It was drained before it was stopped, and stays so.
	again := runNode(t, cfg, &fakeBackend{})
	if st := again.Status(); st.State != StateDraining {
		t.Errorf("after a restart the node is %s", st.State)
	}
}

func TestASecondNodeOnADirectoryIsToldWhoHasIt(t *testing.T) {
	b := newTestBridge(t, startHost(t), 0)
	cfg := nodeConfig(t.TempDir(), b)
	runNode(t, cfg, &fakeBackend{})
	second, err := New(cfg, nil, testLog())
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "process ") || !strings.Contains(err.Error(), "gridbeam node stop") {
		t.Errorf("the second node says %v", err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, ErrRan) {
		t.Errorf("running it again gives %v", err)
	}
}

func TestWhatKeepsANodeFromStartingSaysWhatToDo(t *testing.T) {
	b := newTestBridge(t, startHost(t), 0)
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, c := range map[string]struct {
		change func(t *testing.T, c *Config)
		is     error
		word   string
	}{
		"a key that others can read": {func(t *testing.T, c *Config) {
			if _, err := p2p.CreateIdentity(c.Key); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(c.Key, 0o644); err != nil {
				t.Fatal(err)
			}
		}, p2p.ErrKeyMode, "chmod"},
		"a port in use": {func(_ *testing.T, c *Config) {
			c.Listen = []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/" + strings.TrimPrefix(busy.Addr().String(), "127.0.0.1:"))}
		}, p2p.ErrListen, ""},
		"no journal can be written": {func(t *testing.T, c *Config) {
			if err := os.MkdirAll(filepath.Join(c.Data, "journal"), 0o700); err != nil { // a directory in its place
				t.Fatal(err)
			}
		}, nil, "journal"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := nodeConfig(t.TempDir(), b)
			c.change(t, &cfg)
			n, err := New(cfg, nil, testLog())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err = n.Run(ctx)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("it says %v, want %v with %q", err, c.is, c.word)
			}
		})
	}
}

func TestANodeThatNobodyMayUseSaysSo(t *testing.T) {
	b := newTestBridge(t, startHost(t), 0)
	cfg := nodeConfig(t.TempDir(), b)
	cfg.Networks = nil
	n := runNode(t, cfg, &fakeBackend{probe: errBroken})
	st := n.Status()
	if st.State != StatePaused || len(st.Why) != 2 || !strings.Contains(st.Why[0], "--join") || !strings.Contains(st.Why[1], "backend") {
		t.Errorf("the node is %s, %q", st.State, st.Why)
	}
}

func TestAFullDiskTakesNoNewWorkAndEndsWhatRuns(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("no tmpfs can be mounted here (%v); run as root to test a full disk", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	b := newTestBridge(t, startHost(t), 1<<40)
	giveModule(t, b, []byte("module"))
	b.terms.Limits.DiskBytes = 1 << 20
	hold := make(chan struct{})
	backend := &fakeBackend{behave: func(task executor.Task, _ <-chan protocol.Reason) executor.Outcome {
		if task.Inputs[0].Index < 2 {
			<-hold
		}
		return executor.Outcome{Reason: protocol.ReasonDone}
	}}
	n := runNode(t, nodeConfig(dir, b), backend)
	s := newSession(t)
	b.join(s.ctx, s.wg, n.Status().PeerID, 2)
	eventually(t, "two chunks run", func() bool { return backend.runs() == 2 })
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4096, 1} { // to the last byte
		for err = nil; err == nil; {
			_, err = fill.Write(make([]byte, size))
		}
	}
	if err := fill.Close(); err != nil {
		t.Fatal(err)
	}
	close(hold)
	eventually(t, "the node says that its disk is full", func() bool {
		st := n.Status()
		return st.State == StatePaused && strings.Contains(strings.Join(st.Why, " "), "disk")
	})
	eventually(t, "what ran is accounted", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.results[0]) > 0 && len(b.results[1]) > 0
	})
	if reply, err := b.reserve(b.reservation(n.Status().PeerID, 1)); err == nil && len(reply.GetOffer()) > 0 {
		t.Error("a node whose disk is full offers itself")
	}
	at := b.accounted()
	if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "work goes on when there is room", func() bool { return b.accounted() > at+50 })
}
