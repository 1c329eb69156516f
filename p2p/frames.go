package p2p

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

type kind uint8

const (
	kindMessage kind = 0
	kindError   kind = 1
	kindGoodbye kind = 2
)

const (
	headerSize = 5
	// readStep is how much of a body is asked for under one deadline: a peer that stops sending is noticed
	// after HeaderTimeout + readStep/MinRate (9 s), whatever length it announced.
	readStep = 4 << 10
	// keepBuffer is the largest buffer that a stream keeps between frames, in bytes, each way.
	keepBuffer = 4 << 10
	// bufioSize holds a small frame whole, so that it costs one read and one deadline.
	bufioSize = 2 << 10
	// streamBuffers is reserved for a stream as long as it is served.
	streamBuffers = bufioSize + 2*keepBuffer
)

// Frames carries messages over one stream. One goroutine may read while others write. Each frame read is
// bounded in size, time and memory by the limits of the stream's protocol.
type Frames struct {
	stream network.Stream
	limits ProtocolLimits
	header time.Duration
	rate   int

	r        *bufio.Reader
	buf      []byte // body of the last frame
	reserved int    // bytes reserved in the stream's scope for buf's frame
	first    bool   // no frame has been read yet

	wmu  sync.Mutex
	wbuf []byte

	dmu     sync.Mutex // guards stopped against the setting of read deadlines
	stopped bool
}

func newFrames(s network.Stream, cfg Config, limits ProtocolLimits) *Frames {
	return &Frames{
		stream: s, limits: limits, header: cfg.HeaderTimeout, rate: cfg.MinRate,
		r: bufio.NewReaderSize(s, bufioSize), first: true,
	}
}

// Peer returns the peer at the other end, as its handshake proved.
func (f *Frames) Peer() peer.ID { return f.stream.Conn().RemotePeer() }

// Stream returns the libp2p stream below; reading or writing it directly breaks the framing.
func (f *Frames) Stream() network.Stream { return f.stream }

// Read decodes the next message into m. It returns io.EOF when the peer has closed its side between two
// frames, *Error when the peer ended the stream with a reason, ErrTooLarge, ErrFrame or ErrMemory when the
// frame is not acceptable, ErrClosed when this host shuts down, and os.ErrDeadlineExceeded when the peer
// was silent for the protocol's idle time or slower than the minimum rate.
func (f *Frames) Read(m proto.Message) error {
	b, err := f.ReadBytes()
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: decoding %T: %w", ErrFrame, m, err)
	}
	return nil
}

// ReadBytes returns the body of the next message; it is valid until the next read. Errors are Read's.
func (f *Frames) ReadBytes() ([]byte, error) {
	k, b, err := f.next()
	switch {
	case err != nil:
		return nil, err
	case k == kindMessage:
		return b, nil
	case k == kindError:
		return nil, decodeError(b)
	default:
		return nil, io.EOF
	}
}

// next reads one frame. io.EOF means that the stream ended before the frame began.
func (f *Frames) next() (kind, []byte, error) {
	f.release()
	wait := f.limits.Idle
	if f.first { // a new stream has to say something soon
		wait = min(wait, f.header)
	}
	if err := f.deadline(wait); err != nil {
		return 0, nil, err
	}
	if _, err := f.r.Peek(1); err != nil {
		return 0, nil, f.readError(err)
	}
	if f.r.Buffered() < headerSize {
		if err := f.deadline(f.header); err != nil {
			return 0, nil, err
		}
	}
	head, err := f.r.Peek(headerSize)
	if err != nil {
		return 0, nil, f.readError(cut(err))
	}
	n, k := binary.BigEndian.Uint32(head), kind(head[4])
	switch {
	case k > kindGoodbye:
		return 0, nil, fmt.Errorf("%w: kind %d", ErrFrame, k)
	case k == kindGoodbye && n != 0, k == kindError && n > 2+3*maxErrorText:
		return 0, nil, fmt.Errorf("%w: %d bytes in a frame of kind %d", ErrFrame, n, k)
	case uint64(n) > uint64(f.limits.MaxFrame):
		return 0, nil, fmt.Errorf("%w: frame of %d bytes, limit %d", ErrTooLarge, n, f.limits.MaxFrame)
	}
	_, _ = f.r.Discard(headerSize) // cannot fail: peeked
	if err := f.body(int(n)); err != nil {
		return 0, nil, err
	}
	f.first = false
	return k, f.buf, nil
}

func (f *Frames) body(n int) error {
	if err := f.stream.Scope().ReserveMemory(n, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("%w: frame of %d bytes: %w", ErrMemory, n, err)
	}
	f.reserved = n
	if cap(f.buf) < n || cap(f.buf) > keepBuffer {
		f.buf = make([]byte, n)
	}
	f.buf = f.buf[:n]
	for done := 0; done < n; {
		step := min(n-done, readStep)
		if f.r.Buffered() < step {
			if err := f.deadline(f.header + time.Duration(step)*time.Second/time.Duration(f.rate)); err != nil {
				return err
			}
		}
		if _, err := io.ReadFull(f.r, f.buf[done:done+step]); err != nil {
			return f.readError(cut(err))
		}
		done += step
	}
	return nil
}

func (f *Frames) release() {
	if f.reserved > 0 {
		f.stream.Scope().ReleaseMemory(f.reserved)
		f.reserved = 0
	}
}

// deadline lets reads wait for d from now, or not at all once reading was stopped.
func (f *Frames) deadline(d time.Duration) error {
	f.dmu.Lock()
	defer f.dmu.Unlock()
	if f.stopped {
		return ErrClosed
	}
	return f.stream.SetReadDeadline(time.Now().Add(d))
}

// stopReading makes the present and every later read fail with ErrClosed; writing stays possible.
func (f *Frames) stopReading() {
	f.dmu.Lock()
	defer f.dmu.Unlock()
	f.stopped = true
	_ = f.stream.SetReadDeadline(time.Unix(1, 0))
}

func (f *Frames) readError(err error) error {
	f.dmu.Lock()
	defer f.dmu.Unlock()
	switch {
	case f.stopped:
		return ErrClosed
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	default:
		return fmt.Errorf("reading a frame: %w", err)
	}
}

// cut turns an end inside a frame into what it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write sends m as one frame. It fails with ErrTooLarge before a byte is sent, and when the peer takes the
// frame slower than the minimum rate.
func (f *Frames) Write(m proto.Message) error {
	_, err := f.write(kindMessage, func(b []byte) ([]byte, error) { return proto.MarshalOptions{}.MarshalAppend(b, m) })
	return err
}

// WriteBytes sends b as the body of one frame. Errors are Write's.
func (f *Frames) WriteBytes(b []byte) error {
	_, err := f.writeFrame(kindMessage, b)
	return err
}

func (f *Frames) writeFrame(k kind, body []byte) (whole bool, err error) {
	return f.write(k, func(b []byte) ([]byte, error) { return append(b, body...), nil })
}

// write reports whether the whole frame was handed to the transport: if not, the peer cannot have acted
// on it.
func (f *Frames) write(k kind, fill func([]byte) ([]byte, error)) (whole bool, err error) {
	f.wmu.Lock()
	defer f.wmu.Unlock()
	frame, err := fill(append(f.wbuf[:0], 0, 0, 0, 0, byte(k)))
	if err != nil {
		return false, fmt.Errorf("encoding a frame: %w", err)
	}
	if cap(frame) <= keepBuffer {
		f.wbuf = frame
	}
	n := len(frame) - headerSize
	if k == kindMessage && n > f.limits.MaxFrame {
		return false, fmt.Errorf("%w: frame of %d bytes, limit %d", ErrTooLarge, n, f.limits.MaxFrame)
	}
	binary.BigEndian.PutUint32(frame, uint32(n))
	wait := f.header + time.Duration(len(frame))*time.Second/time.Duration(f.rate)
	if err := f.stream.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return false, fmt.Errorf("writing a frame: %w", err)
	}
	sent, err := f.stream.Write(frame)
	if err != nil {
		return sent == len(frame), fmt.Errorf("writing a frame: %w", err)
	}
	return true, nil
}

// Fail ends the stream with a reason that the peer's Read returns as *Error.
func (f *Frames) Fail(e *Error) error {
	_, err := f.writeFrame(kindError, encodeError(e))
	return errors.Join(err, f.Close())
}

// CloseWrite tells the peer that no frame follows; reading stays possible.
func (f *Frames) CloseWrite() error { return f.stream.CloseWrite() }

// Close ends both directions after what was written has been sent. It does not wait.
func (f *Frames) Close() error {
	return f.stream.Close()
}

// Reset ends the stream at once, dropping what is under way; reads and writes on both sides fail.
func (f *Frames) Reset() { _ = f.stream.Reset() }
