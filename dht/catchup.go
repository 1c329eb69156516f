package dht

import (
	"context"
	"time"
)

// catchUpWaits are the pauses before each try to learn from another replica; with the first nobody is connected yet.
var catchUpWaits = []time.Duration{0, 2 * time.Second, 10 * time.Second, 30 * time.Second}

// catchUp fills a replica that has just been started with what another one holds; without it, it would know every node
// only after as long as nodes are silent between two heartbeats. One answer is enough: what it leaves out comes with
// those. All of it is signed by the nodes, and a heartbeat counts as heard when its node says that it sent it.
func (d *Directory) catchUp(ctx context.Context) {
	for _, wait := range catchUpWaits {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if d.learnFromReplica(ctx) {
			return
		}
	}
}

// learnFromReplica says whether an index peer has given at least one node.
func (d *Directory) learnFromReplica(ctx context.Context) bool {
	find, cancel := context.WithTimeout(ctx, d.cfg.ColdTimeout)
	defer cancel()
	if d.waitServers(find) != nil {
		return false
	}
	opened := newOpener()
	ids, _ := d.indexPeers(find, false)
	for _, id := range ids {
		a := d.askIndex(ctx, id, Query{Literal: true}, opened)
		for _, row := range a.rows {
			d.index.learn(row, d.now())
		}
		if len(a.rows) > 0 {
			d.log.Info("replica filled from another one", "peer", id, "nodes", len(a.rows))
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return false
}
