package dht

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Heartbeats are trusted for three of their periods on our own clock, then the node is stale; after ten it is
// forgotten (discovery.md 4).
const (
	stalePeriods = 3
	dropPeriods  = 10
	maxFree      = 1 << 20 // of a heartbeat's group that is believed at all
)

// word is an interned text: strangers choose the texts, so what nobody holds any more is forgotten by itself.
// The zero word means unknown.
type word = unique.Handle[string]

func wordOf(s string) word {
	if s == "" {
		return word{}
	}
	return unique.Make(s)
}

// node is what the index holds of one peer: its envelopes as received, and what they say as columns. It is
// guarded by the replica's mutex.
type node struct {
	id     peer.ID
	order  uint64      // of the peer, for seeded orders
	record *heldRecord // nil until it has been fetched
	beat   *heldBeat   // nil when only the record is known
	seqs
	arrived time.Duration // of the heartbeat, since the replica's base
	told    uint64        // what the heartbeat told (toldBy)
	upSince int64         // Unix ms, 0 = unknown
	free    int32         // GPUs in all groups, -1 = unknown
	period  uint16        // seconds
	state   uint8         // pb.NodeState
	pending bool          // the heartbeat speaks of another record than the one that is held
	facts
	one [1]group // where groups is when there is one: rows are read in the order of memory
}

// tell takes over what a record says.
func (n *node) tell(c *pb.Capability) {
	n.facts = factsOf(c)
	if len(n.groups) == 1 {
		n.one[0] = n.groups[0]
		n.groups = n.one[:]
	}
}

// facts are what a record says, laid out for evaluation.
type facts struct {
	groups    []group
	volumes   []volume
	labels    []label
	place     unique.Handle[protocol.Place]
	arch      word
	tier      word
	reach     word
	agent     word
	kinds     word // joined by 0 bytes: most nodes have the same
	nums      [numNodeFields]float64
	marks     marks
	tombstone bool
}

// The numeric facts of a node's record, NaN = unknown.
const (
	numCount = iota
	numCores
	numRAM
	numDisk
	numUp
	numDown
	numPrice
	numNodeFields
)

type volume struct {
	root     string
	perMille uint32
}

type label struct{ key, value word }

// group is one line of the index: a group of identical GPUs. Numbers are NaN where unknown.
type group struct {
	model, vendor, arch, form word
	vramBytes, fp16           float64
	vramGB, compute           float64
	nvlink, power, pcie       float64
	driver, cuda              version
	free                      int32 // -1 = unknown
	count                     int16 // -1 = unknown
	index                     int8  // in the record, -1 = the node has no GPU
	mig, ecc                  truth
}

// version is what protocol.ParseVersion gives: up to four numbers, n of them.
type version struct {
	of [4]uint32
	n  uint8
}

func versionOf(v []uint32) (out version) {
	out.n = uint8(copy(out.of[:], v))
	return out
}

// noGPU stands for the group of a node without GPUs: all is unknown.
var noGPU = group{
	vramBytes: math.NaN(), fp16: math.NaN(), vramGB: math.NaN(), compute: math.NaN(),
	nvlink: math.NaN(), power: math.NaN(), pcie: math.NaN(), count: -1, free: -1, index: -1, mig: unknown, ecc: unknown,
}

// known returns the number that a pointer of a record points to, in a unit, NaN for none.
func known[T uint32 | uint64](v *T, unit float64) float64 {
	if v == nil {
		return math.NaN()
	}
	return float64(*v) / unit
}

func factsOf(c *pb.Capability) facts {
	f := facts{place: unique.Make(placeOf(c.GetLocation())), marks: marksOf(c.GetLocation()), tombstone: c.GetTombstone(), agent: wordOf(c.GetAgent())}
	for i := range f.nums {
		f.nums[i] = math.NaN()
	}
	f.nums[numCount] = 0
	if h := c.GetHost(); h != nil {
		f.arch = wordOf(strings.ToLower(h.GetArch()))
		f.nums[numCores], f.nums[numRAM] = known(h.Cores, 1), known(h.RamBytes, 1e9)
		if len(h.GetStorage()) > 0 {
			disk := uint64(0)
			for _, s := range h.GetStorage() {
				disk += s.GetUsable()
			}
			f.nums[numDisk] = known(&disk, 1e9)
		}
	}
	if n := c.GetNetwork(); n != nil {
		f.reach = wordOf(n.GetReachability())
		f.nums[numUp], f.nums[numDown] = known(n.Up, 1e6), known(n.Down, 1e6)
		if n.Up != nil && n.Down != nil {
			f.tier = wordOf(BandwidthTier(n.GetDown(), n.GetUp()))
		}
	}
	if p := c.GetPolicy(); p != nil {
		f.nums[numPrice] = known(p.PriceUusdPerHour, 1e6)
		some := slices.DeleteFunc(slices.Clone(p.GetKinds()), func(k string) bool { return k == "" })
		f.kinds = wordOf(strings.ToLower(strings.Join(some, "\x00")))
	}
	for _, v := range c.GetVolumes() {
		f.volumes = append(f.volumes, volume{string(v.GetRoot()), v.GetPerMille()})
	}
	for _, l := range c.GetLabels() {
		f.labels = append(f.labels, label{unique.Make(l.GetKey()), unique.Make(l.GetValue())})
	}
	if n := len(c.GetGpus()); n > 0 {
		f.groups = make([]group, n)
	}
	for i, g := range c.GetGpus() {
		f.nums[numCount] += float64(usable(g))
		f.groups[i] = groupOf(i, g, c.GetBenchmark())
	}
	return f
}

// usable is how many devices of a group can be sold.
func usable(g *pb.GpuGroup) uint32 { return g.GetCount() - min(g.GetCount(), g.GetFaulted()) }

func groupOf(i int, g *pb.GpuGroup, bench *pb.Benchmark) group {
	r := noGPU
	r.index, r.count = int8(i), int16(min(usable(g), math.MaxInt16))
	r.model, r.vendor = wordOf(g.GetModel()), wordOf(strings.ToLower(g.GetVendor()))
	r.arch, r.form = wordOf(strings.ToLower(g.GetArch())), wordOf(strings.ToLower(g.GetInterface()))
	if g.VramBytes != nil {
		r.vramBytes, r.vramGB = float64(g.GetVramBytes()), float64(protocol.NominalGB(g.GetVramBytes()))
	}
	r.compute = known(g.Compute, 10)
	r.nvlink, r.power, r.pcie = known(g.NvlinkLinks, 1), known(g.PowerW, 1), known(g.PcieGen, 1)
	if bench != nil {
		r.fp16 = known(bench.Fp16Gflops, 1000)
	}
	if v, ok := protocol.ParseVersion(g.GetDriver()); ok {
		r.driver = versionOf(v)
	}
	if major, minor, ok := protocol.CUDAVersion(g.GetCuda()); ok {
		r.cuda = versionOf([]uint32{major, minor})
	}
	r.mig = truthOf(g.GetMigProfile() != "")
	if g.Ecc != nil {
		r.ecc = truthOf(g.GetEcc())
	}
	return r
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

const noTier = "none" // of BandwidthTier

// BandwidthTier names the tier of a line from its bit/s down and up, both strictly above the tier's bounds
// (discovery.md 9, RNP-006): low 100/75, medium 400/300, high 800/600, ultra 1600/1200 Mbit/s; below: none.
func BandwidthTier(down, up uint64) string {
	const mbit = 1_000_000
	name := noTier
	for i, t := range []string{"low", "medium", "high", "ultra"} {
		if step := uint64(1) << i; i == 0 && down > 100*mbit && up > 75*mbit ||
			i > 0 && down > step*200*mbit && up > step*150*mbit {
			name = t
		}
	}
	return name
}

// hear takes over what a heartbeat says; a pending one says nothing of load and state.
func (n *node) hear(av *pb.Availability) {
	n.period, n.state, n.upSince = uint16(av.GetPeriodS()), uint8(min(uint32(av.GetState()), math.MaxUint8)), av.GetUpSince()
	n.pending = n.record == nil || n.beat.digest != n.record.digest
	n.free = -1
	for i := range n.groups {
		n.groups[i].free = -1
	}
	if n.pending {
		return
	}
	n.free = 0
	for _, l := range av.GetGroups() {
		free := int32(min(l.GetFree(), maxFree))
		n.free += free
		if i := int(l.GetIndex()); i < len(n.groups) && n.groups[i].free < 0 {
			n.groups[i].free = free
		}
	}
}

// toldBy mixes what a heartbeat tells that is worth being told at once: its state, the record that it speaks of, what is
// free and what is at fault. How busy a node is in percent changes with every heartbeat and is not.
func toldBy(av *pb.Availability) uint64 {
	h := mix(uint64(av.GetState())<<32 | uint64(av.GetPeriodS()))
	for _, b := range av.GetCapDigest() {
		h = mix(h ^ uint64(b))
	}
	for _, g := range av.GetGroups() {
		h = mix(h ^ uint64(g.GetIndex())<<32 ^ uint64(g.GetFree()))
		h = mix(h ^ uint64(g.GetFreeVramGib())<<32 ^ uint64(g.GetFaulted())<<16 ^ uint64(g.GetThrottled()))
	}
	return h
}

// stateAt returns the word of node.state, empty when it is unknown: without a heartbeat, or while the record
// that the heartbeat speaks of has not been seen.
func (n *node) stateAt(now time.Duration) string {
	if n.beat == nil || n.pending {
		return ""
	}
	said := stateWords[n.state]
	stale := now-n.arrived > stalePeriods*time.Duration(n.period)*time.Second-lingerMost
	if stale && said != "" && pb.NodeState(n.state) != pb.NodeState_NODE_STATE_LEAVING {
		return stateStale
	}
	return said
}

const stateStale = "STALE"

// stateWords are the words of node.state by pb.NodeState; what a newer version may say is unknown here.
var stateWords = func() (out [256]string) {
	for v, name := range pb.NodeState_name {
		out[uint8(v)] = strings.TrimPrefix(name, "NODE_STATE_")
	}
	out[0] = ""
	return out
}()

// lapse is until when, since the replica's base, the heartbeat keeps the node listed; for ever without one.
func (n *node) lapse() time.Duration {
	if n.beat == nil {
		return math.MaxInt64
	}
	return n.arrived + dropPeriods*time.Duration(n.period)*time.Second
}

func (n *node) holds(root string, least uint32) truth {
	// The last of several lines for one root counts.
	for _, v := range slices.Backward(n.volumes) {
		if v.root == root {
			return truthOf(v.perMille >= least)
		}
	}
	return no
}

// heldRecord is a verified record as received. It is decoded when somebody looks at it (opened).
type heldRecord struct {
	raw     []byte
	digest  [digestSize]byte
	expires int64 // Unix ms
	content content[pb.Capability]
}

// expires returns the end of the record that the node has, in Unix ms.
func (n *node) expires() int64 { return n.record.expires }

// heldBeat is a verified heartbeat as received.
type heldBeat struct {
	raw     []byte
	digest  [digestSize]byte // of the record that it speaks of
	key     [scanKey]byte    // of the peer (keyOf)
	content content[pb.Availability]
}

func heldBeatOf(b *beat) *heldBeat {
	h := &heldBeat{raw: b.raw, key: keyOf(b.peer)}
	copy(h.digest[:], b.av.GetCapDigest())
	return h
}

// orderOf is the peer's place before a seed has shuffled it.
func orderOf(id peer.ID) uint64 {
	d := digestOf([]byte(id))
	return binary.BigEndian.Uint64(d[:])
}
