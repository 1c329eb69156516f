package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/gridbeam/gridbeam/node/gpu"
)

// loopback says why an address is not one of this machine alone, with a port; empty when it is.
func loopback(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return "want a loopback address such as 127.0.0.1:9464"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		return "want a port of 0..65535"
	}
	return ""
}

// listenMetrics listens where Prometheus asks.
func listenMetrics(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for Prometheus: %w; name another address with --metrics", err)
	}
	return l, nil
}

// serveMetrics answers Prometheus until ctx ends.
func serveMetrics(ctx context.Context, l net.Listener, status func() Status) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		if loopback(r.Host) != "" && host != "localhost" { // a page in the owner's browser that has made its name mean this machine
			http.Error(w, "ask by the loopback address", http.StatusForbidden)
			return
		}
		st := status()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		WriteMetrics(w, &st)
	})
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	ended := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer ended()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answering Prometheus: %w", err)
	}
	return nil
}

// WriteMetrics writes what of a node's status is counted, in Prometheus's text format 0.0.4. No label names a peer, a job or
// a device. Errors of w are its owner's to notice.
func WriteMetrics(w io.Writer, s *Status) {
	family := func(name, kind, help string) {
		_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	value := func(name, labels string, v uint64) { _, _ = fmt.Fprintf(w, "%s%s %d\n", name, labels, v) }
	one := func(name, kind, help string, v uint64) {
		family(name, kind, help)
		value(name, "", v)
	}
	gpus := &s.Inventory.GPUs
	const faults = "gridbeam_gpu_faults_total"
	family(faults, "counter", "How often GPUs or MIG slices became faulted since the start.")
	all := map[string]uint64{"nvml": 0, "proof": 0} // there from the start, so that a first one is a change
	maps.Copy(all, gpus.Faults)
	for _, reason := range slices.Sorted(maps.Keys(all)) {
		value(faults, fmt.Sprintf("{reason=%q}", reason), all[reason])
	}
	const devices = "gridbeam_gpu_devices"
	family(devices, "gauge", "GPUs and MIG slices by health; a GPU that is cut into slices is not one.")
	states := map[gpu.Health]uint64{}
	for _, h := range []gpu.Health{gpu.Healthy, gpu.Untested, gpu.Suspect, gpu.Faulted, gpu.Recovering, gpu.Locked, gpu.Foreign, gpu.Absent} {
		states[h] = 0
	}
	for i := range gpus.Devices {
		if d := &gpus.Devices[i]; d.Slices == 0 {
			states[d.Health]++
		}
	}
	for _, h := range slices.Sorted(maps.Keys(states)) {
		value(devices, fmt.Sprintf("{health=%q}", h), states[h])
	}
	one("gridbeam_gpu_sellable_devices", "gauge", "GPUs that jobs can get.", uint64(max(0, s.Selling.Sellable)))
	one("gridbeam_node_slots", "gauge", "Chunks that run at once.", uint64(max(0, s.Slots)))
	one("gridbeam_node_busy_slots", "gauge", "Slots that have a chunk.", uint64(max(0, s.Busy)))
	one("gridbeam_node_chunks_total", "counter", "Chunks that were handed over since the start.", s.Done)
	one("gridbeam_node_failed_chunks_total", "counter", "Those among them that did not end well.", s.Failed)
	const state = "gridbeam_node_state"
	family(state, "gauge", "1 for the state that the node is in.")
	for _, x := range []State{StateStarting, StateReady, StateBusy, StateDraining, StatePaused, StateLeaving} {
		is := uint64(0)
		if s.State == x {
			is = 1
		}
		value(state, fmt.Sprintf("{state=%q}", x), is)
	}
}
