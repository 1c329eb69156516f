package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// wait answers when the job is over, ?timeout= has passed, or with ?since= when its Seq is above that.
func (s *Server) wait(c *call) error {
	v, err := c.query("timeout", "since")
	if err != nil {
		return err
	}
	id, err := c.jobID()
	if err != nil {
		return err
	}
	timeout, err := s.duration(c, "timeout", min(30*time.Second, s.cfg.MaxWait))
	if err != nil {
		return err
	}
	since := uint64(math.MaxUint64)
	if len(v["since"]) > 0 {
		if since, err = seq(v["since"][0]); err != nil {
			return err
		}
	}
	status, err := s.waitFor(c, id, since, timeout)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, status)
}

func seq(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, badRequest("since", "use the seq of an earlier status", "%.40q is no number", text)
	}
	return n, nil
}

func (s *Server) waitFor(c *call, id protocol.JobID, since uint64, timeout time.Duration) (protocol.JobStatus, error) {
	ctx, cancel := s.waiting(c.r)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	return s.bridge.Jobs.WaitJob(ctx, c.who, id, since)
}

// events streams the job's status whenever it changes, at most once in Config.Every, until it is over: as
// server-sent events to who accepts those, else as ndjson.
func (s *Server) events(c *call) error {
	v, err := c.query("since")
	if err != nil {
		return err
	}
	id, err := c.jobID()
	if err != nil {
		return err
	}
	since := uint64(0)
	if last := c.r.Header.Get("Last-Event-ID"); last != "" { // what a browser sends when it comes back
		v["since"] = []string{last}
	}
	if len(v["since"]) > 0 {
		if since, err = seq(v["since"][0]); err != nil {
			return err
		}
	}
	status, err := s.bridge.Jobs.Job(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	ctx, cancel := s.waiting(c.r)
	defer cancel()
	out := newStream(c.w, strings.Contains(c.r.Header.Get("Accept"), "text/event-stream"))
	if err := out.begin(); err != nil {
		return nil // the client has gone
	}
	sent := status.Seq > since || status.State.Over()
	if sent && out.send(strconv.FormatUint(status.Seq, 10), status) != nil {
		return nil
	}
	for !status.State.Over() && ctx.Err() == nil {
		pause(ctx, s.cfg.Every)
		beat, stop := context.WithTimeout(ctx, s.cfg.Beat)
		next, err := s.bridge.Jobs.WaitJob(beat, c.who, id, max(status.Seq, since))
		stop()
		switch {
		case err != nil && ctx.Err() == nil:
			out.fail(s.wireError(c, err))
			return nil
		case err != nil:
			return nil
		case next.Seq > max(status.Seq, since) || next.State.Over():
			err = out.send(strconv.FormatUint(next.Seq, 10), next)
		default:
			err = out.beat()
		}
		if err != nil {
			return nil // the client has gone
		}
		status = next
	}
	return nil
}

// pause waits for a duration or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// stream writes messages one by one.
type stream struct {
	sse bool

	mu   sync.Mutex // a stream may beat while its source writes
	w    *answer
	last time.Time // of the last write
}

func newStream(w *answer, sse bool) *stream { return &stream{sse: sse, w: w} }

func (o *stream) begin() error {
	kind := "application/x-ndjson"
	if o.sse {
		kind = "text/event-stream"
	}
	o.w.Header().Set("Content-Type", kind)
	o.w.Header().Set("X-Accel-Buffering", "no") // proxies would hold lines back
	o.w.WriteHeader(http.StatusOK)
	return o.w.flush()
}

func (o *stream) write(b []byte, flush bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = time.Now()
	if _, err := o.w.Write(b); err != nil || !flush {
		return err
	}
	return o.w.flush()
}

// send writes one message and flushes it.
func (o *stream) send(id string, v any) error {
	b, err := o.frame(id, v)
	if err != nil {
		return err
	}
	return o.write(b, true)
}

func (o *stream) frame(id string, v any) ([]byte, error) {
	var b bytes.Buffer
	switch {
	case o.sse && id == "": // not to be resumed from
		b.WriteString("event: error\ndata: ")
	case o.sse:
		fmt.Fprintf(&b, "id: %s\ndata: ", id)
	}
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a message: %w", err)
	}
	if o.sse {
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

// beat says that the stream lives.
func (o *stream) beat() error {
	if o.sse {
		return o.write([]byte(":\n\n"), true)
	}
	return o.write([]byte("\n"), true)
}

// fail ends the stream with an error.
func (o *stream) fail(e *protocol.APIError) {
	_ = o.send("", protocol.StreamEnd{Error: e}) // a client that left hears nothing
}

// logs streams the job's log lines as ndjson; with ?follow=1 until it is over.
func (s *Server) logs(c *call) error {
	v, err := c.query("follow")
	if err != nil {
		return err
	}
	id, err := c.jobID()
	if err != nil {
		return err
	}
	follow := len(v["follow"]) > 0 && v["follow"][0] != "0"
	if _, err := s.bridge.Jobs.Job(c.r.Context(), c.who, id); err != nil {
		return err // an answer of its own, before the stream's begins
	}
	ctx, cancel := s.waiting(c.r)
	defer cancel()
	out := newStream(c.w, false)
	if err := out.begin(); err != nil {
		return nil // the client has gone
	}
	var beats sync.WaitGroup
	beats.Go(func() { out.beats(ctx, cancel, s.cfg.Beat) })
	gone := false
	err = s.bridge.Outcomes.JobLogs(ctx, c.who, id, follow, func(l protocol.LogLine) error {
		b, err := out.frame("", l)
		if err == nil {
			err = out.write(b, follow)
		}
		gone = gone || err != nil
		return err
	})
	ended := ctx.Err() != nil
	cancel()
	beats.Wait()
	if err != nil && !gone && !ended {
		out.fail(s.wireError(c, err))
	}
	return nil
}

// beats keeps a silent stream alive and ends it when the client has gone.
func (o *stream) beats(ctx context.Context, gone func(), every time.Duration) {
	for {
		pause(ctx, every)
		if ctx.Err() != nil {
			return
		}
		o.mu.Lock()
		silent := time.Since(o.last) >= every
		o.mu.Unlock()
		if silent && o.beat() != nil {
			gone()
			return
		}
	}
}

// results streams the outputs as tar. What fails on the way cuts the stream off, so that nobody takes half of
// it for the whole.
func (s *Server) results(c *call) error {
	id, err := c.jobID()
	if err != nil {
		return err
	}
	fsys, root, err := s.bridge.Outcomes.JobResults(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	if closer, ok := fsys.(io.Closer); ok {
		defer func() { _ = closer.Close() }() // only read
	}
	c.w.Header().Set("Content-Type", "application/x-tar")
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+id.String()+`.tar"`)
	c.w.Header().Set("Gridbeam-Root", root)
	return protocol.PackTree(&endsWith{ended: c.r.Context().Err, w: c.w}, fsys, nil)
}

// endsWith is a writer that ends with a context: a client that left is not read volumes for.
type endsWith struct {
	ended func() error
	w     io.Writer
}

// Write implements io.Writer.
func (e *endsWith) Write(b []byte) (int, error) {
	if err := e.ended(); err != nil {
		return 0, err
	}
	return e.w.Write(b)
}
