package dht

import (
	"math"
	"slices"
	"strings"
	"unique"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// truth is a value of Kleene's three-valued logic: what nobody told is unknown, and only yes selects.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func (t truth) not() truth { return yes - t }

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// predicate judges one row: a node and one of its groups.
type predicate func(n *node, g *group, l *look) truth

// compile turns an expression into a closure; every literal is already resolved.
func compile(n protocol.FilterNode) predicate {
	switch n := n.(type) {
	case *protocol.FilterAnd:
		return fold(n.Of, yes, func(a, b truth) truth { return min(a, b) })
	case *protocol.FilterOr:
		return fold(n.Of, no, func(a, b truth) truth { return max(a, b) })
	case *protocol.FilterNot:
		of := compile(n.Of)
		return func(e *node, r *group, l *look) truth { return of(e, r, l).not() }
	case *protocol.FilterHasVolume:
		root, least := string(n.Root), uint32(n.PerMille)
		return func(e *node, _ *group, _ *look) truth { return e.holds(root, least) }
	case *protocol.FilterCompare:
		return compileCompare(n)
	default:
		return func(*node, *group, *look) truth { return yes }
	}
}

// fold joins parts with min (and) or max (or); the first that settles the matter ends it.
func fold(of []protocol.FilterNode, neutral truth, join func(a, b truth) truth) predicate {
	parts := make([]predicate, len(of))
	for i, k := range of {
		parts[i] = compile(k)
	}
	settled := neutral.not()
	return func(e *node, r *group, l *look) truth {
		t := neutral
		for _, p := range parts {
			if t = join(t, p(e, r, l)); t == settled {
				return t
			}
		}
		return t
	}
}

func compileCompare(n *protocol.FilterCompare) predicate {
	switch f := n.Term.Field; f.Kind() {
	case protocol.KindNumber:
		return compileNumber(n)
	case protocol.KindBool:
		flag := func(g *group) truth { return g.ecc }
		if f == protocol.FieldGPUMIG {
			flag = func(g *group) truth { return g.mig }
		}
		return negate(n.Op, func(_ *node, g *group, _ *look) truth {
			b := flag(g)
			if b == unknown {
				return unknown
			}
			return truthOf(slices.ContainsFunc(n.Values, func(v protocol.FilterValue) bool { return v.Bool == (b == yes) }))
		})
	case protocol.KindVersion:
		return compileVersion(n)
	case protocol.KindPlace:
		return negate(n.Op, func(e *node, _ *group, l *look) truth {
			t := no
			for i := range n.Values {
				t = max(t, e.within(&n.Values[i].Place, l))
			}
			return t
		})
	case protocol.KindModel:
		return negate(n.Op, compileModel(n.Values))
	case protocol.KindPeer:
		wanted := map[peer.ID]bool{}
		for _, v := range n.Values {
			if id, err := peer.Decode(v.Text); err == nil {
				wanted[id] = true
			}
		}
		return negate(n.Op, func(e *node, _ *group, _ *look) truth { return truthOf(wanted[e.id]) })
	default:
		return negate(n.Op, compileText(n.Term, n.Values))
	}
}

func (n *node) within(p *protocol.Place, l *look) truth {
	in, known := p.Contains(n.claimed(l))
	if !known {
		return unknown
	}
	return truthOf(in)
}

// claimed is where the node says that it is, as long as the asker does not know better.
func (n *node) claimed(l *look) protocol.Place {
	if l.Refuted != nil && l.Refuted(n.id) {
		return protocol.Place{}
	}
	return n.place.Value()
}

func compileModel(values []protocol.FilterValue) predicate {
	wanted, anyModel := map[word]bool{}, false
	for _, v := range values {
		anyModel = anyModel || v.GPU.Any
		for _, s := range v.GPU.Slugs {
			wanted[wordOf(s)] = true
		}
	}
	return func(_ *node, g *group, _ *look) truth {
		if g.model == (word{}) {
			return unknown
		}
		return truthOf(anyModel || wanted[g.model])
	}
}

// compileText compares words; node.kind and labels of several issuers may have several values.
func compileText(t protocol.FilterTerm, values []protocol.FilterValue) predicate {
	texts, wanted := make([]string, len(values)), make([]word, len(values))
	for i, v := range values {
		texts[i], wanted[i] = v.Text, wordOf(v.Text)
	}
	plain := func(of func(n *node, g *group) word) predicate {
		return func(n *node, g *group, _ *look) truth {
			w := of(n, g)
			if w == (word{}) {
				return unknown
			}
			return truthOf(slices.Contains(wanted, w))
		}
	}
	switch t.Field {
	case protocol.FieldNodeState:
		return func(n *node, _ *group, l *look) truth {
			s := n.stateAt(l.since)
			if s == "" {
				return unknown
			}
			return truthOf(slices.Contains(texts, s))
		}
	case protocol.FieldLabel:
		return labelled(t.Label, values, false)
	case protocol.FieldVerified:
		return verified(t.Label, values)
	case protocol.FieldNodeHostType:
		return labelled("host.type", values, true)
	case protocol.FieldNodeKind:
		return func(n *node, _ *group, _ *look) truth {
			if n.kinds == (word{}) {
				return unknown
			}
			for k := range strings.SplitSeq(n.kinds.Value(), "\x00") {
				if slices.Contains(texts, k) {
					return yes
				}
			}
			return no
		}
	case protocol.FieldGPUVendor:
		return plain(func(_ *node, g *group) word { return g.vendor })
	case protocol.FieldGPUArch:
		return plain(func(_ *node, g *group) word { return g.arch })
	case protocol.FieldGPUInterface:
		return plain(func(_ *node, g *group) word { return g.form })
	case protocol.FieldCPUArch:
		return plain(func(n *node, _ *group) word { return n.arch })
	case protocol.FieldNodeCountry:
		return func(n *node, _ *group, l *look) truth {
			c := n.claimed(l).Country
			if c == "" {
				return unknown
			}
			return truthOf(slices.Contains(texts, c))
		}
	case protocol.FieldNodeTier:
		return plain(func(n *node, _ *group) word { return n.tier })
	case protocol.FieldNodeReachability:
		return plain(func(n *node, _ *group) word { return n.reach })
	case protocol.FieldNodeAgent:
		return plain(func(n *node, _ *group) word { return n.agent })
	default:
		return func(*node, *group, *look) truth { return unknown }
	}
}

// labelled judges what a node or an issuer says of itself, unchecked; silent skips empty values.
func labelled(key string, values []protocol.FilterValue, silent bool) predicate {
	name := unique.Make(key)
	wanted := make([]word, len(values))
	for i, v := range values {
		wanted[i] = unique.Make(v.Text)
	}
	return func(n *node, _ *group, _ *look) truth {
		answer := unknown
		for _, l := range n.labels {
			if l.key == name && answer != yes && (!silent || l.value.Value() != "") {
				answer = truthOf(slices.Contains(wanted, l.value))
			}
		}
		return answer
	}
}

// verified judges what an accepted issuer has signed. Labels are rare, so the record is decoded for them.
func verified(key string, values []protocol.FilterValue) predicate {
	name := unique.Make(key)
	return func(n *node, _ *group, l *look) truth {
		if l.Verify == nil || !slices.ContainsFunc(n.labels, func(x label) bool { return x.key == name }) {
			return unknown
		}
		answer := unknown
		for _, x := range l.x.opened.record(n.record).GetLabels() {
			if x.GetKey() == key && answer != yes && l.verifies(n.id, x) {
				answer = truthOf(slices.ContainsFunc(values, func(v protocol.FilterValue) bool { return v.Text == x.GetValue() }))
			}
		}
		return answer
	}
}

// negate turns == into != where that was asked.
func negate(op protocol.FilterOp, equal predicate) predicate {
	if op == protocol.OpNE {
		return func(n *node, g *group, l *look) truth { return equal(n, g, l).not() }
	}
	return equal
}

// numberOf returns how a numeric fact is read, NaN when it is unknown.
func numberOf(f protocol.FilterField) func(n *node, g *group, l *look) float64 {
	ofGroup := map[protocol.FilterField]func(g *group) float64{
		protocol.FieldGPUVRAMGB:     func(g *group) float64 { return g.vramGB },
		protocol.FieldGPUVRAMBytes:  func(g *group) float64 { return g.vramBytes },
		protocol.FieldGPUCompute:    func(g *group) float64 { return g.compute },
		protocol.FieldGPUNVLink:     func(g *group) float64 { return g.nvlink },
		protocol.FieldGPUPowerW:     func(g *group) float64 { return g.power },
		protocol.FieldGPUPCIeGen:    func(g *group) float64 { return g.pcie },
		protocol.FieldGPUFP16TFLOPS: func(g *group) float64 { return g.fp16 },
		protocol.FieldGPUCount:      func(g *group) float64 { return orUnknown(int32(g.count)) },
		protocol.FieldGPUFree:       func(g *group) float64 { return orUnknown(g.free) },
	}
	ofNode := map[protocol.FilterField]int{
		protocol.FieldGPUsCount: numCount, protocol.FieldCPUCores: numCores, protocol.FieldNodeRAMGB: numRAM,
		protocol.FieldNodeDiskGB: numDisk, protocol.FieldNodeUpMbps: numUp, protocol.FieldNodeDownMbps: numDown,
		protocol.FieldNodePrice: numPrice,
	}
	if of, ok := ofGroup[f]; ok {
		return func(_ *node, g *group, _ *look) float64 { return of(g) }
	}
	if k, ok := ofNode[f]; ok {
		return func(n *node, _ *group, _ *look) float64 { return n.nums[k] }
	}
	switch f {
	case protocol.FieldGPUsFree:
		return func(n *node, _ *group, _ *look) float64 {
			if n.beat == nil || n.pending {
				return math.NaN()
			}
			return float64(n.free)
		}
	case protocol.FieldNodeAgeS:
		return func(n *node, _ *group, l *look) float64 {
			if n.beat == nil {
				return math.NaN()
			}
			return (l.since - n.arrived).Seconds()
		}
	case protocol.FieldNodeUptimeS:
		return func(n *node, _ *group, l *look) float64 {
			if n.beat == nil || n.upSince == 0 {
				return math.NaN()
			}
			return l.now.Sub(millis(n.upSince)).Seconds()
		}
	case protocol.FieldNodeRTTMs:
		return func(n *node, _ *group, l *look) float64 {
			rtt, _ := l.local(n.id)
			if rtt != rtt && l.guess != nil {
				return l.guess(n.id, &n.marks) / estimateSlack
			}
			return rtt
		}
	case protocol.FieldNodeReputation:
		return func(n *node, _ *group, l *look) float64 { _, rep := l.local(n.id); return rep }
	default:
		return func(*node, *group, *look) float64 { return math.NaN() }
	}
}

func (q *asking) local(id peer.ID) (rtt, reputation float64) {
	if q.Local == nil {
		return math.NaN(), math.NaN()
	}
	return q.Local(id)
}

func orUnknown(n int32) float64 {
	if n < 0 {
		return math.NaN()
	}
	return float64(n)
}

func compileNumber(n *protocol.FilterCompare) predicate {
	of, want := numberOf(n.Term.Field), n.Values[0].Number
	test := func(x float64) bool { return false }
	switch n.Op {
	case protocol.OpEQ:
		test = func(x float64) bool { return x == want }
	case protocol.OpNE:
		test = func(x float64) bool { return x != want }
	case protocol.OpLT:
		test = func(x float64) bool { return x < want }
	case protocol.OpLE:
		test = func(x float64) bool { return x <= want }
	case protocol.OpGT:
		test = func(x float64) bool { return x > want }
	case protocol.OpGE:
		test = func(x float64) bool { return x >= want }
	case protocol.OpIn:
		test = func(x float64) bool {
			return slices.ContainsFunc(n.Values, func(v protocol.FilterValue) bool { return v.Number == x })
		}
	}
	return func(e *node, g *group, l *look) truth {
		x := of(e, g, l)
		if x != x {
			return unknown
		}
		return truthOf(test(x))
	}
}

func compileVersion(n *protocol.FilterCompare) predicate {
	have := func(g *group) *version { return &g.cuda }
	if n.Term.Field == protocol.FieldGPUDriver {
		have = func(g *group) *version { return &g.driver }
	}
	test := func(c int) bool { return c == 0 }
	switch n.Op {
	case protocol.OpNE:
		test = func(c int) bool { return c != 0 }
	case protocol.OpLT:
		test = func(c int) bool { return c < 0 }
	case protocol.OpLE:
		test = func(c int) bool { return c <= 0 }
	case protocol.OpGT:
		test = func(c int) bool { return c > 0 }
	case protocol.OpGE:
		test = func(c int) bool { return c >= 0 }
	}
	return func(_ *node, g *group, _ *look) truth {
		v := have(g)
		if v.n == 0 {
			return unknown
		}
		return truthOf(slices.ContainsFunc(n.Values, func(w protocol.FilterValue) bool {
			return test(protocol.CompareVersions(v.of[:v.n], w.Version))
		}))
	}
}
