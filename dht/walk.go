package dht

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	kad "github.com/libp2p/go-libp2p-kad-dht"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
)

// A walk asks one holder after the other, where kad-dht's lookups ask ten at a time and at last all K: those find
// whom a record has to be given to, a walk reads what some of them hold. Holders can withhold, so a single one is not
// believed (docs/adr/0015).
const (
	// walkEnds is how many of the nearest servers have to answer before nothing is nothing: a fifth of them
	// withholding, all of four do in 1 walk of 600. Once one has given something, all K are asked until enough agree.
	walkEnds = 4
	// walkLists is how many holders have to give a list before two that agree are enough: those that joined after most
	// had announced themselves lack the same.
	walkLists = 3
	// walkPatience is how long an answer may take until somebody else is asked beside it: servers that have died take
	// as long as a dial.
	walkPatience = 400 * time.Millisecond
	walkLate     = 3 * walkPatience // after which the end of a walk does not wait for an answer
	walkBeside   = 8                // requests under way at once
	walkMost     = 40               // requests of a walk
)

// walkStep is what came of one request.
type walkStep struct {
	from   peer.ID
	closer []*peer.AddrInfo
	gave   bool
	done   bool
	err    error
}

// walkAsk asks one server and judges its answer; gave says that there was one, done that enough is known. It is called
// concurrently.
type walkAsk func(context.Context, peer.ID) (closer []*peer.AddrInfo, gave, done bool, err error)

// walk asks the servers nearest to a key until ask has had enough, or the nearest have answered. It returns how many
// answered.
func (d *Directory) walk(ctx context.Context, key string, ask walkAsk) (answered int) {
	way := newTrail(key)
	for _, id := range d.kad.nearest(key, d.cfg.K) {
		way.hear(id)
	}
	ctx, stop := context.WithCancel(ctx)
	steps := make(chan walkStep, walkMost)
	var under sync.WaitGroup
	defer under.Wait()
	defer stop()
	waiting, ends := 0, walkEnds
	send := func() bool {
		if waiting == walkBeside || way.asked == walkMost {
			return false
		}
		id, ok := way.next()
		if !ok {
			return false
		}
		waiting++
		under.Go(func() {
			s := walkStep{from: id}
			s.closer, s.gave, s.done, s.err = ask(ctx, id)
			steps <- s
		})
		return true
	}
	patience := time.NewTimer(walkPatience)
	defer patience.Stop()
	send()
	for waiting > 0 {
		select {
		case s := <-steps:
			waiting--
			way.answered(s.from, s.err == nil)
			if s.err == nil {
				answered++
				if s.gave {
					ends = d.cfg.K
				}
				d.hearCloser(way, s.closer)
			}
			if s.done || way.ended(ends) {
				return answered
			}
			if waiting == 0 {
				send()
			}
		case <-patience.C:
			if way.late(walkLate); way.ended(ends) {
				return answered
			}
			send()
		case <-ctx.Done():
			return answered
		}
		patience.Reset(walkPatience)
	}
	return answered
}

// hearCloser takes the servers that an answer names, no more than an honest one does.
func (d *Directory) hearCloser(way *trail, closer []*peer.AddrInfo) {
	for _, info := range closer[:min(len(closer), d.cfg.K)] {
		if info.ID == d.host.ID() || !d.cfg.Loopback && !kad.PublicQueryFilter(nil, *info) {
			continue
		}
		if !d.connected(info.ID) {
			d.host.Peerstore().AddAddrs(info.ID, d.public(info.Addrs), peerstore.TempAddrTTL)
		}
		way.hear(info.ID)
	}
}

// trail is what a walk knows.
type trail struct {
	target kbucket.ID
	known  []*trailPeer // nearest first
	seen   map[peer.ID]*trailPeer
	asked  int
}

type trailPeer struct {
	id    peer.ID
	far   []byte
	state trailState
	since time.Time // when it was asked
}

type trailState uint8

const (
	trailHeard trailState = iota
	trailAsked
	trailAnswered
	trailFailed // or so late that it counts as if it had
)

func newTrail(key string) *trail {
	return &trail{target: kbucket.ConvertKey(key), seen: map[peer.ID]*trailPeer{}}
}

// hear takes a server that somebody has named.
func (w *trail) hear(id peer.ID) {
	if w.seen[id] != nil {
		return
	}
	p := &trailPeer{id: id, far: xor(kbucket.ConvertPeerID(id), w.target)}
	w.seen[id] = p
	i, _ := slices.BinarySearchFunc(w.known, p.far, func(o *trailPeer, far []byte) int { return slices.Compare(o.far, far) })
	w.known = slices.Insert(w.known, i, p)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// next is the nearest that has not been asked.
func (w *trail) next() (peer.ID, bool) {
	for _, p := range w.known {
		if p.state == trailHeard {
			p.state, p.since = trailAsked, time.Now()
			w.asked++
			return p.id, true
		}
	}
	return "", false
}

func (w *trail) answered(id peer.ID, well bool) {
	w.seen[id].state = trailFailed
	if well {
		w.seen[id].state = trailAnswered
	}
}

// late gives up those that were asked so long ago.
func (w *trail) late(after time.Duration) {
	for _, p := range w.known {
		if p.state == trailAsked && time.Since(p.since) >= after {
			p.state = trailFailed
		}
	}
}

// ended says whether so many of the nearest have answered, of those that can.
func (w *trail) ended(left int) bool {
	for _, p := range w.known {
		switch {
		case left == 0:
			return true
		case p.state == trailFailed:
		case p.state == trailAnswered:
			left--
		default:
			return false
		}
	}
	return true
}

// polls are the lists of several holders.
type polls struct {
	most  int
	sizes []int
	infos []peer.AddrInfo // of all, each peer once
	seen  map[peer.ID]bool
}

// add takes a holder's list and says whether it is enough: two holders have given most entries, or of several two have
// each given four of five that all together gave.
func (p *polls) add(infos []*peer.AddrInfo) bool {
	if len(infos) == 0 {
		return false // who gives nothing may withhold
	}
	list := make(map[peer.ID]bool, len(infos))
	for _, info := range infos {
		if list[info.ID] = true; !p.seen[info.ID] {
			p.seen[info.ID] = true
			p.infos = append(p.infos, *info)
		}
	}
	p.sizes = append(p.sizes, len(list))
	whole := 0
	for _, n := range p.sizes {
		whole += btoi(5*n >= 4*len(p.infos))
	}
	return len(p.sizes) >= 2 && len(p.infos) >= p.most || len(p.sizes) >= walkLists && whole >= 2
}

// readProviders reads one key: what we keep of it ourselves, and the lists of holders until enough agree.
func (d *Directory) readProviders(ctx context.Context, key cid.Cid, most int) []peer.AddrInfo {
	hash := key.Hash()
	var mu sync.Mutex
	found := &polls{most: most, seen: map[peer.ID]bool{}}
	found.add(d.kad.kept(ctx, hash))
	answered := d.walk(ctx, string(hash), func(ctx context.Context, of peer.ID) ([]*peer.AddrInfo, bool, bool, error) {
		ctx, cancel := context.WithTimeout(ctx, d.cfg.PutTimeout)
		defer cancel()
		infos, closer, err := d.wire.GetProviders(ctx, of, hash)
		if err != nil {
			return nil, false, false, err
		}
		mu.Lock()
		defer mu.Unlock()
		return closer, len(infos) > 0, found.add(infos), nil
	})
	if answered == 0 {
		return d.lookUpProviders(ctx, key, most)
	}
	mu.Lock()
	defer mu.Unlock()
	return found.infos
}

// readRecord reads a record from holders until one more than quorum have given a valid one; the newest counts.
func (d *Directory) readRecord(ctx context.Context, id peer.ID, quorum int) *record {
	key := capabilityKey(id)
	var mu sync.Mutex
	var best *record
	got := 0
	d.walk(ctx, key, func(ctx context.Context, of peer.ID) ([]*peer.AddrInfo, bool, bool, error) {
		ctx, cancel := context.WithTimeout(ctx, d.cfg.PutTimeout)
		defer cancel()
		value, closer, err := d.wire.GetValue(ctx, of, key)
		if err != nil {
			return nil, false, false, fmt.Errorf("reading a record: %w", err)
		}
		rec, err := d.judge.capability(value.GetValue(), id, d.now())
		if err != nil { // none, or what is no record
			return closer, false, false, nil
		}
		mu.Lock()
		defer mu.Unlock()
		if got++; best == nil || rec.cap.GetSeq() > best.cap.GetSeq() {
			best = rec
		}
		return closer, true, got > quorum, nil
	})
	mu.Lock()
	defer mu.Unlock()
	return best
}
