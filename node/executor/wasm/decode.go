package wasm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// reader takes a binary module apart. After a read beyond the end it is failed and returns zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) fail() {
	r.b, r.failed = nil, true
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// u32 reads an unsigned LEB128 number of at most five bytes.
func (r *reader) u32() uint32 {
	v, n := binary.Uvarint(r.b[:min(len(r.b), 5)])
	if n <= 0 || v > 1<<32-1 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return uint32(v)
}

// skip passes over a LEB128 number of any sign and of at most size bytes.
func (r *reader) skip(size int) {
	for n := range size {
		if n == len(r.b) {
			break
		}
		if r.b[n] < 0x80 {
			r.b = r.b[n+1:]
			return
		}
	}
	r.fail()
}

func (r *reader) limits() (least, most uint32, bounded bool) {
	flag := r.byte()
	if flag > 1 { // shared and 64-bit memories are no part of what is offered
		r.fail()
	}
	least = r.u32()
	if flag == 1 {
		most = r.u32()
	}
	return least, most, flag == 1
}

const (
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opCall         = 0x10
	opCallIndirect = 0x11
	opMisc         = 0xfc
	opVector       = 0xfd
)

// instruction passes over one instruction of WebAssembly 2.0 and returns its first byte. It refuses
// instructions that it does not know and those that touch a global beyond the module's own.
func (r *reader) instruction(globals uint32) (byte, error) {
	op := r.byte()
	switch {
	case op == opBlock || op == opLoop || op == opIf: // block, loop, if: a type or a 33-bit index
		r.skip(5)
	case op == opBrTable:
		for range r.u32() {
			r.u32()
			if r.failed {
				break
			}
		}
		r.u32()
	case op == 0x11: // call_indirect
		r.u32()
		r.u32()
	case op == 0x1c: // select with types
		r.bytes(r.u32())
	case op == 0x23 || op == 0x24: // global.get, global.set
		if index := r.u32(); index >= globals && !r.failed {
			return op, fmt.Errorf("there is no global %d", index)
		}
	case op == 0x0c, op == 0x0d, op == 0x10, op >= 0x20 && op <= 0x26, op == 0xd2:
		r.u32()
	case op >= 0x28 && op <= 0x3e: // loads and stores
		r.u32()
		r.u32()
	case op == 0x3f, op == 0x40, op == 0xd0: // memory.size, memory.grow, ref.null
		r.byte()
	case op == 0x41: // i32.const
		r.skip(5)
	case op == 0x42: // i64.const
		r.skip(10)
	case op == 0x43: // f32.const
		r.bytes(4)
	case op == 0x44: // f64.const
		r.bytes(8)
	case op <= 0x01, op == 0x05, op == 0x0b, op == 0x0f, op == 0x1a, op == 0x1b, op >= 0x45 && op <= 0xc4, op == 0xd1:
	case op == opMisc:
		return op, r.misc()
	case op == opVector:
		return op, r.vector()
	default:
		return op, fmt.Errorf("instruction %#x is no part of WebAssembly 2.0", op)
	}
	return op, r.cut()
}

func (r *reader) cut() error {
	if r.failed {
		return errors.New("an instruction is cut short")
	}
	return nil
}

// misc passes over an instruction after the byte 0xfc: saturating conversions, bulk memory, tables.
func (r *reader) misc() error {
	switch op := r.byte(); op {
	case 0, 1, 2, 3, 4, 5, 6, 7:
	case 8: // memory.init
		r.u32()
		r.byte()
	case 9, 13, 15, 16, 17: // data.drop, elem.drop, table.grow, table.size, table.fill
		r.u32()
	case 10: // memory.copy
		r.bytes(2)
	case 11: // memory.fill
		r.byte()
	case 12, 14: // table.init, table.copy
		r.u32()
		r.u32()
	default:
		return fmt.Errorf("instruction 0xfc %d is no part of WebAssembly 2.0", op)
	}
	return r.cut()
}

// vector passes over an instruction after the byte 0xfd. Numbers of 128 and more have a second byte, 1.
func (r *reader) vector() error {
	op := r.byte()
	if op >= 0x80 {
		if r.byte() != 1 {
			return fmt.Errorf("instruction 0xfd %#x is no part of WebAssembly 2.0", op)
		}
		return r.cut()
	}
	switch {
	case op <= 11, op == 92, op == 93: // loads and stores
		r.u32()
		r.u32()
	case op == 12, op == 13: // a constant, a shuffle
		r.bytes(16)
	case op >= 21 && op <= 34: // one lane
		r.byte()
	case op >= 84 && op <= 91: // load or store one lane
		r.u32()
		r.u32()
		r.byte()
	}
	return r.cut()
}
