package gridbeam_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/internal/testnet"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// matchSize is how many machines a search is made among, matchPause how long they are left alone after some came
// and went; the system build has 200 and an hour.
var matchSize, matchPause = 24, 10 * time.Minute

// "Match job requirements to suitable nodes": recall among machines that come and go, by a replica, by index peers
// and by the nodes alone, with the messages and the time that each takes. Hostile servers are dht's own test.
func TestD3_EveryNodeThatFitsIsFoundWhileOthersComeAndGo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 31)
		var all []*claimant
		fits := map[*claimant]bool{}
		for i := range matchSize {
			card := gpus("NVIDIA H100 80GB HBM3", 79.65, uint32(1+i%8))
			if i%2 == 1 {
				card = gpus("Tesla T4", 15.36, 4)
			}
			c := f.claim(card)
			fits[c] = i%2 == 0 && 1+i%8 >= 4
			all = append(all, c)
		}
		client := searcher(f)
		f.start()
		present := map[*claimant]bool{}
		begin := func(c *claimant) { c.Start(); present[c] = true }
		for _, c := range all[:matchSize-matchSize/10] {
			begin(c)
		}
		f.known(len(present))
		pass(time.Minute) // the bridge has said that it is an index peer
		d := client()
		filter, err := protocol.ParseFilter(`gpu.model == "H100" && gpu.vram_gb >= 40 && gpu.free >= 4`)
		if err != nil {
			t.Fatal(err)
		}
		judge := func(when string) {
			t.Helper()
			want := map[peer.ID]bool{}
			for c := range present {
				if fits[c] {
					want[c.ID()] = true
				}
			}
			exactly := func(how string, got map[peer.ID]bool) {
				t.Helper()
				missing, extra := 0, 0
				for id := range want {
					if !got[id] {
						missing++
					}
				}
				for id := range got {
					if !want[id] {
						extra++
					}
				}
				if missing > 0 || extra > 0 {
					t.Errorf("%s, %s: of %d nodes that fit %d are missing, %d are too many", when, how, len(want), missing, extra)
				}
			}
			list, err := f.Bridge().ListNodes(context.Background(), alice, filter)
			if err != nil {
				t.Fatal(err)
			}
			replica := map[peer.ID]bool{}
			for _, n := range list.Nodes {
				replica[n.PeerID] = true
			}
			exactly("replica", replica)
			for via, most := range map[dht.Via]int{dht.ViaIndex: 3, dht.ViaDHT: matchSize + 1} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				begun := time.Now()
				found, ex, err := d.Find(ctx, dht.Query{Filter: filter, Via: via, Seed: 5})
				took := time.Since(begun)
				cancel()
				if err != nil {
					t.Fatalf("%s, by %s: %v", when, via, err)
				}
				got := map[peer.ID]bool{}
				for _, c := range found {
					got[c.Peer] = true
				}
				exactly(string(via), got)
				if ex.PeersAsked > most || took > 5*time.Second {
					t.Errorf("%s, by %s: %d peers asked in %s", when, via, ex.PeersAsked, took)
				}
				t.Logf("%s, by %s: %d found, %d peers asked, %s", when, via, len(got), ex.PeersAsked, took.Round(time.Millisecond))
			}
		}
		judge("at rest")
		dice := rand.New(rand.NewPCG(31, 31))
		for range 2 { // each time a tenth goes, by a crash or with a goodbye, and others come
			for i := range max(2, len(present)/10) {
				c := all[dice.IntN(len(all))]
				for !present[c] {
					c = all[dice.IntN(len(all))]
				}
				delete(present, c)
				if i%2 == 0 {
					c.Crash()
				} else if err := c.Stop(); err != nil {
					t.Error(err)
				}
			}
			for _, c := range all {
				if c.Host() == nil && !present[c] && len(present) < matchSize-matchSize/10 {
					begin(c)
				}
			}
			pass(2 * time.Minute) // a crash is seen after three heartbeats
			judge("two minutes after some came and went")
			pass(matchPause)
			judge(matchPause.String() + " later")
		}
	})
}

// searcher adds a client that keeps no replica; the function that it returns starts it.
func searcher(f *farm) func() *dht.Directory {
	ready := make(chan *dht.Directory, 1)
	p := f.net.Process(func(ctx context.Context, env testnet.Env) error {
		cfg := dht.DefaultConfig()
		cfg.K, cfg.Mode, cfg.Loopback, cfg.ColdSample, cfg.ColdTimeout = 8, dht.ModeClient, true, 2*matchSize, 30*time.Second
		d, err := dht.New(cfg, env.Host.Host(), nil, time.Now, rand.New(rand.NewPCG(3, 3)), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		ready <- d
		return d.Run(ctx)
	}, func(cfg *p2p.Config) { cfg.Bootstrap = []peer.AddrInfo{f.bridge.AddrInfo()} })
	return func() *dht.Directory { p.Start(); return <-ready }
}
