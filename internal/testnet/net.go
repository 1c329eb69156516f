package testnet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/marcopolo/simnet"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"

	"github.com/gridbeam/gridbeam/p2p"
)

// Options shape a network. The zero value is a good LAN.
type Options struct {
	// Seed fixes keys and the draws of Drop and Duplicate.
	Seed uint64
	// Latency is one packet's way from one node to another. Default 5 ms.
	Latency time.Duration
	// BitsPerSecond is the bandwidth of every node, each way. Default 1e9.
	BitsPerSecond int
	// Address gives the address of node i. Default: a public IPv4 address each, port 4001.
	Address func(i int) netip.AddrPort
	// Libp2p gives further options of node i's libp2p host, such as what counts its bytes. Default: none.
	Libp2p func(i int) []libp2p.Option
	// Log receives what hosts and processes log. Default: nothing.
	Log *slog.Logger
}

// Net is a simulated network. Its methods are for the test's goroutine.
type Net struct {
	tb     testing.TB
	opts   Options
	sim    *simnet.Simnet
	faults *faults

	mu        sync.Mutex // guards sim's list of endpoints: hosts open at the same time
	processes []*Process
}

// New makes a network; call it inside the bubble of synctest.Test. It ends with the test.
func New(tb testing.TB, opts Options) *Net {
	tb.Helper()
	if opts.Latency == 0 {
		opts.Latency = 5 * time.Millisecond
	}
	if opts.BitsPerSecond == 0 {
		opts.BitsPerSecond = 1e9
	}
	if opts.Address == nil {
		opts.Address = func(i int) netip.AddrPort {
			a, _ := netip.AddrFromSlice(simnet.IntToPublicIPv4(i).To4())
			return netip.AddrPortFrom(a, 4001)
		}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if raceEnabled {
		// The race detector makes a bubble with gossip crawl when its goroutines really run in parallel.
		before := runtime.GOMAXPROCS(1)
		tb.Cleanup(func() { runtime.GOMAXPROCS(before) })
	}
	tb.TempDir() // the removal of directories comes first here, so that it happens after the network has ended
	n := &Net{tb: tb, opts: opts, faults: newFaults(opts.Seed)}
	n.sim = &simnet.Simnet{
		LatencyFunc: func(p *simnet.Packet) time.Duration { return opts.Latency + n.faults.delay(p.From, p.To) },
		// It reports packets to nobody, which are normal here: processes come and go.
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	n.sim.Start()
	tb.Cleanup(func() {
		var all sync.WaitGroup
		for _, p := range n.processes {
			all.Go(p.end)
		}
		all.Wait()
		n.sim.Close()
	})
	return n
}

// Cut takes nodes off the network, as pulling their cables would: nobody is told.
func (n *Net) Cut(nodes ...int) {
	n.faults.change(func() {
		for _, i := range nodes {
			n.faults.cut[i] = true
		}
	})
}

// Partition splits the network: nodes of different sets do not hear each other. Nodes in no set stay
// together.
func (n *Net) Partition(sets ...[]int) {
	n.faults.change(func() {
		clear(n.faults.side)
		for s, set := range sets {
			for _, i := range set {
				n.faults.side[i] = s + 1
			}
		}
	})
}

// Drop loses each packet with probability p.
func (n *Net) Drop(p float64) { n.faults.change(func() { n.faults.drop = p }) }

// Duplicate sends each packet twice with probability p.
func (n *Net) Duplicate(p float64) { n.faults.change(func() { n.faults.dup = p }) }

// Slow adds d to the way of every packet from and to node i.
func (n *Net) Slow(i int, d time.Duration) { n.faults.change(func() { n.faults.slow[i] = d }) }

// Heal undoes Cut, Partition, Drop, Duplicate and Slow. What was lost stays lost.
func (n *Net) Heal() { n.faults.heal() }

// Packets returns how many packets were let through and how many were lost so far.
func (n *Net) Packets() (sent, lost int) {
	n.faults.change(func() { sent, lost = n.faults.sent, n.faults.lost })
	return sent, lost
}

// Hosts adds k processes that do nothing but keep a host running, and returns their hosts.
func (n *Net) Hosts(k int, change ...func(*p2p.Config)) []*p2p.Host {
	n.tb.Helper()
	hosts := make([]*p2p.Host, k)
	for i := range hosts {
		p := n.Process(func(ctx context.Context, _ Env) error { <-ctx.Done(); return nil }, change...)
		p.Start()
		hosts[i] = p.Host()
	}
	return hosts
}

// Host returns the present host of node i; nodes count from 0 in the order in which they were added.
func (n *Net) Host(i int) *p2p.Host { return n.processes[i].Host() }

// ConnectAll connects every pair of the hosts.
func (n *Net) ConnectAll(hosts []*p2p.Host) {
	n.tb.Helper()
	for i, a := range hosts {
		for _, b := range hosts[i+1:] {
			if err := a.Connect(context.Background(), b.AddrInfo()); err != nil {
				n.tb.Fatal(err)
			}
		}
	}
}

// transport returns the libp2p options that put a host on the simulated network; sockets receives what it
// opens.
func (n *Net) transport(sockets *sockets) func() []libp2p.Option {
	link := simnet.LinkSettings{BitsPerSecond: n.opts.BitsPerSecond}
	source := &fixedSource{}
	listen := func(_ string, addr *net.UDPAddr) (net.PacketConn, error) {
		if addr.IP.IsUnspecified() || addr.Port == 0 {
			return nil, fmt.Errorf("testnet: a host listens on its own address alone, not on %s", addr)
		}
		ip := addr.IP
		source.ip.Store(&ip)
		n.mu.Lock()
		defer n.mu.Unlock()
		c := &conn{PacketConn: n.sim.NewEndpoint(addr, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}), faults: n.faults, addr: addr}
		sockets.add(c)
		return c, nil
	}
	build := func(l fx.Lifecycle, reset quic.StatelessResetKey, token quic.TokenGeneratorKey, opts ...quicreuse.Option) (*quicreuse.ConnManager, error) {
		cm, err := quicreuse.NewConnManager(reset, token, opts...)
		if err != nil {
			return nil, err
		}
		l.Append(fx.StopHook(cm.Close))
		return cm, nil
	}
	return func() []libp2p.Option {
		return []libp2p.Option{
			libp2p.Transport(libp2pquic.NewTransport),
			libp2p.QUICReuse(build,
				quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return source, nil }),
				quicreuse.OverrideListenUDP(listen)),
		}
	}
}

type fixedSource struct{ ip atomic.Pointer[net.IP] }

// PreferredSourceIPForDestination implements quicreuse.SourceIPSelector.
func (s *fixedSource) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) {
	if ip := s.ip.Load(); ip != nil {
		return *ip, nil
	}
	return nil, fmt.Errorf("testnet: host does not listen")
}

// sockets are those of one run of a process.
type sockets struct {
	mu   sync.Mutex
	all  []*conn
	dead bool
}

func (s *sockets) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
	if s.dead {
		c.kill()
	}
}

func (s *sockets) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	for _, c := range slices.Clone(s.all) {
		c.kill()
	}
}
