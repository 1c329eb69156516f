package wasm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

var (
	loopForEver  = program{code: []byte{0x03, 0x40, 0x0c, 0, 0x0b}}
	nothing      = program{}
	importsWrite = hostCall{name: "fd_write", params: 4}
)

// wasmModule puts raw sections behind the header.
func wasmModule(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Join(sections, nil)...)
}

func rawSection(id byte, body ...byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

// startLoop is a module whose start section names a function that never returns.
func startLoop() []byte {
	return wasmModule(
		rawSection(1, 1, 0x60, 0, 0),
		rawSection(3, 2, 0, 0),
		rawSection(5, 1, 0, 1),
		rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 1)...)...),
		rawSection(8, 0),
		rawSection(10, 2, 7, 0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b, 2, 0, 0x0b),
	)
}

func TestStartSectionIsStoppedToo(t *testing.T) {
	b := newBackend(t, nil)
	task := newTask(t, "start-loop", startLoop())
	task.Limits.Wall = 50 * time.Millisecond
	if out := runTask(t, b, task); out.Reason != protocol.ReasonTimeout {
		t.Errorf("outcome is %+v", out)
	}
}

// TestStartSectionRunsFirst shows that turning the start section into an export keeps its effect: it stores
// 5 in memory and _start exits with what it finds there.
func TestStartSectionRunsFirst(t *testing.T) {
	exit := append(encodeName("wasi_snapshot_preview1"), encodeName("proc_exit")...)
	module := wasmModule(
		rawSection(1, 2, 0x60, 0, 0, 0x60, 1, 0x7f, 0),
		rawSection(2, append([]byte{1}, append(exit, 0, 1)...)...),
		rawSection(3, 2, 0, 0),
		rawSection(5, 1, 0, 1),
		rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 2)...)...),
		rawSection(8, 1),
		rawSection(10, 2,
			9, 0, 0x41, 0, 0x41, 5, 0x36, 2, 0, 0x0b, // i32.store
			9, 0, 0x41, 0, 0x28, 2, 0, 0x10, 0, 0x0b), // proc_exit(i32.load)
	)
	if out := runTask(t, newBackend(t, nil), newTask(t, "start-first", module)); out.ExitCode != 5 {
		t.Errorf("outcome is %+v, want exit code 5", out)
	}
}

// TestModuleCannotTouchTheStopFlag writes to the global that instrument adds.
func TestModuleCannotTouchTheStopFlag(t *testing.T) {
	for _, code := range [][]byte{
		join(i32(0), []byte{0x24, 0}),                   // global.set 0, of which the module has none
		join([]byte{0x23, 0, 0x1a}),                     // global.get 0; drop
		join(i32(0), []byte{0x24, 0x80, 0x80, 0x80, 0}), // the same number in a longer spelling
	} {
		p := program{code: code}
		if _, _, err := instrument(p.assemble()); !errors.Is(err, errModule) {
			t.Errorf("%x: error is %v, want a bad module", code, err)
		}
	}
	mine := wasmModule(
		rawSection(1, 1, 0x60, 0, 0), rawSection(3, 1, 0), rawSection(5, 1, 0, 1),
		rawSection(6, 1, 0x7f, 1, 0x41, 0, 0x0b),
		rawSection(7, append([]byte{2}, append(append(encodeName("_start"), 0, 0), append(encodeName(exportStop), 3, 0)...)...)...),
		rawSection(10, 1, 2, 0, 0x0b),
	)
	b := newBackend(t, nil)
	if _, err := b.Prepare(t.Context(), newTask(t, "own-flag", mine)); executor.ReasonOf(err, 0) != protocol.ReasonBadModule {
		t.Errorf("a module with an export of the flag's name: %v", err)
	}
}

// callsTwice is a function that calls itself twice, to a depth of 60: the stack stays small, and the run
// takes for ever.
func callsTwice() []byte {
	f := []byte{0, 0x20, 0, 0x04, 0x40, 0x20, 0, 0x41, 1, 0x6b, 0x10, 1, 0x20, 0, 0x41, 1, 0x6b, 0x10, 1, 0x0b, 0x0b}
	start := []byte{0, 0x41, 60, 0x10, 1, 0x0b}
	code := append([]byte{2, byte(len(start))}, start...)
	code = append(append(code, byte(len(f))), f...)
	return wasmModule(
		rawSection(1, 2, 0x60, 0, 0, 0x60, 1, 0x7f, 0),
		rawSection(3, 2, 0, 1),
		rawSection(5, 1, 0, 1),
		rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 0)...)...),
		rawSection(10, code...),
	)
}

func TestRecursionWithoutLoopsIsStopped(t *testing.T) {
	task := newTask(t, "twice", callsTwice())
	task.Limits.Wall = 50 * time.Millisecond
	if out := runTask(t, newBackend(t, nil), task); out.Reason != protocol.ReasonTimeout {
		t.Errorf("outcome is %+v", out)
	}
}

func TestTablesAreBounded(t *testing.T) {
	table := func(limits ...byte) []byte {
		return wasmModule(
			rawSection(1, 1, 0x60, 0, 0), rawSection(3, 1, 0),
			rawSection(4, append([]byte{1, 0x70}, limits...)...),
			rawSection(5, 1, 0, 1),
			rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 0)...)...),
			// ref.null func; i32.const 2^26; table.grow 0; i32.const -1; i32.ne; if; unreachable; end
			rawSection(10, 1, 19, 0, 0xd0, 0x70, 0x41, 0x80, 0x80, 0x80, 0x20, 0xfc, 15, 0, 0x41, 0x7f, 0x47, 0x04, 0x40, 0x00, 0x0b, 0x0b),
		)
	}
	if _, _, err := instrument(table(0, 0xff, 0xff, 0xff, 0x3f)); !errors.Is(err, errModule) {
		t.Errorf("a table of 134 million elements: %v", err)
	}
	for name, limits := range map[string][]byte{"no maximum": {0, 1}, "a huge maximum": {1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f}} {
		if out := runTask(t, newBackend(t, nil), newTask(t, "table", table(limits...))); out.Reason != protocol.ReasonDone {
			t.Errorf("%s: growing the table by 64 million elements did not fail: %+v", name, out)
		}
	}
}

func TestMalformedModulesAreBadModules(t *testing.T) {
	b := newBackend(t, func(c *Config) { c.ModuleBytes = 1 << 20 })
	whole := (&program{imports: []hostCall{importsWrite}, code: join(i32(1), i32(0), i32(0), i32(0), call(0), []byte{0x1a})}).assemble()
	cases := map[string][]byte{
		"nothing":         nil,
		"text":            []byte("#!/bin/sh\necho hello\n"),
		"an ELF file":     []byte("\x7fELF\x02\x01\x01\x00\x00\x00"),
		"a component":     []byte("\x00asm\x0d\x00\x01\x00"),
		"only a header":   wasmModule(),
		"too large":       append(wasmModule(), make([]byte, 1<<20)...),
		"another import":  wasmModule(rawSection(1, 1, 0x60, 0, 0), rawSection(2, append([]byte{1}, append(append(encodeName("env"), encodeName("f")...), 0, 0)...)...)),
		"unknown section": wasmModule(rawSection(42)),
		"repeated":        wasmModule(rawSection(1, 0), rawSection(1, 0)),
		"wrong signature": (&program{imports: []hostCall{{name: "fd_write", params: 1}}}).assemble(),
		"no such call":    (&program{imports: []hostCall{{name: "fd_wrote", params: 4}}}).assemble(),
		"a socket":        (&program{imports: []hostCall{{name: "sock_open", params: 3}}}).assemble(),
		"unbalanced":      (&program{code: []byte{0x0b}}).assemble(),
		"stack underflow": (&program{code: []byte{0x1a}}).assemble(),
		"threads":         (&program{code: []byte{0xfe, 0x03, 0x00}}).assemble(),
	}
	for n := range len(whole) {
		cases["cut at "+string(rune('a'+n%26))+strings.Repeat("+", n/26)] = whole[:n]
	}
	for name, module := range cases {
		_, err := b.Prepare(t.Context(), newTask(t, name, module))
		if executor.ReasonOf(err, 0) != protocol.ReasonBadModule {
			t.Errorf("%s: error is %v, want a bad module", name, err)
		}
	}
	if _, err := b.Prepare(t.Context(), newTask(t, "whole", whole)); err != nil {
		t.Errorf("the whole module: %v", err)
	}
}

// TestBombsAreRefusedBeforeTheyAreDecoded declares numbers that a decoder would allocate for.
func TestBombsAreRefusedBeforeTheyAreDecoded(t *testing.T) {
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	with := func(prefix ...byte) []byte { return append(prefix, huge...) }
	many := func(n int) []byte { // functions of the most locals each
		code := binary.AppendUvarint(nil, uint64(n))
		for range n {
			code = append(code, 5, 1, 0x80, 0x20, 0x7e, 0x0b)
		}
		return code
	}
	for name, module := range map[string][]byte{
		"types":        wasmModule(rawSection(1, huge...)),
		"parameters":   wasmModule(rawSection(1, with(1, 0x60)...)),
		"results":      wasmModule(rawSection(1, with(1, 0x60, 0)...)),
		"imports":      wasmModule(rawSection(2, huge...)),
		"import name":  wasmModule(rawSection(2, with(1)...)),
		"functions":    wasmModule(rawSection(3, huge...)),
		"tables":       wasmModule(rawSection(4, huge...)),
		"globals":      wasmModule(rawSection(6, huge...)),
		"exports":      wasmModule(rawSection(7, huge...)),
		"export name":  wasmModule(rawSection(7, with(1)...)),
		"elements":     wasmModule(rawSection(9, huge...)),
		"element init": wasmModule(rawSection(9, with(1, 0, 0x41, 0, 0x0b)...)),
		"codes":        wasmModule(rawSection(10, huge...)),
		"locals":       wasmModule(rawSection(10, append(with(1, 8, 1), 0x7f, 0x0b)...)),
		"all locals":   wasmModule(rawSection(10, many(300)...)),
		"segments":     wasmModule(rawSection(11, huge...)),
		"segment":      wasmModule(rawSection(11, with(1, 0, 0x41, 0, 0x0b)...)),
	} {
		if _, _, err := instrument(module); !errors.Is(err, errModule) {
			t.Errorf("%s: error is %v, want a bad module", name, err)
		}
	}
	names := append(encodeName("name"), append([]byte{1, 5}, huge...)...)
	out, _, err := instrument(wasmModule(rawSection(0, names...)))
	if err != nil || bytes.Contains(out, []byte("name")) {
		t.Errorf("a bomb in the names is kept: %x, %v", out, err)
	}
}

// FuzzInstrument holds the rewriter against wazero's validator: of what instrument takes, wazero takes the
// original and the rewritten module alike. (The original of what is refused is not shown to wazero: thirty
// bytes can make its decoder take all memory, see testdata.)
func FuzzInstrument(f *testing.F) {
	for _, p := range selfTests() {
		f.Add(p.module.assemble())
	}
	f.Add(startLoop())
	f.Add(loopForEver.assemble())
	for _, c := range atTheBounds() {
		f.Add(withFunction(0, c.code(10)))
	}
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	f.Cleanup(func() { _ = r.Close(ctx) })
	f.Fuzz(func(t *testing.T, module []byte) {
		if len(module) > 1<<16 {
			return
		}
		rewritten, _, err := instrument(module)
		if err != nil {
			if !errors.Is(err, errModule) {
				t.Errorf("error %v is no bad module", err)
			}
			return
		}
		original, invalid := r.CompileModule(ctx, module)
		if invalid == nil {
			_ = original.Close(ctx)
		}
		after, err := r.CompileModule(ctx, rewritten)
		if err == nil {
			_ = after.Close(ctx)
		}
		if invalid != nil {
			// What was wrong may have been in a custom section, and that is gone, or the want of a memory, and
			// that is there now.
			has := func(id byte) bool {
				return slices.ContainsFunc(must(readSections(module[8:])), func(s section) bool { return s.id == id })
			}
			if has(sectionCustom) || !has(sectionMemory) || strings.Contains(invalid.Error(), "unknown global for export") {
				return // (an export of our own globals is of no use to a module)
			}
		}
		if (invalid == nil) != (err == nil) && !bytes.Contains(module, []byte("gridbeam.")) {
			t.Errorf("wazero says %v of the module and %v of what instrument made of it", invalid, err)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// FuzzPrepare gives malformed modules to the whole path, compiler included.
func FuzzPrepare(f *testing.F) {
	for _, p := range selfTests() {
		f.Add(p.module.assemble())
	}
	f.Add(startLoop())
	b := newBackend(f, func(c *Config) { c.CacheModules = 1 })
	f.Fuzz(func(t *testing.T, module []byte) {
		if len(module) > 1<<16 {
			return
		}
		task := newTask(t, string(module)+"#", module)
		_, err := b.Prepare(t.Context(), task)
		if err != nil && executor.ReasonOf(err, 0) != protocol.ReasonBadModule {
			t.Errorf("error is %v", err)
		}
	})
}

// TestRealModuleSurvivesInstrumenting covers all that the Go compiler emits.
func TestRealModuleSurvivesInstrumenting(t *testing.T) {
	module := guestModule(t)
	binary, err := module.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rewritten, minMemory, err := instrument(binary)
	if err != nil {
		t.Fatal(err)
	}
	if minMemory == 0 || len(rewritten) < len(binary)/2 || len(rewritten) > len(binary)*5/4 {
		t.Errorf("%d bytes became %d, memory starts with %d", len(binary), len(rewritten), minMemory)
	}
}
