package gridbeam_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// beamClient makes the calls of Beam's SDK in the SDK's order, with messages written by field numbers alone
// (beam-interface.md 3 and 4): nothing of the bridge's own code is between it and the wire.
type beamClient struct {
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

func dialBeam(t testing.TB, addr, token string) *beamClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(plainBytes{}), grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &beamClient{conn: conn, token: token}
}

// msg is a message under construction.
type msg []byte

func (m msg) text(n protowire.Number, s string) msg { return m.bytes(n, []byte(s)) }

func (m msg) bytes(n protowire.Number, b []byte) msg {
	return protowire.AppendBytes(protowire.AppendTag(m, n, protowire.BytesType), b)
}

func (m msg) num(n protowire.Number, v uint64) msg {
	return protowire.AppendVarint(protowire.AppendTag(m, n, protowire.VarintType), v)
}

// parts are the fields of an answer, the last of each number.
type parts map[protowire.Number]any

func readParts(b []byte) (parts, error) {
	p := parts{}
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

func (p parts) text(n protowire.Number) string { b, _ := p[n].([]byte); return string(b) }
func (p parts) raw(n protowire.Number) []byte  { b, _ := p[n].([]byte); return b }
func (p parts) num(n protowire.Number) uint64  { v, _ := p[n].(uint64); return v }

func (c *beamClient) ctx(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// call makes a unary call; an answer that is not ok is an error with its text.
func (c *beamClient) call(ctx context.Context, method string, req msg) (parts, error) {
	in, out := []byte(req), []byte(nil)
	if err := c.conn.Invoke(c.ctx(ctx), method, &in, &out); err != nil {
		return nil, err
	}
	return readParts(out)
}

// errNotOK is an answer with ok = false.
var errNotOK = errors.New("the bridge says no")

// beamFunction is what a decorator of the SDK says.
type beamFunction struct {
	files   map[string]string
	handler string
	env     []string
	volumes map[string]string // name by mount path
	gpu     string
	gpus    uint64
	timeout uint64 // seconds
	retries uint64
	pool    msg
	memory  uint64 // MiB
	kind    string // default function
	force   bool
}

// prepare does what the SDK does before the first call of a function, and returns the stub's ID and the warning.
func (c *beamClient) prepare(ctx context.Context, f beamFunction) (stub, warning string, err error) {
	image, err := c.call(ctx, "/image.ImageService/VerifyImageBuild", msg{}.text(1, "python3"))
	if err != nil {
		return "", "", err
	}
	if image.num(2) != 1 || image.num(3) != 1 {
		return "", "", fmt.Errorf("the plain image is not there: %v", image)
	}
	object, err := c.upload(ctx, f.files)
	if err != nil {
		return "", "", err
	}
	req := msg{}.text(1, object).text(2, image.text(1)).text(3, or(f.kind, "function")).text(4, "test").text(5, "python3").num(6, 1000).num(7, or(f.memory, 512)).
		text(8, f.gpu).text(9, f.handler)
	for path, name := range f.volumes {
		v, err := c.call(ctx, "/volume.VolumeService/GetOrCreateVolume", msg{}.text(1, name))
		if err != nil {
			return "", "", err
		}
		vol, err := readParts(v.raw(3))
		if err != nil || v.num(1) != 1 {
			return "", "", fmt.Errorf("%w: volume %s: %s", errNotOK, name, v.text(2))
		}
		req = req.bytes(16, msg{}.text(1, vol.text(1)).text(2, path))
	}
	policy := msg{}.num(2, f.retries)
	if f.timeout > 0 {
		policy = policy.num(1, f.timeout)
	}
	req = req.bytes(23, policy)
	if f.gpus > 0 {
		req = req.num(27, f.gpus)
	}
	for _, e := range f.env {
		req = req.text(32, e)
	}
	if f.pool != nil {
		req = req.bytes(41, f.pool)
	}
	if f.force {
		req = req.num(17, 1)
	}
	reply, err := c.call(ctx, "/gateway.GatewayService/GetOrCreateStub", req)
	if err != nil {
		return "", "", err
	}
	if reply.num(1) != 1 {
		return "", "", fmt.Errorf("%w: %s", errNotOK, reply.text(3))
	}
	return reply.text(2), reply.text(4), nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// upload sends files as a zip archive unless the bridge has it.
func (c *beamClient) upload(ctx context.Context, files map[string]string) (id string, err error) {
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
	head, err := c.call(ctx, "/gateway.GatewayService/HeadObject", msg{}.text(1, hash))
	if err != nil || head.num(2) == 1 {
		return head.text(3), err
	}
	s, err := c.conn.NewStream(c.ctx(ctx), &grpc.StreamDesc{ClientStreams: true}, "/gateway.GatewayService/PutObjectStream")
	if err != nil {
		return "", err
	}
	for rest, first := b.Bytes(), true; first || len(rest) > 0; first = false {
		n := min(len(rest), 1<<20)
		m := []byte(msg{}.bytes(1, rest[:n]).bytes(2, msg{}.text(1, hash).num(2, uint64(b.Len()))).text(3, hash))
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
	reply, err := readParts(out)
	if err == nil && reply.num(1) != 1 {
		err = fmt.Errorf("%w: %s", errNotOK, reply.text(3))
	}
	return reply.text(2), err
}

// beamResult is what a call of a function gave.
type beamResult struct {
	task   string
	output string
	exit   int32
	result []byte
	frames int // after the last
}

// invoke calls a function and reads its stream to the end; line, if set, is told output as it comes.
func (c *beamClient) invoke(ctx context.Context, stub string, args []byte, headless bool, heard func(string)) (r beamResult, err error) {
	s, err := c.conn.NewStream(c.ctx(ctx), &grpc.StreamDesc{ServerStreams: true}, "/function.FunctionService/FunctionInvoke")
	if err != nil {
		return r, err
	}
	m := msg{}.text(1, stub).bytes(2, args)
	if headless {
		m = m.num(3, 1)
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
		p, err := readParts(out)
		if err != nil {
			return r, err
		}
		if done {
			r.frames++
		}
		r.task = or(p.text(1), r.task)
		if text := p.text(2); text != "" {
			r.output += text
			if heard != nil {
				heard(text)
			}
		}
		if p.num(3) == 1 {
			done, r.exit, r.result = true, int32(p.num(4)), p.raw(5)
		}
	}
}

// pickleCall is Python's pickle of {"args": (n,), "kwargs": {}}, protocol 2, written by hand.
func pickleCall(n int) []byte {
	b := []byte("\x80\x02}(X\x04\x00\x00\x00argsJ")
	b = append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
	return append(b, "\x85X\x06\x00\x00\x00kwargs}u."...)
}

// pickleText is the same with one text as the argument.
func pickleText(s string) []byte {
	text := func(s string) string {
		n := len(s)
		return "X" + string([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}) + s
	}
	return []byte("\x80\x02}(" + text("args") + text(s) + "\x85" + text("kwargs") + "}u.")
}

// pickledInt reads the pickle of a whole number.
func pickledInt(b []byte) (int, error) {
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

func TestHandWrittenPicklesAreRead(t *testing.T) {
	for _, n := range []string{"K\x05.", "\x80\x04K\x05.", "\x80\x04\x95\x03\x00\x00\x00\x00\x00\x00\x00K\x05."} {
		if got, err := pickledInt([]byte(n)); got != 5 || err != nil {
			t.Errorf("%x: %d, %v", n, got, err)
		}
	}
	if _, err := pickledInt([]byte("\x80\x04N.")); err == nil {
		t.Error("None passed for a number")
	}
	if !strings.Contains(string(pickleText("x")), "args") {
		t.Error("no args")
	}
}
