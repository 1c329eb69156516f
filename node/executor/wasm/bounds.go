package wasm

import (
	"encoding/binary"
	"fmt"
	"math"
)

// What a module may have of each thing. wazero's decoder allocates for whatever number a section begins
// with, so 30 bytes could take the whole host: bound walks each section before wazero sees it, and refuses
// numbers that the bytes do not bear out or that no program of a compiler has. The numbers lie at or below
// those of the web browsers (WebAssembly JavaScript Interface, "Implementation-defined Limits").
const (
	maxTypes     = 10_000
	maxImports   = 1000
	maxFunctions = 1_000_000
	maxGlobals   = 100_000
	maxExports   = 100_000
	maxElements  = 1 << 20 // of all element segments together
	maxData      = 100_000
	maxLocals    = 50_000 // of one function
	maxTables    = 16
	// maxTableElements bounds what a table may take of the host's memory: 8 bytes an element, outside the
	// linear memory that the task's limit covers.
	maxTableElements = 1 << 20
)

// bound checks the structure of a section that is passed on as it is.
func bound(s section) error {
	r := reader{b: s.body}
	switch s.id {
	case sectionType:
		r.vector1(maxTypes, (*reader).funcType)
	case sectionFunction:
		r.vector1(maxFunctions, (*reader).skip5)
	case sectionMemory:
		r.vector1(1, func(r *reader) { r.limits() })
	case sectionGlobal:
		r.vector1(maxGlobals, func(r *reader) {
			r.bytes(2)
			r.expression()
		})
	case sectionExport:
		r.vector1(maxExports, func(r *reader) {
			r.bytes(r.u32())
			r.byte()
			r.u32()
		})
	case sectionStart, sectionDataCount:
		r.u32()
	case sectionElement:
		left := uint32(maxElements)
		r.vector1(maxElements, func(r *reader) { r.elements(&left) })
	case sectionData:
		r.vector1(maxData, (*reader).data)
	}
	if r.failed || len(r.b) > 0 {
		return fmt.Errorf("%w: section %d is malformed or larger than is accepted", errModule, s.id)
	}
	return nil
}

// vector1 passes over a vector of at most limit items, each of at least one byte.
func (r *reader) vector1(limit uint32, item func(*reader)) {
	n := r.u32()
	if n > limit || uint64(n) > uint64(len(r.b)) {
		r.fail()
	}
	for range n {
		if r.failed {
			return
		}
		item(r)
	}
}

func (r *reader) skip5() { r.u32() }

func (r *reader) funcType() {
	if r.byte() != 0x60 {
		r.fail()
	}
	r.bytes(r.u32())
	r.bytes(r.u32())
}

// expression passes over a constant expression and its end.
func (r *reader) expression() {
	for !r.failed {
		op, err := r.instruction(math.MaxUint32)
		if err != nil {
			r.fail()
		}
		if op == 0x0b {
			return
		}
	}
}

// elements passes over one element segment (Core 2.0, 5.5.12); left is what all may still have.
func (r *reader) elements(left *uint32) {
	kind := r.u32()
	if kind > 7 {
		r.fail()
		return
	}
	passive, explicit, expressions := kind&1 != 0, kind&2 != 0, kind&4 != 0
	if !passive && explicit {
		r.u32() // table
	}
	if !passive {
		r.expression() // offset
	}
	if passive || explicit {
		r.byte() // kind of elements
	}
	item := (*reader).skip5
	if expressions {
		item = (*reader).expression
	}
	n := reader{b: r.b}
	count := n.u32()
	if count > *left {
		r.fail()
		return
	}
	*left -= count
	r.vector1(maxElements, item)
}

// data passes over one data segment (Core 2.0, 5.5.14).
func (r *reader) data() {
	switch r.u32() {
	case 0:
		r.expression()
	case 1:
	case 2:
		r.u32()
		r.expression()
	default:
		r.fail()
	}
	r.bytes(r.u32())
}

// functionNames returns a name section that has nothing but well-formed names of functions, for the texts
// of traps; nil if there are none.
func functionNames(body []byte) []byte {
	const functions = 1
	r := reader{b: body}
	for len(r.b) > 0 {
		id := r.byte()
		names := r.bytes(r.u32())
		if id != functions || r.failed {
			continue
		}
		n := reader{b: names}
		n.vector1(maxFunctions, func(r *reader) {
			r.u32()
			r.bytes(r.u32())
		})
		if n.failed || len(n.b) > 0 {
			return nil
		}
		out := append(encodeName("name"), functions)
		out = binary.AppendUvarint(out, uint64(len(names)))
		return append(out, names...)
	}
	return nil
}
