package dht

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	kadrecord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// neighbourhood starts n servers, all connected to the first, which listens to all shards.
func neighbourhood(t *testing.T, n int) []*testPeer {
	t.Helper()
	peers := make([]*testPeer, n)
	for i := range peers {
		peers[i] = startPeer(t, i, func(c *Config) {
			if i == 0 {
				c.Shards, c.Index = AllShards(), true
			}
		})
		if i > 0 {
			connect(t, peers[i].host, peers[0].host)
		}
	}
	eventually(t, "every peer has a server", func() bool {
		return !slices.ContainsFunc(peers, func(p *testPeer) bool { return p.dir.Servers() == 0 })
	})
	return peers
}

func find(t *testing.T, d *Directory, where string, mutate func(*Query)) ([]peer.ID, Explanation) {
	t.Helper()
	f, err := protocol.ParseFilter(where)
	if err != nil {
		t.Fatal(err)
	}
	q := Query{Filter: f, Explain: true}
	if mutate != nil {
		mutate(&q)
	}
	found, ex, err := d.Find(within(t, 20*time.Second), q)
	if err != nil {
		t.Fatal(err)
	}
	var ids []peer.ID
	for _, c := range found {
		ids = append(ids, c.Peer)
	}
	return sortedIDs(ids), ex
}

func idsOf(peers ...*testPeer) []peer.ID {
	var ids []peer.ID
	for _, p := range peers {
		ids = append(ids, p.id)
	}
	return sortedIDs(ids)
}

func TestAClientFindsAdvertisedNodesByFilterWithAnyServerStopped(t *testing.T) {
	peers := neighbourhood(t, 6)
	nodes := peers[1:]
	nodes[0].advertise(t, gpu("nvidia-h100-80gb-sxm", 8, 79.65))
	nodes[1].advertise(t, gpu("nvidia-rtx-4090-24gb", 1, 23.99))
	nodes[2].advertise(t)
	nodes[3].advertise(t, gpu("nvidia-a100-40gb-pcie", 2, 39.4), gpu("nvidia-t4-16gb", 4, 15))
	nodes[4].advertise(t)

	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, nodes[2].host)
	connect(t, client.host, nodes[3].host)
	peers[0].stop() // the bridge of the network goes; its records are not all there is
	if err := peers[0].host.Close(); err != nil {
		t.Fatal(err)
	}
	for where, want := range map[string][]peer.ID{
		"cpu.cores >= 1":                            idsOf(nodes...),
		"":                                          idsOf(nodes...),
		`gpu.model == "H100" && gpu.free >= 4`:      idsOf(nodes[0]),
		"gpu.vram_gb >= 40":                         idsOf(nodes[0], nodes[3]),
		"gpu.vram_gb >= 40 && gpu.count == 4":       nil,
		"gpus.count == 0":                           idsOf(nodes[2], nodes[4]),
		`gpu.model in ["RTX4090", "T4"]`:            idsOf(nodes[1], nodes[3]),
		`node.state == "DRAINING"`:                  nil,
		`node.id == "` + nodes[4].id.String() + `"`: idsOf(nodes[4]),
	} {
		eventually(t, where, func() bool {
			got, ex := find(t, client.dir, where, nil)
			return slices.Equal(got, want) && ex.Tier == "cold"
		})
	}
	c, err := client.dir.Get(within(t, 10*time.Second), nodes[0].id)
	if err != nil || c.State != "READY" || c.Capability.GetGpus()[0].GetCount() != 8 {
		t.Errorf("Get: %+v, %v", c, err)
	}
}

func TestHeartbeatsFillAReplicaThatAnswersWithoutAMessage(t *testing.T) {
	peers := neighbourhood(t, 5)
	hub := peers[0].dir
	var records [][]byte
	for i, p := range peers[1:] {
		var gpus []*pb.GpuGroup
		if i%2 == 0 {
			gpus = append(gpus, gpu("nvidia-l4-24gb", uint32(i+1), 22.5))
		}
		records = append(records, p.advertise(t, gpus...))
	}
	// The mesh may not have been ready for the first heartbeat: nodes repeat theirs.
	eventually(t, "all nodes are in the replica", func() bool {
		got, _ := find(t, hub, "", nil)
		if len(got) < 4 {
			for i, p := range peers[1:] {
				p.beat(t, records[i], ready)
			}
		}
		return len(got) == 4
	})
	got, ex := find(t, hub, `gpu.model == "L4" && gpu.free >= 3`, nil)
	if !slices.Equal(got, idsOf(peers[3])) || ex.Tier != "replica" || ex.Population != 4 {
		t.Errorf("found %v, %+v", got, ex)
	}
	peers[1].beat(t, records[0], pb.NodeState_NODE_STATE_LEAVING)
	peers[2].beat(t, records[1], pb.NodeState_NODE_STATE_PAUSED)
	eventually(t, "goodbye and pause are heard", func() bool {
		got, _ := find(t, hub, "", nil)
		return slices.Equal(got, idsOf(peers[3], peers[4]))
	})
	if got, _ := find(t, hub, `node.state == "PAUSED"`, nil); !slices.Equal(got, idsOf(peers[2])) {
		t.Errorf("paused: %v", got)
	}
}

func TestAdvertisingCountsAcknowledgements(t *testing.T) {
	alone := startPeer(t, 1, nil)
	now := time.Now()
	raw := sign(t, alone.key, capabilitySeal(), machine(alone.id, 1, now))
	if _, err := alone.dir.Advertise(within(t, 5*time.Second), raw); !errors.Is(err, ErrNoServers) {
		t.Errorf("alone: %v", err)
	}
	peers := neighbourhood(t, 3)
	me := startPeer(t, 50, nil)
	connect(t, me.host, peers[0].host)
	connect(t, me.host, peers[1].host)
	connect(t, me.host, peers[2].host)
	eventually(t, "three servers are known", func() bool { return me.dir.Servers() == 3 })
	raw = sign(t, me.key, capabilitySeal(), machine(me.id, 7, now))
	got, err := me.dir.Advertise(within(t, 5*time.Second), raw)
	if err != nil || got.Acks != 3 || got.Holders != 3 {
		t.Errorf("advertised: %+v, %v", got, err)
	}
	// Holders that have a newer record refuse an older one, and we learn why.
	older := machine(me.id, 6, now.Add(-time.Second))
	got, err = me.dir.Advertise(within(t, 5*time.Second), sign(t, me.key, capabilitySeal(), older))
	if !errors.Is(err, ErrTooFewHolders) || errors.Is(err, ErrIdentityInUse) || got.Acks != 0 || got.NewerSeq != 7 {
		t.Errorf("a record older than that of an earlier run: %+v, %v", got, err)
	}
	// One that was issued while we run is not of an earlier run of ours: somebody else has our key.
	later := machine(me.id, 9, time.Now().Add(time.Second))
	value := kadrecord.MakePutRecord(capabilityKey(me.id), sign(t, me.key, capabilitySeal(), later))
	for _, p := range peers {
		if err := me.dir.wire.PutValue(within(t, 5*time.Second), p.id, value); err != nil {
			t.Fatal(err)
		}
	}
	got, err = me.dir.Advertise(within(t, 5*time.Second), sign(t, me.key, capabilitySeal(), machine(me.id, 8, now)))
	if !errors.Is(err, ErrIdentityInUse) || got.Acks != 0 || got.NewerSeq != 9 {
		t.Errorf("another process with our key: %+v, %v", got, err)
	}
}

func TestAHostileHostCannotGetForgedRecordsListed(t *testing.T) {
	peers := neighbourhood(t, 4)
	hub, honest := peers[0], peers[1]
	good := honest.advertise(t)
	eventually(t, "the honest node is listed", func() bool {
		got, _ := find(t, hub.dir, "", nil)
		if len(got) == 0 {
			honest.beat(t, good, ready)
		}
		return slices.Equal(got, idsOf(honest))
	})

	mallory := identityOf(t, 666)
	evil, gossip := newHost(t, mallory)
	for _, p := range peers {
		connect(t, evil, p.host)
	}
	now := time.Now()
	ghost := identityOf(t, 667) // a peer that the hostile host would like to exist
	forged := machine(ghost.id, 1, now)
	expired := machine(mallory.id, 2, now.Add(-3*time.Hour))
	long := machine(mallory.id, 3, now)
	long.Expires = now.Add(5 * time.Hour).UnixMilli()
	oversized := machine(mallory.id, 4, now)
	for range 20 {
		oversized.Host.CpuFeatures = append(oversized.Host.CpuFeatures, string(make([]byte, 300)))
	}
	attacks := map[string]struct {
		key   string
		value []byte
	}{
		"forged for a ghost":       {capabilityKey(ghost.id), sign(t, mallory.key, capabilitySeal(), forged)},
		"forged for an honest one": {capabilityKey(honest.id), sign(t, mallory.key, capabilitySeal(), machine(honest.id, 1<<62, now))},
		"expired":                  {capabilityKey(mallory.id), sign(t, mallory.key, capabilitySeal(), expired)},
		"too long a life":          {capabilityKey(mallory.id), sign(t, mallory.key, capabilitySeal(), long)},
		"oversized":                {capabilityKey(mallory.id), sign(t, mallory.key, capabilitySeal(), oversized)},
		"another key form":         {"/gb-cap/" + peer.ToCid(mallory.id).String(), sign(t, mallory.key, capabilitySeal(), machine(mallory.id, 5, now))},
		"another namespace":        {"/pk/" + string(mallory.id), []byte("x")},
		"signed as a heartbeat":    {capabilityKey(mallory.id), sign(t, mallory.key, availabilitySeal(), machine(mallory.id, 6, now))},
	}
	wire := newMessenger(evil)
	for name, a := range attacks {
		for _, p := range peers {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			if err := wire.PutValue(ctx, p.id, kadrecord.MakePutRecord(a.key, a.value)); err == nil {
				t.Errorf("%s: %s took it", name, p.id)
			}
			cancel()
		}
	}
	// Gossip: a heartbeat that speaks for the honest node, one signed by the wrong key, one too old.
	for name, raw := range map[string][]byte{
		"for another": sign(t, mallory.key, availabilitySeal(), heartbeat(honest.id, 1<<62, now, good, pb.NodeState_NODE_STATE_LEAVING)),
		"for a ghost": sign(t, mallory.key, availabilitySeal(), heartbeat(ghost.id, 1, now, good, ready)),
		"replayed":    good,
	} {
		if v := hub.dir.hear(mallory.id, raw); v != Reject {
			t.Errorf("%s: heartbeat judged %d, want reject", name, v)
		}
		if _, err := gossip.Publish(within(t, 5*time.Second), protocol.TopicAvail("none"), raw); err != nil {
			t.Fatal(err)
		}
	}
	// And provider records, which nobody can verify: the ghost is named, but has no record to show.
	client := startPeer(t, 101, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, peers[2].host)
	for name, d := range map[string]*Directory{"hub": hub.dir, "client": client.dir} {
		eventually(t, name+" lists the honest node alone", func() bool {
			got, _ := find(t, d, "", nil)
			if slices.Contains(got, mallory.id) || slices.Contains(got, ghost.id) {
				t.Fatalf("%s lists a forged node: %v", name, got)
			}
			return slices.Equal(got, idsOf(honest))
		})
	}
	if c, err := client.dir.Get(within(t, 10*time.Second), honest.id); err != nil || c.Capability.GetSeq() == 1<<62 {
		t.Errorf("the honest node's record: %v, %v", c.Capability.GetSeq(), err)
	}
}
