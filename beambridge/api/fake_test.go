package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const rootCID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

// fakeBridge keeps everything in memory and does as it is told.
type fakeBridge struct {
	mu      sync.Mutex
	jobs    map[protocol.JobID]*protocol.JobStatus
	changed chan struct{} // closed and replaced with every change
	volumes map[string]protocol.VolumeInfo
	files   map[string]string // of the last upload
	lines   []protocol.LogLine
	results fs.FS
	fail    error // what every method answers, if set
	credits []protocol.CreditRequest
	where   *protocol.Filter
	waiting int
	waits   *sync.Cond
}

func newFake() *fakeBridge {
	f := &fakeBridge{
		jobs: make(map[protocol.JobID]*protocol.JobStatus), changed: make(chan struct{}), volumes: make(map[string]protocol.VolumeInfo),
		results: fstest.MapFS{"a": {Data: []byte("1")}},
	}
	f.waits = sync.NewCond(&f.mu)
	return f
}

func (f *fakeBridge) bridge() Bridge {
	return Bridge{Auth: f, Jobs: f, Outcomes: f, Volumes: f, Nodes: f, Money: f, System: f, Tokens: f}
}

// Authorize knows the tokens read, jobs, admin and their owners: "jobs" or "jobs/eve".
func (f *fakeBridge) Authorize(_ context.Context, token string) (Principal, error) {
	scope, user, _ := strings.Cut(token, "/")
	switch Scope(scope) {
	case ScopeRead, ScopeJobs, ScopeAdmin:
		if user == "" {
			user = "ann"
		}
		return Principal{User: user, Scopes: []Scope{Scope(scope)}}, nil
	}
	return Principal{}, ErrBadToken
}

var errNoJob = &protocol.APIError{Code: protocol.CodeNotFound, Text: "there is no such job"}

func (f *fakeBridge) change(id protocol.JobID, edit func(*protocol.JobStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit(f.jobs[id])
	f.jobs[id].Seq++
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeBridge) SubmitJob(_ context.Context, who Principal, req protocol.SubmitRequest) (protocol.JobStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return protocol.JobStatus{}, f.fail
	}
	id := protocol.NewJobID()
	if req.RequestID != "" {
		id = protocol.SubmittedJobID(who.User, req.RequestID)
	}
	if f.jobs[id] == nil {
		f.jobs[id] = &protocol.JobStatus{ID: id, Seq: 1, Name: req.Job.Name, Kind: req.Job.Kind, User: who.User, State: "pending", Created: time.Unix(1, 0).UTC()}
	}
	return *f.jobs[id], nil
}

func (f *fakeBridge) CheckJob(context.Context, Principal, protocol.SubmitRequest) (protocol.ValidateReply, error) {
	return protocol.ValidateReply{Inputs: 10}, f.fail
}

func (f *fakeBridge) Job(_ context.Context, who Principal, id protocol.JobID) (protocol.JobStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.jobs[id]
	switch {
	case f.fail != nil:
		return protocol.JobStatus{}, f.fail
	case j == nil || j.User != who.User && !who.Can(ScopeAdmin):
		return protocol.JobStatus{}, errNoJob
	}
	return *j, nil
}

func (f *fakeBridge) ListJobs(context.Context, Principal, JobQuery) (protocol.JobList, error) {
	return protocol.JobList{}, f.fail
}

func (f *fakeBridge) WaitJob(ctx context.Context, who Principal, id protocol.JobID, since uint64) (protocol.JobStatus, error) {
	f.mu.Lock()
	f.waiting++
	f.waits.Broadcast()
	f.mu.Unlock()
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		st, err := f.Job(ctx, who, id)
		if err != nil || st.State.Over() || st.Seq > since {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, nil
		case <-changed:
		}
	}
}

// waited returns when n waits have begun.
func (f *fakeBridge) waited(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.waiting < n {
		f.waits.Wait()
	}
}

func (f *fakeBridge) CancelJob(ctx context.Context, who Principal, id protocol.JobID) (protocol.JobStatus, error) {
	if _, err := f.Job(ctx, who, id); err != nil {
		return protocol.JobStatus{}, err
	}
	f.change(id, func(j *protocol.JobStatus) { j.State = "cancelled" })
	return f.Job(ctx, who, id)
}

func (f *fakeBridge) JobLogs(ctx context.Context, _ Principal, _ protocol.JobID, follow bool, line func(protocol.LogLine) error) error {
	for _, l := range f.lines {
		if err := line(l); err != nil {
			return err
		}
	}
	if follow {
		<-ctx.Done()
	}
	return f.fail
}

func (f *fakeBridge) ExplainJob(context.Context, Principal, protocol.JobID) (protocol.Explain, error) {
	return protocol.Explain{Summary: "1 of 1 match"}, f.fail
}

func (f *fakeBridge) JobResults(context.Context, Principal, protocol.JobID) (fs.FS, string, error) {
	return f.results, rootCID, f.fail
}

func (f *fakeBridge) JobStatement(_ context.Context, _ Principal, id protocol.JobID) (protocol.Statement, error) {
	return protocol.Statement{Job: id}, f.fail
}

func (f *fakeBridge) keep(fsys fs.FS) {
	f.files = make(map[string]string)
	_ = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, _ := fs.ReadFile(fsys, name)
			f.files[name] = string(b)
		}
		return err
	})
}

func (f *fakeBridge) PutModule(_ context.Context, _ Principal, fsys fs.FS) (protocol.ModuleInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(fsys)
	return protocol.ModuleInfo{CID: rootCID, Bytes: uint64(len(f.files[ModuleFile]))}, f.fail
}

func (f *fakeBridge) PutVolume(_ context.Context, _ Principal, name string, fsys fs.FS) (protocol.VolumeInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(fsys)
	f.volumes[name] = protocol.VolumeInfo{Name: name, CID: rootCID, Files: uint64(len(f.files))}
	return f.volumes[name], f.fail
}

func (f *fakeBridge) Volume(_ context.Context, _ Principal, name string) (protocol.VolumeInfo, error) {
	v, ok := f.volumes[name]
	if !ok {
		return v, &protocol.APIError{Code: protocol.CodeNotFound, Text: "there is no such volume"}
	}
	return v, f.fail
}

func (f *fakeBridge) ListVolumes(context.Context, Principal) (protocol.VolumeList, error) {
	return protocol.VolumeList{}, f.fail
}

func (f *fakeBridge) ListNodes(_ context.Context, _ Principal, where *protocol.Filter) (protocol.NodeList, error) {
	f.where = where
	return protocol.NodeList{}, f.fail
}

func (f *fakeBridge) Reputation(_ context.Context, _ Principal, node protocol.PeerID) (protocol.Reputation, error) {
	return protocol.Reputation{PeerID: node, Rater: node}, f.fail
}

func (f *fakeBridge) Account(_ context.Context, who Principal) (protocol.Account, error) {
	return protocol.Account{User: who.User}, f.fail
}

func (f *fakeBridge) Credit(_ context.Context, _ Principal, req protocol.CreditRequest) (protocol.Account, error) {
	f.credits = append(f.credits, req)
	return protocol.Account{User: req.User, CreditUUSD: req.AmountUUSD}, f.fail
}

func (f *fakeBridge) MakeToken(_ context.Context, _ Principal, req protocol.TokenRequest) (protocol.NewToken, error) {
	return protocol.NewToken{Token: protocol.Token{ID: "0123456789ab", User: req.User, Name: req.Name, Scopes: req.Scopes}, Text: "gb_text"}, f.fail
}

func (f *fakeBridge) ListTokens(_ context.Context, who Principal) (protocol.TokenList, error) {
	return protocol.TokenList{Tokens: []protocol.Token{{ID: "0123456789ab", User: who.User}}}, f.fail
}

func (f *fakeBridge) DropToken(_ context.Context, _ Principal, id string) error {
	if id != "0123456789ab" {
		return &protocol.APIError{Code: protocol.CodeNotFound, Text: "there is no token " + id}
	}
	return f.fail
}

func (f *fakeBridge) Status(context.Context) (protocol.BridgeStatus, error) {
	return protocol.BridgeStatus{State: "running"}, f.fail
}

func testConfig(t testing.TB) Config {
	cfg := DefaultConfig(t.TempDir())
	cfg.Every = 0
	return cfg
}

func newServer(t testing.TB, cfg Config, f *fakeBridge) *Server {
	t.Helper()
	s, err := New(cfg, f.bridge(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a request to the handler, without a network.
func ask(s http.Handler, token, method, path string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, protocol.APIPrefix+path, body)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// wantError checks status and code of a refusal, and that it is told well.
func wantError(t *testing.T, w *httptest.ResponseRecorder, status int, code protocol.ErrorCode) protocol.APIError {
	t.Helper()
	var e protocol.APIError
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("%d: %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || e.Code != code || e.Text == "" {
		t.Errorf("answered %d %+v, want %d %s", w.Code, e, status, code)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("the error is %s", ct)
	}
	return e
}

const goodJob = `{"name":"n","kind":"map","run":{"wasm":"p.wasm","command":["p"]},"inputs":{"range":"0..9"}}`

func goodSubmit() io.Reader {
	return strings.NewReader(`{"job":` + goodJob + `,"module_cid":"` + rootCID + `"}`)
}

// submitted stores a job of a user.
func submitted(t *testing.T, s http.Handler, token string) protocol.JobID {
	t.Helper()
	w := ask(s, token, "POST", "/jobs", goodSubmit())
	var st protocol.JobStatus
	if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil || w.Code != http.StatusCreated {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	return st.ID
}

func wasm(size int) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Repeat([]byte{7}, max(0, size-8))...)
}
