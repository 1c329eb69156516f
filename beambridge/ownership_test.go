package beambridge

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/internal/beamclient"
	"github.com/gridbeam/gridbeam/protocol"
)

// zipped is an archive of code and its hash.
func zipped(t testing.TB, files map[string]string) (raw []byte, hash string) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(w, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), hashOf(b.Bytes())
}

func hashOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// stub uploads code and prepares a function of it, as Beam's SDK does.
func (s *stage) stub(who beamapi.Principal, change func(*beamapi.Stub)) (id, object string) {
	s.Helper()
	raw, hash := zipped(s, map[string]string{"app.py": "def f(x): return x"})
	return stubAt(s, s.Bridge(), who, raw, hash, change), hash
}

// stubAt makes a stub of an archive.
func stubAt(t testing.TB, b *Bridge, who beamapi.Principal, raw []byte, hash string, change func(*beamapi.Stub)) string {
	t.Helper()
	face := b.Beam()
	if _, err := face.Objects.PutObject(t.Context(), who, hash, int64(len(raw)), "code", bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	x := beamapi.Stub{Name: "f", Type: "function/deployment", Object: hash, Digest: sha256.Sum256([]byte("f")), Job: funcJob()}
	if change != nil {
		change(&x)
	}
	reply, err := face.Stubs.PutStub(t.Context(), who, x, true)
	if err != nil {
		t.Fatal(err)
	}
	return reply.ID
}

// workspace is a user on Beam's face.
func workspace(name string) beamapi.Principal {
	return beamapi.Principal{Workspace: name, Role: beamapi.RoleFull}
}

// finish reads a call to its end.
func finish(ctx context.Context, r beamapi.Running) (last beamapi.Event, err error) {
	for !last.Done && err == nil {
		last, err = r.Next(ctx)
	}
	return last, err
}

// belongings are one of everything that a user can have at a bridge.
type belongings struct {
	stub, object, deployment string
	done, runs               string // calls
	job                      protocol.JobID
}

// belongings gives alice what others must not get at: the second call runs until the bridge ends.
func (s *stage) belongings(own beamapi.Principal) (x belongings) {
	s.Helper()
	ctx, face := s.Context(), s.Bridge().Beam()
	x.stub, x.object = s.stub(own, nil)
	d, err := face.Stubs.Deploy(ctx, own, x.stub, "square")
	if err != nil {
		s.Fatal(err)
	}
	x.deployment = d.ID
	if _, err := face.Volumes.GetOrCreateVolume(ctx, own, "data"); err != nil {
		s.Fatal(err)
	}
	r, err := face.Calls.Invoke(ctx, own, beamapi.Call{StubID: x.stub, Args: []byte("one"), Encoding: protocol.EncodingPickle})
	if err != nil {
		s.Fatal(err)
	}
	if last, err := finish(ctx, r); err != nil || string(last.Result) != "result of one" {
		s.Fatalf("%+v, %v", last, err)
	}
	x.done, x.job = r.TaskID(), s.row(r.TaskID()).Job
	if r, err = face.Calls.Invoke(ctx, own, beamapi.Call{StubID: x.stub, Args: []byte("long"), Encoding: protocol.EncodingPickle}); err != nil {
		s.Fatal(err)
	}
	x.runs = r.TaskID()
	s.await(time.Minute, "the second call runs", func() bool {
		t, err := face.Calls.Task(ctx, own, x.runs)
		return err == nil && t.Status == beamapi.StatusRunning
	})
	return x
}

// attempts are all that Beam's face can be asked about belongings, each with whether the answer held any of them.
func (s *stage) attempts(who beamapi.Principal, x belongings) map[string]func() (found bool, err error) {
	ctx, face := s.Context(), s.Bridge().Beam()
	none := func(err error) (bool, error) { return err == nil, err }
	return map[string]func() (bool, error){
		"HeadObject": func() (bool, error) { _, err := face.Objects.Object(ctx, who, x.object); return none(err) },
		"Stub":       func() (bool, error) { _, err := face.Stubs.Stub(ctx, who, x.stub); return none(err) },
		"DeployStub": func() (bool, error) { _, err := face.Stubs.Deploy(ctx, who, x.stub, "mine"); return none(err) },
		"Deployments": func() (bool, error) {
			l, err := face.Stubs.Deployments(ctx, who, beamapi.DeploymentFilter{Limit: 10})
			return len(l) > 0, err
		},
		"Deployment by id": func() (bool, error) {
			_, err := face.Stubs.Deployment(ctx, who, beamapi.DeploymentKey{ID: x.deployment})
			return none(err)
		},
		"Deployment by name": func() (bool, error) {
			_, err := face.Stubs.Deployment(ctx, who, beamapi.DeploymentKey{Type: "function/deployment", Name: "square"})
			return none(err)
		},
		"GetOrCreateStub with the code": func() (bool, error) {
			_, err := face.Stubs.PutStub(ctx, who, beamapi.Stub{Name: "g", Type: "function", Object: x.object, Digest: sha256.Sum256([]byte("g")), Job: funcJob()}, false)
			return none(err)
		},
		"GetOrCreateStub of an equal request": func() (bool, error) { // whoever has uploaded the same code has a stub of their own
			raw, hash := zipped(s, map[string]string{"app.py": "def f(x): return x"})
			if _, err := face.Objects.PutObject(ctx, beamapi.Principal{Workspace: who.Workspace + "2"}, hash, int64(len(raw)), "code", bytes.NewReader(raw)); err != nil {
				return true, err
			}
			r, err := face.Stubs.PutStub(ctx, beamapi.Principal{Workspace: who.Workspace + "2"}, beamapi.Stub{Name: "f", Type: "function/deployment", Object: hash, Digest: sha256.Sum256([]byte("f")), Job: funcJob()}, false)
			return r.ID == x.stub, err
		},
		"FunctionInvoke": func() (bool, error) {
			_, err := face.Calls.Invoke(ctx, who, beamapi.Call{StubID: x.stub, Args: []byte("bob"), Encoding: protocol.EncodingPickle})
			return none(err)
		},
		"Task that is over": func() (bool, error) { t, err := face.Calls.Task(ctx, who, x.done); return t.ID != "", err },
		"Task that runs":    func() (bool, error) { t, err := face.Calls.Task(ctx, who, x.runs); return t.ID != "", err },
		"ListTasks": func() (bool, error) {
			l, n, err := face.Calls.Tasks(ctx, who, beamapi.TaskFilter{Limit: 10})
			return len(l)+n > 0, err
		},
		"ListTasks by id": func() (bool, error) {
			l, n, err := face.Calls.Tasks(ctx, who, beamapi.TaskFilter{IDs: []string{x.done, x.runs}, Limit: 10})
			return len(l)+n > 0, err
		},
		"ListVolumes":      func() (bool, error) { l, err := face.Volumes.Volumes(ctx, who); return len(l) > 0, err },
		"StopDeployment":   func() (bool, error) { return none(face.Lifecycle.SetActive(ctx, who, x.deployment, false)) },
		"DeleteDeployment": func() (bool, error) { return none(face.Lifecycle.DeleteDeployment(ctx, who, x.deployment)) },
		"StopTasks":        func() (bool, error) { return none(face.Calls.StopTasks(ctx, who, []string{x.runs})) },
	}
}

// lists are the attempts that answer with what is the caller's, and so with nothing for a stranger, instead of an error.
var lists = map[string]bool{"Deployments": true, "ListTasks": true, "ListTasks by id": true, "ListVolumes": true, "GetOrCreateStub of an equal request": true}

func TestNothingOfAnotherUserCanBeReadCalledOrStopped(t *testing.T) {
	onStage(t, func(s *stage) {
		p := s.own(2)
		p.act = func(l protocol.Lease) deed {
			in, err := protocol.ParseFunctionInput(l.Inputs[0])
			if err != nil {
				return well(l) // of a job that is no function
			}
			d := calls(20*time.Millisecond, nil)(l)
			if string(in.Args) == "long" {
				d.after = time.Hour
			}
			return d
		}
		s.enter(p)
		own, bob := workspace("alice"), workspace("bob")
		x := s.belongings(own)
		for what, try := range s.attempts(bob, x) {
			found, err := try()
			var no *beamapi.Refusal
			switch {
			case found:
				s.Errorf("%s: a stranger got at it (%v)", what, err)
			case lists[what] && err != nil, !lists[what] && !errors.Is(err, beamapi.ErrNotFound) && !errors.As(err, &no):
				s.Errorf("%s: a stranger hears %v", what, err)
			}
		}
		if row := s.row(x.runs); !row.Ended.IsZero() {
			s.Errorf("a stranger's attempts ended the call: %+v", row)
		}
		mixed := s.Bridge().Beam().Calls
		mine, _ := s.stub(bob, nil)
		r, err := mixed.Invoke(s.Context(), bob, beamapi.Call{StubID: mine, Args: []byte("long"), Encoding: protocol.EncodingPickle})
		if err != nil {
			s.Fatal(err)
		}
		if err := mixed.StopTasks(s.Context(), bob, []string{r.TaskID(), x.runs}); !errors.Is(err, beamapi.ErrNotFound) || !strings.Contains(err.Error(), x.runs) {
			s.Errorf("a list with one of alice's calls: %v", err)
		}
		if a, b := s.row(x.runs), s.row(r.TaskID()); !a.Ended.IsZero() || !b.Ended.IsZero() {
			s.Error("a list that was refused stopped some of its calls")
		}
		for _, what := range slices.Sorted(maps.Keys(s.attempts(own, x))) { // the attempts do find what is there
			if what == "DeleteDeployment" || what == "StopDeployment" || strings.HasPrefix(what, "GetOrCreateStub of") {
				continue
			}
			if found, err := s.attempts(own, x)[what](); !found || err != nil {
				s.Errorf("%s: its owner got nothing (%v)", what, err)
			}
		}
		if err := s.Bridge().Beam().Lifecycle.SetActive(s.Context(), own, x.deployment, false); err != nil {
			s.Error(err)
		}
		s.jobsAreTheirUsers(x.job)
	})
}

// jobsAreTheirUsers tries the job of alice's calls through the bridge's own API.
func (s *stage) jobsAreTheirUsers(id protocol.JobID) {
	s.Helper()
	ctx, b := s.Context(), s.Bridge()
	eve := api.Principal{User: "bob", Scopes: []api.Scope{api.ScopeJobs}}
	if _, err := b.PutVolume(ctx, alice, "secret", fstest.MapFS{"a": {Data: []byte("a")}}); err != nil {
		s.Fatal(err)
	}
	over := s.over(s.submit(count1(2, 1)), time.Minute).ID
	job := func(f func(context.Context, api.Principal, protocol.JobID) error) func(who api.Principal) error {
		return func(who api.Principal) error {
			err := f(ctx, who, id)
			if one := f(ctx, who, over); (one == nil) != (err == nil) {
				return fmt.Errorf("the open job: %w, the one that is over: %w", err, one)
			}
			return err
		}
	}
	quiet := func(protocol.LogLine) error { return nil }
	for what, f := range map[string]func(who api.Principal) error{
		"status": job(func(ctx context.Context, who api.Principal, id protocol.JobID) error {
			_, err := b.Job(ctx, who, id)
			return err
		}),
		"wait": job(func(ctx context.Context, who api.Principal, id protocol.JobID) error {
			_, err := b.WaitJob(ctx, who, id, 0)
			return err
		}),
		"explain": job(func(ctx context.Context, who api.Principal, id protocol.JobID) error {
			_, err := b.ExplainJob(ctx, who, id)
			return err
		}),
		"statement": job(func(ctx context.Context, who api.Principal, id protocol.JobID) error {
			_, err := b.JobStatement(ctx, who, id)
			return err
		}),
		"logs": job(func(ctx context.Context, who api.Principal, id protocol.JobID) error {
			return b.JobLogs(ctx, who, id, false, quiet)
		}),
		"results": func(who api.Principal) error { _, _, err := b.JobResults(ctx, who, over); return err },
		"volume":  func(who api.Principal) error { _, err := b.Volume(ctx, who, "secret"); return err },
		"cancel": func(who api.Principal) error { // its owner's comes at the end
			if who.User != "bob" {
				return nil
			}
			_, err := b.CancelJob(ctx, who, id)
			return err
		},
	} {
		if err := f(eve); codeOf(err) != protocol.CodeNotFound {
			s.Errorf("%s: a stranger hears %v", what, err)
		}
		if err := f(api.Principal{User: "alice", Scopes: []api.Scope{api.ScopeJobs}}); err != nil {
			s.Errorf("%s: its owner hears %v", what, err)
		}
	}
	if s.status(id).State.Over() {
		s.Error("a stranger has cancelled the job")
	}
	if l, err := b.ListJobs(ctx, eve, api.JobQuery{Limit: 100}); err != nil || slices.ContainsFunc(l.Jobs, func(j protocol.JobStatus) bool { return j.User != "bob" }) {
		s.Errorf("a stranger's list holds %+v, %v", l.Jobs, err)
	}
	if l, err := b.ListVolumes(ctx, eve); err != nil || len(l.Volumes) != 0 {
		s.Errorf("a stranger's volumes are %+v, %v", l.Volumes, err)
	}
	if a, err := b.Account(ctx, eve); err != nil || a.User != "bob" || len(a.Recent) != 0 {
		s.Errorf("a stranger's account is %+v, %v", a, err)
	}
	if st, err := b.CancelJob(ctx, alice, id); err != nil || !st.State.Over() {
		s.Errorf("its owner's cancellation: %+v, %v", st.State, err)
	}
}

// asker makes requests of a bridge's HTTP with tokens.
type asker struct {
	*testing.T
	base      string
	transport *http.Transport
}

func (a *asker) do(token, method, path, body string) (int, string) {
	a.Helper()
	req, err := http.NewRequestWithContext(a.Context(), method, a.base+path, strings.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: a.transport}).Do(req)
	if err != nil {
		a.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		a.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// TestTokensOpenWhatIsTheirUsersAndTheirScopes goes through the sockets: the same job and call with tokens of two users
// and of every scope.
func TestTokensOpenWhatIsTheirUsersAndTheirScopes(t *testing.T) {
	b, st, end := realBridge(t, t.TempDir(), func(c *Config) { c.BeamListen = "127.0.0.1:0" })
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	a := &asker{t, "http://" + st.Beam, &http.Transport{}}
	defer a.transport.CloseIdleConnections()
	token := func(user string, scope api.Scope) string {
		x, err := b.MakeToken(t.Context(), carolsBoss, protocol.TokenRequest{User: user, Scopes: []string{string(scope)}})
		if err != nil {
			t.Fatal(err)
		}
		return x.Text
	}
	carols := map[api.Scope]string{}
	for _, scope := range []api.Scope{api.ScopeRead, api.ScopeInvoke, api.ScopeJobs, api.ScopeAdmin} {
		carols[scope] = token("carol", scope)
	}
	eves, root := token("eve", api.ScopeJobs), token("root", api.ScopeAdmin)
	c, err := beamclient.Dial(st.Beam, carols[api.ScopeJobs])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": "def f(x): return x"}, Handler: "app:f"})
	if err != nil {
		t.Fatal(err)
	}
	code, body := a.do(carols[api.ScopeInvoke], "POST", "/function/id/"+stub, "{}") // no node is there: it waits
	var made struct {
		TaskID string `json:"task_id"`
	}
	if err := json.Unmarshal([]byte(body), &made); code != 200 || err != nil {
		t.Fatalf("%d %s, %v", code, body, err)
	}
	var list protocol.JobList
	if code, body = a.do(carols[api.ScopeRead], "GET", protocol.APIPrefix+"/jobs", ""); json.Unmarshal([]byte(body), &list) != nil || len(list.Jobs) != 1 {
		t.Fatalf("%d %s", code, body)
	}
	id := list.Jobs[0].ID.String()
	job, gateway := protocol.APIPrefix+"/jobs/"+id, "/api/v1/gateway"
	submit := `{"job":{"name":"x","kind":"task","run":{"wasm":"m.wasm","command":["m"]}},"module_cid":"bafybeigofgfcedqmjrpkkpaogluahhrlsr2exp2f7xsei2tfiurl433vym"}`
	for _, r := range []struct {
		method, path, body string
		least              api.Scope // that carol's token needs
		good               int       // with it
		strange            int       // for eve's token, which may do everything with what is eve's
		root               int       // for another user's admin; 0 is not asked
	}{
		{"GET", job, "", api.ScopeRead, 200, 404, 200},
		{"GET", job + "/explain", "", api.ScopeRead, 200, 404, 200},
		{"GET", job + "/statement", "", api.ScopeRead, 200, 404, 200},
		{"GET", job + "/logs", "", api.ScopeRead, 200, 404, 200},
		{"GET", job + "/wait?timeout=0", "", api.ScopeRead, 200, 404, 200},
		{"GET", job + "/results", "", api.ScopeRead, 409, 404, 409},
		{"GET", "/api/v1/task/carol/" + made.TaskID, "", api.ScopeRead, 200, 404, 404},
		{"GET", "/api/v1/task/eve/" + made.TaskID, "", api.ScopeRead, 404, 404, 0},
		{"GET", gateway + "/stubs/" + stub + "/url", "", api.ScopeRead, 200, 200, 0}, // eve's is ok=false, below
		{"POST", "/function/id/" + stub, "{}", api.ScopeInvoke, 200, 404, 404},
		{"DELETE", "/api/v1/task/carol", `{"ids":["` + made.TaskID + `"]}`, api.ScopeInvoke, 200, 404, 404},
		{"POST", gateway + "/stubs", `{"name":"g"}`, api.ScopeJobs, 200, 0, 0},
		{"POST", gateway + "/stubs/deploy", `{"stub_id":"` + stub + `","name":"g"}`, api.ScopeJobs, 200, 0, 0},
		{"POST", gateway + "/objects", `{"hash":"00"}`, api.ScopeJobs, 200, 0, 0},
		{"POST", gateway + "/volumes", `{"name":"g"}`, api.ScopeJobs, 200, 0, 0},
		{"POST", gateway + "/deployments/x/stop", "", api.ScopeJobs, 200, 0, 0},
		{"DELETE", gateway + "/deployments/x", "", api.ScopeJobs, 200, 0, 0},
		{"POST", protocol.APIPrefix + "/jobs", submit, api.ScopeJobs, 422, 0, 0}, // the module is not there
		{"PUT", protocol.APIPrefix + "/volumes/v", "", api.ScopeJobs, 422, 0, 0},
		{"POST", protocol.APIPrefix + "/modules", "", api.ScopeJobs, 422, 0, 0},
		{"POST", protocol.APIPrefix + "/credit", `{}`, api.ScopeAdmin, 400, 0, 0},
		{"POST", job + "/cancel", "", api.ScopeJobs, 200, 404, 0},
	} {
		what := r.method + " " + strings.ReplaceAll(r.path, id, "ID")
		if r.strange != 0 {
			if code, body := a.do(eves, r.method, r.path, r.body); code != r.strange || strings.Contains(r.path, "/url") && !strings.Contains(body, `"ok":false`) {
				t.Errorf("%s by a stranger: %d, want %d; %.200s", what, code, r.strange, body)
			}
		}
		may := false
		for _, scope := range []api.Scope{api.ScopeRead, api.ScopeInvoke, api.ScopeJobs, api.ScopeAdmin} {
			may = may || scope == r.least
			want := http.StatusForbidden
			if may {
				want = r.good
			}
			if code, body := a.do(carols[scope], r.method, r.path, r.body); code != want {
				t.Errorf("%s with scope %s: %d, want %d; %.200s", what, scope, code, want, body)
			}
		}
		if r.root != 0 {
			if code, body := a.do(root, r.method, r.path, r.body); code != r.root {
				t.Errorf("%s by an admin: %d, want %d; %.200s", what, code, r.root, body)
			}
		}
	}
}
