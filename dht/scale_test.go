package dht

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// rnp004Pools are RNP-004's five pools: 138,400 GPUs.
var rnp004Pools = []struct {
	gpus  int
	model string
	gib   float64
}{
	{60_000, "nvidia-rtx-3090-24gb", 23.99},
	{30_000, "nvidia-rtx-4090-24gb", 23.99},
	{20_000, "nvidia-a100-80gb-sxm", 79.25},
	{18_400, "nvidia-rtx-a6000-48gb", 47.54},
	{10_000, "nvidia-h100-80gb-sxm", 79.65},
}

// crowd is a large population: n nodes as RNP-004's pools are mixed, of size GPUs each, 0 for a mixture of 1
// to 8. Their envelopes are signed as on the network, so that they weigh what they weigh there.
type crowd struct {
	x       *replica
	members []identity
	records []*record // without content: as raw, digest and owner
	beats   [][]byte
	seq     uint64 // of the last heartbeat
}

func newCrowd(t testing.TB, n, size int, now time.Time) *crowd {
	t.Helper()
	c := &crowd{x: newReplica(n), members: make([]identity, n), records: make([]*record, n), beats: make([][]byte, n)}
	var all sync.WaitGroup
	for part := range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(4, uint64(part)))
			for i := part; i < n; i += runtime.GOMAXPROCS(0) {
				c.join(t, rnd, i, size, now)
			}
		})
	}
	all.Wait()
	return c
}

func (c *crowd) join(t testing.TB, rnd *rand.Rand, i, size int, now time.Time) {
	me := identityOf(t, 1_000_000+i)
	ticket, at := rnd.IntN(138_400), 0
	for ticket >= rnp004Pools[at].gpus {
		ticket -= rnp004Pools[at].gpus
		at++
	}
	if size == 0 {
		size = []int{1, 1, 1, 2, 4, 8, 8}[rnd.IntN(7)]
	}
	g := gpu(rnp004Pools[at].model, uint32(size), rnp004Pools[at].gib)
	g.RawName, g.Arch, g.Driver, g.Interface = "NVIDIA "+g.Model, "ampere", []string{"550.54.15", "535.183.01", "570.86.10"}[rnd.IntN(3)], "pcie"
	g.Compute, g.Cuda, g.PcieGen, g.PcieWidth, g.PowerW, g.MemMhz, g.SmMhz = p32(86), p32(12040), p32(4), p32(16), p32(350), p32(9751), p32(2100)
	for range size {
		g.DeviceTags = append(g.DeviceTags, fmt.Appendf(nil, "%08d", rnd.IntN(1e8)))
	}
	rec := machine(me.id, 1, now, g)
	rec.Host.CpuModel, rec.Host.Kernel, rec.Host.Threads = "AMD EPYC 7763 64-Core Processor", "6.8.0-45-generic", p32(16)
	rec.Host.Executors = []string{"wasm:strong", "container:strong"}
	rec.Host.Storage = []*pb.Storage{{Class: "nvme", Total: 2e12, Usable: 1e12}}
	rec.Location = &pb.Location{Country: []string{"US", "DE", "FR", "JP", "BR", "CA", "GB", "AU"}[rnd.IntN(8)]}
	rec.Network = &pb.Network{
		Reachability: "public", Transports: []string{"quic4", "tcp4"},
		Up: p64(uint64(rnd.IntN(1500)) * 1e6), Down: p64(uint64(rnd.IntN(2000)) * 1e6), MeasuredBy: "peers",
	}
	rec.Policy = &pb.PolicyHint{PriceUusdPerHour: p64(uint64(rnd.IntN(2_000_000))), Kinds: []string{"map", "task"}}
	rec.Labels = []*pb.Label{{Key: protocol.LabelOperator, Value: me.id.String(), Issuer: []byte(me.id), Signature: make([]byte, 64), Expires: now.UnixMilli()}}
	rec.Addrs = [][]byte{make([]byte, 60), make([]byte, 60)}
	raw := sign(t, me.key, capabilitySeal(), rec)
	state := ready
	if rnd.IntN(10) == 0 {
		state = pb.NodeState(2 + rnd.IntN(3))
	}
	av := heartbeat(me.id, 1, now, raw, state, &pb.GroupLoad{Index: 0, Free: uint32(rnd.IntN(size + 1))})
	av.CapSeq, av.Running, av.RamFreeMib, av.DiskFreeGib = 1, 2, 30_000, 900
	b := &beat{raw: sign(t, me.key, availabilitySeal(), av), peer: me.id, av: av}
	r := &record{raw: raw, peer: me.id, cap: rec, digest: digestOf(raw)}
	if !c.x.putRecord(r, now) || c.x.putBeat(b, 0, now) != beatTaken {
		t.Error("a node is refused")
	}
	c.members[i], c.beats[i] = me, b.raw
	c.records[i] = &record{raw: raw, peer: me.id, digest: r.digest}
}

// beatOn puts heartbeats in until stop closes, as many a second as a network of this size sends: each is
// verified as one from gossip.
func (c *crowd) beatOn(t testing.TB, now time.Time, stop <-chan struct{}) (taken int) {
	perSecond := max(1, len(c.members)/60)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	rnd := rand.New(rand.NewPCG(8, 8))
	begun := time.Now()
	for {
		select {
		case <-stop:
			return taken
		case <-tick.C:
		}
		for due := int(time.Since(begun).Seconds() * float64(perSecond)); taken < due; taken++ {
			i := rnd.IntN(len(c.members))
			b, err := openBeat(c.beats[i], c.members[i].id)
			if err != nil {
				t.Error(err)
				return taken
			}
			// As the node's next one; signing it here would take the time of the machine under test.
			av := proto.Clone(b.av).(*pb.Availability)
			c.seq++
			av.Seq = c.seq + 1
			av.Groups[0].Free = uint32(rnd.IntN(9))
			if fate := c.x.putBeat(&beat{raw: b.raw, peer: b.peer, av: av}, 0, now); fate != beatTaken {
				t.Errorf("heartbeat judged %d", fate)
				return taken
			}
		}
	}
}

// realistic filters: what jobs ask.
var realistic = []struct{ name, where string }{
	{"issue", `gpu.model in ["H100","A100-80"] && gpu.vram_gb >= 40 && gpu.free >= 4 && node.region == "eu"`},
	{"rare", `gpu.model == "H100" && gpu.count == 8 && gpu.free == 8 && node.country == "DE" && node.tier == "ultra"`},
	{"cheap", `gpu.vram_gb >= 24 && gpu.free >= 2 && node.price <= 0.1 && node.down_mbps > 800 && cpu.cores >= 8`},
	{"either", `(gpu.model == "A100" || gpu.model == "H100") && gpu.free >= 8 && !(node.region in ["apac", "latam"]) && gpu.driver >= version("550")`},
	{"nothing", `gpu.model == "B200" && gpu.free >= 1`},
	{"no_bitmap", `gpu.compute >= 8.9 || node.ram_gb > 100 && node.disk_gb > 5000`},
}

// quantile returns the p-quantile of durations, sorted in place.
func quantile(ds []time.Duration, p float64) time.Duration {
	slices.Sort(ds)
	return ds[min(len(ds)-1, int(p*float64(len(ds))))]
}

func benchmarkFind(b *testing.B, n int) {
	now := time.Now()
	c := newCrowd(b, n, 0, now)
	for _, f := range realistic {
		b.Run(f.name, func(b *testing.B) {
			filter := parsed(b, f.where)
			stop := make(chan struct{})
			var beats sync.WaitGroup
			beats.Go(func() { c.beatOn(b, now, stop) })
			var took []time.Duration
			found := 0
			for b.Loop() {
				begun := time.Now()
				out, _ := newAsking(Query{Filter: filter, Seed: uint64(len(took))}, now, false).run(c.x)
				took = append(took, time.Since(begun))
				found = len(out)
			}
			b.StopTimer()
			close(stop)
			beats.Wait()
			b.ReportMetric(float64(found), "found")
			b.ReportMetric(float64(quantile(took, 0.5).Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(quantile(took, 0.99).Microseconds())/1000, "p99-ms")
		})
	}
	b.Run("linear", func(b *testing.B) { // the same question to each decoded record in turn
		asked, _ := parsed(b, realistic[0].where).WithImplied()
		all := make([]*told, len(c.records))
		for i, r := range c.records {
			content, err := protocol.PeekCapability(r.raw)
			if err != nil {
				b.Fatal(err)
			}
			bt, err := openBeat(c.beats[i], r.peer)
			if err != nil {
				b.Fatal(err)
			}
			all[i] = &told{peer: r.peer, record: &record{raw: r.raw, peer: r.peer, cap: content, digest: r.digest}, beat: bt, arrived: now}
		}
		for b.Loop() {
			found := 0
			for _, e := range all {
				if ok, _ := (oracle{q: &Query{}, now: now, e: e}).groups(asked); ok {
					found++
				}
			}
			if found == 0 && n >= 10_000 {
				b.Fatal("nothing is found")
			}
		}
	})
}

func BenchmarkFind1k(b *testing.B)   { benchmarkFind(b, 1_000) }
func BenchmarkFind10k(b *testing.B)  { benchmarkFind(b, 10_000) }
func BenchmarkFind100k(b *testing.B) { benchmarkFind(b, 100_000) }

// indexMiB returns what an index of RNP-004's 138,400 GPUs, a node each, takes of the heap, with as many records
// decoded as ever stay so.
func indexMiB(t testing.TB) float64 {
	heap := func() float64 {
		runtime.GC()
		runtime.GC() // the first one lets interned texts go
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	before := heap()
	now := time.Now()
	x := func() *replica {
		c := newCrowd(t, 138_400, 1, now)
		return c.x // what the crowd knows beside is not the index's
	}()
	out, ex := newAsking(Query{Literal: true, Limit: 2 * maxOpened}, now, false).run(x)
	if ex.Population != 138_400 || len(x.opened.records.held) != maxOpened {
		t.Fatalf("%d nodes, %d opened", ex.Population, len(x.opened.records.held))
	}
	size := 0
	for _, c := range out {
		size += len(c.Record) + len(c.Beat)
	}
	if mean := size / len(out); mean < 900 {
		t.Fatalf("envelopes of %d bytes a node are not those of the network", mean)
	}
	used := heap() - before
	runtime.KeepAlive(x)
	return used
}

func BenchmarkMemory138k(b *testing.B) {
	var mib float64
	for b.Loop() {
		mib = indexMiB(b)
	}
	b.ReportMetric(mib, "MiB")
}
