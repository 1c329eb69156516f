package beambridge

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/protocol"
)

// benchCalls is how many calls wait at the bridge of these benchmarks: no node is there.
const benchCalls = 10_000

// waitingBridge is a bridge at which alice's calls wait, and their IDs.
func waitingBridge(b *testing.B) (bridge *Bridge, s Started, ids []string, token string) {
	b.Helper()
	bridge, s, end := realBridge(b, b.TempDir(), func(c *Config) { c.BeamListen = "127.0.0.1:0" })
	b.Cleanup(func() {
		if err := end(); err != nil {
			b.Error(err)
		}
	})
	made, err := bridge.MakeToken(b.Context(), api.Principal{User: "root", Scopes: []api.Scope{api.ScopeAdmin}}, protocol.TokenRequest{User: "alice", Scopes: []string{"jobs"}})
	if err != nil {
		b.Fatal(err)
	}
	st := benchStub(b, bridge)
	ids = make([]string, benchCalls)
	var g errgroup.Group
	g.SetLimit(256)
	for i := range ids {
		g.Go(func() error {
			r, err := bridge.Beam().Calls.Invoke(context.Background(), workspace("alice"), beamapi.Call{StubID: st, Args: fmt.Append(nil, i), Encoding: protocol.EncodingPickle, Headless: true})
			if err == nil {
				ids[i] = r.TaskID()
				r.Abandon()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return bridge, s, ids, made.Text
}

func benchStub(b *testing.B, bridge *Bridge) string {
	b.Helper()
	raw, hash := zipped(b, map[string]string{"app.py": "def f(x): return x"})
	return stubAt(b, bridge, workspace("alice"), raw, hash, nil)
}

func BenchmarkLookAtOneOf10000OpenCalls(b *testing.B) {
	bridge, _, ids, _ := waitingBridge(b)
	face, n := bridge.Beam().Calls, 0
	for b.Loop() {
		if _, err := face.Task(b.Context(), workspace("alice"), ids[n%len(ids)]); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

func BenchmarkListTenOf10000OpenCalls(b *testing.B) {
	bridge, _, _, _ := waitingBridge(b)
	face := bridge.Beam().Calls
	for b.Loop() {
		if l, _, err := face.Tasks(b.Context(), workspace("alice"), beamapi.TaskFilter{Limit: 10}); err != nil || len(l) != 10 {
			b.Fatal(len(l), err)
		}
	}
}

// BenchmarkHundredSubscribersOf10000OpenCalls says what the whole process computes in a second in which nothing happens.
func BenchmarkHundredSubscribersOf10000OpenCalls(b *testing.B) {
	_, s, ids, token := waitingBridge(b)
	ctx, stop := context.WithCancel(b.Context())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	var readers sync.WaitGroup
	for i := range 100 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Beam+"/api/v1/task/alice/"+ids[i*7]+"/subscribe", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
		readers.Go(func() {
			_, _ = io.Copy(io.Discard, resp.Body) // ends with ctx
			_ = resp.Body.Close()
		})
	}
	before, ops := cpuTime(b), 0
	for b.Loop() {
		<-time.After(time.Second)
		ops++
	}
	b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(ops), "cpu-ms/s")
	stop()
	readers.Wait()
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
