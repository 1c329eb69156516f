package beamapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

// maxListed bounds what a list answers.
const maxListed = 1000

func (s *Server) authorize(_ context.Context, who Principal, _ *beamwire.AuthorizeRequest) (*beamwire.AuthorizeResponse, error) {
	return &beamwire.AuthorizeResponse{Ok: true, WorkspaceId: who.Workspace}, nil
}

func (s *Server) headObject(ctx context.Context, who Principal, req *beamwire.HeadObjectRequest) (*beamwire.HeadObjectResponse, error) {
	if !isHash(req.GetHash()) {
		return &beamwire.HeadObjectResponse{ErrorMsg: "hash is no SHA-256 in hex"}, nil
	}
	o, err := s.bridge.Objects.Object(ctx, who, req.GetHash())
	switch {
	case errors.Is(err, ErrNotFound):
		return &beamwire.HeadObjectResponse{Ok: true}, nil
	case err != nil:
		return nil, err
	}
	return &beamwire.HeadObjectResponse{
		Ok: true, Exists: true, ObjectId: o.ID, ObjectMetadata: &beamwire.ObjectMetadata{Name: o.Name, Size: o.Size},
	}, nil
}

// putObjectStream takes an archive in pieces.
func (s *Server) putObjectStream(ctx context.Context, in *connect.ClientStream[beamwire.PutObjectRequest]) (*connect.Response[beamwire.PutObjectResponse], error) {
	who := callerOf(ctx).Principal
	answer := func(r *beamwire.PutObjectResponse) (*connect.Response[beamwire.PutObjectResponse], error) {
		return connect.NewResponse(r), nil
	}
	if !in.Receive() {
		if err := in.Err(); err != nil {
			return nil, err
		}
		return answer(&beamwire.PutObjectResponse{ErrorMsg: "nothing was sent"})
	}
	first := in.Msg()
	hash, name := first.GetHash(), first.GetObjectMetadata().GetName()
	if !isHash(hash) {
		return answer(&beamwire.PutObjectResponse{ErrorMsg: "hash is no SHA-256 in hex"})
	}
	body := &pieces{in: in, piece: bytes.NewReader(first.GetObjectContent())}
	o, err := s.bridge.Objects.PutObject(ctx, who, hash, -1, name, body)
	text, err := s.said(err, "the object")
	if err != nil {
		return nil, err
	}
	return answer(&beamwire.PutObjectResponse{Ok: text == "", ObjectId: o.ID, ErrorMsg: text})
}

// pieces is the content of a stream of messages.
type pieces struct {
	in    *connect.ClientStream[beamwire.PutObjectRequest]
	piece *bytes.Reader
}

func (p *pieces) Read(b []byte) (int, error) {
	for p.piece.Len() == 0 {
		if !p.in.Receive() {
			if err := p.in.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		p.piece = bytes.NewReader(p.in.Msg().GetObjectContent())
	}
	return p.piece.Read(b)
}

func (s *Server) getOrCreateVolume(ctx context.Context, who Principal, req *beamwire.GetOrCreateVolumeRequest) (*beamwire.GetOrCreateVolumeResponse, error) {
	if !protocol.ValidVolumeName(req.GetName()) {
		return &beamwire.GetOrCreateVolumeResponse{ErrMsg: fmt.Sprintf("volume %.80q: a name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit", req.GetName())}, nil
	}
	v, err := s.bridge.Volumes.GetOrCreateVolume(ctx, who, req.GetName())
	text, err := s.said(err, "the volume")
	if err != nil || text != "" {
		return &beamwire.GetOrCreateVolumeResponse{ErrMsg: text}, err
	}
	return &beamwire.GetOrCreateVolumeResponse{Ok: true, Volume: volumeOf(who, v)}, nil
}

func volumeOf(who Principal, v Volume) *beamwire.VolumeInstance {
	return &beamwire.VolumeInstance{
		Id: v.ID, Name: v.Name, Size: v.Size, CreatedAt: stamp(v.Created), UpdatedAt: stamp(v.Updated), WorkspaceId: who.Workspace, WorkspaceName: who.Workspace,
	}
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func (s *Server) listVolumes(ctx context.Context, who Principal, _ *beamwire.ListVolumesRequest) (*beamwire.ListVolumesResponse, error) {
	all, err := s.bridge.Volumes.Volumes(ctx, who)
	if err != nil {
		return nil, err
	}
	out := &beamwire.ListVolumesResponse{Ok: true}
	for _, v := range all {
		out.Volumes = append(out.Volumes, volumeOf(who, v))
	}
	return out, nil
}

// fileService says that files are not copied over a service of their own.
func (s *Server) fileService(context.Context, Principal, *beamwire.GetFileServiceInfoRequest) (*beamwire.GetFileServiceInfoResponse, error) {
	return &beamwire.GetFileServiceInfoResponse{Ok: true}, nil
}

func (s *Server) getOrCreateStub(ctx context.Context, who Principal, req *beamwire.GetOrCreateStubRequest) (*beamwire.GetOrCreateStubResponse, error) {
	no := func(text string, err error) (*beamwire.GetOrCreateStubResponse, error) {
		return &beamwire.GetOrCreateStubResponse{ErrMsg: text}, err
	}
	names := map[string]string{}
	if len(req.GetVolumes()) > 0 {
		all, err := s.bridge.Volumes.Volumes(ctx, who)
		if err != nil {
			return nil, err
		}
		for _, v := range all {
			names[v.ID] = v.Name
		}
	}
	stub, err := translate(req, names)
	if err != nil {
		return no(s.said(err, "the function"))
	}
	reply, err := s.bridge.Stubs.PutStub(ctx, who, stub, req.GetForceCreate())
	if err != nil {
		return no(s.said(err, "the code"))
	}
	warnings := stub.Warnings
	if reply.Warning != "" {
		warnings = append(warnings, reply.Warning)
	}
	return &beamwire.GetOrCreateStubResponse{
		Ok: true, StubId: reply.ID, WarnMsg: strings.Join(warnings, "\n"), CapacityStatus: reply.Capacity, UnsupportedGpus: reply.UnsupportedGPUs, MatchedPrivatePool: reply.Pool,
	}, nil
}

func (s *Server) deployStub(ctx context.Context, who Principal, req *beamwire.DeployStubRequest) (*beamwire.DeployStubResponse, error) {
	if name := req.GetName(); name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00\n") {
		return &beamwire.DeployStubResponse{ErrMsg: fmt.Sprintf("name %.80q: a deployment's name has 1 to %d bytes and no slash", name, maxName)}, nil
	}
	d, err := s.bridge.Stubs.Deploy(ctx, who, req.GetStubId(), req.GetName())
	text, err := s.said(err, "the function")
	if err != nil || text != "" {
		return &beamwire.DeployStubResponse{ErrMsg: text}, err
	}
	return &beamwire.DeployStubResponse{Ok: true, DeploymentId: d.ID, Version: d.Version, InvokeUrl: deploymentURL(callerOf(ctx).base, &d)}, nil
}

// deploymentURL is where a deployment is called.
func deploymentURL(base string, d *Deployment) string {
	kind, _, _ := strings.Cut(d.StubType, "/")
	return fmt.Sprintf("%s/%s/%s/v%d", base, kind, pathEscape(d.Name), d.Version)
}

func (s *Server) getURL(ctx context.Context, who Principal, req *beamwire.GetURLRequest) (*beamwire.GetURLResponse, error) {
	base := callerOf(ctx).base
	if id := req.GetDeploymentId(); id != "" {
		d, err := s.bridge.Stubs.Deployment(ctx, who, DeploymentKey{ID: id})
		text, err := s.said(err, "the deployment")
		if err != nil || text != "" {
			return &beamwire.GetURLResponse{ErrMsg: text}, err
		}
		return &beamwire.GetURLResponse{Ok: true, Url: deploymentURL(base, &d)}, nil
	}
	stub, err := s.bridge.Stubs.Stub(ctx, who, req.GetStubId())
	text, err := s.said(err, "the function")
	if err != nil || text != "" {
		return &beamwire.GetURLResponse{ErrMsg: text}, err
	}
	kind, _, _ := strings.Cut(stub.Type, "/")
	return &beamwire.GetURLResponse{Ok: true, Url: base + "/" + kind + "/id/" + stub.ID}, nil
}

// choices reads the filters of a list, each under one of its known names: Beam's clients write stub-id, stub_id and
// stub-ids for the same. One that is not known is a *Refusal: to pass over it would answer with what nobody asked for.
func choices(m map[string]*beamwire.StringList, known ...string) (map[string][]string, error) {
	out := make(map[string][]string, len(m))
	for key, list := range m {
		name := strings.ReplaceAll(key, "_", "-")
		if !slices.Contains(known, name) {
			name = strings.TrimSuffix(name, "s")
		}
		if !slices.Contains(known, name) {
			return nil, refuse("filter %.64q is not known; there are %s", key, strings.Join(known, ", "))
		}
		for _, v := range list.GetValues() {
			for part := range strings.SplitSeq(v, ",") {
				if part = strings.TrimSpace(part); part != "" {
					out[name] = append(out[name], part)
				}
			}
		}
	}
	return out, nil
}

// truth reads a yes or no as Beam's clients write it.
func truth(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true", "yes", "y", "t", "1":
		return true, nil
	case "false", "no", "n", "f", "0":
		return false, nil
	}
	return false, refuse("active %.32q is neither true nor false", v)
}

func (s *Server) listTasks(ctx context.Context, who Principal, req *beamwire.ListTasksRequest) (*beamwire.ListTasksResponse, error) {
	by, err := choices(req.GetFilters(), "status", "id", "task-id", "stub-id", "stub-name", "container-id")
	if err != nil {
		text, err := s.said(err, "the filter")
		return &beamwire.ListTasksResponse{ErrMsg: text}, err
	}
	f := TaskFilter{IDs: append(by["id"], by["task-id"]...), StubIDs: by["stub-id"], StubNames: by["stub-name"], Nodes: by["container-id"], Limit: limitOf(req.GetLimit())}
	for _, v := range by["status"] {
		f.Statuses = append(f.Statuses, Status(strings.ToUpper(v)))
	}
	tasks, total, err := s.bridge.Calls.Tasks(ctx, who, f)
	if err != nil {
		return nil, err
	}
	out := &beamwire.ListTasksResponse{Ok: true, Total: int32(total)}
	for i := range tasks {
		t := &tasks[i]
		out.Tasks = append(out.Tasks, &beamwire.Task{
			Id: t.ID, Status: string(t.Status), ContainerId: t.Node, StartedAt: stamp(t.Started), EndedAt: stamp(t.Ended), StubId: t.StubID, StubName: t.StubName,
			WorkspaceId: who.Workspace, WorkspaceName: who.Workspace, CreatedAt: stamp(t.Created), UpdatedAt: stamp(latest(t)),
		})
	}
	return out, nil
}

// latest is when a task changed last, as far as is known.
func latest(t *Task) time.Time {
	at := t.Created
	for _, x := range []time.Time{t.Started, t.Ended} {
		if x.After(at) {
			at = x
		}
	}
	return at
}

func limitOf(n uint32) int {
	if n == 0 {
		return maxListed
	}
	return int(min(n, maxListed))
}

func (s *Server) stopTasks(ctx context.Context, who Principal, req *beamwire.StopTasksRequest) (*beamwire.StopTasksResponse, error) {
	if len(req.GetTaskIds()) > maxListed {
		return &beamwire.StopTasksResponse{ErrMsg: fmt.Sprintf("%d tasks at once, at most %d", len(req.GetTaskIds()), maxListed)}, nil
	}
	text, err := s.said(s.bridge.Calls.StopTasks(ctx, who, req.GetTaskIds()), "a task")
	return &beamwire.StopTasksResponse{Ok: err == nil && text == "", ErrMsg: text}, err
}

func (s *Server) listDeployments(ctx context.Context, who Principal, req *beamwire.ListDeploymentsRequest) (*beamwire.ListDeploymentsResponse, error) {
	f, versions, err := deploymentFilter(req)
	if err != nil {
		text, err := s.said(err, "the filter")
		return &beamwire.ListDeploymentsResponse{ErrMsg: text}, err
	}
	all, err := s.bridge.Stubs.Deployments(ctx, who, f)
	if err != nil {
		return nil, err
	}
	out := &beamwire.ListDeploymentsResponse{Ok: true}
	for i := range all {
		d := &all[i]
		if len(versions) > 0 && !slices.Contains(versions, strconv.FormatUint(uint64(d.Version), 10)) || len(out.GetDeployments()) == limitOf(req.GetLimit()) {
			continue
		}
		out.Deployments = append(out.Deployments, &beamwire.Deployment{
			Id: d.ID, Name: d.Name, Active: d.Active, StubId: d.StubID, StubType: d.StubType, StubName: d.StubName, Version: d.Version, WorkspaceId: who.Workspace,
			WorkspaceName: who.Workspace, CreatedAt: stamp(d.Created), UpdatedAt: stamp(d.Updated), AppId: d.App,
		})
	}
	return out, nil
}

// deploymentFilter reads what deployments are asked for; versions are chosen from what the bridge answers.
func deploymentFilter(req *beamwire.ListDeploymentsRequest) (f DeploymentFilter, versions []string, err error) {
	by, err := choices(req.GetFilters(), "active", "name", "version", "stub-type", "stub-id", "app-id")
	if err != nil {
		return f, nil, err
	}
	f = DeploymentFilter{Types: by["stub-type"], Names: by["name"], StubIDs: by["stub-id"], Apps: by["app-id"], Limit: limitOf(req.GetLimit())}
	if len(by["version"]) > 0 {
		f.Limit = maxListed
	}
	if v := by["active"]; len(v) > 0 {
		active, err := truth(v[0])
		if err != nil {
			return f, nil, err
		}
		f.Active = &active
	}
	return f, by["version"], nil
}

func (s *Server) stopDeployment(ctx context.Context, who Principal, req *beamwire.StopDeploymentRequest) (*beamwire.StopDeploymentResponse, error) {
	text, err := s.said(s.bridge.Lifecycle.SetActive(ctx, who, req.GetId(), false), "the deployment")
	return &beamwire.StopDeploymentResponse{Ok: err == nil && text == "", ErrMsg: text}, err
}

func (s *Server) startDeployment(ctx context.Context, who Principal, req *beamwire.StartDeploymentRequest) (*beamwire.StartDeploymentResponse, error) {
	text, err := s.said(s.bridge.Lifecycle.SetActive(ctx, who, req.GetId(), true), "the deployment")
	return &beamwire.StartDeploymentResponse{Ok: err == nil && text == "", ErrMsg: text}, err
}

func (s *Server) deleteDeployment(ctx context.Context, who Principal, req *beamwire.DeleteDeploymentRequest) (*beamwire.DeleteDeploymentResponse, error) {
	text, err := s.said(s.bridge.Lifecycle.DeleteDeployment(ctx, who, req.GetId()), "the deployment")
	return &beamwire.DeleteDeploymentResponse{Ok: err == nil && text == "", ErrMsg: text}, err
}
