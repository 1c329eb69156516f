package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// ErrNotRunning means that no node answers on a data directory.
var ErrNotRunning = errors.New("node: no node runs here")

// Control speaks to a running node over its socket; it is what the commands of its owner use.
type Control struct {
	dir  string
	http http.Client
}

// Dial returns a Control of the node that runs on a data directory; ErrNotRunning when there is none.
func Dial(ctx context.Context, dir string) (*Control, error) {
	c := &Control{dir: dir}
	c.http.Transport = &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, dir) },
		MaxIdleConns:    1,
		IdleConnTimeout: time.Second,
	}
	conn, err := dialSocket(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %s (%w); start one with gridbeam node run --data %s", ErrNotRunning, dir, err, dir)
	}
	return c, conn.Close()
}

// Close drops the connection.
func (c *Control) Close() { c.http.CloseIdleConnections() }

// Status tells where the node stands.
func (c *Control) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}

// Pause stops new work; what runs goes on. It survives restarts.
func (c *Control) Pause(ctx context.Context) error { return c.ask(ctx, "/pause", 0) }

// Resume undoes Pause and Drain.
func (c *Control) Resume(ctx context.Context) error { return c.ask(ctx, "/resume", 0) }

// Drain pauses, lets what runs end within the deadline, hands back what does not, and returns when the node
// holds nothing. It survives restarts: the node takes nothing until Resume.
func (c *Control) Drain(ctx context.Context, deadline time.Duration) error {
	return c.ask(ctx, "/drain", deadline)
}

// Stop drains and ends the node; it returns when the drain has ended.
func (c *Control) Stop(ctx context.Context, deadline time.Duration) error {
	return c.ask(ctx, "/stop", deadline)
}

// Measure measures the machine now and puts the figures into the node's record.
func (c *Control) Measure(ctx context.Context) (m Measured, err error) {
	return m, c.call(ctx, http.MethodPost, "/measure", controlRequest{}, &m)
}

// ClearGPU is the owner's word that the GPU with this UUID is good again.
func (c *Control) ClearGPU(ctx context.Context, uuid string) error {
	return c.call(ctx, http.MethodPost, "/gpu/clear", controlRequest{GPU: uuid}, nil)
}

type controlRequest struct {
	DeadlineMS int64  `json:"deadline_ms,omitempty"`
	GPU        string `json:"gpu,omitempty"`
}

type controlError struct {
	Error string `json:"error"`
}

func (c *Control) ask(ctx context.Context, path string, deadline time.Duration) error {
	return c.call(ctx, http.MethodPost, path, controlRequest{DeadlineMS: deadline.Milliseconds()}, nil)
}

func (c *Control) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the node: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: %s: %w", ErrNotRunning, c.dir, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("reading the node's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var e controlError
		if json.Unmarshal(text, &e) != nil || e.Error == "" {
			e.Error = resp.Status
		}
		return fmt.Errorf("node: %s", e.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("reading the node's answer: %w", err)
	}
	return nil
}

const socketName = "control.sock"

// socketPath returns a path of the socket that is short enough for a socket's address (108 bytes), and what
// holds it valid: an open descriptor of the directory.
func socketPath(dir string) (string, io.Closer, error) {
	path := filepath.Join(dir, socketName)
	if len(path) < 100 {
		return path, io.NopCloser(nil), nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), d, nil
}

func dialSocket(ctx context.Context, dir string) (net.Conn, error) {
	path, hold, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// listenSocket makes the socket, for its owner alone. The data directory is locked, so one that is there
// already is what a crash left.
func listenSocket(ctx context.Context, dir string) (net.Listener, error) {
	path, hold, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old control socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by its short name it could be another's by then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("closing the control socket to others: %w", err), l.Close())
	}
	return l, nil
}

// owner is what the socket lets the owner do.
type owner interface {
	Status() Status
	Pause() error
	Resume() error
	Drain(ctx context.Context, deadline time.Duration) error
	Stop(ctx context.Context, deadline time.Duration) error
	Measure(ctx context.Context) (Measured, error)
	ClearGPU(uuid string) error
}

// serveControl answers on the socket until ctx ends.
func serveControl(ctx context.Context, l net.Listener, o owner) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, o.Status(), nil) })
	on := func(path string, f func(ctx context.Context, req controlRequest) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var req controlRequest
			if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&req); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			v, err := f(r.Context(), req)
			answer(w, v, err)
		})
	}
	do := func(path string, f func(ctx context.Context, deadline time.Duration) error) {
		on(path, func(ctx context.Context, req controlRequest) (any, error) {
			return struct{}{}, f(ctx, time.Duration(req.DeadlineMS)*time.Millisecond)
		})
	}
	on("/measure", func(ctx context.Context, _ controlRequest) (any, error) { return o.Measure(ctx) })
	on("/gpu/clear", func(_ context.Context, req controlRequest) (any, error) { return struct{}{}, o.ClearGPU(req.GPU) })
	do("/pause", func(context.Context, time.Duration) error { return o.Pause() })
	do("/resume", func(context.Context, time.Duration) error { return o.Resume() })
	do("/drain", o.Drain)
	do("/stop", o.Stop)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	ended := context.AfterFunc(ctx, func() {
		// Answers under way, of stop above all, get a moment.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Shutdown(grace)
		_ = s.Close()
	})
	defer ended()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the control socket: %w", err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		v = controlError{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the owner has hung up
}
