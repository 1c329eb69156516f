package api

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

const peerText = "12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu"

// everyRoute is a request to each route with the least scope that it needs.
func everyRoute(id protocol.JobID) []struct {
	method, path string
	scope        Scope
	status       int
	body         string
} {
	var tree bytes.Buffer
	w := tar.NewWriter(&tree)
	_ = w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1, Mode: 0o600})
	_, _ = w.Write([]byte("1"))
	_ = w.Close()
	job := "/jobs/" + id.String()
	submit, _ := io.ReadAll(goodSubmit())
	return []struct {
		method, path string
		scope        Scope
		status       int
		body         string
	}{
		{"GET", "/status", ScopeRead, 200, ""},
		{"POST", "/modules", ScopeJobs, 201, string(wasm(100))},
		{"PUT", "/volumes/digits", ScopeJobs, 201, tree.String()},
		{"GET", "/volumes", ScopeRead, 200, ""},
		{"GET", "/volumes/digits", ScopeRead, 200, ""},
		{"POST", "/jobs", ScopeJobs, 201, string(submit)},
		{"POST", "/jobs/validate", ScopeRead, 200, string(submit)},
		{"GET", "/jobs?state=done,failed&limit=5", ScopeRead, 200, ""},
		{"GET", "/jobs?all=1", ScopeAdmin, 200, ""},
		{"GET", job, ScopeRead, 200, ""},
		{"GET", job + "/wait?timeout=1ms", ScopeRead, 200, ""},
		{"GET", job + "/logs", ScopeRead, 200, ""},
		{"GET", job + "/explain", ScopeRead, 200, ""},
		{"GET", job + "/results", ScopeRead, 200, ""},
		{"GET", job + "/statement", ScopeRead, 200, ""},
		{"POST", job + "/cancel", ScopeJobs, 200, ""},
		{"GET", job + "/events", ScopeRead, 200, ""},
		{"GET", "/nodes?where=cpu.cores+%3E%3D+1", ScopeRead, 200, ""},
		{"GET", "/nodes/" + peerText + "/reputation", ScopeRead, 200, ""},
		{"GET", "/account", ScopeRead, 200, ""},
		{"POST", "/tokens", ScopeJobs, 201, `{"name":"ci"}`},
		{"GET", "/tokens", ScopeRead, 200, ""},
		{"DELETE", "/tokens/0123456789ab", ScopeJobs, 204, ""},
		{"POST", "/credit", ScopeAdmin, 200, `{"user":"ann","amount_uusd":5000000,"source":"card","ref":"r1"}`},
	}
}

func TestEveryRouteAnswersToItsScopeOnly(t *testing.T) {
	cfg := testConfig(t)
	cfg.AuthFailures = 1000
	s := newServer(t, cfg, newFake())
	id := submitted(t, s, "jobs")
	less := map[Scope]string{ScopeJobs: "read", ScopeAdmin: "jobs"}
	for _, r := range everyRoute(id) {
		for token, status := range map[string]int{"": 401, "wrong": 401, less[r.scope]: 403} {
			if token == "" && status == 403 {
				continue
			}
			code := map[int]protocol.ErrorCode{401: protocol.CodeUnauthorized, 403: protocol.CodeForbidden}[status]
			w := ask(s, token, r.method, r.path, strings.NewReader(r.body))
			if e := wantError(t, w, status, code); e.Fix == "" {
				t.Errorf("%s %s: no fix in %+v", r.method, r.path, e)
			}
			if status == 401 && w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: 401 without WWW-Authenticate", r.method, r.path)
			}
		}
		if w := ask(s, string(r.scope), r.method, r.path, strings.NewReader(r.body)); w.Code != r.status {
			t.Errorf("%s %s: %d %s", r.method, r.path, w.Code, w.Body)
		}
	}
}

func TestEveryRouteTellsTheBridgesErrorAndHidesItsInside(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "admin")
	for _, r := range everyRoute(id) {
		f.fail = &protocol.APIError{Code: protocol.CodeNoCredit, Text: "no credit left", Fix: "add some"}
		w := ask(s, "admin", r.method, r.path, strings.NewReader(r.body))
		if e := wantError(t, w, http.StatusPaymentRequired, protocol.CodeNoCredit); e.Fix != "add some" {
			t.Errorf("%s %s: fix %q", r.method, r.path, e.Fix)
		}
		f.fail = errors.New("secret detail of /var/lib")
		w = ask(s, "admin", r.method, r.path, strings.NewReader(r.body))
		wantError(t, w, http.StatusInternalServerError, protocol.CodeInternal)
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s %s: sends %s", r.method, r.path, w.Body)
		}
		f.fail = fmt.Errorf("storing: %w", syscall.ENOSPC)
		wantError(t, ask(s, "admin", r.method, r.path, strings.NewReader(r.body)), http.StatusInsufficientStorage, protocol.CodeNoSpace)
	}
}

func TestOthersJobsAreNotFound(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	id := submitted(t, s, "jobs/ann")
	for _, p := range []string{"", "/wait", "/events", "/logs"} {
		wantError(t, ask(s, "jobs/eve", "GET", "/jobs/"+id.String()+p, nil), http.StatusNotFound, protocol.CodeNotFound)
	}
	wantError(t, ask(s, "jobs/eve", "POST", "/jobs/"+id.String()+"/cancel", nil), http.StatusNotFound, protocol.CodeNotFound)
}

func TestEveryCodeHasAStatus(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../protocol/api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if kind, ok := v.Type.(*ast.Ident); !ok || kind.Name != "ErrorCode" {
			return true
		}
		found++
		code := protocol.ErrorCode(strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`))
		if codeStatus[code] < 400 {
			t.Errorf("%s has no status", code)
		}
		return true
	})
	if found < 15 || found != len(codeStatus) {
		t.Errorf("%d codes are declared, %d have a status", found, len(codeStatus))
	}
}

func TestBadTokensBarTheirAddressForAMinute(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	now := time.Unix(1000, 0)
	s.gate.now = func() time.Time { return now }
	if w := ask(s, "read", "GET", "/status", nil); w.Code != 200 {
		t.Fatal(w.Body)
	}
	for i := range 10 {
		token := "guess"
		if i%2 == 0 {
			token = ""
		}
		wantError(t, ask(s, token, "GET", "/status", nil), http.StatusUnauthorized, protocol.CodeUnauthorized)
	}
	w := ask(s, "guess", "GET", "/status", nil)
	if e := wantError(t, w, http.StatusTooManyRequests, protocol.CodeLimited); e.RetryMS != 60_000 || w.Header().Get("Retry-After") != "60" {
		t.Errorf("retry after %d ms, %s s", e.RetryMS, w.Header().Get("Retry-After"))
	}
	// A right one that was not seen before is not even looked at; one that was passes.
	wantError(t, ask(s, "jobs", "GET", "/status", nil), http.StatusTooManyRequests, protocol.CodeLimited)
	if w := ask(s, "read", "GET", "/status", nil); w.Code != 200 {
		t.Errorf("a known token is locked out: %s", w.Body)
	}
	now = now.Add(time.Minute)
	if w := ask(s, "jobs", "GET", "/status", nil); w.Code != 200 {
		t.Errorf("after a minute: %s", w.Body)
	}
}

func TestAddressesAreCountedByHost(t *testing.T) {
	for remote, want := range map[string]string{
		"1.2.3.4:5": "1.2.3.4/32", "[::ffff:1.2.3.4]:5": "1.2.3.4/32", "[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::/64", "[fe80::1%eth0]:7": "fe80::/64",
	} {
		if got := origin(remote).String(); got != want {
			t.Errorf("%s counts as %s, want %s", remote, got, want)
		}
	}
}

func TestPrincipalsAreHeldToTheirRateButMayWait(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	now := time.Unix(1000, 0)
	s.gate.now = func() time.Time { return now }
	id := submitted(t, s, "jobs/ann")
	for i := range 99 {
		if w := ask(s, "read", "GET", "/status", nil); w.Code != 200 {
			t.Fatalf("request %d: %s", i, w.Body)
		}
	}
	w := ask(s, "read", "GET", "/status", nil)
	if e := wantError(t, w, http.StatusTooManyRequests, protocol.CodeLimited); e.RetryMS != 20 {
		t.Errorf("retry after %d ms, want the 20 ms of 50 a second", e.RetryMS)
	}
	if w := ask(s, "read/bob", "GET", "/status", nil); w.Code != 200 {
		t.Errorf("somebody else: %s", w.Body)
	}
	if w := ask(s, "read", "GET", "/jobs/"+id.String()+"/wait?timeout=0s", nil); w.Code != 200 {
		t.Errorf("a wait: %s", w.Body)
	}
	now = now.Add(20 * time.Millisecond)
	if w := ask(s, "read", "GET", "/status", nil); w.Code != 200 {
		t.Errorf("20 ms later: %s", w.Body)
	}
	cfg := testConfig(t)
	cfg.Rate = 0
	s = newServer(t, cfg, newFake())
	for range 500 {
		if w := ask(s, "read", "GET", "/status", nil); w.Code != 200 {
			t.Fatalf("without a bound: %s", w.Body)
		}
	}
}

func TestTheGateForgetsRatherThanGrow(t *testing.T) {
	m := map[int]bool{}
	for i := range 3 * maxGateEntries {
		forget(m, func(idle bool) bool { return idle })
		m[i] = i%2 == 0
	}
	if len(m) > maxGateEntries {
		t.Errorf("%d entries are kept", len(m))
	}
}

func TestSubmissionsAreRefusedNamingTheField(t *testing.T) {
	cfg := testConfig(t)
	cfg.JobBytes = 4096
	s := newServer(t, cfg, newFake())
	lines := strings.Replace(goodJob, `"range":"0..9"`, `"lines":"f.txt"`, 1)
	host := strings.Replace(goodJob, `"wasm":"p.wasm"`, `"host":"python3"`, 1)
	for _, c := range []struct {
		body   string
		status int
		code   protocol.ErrorCode
		field  string
	}{
		{``, 400, protocol.CodeBadRequest, ""},
		{`{`, 400, protocol.CodeBadRequest, ""},
		{`[]`, 400, protocol.CodeBadRequest, ""},
		{`{} {}`, 400, protocol.CodeBadRequest, ""},
		{`{"jobb":{}}`, 400, protocol.CodeBadRequest, "jobb"},
		{`{"job":{},"module_cid":3}`, 400, protocol.CodeBadRequest, "module_cid"},
		{`{}`, 400, protocol.CodeBadRequest, "job"},
		{`{"job":3}`, 422, protocol.CodeBadJob, ""},
		{`{"job":{"name":"n"}}`, 422, protocol.CodeBadJob, "kind"},
		{`{"job":{"nmae":"n"}}`, 422, protocol.CodeBadJob, "kind"},
		{`{"job":` + goodJob + `}`, 400, protocol.CodeBadRequest, "module_cid"},
		{`{"job":` + goodJob + `,"module_cid":"x"}`, 400, protocol.CodeBadRequest, "module_cid"},
		{`{"job":` + host + `,"module_cid":"` + rootCID + `"}`, 400, protocol.CodeBadRequest, "module_cid"},
		{`{"job":` + host + `,"lines":["a"]}`, 400, protocol.CodeBadRequest, "lines"},
		{`{"job":` + lines + `,"module_cid":"` + rootCID + `"}`, 400, protocol.CodeBadRequest, "lines"},
		{`{"job":` + lines + `,"module_cid":"` + rootCID + `","lines":["a\u0000"]}`, 400, protocol.CodeBadRequest, "lines[0]"},
		{`{"job":` + host + `,"request_id":"a b"}`, 400, protocol.CodeBadRequest, "request_id"},
		{`{"job":` + host + `,"lines":["` + strings.Repeat("x", 5000) + `"]}`, 413, protocol.CodeTooLarge, ""},
	} {
		if e := wantError(t, ask(s, "jobs", "POST", "/jobs", strings.NewReader(c.body)), c.status, c.code); e.Field != c.field {
			t.Errorf("%.80s: names %q, want %q", c.body, e.Field, c.field)
		}
		// The same without a length in the header.
		ask(s, "jobs", "POST", "/jobs", struct{ io.Reader }{strings.NewReader(c.body)})
	}
	if w := ask(s, "jobs", "POST", "/jobs/validate", strings.NewReader(`{"job":`+goodJob+`}`)); w.Code != 200 {
		t.Errorf("validating without a module: %s", w.Body)
	}
}

func TestEverythingWrongInAJobIsToldAtOnce(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	w := ask(s, "jobs", "POST", "/jobs/validate", strings.NewReader(`{"job":{"name":"n","kind":"mapp","run":{"wasm":"p","command":["p"]},"policy":{"prefer":"best"},"resources":{"cpu":-1}}}`))
	e := wantError(t, w, http.StatusUnprocessableEntity, protocol.CodeBadJob)
	var got []string
	for _, f := range e.Fields {
		got = append(got, f.Field)
		if f.Line != 0 || f.Problem == "" {
			t.Errorf("%+v", f)
		}
	}
	if strings.Join(got, " ") != "kind policy.prefer resources.cpu" {
		t.Errorf("told of %q", got)
	}
}

func TestParametersAreChecked(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	id := submitted(t, s, "jobs")
	for path, field := range map[string]string{
		"/jobs?state=odd": "state", "/jobs?limit=0": "limit", "/jobs?limti=1": "limti", "/jobs/xyz": "id",
		"/jobs/" + id.String() + "/wait?timeout=soon": "timeout", "/jobs/" + id.String() + "/wait?since=x": "since",
		"/jobs/" + id.String() + "/events?since=-1": "since", "/jobs/" + id.String() + "/logs?fellow=1": "fellow",
		"/nodes?where=cpu.coers+%3E+1": "where", "/nodes/me/reputation": "peer", "/volumes/a%20b": "name", "/volumes/..%2Fx": "name",
	} {
		if e := wantError(t, ask(s, "read", "GET", path, nil), http.StatusBadRequest, protocol.CodeBadRequest); e.Field != field {
			t.Errorf("%s: names %q, want %q", path, e.Field, field)
		}
	}
	wantError(t, ask(s, "jobs", "GET", "/jobs?all=1", nil), http.StatusForbidden, protocol.CodeForbidden)
	for body, field := range map[string]string{
		`{"user":"a b","amount_uusd":1,"source":"card","ref":"r"}`: "user",
		`{"user":"a","amount_uusd":0,"source":"card","ref":"r"}`:   "amount_uusd",
		`{"user":"a","amount_uusd":-5,"source":"card","ref":"r"}`:  "amount_uusd",
		`{"user":"a","amount_uusd":1,"source":"mint","ref":"r"}`:   "source",
		`{"user":"a","amount_uusd":1,"source":"card","ref":""}`:    "ref",
		`{"user":"a","amount_uusd":1.5,"source":"card","ref":"r"}`: "amount_uusd",
	} {
		if e := wantError(t, ask(s, "admin", "POST", "/credit", strings.NewReader(body)), http.StatusBadRequest, protocol.CodeBadRequest); e.Field != field {
			t.Errorf("%s: names %q, want %q", body, e.Field, field)
		}
	}
}

func TestUnknownPathsAndMethodsAreTold(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	wantError(t, ask(s, "read", "GET", "/jbos", nil), http.StatusNotFound, protocol.CodeNoSuchRoute)
	w := ask(s, "read", "DELETE", "/volumes/digits", nil)
	wantError(t, w, http.StatusMethodNotAllowed, protocol.CodeWrongMethod)
	if w.Header().Get("Allow") == "" {
		t.Error("405 without Allow")
	}
	wantError(t, ask(s, "", "GET", "/jbos", nil), http.StatusUnauthorized, protocol.CodeUnauthorized)
}

func TestPanicsBecomeAnAnswer(t *testing.T) {
	f := newFake()
	var logged bytes.Buffer
	b := f.bridge()
	b.Money = nilMoney{}
	s, err := New(testConfig(t), b, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, ask(s, "read", "GET", "/account", nil), http.StatusInternalServerError, protocol.CodeInternal)
	if !strings.Contains(logged.String(), "nilMoney") && !strings.Contains(logged.String(), "nil pointer") {
		t.Errorf("the log says %q", logged.String())
	}
}

type nilMoney struct{ Money }

func TestChangesAreAudited(t *testing.T) {
	var logged bytes.Buffer
	s, err := New(testConfig(t), newFake().bridge(), slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	submitted(t, s, "jobs/ann")
	ask(s, "read/eve", "POST", "/jobs", goodSubmit())
	ask(s, "read/eve", "GET", "/status", nil)
	for _, want := range []string{`user=ann action="submit job"`, "verdict=ok", `user=eve action="submit job"`, "verdict=forbidden"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("no %s in\n%s", want, logged.String())
		}
	}
	if strings.Contains(logged.String(), "jobs/ann ") || strings.Count(logged.String(), "api call") != 2 {
		t.Errorf("the log is\n%s", logged.String())
	}
}

func TestConfigurationsNameTheirFault(t *testing.T) {
	if _, err := New(Config{}, newFake().bridge(), nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "Spool") {
		t.Errorf("%v", err)
	}
	b := newFake().bridge()
	b.Nodes = nil
	if _, err := New(testConfig(t), b, nil); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "Bridge.Nodes") {
		t.Errorf("%v", err)
	}
}

// spoolIsEmpty checks that no upload is left behind.
func spoolIsEmpty(t *testing.T, cfg Config) {
	t.Helper()
	left, err := os.ReadDir(cfg.Spool)
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left behind (%v)", left, err)
	}
}

func FuzzRequests(f *testing.F) {
	for _, r := range everyRoute(protocol.JobID{}) {
		f.Add(r.method, r.path, []byte(r.body))
	}
	f.Add("PATCH", "/jobs/../..//x?%zz", []byte("{\"job\":{\"a\":[[[[]]]]}}"))
	cfg := testConfig(f)
	cfg.Rate, cfg.MaxWait, cfg.Beat = 0, time.Millisecond, time.Hour
	s := newServer(f, cfg, newFake())
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		r, err := http.NewRequest(method, "http://x"+protocol.APIPrefix+path, bytes.NewReader(body))
		if err != nil || r.URL.Host != "x" {
			return
		}
		r.Header.Set("Authorization", "Bearer admin")
		r.RemoteAddr = "127.0.0.1:1"
		w := newRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 400 {
			var e protocol.APIError
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Code == "" || e.Text == "" {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
		}
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %s: %s", method, path, w.Body)
		}
	})
}
