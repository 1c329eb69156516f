package p2p

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// tape is a stream that plays bytes and knows what was reserved for it.
type tape struct {
	network.Stream
	io.Reader
	scope tapeScope
}

type tapeScope struct {
	network.StreamScope
	reserved, most int
}

func (s *tapeScope) ReserveMemory(n int, _ uint8) error {
	s.reserved += n
	s.most = max(s.most, s.reserved)
	return nil
}
func (s *tapeScope) ReleaseMemory(n int)         { s.reserved -= n }
func (t *tape) Read(b []byte) (int, error)       { return t.Reader.Read(b) }
func (t *tape) Scope() network.StreamScope       { return &t.scope }
func (t *tape) SetReadDeadline(time.Time) error  { return nil }
func (t *tape) SetWriteDeadline(time.Time) error { return nil }

// FuzzFrames feeds arbitrary bytes to the frame reader: it may neither panic nor reserve more than one
// frame's limit, what it accepts has to be what a plain reading of the format gives, and it must release
// what it reserved.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame(kindMessage, 3, []byte("abc")))
	f.Add(append(frame(kindMessage, 0, nil), frame(kindError, 4, []byte("\x00\x07hi"))...))
	f.Add(append(frame(kindGoodbye, 0, nil), frame(kindMessage, 1<<31, nil)...))
	f.Add(frame(kindMessage, 5000, bytes.Repeat([]byte{9}, 5000)))
	f.Add(frame(7, 1, []byte{0}))
	const limit = 6000
	cfg := LoopbackConfig()
	f.Fuzz(func(t *testing.T, data []byte) {
		tp := &tape{Reader: bytes.NewReader(data)}
		fr := newFrames(tp, cfg, ProtocolLimits{MaxFrame: limit, Idle: time.Minute})
		rest := data
		for {
			k, body, err := fr.next()
			whole := len(rest) >= headerSize && uint64(len(rest)-headerSize) >= uint64(binary.BigEndian.Uint32(rest))
			if err != nil {
				switch {
				case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
					if len(rest) != 0 {
						t.Fatalf("orderly end with %d bytes left", len(rest))
					}
				case errors.Is(err, io.ErrUnexpectedEOF):
					if whole {
						t.Fatal("a whole frame was called cut")
					}
				case !errors.Is(err, ErrFrame) && !errors.Is(err, ErrTooLarge):
					t.Fatalf("unknown failure: %v", err)
				}
				break
			}
			if !whole {
				t.Fatal("a cut frame was accepted")
			}
			n := int(binary.BigEndian.Uint32(rest))
			if kind(rest[4]) != k || !bytes.Equal(body, rest[headerSize:headerSize+n]) || n > limit {
				t.Fatal("another frame than was sent")
			}
			if k == kindError {
				_ = decodeError(body)
			}
			rest = rest[headerSize+n:]
		}
		fr.release()
		if tp.scope.most > limit || tp.scope.reserved != 0 {
			t.Fatalf("reserved up to %d bytes, left %d", tp.scope.most, tp.scope.reserved)
		}
	})
}
