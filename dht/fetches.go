package dht

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
)

// How often a peer's record is fetched: what changes more often than nodes may change theirs waits, and so does what could
// not be had.
const (
	fetchBurst = 4                // fetches of one peer at once: a node behind a NAT moves a few times after its start
	fetchEvery = 30 * time.Second // then one in so long
	retryFirst = 5 * time.Second  // after one failure; after several fetchEvery, doubling
	retryMost  = time.Hour
)

// claim is what a peer has to show for having its record fetched: higher ones go first.
type claim uint8

const (
	claimBeat claim = iota // somebody has passed on a heartbeat
	claimLine              // the peer is connected
	claimBoth              // it is, and a heartbeat has come
	claimHeld              // an older record is held
	numClaims
)

// fetches are the records that wait for a worker. Neither those that say nothing nor those of one network hold all workers,
// and memory is bounded.
type fetches struct {
	limit   int           // that wait
	share   int           // of the workers for one network
	silent  int           // of the workers for peers that are connected and have not been heard
	pending chan struct{} // capacity 1: something may be taken

	mu      sync.Mutex
	waiting [numClaims][]*fetchJob
	jobs    map[peer.ID]*fetchJob // waiting or under way
	past    map[peer.ID]fetchPast
	busy    map[string]int // under way by network
	quiet   int            // under way with claimLine
}

// fetchJob is a record that is to be fetched.
type fetchJob struct {
	id      peer.ID
	net     string // the network that it comes from, empty where that does not count
	claim   claim
	running bool
	tries   int // fetches in a row that failed
}

// fetchPast is what is remembered of a peer's fetches.
type fetchPast struct {
	tokens float64
	at     time.Time
	next   time.Time // not before
	fails  int
}

func newFetches(workers, limit int) *fetches {
	return &fetches{
		limit: limit, share: max(1, workers/4), silent: max(1, workers-workers/4), pending: make(chan struct{}, 1),
		jobs: map[peer.ID]*fetchJob{}, past: map[peer.ID]fetchPast{}, busy: map[string]int{},
	}
}

// want queues a peer's record unless it is too soon for it; who waits longest with the least claim makes room. What is
// not taken now comes with the node's next heartbeat.
func (f *fetches) want(id peer.ID, net string, by claim, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if j := f.jobs[id]; j != nil {
		if !j.running && by > j.claim {
			f.withdrawLocked(j)
			f.queueLocked(&fetchJob{id: id, net: net, claim: by, tries: j.tries})
		}
		return true
	}
	past := f.past[id]
	if now.Before(past.next) || !f.roomLocked(by) {
		return false
	}
	f.queueLocked(&fetchJob{id: id, net: net, claim: by, tries: past.fails})
	poke(f.pending)
	return true
}

func (f *fetches) queueLocked(j *fetchJob) {
	f.waiting[j.claim] = append(f.waiting[j.claim], j)
	f.jobs[j.id] = j
}

func (f *fetches) withdrawLocked(j *fetchJob) {
	f.waiting[j.claim] = slices.DeleteFunc(f.waiting[j.claim], func(o *fetchJob) bool { return o == j })
	delete(f.jobs, j.id)
}

// roomLocked makes room for one with a claim.
func (f *fetches) roomLocked(by claim) bool {
	n := 0
	for _, w := range f.waiting {
		n += len(w)
	}
	if n < f.limit {
		return true
	}
	for c := range by + 1 {
		if len(f.waiting[c]) > 0 {
			f.withdrawLocked(f.waiting[c][0])
			return true
		}
	}
	return false
}

// take waits for a record that may be fetched, false when ctx ends. done has to be called for it.
func (f *fetches) take(ctx context.Context) (*fetchJob, bool) {
	for {
		if j := f.next(); j != nil {
			poke(f.pending) // for the other workers
			return j, true
		}
		select {
		case <-ctx.Done():
			return nil, false
		case <-f.pending:
		}
	}
}

func (f *fetches) next() *fetchJob {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := numClaims; c > 0; c-- {
		if c-1 == claimLine && f.quiet >= f.silent {
			continue
		}
		for i, j := range f.waiting[c-1] {
			if j.net != "" && f.busy[j.net] >= f.share {
				continue
			}
			f.waiting[c-1] = slices.Delete(f.waiting[c-1], i, i+1)
			j.running = true
			f.busy[j.net]++
			f.quiet += btoi(j.claim == claimLine)
			return j
		}
	}
	return nil
}

// done notes what came of a fetch.
func (f *fetches) done(j *fetchJob, had bool, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.jobs, j.id)
	if f.busy[j.net]--; f.busy[j.net] == 0 {
		delete(f.busy, j.net)
	}
	f.quiet -= btoi(j.claim == claimLine)
	p, known := f.past[j.id]
	if !known {
		f.forgetLocked(now)
		p = fetchPast{tokens: fetchBurst, at: now}
	}
	p.tokens = min(fetchBurst, p.tokens+float64(now.Sub(p.at))/float64(fetchEvery)) - 1
	p.at, p.next = now, now
	if p.tokens < 1 {
		p.next = now.Add(time.Duration((1 - p.tokens) * float64(fetchEvery)))
	}
	if p.fails++; had {
		p.fails = 0
	} else {
		p.next = now.Add(retryAfter(p.fails))
	}
	f.past[j.id] = p
	poke(f.pending)
}

// retryAfter is for how long nobody asks for a record after so many failures.
func retryAfter(fails int) time.Duration {
	if fails <= 1 {
		return retryFirst
	}
	return min(retryMost, fetchEvery<<min(fails-2, 10))
}

// forgetLocked keeps what is remembered within four times the queue: it looks at a few and forgets one that loses nothing,
// else any.
func (f *fetches) forgetLocked(now time.Time) {
	if len(f.past) < 4*f.limit {
		return
	}
	const looks = 16
	var one peer.ID
	n := 0
	for id, p := range f.past {
		if one = id; now.After(p.next) && float64(now.Sub(p.at)) >= (fetchBurst-p.tokens)*float64(fetchEvery) {
			break
		}
		if n++; n == looks {
			break
		}
	}
	delete(f.past, one)
}

// wantRecord queues the fetching of a record. heard says that a heartbeat speaks of it.
func (d *Directory) wantRecord(id peer.ID, heard bool) {
	by := claimBeat
	switch line := d.connected(id); {
	case d.index.knows(id):
		by = claimHeld
	case line && heard:
		by = claimBoth
	case line:
		by = claimLine
	}
	d.fetches.want(id, d.shareOf(id), by, d.now())
}

// shareOf names the network (/24, IPv6: /48) whose share of the workers a fetch counts to, empty for none.
func (d *Directory) shareOf(id peer.ID) string {
	if d.cfg.Loopback {
		return ""
	}
	for _, c := range d.host.Network().ConnsToPeer(id) {
		if a := c.RemoteMultiaddr(); !manet.IsIPLoopback(a) {
			return netOf(a, 3, 6)
		}
	}
	return ""
}

// knows says whether a record of a peer is held.
func (x *replica) knows(id peer.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, ok := x.slots[id]
	return ok && x.at(i).record != nil
}

func (d *Directory) fetchLoop(ctx context.Context) error {
	for {
		j, ok := d.fetches.take(ctx)
		if !ok {
			return nil
		}
		err := d.fetch(ctx, j.id, j.tries)
		if err != nil {
			d.log.Debug("record not fetched", "peer", j.id, "err", err)
			d.index.dropBare(j.id)
		}
		d.fetches.done(j, err == nil, d.now())
	}
}

// fetch brings the record that the peer's heartbeat speaks of: from the peer when we are connected, else from another
// replica, else from the DHT. tries is how often that has failed.
func (d *Directory) fetch(ctx context.Context, id peer.ID, tries int) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.FetchTimeout)
	defer cancel()
	settled := func() bool {
		h, ok := d.index.get(id, d.now())
		return ok && !h.waits
	}
	if d.host.ID() == id {
		return nil
	}
	if len(d.host.Network().ConnsToPeer(id)) > 0 {
		d.fetchFromItself(ctx, id)
	}
	if !d.index.beats(id) { // a peer that has been greeted and does not offer itself
		return nil
	}
	d.fromReplicas(ctx, id, settled)
	return d.fetchFromDHT(ctx, id, tries, settled)
}

// fetchFromItself has half the time: who takes the connection and says nothing may be silent for ever.
func (d *Directory) fetchFromItself(ctx context.Context, id peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.FetchTimeout/2)
	defer cancel()
	found, err := d.ask(ctx, id, []peer.ID{id})
	if err != nil || len(found) != 1 {
		return
	}
	if b := found[0].beat; b != nil && b.fresh(d.now()) {
		d.index.putBeat(b, 0, d.now())
	}
	if d.index.beats(id) {
		d.index.putRecord(found[0].record, d.now())
	}
}

// fetchFromDHT looks a record up. One copy suffices unless it is an old one; when nobody has any, a second look finds none
// either. After failures all holders are asked at once.
func (d *Directory) fetchFromDHT(ctx context.Context, id peer.ID, tries int, settled func() bool) error {
	quorums := []int{1, 0}
	if tries > 0 {
		quorums = quorums[1:]
	}
	for _, quorum := range quorums {
		if settled() {
			return nil
		}
		rec, err := d.fromDHT(ctx, id, quorum)
		if err != nil {
			return err
		}
		d.index.putRecord(rec, d.now())
	}
	if !settled() {
		return ErrNotFound
	}
	return nil
}
