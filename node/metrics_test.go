package node

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/node/gpu"
)

func TestMetricsTellWhatStatusCounts(t *testing.T) {
	s := Status{
		State: StatePaused, Slots: 4, Busy: 1, Done: 17, Failed: 2, Selling: Selling{Sellable: 1, Units: 3},
		Inventory: Inventory{GPUs: gpu.Inventory{
			Faults: map[string]uint64{"xid_79": 2, "proof": 1},
			Devices: []gpu.Device{
				{UUID: "GPU-secret", Health: gpu.Healthy}, {Health: gpu.Faulted}, {Health: gpu.Faulted}, {Health: gpu.Healthy, Slices: 3},
			},
		}},
	}
	var b bytes.Buffer
	WriteMetrics(&b, &s)
	for _, want := range []string{
		"# TYPE gridbeam_gpu_faults_total counter", `gridbeam_gpu_faults_total{reason="xid_79"} 2`, `gridbeam_gpu_faults_total{reason="proof"} 1`,
		`gridbeam_gpu_faults_total{reason="nvml"} 0`, `gridbeam_gpu_devices{health="faulted"} 2`, `gridbeam_gpu_devices{health="healthy"} 1`,
		`gridbeam_gpu_devices{health="untested"} 0`, "gridbeam_gpu_sellable_devices 1", "gridbeam_node_slots 4", "gridbeam_node_busy_slots 1", "gridbeam_node_chunks_total 17",
		"gridbeam_node_failed_chunks_total 2", `gridbeam_node_state{state="PAUSED"} 1`, `gridbeam_node_state{state="READY"} 0`,
	} {
		if strings.Count(b.String(), want+"\n") != 1 {
			t.Errorf("%q is not there once:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "secret") {
		t.Error("a device is named")
	}
	for line := range strings.Lines(b.String()) {
		if f := strings.Fields(line); strings.HasPrefix(line, "# ") == strings.HasPrefix(line, "gridbeam_") || len(f) < 2 {
			t.Errorf("no line of the format: %q", line)
		}
	}
}

func TestPrometheusIsAnsweredOnLoopbackAlone(t *testing.T) {
	for addr, bad := range map[string]bool{"": false, "127.0.0.1:0": false, "[::1]:9464": false, "0.0.0.0:9464": true, "192.168.1.2:9464": true, "localhost:9464": true, "127.0.0.1": true, "127.0.0.1:70000": true} {
		cfg := DefaultConfig("/data")
		cfg.Metrics = addr
		if err := cfg.Validate(); (err != nil) != bad || bad && !strings.Contains(err.Error(), "Metrics") {
			t.Errorf("%q: %v", addr, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, err := listenMetrics(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serveMetrics(ctx, l, func() Status { return Status{Slots: 3} }) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(host, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type") + "\n" + string(body)
	}
	if code, text := get("", "/metrics"); code != http.StatusOK || !strings.HasPrefix(text, "text/plain; version=0.0.4") || !strings.Contains(text, "gridbeam_node_slots 3\n") {
		t.Errorf("%d: %s", code, text)
	}
	if code, text := get("evil.example:80", "/metrics"); code != http.StatusForbidden || strings.Contains(text, "slots") {
		t.Errorf("a page that has made its name mean this machine is answered with %d: %s", code, text)
	}
	if code, _ := get("localhost:9464", "/metrics"); code != http.StatusOK {
		t.Errorf("who asks for localhost is answered with %d", code)
	}
	if code, _ := get("", "/status"); code != http.StatusNotFound {
		t.Errorf("another path is answered with %d", code)
	}
	if _, err := listenMetrics(ctx, l.Addr().String()); err == nil || !strings.Contains(err.Error(), "--metrics") {
		t.Errorf("a taken port: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
