package dht

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// modelNode is one machine: a Directory with its Announcer and Watch, or an index peer, or a client.
type modelNode struct {
	identity
	tally
	w                        *modelNet
	at                       int
	point                    point
	addr                     multiaddr.Multiaddr
	index, client, withholds bool
	model                    string
	gpus                     uint32
	quota                    *quota
	dials                    atomic.Int64  // connections that it opened
	quiet                    time.Duration // after its start, before it announces itself

	// What the network knows of it; guarded by w.mu.
	up     bool
	run    int
	came   time.Time
	died   time.Time
	host   *modelHost
	table  *kbucket.RoutingTable
	conns  []*modelNode
	values map[string]heldValue
	provs  map[string]map[*modelNode]time.Time
	takes  map[string]func(peer.ID, []byte) Verdict

	mu       sync.Mutex
	dir      *Directory
	announce *Announcer
	seq      uint64
	free     uint32
	changed  time.Time // of a change that no heartbeat has told yet
	told     map[uint64]time.Time
	leaving  func()
	ended    chan struct{}
}

const modelAddrSize = 11 // /ip4/../udp/../quic-v1

// newNode makes a node that does not run yet.
func (w *modelNet) newNode(change func(*modelNode)) *modelNode {
	w.mu.Lock()
	at := len(w.all)
	w.mu.Unlock()
	n := &modelNode{
		identity: modelIdentity(w.cfg.seed, at), w: w, at: at, quota: newQuota(time.Now), takes: map[string]func(peer.ID, []byte) Verdict{},
		told: map[uint64]time.Time{}, ended: make(chan struct{}),
	}
	n.point = pointOf(string(n.id))
	n.addr = multiaddr.StringCast(fmt.Sprintf("/ip4/1.%d.%d.%d/udp/4001/quic-v1", at>>16&255, at>>8&255, at&255))
	n.gpus = []uint32{1, 1, 1, 2, 4, 8, 8}[int(w.draw(drawNode, uint64(at), 1)*7)]
	ticket, pool := int(w.draw(drawNode, uint64(at), 2)*138_400), 0
	for ticket >= rnp004Pools[pool].gpus {
		ticket -= rnp004Pools[pool].gpus
		pool++
	}
	n.model = rnp004Pools[pool].model
	n.free = uint32(w.draw(drawNode, uint64(at), 3) * float64(n.gpus+1))
	n.withholds = w.draw(drawNode, uint64(at), 4) < w.cfg.withhold
	if change != nil {
		change(n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, n)
	w.byID[n.id] = n
	if n.index {
		w.peers = append(w.peers, n)
	}
	return n
}

func modelIdentity(seed uint64, at int) identity {
	sum := sha256.Sum256(fmt.Appendf(nil, "model %d %d", seed, at))
	return identityFrom(sum[:])
}

// staleFor is how long some still name a node that has died: until each has refreshed its table.
func (w *modelNet) staleFor() time.Duration { return w.refresh(ModeAuto) }

// refresh is how often a table is refreshed (kademlia.go).
func (w *modelNet) refresh(mode Mode) time.Duration {
	if mode == ModeServer || w.cfg.servers {
		return 10 * time.Minute
	}
	return 30 * time.Minute
}

func (n *modelNode) alive() bool {
	n.w.mu.RLock()
	defer n.w.mu.RUnlock()
	return n.up
}

// runs says whether the node is still in its run of that number.
func (n *modelNode) runs(run int) bool {
	n.w.mu.RLock()
	defer n.w.mu.RUnlock()
	return n.up && n.run == run
}

// running is the host of the present run, nil when there is none.
func (n *modelNode) running() *modelHost {
	n.w.mu.RLock()
	defer n.w.mu.RUnlock()
	if !n.up {
		return nil
	}
	return n.host
}

func (n *modelNode) connected(id peer.ID) bool {
	n.w.mu.RLock()
	defer n.w.mu.RUnlock()
	return slices.ContainsFunc(n.conns, func(o *modelNode) bool { return o.id == id })
}

func (w *modelNet) addrs(n *modelNode) []multiaddr.Multiaddr { return []multiaddr.Multiaddr{n.addr} }

// sharedBits is the length of the common prefix.
func sharedBits(a, b point) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 8 * len(a)
}

// spanLocked is where in the ring the nodes are that share depth bits with a key.
func (w *modelNet) spanLocked(key point, depth int) (lo, hi int) {
	if depth <= 0 {
		return 0, len(w.ring)
	}
	mask := ^uint64(0) << max(0, 64-depth)
	from, to := key.prefix()&mask, key.prefix()|^mask
	lo = sort.Search(len(w.ring), func(i int) bool { return w.ring[i].point.prefix() >= from })
	hi = sort.Search(len(w.ring), func(i int) bool { return w.ring[i].point.prefix() > to })
	return lo, hi
}

// knows are the k peers nearest to a key in this node's table: of a part of the key space that is farther from it than
// from the key it knows k by chance, and near itself all. Of those that have died it learns within a refresh. mu is held.
func (n *modelNode) knows(key point, k int) []*modelNode {
	w := n.w
	var out []*modelNode
	seen := map[*modelNode]bool{n: true}
	take := func(o *modelNode) {
		if seen[o] || len(out) == k {
			return
		}
		seen[o] = true
		if !o.up && time.Since(o.died) > time.Duration(w.draw(drawKnows, uint64(n.at), uint64(o.at))*float64(w.staleFor())) {
			return
		}
		out = append(out, o)
	}
	for depth := min(sharedBits(n.point, key)+1, 64); depth >= 0 && len(out) < k; depth-- {
		lo, hi := w.spanLocked(key, depth)
		size := hi - lo
		switch {
		case size < k && depth > 0: // all of it, with what is around
		case size <= 2*k:
			near := slices.Clone(w.ring[lo:hi])
			slices.SortFunc(near, func(a, b *modelNode) int {
				if a.point.prefix()^key.prefix() < b.point.prefix()^key.prefix() {
					return -1
				}
				return 1
			})
			for _, o := range near {
				take(o)
			}
		default:
			if l, h := w.spanLocked(key, depth+1); h-l < k {
				for _, o := range w.ring[l:h] {
					take(o)
				}
			}
			for i := range uint64(2 * k) {
				take(w.ring[lo+int(hash(drawBucket, uint64(n.at), uint64(depth), i, w.cfg.seed)%uint64(size))])
			}
		}
	}
	return out
}

// deepestLocked is the longest prefix that the node shares with another.
func (n *modelNode) deepestLocked() (deep int) {
	i, _ := n.w.placeLocked(n.point)
	for j := max(0, i-1); j < min(len(n.w.ring), i+2); j++ {
		if o := n.w.ring[j]; o != n {
			deep = max(deep, sharedBits(n.point, o.point))
		}
	}
	return deep
}

// LastSeq implements SeqStore.
func (n *modelNode) LastSeq() (uint64, error) { n.mu.Lock(); defer n.mu.Unlock(); return n.seq, nil }

// SaveSeq implements SeqStore.
func (n *modelNode) SaveSeq(seq uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seq = seq
	return nil
}

// Record implements Source.
func (n *modelNode) Record(seq uint64, issued, expires time.Time, leaving bool) ([]byte, error) {
	c := machine(n.id, seq, issued)
	c.Expires, c.Tombstone = expires.UnixMilli(), leaving
	c.Host.CpuModel, c.Host.Kernel, c.Host.Threads = "AMD EPYC 7763 64-Core Processor", "6.8.0-45-generic", p32(16)
	c.Addrs = [][]byte{n.addr.Bytes()}
	if n.index {
		c.Roles = []string{"index"}
	} else {
		c.Roles = []string{"node"}
		g := gpu(n.model, n.gpus, 79.65)
		g.Driver, g.Compute = "550.54.15", p32(86)
		c.Gpus = []*pb.GpuGroup{g}
	}
	return protocol.SealCapability(n.key, c)
}

// Beat implements Source. It remembers which heartbeat tells of a change.
func (n *modelNode) Beat(h BeatHeader, leaving bool) ([]byte, error) {
	n.mu.Lock()
	av := &pb.Availability{
		Format: 1, PeerId: []byte(n.id), Seq: h.Seq, At: h.At.UnixMilli(), PeriodS: uint32(h.Period / time.Second), State: ready,
		CapSeq: h.CapSeq, CapDigest: h.CapDigest[:],
	}
	if !n.index {
		av.Groups = []*pb.GroupLoad{{Free: n.free}}
	}
	if !n.changed.IsZero() {
		n.told[h.Seq] = n.changed
		n.changed = time.Time{}
	}
	n.mu.Unlock()
	if leaving {
		av.State = pb.NodeState_NODE_STATE_LEAVING
	}
	raw, err := protocol.SealAvailability(n.key, av)
	if err == nil && n.w.cfg.prime && h.Seq%16 != 0 {
		n.w.opened.keepBeat(&beat{raw: raw, peer: n.id, av: av})
	}
	return raw, err
}

// change sets how many GPUs are free, as a lease does that begins or ends.
func (n *modelNode) change(free uint32) {
	n.mu.Lock()
	n.free = free
	if n.changed.IsZero() {
		n.changed = time.Now()
	}
	a := n.announce
	n.mu.Unlock()
	a.BeatChanged()
}

// now is what a query ought to find of a node.
func (n *modelNode) offers() uint32 { n.mu.Lock(); defer n.mu.Unlock(); return n.free }

func (n *modelNode) directory() *Directory { n.mu.Lock(); defer n.mu.Unlock(); return n.dir }

// start runs the node. It knows the index peers that it is given, as from its bootstrap list.
func (n *modelNode) start(known []*modelNode) {
	w := n.w
	w.mu.Lock()
	n.up, n.came = true, time.Now()
	n.run++
	n.host = newModelHost(n)
	host, run := n.host, n.run
	w.mu.Unlock()
	w.log("start", n, nil)
	cfg := DefaultConfig()
	cfg.Mode, cfg.Loopback, cfg.K, cfg.FetchWorkers, cfg.FetchQueue = ModeServer, true, w.cfg.k, 1, 1
	if !n.index && !w.cfg.servers {
		cfg.Mode = ModeAuto
	}
	cfg.MaxNodes = max(1000, 4*w.cfg.nodes)
	if n.index {
		cfg.Index, cfg.Shards, cfg.FetchWorkers, cfg.FetchQueue = true, AllShards(), DefaultConfig().FetchWorkers, DefaultConfig().FetchQueue
	}
	if n.client {
		cfg.Mode = ModeClient
		if w.cfg.cold > 0 {
			cfg.ColdSample, cfg.ColdTimeout = w.cfg.cold, 30*time.Second
		}
	}
	rnd := func() *rand.Rand { return rand.New(rand.NewPCG(w.cfg.seed, uint64(n.at)<<16|uint64(run))) }
	d, err := New(cfg, host, modelGossip{n, run}, time.Now, rnd(), quiet)
	if err != nil {
		w.fail("directory %d: %v", n.at, err)
		return
	}
	d.join = func() (kademlia, error) { return n.joinModelKad(run) }
	d.judge = judge{w.opened.capability, w.opened.beat}
	a, err := NewAnnouncer(d, DefaultSchedule(), n, n, rnd())
	if err != nil {
		w.fail("announcer %d: %v", n.at, err)
		return
	}
	n.mu.Lock()
	n.dir, n.announce = d, a
	n.mu.Unlock()
	n.live(d, a, known, run)
}

// live runs what a process runs, until stop or kill.
func (n *modelNode) live(d *Directory, a *Announcer, known []*modelNode, run int) {
	w := n.w
	serving, stop := context.WithCancel(context.Background())
	ctx, leave := context.WithCancel(serving)
	n.mu.Lock()
	n.leaving = leave
	n.mu.Unlock()
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Run(serving); err != nil {
			w.fail("directory %d: %v", n.at, err)
		}
	})
	all.Go(func() {
		if d.up(ctx) != nil {
			return
		}
		for _, p := range known {
			if p != n {
				_, _ = n.host.dial(ctx, p.id)
			}
		}
		k := d.kad.(*modelKad)
		n.fillTable(k, run)
		if !n.client {
			w.mu.Lock()
			if n.up && n.run == run {
				w.enterLocked(n)
			}
			w.mu.Unlock()
			k.keepTable(ctx, w.refresh(d.cfg.Mode))
		}
	})
	if !n.client {
		all.Go(func() {
			watch := DefaultWatch()
			watch.Unseen = a.RecordChanged
			if !n.index && !w.cfg.servers {
				watch.Every = time.Hour // as package node
			}
			for _, p := range known {
				watch.Anchors = append(watch.Anchors, peer.AddrInfo{ID: p.id, Addrs: w.addrs(p)})
			}
			_ = d.Watch(ctx, watch)
		})
	}
	go func() {
		if n.client {
			<-ctx.Done()
		} else if sleep(ctx, n.quiet) != nil {
		} else if err := a.Run(ctx); err != nil && !errors.Is(err, ErrStopped) && n.alive() {
			w.fail("announcer %d: %v", n.at, err)
		}
		<-ctx.Done()
		w.gone(n, false)
		stop()
		all.Wait()
		close(n.ended)
	}()
}

// fillTable gives the Directory peers of which it may ask how they see it.
func (n *modelNode) fillTable(k *modelKad, run int) {
	w := n.w
	w.mu.RLock()
	var some []*modelNode
	some = append(some, n.conns...)
	for i := range uint64(4 * modelTable) {
		if len(w.ring) > 0 && len(some) < modelTable {
			some = append(some, w.ring[hash(drawBucket, uint64(n.at), 99, i, w.cfg.seed)%uint64(len(w.ring))])
		}
	}
	w.mu.RUnlock()
	for _, o := range some {
		if o != n {
			_, _ = k.rt.TryAddPeer(o.id, true, true)
		}
	}
}

// kill ends a node as a power cut does.
func (n *modelNode) kill() { n.w.gone(n, true); n.leave() }

// leave ends it in order; ended closes when it has said goodbye.
func (n *modelNode) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leaving()
}

// gone takes a node off the network. Who was connected learns of a goodbye at once, and of a death when its connection
// has been silent for long enough.
func (w *modelNet) gone(n *modelNode, killed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !n.up {
		return
	}
	n.up, n.died = false, time.Now()
	w.log(map[bool]string{true: "kill", false: "leave"}[killed], n, nil)
	cut := func() {
		for _, o := range slices.Clone(n.conns) {
			w.cutLocked(n, o)
			if o.table != nil {
				o.table.RemovePeer(n.id)
			}
		}
		n.values, n.provs = nil, nil
	}
	if !killed {
		cut()
	} else {
		time.AfterFunc(modelIdle, func() { w.mu.Lock(); defer w.mu.Unlock(); cut() })
	}
	time.AfterFunc(w.staleFor(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leaveLocked(n)
		for _, o := range w.all {
			if o.up && o.table != nil {
				o.table.RemovePeer(n.id)
			}
		}
	})
}
