package testnet

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// faults decides the fate of every packet.
type faults struct {
	mu    sync.Mutex
	rand  *rand.Rand
	nodes map[netip.AddrPort]int // who listens where
	cut   map[int]bool
	side  map[int]int // partition: nodes on different sides do not hear each other; absent = side 0
	slow  map[int]time.Duration
	drop  float64
	dup   float64
	sent  int // packets that were let through
	lost  int
}

func newFaults(seed uint64) *faults {
	f := &faults{rand: rand.New(rand.NewPCG(seed, 0)), nodes: make(map[netip.AddrPort]int)}
	f.heal()
	return f
}

func (f *faults) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut, f.side, f.slow = make(map[int]bool), make(map[int]int), make(map[int]time.Duration)
	f.drop, f.dup = 0, 0
}

func (f *faults) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// copies says how often a packet is to be sent: 0, 1 or 2 times.
func (f *faults) copies(from, to net.Addr) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.joined(from, to), f.drop > 0 && f.rand.Float64() < f.drop:
		f.lost++
		return 0
	case f.dup > 0 && f.rand.Float64() < f.dup:
		f.sent += 2
		return 2
	default:
		f.sent++
		return 1
	}
}

// passes says whether a packet that arrives now may still be read: what was under way when a line was cut
// is lost.
func (f *faults) passes(from, to net.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined(from, to)
}

func (f *faults) joined(from, to net.Addr) bool {
	a, b := f.nodes[addrPort(from)], f.nodes[addrPort(to)]
	return !f.cut[a] && !f.cut[b] && f.side[a] == f.side[b]
}

func (f *faults) delay(from, to net.Addr) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.slow[f.nodes[addrPort(from)]] + f.slow[f.nodes[addrPort(to)]]
}

func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// conn is one process's socket. After a crash it is dead for good, whatever happens to its address.
type conn struct {
	net.PacketConn
	faults *faults
	addr   *net.UDPAddr

	mu   sync.Mutex
	dead bool
}

func (c *conn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

func (c *conn) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// WriteTo implements net.PacketConn. A lost packet looks sent, as on a real line.
func (c *conn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.isDead() {
		return len(b), nil
	}
	for range c.faults.copies(c.addr, to) {
		if _, err := c.PacketConn.WriteTo(b, to); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// ReadFrom implements net.PacketConn.
func (c *conn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(b)
		if err != nil || !c.isDead() && c.faults.passes(from, c.addr) {
			return n, from, err
		}
	}
}

// SetReadBuffer is asked for by QUIC, which complains about sockets without it.
func (c *conn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer is asked for by QUIC as well.
func (c *conn) SetWriteBuffer(int) error { return nil }
