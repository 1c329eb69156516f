package dht

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/multiformats/go-multiaddr"
)

func TestIndexPeersOfOneNetworkAreNotIndependent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	for _, local := range []bool{false, true} {
		client := startPeer(t, 100, func(c *Config) { c.Mode, c.Loopback = ModeClient, local })
		seen, independent := map[string]bool{}, []bool{}
		for i, listen := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.7.7/tcp/0", "/ip4/127.7.0.1/tcp/0"} {
			h, err := libp2p.New(libp2p.Identity(identityOf(t, 200+i).key), libp2p.ListenAddrStrings(listen), libp2p.DisableRelay())
			if err != nil {
				t.Fatal(err)
			}
			connect(t, client.host, h)
			independent = append(independent, fresh(seen, client.dir.groupsOf(within(t, 5*time.Second), h.ID(), nil)))
			_ = h.Close()
		}
		if want := []bool{true, local, true}; !slices.Equal(independent, want) {
			t.Errorf("local %t: independent are %v, want %v", local, independent, want)
		}
		client.stop()
	}
	if a, b := netOf(multiaddr.StringCast("/ip6/2a01:4f8:1::1/tcp/1"), 2, 4), netOf(multiaddr.StringCast("/ip6/2a01:4f8:2::1/tcp/1"), 2, 4); a == "" || a != b {
		t.Error("two addresses of one IPv6 /32 are of different networks")
	}
}
