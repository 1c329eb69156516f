package node

import "encoding/binary"

// writerModule is a WebAssembly module of a few hundred bytes that writes its second argument to /out/r.
func writerModule() []byte {
	const i32, i64 = 0x7f, 0x7e
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
	var c []byte
	add := func(b ...byte) { c = append(c, b...) }
	num := func(n int64) { add(append([]byte{0x41}, sleb(n)...)...) }
	long := func(n int64) { add(append([]byte{0x42}, sleb(n)...)...) }
	num(0)
	num(4)
	add(0x10, 0, 0x1a) // args_sizes_get(0, 4)
	num(1024)
	num(2048)
	add(0x10, 1, 0x1a) // args_get(1024, 2048)
	// fd 4 is /out without volumes: path_open(4, 0, "r", 1, O_CREAT, write, 0, 0, 40)
	for _, n := range []int64{4, 0, 16, 1, 1} {
		num(n)
	}
	long(0x40)
	long(0)
	num(0)
	num(40)
	add(0x10, 2, 0x04, 0x40, 0x00, 0x0b) // trap unless it opens
	// iovec at 32: the second argument, up to the end of all arguments
	num(32)
	num(1028)
	add(0x28, 2, 0, 0x36, 2, 0) // [32] = argv[1]
	num(36)
	num(2048 - 1)
	num(4)
	add(0x28, 2, 0, 0x6a) // end of the text, without the last zero
	num(1028)
	add(0x28, 2, 0, 0x6b, 0x36, 2, 0)
	num(40)
	add(0x28, 2, 0)
	num(32)
	num(1)
	num(48)
	add(0x10, 3, 0x04, 0x40, 0x00, 0x0b) // fd_write(fd, 32, 1, 48)
	body := append([]byte{0}, c...)
	body = append(body, 0x0b)

	m := []byte("\x00asm\x01\x00\x00\x00")
	m = wasmSection(m, 1, types...)
	m = wasmSection(m, 2, entries...)
	m = wasmSection(m, 3, []byte{0})
	m = wasmSection(m, 5, []byte{0, 1})
	m = wasmSection(m, 7, append(wasmName("memory"), 2, 0), append(wasmName("_start"), 0, byte(len(imports))))
	m = wasmSection(m, 10, append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	return wasmSection(m, 11, append([]byte{0, 0x41, 16, 0x0b}, wasmName("r")...))
}

func wasmName(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }

func wasmSection(m []byte, id byte, items ...[]byte) []byte {
	body := binary.AppendUvarint(nil, uint64(len(items)))
	for _, i := range items {
		body = append(body, i...)
	}
	return append(append(append(m, id), binary.AppendUvarint(nil, uint64(len(body)))...), body...)
}

func sleb(n int64) (out []byte) {
	for {
		b := byte(n & 0x7f)
		n >>= 7
		if n == 0 && b&0x40 == 0 || n == -1 && b&0x40 != 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}
