package dht

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Heartbeats are trusted for three of their periods on our own clock, then the node is stale; after ten it is
// forgotten (discovery.md 4).
const (
	stalePeriods = 3
	dropPeriods  = 10
)

// entry is what the replica holds of one node: its signed record and its last heartbeat. An entry in the
// index is never changed, but replaced as a whole; the facts of a record are shared by its successors.
type entry struct {
	peer    peer.ID
	record  *record // nil until it has been fetched
	beat    *beat   // nil when only the record is known
	arrived time.Time
	*facts
}

// facts are what a record says, laid out for evaluation. They never change.
type facts struct {
	rows    []row
	volumes map[string]uint32
	place   protocol.Place
	texts   map[protocol.FilterField][]string
}

// numbers are the numeric facts by field, NaN where unknown.
type numbers [protocol.FieldVerified + 1]float64

// row is one line of the index: a group of identical GPUs of a node, or the node itself when it has none.
type row struct {
	group  int // index in the record, -1 for none
	gpu    *pb.GpuGroup
	nums   numbers
	words  map[protocol.FilterField]string // lower case
	cuda   []uint32
	driver []uint32
}

func newEntry(id peer.ID, rec *record, b *beat, arrived time.Time) *entry {
	e := &entry{peer: id, record: rec, beat: b, arrived: arrived, facts: &facts{}}
	if rec != nil {
		e.facts = factsOf(id, rec.cap)
	}
	return e
}

// withBeat returns the entry with a newer heartbeat.
func (e *entry) withBeat(b *beat, arrived time.Time) *entry {
	n := *e
	n.beat, n.arrived = b, arrived
	return &n
}

func factsOf(id peer.ID, c *pb.Capability) *facts {
	f := &facts{volumes: make(map[string]uint32, len(c.GetVolumes())), place: placeOf(c.GetLocation())}
	for _, v := range c.GetVolumes() {
		f.volumes[string(v.GetRoot())] = v.GetPerMille()
	}
	nums := nodeNumbers(c)
	f.texts = nodeTexts(id, c)
	if len(c.GetGpus()) == 0 {
		f.rows = []row{{group: -1, nums: nums}}
		return f
	}
	for i, g := range c.GetGpus() {
		f.rows = append(f.rows, groupRow(i, g, c.GetBenchmark(), nums))
	}
	return f
}

// placeOf reads a claimed location; a name that nobody knows counts as nothing said.
func placeOf(l *pb.Location) protocol.Place {
	for _, s := range []string{l.GetSubdivision(), l.GetCountry(), l.GetMacro()} {
		if s == "" {
			continue
		}
		if p, err := protocol.ParsePlace(s); err == nil {
			return p
		}
	}
	return protocol.Place{}
}

func nodeNumbers(c *pb.Capability) numbers {
	var nums numbers
	for i := range nums {
		nums[i] = math.NaN()
	}
	count := 0.0
	for _, g := range c.GetGpus() {
		count += float64(g.GetCount())
	}
	nums[protocol.FieldGPUsCount] = count
	h, n, p := c.GetHost(), c.GetNetwork(), c.GetPolicy()
	set(&nums, protocol.FieldCPUCores, h.GetCores(), h != nil && h.Cores != nil, 1)
	set(&nums, protocol.FieldNodeRAMGB, h.GetRamBytes(), h != nil && h.RamBytes != nil, 1e9)
	disk := uint64(0)
	for _, s := range h.GetStorage() {
		disk += s.GetUsable()
	}
	set(&nums, protocol.FieldNodeDiskGB, disk, len(h.GetStorage()) > 0, 1e9)
	set(&nums, protocol.FieldNodeUpMbps, n.GetUp(), n != nil && n.Up != nil, 1e6)
	set(&nums, protocol.FieldNodeDownMbps, n.GetDown(), n != nil && n.Down != nil, 1e6)
	set(&nums, protocol.FieldNodePrice, p.GetPriceUusdPerHour(), p != nil && p.PriceUusdPerHour != nil, 1e6)
	return nums
}

func nodeTexts(id peer.ID, c *pb.Capability) map[protocol.FilterField][]string {
	texts := map[protocol.FilterField][]string{}
	word := func(f protocol.FilterField, words ...string) {
		for _, s := range words {
			if s == "" {
				continue
			}
			if f.Kind() == protocol.KindLower {
				s = strings.ToLower(s)
			}
			texts[f] = append(texts[f], s)
		}
	}
	n := c.GetNetwork()
	word(protocol.FieldCPUArch, c.GetHost().GetArch())
	word(protocol.FieldNodeID, id.String())
	word(protocol.FieldNodeCountry, placeOf(c.GetLocation()).Country)
	word(protocol.FieldNodeReachability, n.GetReachability())
	word(protocol.FieldNodeAgent, c.GetAgent())
	word(protocol.FieldNodeKind, c.GetPolicy().GetKinds()...)
	if n != nil && n.Up != nil && n.Down != nil {
		word(protocol.FieldNodeTier, BandwidthTier(n.GetDown(), n.GetUp()))
	}
	for _, l := range c.GetLabels() {
		if l.GetKey() == "host.type" {
			word(protocol.FieldNodeHostType, l.GetValue())
		}
	}
	return texts
}

func set[T uint32 | uint64](nums *numbers, f protocol.FilterField, v T, known bool, unit float64) {
	if known {
		nums[f] = float64(v) / unit
	}
}

// BandwidthTier names the tier of a line from its bit/s down and up, both strictly above the tier's bounds
// (discovery.md 9, RNP-006): low 100/75, medium 400/300, high 800/600, ultra 1600/1200 Mbit/s; below: none.
func BandwidthTier(down, up uint64) string {
	const mbit = 1_000_000
	name := "none"
	for i, t := range []string{"low", "medium", "high", "ultra"} {
		if step := uint64(1) << i; i == 0 && down > 100*mbit && up > 75*mbit ||
			i > 0 && down > step*200*mbit && up > step*150*mbit {
			name = t
		}
	}
	return name
}

func groupRow(i int, g *pb.GpuGroup, bench *pb.Benchmark, nums numbers) row {
	r := row{group: i, gpu: g, nums: nums, words: map[protocol.FilterField]string{}}
	r.nums[protocol.FieldGPUCount] = float64(g.GetCount())
	set(&r.nums, protocol.FieldGPUVRAMBytes, g.GetVramBytes(), g.VramBytes != nil, 1)
	set(&r.nums, protocol.FieldGPUVRAMGB, uint64(protocol.NominalGB(g.GetVramBytes())), g.VramBytes != nil, 1)
	set(&r.nums, protocol.FieldGPUCompute, g.GetCompute(), g.Compute != nil, 10)
	set(&r.nums, protocol.FieldGPUNVLink, g.GetNvlinkLinks(), g.NvlinkLinks != nil, 1)
	set(&r.nums, protocol.FieldGPUPowerW, g.GetPowerW(), g.PowerW != nil, 1)
	set(&r.nums, protocol.FieldGPUPCIeGen, g.GetPcieGen(), g.PcieGen != nil, 1)
	set(&r.nums, protocol.FieldGPUFP16TFLOPS, bench.GetFp16Gflops(), bench != nil && bench.Fp16Gflops != nil, 1000)
	for f, s := range map[protocol.FilterField]string{
		protocol.FieldGPUVendor: g.GetVendor(), protocol.FieldGPUArch: g.GetArch(), protocol.FieldGPUInterface: g.GetInterface(),
	} {
		if s != "" {
			r.words[f] = strings.ToLower(s)
		}
	}
	if v, ok := protocol.ParseVersion(g.GetDriver()); ok {
		r.driver = v
	}
	if g.Cuda != nil { // NVML's form: 12040 is 12.4
		r.cuda = []uint32{g.GetCuda() / 1000, g.GetCuda() % 1000 / 10}
	}
	return r
}

// state returns the word of node.state, empty when it is unknown: without a heartbeat, or while the record
// that the heartbeat speaks of has not been seen.
func (e *entry) state(now time.Time) string {
	if e.beat == nil || e.pending() {
		return ""
	}
	switch e.beat.av.GetState() {
	case pb.NodeState_NODE_STATE_LEAVING:
		return "LEAVING"
	case pb.NodeState_NODE_STATE_UNSPECIFIED:
		return ""
	}
	if now.Sub(e.arrived) > stalePeriods*e.beat.period() {
		return "STALE"
	}
	return strings.TrimPrefix(e.beat.av.GetState().String(), "NODE_STATE_")
}

// pending says that the heartbeat speaks of another record than the one that is held.
func (e *entry) pending() bool {
	return e.beat != nil && (e.record == nil || !e.beat.speaksOf(e.record))
}

// dead says that nothing is left to show: the record has expired or was never seen, or heartbeats stopped
// long ago.
func (e *entry) dead(now time.Time) bool {
	if e.beat != nil && now.Sub(e.arrived) > dropPeriods*e.beat.period() {
		return true
	}
	if e.record == nil {
		return e.beat == nil
	}
	return e.record.expires().Compare(now) <= 0
}

func (e *entry) holds(root string, least uint32) truth {
	per, ok := e.volumes[root]
	return truthOf(ok && per >= least)
}

func (e *entry) within(p protocol.Place) truth {
	in, known := p.Contains(e.place)
	if !known {
		return unknown
	}
	return truthOf(in)
}

// load returns the heartbeat's line for a group of the record, nil when there is none.
func (e *entry) load(group int) *pb.GroupLoad {
	if e.beat == nil || e.pending() {
		return nil
	}
	i := slices.IndexFunc(e.beat.av.GetGroups(), func(l *pb.GroupLoad) bool { return l.GetIndex() == uint32(group) })
	if i < 0 {
		return nil
	}
	return e.beat.av.GetGroups()[i]
}

// number returns a numeric fact, NaN when it is unknown.
func (e *entry) number(r *row, f protocol.FilterField, q *asking) float64 {
	switch f {
	case protocol.FieldGPUFree:
		if l := e.load(r.group); r.group >= 0 && l != nil {
			return float64(l.GetFree())
		}
		return math.NaN()
	case protocol.FieldGPUsFree:
		return e.freeGPUs()
	case protocol.FieldNodeAgeS:
		if e.beat == nil {
			return math.NaN()
		}
		return q.now.Sub(e.arrived).Seconds()
	case protocol.FieldNodeUptimeS:
		if e.beat == nil || e.beat.av.GetUpSince() == 0 {
			return math.NaN()
		}
		return q.now.Sub(time.UnixMilli(e.beat.av.GetUpSince())).Seconds()
	case protocol.FieldNodeRTTMs, protocol.FieldNodeReputation:
		return q.local(e.peer, f)
	}
	return r.nums[f]
}

func (e *entry) freeGPUs() float64 {
	if e.beat == nil || e.pending() {
		return math.NaN()
	}
	free := 0.0
	for _, l := range e.beat.av.GetGroups() {
		free += float64(l.GetFree())
	}
	return free
}

// flag returns a boolean fact.
func (r *row) flag(f protocol.FilterField) truth {
	switch {
	case r.gpu == nil:
		return unknown
	case f == protocol.FieldGPUMIG:
		return truthOf(r.gpu.GetMigProfile() != "")
	case f == protocol.FieldGPUECC && r.gpu.Ecc != nil:
		return truthOf(r.gpu.GetEcc())
	default:
		return unknown
	}
}

// version returns a version, nil when it is unknown.
func (r *row) version(f protocol.FilterField) []uint32 {
	if f == protocol.FieldGPUDriver {
		return r.driver
	}
	return r.cuda
}

// says tells whether a text fact is one of the wanted words; node.kind and labels of several issuers may have
// several values.
func (e *entry) says(r *row, t protocol.FilterTerm, wanted []string, q *asking) truth {
	switch {
	case t.Field == protocol.FieldNodeState:
		s := e.state(q.now)
		if s == "" {
			return unknown
		}
		return truthOf(slices.Contains(wanted, s))
	case t.Field == protocol.FieldLabel || t.Field == protocol.FieldVerified:
		answer := unknown
		for _, l := range e.record.cap.GetLabels() {
			if l.GetKey() == t.Label && (t.Field == protocol.FieldLabel || q.verifies(e.peer, l)) && answer != yes {
				answer = truthOf(slices.Contains(wanted, l.GetValue()))
			}
		}
		return answer
	case t.Field.Scope() == protocol.ScopeGroup:
		s, ok := r.words[t.Field]
		if !ok {
			return unknown
		}
		return truthOf(slices.Contains(wanted, s))
	default:
		has, ok := e.texts[t.Field]
		if !ok {
			return unknown
		}
		return truthOf(slices.ContainsFunc(has, func(w string) bool { return slices.Contains(wanted, w) }))
	}
}
