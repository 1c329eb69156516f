package dht

import (
	"slices"
	"testing"
	"time"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestANodeAnnouncesThePoolOfItsLineAndRegion(t *testing.T) {
	const mbit = 1_000_000
	for name, c := range map[string]struct {
		down, up uint64
		place    *pb.Location
		want     string
	}{
		"a country":         {400*mbit + 1, 300*mbit + 1, &pb.Location{Macro: "eu", Country: "DE"}, "pool/medium/eu"},
		"a region":          {2000 * mbit, 2000 * mbit, &pb.Location{Macro: "apac"}, "pool/ultra/apac"},
		"below all tiers":   {100 * mbit, 75 * mbit, &pb.Location{Macro: "eu"}, ""},
		"a region unknown":  {2000 * mbit, 2000 * mbit, &pb.Location{Macro: "atlantis"}, ""},
		"no region is told": {2000 * mbit, 2000 * mbit, nil, ""},
	} {
		attrs := Attributes(&pb.Capability{Network: &pb.Network{Down: &c.down, Up: &c.up}, Location: c.place})
		want := []string{AttrAll}
		if c.want != "" {
			want = append(want, c.want)
		}
		if !slices.Equal(attrs, want) {
			t.Errorf("%s: %q, want %q", name, attrs, want)
		}
	}
	if attrs := Attributes(&pb.Capability{Location: &pb.Location{Macro: "eu"}}); len(attrs) != 1 {
		t.Errorf("a line that was not measured: %q", attrs)
	}
}

func TestAFilterOfTiersAndRegionsIsLookedUpByPool(t *testing.T) {
	for where, want := range map[string][]string{
		`node.tier == "high" && node.region == "eu"`:                             {"pool/high/eu"},
		`node.region in ["DE", "FR", "noram"] && node.tier in ["high", "ultra"]`: {"pool/high/eu", "pool/high/noram", "pool/ultra/eu", "pool/ultra/noram"},
		`node.tier == "high"`:                                         nil,
		`node.region == "eu"`:                                         nil,
		`node.tier != "low" && node.region == "eu"`:                   nil,
		`node.tier == "high" && node.region == "eu" || gpu.count > 2`: nil,
		`node.tier in ["low", "high", "ultra"] && node.region in ["eu", "noram", "latam"]`: nil,
		`node.tier == "high" && node.region == "eu" && gpu.vram_gb >= 141`:                 {"vram/141", "vram/192"},
	} {
		if got := hints(parsed(t, where)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", where, got, want)
		}
	}
}

func TestAClientFindsANodeByItsPool(t *testing.T) {
	peers := neighbourhood(t, 3)
	now := time.Now()
	rec := machine(peers[1].id, uint64(now.UnixMicro()), now)
	rec.Network = &pb.Network{Down: p64(900_000_000), Up: p64(700_000_000)}
	rec.Location = &pb.Location{Macro: "eu", Country: "FR"}
	raw := sign(t, peers[1].key, capabilitySeal(), rec)
	ctx := within(t, 20*time.Second)
	if _, err := peers[1].dir.Advertise(ctx, raw); err != nil {
		t.Fatal(err)
	}
	if err := peers[1].dir.Provide(ctx, Attributes(rec)[1:]); err != nil { // the pool alone, not all
		t.Fatal(err)
	}
	peers[1].beat(t, raw, ready)
	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, peers[2].host)
	connect(t, client.host, peers[0].host)
	eventually(t, "the node is found", func() bool {
		got, ex := find(t, client.dir, `node.tier == "high" && node.region == "eu"`, nil)
		return ex.Tier == "cold" && slices.Equal(got, idsOf(peers[1]))
	})
}
