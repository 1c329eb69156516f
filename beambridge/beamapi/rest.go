package beamapi

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

const (
	// uploadFor is how long the address of an upload is good.
	uploadFor = 15 * time.Minute
	// beatEvery keeps a silent stream from being cut by what is between.
	beatEvery = 15 * time.Second
)

func pathEscape(s string) string { return url.PathEscape(s) }

// restRoutes are the paths in snake_case, and those that functions are called by.
func (s *Server) restRoutes() {
	handle := func(pattern string, least Role, do func(http.ResponseWriter, *http.Request, Principal) error) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			query := ""
			if strings.Contains(pattern, " /function/") {
				query = r.URL.Query().Get("auth_token")
			}
			who, no := s.authenticate(r.Context(), r.Header, r.RemoteAddr, query, least)
			if no != nil {
				writeError(w, no)
				return
			}
			timed(w, r, false)
			if ws := r.PathValue("ws"); ws != "" && ws != who.Workspace {
				writeError(w, s.failure(ErrNotFound))
				return
			}
			if err := do(w, r, who); err != nil {
				writeError(w, s.failure(err))
			}
		})
	}
	s.mux.HandleFunc("GET /api/v1/health", func(w http.ResponseWriter, _ *http.Request) {
		if s.draining() != nil {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "draining"})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	handle("GET /api/v1/workspace/current", RoleRead, func(w http.ResponseWriter, _ *http.Request, who Principal) error {
		writeJSON(w, http.StatusOK, map[string]string{"external_id": who.Workspace, "name": who.Workspace})
		return nil
	})
	handle("GET /api/v1/task/{ws}", RoleRead, s.restTasks)
	handle("DELETE /api/v1/task/{ws}", RoleInvoke, s.restStop)
	handle("GET /api/v1/task/{ws}/{id}", RoleRead, s.restTask)
	handle("GET /api/v1/task/{ws}/{id}/subscribe", RoleRead, s.restSubscribe)
	handle("GET /api/v1/deployment/{ws}", RoleRead, s.restDeployments)
	handle("GET /api/v1/deployment/{ws}/{id}", RoleRead, s.restDeployment)
	handle("GET /api/v1/gateway/objects/{hash}", RoleFull, s.restObject)
	for _, p := range []string{"{name}", "{name}/{version}"} { // a function called "id" is called by its stub
		handle("POST /function/"+p, RoleInvoke, s.restInvoke)
	}
	s.mux.HandleFunc("PUT /api/v1/objects/{hash}", s.upload)
}

// restObject is HeadObject as the JavaScript client asks it: it uploads to an address, not by messages.
func (s *Server) restObject(w http.ResponseWriter, r *http.Request, who Principal) error {
	out, err := s.headObject(r.Context(), who, &beamwire.HeadObjectRequest{Hash: r.PathValue("hash")})
	if err != nil {
		return err
	}
	out.UseWorkspaceStorage = true
	writeMessage(w, http.StatusOK, out)
	return nil
}

// createObject gives out an address to upload an archive to.
func (s *Server) createObject(ctx context.Context, who Principal, req *beamwire.CreateObjectRequest) (*beamwire.CreateObjectResponse, error) {
	if !isHash(req.GetHash()) {
		return &beamwire.CreateObjectResponse{ErrorMsg: "hash is no SHA-256 in hex"}, nil
	}
	q := url.Values{"workspace": {who.Workspace}, "token": {who.TokenID}, "name": {req.GetObjectMetadata().GetName()}, "until": {strconv.FormatInt(s.cfg.Now().Add(uploadFor).Unix(), 10)}}
	q.Set("signature", s.sign(req.GetHash(), q))
	return &beamwire.CreateObjectResponse{Ok: true, ObjectId: req.GetHash(), PresignedUrl: callerOf(ctx).base + "/api/v1/objects/" + req.GetHash() + "?" + q.Encode()}, nil
}

func (s *Server) sign(hash string, q url.Values) string {
	mac := hmac.New(sha256.New, s.secret[:])
	mac.Write([]byte("gridbeam/upload/2\x00"))
	for _, part := range []string{hash, q.Get("workspace"), q.Get("token"), q.Get("name"), q.Get("until")} {
		fmt.Fprintf(mac, "%d:%s", len(part), part) // a name may hold anything
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// upload takes an archive at an address that was given out, as long as the token is good that asked for it.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	hash, q := r.PathValue("hash"), r.URL.Query()
	until, err := strconv.ParseInt(q.Get("until"), 10, 64)
	if err != nil || !hmac.Equal([]byte(s.sign(hash, q)), []byte(q.Get("signature"))) || s.cfg.Now().Unix() > until {
		writeError(w, connect.NewError(connect.CodePermissionDenied, errors.New("the address of the upload is not good, or not any more; ask for a new one")))
		return
	}
	who := Principal{Workspace: q.Get("workspace"), TokenID: q.Get("token"), Role: RoleFull}
	if err := s.bridge.Tokens.StillGood(r.Context(), who); errors.Is(err, ErrUnauthenticated) {
		writeError(w, connect.NewError(connect.CodePermissionDenied, errors.New("the token that asked for this address was revoked; ask for a new one with another")))
		return
	} else if err != nil {
		writeError(w, s.failure(err))
		return
	}
	timed(w, r, true)
	if _, err := s.bridge.Objects.PutObject(r.Context(), who, hash, r.ContentLength, q.Get("name"), r.Body); err != nil {
		writeError(w, s.failure(err))
		return
	}
	w.WriteHeader(http.StatusOK)
}

// restInvoke calls a function by HTTP and answers with the task's id.
func (s *Server) restInvoke(w http.ResponseWriter, r *http.Request, who Principal) error {
	if err := s.draining(); err != nil {
		return err
	}
	call := Call{Encoding: protocol.EncodingJSON, Headless: true}
	if r.PathValue("name") == "id" {
		call.StubID = r.PathValue("version")
	} else {
		d, err := s.deployed(r, who)
		if err != nil {
			return err
		}
		call.StubID, call.Deployment = d.StubID, d.ID
	}
	var err error
	if call.Args, err = callArgs(r); err != nil {
		return err
	}
	running, err := s.bridge.Calls.Invoke(r.Context(), who, call)
	if err != nil {
		return err
	}
	running.Abandon() // it is headless: whoever wants the result asks for the task
	writeJSON(w, http.StatusOK, map[string]string{"task_id": running.TaskID()})
	return nil
}

// deployed finds the deployment that an address names.
func (s *Server) deployed(r *http.Request, who Principal) (d Deployment, err error) {
	key := DeploymentKey{Type: "function/deployment", Name: r.PathValue("name")}
	if v := r.PathValue("version"); v != "" && v != "latest" {
		n, err := strconv.ParseUint(strings.TrimPrefix(v, "v"), 10, 32)
		if err != nil || n == 0 || !strings.HasPrefix(v, "v") {
			return d, badRequest("%.40q is no version: write v1, or latest", v)
		}
		key.Version = uint32(n)
	}
	d, err = s.bridge.Stubs.Deployment(r.Context(), who, key)
	if errors.Is(err, ErrNotFound) || err == nil && !d.Active {
		if key.Version > 0 {
			return d, badRequest("there is no active deployment %.80q of a function at version v%d", key.Name, key.Version)
		}
		return d, badRequest("there is no active deployment %.80q of a function", key.Name)
	}
	return d, err
}

func badRequest(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// callArgs makes {"args": […], "kwargs": {…}} of a body and a query: keys other than these two, and the query, are
// keyword arguments. Numbers keep the form that they were written in.
func callArgs(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxArgs+1))
	if err != nil {
		return nil, badRequest("the body cannot be read")
	}
	if len(body) > maxArgs {
		return nil, badRequest("the arguments have more than %d bytes; put the data into a volume", maxArgs)
	}
	given := map[string]json.RawMessage{}
	if len(strings.TrimSpace(string(body))) > 0 {
		if err := json.Unmarshal(body, &given); err != nil {
			return nil, badRequest("the body is no JSON object: %s", clip(err.Error(), 200))
		}
	}
	args, kwargs := []json.RawMessage{}, map[string]json.RawMessage{}
	if raw, ok := given["args"]; ok {
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, badRequest("args is no list")
		}
	}
	if raw, ok := given["kwargs"]; ok {
		if err := json.Unmarshal(raw, &kwargs); err != nil {
			return nil, badRequest("kwargs is no object")
		}
	}
	for k, v := range given {
		if k != "args" && k != "kwargs" {
			kwargs[k] = v
		}
	}
	for k, v := range r.URL.Query() {
		if k == "auth_token" {
			continue
		}
		raw, err := json.Marshal(v[0])
		if err != nil {
			return nil, badRequest("the query's %.40q is no text", k)
		}
		kwargs[k] = raw
	}
	return json.Marshal(map[string]any{"args": args, "kwargs": kwargs})
}

// restTaskOf is a task as the REST clients read it.
func restTaskOf(who Principal, t *Task) map[string]any {
	at := func(x time.Time) any {
		if x.IsZero() {
			return nil
		}
		return x.UTC().Format(time.RFC3339Nano)
	}
	active := 0
	if t.Status == StatusRunning {
		active = 1
	}
	out := map[string]any{
		"id": t.ID, "external_id": t.ID, "status": string(t.Status), "container_id": t.Node, "created_at": at(t.Created), "started_at": at(t.Started), "ended_at": at(t.Ended),
		"updated_at": at(latest(t)), "stub_id": t.StubID, "stub_name": t.StubName, "workspace_id": who.Workspace, "workspace_name": who.Workspace,
		"stub": map[string]any{"id": t.StubID, "external_id": t.StubID, "name": t.StubName, "type": t.StubType}, "outputs": []any{}, "result": nil,
		"stats": map[string]int{"active_containers": active, "queue_depth": 0}, "failure_reason": "", "deployment": nil,
	}
	if t.Status.Final() && t.Status != StatusComplete {
		out["failure_reason"] = t.Text
	}
	if t.DeploymentID != "" {
		out["deployment"] = map[string]any{"id": t.DeploymentID, "external_id": t.DeploymentID, "name": t.DeploymentName, "version": t.DeploymentVersion}
	}
	return out
}

// restResult is a result for REST clients: JSON as it is, a pickle in base64 (beam-interface.md 6.5). One that its client must
// not load is an error.
func (s *Server) restResult(ctx context.Context, who Principal, t *Task, out map[string]any) error {
	refused := func(text string) {
		out["status"], out["failure_reason"] = string(StatusError), strings.TrimSpace(text)
	}
	switch {
	case t.Status != StatusComplete || len(t.Result) == 0:
	case t.Encoding == protocol.EncodingJSON && json.Valid(t.Result):
		// The Python client takes an object with this key for a pickle, whoever wrote it.
		var object map[string]json.RawMessage
		if json.Unmarshal(t.Result, &object) == nil {
			if _, ok := object["base64"]; ok {
				refused("gridbeam: the result is an object with the key base64, which its client would unpickle; name the key otherwise")
				return nil
			}
		}
		out["result"] = json.RawMessage(t.Result)
	default:
		stub, err := s.bridge.Stubs.Stub(ctx, who, t.StubID)
		if err != nil && !errors.Is(err, ErrNotFound) { // one that was forgotten allowed nothing beyond what is always good
			return err
		}
		text, err := s.judgeResult(ctx, &stub, t.Result)
		if err != nil {
			return err
		}
		if text != "" {
			refused(text)
			return nil
		}
		out["result"] = map[string]string{"base64": base64.StdEncoding.EncodeToString(t.Result)}
	}
	return nil
}

func (s *Server) restTask(w http.ResponseWriter, r *http.Request, who Principal) error {
	out, _, err := s.taskNow(r.Context(), who, r.PathValue("id"))
	if err == nil {
		writeJSON(w, http.StatusOK, out)
	}
	return err
}

func (s *Server) taskNow(ctx context.Context, who Principal, id string) (map[string]any, Status, error) {
	t, err := s.bridge.Calls.Task(ctx, who, id)
	return s.taskAs(ctx, who, &t, err)
}

// taskAs is a task with its result as REST clients read it.
func (s *Server) taskAs(ctx context.Context, who Principal, t *Task, err error) (map[string]any, Status, error) {
	if err != nil {
		return nil, "", err
	}
	out := restTaskOf(who, t)
	return out, t.Status, s.restResult(ctx, who, t, out)
}

func (s *Server) restTasks(w http.ResponseWriter, r *http.Request, who Principal) error {
	q := r.URL.Query()
	f := TaskFilter{Limit: maxListed}
	if n, err := strconv.ParseUint(q.Get("limit"), 10, 32); err == nil && n > 0 {
		f.Limit = int(min(n, maxListed))
	}
	for _, v := range strings.FieldsFunc(q.Get("status"), func(r rune) bool { return r == ',' }) {
		f.Statuses = append(f.Statuses, Status(strings.ToUpper(v)))
	}
	if v := q.Get("stub_ids"); v != "" {
		f.StubIDs = strings.Split(v, ",")
	}
	tasks, _, err := s.bridge.Calls.Tasks(r.Context(), who, f)
	if err != nil {
		return err
	}
	list := make([]map[string]any, 0, len(tasks))
	for i := range tasks {
		list = append(list, restTaskOf(who, &tasks[i]))
	}
	writeJSON(w, http.StatusOK, map[string]any{"data": list, "next": ""})
	return nil
}

// restStop cancels tasks that body or query name.
func (s *Server) restStop(w http.ResponseWriter, r *http.Request, who Principal) error {
	var body struct {
		IDs     []string `json:"ids"`
		TaskIDs []string `json:"task_ids"`
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil || len(strings.TrimSpace(string(raw))) > 0 && json.Unmarshal(raw, &body) != nil {
		return badRequest("the body is no JSON object with ids or task_ids")
	}
	ids := append(body.IDs, body.TaskIDs...)
	for _, k := range []string{"ids", "task_ids"} {
		for _, v := range r.URL.Query()[k] {
			ids = append(ids, strings.Split(v, ",")...)
		}
	}
	if len(ids) == 0 || len(ids) > maxListed {
		return badRequest("name 1 to %d tasks by ids", maxListed)
	}
	if err := s.bridge.Calls.StopTasks(r.Context(), who, ids); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{})
	return nil
}

// restSubscribe streams a task's changes to its end.
func (s *Server) restSubscribe(w http.ResponseWriter, r *http.Request, who Principal) error {
	id := r.PathValue("id")
	out, status, err := s.taskNow(r.Context(), who, id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	flush := http.NewResponseController(w)
	send := func() bool { // ends with the stream, or with the final status
		raw, err := json.Marshal(out)
		if err == nil {
			_, err = fmt.Fprintf(w, "event: status\ndata: %s\n\n", raw)
		}
		return err == nil && flush.Flush() == nil && !status.Final()
	}
	for send() {
		for {
			wait, stop := context.WithTimeout(r.Context(), beatEvery)
			t, err := s.bridge.Calls.Await(wait, who, id, status)
			stop()
			if err != nil && errors.Is(wait.Err(), context.DeadlineExceeded) && r.Context().Err() == nil {
				if _, err := io.WriteString(w, ": still there\n\n"); err != nil || flush.Flush() != nil {
					return nil
				}
				continue
			}
			if out, status, err = s.taskAs(r.Context(), who, &t, err); err != nil {
				return nil // the stream has begun
			}
			break
		}
	}
	return nil
}

// restDeploymentOf is a deployment as REST clients read it. The JavaScript client takes it as it comes and reads
// stubType.
func restDeploymentOf(who Principal, d *Deployment) map[string]any {
	return map[string]any{
		"id": d.ID, "external_id": d.ID, "name": d.Name, "active": d.Active, "version": d.Version, "stub_id": d.StubID, "stub_type": d.StubType, "stubType": d.StubType, "stub_name": d.StubName,
		"app_id": d.App, "workspace_id": who.Workspace, "workspace_name": who.Workspace, "created_at": d.Created.UTC().Format(time.RFC3339Nano),
		"updated_at": d.Updated.UTC().Format(time.RFC3339Nano), "stub": map[string]any{"id": d.StubID, "external_id": d.StubID, "name": d.StubName, "type": d.StubType},
		"workspace": map[string]any{"external_id": who.Workspace, "name": who.Workspace},
	}
}

func (s *Server) restDeployments(w http.ResponseWriter, r *http.Request, who Principal) error {
	q := r.URL.Query()
	f := DeploymentFilter{Limit: maxListed}
	for key, to := range map[string]*[]string{"stub_type": &f.Types, "name": &f.Names, "stub_id": &f.StubIDs, "app_id": &f.Apps} {
		if v := q.Get(key); v != "" {
			*to = strings.Split(v, ",")
		}
	}
	if v := q.Get("active"); v != "" {
		active := v == "true"
		f.Active = &active
	}
	all, err := s.bridge.Stubs.Deployments(r.Context(), who, f)
	if err != nil {
		return err
	}
	list := make([]map[string]any, 0, len(all))
	for i := range all {
		list = append(list, restDeploymentOf(who, &all[i]))
	}
	writeJSON(w, http.StatusOK, map[string]any{"data": list, "next": ""})
	return nil
}

func (s *Server) restDeployment(w http.ResponseWriter, r *http.Request, who Principal) error {
	d, err := s.bridge.Stubs.Deployment(r.Context(), who, DeploymentKey{ID: r.PathValue("id")})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, restDeploymentOf(who, &d))
	return nil
}
