package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// errEnded is a stream that its source ended in order.
var errEnded = errors.New("client: the stream has ended")

// maxLine bounds one message of a stream in bytes.
const maxLine = 16 << 20

// stream reads an ndjson stream message by message until it ends (errEnded), each fails, or nothing, not even a
// beat, comes for Config.Silence.
func stream[T any](ctx context.Context, c *Client, r request, each func(T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(c.cfg.Silence, func() { cancel(errSilent) })
	defer silent.Stop()
	resp, err := c.send(ctx, r)
	if err != nil {
		return heard(ctx, err, c)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	lines := bufio.NewScanner(&beating{resp.Body, silent, c.cfg.Silence})
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue // a beat
		}
		var end protocol.StreamEnd
		if bytes.HasPrefix(line, []byte(`{"error":`)) && json.Unmarshal(line, &end) == nil && end.Error != nil && end.Error.Code != "" {
			return &Error{APIError: *end.Error}
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return fmt.Errorf("%w: %s streams something else than expected: %w", ErrNotBridge, c.cfg.URL, err)
		}
		if err := each(v); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return heard(ctx, c.broken(ctx, err), c)
	}
	return errEnded
}

// errSilent is why a stream's context ends when it is silent.
var errSilent = errors.New("nothing was heard for too long")

// heard turns the end of a silent stream's context into what it means.
func heard(ctx context.Context, err error, c *Client) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("%w: from %s: %w", ErrBroken, c.cfg.URL, errSilent)
	}
	return err
}

// beating is a body that keeps a timer from going off while it is read.
type beating struct {
	io.Reader
	timer *time.Timer
	every time.Duration
}

// Read implements io.Reader.
func (b *beating) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 {
		b.timer.Reset(b.every)
	}
	return n, err
}
