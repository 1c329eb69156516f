package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multihash"
)

// Provider keys split into levels, so that no holder keeps or sends a long list: at level n a node announces
// itself under the first n bits of SHA-256(peer ID) (discovery.md 4, rule 2; docs/adr for who stays).
const (
	maxLevel      = 12
	splitEntries  = 512 // a key with so many is left for the next level
	stayEntries   = 256 // by all but about so many, so that readers see that it goes on below
	mergeEntries  = 64  // a key with fewer is left for the level above
	parentEntries = 256 // while that has fewer than these
	descendAt     = 128 // a reader that gets so many goes on below
)

// calmRounds is for how many rounds a node that has stayed at a long key does not think of leaving it again: what
// those that left had announced is still counted so long.
const calmRounds = 3

// nextLevel says at which level a node announces itself, which did so at level: here are the entries of its key,
// above those of the key one level up; below 0 is unknown. roll is in [0,1).
func nextLevel(level, here, above int, roll float64) int {
	switch {
	case here >= splitEntries && level < maxLevel && roll*float64(here) >= stayEntries:
		return level + 1
	case level == 0 || here < 0 || above < 0:
		return level
	case here < mergeEntries && above < parentEntries:
		return level - 1
	case above < descendAt && roll*2*float64(here) < float64(stayEntries-above):
		return level - 1 // readers would not come as far as here
	}
	return level
}

// perch is where a node announces itself under an attribute.
type perch struct{ level, calm int }

// settle moves a node down its levels until it stays where it is, or one level up. count tells the entries of its
// key at a level.
func settle(p perch, count func(level int) int, roll func() float64) perch {
	above := -1
	if p.level > 0 {
		above = count(p.level - 1)
	}
	for begun := p.level; ; {
		here := count(p.level)
		next := nextLevel(p.level, here, above, roll())
		switch {
		case next > p.level && p.calm > 0:
			return perch{p.level, p.calm - 1}
		case next < p.level && p.level == begun:
			return perch{next, calmRounds}
		case next <= p.level && here >= splitEntries:
			return perch{p.level, max(p.calm-1, calmRounds)}
		case next <= p.level:
			return perch{p.level, max(p.calm-1, 0)}
		}
		p, above = perch{level: next}, here
	}
}

// ProviderKey returns the key under which peers with an attribute announce themselves (discovery.md 4, T2):
// CIDv1 over SHA-256 of /gridbeam/1/<attr>/<level>/<bits>, where bits are the first level bits of
// SHA-256(peer ID) in 0s and 1s. Level 0 has one key for all peers. It returns ErrBounds for a level outside 0..12.
func ProviderKey(attr string, level int, id peer.ID) (cid.Cid, error) {
	if level < 0 || level > maxLevel {
		return cid.Undef, fmt.Errorf("%w: level %d, want 0..%d", ErrBounds, level, maxLevel)
	}
	return providerKey(attr, bitsOf(id)[:level])
}

// bitsOf returns the first bits of a peer's hash.
func bitsOf(id peer.ID) string {
	sum := digestOf([]byte(id))
	var b strings.Builder
	for i := range maxLevel {
		b.WriteByte('0' + sum[i/8]>>(7-i%8)&1)
	}
	return b.String()
}

func providerKey(attr, bits string) (cid.Cid, error) {
	mh, err := multihash.Sum(fmt.Appendf(nil, "/gridbeam/1/%s/%d/%s", attr, len(bits), bits), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, fmt.Errorf("hashing the key: %w", err)
	}
	return cid.NewCidV1(cid.Raw, mh), nil
}

// Provide announces this peer under attributes, each at the level that its key's length asks for. It returns
// ErrNoServers and the first failure.
func (d *Directory) Provide(ctx context.Context, attrs []string) error {
	if err := d.up(ctx); err != nil {
		return err
	}
	var failed error
	for _, a := range attrs {
		ctx, cancel := context.WithTimeout(ctx, 3*d.cfg.PutTimeout)
		err := d.provide(ctx, a)
		cancel()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("providing %s: %w", a, d.translate(err)))
		}
	}
	return failed
}

func (d *Directory) provide(ctx context.Context, attr string) error {
	bits := bitsOf(d.host.ID())
	d.mu.Lock()
	at := d.levels[attr]
	d.mu.Unlock()
	var holders []peer.ID
	counted := -1 // the level of the key that they hold
	at = settle(at, func(l int) (n int) {
		n, holders = d.entries(ctx, attr, bits[:l])
		counted = l
		return n
	}, d.chance(attr).Float64)
	d.mu.Lock()
	d.levels[attr] = at
	d.mu.Unlock()
	key, err := providerKey(attr, bits[:at.level])
	if err != nil {
		return err
	}
	if counted != at.level || len(holders) == 0 {
		return d.kad.Provide(ctx, key, true)
	}
	return d.announce(ctx, key, holders)
}

// announce tells holders that were looked up a moment ago that we are a provider: kad-dht would look them up again.
func (d *Directory) announce(ctx context.Context, key cid.Cid, holders []peer.ID) error {
	if err := d.kad.Provide(ctx, key, false); err != nil {
		return err
	}
	self := peer.AddrInfo{ID: d.host.ID(), Addrs: d.host.Addrs()}
	errs := make([]error, len(holders))
	var all sync.WaitGroup
	for i, h := range holders {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, d.cfg.PutTimeout)
			defer cancel()
			errs[i] = d.wire.PutProviderAddrs(ctx, h, key.Hash(), self)
		})
	}
	all.Wait()
	if slices.Contains(errs, nil) {
		return nil
	}
	return errs[0]
}

// entries looks a key's holders up and asks one of them, at random, how many have announced themselves under it; -1 when
// it cannot be known.
func (d *Directory) entries(ctx context.Context, attr, bits string) (n int, holders []peer.ID) {
	key, err := providerKey(attr, bits)
	if err != nil {
		return -1, nil
	}
	holders, err = d.kad.GetClosestPeers(ctx, string(key.Hash()))
	if err != nil || len(holders) == 0 {
		return -1, nil
	}
	infos, _, err := d.wire.GetProviders(ctx, holders[d.chance(attr+bits).IntN(len(holders))], key.Hash())
	switch {
	case errors.Is(err, msgio.ErrMsgTooLarge):
		return 2 * splitEntries, holders // more than is read
	case err != nil:
		d.log.Debug("holder does not tell its providers", "attr", attr, "err", err)
		return -1, holders
	}
	return len(infos), holders
}

// Providers returns up to count peers that announced an attribute, drawn at random. It begins at the key of all
// and goes on below, each time to one of the two halves, while a key has many. A count always travels: without
// one about twenty holders would each send their whole list.
func (d *Directory) Providers(ctx context.Context, attr string, count int) ([]peer.AddrInfo, error) {
	if err := d.up(ctx); err != nil {
		return nil, err
	}
	if err := d.waitServers(ctx); err != nil {
		return nil, err
	}
	out := d.providers(ctx, attr, count, d.readProviders)
	if len(out) == 0 {
		out = d.providers(ctx, attr, count, d.lookUpProviders)
	}
	return out, nil
}

// providers reads the keys of an attribute.
func (d *Directory) providers(ctx context.Context, attr string, count int, read func(context.Context, cid.Cid, int) []peer.AddrInfo) []peer.AddrInfo {
	return descend(max(count, 1), d.chance(attr).Float64, func(bits string, most int) []peer.AddrInfo {
		key, err := providerKey(attr, bits)
		if err != nil {
			return nil
		}
		return d.publicOf(read(ctx, key, most))
	})
}

// providerPatience is how long a lookup may go on without naming one more provider after it has named some: then it
// waits for peers that have died, each for as long as a dial takes to fail, and a search would have no time left.
const providerPatience = time.Second

// lookUpProviders reads one key by a whole lookup.
func (d *Directory) lookUpProviders(ctx context.Context, key cid.Cid, most int) (found []peer.AddrInfo) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	patience := time.NewTimer(d.cfg.ColdTimeout / 2)
	defer patience.Stop()
	named := d.kad.FindProvidersAsync(ctx, key, most)
	for {
		select {
		case info, more := <-named:
			if !more {
				return found
			}
			found = append(found, info)
			patience.Reset(providerPatience)
		case <-patience.C:
			return found
		}
	}
}

// descend reads keys from the top until one is short, and draws count of what they gave.
func descend(count int, roll func() float64, read func(bits string, most int) []peer.AddrInfo) []peer.AddrInfo {
	var out []peer.AddrInfo
	seen := map[peer.ID]bool{}
	for bits := ""; ; {
		found := read(bits, max(count, descendAt))
		for _, info := range found {
			if !seen[info.ID] {
				seen[info.ID] = true
				out = append(out, info)
			}
		}
		if len(found) < descendAt || len(bits) == maxLevel {
			break
		}
		half := "0"
		if roll() >= 0.5 {
			half = "1"
		}
		bits += half
	}
	for i := range out { // a random sample comes first
		j := i + int(roll()*float64(len(out)-i))
		out[i], out[j] = out[j], out[i]
	}
	return out[:min(count, len(out))]
}
