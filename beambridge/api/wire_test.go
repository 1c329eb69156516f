package api

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

// listen serves the API on loopback until the test ends.
func listen(t *testing.T, s *Server) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln, s, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + ln.Addr().String() + protocol.APIPrefix
}

// get opens a request that stays open.
func get(t *testing.T, url, token string, header ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func statusOf(t *testing.T, body io.Reader) (st protocol.JobStatus) {
	t.Helper()
	if err := json.NewDecoder(body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestWaitsEndWithTheJobTheChangeOrTheTime(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "jobs")
	url := listen(t, s) + "/jobs/" + id.String() + "/wait"

	if st := statusOf(t, get(t, url+"?timeout=1ms", "read").Body); st.State != "pending" {
		t.Errorf("after the time it is %s", st.State)
	}
	type answer struct{ st protocol.JobStatus }
	changed, over := make(chan answer, 1), make(chan answer, 1)
	go func() { changed <- answer{statusOf(t, get(t, url+"?timeout=20&since=1", "read").Body)} }()
	go func() { over <- answer{statusOf(t, get(t, url, "read").Body)} }()
	f.waited(3)
	f.change(id, func(j *protocol.JobStatus) { j.State = "running" })
	if a := <-changed; a.st.State != "running" || a.st.Seq != 2 {
		t.Errorf("the change is %+v", a.st)
	}
	select {
	case a := <-over:
		t.Fatalf("a wait for the end ended at %s", a.st.State)
	default:
	}
	f.change(id, func(j *protocol.JobStatus) { j.State = "done" })
	if a := <-over; a.st.State != "done" {
		t.Errorf("the end is %+v", a.st)
	}
}

func TestSubmissionsThatWaitAnswerAtTheEnd(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	go func() {
		f.waited(1)
		f.mu.Lock()
		var id protocol.JobID
		for id = range f.jobs {
		}
		f.mu.Unlock()
		f.change(id, func(j *protocol.JobStatus) { j.State = "done" })
	}()
	w := ask(s, "jobs", "POST", "/jobs?wait=30s", goodSubmit())
	st := statusOf(t, w.Body)
	if w.Code != 201 || st.State != "done" || w.Header().Get("Location") != protocol.APIPrefix+"/jobs/"+st.ID.String() {
		t.Errorf("%d %+v at %s", w.Code, st, w.Header().Get("Location"))
	}
	if st := statusOf(t, ask(s, "jobs", "POST", "/jobs?wait=1ms", goodSubmit()).Body); st.State != "pending" {
		t.Errorf("a job that goes on is %s", st.State)
	}
}

func TestTheSameRequestIDIsTheSameJob(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	body := `{"job":` + goodJob + `,"module_cid":"` + rootCID + `","request_id":"r1"}`
	a := statusOf(t, ask(s, "jobs/ann", "POST", "/jobs", strings.NewReader(body)).Body)
	b := statusOf(t, ask(s, "jobs/ann", "POST", "/jobs", strings.NewReader(body)).Body)
	c := statusOf(t, ask(s, "jobs/eve", "POST", "/jobs", strings.NewReader(body)).Body)
	if a.ID != b.ID || a.ID == c.ID {
		t.Errorf("jobs %s, %s, and somebody else's %s", a.ID, b.ID, c.ID)
	}
}

func TestShutdownEndsWaitsAndStreamsInOrder(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "jobs")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln, s, nil) }()
	url := "http://" + ln.Addr().String() + protocol.APIPrefix + "/jobs/" + id.String()
	bodies := make(chan string, 3)
	for _, path := range []string{"/wait", "/events", "/logs?follow=1"} {
		resp := make(chan *http.Response, 1)
		go func() {
			r := get(t, url+path, "read")
			resp <- r
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Errorf("%s ends with %v", path, err)
			}
			bodies <- path + " " + string(b)
		}()
		if path != "/wait" {
			<-resp // a stream's headers come at once
		}
	}
	f.waited(2)
	began := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > shutdownGrace/2 {
		t.Errorf("the shutdown took %s", took)
	}
	for range 3 {
		if b := <-bodies; strings.HasPrefix(b, "/wait") && !strings.Contains(b, `"state":"pending"`) {
			t.Errorf("the wait answered %s", b)
		}
	}
}

func TestEventsTellEveryStateAndEndWithTheJob(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "jobs")
	url := listen(t, s) + "/jobs/" + id.String() + "/events"
	lines := bufio.NewScanner(get(t, url, "read").Body)
	var seen []string
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		st := statusOf(t, strings.NewReader(lines.Text()))
		seen = append(seen, string(st.State))
		next := map[protocol.JobState]protocol.JobState{"pending": "running", "running": "done"}[st.State]
		if next != "" {
			f.change(id, func(j *protocol.JobStatus) { j.State = next })
		}
	}
	if strings.Join(seen, " ") != "pending running done" {
		t.Errorf("told of %v", seen)
	}
	// Server-sent events of a job that is over; a browser that comes back is not told twice.
	resp := get(t, url, "read", "Accept", "text/event-stream")
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.Header.Get("Content-Type") != "text/event-stream" || !strings.HasPrefix(string(b), "id: 3\ndata: {") || !strings.HasSuffix(string(b), "}\n\n") {
		t.Errorf("%s %q (%v)", resp.Header.Get("Content-Type"), b, err)
	}
}

func TestStreamsBeatWhileNothingHappens(t *testing.T) {
	cfg := testConfig(t)
	cfg.Beat = 10 * time.Millisecond
	f := newFake()
	s := newServer(t, cfg, f)
	id := submitted(t, s, "jobs")
	base := listen(t, s) + "/jobs/" + id.String()
	for path, accept := range map[string]string{"/events": "", "/events?since=1": "text/event-stream", "/logs?follow=1": ""} {
		r := bufio.NewReader(get(t, base+path, "read", "Accept", accept).Body)
		for beats := 0; beats < 2; {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if line == "\n" || line == ":\n" {
				beats++
			}
		}
	}
}

func TestStreamsThatFailSayWhy(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "jobs")
	f.lines = []protocol.LogLine{{Text: "one <&>"}, {Text: "two"}}
	b := f.bridge()
	b.Outcomes = failingLogs{f}
	s2, err := New(testConfig(t), b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := ask(s2, "read", "GET", "/jobs/"+id.String()+"/logs", nil)
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
	var end protocol.StreamEnd
	if len(lines) != 3 || json.Unmarshal([]byte(lines[2]), &end) != nil || end.Error == nil || end.Error.Code != protocol.CodeUnavailable {
		t.Errorf("the stream is %q", lines)
	}
	if !strings.Contains(lines[0], "one <&>") {
		t.Errorf("the first line is %s", lines[0])
	}
}

type failingLogs struct{ *fakeBridge }

func (f failingLogs) JobLogs(ctx context.Context, who Principal, id protocol.JobID, follow bool, line func(protocol.LogLine) error) error {
	if err := f.fakeBridge.JobLogs(ctx, who, id, follow, line); err != nil {
		return err
	}
	return &protocol.APIError{Code: protocol.CodeUnavailable, Text: "the node has gone"}
}

// tornFS fails in the middle of its second file.
type tornFS struct{ fstest.MapFS }

type tornFile struct {
	fs.File
	left int
}

func (f tornFS) Open(name string) (fs.File, error) {
	file, err := f.MapFS.Open(name)
	if name == "b" && err == nil {
		return &tornFile{file, 10}, nil
	}
	return file, err
}

func (f *tornFile) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, errors.New("the holder has gone")
	}
	n := min(f.left, len(p))
	f.left -= n
	return f.File.Read(p[:n])
}

func TestResultsAreWholeOrCutOff(t *testing.T) {
	f := newFake()
	s := newServer(t, testConfig(t), f)
	id := submitted(t, s, "jobs")
	url := listen(t, s) + "/jobs/" + id.String() + "/results"
	resp := get(t, url, "read")
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := protocol.UnpackTree(resp.Body, root, protocol.TreeLimits{}, nil); err != nil {
		t.Error(err)
	}
	if b, err := root.ReadFile("a"); string(b) != "1" || resp.Header.Get("Gridbeam-Root") != rootCID || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Errorf("a is %q (%v), headers %v", b, err, resp.Header)
	}
	f.results = tornFS{fstest.MapFS{"a": {Data: bytes.Repeat([]byte("x"), 100_000)}, "b": {Data: bytes.Repeat([]byte("y"), 100)}}}
	resp = get(t, url, "read")
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("half of the results pass for the whole: %d bytes", len(b))
	}
}

func TestModulesAreRefusedByTheirFirstBytes(t *testing.T) {
	cfg := testConfig(t)
	cfg.ModuleBytes = 1000
	f := newFake()
	s := newServer(t, cfg, f)
	for body, says := range map[string]string{
		"":                                     "empty",
		"\x7fELF\x02\x01\x01\x00":              "GOOS=wasip1",
		"\x00asm\x0d\x00\x01\x00":              "component",
		"\x00asm\x02\x00\x00\x00":              "version other than 1",
		"(module)":                             "wat2wasm",
		"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00": "compressed",
		"hello":                                "does not begin",
		"\x00as":                               "does not begin",
	} {
		e := wantError(t, ask(s, "jobs", "POST", "/modules", strings.NewReader(body)), http.StatusUnprocessableEntity, protocol.CodeBadModule)
		if !strings.Contains(e.Text, says) || !strings.HasPrefix(e.Text, protocol.ReasonBadModule.Text()) {
			t.Errorf("%q: %s", body, e.Text)
		}
	}
	for _, r := range []io.Reader{bytes.NewReader(wasm(1001)), struct{ io.Reader }{bytes.NewReader(wasm(1001))}} {
		wantError(t, ask(s, "jobs", "POST", "/modules", r), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge)
	}
	w := ask(s, "jobs", "POST", "/modules", bytes.NewReader(wasm(1000)))
	if w.Code != 201 || f.files[ModuleFile] != string(wasm(1000)) || len(f.files) != 1 {
		t.Errorf("%d %s, kept %d files", w.Code, w.Body, len(f.files))
	}
	spoolIsEmpty(t, cfg)
}

func tarball(t *testing.T, names ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Typeflag: tar.TypeReg, Size: int64(len(n)), Mode: 0o600}
		if target, isLink := strings.CutPrefix(n, "->"); isLink {
			h = &tar.Header{Name: "link", Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = w.Write([]byte(n))
		}
	}
	_ = w.Close()
	return &b
}

func TestVolumesArriveWholeOrAreRefused(t *testing.T) {
	cfg := testConfig(t)
	cfg.VolumeBytes, cfg.VolumeEntries = 100, 5
	f := newFake()
	s := newServer(t, cfg, f)
	w := ask(s, "jobs", "PUT", "/volumes/digits", tarball(t, "a", "d/b", "->a"))
	if w.Code != 201 || f.files["a"] != "a" || f.files["d/b"] != "d/b" {
		t.Errorf("%d %s, kept %v", w.Code, w.Body, f.files)
	}
	f.files = nil
	for what, body := range map[string]io.Reader{
		"up": tarball(t, "../x"), "absolute": tarball(t, "/x"), "link out": tarball(t, "->/etc"), "no tar": strings.NewReader(strings.Repeat("x", 2000)),
		"cut off": io.LimitReader(tarball(t, strings.Repeat("x", 90)), 700),
	} {
		t.Run(what, func(t *testing.T) {
			wantError(t, ask(s, "jobs", "PUT", "/volumes/digits", body), http.StatusUnprocessableEntity, protocol.CodeBadTree)
		})
	}
	wantError(t, ask(s, "jobs", "PUT", "/volumes/digits", tarball(t, strings.Repeat("x", 60), strings.Repeat("y", 60))), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge)
	wantError(t, ask(s, "jobs", "PUT", "/volumes/digits", tarball(t, "1", "2", "3", "4", "5", "6")), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge)
	if f.files != nil {
		t.Errorf("the bridge was given %v", f.files)
	}
	spoolIsEmpty(t, cfg)
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	cfg := testConfig(t)
	s := newServer(t, cfg, newFake())
	if err := os.MkdirAll(filepath.Join(cfg.Spool, "upload-123", "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	spoolIsEmpty(t, cfg)
}

// TestBodiesThatTrickleAreCutOff speaks HTTP by hand: a client that sends a byte and waits.
func TestBodiesThatTrickleAreCutOff(t *testing.T) {
	cfg := testConfig(t)
	cfg.BodyIdle = 50 * time.Millisecond
	f := newFake()
	s := newServer(t, cfg, f)
	addr := strings.TrimSuffix(strings.TrimPrefix(listen(t, s), "http://"), protocol.APIPrefix)
	for what, feed := range map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"trickle": func(c net.Conn) {
			tick := time.NewTicker(5 * time.Millisecond) // 200 bytes a second, below the 1,024
			defer tick.Stop()
			for range 400 {
				<-tick.C
				if _, err := c.Write([]byte{' '}); err != nil {
					return
				}
			}
		},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer jobs\r\nContent-Length: 100000\r\n\r\n{", protocol.APIPrefix)
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			feed(conn)
		}()
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var e protocol.APIError
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != http.StatusRequestTimeout || e.Code != protocol.CodeTooSlow {
			t.Errorf("%s: %d %+v (%v)", what, resp.StatusCode, e, err)
		}
		_ = conn.Close()
		<-fed
	}
	// The deadline of one body is not the next request's.
	id := submitted(t, s, "jobs")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "POST %s/jobs/validate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer jobs\r\nContent-Length: 2\r\n\r\n{}", protocol.APIPrefix)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("%v %v", resp, err)
	} else if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s/jobs/%s/wait?timeout=200ms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer jobs\r\n\r\n", protocol.APIPrefix, id)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", resp, err)
	}
}

func TestUploadsWaitForTheirPlace(t *testing.T) {
	cfg := testConfig(t)
	cfg.Uploads, cfg.BodyIdle = 1, 30*time.Millisecond
	s := newServer(t, cfg, newFake())
	s.uploads <- struct{}{} // somebody else's
	wantError(t, ask(s, "jobs", "POST", "/modules", bytes.NewReader(wasm(10))), http.StatusServiceUnavailable, protocol.CodeUnavailable)
	<-s.uploads
	if w := ask(s, "jobs", "POST", "/modules", bytes.NewReader(wasm(10))); w.Code != 201 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type outside struct{ net.Listener }

func (outside) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1994} }

func TestTokensNeverCrossTheNetworkInPlain(t *testing.T) {
	s := newServer(t, testConfig(t), newFake())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), outside{ln}, s, nil); !errors.Is(err, ErrPlain) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

func TestTLSIsOfVersion13(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s := newServer(t, testConfig(t), newFake())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(ctx, ln, s, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	}()
	for _, c := range []struct {
		most uint16
		ok   bool
	}{{tls.VersionTLS13, true}, {tls.VersionTLS12, false}} {
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: pool, MaxVersion: c.most, MinVersion: tls.VersionTLS12})
		if (err == nil) != c.ok {
			t.Errorf("version %x: %v", c.most, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
