package beamapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"
)

const (
	// bodyWithin is how long the body of a request may take: 15 MiB of arguments over a line of 0.5 Mbit/s.
	bodyWithin = 5 * time.Minute
	// pieceWithin is how long a body that has no bound but that of an archive may be silent.
	pieceWithin = time.Minute
)

// guard lets in who has a token that may do this, before anything of the body is read or unpacked: what strangers send costs
// their headers alone. A refusal is said in the caller's own protocol. silent bounds each pause of the body instead of the
// whole.
func (s *Server) guard(least Role, silent bool, h http.Handler) http.Handler {
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, no := s.authenticate(r.Context(), r.Header, r.RemoteAddr, "", least)
		if no != nil {
			_ = refusal.Write(w, r, no) // who is refused may be gone
			return
		}
		timed(w, r, silent)
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller{who, s.base(r)})))
	})
}

// timed bounds how slowly a body may come. The bound ends with the body: answers may take as long as a call does.
func timed(w http.ResponseWriter, r *http.Request, silent bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	b := &timedBody{ReadCloser: r.Body, control: http.NewResponseController(w), silent: silent}
	b.until(bodyWithin)
	r.Body = b
}

// timedBody is a body with a deadline.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	silent  bool
	ended   bool
}

func (b *timedBody) until(d time.Duration) {
	at := time.Time{}
	if d > 0 {
		at = time.Now().Add(d) // the clock of sockets
	}
	_ = b.control.SetReadDeadline(at) // a recorder of tests has none
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	if b.silent && !b.ended {
		b.until(pieceWithin)
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.end()
	}
	return n, err
}

// Close implements io.Closer.
func (b *timedBody) Close() error {
	b.end()
	return b.ReadCloser.Close()
}

func (b *timedBody) end() {
	if !b.ended {
		b.ended = true
		b.until(0)
	}
}
