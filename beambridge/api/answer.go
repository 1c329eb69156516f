package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/gridbeam/gridbeam/protocol"
)

// codeStatus is the HTTP status of each code.
var codeStatus = map[protocol.ErrorCode]int{
	protocol.CodeBadRequest:    http.StatusBadRequest,
	protocol.CodeBadJob:        http.StatusUnprocessableEntity,
	protocol.CodeNotOffered:    http.StatusNotImplemented,
	protocol.CodeBadModule:     http.StatusUnprocessableEntity,
	protocol.CodeBadTree:       http.StatusUnprocessableEntity,
	protocol.CodeUnauthorized:  http.StatusUnauthorized,
	protocol.CodeForbidden:     http.StatusForbidden,
	protocol.CodeNotFound:      http.StatusNotFound,
	protocol.CodeConflict:      http.StatusConflict,
	protocol.CodeTooLarge:      http.StatusRequestEntityTooLarge,
	protocol.CodeNoCredit:      http.StatusPaymentRequired,
	protocol.CodeLimited:       http.StatusTooManyRequests,
	protocol.CodeNoSpace:       http.StatusInsufficientStorage,
	protocol.CodeUnavailable:   http.StatusServiceUnavailable,
	protocol.CodeInternal:      http.StatusInternalServerError,
	protocol.CodeNoSuchRoute:   http.StatusNotFound,
	protocol.CodeWrongMethod:   http.StatusMethodNotAllowed,
	protocol.CodeNotYet:        http.StatusConflict,
	protocol.CodeTooSlow:       http.StatusRequestTimeout,
	protocol.CodeLimitExceeded: http.StatusTooManyRequests,
}

// json answers with a message.
func (c *call) json(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(body, '\n')) // a client that left hears nothing
	return nil
}

// refuse answers with an error, unless an answer has begun; it returns what the error is on the wire.
func (s *Server) refuse(c *call, err error) *protocol.APIError {
	e := s.wireError(c, err)
	if c.w.status != 0 {
		return e
	}
	status, ok := codeStatus[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	switch e.Code {
	case protocol.CodeUnauthorized:
		c.w.Header().Set("WWW-Authenticate", `Bearer realm="gridbeam"`)
	case protocol.CodeLimited, protocol.CodeLimitExceeded, protocol.CodeUnavailable:
		c.w.Header().Set("Retry-After", strconv.FormatInt(max(1, (e.RetryMS+999)/1000), 10))
	}
	if err := c.json(status, e); err != nil {
		s.log.Error("api error cannot be encoded", "err", err)
	}
	return e
}

// wireError is what of an error may be sent.
func (s *Server) wireError(c *call, err error) *protocol.APIError {
	var (
		known   *protocol.APIError
		fields  protocol.JobErrors
		field   *protocol.JobError
		tooLong *http.MaxBytesError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &fields) && len(fields) > 0:
		return badJob(fields)
	case errors.As(err, &field):
		return badJob(protocol.JobErrors{*field})
	case errors.As(err, &tooLong):
		return &protocol.APIError{Code: protocol.CodeTooLarge, Text: fmt.Sprintf("the body has more than %s", protocol.ByteSize(max(0, tooLong.Limit)))}
	case errors.Is(err, errTooSlow) || errors.Is(err, os.ErrDeadlineExceeded):
		return &protocol.APIError{Code: protocol.CodeTooSlow, Text: "the body arrived too slowly", Fix: "try again over a better connection"}
	case errors.Is(err, protocol.ErrTreeTooLarge):
		return &protocol.APIError{Code: protocol.CodeTooLarge, Text: sentence(err)}
	case errors.Is(err, protocol.ErrBadTree):
		return &protocol.APIError{Code: protocol.CodeBadTree, Text: sentence(err), Fix: "send an uncompressed tar of files, directories and relative links"}
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		s.log.Error("api has no space left", "path", c.r.URL.Path, "err", err)
		return &protocol.APIError{Code: protocol.CodeNoSpace, Text: "the bridge's disk is full", Fix: "whoever runs the bridge has to free space (`gridbeam volume gc`)"}
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		return &protocol.APIError{Code: protocol.CodeUnavailable, Text: "the bridge could not answer in time", Fix: "try again", RetryMS: 1000}
	}
	s.log.Error("api request failed", "method", c.r.Method, "path", c.r.URL.Path, "user", c.who.User, "err", err)
	return &protocol.APIError{Code: protocol.CodeInternal, Text: "the bridge failed on this request", Fix: "its log says why"}
}

// badJob tells of the first error in the text and of all in the fields.
func badJob(fields protocol.JobErrors) *protocol.APIError {
	for i := range fields {
		fields[i].File, fields[i].Line, fields[i].Column = "", 0, 0 // of a text that the client made itself
	}
	text := fields[0].Problem
	if n := len(fields) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return &protocol.APIError{Code: protocol.CodeBadJob, Text: text, Field: fields[0].Field, Fields: fields}
}

// sentence is an error of protocol without the package's name.
func sentence(err error) string { return strings.TrimPrefix(err.Error(), "protocol: ") }

// badRequest is a request that cannot be read.
func badRequest(field, fix, format string, args ...any) error {
	return &protocol.APIError{Code: protocol.CodeBadRequest, Field: field, Text: fmt.Sprintf(format, args...), Fix: fix}
}
