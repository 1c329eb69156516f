package client

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/protocol"
)

// memory is a bridge whose jobs live through restarts of its API, as a store's do.
type memory struct {
	api.Nodes // not asked here
	api.Money // not asked here

	mu      sync.Mutex
	jobs    map[protocol.JobID]protocol.JobStatus
	changed chan struct{}
	files   map[string]string
	requests,
	waits atomic.Int64
}

func newMemory() *memory {
	return &memory{jobs: make(map[protocol.JobID]protocol.JobStatus), changed: make(chan struct{})}
}

func (m *memory) set(id protocol.JobID, state protocol.JobState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.jobs[id]
	j.ID, j.State, j.Seq = id, state, j.Seq+1
	m.jobs[id] = j
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) Authorize(_ context.Context, token string) (api.Principal, error) {
	if token != "good" {
		return api.Principal{}, api.ErrBadToken
	}
	return api.Principal{User: "ann", Scopes: []api.Scope{api.ScopeAdmin}}, nil
}

func (m *memory) SubmitJob(ctx context.Context, who api.Principal, req protocol.SubmitRequest) (protocol.JobStatus, error) {
	id := protocol.SubmittedJobID(who.User, req.RequestID)
	m.mu.Lock()
	_, known := m.jobs[id]
	m.mu.Unlock()
	if !known {
		m.set(id, "pending")
	}
	if req.Job.Name == "quick" {
		m.set(id, "done")
	}
	return m.Job(ctx, who, id)
}

func (m *memory) CheckJob(context.Context, api.Principal, protocol.SubmitRequest) (protocol.ValidateReply, error) {
	return protocol.ValidateReply{Inputs: 3, Summary: "0 of 0 match"}, nil
}

func (m *memory) Job(_ context.Context, _ api.Principal, id protocol.JobID) (protocol.JobStatus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, ok := m.jobs[id]
	if !ok {
		return j, &protocol.APIError{Code: protocol.CodeNotFound, Text: "there is no job " + id.String(), Fix: "`gridbeam job list` shows yours"}
	}
	return j, nil
}

func (m *memory) ListJobs(context.Context, api.Principal, api.JobQuery) (protocol.JobList, error) {
	return protocol.JobList{Jobs: []protocol.JobStatus{{Name: "a"}}}, nil
}

func (m *memory) WaitJob(ctx context.Context, who api.Principal, id protocol.JobID, since uint64) (protocol.JobStatus, error) {
	m.waits.Add(1)
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		j, err := m.Job(ctx, who, id)
		if err != nil || j.State.Over() || j.Seq > since {
			return j, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return j, nil
		}
	}
}

func (m *memory) CancelJob(ctx context.Context, who api.Principal, id protocol.JobID) (protocol.JobStatus, error) {
	m.set(id, "cancelled")
	return m.Job(ctx, who, id)
}

func (m *memory) JobLogs(_ context.Context, _ api.Principal, _ protocol.JobID, _ bool, line func(protocol.LogLine) error) error {
	for i := range 3 {
		if err := line(protocol.LogLine{Text: fmt.Sprint("line ", i)}); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) ExplainJob(_ context.Context, _ api.Principal, id protocol.JobID) (protocol.Explain, error) {
	return protocol.Explain{Job: id}, nil
}

func (m *memory) JobResults(context.Context, api.Principal, protocol.JobID) (fs.FS, string, error) {
	return fstest.MapFS{"best.json": {Data: []byte("{}")}, "d/x": {Data: bytes.Repeat([]byte("x"), 100_000)}}, rootCID, nil
}

func (m *memory) JobStatement(_ context.Context, _ api.Principal, id protocol.JobID) (protocol.Statement, error) {
	return protocol.Statement{Job: id}, nil
}

func (m *memory) keep(fsys fs.FS) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files = make(map[string]string)
	_ = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, _ := fs.ReadFile(fsys, name)
			m.files[name] = string(b)
		}
		return err
	})
}

func (m *memory) PutModule(_ context.Context, _ api.Principal, fsys fs.FS) (protocol.ModuleInfo, error) {
	m.keep(fsys)
	return protocol.ModuleInfo{CID: rootCID}, nil
}

func (m *memory) PutVolume(_ context.Context, _ api.Principal, name string, fsys fs.FS) (protocol.VolumeInfo, error) {
	m.keep(fsys)
	return protocol.VolumeInfo{Name: name, CID: rootCID}, nil
}

func (m *memory) Volume(_ context.Context, _ api.Principal, name string) (protocol.VolumeInfo, error) {
	return protocol.VolumeInfo{Name: name}, nil
}

func (m *memory) ListVolumes(context.Context, api.Principal) (protocol.VolumeList, error) {
	return protocol.VolumeList{}, nil
}

func (m *memory) Status(context.Context) (protocol.BridgeStatus, error) {
	return protocol.BridgeStatus{State: "running"}, nil
}

// serve runs the API of m on addr until stop is called.
func serve(t *testing.T, m *memory, addr string, edit func(*api.Config)) (at string, stop func()) {
	t.Helper()
	cfg := api.DefaultConfig(t.TempDir())
	cfg.Every = 0
	if edit != nil {
		edit(&cfg)
	}
	s, err := api.New(cfg, api.Bridge{Auth: m, Jobs: m, Outcomes: m, Volumes: m, Nodes: m, Money: m, System: m, Tokens: noTokens{}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.requests.Add(1)
		s.ServeHTTP(w, r)
	})
	ln := bind(t, addr)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln, counted, nil) }()
	once := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(once)
	return ln.Addr().String(), once
}

// bind listens on an address that may have been in use a moment ago.
func bind(t *testing.T, addr string) net.Listener {
	t.Helper()
	var err error
	for range 200 {
		var ln net.Listener
		if ln, err = net.Listen("tcp", addr); err == nil {
			return ln
		}
		sleep(t.Context(), 10*time.Millisecond)
	}
	t.Fatal(err)
	return nil
}

func dial(t *testing.T, addr string, edit func(*Config)) *Client {
	t.Helper()
	cfg := DefaultConfig("http://"+addr, "good")
	if edit != nil {
		edit(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func job(name string) protocol.SubmitRequest {
	return protocol.SubmitRequest{Job: protocol.Job{
		Name: name, Kind: protocol.JobMap, Run: protocol.JobRun{Host: "python3", Command: []string{"p"}}, Inputs: protocol.JobInputs{Range: &protocol.IntRange{First: 0, Last: 9}},
	}}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wasm(size int) string { return "\x00asm\x01\x00\x00\x00" + strings.Repeat("\x07", size-8) }
