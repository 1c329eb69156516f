package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if done, err := asChild(context.Background(), os.Args[1:]); done { // of a node that a test runs in this process
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	modules.Range(func(_, build any) bool {
		if path, err := build.(func() (string, error))(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		return true
	})
	os.Exit(code)
}

// gridbeam runs a command in this process and returns its exit code and what it printed.
func gridbeam(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestWrongUseIsAnsweredWithOneSentenceAndCode2(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nods"}, `no command "nods" (did you mean node`},
		{[]string{"node", "rum"}, `no command "rum" (did you mean run`},
		{[]string{"nodes", "--where", "cpu.corse >= 1"}, "cpu.cores"},
		{[]string{"nodes", "--via", "pigeon"}, "auto, index, dht or scan"},
		{[]string{"nodes", "--output", "xml"}, "want table, json, ndjson or csv"},
		{[]string{"nodes"}, "say --join ADDRESS"},
		{[]string{"nodes", "--join", "127.0.0.1:4001"}, "neither an invitation"},
		{[]string{"nodes", "--join", "gridbeam:xx!"}, "copy the whole line again"},
		{[]string{"node", "run", "--price", "cheap"}, "--price"},
		{[]string{"node", "run", "--bogus"}, "unknown flag: --bogus; see gridbeam node run --help"},
		{[]string{"demo", "--nodes", "9"}, "want 1..8"},
		{[]string{"demo", "--nodes", "1", "--kill-node"}, "--nodes 2"},
		{[]string{"version", "now"}, "wants no argument"},
		{[]string{"demo", "--churn"}, "say --keep too"},
		{[]string{"demo", "--keep", "--nodes", "501"}, "want 1..500"},
		{[]string{"demo", "--keep", "--churn", "--kill-node"}, "--kill-node kills during a job"},
		{[]string{"nodes", "--timeout", "-1s"}, "--timeout is -1s, want above 0"},
		{[]string{"nodes", "show", "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5", "--timeout", "0s"}, "--timeout is 0s, want above 0"},
		{[]string{"network", "crawl"}, "say --out DIR"},
		{[]string{"network", "crawl", "--out", "x"}, "say --join ADDRESS"},
		{[]string{"network", "crawl", "--out", "x", "--coverage", "99"}, "at most 1, such as 0.99"},
		{[]string{"network", "crawl", "--out", "x", "--listen", "-1s"}, "--listen is -1s"},
		{[]string{"network", "crawl", "--out", "x", "--parallel", "0"}, "--parallel is 0, want 1..5000"},
		{[]string{"network", "watch", "--for", "0s"}, "--for is 0s"},
		{[]string{"network", "watch", "--every", "1ms"}, "--every is 1ms"},
		{[]string{"network", "stats", dir}, "holds no crawl"},
		{[]string{"network", "stats", "a", "b"}, "wants one DIR"},
		{[]string{"network", "export", dir, "--format", "xml"}, "want csv, parquet, ndjson or html"},
		{[]string{"network", "export"}, "wants DIR"},
		{[]string{"network", "verify", dir + "/none"}, "no such file"},
		{[]string{"network", "verify", dir}, "holds no crawl"},
		{[]string{"nodes", "--gpu", ""}, "--gpu is empty"},
		{[]string{"nodes", "--region", "eu,"}, "--region is empty"},
		{[]string{"nodes", "show", "foo"}, "want a whole ID"},
		{[]string{"node", "run", "--data", dir + "/n", "--metrics", "foo"}, "--metrics is \"foo\", want a loopback address"},
		{[]string{"node", "run", "--data", dir + "/n", "--slots", "-2"}, "--slots is -2"},
	} {
		code, stdout, stderr := gridbeam(t, append(c.args, "--config-dir", dir)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) || stdout != "" || strings.Count(strings.TrimSpace(stderr), "\n") > 1 {
			t.Errorf("%v: code %d, printed %q and %q, want 2 and %q", c.args, code, stdout, stderr, c.want)
		}
	}
}

func TestNobodyThereIsCode5(t *testing.T) {
	const addr = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
	code, _, stderr := gridbeam(t, "nodes", "--join", addr, "--timeout", "5s", "--config-dir", t.TempDir())
	if code != exitNotConnected || !strings.Contains(stderr, "nobody answers") {
		t.Fatalf("code %d, %q", code, stderr)
	}
	for _, args := range [][]string{{"network", "crawl", "--out", t.TempDir() + "/crawl"}, {"network", "watch"}} {
		code, _, stderr := gridbeam(t, append(args, "--join", addr, "--timeout", "5s", "--config-dir", t.TempDir())...)
		if code != exitNotConnected || !strings.Contains(stderr, "nobody answers") {
			t.Fatalf("%v: code %d, %q", args, code, stderr)
		}
	}
	code, _, stderr = gridbeam(t, "node", "status", "--data", t.TempDir(), "--config-dir", t.TempDir())
	if code != exitNotConnected || !strings.Contains(stderr, "gridbeam node run") {
		t.Fatalf("code %d, %q", code, stderr)
	}
}
