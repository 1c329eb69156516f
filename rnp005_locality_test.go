package gridbeam_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

// "Select an optimal set of nodes: locality" (RNP-005): a bound on round trips is held by pings, with max_rtt and in a
// where; without one the near node goes first; and who asks for too much is told what the best is.
func TestO1_NearNodesAreChosenByPings(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 41)
		var all []*machine
		for range 4 {
			all = append(all, f.place(machineKind{slots: 2, anchor: true, pace: every(10 * time.Millisecond)}))
		}
		far := all[2:]
		for _, m := range far {
			f.net.Slow(m.Index(), 60*time.Millisecond) // each way: 130 ms to and fro
		}
		f.start()
		f.known(4)
		isFar := func(id protocol.PeerID) bool {
			return slices.ContainsFunc(far, func(m *machine) bool { return m.ID() == id })
		}
		for name, change := range map[string]func(*protocol.JobPlacement){
			"max_rtt":          func(p *protocol.JobPlacement) { p.MaxRTT = protocol.Duration(50 * time.Millisecond) },
			"a where":          func(p *protocol.JobPlacement) { p.Where = `node.rtt_ms < 50` },
			"a where and more": func(p *protocol.JobPlacement) { p.Where = `node.rtt_ms < 50 && cpu.cores >= 1` },
		} {
			j := sweep(6)
			change(&j.Placement)
			if r := f.check(j); r.Known != 4 || r.Matching != 2 {
				t.Errorf("%s: %d of %d nodes match, want 2 of 4: %s", name, r.Matching, r.Known, r.Summary)
				continue
			}
			a := &audit{farm: f, texts: numbers(6), job: f.submit(j)}
			a.over(5*time.Minute, func(protocol.JobStatus) {})
			s, _ := f.status(a.job)
			if len(s.Nodes) == 0 || slices.ContainsFunc(s.Nodes, func(n protocol.JobNode) bool { return isFar(n.PeerID) }) {
				t.Errorf("%s: worked: %+v", name, s.Nodes)
			}
		}
		j := sweep(6)
		j.Placement.MaxRTT = protocol.Duration(5 * time.Millisecond)
		if r := f.check(j); r.Matching != 0 || !strings.Contains(r.Summary, "best is 1") {
			t.Errorf("nobody is within 5 ms, and the user is told %q", r.Summary)
		}
		j = sweep(1)
		j.Placement.Where = `node.rtt_ms > 100`
		if r := f.check(j); r.Matching != 2 {
			t.Errorf("%d nodes are further than 100 ms, want 2: %s", r.Matching, r.Summary)
		}
		for range 4 { // near goes before far where all else is equal
			j := sweep(1)
			j.Placement.Nodes = protocol.NodeRange{Min: 1, Max: 1}
			a := &audit{farm: f, texts: numbers(1), job: f.submit(j)}
			a.over(5*time.Minute, func(protocol.JobStatus) {})
			if s, _ := f.status(a.job); len(s.Nodes) != 1 || isFar(s.Nodes[0].PeerID) {
				t.Errorf("one node ran %+v", s.Nodes)
			}
		}
		// Records tell how far their nodes are from the landmarks, which is the bridge here.
		f.await(6*time.Minute, "nodes know their landmarks", func() bool {
			return !slices.ContainsFunc(all, func(m *machine) bool {
				p := m.Node().Status().Place
				return p.Landmarks != 1 || p.Measured != 1 || !p.Told
			})
		})
	})
}

// "Labels: location" (RNP-004): a claimed place that round trips contradict counts as unknown and is reported, one that
// an issuer has signed counts, and what a node does not say nobody assumes.
func TestD4_AClaimedPlaceThatRoundTripsContradictCountsAsUnknown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 42)
		say := func(place string, labels ...string) *machine {
			var m *machine
			m = f.place(machineKind{slots: 2, anchor: true, pace: every(100 * time.Millisecond), change: func(c *node.Config) {
				if place != "" {
					p, err := protocol.ParsePlace(place)
					if err != nil {
						t.Error(err)
					}
					c.Place = p
				}
				for _, v := range labels {
					l, err := protocol.SignLabel(f.operator, m.ID(), protocol.LabelLocation, v, time.Now().Add(24*time.Hour))
					if err != nil {
						t.Error(err)
					}
					c.Labels = append(c.Labels, l)
				}
			}})
			return m
		}
		one, two := say(""), say("") // they say nothing, and observe
		honest, liar, vouched := say("DE-BE"), say("SG"), say("", "SG")
		f.observed(map[*machine]string{one: "FR", two: "NL"}, "DE")
		f.known(5)

		region := func(names ...string) protocol.ValidateReply {
			j := sweep(2)
			for _, n := range names {
				j.Placement.Regions = append(j.Placement.Regions, protocol.RegionShare{Place: n})
			}
			return f.check(j)
		}
		f.await(5*time.Minute, "the bridge has had the claims checked", func() bool {
			list, err := f.Bridge().ListNodes(t.Context(), alice, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := map[protocol.PeerID]string{}
			for _, n := range list.Nodes {
				got[n.PeerID] = n.RegionCheck
			}
			return got[honest.ID()] == "consistent" && got[liar.ID()] == "contradicted" && got[vouched.ID()] == "" && got[one.ID()] == ""
		})
		for names, want := range map[string]int{"apac": 1, "SG": 1, "eu": 1, "DE": 1, "de-be": 1, "DE-HH": 0, "FR": 0, "apac eu": 2} {
			r := region(strings.Fields(names)...)
			if r.Matching != want {
				t.Errorf("%s: %d match, want %d: %s", names, r.Matching, want, r.Summary)
			}
			if !slices.ContainsFunc(r.Notes, func(n string) bool {
				return strings.Contains(n, liar.ID().String()) && strings.Contains(n, "claims SG")
			}) {
				t.Errorf("%s: the user is not told why a claim does not count: %q", names, r.Notes)
			}
		}
		for where, want := range map[string]int{`node.region == "apac"`: 0, `node.country != "SG"`: 1, `verified("location") == "SG"`: 1} {
			j := sweep(2)
			j.Placement.Where = where
			if r := f.check(j); r.Matching != want {
				t.Errorf("%s: %d match, want %d: %s", where, r.Matching, want, r.Summary)
			}
		}
		j := sweep(4)
		j.Placement.Regions = protocol.RegionShares{{Place: "apac"}}
		a := &audit{farm: f, texts: numbers(4), job: f.submit(j)}
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		if s, _ := f.status(a.job); len(s.Nodes) != 1 || s.Nodes[0].PeerID != vouched.ID() {
			t.Errorf("worked: %+v", s.Nodes)
		}
		if x, err := f.Bridge().ExplainJob(t.Context(), alice, a.job); err != nil || !strings.Contains(strings.Join(x.Notes, "\n"), liar.ID().String()) {
			t.Errorf("%v; the explanation says %q", err, x.Notes)
		}
		if p := honest.Node().Status().Place; p.Subdivision != "DE-BE" || p.Landmarks != 3 {
			t.Errorf("its owner is told %+v", p)
		}
	})
}

// observed starts the farm with a network whose landmarks, the bridge and some machines, stand in these places.
func (f *farm) observed(places map[*machine]string, bridge string) {
	f.Helper()
	f.bridge.Start()
	f.awaitBridge()
	place := func(name string) protocol.Place {
		p, err := protocol.ParsePlace(name)
		if err != nil {
			f.Fatal(err)
		}
		return p
	}
	list := []protocol.Landmark{{Peer: f.bridge.ID(), Addr: f.bridge.AddrInfo().Addrs[0], Place: place(bridge)}}
	for _, m := range f.machines {
		if name, ok := places[m]; ok {
			list = append(list, protocol.Landmark{Peer: m.ID(), Addr: m.AddrInfo().Addrs[0], Place: place(name)})
		}
	}
	n := f.network
	if err := n.SetLandmarks(list); err != nil {
		f.Fatal(err)
	}
	if err := n.SignLandmarks(f.bridge.Host().Key()); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.bridge.Dir(), "network"), n.Bytes(), 0o600); err != nil {
		f.Fatal(err)
	}
	f.crashBridge()
	f.startBridge()
	for _, m := range f.machines {
		m.Start()
	}
	for _, m := range f.machines {
		m.awaitNode()
	}
}
