package dht

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// How far a search by scans goes. A share f of the servers yields 1-(1-f)^20 of the records, as each lies with 20
// (discovery.md 5): 64 of 640 servers give 88 %, and in networks up to about 300 servers all but one in a hundred.
const (
	scanServers  = 64
	scanParallel = 8
	scanLookups  = 6 // random places of the key space at which servers are looked for
)

// findScan reads what servers of the directory hold, whether or not its nodes can be reached, and evaluates the
// filter here: no index peer and no node is asked.
func (d *Directory) findScan(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	ctx, cancel, err := d.searching(ctx)
	if err != nil {
		return nil, Explanation{}, err
	}
	defer cancel()
	servers := d.someServers(ctx)
	found := newReplica(d.cfg.MaxNodes)
	var failures atomic.Int64
	slots := make(chan struct{}, scanParallel)
	var wg sync.WaitGroup
	for _, id := range servers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := d.Scan(ctx, id, ScanQuery{Beats: true}, func(r ScanRow) { found.scanned(&r, d) }); err != nil {
				failures.Add(1)
				d.log.Debug("server not scanned", "peer", id, "err", err)
			}
		})
	}
	wg.Wait()
	out, ex := newAsking(query, d.now(), false).run(found)
	ex.Tier, ex.PeersAsked, ex.PeersFailed = "scan", len(servers), int(failures.Load())
	if ex.PeersFailed == len(servers) {
		return nil, ex, fmt.Errorf("%w: none of %d servers hands out what it holds", ErrNoServers, len(servers))
	}
	return out, ex, nil
}

// someServers are servers from all over the key space, at most scanServers of them, in an order that nobody else knows.
func (d *Directory) someServers(ctx context.Context) []peer.ID {
	seen := map[peer.ID]bool{d.host.ID(): true}
	var ids []peer.ID
	add := func(found []peer.ID) {
		for _, id := range found {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	add(d.kad.RoutingTable().ListPeers())
	for range scanLookups {
		if len(ids) >= scanServers || ctx.Err() != nil {
			break
		}
		found, err := d.kad.GetClosestPeers(ctx, capabilityKey(d.randomPeer()))
		if err != nil {
			d.log.Debug("servers not found", "err", err)
		}
		add(found)
	}
	slices.SortFunc(ids, func(a, b peer.ID) int { return cmp.Compare(a, b) })
	d.mu.Lock()
	d.rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	d.mu.Unlock()
	return ids[:min(len(ids), scanServers)]
}

// scanned takes a row, which Scan has verified.
func (x *replica) scanned(r *ScanRow, d *Directory) {
	now := d.now()
	switch {
	case r.Record != nil:
		x.putRecord(&record{raw: r.Raw, peer: r.Peer, cap: r.Record, digest: r.Digest}, now)
	case r.Beat != nil:
		// What it says of its time counts, and not when it came to the server: that is the server's word.
		heard := millis(r.Beat.GetAt())
		if heard.After(now) {
			heard = now
		}
		x.putBeat(&beat{raw: r.Raw, peer: r.Peer, av: r.Beat}, 0, heard)
	}
}
