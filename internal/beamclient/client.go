package beamclient

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// Client makes the calls of Beam's SDK in the SDK's order, with messages written by field numbers alone
// (beam-interface.md 3 and 4): nothing of the bridge's own code is between it and the wire.
type Client struct {
	conn  *grpc.ClientConn
	token string
}

// plainBytes sends and receives messages as they are.
type plainBytes struct{}

func (plainBytes) Name() string { return "proto" }

func (plainBytes) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (plainBytes) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = plainBytes{}

// Dial connects to a gateway; the token is sent with each call.
func Dial(addr, token string) (*Client, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(plainBytes{}), grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("beamclient: dialling %s: %w", addr, err)
	}
	return &Client{conn: conn, token: token}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Message is a message under construction.
type Message []byte

// Text adds a string.
func (m Message) Text(n protowire.Number, s string) Message { return m.Bytes(n, []byte(s)) }

// Bytes adds bytes, or a message.
func (m Message) Bytes(n protowire.Number, b []byte) Message {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), b)
}

// Num adds a whole number, true as 1.
func (m Message) Num(n protowire.Number, v uint64) Message {
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

// Parts are the fields of an answer, the last of each number.
type Parts map[protowire.Number]any

// ReadParts reads a message, the last of each number; an error says that it is none.
func ReadParts(b []byte) (Parts, error) {
	p := Parts{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			p[num], b = v, b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			p[num], b = v, b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			b = b[n:]
		}
	}
	return p, nil
}

// Text is the string of a number, empty for none.
func (p Parts) Text(n protowire.Number) string { b, _ := p[n].([]byte); return string(b) }

// Raw is the bytes of a number, nil for none.
func (p Parts) Raw(n protowire.Number) []byte { b, _ := p[n].([]byte); return b }

// Num is the whole number of a number, 0 for none.
func (p Parts) Num(n protowire.Number) uint64 { v, _ := p[n].(uint64); return v }

func (c *Client) ctx(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// Call makes a unary call and reads the answer.
func (c *Client) Call(ctx context.Context, method string, req Message) (Parts, error) {
	in, out := []byte(req), []byte(nil)
	if err := c.conn.Invoke(c.ctx(ctx), method, &in, &out); err != nil {
		return nil, err
	}
	return ReadParts(out)
}

// ErrNotOK is an answer with ok = false.
var ErrNotOK = errors.New("the bridge says no")

// Function is what a decorator of the SDK says.
type Function struct {
	// Files are its code, by name.
	Files map[string]string
	// Handler is MODULE:FUNCTION.
	Handler string
	// Env are NAME=VALUE.
	Env []string
	// Volumes are names by mount path.
	Volumes map[string]string
	// GPU are names, separated by commas; GPUs is how many.
	GPU string
	// GPUs is how many GPUs.
	GPUs uint64
	// Timeout is in seconds, 0 for none.
	Timeout uint64
	// Retries is how often a call may be run again.
	Retries uint64
	// Pool is a message of type PoolConfig, nil for none.
	Pool Message
	// Memory is in MiB; 0 is 512.
	Memory uint64
	// Kind is the type of stub; empty is function.
	Kind string
	// Force makes a new stub of an equal request.
	Force bool
}

// Prepare does what the SDK does before the first call of a function, and returns the stub's ID and the warning. An answer
// that is not ok is ErrNotOK.
func (c *Client) Prepare(ctx context.Context, f Function) (stub, warning string, err error) {
	image, err := c.Call(ctx, "/image.ImageService/VerifyImageBuild", Message{}.Text(1, "python3"))
	if err != nil {
		return "", "", err
	}
	if image.Num(2) != 1 || image.Num(3) != 1 {
		return "", "", fmt.Errorf("the plain image is not there: %v", image)
	}
	object, err := c.upload(ctx, f.Files)
	if err != nil {
		return "", "", err
	}
	req := Message{}.Text(1, object).Text(2, image.Text(1)).Text(3, or(f.Kind, "function")).Text(4, "test").Text(5, "python3").Num(6, 1000).Num(7, or(f.Memory, 512)).
		Text(8, f.GPU).Text(9, f.Handler)
	for path, name := range f.Volumes {
		v, err := c.Call(ctx, "/volume.VolumeService/GetOrCreateVolume", Message{}.Text(1, name))
		if err != nil {
			return "", "", err
		}
		vol, err := ReadParts(v.Raw(3))
		if err != nil || v.Num(1) != 1 {
			return "", "", fmt.Errorf("%w: volume %s: %s", ErrNotOK, name, v.Text(2))
		}
		req = req.Bytes(16, Message{}.Text(1, vol.Text(1)).Text(2, path))
	}
	policy := Message{}.Num(2, f.Retries)
	if f.Timeout > 0 {
		policy = policy.Num(1, f.Timeout)
	}
	req = req.Bytes(23, policy)
	if f.GPUs > 0 {
		req = req.Num(27, f.GPUs)
	}
	for _, e := range f.Env {
		req = req.Text(32, e)
	}
	if f.Pool != nil {
		req = req.Bytes(41, f.Pool)
	}
	if f.Force {
		req = req.Num(17, 1)
	}
	reply, err := c.Call(ctx, "/gateway.GatewayService/GetOrCreateStub", req)
	if err != nil {
		return "", "", err
	}
	if reply.Num(1) != 1 {
		return "", "", fmt.Errorf("%w: %s", ErrNotOK, reply.Text(3))
	}
	return reply.Text(2), reply.Text(4), nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// upload sends files as a zip archive unless the bridge has it.
func (c *Client) upload(ctx context.Context, files map[string]string) (id string, err error) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		w, err := z.Create(name)
		if err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, text); err != nil {
			return "", err
		}
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	sum := sha256.Sum256(b.Bytes())
	hash := hex.EncodeToString(sum[:])
	head, err := c.Call(ctx, "/gateway.GatewayService/HeadObject", Message{}.Text(1, hash))
	if err != nil || head.Num(2) == 1 {
		return head.Text(3), err
	}
	s, err := c.conn.NewStream(c.ctx(ctx), &grpc.StreamDesc{ClientStreams: true}, "/gateway.GatewayService/PutObjectStream")
	if err != nil {
		return "", err
	}
	for rest, first := b.Bytes(), true; first || len(rest) > 0; first = false {
		n := min(len(rest), 1<<20)
		m := []byte(Message{}.Bytes(1, rest[:n]).Bytes(2, Message{}.Text(1, hash).Num(2, uint64(b.Len()))).Text(3, hash))
		if err := s.SendMsg(&m); err != nil {
			return "", err
		}
		rest = rest[n:]
	}
	if err := s.CloseSend(); err != nil {
		return "", err
	}
	var out []byte
	if err := s.RecvMsg(&out); err != nil {
		return "", err
	}
	reply, err := ReadParts(out)
	if err == nil && reply.Num(1) != 1 {
		err = fmt.Errorf("%w: %s", ErrNotOK, reply.Text(3))
	}
	return reply.Text(2), err
}

// Result is what a call of a function gave.
type Result struct {
	// Task is the call's id.
	Task string
	// Output is all that it printed, and why it failed.
	Output string
	// Exit is its exit code.
	Exit int32
	// Result is what it returned, pickled.
	Result []byte
	// Frames counts those that came after the last.
	Frames int
}

// Invoke calls a function and reads its stream to the end; heard, if not nil, is told output as it comes.
func (c *Client) Invoke(ctx context.Context, stub string, args []byte, headless bool, heard func(string)) (r Result, err error) {
	s, err := c.conn.NewStream(c.ctx(ctx), &grpc.StreamDesc{ServerStreams: true}, "/function.FunctionService/FunctionInvoke")
	if err != nil {
		return r, err
	}
	m := Message{}.Text(1, stub).Bytes(2, args)
	if headless {
		m = m.Num(3, 1)
	}
	in := []byte(m)
	if err := s.SendMsg(&in); err != nil {
		return r, err
	}
	if err := s.CloseSend(); err != nil {
		return r, err
	}
	done := false
	for {
		var out []byte
		err := s.RecvMsg(&out)
		if errors.Is(err, io.EOF) {
			if !done {
				return r, errors.New("the stream ended without a last frame")
			}
			return r, nil
		}
		if err != nil {
			return r, err
		}
		p, err := ReadParts(out)
		if err != nil {
			return r, err
		}
		if done {
			r.Frames++
		}
		r.Task = or(p.Text(1), r.Task)
		if text := p.Text(2); text != "" {
			r.Output += text
			if heard != nil {
				heard(text)
			}
		}
		if p.Num(3) == 1 {
			done, r.Exit, r.Result = true, int32(p.Num(4)), p.Raw(5)
		}
	}
}

// PickleCall is Python's pickle of {"args": (n,), "kwargs": {}}, protocol 2, written by hand.
func PickleCall(n int) []byte {
	b := []byte("\x80\x02}(X\x04\x00\x00\x00argsJ")
	b = append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
	return append(b, "\x85X\x06\x00\x00\x00kwargs}u."...)
}

// PickleText is the same with one text as the argument.
func PickleText(s string) []byte {
	text := func(s string) string {
		n := len(s)
		return "X" + string([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}) + s
	}
	return []byte("\x80\x02}(" + text("args") + text(s) + "\x85" + text("kwargs") + "}u.")
}

// PickledInt reads the pickle of a whole number.
func PickledInt(b []byte) (int, error) {
	i := 0
	if len(b) > 2 && b[0] == 0x80 {
		i = 2
	}
	if len(b) > i+9 && b[i] == 0x95 { // a frame
		i += 9
	}
	if i >= len(b) {
		return 0, fmt.Errorf("no pickle: %x", b)
	}
	switch body := b[i:]; {
	case body[0] == 'K' && len(body) == 3:
		return int(body[1]), nil
	case body[0] == 'M' && len(body) == 4:
		return int(body[1]) | int(body[2])<<8, nil
	case body[0] == 'J' && len(body) == 6:
		return int(int32(uint32(body[1]) | uint32(body[2])<<8 | uint32(body[3])<<16 | uint32(body[4])<<24)), nil
	}
	return 0, fmt.Errorf("no pickle of a whole number: %x", b)
}
