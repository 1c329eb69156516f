package cluster

import (
	"errors"
	"fmt"
)

// ErrBadTransition means that an event cannot happen in a state.
var ErrBadTransition = errors.New("cluster: no such transition")

// JobState is where a job stands (scheduling.md 4).
type JobState string

// States of a job; done, failed and cancelled are final.
const (
	JobPending   JobState = "pending"   // JobPending: accepted and stored, nothing looked for yet.
	JobSelecting JobState = "selecting" // JobSelecting: nodes are being chosen and reserved.
	JobRunning   JobState = "running"   // JobRunning: at least one node belongs to its cluster.
	JobWaiting   JobState = "waiting"   // JobWaiting: no node; the reason is shown, nothing has failed.
	JobDone      JobState = "done"      // JobDone: every chunk is done.
	JobFailed    JobState = "failed"    // JobFailed: a chunk ended for good, or the deadline passed.
	JobCancelled JobState = "cancelled" // JobCancelled: its owner cancelled it.
)

// JobEvent is what happens to a job.
type JobEvent string

// Events of a job.
const (
	JobSelect   JobEvent = "select"   // JobSelect: the bridge begins to look for nodes.
	JobPlaced   JobEvent = "placed"   // JobPlaced: a node has taken up its offer.
	JobStarved  JobEvent = "starved"  // JobStarved: no node is left or was found.
	JobFinished JobEvent = "finished" // JobFinished: the last chunk is done.
	JobFail     JobEvent = "fail"     // JobFail: it cannot be completed.
	JobCancel   JobEvent = "cancel"   // JobCancel: its owner asked for its end.
)

type jobKey struct {
	state JobState
	event JobEvent
}

// jobTable is the only place that says how a job moves. A waiting job may finish: the last result may come
// from a node that was thought to be gone.
var jobTable = map[jobKey]JobState{
	{JobPending, JobSelect}:     JobSelecting,
	{JobPending, JobFinished}:   JobDone, // no inputs at all
	{JobPending, JobFail}:       JobFailed,
	{JobPending, JobCancel}:     JobCancelled,
	{JobSelecting, JobPlaced}:   JobRunning,
	{JobSelecting, JobStarved}:  JobWaiting,
	{JobSelecting, JobFinished}: JobDone,
	{JobSelecting, JobFail}:     JobFailed,
	{JobSelecting, JobCancel}:   JobCancelled,
	{JobRunning, JobPlaced}:     JobRunning,
	{JobRunning, JobStarved}:    JobWaiting,
	{JobRunning, JobFinished}:   JobDone,
	{JobRunning, JobFail}:       JobFailed,
	{JobRunning, JobCancel}:     JobCancelled,
	{JobWaiting, JobSelect}:     JobSelecting,
	{JobWaiting, JobPlaced}:     JobRunning,
	{JobWaiting, JobStarved}:    JobWaiting,
	{JobWaiting, JobFinished}:   JobDone,
	{JobWaiting, JobFail}:       JobFailed,
	{JobWaiting, JobCancel}:     JobCancelled,
}

// Next returns the state after an event, or ErrBadTransition with the state unchanged.
func (s JobState) Next(e JobEvent) (JobState, error) {
	if n, ok := jobTable[jobKey{s, e}]; ok {
		return n, nil
	}
	return s, fmt.Errorf("%w: job %s cannot take %s", ErrBadTransition, s, e)
}

// Final says whether nothing can happen to the job any more.
func (s JobState) Final() bool { return s == JobDone || s == JobFailed || s == JobCancelled }

// AttemptState is where one attempt at a chunk stands as the bridge sees it (scheduling.md 4). Desired state
// is kept apart, in what the lease stream asks of the node.
type AttemptState string

// States of an attempt; done, failed, lost and cancelled are final.
const (
	AttemptAnnounced  AttemptState = "announced"  // AttemptAnnounced: ready to be claimed, no lease yet.
	AttemptLeased     AttemptState = "leased"     // AttemptLeased: granted, not heard of since.
	AttemptStaging    AttemptState = "staging"    // AttemptStaging: module, image and data arrive.
	AttemptRunning    AttemptState = "running"    // AttemptRunning: the chunk's process runs.
	AttemptPublishing AttemptState = "publishing" // AttemptPublishing: ended on the node, the result is on its way.
	AttemptSuspect    AttemptState = "suspect"    // AttemptSuspect: its TTL passed in silence; it may come back.
	AttemptHeld       AttemptState = "held"       // AttemptHeld: its result waits for the copies it is compared with.
	AttemptDone       AttemptState = "done"       // AttemptDone: its result was accounted.
	AttemptFailed     AttemptState = "failed"     // AttemptFailed: it ended with a reason other than done.
	AttemptLost       AttemptState = "lost"       // AttemptLost: replaced or given up; its fence is old.
	AttemptCancelled  AttemptState = "cancelled"  // AttemptCancelled: stopped by the bridge or its owner.
)

// AttemptEvent is what happens to an attempt.
type AttemptEvent string

// Events of an attempt.
const (
	AttemptGrant   AttemptEvent = "grant"   // AttemptGrant: a node claimed it and got a lease.
	AttemptStage   AttemptEvent = "stage"   // AttemptStage: the node reports that it prepares.
	AttemptRun     AttemptEvent = "run"     // AttemptRun: the node reports that it runs.
	AttemptPublish AttemptEvent = "publish" // AttemptPublish: the node reports that it ended and publishes.
	AttemptRenew   AttemptEvent = "renew"   // AttemptRenew: the node still holds it, nothing else is known.
	AttemptSilence AttemptEvent = "silence" // AttemptSilence: the TTL passed without renewal.
	AttemptHold    AttemptEvent = "hold"    // AttemptHold: a good result that waits for comparison.
	AttemptAccept  AttemptEvent = "accept"  // AttemptAccept: its result counts.
	AttemptFail    AttemptEvent = "fail"    // AttemptFail: it ended with a reason other than done.
	AttemptReplace AttemptEvent = "replace" // AttemptReplace: a re-lease, a give-up or the node's word ended it.
	AttemptCancel  AttemptEvent = "cancel"  // AttemptCancel: superseded, or its job ended.
)

type attemptKey struct {
	state AttemptState
	event AttemptEvent
}

// attemptTable is the only place that says how an attempt moves.
var attemptTable = buildAttemptTable()

// buildAttemptTable writes the table out: the four live states and suspect move alike except for the order
// of what a node reports, which only goes forward. Messages get lost, so steps may be skipped; a result may
// arrive before anything else was heard of its lease.
func buildAttemptTable() map[attemptKey]AttemptState {
	t := map[attemptKey]AttemptState{
		{AttemptAnnounced, AttemptGrant}:    AttemptLeased,
		{AttemptAnnounced, AttemptCancel}:   AttemptCancelled,
		{AttemptLeased, AttemptRenew}:       AttemptLeased,
		{AttemptLeased, AttemptStage}:       AttemptStaging,
		{AttemptLeased, AttemptRun}:         AttemptRunning,
		{AttemptLeased, AttemptPublish}:     AttemptPublishing,
		{AttemptStaging, AttemptRenew}:      AttemptStaging,
		{AttemptStaging, AttemptStage}:      AttemptStaging,
		{AttemptStaging, AttemptRun}:        AttemptRunning,
		{AttemptStaging, AttemptPublish}:    AttemptPublishing,
		{AttemptRunning, AttemptRenew}:      AttemptRunning,
		{AttemptRunning, AttemptStage}:      AttemptRunning, // an older report, overtaken
		{AttemptRunning, AttemptRun}:        AttemptRunning,
		{AttemptRunning, AttemptPublish}:    AttemptPublishing,
		{AttemptPublishing, AttemptRenew}:   AttemptPublishing,
		{AttemptPublishing, AttemptStage}:   AttemptPublishing,
		{AttemptPublishing, AttemptRun}:     AttemptPublishing,
		{AttemptPublishing, AttemptPublish}: AttemptPublishing,
		{AttemptSuspect, AttemptRenew}:      AttemptRunning,
		{AttemptSuspect, AttemptStage}:      AttemptStaging,
		{AttemptSuspect, AttemptRun}:        AttemptRunning,
		{AttemptSuspect, AttemptPublish}:    AttemptPublishing,
		{AttemptSuspect, AttemptSilence}:    AttemptSuspect,
		{AttemptHeld, AttemptAccept}:        AttemptDone,
		{AttemptHeld, AttemptFail}:          AttemptFailed, // the copies disagree with it
		{AttemptHeld, AttemptCancel}:        AttemptCancelled,
	}
	for _, s := range []AttemptState{AttemptLeased, AttemptStaging, AttemptRunning, AttemptPublishing, AttemptSuspect} {
		t[attemptKey{s, AttemptSilence}] = AttemptSuspect
		t[attemptKey{s, AttemptHold}] = AttemptHeld
		t[attemptKey{s, AttemptAccept}] = AttemptDone
		t[attemptKey{s, AttemptFail}] = AttemptFailed
		t[attemptKey{s, AttemptReplace}] = AttemptLost
		t[attemptKey{s, AttemptCancel}] = AttemptCancelled
	}
	return t
}

// Next returns the state after an event, or ErrBadTransition with the state unchanged.
func (s AttemptState) Next(e AttemptEvent) (AttemptState, error) {
	if n, ok := attemptTable[attemptKey{s, e}]; ok {
		return n, nil
	}
	return s, fmt.Errorf("%w: attempt %s cannot take %s", ErrBadTransition, s, e)
}

// Live says whether a node may still be working on the attempt under a fence that counts.
func (s AttemptState) Live() bool {
	switch s {
	case AttemptLeased, AttemptStaging, AttemptRunning, AttemptPublishing, AttemptSuspect:
		return true
	}
	return false
}
