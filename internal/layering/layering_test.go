package layering

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	module = "github.com/gridbeam/gridbeam"
	root   = "../.."
)

func repositoryRules(t *testing.T) *Rules {
	t.Helper()
	document, err := os.ReadFile(filepath.Join(root, "docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Parse(string(document))
	if err != nil {
		t.Fatalf("docs/ARCHITECTURE.md: %v", err)
	}
	return rules
}

func TestRepositoryKeepsToItsArchitecture(t *testing.T) {
	files, err := Load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Fatalf("found %d Go files; the walk lost the tree", len(files))
	}
	rules := repositoryRules(t)
	for _, b := range rules.Check(module, files) {
		t.Error(b)
	}
	for file := range rules.Formulas {
		if !slices.ContainsFunc(files, func(f File) bool { return f.Path == file }) {
			t.Errorf("docs/ARCHITECTURE.md speaks of %s, which is not there", file)
		}
	}
}

// TestForbiddenEdgesAreCaught breaks each rule of the real document once.
func TestForbiddenEdgesAreCaught(t *testing.T) {
	rules := repositoryRules(t)
	ours := func(room string) string { return module + "/" + room }
	for _, tt := range []struct {
		name, file, imports string
		want                string // a part of the one breach; empty: allowed
	}{
		{"role imports role", "node/run.go", ours("beambridge"), "node may not import beambridge"},
		{"role imports the other's room", "node/run.go", ours("beambridge/cluster"), "node may not import"},
		{"a test of a role imports the other role", "beambridge/bridge_test.go", ours("node"), "a test of beambridge may not import node"},
		{"a node scores itself", "node/score.go", ours("reputation"), "node may not import reputation"},
		{"a score eats receipts", "reputation/score.go", ours("metering"), "reputation may not import metering"},
		{"a sandbox gets a network", "node/executor/task.go", ours("volumes"), "node/executor may not import volumes"},
		{"a backend gets a network", "node/executor/wasm/run.go", ours("p2p"), "node/executor/wasm may not import p2p"},
		{"mechanism imports mechanism", "dht/find.go", ours("p2p"), "dht may not import p2p"},
		{"the contract imports a mechanism", "protocol/job.go", ours("p2p"), "protocol may not import p2p"},
		{"the bridge links its client", "beambridge/bridge.go", ours("beambridge/client"), "beambridge may not import beambridge/client"},
		{"a room imports its role", "beambridge/store/store.go", ours("beambridge"), "beambridge/store may not import beambridge"},
		{"an example imports us", "examples/sweep/main.go", ours("protocol"), "examples/sweep may not import protocol"},
		{"an example imports another", "examples/sweep/main.go", ours("examples/other"), "examples/sweep may not import examples/other"},
		{"another's inner room", "beambridge/bridge.go", ours("volumes/internal/store"), "an inner room of volumes"},
		{"another's inner room in a test", "beambridge/bridge_test.go", ours("volumes/internal/store"), "an inner room of volumes"},
		{"inner rooms import one another", "volumes/internal/fetch/fetch.go", ours("volumes/internal/store"), "do not import one another"},
		{"an inner room imports its room", "volumes/internal/fetch/fetch.go", ours("volumes"), "the room that it is inside of"},
		{"an inner room reaches beyond its room", "volumes/internal/fetch/fetch.go", ours("dht"), "may not import dht"},
		{"a package without a row is imported", "node/run.go", ours("util"), "util has no row"},
		{"production imports testing", "node/run.go", "testing", "production code may not import testing"},
		{"production imports below testing", "node/run.go", "testing/fstest", "production code may not import testing/fstest"},
		{"production imports testnet", "node/run.go", ours("internal/testnet"), "production code may not import internal/testnet"},
		{"the binary imports bench", "cmd/gridbeam/main.go", ours("bench"), "production code may not import bench"},
		{"boxo outside its home", "volumes/net.go", "github.com/ipfs/boxo/bitswap", "its one home is volumes/internal/ipfs"},
		{"NVML outside its home", "node/run.go", "github.com/NVIDIA/go-nvml/pkg/nvml", "its one home is node/gpu"},
		{"a library's later major version", "volumes/store.go", "github.com/cockroachdb/pebble/v2/vfs", "its one home is volumes/internal/store"},
		{"a pure room opens files", "beambridge/cluster/select.go", "os", "is pure and may not import os"},
		{"a pure room speaks HTTP", "beambridge/settlement/bill.go", "net/http", "is pure and may not import net/http"},

		{"a formula looks around", "reputation/formulas.go", "os", "a file of formulas may not import os"},

		{"a formula computes", "reputation/formulas.go", "math", ""},
		{"a role imports its mechanisms", "node/run.go", ours("p2p"), ""},
		{"messages count as protocol", "p2p/gossip.go", ours("protocol/pb/gridbeam/v1"), ""},
		{"a room imports its inner room", "volumes/store.go", ours("volumes/internal/store"), ""},
		{"an inner room sees what its room sees", "volumes/internal/fetch/fetch.go", ours("protocol"), ""},
		{"the bridge imports its rooms", "beambridge/bridge.go", ours("beambridge/cluster"), ""},
		{"testnet imports both roles", "internal/testnet/net.go", ours("beambridge"), ""},
		{"testnet imports testing", "internal/testnet/net.go", "testing", ""},
		{"a test imports testnet", "node/run_test.go", ours("internal/testnet"), ""},
		{"a test imports another mechanism", "dht/find_test.go", ours("p2p"), ""},
		{"a test of the whole imports both roles", "rnp005_test.go", ours("beambridge"), ""},
		{"an external test imports its package", "node/run_test.go", ours("node"), ""},
		{"a test has an oracle", "volumes/internal/tree/oracle_test.go", "github.com/ipfs/boxo/files", ""},
		{"the library in its home", "node/gpu/nvml.go", "github.com/NVIDIA/go-nvml/pkg/nvml", ""},
		{"a library whose name begins alike", "node/run.go", "github.com/ipfs/boxofish", ""},
		{"the suite of executors imports them", "node/executor/executortest/suite.go", ours("node/executor"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := "package p\n\nimport _ \"" + tt.imports + "\"\n"
			files, err := Load(fstest.MapFS{tt.file: {Data: []byte(src)}})
			if err != nil {
				t.Fatal(err)
			}
			got := rules.Check(module, files)
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("allowed import gave %v", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0].String(), tt.want)):
				t.Errorf("got %v, want one breach with %q", got, tt.want)
			case tt.want != "" && (got[0].File != tt.file || got[0].Line != 3):
				t.Errorf("the breach is said to be at %s:%d, want %s:3", got[0].File, got[0].Line, tt.file)
			}
		})
	}
}

func TestPackageWithoutRowIsCaughtOnce(t *testing.T) {
	got := repositoryRules(t).Check(module, load(t, map[string]string{
		"helpers/a.go": "package helpers", "helpers/b.go": "package helpers",
	}))
	if len(got) != 1 || !strings.Contains(got[0].What, "helpers has no row") {
		t.Errorf("got %v, want one breach that names helpers", got)
	}
}

func TestPureRoomsUseNoClockAndNoRandomnessOfTheirOwn(t *testing.T) {
	const src = `package cluster
import (
	wall "time"
	"math/rand/v2"
)
func f(now wall.Time, r *rand.Rand) wall.Duration {
	_ = rand.New(rand.NewPCG(1, 2))
	%s
	return wall.Second
}
`
	for call, want := range map[string]string{
		"_ = wall.Now()":                     "time.Now",
		"wall.Sleep(1)":                      "time.Sleep",
		"f := wall.Since; _ = f":             "time.Since",
		"_ = rand.IntN(3)":                   "rand.IntN",
		"_ = now.Add(wall.Hour); _ = r.IntN": "",
	} {
		src := strings.Replace(src, "%s", call, 1)
		for file, pure := range map[string]bool{
			"beambridge/cluster/a.go": true, "beambridge/cluster/a_test.go": false, "beambridge/a.go": false,
		} {
			got := repositoryRules(t).Check(module, load(t, map[string]string{file: src}))
			switch {
			case (want == "" || !pure) && len(got) > 0:
				t.Errorf("%s: %s gave %v", file, call, got)
			case want != "" && pure && (len(got) != 1 || !strings.Contains(got[0].What, want)):
				t.Errorf("%s: %s gave %v, want one breach that names %s", file, call, got, want)
			}
		}
	}
}

func TestLoadSeesEveryPlatformAndLeavesOtherModulesAlone(t *testing.T) {
	files := load(t, map[string]string{
		"p2p/a_windows.go":      "//go:build windows && never\n\npackage p2p\nimport _ \"unsafe\"",
		"tools/go.mod":          "module tools",
		"tools/main.go":         "package main",
		"dht/testdata/x.go":     "no Go at all",
		".tools/cache/x.go":     "no Go at all",
		"cmd/gridbeam/notes.md": "no Go at all",
	})
	if len(files) != 1 || files[0].Room != "p2p" || len(files[0].Imports) != 1 {
		t.Errorf("got %+v, want p2p/a_windows.go alone with its import", files)
	}
	if _, err := Load(fstest.MapFS{"p2p/a.go": {Data: []byte("no Go at all")}}); err == nil || !strings.Contains(err.Error(), "p2p/a.go") {
		t.Errorf("a file that does not parse gave %v, want an error that names it", err)
	}
}

func TestParseRefusesTablesThatSayNothing(t *testing.T) {
	const good = `
## Who may import whom

| room | may import | because |
|---|---|---|
| ` + "`a`" + ` | nothing | x |
| ` + "`b/{c,d}`" + ` | ` + "`a`" + ` | x |

## Inner rooms

| room | inner |
|---|---|
| ` + "`a`" + ` | ` + "`a/in`" + ` |

## Libraries with one home

| library | room |
|---|---|
| ` + "`lib`" + ` | ` + "`a/in`" + ` |

## Pure rooms

| room | what |
|---|---|
| ` + "`b/c`" + ` | x |

## Formulas

| file | imports only |
|---|---|
| ` + "`a/x.go`" + ` | ` + "`math`" + ` |
`
	rules, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if rules.Rooms["b/d"] == nil || !rules.Rooms["b/d"].Allowed["a"] || rules.Inner["a/in"] != "a" || !rules.Pure["b/c"] {
		t.Errorf("the rows were misread: %+v", rules)
	}
	for what, bad := range map[string]string{
		"no table at all":             "# A document",
		"a table is missing":          strings.Replace(good, "## Pure rooms", "## Clean rooms", 1),
		"a file is missing":           strings.Replace(good, "| `a/x.go` |", "| x |", 1),
		"a cell is missing":           strings.Replace(good, "| nothing | x |", "| nothing |", 1),
		"a word is misspelt":          strings.Replace(good, "nothing", "nothin", 1),
		"a room has two rows":         strings.Replace(good, "b/{c,d}", "{a,b}", 1),
		"an allowed room has no row":  strings.Replace(good, "| `a` | x |", "| `z` | x |", 1),
		"a pure room has no row":      strings.Replace(good, "| `b/c` | x |", "| `z` | x |", 1),
		"a library's home has no row": strings.Replace(good, "| `lib` | `a/in` |", "| `lib` | `z` |", 1),
		"an inner room is outside":    strings.Replace(good, "| `a/in` |", "| `b/in` |", 1),
	} {
		if bad == good {
			t.Fatalf("%s: the replacement did nothing", what)
		}
		if _, err := Parse(bad); !errors.Is(err, ErrTable) {
			t.Errorf("%s: got %v, want ErrTable", what, err)
		}
	}
}

func load(t *testing.T, src map[string]string) []File {
	t.Helper()
	fsys := make(fstest.MapFS)
	for name, text := range src {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	files, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return files
}
