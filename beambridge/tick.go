package beambridge

import (
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// witnessed is how long an ended attempt is remembered for receipts that come late, mostWitnessed how many.
	witnessed     = time.Hour
	mostWitnessed = 100_000
	// paceEvery is how often the predictor's rows are written.
	paceEvery = 5 * time.Second
)

// tick looks at every clock.
func (e *engine) tick(t *turn) {
	e.crowd = 0
	for _, j := range e.jobs {
		if j.over != "" {
			e.crowd++
		}
	}
	for _, j := range e.jobs {
		if j.over == "" {
			t.watchJob(j)
		} else {
			t.afterlife(j)
		}
	}
	for id, n := range e.nodes {
		if n.up && t.now.Sub(n.sentAt) >= setEvery {
			t.push[id] = struct{}{}
		} else if n.link == nil && n.wanted() {
			e.linkTo(n)
		}
	}
	for l := range e.owing {
		if l.due(t.now) {
			t.lines[l] = struct{}{}
		}
	}
	t.uptime()
	e.forgetEnded(t.now)
	t.forget()
	if t.now.Sub(e.pacedAt) >= paceEvery && e.paces.changed() {
		e.pacedAt, t.paced = t.now, true
	}
}

// watchJob lets leases lapse, members go and deadlines pass.
func (t *turn) watchJob(j *job) {
	t.apply(j, j.tracker.Expire(t.now))
	if j.over != "" {
		return
	}
	if !j.deadline.IsZero() && !t.now.Before(j.deadline) {
		if fx, err := j.tracker.Cancel(cluster.JobFail, protocol.ReasonDeadline, "policy.deadline "+j.spec.Policy.Deadline.String()+" has passed"); err == nil {
			t.apply(j, fx)
		}
		return
	}
	if j.calls != nil {
		if t.watchCalls(j); j.over != "" {
			return
		}
	}
	t.silent(j)
	waiting := j.tracker.Progress().Workers == 0
	switch {
	case !waiting:
		j.lonely = time.Time{}
	case j.lonely.IsZero():
		j.lonely = t.now
	case j.tracker.State() == cluster.JobRunning && t.now.Sub(j.lonely) > setEvery:
		if fx, err := j.tracker.Advance(cluster.JobStarved); err == nil { // restored, and no member has come back
			t.apply(j, fx)
		}
	}
	if waiting && j.row.Reserved == 0 {
		if err := t.fund(j); err != nil {
			t.e.log.Warn("credit could not be set aside", "job", j.id(), "err", err)
		}
	}
	if (waiting || t.e.deserted(j, t.now)) && t.now.Sub(j.placed) >= replaceEvery {
		t.then(func(err error) {
			if err == nil {
				j.placed = time.Time{}
				t.e.replace(j, t.now)
			}
		})
	}
}

// mute says that a node was not heard of for as long as a lease lives. One that was restored has as long as its
// leases before that is said.
func (e *engine) mute(id protocol.PeerID, now time.Time) bool {
	n := e.nodes[id]
	return n != nil && !n.heard.IsZero() && now.Sub(n.heard) >= leaseTTL
}

// deserted says that every member of a job is mute: others are wanted as soon as leases lapse, not only once the
// members have gone.
func (e *engine) deserted(j *job, now time.Time) bool {
	for id, m := range j.members {
		if m.State == memberIs && !e.mute(id, now) {
			return false
		}
	}
	return true
}

// silent takes members out that have not been heard of for long: what they held was leased anew already.
func (t *turn) silent(j *job) {
	for id, m := range j.members {
		if m.State != memberIs {
			continue
		}
		n := t.e.nodes[id]
		if n == nil || n.up && t.now.Sub(n.heard) < memberSilence {
			continue
		}
		if n.heard.IsZero() { // restored: it has as long as its leases
			n.heard = t.now
		}
		if t.now.Sub(n.heard) < memberSilence {
			continue
		}
		t.e.log.Info("a member is silent and leaves the cluster", "job", j.id(), "peer", id)
		t.observe(reputation.FromAnswer(id, memberSilence, t.now))
		t.leave(j, id)
	}
}

// afterlife gives reservations back and forgets jobs that are over.
func (t *turn) afterlife(j *job) {
	if j.merging {
		return
	}
	if !j.released && (j.open <= 0 || t.now.Sub(j.endedAt) > lateReceipts) {
		t.release(j)
	}
	if j.released && (t.now.Sub(j.endedAt) > lingering || t.e.crowd > mostEnded) {
		t.e.crowd--
		t.then(func(err error) {
			if err == nil {
				t.e.evict(j)
			}
		})
	}
}

// evict forgets a job that has been over for long; the store has it.
func (e *engine) evict(j *job) {
	delete(e.jobs, j.id())
	for _, n := range e.nodes {
		delete(n.jobs, j)
	}
	e.bridge.reads.forget(j.id())
	e.bridge.calling.Delete(j.id())
	for _, a := range j.own {
		if !a.row.Ended.IsZero() {
			delete(e.attempts, a.row.ID)
			a.job = nil // the list of ended attempts is all that still knows it
		}
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

// forgetEnded drops attempts whose receipts have come or will not come any more.
func (e *engine) forgetEnded(now time.Time) {
	k := 0
	for ; k < len(e.ended); k++ {
		a := e.ended[k]
		if len(e.ended)-k <= mostWitnessed && now.Sub(a.row.Ended) < witnessed {
			break
		}
		delete(e.attempts, a.row.ID)
	}
	if k > 0 {
		e.ended = append([]*attempt(nil), e.ended[k:]...)
	}
}
