package p2p

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrFrame means that a peer sent bytes that are no frame.
var ErrFrame = errors.New("p2p: malformed frame")

// ErrTooLarge means that a frame or a gossip message exceeds its limit.
var ErrTooLarge = errors.New("p2p: message is too large")

// ErrUnsupported means that the peer does not speak the protocol or its version.
var ErrUnsupported = errors.New("p2p: peer does not speak the protocol")

// ErrClosed means that this host is shutting down or not open yet.
var ErrClosed = errors.New("p2p: host is closed")

// ErrUnreachable means that no connection or stream to the peer could be had.
var ErrUnreachable = errors.New("p2p: peer cannot be reached")

// ErrPeerGone means that the stream ended before the answer; the peer may or may not have acted on the
// request.
var ErrPeerGone = errors.New("p2p: peer left before it answered")

// ErrMemory means that the memory reserved for this peer, protocol or process is used up.
var ErrMemory = errors.New("p2p: no memory left for this peer")

// Code says on the wire why a request failed. The list only grows; a number is never used again.
type Code uint16

// The codes.
const (
	// CodeInternal is a failure of the answering side that says nothing about the request.
	CodeInternal Code = 1
	// CodeMalformed is a request that could not be decoded.
	CodeMalformed Code = 2
	// CodeTooLarge is a request beyond the protocol's limit.
	CodeTooLarge Code = 3
	// CodeRefused is a well-formed request that the peer does not want to serve.
	CodeRefused Code = 4
	// CodeUnauthorized is a request without the grant that it needs.
	CodeUnauthorized Code = 5
	// CodeNotFound is a request about something that the peer does not know.
	CodeNotFound Code = 6
	// CodeBusy asks to come back later.
	CodeBusy Code = 7
	// CodeStale is a request about something that has moved on: an old fence, an expired offer.
	CodeStale Code = 8
	// CodeVersion is a message of a format that the peer does not read.
	CodeVersion Code = 9
)

var codeNames = [...]string{
	CodeInternal: "internal", CodeMalformed: "malformed", CodeTooLarge: "too-large", CodeRefused: "refused",
	CodeUnauthorized: "unauthorized", CodeNotFound: "not-found", CodeBusy: "busy", CodeStale: "stale", CodeVersion: "version",
}

// String returns the short name of the code.
func (c Code) String() string {
	if int(c) < len(codeNames) && codeNames[c] != "" {
		return codeNames[c]
	}
	return fmt.Sprintf("code-%d", uint16(c))
}

// Error is a failure that crosses the wire: handlers return it to say why, Call returns what the peer said.
type Error struct {
	// Code is the machine's half.
	Code Code
	// Text is for people, UTF-8, at most 1,024 bytes on the wire.
	Text string
}

// Error returns code and text.
func (e *Error) Error() string { return fmt.Sprintf("peer answers %s: %s", e.Code, e.Text) }

// Errorf returns an *Error with the code and a formatted text.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of the *Error inside err, or 0 when there is none: then the failure is not the
// peer's answer but one of this package's errors or of the context.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return 0
}

const maxErrorText = 1024

func encodeError(e *Error) []byte {
	text := e.Text
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(e.Code)), strings.ToValidUTF8(text, "?")...)
}

func decodeError(b []byte) error {
	if len(b) < 2 || len(b) > 2+3*maxErrorText || !utf8.Valid(b[2:]) {
		return fmt.Errorf("%w: error frame of %d bytes", ErrFrame, len(b))
	}
	return &Error{Code: Code(binary.BigEndian.Uint16(b)), Text: string(b[2:])}
}
