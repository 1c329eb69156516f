package wasm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// errModule means that a binary is no module that this backend can run.
var errModule = errors.New("wasm: bad module")

// Names of what instrument adds to the exports of a module. A module that exports them itself is refused.
const (
	// exportStop is a mutable i32 global: once it is not zero, the module traps at its next check.
	exportStop = "gridbeam.stop"
	// exportInit is the function that the module's start section named.
	exportInit = "gridbeam.init"
)

// checkEvery is how many loop rounds and calls go by between two checks: some ten microseconds in a tight
// loop, so that the check itself, which takes a hundred nanoseconds, is not felt.
const checkEvery = 10_000

// pageBytes is the unit of linear memory.
const pageBytes = 64 << 10

// Section numbers of the binary format (WebAssembly Core 2.0, 5.5).
const (
	sectionCustom    = 0
	sectionType      = 1
	sectionImport    = 2
	sectionFunction  = 3
	sectionTable     = 4
	sectionMemory    = 5
	sectionGlobal    = 6
	sectionExport    = 7
	sectionStart     = 8
	sectionElement   = 9
	sectionCode      = 10
	sectionData      = 11
	sectionDataCount = 12
)

// instrument rewrites a module so that it can be stopped, lets the daemon's garbage collector work, and
// cannot take host memory by its tables.
//
// Machine code of wazero's that is computing cannot be preempted by the Go scheduler. A collection has to
// stop all goroutines for a moment, so one long loop in a module would stop the whole daemon with it, its
// heartbeats included, and whoever could stop the module. wazero's remedy (WithCloseOnContextDone) leaves
// compiled code for Go at each round of a loop. Here each loop, and each function that calls another,
// counts down a global instead; at 0 it does "memory.grow 0", which leaves for Go and returns, and traps if
// the stop flag is set, an exported global that the backend sets from outside. Measured on two shared cores
// (BenchmarkTightLoop; examples/sweep):
//
//	                           unstoppable   this     wazero's check
//	10^8 rounds of nothing     72 ms         99 ms    2,780 ms
//	training, a Go program     0.26 s        0.27 s   0.80 s
//
// wazero's check is made in loops only; this one also ends a recursion that never grows deep.
//
// A module's start section is turned into an export, because wazero would run it before anybody can reach
// the flag. Custom sections but the names of functions are dropped. What comes out is validated by wazero in
// full; this decoder only has to find the same loops, and refuses each instruction that it does not know.
//
// minMemory is the size in bytes of the linear memory that an instance starts with.
func instrument(module []byte) (rewritten []byte, minMemory uint64, err error) {
	const header = 8
	if len(module) < header || !bytes.Equal(module[:header], []byte("\x00asm\x01\x00\x00\x00")) {
		return nil, 0, fmt.Errorf("%w: it does not begin like WebAssembly 1.0 (build it with GOOS=wasip1 GOARCH=wasm, or for wasm32-wasip1)", errModule)
	}
	sections, err := readSections(module[header:])
	if err != nil {
		return nil, 0, err
	}
	i := instrumenter{out: slices.Grow(bytes.Clone(module[:header]), len(module)+len(module)/8)}
	for _, s := range sections {
		if err := i.section(s); err != nil {
			return nil, 0, err
		}
	}
	i.flush(sectionRank(sectionCode) + 2)
	return i.out, i.memory, nil
}

type section struct {
	id   byte
	body []byte
}

func readSections(b []byte) ([]section, error) {
	var all []section
	r := reader{b: b}
	last := 0
	for len(r.b) > 0 {
		s := section{id: r.byte()}
		s.body = r.bytes(r.u32())
		if r.failed {
			return nil, fmt.Errorf("%w: section %d is cut short", errModule, s.id)
		}
		if s.id != sectionCustom {
			rank := sectionRank(s.id)
			if rank <= last {
				return nil, fmt.Errorf("%w: section %d is unknown, repeated or out of order", errModule, s.id)
			}
			last = rank
		}
		all = append(all, s)
	}
	return all, nil
}

// sectionRank orders sections: the data count (12) stands between elements and code; 0 is unknown.
func sectionRank(id byte) int {
	return bytes.IndexByte([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11}, id)
}

// instrumenter writes the new module section by section.
type instrumenter struct {
	out     []byte
	globals uint32 // number of the module's own globals; the stop flag and the countdown come after them
	check   []byte // the instructions that count down
	start   []byte // the function index of the start section, encoded
	exports []byte // the body of the export section that waits for a possible start section
	memory  uint64 // bytes that the module's memory starts with
	locals  uint64 // how many more the module's functions may have
	done    int    // rank up to which our own additions are written
}

func (i *instrumenter) section(s section) error {
	if s.id == sectionCustom {
		r := reader{b: s.body}
		if name := r.bytes(r.u32()); string(name) == "name" {
			if names := functionNames(r.b); names != nil {
				i.emit(s.id, names)
			}
		}
		if r.failed {
			return fmt.Errorf("%w: a custom section is cut short", errModule)
		}
		return nil
	}
	if s.id != sectionImport && s.id != sectionTable && s.id != sectionCode { // those are read in full below
		if err := bound(s); err != nil {
			return err
		}
	}
	i.flush(sectionRank(s.id))
	switch s.id {
	case sectionImport:
		n, err := importedGlobals(s.body)
		i.globals = n
		i.emit(s.id, s.body)
		return err
	case sectionTable:
		body, err := boundTables(s.body)
		i.emit(s.id, body)
		return err
	case sectionMemory:
		r := reader{b: s.body}
		if r.u32() > 0 {
			pages, _, _ := r.limits()
			i.memory = uint64(pages) * pageBytes
			i.done = sectionMemory
			i.emit(s.id, s.body)
		}
		return nil
	case sectionGlobal:
		return i.addGlobal(s.body)
	case sectionExport:
		i.exports = s.body // written by flush, when it is known whether a start section follows
		return nil
	case sectionStart:
		i.start = s.body
		return nil
	case sectionCode:
		return i.code(s.body)
	default:
		i.emit(s.id, s.body)
		return nil
	}
}

// flush writes our additions that have to stand before a section of the given rank.
func (i *instrumenter) flush(rank int) {
	if i.done < sectionMemory && rank > sectionRank(sectionMemory) {
		i.done = sectionMemory
		i.emit(sectionMemory, []byte{1, 1, 0, 0}) // of no page: the check needs one to grow by nothing
	}
	if i.done < sectionGlobal && rank > sectionRank(sectionGlobal) {
		_ = i.addGlobal([]byte{0})
	}
	if i.done < sectionExport && rank > sectionRank(sectionStart) {
		i.done = sectionExport
		r := reader{b: i.exports}
		n := r.u32()
		add := binary.AppendUvarint(nil, uint64(len(exportStop)))
		add = append(append(add, exportStop...), 3)
		add = binary.AppendUvarint(add, uint64(i.globals))
		n++
		if len(i.start) > 0 {
			add = binary.AppendUvarint(add, uint64(len(exportInit)))
			add = append(append(add, exportInit...), 0)
			add = append(add, i.start...)
			n++
		}
		body := binary.AppendUvarint(nil, uint64(n))
		i.emit(sectionExport, append(append(body, r.b...), add...))
	}
}

// addGlobal writes the global section with the stop flag and the countdown at its end.
func (i *instrumenter) addGlobal(body []byte) error {
	r := reader{b: body}
	own := r.u32()
	if r.failed {
		return fmt.Errorf("%w: its global section is cut short", errModule)
	}
	i.done = sectionGlobal
	i.globals += own
	stop := binary.AppendUvarint(nil, uint64(i.globals))
	left := binary.AppendUvarint(nil, uint64(i.globals)+1)
	const get, set, iff, end = 0x23, 0x24, 0x04, 0x0b
	i.check = join(
		[]byte{get}, left, i32(1), []byte{0x6b, set}, left, // left = left - 1
		[]byte{get}, left, []byte{0x45, iff, 0x40}, // if left == 0
		i32(checkEvery), []byte{set}, left, // left = checkEvery
		i32(0), []byte{0x40, 0, 0x1a}, // memory.grow 0; drop
		[]byte{get}, stop, []byte{iff, 0x40, 0x00, end, end}, // if stop { unreachable }
	)
	out := binary.AppendUvarint(nil, uint64(own)+2)
	out = append(out, r.b...)
	out = append(out, join([]byte{0x7f, 1}, i32(0), []byte{end, 0x7f, 1}, i32(checkEvery), []byte{end})...)
	i.emit(sectionGlobal, out)
	return nil
}

func (i *instrumenter) emit(id byte, body []byte) {
	i.out = append(i.out, id)
	i.out = binary.AppendUvarint(i.out, uint64(len(body)))
	i.out = append(i.out, body...)
}

// importedGlobals counts the globals of an import section.
func importedGlobals(body []byte) (n uint32, err error) {
	r := reader{b: body}
	count := r.u32()
	if count > maxImports {
		return 0, fmt.Errorf("%w: it has %d imports, at most %d are accepted", errModule, count, maxImports)
	}
	for range count {
		r.bytes(r.u32())
		r.bytes(r.u32())
		switch kind := r.byte(); kind {
		case 0:
			r.u32()
		case 1:
			r.byte()
			r.limits()
		case 2:
			r.limits()
		case 3:
			r.bytes(2)
			n++
		default:
			return 0, fmt.Errorf("%w: it imports something of the unknown kind %d", errModule, kind)
		}
		if r.failed {
			break
		}
	}
	if r.failed || len(r.b) > 0 {
		return 0, fmt.Errorf("%w: its import section is malformed", errModule)
	}
	return n, nil
}

// boundTables gives each table a maximum that the host can afford.
func boundTables(body []byte) ([]byte, error) {
	r := reader{b: body}
	n := r.u32()
	if n > maxTables {
		return nil, fmt.Errorf("%w: it has %d tables, at most %d are accepted", errModule, n, maxTables)
	}
	out := binary.AppendUvarint(nil, uint64(n))
	for range n {
		kind := r.byte()
		least, most, bounded := r.limits()
		if kind != 0x70 && kind != 0x6f {
			return nil, fmt.Errorf("%w: it has a table of the unknown type %#x", errModule, kind)
		}
		if least > maxTableElements {
			return nil, fmt.Errorf("%w: it has a table of %d elements, at most %d are accepted", errModule, least, maxTableElements)
		}
		if !bounded || most > maxTableElements {
			most = maxTableElements
		}
		out = append(out, kind, 1)
		out = binary.AppendUvarint(out, uint64(least))
		out = binary.AppendUvarint(out, uint64(most))
	}
	if r.failed || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: its table section is malformed", errModule)
	}
	return out, nil
}

// code writes the code section with the check in each loop and at the entry of functions that call.
func (i *instrumenter) code(body []byte) error {
	r := reader{b: body}
	n := r.u32()
	if n > maxFunctions {
		return fmt.Errorf("%w: it has %d functions, at most %d are accepted", errModule, n, maxFunctions)
	}
	if r.failed || uint64(n) > uint64(len(r.b)) {
		return fmt.Errorf("%w: it says that it has %d functions", errModule, n)
	}
	// All locals together are bounded too: a thousand small functions of many locals each are a bomb.
	i.locals = uint64(max(1<<20, len(body)))
	out := binary.AppendUvarint(make([]byte, 0, len(body)+len(body)/8), uint64(n))
	var f []byte
	for index := range n {
		src := r.bytes(r.u32())
		if r.failed {
			return fmt.Errorf("%w: its code section is cut short", errModule)
		}
		var err error
		if f, err = i.function(f[:0], src); err != nil {
			return fmt.Errorf("%w: function %d: %w", errModule, index, err)
		}
		out = binary.AppendUvarint(out, uint64(len(f)))
		out = append(out, f...)
	}
	if len(r.b) > 0 {
		return fmt.Errorf("%w: its code section is malformed", errModule)
	}
	i.emit(sectionCode, out)
	return nil
}

func (i *instrumenter) function(out, src []byte) ([]byte, error) {
	r := reader{b: src}
	var locals uint64
	for range r.u32() {
		locals += uint64(r.u32())
		r.byte()
		if r.failed {
			break
		}
	}
	if r.failed {
		return nil, errors.New("locals are cut short")
	}
	if locals > i.locals {
		return nil, errors.New("all functions together have more locals than are accepted")
	}
	s := shape{body: uint64(len(src)), locals: locals}
	if err := s.check(); err != nil { // before more is read of what is too large
		return nil, err
	}
	i.locals -= locals
	entry, calls := len(src)-len(r.b), false
	var loops []int // where their bodies begin
	for len(r.b) > 0 {
		before := r.b
		op, err := r.instruction(i.globals)
		if err != nil {
			return nil, err
		}
		var targets uint32
		if op == opBrTable {
			targets = (&reader{b: before[1:]}).u32()
		}
		s.add(op, targets)
		switch op {
		case opLoop:
			loops = append(loops, len(src)-len(r.b))
		case opCall, opCallIndirect:
			calls = true
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if calls { // a recursion passes through here; who calls nobody returns soon
		loops = slices.Insert(loops, 0, entry)
	}
	copied := 0
	for _, at := range loops {
		out = append(append(out, src[copied:at]...), i.check...)
		copied = at
	}
	return append(out, src[copied:]...), nil
}
