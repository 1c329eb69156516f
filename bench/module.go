package main

import (
	"encoding/binary"
	"hash/fnv"
)

// noncePath is the file that the small module writes below /out.
const noncePath = "h"

// nonceModule is the small module: see workModule.
func nonceModule() []byte { return workModule(0) }

// workModule is a module of a few hundred bytes that does work which can be checked: it writes the FNV-1a hash
// of its first argument, 8 bytes little-endian, to /out/h. What it costs beside its dispatch is microseconds; with
// rounds it first counts down from there, about a second for each 10^9 of them.
func workModule(rounds int64) []byte {
	const (
		i32, i64         = 0x7f, 0x7e
		outFD            = 4 // descriptor 3 is "/", 4 is /out: the job has no volumes
		path, iovec      = 16, 32
		written, fd, sum = 40, 48, 64
		argv, text       = 1024, 2048
	)
	imports := []struct {
		name   string
		params []byte
	}{
		{"args_sizes_get", []byte{i32, i32}},
		{"args_get", []byte{i32, i32}},
		{"path_open", []byte{i32, i32, i32, i32, i32, i64, i64, i32, i32}},
		{"fd_write", []byte{i32, i32, i32, i32}},
	}
	types, entries := [][]byte{{0x60, 0, 0}}, [][]byte{}
	for k, f := range imports {
		types = append(types, append(append([]byte{0x60, byte(len(f.params))}, f.params...), 1, i32))
		e := append(wasmName("wasi_snapshot_preview1"), wasmName(f.name)...)
		entries = append(entries, append(e, 0, byte(k+1)))
	}
	c := code{}
	c.i32(0).i32(4).call(0).drop()
	c.i32(argv).i32(text).call(1).drop()
	if rounds > 0 {
		c.op(0x42).sleb(rounds).set(1).op(0x03, 0x40)                                    // h = rounds, loop
		c.get(1).op(0x42).sleb(1).op(0x7d).tee(1).op(0x50).op(0x45).op(0x0d, 0).op(0x0b) // again while --h != 0
	}
	c.i32(argv+4).op(0x28, 2, 0).set(0)                     // p = argv[1]
	c.op(0x42).sleb(-0x340d631b7bdddcdb).set(1)             // h = the offset basis 0xcbf29ce484222325
	c.op(0x02, 0x40, 0x03, 0x40)                            // block, loop
	c.get(0).op(0x2d, 0, 0).op(0x45).op(0x0d, 1)            // *p == 0: leave
	c.get(1).get(0).op(0x31, 0, 0).op(0x85)                 // h ^ *p
	c.op(0x42).sleb(0x100000001b3).op(0x7e).set(1)          // h = that × the prime
	c.get(0).i32(1).op(0x6a).set(0).op(0x0c, 0, 0x0b, 0x0b) // p++, again
	c.i32(sum).get(1).op(0x37, 3, 0)
	c.i32(outFD).i32(0).i32(path).i32(1).i32(1).op(0x42, 0xc0, 0).op(0x42, 0).i32(0).i32(fd).call(2).op(0x04, 0x40, 0x00, 0x0b) // trap unless it opens
	c.i32(iovec).i32(sum).op(0x36, 2, 0).i32(iovec+4).i32(8).op(0x36, 2, 0)
	c.i32(fd).op(0x28, 2, 0).i32(iovec).i32(1).i32(written).call(3).op(0x04, 0x40, 0x00, 0x0b)
	body := append([]byte{2, 1, i32, 1, i64}, c...)
	body = append(body, 0x0b)

	m := []byte("\x00asm\x01\x00\x00\x00")
	m = section(m, 1, types...)
	m = section(m, 2, entries...)
	m = section(m, 3, []byte{0})
	m = section(m, 5, []byte{0, 1})
	m = section(m, 7, append(wasmName("memory"), 2, 0), append(wasmName("_start"), 0, byte(len(imports))))
	m = section(m, 10, append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	return section(m, 11, append([]byte{0, 0x41, path, 0x0b}, wasmName(noncePath)...))
}

// nonceOutput is what the module writes for an input.
func nonceOutput(input string) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(input))
	return binary.LittleEndian.AppendUint64(nil, h.Sum64())
}

// code is the body of a WebAssembly function.
type code []byte

func (c *code) op(b ...byte) *code { *c = append(*c, b...); return c }
func (c *code) i32(v int64) *code  { return c.op(0x41).sleb(v) }
func (c *code) call(f byte) *code  { return c.op(0x10, f) }
func (c *code) drop() *code        { return c.op(0x1a) }
func (c *code) get(l byte) *code   { return c.op(0x20, l) }
func (c *code) set(l byte) *code   { return c.op(0x21, l) }
func (c *code) tee(l byte) *code   { return c.op(0x22, l) }

// sleb appends a signed LEB128 number.
func (c *code) sleb(v int64) *code {
	for {
		b := byte(v & 0x7f)
		v >>= 7
		if v == 0 && b&0x40 == 0 || v == -1 && b&0x40 != 0 {
			return c.op(b)
		}
		c.op(b | 0x80)
	}
}

func wasmName(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }

func section(m []byte, id byte, items ...[]byte) []byte {
	body := binary.AppendUvarint(nil, uint64(len(items)))
	for _, i := range items {
		body = append(body, i...)
	}
	m = binary.AppendUvarint(append(m, id), uint64(len(body)))
	return append(m, body...)
}
