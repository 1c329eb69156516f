package api

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// conns counts the open connections of all listeners of one server. Those from this machine have an account of their
// own and no bound by address: a proxy that ends TLS stands there for everybody, and strangers do not use up the
// places of the bridge's own user.
type conns struct {
	most, perAddress int
	log              *slog.Logger
	now              func() time.Time

	mu      sync.Mutex
	local   int
	remote  int
	by      map[netip.Prefix]int // remote ones
	refused uint64               // since told
	told    time.Time
}

// tellEvery is how often refused connections are told in the log.
const tellEvery = time.Minute

func newConns(cfg Config, log *slog.Logger, now func() time.Time) *conns {
	return &conns{most: cfg.Conns, perAddress: cfg.ConnsPerAddress, log: log, now: now, by: make(map[netip.Prefix]int)}
}

// take says whether one more from an address is let in, and how to give its place back.
func (c *conns) take(remote net.Addr) (release func(), ok bool) {
	from, near := origin(remote.String()), true // what has no IP address is a socket of this machine
	if at, err := netip.ParseAddrPort(remote.String()); err == nil {
		near = at.Addr().Unmap().IsLoopback()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case near && c.local < c.most:
		c.local++
	case !near && c.remote < c.most && c.by[from] < c.perAddress:
		c.remote++
		c.by[from]++
	default:
		c.refuse(from)
		return nil, false
	}
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if near {
			c.local--
			return
		}
		c.remote--
		if c.by[from]--; c.by[from] == 0 {
			delete(c.by, from)
		}
	}), true
}

// refuse tells of refused connections, now and then. It is called with mu held.
func (c *conns) refuse(from netip.Prefix) {
	c.refused++
	now := c.now()
	if !c.told.IsZero() && now.Sub(c.told) < tellEvery {
		return
	}
	c.log.Warn("connections were refused: too many are open", "last", from, "refused", c.refused, "from_here", c.local, "from_elsewhere", c.remote, "from_last", c.by[from])
	c.told, c.refused = now, 0
}

// bounded is a listener that closes at once what comes beyond the bounds.
type bounded struct {
	net.Listener
	conns *conns
}

// Accept implements net.Listener.
func (b bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		release, ok := b.conns.take(conn.RemoteAddr())
		if ok {
			return &counted{conn, release}, nil
		}
		_ = conn.Close() // nothing was said yet
	}
}

// counted is a connection that gives its place back.
type counted struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
