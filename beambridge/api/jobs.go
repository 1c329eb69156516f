package api

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
)

// submitBody is protocol.SubmitRequest with the job still unread, so that everything wrong in it is told at
// once.
type submitBody struct {
	Job       json.RawMessage `json:"job"`
	ModuleCID string          `json:"module_cid"`
	Lines     []string        `json:"lines"`
	RequestID string          `json:"request_id"`
}

func (s *Server) readSubmit(c *call) (req protocol.SubmitRequest, err error) {
	var b submitBody
	if err := s.decode(c, s.cfg.JobBytes, &b); err != nil {
		return req, err
	}
	if len(b.Job) == 0 {
		return req, badRequest("job", "put the job file there as JSON", "job is missing")
	}
	job, err := protocol.ParseJob(b.Job, "")
	if err != nil {
		return req, err
	}
	c.object = job.Name
	req = protocol.SubmitRequest{Job: job, ModuleCID: b.ModuleCID, Lines: b.Lines, RequestID: b.RequestID}
	if req.ModuleCID != "" {
		if _, err := cid.Decode(req.ModuleCID); err != nil {
			return req, badRequest("module_cid", "send what POST /modules answered", "%.80q is no CID", req.ModuleCID)
		}
	}
	switch {
	case req.ModuleCID != "" && job.Run.Wasm == "":
		return req, badRequest("module_cid", "leave it out", "the job runs no wasm module")
	case len(req.Lines) > 0 && job.Inputs.Lines == "":
		return req, badRequest("lines", "leave them out", "the job's inputs are no lines")
	case len(req.RequestID) > 64 || strings.IndexFunc(req.RequestID, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0:
		return req, badRequest("request_id", "use up to 64 letters, digits and signs", "%.80q is no request ID", req.RequestID)
	}
	for i, l := range req.Lines {
		if strings.ContainsRune(l, 0) || !utf8.ValidString(l) {
			return req, badRequest(fmt.Sprintf("lines[%d]", i), "inputs are text", "line %d has a zero byte or is no UTF-8", i+1)
		}
	}
	return req, nil
}

func (s *Server) validate(c *call) error {
	req, err := s.readSubmit(c)
	if err != nil {
		return err
	}
	reply, err := s.bridge.Jobs.CheckJob(c.r.Context(), c.who, req)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, reply)
}

// submit answers as soon as the job is stored; with ?wait= when it is over or the time has passed, so that a
// short job takes one round trip.
func (s *Server) submit(c *call) error {
	wait, err := s.duration(c, "wait", 0)
	if err != nil {
		return err
	}
	req, err := s.readSubmit(c)
	if err != nil {
		return err
	}
	switch {
	case req.Job.Run.Wasm != "" && req.ModuleCID == "":
		return badRequest("module_cid", "send the module to POST /modules first", "the job runs a wasm module that the bridge was not sent")
	case req.Job.Inputs.Lines != "" && len(req.Lines) == 0:
		return badRequest("lines", "send the lines of inputs.lines", "the job's inputs are lines, and there are none")
	}
	status, err := s.bridge.Jobs.SubmitJob(c.r.Context(), c.who, req)
	if err != nil {
		return err
	}
	c.object = status.ID.String()
	if wait > 0 && !status.State.Over() {
		if later, err := s.waitFor(c, status.ID, math.MaxUint64, wait); err == nil {
			status = later
		} // else the job is stored all the same, and its first status says so
	}
	c.w.Header().Set("Location", protocol.APIPrefix+"/jobs/"+status.ID.String())
	return c.json(http.StatusCreated, status)
}

// jobID reads the job of the path.
func (c *call) jobID() (protocol.JobID, error) {
	id, err := protocol.ParseJobID(c.r.PathValue("id"))
	if err != nil {
		return id, badRequest("id", "copy it from `gridbeam job list`", "%.80q is no job ID", c.r.PathValue("id"))
	}
	c.object = id.String()
	return id, nil
}

// query reads the values of the URL; unknown ones are refused, since a misspelt limit is a surprise later.
func (c *call) query(known ...string) (map[string][]string, error) {
	q := c.r.URL.Query()
	for k := range q {
		if !slices.Contains(known, k) {
			return nil, badRequest(k, "", "%.40q is no parameter here; there are: %s", k, strings.Join(known, ", "))
		}
	}
	return q, nil
}

// duration reads a parameter such as 30s, or a number of seconds, up to Config.MaxWait.
func (s *Server) duration(c *call, name string, absent time.Duration) (time.Duration, error) {
	text := c.r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		text += "s"
	}
	d, err := protocol.ParseDuration(text)
	if err != nil {
		return 0, badRequest(name, "", "%s", err)
	}
	return min(d.Std(), s.cfg.MaxWait), nil
}

func (s *Server) listJobs(c *call) error {
	v, err := c.query("state", "limit", "all")
	if err != nil {
		return err
	}
	q := JobQuery{Limit: 100}
	for _, list := range v["state"] {
		for one := range strings.SplitSeq(list, ",") {
			if !slices.Contains(jobStates, one) {
				return badRequest("state", "", "%.40q is no state of a job; there are: %s", one, strings.Join(jobStates, ", "))
			}
			q.States = append(q.States, protocol.JobState(one))
		}
	}
	if text := c.r.URL.Query().Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > 1000 {
			return badRequest("limit", "", "%.40q is no number of 1 to 1000", text)
		}
	}
	if q.All = c.r.URL.Query().Get("all") == "1"; q.All && !c.who.Can(ScopeAdmin) {
		return &protocol.APIError{Code: protocol.CodeForbidden, Field: "all", Text: "only a token with the scope admin sees everybody's jobs", Fix: "leave all out"}
	}
	list, err := s.bridge.Jobs.ListJobs(c.r.Context(), c.who, q)
	if err != nil {
		return err
	}
	if list.Jobs == nil {
		list.Jobs = []protocol.JobStatus{} // an empty list, not null
	}
	return c.json(http.StatusOK, list)
}

// jobStates are the words of scheduling.md 4.
var jobStates = []string{"pending", "selecting", "running", "waiting", "done", "failed", "cancelled"}

func (s *Server) job(c *call) error {
	id, err := c.jobID()
	if err != nil {
		return err
	}
	status, err := s.bridge.Jobs.Job(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, status)
}

func (s *Server) cancel(c *call) error {
	id, err := c.jobID()
	if err != nil {
		return err
	}
	status, err := s.bridge.Outcomes.CancelJob(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, status)
}

func (s *Server) explain(c *call) error {
	id, err := c.jobID()
	if err != nil {
		return err
	}
	x, err := s.bridge.Outcomes.ExplainJob(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, x)
}

func (s *Server) statement(c *call) error {
	id, err := c.jobID()
	if err != nil {
		return err
	}
	st, err := s.bridge.Outcomes.JobStatement(c.r.Context(), c.who, id)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, st)
}
