package client

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const rootCID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

func TestAJobFileGoesAllTheWay(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bin/p.wasm"), wasm(300_000))
	write(t, filepath.Join(dir, "in.txt"), "one\ntwo\r\n\nlast")
	path := write(t, filepath.Join(dir, "job.yaml"), "name: quick\nkind: map\nrun: {wasm: bin/p.wasm, command: [p]}\ninputs: {lines: in.txt}\n")
	f, err := LoadJob(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.Lines, "|"); got != "one|two||last" {
		t.Errorf("lines %q", got)
	}
	sent := int64(0)
	req, err := c.Prepare(t.Context(), f, func(n, total int64) {
		if sent = n; total != 300_000 {
			t.Errorf("of %d", total)
		}
	})
	if err != nil || req.ModuleCID != rootCID || sent != 300_000 || m.files[api.ModuleFile] != wasm(300_000) {
		t.Fatalf("%v, CID %s, told of %d bytes, kept %d", err, req.ModuleCID, sent, len(m.files[api.ModuleFile]))
	}
	if _, err := c.Validate(t.Context(), req); err != nil {
		t.Error(err)
	}
	st, err := c.SubmitAndWait(t.Context(), req, nil)
	if err != nil || st.State != "done" {
		t.Fatalf("%v: %+v", err, st)
	}
	out := filepath.Join(dir, "new", "out")
	root, err := c.Results(t.Context(), st.ID, out, nil)
	if b, _ := os.ReadFile(filepath.Join(out, "d/x")); err != nil || root != rootCID || len(b) != 100_000 {
		t.Errorf("%v, root %s, %d bytes", err, root, len(b))
	}
	var texts []string
	if err := c.Logs(t.Context(), st.ID, false, func(l protocol.LogLine) error { texts = append(texts, l.Text); return nil }); err != nil || len(texts) != 3 {
		t.Errorf("%v, lines %q", err, texts)
	}
	stop := errors.New("enough")
	if err := c.Logs(t.Context(), st.ID, false, func(protocol.LogLine) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	for what, err := range map[string]error{
		"status": second(c.Status(t.Context())), "jobs": second(c.Jobs(t.Context(), JobQuery{States: []protocol.JobState{"done", "failed"}, Limit: 3, All: true})),
		"explain": second(c.Explain(t.Context(), st.ID)), "statement": second(c.Statement(t.Context(), st.ID)), "job": second(c.Job(t.Context(), st.ID)),
		"volumes": second(c.Volumes(t.Context())), "volume": second(c.Volume(t.Context(), "x")), "cancel": second(c.Cancel(t.Context(), st.ID)),
		"tar": second(c.ResultsTar(t.Context(), st.ID, io.Discard)),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestAShortJobTakesOneRoundTripOnOneConnection(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	for range 5 {
		if st, err := c.SubmitAndWait(t.Context(), job("quick"), nil); err != nil || st.State != "done" {
			t.Fatal(st, err)
		}
	}
	if n := m.requests.Load(); n != 5 {
		t.Errorf("5 jobs took %d requests", n)
	}
	// A job that takes its time is told of the moment that it ends, in the same request.
	go func() {
		for m.waits.Load() == 0 {
			sleep(t.Context(), time.Millisecond)
		}
		m.mu.Lock()
		var slow protocol.JobID
		for id, j := range m.jobs {
			if !j.State.Over() {
				slow = id
			}
		}
		m.mu.Unlock()
		m.set(slow, "failed")
	}()
	if st, err := c.SubmitAndWait(t.Context(), job("slow"), nil); err != nil || st.State != "failed" || m.requests.Load() != 6 {
		t.Errorf("%v %s after %d requests", err, st.State, m.requests.Load())
	}
}

func TestNobodyThereIsToldAtOnceWithTheFix(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	c := dial(t, addr, nil)
	began := time.Now()
	for what, err := range map[string]error{
		"status": second(c.Status(t.Context())), "submit": second(c.Submit(t.Context(), job("n"))), "wait": second(c.Wait(t.Context(), protocol.NewJobID(), nil)),
		"watch": second(c.Wait(t.Context(), protocol.NewJobID(), func(protocol.JobStatus) {})),
		"logs":  c.Logs(t.Context(), protocol.NewJobID(), true, nil), "results": second(c.Results(t.Context(), protocol.NewJobID(), t.TempDir(), nil)),
	} {
		if !errors.Is(err, ErrNotConnected) || !strings.Contains(err.Error(), "gridbeam bridge run") || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestWaitsLiveThroughARestartOfTheBridge(t *testing.T) {
	for _, watched := range []bool{false, true} {
		m := newMemory()
		addr, stop := serve(t, m, "127.0.0.1:0", nil)
		c := dial(t, addr, nil)
		st, err := c.Submit(t.Context(), job("slow"))
		if err != nil {
			t.Fatal(err)
		}
		var changed func(protocol.JobStatus)
		var seen []string
		if watched {
			changed = func(s protocol.JobStatus) { seen = append(seen, string(s.State)) }
		}
		type end struct {
			st  protocol.JobStatus
			err error
		}
		ended := make(chan end, 1)
		go func() {
			st, err := c.Wait(t.Context(), st.ID, changed)
			ended <- end{st, err}
		}()
		for m.waits.Load() == 0 {
			sleep(t.Context(), time.Millisecond)
		}
		stop()
		m.set(st.ID, "running") // nobody sees this happen
		sleep(t.Context(), 100*time.Millisecond)
		serve(t, m, addr, nil)
		for n := m.waits.Load(); m.waits.Load() == n; {
			sleep(t.Context(), time.Millisecond)
		}
		m.set(st.ID, "done")
		if e := <-ended; e.err != nil || e.st.State != "done" {
			t.Errorf("watched %v: %v %+v", watched, e.err, e.st)
		}
		if watched && strings.Join(seen, " ") != "pending running done" {
			t.Errorf("seen %v", seen)
		}
		c.Close()
	}
}

func TestPatienceHasAnEnd(t *testing.T) {
	m := newMemory()
	addr, stop := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, func(cfg *Config) { cfg.Patience, cfg.Retry = 100*time.Millisecond, 100*time.Millisecond })
	st, err := c.Submit(t.Context(), job("slow"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.Wait(t.Context(), st.ID, nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("%v", err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotConnected) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Wait(ctx, st.ID, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCallersDeadlinesAreTheirOwn(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	st, err := c.Submit(t.Context(), job("slow"))
	if err != nil {
		t.Fatal(err)
	}
	for _, changed := range []func(protocol.JobStatus){nil, func(protocol.JobStatus) {}} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := c.Wait(ctx, st.ID, changed); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		cancel()
	}
}

// TestSubmissionsOverABrokenConnectionMakeOneJob lets the first answer get lost after the bridge has stored.
func TestSubmissionsOverABrokenConnectionMakeOneJob(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	var lost atomic.Int64
	proxy := handler(t, func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+addr+r.URL.RequestURI(), r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		out.Header = r.Header
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if r.Method == http.MethodPost && lost.Add(1) <= 2 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	c := dial(t, proxy, nil)
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Submit(t.Context(), job("n")); err != nil {
		t.Fatal(err)
	}
	if len(m.jobs) != 1 || lost.Load() != 3 {
		t.Errorf("%d jobs after %d attempts", len(m.jobs), lost.Load())
	}
}

// handler serves a function on loopback until the test ends.
func handler(t *testing.T, h http.HandlerFunc) (addr string) {
	t.Helper()
	ln := bind(t, "127.0.0.1:0")
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return ln.Addr().String()
}

func TestFailuresOfTheBridgeAreTyped(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	_, err := c.Job(t.Context(), protocol.NewJobID())
	var e *Error
	if !errors.As(err, &e) || e.Code != protocol.CodeNotFound || e.Status != 404 || e.Fix == "" || !strings.Contains(err.Error(), e.Fix) || CodeOf(err) != protocol.CodeNotFound {
		t.Errorf("%v", err)
	}
	bad := job("n")
	bad.Job.Kind, bad.Job.Policy.Prefer = "mapp", "best"
	_, err = c.Submit(t.Context(), bad)
	if !errors.As(err, &e) || len(e.Fields) != 2 || !strings.Contains(err.Error(), "policy.prefer") {
		t.Errorf("%v", err)
	}
	if c := dial(t, addr, func(cfg *Config) { cfg.Token = "bad" }); CodeOf(second(c.Status(t.Context()))) != protocol.CodeUnauthorized {
		t.Error("a bad token passes")
	}
}

func TestStrangersAreNotTakenForABridge(t *testing.T) {
	var other atomic.Int64
	elsewhere := handler(t, func(http.ResponseWriter, *http.Request) { other.Add(1) })
	for what, h := range map[string]http.HandlerFunc{
		"a web page": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"a 404":      http.NotFound,
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+elsewhere, http.StatusFound)
		},
		"other JSON":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `[1]`) },
		"other errors": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"message":"no"}`, http.StatusBadRequest) },
	} {
		c := dial(t, handler(t, h), nil)
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotBridge) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if other.Load() > 0 {
		t.Error("a redirect was followed, with the token")
	}
	c := dial(t, handler(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", http.StatusBadGateway) }), nil)
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNotConnected) {
		t.Errorf("a proxy: %v", err)
	}
}

func TestHostileResultsStayInTheirDirectory(t *testing.T) {
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	_ = w.WriteHeader(&tar.Header{Name: "link", Linkname: "..", Typeflag: tar.TypeSymlink, Mode: 0o777})
	_ = w.WriteHeader(&tar.Header{Name: "../evil", Typeflag: tar.TypeReg, Mode: 0o600})
	_ = w.Close()
	c := dial(t, handler(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(evil.Bytes()) }), nil)
	dir := t.TempDir()
	if _, err := c.Results(t.Context(), protocol.NewJobID(), filepath.Join(dir, "out"), nil); !errors.Is(err, protocol.ErrBadTree) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v beside the directory (%v)", left, err)
	}
}

func TestResultsThatBreakOffAreNotTakenForTheWhole(t *testing.T) {
	var whole bytes.Buffer
	if err := protocol.PackTree(&whole, fstest.MapFS{"a": {Data: make([]byte, 5000)}, "b": {Data: make([]byte, 5000)}}, nil); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	c := dial(t, handler(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) <= 2 {
			_, _ = w.Write(whole.Bytes()[:6000])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(whole.Bytes())
	}), nil)
	if _, err := c.ResultsTar(t.Context(), protocol.NewJobID(), io.Discard); !errors.Is(err, ErrBroken) && err == nil {
		t.Errorf("%v", err)
	}
	dir := t.TempDir()
	if _, err := c.Results(t.Context(), protocol.NewJobID(), dir, nil); err != nil || asked.Load() != 3 {
		t.Errorf("%v after %d attempts", err, asked.Load())
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("%v is there", left)
	}
}

func TestSilentStreamsAreGivenUp(t *testing.T) {
	addr := handler(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	c := dial(t, addr, func(cfg *Config) { cfg.Silence, cfg.Timeout, cfg.Retry = 50*time.Millisecond, 50*time.Millisecond, 0 })
	if err := c.Logs(t.Context(), protocol.NewJobID(), true, func(protocol.LogLine) error { return nil }); !errors.Is(err, ErrBroken) {
		t.Errorf("logs: %v", err)
	}
	if _, err := c.Results(t.Context(), protocol.NewJobID(), t.TempDir(), nil); !errors.Is(err, ErrBroken) {
		t.Errorf("results: %v", err)
	}
}

func TestStreamsTellTheirError(t *testing.T) {
	end, err := json.Marshal(protocol.StreamEnd{Error: &protocol.APIError{Code: protocol.CodeUnavailable, Text: "the node has gone"}})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, handler(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "{\"text\":\"a\"}\n\n%s\n", end)
	}), nil)
	lines := 0
	err = c.Logs(t.Context(), protocol.NewJobID(), false, func(protocol.LogLine) error { lines++; return nil })
	if CodeOf(err) != protocol.CodeUnavailable || lines != 1 {
		t.Errorf("%v after %d lines", err, lines)
	}
}

func TestDirectoriesAreSentWholeAndNotLeft(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", nil)
	c := dial(t, addr, nil)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), strings.Repeat("a", 500_000))
	write(t, filepath.Join(dir, "d/b"), "b")
	told := int64(0)
	v, err := c.PutVolume(t.Context(), "digits", dir, func(n, total int64) {
		if told = n; total != 500_001 {
			t.Errorf("of %d", total)
		}
	})
	if err != nil || v.CID != rootCID || told != 500_001 || len(m.files["a"]) != 500_000 || m.files["d/b"] != "b" {
		t.Errorf("%v %+v, told of %d, kept %d files", err, v, told, len(m.files))
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "d/secret")); err != nil {
		t.Fatal(err)
	}
	m.files = nil
	if _, err := c.PutVolume(t.Context(), "digits", dir, nil); !errors.Is(err, protocol.ErrBadTree) || !strings.Contains(err.Error(), "d/secret") {
		t.Errorf("%v", err)
	}
	if m.files != nil {
		t.Errorf("the bridge was given %d files", len(m.files))
	}
	if _, err := c.PutVolume(t.Context(), "digits", filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestRefusalsOfLargeBodiesAreHeard sends much more than fits into buffers to a bridge that says no at once.
func TestRefusalsOfLargeBodiesAreHeard(t *testing.T) {
	m := newMemory()
	addr, _ := serve(t, m, "127.0.0.1:0", func(cfg *api.Config) { cfg.ModuleBytes, cfg.VolumeBytes, cfg.VolumeEntries = 1<<20, 1<<20, 10 })
	c := dial(t, addr, nil)
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "p.wasm"), wasm(40<<20))
	for range 5 {
		if _, err := c.PutModule(t.Context(), path, nil); CodeOf(err) != protocol.CodeTooLarge {
			t.Fatalf("a module: %v", err)
		}
		if _, err := c.PutVolume(t.Context(), "v", dir, nil); CodeOf(err) != protocol.CodeTooLarge {
			t.Fatalf("a volume: %v", err)
		}
	}
	if c := dial(t, addr, func(cfg *Config) { cfg.Token = "bad" }); CodeOf(second(c.PutModule(t.Context(), path, nil))) != protocol.CodeUnauthorized {
		t.Error("a bad token is not told")
	}
}

func TestJobFilesAreJudgedWithWhatTheyReferTo(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "elf"), "\x7fELF\x02\x01\x01\x00")
	write(t, filepath.Join(dir, "empty.txt"), "")
	path := write(t, filepath.Join(dir, "job.yaml"), "name: n\nkind: map\nrun: {wasm: elf, command: [p]}\ninputs: {lines: empty.txt}\n")
	_, err := LoadJob(path)
	if !errors.Is(err, protocol.ErrBadJob) || !strings.Contains(err.Error(), "run.wasm: the module cannot be run") || !strings.Contains(err.Error(), "GOOS=wasip1") || !strings.Contains(err.Error(), "inputs.lines") {
		t.Errorf("%v", err)
	}
	path = write(t, filepath.Join(dir, "job.yaml"), "name: n\nkind: map\nrun: {wasm: none.wasm, command: [p]}\ninputs: {lines: ..}\n")
	_, err = LoadJob(path)
	if err == nil || !strings.Contains(err.Error(), "none.wasm: no such file") || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("%v", err)
	}
	if _, err = LoadJob(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err = LoadJob("../../examples/sweep/job.yaml"); err != nil && !strings.Contains(err.Error(), "sweep.wasm: no such file") {
		t.Errorf("%v", err)
	}
}

func TestConfigurationsNameTheirFault(t *testing.T) {
	for field, edit := range map[string]func(*Config){
		"URL": func(c *Config) { c.URL = "127.0.0.1:1994" }, "Token": func(c *Config) { c.Token = "a\r\nb" }, "Timeout": func(c *Config) { c.Timeout = 0 },
		"Patience": func(c *Config) { c.Patience = -1 },
	} {
		cfg := DefaultConfig("http://127.0.0.1:1994", "good")
		edit(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// answers is a transport that answers with the same bytes whatever is asked.
type answers struct {
	status int
	body   []byte
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// FuzzAnswers feeds a client with whatever a stranger may answer: it fails in words or it does not.
func FuzzAnswers(f *testing.F) {
	f.Add(200, []byte(`{"job_id":"aaaaaaaaaaaaaaaaaaaaaaaaaa","seq":1,"state":"done"}`))
	f.Add(422, []byte(`{"code":"bad_job","text":"x","fields":[{"field":"kind","problem":"y"}]}`))
	f.Add(503, []byte(`{"code":"unavailable","text":"x","retry_ms":9223372036854775807}`))
	f.Add(200, []byte("{\"text\":\"a\"}\n\n{\"error\":{\"code\":\"limited\"}}\n"))
	var tree bytes.Buffer
	if err := protocol.PackTree(&tree, fstest.MapFS{"a": {Data: []byte("1")}}, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(200, tree.Bytes())
	f.Add(418, []byte(`{"code":"new_code"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		cfg := DefaultConfig("http://bridge", "good")
		cfg.Retry, cfg.Patience = 0, 0
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.http.Transport = answers{status, body}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		id := protocol.NewJobID()
		for _, err := range []error{
			second(c.Job(ctx, id)), second(c.Submit(ctx, job("n"))), second(c.Nodes(ctx, "")), c.Logs(ctx, id, true, func(protocol.LogLine) error { return nil }),
			second(c.Results(ctx, id, t.TempDir(), nil)), second(c.Wait(ctx, id, func(protocol.JobStatus) {})),
		} {
			if err != nil && err.Error() == "" {
				t.Fatal("a failure without a word")
			}
		}
	})
}

// BenchmarkShortJob measures a submission with its answer: one round trip on a connection that is kept.
func BenchmarkShortJob(b *testing.B) {
	m := newMemory()
	cfg := api.DefaultConfig(b.TempDir())
	cfg.Rate = 0
	s, err := api.New(cfg, api.Bridge{Auth: m, Jobs: m, Outcomes: m, Volumes: m, Nodes: m, Money: m, System: m, Tokens: noTokens{}}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(s)
	defer srv.Close()
	c, err := New(DefaultConfig(srv.URL, "good"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := c.SubmitAndWait(b.Context(), job("quick"), nil); err != nil {
			b.Fatal(err)
		}
	}
}
