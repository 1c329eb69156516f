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
	maxParams    = 128 // of one type, and as many results: each may cost a value at each block
	maxImports   = 1000
	maxFunctions = 100_000
	maxGlobals   = 100_000
	maxExports   = 100_000
	maxElements  = 1 << 20 // of all element segments together
	maxData      = 100_000
	maxTables    = 16
	// maxTableElements bounds what a table may take of the host's memory: 8 bytes an element, outside the
	// linear memory that the task's limit covers.
	maxTableElements = 1 << 20
)

// What one function may have. wazero's compiler takes time that grows with the square and the cube of some
// of these, and it cannot be interrupted inside a function: 12 KB of loops took 11 s, 600 KB of nested blocks
// minutes. In brackets is what the largest functions of ordinary programs have (Go's of the sweep example and
// of gofmt; TinyGo, Rust and C stay below those but for locals, of which a C program of zig's has 811), then
// what a function at the bound takes to compile on a busy core.
const (
	maxBody     = 1 << 20 // bytes (30,931; 3 s)
	maxDepth    = 4096    // blocks inside each other (570: Go has one for each point where a function resumes; 0.3 s)
	maxBlocks   = 8192    // block, loop and if (860; 1 s)
	maxLoops    = 1024    // each gets a check, of two blocks more (0.6 s)
	maxBranches = 16_384  // br, br_if and each target of br_table (1,470)
	maxLocals   = 4096
	// maxLoopLocals bounds locals times loops: each local may become a value of each loop (2 s).
	maxLoopLocals = 1 << 17
	// maxBodyBlocks bounds bytes times blocks: each value may be alive in each block (27 million; 0.5 s at a third of it).
	maxBodyBlocks = 1 << 29
)

// shape counts what a function has that the compiler's time depends on.
type shape struct {
	body, locals                          uint64
	depth, deepest, blocks, loops, branch uint64
}

// add counts one instruction; targets are those of a br_table.
func (s *shape) add(op byte, targets uint32) {
	switch op {
	case opBlock, opLoop, opIf:
		s.blocks++
		s.depth++
		s.deepest = max(s.deepest, s.depth)
		if op == opLoop {
			s.loops++
		}
	case opEnd:
		s.depth = max(s.depth, 1) - 1 // the last one ends the function
	case opBr, opBrIf:
		s.branch++
	case opBrTable:
		s.branch += uint64(targets) + 1
	}
}

// check names the first bound that a function breaks.
func (s *shape) check() error {
	for _, b := range []struct {
		what       string
		has, bound uint64
	}{
		{"bytes", s.body, maxBody},
		{"locals", s.locals, maxLocals},
		{"blocks inside each other", s.deepest, maxDepth},
		{"blocks", s.blocks, maxBlocks},
		{"loops", s.loops, maxLoops},
		{"branches", s.branch, maxBranches},
		{"locals times loops", s.locals * s.loops, maxLoopLocals},
		{"bytes times blocks", s.body * s.blocks, maxBodyBlocks},
	} {
		if b.has > b.bound {
			return fmt.Errorf("it has %d %s, at most %d are accepted", b.has, b.what, b.bound)
		}
	}
	return nil
}

// bound checks the structure of a section that is passed on as it is.
func bound(s section) error {
	r := reader{b: s.body}
	switch s.id {
	case sectionType:
		r.vector1(maxTypes, (*reader).funcType)
	case sectionFunction:
		if n := (&reader{b: s.body}).u32(); n > maxFunctions {
			return fmt.Errorf("%w: it has %d functions, at most %d are accepted", errModule, n, maxFunctions)
		}
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
	for range 2 { // parameters, results
		n := r.u32()
		if n > maxParams {
			r.fail()
		}
		r.bytes(n)
	}
}

// expression passes over a constant expression and its end.
func (r *reader) expression() {
	for !r.failed {
		op, err := r.instruction(math.MaxUint32)
		if err != nil {
			r.fail()
		}
		if op == opEnd {
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
