package beamapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
)

// caller is who makes a request, and where it came in.
type caller struct {
	Principal
	base string
}

type callerKey struct{}

// callerOf is the caller of a request's context, as far as it is a handler's.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// message is a protobuf message of type T.
type message[T any] interface {
	*T
	proto.Message
}

// unary makes one method answer gRPC and, where paths are given, JSON: "POST images/verify-build" below /api/v1/gateway/.
// A field of a path is set in the request.
func unary[Req, Res any, PReq message[Req], PRes message[Res]](s *Server, procedure string, least Role, do func(context.Context, Principal, *Req) (*Res, error), paths ...string) {
	s.mux.Handle(procedure, s.guard(least, false, connect.NewUnaryHandler(procedure, func(ctx context.Context, r *connect.Request[Req]) (*connect.Response[Res], error) {
		out, err := do(ctx, callerOf(ctx).Principal, r.Msg)
		if err != nil {
			return nil, s.failure(err)
		}
		return connect.NewResponse(out), nil
	}, connect.WithReadMaxBytes(maxMessage), connect.WithSendMaxBytes(maxMessage), connect.WithCompressMinBytes(1<<30))))
	for _, p := range paths {
		verb, path, _ := strings.Cut(p, " ")
		s.mux.HandleFunc(verb+" /api/v1/gateway/"+path, func(w http.ResponseWriter, r *http.Request) {
			who, no := s.authenticate(r.Context(), r.Header, r.RemoteAddr, "", least)
			if no != nil {
				writeError(w, no)
				return
			}
			timed(w, r, false)
			var req Req
			if err := readJSON(r, PReq(&req)); err != nil {
				writeError(w, err)
				return
			}
			ctx := context.WithValue(r.Context(), callerKey{}, caller{who, s.base(r)})
			out, err := do(ctx, who, &req)
			if err != nil {
				writeError(w, s.failure(err))
				return
			}
			writeMessage(w, http.StatusOK, PRes(out))
		})
	}
}

// routes makes every path.
func (s *Server) routes() {
	const gateway, volume = "/gateway.GatewayService/", "/volume.VolumeService/"
	unary(s, "/image.ImageService/VerifyImageBuild", RoleFull, s.verifyImage, "POST images/verify-build")
	unary(s, gateway+"Authorize", RoleRead, s.authorize)
	unary(s, gateway+"HeadObject", RoleFull, s.headObject)
	unary(s, gateway+"CreateObject", RoleFull, s.createObject, "POST objects")
	unary(s, gateway+"GetOrCreateStub", RoleFull, s.getOrCreateStub, "POST stubs")
	unary(s, gateway+"DeployStub", RoleFull, s.deployStub, "POST stubs/deploy")
	unary(s, gateway+"GetURL", RoleRead, s.getURL, "GET stubs/{stub_id}/url")
	unary(s, gateway+"ListTasks", RoleRead, s.listTasks, "GET tasks")
	unary(s, gateway+"StopTasks", RoleInvoke, s.stopTasks, "POST tasks/stop")
	unary(s, gateway+"ListDeployments", RoleRead, s.listDeployments, "GET deployments")
	unary(s, gateway+"StopDeployment", RoleFull, s.stopDeployment, "POST deployments/{id}/stop")
	unary(s, gateway+"StartDeployment", RoleFull, s.startDeployment, "POST deployments/{id}/start")
	unary(s, gateway+"DeleteDeployment", RoleFull, s.deleteDeployment, "DELETE deployments/{id}")
	unary(s, volume+"GetOrCreateVolume", RoleFull, s.getOrCreateVolume, "POST volumes")
	unary(s, volume+"ListVolumes", RoleRead, s.listVolumes, "GET volumes")
	unary(s, volume+"GetFileServiceInfo", RoleRead, s.fileService)

	s.mux.Handle(gateway+"PutObjectStream", s.guard(RoleFull, true, connect.NewClientStreamHandler(gateway+"PutObjectStream", s.putObjectStream, connect.WithReadMaxBytes(maxMessage))))
	s.mux.Handle(invokeProcedure, s.guard(RoleInvoke, false, connect.NewServerStreamHandler(invokeProcedure, s.functionInvoke, connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(1<<30))))
	const build = "/image.ImageService/BuildImage"
	s.mux.Handle(build, s.guard(RoleFull, false, connect.NewServerStreamHandler(build, func(ctx context.Context, r *connect.Request[beamwire.BuildImageRequest], out *connect.ServerStream[beamwire.BuildImageResponse]) error {
		return s.buildImage(ctx, callerOf(ctx).Principal, r.Msg, out.Send)
	}, connect.WithReadMaxBytes(maxMessage))))
	s.mux.HandleFunc("POST /api/v1/gateway/images/build", s.restBuild)
	s.mux.HandleFunc("/api/v1/gateway/", s.notOffered)
	const health = "/grpc.health.v1.Health/Check"
	s.mux.Handle(health, connect.NewUnaryHandler(health, func(context.Context, *connect.Request[beamwire.HealthCheckRequest]) (*connect.Response[beamwire.HealthCheckResponse], error) {
		status := beamwire.HealthCheckResponse_SERVING
		if s.draining() != nil {
			status = beamwire.HealthCheckResponse_NOT_SERVING
		}
		return connect.NewResponse(&beamwire.HealthCheckResponse{Status: status}), nil
	}, connect.WithReadMaxBytes(maxHealth)))
	s.restRoutes()
	s.mux.HandleFunc("/", s.unknown)
}

// restBuild answers in lines of {"result": …}, as a stream is written in JSON.
func (s *Server) restBuild(w http.ResponseWriter, r *http.Request) {
	who, no := s.authenticate(r.Context(), r.Header, r.RemoteAddr, "", RoleFull)
	if no != nil {
		writeError(w, no)
		return
	}
	timed(w, r, false)
	req := &beamwire.BuildImageRequest{}
	if err := readJSON(r, req); err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = s.buildImage(r.Context(), who, req, func(m *beamwire.BuildImageResponse) error {
		raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
		if err == nil {
			_, err = w.Write(append(append([]byte(`{"result":`), raw...), "}\n"...))
		}
		return err // who asked may be gone
	})
}

// notOffered answers Beam's JSON paths that are not served.
func (s *Server) notOffered(w http.ResponseWriter, r *http.Request) {
	writeError(w, connect.NewError(connect.CodeUnimplemented, errors.New("gridbeam does not offer "+r.Method+" "+clip(strings.Map(printable, r.URL.Path), 200)+" yet")))
}

// unknown answers what is not served: gRPC clients are told the method's name.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		h := w.Header()
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", "12")
		h.Set("Grpc-Message", "gridbeam does not offer "+clip(strings.Map(printable, r.URL.Path), 200)+" yet")
		return
	}
	writeError(w, connect.NewError(connect.CodeNotFound, errors.New("no such path: "+r.Method+" "+clip(strings.Map(printable, r.URL.Path), 200))))
}

func printable(r rune) rune {
	if r < 0x20 || r > 0x7e || r == '%' {
		return '?'
	}
	return r
}

// readJSON reads a request from body, query and path; unknown fields are ignored, and so is the body of a GET.
func readJSON(r *http.Request, m proto.Message) *connect.Error {
	var body []byte
	if r.Method != http.MethodGet {
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, maxJSON+1)); err != nil {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("the body cannot be read"))
		}
		if len(body) > maxJSON {
			return connect.NewError(connect.CodeResourceExhausted, errors.New("the body is too large"))
		}
	}
	if len(body) > 0 {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("the body is not the JSON that is wanted: "+clip(err.Error(), 200)))
		}
	}
	fields := m.ProtoReflect().Descriptor().Fields()
	set := map[string]any{}
	for i := range fields.Len() {
		f := fields.Get(i)
		name := string(f.Name())
		if v := r.PathValue(name); v != "" {
			set[name] = v
		} else if v := r.URL.Query().Get(name); v != "" && r.Method == http.MethodGet && !f.IsList() && !f.IsMap() && f.Message() == nil {
			set[name] = v
		} else if v := r.URL.Query().Get(f.JSONName()); v != "" && r.Method == http.MethodGet && !f.IsList() && !f.IsMap() && f.Message() == nil {
			set[name] = v
		}
	}
	if len(set) == 0 {
		return nil
	}
	raw, err := json.Marshal(set)
	if err == nil {
		more := m.ProtoReflect().New().Interface()
		if err = (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, more); err == nil {
			proto.Merge(m, more)
		}
	}
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("a value of the address is not what is wanted: "+clip(err.Error(), 200)))
	}
	return nil
}

// writeMessage answers in camelCase, with zeros.
func writeMessage(w http.ResponseWriter, code int, m proto.Message) {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		writeError(w, connect.NewError(connect.CodeInternal, errors.New("the answer cannot be written as JSON")))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(raw) // who asked may be gone
}

// writeJSON answers with a plain value.
func writeJSON(w http.ResponseWriter, code int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		writeError(w, connect.NewError(connect.CodeInternal, errors.New("the answer cannot be written as JSON")))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(raw) // who asked may be gone
}

// writeError answers with an error in the shape that Beam's clients read.
func writeError(w http.ResponseWriter, err *connect.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus(err.Code()))
	raw, _ := json.Marshal(map[string]any{"code": int(err.Code()), "message": err.Message(), "details": []any{}})
	_, _ = w.Write(raw) // who asked may be gone
}

func httpStatus(c connect.Code) int {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return http.StatusBadRequest
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeResourceExhausted:
		return http.StatusTooManyRequests
	case connect.CodeUnimplemented:
		return http.StatusNotImplemented
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
