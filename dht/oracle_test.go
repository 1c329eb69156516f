package dht

import (
	"math"
	"math/rand/v2"
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
		case o.now.Sub(o.e.arrived) > 89_500*time.Millisecond:
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
