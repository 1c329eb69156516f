package beamapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBridge knows one workspace, one archive and whatever stubs it is given.
type fakeBridge struct {
	objects map[string][]byte
	stubs   map[string]Stub
	answer  func(Call) []Event
	gone    chan string
	active  bool
	task    *Task // what Task returns instead of a number in JSON
	revoked bool  // of every token: an upload is refused
	took    func(who Principal, hash, name string)
}

func (f *fakeBridge) StillGood(context.Context, Principal) error {
	if f.revoked {
		return ErrUnauthenticated
	}
	return nil
}

func (f *fakeBridge) Authenticate(_ context.Context, token string) (Principal, error) {
	switch token {
	case "full":
		return Principal{Workspace: "ws", TokenID: "id-of-full", Role: RoleFull}, nil
	case "invoke":
		return Principal{Workspace: "ws", Role: RoleInvoke}, nil
	case "task":
		return Principal{Workspace: "ws", Role: RoleTask}, nil
	case "other":
		return Principal{Workspace: "other", Role: RoleFull}, nil
	}
	return Principal{}, ErrUnauthenticated
}

func (f *fakeBridge) Object(_ context.Context, who Principal, hash string) (Object, error) {
	b, ok := f.objects[hash]
	if !ok || who.Workspace != "ws" {
		return Object{}, ErrNotFound
	}
	return Object{ID: hash, Hash: hash, Size: int64(len(b))}, nil
}

func (f *fakeBridge) PutObject(_ context.Context, who Principal, hash string, _ int64, name string, r io.Reader) (Object, error) {
	if f.took != nil {
		f.took(who, hash, name)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return Object{}, err
	}
	f.objects[hash] = b
	return Object{ID: hash, Hash: hash}, nil
}

func (f *fakeBridge) PutStub(_ context.Context, _ Principal, s Stub, _ bool) (StubReply, error) {
	s.ID = "stub-" + s.Job.Run.Handler
	f.stubs[s.ID] = s
	return StubReply{ID: s.ID, Warning: "a warning"}, nil
}

func (f *fakeBridge) Stub(_ context.Context, who Principal, id string) (Stub, error) {
	s, ok := f.stubs[id]
	if !ok || who.Workspace != "ws" {
		return Stub{}, ErrNotFound
	}
	return s, nil
}

func (f *fakeBridge) Deploy(_ context.Context, _ Principal, stub, name string) (Deployment, error) {
	f.active = true
	return Deployment{ID: "d", Name: name, Version: 1, StubID: stub, StubType: "function/deployment", Active: true}, nil
}

func (f *fakeBridge) Deployment(_ context.Context, who Principal, key DeploymentKey) (Deployment, error) {
	if who.Workspace != "ws" || key.ID != "d" && key.Name != "square" || key.Version > 1 {
		return Deployment{}, ErrNotFound
	}
	return Deployment{ID: "d", Name: "square", Version: 1, StubID: "stub-app:f", StubType: "function/deployment", Active: f.active}, nil
}

func (f *fakeBridge) Deployments(ctx context.Context, who Principal, _ DeploymentFilter) ([]Deployment, error) {
	d, err := f.Deployment(ctx, who, DeploymentKey{ID: "d"})
	return []Deployment{d}, err
}

func (f *fakeBridge) SetActive(_ context.Context, _ Principal, id string, active bool) error {
	if id != "d" {
		return ErrNotFound
	}
	f.active = active
	return nil
}

func (f *fakeBridge) DeleteDeployment(ctx context.Context, who Principal, id string) error {
	return f.SetActive(ctx, who, id, false)
}

func (f *fakeBridge) Invoke(_ context.Context, _ Principal, c Call) (Running, error) {
	if strings.Contains(string(c.Args), "busy") {
		return nil, ErrBusy
	}
	switch string(c.Args) {
	case "ill":
		return nil, errors.New("a secret of the inside")
	case "binary":
		return &fakeRunning{f: f, events: []Event{{Output: "\xff\u00e9"[:2]}, {Output: "\x80\n"}, {Done: true, Result: c.Args, Encoding: c.Encoding}}}, nil
	case "talk":
		return &fakeRunning{f: f, events: []Event{{Done: true, Output: strings.Repeat("\u00e9", 1<<20), Result: c.Args, Encoding: c.Encoding}}}, nil
	case "vast":
		return &fakeRunning{f: f, events: []Event{{Done: true, Result: make([]byte, maxResult+1), Encoding: c.Encoding}}}, nil
	}
	return &fakeRunning{f: f, events: f.answer(c)}, nil
}

func (f *fakeBridge) Task(_ context.Context, who Principal, id string) (Task, error) {
	if id == "old" {
		return Task{ID: "old", Status: StatusComplete, StubID: "forgotten", Result: []byte("pickle"), Encoding: protocol.EncodingPickle}, nil
	}
	if id != "t" || who.Workspace != "ws" {
		return Task{}, ErrNotFound
	}
	if f.task != nil {
		return *f.task, nil
	}
	return Task{ID: "t", Status: StatusComplete, StubID: "stub-app:f", Result: []byte("12345678901234567890"), Encoding: protocol.EncodingJSON}, nil
}

func (f *fakeBridge) Await(ctx context.Context, who Principal, id string, _ Status) (Task, error) {
	return f.Task(ctx, who, id)
}

func (f *fakeBridge) Tasks(ctx context.Context, who Principal, _ TaskFilter) ([]Task, int, error) {
	t, err := f.Task(ctx, who, "t")
	return []Task{t}, 7, err
}

func (f *fakeBridge) StopTasks(_ context.Context, _ Principal, ids []string) error {
	if len(ids) > 0 && ids[0] != "t" {
		return ErrNotFound
	}
	return nil
}

func (f *fakeBridge) GetOrCreateVolume(_ context.Context, _ Principal, name string) (Volume, error) {
	return Volume{ID: name, Name: name}, nil
}

func (f *fakeBridge) Volumes(context.Context, Principal) ([]Volume, error) {
	return []Volume{{ID: "data", Name: "data"}}, nil
}

type fakeRunning struct {
	f      *fakeBridge
	events []Event
}

func (r *fakeRunning) TaskID() string { return "t" }

func (r *fakeRunning) Next(ctx context.Context) (Event, error) {
	if len(r.events) == 0 {
		<-ctx.Done()
		return Event{}, ctx.Err()
	}
	e := r.events[0]
	r.events = r.events[1:]
	return e, nil
}

func (r *fakeRunning) Abandon() {
	select {
	case r.f.gone <- "t":
	default:
	}
}

// newServer makes a Server over a fake; change, if any, is made to its configuration.
func newServer(t *testing.T, change ...func(*Config)) (*Server, *fakeBridge) {
	t.Helper()
	f := &fakeBridge{objects: map[string][]byte{}, stubs: map[string]Stub{}, gone: make(chan string, 16), answer: func(c Call) []Event {
		return []Event{{Output: "one\n"}, {Output: "two\n"}, {Done: true, Result: c.Args, Encoding: c.Encoding}}
	}}
	cfg := DefaultConfig()
	cfg.Gate = func(b []byte, _ []string, _ bool) error {
		if strings.Contains(string(b), "evil") {
			return errors.New("evil is refused")
		}
		return nil
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg, Bridge{f, f, f, f, f, f}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

// serve starts one on a real socket.
func serve(t *testing.T, change ...func(*Config)) (*fakeBridge, string) {
	t.Helper()
	s, f := newServer(t, change...)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: s}
	ConfigureServer(srv)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return f, ln.Addr().String()
}

func dial(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func as(t *testing.T, token string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
}

func stubRequest() *beamwire.GetOrCreateStubRequest {
	return &beamwire.GetOrCreateStubRequest{
		ObjectId: strings.Repeat("a", 64), ImageId: plainImage("python3"), StubType: "function", Name: "f", Handler: "app:f", PythonVersion: "python3", Cpu: 1000, Memory: 256,
	}
}

// invokeAll reads a call's stream.
func invokeAll(t *testing.T, c *grpc.ClientConn, token string, req *beamwire.FunctionInvokeRequest) (out []*beamwire.FunctionInvokeResponse, err error) {
	t.Helper()
	s, err := c.NewStream(as(t, token), &grpc.StreamDesc{ServerStreams: true}, invokeProcedure)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(s.SendMsg(req), s.CloseSend()); err != nil {
		return nil, err
	}
	for {
		m := &beamwire.FunctionInvokeResponse{}
		if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return out, err
		}
		out = append(out, m)
	}
}

func TestCallHasItsIDFirstAndOneLastFrame(t *testing.T) {
	_, addr := serve(t)
	c := dial(t, addr)
	reply := &beamwire.GetOrCreateStubResponse{}
	if err := c.Invoke(as(t, "full"), "/gateway.GatewayService/GetOrCreateStub", stubRequest(), reply); err != nil || !reply.GetOk() || !strings.Contains(reply.GetWarnMsg(), "a warning") {
		t.Fatalf("%v, %v", reply, err)
	}
	for _, x := range []struct {
		args   string
		exit   int32
		text   string
		result string
	}{
		{"fine", 0, "one\ntwo\n", "fine"},
		{"evil", 1, "one\ntwo\ngridbeam: evil is refused\n", ""},
		{"busy", 1, "gridbeam: too many calls wait already; try again when some have ended\n", ""},
		{"ill", 1, "gridbeam: the bridge failed; its log says why\n", ""},
		{"binary", 0, "\uFFFD\uFFFD\n", "binary"},
		{"talk", 0, strings.Repeat("\u00e9", 1<<20), "talk"},
		{"vast", 1, "gridbeam: the result has", ""},
		{strings.Repeat("x", maxArgs+1), 1, "gridbeam: the arguments have", ""},
	} {
		frames, err := invokeAll(t, c, "invoke", &beamwire.FunctionInvokeRequest{StubId: reply.GetStubId(), Args: []byte(x.args)})
		if err != nil {
			t.Errorf("%.10s: %v", x.args, err)
			continue
		}
		text, last := "", frames[len(frames)-1]
		for i, f := range frames {
			text += f.GetOutput()
			if f.GetDone() != (i == len(frames)-1) {
				t.Errorf("%.10s: frame %d of %d says done %v", x.args, i, len(frames), f.GetDone())
			}
		}
		if last.GetExitCode() != x.exit || string(last.GetResult()) != x.result || !strings.HasPrefix(text, x.text) {
			t.Errorf("%.10s: exit %d, result %q, output %q", x.args, last.GetExitCode(), last.GetResult(), text)
		}
	}
	if frames, err := invokeAll(t, c, "full", &beamwire.FunctionInvokeRequest{StubId: "none"}); err != nil || len(frames) != 1 || frames[0].GetExitCode() != 1 {
		t.Errorf("a function that is not there: %v, %v", frames, err)
	}
	if frames, err := invokeAll(t, c, "other", &beamwire.FunctionInvokeRequest{StubId: reply.GetStubId()}); err != nil || frames[0].GetExitCode() != 1 {
		t.Errorf("another workspace's function: %v, %v", frames, err)
	}
}

func TestCallerWhoGoesIsNoticed(t *testing.T) {
	f, addr := serve(t)
	c := dial(t, addr)
	f.stubs["s"] = Stub{ID: "s"}
	f.answer = func(Call) []Event { return nil }
	ctx, cancel := context.WithCancel(as(t, "full"))
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, invokeProcedure)
	if err != nil {
		t.Fatal(err)
	}
	m := &beamwire.FunctionInvokeResponse{}
	if err := errors.Join(s.SendMsg(&beamwire.FunctionInvokeRequest{StubId: "s"}), s.CloseSend(), s.RecvMsg(m)); err != nil || m.GetTaskId() != "t" {
		t.Fatal(m, err)
	}
	cancel()
	if id := <-f.gone; id != "t" {
		t.Errorf("%s was abandoned", id)
	}
}

func TestSixHundredCallsAtOnce(t *testing.T) {
	f, addr := serve(t)
	c := dial(t, addr)
	f.stubs["s"] = Stub{ID: "s"}
	f.answer = func(Call) []Event { return nil }
	ctx, cancel := context.WithCancel(as(t, "full"))
	defer cancel()
	for range 600 { // each waits for its first frame, and stays open
		s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, invokeProcedure)
		m := &beamwire.FunctionInvokeResponse{}
		if err == nil {
			err = errors.Join(s.SendMsg(&beamwire.FunctionInvokeRequest{StubId: "s"}), s.CloseSend(), s.RecvMsg(m))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhoMayWhat(t *testing.T) {
	_, addr := serve(t)
	c := dial(t, addr)
	const method = "/gateway.GatewayService/GetOrCreateStub"
	for token, want := range map[string]codes.Code{"full": codes.OK, "invoke": codes.PermissionDenied, "task": codes.PermissionDenied, "none": codes.Unauthenticated} {
		if err := c.Invoke(as(t, token), method, stubRequest(), &beamwire.GetOrCreateStubResponse{}); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", token, err, want)
		}
	}
	if err := c.Invoke(as(t, "full"), "/pod.PodService/CreatePod", stubRequest(), &beamwire.GetOrCreateStubResponse{}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "CreatePod") {
		t.Errorf("a method that is not offered: %v", err)
	}
	for range 20 {
		_ = c.Invoke(as(t, "none"), method, stubRequest(), &beamwire.GetOrCreateStubResponse{})
	}
	if err := c.Invoke(as(t, "other"), method, stubRequest(), &beamwire.GetOrCreateStubResponse{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a token that is new here, after many bad ones from its address: %v", err)
	}
	if err := c.Invoke(as(t, "full"), method, stubRequest(), &beamwire.GetOrCreateStubResponse{}); err != nil {
		t.Errorf("a token that was good lately is locked out: %v", err)
	}
}

func TestArchiveComesInPieces(t *testing.T) {
	f, addr := serve(t)
	c := dial(t, addr)
	hash := strings.Repeat("b", 64)
	head := &beamwire.HeadObjectResponse{}
	if err := c.Invoke(as(t, "full"), "/gateway.GatewayService/HeadObject", &beamwire.HeadObjectRequest{Hash: hash}, head); err != nil || !head.GetOk() || head.GetExists() {
		t.Fatalf("%v, %v", head, err)
	}
	s, err := c.NewStream(as(t, "full"), &grpc.StreamDesc{ClientStreams: true}, "/gateway.GatewayService/PutObjectStream")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"abc", "", "def"} {
		if err := s.SendMsg(&beamwire.PutObjectRequest{ObjectContent: []byte(part), Hash: hash}); err != nil {
			t.Fatal(err)
		}
	}
	put := &beamwire.PutObjectResponse{}
	if err := errors.Join(s.CloseSend(), s.RecvMsg(put)); err != nil || !put.GetOk() || put.GetObjectId() != hash || string(f.objects[hash]) != "abcdef" {
		t.Errorf("%v, %v, kept %q", put, err, f.objects[hash])
	}
}

// ask makes an HTTP request and returns status and body.
func ask(t *testing.T, method, url, token, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode, string(b)
}

func TestJSONSpeaksBothCasingsAndAnswersWithZeros(t *testing.T) {
	f, addr := serve(t)
	base := "http://" + addr
	f.stubs["stub-app:f"] = Stub{ID: "stub-app:f", Type: "function/deployment"}
	f.active = true
	object := strings.Repeat("a", 64)
	for _, x := range []struct {
		method, path, token, body string
		code                      int
		want                      []string
	}{
		{"GET", "/api/v1/health", "", "", 200, []string{"ok"}},
		{"POST", "/api/v1/gateway/images/verify-build", "full", `{"pythonVersion":"python3"}`, 200, []string{`"valid":true`, `"exists":true`}},
		{"POST", "/api/v1/gateway/stubs", "full", `{"objectId":"` + object + `","stubType":"function","handler":"app:f","name":"f","nonsense":1}`, 200, []string{`"stubId":"stub-app:f"`, `"errMsg":""`}},
		{"POST", "/api/v1/gateway/stubs", "full", `{"object_id":"` + object + `","stub_type":"function","handler":"app:f"}`, 200, []string{`"stubId":"stub-app:f"`}},
		{"POST", "/api/v1/gateway/stubs/deploy", "full", `{"stubId":"stub-app:f","name":"square"}`, 200, []string{`"version":1`, base + "/function/square/v1"}},
		{"GET", "/api/v1/gateway/stubs/stub-app:f/url", "full", "", 200, []string{base + "/function/id/stub-app:f"}},
		{"GET", "/api/v1/gateway/objects/" + object, "full", "", 200, []string{`"exists":false`, `"useWorkspaceStorage":true`}},
		{"GET", "/api/v1/gateway/tasks?limit=5", "invoke", "ignored", 200, []string{`"total":7`, `"containerId":""`}},
		{"POST", "/api/v1/gateway/volumes", "full", `{"name":"../x"}`, 200, []string{`"ok":false`, "letters"}},
		{"POST", "/api/v1/gateway/stubs", "full", `{"objectId":`, 400, []string{`"code":3`, `"details":[]`}},
		{"POST", "/api/v1/gateway/stubs", "bad", `{}`, 401, []string{`"code":16`}},
		{"GET", "/api/v1/workspace/current", "full", "", 200, []string{`"external_id":"ws"`}},
		{"GET", "/api/v1/task/ws/t", "full", "", 200, []string{`"status":"COMPLETE"`, `"result":12345678901234567890`, `"queue_depth":0`, `"outputs":[]`}},
		{"GET", "/api/v1/task/other/t", "full", "", 404, nil},
		{"GET", "/api/v1/task/ws/none", "full", "", 404, nil},
		{"GET", "/api/v1/task/ws/old", "full", "", 200, []string{`"base64":"cGlja2xl"`}}, // its function was forgotten
		{"GET", "/api/v1/task/ws/t/subscribe", "full", "", 200, []string{"event: status\ndata: {", "COMPLETE"}},
		{"DELETE", "/api/v1/task/ws", "full", `{"ids":["t"]}`, 200, nil},
		{"DELETE", "/api/v1/task/ws?task_ids=none", "full", ``, 404, nil},
		{"GET", "/api/v1/deployment/ws?stub_type=function%2Fdeployment&name=square", "full", "", 200, []string{`"data":[{`, `"next":""`}},
		{"POST", "/function/square", "invoke", `{"args":[1],"n":1.50}`, 200, []string{`"task_id":"t"`}},
		{"POST", "/function/square/v1?auth_token=invoke", "", `{}`, 200, []string{`"task_id":"t"`}},
		{"POST", "/function/square/latest", "full", ``, 200, []string{`"task_id":"t"`}},
		{"POST", "/function/id/stub-app:f", "full", ``, 200, []string{`"task_id":"t"`}},
		{"POST", "/function/square/v9", "full", `{}`, 400, nil},
		{"POST", "/function/none", "full", `{}`, 400, []string{"none"}},
		{"POST", "/function/square", "full", `[1]`, 400, []string{"object"}},
		{"POST", "/api/v1/gateway/deployments/d/stop", "full", `{}`, 200, []string{`"ok":true`}},
		{"POST", "/function/square", "full", `{}`, 400, nil},
		{"GET", "/nowhere", "full", "", 404, nil},
		{"POST", "/api/v1/gateway/images/build", "full", `{}`, 200, []string{`{"result":{`, `"success":true`, `"done":true`}},
		{"POST", "/api/v1/gateway/images/build", "full", `{"python_packages":["numpy"]}`, 200, []string{`"success":false`, "python_packages"}},
		{"POST", "/api/v1/gateway/pods", "full", `{}`, 501, []string{`"code":12`, "pods"}},
		{"PATCH", "/api/v1/gateway/pods/p/ttl", "full", `{}`, 501, []string{`"code":12`}},
		{"GET", "/api/v1/gateway/deployments", "full", "", 200, []string{`"name":"square"`, `"errMsg":""`}},
	} {
		code, body := ask(t, x.method, base+x.path, x.token, x.body)
		if code != x.code {
			t.Errorf("%s %s: %d, want %d: %s", x.method, x.path, code, x.code, body)
		}
		for _, want := range x.want {
			if !strings.Contains(strings.ReplaceAll(body, `": `, `":`), want) {
				t.Errorf("%s %s: %s lacks %s", x.method, x.path, body, want)
			}
		}
	}
}

func TestArgumentsOfARequestKeepTheirForm(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/function/f?q=x&auth_token=secret", strings.NewReader(`{"args":[1.50,123456789012345678901],"kwargs":{"a":1},"b":2.0}`))
	got, err := callArgs(r)
	if want := `{"args":[1.50,123456789012345678901],"kwargs":{"a":1,"b":2.0,"q":"x"}}`; err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

func TestUploadNeedsTheAddressThatWasGivenOut(t *testing.T) {
	f, addr := serve(t)
	hash := strings.Repeat("c", 64)
	_, body := ask(t, "POST", "http://"+addr+"/api/v1/gateway/objects", "full", `{"hash":"`+hash+`","objectMetadata":{"name":"n"}}`)
	_, rest, _ := strings.Cut(strings.ReplaceAll(body, `": `, `":`), `"presignedUrl":"`)
	url, _, _ := strings.Cut(rest, `"`)
	url = strings.ReplaceAll(url, `\u0026`, "&")
	if code, text := ask(t, "PUT", strings.Replace(url, "workspace=ws", "workspace=other", 1), "", "bytes"); code != 403 {
		t.Errorf("an address for another workspace: %d %s", code, text)
	}
	if code, text := ask(t, "PUT", url, "", "bytes"); code != 200 || string(f.objects[hash]) != "bytes" {
		t.Errorf("%s: %d %s, kept %q", url, code, text, f.objects[hash])
	}
}

func FuzzCallArgs(f *testing.F) {
	f.Add(`{"args":[1],"kwargs":{},"x":"y"}`, "q=1")
	f.Fuzz(func(t *testing.T, body, query string) {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/function/f", strings.NewReader(body))
		r.URL.RawQuery = query
		got, err := callArgs(r)
		if err == nil && !strings.HasPrefix(string(got), `{"args":[`) {
			t.Errorf("%q, %q: %s", body, query, got)
		}
	})
}

var _ proto.Message = (*beamwire.Task)(nil)
