package wasm

import "encoding/binary"

// Probe's self-tests and the tests run modules of a few bytes that are put together here.

// program is a module with one page of memory and one function, _start.
type program struct {
	imports []hostCall
	pages   uint32 // memory to start with
	data    string // at address 0
	locals  byte   // number of i32 locals
	code    []byte // body of _start without its end
}

// hostCall is an imported WASI function; all its parameters are i32 but those in wide, which are i64.
type hostCall struct {
	name   string
	params int
	wide   []int
	silent bool // returns nothing
}

// assemble encodes a program. The imported functions are numbered in their order; _start follows.
func (p *program) assemble() []byte {
	types := [][]byte{{0x60, 0, 0}}
	var imports [][]byte
	for _, c := range p.imports {
		t := binary.AppendUvarint([]byte{0x60}, uint64(c.params))
		at := len(t)
		for range c.params {
			t = append(t, 0x7f)
		}
		for _, w := range c.wide {
			t[at+w] = 0x7e
		}
		if c.silent {
			t = append(t, 0)
		} else {
			t = append(t, 1, 0x7f)
		}
		i := append(encodeName("wasi_snapshot_preview1"), encodeName(c.name)...)
		i = append(i, 0)
		imports = append(imports, binary.AppendUvarint(i, uint64(len(types))))
		types = append(types, t)
	}
	start := uint64(len(imports))
	body := []byte{0}
	if p.locals > 0 {
		body = []byte{1, p.locals, 0x7f}
	}
	body = append(append(body, p.code...), 0x0b)

	m := []byte("\x00asm\x01\x00\x00\x00")
	m = appendSection(m, 1, types...)
	m = appendSection(m, sectionImport, imports...)
	m = appendSection(m, 3, []byte{0})
	m = appendSection(m, sectionMemory, binary.AppendUvarint([]byte{0}, uint64(max(1, p.pages))))
	m = appendSection(m, sectionExport,
		append(encodeName("memory"), 2, 0),
		binary.AppendUvarint(append(encodeName("_start"), 0), start))
	m = appendSection(m, sectionCode, append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	if p.data != "" {
		m = appendSection(m, 11, append([]byte{0, 0x41, 0, 0x0b}, encodeName(p.data)...))
	}
	return m
}

func encodeName(s string) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(s))), s...)
}

// appendSection adds a section that is a vector of encoded items, unless it has none.
func appendSection(m []byte, id byte, items ...[]byte) []byte {
	if len(items) == 0 {
		return m
	}
	body := binary.AppendUvarint(nil, uint64(len(items)))
	for _, item := range items {
		body = append(body, item...)
	}
	m = binary.AppendUvarint(append(m, id), uint64(len(body)))
	return append(m, body...)
}

// i32 pushes a constant.
func i32(v int32) []byte {
	b := []byte{0x41}
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// i64 pushes a small constant that is not negative.
func i64(v byte) []byte { return []byte{0x42, v & 0x3f} }

// call calls a function by its number.
func call(index byte) []byte { return []byte{0x10, index} }

// join concatenates code.
func join(parts ...[]byte) (code []byte) {
	for _, p := range parts {
		code = append(code, p...)
	}
	return code
}
