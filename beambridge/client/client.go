package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of this side of the connection.
var (
	// ErrConfig means that a configuration field is out of range; the text names it.
	ErrConfig = errors.New("client: invalid configuration")
	// ErrNotConnected means that no bridge answered.
	ErrNotConnected = errors.New("client: not connected")
	// ErrNotBridge means that something answered which is no bridge.
	ErrNotBridge = errors.New("client: no bridge")
	// ErrBroken means that an answer broke off.
	ErrBroken = errors.New("client: the answer broke off")
)

// Error is a failure that the bridge told.
type Error struct {
	protocol.APIError // APIError is code, text, field and fix.
	// Status is the HTTP status.
	Status int
}

// Error is the bridge's text with field and fix.
func (e *Error) Error() string { return e.APIError.Error() }

// CodeOf returns the code of a failure that the bridge told, else "".
func CodeOf(err error) protocol.ErrorCode {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// Config says where the bridge is and how patient to be.
type Config struct {
	// URL is the bridge's, such as http://127.0.0.1:1994. No default.
	URL string
	// Token is sent as bearer token.
	Token string
	// TLS is for an https URL; nil takes the system's roots.
	TLS *tls.Config
	// Connect bounds a connection's handshake. Default 5 s.
	Connect time.Duration
	// Timeout bounds one request, uploads and streams apart. Default 30 s.
	Timeout time.Duration
	// Retry is how long a request that may be repeated is, when a bridge that answered before does not. Default
	// 15 s: a restart.
	Retry time.Duration
	// Patience is how long Wait waits for a bridge to come back. Default 5 min.
	Patience time.Duration
	// Silence is how long a stream may be silent. Default 60 s: four beats of the bridge.
	Silence time.Duration
}

// DefaultConfig returns the defaults for a bridge.
func DefaultConfig(url, token string) Config {
	return Config{
		URL: url, Token: token, Connect: 5 * time.Second, Timeout: 30 * time.Second, Retry: 15 * time.Second, Patience: 5 * time.Minute,
		Silence: time.Minute,
	}
}

// Validate returns ErrConfig naming the field that is out of range.
func (c Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fmt.Errorf("%w: URL %.80q: write the bridge's address, such as http://127.0.0.1:1994", ErrConfig, c.URL)
	case strings.ContainsAny(c.Token, "\r\n \x00"):
		return fmt.Errorf("%w: Token has spaces or line ends", ErrConfig)
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"Connect", c.Connect}, {"Timeout", c.Timeout}, {"Silence", c.Silence}} {
		if f.d <= 0 {
			return fmt.Errorf("%w: %s is %s, want more than 0", ErrConfig, f.name, f.d)
		}
	}
	if c.Retry < 0 || c.Patience < 0 {
		return fmt.Errorf("%w: Retry or Patience is negative", ErrConfig)
	}
	return nil
}

// Client speaks to one bridge.
type Client struct {
	cfg  Config
	base string
	http *http.Client
	met  atomic.Bool // the bridge has answered once
}

// New makes a client; it connects with the first request. It returns ErrConfig.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: cfg.Connect, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: cfg.Connect, TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: true,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 64, // a connection for each request that is under way at once
		IdleConnTimeout:       2 * time.Minute, // shorter than the bridge's, so that this side closes first
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // the bridge does not compress
	}
	return &Client{
		cfg: cfg, base: strings.TrimSuffix(cfg.URL, "/") + protocol.APIPrefix,
		http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// URL is the bridge's, as it was configured.
func (c *Client) URL() string { return c.cfg.URL }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call of the API.
type request struct {
	method, path string
	query        url.Values
	// body makes the body anew for each attempt; nil is none.
	body func() (io.ReadCloser, error)
	size int64  // of the body; -1 is unknown
	kind string // media type of the body
	// large bodies wait for the bridge's go-ahead, and have no deadline but the caller's.
	large bool
	// slack is what the bridge may take longer than Config.Timeout.
	slack time.Duration
	once  bool // may not be repeated
}

// jsonBody is a body of JSON that can be sent again.
func jsonBody(v any) (func() (io.ReadCloser, error), int64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, 0, fmt.Errorf("encoding the request: %w", err)
	}
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, int64(len(b)), nil
}

// maxAnswer bounds a JSON answer in bytes.
const maxAnswer = 256 << 20

// call sends a request and decodes the answer into out; what may be repeated is, for Config.Retry.
func (c *Client) call(ctx context.Context, r request, out any) error {
	return c.repeat(ctx, r, func() error {
		ctx, cancel := ctx, context.CancelFunc(func() {})
		if !r.large {
			ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout+r.slack)
		}
		defer cancel()
		resp, err := c.send(ctx, r)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }() // only read
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return c.broken(ctx, err)
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(body, out); err != nil {
			return fmt.Errorf("%w: %s answered something else than expected: %w", ErrNotBridge, c.cfg.URL, err)
		}
		return nil
	})
}

// repeat runs an attempt until it is no failure of the connection, or Config.Retry has passed. A bridge that
// never answered is not waited for: it probably does not run.
func (c *Client) repeat(ctx context.Context, r request, attempt func() error) error {
	for pause, until := firstPause, time.Now().Add(c.cfg.Retry); ; pause = min(2*pause, lastPause) {
		err := attempt()
		if err != nil && ctx.Err() != nil {
			return ctx.Err() // the caller's, not this package's deadline
		}
		again, after := retriable(err)
		if !again || r.once || !c.met.Load() || time.Now().After(until) {
			return err
		}
		if !sleep(ctx, max(pause, after)) {
			return err
		}
	}
}

// Pauses between attempts: the first is a blink, the last is what a restart may be noticed late by.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// retriable says that the same request may succeed later, and what the bridge asked to wait.
func retriable(err error) (again bool, after time.Duration) {
	var e *Error
	switch {
	case err == nil:
		return false, 0
	case errors.As(err, &e):
		after = time.Duration(e.RetryMS) * time.Millisecond
		return e.Code == protocol.CodeUnavailable || e.Code == protocol.CodeLimited, min(after, time.Minute)
	}
	return errors.Is(err, ErrNotConnected) || errors.Is(err, ErrBroken), 0
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// send sends a request and returns a successful response, whose body the caller closes.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if r.body != nil {
		if req.Body, err = r.body(); err != nil {
			return nil, err
		}
		req.GetBody, req.ContentLength = r.body, r.size
		req.Header.Set("Content-Type", r.kind)
	}
	if r.large {
		req.Header.Set("Expect", "100-continue") // refused before it is sent, not after
	}
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		c.met.Store(true)
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // only read
	return nil, c.refusal(resp)
}

// sourceError is a failure to make the body, which is the caller's and no connection's.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

func (e *sourceError) Unwrap() error { return e.err }

// unreachable says that nobody answered, and what to do.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if source, ok := errors.AsType[*sourceError](err); ok {
		return source.err
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without method and URL, which say nothing more
	}
	return fmt.Errorf("%w: no bridge answers at %s: %w; start one with `gridbeam bridge run`, or give the address of one with --api", ErrNotConnected, c.cfg.URL, err)
}

func (c *Client) broken(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return fmt.Errorf("%w: from %s: %w", ErrBroken, c.cfg.URL, err)
}

// refusal turns an answer that is no success into an *Error.
func (c *Client) refusal(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &Error{Status: resp.StatusCode}
	if err == nil && json.Unmarshal(body, &e.APIError) == nil && e.Code != "" {
		c.met.Store(true)
		return e
	}
	if resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusGatewayTimeout {
		return fmt.Errorf("%w: a proxy at %s finds no bridge behind it (status %d)", ErrNotConnected, c.cfg.URL, resp.StatusCode)
	}
	return fmt.Errorf("%w: what answers at %s is no bridge of this version (status %d, %.40q)", ErrNotBridge, c.cfg.URL, resp.StatusCode, resp.Header.Get("Content-Type"))
}

// Status returns how the bridge stands.
func (c *Client) Status(ctx context.Context) (st protocol.BridgeStatus, err error) {
	return st, c.call(ctx, request{method: "GET", path: "/status"}, &st)
}

// Nodes returns the nodes that the bridge knows and that match a filter (protocol.ParseFilter); "" is all.
func (c *Client) Nodes(ctx context.Context, where string) (protocol.NodeList, error) {
	var list protocol.NodeList
	q := url.Values{}
	if where != "" {
		q.Set("where", where)
	}
	return list, c.call(ctx, request{method: "GET", path: "/nodes", query: q}, &list)
}

// Reputation returns the bridge's view of a node.
func (c *Client) Reputation(ctx context.Context, node protocol.PeerID) (rep protocol.Reputation, err error) {
	return rep, c.call(ctx, request{method: "GET", path: "/nodes/" + node.String() + "/reputation"}, &rep)
}

// Account returns the account of the token's user.
func (c *Client) Account(ctx context.Context) (a protocol.Account, err error) {
	return a, c.call(ctx, request{method: "GET", path: "/account"}, &a)
}

// Credit posts money that came in; the token needs the scope admin. It may be repeated: a source and ref are
// posted once.
func (c *Client) Credit(ctx context.Context, req protocol.CreditRequest) (a protocol.Account, err error) {
	body, size, err := jsonBody(req)
	if err != nil {
		return a, err
	}
	return a, c.call(ctx, request{method: "POST", path: "/credit", body: body, size: size, kind: "application/json"}, &a)
}

// MakeToken makes a bearer token; its text is told this once. It is not repeated over a broken connection: a token
// whose answer was lost stays in Tokens, and should be revoked.
func (c *Client) MakeToken(ctx context.Context, req protocol.TokenRequest) (t protocol.NewToken, err error) {
	body, size, err := jsonBody(req)
	if err != nil {
		return t, err
	}
	return t, c.call(ctx, request{method: "POST", path: "/tokens", body: body, size: size, kind: "application/json", once: true}, &t)
}

// Tokens lists tokens without their text, the caller's own or, for an admin, everybody's.
func (c *Client) Tokens(ctx context.Context) (l protocol.TokenList, err error) {
	return l, c.call(ctx, request{method: "GET", path: "/tokens"}, &l)
}

// RevokeToken takes a token back by its ID, from this moment on. It returns an *Error with CodeNotFound, or with
// CodeConflict when it was taken back before, which an attempt whose answer was lost may have done.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, request{method: "DELETE", path: "/tokens/" + url.PathEscape(id), once: true}, nil)
}
