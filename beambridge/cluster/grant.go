package cluster

import (
	"fmt"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// pace is what the next chunk is cut by.
func (t *Tracker) pace() Pace {
	return Pace{Nodes: t.members, SecondsPerInput: t.slowest, Chunk: t.cfg.Chunk, Aim: t.cfg.Aim}
}

// fill cuts chunks until enough are ready.
func (t *Tracker) fill() {
	for t.canCut() {
		r, ok := t.cutter.Cut(t.pace())
		if !ok {
			return
		}
		c := &chunk{r: r, want: t.cfg.Copies}
		t.nCut++
		t.chunks[r.First] = c
		t.enqueue(c, false)
	}
}

// Announce returns up to 256 ready chunks that were not announced yet, cutting new ones as needed. Call it
// when Effects say Pending; a chunk that comes back is announced again.
func (t *Tracker) Announce() []Ready {
	t.fill()
	var out []Ready
	k := 0
	for ; k < len(t.fresh) && len(out) < MaxAnnounce; k++ {
		if c := t.fresh[k]; c.queued && !c.announced && t.need(c) > 0 {
			c.announced = true
			out = append(out, Ready{ID: protocol.NewChunkID(t.cfg.Job, c.r.First, c.r.End), Range: c.r})
		}
	}
	if t.fresh = t.fresh[k:]; len(t.fresh) == 0 {
		t.fresh = nil
	}
	return out
}

// Grant answers a claim for up to slots chunks. setSeq is the number of the first lease set that holds the
// new leases: reports on earlier sets cannot end them. Nothing to give is no error: the node waits for the
// next announcement. It returns ErrNotMember.
func (t *Tracker) Grant(node protocol.PeerID, slots int, setSeq uint64, now time.Time) ([]Lease, Effects, error) {
	var fx Effects
	k := t.workers[node]
	if k == nil || !k.member {
		return nil, fx, fmt.Errorf("granting to %s: %w", node, ErrNotMember)
	}
	k.seen = now
	if t.state.Final() || now.Before(k.notBefore) {
		return nil, fx, nil
	}
	var out []Lease
	for n := min(slots, t.most(k)-k.held); n > 0; n-- {
		c := t.take(k, now)
		copied := false
		if c == nil {
			if c = t.straggler(k, now); c == nil {
				break
			}
			copied = true
		}
		out = append(out, t.view(t.lease(c, k, copied, setSeq, now, &fx)))
	}
	fx.Pending = t.pending()
	return out, fx, nil
}

// most is how many leases a node may hold: LeasesPerSlot for each slot, or as many as it runs in the time Ahead, but
// then no more than its part of what is left, so that short chunks share round trips and the tail stays balanced.
func (t *Tracker) most(k *worker) int {
	least := t.cfg.LeasesPerSlot * k.Slots
	if k.chunk <= 0 {
		return least
	}
	more := k.Slots * int(min(float64(t.cfg.MostPerSlot), t.cfg.Ahead.Seconds()/k.chunk))
	left := len(t.chunks)
	if rest := t.cutter.Remaining(); rest > 0 {
		left += int(min(rest/t.pace().Size(rest), 1<<30))
	}
	return max(least, min(more, left*k.Slots/max(1, t.slots)))
}

// take finds the first ready chunk that the node may have.
func (t *Tracker) take(k *worker, now time.Time) *chunk {
	t.fill()
	for c := t.ready.head; c != nil; {
		next := c.next
		if t.need(c) == 0 {
			t.ready.remove(c) // its lease came back
		} else if t.eligible(c, k, now) {
			return c
		}
		c = next
	}
	return nil
}

// lease makes one: the fence grows, a suspect lease that it replaces becomes lost and its fence old.
func (t *Tracker) lease(c *chunk, k *worker, copied bool, setSeq uint64, now time.Time, fx *Effects) *lease {
	if !copied {
		for _, l := range c.all {
			if l.State == AttemptSuspect {
				t.replace(l, protocol.ReasonHeartbeatLost, "its node was silent past the lease", fx)
				break
			}
		}
	}
	c.fence++
	state, _ := AttemptAnnounced.Next(AttemptGrant)
	l := &lease{chunk: c, expires: now.Add(t.cfg.TTL), since: now, phased: now, LeaseRow: LeaseRow{
		ID: t.newID(), First: c.r.First, End: c.r.End,
		Fence: c.fence, Copy: copied || c.active() > 0, Worker: k.Worker, SetSeq: setSeq, State: state,
	}}
	if k.Probation && !c.explore {
		c.explore, c.want = true, max(c.want, 2)
		t.nExplored++
	}
	if copied {
		t.nCopies++
	}
	c.all = append(c.all, l)
	t.leases[l.ID] = l
	t.live, k.live = append(compact(t.live, len(t.leases)), l), append(compact(k.live, k.held), l)
	k.held++
	if t.need(c) == 0 {
		t.ready.remove(c)
	} else {
		t.enqueue(c, true) // it wants another copy
	}
	fx.Chunks = append(fx.Chunks, c.row(ChunkOpen))
	fx.Leases = append(fx.Leases, l.LeaseRow)
	return l
}

// compact drops ended leases from a list once they are the majority, so that the lists stay as long as what
// is live however rarely Expire and Report are called.
func compact(ls []*lease, live int) []*lease {
	if len(ls) < 2*live+32 {
		return ls
	}
	return slices.DeleteFunc(ls, func(l *lease) bool { return !l.State.Live() })
}

// replace makes a lease lost for good; its lapse was counted when it fell silent.
func (t *Tracker) replace(l *lease, why Reason, text string, fx *Effects) {
	if l.State == AttemptSuspect {
		l.chunk.lapses--
	}
	l.Reason, l.Text = why, text
	t.move(l, AttemptReplace, fx)
	t.fault(l)
}

// fault counts an ended attempt against its chunk and remembers the first cause.
func (t *Tracker) fault(l *lease) {
	c := l.chunk
	if notBegun(l.Reason) {
		return
	}
	c.failures = append(c.failures, failure{node: l.Worker.Peer, group: groupOf(l.Worker), reason: l.Reason, exit: l.Exit, job: blamesJob(l.Reason)})
	// The first cause wins, but a cause of the job's own is worth more than a node that vanished before it.
	if c.first == 0 || !blamesJob(c.first) && blamesJob(l.Reason) {
		c.first, c.text = l.Reason, l.Text
	}
}

func groupOf(w Worker) string {
	if w.Group == "" {
		return "\x00" + string(w.Peer)
	}
	return w.Group
}

func apart(a, b Worker) bool {
	return groupOf(a) != groupOf(b) && (a.Site == "" || a.Site != b.Site) && (a.Wallet == "" || a.Wallet != b.Wallet)
}

// eligible says whether a node may have a lease of a ready chunk: copies that are compared stay on different
// operators, sites and wallets; newcomers get only their part; who has failed it gets it again only when
// nobody else who was heard of lately could take it.
func (t *Tracker) eligible(c *chunk, k *worker, now time.Time) bool {
	if !t.allowed(c, k) {
		return false
	}
	if untried(c, k) {
		return true
	}
	for _, o := range t.workers {
		if o != k && o.member && now.Sub(o.seen) < t.cfg.TTL && !now.Before(o.notBefore) && untried(c, o) && t.allowed(c, o) {
			return false
		}
	}
	return true
}

// allowed are the rules that never give way.
func (t *Tracker) allowed(c *chunk, k *worker) bool {
	newcomer := false
	for _, l := range c.all {
		if !working(l.State) && l.State != AttemptHeld {
			continue
		}
		if l.Worker.Peer == k.Peer || c.want > 1 && !apart(l.Worker, k.Worker) {
			return false
		}
		newcomer = newcomer || l.Worker.Probation
	}
	if !k.Probation {
		return true
	}
	return !newcomer && t.cfg.Retries > 0 && (c.explore || float64(t.nExplored) < t.cfg.Explore*float64(t.nCut)) && t.checkable(k)
}

// checkable says that a vetted member could repeat what a newcomer does: a chunk of its own kin would wait for
// ever.
func (t *Tracker) checkable(k *worker) bool {
	for _, o := range t.workers {
		if o.member && !o.Probation && apart(o.Worker, k.Worker) {
			return true
		}
	}
	return false
}

// untried says that neither the node failed the chunk nor, by the job's own fault, another of its operator.
func untried(c *chunk, k *worker) bool {
	for _, f := range c.failures {
		if f.node == k.Peer || f.job && f.group == groupOf(k.Worker) {
			return false
		}
	}
	return true
}

// straggler finds a chunk to copy for an idle node: one that runs longer than max(3 × median, p95) of its
// siblings by its number of inputs, has no copy yet, and was heard of. The oldest goes first. A copy is only
// for speed, so another node is enough, it need not be another operator.
func (t *Tracker) straggler(k *worker, now time.Time) *chunk {
	if t.cfg.Retries == 0 || k.Probation || float64(t.nCopies+1) > max(1, t.cfg.CopyShare*float64(t.nCut)) {
		return nil
	}
	limit, ok := t.patience()
	if !ok {
		return nil
	}
	for _, l := range t.live {
		c := l.chunk
		if !working(l.State) || c.want > 1 || c.active() > 1 || now.Sub(l.since).Seconds() <= max(limit*float64(c.r.Len()), t.cfg.StragglerFloor.Seconds()) {
			continue
		}
		if t.allowed(c, k) && untried(c, k) {
			return c
		}
	}
	return nil
}

// patience is how long an input may take before its chunk counts as a straggler; unknown below 3 siblings.
func (t *Tracker) patience() (float64, bool) {
	if len(t.samples) < 3 {
		return 0, false
	}
	s := slices.Clone(t.samples)
	slices.Sort(s)
	return max(t.cfg.StragglerTimes*s[len(s)/2], s[len(s)*95/100]), true
}

// learn feeds a finished run into the pace and the siblings' run times.
func (t *Tracker) learn(l *lease, seconds float64) {
	if !(seconds > 0) {
		return
	}
	per := seconds / float64(l.chunk.r.Len())
	if len(t.samples) < 256 {
		t.samples = append(t.samples, per)
	} else {
		t.samples[t.nSamples%256] = per
	}
	t.nSamples++
	k := t.workers[l.Worker.Peer]
	if k == nil {
		return
	}
	if k.seconds == 0 {
		k.seconds, k.chunk = per, seconds
	} else {
		k.seconds += 0.3 * (per - k.seconds)
		k.chunk += 0.3 * (seconds - k.chunk)
	}
	if t.cfg.Chunk > 0 {
		return // the pace is not asked for
	}
	t.slowest = 0
	for _, o := range t.workers {
		if o.member {
			t.slowest = max(t.slowest, o.seconds)
		}
	}
	if t.slowest == 0 {
		t.slowest = per
	}
}
