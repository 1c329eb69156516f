package dht

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	kadrecord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	pstore "github.com/libp2p/go-libp2p/p2p/host/peerstore"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
)

// modelKad stands for kad-dht at one node. Lookups follow kad-dht's rules (alpha at a time, done when the beta nearest
// have answered, then all of the K nearest that have not) over what peers of a network of this size know of one
// another; they take as long as their slowest chain of answers, and count each request at both ends. What holders keep
// is kept by them; the product's Validator judges it.
type modelKad struct {
	n     *modelNode
	run   int
	alpha int
	beta  int
	rt    *kbucket.RoutingTable
}

// What kad-dht does on its own (v0.42): tables are refreshed every 30 min, every 10 at servers, and each bucket when that
// is longer ago than the time between two rounds, which it just is not after one; so it would be every second round, were
// it not for other lookups. Real hosts of testnet refreshed 0.63 of their buckets a round, the mean of an hour.
const (
	modelBuckets = 0.63
	modelTable   = 24 // peers in the table that the Directory itself looks at
)

func (n *modelNode) joinModelKad(run int) (kademlia, error) {
	rt, err := kbucket.NewRoutingTable(n.w.cfg.k, kbucket.ConvertPeerID(n.id), time.Minute, pstore.NewMetrics(), time.Hour, nil)
	if err != nil {
		return nil, err
	}
	k := &modelKad{n: n, run: run, alpha: min(10, n.w.cfg.k), beta: min(3, n.w.cfg.k), rt: rt}
	n.w.mu.Lock()
	n.table = rt
	n.w.mu.Unlock()
	n.running().SetStreamHandler(protocol.ProtoKad, n.serveKad)
	return k, nil
}

// Close implements kademlia.
func (k *modelKad) Close() error { return k.rt.Close() }

// RoutingTable implements kademlia.
func (k *modelKad) RoutingTable() *kbucket.RoutingTable { return k.rt }

// RefreshRoutingTable implements kademlia.
func (k *modelKad) RefreshRoutingTable() <-chan error { c := make(chan error, 1); c <- nil; return c }

// walk runs a lookup and waits as long as it takes.
func (k *modelKad) walk(ctx context.Context, key string, kind kadpb.Message_MessageType, answer func(*modelNode, time.Duration) (bool, int)) ([]*modelNode, time.Duration, error) {
	out, took, err := k.play(key, kind, answer)
	if err != nil {
		return nil, took, err
	}
	return out, took, sleep(ctx, took)
}

// play runs a lookup to its end in no time and tells how long it takes.
func (k *modelKad) play(key string, kind kadpb.Message_MessageType, answer func(*modelNode, time.Duration) (bool, int)) ([]*modelNode, time.Duration, error) {
	w := k.n.w
	if k.rt.Size() == 0 || !k.n.runs(k.run) {
		return nil, 0, kbucket.ErrLookupFailure
	}
	l := &lookup{k: k, key: pointOf(key), seen: map[*modelNode]*asked{}, answer: answer, weight: 1, kind: kind}
	w.mu.RLock()
	out, took := l.run()
	w.mu.RUnlock()
	w.log("lookup", k.n, nil)
	if !l.stop && len(out) == 0 {
		return nil, took, kbucket.ErrLookupFailure
	}
	return out, took, nil
}

func pointOf(key string) (p point) { copy(p[:], kbucket.ConvertKey(key)); return p }

func idsOfNodes(ns []*modelNode) []peer.ID {
	out := make([]peer.ID, len(ns))
	for i, n := range ns {
		out[i] = n.id
	}
	return out
}

func (k *modelKad) nearest(key string, n int) []peer.ID {
	w := k.n.w
	w.mu.RLock()
	defer w.mu.RUnlock()
	if k.rt.Size() == 0 {
		return nil
	}
	return idsOfNodes(k.n.knows(pointOf(key), n))
}

func (k *modelKad) kept(_ context.Context, key multihash.Multihash) (out []*peer.AddrInfo) {
	w := k.n.w
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, p := range k.n.providers(string(key), 0) {
		out = append(out, &peer.AddrInfo{ID: p.id, Addrs: w.addrs(p)})
	}
	return out
}

// GetClosestPeers implements kademlia.
func (k *modelKad) GetClosestPeers(ctx context.Context, key string) ([]peer.ID, error) {
	out, _, err := k.walk(ctx, key, kadpb.Message_FIND_NODE, nil)
	return idsOfNodes(out), err
}

// Provide implements kademlia.
func (k *modelKad) Provide(ctx context.Context, key cid.Cid, tell bool) error {
	w, hash := k.n.w, string(key.Hash())
	w.mu.Lock()
	k.n.keepProvider(hash, k.n)
	w.mu.Unlock()
	if !tell {
		return nil
	}
	holders, _, err := k.walk(ctx, hash, kadpb.Message_FIND_NODE, nil)
	if err != nil {
		return err
	}
	time.AfterFunc(w.way(k.n, holders[0], int(kadAdd)), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, h := range holders {
			k.n.sent[flowKad].Add(kadAdd)
			k.n.begun[flowKad].Add(1)
			k.n.kinds[kadpb.Message_ADD_PROVIDER].Add(1)
			if h.up {
				h.received[flowKad].Add(kadAdd)
				h.keepProvider(hash, k.n)
			}
		}
	})
	return nil
}

// FindProvidersAsync implements kademlia.
func (k *modelKad) FindProvidersAsync(ctx context.Context, key cid.Cid, count int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(out)
		type foundAt struct {
			n  *modelNode
			at time.Duration
		}
		var found []foundAt
		seen := map[*modelNode]bool{}
		take := func(ps []*modelNode, at time.Duration) bool {
			for _, p := range ps {
				if !seen[p] && (count == 0 || len(found) < count) {
					seen[p] = true
					found = append(found, foundAt{p, at})
				}
			}
			return count > 0 && len(found) >= count
		}
		hash := string(key.Hash())
		k.n.w.mu.RLock()
		enough := take(k.n.providers(hash, 0), 0)
		k.n.w.mu.RUnlock()
		took := time.Duration(0)
		if !enough {
			_, took, _ = k.play(hash, kadpb.Message_GET_PROVIDERS, func(n *modelNode, at time.Duration) (bool, int) {
				ps := n.providers(hash, uint64(k.n.at)^uint64(time.Now().UnixNano()))
				return take(ps, at), len(ps) * kadPeer
			})
		}
		begun := time.Now()
		for _, f := range found { // each when its holder has told of it
			if sleep(ctx, f.at-time.Since(begun)) != nil {
				return
			}
			select {
			case out <- peer.AddrInfo{ID: f.n.id, Addrs: k.n.w.addrs(f.n)}:
			case <-ctx.Done():
				return
			}
		}
		_ = sleep(ctx, took-time.Since(begun))
	}()
	return out
}

// GetValue implements kademlia.
func (k *modelKad) GetValue(ctx context.Context, key string, opts ...routing.Option) ([]byte, error) {
	var cfg routing.Options
	if err := cfg.Apply(opts...); err != nil {
		return nil, err
	}
	quorum := 0
	for _, v := range cfg.Other { // the key is kad-dht's own; there is one option
		quorum, _ = v.(int)
	}
	var best []byte
	got := 0
	judge := Validator{Now: time.Now}
	owner, err := ownerOf(key)
	if err != nil {
		return nil, err
	}
	take := func(raw []byte) bool {
		if raw == nil {
			return false
		}
		if _, err := k.n.w.opened.capability(raw, owner, time.Now()); err != nil {
			return false
		}
		got++
		if best == nil {
			best = raw
		} else if i, err := judge.Select(key, [][]byte{best, raw}); err == nil && i == 1 {
			best = raw
		}
		return quorum > 0 && got > quorum
	}
	w := k.n.w
	w.mu.RLock()
	enough := take(k.n.value(key))
	w.mu.RUnlock()
	if !enough {
		_, _, err = k.walk(ctx, key, kadpb.Message_GET_VALUE, func(n *modelNode, _ time.Duration) (bool, int) {
			raw := n.value(key)
			return take(raw), len(raw)
		})
	}
	switch {
	case err != nil && best == nil && !errors.Is(err, kbucket.ErrLookupFailure):
		return nil, err
	case best == nil:
		return nil, routing.ErrNotFound
	}
	return best, nil
}

// heldValue is a record that a node keeps for its owner.
type heldValue struct {
	raw      []byte
	received time.Time
}

// value is what a node answers to GET_VALUE, nil for nothing; mu is held.
func (n *modelNode) value(key string) []byte {
	v, ok := n.values[key]
	if !ok || n.withholds || time.Since(v.received) > maxRecordAge {
		return nil
	}
	return v.raw
}

// keepProvider notes a provider; mu is held.
func (n *modelNode) keepProvider(key string, of *modelNode) {
	if n.withholds && n != of {
		return
	}
	if n.provs == nil {
		n.provs = map[string]map[*modelNode]time.Time{}
	}
	if n.provs[key] == nil {
		n.provs[key] = map[*modelNode]time.Time{}
	}
	n.provs[key][of] = time.Now().Add(provideValidity)
}

// providers is what a node answers to GET_PROVIDERS, shuffled; mu is held.
func (n *modelNode) providers(key string, shuffle uint64) []*modelNode {
	var out []*modelNode
	now := time.Now()
	for p, until := range n.provs[key] {
		if until.After(now) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *modelNode) int {
		return cmp.Compare(hash(drawShuffle, shuffle, uint64(a.at)), hash(drawShuffle, shuffle, uint64(b.at)))
	})
	return out
}

// serveKad answers the single requests of the Directory.
func (n *modelNode) serveKad(s network.Stream) {
	raw, err := msgio.NewVarintReaderSize(s, maxKadReply).ReadMsg()
	req := &kadpb.Message{}
	if err != nil || proto.Unmarshal(raw, req) != nil {
		_ = s.Reset()
		return
	}
	w, from := n.w, s.Conn().RemotePeer()
	resp := &kadpb.Message{Type: req.Type, Key: req.Key, ClusterLevelRaw: req.ClusterLevelRaw}
	w.mu.Lock()
	switch req.GetType() {
	case kadpb.Message_PUT_VALUE:
		if err := n.putLocked(from, req); err != nil {
			w.mu.Unlock()
			_ = s.Reset()
			return
		}
		resp.Record = req.Record
	case kadpb.Message_ADD_PROVIDER: // has no answer
		if p := w.byID[from]; p != nil && n.quota.allow(asker{peer: from}, false) {
			n.keepProvider(string(req.Key), p)
		}
		w.mu.Unlock()
		return
	case kadpb.Message_GET_VALUE:
		if v := n.value(string(req.Key)); v != nil {
			resp.Record = kadrecord.MakePutRecord(string(req.Key), v)
		}
		n.closerLocked(resp, from)
	case kadpb.Message_GET_PROVIDERS:
		for _, p := range n.providers(string(req.Key), uint64(time.Now().UnixNano())) {
			resp.ProviderPeers = append(resp.ProviderPeers, &kadpb.Message_Peer{Id: []byte(p.id), Addrs: [][]byte{p.addr.Bytes()}})
		}
		n.closerLocked(resp, from)
	default:
		n.closerLocked(resp, from)
	}
	w.mu.Unlock()
	if raw, err = proto.Marshal(resp); err == nil {
		err = msgio.NewVarintWriter(struct{ network.Stream }{s}).WriteMsg(raw)
	}
	if err != nil {
		_ = s.Reset()
	}
}

// closerLocked names those that are nearer to a key, but not the asker.
func (n *modelNode) closerLocked(resp *kadpb.Message, asker peer.ID) {
	for _, p := range n.knows(pointOf(string(resp.Key)), n.w.cfg.k) {
		if p.id != asker {
			resp.CloserPeers = append(resp.CloserPeers, &kadpb.Message_Peer{Id: []byte(p.id), Addrs: [][]byte{p.addr.Bytes()}, Connection: kadpb.Message_CONNECTED})
		}
	}
}

// putLocked is kad-dht's handling of PUT_VALUE, with the product's quota, validator and choice.
func (n *modelNode) putLocked(from peer.ID, req *kadpb.Message) error {
	if !n.quota.allow(asker{peer: from}, true) {
		return ErrBounds
	}
	key, raw := string(req.Key), req.GetRecord().GetValue()
	owner, err := ownerOf(key)
	if err != nil {
		return err
	}
	r, err := n.w.opened.capability(raw, owner, time.Now())
	if err != nil {
		return err
	}
	if old, ok := n.values[key]; ok && time.Since(old.received) <= maxRecordAge {
		if i, err := (Validator{Now: time.Now}).Select(key, [][]byte{raw, old.raw}); err != nil || i != 0 {
			return ErrExpired
		}
	}
	if n.withholds && n.id != owner {
		return nil // "kept"
	}
	if n.values == nil {
		n.values = map[string]heldValue{}
	}
	n.values[key] = heldValue{raw: r.raw, received: time.Now()}
	return nil
}

// Sizes of Kademlia's messages on a stream, in bytes, from kad-dht's own encoding of one with this network's peers; its
// streams to a peer are kept and negotiated once.
var (
	kadPeer    = peerSize()
	kadRequest = messageSize(&kadpb.Message{Type: kadpb.Message_FIND_NODE, Key: make([]byte, 38), ClusterLevelRaw: 1})
	kadAdd     = int64(messageSize(&kadpb.Message{Type: kadpb.Message_ADD_PROVIDER, Key: make([]byte, 34), ClusterLevelRaw: 1}) + kadPeer)
)

func messageSize(m *kadpb.Message) int { n := proto.Size(m); return n + 1 + btoi(n > 127) }

func peerSize() int {
	one := &kadpb.Message{CloserPeers: []*kadpb.Message_Peer{{Id: make([]byte, 38), Addrs: [][]byte{make([]byte, modelAddrSize)}, Connection: kadpb.Message_CONNECTED}}}
	return proto.Size(one)
}

// kadAnswer is an answer with k closer peers.
func kadAnswer(k int) int { return kadRequest + 1 + k*kadPeer }

func kadKind(frame []byte) kadpb.Message_MessageType {
	_, n := consumeVarint(frame)
	if n+1 < len(frame) && frame[n] == 0x08 {
		return kadpb.Message_MessageType(frame[n+1])
	}
	return kadpb.Message_PUT_VALUE
}

func consumeVarint(b []byte) (v uint64, n int) {
	for n < len(b) {
		v |= uint64(b[n]&0x7f) << (7 * n)
		if n++; b[n-1] < 0x80 {
			break
		}
	}
	return v, n
}

// keepTable fills a node's table and refreshes it for as long as the node runs.
func (k *modelKad) keepTable(ctx context.Context, every time.Duration) {
	for round := 0; ; round++ {
		k.n.w.mu.RLock()
		k.maintain(uint64(round))
		k.n.w.mu.RUnlock()
		if sleep(ctx, every) != nil {
			return
		}
	}
}

// maintain counts the lookups of a refresh: of the node's own key and of one in each bucket that is due. In a large
// network every fourth of them is played, and counts four times.
func (k *modelKad) maintain(round uint64) {
	w, me := k.n.w, k.n
	weight := int64(1)
	if len(w.ring) > 500 {
		weight = 4
	}
	play := func(key point, at uint64) {
		if (uint64(me.at)+round+at)%uint64(weight) == 0 {
			l := &lookup{k: k, key: key, seen: map[*modelNode]*asked{}, weight: weight, kind: kadpb.Message_FIND_NODE}
			l.run()
		}
	}
	play(me.point, 0)
	for cpl := range min(me.deepestLocked()+1, 16) {
		if round > 0 && w.draw(drawRefresh, uint64(me.at), round, uint64(cpl), 99) >= modelBuckets {
			continue
		}
		key := point{}
		for i := range 4 {
			v := hash(drawRefresh, uint64(me.at), round, uint64(cpl), uint64(i), w.cfg.seed)
			for b := range 8 {
				key[8*i+b] = byte(v >> (8 * b))
			}
		}
		for bit := range cpl + 1 { // as the node's own, but for the last
			mask := byte(0x80 >> (bit % 8))
			own := me.point[bit/8] & mask
			if bit == cpl {
				own ^= mask
			}
			key[bit/8] = key[bit/8]&^mask | own
		}
		play(key, uint64(cpl)+1)
	}
}
