package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Validate asks the bridge what it would say to a job, without starting it.
func (c *Client) Validate(ctx context.Context, req protocol.SubmitRequest) (reply protocol.ValidateReply, err error) {
	req.ModuleCID = "" // it need not be there yet
	body, size, err := jsonBody(req)
	if err != nil {
		return reply, err
	}
	return reply, c.call(ctx, request{method: "POST", path: "/jobs/validate", body: body, size: size, kind: "application/json"}, &reply)
}

// Submit hands a job to the bridge, which has stored it when this returns. A request without RequestID gets one,
// so that repeating it over a broken connection makes no second job.
func (c *Client) Submit(ctx context.Context, req protocol.SubmitRequest) (protocol.JobStatus, error) {
	return c.submit(ctx, req, 0)
}

func (c *Client) submit(ctx context.Context, req protocol.SubmitRequest, wait time.Duration) (st protocol.JobStatus, err error) {
	if req.RequestID == "" {
		req.RequestID = rand.Text()
	}
	body, size, err := jsonBody(req)
	if err != nil {
		return st, err
	}
	r := request{method: "POST", path: "/jobs", body: body, size: size, kind: "application/json", slack: wait}
	if wait > 0 {
		r.query = url.Values{"wait": {wait.String()}}
	}
	return st, c.call(ctx, r, &st)
}

// longPoll is how long one request waits for the end of a job.
const longPoll = time.Minute

// SubmitAndWait submits a job and follows it to its end. Without changed a job that ends within a minute takes
// one round trip; changed, if not nil, is told of every status from the first on.
func (c *Client) SubmitAndWait(ctx context.Context, req protocol.SubmitRequest, changed func(protocol.JobStatus)) (protocol.JobStatus, error) {
	wait := longPoll
	if changed != nil {
		wait = 0
	}
	st, err := c.submit(ctx, req, wait)
	if err != nil || st.State.Over() {
		if err == nil && changed != nil {
			changed(st)
		}
		return st, err
	}
	return c.Wait(ctx, st.ID, changed)
}

// Wait follows a job to its end: done, failed or cancelled, none of which is an error here. When the bridge
// goes away meanwhile, it waits for Config.Patience for it to come back. changed, if not nil, is told of every
// change that is seen. It returns ctx's error, ErrNotConnected, or an *Error such as CodeNotFound.
func (c *Client) Wait(ctx context.Context, id protocol.JobID, changed func(protocol.JobStatus)) (protocol.JobStatus, error) {
	var (
		last  protocol.JobStatus
		heard = time.Now()
		pause = firstPause
	)
	for {
		asked := time.Now()
		st, err := c.follow(ctx, id, last.Seq, changed)
		switch {
		case err == nil && st.State.Over():
			return st, nil
		case ctx.Err() != nil:
			return last, ctx.Err()
		case err == nil:
			last, heard, pause = st, time.Now(), firstPause
			if time.Since(asked) > lastPause { // else the bridge shuts down: do not hurry it
				continue
			}
			pause = lastPause / 4
		default:
			if st.Seq > 0 { // the stream had begun
				last, heard, pause = st, time.Now(), firstPause
			}
			again, after := retriable(err)
			if !again || !c.met.Load() || time.Since(heard) > c.cfg.Patience {
				return last, err
			}
			pause = max(pause, after)
		}
		if !sleep(ctx, pause) {
			return last, ctx.Err()
		}
		pause = min(2*pause, lastPause)
	}
}

// follow waits once: by a long poll, or by the stream of changes when somebody wants to know of them. With an
// error it returns the last status that it saw.
func (c *Client) follow(ctx context.Context, id protocol.JobID, since uint64, changed func(protocol.JobStatus)) (st protocol.JobStatus, err error) {
	if changed == nil {
		r := request{method: "GET", path: "/jobs/" + id.String() + "/wait", query: url.Values{"timeout": {longPoll.String()}}, slack: longPoll, once: true}
		return st, c.call(ctx, r, &st)
	}
	r := request{method: "GET", path: "/jobs/" + id.String() + "/events", query: url.Values{"since": {strconv.FormatUint(since, 10)}}}
	err = stream(ctx, c, r, func(next protocol.JobStatus) error {
		st = next
		changed(next)
		return nil
	})
	if errors.Is(err, errEnded) {
		err = nil
	}
	return st, err
}

// Job returns how a job stands.
func (c *Client) Job(ctx context.Context, id protocol.JobID) (st protocol.JobStatus, err error) {
	return st, c.call(ctx, request{method: "GET", path: "/jobs/" + id.String()}, &st)
}

// JobQuery asks for jobs.
type JobQuery struct {
	// States are wanted; none is all.
	States []protocol.JobState
	// Limit is the most that is answered, up to 1,000; 0 is 100.
	Limit int
	// All asks for everybody's jobs; the token needs the scope admin.
	All bool
}

// Jobs returns jobs, the newest first.
func (c *Client) Jobs(ctx context.Context, q JobQuery) (list protocol.JobList, err error) {
	v := url.Values{}
	for _, s := range q.States {
		v.Add("state", string(s))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.All {
		v.Set("all", "1")
	}
	return list, c.call(ctx, request{method: "GET", path: "/jobs", query: v}, &list)
}

// Cancel ends a job for good; one that is over stays as it is.
func (c *Client) Cancel(ctx context.Context, id protocol.JobID) (st protocol.JobStatus, err error) {
	return st, c.call(ctx, request{method: "POST", path: "/jobs/" + id.String() + "/cancel"}, &st)
}

// Explain returns why a job has these nodes, predicted and actual.
func (c *Client) Explain(ctx context.Context, id protocol.JobID) (x protocol.Explain, err error) {
	return x, c.call(ctx, request{method: "GET", path: "/jobs/" + id.String() + "/explain"}, &x)
}

// Statement returns what a job used and cost.
func (c *Client) Statement(ctx context.Context, id protocol.JobID) (s protocol.Statement, err error) {
	return s, c.call(ctx, request{method: "GET", path: "/jobs/" + id.String() + "/statement"}, &s)
}

// Logs hands over a job's log line by line, with follow until the job is over. It stops with line's error. A
// connection that breaks off is ErrBroken: lines are not read twice.
func (c *Client) Logs(ctx context.Context, id protocol.JobID, follow bool, line func(protocol.LogLine) error) error {
	r := request{method: "GET", path: "/jobs/" + id.String() + "/logs", once: true}
	if follow {
		r.query = url.Values{"follow": {"1"}}
	}
	err := stream(ctx, c, r, line)
	if errors.Is(err, errEnded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", id, err)
	}
	return nil
}
