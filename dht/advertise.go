package dht

import (
	"context"
	"errors"
	"fmt"
	"sync"

	kadrecord "github.com/libp2p/go-libp2p-record"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Published tells where a record went.
type Published struct {
	// Holders are the peers nearest to the key that were asked to keep it.
	Holders int
	// Acks are those that did.
	Acks int
	// NewerSeq is the sequence number of a newer record of ours that was found when holders refused, else 0.
	NewerSeq uint64
}

// Enough says whether the record can be found: at least one holder has it, and half of those asked.
func (p Published) Enough() bool { return p.Acks >= 1 && 2*p.Acks >= p.Holders }

// Advertise stores this peer's signed record with the nearest DHT servers, counting who took it, and from
// then on answers queries for it. It returns ErrNoServers when there is nobody to ask, ErrTooFewHolders when
// less than half took it (then Published.NewerSeq may say why), ErrIdentityInUse when another process
// published under this key while we ran, and what a validator returns for a record that is not good.
func (d *Directory) Advertise(ctx context.Context, raw []byte) (Published, error) {
	rec, err := d.judge.capability(raw, d.host.ID(), d.now())
	if err != nil {
		return Published{}, fmt.Errorf("advertising: %w", err)
	}
	d.mu.Lock()
	d.own = rec
	d.mu.Unlock()
	if len(d.cfg.Shards) > 0 {
		d.index.putRecord(rec, d.now())
	}
	if err := d.up(ctx); err != nil {
		return Published{}, err
	}
	return d.store(ctx, rec)
}

// store sends the record to its holders. kad-dht's own PutValue would return nil when all of them refuse.
func (d *Directory) store(ctx context.Context, rec *record) (Published, error) {
	key := capabilityKey(rec.peer)
	holders, err := d.kad.GetClosestPeers(ctx, key)
	if err != nil {
		return Published{}, fmt.Errorf("looking for holders: %w", d.translate(err))
	}
	if len(holders) == 0 {
		return Published{}, ErrNoServers
	}
	p := Published{Holders: len(holders)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	value := kadrecord.MakePutRecord(key, rec.raw)
	for _, h := range holders {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, d.cfg.PutTimeout)
			defer cancel()
			if err := d.wire.PutValue(ctx, h, value); err != nil {
				d.log.Debug("holder refused the record", "peer", h, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			p.Acks++
		})
	}
	wg.Wait()
	if p.Enough() {
		return p, nil
	}
	return d.refused(ctx, rec, p)
}

// refused finds out why holders did not take a record: is there a newer one of ours?
func (d *Directory) refused(ctx context.Context, rec *record, p Published) (Published, error) {
	newest, err := d.fromDHT(ctx, rec.peer, 0)
	if err == nil && newest.cap.GetSeq() > rec.cap.GetSeq() {
		p.NewerSeq = newest.cap.GetSeq()
		if millis(newest.cap.GetIssued()).After(d.started) {
			return p, ErrIdentityInUse
		}
	}
	return p, fmt.Errorf("%w: %d of %d", ErrTooFewHolders, p.Acks, p.Holders)
}

// AttrAll is the attribute that every node announces.
const AttrAll = "all"

// AttrRelay is what peers announce that hold a place for others behind a NAT.
const AttrRelay = "relay"

// attrIndex is what peers announce that answer for others.
const attrIndex = "index"

// poolAttr is what nodes announce whose line was measured and whose region is told: the tier and the region, in RNP-004's
// order of pools.
func poolAttr(tier, macro string) string { return "pool/" + tier + "/" + macro }

// Attributes returns what a node with this record announces: all, its GPU models and their memory rungs, its pool (tier of
// the line and region), and the roles index and relay.
func Attributes(c *pb.Capability) []string {
	attrs := []string{AttrAll}
	seen := map[string]bool{AttrAll: true}
	add := func(a string) {
		if !seen[a] {
			seen[a] = true
			attrs = append(attrs, a)
		}
	}
	for _, g := range c.GetGpus() {
		if g.GetModel() != "" {
			add("gpu/" + g.GetModel())
		}
		if rung, ok := protocol.VRAMRung(protocol.NominalGB(g.GetVramBytes())); ok {
			add(fmt.Sprintf("vram/%d", rung))
		}
	}
	if n := c.GetNetwork(); n != nil && n.Up != nil && n.Down != nil {
		tier, macro := BandwidthTier(n.GetDown(), n.GetUp()), placeOf(c.GetLocation()).Macro
		if tier != noTier && macro != "" {
			add(poolAttr(tier, macro))
		}
	}
	for _, r := range c.GetRoles() {
		if r == attrIndex || r == AttrRelay {
			add(r)
		}
	}
	return attrs
}

// Beat publishes a signed heartbeat on the shards of the GPU models of our record (at most four), or on that
// of nodes without GPUs. It returns how many connected peers listen: with none nobody learns of it.
func (d *Directory) Beat(ctx context.Context, raw []byte) (listeners int, err error) {
	b, err := d.judge.beat(raw, d.host.ID())
	if err != nil {
		return 0, fmt.Errorf("publishing a heartbeat: %w", err)
	}
	d.mu.Lock()
	d.ownBeat = b
	own := d.own
	d.mu.Unlock()
	if len(d.cfg.Shards) > 0 {
		d.index.putBeat(b, 0, d.now())
	}
	if d.gossip == nil {
		return 0, nil
	}
	for _, topic := range beatTopics(own) {
		n, perr := d.gossip.Publish(ctx, topic, raw)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("publishing a heartbeat: %w", perr))
		}
		listeners += n
	}
	return listeners, err
}

// beatTopics are the topics of a node: one per model, four at most.
func beatTopics(own *record) []string {
	const most = 4
	var topics []string
	seen := map[string]bool{}
	if own != nil {
		for _, g := range own.cap.GetGpus() {
			if t := protocol.TopicAvail(g.GetModel()); !seen[t] && len(topics) < most {
				seen[t] = true
				topics = append(topics, t)
			}
		}
	}
	if len(topics) == 0 {
		return []string{protocol.TopicAvail("none")}
	}
	return topics
}
