package beambridge

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// inputEnd is how one input of a function ended, as its node says.
type inputEnd struct {
	outcome protocol.InputOutcome
	written bool // it has written into volumes
}

// accept makes a call an input of its job.
func (t *turn) accept(j *job, c *call) {
	c.job = j
	c.row.Job, c.row.Input = j.id(), j.calls.inputs.add(c.row.Args)
	c.row.Tries++
	c.row.State, c.chunk, c.lease = callPending, cluster.Range{}, protocol.LeaseID{}
	j.calls.open[c.row.Input] = c
	j.row.Inputs = c.row.Input + 1 // written with the next change of the row; the calls say it, too
	t.e.calls.add(c)
	t.keepCall(c)
	t.wake(c)
	t.apply(j, j.tracker.Extend(j.row.Inputs))
	t.touched[j] = struct{}{}
	if t.e.fleet != j.fleet || j.tracker.Progress().Workers == 0 {
		t.then(func(err error) {
			if err == nil {
				t.e.replace(j, t.now)
			}
		})
	}
}

// wake tells who watches a call that it has changed, once that is durable or was undone.
func (t *turn) wake(c *call) {
	if ch := c.moved; ch != nil {
		c.moved = nil
		t.then(func(error) { close(ch) })
	}
}

// keepCall writes a call's row with this turn.
func (t *turn) keepCall(c *call) {
	t.callRows[c.row.ID] = c.row
	t.must = true
}

// leased notes who has been given the calls of a chunk.
func (t *turn) leased(j *job, node protocol.PeerID, l *cluster.Lease) {
	var watched []*waiter
	for i := l.Range.First; i < l.Range.End; i++ {
		c := j.calls.open[i]
		if c == nil {
			continue
		}
		if l.Copy && c.chunk.Len() > 0 {
			continue // the first one is listened to, whichever ends first
		}
		c.row.State, c.row.Node, c.chunk, c.lease = callRunning, node, l.Range, l.ID
		t.wake(c)
		if c.wait != nil {
			c.wait.hear(nil) // whoever has lost the call prints nothing more into it
		}
		if c.row.Started.IsZero() {
			c.row.Started = t.now
		}
		if c.wait != nil {
			watched = append(watched, c.wait)
		}
	}
	if len(watched) == 0 {
		return
	}
	seat := logOf{l.ID, node, l.Range.First, l.Range.End}
	t.then(func(err error) {
		if err == nil {
			t.e.bridge.listenTo(j, seat)
		}
	})
}

// returnedCalls ends the calls of a chunk whose result counts.
func (t *turn) returnedCalls(j *job, r cluster.Range, root cid.Cid, ends map[uint64]inputEnd) {
	for i := r.First; i < r.End; i++ {
		c := j.calls.open[i]
		if c == nil {
			continue // cancelled, or expired
		}
		end := ends[i]
		if end.outcome.Reason == protocol.ReasonSignal && c.row.Tries <= min(callRetries, uint64(c.spec.retries)) && !j.calls.sealed {
			t.again(c)
			continue
		}
		c.row.Result, c.row.Encoding = root, string(end.outcome.Encoding)
		if c.encoding() == protocol.EncodingPickle { // it comes back as one, whatever its node calls it
			c.row.Encoding = string(protocol.EncodingPickle)
		}
		if end.written {
			c.row.Written = root
		}
		t.endCall(c, end.outcome)
	}
}

// encoding is how the call was made. What a function returns to a call in JSON may be a pickle; the other way round never.
func (c *call) encoding() protocol.Encoding {
	in, err := protocol.ParseFunctionInput(c.row.Args)
	if err != nil {
		return protocol.EncodingPickle
	}
	return in.Encoding
}

// again makes a call a new input: its process was killed, and that may have been bad luck.
func (t *turn) again(c *call) {
	delete(c.job.calls.open, c.row.Input)
	c.job.calls.inputs.drop(c.row.Input)
	if w := c.wait; w != nil {
		w.hear(nil)
		t.then(func(err error) {
			if err == nil {
				w.print("gridbeam: the process was killed; the call is made once more\n")
			}
		})
	}
	t.accept(c.job, c)
}

// failedCalls ends the calls of a chunk that failed for good.
func (t *turn) failedCalls(j *job, r cluster.Range, why protocol.Reason, text string) {
	for i := r.First; i < r.End; i++ {
		if c := j.calls.open[i]; c != nil {
			t.endCall(c, protocol.InputOutcome{Reason: why, Exit: exitOf(why), Text: cmp.Or(text, why.Text())})
		}
	}
}

// exitOf is the exit code that Beam's clients know a reason by (beam-interface.md 6.7).
func exitOf(why protocol.Reason) int32 {
	switch why {
	case protocol.ReasonDone:
		return 0
	case protocol.ReasonBadCommand:
		return 2
	case protocol.ReasonCancelled:
		return 3
	case protocol.ReasonTimeout, protocol.ReasonDeadline:
		return 4
	case protocol.ReasonSignal, protocol.ReasonOOM:
		return -9
	}
	return 1
}

// stateOf is the state that a call ends in.
func stateOf(why protocol.Reason) string {
	switch why {
	case protocol.ReasonDone:
		return callComplete
	case protocol.ReasonCancelled:
		return callCancelled
	case protocol.ReasonTimeout:
		return callTimeout
	}
	return callError
}

// endCall ends a call: its row is written with this turn, and whoever waits is told after the commit.
func (t *turn) endCall(c *call, o protocol.InputOutcome) {
	j := c.job
	delete(j.calls.open, c.row.Input)
	t.e.calls.remove(c)
	j.calls.inputs.drop(c.row.Input)
	if len(j.calls.open) == 0 {
		j.calls.idle = t.now
	}
	c.row.State, c.row.Ended, c.row.Args = cmp.Or(c.row.State, callPending), t.now, ""
	if c.row.State != callExpired {
		c.row.State = stateOf(o.Reason)
	}
	c.row.Exit, c.row.Reason, c.row.Text = o.Exit, o.Reason, o.Text
	if callFailed(c.row.State) {
		j.calls.failed++
		j.row.ResultNote = failedNote(j.calls.failed, &c.row)
		t.save(j)
	}
	t.keepCall(c)
	t.wake(c)
	end, lease := &callEnd{row: c.row, outcome: o, spec: c.spec}, c.lease
	w := c.wait
	t.then(func(err error) {
		if err == nil {
			t.e.bridge.callEnded(end, w, lease)
		} else if is := t.e.calls.get(end.row.ID); is != nil { // it has not ended after all, and somebody still waits
			is.wait = w
		}
	})
}

// cancelCall ends a call that nobody wants any more. What runs of it is stopped when nothing else is in its chunk.
func (t *turn) cancelCall(c *call, why protocol.Reason, text string) {
	j, r := c.job, c.chunk
	if why == protocol.ReasonNone { // it did not start in time
		c.row.State = callExpired
		t.endCall(c, protocol.InputOutcome{Reason: protocol.ReasonDeadline, Exit: 4, Text: text})
	} else {
		t.endCall(c, protocol.InputOutcome{Reason: why, Exit: exitOf(why), Text: text})
	}
	for i := r.First; i < r.End; i++ {
		if j.calls.open[i] != nil {
			return
		}
	}
	if r.Len() > 0 {
		t.apply(j, j.tracker.Abandon(r.First, protocol.ReasonCancelled, text))
	}
}

// watchCalls lets calls expire that did not start in time, and an open job end that nobody calls any more.
func (t *turn) watchCalls(j *job) {
	b := j.calls
	for _, c := range b.open {
		if c.wait == nil && !c.row.Headless { // the process that answered its caller has ended
			t.cancelCall(c, protocol.ReasonCancelled, "the bridge was restarted, and its caller could not wait")
			continue
		}
		if c.spec.ttl > 0 && c.row.State == callPending && t.now.Sub(c.row.Created) >= c.spec.ttl {
			t.cancelCall(c, protocol.ReasonNone, fmt.Sprintf("no node could start it within %s: %s", c.spec.ttl, cmp.Or(j.row.Text, "none was free")))
		}
	}
	switch {
	case len(b.open) > 0:
		if b.inputs.len() >= b.most && !b.sealed {
			t.seal(j)
		}
	case b.sealed || t.e.opens[b.key] != j || t.now.Sub(b.idle) >= callIdle:
		t.seal(j)
		if j.over == "" {
			t.apply(j, j.tracker.Close())
		}
	}
}

// supersede lets no more calls into the open jobs of a function that see its volumes otherwise than key says: they end with
// what they have.
func (t *turn) supersede(key callKey) {
	for k, j := range t.e.opens {
		if k.user == key.user && k.stub == key.stub && k != key {
			delete(t.e.opens, k)
			t.watchCalls(j)
		}
	}
}

// seal takes no more calls into a job; it ends with what it has.
func (t *turn) seal(j *job) {
	j.calls.sealed = true
	if t.e.opens[j.calls.key] == j {
		delete(t.e.opens, j.calls.key)
	}
	t.apply(j, j.tracker.Seal())
}

// callFailed says whether a state is one in which a call failed.
func callFailed(state string) bool {
	return state == callError || state == callTimeout || state == callExpired
}

// failedNote tells people how calls of a job failed: how many, and the last line of what the last one's user was told.
func failedNote(n uint64, last *store.Call) string {
	text := strings.TrimSpace(last.Text)
	text = text[strings.LastIndexByte(text, '\n')+1:]
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	calls := "1 call"
	if n > 1 {
		calls = fmt.Sprintf("%d calls", n)
	}
	return fmt.Sprintf("%s failed; the last, %s: %s", calls, last.ID, cmp.Or(text, last.Reason.Text()))
}

// orphanCalls ends the calls of a job that is over.
func (t *turn) orphanCalls(j *job, why protocol.Reason, text string) {
	j.calls.sealed = true
	if t.e.opens[j.calls.key] == j {
		delete(t.e.opens, j.calls.key)
	}
	for _, c := range j.calls.open {
		t.endCall(c, protocol.InputOutcome{Reason: why, Exit: exitOf(why), Text: cmp.Or(text, why.Text())})
	}
}

// loadCalls brings the calls of a restored job into memory. Whoever waited for one is gone with the process that
// answered: only headless ones go on.
func (e *engine) loadCalls(tx *store.Tx, j *job) error {
	for row, err := range tx.CallsOfJob(j.id()) {
		if err != nil {
			return err
		}
		for j.calls.inputs.len() < row.Input {
			j.calls.inputs.add("") // an input of a call that was made again
		}
		j.calls.inputs.add(row.Args)
		if callFailed(row.State) {
			j.calls.failed++
		}
		if row.Ended.IsZero() {
			c := &call{row: row, job: j, spec: j.callSpec()}
			c.row.State = callPending
			j.calls.open[row.Input] = c
			e.calls.add(c)
		}
	}
	j.row.Inputs = max(j.row.Inputs, j.calls.inputs.len())
	for j.calls.inputs.len() < j.row.Inputs {
		j.calls.inputs.add("")
	}
	j.calls.idle = e.now()
	return nil
}

// seat says where the calls of a lease run that was live before a restart, so that it is stopped when nobody wants them.
func (j *job) seat(l *store.Lease) {
	if j.calls == nil {
		return
	}
	for i := l.First; i < l.End; i++ {
		if c := j.calls.open[i]; c != nil {
			c.row.State, c.row.Node, c.chunk, c.lease = callRunning, l.Node, cluster.Range{First: l.First, End: l.End}, l.ID
		}
	}
}

// callSpec reads from the job's terms what matters for its calls.
func (j *job) callSpec() *callSpec {
	s := &callSpec{retries: *j.spec.Policy.Retries, ttl: j.spec.Policy.Start.Std()}
	s.volumes = writables(&j.terms)
	return s
}

// writables are the volumes that a job's calls may write into.
func writables(t *protocol.JobTerms) (out []writable) {
	for i := range t.Volumes {
		if v := &t.Volumes[i]; v.Mode == "rw-shared" {
			out = append(out, writable{v.Name, v.At})
		}
	}
	return out
}
