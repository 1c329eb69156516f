package dht

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/gridbeam/gridbeam/internal/testnet"
)

// slowLine carries TCP connections to a host at so many bit/s from and to whoever dials it; it returns its address.
func slowLine(t *testing.T, to peer.ID, addrs []multiaddr.Multiaddr, up, down float64) peer.AddrInfo {
	t.Helper()
	target := ""
	for _, a := range addrs {
		if port, err := a.ValueForProtocol(multiaddr.P_TCP); err == nil {
			target = "127.0.0.1:" + port
		}
	}
	in, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	carry := func(dst, src net.Conn, bps float64) {
		const piece = 16 << 10
		limit := rate.NewLimiter(rate.Limit(bps/8), max(piece, int(bps/8/50))) // 20 ms make good a late timer
		buf := make([]byte, piece)
		for {
			n, err := src.Read(buf)
			if err == nil {
				err = limit.WaitN(ctx, n)
			}
			if err == nil {
				_, err = dst.Write(buf[:n])
			}
			if err != nil {
				_, _ = dst.Close(), src.Close()
				return
			}
		}
	}
	all.Go(func() {
		for {
			near, err := in.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(ctx, "tcp", target)
			if err != nil {
				_ = near.Close()
				return
			}
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			all.Go(func() { carry(far, near, up) })
			all.Go(func() { carry(near, far, down) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = in.Close()
		all.Wait()
	})
	port := in.Addr().(*net.TCPAddr).Port
	return peer.AddrInfo{ID: to, Addrs: []multiaddr.Multiaddr{multiaddr.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}}
}

func near(got uint64, want float64) bool { return float64(got) > 0.8*want && float64(got) < 1.2*want }

func TestTheRateOfASlowLineIsFound(t *testing.T) {
	for name, c := range map[string]struct{ up, down float64 }{
		"24 up, 64 down":    {24 * mbit, 64 * mbit},
		"70 up, 40 down":    {70 * mbit, 40 * mbit},
		"as fast both ways": {48 * mbit, 48 * mbit},
	} {
		t.Run(name, func(t *testing.T) {
			const tries = 4 // on a busy machine bytes come late; they never come early
			server, client := measurer(t, 910, 1600*time.Millisecond, func(c *Config) { c.MeasureDaily = tries }), caller(t, 911)
			if err := client.host.Connect(within(t, 10*time.Second), slowLine(t, server.id, server.host.Addrs(), c.up, c.down)); err != nil {
				t.Fatal(err)
			}
			var up, down bool
			for try := 0; try < tries && !(up && down); try++ {
				got, err := client.dir.Bandwidth(within(t, 40*time.Second), server.id)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("measured %.1f up, %.1f down", float64(got.Up)/mbit, float64(got.Down)/mbit)
				if up, down = up || near(got.Up, c.up), down || near(got.Down, c.down); float64(got.Up) > 1.2*c.up || float64(got.Down) > 1.2*c.down {
					t.Errorf("%.0f/%.0f Mbit/s up/down are measured as %.1f/%.1f", c.up/mbit, c.down/mbit, float64(got.Up)/mbit, float64(got.Down)/mbit)
				}
			}
			if !up || !down {
				t.Errorf("%.0f/%.0f Mbit/s up/down are not found within a fifth", c.up/mbit, c.down/mbit)
			}
		})
	}
}

func TestAMeasurementEndsWithItsBytes(t *testing.T) {
	t.Parallel()
	server := measurer(t, 915, 5*time.Second, func(c *Config) { c.MeasureBytes = 16 << 20 })
	client := caller(t, 916)
	if err := client.host.Connect(within(t, 10*time.Second), slowLine(t, server.id, server.host.Addrs(), 300*mbit, 300*mbit)); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	got, err := client.dir.Bandwidth(within(t, 40*time.Second), server.id)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("16 MiB each way took %s", took)
	}
	if got.Up < 10*mbit || got.Down < 10*mbit || got.Up > 450*mbit || got.Down > 450*mbit { // a busy machine is slower, none is faster
		t.Errorf("300 Mbit/s are measured as %.0f up, %.0f down", float64(got.Up)/mbit, float64(got.Down)/mbit)
	}
}

func TestTheRateOfALineIsFoundInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bps = 30 * mbit
		w := testnet.New(t, testnet.Options{Seed: 3, Latency: 10 * time.Millisecond, BitsPerSecond: bps})
		hosts := w.Hosts(2)
		var dirs []*Directory
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		defer func() { cancel(); all.Wait() }()
		for i, h := range hosts {
			cfg := DefaultConfig()
			cfg.Mode, cfg.Index, cfg.MeasureTime = ModeServer, i == 0, 4*time.Second
			d, err := New(cfg, h.Host(), nil, time.Now, newRand(uint64(i)), quiet)
			if err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, d)
			all.Go(func() {
				if err := d.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		w.ConnectAll(hosts)
		begun := time.Now()
		got, err := dirs[1].Bandwidth(ctx, hosts[0].ID())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("measured %.1f up, %.1f down in %s", float64(got.Up)/mbit, float64(got.Down)/mbit, time.Since(begun))
		if !near(got.Up, bps) || !near(got.Down, bps) {
			t.Errorf("30 Mbit/s over 20 ms are measured as %.1f up, %.1f down", float64(got.Up)/mbit, float64(got.Down)/mbit)
		}
		if took := time.Since(begun); took < 8*time.Second || took > 12*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
