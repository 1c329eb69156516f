package store

import (
	"database/sql/driver"
	"math"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
)

// Job is a job that was accepted.
type Job struct {
	ID         protocol.JobID  // ID is the key.
	User       string          // User submitted it and pays for it.
	Name       string          // Name is the job file's.
	Kind       string          // Kind is the job file's, such as map.
	State      string          // State is where it stands: a cluster.JobState.
	Reason     protocol.Reason // Reason goes with a failed or cancelled State.
	Text       string          // Text is why it stands there, for people.
	Spec       []byte          // Spec is the job file as JSON of protocol.Job.
	Terms      []byte          // Terms are the encoded terms that nodes get.
	Plan       []byte          // Plan is the explanation of the selection as JSON.
	Inputs     uint64          // Inputs is the length of the input sequence.
	ChunkSize  uint64          // ChunkSize is the job file's inputs per chunk; 0 lets the bridge choose.
	InputRoot  cid.Cid         // InputRoot is the tree with the file "inputs"; undefined when they are inside Terms.
	Created    time.Time       // Created is when it was accepted.
	Started    time.Time       // Started is when its first chunk was leased; zero before.
	Ended      time.Time       // Ended is when it became done, failed or cancelled; zero before.
	Result     cid.Cid         // Result is the root of its outputs; undefined while there are none.
	ResultNote string          // ResultNote says what is unusual about Result.
	MaxSpend   int64           // MaxSpend is the most that it may cost, micro-USD; 0 is no bound.
	Reserved   int64           // Reserved is what is set aside for it, micro-USD.
	Spent      int64           // Spent is what was charged, micro-USD.
}

var (
	putJob = &query{`INSERT INTO jobs (id, user, name, kind, state, reason, text, inputs, chunk_size, input_root, created, started, ended,
  result, result_note, max_spend, reserved, spent) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET user=excluded.user, name=excluded.name, kind=excluded.kind, state=excluded.state,
  reason=excluded.reason, text=excluded.text, inputs=excluded.inputs, chunk_size=excluded.chunk_size, input_root=excluded.input_root,
  created=excluded.created, started=excluded.started, ended=excluded.ended, result=excluded.result, result_note=excluded.result_note,
  max_spend=excluded.max_spend, reserved=excluded.reserved, spent=excluded.spent`}
	putJobBody = &query{`INSERT INTO job_bodies (id, spec, terms, plan) VALUES (?,?,?,?)
ON CONFLICT (id) DO UPDATE SET spec=excluded.spec, terms=excluded.terms, plan=excluded.plan
WHERE spec IS NOT excluded.spec OR terms IS NOT excluded.terms OR plan IS NOT excluded.plan`}

	getJob  = &query{"SELECT " + jobColumns + ", spec, terms, plan FROM jobs j LEFT JOIN job_bodies b ON b.id=j.id WHERE j.id=?"}
	jobsIn  = &query{"SELECT " + jobColumns + ", spec, terms, plan FROM jobs j LEFT JOIN job_bodies b ON b.id=j.id WHERE state=? ORDER BY created, j.id"}
	newest  = &query{"SELECT " + jobColumns + " FROM jobs j WHERE created<=?1 AND (?2='' OR user=?2) AND (?3='' OR state=?3) ORDER BY created DESC, id DESC LIMIT ?4"}
	jobsNow = &query{"SELECT state, count(*) FROM jobs GROUP BY state"}
)

const jobColumns = "j.id, user, name, kind, state, reason, text, inputs, chunk_size, input_root, created, started, ended, result, result_note, max_spend, reserved, spent"

// PutJob inserts the job or replaces it by ID.
func (t *Tx) PutJob(j Job) error {
	return t.PutJobs([]Job{j})
}

// PutJobs inserts jobs or replaces them by ID. Spec, Terms and Plan are written only when they differ from
// what is there.
func (t *Tx) PutJobs(jobs []Job) error {
	if err := putAll(t, putJob, jobs, func(a *args, j *Job) {
		a.id(j.ID)
		a.text(j.User)
		a.text(j.Name)
		a.text(j.Kind)
		a.text(j.State)
		a.int(int64(j.Reason))
		a.text(j.Text)
		a.uint("Job.Inputs", j.Inputs)
		a.uint("Job.ChunkSize", j.ChunkSize)
		a.cid(j.InputRoot)
		a.time(j.Created)
		a.time(j.Started)
		a.time(j.Ended)
		a.cid(j.Result)
		a.text(j.ResultNote)
		a.int(j.MaxSpend)
		a.int(j.Reserved)
		a.int(j.Spent)
	}); err != nil {
		return err
	}
	return putAll(t, putJobBody, jobs, func(a *args, j *Job) {
		a.id(j.ID)
		a.blob(j.Spec)
		a.blob(j.Terms)
		a.blob(j.Plan)
	})
}

func scanJobHead(r *row) Job {
	return Job{
		ID: r.id(), User: r.text(), Name: r.text(), Kind: r.text(), State: r.text(), Reason: protocol.Reason(r.int()), Text: r.text(),
		Inputs: r.uint(), ChunkSize: r.uint(), InputRoot: r.cid(), Created: r.time(), Started: r.time(), Ended: r.time(),
		Result: r.cid(), ResultNote: r.text(), MaxSpend: r.int(), Reserved: r.int(), Spent: r.int(),
	}
}

func scanJob(r *row) Job {
	j := scanJobHead(r)
	j.Spec, j.Terms, j.Plan = r.blob(), r.blob(), r.blob()
	return j
}

// GetJob returns a job, or ErrNotFound.
func (t *Tx) GetJob(id protocol.JobID) (Job, error) {
	return one(t, getJob, scanJob, "job", id, id[:])
}

// JobsIn returns the jobs that stand in one of the states, state by state, oldest first.
func (t *Tx) JobsIn(states ...string) ([]Job, error) {
	var out []Job
	for _, s := range states {
		jobs, err := collect(list(t, jobsIn, scanJob, s))
		if err != nil {
			return nil, err
		}
		out = append(out, jobs...)
	}
	return out, nil
}

// JobFilter says which jobs ListJobs returns; the zero value is the newest 100.
type JobFilter struct {
	User   string    // User is whose; empty is anybody's.
	State  string    // State is where they stand; empty is anywhere.
	Before time.Time // Before is when they were accepted at the latest, to go on from a page; zero is now.
	Limit  int       // Limit is how many, at least 1; 0 is 100.
}

// ListJobs returns jobs for people, newest first, without Spec, Terms and Plan.
func (t *Tx) ListJobs(f JobFilter) ([]Job, error) {
	before, limit := int64(math.MaxInt64), int64(100)
	if !f.Before.IsZero() {
		before = f.Before.UnixMilli()
	}
	if f.Limit > 0 {
		limit = int64(f.Limit)
	}
	return collect(list(t, newest, scanJobHead, before, f.User, f.State, limit))
}

// CountJobs counts jobs by state.
func (t *Tx) CountJobs() (map[string]uint64, error) { return counts(t, jobsNow) }

func counts(t *Tx, q *query, key ...driver.Value) (map[string]uint64, error) {
	out := map[string]uint64{}
	for r, err := range t.rows(q, key...) {
		if err != nil {
			return nil, err
		}
		s, n := r.text(), r.uint()
		if r.err != nil {
			return nil, r.err
		}
		out[s] = n
	}
	return out, nil
}
