package beamapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

const (
	evilPickle = "cos\nsystem\n(Vtrue\ntR."
	goodPickle = "\x80\x04]\x94K\x01a."
)

// Results of deployments are asked for by REST; the Python client unpickles what stands under the key base64.
func TestNoPickleLeavesByRESTThatTheGateRefuses(t *testing.T) {
	f, addr := serve(t, func(c *Config) { c.Gate = DefaultConfig().Gate })
	f.stubs["stub-app:f"] = Stub{ID: "stub-app:f", Type: "function/deployment"}
	f.active = true
	hidden := base64.StdEncoding.EncodeToString([]byte(evilPickle))
	for _, x := range []struct {
		name     string
		result   string
		encoding protocol.Encoding
		want     string // of failure_reason; empty: the result is handed out
	}{
		{"a hostile pickle", evilPickle, protocol.EncodingPickle, "os.system"},
		{"one that its node calls JSON", evilPickle, protocol.EncodingJSON, "os.system"},
		{"one of no encoding", evilPickle, "", "os.system"},
		{"one inside JSON", `{"base64":"` + hidden + `"}`, protocol.EncodingJSON, "base64"},
		{"one inside JSON, escaped", `{"x":1,"b\u0061se64":"` + hidden + `"}`, protocol.EncodingJSON, "base64"},
		{"one inside JSON, twice", `{"base64":1,"base64":"` + hidden + `"}`, protocol.EncodingJSON, "base64"},
		{"one that is too large", "\x80\x04B\xff\xff\xff\x00" + strings.Repeat("x", 1<<24-1) + ".", protocol.EncodingPickle, "at most"},
		{"a good pickle", goodPickle, protocol.EncodingPickle, ""},
		{"good JSON", `{"a":[1]}`, protocol.EncodingJSON, ""},
	} {
		if code, body := ask(t, "POST", "http://"+addr+"/function/square", "invoke", `{}`); code != 200 || !strings.Contains(body, `"task_id":"t"`) {
			t.Fatalf("%d %s", code, body)
		}
		f.task = &Task{ID: "t", Status: StatusComplete, StubID: "stub-app:f", Result: []byte(x.result), Encoding: x.encoding}
		for _, path := range []string{"/api/v1/task/ws/t", "/api/v1/task/ws/t/subscribe", "/api/v1/task/ws", "/api/v1/gateway/tasks"} {
			code, body := ask(t, "GET", "http://"+addr+path, "invoke", "")
			if code != 200 {
				t.Errorf("%s, %s: %d", x.name, path, code)
			}
			if x.want != "" && (strings.Contains(body, hidden) || strings.Contains(body, `"base64":`)) {
				t.Errorf("%s leaves by %s: %.300s", x.name, path, body)
			}
			if !strings.HasPrefix(path, "/api/v1/task/ws/t") {
				continue
			}
			body = strings.TrimSpace(strings.TrimPrefix(body, "event: status\ndata: "))
			var got struct {
				Status string          `json:"status"`
				Reason string          `json:"failure_reason"`
				Result json.RawMessage `json:"result"`
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatal(err)
			}
			switch {
			case x.want == "" && (got.Status != "COMPLETE" || got.Reason != "" || string(got.Result) == "null"):
				t.Errorf("%s by %s: %s", x.name, path, body)
			case x.want != "" && (got.Status != "ERROR" || !strings.Contains(got.Reason, x.want) || string(got.Result) != "null"):
				t.Errorf("%s by %s: %.300s", x.name, path, body)
			}
		}
	}
}

// uploadAddress asks for one.
func uploadAddress(t *testing.T, addr, hash, name string) *url.URL {
	t.Helper()
	_, body := ask(t, "POST", "http://"+addr+"/api/v1/gateway/objects", "full", `{"hash":"`+hash+`","objectMetadata":{"name":"`+name+`"}}`)
	var got struct {
		PresignedURL string `json:"presignedUrl"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err, body)
	}
	u, err := url.Parse(got.PresignedURL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUploadsAddressIsGoodForOneObjectOfOneToken(t *testing.T) {
	var kept []string
	f, addr := serve(t)
	f.took = func(who Principal, hash, name string) {
		kept = append(kept, who.Workspace+" "+who.TokenID+" "+hash+" "+name)
	}
	hash, other := strings.Repeat("c", 64), strings.Repeat("d", 64)
	u := uploadAddress(t, addr, hash, "n")
	changed := func(key, value string) *url.URL {
		c := *u
		q := c.Query()
		q.Set(key, value)
		c.RawQuery = q.Encode()
		return &c
	}
	moved := *u
	moved.Path = strings.Replace(u.Path, hash, other, 1)
	for what, u := range map[string]*url.URL{
		"another object": &moved, "another workspace": changed("workspace", "other"), "another token": changed("token", "id-of-admin"), "a later end": changed("until", "99999999999"),
		"another name": changed("name", "m"), "no end": changed("until", ""), "no signature": changed("signature", ""),
		"what is next moved into the name": changed("name", "n1:9"),
	} {
		if code, text := ask(t, "PUT", u.String(), "", "bytes"); code != 403 {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	if len(kept) != 0 {
		t.Errorf("kept %q", kept)
	}
	if code, text := ask(t, "PUT", u.String(), "", "bytes"); code != 200 || len(kept) != 1 || kept[0] != "ws id-of-full "+hash+" n" {
		t.Errorf("%d %s, kept %q", code, text, kept)
	}
}

func TestUploadsAddressExpires(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	f, addr := serve(t, func(c *Config) { c.Now = func() time.Time { return now } })
	hash := strings.Repeat("c", 64)
	u := uploadAddress(t, addr, hash, "n").String()
	now = now.Add(uploadFor)
	if code, text := ask(t, "PUT", u, "", "in time"); code != 200 || string(f.objects[hash]) != "in time" {
		t.Errorf("at its last second: %d %s", code, text)
	}
	now = now.Add(time.Second)
	if code, text := ask(t, "PUT", u, "", "late"); code != 403 || string(f.objects[hash]) != "in time" {
		t.Errorf("a second later: %d %s", code, text)
	}
}

func TestUploadsAddressEndsWithItsToken(t *testing.T) {
	f, addr := serve(t)
	hash := strings.Repeat("c", 64)
	u := uploadAddress(t, addr, hash, "n").String()
	f.revoked = true
	if code, text := ask(t, "PUT", u, "", "bytes"); code != 403 || !strings.Contains(text, "revoked") || f.objects[hash] != nil {
		t.Errorf("after its token was revoked: %d %s", code, text)
	}
}

func TestATokenThatWasGoodIsNotLookedAtForEver(t *testing.T) {
	now := time.Unix(1000, 0)
	s, _ := newServer(t, func(c *Config) { c.Now = func() time.Time { return now } })
	from := origin("192.0.2.1:1")
	good := sha256.Sum256([]byte("good"))
	s.noteGood(good)
	bar := func() {
		for i := range s.cfg.BadTokens + 1 {
			s.noteBad(from, sha256.Sum256([]byte{byte(i)}))
		}
	}
	for _, x := range []struct {
		after time.Duration
		want  bool
	}{{0, false}, {goodFor - time.Second, false}, {goodFor, true}} {
		now = time.Unix(1000, 0).Add(x.after)
		bar()
		if got := s.barred(from, good); got != x.want {
			t.Errorf("%s after it was good: barred %v", x.after, got)
		}
	}
	if s.barred(netip.MustParsePrefix("192.0.2.2/32"), good) {
		t.Error("another address is barred")
	}
	now = now.Add(time.Minute)
	if s.barred(from, good) {
		t.Error("an address is barred for more than a minute")
	}
}

// grpcBody is a message of so many bytes behind its head, an unknown field that every message takes.
func grpcBody(size int) io.Reader {
	head := []byte{0x82, 0x7d} // field 2000, bytes
	message := binary.AppendUvarint(head, uint64(size-6))
	message = append(message, make([]byte, size-len(message))...)
	return bytes.NewReader(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...))
}

func TestEachMessageHasItsBound(t *testing.T) {
	s, _ := newServer(t)
	for _, path := range grpcPaths() {
		sizes := map[int]bool{maxMessage + 1: false}
		switch path[strings.LastIndex(path, "/")+1:] {
		case "VerifyImageBuild", "FunctionInvoke", "PutObjectStream", "BuildImage": // one of each kind of method
			sizes[maxMessage] = true
		}
		for size, want := range sizes {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, grpcBody(size))
			r.ProtoMajor = 2
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Authorization", "Bearer full")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if code := grpcStatus(w); (code != "8") != want {
				t.Errorf("%s with %d bytes: gRPC status %q %s", path, size, code, w.Header().Get("Grpc-Message"))
			}
		}
	}
}

func TestEachBodyHasItsBound(t *testing.T) {
	s, f := newServer(t)
	f.stubs["s"] = Stub{ID: "s"}
	f.active = true
	for _, x := range []struct {
		method, path string
		bound        int
		ok, over     int
	}{
		{"POST", "/api/v1/gateway/images/verify-build", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/images/build", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/objects", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/stubs", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/stubs/deploy", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/tasks/stop", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/volumes", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/deployments/d/stop", maxJSON, 200, 429},
		{"POST", "/api/v1/gateway/deployments/d/start", maxJSON, 200, 429},
		{"POST", "/function/square", maxArgs, 200, 400},
		{"POST", "/function/id/s", maxArgs, 200, 400},
		{"DELETE", "/api/v1/task/ws", 1 << 20, 200, 400},
	} {
		for size, want := range map[int]int{x.bound: x.ok, x.bound + 1: x.over} {
			body := []byte(`{"ids":["t"],"x":"`)
			body = append(body, bytes.Repeat([]byte("y"), size-len(body)-2)...)
			body = append(body, `"}`...)
			r := httptest.NewRequestWithContext(t.Context(), x.method, x.path, bytes.NewReader(body))
			r.Header.Set("Authorization", "Bearer full")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s %s with %d bytes: %d, want %d: %.200s", x.method, x.path, size, w.Code, want, w.Body)
			}
		}
	}
}

func TestHeadersHaveTheirBound(t *testing.T) {
	_, addr := serve(t)
	for n, want := range map[int]int{maxHeader - 4096: 200, maxHeader + 8192: 431} { // Go adds 4 KiB of slop
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/api/v1/health", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Long", strings.Repeat("x", n))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("headers of %d bytes: %d, want %d", n, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
