package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
)

// ErrRan means that a Node was run before; make a new one.
var ErrRan = errors.New("node: it ran already")

// probeTime bounds the self-test of a backend (execution.md 2).
const probeTime = 10 * time.Second

// Node is a machine that is offered. It is made by New and runs once; its methods may be called at any time, from
// any goroutine.
type Node struct {
	cfg      Config
	backends []Backend
	log      *slog.Logger
	boot     []byte // names this process in reports
	ready    chan struct{}
	stopped  chan struct{} // closed when Stop has drained
	stopOnce sync.Once

	mu      sync.Mutex
	ran     bool
	site    *site // while it runs
	started time.Time
}

// New checks the configuration; it does no I/O. It returns ErrConfig.
func New(cfg Config, backends []Backend, log *slog.Logger) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for i, b := range backends {
		if b.Executor == nil {
			return nil, fmt.Errorf("%w: backend %d is nil", ErrConfig, i)
		}
	}
	boot := make([]byte, 8)
	_, _ = rand.Read(boot) // never fails
	return &Node{cfg: cfg, backends: backends, log: log, boot: boot, ready: make(chan struct{}), stopped: make(chan struct{})}, nil
}

// Run offers the machine until ctx ends or Stop is called: it then lets what runs end for Config.Drain, hands
// back what does not, says goodbye and returns nil. It returns ErrLocked, p2p.ErrListen, p2p.ErrKeyMode and what
// keeps the node from starting; each says what to do.
func (n *Node) Run(ctx context.Context) error {
	unlock, err := n.enter()
	if err != nil {
		return err
	}
	defer unlock()
	key, err := p2p.LoadOrCreateIdentity(n.cfg.Key)
	if err != nil {
		return fmt.Errorf("loading the identity key: %w", err)
	}
	cfg, err := n.hostConfig()
	if err != nil {
		return err
	}
	host, err := p2p.New(cfg, key, n.log)
	if err != nil {
		return fmt.Errorf("setting up the network host: %w", err)
	}
	if err := host.Open(ctx); err != nil {
		return fmt.Errorf("joining the network: %w", err)
	}
	hostCtx, stopHost := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHost()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hostDone := make(chan error, 1)
	go func() {
		hostDone <- host.Run(hostCtx)
		cancel() // without its host the node is nothing
	}()
	err = n.serve(ctx, host)
	stopHost()
	return errors.Join(err, <-hostDone)
}

// RunOn is Run with a host that is open, and that the caller runs until RunOn has returned: whole networks in one
// process are made so. Config.Key, Listen, Local and MDNS are not looked at.
func (n *Node) RunOn(ctx context.Context, host *p2p.Host) error {
	unlock, err := n.enter()
	if err != nil {
		return err
	}
	defer unlock()
	return n.serve(ctx, host)
}

// enter takes the data directory for this process.
func (n *Node) enter() (unlock func(), err error) {
	n.mu.Lock()
	if n.ran {
		n.mu.Unlock()
		return nil, ErrRan
	}
	n.ran, n.started = true, n.cfg.Clock()
	n.mu.Unlock()
	if err := n.cfg.makeDirs(); err != nil {
		return nil, err
	}
	f, err := lock(n.cfg.Data)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func (n *Node) hostConfig() (p2p.Config, error) {
	cfg := p2p.DefaultConfig()
	if n.cfg.Local {
		cfg = p2p.LoopbackConfig()
	}
	if len(n.cfg.Listen) > 0 {
		cfg.Listen = n.cfg.Listen
	}
	cfg.Announce = n.cfg.Announce
	cfg.MDNS, cfg.Version = n.cfg.MDNS, n.cfg.Version
	boot, err := n.cfg.bootstrap()
	cfg.Bootstrap = boot
	return cfg, err
}

// Ready is closed when the node is on the network and answers bridges, whether or not it takes work: Status says
// why not.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Addrs returns where others reach the node, each ending in its peer ID; nil before it listens.
func (n *Node) Addrs() []multiaddr.Multiaddr {
	if s := n.at(); s != nil {
		return s.host.Addrs()
	}
	return nil
}

func (n *Node) at() *site {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.site
}

// Status tells where the node stands.
func (n *Node) Status() Status {
	if s := n.at(); s != nil {
		return s.status()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return Status{Version: n.cfg.Version, PID: os.Getpid(), Started: n.started, State: StateStarting, Since: n.started, Why: []string{"it is starting, or has ended"}}
}

// errDown is what the owner hears when the node does not run.
var errDown = fmt.Errorf("%w: it is starting, or has ended", ErrNotRunning)

// Pause stops new work; what runs goes on. It survives restarts.
func (n *Node) Pause() error { return n.order("pause") }

// Resume undoes Pause and Drain.
func (n *Node) Resume() error { return n.order("") }

func (n *Node) order(what string) error {
	s := n.at()
	if s == nil {
		return errDown
	}
	return s.book.order(what)
}

// Drain stops new work, hands back what has not begun, lets what runs end within the deadline, hands back what
// does not, and returns when the node holds nothing. It survives restarts.
func (n *Node) Drain(ctx context.Context, deadline time.Duration) error {
	s := n.at()
	if s == nil {
		return errDown
	}
	if err := s.book.order("drain"); err != nil {
		return err
	}
	return s.book.drain(ctx, deadline)
}

// Measure measures the machine now and puts the figures into the record. It returns ErrBusy while chunks are in hand.
func (n *Node) Measure(ctx context.Context) (Measured, error) {
	s := n.at()
	if s == nil {
		return Measured{}, errDown
	}
	return s.measure(ctx)
}

// ClearGPU is the owner's word that a GPU is good again: its faults are forgotten, and after a minute of quiet it is offered.
// It returns gpu.ErrNoDevice.
func (n *Node) ClearGPU(uuid string) error {
	s := n.at()
	if s == nil {
		return errDown
	}
	return s.gpus.Clear(uuid)
}

// Stop drains and ends Run. It returns when the drain has ended; a node that was not drained or paused before
// takes work again at its next start.
func (n *Node) Stop(ctx context.Context, deadline time.Duration) error {
	s := n.at()
	if s == nil {
		return errDown
	}
	s.book.close()
	err := s.book.drain(ctx, deadline)
	n.stopOnce.Do(func() { close(n.stopped) })
	return err
}

// prove runs the self-tests of the backends; those that fail are not offered, and said.
func (n *Node) prove(ctx context.Context) (out []*offered) {
	for _, b := range n.backends {
		one, cancel := context.WithTimeout(ctx, probeTime)
		report, err := b.Executor.Probe(one)
		cancel()
		if err != nil {
			n.log.Error("a backend failed its self-test and is not offered", "err", err)
			continue
		}
		out = append(out, &offered{Backend: b.Executor, report: report, inProcess: b.InProcess})
	}
	return out
}

// serve is one life of the node on a host.
func (n *Node) serve(ctx context.Context, host *p2p.Host) (err error) {
	s, err := n.build(ctx, host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.release()) }()
	n.mu.Lock()
	n.site = s
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.site = nil
		n.mu.Unlock()
	}()
	return s.run(ctx)
}

var _ executor.Backend = (*offered)(nil)

func workDir(cfg *Config) string { return filepath.Join(cfg.Data, "work") }
