package beamapi

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

const invokeProcedure = "/function.FunctionService/FunctionInvoke"

// functionInvoke runs one call: its id at once, its output in order, and one last frame with result and exit code
// together. What goes wrong with this call alone is told in that frame: a status would end its siblings.
func (s *Server) functionInvoke(ctx context.Context, r *connect.Request[beamwire.FunctionInvokeRequest], out *connect.ServerStream[beamwire.FunctionInvokeResponse]) error {
	who, no := s.authenticate(ctx, r.Header(), r.Peer().Addr, "", RoleInvoke)
	if no != nil {
		return no
	}
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
		return s.failure(err)
	}
	call, err := s.bridge.Calls.Invoke(ctx, who, Call{StubID: stub.ID, Args: req.GetArgs(), Encoding: protocol.EncodingPickle, Headless: req.GetHeadless()})
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		return last("", 1, "gridbeam: "+refusal.Text+"\n")
	case errors.Is(err, ErrBusy):
		return last("", 1, "gridbeam: too many calls wait already; try again when some have ended\n")
	case err != nil:
		return s.failure(err)
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
		frame := &beamwire.FunctionInvokeResponse{TaskId: task, Output: e.Output, Done: e.Done, ExitCode: e.Exit}
		if e.Done && e.Exit == 0 {
			if text := s.judgeResult(&stub, &e); text != "" {
				frame.ExitCode, frame.Output = 1, e.Output+text
			} else {
				frame.Result = e.Result
			}
		}
		if err := out.Send(frame); err != nil || e.Done {
			return err
		}
	}
}

// judgeResult says why a result must not go to its client, which would unpickle it; empty for a good one.
func (s *Server) judgeResult(stub *Stub, e *Event) string {
	if len(e.Result) > maxResult {
		return fmt.Sprintf("gridbeam: the result has %d bytes, at most %d fit; write it to a volume\n", len(e.Result), maxResult)
	}
	if e.Encoding == protocol.EncodingJSON {
		return ""
	}
	if err := s.cfg.Gate(e.Result, stub.ResultAllow, stub.ResultAny); err != nil {
		return "gridbeam: " + err.Error() + "\n"
	}
	return ""
}
