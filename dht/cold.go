package dht

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/gridbeam/gridbeam/protocol"
)

// findCold answers without a replica: it samples provider records and asks each node.
func (d *Directory) findCold(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	ctx, cancel, err := d.searching(ctx)
	if err != nil {
		return nil, Explanation{}, err
	}
	defer cancel()
	found := newReplica(d.cfg.MaxNodes)
	asked, failed := d.searchCold(ctx, query, found)
	out, ex := newAsking(query, d.now(), false).run(found)
	ex.Tier, ex.PeersAsked, ex.PeersFailed = "cold", asked, failed
	return out, ex, nil
}

// searching waits until somebody can be asked, and bounds a search that has no replica to answer from.
func (d *Directory) searching(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := d.up(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ColdTimeout)
	if err := d.waitServers(ctx); err != nil {
		cancel()
		return nil, nil, err
	}
	return ctx, cancel, nil
}

const (
	// coldQuiet ends a cold search when all have been asked and for so long nobody has answered: a dial of a node that
	// has died fails after 5 s.
	coldQuiet = 2 * time.Second
	// coldHedge is how long a node has for its answer until its record is looked up beside: it may say goodbye.
	coldHedge = time.Second
)

// searchCold puts what a sample of nodes says of themselves into found; failed is how many did not answer.
func (d *Directory) searchCold(ctx context.Context, query Query, found *replica) (asked, failed int) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ids := d.sample(ctx, query)
	var answers atomic.Int64
	var all atomic.Bool // have been asked
	quiet := time.AfterFunc(time.Hour, stop)
	defer quiet.Stop()
	slots := make(chan struct{}, d.cfg.ColdParallel)
	var wg sync.WaitGroup
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			a, err := d.reach(ctx, id)
			if err != nil {
				d.log.Debug("node not reached", "peer", id, "err", err)
				return
			}
			found.learn(a, d.now())
			if a.beat != nil {
				answers.Add(1)
				if all.Load() {
					quiet.Reset(coldQuiet)
				}
			}
		})
	}
	all.Store(true)
	if answers.Load() > 0 {
		quiet.Reset(coldQuiet)
	}
	wg.Wait()
	return len(ids), len(ids) - int(answers.Load())
}

// sample finds peers to ask: those that announced what the filter is about, else all. We leave ourselves out.
func (d *Directory) sample(ctx context.Context, query Query) []peer.ID {
	var ids []peer.ID
	attrs := hints(query.Filter)
	// Of several keys some have nobody: only when all are empty are they looked up as a whole.
	for _, try := range []struct {
		attrs []string
		read  func(context.Context, cid.Cid, int) []peer.AddrInfo
	}{{attrs, d.readProviders}, {attrs, d.lookUpProviders}, {[]string{AttrAll}, d.readProviders}, {[]string{AttrAll}, d.lookUpProviders}} {
		named := make([][]peer.AddrInfo, len(try.attrs))
		var all sync.WaitGroup
		for i, a := range try.attrs {
			all.Go(func() { named[i] = d.providers(ctx, a, d.cfg.ColdSample, try.read) })
		}
		all.Wait()
		for _, infos := range named {
			for _, info := range infos {
				if info.ID == d.host.ID() {
					continue
				}
				d.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.TempAddrTTL)
				ids = append(ids, info.ID)
			}
		}
		if ids = sortedIDs(ids); len(ids) > 0 {
			break
		}
	}
	return ids[:min(len(ids), d.cfg.ColdSample)]
}

// hints are the provider keys that cover every node that can match, when a clause of the filter names few GPU
// models or a least memory, or two name tiers and regions; nil means that only all covers them.
func hints(f *protocol.Filter) []string {
	if f == nil {
		return nil
	}
	for _, clause := range f.Clauses() {
		c, ok := clause.(*protocol.FilterCompare)
		if !ok {
			continue
		}
		switch {
		case c.Term.Field == protocol.FieldGPUModel && (c.Op == protocol.OpEQ || c.Op == protocol.OpIn):
			if attrs := modelHints(c.Values); len(attrs) > 0 && len(attrs) <= 8 {
				return attrs
			}
		case c.Term.Field == protocol.FieldGPUVRAMGB && (c.Op == protocol.OpGE || c.Op == protocol.OpGT):
			if attrs := rungHints(c.Values[0].Number); len(attrs) > 0 {
				return attrs
			}
		}
	}
	return poolHints(f)
}

// poolHints are the pools of a filter that names tiers and regions.
func poolHints(f *protocol.Filter) []string {
	const most = 8
	var tiers, macros []string
	for _, clause := range f.Clauses() {
		c, ok := clause.(*protocol.FilterCompare)
		if !ok || c.Op != protocol.OpEQ && c.Op != protocol.OpIn {
			continue
		}
		switch c.Term.Field {
		case protocol.FieldNodeTier:
			tiers = nil
			for _, v := range c.Values {
				tiers = append(tiers, v.Text)
			}
		case protocol.FieldNodeRegion:
			macros = nil
			for _, v := range c.Values {
				macros = append(macros, v.Place.Macro)
			}
		}
	}
	slices.Sort(macros)
	macros = slices.Compact(macros)
	if len(tiers)*len(macros) > most {
		return nil
	}
	var attrs []string
	for _, t := range tiers {
		for _, m := range macros {
			attrs = append(attrs, poolAttr(t, m))
		}
	}
	slices.Sort(attrs)
	return slices.Compact(attrs)
}

func modelHints(values []protocol.FilterValue) []string {
	var attrs []string
	for _, v := range values {
		if v.GPU.Any {
			return nil
		}
		for _, slug := range v.GPU.Slugs {
			attrs = append(attrs, "gpu/"+slug)
		}
	}
	slices.Sort(attrs)
	return slices.Compact(attrs)
}

// rungHints are the node's own rung for this memory and those above; below the lowest rung nothing is announced.
func rungHints(gb float64) []string {
	rung, ok := protocol.VRAMRung(int(gb))
	if !ok {
		return nil
	}
	var attrs []string
	for _, r := range protocol.VRAMRungs {
		if r >= rung {
			attrs = append(attrs, "vram/"+strconv.Itoa(r))
		}
	}
	return attrs
}

// reach asks a node for its own record and heartbeat, which proves that it lives. When that takes a while, or fails, the
// DHT is asked for the record, and then the node where that says it is: behind a NAT it may have got a relay since it
// announced itself.
func (d *Directory) reach(ctx context.Context, id peer.ID) (answered, error) {
	known := len(d.host.Peerstore().Addrs(id))
	asking, stop := context.WithCancel(ctx)
	itself := make(chan answered, 1) // closed without one when it does not answer
	go func() {
		defer close(itself)
		if known > 0 || d.host.Network().Connectedness(id) == network.Connected {
			if found, ok := d.askItself(asking, id); ok {
				itself <- found
			}
		}
	}()
	defer func() {
		stop()
		for range itself { // it has ended
		}
	}()
	hedge := time.NewTimer(coldHedge)
	defer hedge.Stop()
	select {
	case found, ok := <-itself:
		if ok {
			return found, nil
		}
	case <-hedge.C:
	}
	if err := ctx.Err(); err != nil {
		return answered{}, fmt.Errorf("asking %s: %w", id, err)
	}
	rec, err := d.fromDHT(ctx, id, 1)
	if err == nil && rec.cap.GetTombstone() {
		return answered{}, fmt.Errorf("record of %s: %w: it has left", id, ErrNotFound)
	}
	if found, ok := <-itself; ok {
		return found, nil
	}
	if err != nil {
		return answered{}, fmt.Errorf("record of %s: %w", id, err)
	}
	d.placed(id, rec.cap)
	if len(d.host.Peerstore().Addrs(id)) > known {
		if found, ok := d.askItself(ctx, id); ok {
			return found, nil
		}
	}
	return answered{record: rec}, nil
}

func (d *Directory) askItself(ctx context.Context, id peer.ID) (answered, bool) {
	found, err := d.ask(ctx, id, []peer.ID{id})
	if err != nil || len(found) != 1 {
		d.log.Debug("node does not answer for itself", "peer", id, "err", err)
		return answered{}, false
	}
	found[0].heard = d.now()
	return found[0], true
}

// learn takes an answer. A heartbeat that another peer passed on was heard when the node says that it sent it,
// as it may have stopped since.
func (x *replica) learn(a answered, now time.Time) {
	x.putRecord(a.record, now)
	if a.beat == nil {
		return
	}
	heard := a.heard
	if heard.IsZero() {
		heard = millis(a.beat.av.GetAt())
	}
	if heard.After(now) {
		heard = now
	}
	x.putBeat(a.beat, 0, heard)
}
