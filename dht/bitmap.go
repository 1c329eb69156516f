package dht

import (
	"math/bits"
)

// bitmap is a set of slots.
type bitmap []uint64

func (b *bitmap) add(i uint32) {
	w := int(i / 64)
	for len(*b) <= w {
		*b = append(*b, 0)
	}
	(*b)[w] |= 1 << (i % 64)
}

func (b bitmap) remove(i uint32) {
	if w := int(i / 64); w < len(b) {
		b[w] &^= 1 << (i % 64)
	}
}

func (b bitmap) has(i uint32) bool {
	w := int(i / 64)
	return w < len(b) && b[w]>>(i%64)&1 == 1
}

// or adds other's members.
func (b *bitmap) or(other bitmap) {
	for len(*b) < len(other) {
		*b = append(*b, 0)
	}
	for i, w := range other {
		(*b)[i] |= w
	}
}

// and keeps the members that other has too.
func (b bitmap) and(other bitmap) {
	for i := range b {
		if i < len(other) {
			b[i] &= other[i]
		} else {
			b[i] = 0
		}
	}
}

// each calls do for each member, in order.
func (b bitmap) each(do func(i uint32)) {
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			do(uint32(w*64 + bits.TrailingZeros64(word)))
		}
	}
}

// dimension is one of the facts that have bitmaps (discovery.md 5).
type dimension uint8

const (
	dimModel dimension = iota
	dimOtherModel
	dimRung
	dimCountry
	dimMacro // of nodes that tell their region alone
	dimTier
	dimState
	dimFree
)

// class is one value of a dimension: a word or a number.
type class struct {
	dim  dimension
	name word
	n    int
}

// maxModels bounds the bitmaps of models, whose names strangers choose; further models share one.
const maxModels = 512

// freeClasses: so many GPUs or more are one class.
const freeClasses = 8

// classes holds a bitmap of slots per class. A node is a member of a class if one of its groups is: so a
// bitmap is a hint which nodes are worth judging, never a judgement.
type classes struct {
	of     map[class]*members
	models int
}

type members struct {
	bitmap
	count int
}

func newClasses() *classes { return &classes{of: map[class]*members{}} }

// named returns the class under which a model is filed.
func (c *classes) named(k class) class {
	if k.dim != dimModel || c.of[k] != nil || c.models < maxModels {
		return k
	}
	return class{dim: dimOtherModel}
}

func (c *classes) add(k class, i uint32) {
	k = c.named(k)
	m := c.of[k]
	if m == nil {
		m = &members{}
		c.of[k] = m
		if k.dim == dimModel {
			c.models++
		}
	}
	if !m.has(i) {
		m.count++
		m.add(i)
	}
}

func (c *classes) remove(k class, i uint32) {
	c.removeExactly(k, i)
	if k.dim == dimModel { // it may have been filed there
		c.removeExactly(class{dim: dimOtherModel}, i)
	}
}

func (c *classes) removeExactly(k class, i uint32) {
	m := c.of[k]
	if m == nil || !m.has(i) {
		return
	}
	m.remove(i)
	if m.count--; m.count == 0 {
		delete(c.of, k)
		if k.dim == dimModel {
			c.models--
		}
	}
}

// union returns the members of any of the classes.
func (c *classes) union(ks []class) bitmap {
	var out bitmap
	for _, k := range ks {
		if m := c.of[k]; m != nil {
			out.or(m.bitmap)
		}
	}
	return out
}
