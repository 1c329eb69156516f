package dht

import (
	"net"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
)

// Who has left is named by its keys for two hours, and a dial of it may hang.
func TestWhoHasLeftDoesNotKeepAColdSearchWaiting(t *testing.T) {
	peers := neighbourhood(t, 6)
	for _, p := range peers {
		p.advertise(t)
	}
	for i, goodbye := range []bool{true, false} {
		gone := startPeer(t, 60+i, nil)
		connect(t, gone.host, peers[i].host)
		eventually(t, "it has a server", func() bool { return gone.dir.Servers() > 0 })
		gone.advertise(t)
		if goodbye {
			if _, err := gone.dir.Advertise(within(t, 10*time.Second), tombstone(t, gone)); err != nil {
				t.Fatal(err)
			}
		}
		addr, err := manet.ToNetAddr(gone.host.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		gone.stop()
		if err := gone.host.Close(); err != nil {
			t.Fatal(err)
		}
		silent, err := net.Listen("tcp", addr.String()) // takes connections and says nothing
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = silent.Close() })
	}
	client := crawler(t, 100)
	connect(t, client.host, peers[5].host)
	eventually(t, "it has a server", func() bool { return client.dir.Servers() > 0 })
	begun := time.Now()
	got, ex := find(t, client.dir, "", func(q *Query) { q.Via = ViaDHT })
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("the search took %s", took)
	}
	if len(got) != len(peers) || ex.PeersAsked != len(peers)+2 || ex.PeersFailed != 2 {
		t.Errorf("%d nodes are found, %d of %d did not answer", len(got), ex.PeersFailed, ex.PeersAsked)
	}
}
