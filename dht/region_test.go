package dht

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func placed(t testing.TB, name string) protocol.Place {
	t.Helper()
	if name == "" {
		return protocol.Place{}
	}
	p, err := protocol.ParsePlace(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAClaimedPlaceIsJudgedByRoundTrips(t *testing.T) {
	type seen struct {
		who, place string
		ms         float64
	}
	for name, c := range map[string]struct {
		claim string
		seen  []seen
		want  RegionVerdict
	}{
		"nobody has measured":               {"DE", nil, RegionUnverified},
		"nothing is claimed":                {"", []seen{{"a", "DE", 1}, {"b", "FR", 1}, {"c", "US", 1}}, RegionUnverified},
		"two agree":                         {"DE", []seen{{"a", "DE", 10}, {"b", "FR", 20}}, RegionUnverified},
		"one observer three times":          {"DE", []seen{{"a", "DE", 10}, {"a", "DE", 20}, {"a", "DE", 30}}, RegionUnverified},
		"three agree, one inside":           {"DE", []seen{{"a", "DE", 10}, {"b", "FR", 20}, {"c", "US", 95}}, RegionConsistent},
		"inside at 60 ms":                   {"DE", []seen{{"a", "DE", 60}, {"b", "FR", 70}, {"c", "US", 150}}, RegionConsistent},
		"inside at more":                    {"DE", []seen{{"a", "DE", 60.1}, {"b", "FR", 70}, {"c", "US", 150}}, RegionUnverified},
		"nobody inside":                     {"DE", []seen{{"a", "FR", 10}, {"b", "FR", 20}, {"c", "US", 95}}, RegionUnverified},
		"a region, two countries of it":     {"eu", []seen{{"a", "FR", 10}, {"b", "PL", 20}, {"c", "US", 95}}, RegionConsistent},
		"a subdivision, by its country":     {"DE-BE", []seen{{"a", "DE-HH", 10}, {"b", "FR", 20}, {"c", "US", 95}}, RegionConsistent},
		"too near to another continent":     {"DE", []seen{{"a", "US", 12}}, RegionContradicted},
		"one impossible outweighs all":      {"DE", []seen{{"a", "DE", 10}, {"b", "FR", 20}, {"c", "SG", 30}, {"d", "NL", 9}}, RegionContradicted},
		"the shortest of one counts":        {"DE", []seen{{"a", "US", 120}, {"a", "US", 12}}, RegionContradicted},
		"slow everywhere proves nothing":    {"DE", []seen{{"a", "US", 900}, {"b", "SG", 900}, {"c", "DE", 900}}, RegionUnverified},
		"no time is no measurement":         {"DE", []seen{{"a", "US", 0}}, RegionUnverified},
		"an observer without a place":       {"DE", []seen{{"a", "", 1}, {"b", "DE", 10}, {"c", "FR", 10}}, RegionUnverified},
		"light would just make it":          {"SG", []seen{{"a", "ZA", 100}}, RegionUnverified},
		"a lie within one round trip's way": {"FR", []seen{{"a", "DE", 5}, {"b", "DE-BE", 6}, {"c", "CH", 7}}, RegionUnverified},
	} {
		var all []Observation
		for _, s := range c.seen {
			all = append(all, Observation{peer.ID(s.who), placed(t, s.place), time.Duration(s.ms * float64(time.Millisecond))})
		}
		got := CheckRegion(placed(t, c.claim), all)
		if got.Verdict != c.want {
			t.Errorf("%s: %s, want %s (%+v)", name, got.Verdict, c.want, got)
		}
		if got.Verdict == RegionContradicted && (got.Against.Observer == "" || got.LeastKm < 1000 || !strings.Contains(got.String(), "at least")) {
			t.Errorf("%s: %q does not say by whom", name, got.String())
		}
	}
}

// Whoever tells the truth is never contradicted, however much it delays, and a liar gains nothing by delaying but to be
// unverified. The order of observations does not matter.
func TestTheTruthIsNeverContradicted(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	names := []string{"DE", "US", "SG", "BR", "ZA", "AU", "JP", "NL", "IN", "eu", "apac"}
	for range 3000 {
		truth := placed(t, names[r.IntN(9)])
		var all []Observation
		for i := range r.IntN(6) {
			o := placed(t, names[r.IntN(9)])
			ms := truth.GapKm(o)/protocol.MinKmPerRTTMs + 0.1 + r.ExpFloat64()*40
			all = append(all, Observation{peer.ID(rune('a' + i)), o, time.Duration(ms * float64(time.Millisecond))})
		}
		for _, claim := range []protocol.Place{truth, {Macro: truth.Macro}} {
			got := CheckRegion(claim, all)
			if got.Verdict == RegionContradicted {
				t.Fatalf("%s is contradicted: %s", claim, got.String())
			}
			r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			if again := CheckRegion(claim, all); again != got {
				t.Fatalf("%+v, in another order %+v", got, again)
			}
			for i := range all {
				all[i].RTT += time.Second
			}
			if late := CheckRegion(claim, all); late.Verdict != RegionUnverified {
				t.Fatalf("delays make it %s", late.Verdict)
			}
			for i := range all {
				all[i].RTT -= time.Second
			}
		}
	}
}

func TestObserversJudgeTheClaimsOfNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 6, 8, 0, landmarked(t, "DE", "FR", "NL"), func(w *simWorld) {
			for i, p := range map[int]string{3: "DE", 4: "SG", 5: "BE"} {
				w.hosts[i].place = p
			}
		})
		pass(4 * time.Minute)
		client := w.client()
		if client.CanCheckRegions() {
			t.Error("a client without a network can check regions")
		}
		client.SetNetwork(*w.network)
		pass(5 * time.Second)
		for who, d := range map[string]*Directory{"client": client, "an observer itself": w.hosts[0].directory()} {
			found, _, err := d.Find(context.Background(), Query{Filter: parsed(t, `gpus.count >= 1`), Via: map[string]Via{"client": ViaIndex}[who]})
			if err != nil || len(found) != 5 || !d.CanCheckRegions() {
				t.Fatalf("%s: %v, %d found", who, err, len(found))
			}
			checks := d.CheckRegions(context.Background(), found)
			for i, want := range map[int]RegionVerdict{3: RegionConsistent, 4: RegionContradicted, 5: RegionUnverified} {
				c, ok := checks[w.hosts[i].ID()]
				if !ok || c.Verdict != want || c.Observers != 3 {
					t.Errorf("%s: node %d: %+v, want %s by 3 observers", who, i, c, want)
				}
			}
			if len(checks) != 3 {
				t.Errorf("%s: %d checks of 3 claims", who, len(checks))
			}
			refuted := func(id peer.ID) bool { return checks[id].Verdict == RegionContradicted }
			for where, want := range map[string]int{`node.region == "apac"`: 0, `node.country != "DE"`: 1, `node.country == "DE"`: 1, `node.region == "eu"`: 2} {
				if got, n := d.Again(Query{Filter: parsed(t, where), Literal: true, Refuted: refuted}, found); len(got) != want || n != want {
					t.Errorf("%s, %s: %d nodes, want %d", who, where, len(got), want)
				}
			}
		}
	})
}

func FuzzReadRoundTrips(f *testing.F) {
	ids := []peer.ID{identityOf(f, 1).id, identityOf(f, 2).id}
	for _, r := range []*pb.RoundTripsReply{
		{},
		{RoundTrips: []*pb.RoundTrip{{PeerId: []byte(ids[0]), RttUs: 1200, AgeS: 3}}},
		{RoundTrips: []*pb.RoundTrip{{PeerId: []byte("x"), RttUs: 1}, {PeerId: []byte(ids[1])}, {PeerId: []byte(ids[0]), RttUs: 1 << 31, AgeS: 1 << 31}}},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		reply := &pb.RoundTripsReply{}
		if proto.Unmarshal(raw, reply) != nil {
			return
		}
		got, err := readRoundTrips(reply, ids)
		if err != nil {
			return
		}
		for id, rtt := range got {
			if id != ids[0] && id != ids[1] || rtt <= 0 {
				t.Fatalf("took %s for %q", rtt, id)
			}
		}
	})
}
