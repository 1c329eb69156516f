package beamapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

// A node says itself what encoding its result has, and the client unpickles it whatever that is.
func TestNoLabelOfANodeLeadsPastTheGate(t *testing.T) {
	f, addr := serve(t)
	f.stubs["s"] = Stub{ID: "s"}
	f.answer = func(Call) []Event {
		return []Event{{Done: true, Result: []byte("evil"), Encoding: protocol.EncodingJSON}}
	}
	frames, err := invokeAll(t, dial(t, addr), "invoke", &beamwire.FunctionInvokeRequest{StubId: "s", Args: []byte("x")})
	if err != nil || len(frames) == 0 {
		t.Fatal(frames, err)
	}
	if last := frames[len(frames)-1]; len(last.GetResult()) > 0 || last.GetExitCode() != 1 || !strings.Contains(last.GetOutput(), "refused") {
		t.Errorf("an evil result that is called JSON: exit %d, result %q, output %q", last.GetExitCode(), last.GetResult(), last.GetOutput())
	}
}

// untouchable is a body that must not be read.
type untouchable struct {
	t    *testing.T
	what string
}

func (u untouchable) Read([]byte) (int, error) {
	u.t.Errorf("%s: a stranger's body was read", u.what)
	return 0, io.EOF
}

func (untouchable) Close() error { return nil }

// grpcPaths are all methods that are served but the health check.
func grpcPaths() []string {
	all := []string{"/image.ImageService/VerifyImageBuild", "/image.ImageService/BuildImage", "/function.FunctionService/FunctionInvoke"}
	for _, m := range []string{
		"Authorize", "HeadObject", "PutObjectStream", "CreateObject", "GetOrCreateStub", "DeployStub", "GetURL", "ListTasks", "StopTasks", "ListDeployments", "StopDeployment", "StartDeployment",
		"DeleteDeployment",
	} {
		all = append(all, "/gateway.GatewayService/"+m)
	}
	for _, m := range []string{"GetOrCreateVolume", "ListVolumes", "GetFileServiceInfo"} {
		all = append(all, "/volume.VolumeService/"+m)
	}
	return all
}

func TestNothingOfAStrangersBodyIsRead(t *testing.T) {
	s, _ := newServer(t)
	ask := func(path, content string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, untouchable{t, path})
		r.ProtoMajor, r.ContentLength = 2, 1<<30
		r.Header.Set("Content-Type", content)
		r.Header.Set("Grpc-Encoding", "gzip")
		r.Header.Set("Authorization", "Bearer nobody's")
		r.RemoteAddr = "192.0.2.1:1"
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	for _, path := range grpcPaths() {
		w := ask(path, "application/grpc")
		if code := grpcStatus(w); code != "16" && code != "8" {
			t.Errorf("%s: gRPC status %q, %v", path, code, w.Header())
		}
	}
	for _, path := range []string{
		"/api/v1/gateway/images/build", "/api/v1/gateway/images/verify-build", "/api/v1/gateway/objects", "/api/v1/gateway/stubs", "/api/v1/gateway/stubs/deploy", "/api/v1/gateway/tasks/stop",
		"/api/v1/gateway/volumes", "/function/square", "/function/id/s",
	} {
		if w := ask(path, "application/json"); w.Code != http.StatusUnauthorized && w.Code != http.StatusTooManyRequests {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func grpcStatus(w *httptest.ResponseRecorder) string {
	if s := w.Result().Trailer.Get("Grpc-Status"); s != "" {
		return s
	}
	return w.Header().Get("Grpc-Status")
}

// bomb is a gRPC message of zeros that inflates a thousandfold.
func bomb(t *testing.T, size int) []byte {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{1}, uint32(packed.Len())), packed.Bytes()...)
}

func TestMessagesThatUnpackToTooMuchAreRefused(t *testing.T) {
	s, _ := newServer(t)
	for path, size := range map[string]int{
		"/image.ImageService/BuildImage": 64 << 20, "/function.FunctionService/FunctionInvoke": 64 << 20, "/gateway.GatewayService/PutObjectStream": 64 << 20,
		"/gateway.GatewayService/GetOrCreateStub": 64 << 20, "/grpc.health.v1.Health/Check": 1 << 20,
	} {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, path, bytes.NewReader(bomb(t, size)))
		r.ProtoMajor = 2
		r.Header.Set("Content-Type", "application/grpc")
		r.Header.Set("Grpc-Encoding", "gzip")
		r.Header.Set("Authorization", "Bearer full")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if code := grpcStatus(w); code != "8" {
			t.Errorf("%s: gRPC status %q, want 8, resource exhausted", path, code)
		}
	}
}
