package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProfilesAreServedOnLoopbackAloneAndUntilTheCommandEnds(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:80", "localhost", "127.0.0.1"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"version", "--pprof", addr}, strings.NewReader(""), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "loopback") {
			t.Errorf("--pprof %s: exit code %d, %s", addr, code, errs.String())
		}
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := servePprof(ctx, addr); err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	get := func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/debug/pprof/goroutine?debug=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		return http.DefaultClient.Do(req)
	}
	resp, err := get()
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.Body.Close() != nil || !bytes.Contains(body, []byte("goroutine profile")) {
		t.Errorf("the profile is %.80s, %v", body, err)
	}
	cancel()
	for { // closing follows the end of the context
		resp, err := get()
		if err != nil {
			return
		}
		_ = resp.Body.Close()
	}
}
