package dht

import (
	"context"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	kadrecord "github.com/libp2p/go-libp2p-record"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	envelope "github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
)

// The kinds of hostile servers. All withhold what they ought to keep, say that they keep it, and name one
// another as nearer; the second kind answers with forged records, the third with old ones, and all flood.
const (
	withholds = iota + 1
	forges
	replays
)

func sealRaw(key crypto.PrivKey, as *seal, payload []byte) ([]byte, error) {
	as.payload = payload
	env, err := envelope.Seal(as, key)
	if err != nil {
		return nil, err
	}
	return env.Marshal()
}

// evil replaces the host's answers in the directory and floods others until ctx ends.
func (h *simHost) evil(ctx context.Context, d *Directory, gossip *simGossip) {
	if d.up(ctx) != nil {
		return
	}
	d.host.SetStreamHandler(protocol.ProtoKad, func(s network.Stream) { h.lie(d, s) })
	d.host.SetStreamHandler(protocol.ProtoScan, holdsNothing)
	rnd := rand.New(rand.NewPCG(uint64(h.at), 666))
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		victim, server := h.w.hosts[rnd.IntN(len(h.w.hosts))], h.w.hosts[rnd.IntN(len(h.w.hosts))]
		for _, raw := range h.falsehoods(victim) {
			put, cancel := context.WithTimeout(ctx, time.Second)
			_ = d.wire.PutValue(put, server.ID(), kadrecord.MakePutRecord(capabilityKey(victim.ID()), raw))
			cancel()
			for range 5 {
				_, _ = gossip.Publish(ctx, protocol.TopicAvail(victim.model), raw)
			}
		}
		victim.mu.Lock()
		var old []byte
		if len(victim.beats) > 1 {
			old = victim.beats[rnd.IntN(len(victim.beats)-1)]
		}
		victim.mu.Unlock()
		if old != nil {
			_, _ = gossip.Publish(ctx, protocol.TopicAvail(victim.model), old)
		}
		// A key that nobody needs, to fill a store with; and a provider record for itself under every model.
		_ = d.wire.PutValue(ctx, server.ID(), kadrecord.MakePutRecord(capabilityKey(h.ID()), h.latest()))
	}
}

// falsehoods are a forged record of a node and, where there is one, an outdated one.
func (h *simHost) falsehoods(victim *simHost) [][]byte {
	var out [][]byte
	if raw, err := forgery(victim, h); err == nil {
		out = append(out, raw)
	}
	victim.mu.Lock()
	defer victim.mu.Unlock()
	if n := len(victim.records); n > 1 {
		out = append(out, victim.records[n-2])
	}
	return out
}

// lie answers requests of the directory.
func (h *simHost) lie(d *Directory, s network.Stream) {
	defer s.Close()
	in, out := msgio.NewVarintReaderSize(struct{ io.Reader }{s}, network.MessageSizeMax), msgio.NewVarintWriter(struct{ io.Writer }{s})
	for {
		raw, err := in.ReadMsg()
		if err != nil {
			return
		}
		req := &kadpb.Message{}
		if proto.Unmarshal(raw, req) != nil {
			return
		}
		resp := &kadpb.Message{Type: req.Type, Key: req.Key, ClusterLevelRaw: req.ClusterLevelRaw}
		switch req.GetType() {
		case kadpb.Message_PUT_VALUE:
			resp.Record = req.Record // "kept"
			h.w.withheld.Add(1)
		case kadpb.Message_ADD_PROVIDER:
			h.w.withheld.Add(1)
			continue
		case kadpb.Message_FIND_NODE, kadpb.Message_GET_VALUE, kadpb.Message_GET_PROVIDERS:
			resp.CloserPeers = h.accomplices(d, req)
			if owner, err := ownerOf(string(req.Key)); req.GetType() == kadpb.Message_GET_VALUE && err == nil {
				resp.Record = h.falseRecord(owner)
			}
		}
		if raw, err = proto.Marshal(resp); err != nil || out.WriteMsg(raw) != nil {
			return
		}
	}
}

// accomplices names true peers when nodes are looked for, which keeps it in routing tables, and else those of its
// own kind.
func (h *simHost) accomplices(d *Directory, req *kadpb.Message) []*kadpb.Message_Peer {
	var infos []peer.AddrInfo
	if req.GetType() == kadpb.Message_FIND_NODE {
		for _, id := range d.kad.RoutingTable().NearestPeers(kbucket.ConvertKey(string(req.Key)), h.w.k) {
			infos = append(infos, d.host.Peerstore().PeerInfo(id))
		}
	} else {
		for _, other := range h.w.hosts {
			if other.hostile > 0 && other != h {
				infos = append(infos, other.AddrInfo())
			}
		}
	}
	return kadpb.PeerInfosToPBPeers(d.host.Network(), infos)
}

func (h *simHost) falseRecord(owner peer.ID) *recpb.Record {
	for _, victim := range h.w.hosts {
		if victim.ID() != owner {
			continue
		}
		lies := h.falsehoods(victim)
		switch {
		case h.hostile == forges && len(lies) > 0:
			h.w.lies.Add(1)
			return kadrecord.MakePutRecord(capabilityKey(owner), lies[0])
		case h.hostile == replays && len(lies) > 1:
			h.w.lies.Add(1)
			return kadrecord.MakePutRecord(capabilityKey(owner), lies[1])
		}
	}
	return nil
}

// crawl surveys the network, of whose servers a fifth scan as if they held nothing, and holds the estimate against the truth.
func (w *simWorld) crawl(d *Directory) {
	w.t.Helper()
	plan := DefaultSurveyPlan()
	plan.Listen = 0
	f := NewFindings()
	if err := d.Survey(w.t.Context(), plan, w.boot[:1], f, func(SurveyEvent) {}); err != nil {
		w.t.Fatal(err)
	}
	honest, seen, scanned, false_ := w.honest(), 0, 0, 0
	for _, r := range f.Records() {
		if honest[r.Peer] == nil { // what a hostile one says of itself is signed, and its own affair
			continue
		}
		w.mu.Lock()
		if !w.signed[string(r.Raw)] {
			false_++
		}
		w.mu.Unlock()
		seen++
		if slices.Contains(r.Via, ViaScan) {
			scanned++
		}
	}
	withheld := 0
	for _, s := range f.Sweeps() {
		if len(s.Held) == 0 {
			withheld++
		}
	}
	c, all := f.Coverage(), float64(len(honest))
	truth := float64(scanned) / all
	w.t.Logf("a crawl: %d of %d servers give nothing; of %d nodes %d are seen, %d by scans, %d records are false; coverage is estimated at %.3f (%.3f to %.3f), by scans alone it is %.3f",
		withheld, len(f.Sweeps()), len(honest), seen, scanned, false_, c.Share(), c.ShareLow(), c.ShareHigh(), truth)
	if float64(seen) < 0.99*all || float64(scanned) < 0.95*all || false_ > 0 || math.Abs(c.Share()-truth) > 0.05 || 10*withheld < len(f.Sweeps()) {
		w.t.Error("the crawl is not as docs/research.md says")
	}
}

func heapMiB() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// simSize is how many hosts are simulated; with build tag system it is 200. The race detector makes each of them
// several times dearer.
var simSize = func() int {
	if raceEnabled {
		return 20
	}
	return 50
}()

// readRecords reads each node's record from few holders and from all: whatever some of them say, it is one that the node
// has signed.
func (w *simWorld) readRecords(client *Directory, of map[peer.ID]*simHost) {
	w.t.Helper()
	for id, h := range of {
		for _, quorum := range []int{1, 0} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			rec, err := client.fromDHT(ctx, id, quorum)
			cancel()
			if err != nil {
				w.t.Errorf("no record of %d with quorum %d: %v", h.at, quorum, err)
				continue
			}
			w.mu.Lock()
			signed := w.signed[string(rec.raw)]
			w.mu.Unlock()
			if !signed || rec.peer != id {
				w.t.Errorf("a record of %d is read that it never signed", h.at)
			}
		}
	}
}

func TestANetworkWithHostileServersFindsItsNodesThroughChurnAndPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 11, simSize, 0.2)
		pass(3 * time.Minute)
		base := heapMiB()
		client, hub := w.client(), w.hosts[0].directory()
		pass(10 * time.Second)
		judge := func(when string, out ...int) {
			t.Helper()
			want := w.honest(out...)
			all, ex := w.ask(client, nodesQuery(t, ViaAuto))
			if share, missing := recall(want, all); share < 0.99 {
				t.Errorf("%s: recall on all paths %.3f, missing %v; %+v", when, share, missing, ex)
			}
			alone, ex := w.ask(client, nodesQuery(t, ViaDHT))
			if share, missing := recall(want, alone); share < 0.95 {
				t.Errorf("%s: recall by the DHT alone %.3f, missing %v; %+v", when, share, missing, ex)
			}
			own, _ := w.ask(hub, nodesQuery(t, ViaAuto))
			if share, missing := recall(want, own); share < 0.99 {
				t.Errorf("%s: recall of the replica %.3f, missing %v", when, share, missing)
			}
			w.readRecords(client, want)
			for _, i := range out {
				if _, listed := own[w.hosts[i].ID()]; listed {
					t.Errorf("%s: %d has gone and is listed", when, i)
				}
			}
			t.Logf("%s: %d nodes, all paths %d, DHT alone %d, replica %d", when, len(want), len(all), len(alone), len(own))
		}
		judge("at rest")
		w.crawl(client)

		n := len(w.hosts)
		gone := []int{n - 1, n - 2, n - 3}
		for _, i := range gone {
			if err := w.hosts[i].Stop(); err != nil {
				t.Error(err)
			}
		}
		pass(2 * time.Second)
		listed, _ := w.ask(hub, nodesQuery(t, ViaAuto))
		for _, i := range gone {
			if _, ok := listed[w.hosts[i].ID()]; ok {
				t.Errorf("%d has said goodbye 2 s ago and is listed", i)
			}
		}
		for _, i := range []int{n - 4, n - 5, n - 6} {
			w.hosts[i].Crash()
			gone = append(gone, i)
		}
		changed := w.hosts[n-7]
		changed.mu.Lock()
		changed.model = "nvidia-t4-16gb"
		changed.mu.Unlock()
		changed.announce.RecordChanged()
		pass(130 * time.Second)
		judge("after goodbyes, crashes and a change", gone...)
		if got, _ := w.ask(hub, Query{Filter: parsed(t, `gpu.model == "T4"`)}); len(got) != 1 {
			t.Errorf("%d nodes have the card that one has changed to", len(got))
		}

		var left, right []int
		for i := range n {
			if i%2 == 0 {
				left = append(left, i)
			} else {
				right = append(right, i)
			}
		}
		w.net.Partition(left, right)
		pass(4 * time.Minute)
		w.net.Heal()
		for _, i := range gone[3:] {
			w.hosts[i].Restart()
		}
		pass(5 * time.Minute)
		judge("after a partition", gone[:3]...)

		if w.lies.Load() < 20 || w.withheld.Load() < 200 {
			t.Errorf("%d false answers and %d withheld: the hostile ones are no test", w.lies.Load(), w.withheld.Load())
		}
		grown := heapMiB() - base
		if grown > 256 {
			t.Errorf("in the flood the heap of all hosts together has grown by %.0f MiB", grown)
		}
		t.Logf("heap %.0f MiB at rest, %.0f more after the flood; %d false answers, %d withheld", base, grown, w.lies.Load(), w.withheld.Load())
		for _, h := range w.hosts {
			if d := h.directory(); d.index.size() > n+10 {
				t.Errorf("%d keeps %d nodes of %d", h.at, d.index.size(), n)
			}
		}
	})
}
