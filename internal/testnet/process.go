package testnet

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing/synctest"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/p2p"
)

// ErrCrashed is the cause of the context of a run that was crashed.
var ErrCrashed = errors.New("testnet: process crashed")

// Env is what a process finds when it starts.
type Env struct {
	// Host is open and running; it ends after the process's function has returned.
	Host *p2p.Host
	// Dir is the process's directory. It holds what the run before had there when it ended or crashed.
	Dir string
	// Run counts the starts of this process, from 0.
	Run int
	// Log is the network's log with the process's number.
	Log *slog.Logger
}

// Process is a node of the network that can crash: a function over a host and a directory. Its methods are
// for the test's goroutine.
type Process struct {
	net    *Net
	index  int
	key    crypto.PrivKey
	addr   netip.AddrPort
	main   func(context.Context, Env) error
	change []func(*p2p.Config)

	dir     string // of the next run
	runs    int
	current *run
	old     []*run
}

// run is one life of a process.
type run struct {
	host    *p2p.Host
	dir     string
	sockets *sockets
	cancel  context.CancelCauseFunc
	done    chan struct{}
	err     error // valid after done
}

// Process adds a node; change adapts its host's configuration. main runs from Start until its context is
// done; an error that it returns before that fails the test.
func (n *Net) Process(main func(ctx context.Context, env Env) error, change ...func(*p2p.Config)) *Process {
	n.tb.Helper()
	i := len(n.processes)
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte("testnet"), n.opts.Seed), uint64(i)))
	std := ed25519.NewKeyFromSeed(seed[:])
	key, _, err := crypto.KeyPairFromStdKey(&std)
	if err != nil {
		n.tb.Fatal(err)
	}
	p := &Process{net: n, index: i, key: key, addr: n.opts.Address(i), main: main, change: change}
	p.dir = filepath.Join(n.tb.TempDir(), "0")
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		n.tb.Fatal(err)
	}
	n.faults.change(func() { n.faults.nodes[p.addr] = i })
	n.processes = append(n.processes, p)
	return p
}

// Index returns the node's number, as Cut, Partition and Slow take it.
func (p *Process) Index() int { return p.index }

// ID returns the process's peer ID, the same in every run.
func (p *Process) ID() peer.ID {
	id, err := peer.IDFromPrivateKey(p.key)
	if err != nil {
		p.net.tb.Fatal(err)
	}
	return id
}

// AddrInfo returns how to reach the process, the same in every run.
func (p *Process) AddrInfo() peer.AddrInfo {
	return peer.AddrInfo{ID: p.ID(), Addrs: []multiaddr.Multiaddr{p.listen()}}
}

func (p *Process) listen() multiaddr.Multiaddr {
	family := "ip4"
	if p.addr.Addr().Is6() {
		family = "ip6"
	}
	return multiaddr.StringCast(fmt.Sprintf("/%s/%s/udp/%d/quic-v1", family, p.addr.Addr(), p.addr.Port()))
}

// Host returns the host of the present run, nil when the process does not run.
func (p *Process) Host() *p2p.Host {
	if p.current == nil {
		return nil
	}
	return p.current.host
}

// Dir returns the directory of the present run, else the one that the next run will find.
func (p *Process) Dir() string {
	if p.current != nil {
		return p.current.dir
	}
	return p.dir
}

// Start runs the process; its host is open when Start returns.
func (p *Process) Start() {
	tb := p.net.tb
	tb.Helper()
	if p.current != nil {
		tb.Fatalf("process %d runs already", p.index)
	}
	cfg := p2p.LoopbackConfig()
	cfg.Listen = []multiaddr.Multiaddr{p.listen()}
	for _, f := range p.change {
		f(&cfg)
	}
	r := &run{dir: p.dir, sockets: &sockets{}, done: make(chan struct{})}
	cfg.Transport = p.net.transport(r.sockets)
	if more := p.net.opts.Libp2p; more != nil {
		simulated := cfg.Transport
		cfg.Transport = func() []libp2p.Option { return append(simulated(), more(p.index)...) }
	}
	log := p.net.opts.Log.With("process", p.index)
	host, err := p2p.New(cfg, p.key, log)
	if err == nil {
		err = host.Open(context.Background())
	}
	if err != nil {
		tb.Fatalf("process %d: %v", p.index, err)
	}
	r.host = host
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	env := Env{Host: host, Dir: r.dir, Run: p.runs, Log: log}
	p.runs++
	p.current = r
	go func() {
		defer close(r.done)
		hostCtx, stopHost := context.WithCancel(context.Background())
		hostDone := make(chan error, 1)
		go func() { hostDone <- host.Run(hostCtx) }()
		err := p.main(ctx, env)
		if err != nil && context.Cause(ctx) == nil {
			tb.Errorf("process %d ended: %v", p.index, err)
		}
		stopHost()
		r.err = errors.Join(err, <-hostDone)
	}()
}

// Stop ends the process in order and returns what its function and its host returned.
func (p *Process) Stop() error {
	r := p.current
	if r == nil {
		return nil
	}
	p.current = nil
	r.cancel(context.Canceled)
	<-r.done
	return r.err
}

// Crash ends the process as a power cut would: from this instant nothing that it does is seen. Peers are not
// told. The next run finds the directory as it is now.
func (p *Process) Crash() {
	tb := p.net.tb
	tb.Helper()
	r := p.current
	if r == nil {
		tb.Fatalf("process %d does not run", p.index)
	}
	p.current = nil
	r.sockets.kill()
	synctest.Wait() // everybody is at rest, and stays so while the files are copied: no time passes
	p.dir = filepath.Join(filepath.Dir(r.dir), fmt.Sprint(p.runs))
	if err := copyTree(p.dir, r.dir); err != nil {
		tb.Fatalf("keeping the directory of process %d: %v", p.index, err)
	}
	p.old = append(p.old, r)
	r.cancel(ErrCrashed)
}

// Restart starts the process again after Crash or Stop.
func (p *Process) Restart() {
	p.net.tb.Helper()
	p.Start()
}

// copyTree copies directories, regular files and links with their permissions: key files have to stay
// private.
func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.Mkdir(to, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case d.Type().IsRegular():
			return copyFile(to, path, info.Mode().Perm())
		default:
			return nil // sockets belong to the run that is gone
		}
	})
}

func copyFile(to, from string, mode fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// end stops every run, for the end of the test.
func (p *Process) end() {
	if err := p.Stop(); err != nil {
		p.net.tb.Logf("process %d at the end of the test: %v", p.index, err)
	}
	for _, r := range p.old {
		<-r.done
	}
}
