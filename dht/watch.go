package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// WatchConfig says how often a peer asks itself whether it is in one network with the others, and seen there
// (discovery.md 8).
type WatchConfig struct {
	// Anchors are peers that ought to be in the same network: the bootstrap list. Index peers and peers seen
	// earlier in this run are added. With one anchor and no memory a split cannot be seen.
	Anchors []peer.AddrInfo
	// Joined are the moments after the start at which all anchors are checked. Default 5 s and 30 s.
	Joined []time.Duration
	// Every is the time between two later checks of one anchor. Default 15 min; nodes use 60 min.
	Every time.Duration
	// Seen is the time between two rounds of asking others how they see us. Default 5 min. After a round in which all
	// find our record, three times as long: each of them looks it up, and that is the dearest thing an idle node causes.
	Seen time.Duration
	// Alone is for how long nobody has to be known before the peer calls itself isolated. Default 60 s.
	Alone time.Duration
	// Look is how often it looks whether it is alone, and tries its anchors then. Default 5 s.
	Look time.Duration
	// Probes is how many peers are asked how they see us. Default 3.
	Probes int
	// Dial bounds the connecting to one anchor. Default 5 s.
	Dial time.Duration
	// Unseen is called when nobody has found our record in two rounds, to publish it again; nil does nothing.
	Unseen func()
}

// DefaultWatch returns the defaults that the fields' comments name.
func DefaultWatch() WatchConfig {
	return WatchConfig{
		Joined: []time.Duration{5 * time.Second, 30 * time.Second}, Every: 15 * time.Minute, Seen: 5 * time.Minute,
		Alone: time.Minute, Look: 5 * time.Second, Probes: 3, Dial: 5 * time.Second,
	}
}

// Validate returns ErrConfig with the name of the first field that cannot be used.
func (c *WatchConfig) Validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"Every", int64(c.Every)},
		{"Seen", int64(c.Seen)},
		{"Alone", int64(c.Alone)},
		{"Look", int64(c.Look)},
		{"Probes", int64(c.Probes)},
		{"Dial", int64(c.Dial)},
	} {
		if f.value <= 0 {
			return fmt.Errorf("%w: WatchConfig.%s has to be above 0", ErrConfig, f.name)
		}
	}
	if !slices.IsSorted(c.Joined) {
		return fmt.Errorf("%w: WatchConfig.Joined is not in order", ErrConfig)
	}
	return nil
}

// Standing is how a peer stands in its network, as far as it knows.
type Standing struct {
	// Isolated says that for WatchConfig.Alone no server of the directory was known.
	Isolated bool
	// Alone is since when none is known; zero while one is.
	Alone time.Time
	// Anchors are the peers that ought to be in our network, with what the last look at each gave.
	Anchors []Anchor
	// Split says that anchors were found in another network and that joining the two has not helped yet: one that was given, or
	// two of different networks, as any peer that we have met becomes an anchor and can lie.
	Split bool
	// Seen is how others see us.
	Seen Seen
	// Clock is the median difference of others' clocks to ours; it is 0 before the first round.
	Clock time.Duration
	// Clocks is how many peers told it: below ClocksTell it may be one peer's word.
	Clocks int
}

// Anchor is one of them.
type Anchor struct {
	// Peer is the anchor.
	Peer peer.ID
	// At is when it was looked at last; zero before the first look.
	At time.Time
	// Overlap is the share of peers near a random key that its lookup and ours have in common, -1 unknown.
	Overlap float64
	// Err says why it could not be reached, nil when it was.
	Err error
	// Given says that it is one of WatchConfig.Anchors, not a peer that was met.
	Given bool
	// Split says that it was found in another network at the last look that told, and joining has not helped.
	Split bool

	network string // two anchors of one are not independent
}

// Seen is how the peers that were asked last see us.
type Seen struct {
	// At is when; zero before the first round.
	At time.Time
	// Asked of how many peers an answer came.
	Asked int
	// Found is how many of them find our present record, Heard how many have heard a heartbeat.
	Found, Heard int
	// Dialable is how many could open a new connection to us.
	Dialable int
	// Blind counts the rounds in a row in which nobody found it.
	Blind int
}

// maxRemembered bounds the peers of this run that serve as anchors later.
const maxRemembered = 200

// ClocksTell is how many peers it takes to say that a clock is wrong.
const ClocksTell = 3

// skewWarn is the difference of clocks that a person should hear of.
const skewWarn = 5 * time.Second

// watcher is the state of Watch; its one goroutine owns all but what standing guards.
type watcher struct {
	d       *Directory
	cfg     WatchConfig
	anchors []peer.AddrInfo
	known   map[peer.ID]int // position in anchors
	given   int             // of anchors, the first ones
	next    int
	blind   int
}

// Watch checks until ctx ends whether we are in one network with our anchors, connects what is split, and asks
// others how they see us; Standing tells what it found. It returns nil on orderly cancel, or ErrConfig.
func (d *Directory) Watch(ctx context.Context, cfg WatchConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := d.up(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	w := &watcher{d: d, cfg: cfg, known: map[peer.ID]int{}}
	for _, a := range cfg.Anchors {
		w.remember(a)
	}
	w.trust()
	w.loop(ctx)
	return nil
}

// Standing returns what Watch knows.
func (d *Directory) Standing() Standing {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.standing
	s.Anchors = slices.Clone(s.Anchors)
	return s
}

func (w *watcher) change(do func(s *Standing)) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	do(&w.d.standing)
}

// remember adds an anchor; when there is no room the oldest that was not given goes.
func (w *watcher) remember(a peer.AddrInfo) {
	if a.ID == w.d.host.ID() || len(a.Addrs) == 0 {
		return
	}
	i, ok := w.known[a.ID]
	switch {
	case ok:
		w.anchors[i].Addrs = a.Addrs
		return
	case len(w.anchors) < w.given+maxRemembered:
		i = len(w.anchors)
		w.anchors = append(w.anchors, a)
		w.change(func(s *Standing) { s.Anchors = append(s.Anchors, w.anchor(a)) })
	default:
		i = w.given + w.d.chance(string(a.ID)).IntN(maxRemembered)
		delete(w.known, w.anchors[i].ID)
		w.anchors[i] = a
		w.change(func(s *Standing) { s.Anchors[i] = w.anchor(a) })
	}
	w.known[a.ID] = i
}

// anchor is what is known of an anchor before the first look.
func (w *watcher) anchor(a peer.AddrInfo) Anchor {
	out := Anchor{Peer: a.ID, Overlap: -1, network: string(a.ID)}
	if w.d.cfg.Loopback {
		return out
	}
	for _, addr := range a.Addrs {
		if net := netOf(addr, 2, 4); net != "" {
			out.network = net
			break
		}
	}
	return out
}

// trust makes the anchors so far those that were given.
func (w *watcher) trust() {
	w.given = len(w.anchors)
	w.change(func(s *Standing) {
		for i := range s.Anchors[:w.given] {
			s.Anchors[i].Given = true
		}
	})
}

// split says whether the anchors that tell of another network are to be believed.
func split(anchors []Anchor) bool {
	networks := map[string]bool{}
	for _, a := range anchors {
		if a.Split && a.Given {
			return true
		}
		if a.Split {
			networks[a.network] = true
		}
	}
	return len(networks) > 1
}

func (w *watcher) loop(ctx context.Context) {
	begun := w.d.now()
	look := time.NewTicker(w.cfg.Look)
	defer look.Stop()
	seen := begun.Add(w.cfg.Seen)
	if len(w.cfg.Joined) > 0 { // a first answer soon, for who starts a node and looks
		seen = begun.Add(w.cfg.Joined[len(w.cfg.Joined)-1])
	}
	later, joined := begun.Add(w.cfg.Every), w.cfg.Joined
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		now := w.d.now()
		w.lookForOthers(ctx, now)
		if len(joined) > 0 && now.Sub(begun) >= joined[0] {
			joined = joined[1:]
			for i := range len(w.anchors) {
				w.check(ctx, i)
			}
		}
		if !now.Before(later) && len(w.anchors) > 0 {
			later = now.Add(w.cfg.Every)
			w.next = (w.next + 1) % len(w.anchors)
			w.check(ctx, w.next)
			for _, i := range w.apart() {
				w.check(ctx, i)
			}
			w.gather(ctx)
		}
		if !now.Before(seen) {
			seen = now.Add(w.askOthers(ctx))
		}
	}
}

// gather remembers servers and index peers as anchors of later checks.
func (w *watcher) gather(ctx context.Context) {
	for _, id := range w.d.kad.RoutingTable().ListPeers() {
		w.remember(peer.AddrInfo{ID: id, Addrs: w.d.host.Peerstore().Addrs(id)})
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Dial)
	defer cancel()
	infos, err := w.d.Providers(ctx, attrIndex, indexSample)
	if err != nil {
		return
	}
	for _, info := range infos {
		w.remember(info)
	}
}

// lookForOthers sees whether anybody is known; when not, it tries every anchor and keeps each one's error.
func (w *watcher) lookForOthers(ctx context.Context, now time.Time) {
	if w.d.Servers() > 0 {
		w.change(func(s *Standing) {
			if s.Isolated {
				w.d.log.Info("connected to the directory again")
			}
			s.Isolated, s.Alone = false, time.Time{}
		})
		return
	}
	w.change(func(s *Standing) {
		if s.Alone.IsZero() {
			s.Alone = now
		}
		if !s.Isolated && now.Sub(s.Alone) >= w.cfg.Alone {
			s.Isolated = true
			w.d.log.Warn("nobody of the directory is known: nobody learns of this peer", "since", s.Alone)
		}
	})
	var all sync.WaitGroup
	for i := range min(len(w.anchors), maxTried) {
		all.Go(func() { _ = w.reach(ctx, i) })
	}
	all.Wait()
}

// maxTried bounds the anchors that are tried while nobody is known.
const maxTried = 32

// reach connects to an anchor and notes what came of it.
func (w *watcher) reach(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Dial)
	defer cancel()
	err := w.d.host.Connect(ctx, w.anchors[i])
	w.change(func(s *Standing) {
		a := &s.Anchors[i]
		a.At = w.d.now()
		if a.Err == nil || !errors.Is(err, swarm.ErrDialBackoff) { // that it is not tried yet again says nothing
			a.Err = err
		}
	})
	return err
}

// apart are the anchors that were found in another network and are looked at again: those that were given first.
func (w *watcher) apart() (at []int) {
	w.change(func(s *Standing) {
		for i := range s.Anchors {
			if s.Anchors[i].Split && i != w.next && len(at) < maxApart {
				at = append(at, i)
			}
		}
	})
	return at
}

// Bounds of what anchors of another network can cause.
const (
	maxApart   = 4 // of them are looked at again at a time
	joinTried  = 8 // peers of the other network are dialled
	joinEnough = 2 // of these join the two
)

// check compares what an anchor finds near random keys with what we find there.
func (w *watcher) check(ctx context.Context, i int) {
	ctx, cancel := context.WithTimeout(ctx, 2*w.d.cfg.QueryTimeout+w.cfg.Dial)
	defer cancel()
	share, others := w.compare(ctx, i)
	if share < 0 {
		w.note(i, func(a *Anchor) { a.Split = a.Split && a.Given }) // who is gone and was only met is not believed for ever
		return
	}
	found := false
	if len(others) > 0 {
		w.d.log.Warn("an anchor is in another network; joining the two", "anchor", w.anchors[i].ID, "overlap", share)
		w.join(ctx, others)
		again, still := w.compare(ctx, i)
		share, found = again, again < 0 || len(still) > 0
	}
	w.note(i, func(a *Anchor) { a.Overlap, a.Split = share, found })
}

// note changes what is known of an anchor.
func (w *watcher) note(i int, do func(*Anchor)) {
	w.change(func(s *Standing) {
		do(&s.Anchors[i])
		s.Split = split(s.Anchors)
	})
}

// join connects to peers of another network: any one that comes about joins the two. They are whom an anchor names, so not many
// are tried, and no private addresses on the internet.
func (w *watcher) join(ctx context.Context, others []peer.AddrInfo) {
	tried, joined := 0, 0
	for _, info := range others {
		if !w.d.cfg.Loopback {
			info.Addrs = slices.DeleteFunc(slices.Clone(info.Addrs), func(a multiaddr.Multiaddr) bool { return !manet.IsPublicAddr(a) })
		}
		if len(info.Addrs) == 0 {
			continue
		}
		if tried == joinTried || joined == joinEnough {
			break
		}
		tried++
		joined += btoi(w.d.host.Connect(ctx, info) == nil)
	}
	select {
	case err := <-w.d.kad.RefreshRoutingTable():
		if err != nil {
			w.d.log.Debug("routing table not refreshed", "err", err)
		}
	case <-ctx.Done():
	}
}

const splitOverlap = 0.5 // less in common is another network

// compare returns the larger overlap of two keys, -1 when it cannot be known, and, where both tell of a split, the
// peers that the anchor knows and we do not. The first key is the anchor's own, around which a peer knows its
// network best; the second is random. The anchor answers each at once from its own table: a lookup would join the
// two networks while it compares them.
func (w *watcher) compare(ctx context.Context, i int) (best float64, apart []peer.AddrInfo) {
	d, anchor := w.d, w.anchors[i].ID
	targets := []peer.ID{anchor, d.randomPeer()}
	ours, theirs := make([][]peer.ID, len(targets)), make([][]*peer.AddrInfo, len(targets))
	for k, t := range targets { // before connecting, which joins the two as well
		if ids, err := d.kad.GetClosestPeers(ctx, string(t)); err == nil { // else whoever it knows is elsewhere
			ours[k] = ids
		}
	}
	if w.reach(ctx, i) != nil {
		return -1, nil
	}
	var both sync.WaitGroup
	for k, t := range targets {
		both.Go(func() {
			if infos, err := d.wire.GetClosestPeers(ctx, anchor, t); err == nil {
				theirs[k] = infos[:min(len(infos), 2*d.cfg.K)]
			}
		})
	}
	both.Wait()
	best = -1
	for k := range targets {
		var others []peer.AddrInfo
		for _, info := range theirs[k] {
			if info.ID != d.host.ID() && info.ID != anchor {
				others = append(others, *info)
			}
		}
		if len(others) == 0 {
			return -1, nil
		}
		share, missing := overlap(ours[k], others)
		if best = max(best, share); share >= splitOverlap {
			return best, nil
		}
		apart = append(apart, missing...)
	}
	return best, apart
}

// overlap is the share of the smaller set that both have, and what only theirs has.
func overlap(ours []peer.ID, theirs []peer.AddrInfo) (share float64, missing []peer.AddrInfo) {
	common := 0
	for _, t := range theirs {
		if slices.Contains(ours, t.ID) {
			common++
		} else {
			missing = append(missing, t)
		}
	}
	smaller := min(len(ours), len(theirs))
	if smaller == 0 {
		return 0, missing
	}
	return float64(common) / float64(smaller), missing
}

// seenByAll is how many times Seen it takes until the next round after one in which all find our record.
const seenByAll = 3

// askOthers asks random servers how they see us; it returns when to do so again.
func (w *watcher) askOthers(ctx context.Context) time.Duration {
	own := w.d.ownRecord()
	if own == nil {
		return w.cfg.Seen
	}
	ids := sortedIDs(w.d.kad.RoutingTable().ListPeers())
	w.d.chance("seen").Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	seen, clocks := Seen{At: w.d.now()}, []time.Duration{}
	for _, id := range ids {
		if seen.Asked == w.cfg.Probes || ctx.Err() != nil {
			break
		}
		p, err := w.d.Probe(ctx, id)
		if err != nil {
			continue
		}
		seen.Asked++
		seen.Found += btoi(p.Seq >= own.cap.GetSeq())
		seen.Heard += btoi(p.Heard)
		seen.Dialable += btoi(p.Dialable)
		if h, err := w.d.Hello(ctx, id); err == nil {
			clocks = append(clocks, h.Clock)
		}
	}
	if seen.Asked > 0 && seen.Found == 0 {
		w.blind++
	} else if seen.Found > 0 {
		w.blind = 0
	}
	seen.Blind = w.blind
	slices.Sort(clocks)
	w.change(func(s *Standing) {
		s.Seen = seen
		if len(clocks) > 0 {
			s.Clock, s.Clocks = clocks[len(clocks)/2], len(clocks)
		}
	})
	if len(clocks) >= ClocksTell && clocks[len(clocks)/2].Abs() > skewWarn {
		w.d.log.Warn("this machine's clock differs from others'", "by", clocks[len(clocks)/2])
	}
	if w.blind == 2 {
		w.blind = 0
		w.d.log.Warn("nobody who was asked finds our record; publishing it again", "asked", seen.Asked)
		if w.cfg.Unseen != nil {
			w.cfg.Unseen()
		}
	}
	if seen.Asked > 0 && seen.Found == seen.Asked {
		return seenByAll * w.cfg.Seen
	}
	return w.cfg.Seen
}

// randomPeer is a peer ID that nobody has, as the target of a lookup.
func (d *Directory) randomPeer() peer.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	raw := []byte{0x12, 32} // a SHA-256 multihash
	for range 32 {
		raw = append(raw, byte(d.rnd.Uint32()))
	}
	return peer.ID(raw)
}

// Problem says in a sentence what is wrong with a peer's standing, nil when nothing is known to be.
func (s *Standing) Problem() error {
	switch {
	case s.Isolated:
		errs := []error{fmt.Errorf("isolated since %s: nobody of the directory is known", s.Alone.Format(time.TimeOnly))}
		for _, a := range s.Anchors {
			if a.Err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.Peer, a.Err))
			}
		}
		return errors.Join(errs...)
	case s.Split:
		var apart []string
		for _, a := range s.Anchors {
			if a.Split {
				apart = append(apart, a.Peer.String())
			}
		}
		return fmt.Errorf("in another network than we are: %s", strings.Join(apart[:min(len(apart), 3)], ", "))
	case s.Seen.Blind > 0:
		return fmt.Errorf("none of the %d peers that were asked finds our record", s.Seen.Asked)
	}
	return nil
}
