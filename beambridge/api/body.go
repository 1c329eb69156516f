package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// errTooSlow means that a body arrived below Config.BodyRate.
var errTooSlow = errors.New("api: the body arrived too slowly")

// body returns the request's body within a limit of bytes, of silence and of slowness.
func (s *Server) body(c *call, limit int64) (io.Reader, error) {
	if c.r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	now := time.Now()
	return &pacedBody{
		src: http.MaxBytesReader(c.w.ResponseWriter, c.r.Body, limit), ctl: c.w.ctl, head: c.w.Header(), idle: s.cfg.BodyIdle, rate: s.cfg.BodyRate, started: now,
	}, nil
}

// pacedBody is a body that may neither stand still nor trickle.
type pacedBody struct {
	src     io.Reader
	ctl     *http.ResponseController
	head    http.Header // of the answer
	idle    time.Duration
	rate    int64
	started time.Time
	bytes   int64
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	// A reader without deadlines, as in tests, has no network behind it.
	_ = b.ctl.SetReadDeadline(time.Now().Add(b.idle))
	n, err := b.src.Read(p)
	b.bytes += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		// The server keeps reading to notice a client that leaves; a deadline left over would look like one.
		_ = b.ctl.SetReadDeadline(time.Time{})
		return n, err
	case err != nil:
		b.abandon()
		return n, err
	}
	if took := time.Since(b.started); took > b.idle && float64(b.bytes) < float64(b.rate)*took.Seconds() {
		b.abandon()
		return n, errTooSlow
	}
	return n, nil
}

// abandon keeps the server from waiting for the rest of the body before it answers.
func (b *pacedBody) abandon() {
	_ = b.ctl.SetReadDeadline(time.Now())
	b.head.Set("Connection", "close")
}

// readBody reads a whole body and says what broke when it broke.
func (s *Server) readBody(c *call, limit int64) ([]byte, error) {
	src, err := s.body(c, limit)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if c.r.ContentLength > 0 {
		b.Grow(int(min(c.r.ContentLength, 1<<20)) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(src); err != nil {
		return nil, bodyError(err)
	}
	return b.Bytes(), nil
}

// bodyError tells a body that broke off from one that is too long or slow.
func bodyError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badRequest("", "send it again", "the body broke off")
	}
	return err
}

// decode reads a body of JSON into v; unknown fields are refused by name.
func (s *Server) decode(c *call, limit int64, v any) error {
	text, err := s.readBody(c, limit)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err = dec.Decode(v)
	if err == nil && dec.More() {
		return badRequest("", "send one JSON object", "something follows the JSON object")
	}
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return badRequest("", "send a JSON object", "the body is empty")
	case errors.As(err, &wrongType):
		return badRequest(wrongType.Field, "", "%s is a JSON %s, want %s", wrongType.Field, wrongType.Value, wrongType.Type)
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		field := strings.Trim(strings.TrimPrefix(err.Error(), "json: unknown field "), `"`)
		return badRequest(field, "", "%.80q is no field of this request", field)
	}
	return badRequest("", "send a JSON object", "the body cannot be read: %s", clip(fmt.Sprint(err), 200))
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
