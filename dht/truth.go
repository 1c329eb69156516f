package dht

import (
	"math"
	"slices"

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

// predicate judges one row.
type predicate func(e *entry, r *row, q *asking) truth

// compile turns an expression into a closure; every literal is already resolved.
func compile(n protocol.FilterNode) predicate {
	switch n := n.(type) {
	case *protocol.FilterAnd:
		return fold(n.Of, yes, func(a, b truth) truth { return min(a, b) })
	case *protocol.FilterOr:
		return fold(n.Of, no, func(a, b truth) truth { return max(a, b) })
	case *protocol.FilterNot:
		of := compile(n.Of)
		return func(e *entry, r *row, q *asking) truth { return of(e, r, q).not() }
	case *protocol.FilterHasVolume:
		root, least := string(n.Root), uint32(n.PerMille)
		return func(e *entry, r *row, _ *asking) truth { return e.holds(root, least) }
	case *protocol.FilterCompare:
		return compileCompare(n)
	default:
		return func(*entry, *row, *asking) truth { return yes }
	}
}

// fold joins parts with min (and) or max (or); the first that settles the matter ends it.
func fold(of []protocol.FilterNode, neutral truth, join func(a, b truth) truth) predicate {
	parts := make([]predicate, len(of))
	for i, k := range of {
		parts[i] = compile(k)
	}
	settled := neutral.not()
	return func(e *entry, r *row, q *asking) truth {
		t := neutral
		for _, p := range parts {
			if t = join(t, p(e, r, q)); t == settled {
				return t
			}
		}
		return t
	}
}

func compileCompare(n *protocol.FilterCompare) predicate {
	f := n.Term.Field
	switch f.Kind() {
	case protocol.KindNumber:
		return compileNumber(n)
	case protocol.KindBool:
		return negate(n.Op, func(e *entry, r *row, _ *asking) truth {
			b := r.flag(f)
			if b == unknown {
				return unknown
			}
			return truthOf(slices.ContainsFunc(n.Values, func(v protocol.FilterValue) bool { return v.Bool == (b == yes) }))
		})
	case protocol.KindVersion:
		return compileVersion(n)
	case protocol.KindPlace:
		return negate(n.Op, func(e *entry, r *row, _ *asking) truth {
			t := no
			for _, v := range n.Values {
				t = max(t, e.within(v.Place))
			}
			return t
		})
	case protocol.KindModel:
		return negate(n.Op, func(e *entry, r *row, _ *asking) truth {
			if r.gpu.GetModel() == "" {
				return unknown
			}
			return truthOf(slices.ContainsFunc(n.Values, func(v protocol.FilterValue) bool { return v.GPU.Has(r.gpu.GetModel()) }))
		})
	default:
		words := make([]string, len(n.Values))
		for i, v := range n.Values {
			words[i] = v.Text
		}
		return negate(n.Op, func(e *entry, r *row, q *asking) truth {
			return e.says(r, n.Term, words, q)
		})
	}
}

// negate turns == into != where that was asked.
func negate(op protocol.FilterOp, equal predicate) predicate {
	if op == protocol.OpNE {
		return func(e *entry, r *row, q *asking) truth { return equal(e, r, q).not() }
	}
	return equal
}

func compileNumber(n *protocol.FilterCompare) predicate {
	f, want := n.Term.Field, n.Values[0].Number
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
	return func(e *entry, r *row, q *asking) truth {
		x := e.number(r, f, q)
		if math.IsNaN(x) {
			return unknown
		}
		return truthOf(test(x))
	}
}

func compileVersion(n *protocol.FilterCompare) predicate {
	f := n.Term.Field
	return func(e *entry, r *row, _ *asking) truth {
		have := r.version(f)
		if have == nil {
			return unknown
		}
		c := protocol.CompareVersions(have, n.Values[0].Version)
		switch n.Op {
		case protocol.OpEQ:
			return truthOf(c == 0)
		case protocol.OpNE:
			return truthOf(c != 0)
		case protocol.OpLT:
			return truthOf(c < 0)
		case protocol.OpLE:
			return truthOf(c <= 0)
		case protocol.OpGT:
			return truthOf(c > 0)
		case protocol.OpGE:
			return truthOf(c >= 0)
		default:
			return truthOf(slices.ContainsFunc(n.Values, func(v protocol.FilterValue) bool {
				return protocol.CompareVersions(have, v.Version) == 0
			}))
		}
	}
}
