package wasm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// withFunction is a module whose only function, _start, has so many locals and this code.
func withFunction(locals int, code []byte) []byte {
	body := append(binary.AppendUvarint([]byte{1}, uint64(locals)), 0x7f)
	body = append(append(body, code...), opEnd)
	return wasmModule(
		rawSection(1, 1, 0x60, 0, 0), rawSection(3, 1, 0), rawSection(5, 1, 0, 1),
		rawSection(7, append([]byte{1}, append(encodeName("_start"), 0, 0)...)...),
		rawSection(10, append(binary.AppendUvarint([]byte{1}, uint64(len(body))), body...)...),
	)
}

// atABound is code that grows with n and is refused beyond most, with these words.
type atABound struct {
	says string
	most int
	code func(n int) []byte
}

func repeat(n int, code ...byte) []byte { return bytes.Repeat(code, n) }

func atTheBounds() []atABound {
	return []atABound{
		{"blocks inside each other", maxDepth, func(n int) []byte { return join(repeat(n, opBlock, 0x40), repeat(n, opEnd)) }},
		{"blocks", maxBlocks, func(n int) []byte { return repeat(n, opBlock, 0x40, opEnd) }},
		{"blocks", maxBlocks, func(n int) []byte { return repeat(n, 0x41, 0, opIf, 0x40, opEnd) }},
		{"loops", maxLoops, func(n int) []byte { return repeat(n, opLoop, 0x40, opEnd) }},
		{"branches", maxBranches, func(n int) []byte { return repeat(n, 0x41, 0, opBrIf, 0) }},
		{"branches", maxBranches - 1, func(n int) []byte { // the default is a branch too
			table := binary.AppendUvarint([]byte{0x41, 0, opBrTable}, uint64(n))
			return join(table, repeat(n+1, 0))
		}},
		{"bytes", maxBody - 4, func(n int) []byte { return repeat(n, 0x01) }}, // and locals and an end
		{"bytes times blocks", maxBodyBlocks/1024 - 4 - 3*1024, func(n int) []byte {
			return join(repeat(1024, opBlock, 0x40, opEnd), repeat(n, 0x01))
		}},
	}
}

func TestFunctionsAreBoundedBeforeTheyAreCompiled(t *testing.T) {
	for _, c := range atTheBounds() {
		if _, _, err := instrument(withFunction(0, c.code(c.most))); err != nil {
			t.Errorf("%s: %d are refused: %v", c.says, c.most, err)
		}
		_, _, err := instrument(withFunction(0, c.code(c.most+1)))
		if !errors.Is(err, errModule) || !strings.Contains(err.Error(), c.says+", at most") {
			t.Errorf("%s: %d give error %v", c.says, c.most+1, err)
		}
	}
	loop := []byte{opLoop, 0x40, opEnd}
	for _, c := range []struct {
		locals, loops int
		says          string // empty: it is accepted
	}{
		{maxLocals, 1, ""},
		{maxLocals + 1, 0, "locals, at most"},
		{maxLoopLocals / maxLoops, maxLoops, ""},
		{maxLoopLocals/maxLoops + 1, maxLoops, "locals times loops, at most"},
	} {
		_, _, err := instrument(withFunction(c.locals, bytes.Repeat(loop, c.loops)))
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%d locals and %d loops: %v", c.locals, c.loops, err)
		}
	}
	functions := wasmModule(rawSection(1, 1, 0x60, 0, 0), rawSection(3, binary.AppendUvarint(nil, maxFunctions+1)...))
	if _, _, err := instrument(functions); !errors.Is(err, errModule) || !strings.Contains(err.Error(), "functions, at most") {
		t.Errorf("%d functions: %v", maxFunctions+1, err)
	}
	for _, n := range []int{maxParams, maxParams + 1} {
		list := append(binary.AppendUvarint(nil, uint64(n)), repeat(n, 0x7f)...)
		_, _, params := instrument(wasmModule(rawSection(1, join([]byte{1, 0x60}, list, []byte{0})...)))
		_, _, results := instrument(wasmModule(rawSection(1, join([]byte{1, 0x60, 0}, list)...)))
		if bad := n > maxParams; (params != nil) != bad || (results != nil) != bad {
			t.Errorf("%d parameters: %v; %d results: %v", n, params, n, results)
		}
	}
}

// TestDeepBlocksAreRefusedAtOnce is the module that kept a node's compiler, and its end, busy for minutes.
func TestDeepBlocksAreRefusedAtOnce(t *testing.T) {
	const n = 200_000
	module := withFunction(0, join(repeat(n, opBlock, 0x40), repeat(n, opEnd)))
	b := newBackend(t, nil)
	begin := time.Now()
	_, err := b.Prepare(t.Context(), newTask(t, "deep", module))
	if took := time.Since(begin); took > 100*time.Millisecond {
		t.Errorf("it took %s to refuse it", took)
	}
	if executor.ReasonOf(err, 0) != protocol.ReasonBadModule || !strings.Contains(err.Error(), "blocks inside each other, at most 4096 are accepted") {
		t.Errorf("error is %v", err)
	}
}

// TestGoProgramsLieFarWithinTheBounds holds the bounds at four times and more of what these have. (That
// it compiles and runs is seen with the suite's guest, and by the example's own tests.)
func TestGoProgramsLieFarWithinTheBounds(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sweep.wasm")
	cmd := exec.Command("go", "build", "-trimpath", "-o", name, "../../../examples/sweep")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, out)
	}
	sweep, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	guestBinary, err := guestModule(t).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, module := range map[string][]byte{"sweep": sweep, "guest": guestBinary} {
		if _, _, err := instrument(module); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range must(readSections(module[8:])) {
			if s.id != sectionCode {
				continue
			}
			r := reader{b: s.body}
			for range r.u32() {
				margin(t, name, r.bytes(r.u32()))
			}
		}
	}
}

func margin(t *testing.T, name string, src []byte) {
	t.Helper()
	s, r := shape{body: uint64(len(src))}, reader{b: src}
	for range r.u32() {
		s.locals += uint64(r.u32())
		r.byte()
	}
	for len(r.b) > 0 {
		before := r.b
		op := must(r.instruction(1 << 31))
		var targets uint32
		if op == opBrTable {
			targets = (&reader{b: before[1:]}).u32()
		}
		s.add(op, targets)
	}
	four := shape{body: 4 * s.body, locals: 4 * s.locals, deepest: 4 * s.deepest, blocks: 4 * s.blocks, loops: 4 * s.loops, branch: 4 * s.branch}
	if err := four.check(); err != nil {
		t.Errorf("%s: four times one of its functions: %v", name, err)
	}
}

// endless is a backend whose compiler hangs at modules of the CIDs in slow, until the test is over or let go.
func endless(t *testing.T, slow ...string) (b *Backend, letGo func()) {
	b = newBackend(t, func(c *Config) { c.CompileTimeout = 300 * time.Millisecond })
	ctx, letGo := context.WithCancel(context.Background())
	t.Cleanup(letGo) // before the backend closes
	b.compile = func(_ context.Context, key string, _ []byte) (*compiled, error) {
		for _, s := range slow {
			if key == s {
				<-ctx.Done()
			}
		}
		return nil, executor.Fail(protocol.ReasonExitNonzero, "%w: a turn was had", errModule)
	}
	return b, letGo
}

func noStrays(t *testing.T, b *Backend) {
	t.Helper()
	eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.strays) == 0
	})
}

func TestStraysDoNotKeepOthersFromCompiling(t *testing.T) {
	b, letGo := endless(t, "slow-1", "slow-2")
	prepare := func(cid string) error {
		_, err := b.Prepare(t.Context(), newTask(t, cid, nothing.assemble()))
		return err
	}
	for _, step := range []struct {
		cid  string
		want protocol.Reason
	}{
		{"slow-1", protocol.ReasonBadModule},
		{"quick", protocol.ReasonExitNonzero}, // the fake's answer
		{"slow-1", protocol.ReasonBadModule},  // at once, without a second stray
		{"quick", protocol.ReasonExitNonzero},
		{"slow-2", protocol.ReasonBadModule},
		{"quick", protocol.ReasonBackendFailed}, // two strays are enough
	} {
		if err := prepare(step.cid); executor.ReasonOf(err, 0) != step.want {
			t.Errorf("%s: error is %v, want %s", step.cid, err, step.want)
		}
	}
	letGo()
	noStrays(t, b)
	if err := prepare("quick"); executor.ReasonOf(err, 0) != protocol.ReasonExitNonzero {
		t.Errorf("after the strays' end: %v", err)
	}
}

func TestCloseDoesNotWaitForStrays(t *testing.T) {
	b, letGo := endless(t, "slow")
	if _, err := b.Prepare(t.Context(), newTask(t, "slow", nothing.assemble())); executor.ReasonOf(err, 0) != protocol.ReasonBadModule {
		t.Errorf("error is %v", err)
	}
	begin := time.Now()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < closeGrace || took > closeGrace+3*time.Second {
		t.Errorf("closing took %s, want %s", took, closeGrace)
	}
	letGo()
	if err := b.Close(); err != nil { // waits for it now
		t.Error(err)
	}
	noStrays(t, b)
}
