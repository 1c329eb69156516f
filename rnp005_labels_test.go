package gridbeam_test

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// "Labels: bandwidth tier, location, host type, compliance" (RNP-004): a label counts when somebody whom the bridge believes
// has signed it about this very node, and never before.
func TestD4_OnlyVerifiedLabelsSatisfyAJobOrEarnAScore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := newFarm(t, 31)
		say := func(issuer crypto.PrivKey, life time.Duration, words ...string) *machine {
			var m *machine
			m = f.place(machineKind{slots: 2, anchor: true, pace: every(100 * time.Millisecond), change: func(c *node.Config) {
				for i := 0; i < len(words); i += 2 {
					l := &pb.Label{Key: words[i], Value: words[i+1]}
					if issuer != nil {
						var err error
						if l, err = protocol.SignLabel(issuer, m.ID(), words[i], words[i+1], time.Now().Add(life)); err != nil {
							t.Error(err)
						}
					}
					c.Labels = append(c.Labels, l)
				}
			}})
			return m
		}
		all := []string{"host.type", "datacenter", "compliance", "gdpr", "net.tier", "ultra"}
		claims := say(nil, 0, all...)
		strange := say(keyOf(31, "somebody"), 24*time.Hour, all...)
		verified := say(f.operator, 24*time.Hour, all...)
		plain := say(nil, 0)
		f.start()
		f.known(4)

		for name, change := range map[string]func(*protocol.JobPlacement){
			"host type":          func(p *protocol.JobPlacement) { p.HostType = []string{"datacenter"} },
			"compliance":         func(p *protocol.JobPlacement) { p.Compliance = []string{"gdpr"} },
			"bandwidth":          func(p *protocol.JobPlacement) { p.Bandwidth = "high" },
			"a where of its own": func(p *protocol.JobPlacement) { p.Where = `verified("host.type") == "datacenter"` },
		} {
			j := sweep(4)
			change(&j.Placement)
			if r := f.check(j); r.Known != 4 || r.Matching != 1 {
				t.Errorf("%s: %d of %d nodes match, want 1 of 4: %s", name, r.Matching, r.Known, r.Summary)
				continue
			}
			a := &audit{farm: f, texts: numbers(4), job: f.submit(j)}
			a.over(5*time.Minute, func(protocol.JobStatus) {})
			if s, _ := f.status(a.job); len(s.Nodes) != 1 || s.Nodes[0].PeerID != verified.ID() {
				t.Errorf("%s: worked: %+v", name, s.Nodes)
			}
		}
		none := sweep(4)
		none.Placement.Bandwidth, none.Placement.Compliance = "ultra", []string{"gdpr", "hipaa"}
		if r := f.check(none); r.Matching != 0 {
			t.Errorf("a label that nobody has is satisfied by %d nodes", r.Matching)
		}

		if _, err := f.Bridge().PutVolume(t.Context(), alice, "numbers", fstest.MapFS{"n.bin": {Data: make([]byte, 2<<20)}}); err != nil {
			t.Fatal(err)
		}
		reads := sweep(80)
		reads.Volumes = []protocol.JobVolume{{Name: "numbers", At: "/numbers"}}
		a := &audit{farm: f, texts: numbers(80), job: f.submit(reads)}
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		x, err := f.Bridge().ExplainJob(t.Context(), alice, a.job)
		if err != nil {
			t.Fatal(err)
		}
		data := map[protocol.PeerID]float64{}
		for _, n := range x.Chosen {
			data[n.PeerID] = n.Data
		}
		if plain := data[plain.ID()]; len(data) != 4 || plain <= 0 || data[claims.ID()] != plain || data[strange.ID()] != plain || data[verified.ID()] >= plain {
			t.Errorf("seconds for data: nothing said %v, a claim %v, a stranger's word %v, verified %v", plain, data[claims.ID()], data[strange.ID()], data[verified.ID()])
		}
	})
}

// "Minimum specifications" (RNP-006, RNP-019): exact bounds, each with what is there, what is needed, and what to do; they
// keep nobody from joining.
func TestD5_MinimumSpecificationsHaveReasonsAndKeepNobodyOut(t *testing.T) {
	const mbit, gb = 1_000_000, 1_000_000_000
	rich := &pb.Capability{
		Gpus:    []*pb.GpuGroup{gpus("NVIDIA GeForce RTX 4090", 23.99, 1)},
		Network: &pb.Network{Down: proto.Uint64(100*mbit + 1), Up: proto.Uint64(75*mbit + 1), MeasuredBy: protocol.MeasuredByPeers},
		Host:    &pb.Host{RamBytes: proto.Uint64(64 * gb), Storage: []*pb.Storage{{Class: "nvme", Total: 1000 * gb}}},
	}
	for name, c := range map[string]struct {
		change func(*pb.Capability)
		meets  int
	}{
		"all of it":           {func(*pb.Capability) {}, 2},
		"exactly 100/75":      {func(c *pb.Capability) { *c.Network.Down, *c.Network.Up = 100*mbit, 75*mbit }, 0},
		"32 GB":               {func(c *pb.Capability) { *c.Host.RamBytes = 32 * gb }, 1},
		"a hard disk":         {func(c *pb.Capability) { c.Host.Storage[0].Class = "hdd" }, 1},
		"a data centre's GPU": {func(c *pb.Capability) { c.Gpus = []*pb.GpuGroup{gpus("NVIDIA H100 80GB HBM3", 79.65, 8)} }, 0},
	} {
		node := proto.CloneOf(rich)
		c.change(node)
		met := 0
		for _, p := range protocol.Profiles() {
			all := p.Check(node)
			if protocol.Meets(all) {
				met++
			}
			for _, r := range all {
				if !r.Met && (r.Have == "" || r.Need == "" || r.Fix == "") {
					t.Errorf("%s: %s does not say why: %+v", name, p.Name, r)
				}
			}
		}
		if met != c.meets {
			t.Errorf("%s meets %d profiles, want %d", name, met, c.meets)
		}
	}
	inBubble(t, func(t *testing.T) { // a machine without a GPU works
		f := newFarm(t, 32)
		m := f.place(machineKind{slots: 2, pace: every(100 * time.Millisecond)})
		f.start()
		f.known(1)
		a := &audit{farm: f, texts: numbers(5), job: f.submit(sweep(5))}
		a.over(5*time.Minute, func(protocol.JobStatus) {})
		for _, p := range m.Node().Status().Profiles {
			if p.Met || len(p.Requirements) < 2 || p.Requirements[0].Name != "gpu" || p.Requirements[0].Fix == "" {
				t.Errorf("its owner is told %+v", p)
			}
		}
	})
}
