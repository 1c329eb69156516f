package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
)

func TestNodesFlagsBecomeOneFilter(t *testing.T) {
	for _, c := range []struct {
		flags nodesFlags
		want  string // of the filter, or of the error
	}{
		{nodesFlags{}, ""},
		{nodesFlags{where: "cpu.cores >= 8"}, "cpu.cores >= 8"},
		{nodesFlags{gpu: []string{"H100", "A100-80"}}, `gpu.model in ["H100", "A100-80"]`},
		{nodesFlags{where: "gpu.free >= 1 || gpus.count == 0", region: []string{"eu"}}, `(gpu.free >= 1 || gpus.count == 0) && node.region in ["eu"]`},
		{nodesFlags{where: "cpu.cores >="}, "--where: "},
		{nodesFlags{where: "cpu.cores >= 8) || (true"}, "--where: "},
		{nodesFlags{gpu: []string{"Voodoo2"}}, "--gpu Voodoo2: "},
		{nodesFlags{region: []string{"mars"}}, "--region mars: no region"},
	} {
		f, err := c.flags.filter()
		switch {
		case err != nil && !strings.HasPrefix(err.Error(), c.want), err != nil && c.want == "":
			t.Errorf("%+v gives %v, want %q", c.flags, err, c.want)
		case err == nil && f.String() != c.want:
			t.Errorf("%+v gives %q, want %q", c.flags, f, c.want)
		}
	}
}

func TestNodesAreSortedWithWhatIsUnknownLast(t *testing.T) {
	rows := []nodeRow{
		{PeerID: "a", GPUs: []gpuRow{{Count: 8, Free: new(uint32(1))}}},
		{PeerID: "b", Price: new(uint64(5)), RTT: new(30.0), GPUs: []gpuRow{{Count: 8, Free: new(uint32(2))}, {Count: 1, Free: new(uint32(1))}}},
		{PeerID: "c", Price: new(uint64(0)), RTT: new(2.5), GPUs: []gpuRow{{Count: 8}}},
	}
	for order, want := range map[string]string{"id": "abc", "rtt": "cba", "free": "bac", "price": "cba"} {
		got := slices.Clone(rows)
		slices.SortStableFunc(got, func(a, b nodeRow) int { return orders[order](&a, &b) })
		if s := got[0].PeerID + got[1].PeerID + got[2].PeerID; s != want {
			t.Errorf("by %s the order is %s, want %s", order, s, want)
		}
	}
}

func TestWatchingTellsWhoComesGoesAndChanges(t *testing.T) {
	w, now := watched{}, time.Now()
	tell := func(rows ...nodeRow) (out string) {
		for _, c := range w.changes(rows, now) {
			out += c.Node.PeerID + " " + c.Event + ","
		}
		return out
	}
	a, b, c := nodeRow{PeerID: "a", State: "ready"}, nodeRow{PeerID: "b", State: "ready"}, nodeRow{PeerID: "c"}
	if got := tell(b, a); got != "a appeared,b appeared," {
		t.Errorf("at first: %q", got)
	}
	a.AgeS, a.Seq, a.Disk, a.Running, a.RTT = 12, 9, 1<<30, 3, new(4.5)
	if got := tell(a, b); got != "" {
		t.Errorf("a heartbeat is no change: %q", got)
	}
	a.State = "busy"
	a.GPUs = []gpuRow{{Model: "nvidia-h100-80gb-sxm", Count: 8, Free: new(uint32(2))}}
	if got := tell(c, a); got != "a changed,b gone,c appeared," {
		t.Errorf("then: %q", got)
	}
	if got := tell(a, b, c); got != "b appeared," {
		t.Errorf("who comes back: %q", got)
	}
}

func TestIndexPeersMayBeOfOneNetworkOnlyWhereAllSeedsAreLocal(t *testing.T) {
	for text, want := range map[string]bool{
		"/ip4/127.0.0.1/tcp/1":                           true,
		"/ip4/127.0.0.1/tcp/1 /ip4/192.168.7.7/tcp/1":    true,
		"/ip6/::1/tcp/1 /ip6/fd00::1/udp/1/quic-v1":      true,
		"/ip4/203.1.113.7/tcp/1":                         false,
		"/ip4/127.0.0.1/tcp/1 /ip4/203.1.113.7/tcp/1":    false,
		"/ip6/2a01:4f8::1/tcp/1 /ip4/192.168.7.7/tcp/1":  false,
		"/dns4/bridge.gridbeam.example/tcp/4001":         false,
		"/dns4/bridge.gridbeam.example/udp/4001/quic-v1": false,
	} {
		var seeds []multiaddr.Multiaddr
		for s := range strings.FieldsSeq(text) {
			seeds = append(seeds, multiaddr.StringCast(s))
		}
		if cfg := clientConfig(seeds); cfg.Loopback != want {
			t.Errorf("for seeds %s Loopback is %t", text, cfg.Loopback)
		}
	}
	if clientConfig(nil).Loopback {
		t.Error("without seeds private addresses are taken")
	}
}
