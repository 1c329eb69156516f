package dht

import (
	"errors"
	"slices"
	"testing"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Nobody can dial the node, which is gone from the network; the servers and the listener still hold what it has said.
func TestASearchByScansSeesNodesThatNobodyCanDial(t *testing.T) {
	peers := neighbourhood(t, 6)
	for _, p := range peers[1:] {
		p.advertise(t, gpu("nvidia-h100-80gb-sxm", 2, 79.65))
	}
	hidden := peers[5]
	eventually(t, "the listener knows it", func() bool { return peers[0].dir.index.beats(hidden.id) })
	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	for _, p := range peers[:5] {
		connect(t, client.host, p.host)
	}
	hidden.stop()
	if err := hidden.host.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all five are found", func() bool {
		got, ex := find(t, client.dir, `gpu.model == "H100" && gpu.free == 2`, func(q *Query) { q.Via = ViaServers })
		return slices.Equal(got, idsOf(peers[1:]...)) && ex.Tier == "scan" && ex.PeersAsked >= 4
	})
	if got, _ := find(t, client.dir, `gpu.count >= 3`, func(q *Query) { q.Via = ViaServers }); len(got) != 0 {
		t.Errorf("the filter is not evaluated: %v", got)
	}
	// A dead server costs its share of what was asked, and is counted.
	peers[1].stop()
	if err := peers[1].host.Close(); err != nil {
		t.Fatal(err)
	}
	if got, ex := find(t, client.dir, "", func(q *Query) { q.Via = ViaServers }); len(got) != 5 || ex.PeersFailed == 0 {
		t.Errorf("with a dead server %d nodes are found, %d of %d did not answer", len(got), ex.PeersFailed, ex.PeersAsked)
	}
}

func TestASearchByScansSaysWhenNobodyHandsOutAnything(t *testing.T) {
	client := startPeer(t, 100, func(c *Config) { c.Mode, c.ColdTimeout = ModeClient, c.PutTimeout/20 })
	if _, _, err := client.dir.Find(t.Context(), Query{Via: ViaServers}); !errors.Is(err, ErrNoServers) {
		t.Errorf("alone it says %v", err)
	}
}

// A server may say that an old heartbeat came just now.
func TestASearchByScansCountsTheTimeThatANodeTells(t *testing.T) {
	p := startPeer(t, 0, nil)
	rec := p.sealed(t)
	x := newReplica(4)
	now := p.dir.now()
	c, err := OpenCapability(rec, p.id, now)
	if err != nil {
		t.Fatal(err)
	}
	x.scanned(&ScanRow{Peer: p.id, Record: c, Raw: rec, Digest: digestOf(rec), ReceivedAt: now}, p.dir)
	av := &pb.Availability{PeerId: []byte(p.id), Seq: 1, At: now.UnixMilli() - 80_000, PeriodS: 30, State: ready, CapSeq: c.GetSeq(), CapDigest: digest(rec)}
	x.scanned(&ScanRow{Peer: p.id, Beat: av, IsBeat: true, Raw: []byte{1}, ReceivedAt: now}, p.dir)
	h, ok := x.get(p.id, now)
	if !ok || h.age.Seconds() < 79 {
		t.Errorf("its heartbeat of 80 s ago is %s old", h.age)
	}
}

func digest(raw []byte) []byte { d := digestOf(raw); return d[:] }
