package store

import (
	"iter"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// UsageSum is what a node did for a job: running sums over its counter-signed records, so that no row per
// record is kept.
type UsageSum struct {
	Job         protocol.JobID  // Job and Node are the key.
	Node        protocol.PeerID // Node did the work.
	WorkingMS   int64           // WorkingMS is slot time in which the job's code ran, milliseconds.
	PreparingMS int64           // PreparingMS is slot time from lease to start, milliseconds.
	GPUMS       int64           // GPUMS is slots × working time, milliseconds.
	BilledMS    int64           // BilledMS is what of GPUMS the user pays.
	Records     uint64          // Records counts counter-signed records.
	Chunks      uint64          // Chunks counts accounted chunks.
	ChargedUUSD int64           // ChargedUUSD is what was charged for it, micro-USD.
	Rate        int64           // Rate is the user's price, micro-USD per slot-hour.
}

// Idle is how a node spent a day for this bridge.
type Idle struct {
	Node        protocol.PeerID // Node and Day are the key.
	Day         string          // Day is UTC, as 2006-01-02.
	IdleMS      int64           // IdleMS is slot time assignable without a lease, milliseconds.
	PreparingMS int64           // PreparingMS is slot time from leases to starts, milliseconds.
	WorkingMS   int64           // WorkingMS is slot time in which jobs ran, milliseconds.
}

// Score is the reputation state of a node.
type Score struct {
	Node protocol.PeerID // Node is the key.
	Body []byte          // Body is JSON of package reputation.
}

// Pace is how fast a class of jobs runs on a model of GPU.
type Pace struct {
	Class   string    // Class and Model are the key; Class is the job's module or image and command.
	Model   string    // Model is the GPU's slug, or none.
	Seconds float64   // Seconds is the run time of one input.
	Samples uint64    // Samples is over how many it was taken.
	At      time.Time // At is when it was last changed.
}

const (
	usageColumns = "job, node, working_ms, preparing_ms, gpu_ms, billed_ms, records, chunks, charged_uusd, rate"
	idleColumns  = "node, day, idle_ms, preparing_ms, working_ms"
	paceColumns  = "class, model, seconds, samples, at"
)

var (
	putUsage = &query{`INSERT INTO usage (` + usageColumns + `) VALUES (?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (job, node) DO UPDATE SET working_ms=excluded.working_ms, preparing_ms=excluded.preparing_ms, gpu_ms=excluded.gpu_ms,
  billed_ms=excluded.billed_ms, records=excluded.records, chunks=excluded.chunks, charged_uusd=excluded.charged_uusd, rate=excluded.rate`}
	addUsage = &query{`INSERT INTO usage (` + usageColumns + `) VALUES (?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (job, node) DO UPDATE SET working_ms=working_ms+excluded.working_ms, preparing_ms=preparing_ms+excluded.preparing_ms,
  gpu_ms=gpu_ms+excluded.gpu_ms, billed_ms=billed_ms+excluded.billed_ms, records=records+excluded.records,
  chunks=chunks+excluded.chunks, charged_uusd=charged_uusd+excluded.charged_uusd, rate=excluded.rate`}
	getUsage  = &query{"SELECT " + usageColumns + " FROM usage WHERE job=? AND node=?"}
	listUsage = &query{"SELECT " + usageColumns + " FROM usage WHERE job=? ORDER BY node"}

	putIdle = &query{`INSERT INTO uptime (` + idleColumns + `) VALUES (?,?,?,?,?)
ON CONFLICT (node, day) DO UPDATE SET idle_ms=excluded.idle_ms, preparing_ms=excluded.preparing_ms, working_ms=excluded.working_ms`}
	addIdle = &query{`INSERT INTO uptime (` + idleColumns + `) VALUES (?,?,?,?,?)
ON CONFLICT (node, day) DO UPDATE SET idle_ms=idle_ms+excluded.idle_ms, preparing_ms=preparing_ms+excluded.preparing_ms,
  working_ms=working_ms+excluded.working_ms`}
	getIdle  = &query{"SELECT " + idleColumns + " FROM uptime WHERE node=? AND day=?"}
	listIdle = &query{"SELECT " + idleColumns + " FROM uptime WHERE node=? ORDER BY day"}

	putScore   = &query{"INSERT INTO scores (node, body) VALUES (?,?) ON CONFLICT (node) DO UPDATE SET body=excluded.body"}
	getScore   = &query{"SELECT node, body FROM scores WHERE node=?"}
	listScores = &query{"SELECT node, body FROM scores ORDER BY node"}

	putPace = &query{`INSERT INTO paces (` + paceColumns + `) VALUES (?,?,?,?,?)
ON CONFLICT (class, model) DO UPDATE SET seconds=excluded.seconds, samples=excluded.samples, at=excluded.at`}
	getPace   = &query{"SELECT " + paceColumns + " FROM paces WHERE class=? AND model=?"}
	listPaces = &query{"SELECT " + paceColumns + " FROM paces ORDER BY class, model"}
)

func fillUsage(a *args, u *UsageSum) {
	a.id(u.Job)
	a.peer("UsageSum.Node", u.Node)
	a.int(u.WorkingMS)
	a.int(u.PreparingMS)
	a.int(u.GPUMS)
	a.int(u.BilledMS)
	a.uint("UsageSum.Records", u.Records)
	a.uint("UsageSum.Chunks", u.Chunks)
	a.int(u.ChargedUUSD)
	a.int(u.Rate)
}

func scanUsage(r *row) UsageSum {
	return UsageSum{
		Job: r.id(), Node: r.peer(), WorkingMS: r.int(), PreparingMS: r.int(), GPUMS: r.int(), BilledMS: r.int(), Records: r.uint(),
		Chunks: r.uint(), ChargedUUSD: r.int(), Rate: r.int(),
	}
}

// PutUsage inserts sums or replaces them by (Job, Node).
func (t *Tx) PutUsage(sums []UsageSum) error { return putAll(t, putUsage, sums, fillUsage) }

// AddUsage adds to the sums of (Job, Node), which begin at 0; Rate replaces what is there.
func (t *Tx) AddUsage(growth []UsageSum) error { return putAll(t, addUsage, growth, fillUsage) }

// GetUsage returns what a node did for a job, or ErrNotFound.
func (t *Tx) GetUsage(job protocol.JobID, node protocol.PeerID) (UsageSum, error) {
	return one(t, getUsage, scanUsage, "use by", node, job[:], []byte(node))
}

// Usage returns what each node did for a job, by peer ID.
func (t *Tx) Usage(job protocol.JobID) ([]UsageSum, error) {
	return collect(list(t, listUsage, scanUsage, job[:]))
}

func fillIdle(a *args, d *Idle) {
	a.peer("Idle.Node", d.Node)
	a.text(d.Day)
	a.int(d.IdleMS)
	a.int(d.PreparingMS)
	a.int(d.WorkingMS)
}

func scanIdle(r *row) Idle {
	return Idle{Node: r.peer(), Day: r.text(), IdleMS: r.int(), PreparingMS: r.int(), WorkingMS: r.int()}
}

// PutIdle inserts days or replaces them by (Node, Day).
func (t *Tx) PutIdle(days []Idle) error { return putAll(t, putIdle, days, fillIdle) }

// AddIdle adds to the days of (Node, Day), which begin at 0.
func (t *Tx) AddIdle(growth []Idle) error { return putAll(t, addIdle, growth, fillIdle) }

// GetIdle returns how a node spent a day, or ErrNotFound.
func (t *Tx) GetIdle(node protocol.PeerID, day string) (Idle, error) {
	return one(t, getIdle, scanIdle, "day", day, []byte(node), day)
}

// Idles returns how a node spent its days, in order.
func (t *Tx) Idles(node protocol.PeerID) ([]Idle, error) {
	return collect(list(t, listIdle, scanIdle, []byte(node)))
}

// PutScores inserts reputation states or replaces them by node.
func (t *Tx) PutScores(scores []Score) error {
	return putAll(t, putScore, scores, func(a *args, s *Score) {
		a.peer("Score.Node", s.Node)
		a.blob(s.Body)
	})
}

func scanScore(r *row) Score { return Score{Node: r.peer(), Body: r.blob()} }

// GetScore returns the reputation state of a node, or ErrNotFound.
func (t *Tx) GetScore(node protocol.PeerID) (Score, error) {
	return one(t, getScore, scanScore, "score of", node, []byte(node))
}

// Scores yields the reputation states of all nodes by peer ID.
func (t *Tx) Scores() iter.Seq2[Score, error] { return list(t, listScores, scanScore) }

// PutPaces inserts paces or replaces them by (Class, Model).
func (t *Tx) PutPaces(paces []Pace) error {
	return putAll(t, putPace, paces, func(a *args, p *Pace) {
		a.text(p.Class)
		a.text(p.Model)
		a.real("Pace.Seconds", p.Seconds)
		a.uint("Pace.Samples", p.Samples)
		a.time(p.At)
	})
}

func scanPace(r *row) Pace {
	return Pace{Class: r.text(), Model: r.text(), Seconds: r.real(), Samples: r.uint(), At: r.time()}
}

// GetPace returns how fast a class runs on a model, or ErrNotFound.
func (t *Tx) GetPace(class, model string) (Pace, error) {
	return one(t, getPace, scanPace, "pace of", class, class, model)
}

// Paces yields all paces by class and model.
func (t *Tx) Paces() iter.Seq2[Pace, error] { return list(t, listPaces, scanPace) }
