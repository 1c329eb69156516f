package beamapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

const invokeProcedure = "/function.FunctionService/FunctionInvoke"

// functionInvoke runs one call: its id at once, its output in order, and one last frame with result and exit code
// together. What goes wrong with this call alone is told in that frame: a status would end its siblings.
func (s *Server) functionInvoke(ctx context.Context, r *connect.Request[beamwire.FunctionInvokeRequest], out *connect.ServerStream[beamwire.FunctionInvokeResponse]) error {
	who := callerOf(ctx).Principal
	if err := s.draining(); err != nil {
		return s.failure(err)
	}
	last := func(task string, exit int32, text string) error {
		return out.Send(&beamwire.FunctionInvokeResponse{TaskId: task, Output: text, Done: true, ExitCode: exit})
	}
	req := r.Msg
	if n := len(req.GetArgs()); n > maxArgs {
		return last("", 1, fmt.Sprintf("gridbeam: the arguments have %d bytes, at most %d fit; put the data into a volume\n", n, maxArgs))
	}
	stub, err := s.bridge.Stubs.Stub(ctx, who, req.GetStubId())
	if errors.Is(err, ErrNotFound) {
		return last("", 1, "gridbeam: the function is not known here; run the program again\n")
	}
	if err != nil {
		return s.unserved(last, err)
	}
	call, err := s.bridge.Calls.Invoke(ctx, who, Call{StubID: stub.ID, Args: req.GetArgs(), Encoding: protocol.EncodingPickle, Headless: req.GetHeadless()})
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		return last("", 1, "gridbeam: "+refusal.Text+"\n")
	case errors.Is(err, ErrBusy):
		return last("", 1, "gridbeam: too many calls wait already; try again when some have ended\n")
	case err != nil:
		return s.unserved(last, err)
	}
	defer call.Abandon() // does nothing after the last event
	task := call.TaskID()
	if err := out.Send(&beamwire.FunctionInvokeResponse{TaskId: task}); err != nil {
		return err
	}
	for {
		e, err := call.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("a call's end cannot be told", "call", task, "err", err)
				return last(task, 1, "gridbeam: the bridge failed; its log says why\n")
			}
			return s.failure(err)
		}
		rest, err := sendOutput(out, task, e.Output)
		if err != nil {
			return err
		}
		if rest == "" && !e.Done {
			continue
		}
		frame := &beamwire.FunctionInvokeResponse{TaskId: task, Output: rest, Done: e.Done, ExitCode: e.Exit}
		if e.Done && e.Exit == 0 {
			// Whatever the node calls it: the client unpickles it.
			text, err := s.judgeResult(ctx, &stub, e.Result)
			if err != nil {
				return s.failure(err)
			}
			if text != "" {
				frame.ExitCode, frame.Output = 1, rest+text
			} else {
				frame.Result = e.Result
			}
		}
		if err := out.Send(frame); err != nil || e.Done {
			return err
		}
	}
}

// unserved ends a call that the bridge did not take: by a status only where no other call would fare better, since that
// ends the whole of a client's map.
func (s *Server) unserved(last func(task string, exit int32, text string) error, err error) error {
	no := s.failure(err)
	switch no.Code() {
	case connect.CodeUnavailable, connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return no
	}
	return last("", 1, "gridbeam: "+no.Message()+"\n")
}

// maxOutput bounds the text of one frame: with the largest result it still is a message that the SDK takes.
const maxOutput = 256 << 10

// sendOutput sends what is beyond the text of one frame and returns the rest. A function may print what is no UTF-8, which
// a message must not carry.
func sendOutput(out *connect.ServerStream[beamwire.FunctionInvokeResponse], task, text string) (string, error) {
	text = strings.ToValidUTF8(text, "\uFFFD")
	for len(text) > maxOutput {
		n := maxOutput
		for !utf8.RuneStart(text[n]) {
			n--
		}
		if err := out.Send(&beamwire.FunctionInvokeResponse{TaskId: task, Output: text[:n]}); err != nil {
			return "", err
		}
		text = text[n:]
	}
	return text, nil
}
