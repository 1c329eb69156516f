package dht

import (
	"slices"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// staticClasses are those that a record puts a node into.
func (n *node) staticClasses() []class {
	var out []class
	for i := range n.groups {
		g := &n.groups[i]
		if g.model != (word{}) {
			out = append(out, class{dim: dimModel, name: g.model})
		}
		if g.vramGB == g.vramGB { // not NaN
			out = append(out, class{dim: dimRung, n: rungOf(g.vramGB)})
		}
	}
	switch p := n.place.Value(); {
	case p.Country != "":
		out = append(out, class{dim: dimCountry, name: wordOf(p.Country)})
	case p.Macro != "":
		out = append(out, class{dim: dimMacro, name: wordOf(p.Macro)})
	}
	if n.tier != (word{}) {
		out = append(out, class{dim: dimTier, name: n.tier})
	}
	return out
}

// rungOf is the rung of the vram keys that this memory reaches, 0 below the lowest.
func rungOf(gb float64) int {
	r, _ := protocol.VRAMRung(int(min(gb, 1<<20)))
	return r
}

// movingClasses are the two that a heartbeat puts a node into: what it says of its state, and the most GPUs
// that are free in one group; 0 and -1 are unknown.
func (n *node) movingClasses() [2]class {
	state, free := 0, int32(-1)
	if n.beat != nil && !n.pending {
		state = int(n.state)
		for i := range n.groups {
			free = max(free, n.groups[i].free)
		}
	}
	return [2]class{{dim: dimState, n: state}, {dim: dimFree, n: int(min(free, freeClasses))}}
}

// hintsOf returns the classes whose members are all that a clause can be true of; ok is false when a clause
// gives no hint.
func hintsOf(clause protocol.FilterNode) (ks []class, ok bool) {
	c, ok := clause.(*protocol.FilterCompare)
	if !ok {
		return nil, false
	}
	equal := c.Op == protocol.OpEQ || c.Op == protocol.OpIn
	atLeast := c.Op == protocol.OpGE || c.Op == protocol.OpGT
	switch f := c.Term.Field; {
	case f == protocol.FieldGPUFree && (equal || atLeast):
		return freeHints(c.Values), true
	case f == protocol.FieldGPUVRAMGB && atLeast:
		least := rungOf(c.Values[0].Number)
		for _, r := range append([]int{0}, protocol.VRAMRungs...) {
			if r >= least {
				ks = append(ks, class{dim: dimRung, n: r})
			}
		}
		return ks, true
	case !equal:
		return nil, false
	case f == protocol.FieldGPUVRAMGB:
		for _, v := range c.Values {
			ks = append(ks, class{dim: dimRung, n: rungOf(v.Number)})
		}
		return ks, true
	case f == protocol.FieldGPUModel:
		return modelClasses(c.Values)
	case f == protocol.FieldNodeRegion, f == protocol.FieldNodeCountry:
		return placeHints(c.Values), true
	case f == protocol.FieldNodeTier:
		for _, v := range c.Values {
			ks = append(ks, class{dim: dimTier, name: wordOf(v.Text)})
		}
		return ks, true
	case f == protocol.FieldNodeState:
		return stateHints(c.Values), true
	}
	return nil, false
}

// freeHints: a node with a group of n free GPUs has at least n free in its best group.
func freeHints(values []protocol.FilterValue) (ks []class) {
	least := values[0].Number
	for _, v := range values {
		least = min(least, v.Number)
	}
	for n := int(min(max(0, least), freeClasses)); n <= freeClasses; n++ {
		ks = append(ks, class{dim: dimFree, n: n})
	}
	return ks
}

func modelClasses(values []protocol.FilterValue) ([]class, bool) {
	ks := []class{{dim: dimOtherModel}}
	for _, v := range values {
		if v.GPU.Any {
			return nil, false
		}
		for _, s := range v.GPU.Slugs {
			ks = append(ks, class{dim: dimModel, name: wordOf(s)})
		}
	}
	return ks, true
}

func placeHints(values []protocol.FilterValue) (ks []class) {
	for _, v := range values {
		switch {
		case v.Kind == protocol.KindCountry:
			ks = append(ks, class{dim: dimCountry, name: wordOf(v.Text)})
		case v.Place.Country != "":
			ks = append(ks, class{dim: dimCountry, name: wordOf(v.Place.Country)})
		default:
			ks = append(ks, class{dim: dimMacro, name: wordOf(v.Place.Macro)})
			for _, country := range protocol.RegionCountries(v.Place.Macro) {
				ks = append(ks, class{dim: dimCountry, name: wordOf(country)})
			}
		}
	}
	return ks
}

// stateHints: a node that has said anything but goodbye may be stale.
func stateHints(values []protocol.FilterValue) (ks []class) {
	for n := range pb.NodeState_name {
		state := stateWords[uint8(n)]
		if state != "" && slices.ContainsFunc(values, func(v protocol.FilterValue) bool {
			return v.Text == state || v.Text == stateStale && n != int32(pb.NodeState_NODE_STATE_LEAVING)
		}) {
			ks = append(ks, class{dim: dimState, n: int(n)})
		}
	}
	return ks
}
