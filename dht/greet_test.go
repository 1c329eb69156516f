package dht

import (
	"testing"
)

func TestANewReplicaKnowsWhoIsConnectedWithoutWaitingForAHeartbeat(t *testing.T) {
	quiet := startPeer(t, 1, nil)
	quiet.advertiseAlone(t)
	index := startPeer(t, 2, func(c *Config) { c.Shards, c.Index = AllShards(), true })
	connect(t, quiet.host, index.host)
	eventually(t, "the replica has the node with its state", func() bool {
		ids, _ := find(t, index.dir, "cpu.cores >= 1", nil) // implied: READY and fresh
		return len(ids) == 1 && ids[0] == quiet.id
	})
}

// advertiseAlone makes the peer's record and heartbeat known to itself: there is nobody else yet.
func (p *testPeer) advertiseAlone(t *testing.T) {
	t.Helper()
	record := p.sealed(t)
	if _, err := p.dir.Advertise(within(t, quickly), record); err == nil {
		t.Fatal("somebody took the record")
	}
	p.beat(t, record, ready)
}
