package dht

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// told is what a node has said and when it was heard, beside the index.
type told struct {
	peer    peer.ID
	record  *record
	beat    *beat
	arrived time.Time
}

// world makes random nodes with absent fields, stale and pending heartbeats, MIG slices and several groups.
func world(t testing.TB, rnd *rand.Rand, n int) (*replica, []*told) {
	t.Helper()
	x, all := newReplica(n), make([]*told, n)
	for i := range all {
		all[i] = &told{}
		retell(t, x, rnd, all[i], i, 1)
	}
	return x, all
}

// retell makes node i say something new, under the sequence number seq.
func retell(t testing.TB, x *replica, rnd *rand.Rand, e *told, i int, seq uint64) {
	t.Helper()
	maybe := func(p float64) bool { return rnd.Float64() < p }
	me := identityOf(t, 1000+i)
	rec, beatNew := e.record, seq == 1 && maybe(0.85) || seq > 1 && maybe(0.5)
	recordNew := seq == 1 || maybe(0.7)
	if recordNew {
		c := randomMachine(rnd, me.id, seq)
		rec = &record{raw: sign(t, me.key, capabilitySeal(), c), peer: me.id, cap: c}
		rec.digest = digestOf(rec.raw)
	}
	putBeat := func() {
		if !beatNew {
			return
		}
		var loads []*pb.GroupLoad
		for k, g := range rec.cap.GetGpus() {
			if maybe(0.9) {
				loads = append(loads, &pb.GroupLoad{Index: uint32(k), Free: uint32(rnd.IntN(int(g.GetCount()) + 1))})
			}
		}
		state := pb.NodeState(1 + rnd.IntN(5))
		if maybe(0.6) {
			state = ready
		}
		av := heartbeat(me.id, seq, epoch, rec.raw, state, loads...)
		if maybe(0.1) {
			av.CapDigest = make([]byte, digestSize)
		}
		e.beat = &beat{raw: sign(t, me.key, availabilitySeal(), av), peer: me.id, av: av}
		e.arrived = epoch.Add(-time.Duration(rnd.IntN(120)) * time.Second)
		if fate := x.putBeat(e.beat, 0, e.arrived); fate != beatTaken && fate != beatNews {
			t.Fatalf("heartbeat refused: %d", fate)
		}
	}
	beatFirst := maybe(0.3)
	if beatFirst {
		putBeat()
	}
	if recordNew && !x.putRecord(rec, epoch) {
		t.Fatal("record refused")
	}
	if !beatFirst {
		putBeat()
	}
	e.peer, e.record = me.id, rec
}

func randomMachine(rnd *rand.Rand, id peer.ID, seq uint64) *pb.Capability {
	models := []string{"nvidia-h100-80gb-sxm", "nvidia-a100-40gb-pcie", "nvidia-l4-24gb", "nvidia-rtx-4090-24gb", ""}
	vram := []float64{79.65, 39.4, 22.5, 23.99, 8}
	maybe := func(p float64) bool { return rnd.Float64() < p }
	var gpus []*pb.GpuGroup
	for range rnd.IntN(4) {
		m := rnd.IntN(len(models))
		g := gpu(models[m], uint32(1+rnd.IntN(8)), vram[m])
		if maybe(0.2) {
			g.VramBytes = nil
		}
		if maybe(0.7) {
			g.Compute = p32(uint32([]int{70, 80, 89, 90}[rnd.IntN(4)]))
		}
		if maybe(0.5) {
			g.Driver = []string{"550.54.15", "535.1", "garbage"}[rnd.IntN(3)]
		}
		if maybe(0.5) {
			g.Cuda = p32(uint32([]int{12040, 12010, 11080}[rnd.IntN(3)]))
		}
		if maybe(0.5) {
			ecc := maybe(0.5)
			g.Ecc = &ecc
		}
		if maybe(0.15) {
			g.MigProfile = "1g.10gb"
		}
		gpus = append(gpus, g)
	}
	c := machine(id, seq, epoch, gpus...)
	if maybe(0.3) {
		c.Host = nil
	}
	switch rnd.IntN(4) {
	case 0:
		c.Location = &pb.Location{Macro: "eu"}
	case 1:
		c.Location = &pb.Location{Country: []string{"DE", "US", "ZZ"}[rnd.IntN(3)]}
	case 2:
		c.Location = &pb.Location{Country: "US", Subdivision: "US-CA"}
	}
	if maybe(0.5) {
		c.Network = &pb.Network{Up: p64(uint64(rnd.IntN(2000)) * 1e6), Down: p64(uint64(rnd.IntN(2000)) * 1e6), Reachability: "public"}
	}
	if maybe(0.5) {
		c.Policy = &pb.PolicyHint{PriceUusdPerHour: p64(uint64(rnd.IntN(5)) * 500_000), Kinds: []string{"map", "task"}[:rnd.IntN(3)]}
	}
	if maybe(0.4) {
		c.Labels = []*pb.Label{{Key: "rack", Value: []string{"a", "b"}[rnd.IntN(2)], Issuer: []byte{1}}}
	}
	return c
}

// clauses of random filters.
var clauseTexts = []string{
	`gpu.model == "H100"`, `gpu.model in ["A100-40", "L4"]`, `gpu.model != "any"`, `gpu.model == "any"`, `gpu.count >= 4`, `gpu.free > 2`, `gpu.vram_gb >= 24`,
	`gpu.vram_gb == 40`, `gpu.compute >= 8.9`, `gpu.driver >= version("550")`, `gpu.cuda < version("12.4")`, `gpu.cuda in [version("11.8")]`,
	`gpu.mig`, `gpu.mig == false`, `gpu.ecc != true`, `gpus.count > 5`, `gpus.free >= 1`, `cpu.cores >= 8`, `cpu.arch == "AMD64"`,
	`node.region == "eu"`, `node.region in ["US-CA", "DE"]`, `node.country != "US"`, `node.tier == "low"`, `node.tier in ["high", "ultra"]`,
	`node.state in ["READY", "STALE"]`, `node.state != "PAUSED"`, `node.up_mbps > 100`, `node.price <= 1.5`, `node.age_s < 60`, `node.uptime_s > 10`,
	`node.kind == "map"`, `node.rtt_ms < 50`, `node.reputation >= 0.5`, `label("rack") == "a"`, `verified("rack") != "b"`, `label("none") == "x"`,
	`node.reachability == "public"`, `node.ram_gb >= 64`, `node.agent == "gridbeam/test"`, `gpu.vendor == "nvidia"`,
	`has_volume("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", 1)`,
}

func randomFilter(rnd *rand.Rand, depth int) string {
	pick := func() string { return clauseTexts[rnd.IntN(len(clauseTexts))] }
	if depth == 0 || rnd.Float64() < 0.3 {
		return pick()
	}
	a, b := randomFilter(rnd, depth-1), randomFilter(rnd, depth-1)
	switch rnd.IntN(4) {
	case 0:
		return "(" + a + ") && (" + b + ")"
	case 1:
		return "(" + a + ") || (" + b + ")"
	case 2:
		return "!(" + a + ")"
	default:
		return a
	}
}

// oracle judges a node in another way than the index: it walks the tree for each group, with *bool for
// Kleene's values and the record's own messages for facts.
type oracle struct {
	q   *Query
	now time.Time
	e   *told
	g   *pb.GpuGroup
	gi  int
}

func is(b bool) *bool { return &b }

func (o oracle) eval(n protocol.FilterNode) *bool {
	switch n := n.(type) {
	case *protocol.FilterNot:
		if v := o.eval(n.Of); v != nil {
			return is(!*v)
		}
		return nil
	case *protocol.FilterAnd:
		return o.all(n.Of, false)
	case *protocol.FilterOr:
		return o.all(n.Of, true)
	case *protocol.FilterHasVolume:
		for _, v := range o.e.record.cap.GetVolumes() {
			if string(v.GetRoot()) == string(n.Root) && int(v.GetPerMille()) >= n.PerMille {
				return is(true)
			}
		}
		return is(false)
	}
	return o.compare(n.(*protocol.FilterCompare))
}

// all is "or" when one settles it, "and" when its opposite does.
func (o oracle) all(of []protocol.FilterNode, settles bool) *bool {
	open := false
	for _, k := range of {
		v := o.eval(k)
		if v != nil && *v == settles {
			return is(settles)
		}
		open = open || v == nil
	}
	if open {
		return nil
	}
	return is(!settles)
}

func (o oracle) compare(n *protocol.FilterCompare) *bool {
	facts := o.facts(n.Term)
	if len(facts) == 0 {
		return nil
	}
	hit, open := false, false
	for _, v := range n.Values {
		for _, f := range facts {
			same := o.same(f, v)
			hit = hit || same != nil && *same
			open = open || same == nil
		}
	}
	var equal *bool // a hit settles it, else what cannot be told leaves it open
	if hit || !open {
		equal = is(hit)
	}
	switch n.Op {
	case protocol.OpEQ, protocol.OpIn:
		return equal
	case protocol.OpNE:
		if equal == nil {
			return nil
		}
		return is(!*equal)
	}
	c := 0
	switch f := facts[0].(type) {
	case float64:
		switch want := n.Values[0].Number; {
		case f < want:
			c = -1
		case f > want:
			c = 1
		}
	case []uint32:
		c = protocol.CompareVersions(f, n.Values[0].Version)
	}
	return is(map[protocol.FilterOp]bool{protocol.OpLT: c < 0, protocol.OpLE: c <= 0, protocol.OpGT: c > 0, protocol.OpGE: c >= 0}[n.Op])
}

func (o oracle) same(fact any, v protocol.FilterValue) *bool {
	switch f := fact.(type) {
	case float64:
		return is(f == v.Number)
	case bool:
		return is(f == v.Bool)
	case []uint32:
		return is(protocol.CompareVersions(f, v.Version) == 0)
	case protocol.Place:
		in, known := v.Place.Contains(f)
		if !known {
			return nil
		}
		return is(in)
	case string:
		if v.Kind == protocol.KindModel {
			return is(v.GPU.Any || slices.Contains(v.GPU.Slugs, f))
		}
		return is(f == v.Text)
	}
	panic("fact")
}

// facts returns the known values of a term.
func (o oracle) facts(t protocol.FilterTerm) []any {
	c, av := o.e.record.cap, (*pb.Availability)(nil)
	if b := o.e.beat; b != nil && string(b.av.GetCapDigest()) == string(o.e.record.digest[:]) {
		av = b.av
	}
	num := func(known bool, v float64) []any {
		if !known || math.IsNaN(v) {
			return nil
		}
		return []any{v}
	}
	text := func(s string) []any {
		if s == "" {
			return nil
		}
		return []any{s}
	}
	if t.Field.Scope() == protocol.ScopeGroup && o.g == nil {
		return nil
	}
	switch name := t.Field.String(); name {
	case "gpu.model":
		return text(o.g.GetModel())
	case "gpu.vendor":
		return text(o.g.GetVendor())
	case "gpu.count":
		return num(true, float64(o.g.GetCount()))
	case "gpu.free":
		for _, l := range av.GetGroups() {
			if int(l.GetIndex()) == o.gi {
				return num(true, float64(l.GetFree()))
			}
		}
		return nil
	case "gpu.vram_gb":
		return num(o.g.VramBytes != nil, float64(protocol.NominalGB(o.g.GetVramBytes())))
	case "gpu.compute":
		return num(o.g.Compute != nil, float64(o.g.GetCompute())/10)
	case "gpu.driver":
		return map[string][]any{"550.54.15": {[]uint32{550, 54, 15}}, "535.1": {[]uint32{535, 1}}}[o.g.GetDriver()]
	case "gpu.cuda":
		return map[uint32][]any{12040: {[]uint32{12, 4}}, 12010: {[]uint32{12, 1}}, 11080: {[]uint32{11, 8}}}[o.g.GetCuda()]
	case "gpu.mig":
		return []any{o.g.GetMigProfile() != ""}
	case "gpu.ecc":
		if o.g.Ecc == nil {
			return nil
		}
		return []any{o.g.GetEcc()}
	case "gpus.count", "gpus.free":
		sum := 0.0
		for _, g := range c.GetGpus() {
			sum += float64(g.GetCount())
		}
		if name == "gpus.free" {
			sum = 0
			for _, l := range av.GetGroups() {
				sum += float64(l.GetFree())
			}
			return num(av != nil, sum)
		}
		return num(true, sum)
	case "cpu.cores":
		return num(c.Host != nil, 8)
	case "cpu.arch":
		return text(strings.ToLower(c.GetHost().GetArch()))
	case "node.ram_gb":
		return num(c.Host != nil, 64)
	case "node.region":
		return []any{placeOf(c.GetLocation())}
	case "node.country":
		return text(placeOf(c.GetLocation()).Country)
	case "node.tier":
		if c.Network == nil {
			return nil
		}
		return text(BandwidthTier(c.Network.GetDown(), c.Network.GetUp()))
	case "node.up_mbps":
		return num(c.Network != nil, float64(c.GetNetwork().GetUp())/1e6)
	case "node.reachability":
		return text(c.GetNetwork().GetReachability())
	case "node.price":
		return num(c.Policy != nil, float64(c.GetPolicy().GetPriceUusdPerHour())/1e6)
	case "node.kind":
		var out []any
		for _, k := range c.GetPolicy().GetKinds() {
			out = append(out, k)
		}
		return out
	case "node.agent":
		return text(c.GetAgent())
	case "node.state":
		switch {
		case av == nil:
			return nil
		case av.State == pb.NodeState_NODE_STATE_LEAVING:
			return text("LEAVING")
		case o.now.Sub(o.e.arrived) > 90*time.Second:
			return text("STALE")
		}
		return text([]string{"", "READY", "BUSY", "DRAINING", "PAUSED"}[av.State])
	case "node.age_s":
		return num(o.e.beat != nil, o.now.Sub(o.e.arrived).Seconds())
	case "node.uptime_s":
		return num(o.e.beat != nil, o.now.Sub(epoch).Seconds()+3600)
	case "node.rtt_ms":
		rtt, _ := o.q.Local(o.e.peer)
		return num(true, rtt)
	case "node.reputation":
		_, rep := o.q.Local(o.e.peer)
		return num(true, rep)
	case "label", "verified":
		var out []any
		for _, l := range c.GetLabels() {
			if l.GetKey() == t.Label && (name == "label" || o.q.Verify(o.e.peer, l)) {
				out = append(out, l.GetValue())
			}
		}
		return out
	default:
		panic(name)
	}
}

// groups returns the groups for which the whole filter is true, and whether the node matches.
func (o oracle) groups(f *protocol.Filter) (match bool, groups []int) {
	gpus := o.e.record.cap.GetGpus()
	if len(gpus) == 0 || !f.MentionsGPU() {
		gpus = []*pb.GpuGroup{nil}
	}
	for i, g := range gpus {
		o.g, o.gi = g, i
		if f.Root() == nil {
			match = true
			continue
		}
		if v := o.eval(f.Root()); v != nil && *v {
			match = true
			if f.MentionsGPU() && g != nil {
				groups = append(groups, i)
			}
		}
	}
	return match, groups
}

func TestFindEqualsBruteForceForAnyFilter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	x, all := world(t, rnd, 150)
	local := func(id peer.ID) (float64, float64) {
		b := id[len(id)-1]
		if b < 64 {
			return math.NaN(), float64(b) / 64
		}
		return float64(b), math.NaN()
	}
	verify := func(id peer.ID, _ *pb.Label) bool { return id[len(id)-1]%2 == 0 }
	matchedSome := 0
	for i := range 3000 {
		if i%100 == 99 { // the population changes, and with it every bitmap
			for k, e := range all {
				retell(t, x, rnd, e, k, uint64(i))
			}
		}
		text := randomFilter(rnd, 4)
		f, err := protocol.ParseFilter(text)
		if err != nil {
			if strings.Contains(err.Error(), "at most") {
				continue
			}
			t.Fatalf("%s: %v", text, err)
		}
		q := Query{Filter: f, Literal: i%2 == 0, Seed: 3, Explain: i%3 == 0, Local: local, Verify: verify}
		got, ex := newAsking(q, epoch, false).run(x)
		blunt := newAsking(q, epoch, false)
		blunt.blunt = true
		if unhinted, _ := blunt.run(x); !reflect.DeepEqual(got, unhinted) {
			t.Fatalf("%s (literal %t): %d with hints, %d without", text, q.Literal, len(got), len(unhinted))
		}
		asked := f
		if !q.Literal {
			asked, _ = f.WithImplied()
		}
		bare := f // what is asked of a node without GPUs, which has no slices to leave out
		if !q.Literal && !f.Mentions(protocol.FieldNodeState) {
			bare = parsed(t, "("+f.String()+`) && node.state in ["READY", "BUSY"]`)
		}
		want := map[peer.ID][]int{}
		for _, e := range all {
			of := asked
			if len(e.record.cap.GetGpus()) == 0 {
				of = bare
			}
			if match, groups := (oracle{q: &q, now: epoch, e: e}).groups(of); match {
				if !f.MentionsGPU() {
					groups = nil
				}
				want[e.peer] = groups
			}
		}
		have := map[peer.ID][]int{}
		for _, c := range got {
			have[c.Peer] = c.Groups
		}
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("%s (literal %t): index finds %d, brute force %d", text, q.Literal, len(have), len(want))
		}
		if ex.Matched != len(want) || ex.Population != len(all) {
			t.Fatalf("%s: explanation %+v", text, ex)
		}
		if len(want) > 0 {
			matchedSome++
		}
	}
	if matchedSome < 500 {
		t.Errorf("only %d filters matched anything: the property is tested on air", matchedSome)
	}
}

func TestExplanationCountsWhatEachClauseRemoves(t *testing.T) {
	x := newReplica(10)
	add := func(n int, state pb.NodeState, cores uint32, gpus ...*pb.GpuGroup) {
		id := identityOf(t, n).id
		c := machine(id, 1, epoch, gpus...)
		c.Host.Cores = &cores
		rec := &record{raw: fmt.Appendf(nil, "%d", n), peer: id, cap: c}
		rec.digest = digestOf(rec.raw)
		x.putRecord(rec, epoch)
		x.putBeat(&beat{peer: id, av: heartbeat(id, 1, epoch, rec.raw, state)}, 0, epoch)
	}
	add(1, ready, 8, gpu("nvidia-l4-24gb", 1, 22.5))
	add(2, ready, 2, gpu("nvidia-l4-24gb", 1, 22.5))
	add(3, pb.NodeState_NODE_STATE_PAUSED, 8, gpu("nvidia-l4-24gb", 1, 22.5))
	add(4, ready, 8, gpu("nvidia-t4-16gb", 1, 15))
	add(5, ready, 2)
	f, err := protocol.ParseFilter(`cpu.cores >= 4 && gpu.vram_gb >= 20`)
	if err != nil {
		t.Fatal(err)
	}
	_, ex := newAsking(Query{Filter: f, Explain: true}, epoch, false).run(x)
	want := []ClauseCount{
		{"cpu.cores >= 4", false, 2, 1, 3},
		{"gpu.vram_gb >= 20", false, 2, 1, 2},
		{"!gpu.mig", true, 0, 0, 2},
		{`node.state in ["READY", "BUSY"]`, true, 1, 1, 1},
	}
	if !slices.Equal(ex.Clauses, want) || ex.Matched != 1 || ex.Population != 5 {
		t.Errorf("explanation %+v", ex)
	}
}

// TestExplanationOfNoMatchNamesTheClauseThatDidIt: a node without GPUs has no gpu.count, so the clause rejects all, and
// the implied clause about slices is not to blame.
func TestExplanationOfNoMatchNamesTheClauseThatDidIt(t *testing.T) {
	x := newReplica(10)
	for n := range 3 {
		id := identityOf(t, n).id
		var gpus []*pb.GpuGroup
		if n == 0 {
			gpus = append(gpus, gpu("nvidia-l4-24gb", 2, 22.5))
		}
		rec := &record{raw: fmt.Appendf(nil, "%d", n), peer: id, cap: machine(id, 1, epoch, gpus...)}
		rec.digest = digestOf(rec.raw)
		x.putRecord(rec, epoch)
		x.putBeat(&beat{peer: id, av: heartbeat(id, 1, epoch, rec.raw, ready)}, 0, epoch)
	}
	for where, want := range map[string][]ClauseCount{
		`gpu.count == 0`:                 {{`gpu.count == 0`, false, 3, 3, 0}, {"!gpu.mig", true, 0, 0, 0}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 0}},
		`gpu.count == 0 && gpu.free > 9`: {{`gpu.count == 0`, false, 3, 0, 0}, {"gpu.free > 9", false, 3, 0, 0}, {"!gpu.mig", true, 0, 0, 0}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 0}},
		`gpus.count == 0`:                {{`gpus.count == 0`, false, 1, 1, 2}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 2}},
		`gpu.count > 1 || cpu.cores > 1`: {{`gpu.count > 1 || cpu.cores > 1`, false, 0, 0, 3}, {"!gpu.mig", true, 0, 0, 3}, {`node.state in ["READY", "BUSY"]`, true, 0, 0, 3}},
	} {
		_, ex := newAsking(Query{Filter: parsed(t, where), Explain: true}, epoch, false).run(x)
		if !slices.Equal(ex.Clauses, want) {
			t.Errorf("%s: explanation %+v, want %+v", where, ex.Clauses, want)
		}
		for i, c := range ex.Clauses {
			if c.Left > ex.Population-c.Removed || c.RemovedAlone > c.Removed || i == 0 && c.Left != ex.Population-c.Removed {
				t.Errorf("%s: of %d nodes %+v contradicts itself", where, ex.Population, c)
			}
		}
		if last := ex.Clauses[len(ex.Clauses)-1].Left; last != ex.Matched {
			t.Errorf("%s: %d are left of %d that match", where, last, ex.Matched)
		}
	}
}

func TestAllGPUClausesHoldForOneGroup(t *testing.T) {
	id := identityOf(t, 1).id
	rec := &record{peer: id, cap: machine(id, 1, epoch, gpu("nvidia-t4-16gb", 8, 15), gpu("nvidia-h100-80gb-pcie", 1, 79.65))}
	x := newReplica(1)
	x.putRecord(rec, epoch)
	for where, want := range map[string][]int{
		`gpu.model == "H100" && gpu.count >= 8`: nil,
		`gpu.model == "H100" || gpu.count >= 8`: {0, 1},
		`gpu.vram_gb >= 40`:                     {1},
		`!(gpu.model == "T4")`:                  {1},
	} {
		f, err := protocol.ParseFilter(where)
		if err != nil {
			t.Fatal(err)
		}
		hits, _ := newAsking(Query{Filter: f, Literal: true}, epoch, false).match(x)
		var got []int
		if len(hits) == 1 {
			got = hits[0].groups
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: groups %v, want %v", where, got, want)
		}
	}
}

func TestEqualSeedsGiveEqualOrders(t *testing.T) {
	_, all := world(t, rand.New(rand.NewPCG(1, 2)), 60)
	shake := rand.New(rand.NewPCG(3, 4))
	order := func(seed uint64) []peer.ID {
		x := newReplica(len(all))
		for _, i := range shake.Perm(len(all)) { // whatever the order of arrival
			x.putRecord(all[i].record, epoch)
		}
		got, _ := newAsking(Query{Literal: true, Seed: seed}, epoch, false).run(x)
		var ids []peer.ID
		for _, c := range got {
			ids = append(ids, c.Peer)
		}
		return ids
	}
	if a, b := order(1), order(1); !slices.Equal(a, b) {
		t.Error("one seed gave two orders")
	}
	if slices.Equal(order(1), order(2)) {
		t.Error("two seeds gave one order")
	}
}

func TestBandwidthTiersBeginStrictlyAboveTheirBounds(t *testing.T) {
	const m = 1_000_000
	for _, c := range []struct {
		down, up uint64
		want     string
	}{
		{100 * m, 75 * m, "none"},
		{100*m + 1, 75*m + 1, "low"},
		{100*m + 1, 75 * m, "none"},
		{400 * m, 300 * m, "low"},
		{400*m + 1, 300*m + 1, "medium"},
		{800*m + 1, 600 * m, "medium"},
		{800*m + 1, 600*m + 1, "high"},
		{1600 * m, 1200 * m, "high"},
		{1600*m + 1, 1200*m + 1, "ultra"},
		{0, 0, "none"},
		{1 << 63, 1 << 63, "ultra"},
	} {
		if got := BandwidthTier(c.down, c.up); got != c.want {
			t.Errorf("%d/%d: %s, want %s", c.down, c.up, got, c.want)
		}
	}
}
